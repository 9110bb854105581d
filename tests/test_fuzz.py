"""Bad and odd inputs at random: every entry refuses them in a line or takes them (see fuzzing.py)."""
import mmap
import os
import time

import fuzzing
import pytest
from fuzzing import KINDS, finding, run

from ltpa import LtpaError


def told(found): return '\n'.join(f'python tests/fuzzing.py --one {kind}:{seed}   {what}\n{trace or ""}' for kind, seed, what, trace in found[:5])


@pytest.mark.slow
def test_two_hundred_inputs():
    found = run(200, seed=0, workers=1)
    assert not found, told(found)


@pytest.mark.whole
def test_two_thousand_inputs_in_five_minutes():
    start = time.monotonic()
    found = run(2000, seed=1, workers=2)
    assert not found, told(found)
    assert time.monotonic() - start < 300


def hog():
    n = fuzzing.MOST_MEMORY + 2**26
    memory = mmap.mmap(-1, n)                      # new for sure: what other tests have freed may lie ready
    memory[::4096] = b'x' * len(range(0, n, 4096))
def wait(): time.sleep(60)
def die(): os._exit(9)
def raises(error):
    def call(): raise error
    return call


@pytest.mark.parametrize('call, what', [
    (raises(KeyError('x')), 'builtins.KeyError'), (raises(LtpaError()), 'no line'), (hog, 'MiB more memory'), (wait, 'no end'),
    (lambda: print('\x1b[31m'), 'odd output'), (raises(SystemExit(3)), 'exit code 3'), (lambda: print('Traceback'), 'odd output')],
    ids=['foreign', 'no line', 'memory', 'hang', 'escape', 'exit', 'printed'])
def test_what_goes_wrong_is_found(call, what, monkeypatch):
    monkeypatch.setitem(KINDS, 'planted', lambda rng, folder: call)
    monkeypatch.setattr(fuzzing, 'PATIENCE', 1 if call is wait else 20)
    assert what in finding('planted', 0)[0]


def test_a_refusal_is_no_finding(monkeypatch):
    monkeypatch.setitem(KINDS, 'planted', lambda rng, folder: raises(LtpaError('x 5; expected 3: write 3')))
    assert finding('planted', 0) == (None, None)


@pytest.mark.parametrize('call, what', [(die, 'died (exit code 9)'), (lambda: [time.sleep(1) for _ in iter(int, 1)], 'hangs')], ids=['death', 'hang'])
def test_a_child_that_ends_or_hangs_is_found_and_the_rest_goes_on(call, what, monkeypatch, capsys):
    def planted(rng, folder): return call if rng.random() < .5 else lambda: None
    monkeypatch.setitem(KINDS, 'planted', planted)
    found = run(3, kinds=['planted'], workers=1, start='fork', patience=1.5)
    bad = [k for k in range(3) if fuzzing.random.Random(f'planted:{k}').random() < .5]
    assert 0 < len(bad) < 3 and [f[1] for f in found] == bad and all(what in f[2] for f in found)


def test_inputs_are_what_their_seed_says(tmp_path):
    def names(seed):
        folder = tmp_path / str(time.monotonic_ns())
        folder.mkdir()
        KINDS['folders'](fuzzing.random.Random(f'folders:{seed}'), folder)
        return sorted(str(p.relative_to(folder)) for p in folder.rglob('*'))
    assert names(3) == names(3) != names(4)
