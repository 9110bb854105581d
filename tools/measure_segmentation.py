#!/usr/bin/env python3
"""Score masks made from maps: `results/segmentation.json`, the table of 12_segmentation.

    python tools/measure_segmentation.py                      # the bundled set, 12 minutes on two cores
    python tools/measure_segmentation.py --photos FOLDER      # and photographs of horses: images/ and masks/
    python tools/measure_segmentation.py --photos FOLDER --what ship
    python tools/measure_segmentation.py --no-bundled --object-discovery Data     # the paper's three sets

Networks that are missing under runs/studies are trained first: for the bundled set three seeds of each kind,
five minutes a network; for photographs one seed on CIFAR-10 (LTPA_DATA says where it is), fifteen minutes a
network, more by --cifar-seeds. With --no-train what is there is taken, or else the bundled network; what has one
seed only is named at the end. Rows of sets that are not measured now stay in the file.
"""
from functools import lru_cache
from pathlib import Path

import torch
from measure import ROOT

from ltpa.core import keyed_rng
from ltpa.data import ClutteredFashion
from ltpa.faithfulness import center_map
from ltpa.files import fingerprint, provenance
from ltpa.folders import load_pairs
from ltpa.models import list_pretrained, load_pretrained
from ltpa.names import LtpaError
from ltpa.published import OBJECT_DISCOVERY, load_object_discovery
from ltpa.segmentation import (
    attention_maps, attention_parts, best_temperature, blend, class_maps, compare, cut, draw, grabcut,
    largest, mean_jaccard, plain_maps, soften, train_unet)
from ltpa.studies import (
    Study, merge, run_command, run_study, stored, study_parser, summarize, trained_net, weights_digest)
from ltpa.training import predict

SPLITS = 0, 1, 2
SCORES = [k + end for k in ('pxap', 'otsu', 'fixed') for end in ('', '_with_noise')]
ATT3 = 'vgg_att3_concat_pc'
MODELS = ATT3, 'vgg_att2_concat_pc', 'vgg_att2_concat_dp', 'vgg_trunk', 'vgg_gap', 'vgg_pan'
OF_PHOTOS = 'vgg_att2_concat_pc', 'vgg_trunk', 'vgg_gap', 'vgg_pan'
SIZES = dict(cluttered_fashion='small', cifar10='cifar')
KINDS = 'ClutteredFashion', 'photographs', 'Object Discovery'


def networks(data, model, seeds, train):
    "Networks of that name, one a seed, trained if missing; not to train: those there are, or the bundled one"
    name, root = f'{data}/{model}', ROOT / 'runs' / 'studies'
    nets = [net for seed in seeds if (net := trained_net(name, SIZES[data], seed, root, train))]
    return nets or ([load_pretrained(name)] if name in list_pretrained() else [])


def record_of(data, parts, nets):
    "What the rows of a set were made from: its tensors and, by model, the weights of each seed"
    return dict(data=data, fingerprint=fingerprint(*parts),
                weights={m: [weights_digest(n) for n in ns] for m, ns in nets.items() if ns})


def cleaned(maps, images, masks, aside):
    "Rows for `scores, product` after clean-up; these are masks, so without PxAP and a second threshold"
    piece = largest(cut(maps['scores, product'])[~aside])
    steps = {'scores, product, largest piece': piece}
    try: steps['scores, product, largest piece, GrabCut'] = grabcut(images[~aside], piece)
    except LtpaError as e: print('not run:', e)
    found = {way: mean_jaccard(m, masks[~aside]) for way, m in steps.items()}
    return [dict(way=way, otsu=j['jaccard'], otsu_with_noise=j['with_noise']) for way, j in found.items()]


@lru_cache(maxsize=1)                       # a single network meets several splits
def maps_of(net, images, labels, size):
    "All maps of one network, and its scores by level, if it has any"
    maps, scores = {}, attention_parts(net, images)[1] if hasattr(net, 'scores') else None
    if scores: maps = attention_maps(net, images, size)
    elif net.name == 'vgg_pan': maps = {"PAN's gate": blend(predict(net, images)[1][0], size)}
    after = class_maps(net, images, labels, size)
    return maps | {way.removesuffix(f', {net.name}'): m for way, m in after.items()}, scores


