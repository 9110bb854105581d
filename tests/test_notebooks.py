"""Every notebook runs: its cells are its tests. Cells marked slow, cuda, net or course are left out."""
import os
import re
import shutil
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').glob('*.ipynb') if not p.name.startswith('_'))
QUICK = {'00_core', '01_attention'}  # these take seconds, so `make quick` runs them too
LIMIT = 15 * 60  # seconds: twice what the longest may take on 2 busy cores, so that only a hang reaches it
SHOWN = 80  # lines of a failed notebook's output
CASES = [pytest.param(p, id=p.stem, marks=() if p.stem in QUICK else pytest.mark.slow) for p in NOTEBOOKS]


@pytest.mark.parametrize('path', CASES)
def test_notebook(path, tmp_path):
    command = shutil.which('nbdev_test', path=sysconfig.get_path('scripts'))
    assert command, 'nbdev_test is not installed: pip install -c constraints.txt -e .[dev]'
    log = tmp_path / 'log'
    # A file and a process group, not a pipe: workers that outlive the notebook would hold a pipe open.
    with log.open('w', encoding='utf-8') as file:
        process = subprocess.Popen([command, '--path', str(path), '--n_workers', '0'], cwd=ROOT, stdout=file,
                                   stderr=subprocess.STDOUT, start_new_session=True)
        try: status = process.wait(LIMIT)
        except subprocess.TimeoutExpired: status = f'no end after {LIMIT} s'
        finally:
            if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
    if status == 0: return
    text = re.sub(r'\x1b\[[0-9;]*m', '', log.read_text(encoding='utf-8', errors='replace'))
    tail = '\n'.join(text.rstrip().splitlines()[-SHOWN:])
    pytest.fail(f'{path.name} ({status}): open it with make lab, or repeat with\n'
                f'nbdev_test --path nbs/{path.name} --n_workers 0\n\n{tail}', pytrace=False)
