"""Weights that nobody listens to: found, taken out, and the same answers to the bit."""
import doctest

import pytest
import torch
from helpers import refuses, tiny_net

import ltpa.pruning
from ltpa.models import create_model, load_weights, save_weights
from ltpa.pruning import dead_weights, prune_unused
from ltpa.training import predict

def noise(*shape): return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


DEAF = 'vgg_att1_pc', 'vgg_att2_indep_pc', 'vgg_att3_concat_pc', 'vgg_att3_concat_uniform', 'resnet164_att2_concat_pc'


def test_examples_in_docstrings(): assert doctest.testmod(ltpa.pruning).failed == 0


def small(name, **kw):
    torch.manual_seed(0)                  # of one in fifteen nets, a layer of one channel is dead from the start
    net = create_model(name, 4, width=1 / 16, **(dict(depth=11) if 'resnet' in name else {}), **kw)
    net(noise(8, 3, 32, 32))                                     # statistics that are not those of a new net
    return net.eval()


@pytest.mark.parametrize('name', DEAF)
@pytest.mark.parametrize('kw', [{}, dict(project='l'), dict(head='plain')], ids=str)
def test_the_same_to_the_bit_without(name, kw):
    if 'uniform' in name and 'project' in kw: pytest.skip('nothing to project')
    net, x = small(name, **kw), noise(5, 3, 32, 32)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    dead, twin = dead_weights(net), prune_unused(net)
    assert twin.config['glob'] == 'none' and twin.name == net.name and not twin.training
    (logits, maps), (logits_, maps_) = predict(net, x), predict(twin, x)
    assert logits.equal(logits_) and all(a.equal(b) for a, b in zip(maps, maps_))
    gone = set(before) - set(twin.state_dict())
    assert gone and {k for k in gone if k in dict(net.named_parameters())} <= set(dead)
    assert {k.split('.')[-1] for k in dead_weights(twin)} <= {'bias'}, 'what is left learns, but for a bias under softmax'
    assert all(v.equal(net.state_dict()[k]) for k, v in before.items()) and not net.training


def test_a_pruned_network_is_read_again(tmp_path):
    twin = prune_unused(small('vgg_att2_concat_pc'))
    again = load_weights(save_weights(twin, tmp_path / 'a.safetensors', classes=list('abcd')))
    assert again.config == twin.config and set(again.state_dict()) == set(twin.state_dict()) and again.info['classes'] == list('abcd')
    assert prune_unused(again).state_dict().keys() == again.state_dict().keys(), 'once more: nothing happens'


def test_a_pruned_network_learns():
    net = create_model('vgg_att3_concat_pc', 4, width=1 / 16, glob='none').train()
    net.logits(noise(4, 3, 32, 32)).sum().backward()
    assert net.attention[0].u.weight.grad.any() and not any('glob' in k for k in dict(net.named_parameters()))


@pytest.mark.parametrize('name, kw', [('vgg_att2_concat_dp', {}), ('vgg_att2_concat_pc', dict(norm='sigmoid'))])
def test_who_listens_is_not_pruned(name, kw):
    net = small(name, **kw)
    with refuses("glob 'none'", 'listen to the global vector'): prune_unused(net)
    assert 'glob.fc.3.weight' not in dead_weights(net)


def test_who_has_no_attention_is_refused():
    for net in tiny_net('vgg_trunk'), tiny_net('vgg_pan'), torch.nn.Linear(1, 1):
        with refuses('expected a network vgg_att'): prune_unused(net)
    assert not dead_weights(tiny_net('vgg_trunk'))


def test_training_state_and_modes_stay():
    net = small('vgg_att1_pc').train()
    state, flags = torch.get_rng_state(), [m.training for m in net.modules()]
    dead_weights(net)
    assert prune_unused(net).training and state.equal(torch.get_rng_state()) and flags == [m.training for m in net.modules()]
