"""One level of attention over layouts, types and shapes, against the broadcast form that others compute."""
import contextlib
import copy
import itertools

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from helpers import random, refuses, words_id
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltpa.attention import (
    Attention, attention_pool, dp_scores, entropy, in_float32, normalize, pc_scores, flatten_positions)
from ltpa.core import keyed_rng
from ltpa.models import create_model

SCORES, NORMS = ('pc', 'dp', 'uniform'), ('softmax', 'sigmoid')
def product(*lists): return list(itertools.product(*lists))


LAYOUTS = {
    'contiguous': lambda x: x.contiguous(),
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'transposed': lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    'cropped': lambda x: F.pad(x, (1, 2, 3, 1))[:, :, 3:-1, 1:-2],
}


def level(channels, g_channels=None, dtype=torch.float32, **kw):
    torch.manual_seed(0)
    att = Attention(channels, g_channels, **dict(dropout=0.) | kw).to(dtype).eval()
    if att.score == 'pc':
        with torch.no_grad(): att.u.weight.mul_(50); att.u.bias.fill_(.7)           # far from uniform maps
    return att


def broadcast(att, l, g):
    "As public re-implementations compute it: l + g at every position, a 1x1 convolution, a weighted sum."
    B, C, H, W = l.shape
    g = att.project(g)[:, :, None, None].expand(-1, -1, H, W)
    if att.score == 'pc': c = F.conv2d(l + g, att.u.weight[:, :, None, None], att.u.bias)
    elif att.score == 'dp': c = (l * g).sum(1, keepdim=True)
    else: c = torch.zeros_like(l[:, :1])
    c = c.reshape(B, -1) / att.temperature
    a = c.softmax(1) if att.norm == 'softmax' else c.sigmoid()
    weights = a if att.norm == 'softmax' else a / (H * W)
    return (weights.view(B, 1, H, W) * l).sum((2, 3)), a.view(B, H, W)


@pytest.mark.parametrize('score, norm, g_channels', product(SCORES, NORMS, (None, 7)))
def test_equals_the_broadcast_form(score, norm, g_channels):
    att = level(5, g_channels, torch.float64, score=score, norm=norm, temperature=1.7)
    l = random(3, 5, 4, 6, dtype=torch.float64).requires_grad_()
    g = random(3, g_channels or 5, seed=1, dtype=torch.float64).requires_grad_()
    leaves = l, g, *att.parameters()
    to_ga, to_a = random(3, 5, seed=2, dtype=torch.float64), random(3, 4, 6, seed=3, dtype=torch.float64)
    results = []
    for form in att, lambda l, g: broadcast(att, l, g):
        ga, a = form(l, g)
        grads = torch.autograd.grad((ga * to_ga).sum() + (a * to_a).sum(), leaves, allow_unused=True)
        results.append([ga, a, *(torch.zeros_like(x) if dx is None else dx for x, dx in zip(leaves, grads))])
    for ours, theirs in zip(*results): torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('score, norm, g_channels', product(SCORES, NORMS, (None, 4)))
def test_gradcheck(score, norm, g_channels):
    att = level(3, g_channels, torch.float64, score=score, norm=norm).train()
    l = random(3, 3, 2, 3, dtype=torch.float64).requires_grad_()
    g = random(3, g_channels or 3, seed=1, dtype=torch.float64).requires_grad_()
    f, inputs = lambda l, g, *params: att(l, g), (l, g, *att.parameters())
    assert torch.autograd.gradcheck(f, inputs) and torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize('score, norm, zero', [
    ('pc', 'softmax', True), ('uniform', 'softmax', True), ('uniform', 'sigmoid', True),
    ('dp', 'softmax', False), ('pc', 'sigmoid', False)])
def test_gradient_of_g_is_exactly_zero_or_is_not(score, norm, zero):
    att, l, g = level(4, score=score, norm=norm), random(2, 4, 3, 5), random(2, 4, seed=1).requires_grad_()
    ga, a = att(l, g)
    (ga.sum() + a.square().sum()).backward()
    assert bool((g.grad == 0).all()) == zero


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('score, layout', product(SCORES, LAYOUTS))
def test_layouts_and_types(score, layout, dtype):
    att = level(16, dtype=dtype, score=score)
    l, g = LAYOUTS[layout](random(2, 16, 6, 4, dtype=dtype)), random(2, 16, seed=1, dtype=dtype)
    ga, a = att(l, g)
    want_ga, want_a = broadcast(level(16, dtype=torch.float64, score=score), l.double(), g.double())
    assert ga.dtype == dtype and ga.shape == (2, 16) and a.shape == (2, 6, 4)
    assert a.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype), 'exp needs the digits'
    tol = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: .05}[dtype]
    torch.testing.assert_close(ga.double(), want_ga, rtol=tol, atol=tol)
    torch.testing.assert_close(a.double(), want_a, rtol=tol, atol=tol)


