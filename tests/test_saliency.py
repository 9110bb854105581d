"""Saliency: equal to Captum whatever the network and the options; nothing of the network changed; clear refusals."""
import inspect
import warnings

import captum.attr
import pytest
import torch
import torch.nn as nn
from helpers import refuses, tiny_net

from ltpa.core import keyed_rng
from ltpa.saliency import CAPTUM, CHANNELS, METHODS, Logits, captum_suite, get_layer, gradient, frozen_eval

NETS = ['vgg_att3_concat_pc', 'vgg_att2_indep_dp', 'vgg_gap', 'resnet164']
SHARED = [name for name in METHODS if name in CAPTUM and name != 'cam']
EVERY = {**{f'ours-{k}': f for k, f in METHODS.items()}, **{f'captum-{k}': f for k, f in CAPTUM.items()}}
FEW = dict(smoothgrad=dict(samples=5), integrated_gradients=dict(steps=6), noise_tunnel=dict(samples=3, steps=4))


def images(n=3, size=32, dtype=torch.float32):
    return torch.rand(n, 3, size, size, generator=keyed_rng('saliency', size)).to(dtype)


def lively(name, dtype=torch.float32, **kw):
    "A tiny network whose attention is not nearly uniform, whose logits differ and whose BatchNorms have seen data."
    net = tiny_net(name, classes=4, **kw)
    for p in net.parameters():
        if p.ndim == 2 and p.shape[0] == 1: nn.init.normal_(p, std=2.)
    net.train()
    with torch.no_grad():
        for k in range(5): net(images(8) + k / 50)
    return net.eval().to(dtype)


@pytest.fixture(scope='module')
def nets():
    return {(name, dtype): lively(name, dtype) for name in NETS for dtype in (torch.float32, torch.float64)}


def few(name): return FEW.get(name.split('-')[-1], {})


