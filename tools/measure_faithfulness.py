#!/usr/bin/env python3
"""Score every map on the test images and write results/faithfulness.json: five minutes, below 3 GiB.

    python tools/measure_faithfulness.py                 # the first 500 test images, all bundled networks
    python tools/measure_faithfulness.py --images 60 --json build/faithfulness.json

Where seeds of a network lie under runs/studies (tools/measure.py makes them), the file also tells how much
the scores of learned maps vary from one training to the next.
"""
import resource
import sys

import torch
from measure import ROOT

from ltpa.data import ClutteredFashion
from ltpa.faithfulness import (
    CONTROLS, SETTINGS, evaluate_explainers, interventions, learned_maps, localization, post_hoc_maps,
    randomization)
from ltpa.files import provenance
from ltpa.models import load_pretrained, load_weights
from ltpa.studies import Study, run_command, run_study, study_parser, summarize

MAIN, TRUNK, GAP, UNIFORM = 'vgg_att3_concat_pc', 'vgg_trunk', 'vgg_gap', 'vgg_att3_concat_uniform'
# Whose maps, beside the five controls: learned ones, and these post-hoc ones (None: all); MAIN first
NETS = {MAIN: None, 'vgg_att2_concat_pc': ['gradient'], 'vgg_att2_concat_dp': ['gradient'], TRUNK: None,
        GAP: ['gradient', 'cam']}
# Share of images for deletion and insertion, and images for infidelity and sensitivity: others, MAIN
SHARES = (.1, 16), (.3, 24)
BROKEN, DRAWS = 4, 5             # images and draws of random parameters
SPARED = 'centre', 'uniform', 'random', 'smoothgrad', 'noise_tunnel'       # no network, or dear
PLACE = 'cells', 'pointing', 'energy', 'iou', 'pxap', 'max_box'


def explainers_of(name, net):
    post_hoc = post_hoc_maps(net)
    learned = learned_maps(net) if hasattr(net, 'attention') else {}
    return learned | CONTROLS | {k: post_hoc[k] for k in NETS[name] or post_hoc}


def of_seed(net, images, labels, masks):
    "Place of each level's map, and accuracy with other weights, of one training"
    for level, explain in learned_maps(net).items():
        maps = torch.cat([explain(net, x.float() / 255) for x in images.split(100)])
        scores = localization(maps, masks)
        yield dict(what=level) | {k: scores[k] for k in ('pointing', 'energy', 'iou_otsu', 'pxap')}
    for r in interventions(net, images, labels, masks):
        yield dict(what=f'accuracy, {r["weights"]}', accuracy=r['accuracy'])


def study(n):
    data = ClutteredFashion('test', 32)
    (images, masks), labels, places = data.render(range(n)), data.labels[:n], {}

    def of_runs():
        for name in (MAIN, UNIFORM):
            for path in sorted((ROOT / 'runs' / 'studies').glob(
                    f'cluttered_fashion-{name}-seed*/weights.safetensors')):
                yield from (dict(net=name) | r for r in of_seed(load_weights(path), images, labels, masks))

    def row(case, seed):                          # `into`: which list of the file a row belongs to
        if 'net' not in case: return [dict(into='seeds') | r for r in of_runs()]
        name, net = case['net'], load_pretrained(f'cluttered_fashion/{case["net"]}')
        (share, few), explainers = SHARES[name == MAIN], explainers_of(name, net)
        found = evaluate_explainers(explainers, net, images, masks, few=few, steps=6, places=places,
                                    faithful=max(1, round(share * n)), precision='auto')
        for r in found:
            if r['map'] in CONTROLS: places[r['map']] = {k: r[k] for k in r if k.startswith(PLACE)}
        rows = [dict(into='rows') | r for r in found]
        kept = {k: f for k, f in explainers.items() if k not in SPARED}
        for cascading in (True, False) if name == MAIN else ():
            rows += [dict(into='randomisation', cascading=cascading) | r for r in randomization(
                kept, net, images[:BROKEN].float() / 255, cascading=cascading, seeds=DRAWS)]
        if hasattr(net, 'attention'):
            rows += [dict(into='interventions') | r for r in interventions(net, images, labels, masks)]
        return rows

    def finish(runs, record):
        found = dict(rows=[], randomisation=[], interventions=[], seeds=[])
        for r in runs: found[r['into']].append({k: v for k, v in r.items() if k not in ('into', 'seed')})
        return found | dict(seeds=summarize(found['seeds'], ['net', 'what']))

    def record(seeds, seconds):
        gib = 2**(30 if sys.platform == 'darwin' else 20)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / gib
        return provenance(seconds=seconds, peak_gib=round(peak, 2), images=n, steps=6,
                          settings={k: SETTINGS[k] for k in sorted(SETTINGS)},
                          randomised=dict(images=BROKEN, draws=DRAWS))

    return Study('faithfulness', f'Every map on the first {n} test images of ClutteredFashion',
                 [*(dict(net=m) for m in NETS), {}], row, ('net', 'map'), (0,), finish=finish, record=record)


def main(argv=None):
    p = study_parser(__doc__, images=(500, 'of the test set, the first'))
    p.add_argument('--json', default=ROOT / 'results' / 'faithfulness.json')
    p.add_argument('--threads', type=int, help="torch's threads; default: all cores")
    a = p.parse_args(argv)
    if a.threads: torch.set_num_threads(a.threads)
    run_study(study(a.images), out=a.json)


if __name__ == '__main__': run_command(main)
