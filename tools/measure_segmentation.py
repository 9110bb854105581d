#!/usr/bin/env python3
"""Score masks made from maps: `results/segmentation.json`, the table of 12_segmentation.

    python tools/measure_segmentation.py                          # the bundled set, 12 minutes on two cores
    python tools/measure_segmentation.py --photos FOLDER          # and photographs of horses: images/ and masks/ there
    python tools/measure_segmentation.py --photos FOLDER --what ship
    python tools/measure_segmentation.py --no-bundled --object-discovery Data     # the paper's three sets

Networks that are missing under runs/studies are trained first, as `tools/measure.py` does: for the bundled set three
seeds of each kind, five minutes a network; for photographs one seed on CIFAR-10 (LTPA_DATA says where it is), a quarter
of an hour a network, more by --cifar-seeds. With --no-train what is there is taken, or else the bundled network; what
has one seed only is named at the end. Rows of sets that are not measured this time stay in the file.
"""
import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from measure import run

from ltpa.names import LtpaError
from ltpa.core import keyed_rng
from ltpa.files import fingerprint, provenance, save_result
from ltpa.data import ClutteredFashion
from ltpa.faithfulness import center_map
from ltpa.models import list_pretrained, load_pretrained, load_weights
from ltpa.folders import load_pairs
from ltpa.published import OBJECT_DISCOVERY, load_object_discovery
from ltpa.segmentation import (
    attention_maps, attention_parts, best_temperature, blend, compare, cut, draw, grabcut, largest,
    mean_jaccard, plain_maps, class_maps, soften, train_unet)
from ltpa.training import predict

ROOT = Path(__file__).resolve().parent.parent
SPLITS = 0, 1, 2
SCORES = [k + end for k in ('pxap', 'otsu', 'fixed') for end in ('', '_with_noise')]
MODELS = 'vgg_att3_concat_pc', 'vgg_att2_concat_pc', 'vgg_att2_concat_dp', 'vgg_trunk', 'vgg_gap', 'vgg_pan'
OF_PHOTOS = 'vgg_att2_concat_pc', 'vgg_trunk', 'vgg_gap', 'vgg_pan'
SIZES = dict(cluttered_fashion='small', cifar10='cifar')


def networks(data, model, seeds, train):
    "Networks of that name, one a seed, trained if they are missing; not to train: those there are, or the bundled one"
    folders = {seed: ROOT / 'runs/studies' / f'{data}-{model}-seed{seed}' for seed in seeds}
    done = lambda folder: (folder / 'result.json').exists()
    for seed, folder in folders.items():
        if train and not done(folder): run(data, model, SIZES[data], seed)
    nets = [load_weights(f / 'weights.safetensors') for f in folders.values() if done(f)]
    name = f'{data}/{model}'
    return nets or ([load_pretrained(name)] if name in list_pretrained() else [])


def record_of(data, parts, nets):
    "What the rows of a set were made from: its tensors and, by model, the weights of each seed"
    return dict(data=data, fingerprint=fingerprint(*parts),
                weights={m: [fingerprint(*n.state_dict().values()) for n in ns] for m, ns in nets.items() if ns})


def summary(data, model, runs, of):
    "One row a way: mean and standard deviation over `runs`, lists of rows; `of`: what the runs differ in"
    rows = []
    for same in zip(*runs):
        row = dict(data=data, model=model, way=same[0]['way'])
        for k in SCORES:
            values = [r[k] for r in same if k in r]
            if values: row[k] = round(statistics.mean(values), 4)
            if len(values) > 1: row[f'{k}_sd'] = round(statistics.stdev(values), 4)
        rows.append(row | {of: len(runs)})
    return rows


def cleaned(maps, images, masks, aside):
    "Rows for `scores, product` after clean-up; these are masks, so they have neither PxAP nor a second threshold"
    first = cut(maps['scores, product'])[~aside]
    piece = largest(first)
    steps = {'scores, product, largest piece': piece}
    try: steps['scores, product, largest piece, GrabCut'] = grabcut(images[~aside], piece)
    except LtpaError as e: print('not run:', e)
    found = {way: mean_jaccard(m, masks[~aside]) for way, m in steps.items()}
    return [dict(way=way, otsu=j['jaccard'], otsu_with_noise=j['with_noise']) for way, j in found.items()]


