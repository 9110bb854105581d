"""Several processes: shares, statistics, gradients and whole runs equal to those of one process; one fate."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.distributed as dist
from helpers import MODELS, differing, one_line, pictures, refuses, tiny_net
from test_cli import FILES, TINY, arrays, result

from ltpa import distributed
from ltpa.data import Loader
from ltpa.weights import read_tensors
from ltpa.models import load_weights
from ltpa.distributed import (
    SyncBatchNorm, first_gradients, launch, own_device, process_group, synchronize, all_or_none)
from ltpa.cli import main
from ltpa.names import LtpaError, get_recipe
from ltpa.training import Callback
from ltpa.checkpoints import read_checkpoint


@pytest.fixture
def two(monkeypatch):
    "The environment of process 1 of 2."
    for k, v in dict(RANK=1, LOCAL_RANK=1, WORLD_SIZE=2).items(): monkeypatch.setenv(k, str(v))
    monkeypatch.delenv('MASTER_ADDR', raising=False)


# Shares of a batch

@pytest.mark.parametrize('flip, crop', [(False, 0), (True, 0), (False, 2), (True, 2)])
@pytest.mark.parametrize('R', [1, 2, 4])
def test_shares_make_up_the_batch(R, flip, crop):
    how = dict(batch_size=16, flip=flip, crop=crop, seed=3)
    whole = list(Loader(pictures(70), **how).epoch(1, start=1))
    shares = [list(Loader(pictures(70), **how, shard=(r, R)).epoch(1, start=1)) for r in range(R)]
    assert all(len(share) == len(whole) == 3 for share in shares)
    for (x, y), parts in zip(whole, zip(*shares)):
        assert all(len(part) == 16 // R for _, part in parts)
        assert torch.cat([p for p, _ in parts]).equal(x) and torch.cat([p for _, p in parts]).equal(y)


def test_shares_without_training_leave_nothing_out():
    shares = [list(Loader(pictures(23), 10, train=False, shard=(r, 3))) for r in range(3)]
    images = torch.cat([x for parts in zip(*shares) for x, _ in parts])
    assert images.mul(255).round().to(torch.uint8).equal(pictures(23).images)


def test_batch_that_cannot_be_shared_equally():
    with refuses('batch of 16', '3 processes', 'multiple of 3'): Loader(pictures(70), 16, shard=(0, 3))


# Statistics

@pytest.fixture
def alone():
    "A group of one process, in which all that exchanges something can be run."
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('kind, shape', [
    (torch.nn.BatchNorm2d, (6, 4, 3, 5)), (torch.nn.BatchNorm1d, (6, 4))], ids=['2d', '1d'])
def test_synchronized_batch_norm_of_one_process(kind, shape, alone):
    plain, ours = (torch.nn.Sequential(kind(4, eps=1e-3)).double() for _ in range(2))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    with torch.no_grad(): inputs[1].copy_(inputs[0])
    synchronize(ours)
    assert type(ours[0]) is SyncBatchNorm
    for net, x in zip((plain, ours), inputs): (net(x) ** 3).sum().backward()
    assert torch.allclose(inputs[0].grad, inputs[1].grad)
    assert torch.allclose(plain[0].weight.grad, ours[0].weight.grad)
    for k, v in plain.state_dict().items(): assert torch.allclose(v, ours.state_dict()[k]), k
    assert torch.allclose(plain.eval()(inputs[0]), ours.eval()(inputs[1]))


def test_synchronizing_keeps_names_and_tensors():
    net = tiny_net('vgg_att2_concat_pc')
    before = dict(net.state_dict(keep_vars=True))
    after = synchronize(net).state_dict(keep_vars=True)
    assert list(before) == list(after) and all(after[k] is v for k, v in before.items())
    x = torch.rand(4, 3, 32, 32)
    assert net.train().logits(x).equal(tiny_net('vgg_att2_concat_pc').train().logits(x)), 'no group: plain'


# Gradients

@pytest.mark.parametrize('name', MODELS)
def test_every_parameter_gets_a_gradient(name):
    "DDP waits for each; a network that leaves one out would need find_unused_parameters."
    net = tiny_net(name, dropout=True).train()
    net.logits(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


SOME = ['vgg_att1_pc', 'vgg_att2_concat_dp', 'vgg_att3_indep_pc', 'vgg_att2_concat_uniform', 'vgg_pan',
        'vgg_trunk']


def gradients(device='cpu'):
    "Of some networks, in float64: two processes that differ at all then differ by rounding only."
    recipe = get_recipe('fast', batch_size=8, crop=2, precision='fp32')
    with process_group(device):
        return {name: first_gradients(tiny_net(name).double(), pictures(16, 32), recipe) for name in SOME}


@pytest.mark.whole
@pytest.mark.slow
def test_gradients_of_two_processes():
    one, two = gradients(), launch(gradients)
    for name in SOME:
        for r in range(2):
            assert one[name].keys() == two[r][name].keys()
            gap = max((g - two[r][name][n]).abs().max() for n, g in one[name].items())
            assert gap < 1e-6 < max(g.abs().max() for g in one[name].values()), name


def claim(net, others=()):
    "Trains its own copy, as it were; the second process fails if it is told to."
    with torch.no_grad(): net.linear.bias += 1
    if os.environ['RANK'] in others: raise ZeroDivisionError('boom\nand more')
    return int(os.environ['RANK']), net.linear.bias.sum().item()


@pytest.mark.whole
@pytest.mark.slow
def test_launched_processes_share_nothing_and_fail_in_one_line():
    net, before = tiny_net(), signal.getsignal(signal.SIGINT)
    with torch.no_grad(): net.linear.bias.zero_()
    assert launch(claim, 2, net) == [(0, 3.), (1, 3.)] and launch(claim, 1, net) == [(0, 3.)]
    assert not net.linear.bias.any() and not net.linear.bias.is_shared(), "the caller's is its own"
    with refuses('process 1 of 2 failed: ZeroDivisionError: boom'): launch(claim, 2, net, others='1')
    assert signal.getsignal(signal.SIGINT) == before, "PyTorch's launcher leaves its own handlers behind"


INTERRUPTED = '''
import sys, time
from ltpa.distributed import launch
if __name__ == '__main__':
    try: launch(time.sleep, 2, 100)
    except KeyboardInterrupt: sys.exit(7)
'''


@pytest.mark.slow
def test_ctrl_c_ends_what_was_launched(tmp_path):
    (tmp_path / 'script.py').write_text(INTERRUPTED)
    process = subprocess.Popen([sys.executable, tmp_path / 'script.py'], stderr=subprocess.DEVNULL)
    children, give_up = [], time.monotonic() + 60
    while len(children) < 2 and time.monotonic() < give_up:
        children = [p for p in psutil.Process(process.pid).children(recursive=True) if 'spawn_main' in ' '.join(p.cmdline())]
        time.sleep(.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 7
    assert len(children) == 2 and not psutil.wait_procs(children, 10)[1]


def test_dropout_differs_by_process_and_step(monkeypatch):
    drawn = set()
    for r in 0, 1:
        monkeypatch.setenv('RANK', str(r))
        for step in 0, 1, 0:
            distributed.Distributed().draw(SimpleNamespace(seed=0, step=step, device=torch.device('cpu')))
            drawn.add(torch.rand(()).item())
    assert len(drawn) == 4, 'one for each process and step, and the same again'


# Whole runs

def torchrun(script, *args, limit=240):
    "Two processes that run `script`, a file or `-m` and a module: what `subprocess.run` returns."
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    path = os.pathsep.join([str(Path(distributed.__file__).parents[1]), str(Path(__file__).parent)])
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=path)
    return subprocess.run([*command, *script.split(), *map(str, args)], env=env, capture_output=True,
                          text=True, timeout=limit)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = [f'{arrays(tmp_path / "set", n=40, size=32)}/vgg_att2_concat_pc', *TINY, '--crop', '2']
    how += ['--precision', 'fp32', '--optimizer', 'adamw', '--lr', '.004']     # Muon would make rounding loud
    done = torchrun('-m ltpa train', *how, '--out', 'two')
    assert done.returncode == 0, done.stderr
    assert sum(line.split()[:1] == ['accuracy'] for line in done.stdout.splitlines()) == 1, 'only process 0 prints'
    assert main(['train', *how, '--out', 'one']) == 0
    one, two = result(Path('one')), result(Path('two'))
    assert sorted(os.listdir('two')) == FILES
    assert two['provenance']['processes'] == 2 and two['provenance']['batch_norm'] == 'sync'
    assert one['provenance']['processes'] == 1 and len(one['losses']) == len(two['losses']) == 10
    assert max(abs(a - b) for a, b in zip(one['losses'], two['losses'])) < .05
    assert abs(one['rows'][0]['accuracy'] - two['rows'][0]['accuracy']) < .15
    assert not set(load_weights('one/weights.safetensors').state_dict()) ^ set(
        load_weights('two/weights.safetensors').state_dict())


class Interrupt(Callback):
    def after_step(self, learn):
        if learn.step == 4: raise KeyboardInterrupt


STOPPED = '''
import json, sys
from ltpa import cli, distributed, runs
from test_distributed import Interrupt
run = runs.run_training
with distributed.process_group('cpu'):
    for stop, *argv in json.loads(sys.argv[1]):
        cb = [Interrupt()] if stop else []
        runs.run_training = lambda *a, callbacks=(), **kw: run(*a, callbacks=[*callbacks, *cb], **kw)
        assert cli.main(argv) == (130 if stop else 0)
distributed.leave(0)
'''


@pytest.mark.whole
@pytest.mark.slow
def test_resumed_by_as_many_processes_by_more_and_by_fewer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'script.py').write_text(STOPPED)
    how = ['train', f'{arrays(tmp_path / "set", size=32)}/vgg_att1_dp', *TINY, '--dropout', '--crop', '2']
    with monkeypatch.context() as patch:
        patch.setattr('ltpa.training.Progress', Interrupt)
        assert main([how[0], how[1], *how[3:], '--out', 'one']) == 130
    jobs = [(0, *how, '--out', 'whole'), (1, *how, '--out', 'run'), (0, *how, '--out', 'run', '--resume'),
            (1, *how, '--out', 'two'), (0, *how, '--out', 'one', '--resume'),
            (0, *how, '--out', 'local', '--batch-norm', 'local')]
    done = torchrun('script.py', json.dumps(jobs))
    assert done.returncode == 0, done.stderr
    whole, again = result(Path('whole')), result(Path('run'))
    assert again['provenance']['resumed_at_step'] == 3 and whole['losses'] == again['losses']
    for name in FILES[0], FILES[-1]:
        assert not differing(read_tensors(f'whole/{name}')[0], read_tensors(f'run/{name}')[0])
    local = result(Path('local'))
    assert local['provenance']['batch_norm'] == 'local' and local['losses'] != whole['losses']
    assert main([*how, '--out', 'two', '--resume']) == 0
    for out, processes in ('one', 2), ('two', 1):
        record = result(Path(out))['provenance']
        assert record['resumed_at_step'] == 3 and record['steps'] == 6 and record['processes'] == processes


# One fate

FAILING = '''
import os, signal, sys
from ltpa import cli, distributed, runs
from ltpa.training import Callback
how, late = sys.argv.pop(1), distributed.get_rank() == 1
class Fail(Callback):
    def after_step(self, learn):
        if learn.step != 4 or not late: return
        if how == 'raise': raise ZeroDivisionError('boom')
        os.kill(os.getpid(), signal.SIGKILL)
run = runs.run_training
runs.run_training = lambda *a, callbacks=(), **kw: run(*a, callbacks=[*callbacks, Fail()], **kw)
if how == 'data' and late: os.chdir('elsewhere')
sys.exit(cli.main(sys.argv[1:]))
'''


@pytest.fixture
def failing(tmp_path, monkeypatch):
    "Runs two processes of which the second fails, until both have ended: what they print as errors."
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'script.py').write_text(FAILING)
    arrays(tmp_path / 'set')
    def run(how):
        done = torchrun('script.py', how, 'train', 'set/vgg_gap', *TINY, '--out', 'run')
        assert done.returncode != 0 and not (tmp_path / 'run' / 'result.json').exists()
        return done.stderr
    return run


@pytest.mark.whole
@pytest.mark.slow
def test_another_set_on_another_machine(failing, tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    arrays(tmp_path / 'elsewhere' / 'set', n=29)
    err = failing('data')
    said = [line for line in err.splitlines() if line.startswith('ltpa: ')]
    assert len(said) == 1, err
    one_line(said[0], 'process 1 on', 'another data', 'same command, data')
    assert not (tmp_path / 'run').exists() and not (tmp_path / 'elsewhere' / 'run').exists()


@pytest.mark.whole
@pytest.mark.slow
def test_exception_in_one_process_ends_both(failing):
    err = failing('raise')
    assert 'ZeroDivisionError: boom' in err and '[rank1]' in err
    assert read_checkpoint('run/checkpoint.safetensors')[1]['step'] == 3


@pytest.mark.whole
def test_process_that_is_killed_ends_both(failing):
    "At once (`torchrun` above has a limit), and not after the ten minutes that an exchange may take."
    assert 'SIGKILL' in failing('kill')
    assert read_checkpoint('run/checkpoint.safetensors')[1]['step'] == 3


@pytest.mark.parametrize('answers, words', [
    ([('a', None, dict(step=3)), ('b', None, dict(step=0))], ('process 1 on b', 'another step: 0, not 3')),
    ([('a', None, dict(net=dict(width=1.))), ('b', None, dict(net=dict(width=.5)))], ('width=0.5, not 1.0',)),
    ([('a', 'no such set', {}), ('b', None, dict(step=0))], ('process 0 on a: no such set',)),
], ids=['step', 'net', 'failed'])
def test_what_the_others_say(answers, words, two, monkeypatch):
    monkeypatch.setattr(dist, 'all_gather_object', lambda got, mine: got.__setitem__(slice(None), answers))
    with pytest.raises(distributed.FailedElsewhere) as caught:
        with all_or_none(): pass
    one_line(str(caught.value), *words)


@pytest.mark.parametrize('local, order', [(0, ['block', 'barrier']), (1, ['barrier', 'block'])])
def test_one_process_of_a_machine_goes_first(local, order, two, monkeypatch):
    seen = []
    monkeypatch.setenv('LOCAL_RANK', str(local))
    monkeypatch.setattr(dist, 'barrier', lambda: seen.append('barrier'))
    with pytest.raises(ZeroDivisionError), distributed.local_main_process_first():
        seen.append('block')
        raise ZeroDivisionError
    assert seen == order, 'the others go on even if it fails'
    with distributed.local_main_process_first(wanted=False): assert seen == order


def test_own_failure_is_raised_as_it_is(two, monkeypatch):
    def gather(got, mine): got[:] = [('a', None, {}), mine]
    monkeypatch.setattr(dist, 'all_gather_object', gather)
    with refuses('my own'), all_or_none(): raise LtpaError('my own')


# Refused

def test_devices_of_several_processes(two, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert own_device() == torch.device('cpu')
    for name in 'mps', 'cuda:0', 'gpu':
        with refuses(name, '2 processes', 'without a number'): own_device(name)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    with refuses('process 1 of this machine', '1 GPU', '--nproc-per-node 1'): own_device()
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert own_device() == own_device('cuda') == torch.device('cuda', 1)


def test_processes_that_do_not_meet(two):
    with refuses('2 processes do not find each other', 'MASTER_ADDR', 'torchrun'), process_group('cpu'): pass


def test_torch_without_distributed(two, monkeypatch):
    monkeypatch.setattr(dist, 'is_available', lambda: False)
    with refuses('no torch.distributed', 'one process'), process_group('cpu'): pass
    with refuses('no torch.distributed'): launch(gradients)


def test_batch_norm_that_does_not_exist():
    with refuses("unknown batch norm 'global'", 'local'): distributed.Distributed('global')


@pytest.mark.parametrize('argv, command', [
    (['set/vgg', '--epochs', '2'], 'train'), (['--epochs', '2', 'set/vgg'], 'train'),
    (['train', 'set/vgg'], 'train'),
    (['evaluate', 'w'], 'evaluate'), (['--help'], '--help'), ([], None)])
def test_at_the_old_address_train_may_be_left_out(argv, command):
    from ltpa.scaling import _as_module
    assert (_as_module(argv) or [None])[0] == command


def test_only_one_process_complains_about_the_command(two, capsys):
    with pytest.raises(SystemExit) as caught: main(['train', 'set/vgg', '--color', 'red'])
    assert caught.value.code == 2 and capsys.readouterr() == ('', '')
