#!/usr/bin/env python3
"""Frozen features and a linear SVM on sets that no network saw: results/transfer.json, results/table3.json.

    python tools/measure_transfer.py small                       # the small networks and controls, minutes
    python tools/measure_transfer.py small --caltech DIR         # ... on a folder of Caltech-101 as well
    python tools/measure_transfer.py small --sets digits         # ... on these sets only
    python tools/measure_transfer.py table3 WEIGHTS [TARGET …]   # rows of Table 3 for a network from CIFAR

`small` takes the networks of `measure.py controls` and plain `vgg` (three seeds; trained if not there), the
bundled `vgg_gap`, random weights and raw pixels; to `animals` and `digits` it adds `cifar100` where LTPA_DATA
has it. Network of seed k meets split k, so the spread is that of training and split together. A set that is
not measured now keeps its rows. `sets` in the file says of each set when and from which commit its rows are, on
which images (a fingerprint a split) and with which weights.
"""
import time
from pathlib import Path

from measure import ROOT

from ltpa.core import seed_everything
from ltpa.downloads import is_here
from ltpa.files import fingerprint, git_commit, provenance, save_result
from ltpa.models import create_model, load_pretrained, load_weights
from ltpa.names import LtpaError
from ltpa.published import LAYOUTS, open_data
from ltpa.studies import (
    ATT3, Study, grouped, merge, run_command, run_study, stored, study_parser, summarize, trained_net,
    weights_digest)
from ltpa.training import predict
from ltpa.transfer import (
    CIFAR10, MODELS_OF_TABLE3, TABLE3, UNSEEN, load_splits, mapped_label_accuracy, pixels, transfer)

SPLITS = 3
FOLDS = {'cifar100': 3}                       # 2,000 images of 100 classes: few of each


def random_weights(seed):
    seed_everything(seed)
    return create_model(ATT3[0], **load_pretrained(f'cluttered_fashion/{ATT3[0]}').config).eval()


def studied(model):
    return lambda seed: trained_net(f'cluttered_fashion/{model}', 'small', seed, ROOT / 'runs' / 'studies')


ENCODERS = {**{m: studied(m) for m in (*ATT3, 'vgg')},
            'vgg_gap (one network)': lambda seed: load_pretrained('cluttered_fashion/vgg_gap'),
            'random weights': random_weights, 'pixels': lambda seed: pixels}


def spread(runs, keys):
    "Rows of a table: mean and standard deviation over the splits"
    table = summarize(runs, keys, ['accuracy'], keep=('features', 'train', 'test'))
    return [{k: v for k, v in row.items() if k not in ('accuracy_sd', 'seeds')}
            | dict(sd=row.get('accuracy_sd'), splits=len(same), C=[r['C'] for r in same])
            for row, same in zip(table, grouped(runs, keys).values())]


def on_set(target, encoders, n, path, commit):
    "The study of one set; what was measured before of other sets stays in the file"
    start, name, data = time.monotonic(), Path(target).absolute().name, []

    def row(case, k):
        parts = [(x[:n], y[:n]) for x, y in load_splits(target, k, n=n)]
        data.append(fingerprint(*parts[0], *parts[1]))
        if len(set(data)) < len(data):
            raise LtpaError(f'{target}: split {k} has the same images as one before; expected others: '
                            'set -n below the images of a part')
        return [dict(model=m) | transfer(nets[k], parts, FOLDS.get(name, 5), 'auto') for m, nets in encoders.items()]

    def finish(runs, record):
        weights = {m: [*map(weights_digest, nets)] for m, nets in encoders.items() if nets[0] is not pixels}
        about = dict(commit=commit, when=record['when'], seconds=round(time.monotonic() - start), n=n, data=data,
                     weights=weights)
        old = stored(path)
        return dict(rows=merge(old.get('rows', []), spread(runs, ('model', 'target')), ['target']),
                    sets=old.get('sets', {}) | {name: about})

    title = ('Accuracy of a linear SVM on frozen features of networks trained on ClutteredFashion (size '
             'small); network of seed k on split k')
    return Study('transfer', title, [dict(target=name)], row, ('model', 'target'), finish=finish,
                 record=lambda seeds, seconds:
                 provenance(seconds=seconds, splits=len(seeds), n=n) | dict(commit=commit))


