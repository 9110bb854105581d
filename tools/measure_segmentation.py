#!/usr/bin/env python3
"""Score masks made from maps: `results/segmentation.json`, the table of 12_segmentation.

    python tools/measure_segmentation.py                          # the bundled set, about five minutes on two cores
    python tools/measure_segmentation.py --photos FOLDER          # and photographs of horses: images/ and masks/ there
    python tools/measure_segmentation.py --photos FOLDER --what ship

Networks are those of `tools/measure.py`, under runs/studies/, one for each seed; where a single one is wanted and
none is there, the bundled one is taken. What cannot be run for want of a network or of OpenCV is written as not run.
"""
import argparse
import statistics
import time
from pathlib import Path

import torch

from ltpa.core import LtpaError, fingerprint, keyed_rng, provenance, save_result
from ltpa.data import ClutteredFashion
from ltpa.faithfulness import centre_map
from ltpa.models import list_pretrained, load_pretrained, load_weights
from ltpa.segmentation import (attention_maps, attention_parts, best_temperature, blend, compare, cut, draw,
                               grabcut, largest, load_pairs, mean_jaccard, plain_maps, class_maps, soften, train_unet)
from ltpa.training import predict

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 0, 1, 2
SCORES = 'pxap', 'otsu', 'otsu_with_noise', 'fixed'


def networks(data, model):
    "The networks of that name that there are: one a seed, or the bundled one"
    paths = [ROOT / 'runs/studies' / f'{data}-{model}-seed{seed}/weights.safetensors' for seed in SEEDS]
    nets = [load_weights(p) for p in paths if p.exists()]
    name = f'{data}/{model}'
    return nets or ([load_pretrained(name)] if name in list_pretrained() else [])


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
    "Rows that need none"
    maps = {'centre': centre_map(None, masks[:, None])}
    try: maps |= plain_maps(images, masks.shape[1])
    except LtpaError as e: print('not run:', e)
    share = masks[~aside].float().mean().item()
    whole = mean_jaccard(torch.ones_like(masks[~aside]), masks[~aside])
    return compare(maps, masks, aside) + [dict(
        way='the whole picture', pxap=share, otsu=whole['jaccard'], otsu_with_noise=whole['with_noise'],
        fixed=whole['jaccard'])]


def fashion(n_aside, n_scored):
    "The bundled set: rows over seeds of networks, then larger pictures"
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
        images[aside], masks[aside], 200, seed), images)}, masks, aside) for seed in SEEDS], 'seeds')
    for model in ('vgg_att3_concat_pc', 'vgg_att2_concat_pc', 'vgg_att2_concat_dp', 'vgg_trunk', 'vgg_gap', 'vgg_pan'):
        print(name, model, flush=True)
        nets = networks('cluttered_fashion', model)
        runs = [run for net in nets for run in one_network(net, images, labels, masks, [aside], refine=True)]
        rows += summary(name, model, runs, 'seeds') or [dict(data=name, model=model, way='')]
    for size, scale in ((64, (.5, .8)), (128, (.5, .8)), (128, (.125, .2))):
        name = f'ClutteredFashion, {size} pixels, object {size * scale[0]:.0f} to {size * scale[1]:.0f}'
        print(name, flush=True)
        images, masks, labels, aside = both(n_aside // 10, n_scored // 10, size, scale=scale)
        runs = []
        for net in networks('cluttered_fashion', 'vgg_att3_concat_pc'):
            weights, scores = attention_parts(net, images, 25)
            maps = {'weights, product': blend(weights, size), 'scores, product': blend(scores, size)}
            runs.append(compare(maps, masks, aside))
        rows += summary(name, 'vgg_att3_concat_pc', runs, 'seeds')
    return rows


def photos(folder, what, sizes, most):
    "Photographs with masks: a third set aside, three times at random; rows over these splits"
    data, rows = load_pairs(folder), []
    first = {fingerprint(x): k for k, x in reversed([*enumerate(data.images)])}          # each picture once
    keep = torch.tensor(sorted(first.values()))[:most]
    splits = [torch.randperm(len(keep), generator=keyed_rng('split', k)) < len(keep) // 3 for k in SEEDS]
    for size in sizes:
        images, masks = (t[keep] for t in data.fitted(size, 96))
        name = f'{data.name}, {len(keep)} photographs, {size} pixels'
        print(name, flush=True)
        rows += summary(name, '', [no_network(images, masks, aside) for aside in splits], 'splits')
        if size == 32:
            small = data.fitted(size)[1][keep]
            rows += summary(name, '', [compare({f'U-Net, trained on {aside.sum()} masks': blend(draw(train_unet(
                images[aside], small[aside], 200, k), images), 96)}, masks, aside) for k, aside in enumerate(splits)],
                'splits')
        for model in ('vgg_att2_concat_pc', 'vgg_trunk', 'vgg_gap'):
            nets = networks('cifar10', model)
            if not nets: rows.append(dict(data=name, model=f'{model} (CIFAR-10)', way='')); continue
            label = nets[0].info['classes'].index(what)
            labels = torch.full((len(images),), label)
            rows += summary(name, f'{model} (CIFAR-10)', one_network(nets[0], images, labels, masks, splits), 'splits')
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--photos', metavar='FOLDER', help='holds images/ and masks/')
    p.add_argument('--what', default='horse', help="what they show, one of CIFAR-10's classes (default: horse)")
    p.add_argument('--most', type=int, nargs=2, default=(400, 1000), metavar=('ASIDE', 'SCORED'),
                   help='pictures of the bundled set (default: 400 1000); photographs: at most SCORED')
    p.add_argument('--out', default=ROOT / 'results/segmentation.json', type=Path)
    a = p.parse_args()
    start = time.time()
    rows = fashion(*a.most)
    rows += photos(a.photos, a.what, (32, 64), a.most[1]) if a.photos else [dict(data='photographs', model='', way='')]
    record = provenance(seconds=round(time.time() - start), seeds=list(SEEDS), pictures=list(a.most),
                        data=ClutteredFashion('test').fingerprint)
    title = 'Masks from maps: PxAP, and mean Jaccard at Otsu\'s threshold and at one chosen on pictures set aside'
    print(f'wrote {save_result(a.out, title, rows, record)}')


if __name__ == '__main__':
    try: main()
    except LtpaError as e: raise SystemExit(f'measure_segmentation: {e}')