# Equal to Captum

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=['float32', 'float64'])
@pytest.mark.parametrize('method', SHARED)
@pytest.mark.parametrize('name', NETS)
def test_equal_to_captum(nets, name, method, dtype):
    net, x = nets[name, dtype], images(dtype=dtype)
    def run(f, **more):
        if dtype == torch.float64: return f(net, x, **more, **few(method))
        # In float32 another size of batch may round another way, and a ReLU at zero then flip its gradient.
        return torch.cat([f(net, one, **more, **few(method)) for one in x.split(1)])

    for more in dict(target=2), dict(channels='abs'):
        ours, theirs = run(METHODS[method], **more), run(CAPTUM[method], **more)
        assert ours.dtype == dtype and ours.shape == (3, 32, 32) and not ours.requires_grad
        assert ours.abs().max() > 0, 'a map of zeros proves nothing'
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_target_for_each_image(nets):
    net, x = nets['vgg_gap', torch.float64], images(dtype=torch.float64)
    for name, f in EVERY.items():
        each = [f(net, one, target=k, **few(name)) for one, k in zip(x.split(1), (0, 3, 1))]
        for target in [0, 3, 1], torch.tensor([0, 3, 1]):
            torch.testing.assert_close(f(net, x, target=target, **few(name)), torch.cat(each), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(f(net, x, **few(name)), f(net, x, net.logits(x).argmax(1), **few(name)))


@pytest.mark.parametrize('method, options', [
    ('smoothgrad', dict(samples=7, sd=.3, seed=5)),
    ('integrated_gradients', dict(steps=9, rule='riemann_middle', baseline=.5)),
    ('integrated_gradients', dict(steps=3, baseline=torch.rand(3, 1, 1, generator=keyed_rng('baseline')))),
    ('integrated_gradients', dict(steps=1)),
    ('occlusion', dict(window=7, stride=5, baseline=.3)), ('occlusion', dict(window=32, stride=32)),
    ('occlusion', dict(window=5, stride=1)), ('grad_cam', dict(layer='trunk.stages.1', relu=False)),
    ('grad_cam', dict(layer='trunk.stages.0.1', mode='nearest'))])
def test_options_mean_what_they_mean_to_captum(nets, method, options):
    net, x = nets['vgg_att3_concat_pc', torch.float64], images(2, dtype=torch.float64)
    torch.testing.assert_close(METHODS[method](net, x, **options), CAPTUM[method](net, x, **options),
                               atol=1e-5, rtol=1e-5)


def test_captum_is_called_as_its_manual_says(nets):
    "Against Captum itself, past the wrappers that both sides share."
    net, x = nets['vgg_gap', torch.float64], images(dtype=torch.float64)
    logits = Logits(net)
    target = net.logits(x).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        def raw(method, **kw): return method.attribute(x.clone(), target=target, **kw)
        A = captum.attr
        layer = net.trunk.stages[2]
        wide = lambda m: A.LayerAttribution.interpolate(m, (32, 32), 'bilinear')
        want = dict(gradient=raw(A.Saliency(logits), abs=False).sum(1),
                    gradient_x_input=raw(A.InputXGradient(logits)).sum(1),
                    integrated_gradients=raw(A.IntegratedGradients(logits), n_steps=6).sum(1),
                    occlusion=raw(A.Occlusion(logits), sliding_window_shapes=(3, 8, 8), strides=(3, 4, 4))[:, 0],
                    grad_cam=wide(raw(A.LayerGradCam(logits, layer), relu_attributions=True))[:, 0],
                    guided_backprop=raw(A.GuidedBackprop(logits)).sum(1),
                    guided_grad_cam=raw(A.GuidedGradCam(logits, layer), interpolate_mode='bilinear').sum(1))
    for name, m in want.items():
        for f in filter(None, (METHODS.get(name), CAPTUM[name])):
            torch.testing.assert_close(f(net, x, **few(name)), m.detach().to(x), atol=1e-6, rtol=1e-5)
    absolute = A.Saliency(logits).attribute(x.clone().requires_grad_(), target)
    torch.testing.assert_close(gradient(net, x, channels='abs'), absolute.sum(1), atol=1e-5, rtol=1e-5)


# What the mathematics promises

def rise(net, x, baseline=0.):
    f, b = net.logits(x), net.logits(torch.full_like(x, baseline))
    return (f - b).gather(1, f.argmax(1)[:, None])[:, 0].detach()


@pytest.mark.parametrize('name', NETS)
@pytest.mark.parametrize('baseline', [0., .5])
def test_integrated_gradients_are_complete(nets, name, baseline):
    net, x = nets[name, torch.float64], images(dtype=torch.float64)
    gap = [(METHODS['integrated_gradients'](net, x, steps=s, baseline=baseline, rule='riemann_middle').sum((1, 2))
            - rise(net, x, baseline)).abs().max() for s in (2, 400)]
    assert gap[1] < .1 * rise(net, x, baseline).abs().max() and gap[1] < gap[0]


def test_deep_lift_is_complete_without_attention(nets):
    "A pool right behind a ReLU, which Captum 0.9 by itself gets wrong, and then no pool at all."
    for name in 'vgg_gap', 'resnet164':
        net, x = nets[name, torch.float64], images(dtype=torch.float64)
        torch.testing.assert_close(CAPTUM['deep_lift'](net, x).sum((1, 2)), rise(net, x), atol=1e-6, rtol=1e-6)


def test_gradient_times_input_is_complete_where_the_network_is_linear():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).double()
    x = images(2, 8, torch.float64)
    want = net(x).amax(1) - net[1].bias[net(x).argmax(1)]
    torch.testing.assert_close(METHODS['gradient_x_input'](net, x).sum((1, 2)), want.detach())


