"""The explorer: states drawn without widgets, widgets moved without a browser, uploads that are no pictures."""
import io
from datetime import datetime

import ipywidgets
import numpy as np
import pytest
import torch
from helpers import pictures, random, refuses, tiny_net
from PIL import Image

from ltpa.widgets import CUT, LIMIT, CellGrid, judged, picture, read_upload
from ltpa.explorer import (
    BESIDE, Explorer, Gallery, Scene, State, draw_state, field_steps, heated, influence, query_note,
    receptive_field, strength)
from ltpa.maps import effective_cells
from ltpa.models import list_pretrained
from ltpa.names import USUAL_NETWORK
from ltpa.photographs import list_photographs

NETS = ['vgg_att1_pc', 'vgg_att2_indep_dp', 'vgg_att3_concat_pc', 'vgg_att3_concat_uniform',
        'resnet164_att2_concat_dp']
PHOTOS = pictures(3, 32).images


def lively(name, **kw):
    "Scores that are not nearly nothing, so that maps are not nearly uniform."
    net = tiny_net(name, **kw).eval()
    with torch.no_grad():
        for att in net.attention:
            if att.score == 'pc': att.u.weight.copy_(random(*att.u.weight.shape) * 3)
    return net


@pytest.fixture(scope='module')
def nets(): return {name: lively(name) for name in NETS}


def gallery(nets, **kw): return Gallery(dict(zip('abc', PHOTOS)), nets, **kw)


def same(a, b):
    assert a.panels.keys() == b.panels.keys() and a.probs.equal(b.probs) and a.cell == b.cell and a.note == b.note
    for key in a.panels:
        assert a.panels[key][::2] == b.panels[key][::2] and np.array_equal(a.panels[key][1], b.panels[key][1])


# States

@pytest.mark.parametrize('method', [None, *BESIDE])
@pytest.mark.parametrize('name', NETS)
def test_every_state_is_drawn_and_drawn_alike(nets, name, method):
    one, two = gallery(nets), gallery(nets)
    for level in range(1, len(nets[name].attention) + 1):
        state = State('a', name, level, 'b', .5, 4, method, (0, 1))
        drawing = one.draw(state)
        same(drawing, two.draw(state))
        assert list(drawing.panels) == ['picture', 'own', 'attention', *['method'] * bool(method), 'cell']
        for title, rgb, caption in drawing.panels.values():
            assert rgb.shape == (224, 224, 3) and rgb.dtype == np.uint8 and title and caption
        assert drawing.probs.sum().item() == pytest.approx(1) and 0 <= drawing.shades.min() <= drawing.shades.max() <= 1


def test_a_dark_picture_is_seen_under_each_map(nets):
    "Dark under dark would be black: below the maps the picture is pale grey, in the first panel it stays as it is."
    dark = (PHOTOS[0].float() / 255 * 20).byte()
    panels = Gallery(dict(a=dark), nets).draw(State('a', NETS[2], 1, 'a', 1., 0, 'gradient', (0, 1))).panels
    assert panels.pop('picture')[1].mean() < 25 and list(panels) == ['own', 'attention', 'method', 'cell']
    for name, (_, rgb, _) in panels.items(): assert rgb.mean() > 40, name


def test_the_plain_state_is_the_network_itself(nets):
    for name, net in nets.items():
        scene, x = Scene(net, PHOTOS[0]), PHOTOS[:1] / 255
        with torch.no_grad(): whole = net(x)
        assert scene.attacked().equal(x) and scene.attacked(0).equal(x)
        out = scene.out()
        torch.testing.assert_close(out.logits, whole.logits)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(out.maps, whole.maps))


def test_the_order_of_states_does_not_matter(nets):
    states = [State('a', name, 1, query, t, eps, method) for name in NETS[:2] for query in (None, 'b')
              for t in (.25, 4.) for eps in (0, 8) for method in (None, 'gradient')]
    one, two = gallery(nets), gallery(nets)
    drawn = [one.draw(s) for s in states]
    for s, d in zip(states[::-1], drawn[::-1]): same(two.draw(s), d)


