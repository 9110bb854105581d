#!/usr/bin/env python3
"""Ask networks of several seeds where one of two objects is, and write the table to `results/query.json`.

    python tools/measure_query.py                       # about 8 minutes on 2 cores, 4 of them training
    python tools/measure_query.py --seeds 0 --scenes 50

Networks are taken from `runs/studies/`, or trained first, as `tools/measure.py` does.
"""
import argparse
import time

import measure
from ltpa.names import LtpaError
from ltpa.core import seed_everything
from ltpa.files import fingerprint, provenance, save_result
from ltpa.data import ClutteredFashion
from ltpa.models import create_model, load_weights
from ltpa.query import (
    ASKED, alike, best_level, encode, interrogate, parts_of, summarize, templates, two_objects)
from ltpa.training import predict

MODELS = dict(dp='vgg_att2_concat_dp', pc='vgg_att3_concat_pc', uniform='vgg_att3_concat_uniform')
PLAIN = [('class mean', 'as it is')]
CONTRAST = [('class mean', 'contrast'), ('absent class', 'contrast')]


def trained(seed):
    "Networks of one seed, by what is asked of them; 'fresh' is dp that has learnt nothing"
    nets = {k: load_weights(measure.run('cluttered_fashion', m, seed=seed)[1] / 'weights.safetensors')
            for k, m in MODELS.items()}
    seed_everything(seed)
    return nets | dict(fresh=create_model(MODELS['dp'], **nets['dp'].config))


def asked(nets, scenes, pictures, labels):
    "Answers of the networks of one seed: (network, what, how, level) to a dict of [N]"
    ask = lambda net, cases, **kw: interrogate(nets[net], scenes, pictures, labels, cases, **kw)
    found = {'dp': ask('dp', ASKED), 'pc': ask('pc', PLAIN), 'uniform': ask('uniform', PLAIN),
             'fresh': ask('fresh', PLAIN + CONTRAST[:1]),
             'dp×pc': ask('dp', CONTRAST, where=predict(nets['pc'], scenes.images)[1][1])}
    close = alike(scenes.labels, ClutteredFashion('test', 32, n=1).classes)
    for (_, how, level), a in list(found['dp×pc'].items())[:2]:     # the class mean, at both levels
        for name, some in (('alike', close), ('unlike', ~close)):
            found['dp×pc'][name, how, level] = {k: v[some] for k, v in a.items()}
    for net, cases in found.items():
        level = best_level(nets[net.split('×')[0]]) if net != 'fresh' else 1
        cases |= {(what, how, 'best'): a for (what, how, at), a in cases.items() if at == level}
    return {(net, *case): a for net, cases in found.items() for case, a in cases.items()}


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--scenes', type=int, default=1000)
    a = p.parse_args(argv)
    start, seeds = time.time(), sorted(set(a.seeds))
    scenes, (pictures, labels) = two_objects(a.scenes, seed=1), templates()     # other scenes than the notebook's
    found, of_g, weights = [], [], {}
    for seed in seeds:
        nets = trained(seed)
        weights[seed] = {k: fingerprint(*n.state_dict().values()) for k, n in nets.items()}
        found.append(asked(nets, scenes, pictures, labels))
        of_g.append(dict(seed=seed, level=best_level(nets['dp'])) | parts_of(encode(nets['dp'], pictures)[1], labels))
    rows = [dict(net=net, asked=what, how=how, level=level) | summarize([f[net, what, how, level] for f in found])
            for net, what, how, level in found[0]]
    record = provenance(seeds=seeds, scenes=a.scenes, models=MODELS, seconds=round(time.time() - start),
                        data=fingerprint(*scenes, pictures, labels), weights=weights)
    path = save_result(measure.ROOT / 'results' / 'query.json',
                       'Two objects in a picture: share of the attention on the one that is asked for', rows, record,
                       of_g=of_g)
    print(f'wrote {path.relative_to(measure.ROOT)}')


if __name__ == '__main__':
    try: main()
    except LtpaError as e: raise SystemExit(f'measure_query: {e}')