def one_network(net, images, labels, masks, asides, refine=False):
    "All rows of one network, for each way to set pictures aside; its maps are made once"
    size, maps, scores = tuple(masks.shape[1:]), {}, None
    if hasattr(net, 'scores'):
        maps, scores = attention_maps(net, images, size), attention_parts(net, images)[1]
    elif net.name == 'vgg_pan': maps = {"PAN's gate": blend(predict(net, images)[1][0], size)}
    after = class_maps(net, images, labels, size)
    maps |= {way.removesuffix(f', {net.name}'): m for way, m in after.items()}
    runs = []
    for aside in asides:
        chosen = {}
        if scores:
            t = best_temperature([c[aside] for c in scores], masks[aside])
            chosen = {'weights at a chosen temperature, product': blend(soften(scores, t), size)}
        rows = compare(maps | chosen, masks, aside)
        runs.append(rows + (cleaned(maps, images, masks, aside) if refine and scores else []))
    return runs


def no_network(images, masks, aside):
    "Rows that need none; the whole picture has the object's share of the pixels in every score"
    maps, scored = {'centre': center_map(None, masks[:, None])}, masks[~aside]
    try: maps |= plain_maps(images, masks.shape[1])
    except LtpaError as e: print('not run:', e)
    share = [some.float().mean().item() for some in (scored[scored.flatten(1).any(1)], scored)]
    whole = {k: share[k.endswith('noise')] for k in SCORES}
    return compare(maps, masks, aside) + [dict(way='the whole picture') | whole]


