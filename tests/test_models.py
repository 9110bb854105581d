"""All networks: sizes, what is inside, what the classifier sees, and weights on disk."""
import inspect
import json
import math
import pickle
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from helpers import EACH, MODELS, Touch, differing, pictures, refuses, tiny_net, words_id
from torch.utils._python_dispatch import TorchDispatchMode

from ltpa import models, names, registry
from ltpa.attention import SCORES, normalize
from ltpa.names import LtpaError, Recipe
from ltpa.core import keyed_rng, seed_everything
from ltpa.data import ASSETS, ClutteredFashion
from ltpa.maps import show_attention
from ltpa.names import list_models
from ltpa.weights import load_state, read_tensors, write_tensors
from ltpa.models import (
    VGG, VGGGAP, VGGPAN, GlobalVector, Net, VGGAttention, VGGTrunk, create_model, gmac, list_pretrained,
    load_pretrained, load_weights, save_weights)
from ltpa.resnets import ResNet, ResNetAttention, ResNetTrunk
from ltpa.recipes import plan
from ltpa.names import get_recipe
from ltpa.training import Learner, evaluate
from ltpa.checkpoints import Checkpoint

ATTENTION = [name for name in MODELS if 'att' in name]
BUNDLED = [f'cluttered_fashion/{name}' for name in
           ('vgg_att2_concat_dp', 'vgg_att2_concat_pc', 'vgg_att3_concat_pc', 'vgg_gap', 'vgg_trunk')]


def rgb(n, H=32, W=None, seed=0): return torch.rand(n, 3, H, W or H, generator=keyed_rng('rgb', seed))


def narrow(name, **kw):
    usual = dict(width=1 / 4) if name.startswith('resnet') else dict(width=1 / 16, early_pools=0)
    return tiny_net(name, **usual | kw)


# Names and sizes

@pytest.mark.parametrize('name', names.MODELS)
def test_table_of_names_agrees_with_the_classes(name):
    kind, fixed = names.MODELS[name]
    takes = set(inspect.signature(models.model_class(name)).parameters)
    assert set(fixed) <= takes and takes - {'num_classes', 'width', *fixed} == set(names.TAKES[kind]), kind
    assert not set(names.COMMON) & takes, 'those are set from outside'
    assert 'score' not in fixed or fixed['score'] in SCORES


@pytest.mark.parametrize('name', ['vgg', 'resnet164'])
def test_a_class_is_found_whatever_was_imported(name):
    code = f'from ltpa.registry import model_class; print(model_class({name!r}).__module__)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.split() == [dict(vgg='ltpa.models', resnet164='ltpa.resnets')[name]], done.stderr


def test_every_score_has_its_names():
    assert {fixed['score'] for _, fixed in names.MODELS.values() if 'score' in fixed} == set(SCORES)
    known = {*names.COMMON, *(k for takes in names.TAKES.values() for k in takes)}
    assert set(names.SWITCHES) <= known, 'a switch that nobody takes'
    for k, values in names.SWITCHES.items():
        for name in list_models():
            usual = inspect.signature(models.model_class(name)).parameters.get(k)
            assert usual is None or usual.default == values[0], 'the first is the default'


def test_list_models():
    assert set(list_models()) == set(MODELS) and len(list_models()) == len(MODELS)
    assert list_models('att1') == [name for name in list_models() if 'att1' in name] != []
    assert set(list_models('^vgg_[a-z]+$')) == {'vgg_gap', 'vgg_pan', 'vgg_trunk'}
    assert len(list_models('uniform$')) == 6 and list_models('resnext') == []


@pytest.mark.parametrize('name, ten, hundred', [
    ('vgg', 14_991_946, 15_038_116), ('vgg_gap', 14_728_266, 14_774_436),
    ('vgg_att1_pc', 19_714_123, 19_760_293), ('vgg_att2_concat_pc', 19_720_780, 19_813_030),
    ('vgg_att3_concat_pc', 19_856_461, 19_971_751), ('vgg_pan', 24_698_956, 24_745_126)])
def test_parameter_counts(name, ten, hundred):
    with torch.device('meta'): nets = [create_model(name, k) for k in (10, 100)]
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [ten, hundred]


def test_controls_differ_from_attention_by_what_scores_alone():
    count = lambda name: sum(p.numel() for p in narrow(name, width=1 / 8).parameters())
    C = narrow('vgg_trunk', width=1 / 8).trunk.channels
    assert count('vgg_att1_pc') - count('vgg_att1_uniform') == C[-1] + 1
    assert count('vgg_att1_uniform') == count('vgg_att1_dp') == count('vgg_trunk')
    assert count('vgg_att2_indep_pc') - count('vgg_att2_concat_pc') == 3, 'a second bias for each class'


@pytest.mark.parametrize('early_pools', [0, 1, 2])
@pytest.mark.parametrize('name, levels', [
    ('vgg_att1_dp', 1), ('vgg_att2_indep_pc', 2), ('vgg_att3_concat_pc', 3), ('vgg_pan', 2), ('vgg_gap', 0)])
