"""What a network says beside its answer: ranks against plain counting, files, odd networks, words on one line."""
import json

import build_weights
import measure_foreign as tool
import numpy as np
import pytest
import torch
from helpers import differing, one_line, pictures, random, refuses, tiny_net
from PIL import Image

from ltpa.foreign import FEW, LEAST, MOST, evenness, evidence, fit_foreign, foreign, known_classes, warnings_of
from ltpa.models import list_pretrained, load_pretrained, load_weights, save_weights
from ltpa.training import predict
from ltpa.weights import write_tensors

OWN = pictures(400, 32)


@pytest.fixture(scope='module')
def net():
    net = tiny_net('vgg_att2_concat_pc').eval()
    net.info = dict(foreign=fit_foreign(net, OWN), classes=OWN.classes)
    return net


def test_evidence_is_the_normalizer_of_the_softmax():
    z = random(50, 7)
    assert (z - evidence(z)[:, None]).exp().allclose(z.softmax(1), atol=1e-6)
    assert evidence(z + 3).allclose(evidence(z) + 3, atol=1e-5)
    assert evidence(z.half()).dtype == torch.float32, 'halves would round it'


def test_rank_is_the_share_of_its_own_pictures_with_less(net):
    own = evidence(predict(net, OWN.images)[0])
    logits = predict(net, pictures(200, 32, name='others').images)[0] + random(200, 1) / 10
    plain = [(own < e).float().mean().item() for e in evidence(logits)]
    assert foreign(net, logits).numpy() == pytest.approx(np.array(plain), abs=.012)         # hundredths are kept


def test_one_in_twenty_of_its_own_is_called_foreign(net):
    ranks = foreign(net, predict(net, OWN.images)[0])
    assert (ranks < FEW).float().mean() == pytest.approx(FEW, abs=.005)
    assert ranks.sort().values.allclose(torch.linspace(0, 1, 400), atol=.02), 'ranks are spread evenly'


@pytest.mark.parametrize('shift, rank', [(-1e3, 0), (1e3, 1)])
def test_beyond_all_of_its_own(net, shift, rank):
    assert foreign(net, predict(net, OWN.images[:5])[0] + shift).tolist() == [rank] * 5


def test_all_of_its_own_may_be_alike():
    net = tiny_net()
    net.info = dict(foreign=dict(statistic='energy', quantiles=[2.] * 101))
    at = lambda e: foreign(net, torch.tensor([[e, -1e4, -1e4]])).item()
    assert at(1.9) == 0 and at(2.1) == 1 and 0 <= at(2.) <= 1


def test_a_set_sorted_by_class_is_taken_evenly(monkeypatch, net):
    order, asked = OWN.labels.argsort(stable=True), []
    monkeypatch.setattr('ltpa.foreign.MOST', 150)
    monkeypatch.setattr('ltpa.foreign.predict', lambda net, x: asked.append(x) or predict(net, x))
    assert fit_foreign(net, OWN.images[order])['pictures'] == 150
    rows = [next(k for k, own in enumerate(OWN.images) if own.equal(x)) for x in asked[0]]
    assert OWN.labels[rows].bincount().tolist() == pytest.approx([50] * 3, abs=1)


def test_what_is_kept_is_small_plain_and_the_same_again(net):
    kept = net.info['foreign']
    assert len(json.dumps(kept)) < 2000 and kept == fit_foreign(net, OWN) == fit_foreign(net, OWN.images)


def test_fitting_leaves_the_network_alone():
    net = tiny_net().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fit_foreign(net, OWN)
    assert net.training and not differing(before, net.state_dict())
    assert all(p.grad is None for p in net.parameters())


def test_refused(net):
    with refuses('99 pictures', 'at least 100'): fit_foreign(net, OWN.images[:LEAST - 1])
    broken = tiny_net()
    with torch.no_grad(): [*broken.parameters()][-1].fill_(float('nan'))
    with refuses('NaN', 'diverged'): fit_foreign(broken, OWN)


def test_it_lives_in_the_file(net, tmp_path):
    path = save_weights(net, tmp_path / 'net.safetensors', foreign=net.info['foreign'])
    again, logits = load_weights(path), predict(net, OWN.images[:50])[0]
    assert foreign(again, logits).equal(foreign(net, logits))


@pytest.mark.parametrize('odd', [
    5, 'energy', [], dict(statistic='energy'), dict(quantiles=None), dict(quantiles=[0.] * 100),
    dict(quantiles=[*range(100, -1, -1)]), dict(quantiles=[0.] * 100 + ['x']), dict(quantiles=[0.] * 100 + [True]),
    dict(statistic='energy', quantiles=[0.] * 100 + [10 ** 400])])
def test_odd_files(odd, net, tmp_path):
    with refuses('foreign is', 'expected 101 rising quantiles', 'leave it out'):
        save_weights(net, tmp_path / 'net.safetensors', foreign=odd)
    meta = dict(kind='weights', model=net.name, config=net.config, foreign=odd)
    path = write_tensors(tmp_path / 'net.safetensors', net.state_dict(), meta)
    with refuses('net.safetensors', 'expected 101 rising quantiles', 'make or fetch it again'): load_weights(path)


@pytest.mark.parametrize('info', [{}, dict(foreign=None), dict(foreign=dict(statistic='of tomorrow', quantiles=[]))])
def test_a_network_that_does_not_say(info):
    net = tiny_net()
    net.info = info
    assert foreign(net, random(2, 3)) is None and warnings_of(net, random(1, 3) - 99) == []
    del net.info
    assert foreign(net, random(2, 3)) is None


