"""What a call leaves behind: nothing that was not asked for, in the process or in the network, even after an error."""
import copy
import random
import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from helpers import differing, pictures, refuses, tiny_net
from test_devices import fake_apply
from torch._subclasses.fake_tensor import FakeTensorMode

from ltpa.adversarial import pgd
from ltpa.names import PRECISIONS
from ltpa.core import seed_everything
from ltpa.data import ClutteredFashion
from ltpa.explorer import Gallery, State
from ltpa.faithfulness import infidelity, parts_from_top, perturbation_curves, randomized, sensitivity
from ltpa.maps import inspect_image, show_attention
from ltpa.core import on_device
from ltpa.models import gmac
from ltpa.query import contrasting, encode
from ltpa.saliency import METHODS, captum_suite
from ltpa.distributed import first_gradients
from ltpa.runs import run_training
from ltpa.cli import main
from ltpa.segmentation import attention_parts, train_unet
from ltpa.names import get_recipe
from ltpa.training import Callback, Learner, Stop, evaluate, make_optimizer, predict, random_states, seeded
from ltpa.transfer import FINETUNE, features, finetune

DATA = pictures(8, 32)
X = DATA.images.float() / 255
SHORT = get_recipe('fast', epochs=1, batch_size=4)


def process():
    "What belongs to the whole process."
    name, *numpy = np.random.get_state()
    return dict(python=random.getstate(), numpy=[v.tolist() if hasattr(v, 'tolist') else v for v in numpy],
                torch=torch.get_rng_state().tolist(), threads=torch.get_num_threads(),
                warnings=list(warnings.filters), matplotlib=dict(matplotlib.rcParams),
                grad=torch.is_grad_enabled(), dtype=torch.get_default_dtype())


def insides(net):
    "What belongs to the network, beside its tensors."
    hooks = lambda m: sum(len(v) for k, v in vars(m).items() if k.endswith('_hooks'))
    return ([(type(m), m.training, hooks(m), sorted(vars(m))) for m in net.modules()],
            [(id(p), p.data_ptr(), p.device, p.requires_grad, p.grad is None) for p in net.parameters()],
            [(k, v.device, v.dtype, v.stride()) for k, v in net.state_dict().items()])


def explain(net, x, target): return METHODS['gradient'](net, x, target)


MAPS = torch.rand(8, 4, 4)
CALLS = dict(
    predict=lambda n: predict(n, DATA.images), evaluate=lambda n: evaluate(n, DATA), gmac=gmac,
    bf16=lambda n: predict(n, DATA.images, precision='bf16'),
    look=lambda n: inspect_image(n, DATA.images[0]), show=lambda n: show_attention(n, DATA.images[:2]),
    learner=lambda n: Learner(copy.deepcopy(n), DATA, SHORT, seed=4),
    fit=lambda n: Learner(copy.deepcopy(n), DATA, SHORT, seed=4).fit(),
    first_gradients=lambda n: first_gradients(n, DATA, SHORT),
    features=lambda n: features(n, DATA.images),
    finetune=lambda n: finetune(n, DATA, replace(FINETUNE, epochs=1, batch_size=4)),
    train_unet=lambda n: train_unet(DATA.images, DATA.images[:, 0] > 99, steps=2),
    curves=lambda n: perturbation_curves(n, X, MAPS), infidelity=lambda n: infidelity(n, X, MAPS),
    sensitivity=lambda n: sensitivity(explain, n, X), randomized=lambda n: randomized(n, parts_from_top(n)),
    attention_parts=lambda n: attention_parts(n, DATA.images), encode=lambda n: encode(n, DATA.images),
    contrasting=lambda n: predict(contrasting(n, DATA.images), DATA.images),
    pgd=lambda n: pgd(n, X, .01, steps=2),
    smoothgrad=lambda n: METHODS['smoothgrad'](n, X, samples=2),
    noise_tunnel=lambda n: captum_suite(n)['noise_tunnel'](n, X, samples=2),
    explorer=lambda n: Gallery({'a': DATA.images[0]}, {'n': n}).draw(
        State('a', 'n', eps=4, method='integrated_gradients')))


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('name', CALLS)
def test_a_call_changes_neither_process_nor_network(name, capsys):
    seed_everything(11)
    net = tiny_net('vgg_att2_concat_dp', dropout=True).train()
    net.trunk.stages[0].eval()                                         # modes that are mixed stay so
    net.head.linear[0].bias.requires_grad_(False)
    CALLS[name](net)                                                   # what is imported late is there now
    seed_everything(12)
    random.random(), np.random.rand(), torch.rand(1)
    bits, before = {k: v.clone() for k, v in net.state_dict().items()}, (process(), insides(net))
    CALLS[name](net)
    after = process(), insides(net)
    assert [k for k in before[0] if before[0][k] != after[0][k]] == []
    assert before[1] == after[1] and not differing(bits, net.state_dict())