def test_map_sizes(name, levels, early_pools):
    with torch.device('meta'): net = create_model(name, width=1 / 32, early_pools=early_pools)
    finest = [2**(early_pools + k) for k in range(3)][3 - levels:]
    for H, W in (32, 32), (64, 64), (96, 96), (32, 64), (96, 32):
        out = net(torch.empty(2, 3, H, W, device='meta'))
        assert [tuple(m.shape) for m in out.maps] == [(2, H // d, W // d) for d in finest]


@pytest.mark.parametrize('name', MODELS)
def test_forward_and_backward(name):
    net = narrow(name, dropout=True).train()
    out = net(rgb(2))
    out.logits.log_softmax(1)[:, 0].sum().backward()
    assert out.logits.shape == (2, 3) and out.logits.isfinite().all()
    assert len(out.descriptors) == (len(out.maps) if 'att' in name else 1)
    silent = {k for k, p in net.named_parameters() if p.grad is None}
    assert not silent, f'no gradient reaches {silent}'
    assert all(p.grad.isfinite().all() for p in net.parameters())
    for level, a in enumerate(out.maps):
        assert (a >= 0).all() and a.shape[0] == 2 and a.ndim == 3
        if name == 'vgg_pan' and level == 0: assert (a < 1).all()           # its gate is a sigmoid
        else: torch.testing.assert_close(a.sum((1, 2)), torch.ones(2))


@pytest.mark.parametrize('name', ATTENTION)
def test_uniform_maps_are_uniform_and_others_are_not(name):
    for a in narrow(name).eval()(rgb(2)).maps:
        spread = (a * a[0].numel() - 1).abs().max().item()
        assert spread < 1e-5 if name.endswith('uniform') else spread > 1e-5


@pytest.mark.parametrize('name', MODELS)
def test_one_image_is_a_row_of_the_batch(name):
    net = narrow(name).double().eval()
    x = rgb(3).double()
    batch, one = net(x), net(x[1:2])
    parts = lambda out: (out.logits, *out.maps, *out.descriptors)
    for a, b in zip(parts(one), parts(batch)): torch.testing.assert_close(a[0], b[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', MODELS)
def test_training_on_one_image(name):
    net = narrow(name).train()
    if name in ('vgg_gap', 'resnet164'):
        net(rgb(1)).logits.sum().backward()
        assert net.linear.weight.grad.isfinite().all()
    else:
        before = {k: v.clone() for k, v in net.state_dict().items()}
        with refuses('batch of one', 'at least two images', 'net.eval()'): net(rgb(1))
        assert not differing(before, net.state_dict()), 'refused before BatchNorm has counted it'


@pytest.mark.parametrize('name, kw', [
    (name, kw) for name in ATTENTION
    for kw in ([{}] if name.startswith('resnet') else [dict(early_pools=e) for e in (0, 1, 2)])])
def test_training_on_one_image_without_batch_norm_in_the_head(name, kw):
    "Refused where a BatchNorm really has a single number a channel, and nowhere else."
    net = narrow(name, preset='paper', **kw).train()
    try: net.features(net.normalize(rgb(1)))
    except ValueError:
        assert kw['early_pools'] > 0
        with refuses('batch of one', 'at least two images'): net(rgb(1))
        assert net(rgb(1, 32, 64)).logits.isfinite().all()
    else: assert net(rgb(1)).logits.isfinite().all()


# What is inside

class CountReLU(TorchDispatchMode):
    count = inplace = 0
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        self.count += f in (torch.ops.aten.relu.default, torch.ops.aten.clamp_min.default)
        self.inplace += f is torch.ops.aten.relu_.default
        return f(*args, **(kwargs or {}))


@pytest.mark.parametrize('name', MODELS)
def test_one_relu_module_for_each_use(name):
    "Attribution libraries hook modules: a ReLU used twice, in place or as a function escapes them."
    net, calls = narrow(name).eval(), {}
    relus = {k: m for k, m in net.named_modules() if isinstance(m, nn.ReLU)}
    for k, m in relus.items(): m.register_forward_hook(lambda *_, k=k: calls.update({k: calls.get(k, 0) + 1}))
    with CountReLU() as seen: net(rgb(2))
    assert calls == dict.fromkeys(relus, 1) and len(relus) >= 10
    assert (seen.count, seen.inplace) == (len(relus), 0)
    assert not any(m.inplace for m in relus.values())


# The authors' code, after Fig. 2: channels of the 15 convolutions, Dropout after each; 14 and 15 lead to g.
CHANNELS = [64, 64, 128, 128, 256, 256, 256, *[512] * 8]
DROPOUT = [.3, 0, .4, 0, .4, .4, 0, .4, .4, 0, .4, .4, 0, .4, .4]


def convolutions(*parts):
    "For each convolution in order: its channels, the eps of its BatchNorm, the Dropout after it."
    found = []
    for m in (m for part in parts for m in part.modules()):
        if isinstance(m, nn.Conv2d): found.append((m.out_channels, None, 0))
        elif isinstance(m, nn.BatchNorm2d): found[-1] = (found[-1][0], m.eps, 0)
        elif isinstance(m, nn.Dropout): found[-1] = (*found[-1][:2], m.p)
    return found


def kinds(part): return [type(m).__name__ for m in part]


def on_meta(name, **kw):
    with torch.device('meta'): return create_model(name, **kw)


@pytest.mark.parametrize('name', [name for name in MODELS if name.startswith('vgg')])
def test_convolutions_norms_and_dropout_are_those_of_the_authors_table(name):
    net, table = on_meta(name), list(zip(CHANNELS, [1e-3] * 15, DROPOUT))
    assert convolutions(net.trunk) == table[:13]
    globs = [m for m in net.modules() if isinstance(m, GlobalVector)]
    for glob in globs: assert convolutions(glob.convs) == table[13:]
    assert len(globs) == (2 if name == 'vgg_pan' else name not in ('vgg', 'vgg_gap'))
    for fc in (part.fc for part in (globs if name != 'vgg' else [net])):        # then FC-1, and nothing after it
        assert kinds(fc)[-2:] == ['Dropout', 'Linear'] and fc[-2].p == .5


@pytest.mark.parametrize('name', [name for name in MODELS if name not in ('vgg_gap', 'resnet164')])
def test_heads_and_projections_are_those_of_the_authors(name):
    "A BatchNorm with the usual eps, ReLU, Dropout; before the projection of g the same."
    net, resnet = on_meta(name), name.startswith('resnet')
    for norm in net.head.norm:
        assert kinds(norm) == ['BatchNorm1d', 'ReLU', 'Dropout']
        assert (norm[0].eps, norm[2].p) == (1e-5, .3 if resnet else .5)
    if 'att' not in name: return
    projected = [att.project for att in net.attention if not isinstance(att.project, nn.Identity)]
    assert len(projected) == ('uniform' not in name and ('att3' in name or resnet))
    for p in projected:
        assert kinds(p) == ['BatchNorm1d', 'ReLU', 'Dropout', 'Linear'] and (p[0].eps, p[2].p) == (1e-5, .5)
        assert (p[3].in_features, p[3].out_features) == ((256, 128) if resnet else (512, 256))


@pytest.mark.parametrize('name', MODELS)
def test_dropout_can_be_switched_off(name):
    assert not any(m.p for m in on_meta(name, dropout=False).modules() if isinstance(m, nn.Dropout))


@pytest.mark.parametrize('name', ['vgg', 'vgg_pan', 'vgg_att3_concat_pc'])
def test_convolutions_start_with_variance_2_over_kernel_and_outputs(name):
    "Where inputs and outputs differ in number, it is the outputs that count; within five standard errors."
    convs = [m for m in narrow(name, width=1 / 4).modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.in_channels != m.out_channels for m in convs) >= 4
    for m in convs:
        ratio = m.weight.square().mean() * m.kernel_size[0]**2 * m.out_channels / 2
        assert ratio.item() == pytest.approx(1, abs=5 * (2 / m.weight.numel())**.5)
        assert not m.bias.any()


@pytest.mark.parametrize('name', MODELS)
def test_classifier_sees_the_descriptors_alone(name):
    net = narrow(name).eval()
    a, b = net(rgb(3, seed=1)), net(rgb(3, seed=2))
    assert net.classify(a.descriptors).equal(a.logits), 'also after another image has passed'
    assert not a.logits.equal(b.logits) and net.logits(rgb(3, seed=1)).equal(a.logits)


@pytest.mark.parametrize('name', [name for name in ATTENTION if 'indep' in name])
def test_independent_levels_average_their_probabilities(name):
    net = narrow(name).eval()
    out = net(rgb(3))
    parts = zip(net.head.linear, net.head.norm, out.descriptors)
    each = [linear(norm(d)).softmax(1) for linear, norm, d in parts]
    assert len(each) == int(name[7])
    torch.testing.assert_close(out.logits.exp(), sum(each) / len(each))


@pytest.mark.parametrize('name', MODELS)
def test_normalization_is_inside(name):
    net, seen = narrow(name).eval(), []
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    net(rgb(2))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((.485, .456, .406), (.229, .224, .225)))
    torch.testing.assert_close(seen[0], (rgb(2) - mean) / std)
    assert {'mean', 'std'} <= set(net.state_dict())


@pytest.mark.parametrize('name', EACH)
def test_meta_device(name):
    with torch.device('meta'): net = create_model(name, 100)
    assert all(t.device.type == 'meta' for t in net.state_dict().values())
    out = net(torch.empty(64, 3, 32, 32, device='meta'))
    assert out.logits.shape == (64, 100) and out.logits.device.type == 'meta'


@pytest.mark.parametrize('name', [
    'vgg_att3_concat_pc', 'vgg_att2_indep_dp', 'vgg_pan', 'resnet164_att2_concat_pc'])
def test_channels_last_and_bfloat16(name):
    net = narrow(name).eval()
    want = net(rgb(4))
    net.to(memory_format=torch.channels_last)
    x = rgb(4).contiguous(memory_format=torch.channels_last)
    with torch.autocast('cpu', torch.bfloat16): low = net(x)
    torch.testing.assert_close(net(x).logits, want.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(low.logits.float(), want.logits, rtol=.1, atol=.1)


def test_a_seed_decides_the_weights():
    first, same, other = (tiny_net('vgg_att2_concat_pc', seed=s).state_dict() for s in (0, 0, 1))
    assert not differing(first, same) and differing(first, other)


@pytest.mark.parametrize('how', ['subclass', 'instance'])
@pytest.mark.parametrize('name', ATTENTION)
def test_another_way_to_attend_is_what_forward_shows(name, how):
    "Maps, descriptors and logits of `forward` and `features` come from `forward_attention`, whoever has changed it."
    net = narrow(name).eval()
    even = lambda self, l, g: self.pool(l, [torch.full_like(x[:, 0], 2 / x[0, 0].numel()) for x in l])
    want = even(net, *net.forward_features(rgb(2)))
    if how == 'instance': net.forward_attention = lambda l, g: even(net, l, g)
    else: net.__class__ = type('Other', (type(net),), dict(forward_attention=even))
    with torch.no_grad(): out, features = net(rgb(2)), net.features(net.normalize(rgb(2)))
    for got, there in ((out.maps, want.maps), (out.descriptors, want.descriptors), ([out.logits], [want.logits]),
                       (features[0], want.maps), (features[1], want.descriptors)):
        assert len(got) == len(there) and all(a.equal(b) for a, b in zip(got, there))
    assert all((a.sum((1, 2)) - 2).abs().max() < 1e-4 for a in out.maps)


# Built by its class

SMALL = dict(width=1 / 16)
CLASSES = [
    (VGG, dict(dropout=False), 'vgg', dict(dropout=False)), (VGGGAP, dict(early_pools=1), 'vgg_gap', dict(early_pools=1)),
    (VGGPAN, {}, 'vgg_pan', {}), (VGGTrunk, dict(layout='cub'), 'vgg_trunk', dict(layout='cub')),
    (VGGAttention, {}, 'vgg_att2_concat_pc', {}), (VGGAttention, dict(levels=1), 'vgg_att1_pc', {}),
    (VGGAttention, dict(levels=3, score='dp', combine='indep', norm='sigmoid'), 'vgg_att3_indep_dp',
     dict(norm='sigmoid')),
    (VGGAttention, dict(score='uniform', temperature=2.), 'vgg_att2_concat_uniform', dict(temperature=2.)),
    (ResNet, dict(depth=11), 'resnet164', dict(depth=11)),
    (ResNetTrunk, dict(depth=11), 'resnet164_trunk', dict(depth=11)),
    (ResNetAttention, dict(depth=11, score='dp'), 'resnet164_att2_concat_dp', dict(depth=11))]
BUILT = pytest.mark.parametrize('kind, kw, name, own', CLASSES, ids=[f'{k.__name__} {kw}' for k, kw, *_ in CLASSES])


@BUILT
def test_a_class_builds_what_create_model_does(kind, kw, name, own):
    seed_everything(2)
    net, after = kind(3, **kw, **SMALL), torch.rand(())
    seed_everything(2)
    named = create_model(name, 3, **own, **SMALL)
    assert torch.rand(()).equal(after), 'as much was drawn'
    assert not differing(net.state_dict(), named.state_dict())
    for k in 'name', 'config', 'num_classes', 'stride', 'color', 'ends_in_one':
        assert getattr(net, k) == getattr(named, k), k
    assert net.name == name and net.num_classes == 3 and set(inspect.signature(kind).parameters) > {'num_classes'}


@BUILT
def test_a_network_from_its_class_is_trained_shown_and_kept(kind, kw, name, own, tmp_path):
    data = pictures(8, 80 if 'layout' in kw else 32)
    learn = Learner(kind(3, **kw, **SMALL), data, get_recipe('fast', epochs=1, batch_size=4),
                    callbacks=[Checkpoint(tmp_path / 'c.safetensors')])
    net = learn.fit().net
    back = load_weights(save_weights(net, tmp_path / 'w.safetensors', classes=list('abc')))
    assert not differing(back.state_dict(), half(net.state_dict())) and type(back) is kind
    assert (back.name, back.config, back.info['classes']) == (name, net.config, list('abc'))
    assert not differing(load_weights(tmp_path / 'c.safetensors').state_dict(), net.state_dict())
    if 'Attention' in kind.__name__ or kind is VGGPAN: show_attention(net, data.images[0], net.stride)
    else:
        with refuses(name, 'no attention maps'): show_attention(net, data.images[0], net.stride)
    assert evaluate(net, data)['images'] == 8 and gmac(net, data.images.shape[-1]) > 0


class Narrow(VGGAttention):
    "As a user would write it."
    def __init__(self, k, wide=False): super().__init__(k, 3, 'dp', width=1 / 8 if wide else 1 / 16)


def test_a_class_of_ones_own(tmp_path, monkeypatch):
    net = Narrow(4)
    assert (net.name, net.num_classes, net.training) == ('Narrow', 4, True)
    assert show_attention(net, torch.zeros(3, 32, 32, dtype=torch.uint8))
    path = save_weights(net, tmp_path / 'w.safetensors')
    with refuses("unknown model 'Narrow'"): load_weights(path)
    class Wide(VGGAttention): pass
    monkeypatch.setitem(registry.CLASSES, 'Wide', Wide)
    monkeypatch.setitem(models.MODELS, 'wide_dp', ('Wide', dict(score='dp')))
    monkeypatch.setitem(names.TAKES, 'Wide', ['early_pools'])
    wide = Wide(3, score='dp', **SMALL)
    assert wide.name == 'wide_dp' and Wide(3, **SMALL).name == 'Wide'
    back = load_weights(save_weights(wide, tmp_path / 'v.safetensors'))
    assert type(back) is Wide and not differing(back.state_dict(), half(wide.state_dict()))
    with refuses('levels 7'): Wide(3, 7)
    class Own(Net):
        def __init__(self, head='anything'): super().__init__(); self.name, self.num_classes = 'mine', 7
    assert (Own('else').name, Own().num_classes, Own().config) == ('mine', 7, {})


# Of three seeds, what the code before classes had names gave: sums of weights times their place, and the next draw.
BEFORE = [
    ('vgg', {}, 448.1509, .1078833), ('vgg_gap', {}, 405.2206, .2714752), ('vgg_pan', {}, 620.7357, .1046095),
    ('vgg_trunk', {}, 535.0068, .7012203), ('vgg_att3_concat_pc', {}, 688.1468, .1631426),
    ('vgg_att2_indep_dp', dict(preset='official_code'), 279.3007, .9923632),
    ('vgg_att3_concat_pc', dict(preset='official_code'), 361.2817, .0793026),
    ('resnet164', dict(depth=11), 53.75, .9881707), ('resnet164_trunk', dict(depth=11), 112.8121, .0686131),
    ('resnet164_att2_concat_pc', dict(depth=11), 162.2105, .4193833)]


@pytest.mark.parametrize('name, kw, total, after', BEFORE)
def test_seeded_weights_are_what_they_were(name, kw, total, after):
    seed_everything(3)
    net = create_model(name, 4, 1 / 16, **kw)
    w = torch.cat([p.detach().flatten().double() for p in net.parameters()])
    assert (w * torch.linspace(1, 2, len(w), dtype=torch.float64)).sum().item() == pytest.approx(total, abs=1e-3)
    assert torch.rand(()).item() == pytest.approx(after, abs=1e-6)


# Refusals

@pytest.mark.parametrize('kind', dict.fromkeys(kind for kind, *_ in CLASSES))
@pytest.mark.parametrize('kw, words', [
    (dict(num_classes=1), ('num_classes 1', 'at least 2')), (dict(num_classes=10.), ('num_classes 10.0',)),
    (dict(width=0), ('width 0', 'above 0')), (dict(width=float('nan')), ('width nan',)),
    (dict(layout='imagenet'), ("layout 'imagenet'", "'cifar', 'cub'")),
    (dict(early_pools=3), ('early_pools 3', 'one of 0, 1, 2')),
    (dict(levels=0), ('levels 0', 'expected 1, 2 or 3')), (dict(levels=5), ('levels 5', 'expected 1, 2 or 3')),
    (dict(levels=2.), ('levels 2.0', 'expected 1, 2 or 3')), (dict(levels='2'), ("levels '2'",)),
    (dict(levels=1, combine='indep'), ("combine 'indep'", 'one level', "'concat'")),
    (dict(combine='mean'), ("way to combine 'mean'", 'concat, indep')),
    (dict(score='cp'), ("unknown score 'cp'", "'pc'")), (dict(norm='sofmax'), ("normalisation 'sofmax'",)),
    (dict(temperature=0), ('temperature 0', 'above 0')), (dict(project='up'), ("project 'up'", "'g', 'l'")),
    (dict(head='bm'), ("head 'bm'", "'bn', 'plain'")), (dict(indep='sum'), ("indep 'sum'", "'mean', 'product'")),
    (dict(branch_grad='max'), ("branch_grad 'max'", "'sum', 'mean'")), (dict(depth=12), ('depth 12', '9n+2')),
    (dict(head_width=-1), ('head_width -1', 'at most 8')), (dict(gather='mean'), ("gather 'mean'", "'sum', 'max'")),
    (dict(gather='max'), ("gather 'max'", "expected 'uniform'")), (dict(learn_temperature=2), ('learn_temperature 2',)),
    (dict(head_width=1., levels=2, combine='indep'), ('head_width', "expected 'concat'")),
], ids=words_id)
def test_a_class_refuses_what_create_model_refuses(kind, kw, words):
    if not set(kw) <= set(inspect.signature(kind).parameters): return
    with refuses(*words), torch.device('meta'): kind(**kw)


@pytest.mark.parametrize('name, kw, words', [
    ('vgg_att2_pc', {}, ("unknown model 'vgg_att2_pc'", "'vgg_att2_indep_pc'")),
    ('resnext', {}, ("unknown model 'resnext'", "'resnet164'")),
    ('nin', {}, ("unknown model 'nin'", 'vgg')),
    (None, {}, ('unknown model None',)),
    ('vgg', dict(num_classes=1), ('num_classes 1', 'at least 2')),
    ('vgg', dict(num_classes=10.), ('num_classes 10.0', 'whole number')),
    ('vgg', dict(width=0), ('width 0', 'above 0')),
    ('vgg', dict(width=float('nan')), ('width nan', 'above 0')),
    ('vgg', dict(width='half'), ("width 'half'", 'above 0')),
    ('vgg_gap', dict(early_pools=3), ('early_pools 3', 'one of 0, 1, 2')),
    ('vgg_gap', dict(color='red'), ("color 'red'", "'rgb', 'yuv_lcn'")),
    ('vgg_gap', dict(norm='sigmoid'), ("switch 'norm'", 'known: width, early_pools, dropout')),
    ('vgg_att1_pc', dict(norm='sofmax'), ("normalisation 'sofmax'", "'softmax'")),
    ('vgg_att1_pc', dict(temperature=0.), ('temperature 0', 'above 0')),
    ('vgg_att2_concat_pc', dict(levels=3), ('levels is part of the name',)),
    ('vgg_att2_concat_pc', dict(score='dp'), ('score is part of the name',)),
], ids=words_id)
def test_refused_settings(name, kw, words):
    with refuses(*words): create_model(name, **kw)


@pytest.mark.parametrize('name', ['vgg', 'vgg_att1_pc', 'vgg_gap'])
@pytest.mark.parametrize('x, words', [
    (torch.zeros(3, 32, 32), ('(3, 32, 32)', 'expected floats [B,3,H,W]')),
    (torch.zeros(2, 1, 32, 32), ('(2, 1, 32, 32)', 'expected floats [B,3,H,W]')),
    (torch.zeros(2, 32, 32, 3), ('(2, 32, 32, 3)', 'expected floats [B,3,H,W]')),
    (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), ('torch.uint8', 'expected floats [B,3,H,W], RGB in 0..1')),
    (torch.zeros(0, 3, 32, 32), ('(0, 3, 32, 32)', 'empty batch', 'at least one image')),
    (torch.zeros(2, 3, 32, 32).double(), ('torch.float64', 'expected torch.float32', 'x.to(torch.float32)')),
    (torch.zeros(2, 3, 33, 32), ('33x32 pixels', 'multiples of', 'resize or crop')),
    (torch.zeros(2, 3, 32, 0), ('32x0 pixels', 'multiples of', 'resize or crop')),
], ids=words_id)
def test_refused_inputs(name, x, words):
    with refuses(*words): narrow(name).eval()(x)


@pytest.mark.parametrize('name, early_pools, side', [
    *((name, e, 32) for name in ('vgg', 'vgg_trunk', 'vgg_pan', 'vgg_att3_concat_dp') for e in (0, 1, 2)),
    ('vgg_gap', 0, 4), ('vgg_gap', 1, 8), ('vgg_gap', 2, 16)])
def test_smallest_input(name, early_pools, side):
    net, wide = tiny_net(name, early_pools=early_pools).eval(), side + side // 2
    assert net(rgb(1, side)).logits.isfinite().all()
    with refuses(f'{side}x{wide} pixels', f'divide it by {side}', f'multiples of {side}'): net(rgb(1, side, wide))


def test_cost_of_a_picture_that_is_not_square():
    with torch.device('meta'): net = create_model('vgg_gap', width=1 / 16, early_pools=2)
    assert gmac(net, (32, 64)) == pytest.approx(2 * gmac(net), rel=.01) and gmac(net, (32, 32)) == gmac(net, 32)
    with refuses('40x32 pixels'): gmac(net, (40, 32))


# Weights on disk

def half(state):
    "What stays of the weights on disk: matrices as float16, the rest as it is."
    return {k: v.half().float() if v.ndim > 1 and k not in ('mean', 'std') else v for k, v in state.items()}


@pytest.mark.parametrize('name', MODELS)
def test_weights_round_trip(name, tmp_path):
    net = tiny_net(name, classes=4).train()
    net(rgb(4))                                                             # BatchNorm's statistics move
    path = save_weights(net, tmp_path / 'w.safetensors', classes=list('abcd'), accuracy=.5)
    back = load_weights(path)
    assert not differing(back.state_dict(), half(net.state_dict()))
    assert (back.name, back.config, back.training) == (name, net.config, False)
    assert back.info['classes'] == list('abcd') and back.info['accuracy'] == .5


@pytest.mark.parametrize('kw', [
    dict(norm='sigmoid'), dict(temperature=2.), dict(early_pools=0), dict(dropout=True), dict(learn_temperature=True)])
def test_settings_come_back(kw, tmp_path):
    net = tiny_net('vgg_att2_indep_pc', **kw).eval()
    back = load_weights(save_weights(net, tmp_path / 'w.safetensors'))
    torch.testing.assert_close(back(rgb(2)).maps[0], net(rgb(2)).maps[0], rtol=.05, atol=1e-3)
    assert all(back.config[k] == v for k, v in kw.items())


@pytest.mark.parametrize('name, kw', [
    ('vgg_att3_concat_uniform', dict(gather='max')), ('vgg_att2_concat_pc', dict(head_width=1.)), ('vgg_att1_uniform', dict(head_width=2.5))])
def test_arms_come_back(name, kw, tmp_path):
    net = tiny_net(name, **kw).eval()
    back = load_weights(save_weights(net, tmp_path / 'w.safetensors'))
    torch.testing.assert_close(back.logits(rgb(2)), net.logits(rgb(2)), rtol=.05, atol=1e-2)
    assert back.config == net.config


def test_the_head_is_as_wide_as_it_is_told():
    "One linear map on all descriptors, then the classifier of a network with one descriptor of that width."
    net = tiny_net('vgg_att3_concat_uniform', head_width=1.).eval()
    widths = net.trunk.channels
    assert net.head.through.weight.shape == (widths[-1], sum(widths)) and net.head.linear[0].in_features == widths[-1]
    d = net(rgb(2)).descriptors
    joined = torch.cat(d, 1) @ net.head.through.weight.T
    torch.testing.assert_close(net.classify(d), net.head.linear[0](net.head.norm[0](joined)))
    assert tiny_net('vgg_att1_uniform', head_width=2.5).head.linear[0].in_features == round(2.5 * widths[-1])


def test_the_largest_of_each_channel():
    net = tiny_net('vgg_att2_concat_uniform', gather='max').eval()
    l, g = net.forward_features(rgb(2))
    out = net(rgb(2))
    for d, x in zip(out.descriptors, l): torch.testing.assert_close(d, x.amax((2, 3)))
    other = [torch.rand_like(a) for a in out.maps]                     # and it listens to other maps
    assert not torch.allclose(net.pool(l, other).descriptors[0], out.descriptors[0])


@pytest.mark.parametrize('name', ['vgg_att2_concat_pc', 'vgg_att2_concat_dp'])
@pytest.mark.parametrize('norm', ['softmax', 'sigmoid'])
def test_a_learned_temperature_starts_at_one_and_divides(name, norm):
    plain, net = (tiny_net(name, norm=norm, learn_temperature=t) for t in (False, True))
    net.load_state_dict(plain.state_dict(), strict=False)
    for x in plain.eval(), net.eval(): x(rgb(2))
    torch.testing.assert_close(net(rgb(2)).maps, plain(rgb(2)).maps)
    with torch.no_grad():
        for a in net.attention: a.log_factor.fill_(math.log(3))
    for a in plain.attention: a.temperature = 3.
    torch.testing.assert_close(net(rgb(2)).maps, plain(rgb(2)).maps)
    net(rgb(2)).logits.square().sum().backward()
    assert all(a.log_factor.grad for a in net.attention)


@pytest.fixture
def weights(tmp_path): return save_weights(tiny_net(), tmp_path / 'w.safetensors', accuracy=.5)


def test_changed_anywhere_is_refused_or_the_same(weights):
    "One byte at a time; only blanks between the header and the numbers may change, for they say nothing."
    whole = weights.read_bytes()
    want, header = read_tensors(weights), 8 + int.from_bytes(whole[:8], 'little')
    places = [*range(0, header, 23), *range(header, len(whole), len(whole) // 40), header - 1, len(whole) - 1]
    silent = 0
    for at in places:
        for change in 1, 0x80:
            weights.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1:])
            try: state, meta = read_tensors(weights)
            except LtpaError as e:
                assert str(weights) in str(e)
                assert re.search('make or fetch it again|made by `ltpa train`', str(e))
            else:
                silent += 1
                assert not differing(state, want[0]) and meta == want[1] and at < header
    assert silent < 10


@pytest.mark.parametrize('keep', [0, 4, 8, 100, -1000, -1])
def test_truncated(keep, weights):
    weights.write_bytes(weights.read_bytes()[:keep])
    with refuses(weights, 'truncated', 'make or fetch it again'): load_weights(weights)


def test_another_number_in_the_description(weights):
    whole = weights.read_bytes()
    weights.write_bytes(whole.replace(b'accuracy\\": 0.5', b'accuracy\\": 0.9'))
    assert weights.read_bytes() != whole
    with refuses(weights, 'is damaged', 'does not match its digest'): load_weights(weights)


@pytest.mark.parametrize('write', [
    lambda path, trap: path.write_bytes(pickle.dumps(Touch(trap))),
    lambda path, trap: torch.save({'x': Touch(trap)}, path),
    lambda path, trap: torch.save({'x': Touch(trap)}, path, _use_new_zipfile_serialization=False),
], ids=['pickle', 'torch', 'old torch'])
@pytest.mark.parametrize('name', ['w.safetensors', 'w.pth'])
def test_pickles_are_never_loaded(write, name, tmp_path):
    path, trap = tmp_path / name, tmp_path / 'executed'
    write(path, trap)
    with refuses(path, 'not a safetensors file', 'pickles are never loaded'): load_weights(path)
    assert not trap.exists()


def test_foreign_files(weights, tmp_path):
    from safetensors.torch import save_file
    path = tmp_path / 'x.safetensors'
    save_file({'x': torch.zeros(2)}, path)
    with refuses(path, 'was not written by ltpa', 'ltpa train'): load_weights(path)
    write_tensors(path, {'x': torch.zeros(2)}, {'note': 'neither weights nor checkpoint'})
    with refuses(path, 'expected'): load_weights(path)
    state, meta = read_tensors(weights)
    write_tensors(weights, state, meta | dict(model='vgg_next'))
    with refuses("unknown model 'vgg_next'"): load_weights(weights)
    with refuses(tmp_path, 'is a folder', '.safetensors'): load_weights(tmp_path)
    with refuses('gone.safetensors: no such file'): load_weights(tmp_path / 'gone.safetensors')


@pytest.mark.parametrize('other, words', [
    (dict(name='vgg_trunk'), ('does not fit vgg_gap', 'lacks linear.bias')),
    (dict(classes=4), ('does not fit vgg_gap', 'linear.', 'of shape (4', 'not (3')),
    (dict(width=1 / 16), ('does not fit vgg_gap', 'of shape', 'the model it was trained as')),
], ids=words_id)
def test_state_of_another_network_changes_nothing(other, words):
    net = tiny_net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with refuses('file.x', *words): load_state(net, tiny_net(**other, seed=1).state_dict(), 'file.x')
    assert not differing(before, net.state_dict())


@pytest.mark.parametrize('change, words', [
    (lambda s: s.pop('mean'), ('lacks mean',)),
    (lambda s: s.update(more=torch.zeros(1)), ('has more, which vgg_gap has not',)),
    (lambda s: s['linear.weight'].fill_(torch.nan), ('linear.weight holds NaN',)),
    (lambda s: s['linear.bias'].fill_(torch.inf), ('linear.bias holds NaN or infinite',)),
], ids=words_id)
def test_state_with_a_flaw_changes_nothing(change, words):
    net, state = tiny_net(), tiny_net(seed=1).state_dict()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    change(state)
    with refuses('file.x', *words): load_state(net, state, 'file.x')
    assert not differing(before, net.state_dict())


def test_weights_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    path = tmp_path / 'file' / 'w.safetensors'
    with refuses(f'cannot write {path}', 'another folder'): save_weights(tiny_net(), path)


# Bundled weights

def test_bundled_names():
    assert set(BUNDLED) <= set(list_pretrained())
    with refuses("unknown pretrained network 'cluttered_fashion/vgg_gab'", "'cluttered_fashion/vgg_gap'"):
        load_pretrained('cluttered_fashion/vgg_gab')


@pytest.mark.parametrize('name', BUNDLED)
def test_pretrained_as_in_timm(name):
    source, model = name.split('/')
    whole = load_pretrained(name)
    for net in create_model(model, pretrained=True), create_model(model, pretrained=source):
        assert not net.training and not differing(net.state_dict(), whole.state_dict())
        assert (net.name, net.config, net.info) == (whole.name, whole.config, whole.info)
    same = create_model(model, pretrained=True, **whole.config)
    assert not differing(same.state_dict(), whole.state_dict()), 'what it has may be said'
    assert create_model(model, width=1 / 16, pretrained=False).training


@pytest.mark.parametrize('kw, words', [
    (dict(num_classes=100), ('num_classes=10, not 100',)), (dict(width=1.), ('width=0.25, not 1.0',)),
    (dict(early_pools=0), ('early_pools=1, not 0',)), (dict(norm='sigmoid'), ("norm='softmax', not 'sigmoid'",)),
    (dict(color='yuv_lcn'), ("color='rgb', not 'yuv_lcn'",)), (dict(u='msr'), ("u='small', not 'msr'",)),
    (dict(preset='paper'), ("project='g', not 'l'",)), (dict(temperature=8.), ('temperature=1.0, not 8.0',)),
], ids=words_id)
def test_pretrained_is_not_given_for_something_else(kw, words):
    name = 'vgg_att3_concat_pc'
    with refuses(f'cluttered_fashion/{name}', *words, 'width=0.25, early_pools=1, dropout=False', 'leave', 'ltpa train'):
        create_model(name, pretrained=True, **kw)


@pytest.mark.parametrize('name, which, words', [
    ('vgg_pan', True, ("unknown pretrained network 'cluttered_fashion/vgg_pan'", "'cluttered_fashion/vgg_gap'")),
    ('vgg_gap', 'svhn', ("'svhn/vgg_gap'", "'cluttered_fashion/vgg_gap'")), ('vgg_gap', '', ("'/vgg_gap'", "/vgg_gap'")),
    ('vgg_gab', True, ("unknown model 'vgg_gab'",))], ids=lambda v: str(v)[:9])
def test_pretrained_that_is_not_bundled(name, which, words):
    with refuses(*words): create_model(name, pretrained=which)


@pytest.mark.parametrize('name', BUNDLED)
def test_bundled_weights_score_what_their_record_says(name):
    "400 of the 4,000 test pictures; four standard deviations of such a sample are about 7 %."
    net, test = load_pretrained(name), ClutteredFashion('test', n=400)
    scores = json.loads((ASSETS / 'weights' / 'cluttered_fashion' / 'scores.json').read_text())[net.name]
    assert not net.training and net.info['classes'] == list(test.classes) and scores['images'] == 4000
    assert evaluate(net, test)['accuracy'] == pytest.approx(scores['accuracy'], abs=.07)
    if 'att3' in name: assert scores['accuracy'] >= .8 and scores['pointing_2'] >= .85


@pytest.mark.parametrize('name', BUNDLED)
def test_bundled_networks_are_what_the_command_would_train(name):
    "Network and recipe that their record tells are those of today's plan."
    record = json.loads((ASSETS / 'weights' / 'cluttered_fashion' / 'scores.json').read_text())
    record, today = record[name.split('/')[1]]['provenance'], plan(name)
    assert asdict(today.recipe) == Recipe.of_today(record['recipe'])
    assert today.net | dict(num_classes=10) == record['net'] == load_pretrained(name).config


def test_model_card_names_the_commit_of_each_network():
    folder = ASSETS / 'weights' / 'cluttered_fashion'
    rows = [line for line in (folder / 'README.md').read_text().splitlines() if line.startswith('| `')]
    for name, score in json.loads((folder / 'scores.json').read_text()).items():
        row, = (row for row in rows if f'`{name}`' in row)
        assert row.endswith(f' {score["provenance"]["commit"]} |')


@pytest.mark.parametrize('name', ['vgg_att3_concat_pc', 'vgg_att2_indep_dp', 'resnet164_att2_concat_dp'])
@pytest.mark.parametrize('norm', ['softmax', 'sigmoid'])
def test_taken_apart_and_put_together(name, norm):
    net, x = narrow(name, norm=norm).eval(), rgb(3)
    with torch.no_grad():
        whole, (l, g) = net(x), net.forward_features(x)
        for again in (net.forward_attention(l, g), net.pool(l, whole.maps)):
            torch.testing.assert_close(again.logits, whole.logits)
            for a, b in zip(again.maps, whole.maps, strict=True): torch.testing.assert_close(a, b)
        scores = net.scores(l, g)
        assert [c.shape for c in scores] == [a.shape for a in whole.maps]
        for c, a in zip(scores, whole.maps):
            torch.testing.assert_close(normalize(c.flatten(1), norm).view_as(a), a)
        asked = net.forward_attention(l, g.roll(1, 0)).maps                       # under pc and softmax g cancels
        assert ('_pc' in name and norm == 'softmax') == all(a.equal(b) for a, b in zip(asked, whole.maps))
        with refuses('a map of shape (3, 5, 5)', 'same batch'): net.pool(l, [a.new_ones(3, 5, 5) for a in whole.maps])
        with refuses('height and width'): net.forward_features(x[..., :31])


def test_a_name_that_means_two_networks(tmp_path, monkeypatch):
    "A bundled network, and a run of one's own in a folder of that name: neither is taken without a word."
    from ltpa.weights import weights_file
    monkeypatch.chdir(tmp_path)
    name = 'cluttered_fashion/vgg_gap'
    bundled = weights_file(name)
    save_weights(tiny_net(), f'{name}/weights.safetensors')
    with refuses(name, 'is a bundled network', f'./{name}'): load_weights(name)
    assert load_pretrained(name).num_classes == 10
    for mine in f'./{name}', Path(name): assert weights_file(mine) == Path(name) / 'weights.safetensors' != bundled