def fashion(n_aside, n_scored, seeds, train):
    "The bundled set: rows over seeds of networks, then larger pictures; and the record of each"
    found = {m: networks('cluttered_fashion', m, seeds, train) for m in MODELS}
    def pictures(split, n, size=32, **kw):
        d = ClutteredFashion(split, size, n=n, **kw)
        return *d.render(), d.labels
    def both(n_aside, n_scored, size, **kw):
        parts = zip(pictures('train', n_aside, size, **kw), pictures('test', n_scored, size, **kw))
        return *map(torch.cat, parts), torch.arange(n_aside + n_scored) < n_aside

    images, masks, labels, aside = both(n_aside, n_scored, 32)
    name = 'ClutteredFashion, 32 pixels'
    rows = summary(name, '', [no_network(images, masks, aside)], 'seeds')
    print('U-Net', flush=True)
    rows += summary(name, '', [compare({f'U-Net, trained on {n_aside} masks': draw(train_unet(
        images[aside], masks[aside], 200, seed), images)}, masks, aside) for seed in seeds], 'seeds')
    records = [record_of(name, (images, masks), found)]
    for model, nets in found.items():
        print(name, model, flush=True)
        runs = [run for net in nets for run in one_network(net, images, labels, masks, [aside], refine=True)]
        rows += summary(name, model, runs, 'seeds') or [dict(data=name, model=model, way='')]
    for size, scale in ((64, (.5, .8)), (128, (.5, .8)), (128, (.125, .2))):
        name = f'ClutteredFashion, {size} pixels, object {size * scale[0]:.0f} to {size * scale[1]:.0f}'
        print(name, flush=True)
        images, masks, labels, aside = both(n_aside // 10, n_scored // 10, size, scale=scale)
        runs, nets = [], found['vgg_att3_concat_pc']
        records.append(record_of(name, (images, masks), dict(vgg_att3_concat_pc=nets)))
        for net in nets:
            weights, scores = attention_parts(net, images, 25)
            maps = {'weights, product': blend(weights, size), 'scores, product': blend(scores, size)}
            runs.append(compare(maps, masks, aside))
        rows += summary(name, 'vgg_att3_concat_pc', runs, 'seeds')
    return rows, records


def photos(data, name, what, found, sizes, most):
    "Photographs of `what` with masks: a third set aside, three times at random; rows over these splits, and records"
    first = {fingerprint(x): k for k, x in reversed([*enumerate(data.images)])}          # each picture once
    keep = torch.tensor(sorted(first.values()))[:most]
    splits = [torch.randperm(len(keep), generator=keyed_rng('split', k)) < len(keep) // 3 for k in SPLITS]
    rows, records = [], []
    for size in sizes:
        images, masks = (t[keep] for t in data.fitted(size, 96))
        at = f'{name}, {len(keep)} photographs, {size} pixels'
        print(at, flush=True)
        records.append(record_of(at, (images, masks), found))
        rows += summary(at, '', [no_network(images, masks, aside) for aside in splits], 'splits')
        if size == 32:
            small = data.fitted(size)[1][keep]
            rows += summary(at, '', [compare({f'U-Net, trained on {aside.sum()} masks': blend(draw(train_unet(
                images[aside], small[aside], 200, k), images), 96)}, masks, aside) for k, aside in enumerate(splits)],
                'splits')
        for model, nets in found.items(): rows += on_photos(at, model, nets, what, images, masks, splits)
    return rows, records


def on_photos(at, model, nets, what, images, masks, splits):
    "Rows of one kind of network: a single one on every split; of several, that of seed k on split k"
    if not nets: return [dict(data=at, model=f'{model} (CIFAR-10)', way='')]
    labels = torch.full((len(images),), nets[0].info['classes'].index(what))
    if nets[1:]: runs = [one_network(net, images, labels, masks, [s])[0] for net, s in zip(nets, splits)]
    else: runs = one_network(nets[0], images, labels, masks, splits)
    return [r | dict(seeds=len(nets)) for r in summary(at, f'{model} (CIFAR-10)', runs, 'splits')]


def merge(path, rows, records, now):
    "Rows and records, and those in the file of sets not measured this time; a row for each kind of set never measured"
    records, new = [r | now for r in records], {set_of(r) for r in rows}
    if path.exists():
        old = json.loads(path.read_text())
        kept = [r for r in old['rows'] if (r['model'] or r['way']) and set_of(r) not in new]
        when = {k: old['provenance'][k] for k in now}
        known = {r['data']: r for r in old.get('sets', [])}
        rows = rows + kept
        records += [known.get(data, dict(data=data) | when) for data in dict.fromkeys(r['data'] for r in kept)]
    kinds = 'ClutteredFashion', 'photographs', 'Object Discovery'
    kind = lambda r: next(k for k in ('Object Discovery', *kinds) if k in r['data'])
    rows = rows + [dict(data=k, model='', way='') for k in kinds if k not in map(kind, rows)]
    return [sorted(part, key=lambda r: kinds.index(kind(r))) for part in (rows, records)]


def set_of(row):
    "What is measured together and replaced together: the name up to the first comma"
    return row['data'].split(',')[0]


def one_seed(rows):
    "Networks and sets with a single seed"
    return list(dict.fromkeys(f'{r["model"]} on {r["data"]}' for r in rows
                              if 'otsu' in r and r['model'] and r.get('seeds', 1) == 1))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--photos', metavar='FOLDER', help='holds images/ and masks/')
    p.add_argument('--what', default='horse', help="what they show, one of CIFAR-10's classes (default: horse)")
    p.add_argument('--object-discovery', metavar='DIR', help='the folder Data of the archive, with ' +
                   ', '.join(f'{k} (as {v})' for k, v in OBJECT_DISCOVERY.items()))
    p.add_argument('--missing', default='refuse', choices=('refuse', 'noise'),
                   help='a photograph without mask: refuse it, or take it as one without object')
    p.add_argument('--no-bundled', action='store_true', help='photographs only')
    p.add_argument('--no-train', action='store_true', help='take only networks that are there')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='of networks, for the bundled set')
    p.add_argument('--cifar-seeds', type=int, nargs='+', default=[0], help='of networks, for photographs; at most 3')
    p.add_argument('--most', type=int, nargs=2, default=(400, 1000), metavar=('ASIDE', 'SCORED'),
                   help='pictures of the bundled set (default: 400 1000); photographs: at most SCORED')
    p.add_argument('--out', default=ROOT / 'results/segmentation.json', type=Path)
    a = p.parse_args(argv)
    start, train = time.time(), not a.no_train
    sets = [(d := load_pairs(a.photos, a.missing), d.name, a.what)] if a.photos else []
    for subset, what in OBJECT_DISCOVERY.items() if a.object_discovery else ():
        sets.append((load_object_discovery(a.object_discovery, subset, a.missing), f'Object Discovery {subset}', what))
    if a.no_bundled and not sets:
        raise LtpaError('nothing to measure; --no-bundled needs --photos or --object-discovery')
    if len(a.cifar_seeds) > len(SPLITS):
        raise LtpaError(f'{len(a.cifar_seeds)} seeds for photographs; expected at most {len(SPLITS)}, one a split')
    found = {m: networks('cifar10', m, a.cifar_seeds, train) for m in OF_PHOTOS} if sets else {}
    parts = [] if a.no_bundled else [fashion(*a.most, a.seeds, train)]
    parts += [photos(*one, found, (32, 64), a.most[1]) for one in sets]
    record = provenance(seconds=round(time.time() - start), seeds=a.seeds, cifar_seeds=a.cifar_seeds,
                        pictures=list(a.most))
    now = {k: record[k] for k in ('commit', 'when')}
    rows, records = merge(a.out, *(sum(part, []) for part in zip(*parts)), now)
    title = 'Masks from maps: PxAP, and mean Jaccard at Otsu\'s threshold and at one chosen on pictures set aside'
    for what in one_seed(rows): print('one seed only:', what)
    print(f'wrote {save_result(a.out, title, rows, record, sets=records)}')


if __name__ == '__main__':
    try: main()
    except LtpaError as e: raise SystemExit(f'measure_segmentation: {e}')