@pytest.mark.parametrize('score', SCORES)
def test_autocast(score):
    att, l, g = level(16, 8, score=score), random(2, 16, 6, 4), random(2, 8, seed=1)
    ga, a = att(l, g)
    with torch.autocast('cpu', torch.bfloat16): low_ga, low_a = att(l, g)
    torch.testing.assert_close(low_ga.float(), ga, rtol=.05, atol=.05)
    torch.testing.assert_close(low_a, a, rtol=.05, atol=.05)


@pytest.mark.parametrize('shape', [(1, 1, 1, 1), (1, 3, 1, 9), (4, 2, 7, 1), (2, 1, 5, 3)])
@pytest.mark.parametrize('score', SCORES)
def test_small_and_odd_shapes(score, shape):
    B, C, H, W = shape
    ga, a = level(C, score=score)(random(*shape), random(B, C, seed=1))
    assert ga.shape == (B, C) and a.shape == (B, H, W)
    torch.testing.assert_close(a.sum((1, 2)), torch.ones(B))
    if score == 'uniform' or H * W == 1: torch.testing.assert_close(ga, random(*shape).mean((2, 3)))


def test_projection_of_g_is_that_of_the_authors():
    "BatchNorm, ReLU, Dropout of a half, Linear, as in their code; where widths agree there is none."
    norm, relu, dropout, linear = Attention(256, 512).project
    assert isinstance(norm, nn.BatchNorm1d) and isinstance(relu, nn.ReLU) and isinstance(linear, nn.Linear)
    assert (norm.eps, norm.momentum, dropout.p) == (1e-5, .1, .5)
    assert isinstance(Attention(512, 512).project, nn.Identity)
    att, l, g = Attention(8, 4, score='dp').train(), random(6, 8, 3, 3), random(6, 4, seed=1)
    assert not att(l, g)[1].equal(att(l, g)[1]), 'nothing is dropped while it learns'
    assert att.eval()(l, g)[1].equal(att(l, g)[1])


def test_maps_of_pc_are_nearly_uniform_to_start_from():
    "Scores of standard normal features deviate by .01 times the root of their number: here by .16."
    torch.manual_seed(0)
    c = Attention(256, score='pc').scores(random(4, 256, 8, 8), random(4, 256, seed=1))
    assert c.std(1).mean().item() == pytest.approx(.16, rel=.25)


def test_rows_and_columns_are_not_exchanged():
    l = torch.zeros(1, 2, 3, 5, dtype=torch.float64)
    l[0, :, 1, 4] = 50.
    _, a = level(2, dtype=torch.float64, score='dp')(l, torch.ones(1, 2, dtype=torch.float64))
    assert a[0, 1, 4] > .999


class Largest(TorchDispatchMode):
    "Notes how many numbers the largest new tensor holds."
    size = 0
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        storages = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
        new = [t for t in tree_leaves(out) if t.untyped_storage().data_ptr() not in storages]
        self.size = max([self.size, *(t.numel() for t in new)])
        return out


@pytest.mark.parametrize('score, layout', [
    ('pc', 'channels_last'), ('dp', 'channels_last'), ('dp', 'contiguous')])
def test_only_reads_the_local_features(score, layout):
    att, l, g = level(16, score=score), LAYOUTS[layout](random(2, 16, 8, 8)), random(2, 16)
    with torch.no_grad(), Largest() as ours: att(l, g)
    with torch.no_grad(), Largest() as theirs: broadcast(att, l, g)
    assert ours.size < l.numel() <= theirs.size


def test_vmap_and_grad():
    att = level(4, 6, score='dp')
    l, g = random(3, 2, 4, 5, 5), random(3, 2, 6, seed=1)
    ga, a = vmap(att)(l, g)
    for i in range(3):
        torch.testing.assert_close(ga[i], att(l[i], g[i])[0])
        torch.testing.assert_close(a[i], att(l[i], g[i])[1])


@pytest.mark.parametrize('score', SCORES)
def test_gradients_image_by_image(score):
    "Per-sample gradients of the parameters, by torch.func, sum to the batch's."
    att, l, g = level(4, score=score), random(3, 4, 2, 2), random(3, 4, seed=1)
    def loss(params, l, g): return functional_call(att, params, (l[None], g[None]))[0].square().sum()
    params = {k: v.detach() for k, v in att.named_parameters()}
    each = vmap(grad(loss, argnums=(0, 2)), in_dims=(None, 0, 0))(params, l, g)
    g.requires_grad_()
    att(l, g)[0].square().sum().backward()
    torch.testing.assert_close(each[1], g.grad)
    for k, p in att.named_parameters(): torch.testing.assert_close(each[0][k].sum(0), p.grad)