@pytest.mark.parametrize('name, layer', [('vgg_gap', None), ('resnet164', 'act')])
def test_cam_is_class_weights_times_features(nets, name, layer):
    net, x = nets[name, torch.float64], images(dtype=torch.float64)
    kept = []
    handle = get_layer(net, layer or 'trunk.stages.2').register_forward_hook(lambda m, i, o: kept.append(o))
    target = net.logits(x).argmax(1)
    handle.remove()
    want = torch.stack([(net.linear.weight[t][:, None, None] * l).sum(0) for t, l in zip(target, kept[0])])
    for f in METHODS['cam'], CAPTUM['cam']:
        m = f(net, x, layer=layer, mode='nearest')
        torch.testing.assert_close(m[:, ::32 // want.shape[1], ::32 // want.shape[2]], want.detach())
        logit = m.mean((1, 2)) + net.linear.bias[target]
        torch.testing.assert_close(logit.detach(), net.logits(x).amax(1).detach())
    scores = METHODS['grad_cam'](net, x, layer=layer, relu=False, mode='nearest') * want[0].numel()
    torch.testing.assert_close(scores, m)


def test_pc_gives_the_last_convolution_no_gradient(nets):
    pc, dp = nets['vgg_att3_concat_pc', torch.float32], nets['vgg_att2_indep_dp', torch.float32]
    last = lambda net: [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d)][-1]
    assert not METHODS['grad_cam'](pc, images(), layer=last(pc), relu=False).any()
    assert METHODS['grad_cam'](dp, images(), layer=last(dp), relu=False).any()


def test_an_image_has_one_map_whatever_its_neighbors_and_the_random_state(nets):
    net, x = nets['vgg_gap', torch.float64], images(5, dtype=torch.float64)
    for name, f in EVERY.items():
        whole, state = f(net, x, **few(name)), torch.get_rng_state()
        torch.rand(7)
        for size in (1, 2, 4):
            torch.testing.assert_close(f(net, x, internal_batch_size=size, **few(name)), whole, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(f(net, x[3:4], **few(name)), whole[3:4], atol=1e-6, rtol=1e-6)
        torch.set_rng_state(state)
        f(net, x[:1], **few(name))
        assert torch.get_rng_state().equal(state), f'{name} draws from the global random state'


def test_no_more_images_at_a_time_than_asked_for(nets):
    net, sizes = nets['vgg_gap', torch.float32], []
    handle = net.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    for name, f in EVERY.items():
        sizes.clear()
        f(net, images(5), internal_batch_size=4, **few(name))
        most = 8 if name == 'captum-deep_lift' else 4                  # each image beside its baseline
        assert max(sizes) <= most, (name, sizes)
    handle.remove()


# The network stays as it was

def state(net):
    return ([(m.training, sorted(vars(m)), *(len(d) for k, d in vars(m).items() if k.endswith('_hooks')))
             for m in net.modules()],
            [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in net.parameters()],
            {k: v.clone() for k, v in net.state_dict().items()})


def same(a, b):
    assert a[0] == b[0]
    assert all(p == q and (g is h or g.equal(h)) for (p, g), (q, h) in zip(a[1], b[1]))
    assert all(v.equal(b[2][k]) for k, v in a[2].items())


@pytest.fixture(scope='module')
def odd_net():
    "Partly in training mode, partly frozen, with gradients."
    net = lively('vgg_gap', dropout=True).train()
    net.logits(images(4)).sum().backward()
    net.trunk.stages[0].eval()
    net.linear.bias.requires_grad_(False)
    net.trunk.stages[1][1][0].weight.grad = None
    return net


@pytest.mark.parametrize('name', EVERY)
def test_state_after_success(odd_net, name):
    before, x = state(odd_net), images(2)
    kept = x.clone()
    EVERY[name](odd_net, x, **few(name))
    same(state(odd_net), before)
    assert x.equal(kept) and not x.requires_grad and x.grad is None


class Broken(Exception): pass


@pytest.mark.parametrize('where', ['forward', 'backward'])
@pytest.mark.parametrize('name', EVERY)
def test_state_after_an_error(odd_net, name, where):
    x, calls = images(2), []
    if where == 'backward' and any(w in name for w in ('occlusion', '-cam')): pytest.skip('no backward pass')
    clean = state(odd_net)

    def fail(module, args, out):
        calls.append(1)
        if len(calls) < 2: return                                      # the first pass only looks for the class
        if where == 'forward': raise Broken
        def burst(g): raise Broken
        out.register_hook(burst)

    handle = odd_net.linear.register_forward_hook(fail)
    before = state(odd_net)
    with pytest.raises(Broken): EVERY[name](odd_net, x, **few(name))
    same(state(odd_net), before)
    handle.remove()
    same(state(odd_net), clean)
    assert not x.requires_grad


def test_deep_lift_leaves_nothing_behind_when_a_module_is_used_twice():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 3))
    before = state(net)
    with pytest.raises(RuntimeError, match='more than once'): CAPTUM['deep_lift'](net, images(2, 8))
    same(state(net), before)


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_gradients_where_they_are_switched_off(nets, mode):
    net, x = nets['vgg_gap', torch.float32], images()
    want = gradient(net, x)
    with mode():
        assert gradient(net, x.clone()).equal(want)
        assert not torch.is_grad_enabled()