# The seed

@pytest.mark.parametrize('name', ['vgg_att2_concat_pc', 'vgg_trunk'])
def test_a_learner_draws_as_after_seed_everything(name):
    "Whatever was drawn before, between and meanwhile: the global states of the caller say nothing."
    net = tiny_net(name, dropout=True).train().to(memory_format=torch.channels_last)
    recipe = get_recipe('fast', epochs=2, batch_size=4, precision='fp32')
    learn = Learner(tiny_net(name, dropout=True), DATA, recipe, 5)
    seed_everything(5)
    assert not differing(learn.rng, dict(cpu=torch.get_rng_state()))
    opt = make_optimizer(learn.recipe, net.parameters())
    for step, (x, y) in enumerate(batch for epoch in range(2) for batch in learn.loader.epoch(epoch)):
        opt.param_groups[0]['lr'] = learn.recipe.lr_at(step, 2)
        logits = net(x.contiguous(memory_format=torch.channels_last)).logits
        loss = torch.nn.functional.cross_entropy(logits, y)
        opt.zero_grad(), loss.backward(), opt.step()
    torch.manual_seed(99)
    assert not differing(net.state_dict(), learn.fit().net.state_dict())


class Trip(Callback):
    def __init__(self, at, error): self.at, self.error = at, error
    def before_fit(self, learn): self.trip('begin')
    def after_step(self, learn): self.trip(learn.step)
    def trip(self, now):
        if now == self.at: raise self.error