@pytest.mark.parametrize('score', SCORES)
def test_compiles_without_a_break_in_the_graph(score):
    att, l, g = level(4, 6, score=score), random(2, 4, 3, 3).requires_grad_(), random(2, 6, seed=1)
    torch._dynamo.reset()
    fast = torch.compile(att, backend='eager', fullgraph=True)       # traces only: no compiler is needed
    torch.testing.assert_close(fast(l, g), att(l, g))
    ours, compiled = (torch.autograd.grad(f(l, g)[0].sum(), l) for f in (att, fast))
    torch.testing.assert_close(compiled, ours)


@pytest.mark.parametrize('score, norm', product(SCORES, NORMS))
def test_meta_device(score, norm):
    with torch.device('meta'): att = Attention(256, 512, score, norm)
    ga, a = att(torch.empty(64, 256, 128, 128, device='meta'), torch.empty(64, 512, device='meta'))
    assert ga.shape == (64, 256) and a.shape == (64, 128, 128) and a.device.type == 'meta'


@pytest.mark.parametrize('norm', NORMS)
def test_extreme_scores_stay_finite(norm):
    for dtype in torch.float32, torch.bfloat16, torch.float16:
        c = torch.tensor([[3e4, -3e4, 0., 3e4]], dtype=dtype, requires_grad=True)
        a = normalize(c, norm)
        a.square().sum().backward()
        assert a.isfinite().all() and c.grad.isfinite().all()
    assert (entropy(normalize(torch.zeros(1, 9))) - torch.tensor(9.).log()).abs() < 1e-6


# Halves

@contextlib.contextmanager
def half_of(kind):
    "A way of computing in halves: what it makes of an input, within the autocast that belongs to it."
    name, how = kind.split()
    dtype = dict(float16=torch.float16, bfloat16=torch.bfloat16)[name]
    with torch.autocast('cpu', dtype, enabled=how != 'inputs'):
        yield dtype, (lambda x: x if how == 'autocast' else x.to(dtype))


HALVES = 'float16 inputs', 'bfloat16 inputs', 'float16 autocast', 'float16 both'


def loud(dtype, C=64, G=None, seed=0):
    "Features and a query, exact in `dtype`, whose scores go far beyond 65504 and differ by less than their rounding."
    l, g = (random(*s, seed=seed + k).abs().to(dtype).float() for k, s in enumerate(((2, C, 4, 6), (2, G or C))))
    return (l * 128).round(), (g * 128).round()


def sharp(**kw):
    att = Attention(64, **dict(dropout=0.) | kw).eval()
    with torch.no_grad():
        for p in att.parameters(): p.copy_((p * 64).round() / 64)                # exact in either half
        if att.score == 'pc': att.u.weight.copy_((random(1, att.u.in_features, seed=9) * 64).round())
    return att


@pytest.mark.parametrize('kind, score, norm, project', [
    (kind, score, norm, project) for kind, score, norm in product(HALVES, ('dp', 'pc'), NORMS)
    for project in (None, 'l')])
