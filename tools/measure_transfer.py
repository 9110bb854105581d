#!/usr/bin/env python3
"""Frozen features and a linear SVM on sets that the networks never saw: `results/transfer.json`, `results/table3.json`.

    python tools/measure_transfer.py small                       # the small networks and their controls, minutes
    python tools/measure_transfer.py small --caltech DIR         # ... on a folder of Caltech-101's classes as well
    python tools/measure_transfer.py table3 WEIGHTS [TARGET …]   # rows of the paper's Table 3 for a network from CIFAR

`small` takes the networks of `measure.py controls` and plain `vgg` (three seeds; trained first if not there), the
bundled `vgg_gap`, random weights and raw pixels; to `animals` and `digits` it adds `cifar100` where LTPA_DATA has it.
Network of seed k meets split k, so the spread is that of training and split together.
"""
import argparse
import json
import statistics
import time
from pathlib import Path

from measure import ATT3, run

from ltpa.core import LtpaError, provenance, save_result, seed_everything
from ltpa.data import is_here, open_data
from ltpa.models import create_model, load_pretrained, load_weights
from ltpa.training import predict
from ltpa.transfer import LAYOUTS, MODELS_OF_TABLE3, TABLE3, UNSEEN, direct, parts_of, pixels, transfer

ROOT = Path(__file__).resolve().parent.parent
SPLITS = 3
FOLDS = {'cifar100': 3}                       # 2,000 images of 100 classes: few of each


def random_weights(seed):
    seed_everything(seed)
    return create_model(ATT3[0], **load_pretrained(f'cluttered_fashion/{ATT3[0]}').config).eval()


def trained(model):
    return lambda seed: load_weights(run('cluttered_fashion', model, seed=seed)[1] / 'weights.safetensors')


ENCODERS = {**{m: trained(m) for m in (*ATT3, 'vgg')},
            'vgg_gap (one network)': lambda seed: load_pretrained('cluttered_fashion/vgg_gap'),
            'random weights': random_weights, 'pixels': lambda seed: pixels}


def spread(runs, **row):
    "One row of the table: mean and standard deviation over the splits"
    values = [r['accuracy'] for r in runs]
    sd = round(statistics.stdev(values), 4) if values[1:] else None
    return row | dict(accuracy=round(statistics.mean(values), 4), sd=sd, splits=len(runs),
                      **{k: runs[0][k] for k in ('features', 'train', 'test')}, C=[r['C'] for r in runs])


def small(sets, splits, n):
    rows, start = [], time.time()
    encoders = {name: [make(k) for k in range(splits)] for name, make in ENCODERS.items()}
    for target in sets:
        found = {name: [] for name in encoders}
        for k in range(splits):
            parts = parts_of(target, k, n=n)
            parts = [(x[:n], y[:n]) for x, y in parts]
            for name, nets in encoders.items():
                found[name].append(got := transfer(nets[k], parts, FOLDS.get(target, 5)))
                print(f'{Path(target).name} {k} {name:26} {got["accuracy"]:.3f}  {time.time() - start:4.0f} s',
                      flush=True)
        rows += [spread(runs, model=name, target=Path(target).name) for name, runs in found.items()]
    title = ('Accuracy of a linear SVM on frozen features of networks trained on ClutteredFashion (size small); '
             'network of seed k on split k')
    record = provenance(seconds=round(time.time() - start), splits=splits, n=n)
    return save_result(ROOT / 'results' / 'transfer.json', title, rows, record)


def table3(weights, targets, splits):
    "Rows of Table 3 for one network; what was measured before stays"
    net, path, start = load_weights(weights), ROOT / 'results' / 'table3.json', time.time()
    source = {10: 'cifar10', 100: 'cifar100'}.get(net.config['num_classes'])
    if net.name not in MODELS_OF_TABLE3 or source is None:
        raise LtpaError(f'{weights} is a {net.name} for {net.config["num_classes"]} classes; '
                        f'expected one of {", ".join(MODELS_OF_TABLE3)} trained on cifar10 or cifar100')
    rows = json.loads(path.read_text())['rows'] if path.exists() else []
    for target in targets or [t for s, t in TABLE3 if s == source]:
        key = dict(source=source, model=net.name, target=target)
        if target == 'stl10':
            data = open_data('stl10', 'test', 32)
            got = direct(predict(net, data.images)[0], data.labels)
            row = key | dict(accuracy=got['unmapped'], sd=None) | got
        else:
            drawn = range(1 if target in ('action40', 'scene67') else splits)            # those have one split
            row = spread([transfer(net, parts_of(target, k)) for k in drawn], **key)
        rows = [r for r in rows if any(r[k] != v for k, v in key.items())] + [row]
        print(row, flush=True)
    record = provenance(seconds=round(time.time() - start), splits=splits)
    return save_result(path, 'Table 3: accuracy on unseen sets of networks trained on CIFAR', rows, record)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=('small', 'table3'))
    p.add_argument('weights', nargs='?', help='of a network trained on CIFAR, for table3')
    p.add_argument('targets', nargs='*', metavar='TARGET', help=f'stl10, {", ".join(LAYOUTS)}; default: all')
    p.add_argument('--caltech', help='a folder CLASS/IMAGE, or train/CLASS/IMAGE and test/CLASS/IMAGE')
    p.add_argument('--splits', type=int, default=SPLITS)
    p.add_argument('-n', type=int, default=2000, help='images a part, at most')
    a = p.parse_args()
    if a.what == 'table3':
        if not a.weights: raise LtpaError('table3 needs the weights of a network trained on cifar10 or cifar100')
        path = table3(a.weights, a.targets, a.splits)
    else:
        path = small([*UNSEEN, *['cifar100'] * is_here('cifar100'), *filter(None, [a.caltech])], a.splits, a.n)
    print(f'wrote {path.relative_to(ROOT)}')


if __name__ == '__main__':
    try: main()
    except LtpaError as e: raise SystemExit(f'measure_transfer: {e}')