def of_network(net, images, labels, masks, aside, refine=False):
    "All rows of one network"
    size, chosen = tuple(masks.shape[1:]), {}
    maps, scores = maps_of(net, images, labels, size)
    if scores:
        t = best_temperature([c[aside] for c in scores], masks[aside])
        chosen = {'weights at a chosen temperature, product': blend(soften(scores, t), size)}
    rows = compare(maps | chosen, masks, aside)
    return rows + cleaned(maps, images, masks, aside) if refine and scores else rows


def of_products(net, images, masks, aside):
    parts = zip(('weights', 'scores'), attention_parts(net, images, 25))
    return compare({f'{k}, product': blend(p, tuple(masks.shape[1:])) for k, p in parts}, masks, aside)


def no_network(images, masks, aside):
    "Rows that need none; the whole picture has the object's share of the pixels in every score"
    maps, scored = {'centre': center_map(None, masks[:, None])}, masks[~aside]
    try: maps |= plain_maps(images, masks.shape[1])
    except LtpaError as e: print('not run:', e)
    share = [some.float().mean().item() for some in (scored[scored.flatten(1).any(1)], scored)]
    return compare(maps, masks, aside) + [
        dict(way='the whole picture') | {k: share[k.endswith('noise')] for k in SCORES}]


def of_unet(images, small, masks, aside, seed):
    drawn = draw(train_unet(images[aside], small[aside], 200, seed), images)
    if small is not masks: drawn = blend(drawn, masks.shape[1])
    return compare({f'U-Net, trained on {aside.sum()} masks': drawn}, masks, aside)


def each(nets, rows):
    "Rows of the k-th network; of no network, one that says so"
    return lambda k: [r for net in nets[k:k + 1] for r in rows(net, k)] if nets else [dict(way='')] * (k == 0)