def test_scores_of_halves_are_those_of_float32(kind, score, norm, project):
    "Where rounded scores would tie, or be infinite and the map NaN. bfloat16 keeps fewer digits of the inputs."
    torch.manual_seed(0)
    att = sharp(score=score, norm=norm, temperature=3., **dict(g_channels=48, project=project) if project else {})
    with half_of(kind) as (dtype, half):
        l, g = (half(v.to(dtype).float()) for v in loud(dtype, G=48 if project else None))
        own = copy.deepcopy(att).to(dtype) if kind.endswith('inputs') else att
        got = *own(l, g), own.scores(l, g)
        again = own.pool(l, got[1])
    with torch.autocast('cpu', enabled=False): want = *att(l.float(), g.float()), att.scores(l.float(), g.float())
    if score == 'dp' and not project: assert want[2].abs().max() > 65504
    assert got[0].dtype == l.dtype and got[1].dtype == got[2].dtype == torch.float32
    torch.testing.assert_close(got[2], want[2], rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(got[1], want[1], rtol=2e-2, atol=1e-4)
    for ga in (got[0], again): torch.testing.assert_close(ga.float(), want[0], rtol=.01, atol=.5)


@pytest.mark.parametrize('kind', HALVES)
@pytest.mark.parametrize('score', ['dp', 'pc'])
def test_gradients_of_loud_halves_are_those_of_float32(score, kind):
    att, grads = sharp(score=score, temperature=3.), []
    to_ga, to_a = random(2, 64, seed=5), random(2, 4, 6, seed=6)
    for way in kind, None:
        with half_of(way) if way else contextlib.nullcontext((torch.float32, lambda x: x)) as (dtype, half):
            own = copy.deepcopy(att).to(half(to_a).dtype)
            l, g = (half(v).requires_grad_() for v in loud(torch.bfloat16))
            ga, a = own(l, g)
        grads.append(torch.autograd.grad((ga.float() * to_ga).sum() + (a * to_a).sum(), (l, g)))
    for got, want in zip(*grads):
        assert got.isfinite().all()
        torch.testing.assert_close(got.float(), want, rtol=.05, atol=.02 * want.abs().max().item())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('score, norm', product(SCORES, NORMS))
def test_halves_on_meta(score, norm, dtype):
    with torch.device('meta'): att = Attention(256, 512, score, norm).to(dtype)
    l, g = torch.empty(64, 256, 16, 16, device='meta', dtype=dtype), torch.empty(64, 512, device='meta', dtype=dtype)
    ga, a = att(l.requires_grad_(), g)
    (ga.float().sum() + a.sum()).backward()
    assert ga.dtype == l.grad.dtype == dtype and a.dtype == att.scores(l, g).dtype == torch.float32


def test_bfloat16_that_was_asked_for_stays_so():
    "Its range is that of float32, and trainings that began with it go on to the bit."
    l, g = random(2, 16, 4, 6), random(2, 16, seed=1)
    with torch.autocast('cpu', torch.bfloat16): c = dp_scores(l, g)
    assert c.dtype == torch.bfloat16 and in_float32(l.bfloat16()) and not in_float32(l)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_whole_network_in_halves(dtype):
    net = create_model('vgg_att2_concat_dp', 3, 1 / 16, early_pools=1).eval()
    x = torch.rand(2, 3, 32, 32, generator=keyed_rng('x')).to(dtype)
    with torch.no_grad():
        for k in (net.glob.fc[-1].weight, net.glob.fc[-1].bias): k.mul_(1e4)         # a loud query
        want, got = net(x.float()), copy.deepcopy(net).to(dtype)(x)
    assert all(m.isfinite().all() for m in (*want.maps, *got.maps, got.logits))
    assert got.logits.dtype == dtype and all(m.dtype == torch.float32 for m in got.maps)


def test_entropy_of_halves():
    a = random(2, 400).softmax(1)
    torch.testing.assert_close(entropy(a.half()), entropy(a), rtol=2e-3, atol=0)
    assert entropy(a.half()).dtype == torch.float32


L, G = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3)


@pytest.mark.parametrize('call, words', [
    (lambda: flatten_positions(L[0]), ('(3, 4, 4)', 'expected [B,C,H,W]')),
    (lambda: dp_scores(L, G[:, :2]), ('(2, 2)', '(2, 3, 4, 4)', 'expected (2, 3)', 'project')),
    (lambda: dp_scores(L, G[:1]), ('(1, 3)', 'expected (2, 3)')),
    (lambda: pc_scores(L, G[:, :2], torch.zeros(3)), ('(2, 2)', 'expected (2, 3)')),
    (lambda: normalize(G, 'max'), ("normalisation 'max'", 'softmax')),
    (lambda: normalize(G, temperature=0), ('temperature 0', 'above 0')),
    (lambda: normalize(G, temperature=float('nan')), ('temperature nan', 'above 0')),
    (lambda: Attention(3, score='cp'), ("score 'cp'", "'pc'")),
    (lambda: Attention(3, norm='softmaxx'), ("normalisation 'softmaxx'", "'softmax'")),
    (lambda: Attention(3, temperature=-1.), ('temperature -1', 'above 0')),
    (lambda: dp_scores(L[0], G), ('(3, 4, 4)', 'expected [B,C,H,W]')),
    (lambda: Attention(3, score='uniform')(L[0], G), ('(3, 4, 4)', 'expected', '[B,C,H,W]')),
    (lambda: Attention(4)(L, G), ('(2, 3, 4, 4)', 'expected')),
    (lambda: Attention(3, score='pc')(L, G[:1]), ('(1, 3)', 'expected')),
    (lambda: Attention(3, 5).eval()(L, G), ('(2, 3)', 'expected')),
], ids=words_id)
def test_refusals(call, words):
    with refuses(*words): call()


def test_attend_is_a_weighted_sum():
    l, a = random(2, 3, 2, 2), random(2, 4, seed=1).softmax(1)
    torch.testing.assert_close(attention_pool(l, a), torch.einsum('bchw,bhw->bc', l, a.view(2, 2, 2)))
