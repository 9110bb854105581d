"""Asking one picture for what another shows: scenes, vectors, scores, answers."""
import json

import pytest
import torch
from helpers import pictures, random, refuses, tiny_net

from ltpa.data import ASSETS, ClutteredFashion, ImageSet
from ltpa.explorer import Gallery, State
from ltpa.faithfulness import bootstrap
from ltpa.maps import effective_cells, inspect_image, shade
from ltpa.models import load_pretrained
from ltpa.query import (
    ASKED, WAYS, Scenes, alike, answers, query_maps, best_level, class_means, contrast, contrasting, encode,
    interrogate, questions, soften_to_share, summarize, templates, two_objects)
from ltpa.training import evaluate, pointing_hits, predict

NAN = float('nan')


@pytest.fixture(scope='module')
def scenes(): return two_objects(40)


@pytest.fixture(scope='module')
def small():
    "Scenes and templates of three classes, for networks too small to look at real ones"
    images = pictures(12, 32).images
    masks = torch.zeros(12, 2, 32, 32, dtype=torch.bool)
    masks[:, 0, 4:20, 2:12] = True; masks[:, 1, 8:30, 18:30] = True
    labels = torch.stack([torch.arange(12) % 4, (torch.arange(12) + 1) % 4], 1)
    given = pictures(16, 32, 4, name='templates')
    return Scenes(images, masks, labels), given.images, given.labels


def test_objects_of_a_scene_are_apart_inside_and_of_trained_size(scenes):
    assert scenes.images.shape == (40, 3, 64, 64) and scenes.images.dtype == torch.uint8
    left = scenes.masks[..., :32].sum((2, 3))
    sizes = scenes.masks.sum((2, 3))
    assert ((left == 0) | (left == sizes)).all() and (left[:, 0] > 0).ne(left[:, 1] > 0).all()
    assert {True, False} == set((left[:, 0] > 0).tolist())          # either may be on the left
    rows = scenes.masks.any(3).sum(2)
    assert sizes.min() > 8 and rows.max() <= 36 and (scenes.labels[:, 0] != scenes.labels[:, 1]).all()


class Blocks(ClutteredFashion):
    "With squares that fill their boxes in place of garments"
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.objects = torch.full_like(self.objects, 255)


def test_even_squares_turned_by_20_degrees_keep_to_their_halves(monkeypatch):
    "No pixel of a box crosses the middle; nor is more room left there than the turn needs."
    monkeypatch.setattr('ltpa.query.ClutteredFashion', Blocks)
    masks = two_objects(1000, 64).masks
    columns = masks.any(2)
    left, right = columns[..., :32].any(2), columns[..., 32:].any(2)
    assert (left ^ right).all() and (left[:, 0] ^ left[:, 1]).all()
    assert columns[..., 30:34].any(), 'no box comes near the middle'
    sides = masks.sum((2, 3)).sqrt()
    assert 25 < sides.max() < 26.2 and 15 < sides.min() < 16.6, 'not of 16 to 26 pixels'


def test_scenes_at_another_size_keep_their_objects_as_large():
    sizes = [two_objects(100, size).masks.sum((2, 3)).float().mean().item() for size in (64, 128)]
    assert abs(sizes[0] - sizes[1]) < .15 * sizes[0]


def test_a_seed_decides_every_scene():
    first, again, other = two_objects(5), two_objects(5), two_objects(5, seed=1)
    assert all(a.equal(b) for a, b in zip(first, again)) and not first.images.equal(other.images)


def test_templates_and_scenes_share_no_object():
    from ltpa import query
    labels = torch.arange(200) % 10
    taken = query._some_of(labels, torch.arange(10).repeat(20), torch.Generator().manual_seed(0))
    assert taken.min() >= 100 and labels[taken].equal(torch.arange(10).repeat(20))
    images, given = templates()
    assert images.shape == (200, 3, 32, 32) and given.bincount().tolist() == [20] * 10


