"""The ground: names, devices, seeds, files written whole, records, fingerprints, exercises."""
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import refuses

import ltpa
from ltpa.names import LtpaError, unknown
from ltpa.core import keep_buffers, keyed_rng, pick_device, seed_everything
from ltpa.files import fingerprint, git_commit, provenance, save_result, write_atomic
from ltpa.exercises import Exercise, NotAttempted, WrongAnswer, attempt, check, expect


@pytest.mark.parametrize('name, words', [
    ('vgg_gab', "did you mean 'vgg_gap' or 'vgg_pan'?"),
    ('VGG_GAP', "did you mean 'vgg_gap'"),
    ('zzz', 'known: resnet, vgg_gap, vgg_pan'),
    (None, 'unknown model None'),
])
def test_unknown_names_the_nearest(name, words):
    error = unknown('model', name, ['vgg_pan', 'vgg_gap', 'resnet'])
    assert isinstance(error, LtpaError) and words in str(error) and repr(name) in str(error)


@pytest.mark.parametrize('kind', ['cuda', 'mps'])
def test_device_that_is_not_here(kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    with refuses(f'device {kind!r} is not available', 'this machine has cpu', 'or auto'): pick_device(kind)
    assert pick_device() == torch.device('cpu')


@pytest.mark.parametrize('seed', [-1, 2**32, 1.5, '0', None])
def test_seed_is_refused(seed):
    with refuses(f'seed {seed!r}', 'whole number from 0 to 4294967295'): seed_everything(seed)


def test_keyed_rng_takes_every_part_of_its_key():
    keys = [(0,), (1,), (0, 'a'), (0, 'b'), (0, 'a', 1), ('0', 'a'), (0., 'a')]
    draws = {tuple(torch.rand(4, generator=keyed_rng(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)


def test_keyed_rng_is_the_same_in_another_process():
    code = ('import torch; from ltpa.core import keyed_rng\n'
            'print(torch.rand(3, generator=keyed_rng(3, "x")).tolist())')
    other = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert json.loads(other) == torch.rand(3, generator=keyed_rng(3, 'x')).tolist()


@pytest.mark.parametrize('libc', [OSError, TypeError, AttributeError])
def test_nothing_to_keep_buffers_with(libc, monkeypatch):
    "On Windows there is no such library, elsewhere it may lack the function."
    def library(name): raise libc
    monkeypatch.setattr('ctypes.CDLL', library)
    assert keep_buffers() is False


@pytest.mark.parametrize('calls, kept', [
    ({-3: 1, -1: 1}, True), ({-3: 0, -4: 1, -1: 1}, True), ({-3: 0, -4: 0}, False)],
    ids=['glibc', 'glibc before 2.35', 'refused'])
def test_what_glibc_is_asked_to_keep(calls, kept, monkeypatch):
    asked = []
    class Library:
        def __init__(self, name): pass
        def mallopt(self, option, value): asked.append(option); return calls[option]
    monkeypatch.setattr('ctypes.CDLL', Library)
    assert keep_buffers() is kept and asked == list(calls)


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_full_disk_keeps_the_old_file(call, tmp_path, monkeypatch):
    path = tmp_path / 'file'
    write_atomic(path, b'old')
    def full(*args, **kw): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, call, full)
    monkeypatch.setattr('pathlib.os.' + call, full)
    words = f'cannot write {path}', 'No space left', 'what was there stays', 'free some space'
    with refuses(*words): write_atomic(path, b'new')
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['file']


def test_folder_or_file_in_the_way(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'folder').mkdir()
    for path in tmp_path / 'file' / 'x', tmp_path / 'folder':
        with refuses(f'cannot write {path}', 'choose another folder'): write_atomic(path, b'new')
    assert sorted(os.listdir(tmp_path)) == ['file', 'folder'], 'a temporary file was left behind'


def test_written_file_has_the_usual_mode(tmp_path):
    (tmp_path / 'usual').touch()
    path = write_atomic(tmp_path / 'new' / 'folder' / 'ours', b'')
    assert path.stat().st_mode == (tmp_path / 'usual').stat().st_mode


def test_result_is_refused_if_json_cannot_hold_it(tmp_path):
    path = save_result(tmp_path / 'r.json', 'fine', [dict(x=1.5)], provenance(seed=3))
    with pytest.raises(ValueError): save_result(path, 'nan', [dict(x=float('nan'))], {})
    kept = json.loads(path.read_text())
    assert kept['title'] == 'fine' and kept['provenance']['seed'] == 3
    assert {'commit', 'when', 'device', 'hardware', 'threads', 'versions'} <= set(kept['provenance'])
    assert kept['provenance']['versions']['ltpa'] == ltpa.__version__


def repository(folder, *files):
    "Make `folder` a repository of its own in which git tracks `files`; its commit"
    def git(*args):
        command = ['git', '-c', 'user.name=x', '-c', 'user.email=x@example.com', *args]
        return subprocess.check_output(command, cwd=folder, text=True).strip()
    git('init', '-q')
    if files: git('add', *files)
    git('commit', '-qm', f'in {folder.name}', '--allow-empty')
    return git('rev-parse', 'HEAD')[:12]


def test_commit(tmp_path):
    assert git_commit(tmp_path) is None
    (tmp_path / 'a').write_text('1')
    commit = repository(tmp_path, 'a')
    assert git_commit(tmp_path) == commit
    (tmp_path / 'results').mkdir()
    (tmp_path / 'results' / 'a.json').write_text('1')
    commit = repository(tmp_path, 'results/a.json')
    (tmp_path / 'results' / 'a.json').write_text('2')
    assert git_commit(tmp_path) == commit == git_commit(tmp_path / 'results'), 'what is measured is no difference'
    (tmp_path / 'a').write_text('2')
    for where in tmp_path, tmp_path / 'results': assert git_commit(where) == commit + '+'


@pytest.mark.parametrize('here', ['no repository', 'another repository'])
@pytest.mark.parametrize('library', ['a checkout', 'installed in a repository', 'installed elsewhere'])
def test_recorded_commit_is_that_of_the_library(library, here, tmp_path, monkeypatch):
    home, work = tmp_path / 'home', tmp_path / 'work'
    (home / 'ltpa').mkdir(parents=True)
    work.mkdir()
    (home / 'ltpa' / '__init__.py').touch()
    monkeypatch.setattr(ltpa, '__file__', str(home / 'ltpa' / '__init__.py'))
    monkeypatch.chdir(work)
    if here == 'another repository': repository(work)
    commit = repository(home, 'ltpa') if library == 'a checkout' else None
    if library == 'installed in a repository': repository(home)
    assert provenance()['commit'] == commit


@pytest.mark.parametrize('other', [
    torch.tensor([[1., 2.]]), torch.tensor([1., 3.]), torch.tensor([1., 2.], dtype=torch.float64),
    torch.tensor([1., 2.], dtype=torch.bfloat16), torch.tensor([2., 1.])])
def test_fingerprint_sees_values_types_and_shapes(other):
    assert fingerprint(other) != fingerprint(torch.tensor([1., 2.]))


def test_fingerprint_does_not_see_memory_layout():
    x = torch.rand(2, 3, 4, 5)
    others = x.to(memory_format=torch.channels_last), x.numpy(), np.asfortranarray(x.numpy())
    assert {fingerprint(other) for other in others} == {fingerprint(x)}
    assert fingerprint('a', 'b') != fingerprint('b', 'a')


@pytest.fixture
def doubling():
    ex = Exercise('double it', minutes=2, difficulty=1)
    @ex.case('two')
    def _(answer): expect(answer(torch.tensor([2.])), torch.tensor([4.]))
    @ex.case('a number')
    def _(answer): expect(answer(.5), 1.)
    return ex


def test_check_of_a_stub_and_of_a_right_answer(doubling, capsys):
    assert check(lambda x: attempt(), doubling) is False
    assert check(lambda x: 2 * x, doubling) is True
    stub, right = capsys.readouterr().out.splitlines()
    assert 'not attempted yet' in stub and '2 min' in stub and 'right in all 2 cases' in right


@pytest.mark.parametrize('answer, words', [
    (lambda x: x, 'wrong for "two": at [0] expected 4, got 2'),
    (lambda x: 4., 'expected a tensor of shape (1,), got float'),
    (lambda x: torch.ones(2), 'expected shape (1,), got (2,)'),
    (lambda x: x * 2 if isinstance(x, torch.Tensor) else x, 'wrong for "a number": expected 1.0, got 0.5'),
    (lambda x: torch.full((1,), torch.nan), 'got nan'),
    (lambda x: 1 / 0, 'it raised ZeroDivisionError'),
    (lambda: 1, 'it raised TypeError'),
    (lambda x: None, 'got NoneType'),
])
def test_check_names_the_case_that_failed(answer, words, doubling):
    with pytest.raises(WrongAnswer) as caught: check(answer, doubling)
    assert words in str(caught.value)


def test_answers_must_agree_to_a_millionth():
    for want in 1., torch.ones(3), 1000.:
        expect(want * (1 + 5e-7), want)
        with pytest.raises(AssertionError, match='expected'): expect(want * (1 + 3e-6), want)
    expect(5e-7, 0.), expect(1.05, 1., tol=.1)
    with pytest.raises(AssertionError): expect(1e-5, 0.)


def test_attempt_says_what_to_do():
    with pytest.raises(NotAttempted, match='replace attempt'): attempt()
