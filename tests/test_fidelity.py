"""The switches between paper and authors' code: each changes what it says and nothing else."""
import pytest
import torch
import torch.nn.functional as F

from helpers import differing, refuses
from ltpa.core import keyed_rng, seed_everything
from ltpa.data import ClutteredFashion
from ltpa.names import PRESETS, SWITCHES, switches
from ltpa.models import create_model, load_weights, fit_normalization, save_weights, init_from, yuv_lcn
from ltpa.names import STEPS, get_recipe
from ltpa.training import make_optimizer

X = torch.rand(4, 3, 32, 32, generator=keyed_rng('x'))


def net(name='vgg_att3_concat_pc', **kw):
    seed_everything(0)
    return create_model(name, 5, **dict(width=1 / 16, early_pools=1, dropout=False) | kw)


def gradients(n):
    n.logits(X).square().sum().backward()
    return {k: p.grad for k, p in n.named_parameters()}


def both(name='vgg_att3_concat_pc', **kw):
    "A network without and with switches, the weights that they share made equal."
    a, b = net(name), net(name, **kw)
    own, theirs = b.state_dict(), a.state_dict()
    b.load_state_dict({k: theirs[k] if k in theirs and theirs[k].shape == v.shape else v for k, v in own.items()})
    return a, b


def test_defaults_are_the_first_of_each_switch():
    for name in ('vgg_att3_concat_pc', 'vgg_att2_indep_dp', 'vgg_pan', 'vgg_trunk', 'vgg_gap'):
        given = {k: SWITCHES[k][0] for k in switches(name) if k in SWITCHES}
        seed_everything(0); a = create_model(name, width=1 / 16)
        seed_everything(0); b = create_model(name, width=1 / 16, **given)
        assert not differing(a.state_dict(), b.state_dict())
        assert a.eval().logits(X).equal(b.eval().logits(X))


def test_branch_grad_changes_gradients_only():
    a, b = both(branch_grad='mean')
    assert not differing(a.state_dict(), b.state_dict())
    assert a.logits(X).equal(b.logits(X))
    ga, gb = gradients(a), gradients(b)
    changed = set(differing(ga, gb))
    assert changed and all(k.startswith('trunk.') for k in changed)                # under pc nothing reaches g
    for k in changed:
        if k.startswith('trunk.stages.2'): torch.testing.assert_close(gb[k], ga[k] / 2, rtol=1e-4, atol=1e-8)


def test_branch_grad_divides_what_g_receives_by_the_levels():
    a, b = both('vgg_att2_concat_dp', branch_grad='mean')
    ga, gb = gradients(a), gradients(b)
    for k in ga:
        if k.startswith('glob.'): torch.testing.assert_close(gb[k], ga[k] / 2, rtol=1e-4, atol=1e-8)
        if k.startswith(('head.', 'attention.')): assert ga[k].equal(gb[k])


def test_plain_head_is_the_linear_layer_alone():
    a, b = both(head='plain')
    a, b = a.eval(), b.eval()
    out = b(X)
    assert all(x.equal(y) for x, y in zip(a(X).maps, out.maps))
    assert all(x.equal(y) for x, y in zip(a(X).descriptors, out.descriptors))
    torch.testing.assert_close(out.logits, b.head.linear[0](torch.cat(out.descriptors, 1)))
    assert not [k for k in b.state_dict() if k.startswith('head.norm')]


def test_product_of_experts_multiplies():
    a, b = both('vgg_att2_indep_pc', indep='product')
    a, b = a.eval(), b.eval()
    assert not differing(a.state_dict(), b.state_dict())
    d = b(X).descriptors
    p = [f(n(v)).softmax(1) for f, n, v in zip(b.head.linear, b.head.norm, d)]
    product = p[0] * p[1]
    torch.testing.assert_close(b.logits(X).softmax(1), product / product.sum(1, keepdim=True))
    torch.testing.assert_close(a.logits(X).exp(), (p[0] + p[1]) / 2)