@pytest.mark.parametrize('name', ['vgg_att2_concat_dp', 'vgg_att3_concat_dp', 'resnet164_att2_concat_dp'])
def test_dp_maps_move_with_the_query(name, small):
    net = tiny_net(name, 4)
    net.train()
    l, g = encode(net, small[0].images, batch_size=5)
    assert net.training and len(l[0]) == len(g) == 12 and not g.requires_grad
    net.eval()
    with torch.no_grad(): own, whole = net.forward_attention(l, g), net(small[0].images / 255)
    for a, b in zip(own.maps, whole.maps): torch.testing.assert_close(a, b)
    moved = query_maps(net, small[0].images, small[0].images[3:4])
    torch.testing.assert_close(moved[0][3], own.maps[0][3])
    assert not any(a.equal(b) for a, b in zip(moved, own.maps))


@pytest.mark.parametrize('name', ['vgg_att3_concat_pc', 'vgg_att2_indep_pc', 'vgg_att2_concat_uniform',
                                  'resnet164_att2_concat_pc'])
def test_pc_and_uniform_maps_ignore_the_query_to_the_last_bit(name, small):
    net = tiny_net(name, 4).eval()
    l, g = encode(net, small[0].images)
    with torch.no_grad():
        first, second = (net.forward_attention(l, q).maps for q in (g, 100 * random(*g.shape)))
    assert all(a.equal(b) for a, b in zip(first, second))
    found = interrogate(net, *small, [('class mean', 'as it is'), ('absent class', 'as it is')])
    for a in found.values(): torch.testing.assert_close(a['share'], torch.full((12,), .5))
    with refuses(name, 'the same for every template', 'dot-product'): query_maps(net, small[0].images, small[1])
    with refuses(name, 'the same for every template'): contrasting(net, small[1])


def test_the_contrast_as_a_network(small):
    net, (scenes, given, _) = tiny_net('vgg_att2_concat_dp').eval(), small
    twin, l, g = contrasting(net, given), *encode(net, scenes.images)
    with torch.no_grad(): out, plain = twin.forward_attention(l, g), net.forward_attention(l, g)
    for a, b in zip(out.maps, soften_to_share(contrast(net, l, g, encode(net, given)[1]))): assert torch.allclose(a, b, atol=1e-5)
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(out.maps, plain.maps))
    assert all(a is b for a, b in zip(twin.parameters(), net.parameters())) and 'attend' not in vars(net)


def test_the_contrast_is_what_everything_shows(small):
    "Whatever takes a network sees the contrast's maps, and a classifier fed from them."
    net, (scenes, given, labels) = tiny_net('vgg_att2_concat_dp', 4, early_pools=0).eval(), small
    twin, images = contrasting(net, given), scenes.images
    l, g = encode(net, images)
    want = soften_to_share(contrast(net, l, g, encode(net, given)[1]))
    close = lambda got, want: [torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3) for a, b in zip(got, want)]
    with torch.no_grad(): out, pooled = twin(images / 255), net.pool(l, want)
    close(out.maps, want), close(out.descriptors, pooled.descriptors), close([out.logits], [pooled.logits])
    close(predict(twin, images)[1], want), close([predict(twin, images)[0]], [pooled.logits])
    own = predict(net, images)[1]
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(own, want)), 'nothing to tell apart'
    class Masked(ImageSet):
        def render(self): return self.images, scenes.masks[:, 0]
    hits = evaluate(twin, Masked(images, labels[:12], list('abcd'), 'masked'))
    for k, m in enumerate(want, 1):
        assert hits[f'pointing_{k}'] == pytest.approx(pointing_hits(m, scenes.masks[:, 0]).double().mean().item())
    l, g = encode(net, images[:1])                    # one picture alone has a temperature of its own
    alone = soften_to_share(contrast(net, l, g, encode(net, given)[1]))
    close(inspect_image(twin, images[0], 32).maps, alone)
    gallery = Gallery({'it': images[0]}, {'contrast': twin}, {})
    for level, a in enumerate(alone, 1): close([gallery.draw(State('it', 'contrast', level)).shades], shade(a))


