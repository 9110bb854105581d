#!/usr/bin/env python3
"""Run the studies behind `results/`: several seeds of several runs, then one table with mean and spread.

    python tools/measure.py controls          # attention against its controls, three seeds each (three quarters of an hour)
    python tools/measure.py clutter           # the same with smaller objects
    python tools/measure.py fidelity          # what each difference between paper and code does to a short training
    python tools/measure.py cifar10           # CIFAR-10 in full, twenty minutes; LTPA_DATA says where it is
    python tools/measure.py cifar10 --seeds 0 1 2

Runs that are done (their folder under runs/ holds a result.json) are not repeated, so a study can be interrupted.
"""
import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import NamedTuple

from ltpa.names import LtpaError
from ltpa.files import save_result
from ltpa.runs import evaluate_weights, run_training

ROOT = Path(__file__).resolve().parent.parent
ATT3 = 'vgg_att3_concat_pc', 'vgg_trunk', 'vgg_att3_concat_uniform'


class Study(NamedTuple):
    title: str
    data: str
    size: str
    cases: list          # dicts: `model` and what differs from the size's usual: scale, net, changes
    seeds: list


SHORT = dict(epochs=2, optimizer='adamw', lr=.004)
SWITCHED = [dict(), dict(branch_grad='mean'), dict(project='l'), dict(head='plain'), dict(u='msr'),
            dict(bn_gain='uniform'), dict(color='yuv_lcn'), dict(dropout=True)]
STUDIES = {
    'controls': Study('ClutteredFashion, size small: attention against its controls, accuracy after the last epoch',
                      'cluttered_fashion', 'small', [dict(model=m) for m in ATT3], [0, 1, 2]),
    'clutter': Study('ClutteredFashion, size small, by side of the object over side of the picture '
                     '(none given: 0.5 to 0.8)', 'cluttered_fashion', 'small',
                     [dict(model=m, scale=s) for s in (.4, None) for m in ATT3], [0, 1, 2]),
    'fidelity': Study('ClutteredFashion, eighth of the width, two passes: '
                      'each difference between paper and code alone',
                      'cluttered_fashion', 'small',
                      [dict(model=ATT3[0], net=dict(width=1/8) | net, changes=SHORT) for net in SWITCHED]
                      + [dict(model='vgg_att3_indep_pc', net=dict(width=1/8) | net, changes=SHORT)
                         for net in (dict(), dict(indep='product'))], [0, 1, 2]),
    'cifar10': Study('CIFAR-10 in full, size cifar: accuracy after the last epoch',
                     'cifar10', 'cifar', [dict(model='vgg_att2_concat_pc')], [0]),
}


def run(data, model, size='small', seed=0, **case):
    "The result of one run, made now or before, and its folder"
    what = [f'{k}-{v}' for part in ({'scale': case.get('scale')}, case.get('net', {}), case.get('changes', {}))
            for k, v in part.items() if v is not None]
    out = ROOT / 'runs' / 'studies' / '-'.join([data, model, *what, f'seed{seed}'])
    if not (out / 'result.json').exists():
        print('training', out.name, flush=True)
        shutil.rmtree(out, ignore_errors=True)                       # what an interrupted run left
        run_training(f'{data}/{model}', out, size, seed, **case)
    result = json.loads((out / 'result.json').read_text())
    result['rows'][0] |= evaluate_weights(out / 'weights.safetensors')[1]      # anew, should a metric have changed
    return result, out


def summarize(results, **row):
    "One row of the table: mean and standard deviation over the seeds (no deviation of a single one)"
    keys = [k for k in results[0]['rows'][0] if k == 'accuracy' or k.startswith('pointing')]
    for k in keys:
        values = [r['rows'][0][k] for r in results]
        row[k] = round(statistics.mean(values), 4)
        if len(values) > 1: row[f'{k}_sd'] = round(statistics.stdev(values), 4)
    shared = {k: results[0]['rows'][0][k] for k in ('passes', 'parameters', 'gmac')}
    seconds = round(statistics.mean(r['provenance']['seconds'] for r in results))
    return row | shared | dict(seeds=len(results), seconds=seconds)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('study', choices=STUDIES)
    p.add_argument('--seeds', type=int, nargs='+', help='default: the study\'s own')
    a = p.parse_args()
    study = STUDIES[a.study]
    seeds = sorted(set(a.seeds or study.seeds))
    rows, runs = [], []
    for case in study.cases:
        results = [run(study.data, size=study.size, seed=seed, **case)[0] for seed in seeds]
        rows.append(summarize(results, **case))
        runs += [dict(case | r['rows'][0], seconds=r['provenance']['seconds'],
                      commit=r['provenance']['commit'], when=r['provenance']['when']) for r in results]
    keep = 'commit', 'when', 'device', 'hardware', 'threads', 'bf16', 'versions', 'size', 'recipe', 'net', 'data'
    record = {k: results[-1]['provenance'][k] for k in keep} | dict(seeds=seeds)
    path = save_result(ROOT / 'results' / f'{a.study}.json', study.title, rows, record, runs=runs)
    print(f'wrote {path.relative_to(ROOT)}')


if __name__ == '__main__':
    try: main()
    except LtpaError as e: raise SystemExit(f'measure: {e}')