def small(sets, splits, n):
    path, commit = ROOT / 'results' / 'transfer.json', git_commit()      # before the file changes the tree
    encoders = {name: [make(k) for k in range(splits)] for name, make in ENCODERS.items()}
    for target in sets: run_study(on_set(target, encoders, n, path, commit), range(splits), path)


def source_of(net, weights):
    "'cifar10' or 'cifar100', if that is what `net` was trained on, by its own record"
    classes, source = net.info.get('classes') or [], (net.info.get('source') or {}).get('source')
    if net.name not in MODELS_OF_TABLE3:
        raise LtpaError(f'{weights} is a {net.name}; expected one of {", ".join(MODELS_OF_TABLE3)}')
    if source not in ('cifar10', 'cifar100') or len(classes) != int(source[5:]):
        raise LtpaError(f'{weights} was trained on {source} with {len(classes)} classes; expected cifar10 '
                        'with 10 or cifar100 with 100: train one by ltpa train cifar10/MODEL')
    if source == 'cifar10' and list(classes) != CIFAR10:
        raise LtpaError(f'{weights}: its classes are {", ".join(classes)}; expected those of CIFAR-10, '
                        f'in its order: {", ".join(CIFAR10)}')
    return source


def row_of_table3(net, key, splits):
    target = key['target']
    if target.startswith('stl10'):
        test = open_data('stl10', 'train' if target == 'stl10/train' else 'test', 32)
        got, data = mapped_label_accuracy(predict(net, test.images, precision='auto')[0], test.labels), [test.fingerprint]
        row = key | dict(accuracy=got['unmapped'], sd=None) | got
    else:
        drawn = 1 if target in ('action40', 'scene67') else splits                      # those have one split
        parts = [load_splits(target, k) for k in range(drawn)]
        data = [fingerprint(*train, *test) for train, test in parts]
        row, = spread([key | transfer(net, p, precision='auto') for p in parts], tuple(key))
    return row | dict(width=net.config.get('width'), weights=weights_digest(net), data=data)


def table3(weights, targets, splits):
    "Rows of Table 3 for one network; what was measured before stays"
    net, path, start = load_weights(weights), ROOT / 'results' / 'table3.json', time.monotonic()
    source, rows = source_of(net, weights), []
    known = [t for s, t in TABLE3 if s == source]
    for target in targets or known:
        if target not in known:
            raise LtpaError(f'{target!r} has no entry in Table 3 for {source}; '
                            f'expected one of {", ".join(known)}')
        rows.append(row_of_table3(net, dict(source=source, model=net.name, target=target), splits))
        print(rows[-1], flush=True)
    save_result(path, 'Table 3: accuracy on unseen sets of networks trained on CIFAR',
                merge(stored(path).get('rows', []), rows, ('source', 'model', 'target')),
                provenance(seconds=round(time.monotonic() - start), splits=splits))


def main(argv=None):
    p = study_parser(__doc__, splits=(SPLITS, 'of each set'))
    p.add_argument('what', choices=('small', 'table3'))
    p.add_argument('weights', nargs='?', help='of a network trained on CIFAR, for table3')
    p.add_argument('targets', nargs='*', metavar='TARGET',
                   help=f'stl10/train, stl10, {", ".join(LAYOUTS)}; default: all')
    p.add_argument('--sets', nargs='*', metavar='SET', help='for small, what `load_splits` takes; default: '
                   f'{", ".join(UNSEEN)}, and cifar100 if it is there')
    p.add_argument('--caltech', metavar='DIR', help='holds CLASS/IMAGE, or train/CLASS/IMAGE and test/…')
    p.add_argument('-n', type=int, default=2000, help='images a part, at most')
    a = p.parse_args(argv)
    if a.what == 'small':
        usual = [*UNSEEN, *['cifar100'] * is_here('cifar100')] if a.sets is None else a.sets
        small([*usual, *filter(None, [a.caltech])], a.splits, a.n)
    elif a.weights: table3(a.weights, a.targets, a.splits)
    else: raise LtpaError('table3 needs the weights of a network trained on cifar10 or cifar100')


if __name__ == '__main__': run_command(main)