def test_the_attack_stays_within_eps_and_raises_the_loss(nets):
    net = nets['vgg_att3_concat_pc']
    scene = Scene(net, PHOTOS[0])
    label = scene.out().logits.argmax(1)
    losses = [torch.nn.functional.cross_entropy(scene.out(eps).logits, label).item() for eps in (0, 1)]
    assert losses[1] > losses[0]
    for eps in 1, 8, 255:
        x = scene.attacked(eps)
        assert 0 <= x.min() and x.max() <= 1 and (x - scene.x).abs().max() <= eps / 255 + 1e-6
    assert torch.is_grad_enabled() and all(p.grad is None for p in net.parameters())


def test_the_strongest_hundredth_is_as_dark_as_can_be():
    m = torch.arange(1., 1001).view(1, 20, 50) * torch.tensor([1., -1.]).repeat(500).view(1, 20, 50)
    shades = strength(m)
    assert (shades == 1).sum() == 10 and shades.amin().item() == pytest.approx(1 / 990, rel=.01)
    assert not strength(torch.zeros(1, 4, 4)).any()


def test_gradients_where_they_are_switched_off(nets):
    state = State('a', NETS[0], eps=4, method='gradient')
    with torch.no_grad(): drawing = gallery(nets).draw(state)
    same(drawing, gallery(nets).draw(state))


def test_a_query_moves_dp_and_leaves_pc_bit_for_bit(nets):
    for name, net in nets.items():
        scene, g = Scene(net, PHOTOS[0]), Scene(net, PHOTOS[1]).encoded()[1]
        for t in (.25, 1., 7.):
            a, b = scene.out(temperature=t), scene.out(temperature=t, g=g)
            kept = [x.equal(y) for x, y in zip(a.maps, b.maps)]
            assert kept == [bool(query_note(net, k)) for k, _ in enumerate(kept, 1)] == ['dp' not in name] * len(kept)
            if all(kept): assert a.logits.equal(b.logits)
    gates = lively('vgg_att1_pc', norm='sigmoid')
    assert not query_note(gates, 1)
    scene = Scene(gates, PHOTOS[0])
    assert not scene.out().maps[0].equal(scene.out(g=Scene(gates, PHOTOS[1]).encoded()[1]).maps[0])
    assert 'gates' in draw_state(scene, State('a', '')).panels['attention'][2]


def test_note_only_with_a_query(nets):
    g = gallery(nets)
    assert not g.draw(State('a', 'vgg_att1_pc')).note and g.draw(State('a', 'vgg_att1_pc', query='b')).note


@pytest.mark.parametrize('temperature, cells', [(1e-6, 1), (1e6, 16 * 16)])
def test_extreme_temperatures(nets, temperature, cells):
    for name in 'vgg_att1_pc', 'vgg_att2_indep_dp':
        a = Scene(nets[name], pictures(1, 128).images[0], side=128).out(temperature=temperature).maps[-1]
        n = a[0].numel()
        assert effective_cells(a).item() == pytest.approx(min(cells, n), rel=1e-3)


@pytest.mark.parametrize('bad', [0, -1, float('nan'), float('inf')])
def test_temperatures_that_are_none(nets, bad):
    net = nets[NETS[0]]
    with refuses('temperature', repr(bad), 'above 0'): Scene(net, PHOTOS[0]).out(temperature=bad)


def test_temperatures_are_put_back_after_an_error():
    net = lively('vgg_att3_concat_pc', temperature=2.)
    with pytest.raises(ZeroDivisionError):
        with heated(net, 3): assert net.attention[0].temperature == 6; 1 / 0
    assert [att.temperature for att in net.attention] == [2.] * 3


@pytest.mark.parametrize('change, words', [
    (dict(level=4), ['level 4', '1 to 1']), (dict(level=0), ['level 0']), (dict(image='z'), ["unknown picture 'z'"]),
    (dict(query='z'), ["unknown picture 'z'"]), (dict(model='vgg_att1_dp'), ["unknown network 'vgg_att1_dp'"]),
    (dict(temperature=100.), ['temperature 100.0', '0.125 to 64']), (dict(temperature=.01), ['temperature 0.01']),
    (dict(temperature=float('nan')), ['temperature nan']), (dict(eps=64), ['eps 64', '0 to 32']),
    (dict(eps=-3), ['eps -3']), (dict(eps=2.5), ['eps 2.5', 'whole number']),
    (dict(method='grad_cm'), ["'grad_cm'", "'grad_cam'"]), (dict(cell=(4, 0)), ['cell (4, 0)', '0 to 1'])])
