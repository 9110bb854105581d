#!/usr/bin/env python3
"""Frozen features and a linear SVM on sets that the networks never saw: `results/transfer.json`, `results/table3.json`.

    python tools/measure_transfer.py small                       # the small networks and their controls, minutes
    python tools/measure_transfer.py small --caltech DIR         # ... on a folder of Caltech-101's classes as well
    python tools/measure_transfer.py small --sets digits         # ... on these sets only
    python tools/measure_transfer.py table3 WEIGHTS [TARGET …]   # rows of the paper's Table 3 for a network from CIFAR

`small` takes the networks of `measure.py controls` and plain `vgg` (three seeds; trained first if not there), the
bundled `vgg_gap`, random weights and raw pixels; to `animals` and `digits` it adds `cifar100` where LTPA_DATA has it.
Network of seed k meets split k, so the spread is that of training and split together. A set that is not measured
this time keeps its rows. `sets` in the file says of each set when and from which commit its rows are, on which images
(a fingerprint a split) and with which weights.
"""
import argparse
import json
import statistics
import time
from pathlib import Path

from measure import ATT3
from measure_fgsm import studied
from torch import nn

from ltpa.names import LtpaError
from ltpa.core import seed_everything
from ltpa.files import fingerprint, git_commit, provenance, save_result
from ltpa.downloads import is_here
from ltpa.published import open_data
from ltpa.models import create_model, load_pretrained, load_weights
from ltpa.training import predict
from ltpa.published import LAYOUTS
from ltpa.transfer import CIFAR10, MODELS_OF_TABLE3, TABLE3, UNSEEN, mapped_label_accuracy, load_splits, pixels, transfer

ROOT = Path(__file__).resolve().parent.parent
SPLITS = 3
FOLDS = {'cifar100': 3}                       # 2,000 images of 100 classes: few of each


def random_weights(seed):
    seed_everything(seed)
    return create_model(ATT3[0], **load_pretrained(f'cluttered_fashion/{ATT3[0]}').config).eval()


def trained(model):
    return lambda seed: load_weights(studied(model, seed))


ENCODERS = {**{m: trained(m) for m in (*ATT3, 'vgg')},
            'vgg_gap (one network)': lambda seed: load_pretrained('cluttered_fashion/vgg_gap'),
            'random weights': random_weights, 'pixels': lambda seed: pixels}


def spread(runs, **row):
    "One row of the table: mean and standard deviation over the splits"
    values = [r['accuracy'] for r in runs]
    sd = round(statistics.stdev(values), 4) if values[1:] else None
    return row | dict(accuracy=round(statistics.mean(values), 4), sd=sd, splits=len(runs),
                      **{k: runs[0][k] for k in ('features', 'train', 'test')}, C=[r['C'] for r in runs])


def stored(path): return json.loads(path.read_text()) if path.exists() else {}


def weights_of(nets):
    "The digest of each network's weights; none of a function"
    return [fingerprint(*net.state_dict().values()) for net in nets if isinstance(net, nn.Module)]


def measure(target, encoders, splits, n):
    "The rows of one set, and what they were measured on"
    start, name, found, data = time.time(), Path(target).absolute().name, {m: [] for m in encoders}, []
    for k in range(splits):
        parts = [(x[:n], y[:n]) for x, y in load_splits(target, k, n=n)]
        data.append(fingerprint(*parts[0], *parts[1]))
        if len(set(data)) < len(data):
            raise LtpaError(f'{target}: split {k} has the same images as one before; expected each to differ: '
                            'set -n below the images of a part')
        for m, nets in encoders.items():
            found[m].append(got := transfer(nets[k], parts, FOLDS.get(name, 5)))
            print(f'{name} {k} {m:26} {got["accuracy"]:.3f}  {time.time() - start:4.0f} s', flush=True)
    about = dict(when=provenance()['when'], seconds=round(time.time() - start), n=n, data=data,
                 weights={m: w for m, nets in encoders.items() if (w := weights_of(nets))})
    return name, [spread(runs, model=m, target=name) for m, runs in found.items()], about


