"""Trainings that are killed, interrupted, run out of disk or are handed poisoned files, and what is left."""
import ast
import contextlib
import fcntl
import itertools
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo  # an optimiser's first step loads it: a second, which each child would spend
from helpers import Touch, differing, one_line, pictures, refuses, tiny_net

import ltpa
from ltpa.files import write_atomic
from ltpa.weights import read_tensors
from ltpa.cli import main
from ltpa.names import get_recipe
from ltpa.interrupts import Interrupted
from ltpa.training import Callback, Learner
from ltpa.checkpoints import Checkpoint, load_checkpoint, read_checkpoint, save_checkpoint

NAME = 'c.safetensors'


def learner(*callbacks, epochs=4):
    "With Dropout, crops and float16: whatever a checkpoint has to hold. Three steps an epoch."
    recipe = get_recipe('fast', epochs=epochs, batch_size=8, crop=2, precision='fp16')
    return Learner(tiny_net('vgg_att1_dp', dropout=True), pictures(28, 32), recipe, callbacks=callbacks)


class Do(Callback):
    "Calls `what()` after step `step`."
    def __init__(self, step, what): self.step, self.what = step, what
    def after_step(self, learn):
        if learn.step == self.step: self.what()


def press(times=1, signum=signal.SIGINT):
    return lambda: [signal.raise_signal(signum) for _ in range(times)]


def state(learn): return dict(learn.net.state_dict()) | dict(losses=torch.stack(learn.losses), **learn.rng)


@pytest.fixture(scope='module')
def whole(): return state(learner().fit())


# Killed. Children are forked from a server that has torch loaded and has started no threads.

def die(): os.kill(os.getpid(), signal.SIGKILL)


def before(call, n):
    "`call`, except that the process is killed before it is called for the n-th time."
    count = itertools.count(1)
    def doomed(*args, **kw):
        if next(count) == n: die()
        return call(*args, **kw)
    return doomed


