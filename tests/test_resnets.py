"""ResNets: what is in them, counted and computed a second way; what reaches what; names and settings."""
import subprocess
import sys

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from helpers import random, refuses, tiny_net, words_id

from ltpa.core import keyed_rng
from ltpa.names import list_models
from ltpa.weights import load_state
from ltpa.models import create_model, load_weights, save_weights
from ltpa.resnets import Stages

NAMES = list_models('resnet')
ATT = 'resnet164_att2_concat_'


def rgb(n, H=32, W=None): return torch.rand(n, 3, H, W or H, generator=keyed_rng('rgb', H))


# What is in them

def layers(depth):
    "The trunk as a list: convolutions (kernel, channels in, channels out) and widths of BatchNorms."
    convs, norms, inp = [(3, 3, 16)], [], 16
    for out in 64, 128, 256:
        for block in range((depth - 2) // 9):
            convs += [(1, inp, out // 4), (3, out // 4, out // 4), (1, out // 4, out)]
            convs += [(1, inp, out)] * (block == 0)
            norms += [inp, out // 4, out // 4]
            inp = out
    return convs, norms


@pytest.mark.parametrize('depth', [11, 20, 164])
@pytest.mark.parametrize('classes', [10, 100])
def test_parameter_counts(depth, classes):
    convs, norms = layers(depth)
    trunk = sum(k * k * i * o for k, i, o in convs) + 2 * sum(norms)
    fc = lambda i, o: i * o + o
    norm = lambda c: 2 * c
    g = norm(256) + fc(9 * 256, 256) + norm(256) + fc(256, 256)
    project = norm(256) + fc(256, 128)
    want = {'resnet164': trunk + norm(256) + fc(256, classes),
            'resnet164_trunk': trunk + g + norm(256) + fc(256, classes),
            f'{ATT}uniform': trunk + g + norm(384) + fc(384, classes),
            f'{ATT}dp': trunk + g + project + norm(384) + fc(384, classes),
            f'{ATT}pc': trunk + g + project + fc(128, 1) + fc(256, 1) + norm(384) + fc(384, classes)}
    assert set(want) == set(NAMES)
    with torch.device('meta'): nets = {name: create_model(name, classes, depth=depth) for name in want}
    assert {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()} == want


@torch.no_grad()
def by_hand(trunk, x):
    "The trunk once more, from its weights alone, one operation a line."
    w = iter(trunk.state_dict().values())

    def act(x):
        gamma, beta, mean, var, _ = (next(w) for _ in range(5))
        return F.relu(F.batch_norm(x, mean, var, gamma, beta))

    x, taps = F.conv2d(x, next(w), padding=1), []
    for stage in range(3):
        for block in range(len(trunk.stages[stage])):
            stride = 2 if stage and not block else 1
            y = act(x)
            z = act(F.conv2d(y, next(w), stride=stride))
            z = act(F.conv2d(z, next(w), padding=1))
            z = F.conv2d(z, next(w))
            x = z + (x if block else F.conv2d(y, next(w), stride=stride))
        taps.append(x)
    assert next(w, None) is None
    return taps


def test_trunk_by_hand():
    torch.manual_seed(0)
    trunk = Stages(20, 1 / 8).double()
    trunk(random(4, 3, 16, 16, dtype=torch.float64))                      # BatchNorm's statistics move
    for m in trunk.modules():
        if isinstance(m, nn.BatchNorm2d): nn.init.normal_(m.weight, 1, .2); nn.init.normal_(m.bias)
    x = random(2, 3, 24, 32, dtype=torch.float64)
    for got, want in zip(trunk.eval()(x), by_hand(trunk, x), strict=True):
        torch.testing.assert_close(got, want)
        assert got.min() < 0, 'a tap is the bare sum'


def test_convolutions_and_dropout_as_the_authors_have_them():
    net = create_model(f'{ATT}pc', depth=11)
    biased = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    assert len(biased) == 1 and biased[0].startswith('glob.')
    for m in net.modules():
        if not isinstance(m, nn.Conv2d) or m.weight.numel() < 2000: continue
        std = (2 / (m.kernel_size[0]**2 * m.out_channels))**.5
        assert m.weight.std().item() == pytest.approx(std, rel=.1) and (m.bias is None or not m.bias.any())
    drops = {name: m.p for name, m in net.named_modules() if isinstance(m, nn.Dropout)}
    assert [p for name, p in drops.items() if name.startswith('glob')] == [.4, .5]
    assert [p for name, p in drops.items() if name.startswith('attention')] == [.5]
    assert [p for name, p in drops.items() if name.startswith('head')] == [.3, .3] and len(drops) == 5
    off = create_model(f'{ATT}pc', depth=11, width=1 / 8, dropout=False)
    assert not any(m.p for m in off.modules() if isinstance(m, nn.Dropout))


# Sizes

@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('H, W', [(32, 32), (64, 64), (32, 96)])
def test_shapes(name, H, W):
    net = tiny_net(name).eval()
    out = net(rgb(1, H, W))
    assert out.logits.shape == (1, 3) and out.logits.isfinite().all()
    maps = [(1, H // 2, W // 2), (1, H // 4, W // 4)] if 'att' in name else []
    assert [tuple(m.shape) for m in out.maps] == maps
    assert [d.shape[1] for d in out.descriptors] == ([16, 32] if 'att' in name else [32])
    for m in out.maps: torch.testing.assert_close(m.sum((1, 2)), torch.ones(1))


@pytest.mark.parametrize('name', NAMES)
def test_smallest_input(name):
    net, side = tiny_net(name).eval(), 4 if name == 'resnet164' else 32
    assert net(rgb(1, side)).logits.isfinite().all()
    with refuses(f'{side}x{side + 2} pixels', f'multiples of {side}'): net(rgb(1, side, side + 2))
    with refuses('batch of one', 'at least two images'): net.train()(rgb(1, side))
    assert net(rgb(2, side)).logits.isfinite().all()


# What reaches what

def test_map_of_pc_ignores_g_and_dp_does_not():
    for score, ignores in ('pc', True), ('dp', False), ('uniform', True):
        net = tiny_net(ATT + score).eval()
        before = net(rgb(2))
        for p in net.glob.parameters(): nn.init.normal_(p)
        after = net(rgb(2))
        assert [a.equal(b) for a, b in zip(before.maps, after.maps, strict=True)] == [ignores] * 2
        assert before.logits.equal(after.logits) == ignores


@pytest.mark.parametrize('name', NAMES)
def test_gradients(name):
    net = tiny_net(name).train()
    F.cross_entropy(net.logits(rgb(6)), torch.arange(6) % 3).backward()
    # under softmax nothing that makes g, nor a bias on the scores, can change a map
    idle = ('glob.', 'attention.0.project', 'attention.0.u.bias', 'attention.1.u.bias')
    idle = () if name.endswith(('dp', 'trunk')) or 'att' not in name else idle
    for key, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), key
        assert p.grad.any() != key.startswith(idle), key


# Names and settings

@pytest.mark.parametrize('name, kw, words', [
    *(('resnet164', dict(depth=d), (f'depth {d!r}', 'expected 9n+2', '11, 20, 29'))
      for d in (2, 10, 12, 163, -7, 20., '20', True, None)),
    ('resnet164', dict(early_pools=3), ("unknown switch 'early_pools'", 'known: width, depth')),
    ('resnet164', dict(norm='sigmoid'), ("unknown switch 'norm'", 'known: width, depth, dropout')),
    (f'{ATT}pc', dict(score='dp'), ('score is part of the name',)),
    (f'{ATT}pc', dict(norm='sofmax'), ("normalisation 'sofmax'", "'softmax'")),
    ('vgg_gap', dict(depth=11), ("unknown switch 'depth'", 'known: width, early_pools, dropout')),
    ('resnet164_att2_pc', {}, ("unknown model 'resnet164_att2_pc'", f"'{ATT}pc'")),
], ids=words_id)
def test_refused_settings(name, kw, words):
    with refuses(*words): create_model(name, **kw)


def test_settings_come_back(tmp_path):
    net = create_model(f'{ATT}dp', 4, width=1 / 16, depth=20, norm='sigmoid', temperature=2., dropout=False)
    back = load_weights(save_weights(net, tmp_path / 'w.safetensors'))
    assert back.config == net.config and back.config['depth'] == 20 and len(back.trunk.stages[0]) == 2
    torch.testing.assert_close(back(rgb(2)).maps, net.eval()(rgb(2)).maps, rtol=.05, atol=1e-3)
    deeper = create_model(f'{ATT}dp', 4, width=1 / 16, depth=29)
    with refuses('does not fit', 'lacks trunk.stages'): load_state(deeper, net.state_dict(), 'file.x')


def test_names_are_known_to_those_who_import_models_only(tmp_path):
    save_weights(tiny_net(f'{ATT}pc'), tmp_path / 'w.safetensors')
    code = ('import os, sys; from ltpa import models; assert "ltpa.resnets" not in sys.modules\n'
            'if not os.fork(): models.load_weights("w.safetensors"); os._exit(7)\n'      # each as the first call
            'assert os.waitstatus_to_exitcode(os.wait()[1]) == 7; assert "resnet164" in models.list_models()')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
