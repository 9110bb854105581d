"""Whatever ends the tests, by Ctrl-C or a signal, no notebook goes on running."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import product
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
SLEEP = '''import os, subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
Path('new').write_text(f'{os.getpid()} {child.pid}')
os.replace('new', 'pids')          # whole or absent
time.sleep(600)'''
# without and with a kernel
HOW = {'nbdev_test': 'not whole', 'kernel': 'whole'}
PATIENCE = 60  # seconds, on a busy machine
SOON = 15      # seconds: that is what "ends" means here


def wait(ready, seconds, what):
    "What `ready` gives once it is true."
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, f'after {seconds} s: {what()}'
        time.sleep(.1)
    return found


def alive(pid):
    # Where nobody collects orphans, as in some containers, a dead one stays in the table.
    try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False


@pytest.fixture
def tree(tmp_path):
    "What a test of a notebook needs, and one notebook, which sleeps beside a child that sleeps."
    for name in ('settings.ini', 'setup.py', 'constraints.txt', 'Makefile', 'pytest.ini', 'tests/conftest.py',
                 'tests/test_notebooks.py', 'tests/forks.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / 'tools', tmp_path / 'tools')
    cell = dict(cell_type='code', execution_count=None, id='a', metadata={}, outputs=[], source=SLEEP)
    nb = dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)
    (tmp_path / 'nbs').mkdir()
    (tmp_path / 'nbs' / '00_sleep.ipynb').write_text(json.dumps(nb))
    return tmp_path


def end(command, tree, send):
    "Start `command`, `send` its process a signal while the notebook sleeps, and wait for the end of all."
    log = tree / 'log'
    env = os.environ | dict(PYTHONPATH=str(tree / 'tools'))
    with log.open('w') as file:
        process = subprocess.Popen(command, cwd=tree, stdout=file, stderr=subprocess.STDOUT, env=env,
                                   start_new_session=True)
    family = []
    try:
        path = tree / 'nbs' / 'pids'
        text = lambda: f'still {[p for p in family if alive(p.pid)]}\n{log.read_text()[-3000:]}'
        wait(lambda: path.exists() or process.poll() is not None, PATIENCE, text)
        assert process.poll() is None, text()
        family = psutil.Process(process.pid).children(recursive=True)
        assert {int(pid) for pid in path.read_text().split()} <= {p.pid for p in family}
        send(process)
        wait(lambda: process.poll() is not None and not any(alive(p.pid) for p in family), SOON, text)
        return process.returncode, log.read_text()
    finally:
        for p in family:
            with suppress(psutil.NoSuchProcess): p.kill()
        process.kill()
        process.wait()


SIGNALS = 'SIGTERM', 'SIGINT', 'SIGHUP', 'SIGKILL'


@pytest.mark.whole                         # SIGTERM by way of make, below, in make test too
@pytest.mark.parametrize('how, name', list(product(HOW, SIGNALS)))
def test_ended_tests_leave_no_process(how, name, tree):
    signum = signal.Signals[name]
    if signal.getsignal(signum) == signal.SIG_IGN: pytest.skip(f'{name} is ignored here, as under nohup')
    command = [sys.executable, '-m', 'pytest', '-m', HOW[how]]
    code, said = end(command, tree, lambda process: process.send_signal(signum))
    assert code == {'SIGKILL': -9, 'SIGINT': 2}.get(name, 128 + signum), said
    if name in ('SIGTERM', 'SIGHUP'): assert f'ended by {name}' in said


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
@pytest.mark.parametrize('kill, name', [
    (os.kill, 'SIGTERM'), pytest.param(os.killpg, 'SIGTERM', marks=pytest.mark.whole),
    pytest.param(os.kill, 'SIGKILL', marks=[pytest.mark.whole, pytest.mark.skipif(
        sys.platform != 'linux', reason='only Linux tells the child')])])
def test_ended_make_leaves_no_process(kill, name, tree):
    (tree / 'stamp').touch()           # newer than what it is made from: nothing is installed
    command = ['make', 'test', f'BIN={Path(sys.executable).parent}', 'STAMP=stamp']
    signum = signal.Signals[name]
    code, said = end(command, tree, lambda process: kill(process.pid, signum))
    assert code == -signum and 'ended by SIGTERM' in said, said