def half_written(n):
    "Temporary files, of which the n-th takes half of what is written to it and kills the process."
    count, real = itertools.count(1), tempfile.NamedTemporaryFile
    def opened(**kw):
        f = real(**kw)
        if next(count) == n:
            write = f.write
            f.write = lambda data: (write(data[:len(data) // 2]), f.flush(), die())
        return f
    return opened


# A save synchronises its file, is renamed, and synchronises its folder.
DEATHS = {'half written': lambda: setattr(tempfile, 'NamedTemporaryFile', half_written(4)),
          'before the bytes are on disk': lambda: setattr(os, 'fsync', before(os.fsync, 7)),
          'before the new name': lambda: setattr(Path, 'replace', before(Path.replace, 4)),
          'after the new name': lambda: setattr(os, 'fsync', before(os.fsync, 8))}


def train(folder, death=None):
    "What `ltpa train` does, with a checkpoint after each step."
    path = Path(folder, NAME)
    learn = learner(Checkpoint(path, every=1))
    if death: DEATHS[death]()
    if path.exists(): load_checkpoint(learn, path)
    else: save_checkpoint(learn, path)
    learn.fit()


@pytest.fixture(scope='module')
def start():
    "Starts a function in a process of its own."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('OMP_NUM_THREADS', '1')
        patch.setenv('PYTHONPATH', os.pathsep.join(sys.path))
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload([__name__])
        def start(function, *args):
            process = context.Process(target=function, args=args)
            process.start()
            return process
        yield start


@pytest.fixture(scope='module')
def trained(start, tmp_path_factory):
    "The last checkpoint of a training that nobody disturbs."
    return finish(start, tmp_path_factory.mktemp('whole'))


def same(a, b):
    "Two files with the same tensors, to the bit, and the same description."
    assert not differing(a[0], b[0]) and a[1] == b[1]


def finish(start, folder):
    process = start(train, folder)
    process.join()
    assert process.exitcode == 0
    assert os.listdir(folder) == [NAME], 'something is left in the way'
    return read_checkpoint(folder / NAME)


def wait_for_saves(n, process, path):
    "Until `path` was written `n` times, and then for a random share of the time that the last save took to come."
    stamp, last, gap = None, time.monotonic(), .1
    while n and process.is_alive():
        if path.exists() and (now := path.stat().st_mtime_ns) != stamp:
            stamp, last, gap, n = now, time.monotonic(), time.monotonic() - last, n - 1
        time.sleep(.0005)
    time.sleep(random.uniform(0, gap))


@pytest.mark.whole
@pytest.mark.slow
def test_killed_at_twenty_random_moments(start, trained, tmp_path):
    "Counted in saves, of which there are 13, so that a busy machine does not gather the moments at one end."
    moments, killed, steps = random.Random(0), 0, set()
    for k in range(60):
        folder = tmp_path / str(k)
        folder.mkdir()
        process = start(train, folder)
        wait_for_saves(moments.randrange(13), process, folder / NAME)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL                 # not if it was done already
        if (folder / NAME).exists(): steps.add(read_checkpoint(folder / NAME)[1]['step'])
        same(finish(start, folder), trained)
        if killed == 20: break
    assert killed == 20 and len(steps) > 5, f'only steps {steps} were hit'


@pytest.mark.parametrize('death', DEATHS)
def test_killed_while_writing(death, start, trained, tmp_path):
    process = start(train, tmp_path, death)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    renamed = death == 'after the new name'
    assert len(os.listdir(tmp_path)) == (1 if renamed else 2), 'it was not writing'
    assert read_checkpoint(tmp_path / NAME)[1]['step'] == (3 if renamed else 2)
    same(finish(start, tmp_path), trained)


def test_sweeping_spares_those_who_write(tmp_path):
    "Locks tell a dead process's temporary file from one that is being written."
    ours, other = tmp_path / f'.{NAME}.abc.tmp', tmp_path / '.d.safetensors.abc.tmp'
    for path in ours, other: path.touch()
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_SH)
    write_atomic(tmp_path / NAME, b'1')
    assert ours.exists() and (tmp_path / NAME).read_bytes() == b'1'
    os.close(folder)
    write_atomic(tmp_path / NAME, b'2')
    assert not ours.exists() and other.exists()


def test_file_system_without_locks(tmp_path, monkeypatch):
    def no_locks(*args): raise OSError('No locks available')
    monkeypatch.setattr(fcntl, 'flock', no_locks)
    (tmp_path / f'.{NAME}.abc.tmp').touch()
    assert write_atomic(tmp_path / NAME, b'1').read_bytes() == b'1' and len(os.listdir(tmp_path)) == 2


def test_two_who_write_the_same_file(tmp_path):
    "Whoever is last wins, and nobody gets in the other's way."
    texts = [bytes([65 + k]) * 100_000 for k in range(4)]
    def write(text):
        for _ in range(20): write_atomic(tmp_path / NAME, text)
    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for t in threads: t.start()
    for t in threads: t.join()
    assert (tmp_path / NAME).read_bytes() in texts and os.listdir(tmp_path) == [NAME]


# No space

@contextlib.contextmanager
def small_disk(folder):
    "A disk that holds one checkpoint, but not two; gives a function that makes room."
    command = ['mount', '-t', 'tmpfs', '-o', 'size=1M', 'none', str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip('only root may mount a small file system to fill')
    try:
        (folder / 'ballast').write_bytes(bytes(2**20 - 2 * 4096 - size_of_checkpoint() * 3 // 2))
        yield (folder / 'ballast').unlink
    finally: subprocess.run(['umount', '-l', str(folder)], check=True)


@contextlib.contextmanager
def short_files(folder):
    "No file may be longer than half a checkpoint, from now on; gives a function that lifts the limit."
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    lift = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    save_checkpoint(learner(), folder / NAME)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_of_checkpoint() // 2, usual[1]))
    try: yield lift
    finally: lift()


def size_of_checkpoint():
    with tempfile.TemporaryDirectory() as d: return save_checkpoint(learner(), Path(d, NAME)).stat().st_size


@pytest.mark.parametrize('disk, why', [
    (small_disk, 'No space left on device'), (short_files, 'File too large')], ids=['full disk', 'limit'])
def test_disk_that_fills(disk, why, whole, tmp_path):
    path = tmp_path / NAME
    with disk(tmp_path) as make_room:
        if not path.exists(): save_checkpoint(learner(), path)
        before = path.read_bytes()
        learn = learner(Checkpoint(path, every=2))
        with refuses(f'cannot write {path}', why, 'what was there stays', 'free some space'): learn.fit()
        assert path.read_bytes() == before and not [f for f in os.listdir(tmp_path) if f.endswith('.tmp')]
        assert load_checkpoint(learner(), path).step == 0 and learn.step == 2
        make_room()
        assert not differing(whole, state(learn.fit())), 'the learner itself can go on'
        assert load_checkpoint(learner(), path).step == 12


# Stopped

@pytest.mark.parametrize('signum, name', [(signal.SIGINT, 'Ctrl-C'), (signal.SIGTERM, 'SIGTERM')])
def test_signal_finishes_the_step_and_saves(signum, name, whole, tmp_path, capsys):
    path = tmp_path / NAME
    learn = learner(Do(5, press(1, signum)), Checkpoint(path))
    usual = signal.getsignal(signum)
    with pytest.raises(Interrupted, match=f'stopped by {name} after step 5 of 12, saved in .*goes on') as e:
        learn.fit()
    assert e.value.signum == signum and signal.getsignal(signum) is usual and not learn.net.training
    assert 'Ctrl-C again stops at once' in capsys.readouterr().err
    assert read_checkpoint(path)[1]['step'] == learn.step == 5
    assert not differing(whole, state(learn.fit()))
    resumed = load_checkpoint(learner(), path)
    assert not differing(whole, state(resumed.fit())) and signal.getsignal(signum) is usual


def test_signal_in_the_last_step_of_an_epoch():
    "What is due after an epoch is not lost."
    epochs = []
    class Count(Callback):
        def after_epoch(self, learn): epochs.append(learn.epoch)
    learn = learner(Do(3, press()), Count())
    with pytest.raises(Interrupted, match='after step 3 of 12'): learn.fit()
    learn.fit()
    assert epochs == [1, 2, 3, 4]


def test_second_ctrl_c_stops_at_once(tmp_path):
    "In the step, with the last checkpoint as it was."
    path, usual = tmp_path / NAME, signal.getsignal(signal.SIGINT)
    class InTheStep(Callback):
        def before_fit(self, learn):
            model = learn.model
            def pressing(x):
                if learn.step == 4: press(2)()
                return model(x)
            learn.model = pressing
    with pytest.raises(KeyboardInterrupt) as e: learner(InTheStep(), Checkpoint(path)).fit()
    assert type(e.value) is KeyboardInterrupt and signal.getsignal(signal.SIGINT) is usual
    assert read_checkpoint(path)[1]['step'] == 3


def test_repeated_sigterm_is_one_request(tmp_path):
    "Launchers send it to a process that Ctrl-C has reached already."
    both = lambda: (press(2, signal.SIGTERM)(), press(1)(), press(1, signal.SIGTERM)())
    with pytest.raises(Interrupted, match='stopped by SIGTERM after step 4'):
        learner(Do(4, both), Checkpoint(tmp_path / NAME)).fit()
    assert read_checkpoint(tmp_path / NAME)[1]['step'] == 4


def test_stopped_without_a_checkpoint(whole):
    learn = learner(Do(2, press()))
    with pytest.raises(Interrupted, match='after step 2 of 12, not saved; fit'): learn.fit()
    assert not differing(whole, state(learn.fit()))


def test_signal_while_saving(tmp_path, monkeypatch):
    "Does not disturb the save; the file that it leaves is whole."
    real = os.fsync
    monkeypatch.setattr(os, 'fsync', lambda fd: (press(1, signal.SIGTERM)(), real(fd)))
    with pytest.raises(Interrupted, match='after step 1 of'): learner(Checkpoint(tmp_path / NAME, 1)).fit()
    assert read_checkpoint(tmp_path / NAME)[1]['step'] == 1 and os.listdir(tmp_path) == [NAME]


def test_ignored_signal_stays_ignored(whole):
    "As for a job that a shell has put in the background."
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try: assert not differing(whole, state(learner(Do(2, press(2))).fit()))
    finally: signal.signal(signal.SIGINT, usual)


def test_handlers_are_restored_after_an_error(tmp_path):
    usual = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    class Trouble(Exception): pass
    def trouble(): raise Trouble
    with pytest.raises(Trouble): learner(Do(2, trouble)).fit()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == usual


def test_trains_in_another_thread(whole):
    "Where no handler can be set."
    results = []
    thread = threading.Thread(target=lambda: results.append(state(learner().fit())))
    thread.start()
    thread.join()
    assert results and not differing(whole, results[0])


def command(log, *argv):
    "The command line, with its errors in the file `log`."
    with open(log, 'ab') as file: os.dup2(file.fileno(), 2)
    sys.exit(main(list(argv)))


@pytest.mark.slow
@pytest.mark.parametrize('signum, code', [
    (signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.whole)])
def test_command_line_stops_and_resumes(signum, code, start, tmp_path):
    for split in 'train', 'test':
        data = pictures(28, 16)
        np.savez(tmp_path / f'{split}.npz', images=data.images.numpy(), labels=data.labels.numpy())
    how = (f'train {tmp_path}/vgg_gap --quiet --width 0.03125 --early-pools 2 --batch-size 8 --device cpu '
           f'--epochs 30 --dropout --out {tmp_path}').split()
    def run(*argv):
        process = start(command, tmp_path / 'log', *argv)
        process.join()
        assert process.exitcode == 0, (tmp_path / 'log').read_text()
    run(*how[:-1], f'{tmp_path}/whole')
    process, give_up = start(command, tmp_path / 'log', *how[:-1], f'{tmp_path}/run'), time.monotonic() + 60
    checkpoint, saves = tmp_path / 'run' / 'checkpoint.safetensors', set()
    while len(saves) < 4:
        assert process.is_alive() and time.monotonic() < give_up
        if checkpoint.exists(): saves.add(checkpoint.stat().st_mtime_ns)
        time.sleep(.002)
    os.kill(process.pid, signum)
    process.join()
    *_, last = (tmp_path / 'log').read_text().strip().splitlines()
    assert process.exitcode == code
    name, step = 'Ctrl-C' if code == 130 else 'SIGTERM', read_checkpoint(checkpoint)[1]['step']
    one_line(last, f'ltpa: stopped by {name} after step {step} of 90, saved in {checkpoint}; '
             'go on with --resume')
    assert 0 < step < 90 and not (tmp_path / 'run' / 'result.json').exists()
    run(*how[:-1], f'{tmp_path}/run', '--resume')
    for name in 'checkpoint.safetensors', 'weights.safetensors':
        same(read_tensors(tmp_path / 'run' / name), read_tensors(tmp_path / 'whole' / name))


NOTEBOOK = """
from test_faults import *
class Hello(Callback):
    def after_step(self, learn):
        print(learn.step, flush=True)
        time.sleep(.05)
whole = state(learner(epochs=9).fit())
learn = learner(Hello(), Checkpoint(PATH), epochs=9)
"""


@pytest.mark.whole
def test_interrupted_kernel(tmp_path, monkeypatch):
    "Interrupt kernel, then run the cell again."
    from jupyter_client.manager import start_new_kernel
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(sys.path))
    manager, client = start_new_kernel(kernel_name='python3')
    said = []
    def interrupt(message):
        said.append(message['content'].get('text', ''))
        if message['msg_type'] == 'stream' and said[-1].startswith('3'): manager.interrupt_kernel()
    run = lambda code, hook=None: client.execute_interactive(code, output_hook=hook, timeout=60)['content']
    try:
        made = run(f'PATH = {str(tmp_path / NAME)!r}\n{NOTEBOOK}')
        assert made['status'] == 'ok', made
        stopped = run('learn.fit()', interrupt)
        assert stopped['ename'] == 'Interrupted' and 'fit() goes on from here' in stopped['evalue']
        assert 3 <= read_checkpoint(tmp_path / NAME)[1]['step'] < 27
        again = run('learn.fit(); assert learn.step == 27 and not differing(whole, state(learn))', said.append)
        assert again['status'] == 'ok', again
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# Poisoned

def test_the_poison_works(tmp_path):
    "Else the tests that nothing is unpickled would show nothing."
    pickle.loads(pickle.dumps(Touch(tmp_path / 'executed'))).close()
    assert (tmp_path / 'executed').exists()


@pytest.mark.parametrize('command', ['train', 'evaluate'])
@pytest.mark.parametrize('write', [
    lambda path, poison: path.write_bytes(pickle.dumps(poison)),
    lambda path, poison: torch.save(dict(net=poison), path),
    lambda path, poison: torch.save(dict(net=poison), path, _use_new_zipfile_serialization=False),
], ids=['pickle', 'torch', 'old torch'])
def test_command_line_refuses_a_pickle(command, write, tmp_path, capsys):
    data, path, trap = pictures(28, 16), tmp_path / 'checkpoint.safetensors', tmp_path / 'executed'
    for split in 'train', 'test':
        np.savez(tmp_path / f'{split}.npz', images=data.images.numpy(), labels=data.labels.numpy())
    write(path, Touch(trap))
    argv = (['evaluate', str(path)] if command == 'evaluate' else
            ['train', f'{tmp_path}/vgg_gap', '--width', '0.03125', '--batch-size', '8', '--quiet',
             '--device', 'cpu', '--out', str(tmp_path), '--resume'])
    assert main(argv) == 2 and not trap.exists()
    one_line(capsys.readouterr().err.strip(), str(path), 'pickles are never loaded')


def test_library_has_nothing_to_unpickle_with():
    loaders = 'torch.load', 'pickle.load', 'pickle.loads'
    for path in Path(ltpa.__file__).parent.rglob('*.py'):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            assert not {'dill', 'joblib', 'shelve', 'marshal'} & set(names), path.name
            if not isinstance(node, ast.Call): continue
            # Weights of others that lie in a package, as a .pth: tensors and nothing else.
            tensors_only = path.name == 'zoo.py' and 'weights_only=True' in ast.unparse(node)
            assert tensors_only or ast.unparse(node.func) not in loaders, path.name
            for k in node.keywords: assert (k.arg, ast.unparse(k.value)) != ('allow_pickle', 'True'), path.name