def test_states_that_do_not_exist(nets, change, words):
    with refuses(*words): gallery(nets).draw(State('a', 'vgg_att1_pc')._replace(**change))


def test_collections_that_cannot_be_shown(nets):
    with refuses('no pictures'): Gallery([], nets)
    with refuses('no networks'): Gallery(None, {})
    with refuses('images is a network (VGGAttention)', 'models=dict(mine=net)'): Explorer(lively('vgg_att1_pc'))
    assert [*Gallery(PHOTOS, lively('vgg_att1_pc')).models] == ['mine']
    with refuses("unknown pretrained network 'vgg_att3'"): gallery(['vgg_att3']).draw(State('a', 'vgg_att3'))
    with refuses('vgg_gap', 'an attention network'): Explorer(PHOTOS, dict(gap=tiny_net()))


def test_pictures_of_other_sizes_and_from_files(nets, tmp_path):
    Image.fromarray(np.zeros((90, 250, 3), np.uint8)).save(tmp_path / 'wide.png')
    g = Gallery([tmp_path / 'wide.png', PHOTOS[0], np.zeros((40, 40, 3), np.uint8)], nets, side=64)
    assert list(g.images) == ['wide.png', 'picture 2', 'picture 3']
    drawing = g.draw(State('wide.png', 'vgg_att1_pc'))
    assert drawing.panels['picture'][1].shape == (64, 160, 3) and '160×64' in drawing.panels['picture'][2]
    mixed = Gallery(dict(small=PHOTOS[0], large=pictures(1, 64).images[0]), nets, side='own')
    seen = [mixed.scene('vgg_att1_pc', name).x.shape[2:] for name in mixed.images]
    assert seen == [PHOTOS[0].shape[1:], (64, 64)]
    seen = [mixed.scene('vgg_att1_pc', 'large', side).x.shape[2:] for side in (32, None, 'own')]
    assert seen == [(32, 32), (64, 64), (64, 64)]


def test_the_grid_of_cells_has_the_shape_of_the_map(nets):
    e = Explorer(dict(wide=torch.rand(3, 32, 96), tall=torch.rand(3, 96, 32)), nets, side='own')
    def sizes(stack): return [int(v.removesuffix('px')) for v in (stack.layout.width, stack.layout.height)]
    assert sizes(e.panes.grid.stack) == [222, 74] and sizes(e.panes.over) == [224, 75]
    e.widgets['image'].value = 'tall'
    assert sizes(e.panes.grid.stack) == [74, 222] and sizes(e.panes.over) == [75, 224]


def test_it_begins_with_photographs():
    g = Gallery()
    assert list(g.images)[0] == 'cat' and set(list_photographs()) < set(g.images) and 'sneaker' in g.images
    assert list(g.models)[0] == USUAL_NETWORK and list(g.models)[-1].startswith('cluttered_fashion/')
    assert set(g.models) == {name for name in list_pretrained() if '_att' in name}
    e = Explorer()
    assert e.state.image == 'cat' and e.state.side == 64 and '96×64' in e.draw(e.state).panels['picture'][2]
    e.widgets['image'].value = 'sneaker'                     # of 32 pixels: at 64 it would be another picture
    assert e.state.side is None and '32×32' in e.draw(e.state).panels['picture'][2] and e.widgets['side'].value == ''
    e.widgets['side'].value = 64
    upload(e, encoded(NOISE))
    assert e.state.image == 'mine.png' and e.state.side is None
    assert Explorer(side=32).state.side is None and Explorer(images=PHOTOS).state.side is None


# Receptive fields

@pytest.mark.parametrize('name, early', [('vgg_att3_concat_pc', 0), ('vgg_att3_concat_pc', 1),
                                         ('vgg_att2_indep_dp', 2), ('resnet164_att2_concat_dp', None)])
