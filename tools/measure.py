#!/usr/bin/env python3
"""Run the studies behind `results/`: several seeds of several runs, then one table with mean and spread.

    python tools/measure.py controls          # attention against its controls (three quarters of an hour)
    python tools/measure.py clutter           # the same, narrow, with smaller objects, and on larger pictures
    python tools/measure.py fidelity          # each difference between paper and code, in a short training
    python tools/measure.py controls --seeds 3 --add        # one seed more, beside those in the file

Runs that are done (their folder under runs/ holds a result.json) are not repeated: one may interrupt a study.
"""
from pathlib import Path

from ltpa.studies import run_command, run_study, study_parser, training_studies

ROOT = Path(__file__).resolve().parent.parent


def main(argv=None):
    p = study_parser(__doc__, None)
    p.add_argument('study', choices=training_studies())
    p.add_argument('--add', action='store_true', help='keep the other seeds that the file holds')
    a = p.parse_args(argv)
    study = training_studies(ROOT / 'runs' / 'studies')[a.study]
    run_study(study, a.seeds and sorted(a.seeds), ROOT / 'results' / f'{a.study}.json', a.add)


if __name__ == '__main__': run_command(main)