def test_mapping_l_up_is_mapping_the_query_down():
    a, b = both('vgg_att3_concat_dp', project='l')
    a, b = a.eval(), b.eval()
    level1 = b.attention[0]
    assert set(dict(b.named_parameters())) - set(dict(a.named_parameters())) == {
        'attention.0.up.weight', 'attention.0.up.bias'}
    l, g = (taps := b.trunk(b.normalize(X)))[0], b.glob(taps[-1])
    up = F.conv2d(l, level1.up.weight[:, :, None, None], level1.up.bias)
    by_hand = (up * g[:, :, None, None]).sum(1).flatten(1).softmax(1)
    torch.testing.assert_close(b(X).maps[0].flatten(1), by_hand, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(b(X).descriptors[0], (l.flatten(2) * by_hand[:, None]).sum(2), rtol=1e-4, atol=1e-5)
    assert all(x.equal(y) for x, y in zip(a(X).maps[1:], b(X).maps[1:]))


def test_mapping_l_up_under_pc_still_ignores_g():
    b = net(project='l').train()
    grads = gradients(b)
    assert all(not g.any() for k, g in grads.items() if k.startswith('glob.') or k.endswith('up.bias'))
    assert grads['attention.0.up.weight'].any()


def test_a_loud_u():
    a, b = net(width=1 / 2), net(width=1 / 2, u='msr')
    us = [f'attention.{k}.u.weight' for k in range(3)]
    assert differing(a.state_dict(), b.state_dict()) == us
    assert all(1.2 < b.get_parameter(k).std() < 1.6 and a.get_parameter(k).std() < .02 for k in us)


def test_where_u_starts_can_be_a_number():
    a, b = net(width=1 / 2), net(width=1 / 2, u=.3)
    us = [f'attention.{k}.u.weight' for k in range(3)]
    assert differing(a.state_dict(), b.state_dict()) == us and b.config['u'] == .3
    assert all(.25 < b.get_parameter(k).std() < .35 for k in us)
    for bad in 0, -.1, 11, float('nan'), 'loud', True, None:
        with refuses(f'u {bad!r}; expected', 'a number above 0, at most 10'): net(u=bad)


def test_gains_between_0_and_1():
    a, b = net(), net(bn_gain='uniform')
    norms = torch.nn.BatchNorm1d, torch.nn.BatchNorm2d
    gains = [f'{n}.weight' for n, m in b.named_modules() if isinstance(m, norms)]
    assert sorted(differing(a.state_dict(), b.state_dict())) == sorted(gains)
    drawn = torch.cat([b.get_parameter(k) for k in gains])
    assert drawn.min() >= 0 and drawn.max() <= 1 and abs(drawn.mean() - .5) < .1


def test_local_contrast_ignores_light_and_keeps_color():
    x = ClutteredFashion('test', n=8).tensors(0)[0] / 255
    y = yuv_lcn(x)
    torch.testing.assert_close(yuv_lcn(.5 * x)[:, :1], y[:, :1], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(yuv_lcn(.5 * x)[:, 1:], .5 * y[:, 1:])
    gray = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert yuv_lcn(gray)[:, 1:].abs().max() < 1e-4
    assert yuv_lcn(torch.full((1, 3, 8, 8), .3)).isfinite().all()


def test_local_contrast_against_plain_loops():
    x = ClutteredFashion('test', n=1).tensors(0)[0] / 255
    gray = (x * torch.tensor([.299, .587, .114])[:, None, None]).sum(1)[0]
    w = [2.718281828 ** (-(k * k) / (2 * 1.75**2)) for k in range(-3, 4)]

    def around(v, i, j):
        near = [(w[a + 3] * w[b + 3], v[i + a, j + b]) for a in range(-3, 4) for b in range(-3, 4)
                if 0 <= i + a < 32 and 0 <= j + b < 32]
        return sum(p * q for p, q in near) / sum(p for p, _ in near)
    less = torch.tensor([[gray[i, j] - around(gray, i, j) for j in range(32)] for i in range(32)])
    for i, j in ((0, 0), (5, 31), (16, 16)):
        expected = less[i, j] / max(1e-4, around(less * less, i, j) ** .5)
        torch.testing.assert_close(yuv_lcn(x)[0, 0, i, j], expected, rtol=1e-3, atol=1e-4)


def test_colors_are_those_of_television():
    "BT.601: U = .492 (B - Y) and V = .877 (R - Y), with Y = .299 R + .587 G + .114 B."
    red, green, blue = X.unbind(1)
    y = .299 * red + .587 * green + .114 * blue
    for got, want in zip(yuv_lcn(X)[:, 1:].unbind(1), (.492 * (blue - y), .877 * (red - y))):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-3)


def test_fit_normalization_is_in_the_networks_own_colors():
    images = ClutteredFashion('train', n=300).tensors(0)[0]
    for color in SWITCHES['color']:
        n = fit_normalization(net(color=color), images)
        seen = n.normalize(images / 255)
        torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-3)
        torch.testing.assert_close(seen.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-3)


@pytest.mark.parametrize('preset', PRESETS)
def test_a_preset_sets_its_switches_and_survives_a_round_trip(preset, tmp_path):
    seed_everything(0)
    n = create_model('vgg_att3_concat_pc', 5, 1 / 16, preset, early_pools=1).eval()
    assert {k: n.config[k] for k in PRESETS[preset] if k in n.config} == {
        k: v for k, v in PRESETS[preset].items() if k in switches(n.name)}
    back = load_weights(save_weights(n, tmp_path / 'w.safetensors'))
    assert back.config == n.config
    torch.testing.assert_close(back.logits(X), n.logits(X), rtol=.05, atol=.05)


def test_what_is_asked_for_beats_the_preset():
    assert create_model('vgg_att2_concat_pc', width=1 / 16, preset='official_code', u='small').config['u'] == 'small'


