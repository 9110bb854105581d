"""The type checker finds nothing to complain about, and the package says that it carries types."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def mypy(*args): return subprocess.run([sys.executable, '-m', 'mypy', *args], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_types(types):
    said, _ = types.communicate()
    assert types.returncode == 0, said


def test_a_wrong_type_is_found(tmp_path):
    (tmp_path / 'wrong.py').write_text('def double(x: int) -> int: return 2 * x\n\n\ndouble("two")\n')
    done = mypy('--cache-dir', str(tmp_path / 'cache'), str(tmp_path / 'wrong.py'))
    assert done.returncode == 1 and 'arg-type' in done.stdout


def test_the_package_says_that_it_carries_types(): assert (ROOT / 'ltpa' / 'py.typed').exists()