def test_known_classes():
    net = tiny_net(classes=3)
    assert known_classes(net) == '3 classes without names'
    net.info = dict(classes=['a\nb', 'x' * 500, '\x1b[31mred'])
    one_line(known_classes(net), 'a\\nb', '…', '\\x1b[31mred')
    assert len(known_classes(net)) < 80
    assert known_classes(net, 1) == 'a\\nb and 2 more'


# Even maps

UNIFORM, POINT = torch.full((1, 6, 4), 1 / 24), torch.eye(24)[:1].view(1, 6, 4)


def test_evenness():
    assert evenness([UNIFORM, POINT]) == pytest.approx([1, 1 / 24])
    half = torch.cat([UNIFORM[:, :3], torch.zeros(1, 3, 4)], 1) * 2
    assert evenness([half]) == pytest.approx([.5])
    assert evenness([UNIFORM * 7, torch.ones(1, 1, 1), torch.rand(1, 5, 5)]) == [], 'gates and single cells say nothing'


@pytest.mark.parametrize('maps, warned', [
    ([UNIFORM], True), ([UNIFORM, UNIFORM], True), ([UNIFORM, POINT], False), ([POINT], False), ([], False),
    ([torch.ones(1, 1, 1)], False), ([.95 * UNIFORM + .05 * POINT], True), ([.6 * UNIFORM + .4 * POINT], False)])
def test_even_maps_are_warned_of(net, maps, warned):
    said = warnings_of(net, torch.full((1, 3), 1e3), maps)
    assert len(said) == warned
    for line in said: one_line(line, 'nearly even')


def test_the_uniform_control_is_always_warned_of_and_trained_attention_is_not():
    even = predict(tiny_net('vgg_att3_concat_uniform'), OWN.images[:3])[1]
    assert all(min(evenness([a[k:k + 1] for a in even])) > .999 for k in range(3))
    from ltpa import ClutteredFashion
    net = load_pretrained('cluttered_fashion/vgg_att3_concat_pc')
    logits, maps = predict(net, ClutteredFashion('test', n=100).render()[0])
    assert not any('nearly even' in line for k in range(100)
                   for line in warnings_of(net, logits[k:k + 1], [a[k:k + 1] for a in maps]))


@pytest.mark.parametrize('shift, than', [(-1e3, 'all'), (0, '98.')])
def test_words(net, shift, than):
    logits = predict(net, OWN.images)[0]
    least = logits[evidence(logits).argsort()[8]][None] + shift              # the ninth of 400: rank .02
    line, = warnings_of(net, least)
    one_line(line, 'unlike what it was trained on', f'in {than}', '5% of them', 'may mean nothing')


@pytest.mark.parametrize('place, warned', [(16, True), (24, False)])          # of 400: ranks .04 and .06
def test_the_threshold(net, place, warned):
    logits = predict(net, OWN.images)[0]
    assert bool(warnings_of(net, logits[evidence(logits).argsort()[place]][None])) == warned


# The tools

def test_caltechs_classes_are_of_the_ten_or_surely_not(tmp_path):
    for name in 'airplanes', 'emu', 'pigeon', 'Leopards', 'chair', 'pizza':
        (tmp_path / 'test' / name).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'test' / name / '1.png')
    found = tool.caltech(tmp_path, 'test')
    assert {k: len(v) for k, v in found.items()} == {'airplane': 1, 'bird': 2, None: 2}
    assert not set(tool.OF_TEN) & set(tool.DOUBTFUL['caltech'])


def test_rules_are_compared_at_one_in_twenty(net):
    far = OWN.images.float().mul(.3).byte()
    rows = [*tool.compared(net, OWN, dict(own=pictures(200, 32).images, dark=far), 200)]
    assert len({r['way'] for r in rows}) == 6 and {r['pictures'] for r in rows} == {'own', 'dark'}
    for r in rows:
        assert 0 <= r['warned'] <= 1 and 0 <= r['auroc'] <= 1
        if r['pictures'] == 'own': assert r['warned'] < .15 and r['auroc'] == pytest.approx(.5, abs=.1), r


def test_own_and_others_are_measured(net):
    rows = {r['pictures']: r for r in tool.measured(net, OWN.images, dict(same=OWN.images))}
    assert rows['own test part']['warned'] == rows['same']['warned'] == pytest.approx(FEW, abs=.005)
    assert rows['same']['auroc'] == .5 and rows['same']['even'] is not None


def test_bundling_keeps_the_weights(tmp_path, net):
    source = save_weights(net, tmp_path / 'a.safetensors', classes=OWN.classes, source=dict(source='here'))
    build_weights.add_foreign(source, tmp_path / 'b.safetensors', OWN)
    a, b = load_weights(source), load_weights(tmp_path / 'b.safetensors')
    assert not differing(a.state_dict(), b.state_dict()) and a.config == b.config
    assert b.info == a.info | dict(foreign=fit_foreign(a, OWN))
    assert set(build_weights.MODELS) == {'cluttered_fashion', *build_weights.WORDS} == set(build_weights.SIZES)


@pytest.mark.parametrize('name', list_pretrained())
def test_bundled_networks_say_what_is_foreign(name):
    net = load_pretrained(name)
    ranks = foreign(net, torch.full((1, net.num_classes), -50.))
    if ranks is None: pytest.skip('its file does not say yet')
    assert ranks.tolist() == [0] and net.info['foreign']['pictures'] == MOST