def test_bad_switches():
    with refuses("unknown preset 'papper'", 'paper'): create_model('vgg', preset='papper')
    with refuses("head 'none'", "'bn', 'plain'"): create_model('vgg_att2_concat_pc', head='none')
    with refuses("unknown switch 'head'", 'known: width'): create_model('vgg_trunk', head='plain')
    with refuses('levels is part of the name'): create_model('vgg_att2_concat_pc', levels=3)


@pytest.mark.parametrize('name,sides', [('vgg', ()), ('vgg_trunk', ()), ('vgg_gap', ()), ('vgg_pan', (16, 8)),
                                        ('vgg_att2_concat_pc', (16, 8)), ('vgg_att3_concat_pc', (32, 16, 8))])
def test_birds_come_at_80_pixels(name, sides):
    with torch.no_grad():
        n = create_model(name, 200, 1 / 16, layout='cub').eval()
        assert n(torch.rand(1, 3, 80, 80)).logits.shape == (1, 200)
        assert tuple(m.shape[1] for m in n(torch.rand(1, 3, 80, 80)).maps) == sides
        with refuses('72x80 pixels', 'multiples of'): n(torch.rand(1, 3, 72, 80))
        assert all(m.shape[1:] == (2 * s, s) for m, s in zip(n(torch.rand(1, 3, 160, 80)).maps, sides))


def test_birds_first_level_is_pooled_by_5_and_doubled():
    n = net(layout='cub', early_pools=0).eval()
    x = torch.rand(1, 3, 80, 80, generator=keyed_rng('bird'))
    with torch.no_grad(): fine, level = n.trunk(n.normalize(x))[0], n.forward_features(x)[0][0]
    largest = fine.view(*fine.shape[:2], 16, 5, 16, 5).amax((3, 5))
    assert level.equal(largest.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_birds_start_from_a_network_for_small_pictures(tmp_path):
    for name in ('vgg', 'vgg_att3_concat_pc', 'vgg_gap'):
        seed_everything(1)
        old = create_model(name, 7, 1 / 16)
        path = save_weights(old, tmp_path / f'{name}.safetensors')
        new = init_from(create_model(name, 5, 1 / 16, layout='cub'), path)
        stored = {k: v.half().float() if v.ndim > 1 else v for k, v in old.state_dict().items()}
        trunk = {k: v for k, v in new.state_dict().items() if k.startswith('trunk')}
        assert trunk and not differing(trunk, {k: stored[k] for k in trunk})
        assert new.logits(torch.rand(2, 3, 80, 80)).shape == (2, 5)
    with refuses('does not fit vgg_gap'): init_from(create_model('vgg_gap', 5, 1 / 8), path)


def test_dampening_is_the_authors_rate_in_other_words():
    def steps(**kw):
        w = torch.nn.Parameter(torch.zeros(1))
        opt = make_optimizer(get_recipe('paper', weight_decay=0., **kw), [w])
        at = []
        for k in range(200): w.grad = torch.ones(1); opt.step(); at.append(w.item())
        return at
    ours, theirs = steps(), steps(lr=1., dampening=.9)
    assert abs((ours[-1] - ours[-2]) / (theirs[-1] - theirs[-2]) - 1) < 1e-3
    assert theirs[0] == pytest.approx(10 * ours[0])


def test_stairs():
    at = lambda name, epoch: get_recipe(name).lr_at(epoch * 10, 10)
    assert [at('paper', e) for e in (0, 24, 25, 50, 299)] == pytest.approx([.1, .1, .05, .025, .1 * .5**11])
    assert [at('cub', e) for e in (0, 29, 30, 60, 89, 90, 300)] == pytest.approx(
        [.01, .01, .02, .04, .04, .02, .04 * .5**8])
    assert [at('resnet', e) for e in (0, 59, 60, 119, 120, 159, 160, 199)] == pytest.approx(
        [.1, .1, .02, .02, .004, .004, .0008, .0008])
    assert set(STEPS) == {'halve', 'cub', 'resnet'}


def test_resnets_have_the_switches_of_attention_and_head():
    def resnet(**kw):
        seed_everything(0)
        return create_model('resnet164_att2_concat_dp', 5, 1 / 4, depth=11, dropout=False, **kw).eval()
    plain, up = resnet(head='plain'), resnet(project='l')
    out = plain(X)
    torch.testing.assert_close(out.logits, plain.head.linear[0](torch.cat(out.descriptors, 1)))
    assert set(dict(up.named_parameters())) ^ set(dict(resnet().named_parameters())) == {
        *(f'attention.0.up.{k}' for k in ('weight', 'bias')),
        *(f'attention.0.project.{n}.{k}' for n in (0, 3) for k in ('weight', 'bias'))}
    assert resnet(preset='paper').config['head'] == 'plain'