def test_fields_are_what_nan_reaches(name, early):
    "A row of NaN: all that depends on it turns to NaN. Then the same with columns."
    net = tiny_net(name, **({} if early is None else dict(early_pools=early))).eval()
    images = torch.full((64, 3, 64, 32), .5)
    for y, image in enumerate(images): image[:, y] = float('nan')
    with torch.no_grad(): reached = [[l.isnan().any(1) for l in net.forward_features(x)[0]] for x in (images, images.mT)]
    for level in range(1, len(net.attention) + 1):
        rows, columns = reached[0][level - 1].any(2), reached[1][level - 1].any(1)
        for r in range(rows.shape[1]):
            top, bottom, *_ = receptive_field(net, level, (r, 0), (64, 32))
            *_, left, right = receptive_field(net, level, (0, r), (32, 64))
            assert rows[:, r].nonzero().flatten().tolist() == list(range(top, bottom))
            assert columns[:, r].nonzero().flatten().tolist() == list(range(left, right))


def test_influence_stays_within_the_field(nets):
    net = nets['vgg_att3_concat_pc']
    scene = Scene(net, pictures(1, 128).images[0], side=128)
    for level in 1, 2:
        m = influence(scene, level, (5, 6))[0]
        top, bottom, left, right = receptive_field(net, level, (5, 6), (128, 128))
        inside = m[top:bottom, left:right].sum()
        assert inside > 0 and m.sum() == pytest.approx(inside.item(), rel=1e-5)


def test_fields_of_the_layout_for_birds():
    net = tiny_net('vgg_att3_concat_pc', layout='cub', early_pools=0)
    with refuses("'cub'", 'deeper level'): field_steps(net, 1)
    assert field_steps(net, 2)[1] == 5


# Widgets

@pytest.fixture
def explorer(nets): return Explorer(dict(zip('abc', PHOTOS)), nets, side=32)


def shown(e): return {k: p[1].value for k, p in e.panes.panels.items()}


def pixels(e): return {k: v.partition('src=')[2] for k, v in shown(e).items()}


def mirrors(e):
    "What is promised: widgets show the state, and pictures are the state's."
    for name, value in e.state._asdict().items():
        if name != 'cell': assert e.widgets[name].value == ('' if value is None else value), name
    for name in 'image', 'query', 'method': assert e.widgets[name].label, f'{name} shows an empty choice'
    for key, (title, rgb, caption) in e.draw(e.state).panels.items(): assert shown(e)[key] == picture(rgb, f'{title}: {caption}')


def test_moved_widgets_draw_their_state(explorer):
    e = explorer
    mirrors(e)
    moves = [('eps', 8), ('temperature', 4.), ('image', 'b'), ('model', 'vgg_att3_concat_pc'), ('level', 3),
             ('query', 'c'), ('method', 'gradient'), ('model', 'vgg_att2_indep_dp'), ('query', ''), ('eps', 0), ('side', 64), ('side', '')]
    for name, value in moves:
        before = shown(e)
        e.widgets[name].value = value
        assert getattr(e.state, name) == (None if value == '' else value) and not e.panes.status.value
        mirrors(e)
        if name != 'query': assert shown(e) != before, name
    assert e.state.level == 2 and list(e.widgets['level'].options) == [1, 2]


@pytest.mark.parametrize('change, drawn', [
    (dict(temperature=100.), False), (dict(temperature=.01), False), (dict(eps=64), False), (dict(eps=-3), False),
    (dict(eps=2.5), False), (dict(level=9), True), (dict(temperature=64.), True), (dict(temperature=.125), True),
    (dict(temperature=1.1), True), (dict(eps=32), True), (dict(side=48), True), (dict(side='own'), True),
    (dict(side=2), False), (dict(side=0), False), (dict(side=-64), False), (dict(side=33.5), False),
    (dict(side=10**6), False), (dict(side='large'), False)])
def test_states_from_code_are_shown_or_refused(explorer, change, drawn):
    before = explorer.state
    assert explorer.show(before._replace(**change)) == drawn == (not explorer.panes.status.value)
    assert drawn or explorer.state == before
    mirrors(explorer)


