"""Attacks: inside the box to the last bit, equal to closed forms and to Captum, in order of strength up to 8/255."""
import json
import re
from fractions import Fraction
from pathlib import Path

import captum.robust
import pytest
import torch
import torch.nn as nn
from helpers import differing, refuses, tiny_net

from ltpa.adversarial import (
    ATTACKS, EPS, ball, crossed, fgsm, fgsm_answers, input_gradient, margin_loss, noise, pgd, so_far, square)
from ltpa.core import keyed_rng
from ltpa.models import load_pretrained, load_weights, save_weights
from ltpa.saliency import Logits
from ltpa.cli import build_parser

MODELS = ['vgg_att3_concat_pc', 'vgg_att2_indep_dp', 'vgg_trunk']
QUICK = dict(noise=dict(draws=2), fgsm={}, pgd=dict(steps=3, restarts=2), square=dict(queries=8))


def images(n=4, size=32, dtype=torch.float32):
    "Noise with black and white in it, where the box is cut off."
    x = torch.rand(n, 3, size, size, generator=keyed_rng('attacks', size)).to(dtype)
    x[:, :, :4], x[:, :, 4:8] = 0, 1
    return x


def few(name, net, x, eps, **kw): return ATTACKS[name](net, x, eps, **QUICK[name] | kw)


def answers(net, x):
    with torch.no_grad(): return net.eval().logits(x).argmax(1)


@pytest.fixture(scope='module')
def nets():
    "Tiny networks whose BatchNorms have seen data, so that answers differ and gradients flow."
    made = {}
    for name in MODELS:
        net = tiny_net(name, classes=4).train()
        with torch.no_grad():
            for k in range(5): net(images(8) * .8 + k / 50)
        made[name] = net.eval()
    return made


@pytest.fixture(scope='module')
def trained():
    return {name: load_pretrained(f'cluttered_fashion/{name}')
            for name in ('vgg_att3_concat_pc', 'vgg_gap', 'vgg_trunk')}


# The box

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize('eps', [0, 1e-9, 1/255, .1, 8/255, 1/3, 32/255, 1.])
def test_box_is_exact(eps, dtype):
    x = torch.cat([torch.tensor([0., 1., 1e-45, 1e-9, .5, 8/255, 1 - 6e-8]),
                   torch.rand(500, generator=keyed_rng('box'))]).to(dtype)
    for side in ball(x, eps):
        assert side.dtype == dtype and side.min() >= 0 and side.max() <= 1
        for a, b in zip(side.double().tolist(), x.double().tolist()):
            assert abs(Fraction(a) - Fraction(b)) <= Fraction(eps)
        near = torch.finfo(dtype).eps * 2
        assert ((side - x).abs().double() >= min(eps, .5) - near)[(side > 0) & (side < 1)].all(), 'the box is too small'
    if not eps: assert all(side.equal(x) for side in ball(x, eps))


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('model', MODELS)
def test_stays_in_the_box(nets, model, name):
    x = images()
    for eps in 1/255, 8/255, 1.:
        out = few(name, nets[model], x, eps)
        assert out.dtype == x.dtype and out.shape == x.shape and not out.requires_grad
        assert ((out.double() - x.double()).abs() <= eps).all() and out.min() >= 0 and out.max() <= 1
        assert not out.equal(x)
    assert few(name, nets[model], x, 0).equal(x)


# The network is as before

@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('model', MODELS)
def test_leaves_the_network_alone(model, name):
    net = tiny_net(model, dropout=True)
    net.logits(images()).sum().backward()
    net.trunk.stages[0].eval(); next(net.parameters()).requires_grad_(False)
    def state():
        grads = {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}
        return ({k: v.clone() for k, v in net.state_dict().items()}, grads,
                [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()])
    before, x = state(), images()
    random = torch.get_rng_state()
    few(name, net, x, 8/255)
    after = state()
    assert not differing(before[0], after[0]) and not differing(before[1], after[1]) and before[2:] == after[2:]
    assert x.equal(images()) and not x.requires_grad and random.equal(torch.get_rng_state())


@pytest.mark.parametrize('name', ATTACKS)
def test_same_seed_same_pictures(nets, name):
    net, x = nets[MODELS[0]], images()
    with torch.inference_mode(): first = few(name, net, x, 2/255)
    torch.manual_seed(5)
    assert first.equal(few(name, net, x, 2/255))
    if name in ('noise', 'square'): assert not first.equal(few(name, net, x, 2/255, seed=1))


# Right

