#!/usr/bin/env python3
"""Ask networks of several seeds where one of two objects is, and write the table to `results/query.json`.

    python tools/measure_query.py                       # about 8 minutes on 2 cores, 4 of them training
    python tools/measure_query.py --seeds 0 --scenes 50

Networks are taken from `runs/studies/`, or trained first, as `tools/measure.py` does.
"""
from measure import ROOT

from ltpa.core import seed_everything
from ltpa.files import fingerprint, provenance
from ltpa.models import create_model
from ltpa.query import ask_networks, best_level, encode, parts_of, summarize, templates, two_objects
from ltpa.studies import Study, grouped, run_command, run_study, study_parser, trained_net, weights_digest

MODELS = dict(dp='vgg_att2_concat_dp', pc='vgg_att3_concat_pc', uniform='vgg_att3_concat_uniform')
KEYS = 'net', 'asked', 'how', 'level'


def networks(seed):
    "Networks of one seed, by what is asked of them; 'fresh' is dp that has learnt nothing"
    root = ROOT / 'runs' / 'studies'
    nets = {k: trained_net(f'cluttered_fashion/{m}', 'small', seed, root) for k, m in MODELS.items()}
    seed_everything(seed)
    return nets | dict(fresh=create_model(MODELS['dp'], **nets['dp'].config))


def study(n):
    scenes, (pictures, labels) = two_objects(n, seed=1), templates()       # other scenes than the notebook's
    of_g, weights = [], {}

    def row(case, seed):
        nets = networks(seed)
        weights[seed] = {k: weights_digest(net) for k, net in nets.items()}
        best = {k: 1 if k == 'fresh' else best_level(net) for k, net in nets.items()}
        of_g.append(dict(seed=seed, level=best['dp']) | parts_of(encode(nets['dp'], pictures)[1], labels))
        found = ask_networks(nets, scenes, pictures, labels, best, 'auto')
        return [dict(zip(KEYS, key), answers=a) for key, a in found.items()]

    def finish(runs, record):                                       # its intervals are over scenes
        return dict(rows=[dict(zip(KEYS, key)) | summarize([r['answers'] for r in same])
                          for key, same in grouped(runs, KEYS).items()], of_g=of_g)

    title = 'Two objects in a picture: share of the attention on the one that is asked for'
    return Study('query', title, [{}], row, KEYS, finish=finish, record=lambda seeds, seconds: provenance(
                     seeds=seeds, scenes=n, models=MODELS, seconds=seconds,
                     data=fingerprint(*scenes, pictures, labels), weights=weights))


def main(argv=None):
    a = study_parser(__doc__, [0, 1, 2], scenes=(1000, 'with two objects each')).parse_args(argv)
    run_study(study(a.scenes), sorted(a.seeds), ROOT / 'results' / 'query.json')


if __name__ == '__main__': run_command(main)