@pytest.mark.parametrize('eps', [0, 8])
def test_a_network_that_says_nan_is_not_drawn(eps):
    net = lively('vgg_att1_pc')
    with torch.no_grad(): net.head.linear[0].bias[1] = float('nan')
    with refuses('NaN or infinite', 'weights'): Gallery(PHOTOS, dict(n=net)).draw(State('picture 1', 'n', eps=eps))


def test_pc_shows_no_change_for_a_query_and_says_why(explorer):
    before = pixels(explorer)
    explorer.widgets['query'].value = 'b'
    after = pixels(explorer)
    assert after.pop('own') == before['attention'] and 'cancels' in explorer.panes.note.value
    assert after == {k: v for k, v in before.items() if k != 'own'}
    explorer.widgets['query'].value = ''
    assert not explorer.panes.note.value


def test_a_clicked_cell(explorer):
    e = explorer
    e.widgets['model'].value = 'vgg_att3_concat_pc'
    e.widgets['level'].value = 2
    e.panes.grid.buttons.index = 15
    e.panes.grid.buttons.index = 6
    assert e.state.cell == (1, 2) and '(1, 2)' in e.panes.panels['cell'][0].value
    assert e.panes.grid.buttons.label == 'row 1, column 2' and len(e.panes.grid.buttons.options) == 16
    e.widgets['eps'].value = 3
    assert e.state.cell == (1, 2)
    e.widgets['image'].value = 'b'
    assert e.state.cell is None
    mirrors(e)


def test_large_maps_have_buttons_for_blocks(nets):
    e = Explorer([pictures(1, 160).images[0]], {'n': lively('vgg_att3_concat_pc')}, side=160)
    e.widgets['level'].value = 1
    assert e.draw(e.state).shades.shape == (40, 40) and len(e.panes.grid.buttons.options) == 20 * 20
    e.panes.grid.buttons.index = 19 * 20 + 1
    assert e.state.cell == (39, 3)
    mirrors(e)
    e.widgets['level'].value = 3
    assert len(e.panes.grid.buttons.options) == 100


@pytest.mark.parametrize('h, w', [(4, 4), (2, 6), (16, 24), (32, 32), (33, 8), (112, 112)])
def test_cells_fit_every_shape_and_scroll_in_their_box(h, w):
    picked = []
    grid = CellGrid(picked.append)
    weights = torch.rand(h, w) / (h * w)
    grid.show(weights, weights / weights.max(), (h - 1, 0))
    assert len(set(grid.places)) == len(grid.buttons.options) <= 32 * 32 and grid.box.layout.overflow == 'auto'
    size = [int(v.removesuffix('px')) for v in (grid.stack.layout.height, grid.stack.layout.width)]
    assert size[0] / size[1] == pytest.approx(h / w, rel=.05) and size[0] / len({r for r, _ in grid.places}) >= 13
    assert not picked and grid.places[grid.buttons.index][0] >= h - 4
    grid.buttons.index = 1
    (r, c), = picked
    assert grid.buttons.tooltips[1] == f'row {r}, column {c}: {weights[r, c]:.2%} of the weight'


def test_everything_has_a_label_and_a_tooltip(explorer):
    for widget in [*explorer.widgets.values(), explorer.own.button, explorer.own.path]: assert widget.tooltip, widget
    for row in explorer.box.children[2].children:
        named = row.children[0] if hasattr(row, 'children') else row           # a number field before its slider
        assert named.description and named.tooltip, row
    assert LIMIT in explorer.own.button.description
    for picture in shown(explorer).values(): assert not picture or 'alt="' in picture and 'alt=""' not in picture


def test_a_number_field_and_its_slider_are_one(explorer):
    field, slider = explorer.box.children[2].children[6].children
    assert field.description == 'temperature' and slider is explorer.widgets['temperature']
    field.value = 2.5
    assert explorer.state.temperature == 2.5
    slider.value = 2 * (1 - 1e-12)                                   # as a slider in powers of two says 2
    assert field.value == 2 and explorer.state.temperature == slider.value