def test_linear_in_closed_form():
    w = torch.randn(3, 48, generator=keyed_rng('closed')).double()
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    with torch.no_grad(): net[1].weight.copy_(w); net[1].bias.zero_()
    x = (.4 + .2 * torch.rand(20, 3, 4, 4, generator=keyed_rng('closed', 'x'))).double()
    y = net(x).argmax(1)
    away = w[y] - net(x).softmax(1).detach() @ w                      # minus the slope of cross-entropy
    want = x - .05 * away.view_as(x).sign()
    torch.testing.assert_close(fgsm(net, x, .05), want, atol=1e-12, rtol=0)
    # With two classes no attack whatever is better than FGSM.
    two = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).double()
    y = two(x).argmax(1)
    best = margin_loss(two(fgsm(two, x, .05)), y)
    for other in (pgd(two, x, .05, steps=5, restarts=2), square(two, x, .05), noise(two, x, .05)):
        assert (margin_loss(two(other), y) <= best + 1e-9).all()


@pytest.mark.parametrize('labels', [None, [0, 1, 2, 3]])
@pytest.mark.parametrize('model', MODELS)
def test_equal_to_captum(nets, model, labels):
    net, x = nets[model].double(), images(dtype=torch.float64)
    y = answers(net, x) if labels is None else torch.tensor(labels)
    theirs = captum.robust.FGSM(Logits(net), nn.CrossEntropyLoss(reduction='none'), 0, 1)
    theirs.zero_thresh = 0
    want = theirs.perturb(x.clone().requires_grad_(), 8/255, y).detach()
    torch.testing.assert_close(fgsm(net, x, 8/255, labels), want, atol=1e-9, rtol=0)
    net.float()


def test_margin():
    z, y = torch.tensor([[3., 1., 2.], [0., 5., 6.]]), torch.tensor([0, 1])
    assert margin_loss(z, y).tolist() == [-1., 1.]
    # Cross-entropy is silent where a network is sure; the margin speaks.
    class Sure(nn.Module):
        def forward(self, x): return torch.stack([x.sum((1, 2, 3)) * 1e4, torch.zeros(len(x))], 1)
    assert (input_gradient(Sure(), images()) == 0).all()
    assert (input_gradient(Sure(), images(), loss='margin') != 0).all()


@pytest.mark.parametrize('size', [1, 3])
def test_few_at_a_time(nets, size):
    net, x = nets['vgg_trunk'].double(), images(5, dtype=torch.float64)
    whole, parts = fgsm(net, x, 4/255), fgsm(net, x, 4/255, internal_batch_size=size)
    assert whole.equal(parts)
    net.float()


# In order of strength up to 8/255; beyond, a step of FGSM overshoots and noise catches up

@pytest.mark.parametrize('model', ['vgg_att3_concat_pc', *(pytest.param(m, marks=pytest.mark.whole) for m in ('vgg_gap', 'vgg_trunk'))])
def test_order_of_strength(trained, model):
    from ltpa.data import ClutteredFashion
    net, data = trained[model], ClutteredFashion('test', 32)
    x, labels = data.render(slice(16))[0] / 255, data.labels[:16]
    clean = answers(net, x)
    got, before = fgsm_answers(net, x), 0
    for eps, one in zip(EPS[1:5], (got != clean)[1:5]):
        many = answers(net, pgd(net, x, eps, steps=5, restarts=2)) != clean
        chance = answers(net, noise(net, x, eps, draws=10)) != clean
        assert (many | ~one).all(), 'FGSM fooled a picture that PGD did not'
        assert chance.sum() < one.sum() <= many.sum()
        assert many.sum() >= before, f'PGD is weaker at {eps} than at a smaller size'
        before = many.sum()
    for now, eps in zip(got, EPS): assert now.equal(answers(net, fgsm(net, x, eps))), eps
    standing = (clean == labels) & ~so_far(got != clean)
    assert standing.equal(~so_far(fgsm_answers(net, x, labels=labels) != labels))
    assert standing[-1].sum() < standing[0].sum() / 2


def test_so_far():
    happened = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 1]]).bool()
    assert so_far(happened).tolist() == [[False] * 3, [True, False, False], [True, False, True]]


class Unmoved(nn.Module):
    "Class 0 whatever the picture; keeps the pictures it was asked about."
    def __init__(self): super().__init__(); self.asked = []
    def forward(self, x):
        self.asked.append(x.clone())
        return torch.tensor([[1., 0.]]).expand(len(x), -1)


