"""Every notebook runs: its cells are its tests.

`test_notebook` leaves out the cells marked slow or course; `test_run_all` leaves out none and does what JupyterLab's
"Run All Cells" does. Where both are asked for, the first is skipped.
"""
import re
import shutil
import subprocess
import sysconfig
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from check_notebooks import notebooks
from children import started
from course import run

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
LIMIT = 15 * 60  # seconds: twice what the longest may take on 2 busy cores, so that only a hang reaches it
CELL = 30 * 60   # seconds for one cell, which may train two networks on cores that others use as well
SHOWN = 80  # lines of a failed notebook's output
NAMES = [path.relative_to(NBS).with_suffix('').as_posix() for path in notebooks(NBS)]
# The workshop's short notebooks share a process, which loads PyTorch once.
TESTED = [*(n for n in NAMES if '/' not in n), 'workshop']
QUICK = {'00_start', '01_attention'}  # these take seconds, so `make quick` runs them too


# It trains for minutes: on one core from the beginning, while the other tests, of one thread each, have the other one.
LONGEST = '05_training'


@contextmanager
def tried(name, log):
    "A process that runs the cells of a notebook, or of the workshop, as nbdev does; what it prints goes to `log`."
    command = shutil.which('nbdev_test', path=sysconfig.get_path('scripts'))
    assert command, 'nbdev_test is not installed: pip install -c constraints.txt -e .[dev]'
    # A file, not a pipe: workers that outlive the notebook would hold a pipe open.
    with (log.open('w', encoding='utf-8') as file,
          started([command, '--path', path_of(name), '--n_workers', '0'], cwd=ROOT, stdout=file,
                  stderr=subprocess.STDOUT) as process): yield process


def path_of(name): return f'nbs/{name}' + '.ipynb' * (name != 'workshop')


@pytest.fixture(scope='session', autouse=True)
def longest(request, tmp_path_factory):
    "The process that tests the longest notebook, and its log; nothing where it is not asked for, or skipped."
    asked = next((i for i in request.session.items if i.name == f'test_notebook[{LONGEST}]'), None)
    if asked is None or asked.get_closest_marker('skip'): yield None; return
    log = tmp_path_factory.mktemp('longest') / 'log'
    with tried(LONGEST, log) as process: yield process, log


@pytest.mark.parametrize('name', [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in TESTED])
def test_notebook(name, tmp_path, longest):
    if name == LONGEST: return ended(name, *longest)
    with tried(name, tmp_path / 'log') as process: ended(name, process, tmp_path / 'log')


def ended(name, process, log):
    try: status = process.wait(LIMIT)
    except subprocess.TimeoutExpired: status = f'no end after {LIMIT} s'
    if status == 0: return
    text = re.sub(r'\x1b\[[0-9;]*m', '', log.read_text(encoding='utf-8', errors='replace'))
    tail = '\n'.join(text.rstrip().splitlines()[-SHOWN:])
    pytest.fail(f'{path_of(name)} ({status}): open it with make lab, or repeat with\n'
                f'nbdev_test --path {path_of(name)} --n_workers 0\n\n{tail}', pytrace=False)


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_run_all(name):
    path = NBS / f'{name}.ipynb'
    error = run(nbformat.read(path, as_version=4), path.parent, CELL)
    if not error: return
    head, _, rest = error.partition('\n')
    tail = '\n'.join(rest.rstrip().splitlines()[-SHOWN:])
    pytest.fail(f'Run All of {name}.ipynb: {head}\n{tail}', pytrace=False)
