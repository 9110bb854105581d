"""What would fail on a GPU, found without one.

torch's `meta` device has shapes and no numbers: whatever needs a number on the way fails there, as it would make a
GPU wait. Fake CUDA tensors have a device and no memory: they meet a tensor made on the CPU as real ones do.
"""
import contextlib

import pytest
import torch
from helpers import EACH, pictures
from torch._subclasses.fake_tensor import FakeTensorMode

from ltpa.core import seed_everything
from ltpa.data import ClutteredFashion, Loader
from ltpa.faithfulness import SWAPS
from ltpa.models import create_model
from ltpa.names import get_recipe
from ltpa.training import Learner, predict, train_step

pytestmark = pytest.mark.filterwarnings('ignore:.*CUDA is not available')


DATA = pictures(16, 32)


def small(name):
    seed_everything(0)
    return create_model(name, 3, width=1 / 16, **dict(depth=20) if name.startswith('resnet') else {})


def fake_apply(module, fn, recurse=True):
    "`Module.to` for fake tensors, which torch cannot exchange in place."
    for m in module.modules():
        for store, wrap in ((m._parameters, torch.nn.Parameter), (m._buffers, lambda v: v)):
            for k, v in store.items():
                if v is not None: store[k] = wrap(fn(v).detach())
    return module


@pytest.fixture
def fake(monkeypatch):
    """A mode in which CUDA tensors can be had.

    What needs the driver is left out: backward, which asks each device for its queue, and the optimiser's kernel.
    """
    monkeypatch.setattr(torch.nn.Module, '_apply', fake_apply)
    monkeypatch.setattr('ltpa.training.random_states', lambda *_: {})
    monkeypatch.setattr(torch.Tensor, 'backward', lambda loss: None)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if torch.__version__ < '2.14':
        try:
            with mode: torch.zeros(1).to('cuda')
        except RuntimeError: pytest.skip(f'torch {torch.__version__} asks the driver even for fake CUDA tensors')
    return mode


def steps(net, device, **changes):
    "Two steps on crops and flips; the learner and the last batch."
    recipe = get_recipe('fast', batch_size=8, crop=2, **dict(clip=1.) | changes)
    learn = Learner(net, DATA, recipe, device=device)
    if device == 'cuda': learn.opt.step = lambda: None
    for x, y in learn.loader.epoch(): train_step(learn, x, y)
    assert learn.step == 2 and {t.device.type for t in (x, y, *learn.losses)} == {device}
    return learn, x


def evaluation(net, x):
    out = net.eval()(x)
    assert out.logits.shape == (8, 3)
    assert {t.device.type for t in (out.logits, *out.maps, *out.descriptors)} == {x.device.type}


@pytest.mark.parametrize('name', EACH)
def test_training_and_evaluation_on_meta(name):
    learn, x = steps(small(name), 'meta')
    for p in learn.net.parameters(): assert p.grad.device.type == 'meta' and p.grad.shape == p.shape
    evaluation(learn.net, x)


@pytest.mark.parametrize('changes', [dict(optimizer='sgd'), dict(optimizer='muon'), dict(clip=0.),
                                     dict(label_smoothing=.1)], ids=str)
def test_other_recipes_on_meta(changes):
    steps(small('vgg_att2_concat_dp'), 'meta', **changes)


@pytest.mark.parametrize('name', EACH)
def test_training_and_evaluation_on_fake_cuda(name, fake):
    net = small(name)
    with fake:
        learn, x = steps(net, 'cuda', precision='bf16')
        evaluation(net, x)
        logits, maps = predict(net, DATA.images, 'cuda')
    assert logits.shape == (16, 3) and {t.device.type for t in (logits, *maps)} == {'cpu'}


@pytest.mark.parametrize('name', SWAPS)
def test_other_maps_on_fake_cuda(name, fake):
    "What takes the place of a map is where the map is, wherever the masks are."
    with fake:
        own = torch.zeros(2, 4, 4).to('cuda')
        assert SWAPS[name](own, level=0, masks=torch.ones(2, 8, 8, dtype=torch.bool)).device.type == 'cuda'


WRONG = {
    'a tensor made on the CPU': lambda x: x + torch.zeros(x.shape),
    'a constant that is no buffer': lambda x, mean=torch.ones(1, 3, 1, 1): x - mean,
    'an answer from the CPU': lambda x: x + torch.from_numpy(x.detach().cpu().numpy()),
    'a number asked for': lambda x: x * x.mean().item(),
    'a branch on a number': lambda x: x if x.mean() > 0 else -x,
    'a mask': lambda x: x - x[x > .5].mean()}


@pytest.mark.parametrize('kind', ['meta', 'cuda'])
@pytest.mark.parametrize('wrong', WRONG)
def test_wrong_networks_are_caught(wrong, kind, fake):
    "Else the tests above would show nothing."
    net = small('vgg_att1_pc')
    parts = net.parts
    net.parts = lambda x: parts(WRONG[wrong](x))
    with fake if kind == 'cuda' else contextlib.nullcontext():
        with pytest.raises(RuntimeError, match='device|meta|numpy|scalar|nonzero'): steps(net, kind)


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('make', [
    lambda: pictures(10, 16), lambda: ClutteredFashion('train', 16, n=10)], ids=['images', 'rendered'])
def test_loader_on_meta(make, train):
    batches = [*Loader(make(), 4, train, crop=2, device='meta')]
    assert [tuple(x.shape) for x, y in batches] == [(4, 3, 16, 16)] * 2 + [(2, 3, 16, 16)] * (not train)
    assert all(x.device.type == y.device.type == 'meta' and len(x) == len(y) for x, y in batches)


def test_scaler_asks_no_number_of_a_fused_optimizer(monkeypatch):
    "A fake tensor does not tell its number; stock SGD's scaler asks it whether to leave out the step."
    monkeypatch.setattr(torch.nn.Module, '_apply', fake_apply)
    with FakeTensorMode(allow_non_fake_inputs=True):
        steps(small('vgg_att2_concat_pc'), 'cpu', precision='fp16', optimizer='adamw')
        with pytest.raises(Exception, match='item|local_scalar'):
            steps(small('vgg_att2_concat_pc'), 'cpu', precision='fp16', optimizer='sgd')