def test_reset_brings_everything_back(explorer):
    first, before = explorer.state, shown(explorer)
    upload(explorer, encoded(NOISE))
    for name, value in dict(eps=4, temperature=2., query='b', method='gradient', side=64).items():
        explorer.widgets[name].value = value
    explorer.panes.grid.buttons.index = 1
    button = explorer.own.button
    explorer.widgets['reset'].click()
    assert explorer.state == first and pixels(explorer)['attention'] == before['attention'].partition('src=')[2]
    assert explorer.own.button is not button and 'mine.png' in explorer.images
    assert explorer.panes.columns['own'].layout.display == 'none'
    mirrors(explorer)


@pytest.mark.parametrize('truth, sign, words', [
    ('cat', '✓', 'right'), ('dog', '✗', 'it is “dog”'), ('moose', '✗', 'no class “moose”'), (None, '?', 'not known')])
def test_right_or_wrong_in_a_sign_and_words(truth, sign, words):
    said = judged(['cat', 'dog'], 'cat', truth)
    assert said[0] == sign and words in said[1]


def test_what_pictures_show_is_known_of_the_bundled_ones_and_of_no_others(nets):
    g = Gallery()
    assert g.truth['cat'] == 'cat' and g.truth['moose'] == 'deer' and g.truth['sneaker'] == 'sneaker'
    e = Explorer(dict(zip('abc', PHOTOS)), nets, truth=dict(a='class 0'))
    assert any(words in e.panes.bars.value for words in ('✓ right', 'wrong: it is “class 0”'))
    e.widgets['image'].value = 'b'
    assert 'not known' in e.panes.bars.value
    upload(e, encoded(NOISE), 'a')
    assert 'not known' in e.panes.bars.value


def test_what_is_cut_away_is_shown_and_said(nets):
    e = Explorer(dict(wide=torch.rand(3, 32, 64), square=PHOTOS[0]), nets)
    said = e.panes.panels['whole'][2].value
    assert '64×32 pixels' in said and '32×32' in said and 'the middle 50%' in e.panes.panels['picture'][0].value
    frame = e.draw(e.state).panels['whole'][1]
    assert frame.shape == (112, 224, 3) and (frame[56] == (0, 191, 255)).all(1).nonzero()[0].tolist() == [56, 57, 166, 167]
    e.widgets['side'].value = 'own'
    assert e.panes.columns['whole'].layout.display == 'none' and 'all of it' in e.panes.panels['picture'][0].value


def test_a_query_beside_the_own_map_with_the_difference_in_a_number(explorer):
    e = explorer
    e.widgets['query'].value = 'b'
    assert e.panes.offer.layout.display == '' and 'vgg_att2_indep_dp' in e.panes.offer.description
    e.panes.offer.click()
    assert e.state.model == 'vgg_att2_indep_dp' and e.state.query == 'b' and e.panes.offer.layout.display == 'none'
    scene, other = (Scene(e.net(e.state.model), PHOTOS[k], 32) for k in (0, 1))
    a, b = (scene.out(g=g).maps[e.state.level - 1] for g in (None, other.encoded()[1]))
    assert f'moved {(a - b).abs().sum().item() / 2:.1%} of the weight' in e.panes.note.value
    drawing = e.draw(e.state)
    assert not np.array_equal(drawing.panels['own'][1], drawing.panels['attention'][1])
    assert np.array_equal(drawing.panels['own'][1], e.draw(e.state._replace(query=None)).panels['attention'][1])


def test_a_picture_beside_which_no_method_stands_has_no_column(explorer):
    assert explorer.panes.columns['method'].layout.display == 'none'
    explorer.widgets['method'].value = 'grad_cam'
    assert not explorer.panes.columns['method'].layout.display


@pytest.mark.parametrize('error', [RuntimeError('<b>not</b> today'), AssertionError(), ZeroDivisionError('x')])
def test_a_method_that_fails_leaves_the_state(nets, error):
    def moody(net, images, target): raise error
    e = Explorer(dict(zip('abc', PHOTOS)), nets, dict(moody=moody, flat=lambda net, x, k: x.sum(1) * 0))
    before = e.state, shown(e)
    e.widgets['method'].value = 'moody'
    assert (e.state, shown(e)) == before and type(error).__name__ in e.panes.status.value
    assert '<b>' not in e.panes.status.value
    mirrors(e)
    e.widgets['method'].value = 'flat'
    assert e.state.method == 'flat' and not e.panes.status.value


