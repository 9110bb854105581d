#!/usr/bin/env python3
"""Bundle trained weights: `ltpa/assets/weights/SET/*.safetensors`, their scores and a model card.

    python tools/build_weights.py                       # ClutteredFashion: five networks, about three minutes each
    python tools/build_weights.py cifar10               # CIFAR-10: four, about a quarter of an hour each; LTPA_DATA
    python tools/build_weights.py cifar100              # CIFAR-100: one
    python tools/build_weights.py SET --fit-foreign     # only what `ltpa.foreign` keeps with the weights that are there

What is not trained yet is trained now. Takes seed 0 of each network as it is: the seed was fixed beforehand, no run was
picked.
"""
import argparse
import json
from pathlib import Path

from ltpa.attention import entropy
from ltpa.data import ClutteredFashion
from ltpa.foreign import fit_foreign
from ltpa.models import load_weights, save_weights
from ltpa.names import LtpaError
from ltpa.published import open_data
from ltpa.studies import evaluated, trained
from ltpa.training import predict

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / 'ltpa' / 'assets' / 'weights'
# Models of each set, and what `trained` is told beside their names
MODELS = {
    'cluttered_fashion': dict.fromkeys(
        ('vgg_att2_concat_pc', 'vgg_att2_concat_dp', 'vgg_att3_concat_pc', 'vgg_gap', 'vgg_trunk'), {}),
    'cifar10': {'vgg_att3_concat_pc': dict(net=dict(u=.3)), 'vgg_att2_concat_dp': {}, 'vgg_gap': {}, 'vgg_trunk': {}},
    'cifar100': {'vgg_att3_concat_pc': dict(net=dict(u=.3))}}
SIZES = dict(cluttered_fashion='small', cifar10='cifar', cifar100='cifar')
MOST_BYTES = 25e6                  # of all weights together

TABLE = """| network | test accuracy | brightest point on the object, by level | effective cells, by level | parameters | commit |
|---|---|---|---|---|---|
{rows}
"""
FASHION = """# Bundled networks

Trained on the training part of `ClutteredFashion` (32x32, standard scale), measured on its test part: objects
and photographs that no training picture shows. Seed 0, last epoch; the spread over seeds is in
`results/controls.json`. Optimiser, learning rate and the temperature of `dp` were chosen on a held-out tenth of the
training part (`results/choose_*.json`). The standard scale and the number of passes were set before that, in trials
of `vgg_att3_concat_pc` that looked at test accuracy; all networks share them.

""" + TABLE + """
**Made by** `ltpa train cluttered_fashion/MODEL --size small --seed 0`, at the commit in the table; a `+` says that files
differed from it.
**Recipe:** {recipe}.
**Effective cells** is the exponential of a map's mean entropy over 500 test pictures. The scores of `dp` are divided
by 8; without that, as in the paper, they saturate with this recipe, and the maps are one cell.
**Foreign pictures:** each file keeps what `ltpa.foreign` needs, fitted on the training part; how many foreign pictures
are warned of, and how many of its own, is in `results/foreign.json`.
**For** the lessons of the course, and as a small example of trained attention. **Not for** recognising clothes in
earnest: the training set is a collage of 28-pixel product photographs.
**Files:** safetensors, matrices in float16. **Licence:** Apache-2.0, as the code.
"""
CIFAR = """# Bundled networks that know photographs

Trained on the training part of {title} (50,000 photographs of 32x32 pixels: {what}), measured on its 10,000 test
pictures. Seed 0, last epoch. Recipe and the start of `u` were chosen on a held-out tenth of CIFAR-10's training part
(`results/choose_cifar10*.json`).

""" + TABLE + """
**Made by** `ltpa train {name}/MODEL --size cifar --seed 0`, at the commit in the table; a `+` says that files differed
from it. What differs from the size's own network: {changes}.
**Recipe:** {recipe}.
**Brightest point:** {title} has no masks. **Effective cells** is the exponential of a map's mean entropy over 500 test
pictures.
**Photographs** are larger than 32 pixels: {side}
**Foreign pictures:** each file keeps what `ltpa.foreign` needs, fitted on the training part; {foreign}
**For** the lessons of the course, and for a first look at a photograph of one's own. **Not for** recognising in earnest:
{errors} on its own kind of picture, and more on photographs from elsewhere.
**Data:** {title} (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009). Its images state no
licence; none of them is part of this project.
**Files:** safetensors, matrices in float16. **Licence:** Apache-2.0, as the code.
"""
WORDS = {
    'cifar10': dict(
        title='CIFAR-10', errors='ten classes, an error in ten',
        what='airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck',
        foreign='how many foreign pictures\nare warned of, and how many of its own, is in `results/foreign.json`.'),
    'cifar100': dict(
        title='CIFAR-100', errors='a hundred classes, an error in three',
        what='a hundred kinds of animals, plants, people,\nplaces and things',
        foreign='how well that works\nwas measured for the networks of the other sets alone (`results/foreign.json`).')}
