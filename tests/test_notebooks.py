"""Every notebook runs: its cells are its tests.

`test_notebook` leaves out the cells marked slow or course; `test_run_all` leaves out none and does what JupyterLab's
"Run All Cells" does. Where both are asked for, the first is skipped.
"""
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
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


# The long ones: one after another on one core from the beginning, the longest first, while the other tests, of one thread
# each, have the other core. The rest are short, and keep that one busy as long as these take.
BESIDE = ('05_training', '10_faithfulness', '13_fgsm', '12_segmentation', '11_transfer', 'workshop', '09_saliency',
          '07_maps', '04_resnets', '14_query', '15_backbones', '16_results', '02_data', '03_models')


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


def status_of(name, log):
    with tried(name, log) as process:
        try: return process.wait(LIMIT)
        except subprocess.TimeoutExpired: return f'no end after {LIMIT} s'


def run_all(name):
    "What went wrong when all cells ran as JupyterLab runs them; None if nothing"
    path = NBS / f'{name}.ipynb'
    return run(nbformat.read(path, as_version=4), path.parent, CELL)


@pytest.fixture(scope='session', autouse=True)
def beside(request, tmp_path_factory):
    "Of the tests among `BESIDE` that are asked for and not skipped: what they will have found, by the test's name."
    asked = {item.name for item in request.session.items
             if item.get_closest_marker('beside') and not item.get_closest_marker('skip')}
    logs = tmp_path_factory.mktemp('beside')
    with ThreadPoolExecutor(1) as pool:
        found = {}
        for name in BESIDE:
            if (test := f'test_notebook[{name}]') in asked: found[test] = pool.submit(status_of, name, logs / name), logs / name
            if (test := f'test_run_all[{name}]') in asked: found[test] = pool.submit(run_all, name), None
        yield found
        for result, _ in found.values(): result.cancel()


def marks(name): return [pytest.mark.slow] * (name not in QUICK) + [pytest.mark.beside] * (name in BESIDE)


@pytest.mark.parametrize('name', [pytest.param(name, marks=marks(name)) for name in TESTED])
def test_notebook(name, tmp_path, beside, request):
    result, log = beside.get(request.node.name, (None, tmp_path / 'log'))
    status = result.result() if result else status_of(name, log)
    if status == 0: return
    text = re.sub(r'\x1b\[[0-9;]*m', '', log.read_text(encoding='utf-8', errors='replace'))
    tail = '\n'.join(text.rstrip().splitlines()[-SHOWN:])
    pytest.fail(f'{path_of(name)} ({status}): open it with make lab, or repeat with\n'
                f'nbdev_test --path {path_of(name)} --n_workers 0\n\n{tail}', pytrace=False)


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.beside] * (name in BESIDE)) for name in NAMES])
def test_run_all(name, beside, request):
    result, _ = beside.get(request.node.name, (None, None))
    error = result.result() if result else run_all(name)
    if not error: return
    head, _, rest = error.partition('\n')
    tail = '\n'.join(rest.rstrip().splitlines()[-SHOWN:])
    pytest.fail(f'Run All of {name}.ipynb: {head}\n{tail}', pytrace=False)
