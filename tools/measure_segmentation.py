#!/usr/bin/env python3
"""Score masks made from maps: `results/segmentation.json`, the table of 12_segmentation.

    python tools/measure_segmentation.py                      # the bundled set, 12 minutes on two cores
    python tools/measure_segmentation.py --photos FOLDER      # and photographs of horses: images/ and masks/
    python tools/measure_segmentation.py --photos FOLDER --what ship
    python tools/measure_segmentation.py --no-bundled --object-discovery Data     # the paper's three sets

Networks that are missing under runs/studies are trained first: for the bundled set three seeds of each kind,
five minutes a network; for photographs one seed on CIFAR-10 (LTPA_DATA says where it is), fifteen minutes a
network, more by --cifar-seeds. With --no-train what is there is taken, or else the bundled network; what has
one seed only is named at the end. Rows of sets that are not measured now stay in the file.
"""
from functools import lru_cache, partial
from pathlib import Path

import torch
from measure import ROOT

from ltpa.core import keyed_rng
from ltpa.files import fingerprint, provenance
from ltpa.folders import load_pairs
from ltpa.models import list_pretrained, load_pretrained
from ltpa.names import LtpaError
from ltpa.published import OBJECT_DISCOVERY, load_object_discovery
from ltpa.segmentation import (
    SCORES, class_maps, compare_cleaned, compare_network, compare_plain, compare_products, compare_unet,
    own_maps, train_unet, two_piles)
from ltpa.studies import (
    Study, merge, run_command, run_study, stored, study_parser, summarize, trained_net, weights_digest)

SPLITS = 3
ATT3 = 'vgg_att3_concat_pc'
MODELS = ATT3, 'vgg_att2_concat_pc', 'vgg_att2_concat_dp', 'vgg_trunk', 'vgg_gap', 'vgg_pan'
OF_PHOTOS = ATT3, 'vgg_trunk', 'vgg_gap', 'vgg_pan'
KINDS = 'ClutteredFashion', 'photographs', 'Object Discovery'
LARGER = (64, (.5, .8)), (128, (.5, .8)), (128, (.125, .2))           # side of the picture, and of the object


def networks(data, model, seeds, train):
    "Networks of that name, one a seed, trained if missing; not to train: those there are, or the bundled one"
    name, root = f'{data}/{model}', ROOT / 'runs' / 'studies'
    size = 'cifar' if data == 'cifar10' else 'small'
    nets = [net for seed in seeds if (net := trained_net(name, size, seed, root, train))]
    return nets or ([load_pretrained(name)] if name in list_pretrained() else [])


def record_of(data, parts, nets):
    "What the rows of a set were made from: its tensors and, by model, the weights of each seed"
    return dict(data=data, fingerprint=fingerprint(*parts),
                weights={m: [weights_digest(n) for n in ns] for m, ns in nets.items() if ns})


@lru_cache(maxsize=1)                       # a single network meets several splits
def maps_of(net, images, labels, size):
    maps, scores = own_maps(net, images, size, 'auto')
    after = class_maps(net, images, labels, size)
    return maps | {way.removesuffix(f', {net.name}'): m for way, m in after.items()}, scores


def of_network(net, images, labels, masks, aside, refine=False):
    maps, scores = maps_of(net, images, labels, tuple(masks.shape[1:]))
    rows, best = compare_network(maps, scores, masks, aside), 'scores, product'
    return rows + (compare_cleaned(best, maps[best], images, masks, aside) if refine and scores else [])


def of_unet(x, small, masks, aside, seeds):
    return [r for seed in seeds
            for r in compare_unet(train_unet(x[aside], small[aside], 200, seed), x, masks, aside)]


def each(nets, rows, k):
    "Rows of the k-th network; of no network, one that says so"
    return [r for net in nets[k:k + 1] for r in rows(net, k)] if nets else [dict(way='')] * (k == 0)


