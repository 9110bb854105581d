#!/usr/bin/env python3
"""Run the studies behind `results/`: several seeds of several runs, then one table with mean and spread.

    python tools/measure.py controls          # attention against its controls, three seeds each (half an hour)
    python tools/measure.py clutter           # the same with the object at three sizes
    python tools/measure.py controls --seeds 0 1 2 3 4

Runs that are done (their folder under runs/ holds a result.json) are not repeated, so a study can be interrupted.
"""
import argparse
import json
import shutil
import statistics
from pathlib import Path

from ltpa.core import LtpaError, save_result
from ltpa.scaling import run_training

ROOT = Path(__file__).resolve().parent.parent
ATT3 = 'vgg_att3_concat_pc', 'vgg_trunk', 'vgg_att3_concat_uniform'
STUDIES = {   # name: (title, [(model, object's scale or None for the standard range)])
    'controls': ('ClutteredFashion, size small: attention against its controls, test accuracy after the last epoch',
                 [(m, None) for m in ATT3]),
    'clutter': ('ClutteredFashion, size small, by the side of the object over the side of the picture',
                [(m, s) for s in (.4, .6, .9) for m in ATT3]),
}


def run(model, scale=None, seed=0):
    "The result of one run, made now or before, and its folder"
    out = ROOT / 'runs' / 'studies' / f'{model}-scale{scale or "-standard"}-seed{seed}'
    if not (out / 'result.json').exists():
        print(f'training {model}, scale {scale or "standard"}, seed {seed}', flush=True)
        shutil.rmtree(out, ignore_errors=True)                       # what an interrupted run left
        run_training(f'cluttered_fashion/{model}', out, 'small', seed, scale=scale)
    return json.loads((out / 'result.json').read_text()), out


def summarise(results, **row):
    "One row of the table: mean and standard deviation over the seeds"
    keys = [k for k, v in results[0]['rows'][0].items() if k == 'accuracy' or k.startswith('pointing')]
    for k in keys:
        values = [r['rows'][0][k] for r in results]
        row[k], row[f'{k}_sd'] = round(statistics.mean(values), 4), round(statistics.stdev(values), 4)
    return row | dict(seeds=len(results), seconds=round(statistics.mean(r['provenance']['seconds'] for r in results)))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('study', choices=STUDIES)
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='at least two, for a spread; default 0 1 2')
    a = p.parse_args()
    if len(set(a.seeds)) < 2: p.error('a spread needs at least two seeds')
    title, cases = STUDIES[a.study]
    rows, runs = [], []
    for model, scale in cases:
        results = [run(model, scale, seed)[0] for seed in a.seeds]
        rows.append(summarise(results, model=model, **({} if scale is None else dict(scale=scale))))
        runs += [dict(r['rows'][0], scale=scale, commit=r['provenance']['commit']) for r in results]
    record = results[-1]['provenance']
    shared = {k: record[k] for k in ('commit', 'when', 'device', 'hardware', 'threads', 'bf16', 'versions', 'size', 'recipe')}
    path = save_result(ROOT / 'results' / f'{a.study}.json', title, rows, dict(shared, seeds=a.seeds), runs=runs)
    print(f'wrote {path.relative_to(ROOT)}')


if __name__ == '__main__':
    try: main()
    except LtpaError as e: raise SystemExit(f'measure: {e}')
