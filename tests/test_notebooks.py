"""Every notebook runs: its cells are its tests.

`test_notebook` leaves out the cells marked slow or course; `test_run_all` leaves out none and does what JupyterLab's
"Run All Cells" does. Where both are asked for, the first is skipped.
"""
import re
import select
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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
# What nearly all of them import. Threads and forks do not go together on macOS.
LOADED = ['torch', 'torchvision', 'scipy.ndimage', 'matplotlib.figure', 'nbdev.test'] if sys.platform == 'linux' else []
QUICK = {'00_start', '01_attention'}  # these take seconds, so `make quick` runs them too


# The long ones: one after another on one core from the beginning, the longest first, while the other tests, of one thread
# each, have the other core. The rest are short, and keep that one busy as long as these take.
BESIDE = ('05_training', '10_faithfulness', '13_fgsm', '12_segmentation', '11_transfer', 'workshop', '09_saliency',
          '07_maps', '04_resnets', '14_query', '15_backbones', '16_results', '02_data', '03_models', '90_solutions',
          '06_recipes', '08_explorer', '00_start', '01_attention', '09a_metrics', 'index',
          'workshop/export', 'workshop/reproduce', 'workshop/runs', 'workshop/measures')


class Forks:
    """Runs notebooks, or the workshop, as nbdev_test does, one after another: each in a fork of a process that has
    loaded PyTorch once for all of them."""
    def __init__(self, load=LOADED): self.load, self.process, self.stack = load, None, ExitStack()
    def __enter__(self): return self

    def __exit__(self, *_):
        self.stack.close()
        self.process = None

    def start(self):
        command = [sys.executable, Path(__file__).with_name('forks.py'), *self.load]
        self.process = self.stack.enter_context(started(command, cwd=ROOT, stdin=subprocess.PIPE,
                                                        stdout=subprocess.PIPE, text=True))
        for pipe in self.process.stdin, self.process.stdout: self.stack.callback(pipe.close)

    def status_of(self, name, log):
        "The exit code; what is printed goes to the file `log`: no pipe, which workers that outlive it would hold open."
        if not self.process: self.start()
        log.touch()
        print(path_of(name), log, sep='\t', file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], LIMIT)[0]:
            self.__exit__()
            return f'no end after {LIMIT} s'
        return int(self.process.stdout.readline() or -1)


def path_of(name): return f'nbs/{name}' + '.ipynb' * (name != 'workshop')


@pytest.fixture(scope='session')
def forks():
    with Forks() as forks: yield forks


def run_all(name):
    "What went wrong when all cells ran as JupyterLab runs them; None if nothing"
    path = NBS / f'{name}.ipynb'
    return run(nbformat.read(path, as_version=4), path.parent, CELL)


@contextmanager
def second_lane(items, logs):
    "Of the tests among `BESIDE` that are asked for and not skipped: what they will have found, by the test's name."
    asked = {item.name for item in items if item.get_closest_marker('beside') and not item.get_closest_marker('skip')}
    with Forks(LOADED if len(asked) > 1 else []) as forks, ThreadPoolExecutor(1) as pool:
        found = {}
        for name in BESIDE:
            if (test := f'test_notebook[{name}]') in asked: found[test] = pool.submit(forks.status_of, name, logs / name), logs / name
            if (test := f'test_run_all[{name}]') in asked: found[test] = pool.submit(run_all, name), None
        yield found
        for result, _ in found.values(): result.cancel()


def marks(name): return [pytest.mark.slow] * (name not in QUICK) + [pytest.mark.beside] * (name in BESIDE)


@pytest.mark.parametrize('name', [pytest.param(name, marks=marks(name)) for name in TESTED])
def test_notebook(name, tmp_path, beside, forks, request):
    result, log = beside.get(request.node.name, (None, tmp_path / 'log'))
    status = result.result() if result else forks.status_of(name, log)
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


def test_the_second_lane_starts_with_the_first_test():
    "Not with the first test of this file: these come last."
    plan = subprocess.run([sys.executable, '-m', 'pytest', '--setup-plan', '-p', 'no:cacheprovider', 'tests/test_text.py',
                           'tests/test_notebooks.py::test_notebook[index]'], cwd=ROOT, capture_output=True, text=True).stdout
    assert 0 < plan.find('SETUP    S beside') < plan.find('test_text.py::') < plan.find('test_notebook[index]'), plan[-2000:]