def test_asking_with_its_own_vector_is_worth_exactly_one_half(small):
    net = tiny_net('vgg_att2_concat_dp', 4)
    for case in (('own g', how) for how in WAYS):
        for a in interrogate(net, *small, [case]).values():
            torch.testing.assert_close(a['share'], torch.full((12,), .5))
            assert (a['points'] <= .5).all()
            torch.testing.assert_close(a['on'] + a['other'] + a['beside'], torch.ones(12))


def test_contrast_has_nothing_left_of_what_all_questions_share(small):
    net = tiny_net('vgg_att3_concat_dp', 4).eval()
    l, g = encode(net, small[0].images)
    same = g[:1].expand_as(g)
    for c in contrast(net, l, same, 3 * same): assert c.abs().max() < 1e-5         # nor of its length
    with torch.no_grad(): raw = net.scores(l, g / g.norm(dim=1, keepdim=True))
    for c, a in zip(contrast(net, l, g, g), raw):
        difference = (c - a) - (c - a).mean((1, 2), keepdim=True)
        assert c.shape == a.shape and difference.abs().max() > 0


@pytest.mark.parametrize('scale', [1e-3, 1., 1e3])
def test_soften_reaches_the_cells_asked_for_whatever_the_scale(scale):
    c = random(6, 8, 8) * scale
    a, = soften_to_share((c,), 1 / 8)
    assert abs(effective_cells(a).mean() - 8) < .05
    assert a.flatten(1).argmax(1).equal(c.flatten(1).argmax(1))


def test_softened_maps_have_a_sixteenth_of_their_cells_unless_asked_otherwise():
    c = random(6, 8, 8), random(6, 16, 16)
    assert [effective_cells(a).mean().item() for a in soften_to_share(c)] == pytest.approx([64 / 16, 256 / 16], rel=.01)


def test_best_level_is_the_one_whose_record_points_best():
    scores = json.loads((ASSETS / 'weights/cluttered_fashion/scores.json').read_text())['vgg_att2_concat_pc']
    assert scores['pointing_1'] > scores['pointing_2'] + .3
    assert best_level(load_pretrained('cluttered_fashion/vgg_att2_concat_pc')) == 1


def test_questions_ask_for_what_they_say(small):
    scenes, _, labels = small
    g = random(16, 5)
    own = random(12, 5, seed=1)
    asked = questions(scenes, own, g, labels)
    means = class_means(g, labels)
    for i, here in enumerate(scenes.labels.tolist()):
        for k in (0, 1):
            assert asked['own g'][i, k].equal(own[i]) and asked['class mean'][i, k].equal(means[here[k]])
            assert any(asked['one template'][i, k].equal(v) for v in g[labels == here[k]])
        absent = [next(c for c in range(4) if means[c].equal(v)) for v in asked['absent class'][i]]
        assert not {*absent} & {*here} and absent[0] != absent[1]
    assert set(asked) >= {what for what, _ in ASKED} and set(WAYS) >= {how for _, how in ASKED}


def test_where_multiplies(small):
    net = tiny_net('vgg_att2_concat_dp', 4)
    only = small[0].masks[:, 0].float()
    found = interrogate(net, *small, [('class mean', 'contrast')], where=only / only.sum((1, 2), keepdim=True))
    for a in found.values(): assert (a['beside'] < 1e-4).all() and torch.allclose(a['share'], torch.full((12,), .5))


def test_interval_holds_the_mean_and_shrinks_with_the_pictures():
    few, many = random(50).abs(), random(5000).abs()
    for x in (few, many):
        low, high = bootstrap(x)
        assert low < x.mean() < high
    assert bootstrap(few)[1] - bootstrap(few)[0] > 5 * (high - low)