def test_untouched_restores_after_an_error_of_its_user():
    net = tiny_net().train()
    with pytest.raises(Broken):
        with frozen_eval(net):
            assert not net.training and not any(p.requires_grad for p in net.parameters())
            net.stray = 1
            raise Broken
    assert net.training and all(p.requires_grad for p in net.parameters()) and not hasattr(net, 'stray')


def test_foreign_networks_with_work_in_place():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).double()
    x = images(2, dtype=torch.float64)
    for name in SHARED:
        more = dict(layer='2') if name == 'grad_cam' else {}
        torch.testing.assert_close(METHODS[name](net, x, **more), CAPTUM[name](net, x, **more),
                                   atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', NETS)
def test_layer_cam_is_that_of_torchcam(nets, name):
    methods = pytest.importorskip('torchcam.methods')
    net, x = nets[name, torch.float64], images(dtype=torch.float64)
    logits = Logits(net)
    for layer in net.stage_names[-2:]:
        with methods.LayerCAM(logits, f'net.{layer}', input_shape=(3, 32, 32)) as theirs:
            y = logits(x)
            want, = theirs(y.argmax(1).tolist(), y, normalized=False)
        got = METHODS['layer_cam'](net, x, layer=layer, mode='nearest')
        assert got.abs().max() > 0 and got.min() >= 0
        torch.testing.assert_close(got[:, ::32 // want.shape[1], ::32 // want.shape[2]], want)


# The interface

@pytest.mark.parametrize('name', EVERY)
def test_signatures_agree(name):
    names = list(inspect.signature(EVERY[name]).parameters)
    assert names[:5] == ['net', 'images', 'target', 'channels', 'internal_batch_size']
    other = METHODS.get(name.split('-')[1]), CAPTUM.get(name.split('-')[1])
    if all(other): assert inspect.signature(other[0]) == inspect.signature(other[1])
    assert EVERY[name].__doc__


def test_channels(nets):
    net, x = nets['vgg_gap', torch.float32], images()
    whole = gradient(net, x, channels='all')
    for how, want in dict(sum=whole.sum(1), abs=whole.abs().sum(1), max=whole.abs().amax(1)).items():
        assert gradient(net, x, channels=how).equal(want)
    assert set(CHANNELS) == {'all', 'sum', 'abs', 'max'}


def test_the_suite_has_cam_where_cam_exists():
    assert set(captum_suite(tiny_net('vgg_gap'))) == set(CAPTUM)
    assert set(CAPTUM) - set(captum_suite(tiny_net('vgg_att1_pc'))) == {'cam'}


class Two(nn.Module):
    def forward(self, x): return x.mean((2, 3)), x


class Spatial(nn.Module):
    def forward(self, x): return x


@pytest.mark.parametrize('name', EVERY)
def test_refuses_a_model_that_returns_a_tuple(name):
    with refuses('Two', 'tuple of 2', 'logits [B,classes]', 'logits(x)'): EVERY[name](Two(), images())


def test_refuses_other_outputs():
    with refuses('Spatial', '[1, 3, 32, 32]'): gradient(Spatial(), images(), target=0)


GRAD_CAMS = [n for n in EVERY if 'grad_cam' in n or 'layer_cam' in n]


@pytest.mark.parametrize('name', GRAD_CAMS)
def test_refuses_unknown_layers_with_the_nearest(name):
    net = tiny_net()
    with refuses("unknown layer 'trunk.stage.2'", "'trunk.stages.2'"):
        EVERY[name](net, images(), layer='trunk.stage.2')
    with refuses("unknown layer 'zzz'", 'linear, trunk'): EVERY[name](net, images(), layer='zzz')
    with refuses("unknown layer 'stages.2'", "did you mean 'trunk.stages.2'"):
        EVERY[name](net, images(), layer='stages.2')


@pytest.mark.parametrize('options, words', [
    (dict(target=4), ['target 4', '0 to 3', '3 images']), (dict(target=-1), ['target -1']),
    (dict(target=[0, 1]), ['target [0, 1]']), (dict(target=1.5), ['target 1.5']), (dict(target=True), ['target']),
    (dict(channels='mean'), ["'mean'", 'max']),
    (dict(internal_batch_size=0), ['internal_batch_size 0', 'at least 1'])])
def test_refuses_options(nets, options, words):
    for f in gradient, CAPTUM['gradient']:
        with refuses(*words): f(nets['vgg_gap', torch.float32], images(), **options)


@pytest.mark.parametrize('method, options, words', [
    ('smoothgrad', dict(samples=0), ['samples 0']), ('integrated_gradients', dict(steps=0), ['steps 0']),
    ('integrated_gradients', dict(rule='simpson'), ["unknown rule 'simpson'"]),
    ('integrated_gradients', dict(baseline=torch.zeros(2, 3, 32, 32)), ['baseline', '(2, 3, 32, 32)']),
    ('occlusion', dict(window=4, stride=5), ['4 pixels every 5', 'stride <= window']),
    ('occlusion', dict(window=33), ['33', '32x32']), ('occlusion', dict(stride=0), ['stride 0'])])
def test_refuses_options_of_methods(nets, method, options, words):
    for f in METHODS[method], CAPTUM[method]:
        with refuses(*words): f(nets['vgg_gap', torch.float32], images(), **options)


@pytest.mark.parametrize('bad, words', [
    (images()[:, :2], ['images', '(3, 2, 32, 32)', '[N,3,H,W]']), (images().long(), ['images', 'torch.int64']),
    (images()[:0], ['images', '(0, 3, 32, 32)']), (images() * 255, ['images', '0..1']), ('cat.png', ['cat.png: no such file'])],
    ids=['channels', 'type', 'none', 'range', 'path'])
def test_refuses_images(nets, bad, words):
    with refuses(*words): gradient(nets['vgg_gap', torch.float32], bad)


@pytest.mark.parametrize('name', EVERY)
def test_refuses_what_is_not_finite(name):
    net, bad = lively('vgg_gap'), images()
    bad[1, 0, 3, 3] = float('nan')
    with refuses('image 1', 'NaN or infinite', 'finite numbers'): EVERY[name](net, bad, target=0)
    net.linear.bias.data[2] = float('nan')                           # no gradient knows of it
    for target in None, 0:
        with refuses('VGGGAP answers with NaN or infinite', 'the weights'): EVERY[name](net, images(), target)


@pytest.mark.parametrize('method, options', [('integrated_gradients', dict(baseline=float('nan'))),
                                             ('occlusion', dict(baseline=float('inf')))])
def test_refuses_maps_that_are_not_finite(nets, method, options):
    for f in METHODS[method], CAPTUM[method]:
        with refuses('image 0', f'{method} gives a map'): f(nets['vgg_gap', torch.float32], images(), **options)


def test_refuses_layers_that_hold_no_features(nets):
    net = nets['vgg_att3_concat_pc', torch.float32]
    for name in GRAD_CAMS:
        with refuses("layer 'head'", '(3, 4)', '[B,C,h,w]'): EVERY[name](net, images(), layer='head')
        with refuses("layer 'trunk'", 'a list', '[B,C,h,w]'): EVERY[name](net, images(), layer='trunk')
    for f in METHODS['cam'], CAPTUM['cam']:
        with refuses("layer 'linear'", '(3, 4)', '[B,C,h,w]'):
            f(nets['vgg_gap', torch.float32], images(), layer='linear')
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.spare = nn.Identity()
    net.forward = lambda x: net[2](net[1](net[0](x)))
    before = state(net)
    for name in GRAD_CAMS:
        with refuses("layer 'spare'", 'no part'): EVERY[name](net, images(), layer='spare')
    same(state(net), before)
    with refuses('Sequential', 'layer='): METHODS['grad_cam'](net, images())


def test_refuses_cam_without_its_linear_layer(nets):
    for name, words in ('vgg_att3_concat_pc', ['vgg_att3_concat_pc', 'grad_cam']), ('resnet164', ['trunk.stages.2']):
        with refuses(*words): METHODS['cam'](nets[name, torch.float32], images())