def fashion(n_aside, n_scored, seeds, train):
    "The bundled set, then larger pictures: by set and model, what gives the rows of the k-th seed; records"
    found = {m: networks('cluttered_fashion', m, seeds, train) for m in MODELS}
    at, (x, masks, labels, aside) = 'ClutteredFashion, 32 pixels', two_piles(n_aside, n_scored)
    rows = {(at, ''): lambda k: (compare_plain(x, masks, aside) if k == 0 else []) + of_unet(
        x, masks, masks, aside, seeds[k:k + 1])}
    rows |= {(at, m): partial(each, nets, lambda net, k: of_network(net, x, labels, masks, aside, True))
             for m, nets in found.items()}
    records = [record_of(at, (x, masks), found)]
    for size, scale in LARGER:
        at = f'ClutteredFashion, {size} pixels, object {size * scale[0]:.0f} to {size * scale[1]:.0f}'
        images, larger, _, some = two_piles(n_aside // 10, n_scored // 10, size, scale=scale)
        records.append(record_of(at, (images, larger), {ATT3: found[ATT3]}))
        rows[at, ATT3] = partial(each, found[ATT3], lambda net, k, of=(images, larger, some):
                                 compare_products(net, *of))
    return rows, records


def photos(data, name, what, found, most):
    "Photographs of `what`, a third set aside, three times; of several networks, that of seed k on split k"
    first = {fingerprint(x): k for k, x in reversed([*enumerate(data.images)])}          # each picture once
    keep = torch.tensor(sorted(first.values()))[:most]
    n = len(keep)
    asides = [torch.randperm(n, generator=keyed_rng('split', k)) < n // 3 for k in range(SPLITS)]
    rows, records = {}, []
    for size in (32, 64):
        at = f'{name}, {n} photographs, {size} pixels'
        x, masks = (t[keep] for t in data.fitted(size, 96))
        small = data.fitted(32)[1][keep]
        records.append(record_of(at, (x, masks), found))
        rows[at, ''] = lambda k, x=x, masks=masks, small=small, size=size: compare_plain(
            x, masks, asides[k]) + of_unet(x, small, masks, asides[k], [k] * (size == 32))
        for model, nets in found.items():
            labels = torch.full((len(x),), nets[0].info['classes'].index(what)) if nets else None
            rows[at, f'{model} (CIFAR-10)'] = partial(
                each, nets if nets[1:] else nets * SPLITS, lambda net, k, of=(x, labels, masks):
                of_network(net, *of, asides[k]))
    return rows, records


def kind(row): return next(k for k in (KINDS[2], *KINDS) if k in row['data'])


def one_seed(rows):
    "Networks and sets with a single seed"
    return list(dict.fromkeys(f'{r["model"]} on {r["data"]}' for r in rows
                              if 'otsu' in r and r['model'] and r.get('seeds', 1) == 1))


def study(rows_of, records, found, path, facts):
    def finish(runs, record):
        "Rows and records, and those in the file of sets not measured now; a row for each kind never measured"
        new = summarize(runs, ('data', 'model', 'way'), SCORES)
        for r in new:
            if kind(r) == KINDS[0] or 'seeds' not in r: continue
            nets = found.get(r['model'].removesuffix(' (CIFAR-10)'))
            r |= dict(splits=r.pop('seeds')) | (dict(seeds=len(nets)) if nets else {})
        for what in one_seed(new): print('one seed only:', what)
        now, old = {k: record[k] for k in ('commit', 'when')}, stored(path)
        kept = [r for r in old.get('rows', []) if r['model'] or r['way']]
        known = {r['data']: r for r in old.get('sets', [])}
        told = [known.get(d, dict(data=d) | {k: old['provenance'][k] for k in now})
                for d in dict.fromkeys(r['data'] for r in kept)]
        def both(kept, new):                            # replaced together: the name up to the first comma
            return merge(kept, new, lambda r: r['data'].split(',')[0])
        def by_kind(rows): return sorted(rows, key=lambda r: KINDS.index(kind(r)))
        rows = both(kept, new)
        rows += [dict(data=k, model='', way='') for k in KINDS if k not in map(kind, rows)]
        return dict(rows=by_kind(rows), sets=by_kind(both(told, [r | now for r in records])))

    title = ("Masks from maps: PxAP, and mean Jaccard at Otsu's threshold and at one chosen on pictures "
             'set aside')
    return Study('segmentation', title, [dict(data=d, model=m) for d, m in rows_of],
                 lambda case, k: rows_of[case['data'], case['model']](k), ('data', 'model', 'way'),
                 finish=finish, record=lambda seeds, seconds: provenance(seconds=seconds, **facts))


def main(argv=None):
    p = study_parser(__doc__, [0, 1, 2], what=('horse', "what they show, one of CIFAR-10's classes"))
    p.add_argument('--photos', metavar='FOLDER', help='holds images/ and masks/')
    p.add_argument('--object-discovery', metavar='DIR', help='the folder Data of the archive, with ' +
                   ', '.join(f'{k} (as {v})' for k, v in OBJECT_DISCOVERY.items()))
    p.add_argument('--missing', default='refuse', choices=('refuse', 'noise'),
                   help='a photograph without mask: refuse it, or take it as one without object')
    p.add_argument('--no-bundled', action='store_true', help='photographs only')
    p.add_argument('--no-train', action='store_true', help='take only networks that are there')
    p.add_argument('--cifar-seeds', type=int, nargs='+', default=[0], help='for photographs; at most 3')
    p.add_argument('--most', type=int, nargs=2, default=(400, 1000), metavar=('ASIDE', 'SCORED'),
                   help='pictures of the bundled set (default: 400 1000); photographs: at most SCORED')
    p.add_argument('--out', default=ROOT / 'results/segmentation.json', type=Path)
    a = p.parse_args(argv)
    sets = [(d := load_pairs(a.photos, a.missing), d.name, a.what)] if a.photos else []
    sets += [(load_object_discovery(a.object_discovery, k, a.missing), f'Object Discovery {k}', what)
             for k, what in (OBJECT_DISCOVERY.items() if a.object_discovery else ())]
    if a.no_bundled and not sets:
        raise LtpaError('nothing to measure; --no-bundled needs --photos or --object-discovery')
    if len(a.cifar_seeds) > SPLITS:
        raise LtpaError(f'{len(a.cifar_seeds)} seeds for photographs; expected at most 3, one a split')
    found = {m: networks('cifar10', m, a.cifar_seeds, not a.no_train) for m in OF_PHOTOS} if sets else {}
    parts = [] if a.no_bundled else [fashion(*a.most, a.seeds, not a.no_train)]
    parts += [photos(*one, found, a.most[1]) for one in sets]
    rows_of = {k: f for rows, _ in parts for k, f in rows.items()}
    facts = dict(seeds=a.seeds, cifar_seeds=a.cifar_seeds, pictures=list(a.most))
    run_study(study(rows_of, [r for _, records in parts for r in records], found, a.out, facts),
              range(max(SPLITS * bool(sets), len(a.seeds) * (not a.no_bundled))), a.out)


if __name__ == '__main__': run_command(main)