def test_summary_tells_seeds_from_scenes():
    a = dict(share=torch.tensor([.2, .8]), on=torch.tensor([.1, .3]))
    b = dict(share=torch.tensor([.4, 1.]), on=torch.tensor([.1, .3]))
    row = summarize([a, b])
    assert row['share'] == .6 and row['share_sd'] == .1414 and row['on'] == .2
    assert 'share_sd' not in summarize([a])


def test_alike_needs_both_of_one_group():
    classes = ['coat', 'bag', 'sneaker', 't-shirt', 'pullover', 'dress', 'shirt', 'sandal', 'ankle boot']
    assert alike(torch.tensor([[0, 3], [0, 2], [2, 8], [1, 1]]), classes).tolist() == [True, False, True, False]


@pytest.mark.parametrize('call, words', [
    (lambda s: two_objects(0), ('n 0', 'at least 1')),
    (lambda s: two_objects(3, 32), ('size 32', 'at least 64')),
    (lambda s: encode(tiny_net('vgg_gap'), s[1]), ('vgg_gap', 'no l and g', 'vgg_att2_concat_dp')),
    (lambda s: encode(tiny_net('vgg_att2_concat_dp'), s[1][:0]), ('(0, 3, 32, 32)', 'at least one picture')),
    (lambda s: encode(tiny_net('vgg_att2_concat_dp'), s[1].float()), ('pixels 0 to', 'floats in 0..1')),
    (lambda s: class_means(random(2, 4), torch.tensor([0, 2])), ('class 1', 'at least one of each')),
    (lambda s: answers([random(12, 4, 4).abs()], s[0].masks), ('1 sets', 'expected two sets')),
    (lambda s: answers([random(3, 4, 4).abs()] * 2, s[0].masks), ('[3, 3]', 'expected two sets')),
    (lambda s: answers([random(12, 4, 4).abs() * NAN] * 2, s[0].masks), ('NaN',)),
    (lambda s: interrogate(tiny_net('vgg_att2_concat_dp', 4), *s, [('class mena', 'contrast')]), ("'class mean'",)),
    (lambda s: interrogate(tiny_net('vgg_att2_concat_dp', 4), *s, [('class mean', 'cosin')]), ("'cosine'",)),
], ids=lambda v: v[0] if isinstance(v, tuple) else '')
def test_refusals(call, words, small):
    with refuses(*words): call(small)


def test_tool_says_what_it_was_measured_on(tmp_path, monkeypatch):
    import measure_query
    names = measure_query.MODELS | dict(fresh=measure_query.MODELS['dp'])
    monkeypatch.setattr(measure_query, 'ROOT', tmp_path)
    monkeypatch.setattr(measure_query, 'networks', lambda seed: {k: tiny_net(m, 10, seed) for k, m in names.items()})
    monkeypatch.setattr(measure_query, 'best_level', lambda net: 2)
    def measured(*args):
        measure_query.main(['--scenes', '4', *args])
        return json.loads((tmp_path / 'results' / 'query.json').read_text())
    two, more = measured('--seeds', '0', '1'), measured('--seeds', '0', '--scenes', '5')
    kept = [r['provenance'] for r in (two, more)]
    assert len(kept[0]['data']) == 16 and kept[0]['data'] != kept[1]['data']
    assert {s: set(w) for s, w in kept[0]['weights'].items()} == {'0': set(names), '1': set(names)}
    assert kept[0]['weights']['0'] == kept[1]['weights']['0'] != kept[0]['weights']['1']
    rows = {(r['net'], r['asked'], r['how'], r['level']): r for r in two['rows']}
    assert rows['dp', 'own g', 'as it is', 1]['share'] == rows['pc', 'class mean', 'as it is', 3]['share'] == .5
    best, second = (rows['dp', 'class mean', 'contrast', level] for level in ('best', 2))
    assert best | dict(level=2) == second and 'share_sd' in best