def test_class_names_are_escaped():
    net = lively('vgg_att1_pc')
    net.info = dict(classes=['<script>', 'b', 'c'])
    e = Explorer(PHOTOS, dict(n=net))
    assert '<script>' not in e.panes.bars.value and '&lt;script&gt;' in e.panes.bars.value


def test_plain_text_where_there_is_no_kernel(explorer):
    bundle = explorer._repr_mimebundle_()
    assert 'kernel' in bundle['text/plain'] and len(bundle) == 2
    assert isinstance(explorer.box, ipywidgets.Widget)


# Uploads

def encoded(image, kind='png'):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def bomb():
    "100 megapixels in a few kilobytes."
    return encoded(Image.new('1', (10_000, 10_000)))


def upload(e, content, name='mine.png'):
    e.own.button.value = [dict(name=name, type='', size=len(content), content=memoryview(content),
                                last_modified=datetime(2018, 4, 30))]


NOISE = Image.fromarray(PHOTOS[1].permute(1, 2, 0).numpy())


@pytest.mark.parametrize('content, words', [
    (b'only text', 'not an image'), (b'', 'not an image'), (encoded(NOISE)[:700], 'truncated or damaged'),
    (bomb(), 'too large'), (encoded(NOISE.resize((4, 4))), 'at least 8'), (encoded(NOISE.resize((9, 90))), 'crop it')],
    ids=['text', 'empty', 'truncated', 'bomb', 'tiny', 'strip'])
def test_uploads_that_are_no_pictures(explorer, content, words):
    before = explorer.state, shown(explorer), list(explorer.images)
    upload(explorer, content)
    assert words in explorer.panes.status.value and 'mine.png' in explorer.panes.status.value
    assert (explorer.state, shown(explorer), list(explorer.images)) == before
    assert explorer.own.button.value == ()
    mirrors(explorer)


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'P', '1', 'LA'])
def test_uploads_of_every_kind(explorer, mode):
    upload(explorer, encoded(NOISE.convert(mode)))
    assert explorer.state.image == 'mine.png' and not explorer.panes.status.value
    assert explorer.widgets['query'].options[-1] == ('mine.png', 'mine.png')
    mirrors(explorer)


def test_an_upload_of_the_same_name_replaces_the_first(explorer):
    upload(explorer, encoded(NOISE))
    before = shown(explorer)
    upload(explorer, encoded(NOISE.rotate(90)))
    assert shown(explorer) != before and list(explorer.images).count('mine.png') == 1
    mirrors(explorer)


def test_uploads_are_named_in_messages_only_by_their_name():
    with refuses('notes.txt is not an image'): read_upload(dict(name='notes.txt', content=b'x'))


def test_a_file_of_any_size_by_its_path(explorer, tmp_path):
    exif = Image.Exif()
    exif[274] = 6                                                    # taken with the camera on its side
    NOISE.resize((64, 48)).save(tmp_path / 'turned.jpg', exif=exif)
    explorer.own.path.value = str(tmp_path / 'turned.jpg')
    assert explorer.state.image == 'turned.jpg' and explorer.own.path.value == ''
    assert explorer.images['turned.jpg'].shape == (3, 64, 48)
    explorer.own.path.value = 'nowhere.png'
    assert 'nowhere.png' in explorer.panes.status.value and explorer.state.image == 'turned.jpg'
    assert explorer.own.path.value == 'nowhere.png'                  # to be corrected


def test_a_page_that_asks_anew_is_told_of_a_lost_upload(explorer, monkeypatch):
    monkeypatch.setattr('ltpa.widgets._soon', lambda call: call())
    button = explorer.own.button
    button.get_state('description')
    assert not explorer.panes.status.value and explorer.own.button is button
    button.get_state()                                               # what a page that comes back asks for
    assert CUT in explorer.panes.status.value and explorer.own.button is not button
    upload(explorer, encoded(NOISE))
    assert explorer.state.image == 'mine.png'