@pytest.mark.parametrize('error', [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize('at', ['begin', 1])
def test_a_training_that_fails_puts_the_callers_states_back(at, error):
    net = tiny_net('vgg_trunk', dropout=True)
    learn = Learner(net, DATA, SHORT, callbacks=[Trip(at, error)])
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with pytest.raises(error): learn.fit()
    assert torch.get_rng_state().equal(before) and not net.training and not learn.fitting


def test_a_block_with_a_seed_of_its_own():
    torch.manual_seed(1)
    want = torch.rand(2)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(1):
        assert torch.rand(2).equal(want)
        raise ZeroDivisionError
    assert torch.get_rng_state().equal(before)
    assert random_states(torch.device('cpu'), 2)['cpu'].equal(before)


@pytest.mark.parametrize('seed', [-1, 2**32, .5, None])
def test_seeds_that_cannot_be_used(seed):
    for call in (lambda: Learner(tiny_net(), DATA, SHORT, seed), lambda: finetune(tiny_net(), DATA, seed=seed),
                 lambda: train_unet(DATA.images, DATA.images[:, 0] > 99, seed=seed)):
        with refuses(f'seed {seed!r}', 'a whole number from 0'): call()


# The device

NET = 'vgg_att2_concat_dp'


def tensors(net): return [t for p in net.parameters() for t in (p, p.grad) if t is not None] + [*net.buffers()]


def with_grads(name=NET):
    net = tiny_net(name).train()
    net.logits(X).sum().backward()
    return net.eval()


@pytest.mark.parametrize('call', [
    lambda n, d: predict(n, DATA.images, d), lambda n, d: evaluate(n, DATA, d),
    lambda n, d: features(n, DATA.images, d)],
    ids=['predict', 'evaluate', 'features'])
def test_a_device_that_fails_leaves_the_network_where_it_was(call):
    "meta has no numbers to give back, so the call must fail; a network left there would have lost its own."
    net = with_grads()
    was, bits = tensors(net), [t.clone() for t in tensors(net)]
    with pytest.raises((NotImplementedError, RuntimeError)): call(net, 'meta')
    assert all(a is b for a, b in zip(tensors(net), was)) and all(a.equal(b) for a, b in zip(was, bits))
    assert {t.device.type for t in was} == {'cpu'} and not any(m._forward_pre_hooks for m in net.modules())


@pytest.mark.filterwarnings('ignore:.*CUDA is not available')
def test_another_device_is_for_the_call_alone(monkeypatch):
    monkeypatch.setattr(torch.nn.Module, '_apply', fake_apply)
    net = with_grads()
    was, seen = tensors(net), []
    net.head.register_forward_pre_hook(lambda head, args: seen.append(args[0][0].device.type))
    with FakeTensorMode(allow_non_fake_inputs=True):
        for call in (predict, features): call(net, DATA.images, 'cuda')
        assert seen == ['cuda', 'cuda']
        assert all(a is b for a, b in zip(tensors(net), was)) and {t.device.type for t in was} == {'cpu'}
        with on_device(net, 'cuda') as device: predict(net, DATA.images)              # where the network is
        assert device.type == 'cuda' and seen[2:] == ['cuda']


def test_a_learner_trains_where_the_network_is():
    assert Learner(tiny_net().to('meta'), DATA, SHORT).device.type == 'meta'
    assert Learner(tiny_net(), DATA, SHORT).device.type == 'cpu'


# The precision

@pytest.mark.parametrize('has', [True, False])
def test_predictions_are_float32_unless_asked(has, monkeypatch):
    monkeypatch.setattr('ltpa.core.has_bf16', lambda device: has)
    net = tiny_net(NET).eval()
    with torch.no_grad(): want = net(X.contiguous(memory_format=torch.channels_last))
    logits, maps = predict(net, DATA.images)
    assert logits.equal(want.logits) and all(a.equal(b) for a, b in zip(maps, want.maps))
    inputs = [f(d) for f, d in zip(net.head.norm, want.descriptors)]
    assert features(net, DATA.images).equal(torch.cat(inputs, 1))
    for name in ('bf16', 'fp16'):
        assert not predict(net, DATA.images, precision=name)[0].equal(logits)
    kind = 'bf16' if has else 'fp32'
    assert predict(net, DATA.images, precision='auto')[0].equal(predict(net, DATA.images, precision=kind)[0])
    data = ClutteredFashion('test', n=8)
    wide = tiny_net(NET, 10)
    assert evaluate(wide, data) == evaluate(wide, data, precision='fp32')
    for call in predict, evaluate:
        with refuses("precision 'fp17'", *PRECISIONS): call(wide, data if call is evaluate else DATA.images,
                                                           precision='fp17')


# Memory

def test_only_the_command_line_keeps_buffers(monkeypatch, tmp_path):
    asked, libc = [], []
    monkeypatch.setattr('ltpa.core.ctypes.CDLL', lambda name: libc.append(name))
    monkeypatch.setattr('ltpa.core.keep_buffers', lambda: asked.append(1))
    monkeypatch.setattr('ltpa.published.ClutteredFashion', lambda *a, **kw: ClutteredFashion(*a, **kw, n=200))
    how = dict(net=dict(width=1 / 32, early_pools=2), changes=dict(epochs=1), device='cpu')
    run_training('cluttered_fashion/vgg_gap', tmp_path / 'a', callbacks=[Trip(1, Stop)], **how)
    assert not asked and not libc
    assert main(['train', 'cluttered_fashion/vgg_gap', '--width', '0.03', '--early-pools', '2', '--quiet',
                 '--stop-after', '1', '--device', 'cpu', '--out', str(tmp_path / 'b')]) == 0
    assert asked == [1] and not libc


def test_a_run_is_evaluated_in_the_precision_of_its_training(monkeypatch, tmp_path):
    "So that `ltpa evaluate` gives the training's own number; a caller may ask for another."
    from ltpa.models import save_weights
    from ltpa.runs import evaluate_weights
    asked = []
    def evaluated(net, data, device, precision):
        asked.append(precision)
        return dict(images=len(data), accuracy=0.), torch.zeros(len(data), 10)
    monkeypatch.setattr('ltpa.runs.evaluated', evaluated)
    how = dict(source=dict(source='cluttered_fashion', size=16, scale=None))
    for name, info in ('a', how | dict(recipe=dict(precision='bf16'))), ('b', how):
        path = save_weights(tiny_net('vgg_gap', 10), tmp_path / f'{name}.safetensors', **info)
        evaluate_weights(path, 'cpu')
        evaluate_weights(path, 'cpu', precision='fp16')
    assert asked == ['bf16', 'fp16', 'fp32', 'fp16']
