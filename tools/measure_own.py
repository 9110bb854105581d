#!/usr/bin/env python3
"""Sixty photographs in three classes, from a folder to a trained network in one command: results/own_folder.json.

    python tools/measure_own.py DIR             # DIR/train/CLASS/FILE and DIR/test/CLASS/FILE, e.g. of Caltech-101

Twenty pictures of each class are drawn once; ten times a fifth of them is held out, and `ltpa train --data FOLDER
--backbone efficientnet_lite0 --image-size 128` runs on the rest as it would for anybody. Half a minute a run.
"""
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ltpa.files import fingerprint, provenance
from ltpa.studies import Study, run_command, run_study, study_parser, summarize
from measure import ROOT

FOLDERS = [dict(folder='unlike', classes='dollar_bill, sunflower, watch'), dict(folder='alike', classes='crab, lobster, scorpion')]
PICTURES, HELD_OUT, SIDE = 20, 4, 128        # of a class
COMMAND = 'train', '--backbone', 'efficientnet_lite0', '--image-size', str(SIDE), '--quiet'


def drawn(root, classes):
    "The same `PICTURES` of each class whenever it is asked: {class: paths}."
    found = {}
    for name in classes.split(', '):
        paths = sorted(p for split in ('train', 'test') for p in (root / split / name).iterdir())
        if len(paths) < PICTURES: sys.exit(f'{root}: {len(paths)} pictures of {name}; expected at least {PICTURES}')
        found[name] = sorted(random.Random(0).sample(paths, PICTURES))
    return found


def split_up(pictures, seed, folder):
    "Copies under `folder`/train and /val, a fifth of each class held out by `seed`."
    for name, paths in pictures.items():
        held_out = set(random.Random(f'{seed} {name}').sample(paths, HELD_OUT))
        for k, path in enumerate(paths):
            out = folder / ('val' if path in held_out else 'train') / name
            out.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, out / f'{k:02}{path.suffix}')


def study(root):
    def row(case, seed):
        with tempfile.TemporaryDirectory() as place:
            data, run = Path(place) / 'photos', Path(place) / 'run'
            split_up(drawn(root, case['classes']), seed, data)
            start = time.monotonic()
            done = subprocess.run([sys.executable, '-m', 'ltpa', *COMMAND, '--data', data, '--out', run], text=True,
                                  capture_output=True)
            if done.returncode: sys.exit(f'{case["folder"]}, split {seed}: {done.stderr[-2000:]}')
            seconds = round(time.monotonic() - start, 1)
            found, = json.loads((run / 'result.json').read_text())['rows']
        return [dict(accuracy=round(found['accuracy'], 4), seconds=seconds, passes=found['passes'])]

    def finish(runs, record): return dict(rows=summarize(runs, ['folder'], ['accuracy', 'seconds'], keep=('classes', 'passes')), runs=runs)

    def record(seeds, seconds):
        data = {case['folder']: fingerprint(*(p.read_bytes() for paths in drawn(root, case['classes']).values() for p in paths))
                for case in FOLDERS}
        return provenance(seeds=seeds, seconds=seconds, command=['ltpa', *COMMAND], pictures=PICTURES, held_out=HELD_OUT, data=data)
    title = f'{root.name}: {3 * PICTURES} pictures in three classes, one command; accuracy on a fifth held out, by split'
    return Study('own_folder', title, FOLDERS, row, ['folder'], finish=finish, record=record)


def main(argv=None):
    p = study_parser(__doc__, None)
    p.add_argument('folder', type=Path)
    a = p.parse_args(argv)
    run_study(study(a.folder), sorted(a.seeds or range(10)), ROOT / 'results' / 'own_folder.json')


if __name__ == '__main__': run_command(main)
