#!/usr/bin/env python3
"""Ask networks of several seeds where one of two objects is, and write the table to `results/query.json`.

    python tools/measure_query.py                       # about 8 minutes on 2 cores, 4 of them training
    python tools/measure_query.py --seeds 0 --scenes 50

Networks are taken from `runs/studies/`, or trained first, as `tools/measure.py` does.
"""
from measure import ROOT

from ltpa.core import seed_everything
from ltpa.data import ClutteredFashion
from ltpa.files import fingerprint, provenance
from ltpa.models import create_model
from ltpa.query import (
    ASKED, alike, best_level, encode, interrogate, parts_of, summarize, templates, two_objects)
from ltpa.studies import Study, grouped, run_command, run_study, study_parser, trained_net, weights_digest
from ltpa.training import predict

MODELS = dict(dp='vgg_att2_concat_dp', pc='vgg_att3_concat_pc', uniform='vgg_att3_concat_uniform')
PLAIN = [('class mean', 'as it is')]
CONTRAST = [('class mean', 'contrast'), ('absent class', 'contrast')]
KEYS = 'net', 'asked', 'how', 'level'


def networks(seed):
    "Networks of one seed, by what is asked of them; 'fresh' is dp that has learnt nothing"
    root = ROOT / 'runs' / 'studies'
    nets = {k: trained_net(f'cluttered_fashion/{m}', 'small', seed, root) for k, m in MODELS.items()}
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


def study(n=1000):
    scenes, (pictures, labels) = two_objects(n, seed=1), templates()       # other scenes than the notebook's
    of_g, weights = [], {}

    def row(case, seed):
        nets = networks(seed)
        weights[seed] = {k: weights_digest(net) for k, net in nets.items()}
        g = encode(nets['dp'], pictures)[1]
        of_g.append(dict(seed=seed, level=best_level(nets['dp'])) | parts_of(g, labels))
        return [dict(zip(KEYS, key), answers=a) for key, a in asked(nets, scenes, pictures, labels).items()]

    def finish(runs, record):                                       # its intervals are over scenes
        return dict(rows=[dict(zip(KEYS, key)) | summarize([r['answers'] for r in same])
                          for key, same in grouped(runs, KEYS).items()], of_g=of_g)

    def record(seeds, seconds):
        return provenance(seeds=seeds, scenes=n, models=MODELS, seconds=seconds,
                          data=fingerprint(*scenes, pictures, labels), weights=weights)

    title = 'Two objects in a picture: share of the attention on the one that is asked for'
    return Study('query', title, [{}], row, KEYS, cost='8 minutes on two cores, 4 of them training',
                 finish=finish, record=record)


def main(argv=None):
    a = study_parser(__doc__, [0, 1, 2], scenes=(1000, 'with two objects each')).parse_args(argv)
    run_study(study(a.scenes), sorted(a.seeds), ROOT / 'results' / 'query.json')


if __name__ == '__main__': run_command(main)