def fashion(n_aside, n_scored, seeds, train):
    "The bundled set, then larger pictures: by set and model, what gives the rows of the k-th seed; records"
    found = {m: networks('cluttered_fashion', m, seeds, train) for m in MODELS}
    def pictures(split, n, size, **kw):
        d = ClutteredFashion(split, size, n=n, **kw)
        return *d.render(), d.labels
    def both(n_aside, n_scored, size, **kw):
        parts = zip(pictures('train', n_aside, size, **kw), pictures('test', n_scored, size, **kw))
        return *map(torch.cat, parts), torch.arange(n_aside + n_scored) < n_aside

    x, masks, labels, aside = both(n_aside, n_scored, 32)
    at = 'ClutteredFashion, 32 pixels'
    def without(k):
        return no_network(x, masks, aside) * (k == 0) + [
            r for seed in seeds[k:k + 1] for r in of_unet(x, masks, masks, aside, seed)]
    rows = {(at, ''): without} | {
        (at, m): each(nets, lambda net, k: of_network(net, x, labels, masks, aside, refine=True))
        for m, nets in found.items()}
    records = [record_of(at, (x, masks), found)]
    for size, scale in ((64, (.5, .8)), (128, (.5, .8)), (128, (.125, .2))):
        at = f'ClutteredFashion, {size} pixels, object {size * scale[0]:.0f} to {size * scale[1]:.0f}'
        images, larger, _, some = both(n_aside // 10, n_scored // 10, size, scale=scale)
        records.append(record_of(at, (images, larger), {ATT3: found[ATT3]}))
        rows[at, ATT3] = each(found[ATT3], lambda net, k, of=(images, larger, some): of_products(net, *of))
    return rows, records


def photos(data, name, what, found, most):
    "Photographs of `what`, a third set aside, three times; of several networks, that of seed k on split k"
    first = {fingerprint(x): k for k, x in reversed([*enumerate(data.images)])}          # each picture once
    keep = torch.tensor(sorted(first.values()))[:most]
    asides = [torch.randperm(len(keep), generator=keyed_rng('split', k)) < len(keep) // 3 for k in SPLITS]
    rows, records = {}, []
    for size in (32, 64):
        at = f'{name}, {len(keep)} photographs, {size} pixels'
        x, masks = (t[keep] for t in data.fitted(size, 96))
        records.append(record_of(at, (x, masks), found))
        def without(k, x=x, masks=masks, small=data.fitted(size)[1][keep] if size == 32 else None):
            unet = [] if small is None else of_unet(x, small, masks, asides[k], k)
            return no_network(x, masks, asides[k]) + unet
        rows[at, ''] = without
        for model, nets in found.items():
            labels = torch.full((len(x),), nets[0].info['classes'].index(what)) if nets else None
            rows[at, f'{model} (CIFAR-10)'] = each(
                nets if nets[1:] else nets * len(SPLITS), lambda net, k, x=x, masks=masks, labels=labels:
                of_network(net, x, labels, masks, asides[k]))
    return rows, records


def set_of(row):
    "What is measured together and replaced together: the name up to the first comma"
    return row['data'].split(',')[0]


def kind(row): return next(k for k in (KINDS[2], *KINDS) if k in row['data'])


def one_seed(rows):
    "Networks and sets with a single seed"
    return list(dict.fromkeys(f'{r["model"]} on {r["data"]}' for r in rows
                              if 'otsu' in r and r['model'] and r.get('seeds', 1) == 1))


def study(rows_of, records, found, path, facts):
    def finish(runs, record):
        "Rows and records, and those in the file of sets not measured now; a row for each kind never measured"
        rows = summarize(runs, ('data', 'model', 'way'), SCORES)
        for r in rows:
            if kind(r) == KINDS[0] or 'seeds' not in r: continue
            nets = found.get(r['model'].removesuffix(' (CIFAR-10)'))
            r |= dict(splits=r.pop('seeds')) | (dict(seeds=len(nets)) if nets else {})
        for what in one_seed(rows): print('one seed only:', what)
        now, old = {k: record[k] for k in ('commit', 'when')}, stored(path)
        kept = [r for r in old.get('rows', []) if r['model'] or r['way']]
        known = {r['data']: r for r in old.get('sets', [])}
        told = [known.get(d, dict(data=d) | {k: old['provenance'][k] for k in now})
                for d in dict.fromkeys(r['data'] for r in kept)]
        rows, sets = merge(kept, rows, set_of), merge(told, [r | now for r in records], set_of)
        rows += [dict(data=k, model='', way='') for k in KINDS if k not in map(kind, rows)]
        by_kind = lambda rows: sorted(rows, key=lambda r: KINDS.index(kind(r)))
        return dict(rows=by_kind(rows), sets=by_kind(sets))

    title = ("Masks from maps: PxAP, and mean Jaccard at Otsu's threshold and at one chosen on pictures "
             'set aside')
    return Study('segmentation', title, [dict(data=d, model=m) for d, m in rows_of],
                 lambda case, k: rows_of[case['data'], case['model']](k), ('data', 'model', 'way'),
                 cost='12 minutes on two cores, trainings apart', finish=finish,
                 record=lambda seeds, seconds: provenance(seconds=seconds, **facts))


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
    for subset, what in OBJECT_DISCOVERY.items() if a.object_discovery else ():
        found = load_object_discovery(a.object_discovery, subset, a.missing)
        sets.append((found, f'Object Discovery {subset}', what))
    if a.no_bundled and not sets:
        raise LtpaError('nothing to measure; --no-bundled needs --photos or --object-discovery')
    if len(a.cifar_seeds) > len(SPLITS):
        raise LtpaError(f'{len(a.cifar_seeds)} seeds for photographs; expected at most 3, one a split')
    found = {m: networks('cifar10', m, a.cifar_seeds, not a.no_train) for m in OF_PHOTOS} if sets else {}
    parts = [] if a.no_bundled else [fashion(*a.most, a.seeds, not a.no_train)]
    parts += [photos(*one, found, a.most[1]) for one in sets]
    rows_of = {k: f for rows, _ in parts for k, f in rows.items()}
    facts = dict(seeds=a.seeds, cifar_seeds=a.cifar_seeds, pictures=list(a.most))
    run_study(study(rows_of, [r for _, records in parts for r in records], found, a.out, facts),
              range(max(len(SPLITS) * bool(sets), len(a.seeds) * (not a.no_bundled))), a.out)


if __name__ == '__main__': run_command(main)
