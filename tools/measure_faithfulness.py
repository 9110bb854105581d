#!/usr/bin/env python3
"""Score every map on the test images and write results/faithfulness.json: five minutes on two cores, below 3 GiB.

    python tools/measure_faithfulness.py                 # the first 500 test images, all bundled networks
    python tools/measure_faithfulness.py --images 60 --json build/faithfulness.json

Where seeds of a network lie under runs/studies (tools/measure.py makes them), the record also tells how much the scores
of learned maps vary from one training to the next.
"""
import argparse
import resource
import statistics
import sys
import time

import torch

from ltpa.names import LtpaError
from ltpa.files import provenance, save_result
from ltpa.data import ClutteredFashion
from ltpa.faithfulness import (
    CONTROLS, SETTINGS, interventions, learned_maps, localization, post_hoc_maps, randomization, evaluate_explainers)
from ltpa.maps import combine
from ltpa.models import load_pretrained, load_weights
from ltpa.saliency import frozen_eval
from measure import ROOT

MAIN, TRUNK, GAP = 'vgg_att3_concat_pc', 'vgg_trunk', 'vgg_gap'
OTHERS = 'vgg_att2_concat_pc', 'vgg_att2_concat_dp'
# Share of the images for deletion and insertion, and images for infidelity and sensitivity: of the others, of MAIN
SHARES = (.1, 16), (.3, 24)
BROKEN, DRAWS = 4, 5             # images and draws of random parameters
SPARED = 'centre', 'uniform', 'random', 'smoothgrad', 'noise_tunnel'    # from these: no network, or dear and much alike
PLACE = 'cells', 'pointing', 'energy', 'iou', 'pxap', 'max_box'


def bundled(name): return load_pretrained(f'cluttered_fashion/{name}')


def jobs():
    "Networks, and their explainers: always with the five controls, `gradient` the last of them"
    net = bundled(MAIN)
    yield MAIN, net, learned_maps(net) | CONTROLS | post_hoc_maps(net)
    for name in OTHERS:
        net = bundled(name)
        yield name, net, learned_maps(net) | CONTROLS | dict(gradient=post_hoc_maps(net)['gradient'])
    net = bundled(TRUNK)
    yield TRUNK, net, CONTROLS | post_hoc_maps(net)
    net = bundled(GAP)
    yield GAP, net, CONTROLS | {k: post_hoc_maps(net)[k] for k in ('gradient', 'cam')}


def over_seeds(name, images, masks, labels):
    "Mean and standard deviation over seeds, for each level: place, and accuracy with other weights"
    found = sorted((ROOT / 'runs' / 'studies').glob(f'cluttered_fashion-{name}-seed*/weights.safetensors'))
    results = []
    for path in found:
        net = load_weights(path)
        with frozen_eval(net), torch.no_grad(): parts = [net(x.float() / 255).maps for x in images.split(100)]
        levels = [torch.cat(level) for level in zip(*parts)]
        maps = {f'attention {k}': m for k, m in enumerate(levels, 1)}
        for level, m in (maps | {'attention, all': combine(levels, masks.shape[1:])}).items():
            scores = localization(m, masks)
            results.append((level, {k: scores[k] for k in ('pointing', 'energy', 'iou_otsu', 'pxap')}))
        results += [(f'accuracy, {r["weights"]}', dict(accuracy=r['accuracy']))
                    for r in interventions(net, images, labels, masks)]
    rows = []
    for what in dict.fromkeys(w for w, _ in results):
        scores = [s for w, s in results if w == what]
        row = dict(net=name, what=what, seeds=len(scores))
        for k in scores[0]:
            values = [s[k] for s in scores]
            row[k] = round(statistics.mean(values), 4)
            if len(values) > 1: row[f'{k}_sd'] = round(statistics.stdev(values), 4)
        rows.append(row)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--images', type=int, default=500)
    p.add_argument('--json', default=ROOT / 'results' / 'faithfulness.json')
    p.add_argument('--threads', type=int, help="torch's threads; default: all cores")
    a = p.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    begin, data = time.time(), ClutteredFashion('test', 32)
    images, masks = data.render(range(a.images))
    labels, rows, fall, swaps, places = data.labels[:a.images], [], [], [], {}
    for name, net, explainers in jobs():
        share, few = SHARES[name == MAIN]
        found = evaluate_explainers(explainers, net, images, masks, faithful=max(1, round(share * a.images)), few=few, steps=6,
                           places=places)
        places |= {r['map']: {k: r[k] for k in r if k.startswith(PLACE)} for r in found if r['map'] in CONTROLS}
        rows += [dict(net=name) | row for row in found]
        if name == MAIN:
            explainers = {k: f for k, f in explainers.items() if k not in SPARED}
            for cascading in True, False:
                fall += [dict(net=name, cascading=cascading) | row for row in
                         randomization(explainers, net, images[:BROKEN].float() / 255, cascading=cascading,
                                       seeds=DRAWS)]
        if hasattr(net, 'attention'):
            swaps += [dict(net=name) | row for row in interventions(net, images, labels, masks)]
        print(f'{name}: done after {time.time() - begin:.0f} s', flush=True)
    seeds = [row for name in (MAIN, 'vgg_att3_concat_uniform') for row in over_seeds(name, images, masks, labels)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == 'darwin' else 2**20)
    record = provenance(seconds=round(time.time() - begin), peak_gib=round(peak, 2), images=a.images,
                        settings={k: SETTINGS[k] for k in sorted(SETTINGS)}, steps=6,
                        randomised=dict(images=BROKEN, draws=DRAWS))
    path = save_result(a.json, f'Every map on the first {a.images} test images of ClutteredFashion', rows, record,
                       randomisation=fall, interventions=swaps, seeds=seeds)
    print(f'wrote {path}: {len(rows)} maps, {record["seconds"]} s, peak {peak:.2f} GiB')


if __name__ == '__main__':
    try: main()
    except LtpaError as e: raise SystemExit(f'measure_faithfulness: {e}')