def small(sets, splits, n):
    "Measure `sets`; what was measured before of other sets stays"
    path, start = ROOT / 'results' / 'transfer.json', time.time()
    commit = git_commit()                                        # before the file that is written changes the tree
    encoders = {name: [make(k) for k in range(splits)] for name, make in ENCODERS.items()}
    rows, about = {}, stored(path).get('sets', {})                  # rows by set, each in its old place
    for r in stored(path).get('rows', []): rows.setdefault(r['target'], []).append(r)
    title = ('Accuracy of a linear SVM on frozen features of networks trained on ClutteredFashion (size small); '
             'network of seed k on split k')
    for target in sets:
        name, found, what = measure(target, encoders, splits, n)
        rows[name], about[name] = found, dict(commit=commit) | what
        record = provenance(seconds=round(time.time() - start), splits=splits, n=n) | dict(commit=commit)
        save_result(path, title, sum(rows.values(), []), record, sets=about)
    return path


def source_of(net, weights):
    "'cifar10' or 'cifar100', if that is what `net` was trained on, by its own record"
    classes, source = net.info.get('classes') or [], (net.info.get('source') or {}).get('source')
    if net.name not in MODELS_OF_TABLE3:
        raise LtpaError(f'{weights} is a {net.name}; expected one of {", ".join(MODELS_OF_TABLE3)}')
    if source not in ('cifar10', 'cifar100') or len(classes) != int(source[5:]):
        raise LtpaError(f'{weights} was trained on {source} with {len(classes)} classes; '
                        'expected cifar10 with 10 or cifar100 with 100: train one by ltpa train cifar10/MODEL')
    if source == 'cifar10' and list(classes) != CIFAR10:
        raise LtpaError(f'{weights}: its classes are {", ".join(classes)}; expected those of CIFAR-10, '
                        f'in its order: {", ".join(CIFAR10)}')
    return source


def table3(weights, targets, splits):
    "Rows of Table 3 for one network; what was measured before stays"
    net, path, start = load_weights(weights), ROOT / 'results' / 'table3.json', time.time()
    source, rows = source_of(net, weights), stored(path).get('rows', [])
    for target in targets or [t for s, t in TABLE3 if s == source]:
        if (source, target) not in TABLE3:
            raise LtpaError(f'{target!r} has no entry in Table 3 for {source}; expected one of '
                            f'{", ".join(t for s, t in TABLE3 if s == source)}')
        key = dict(source=source, model=net.name, target=target)
        if target.startswith('stl10'):
            test = open_data('stl10', 'train' if target == 'stl10/train' else 'test', 32)
            got, data = mapped_label_accuracy(predict(net, test.images)[0], test.labels), [test.fingerprint]
            row = key | dict(accuracy=got['unmapped'], sd=None) | got
        else:
            drawn = range(1 if target in ('action40', 'scene67') else splits)            # those have one split
            parts = [load_splits(target, k) for k in drawn]
            data = [fingerprint(*train, *test) for train, test in parts]
            row = spread([transfer(net, p) for p in parts], **key)
        row |= dict(width=net.config.get('width'), weights=weights_of([net])[0], data=data)
        rows = [r for r in rows if any(r[k] != v for k, v in key.items())] + [row]
        print(row, flush=True)
    record = provenance(seconds=round(time.time() - start), splits=splits)
    return save_result(path, 'Table 3: accuracy on unseen sets of networks trained on CIFAR', rows, record)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=('small', 'table3'))
    p.add_argument('weights', nargs='?', help='of a network trained on CIFAR, for table3')
    p.add_argument('targets', nargs='*', metavar='TARGET',
                   help=f'stl10/train, stl10, {", ".join(LAYOUTS)}; default: all')
    p.add_argument('--sets', nargs='*', metavar='SET', help='for small, what `load_splits` takes; default: '
                   f'{", ".join(UNSEEN)}, and cifar100 if it is there')
    p.add_argument('--caltech', metavar='DIR', help='CLASS/IMAGE in it, or train/CLASS/IMAGE and test/CLASS/IMAGE')
    p.add_argument('--splits', type=int, default=SPLITS)
    p.add_argument('-n', type=int, default=2000, help='images a part, at most')
    a = p.parse_args()
    if a.what == 'table3':
        if not a.weights: raise LtpaError('table3 needs the weights of a network trained on cifar10 or cifar100')
        path = table3(a.weights, a.targets, a.splits)
    else:
        usual = [*UNSEEN, *['cifar100'] * is_here('cifar100')] if a.sets is None else a.sets
        path = small([*usual, *filter(None, [a.caltech])], a.splits, a.n)
    print(f'wrote {path.relative_to(ROOT)}')


if __name__ == '__main__':
    try: main()
    except LtpaError as e: raise SystemExit(f'measure_transfer: {e}')