SIDE = ('at the side of their training, 32, they lose what one sees, and far above it the network no longer knows them; '
        '`results/foreign.json` has accuracy on Caltech-101 by side.')


def add_foreign(source, path, data):
    "Write the network in `source` to `path`, with what tells foreign pictures; the weights are the same bits"
    net = load_weights(source)
    save_weights(net, path, **net.info | dict(foreign=fit_foreign(net, data)))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('set', nargs='?', default='cluttered_fashion', choices=MODELS)
    p.add_argument('--fit-foreign', action='store_true', help='the networks stay as they are')
    p.add_argument('--models', nargs='+', help='only these; default: all of the set')
    a = p.parse_args(argv)
    data, out = open_data(a.set, 'train'), OUT / a.set
    if a.fit_foreign:
        for path in sorted(out.glob('*.safetensors')): add_foreign(path, path, data)
    else: bundle(a.set, data, out, a.models)
    total = sum(f.stat().st_size for f in OUT.rglob('*.safetensors'))
    print(f'all weights together: {total / 1e6:.1f} MB')
    if total > MOST_BYTES: raise LtpaError(f'expected at most {MOST_BYTES / 1e6:.0f} MB: bundle fewer, or narrower ones')


def bundle(name, data, out, only=None):
    out.mkdir(parents=True, exist_ok=True)
    scores, lines, changes = {}, [], []
    test = open_data(name, 'test')
    images = test.images[:500] if hasattr(test, 'images') else ClutteredFashion('test', n=500).render()[0]
    for model, case in MODELS[name].items():
        if only and model not in only: continue
        folder = trained(f'{name}/{model}', SIZES[name], root=ROOT / 'runs' / 'studies', **case)
        result = evaluated(folder)
        add_foreign(folder / 'weights.safetensors', out / f'{model}.safetensors', data)
        row, record = result['rows'][0], result['provenance']
        scores[model] = row | dict(provenance=record)
        hits = ', '.join(f'{row[k]:.1%}' for k in sorted(row) if k.startswith('pointing'))
        net = load_weights(out / f'{model}.safetensors')
        maps = predict(net, images)[1]
        cells = ', '.join(f'{entropy(a).mean().exp():.1f} of {a[0].numel()}' for a in maps)
        unmasked = 'no masks' if maps else 'no maps'
        lines.append(f'| `{model}` | {row["accuracy"]:.1%} | {hits or unmasked} | {cells or "no maps"} | '
                     f'{row["parameters"]:,} | {record["commit"]} |')
        changes += [f'`{model}`: {", ".join(f"{k} {v}" for k, v in case["net"].items())}'] if case.get('net') else []
    recipe = ', '.join(f'{k} {v}' for k, v in record['recipe'].items() if v not in (0., False))
    (out / 'scores.json').write_text(json.dumps(scores, indent=1) + '\n')
    card = CIFAR if name in WORDS else FASHION
    (out / 'README.md').write_text(card.format(name=name, **WORDS.get(name, {}), rows='\n'.join(lines), recipe=recipe, side=SIDE,
                                                      changes='; '.join(changes) or 'nothing'))
    print('\n'.join(lines))


if __name__ == '__main__':
    try: main()
    except LtpaError as e: raise SystemExit(f'build_weights: {e}')