def test_squares_shrink_as_published():
    """Andriushchenko et al. 2020, with p = .8: of 10,000 queries the area halves after 10, 50, 200, 500, ...

    Where nothing helps each picture is the striped one with one square repainted, as high as its side unless no stripe
    differs from the paint.
    """
    net, x, halvings = Unmoved(), torch.full((1, 3, 32, 32), .5), (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    square(net, x, .1, labels=0, queries=1000)
    stripes, *tried = net.asked[-1001:]
    heights = [int((t != stripes).any(1).any(2).sum()) for t in tried]
    for k, height in enumerate(heights):
        area = .8 / 2**sum(10 * k >= h for h in halvings) * 32 * 32
        side = max(1, round(area**.5))
        assert height == side or height == 0 and side < 8, f'query {k}: {height} rows'
    assert sum(h > 0 for h in heights) > 700


def test_square_begins_with_fair_stripes_and_reaches_every_place():
    net, x = Unmoved(), torch.full((50, 3, 8, 8), .5)
    square(net, x, .1, labels=0, queries=400)
    stripes, *tried = net.asked[-401:]
    assert stripes.eq(stripes[:, :, :1]).all() and set(stripes.unique().sub(.5).sign().tolist()) == {-1, 1}
    assert abs((stripes > .5).float().mean() - .5) < 5 * .5 / (50 * 3 * 8)**.5
    painted = torch.stack(tried).ne(stripes).any(2).float().mean((0, 1))
    assert (painted > 0).all(), 'a pixel is never painted'
    assert painted[0, 0] == pytest.approx(painted[-1, -1].item(), rel=.5)


def test_noise_keeps_the_worst_draw(nets):
    net, x = nets['vgg_trunk'], images()
    y = answers(net, x)
    leads = [margin_loss(net.logits(noise(net, x, 8/255, draws=k)), y).detach() for k in (1, 2, 5, 20)]
    assert all((a <= b).all() for a, b in zip(leads, leads[1:])) and (leads[0] < leads[-1]).any()


def test_pgd_can_cross_its_box(monkeypatch):
    "Steps of 2.5 radii in all (Madry et al. 2018): from every random start every corner of the box is in reach."
    calls, perturb = [], captum.robust.PGD.perturb
    def watch(self, x, radius, step_size, step_num, target, **kw):
        calls.append((radius, step_size, step_num, kw))
        return perturb(self, x, radius, step_size, step_num, target, **kw)
    monkeypatch.setattr(captum.robust.PGD, 'perturb', watch)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    with torch.no_grad(): net[1].weight.mul_(.01); net[1].bias.copy_(torch.tensor([9., 0.]))
    pgd(net, images(), .1, steps=5, restarts=3)
    assert len(calls) == 3
    for radius, step_size, step_num, kw in calls:
        assert radius == .1 and step_num == 5 and kw['random_start']
        assert step_size * step_num == pytest.approx(2.5 * radius)


def test_sizes_of_the_paper():
    sizes = [255 * eps for eps in EPS]
    assert sizes[0] == 0 and sizes[1:6] == pytest.approx([1, 2, 4, 8, 16]) and sizes == sorted(sizes)


def test_square_needs_no_gradient():
    class Blunt(nn.Module):
        def forward(self, x):
            x = (x * 64).round().mean((1, 2, 3))                # no gradient comes through
            return torch.stack([x, torch.full_like(x, 32.)], 1)
    x = torch.full((4, 3, 8, 8), .52)
    assert (fgsm(Blunt(), x, .05) == x).all()
    assert (Blunt()(square(Blunt(), x, .05, queries=300)).argmax(1) == 1).all()


# Refusals

@pytest.mark.parametrize('name', ATTACKS)
def test_refusals(nets, name):
    net, x = nets[MODELS[0]], images()
    attack = lambda *args, **kw: few(name, net, *args, **kw)
    with refuses('eps 8', 'expected a number from 0 to 1', 'did you mean 8/255?'): attack(x, 8)
    for eps in -.1, float('nan'), 300, True, None, '8/255':
        with refuses(f'eps {eps!r}', '0 to 1', '8/255'): attack(x, eps)
    for odd in x * 2, x - .5:
        with refuses('0..1', 'normali'): attack(odd, .1)
    with refuses('NaN or infinite', 'repair'): attack(x / 0 * 0, .1)
    with refuses('4', 'a class from 0 to 3'): attack(x, .1, labels=4)
    with refuses('internal_batch_size 0'): attack(x, .1, internal_batch_size=0)


def test_refused_options(nets):
    net, x = nets[MODELS[0]], images()
    for f in fgsm, pgd:
        with refuses('loss', "'mrgin'", "did you mean 'margin'"): f(net, x, .1, loss='mrgin')
    for f, option in (noise, 'draws'), (pgd, 'steps'), (pgd, 'restarts'), (square, 'queries'):
        for value in 0, 1.5:
            with refuses(option, value, 'at least 1'): f(net, x, .1, **{option: value})
    for eps in (), (.2, .1):
        with refuses('rising'): fgsm_answers(net, x, eps)
    with refuses('did you mean 8/255?'): fgsm_answers(net, x, (0, 8))


# The tool

def test_tool(tmp_path, monkeypatch):
    import measure_fgsm
    monkeypatch.setattr(measure_fgsm, 'ROOT', tmp_path)
    files = []
    for name in 'vgg_att2_concat_pc', 'vgg_trunk':
        for seed in 0, 1:
            files.append(tmp_path / f'{name}{seed}.safetensors')
            how = dict(source='cluttered_fashion', size=32, scale=None)
            save_weights(tiny_net(name, 10, seed), files[-1], source=how, seed=seed)
    measure_fgsm.main(['--weights', *map(str, files), '--images', '12', '--few', '4', '--steps', '2', '--restarts', '1',
                       '--queries', '2', '--device', 'cpu'])
    result = json.loads((tmp_path / 'results' / 'fgsm.json').read_text())
    rows = {(r['model'], r['attack'], r['eps']): r for r in result['rows']}
    for model in 'vgg_att2_concat_pc', 'vgg_trunk':
        curve = [rows[model, 'fgsm', e] for e in (0, 1, 2, 4, 8, 16, 32)]
        assert curve[0]['fooled'] == 0
        assert all(r['seeds'] == 2 and 'fooled_sd' in r and ('pointing_2' in r) == ('att' in model) for r in curve)
        names = 'noise', 'fgsm', 'fgsm_margin', 'pgd', 'square', 'transfer'
        few = {k: rows[model, f'{k}_few', 2]['fooled'] for k in names}
        assert rows[model, 'any_few', 2]['fooled'] >= max(few.values()) and few['pgd'] >= few['fgsm']
        assert {r['seed'] for r in result['runs'] if r['model'] == model} == {0, 1}
    _, x, labels, _ = measure_fgsm.pictures(load_weights(files[0]), None, 12)
    for file, runs in zip(files, (result['runs'][k:k + 15] for k in range(0, 60, 15))):     # counted picture by picture
        got = fgsm_answers(load_weights(file), x)
        right, change = got[0] == labels, got != got[0]
        for k, r in enumerate(runs[:7]):
            standing = [ok and not change[:k + 1, i].any() for i, ok in enumerate(right)]
            assert round(r['fooled'] * 12) == change[k].sum() and round(r['standing'] * 12) == sum(standing)
            assert r['lost'] == pytest.approx(1 - sum(standing) / max(right.sum(), 1) if right.any() else 0)


# The recipe of the lesson

def test_recipe_starts_birds_from_cifar100():
    text = (Path(__file__).parents[1] / 'nbs' / '13_fgsm.ipynb').read_text()
    cells = [''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown']
    recipe = next(c for c in cells if 'ltpa train cub/' in c).replace('\\\n', ' ')
    made = []
    for line in re.findall(r'^ {4}ltpa (train .*)$', recipe, re.M):
        a = build_parser().parse_args(line.split())
        assert (a.init in made) == a.target.startswith('cub/'), line
        made.append(f'runs/{a.target.replace("/", "-")}-seed0/weights.safetensors')
    assert len(made) == 4 and all(m in recipe for m in made)


def test_crossed_attacks_are_what_they_say():
    "By hand on one network: features or map of the attacked picture in the place of the clean one."
    net, x = load_pretrained('cluttered_fashion/vgg_att3_concat_pc'), images(30)
    x[:, :, :8] = .5
    attacked = fgsm(net, x, 8 / 255)
    with torch.no_grad():
        (l, _), (l_adv, _) = net.forward_features(x), net.forward_features(attacked)
        m, m_adv, said = net(x).maps, net(attacked).maps, answers(net, x)
        changed = [(net.pool(a, b).logits.argmax(1) != said).float().mean().item() for a, b in ((l_adv, m), (l, m_adv), (l_adv, m_adv))]
    assert list(crossed(net, x, attacked).values()) == pytest.approx(changed, abs=1e-6) and changed[1] not in (0, changed[0])
    assert changed[2] == (answers(net, attacked) != said).float().mean().item()
    assert set(crossed(net, x, x).values()) == {0}
