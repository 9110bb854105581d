"""Maps: enlarging, combining, drawing on pictures of any size, and the command `ltpa explain`."""
import math
import os
from pathlib import Path

import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import MODELS, differing, one_line, pictures, refuses, tiny_net, words_id
from PIL import Image

from ltpa import explain, show_attention, to_original
from ltpa.maps import (
    Film, as_weights, combine, draw_inspections, effective_cells, fit_side, inspect_image, outline, overlay, save_figure,
    seen_by, shade, show_film, trained_side, upsample)
from ltpa.models import save_weights
from ltpa.cli import main
from ltpa.names import get_recipe
from ltpa.training import Callback, Learner

WITH_MAPS = [name for name in MODELS if 'att' in name or name == 'vgg_pan']
NAN, INF = math.nan, math.inf


def uniform(*shape): return torch.full((1, *shape), 1 / math.prod(shape))


def peak(h, w, r, c):
    a = torch.zeros(1, h, w)
    a[0, r, c] = 1
    return a


def photo(H, W): return pictures(1, max(H, W)).images[0][:, :H, :W]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ltpa(capsys, here):
    def run(*argv):
        try: code = main([str(a) for a in argv])
        except SystemExit as e: code = e.code
        return code, *capsys.readouterr()
    return run


# Maps as numbers

@pytest.mark.parametrize('cells, size', [((8, 8), (32, 32)), ((3, 5), (7, 11)), ((1, 1), (4, 6)), ((4, 6), (4, 6))])
def test_upsample_is_torchs_bilinear(cells, size):
    a = torch.rand(2, *cells)
    assert upsample(a, size).equal(F.interpolate(a[:, None], size, mode='bilinear', align_corners=False)[:, 0])


def test_upsample_moves_no_peak_and_takes_half_precision():
    a = upsample(peak(5, 7, 3, 1), (50, 70))
    y, x = ((a * n).sum() / a.sum() + .5 for n in (torch.arange(50.)[:, None], torch.arange(70.)))
    assert abs(y - 35) < 1e-3 and abs(x - 15) < 1e-3
    assert upsample(torch.rand(1, 4, 4).bfloat16(), 8).dtype == torch.float32


@pytest.mark.parametrize('how', ['product', 'mean'])
def test_combined_maps_sum_to_one(how):
    levels = [torch.rand(3, n, n).flatten(1).softmax(1).view(3, n, n) for n in (16, 8, 4)]
    m = combine(levels, (32, 48), how)
    assert m.shape == (3, 32, 48) and (m >= 0).all()
    assert m.sum((1, 2)).allclose(torch.ones(3), atol=1e-4)
    assert combine([a[1:2] for a in levels], (32, 48), how)[0].allclose(m[1], atol=1e-7), 'maps mix over the batch'


def test_product_and_mean():
    a, b = torch.tensor([[[.5, .5, 0, 0]]]), torch.tensor([[[0, .75, .25, 0]]])
    assert combine([a, b], (1, 4)).allclose(torch.tensor([[[0, 1., 0, 0]]]))
    assert combine([a, b], (1, 4), 'mean').allclose(torch.tensor([[[.25, .625, .125, 0]]]))
    tiny = combine([torch.tensor([[[.75, .25]]]) * 1e-30] * 3, (1, 2))
    assert tiny.allclose(torch.tensor([[[27 / 28, 1 / 28]]])), 'the product has underflowed'


def test_nothing_left_is_uniform():
    assert combine([peak(4, 4, 0, 0), peak(4, 4, 3, 3)], 4).allclose(uniform(4, 4))
    assert combine([torch.zeros(1, 4, 4)], 4, 'mean').allclose(uniform(4, 4))
    both = combine([torch.cat([peak(4, 4, 0, 0)] * 2), torch.cat([peak(4, 4, 0, 0), peak(4, 4, 3, 3)])], 4)
    assert both[0, 0, 0] == 1 and both[1].allclose(uniform(4, 4)[0]), 'one map decides for the batch'


def test_effective_cells():
    a = torch.cat([uniform(4, 4), peak(4, 4, 1, 2)])
    assert effective_cells(a).allclose(torch.tensor([16., 1.]))


def test_a_map_sums_to_one_within_a_hundredth():
    for total in .995, 1.005: assert effective_cells(total * uniform(4, 4)).item() == pytest.approx(16, rel=.05)
    for total in .98, 1.02:
        with refuses(f'sums to {total}', 'expected 1'): effective_cells(total * uniform(4, 4))


def test_shades_of_equal_weights_stand_in_the_middle():
    assert shade(uniform(4, 6)).equal(torch.full((1, 4, 6), .5))
    assert shade(torch.zeros(1, 4, 4)).equal(torch.zeros(1, 4, 4))
    a = shade(torch.cat([peak(4, 4, 1, 2), torch.rand(1, 4, 4) * 1e-20]))
    assert a.isfinite().all() and a.amax() == 1 and (a >= 0).all()


def test_overlay():
    white, nothing = torch.full((3, 4, 6), 255, dtype=torch.uint8), torch.zeros(4, 6)
    out = overlay(white, nothing, strength=.25)
    assert out.shape == (4, 6, 3) and out.dtype == np.uint8 and abs(int(out[0, 0, 0]) - 191) < 3
    assert overlay(white, nothing + 1).sum() > overlay(white, nothing).sum()
    assert (overlay(white, nothing) - overlay(0 * white, nothing) == round(.4 * 255)).all(), 'not two fifths of grey'


@pytest.mark.parametrize('call, words', [
    (lambda: as_weights([[1.]]), ('type list', '[B,h,w]')),
    (lambda: as_weights(torch.ones(4, 4)), ('(4, 4)', '[B,h,w]')),
    (lambda: as_weights(torch.ones(0, 4, 4)), ('(0, 4, 4)', '[B,h,w]')),
    (lambda: upsample(torch.ones(1, 8, 8), (7, 32)), ('8x8 cells', '7x32 pixels', 'at least')),
    (lambda: effective_cells(torch.ones(1, 4, 4)), ('map 0 sums to 16', 'expected 1')),
    (lambda: effective_cells(torch.zeros(1, 4, 4)), ('sums to 0', 'expected 1')),
    (lambda: combine([uniform(4, 4)], 8, 'sum'), ("'sum'", 'product', 'mean')),
    (lambda: combine([], 8), ('at least one level',)),
    (lambda: combine([uniform(4, 4), torch.cat([uniform(2, 2)] * 2)], 8), ('[1, 2]', 'same number')),
    (lambda: overlay(photo(32, 32), torch.zeros(8, 8)), ('(8, 8)', '(32, 32)', 'upsample')),
    (lambda: overlay(photo(32, 32), torch.full((32, 32), 1.5)), ('1.5', '0 to 1'))], ids=words_id)
def test_refused(call, words):
    with refuses(*words): call()


@pytest.mark.parametrize('value, words', [(NAN, 'NaN'), (INF, 'infinite'), (-.1, 'weight of -0.1')])
@pytest.mark.parametrize('use', [upsample, combine, effective_cells, shade, overlay])
def test_no_silent_nan(use, value, words):
    a = torch.cat([uniform(8, 8), uniform(8, 8)])
    a[1, 2, 3] = value
    call = dict(upsample=lambda: upsample(a, 32), combine=lambda: combine([a, a.abs()], 32),
                overlay=lambda: overlay(photo(8, 8), a[1])).get(use.__name__, lambda: use(a))
    with refuses('map 0' if use is overlay else 'map 1', words): call()


# Pictures of any size

@pytest.mark.parametrize('H, W, side, cut, seen', [
    (32, 32, 32, (32, 32), (32, 32)), (300, 451, 224, (300, 428), (224, 320)), (451, 300, 32, (300, 300), (32, 32)),
    (64, 96, 64, (64, 96), (64, 96)), (20, 20, 32, (20, 20), (32, 32)), (100, 100, 100, (96, 96), (96, 96)),
    (33, 32, 32, (32, 32), (32, 32)), (400, 799, 32, (400, 400), (32, 32)), (8, 500, 32, (8, 496), (32, 1984))])
def test_fit_side(H, W, side, cut, seen):
    view = fit_side(photo(H, W), side, 32)
    left, top, right, bottom = view.box
    part = bottom - top, right - left
    assert tuple(view.seen.shape[1:]) == seen and max(abs(a - b) for a, b in zip(part, cut)) <= 1
    assert abs(part[0] / part[1] - seen[0] / seen[1]) < .05 and view.frame == view.box
    assert abs(left + right - W) <= 1 and abs(top + bottom - H) <= 1


def test_the_middle_is_kept():
    image = torch.zeros(3, 32, 96, dtype=torch.uint8)
    image[:, 16, 48] = 255
    view = fit_side(image[:, :, :90], 32, 32)
    assert view.box == (13, 0, 77, 32) and view.seen[0].nonzero().tolist() == [[16, 48 - 13]]


@pytest.mark.parametrize('side, words', [
    (16, ('side 16', 'at least 32')), (32.5, ('side 32.5',)), (9000, ('9000', 'smaller side')), ('32', ("'32'",))])
def test_sides_refused(side, words):
    with refuses(*words): fit_side(photo(40, 40), side, 32)


@pytest.mark.parametrize('name', MODELS)
def test_every_network_is_shown_or_refused(name):
    net = tiny_net(name)
    if name not in WITH_MAPS:
        with refuses(name, 'no attention maps', 'vgg_att3_concat_pc'): show_attention(net, photo(32, 32))
        return
    fig = show_attention(net, photo(40, 66))
    labels = [ax.get_xlabel() for ax in fig.axes]
    assert isinstance(fig, matplotlib.figure.Figure) and fig.get_size_inches()[0] <= 11
    assert len(labels) == len(inspect_image(net, photo(32, 32)).maps) + 3              # picture, combined, colour bar
    assert ('not 1' in labels[1]) == (name == 'vgg_pan') and 'pixels' in labels[-2]
    if 'uniform' in name:
        h, w = inspect_image(net, photo(40, 66)).maps[0].shape[1:]
        assert labels[1].startswith(str(h * w)) and f'{w}×{h} cells' in labels[1]


@pytest.mark.parametrize('H, W', [(32, 32), (32, 64), (96, 32), (64, 96)])
def test_maps_follow_the_picture(H, W):
    net = tiny_net('vgg_att3_concat_pc')
    v = inspect_image(net, photo(H, W), side=min(H, W))
    assert v.seen == (H, W) and [tuple(a.shape) for a in v.maps] == [(1, H // d, W // d) for d in (4, 8, 16)]
    assert abs(v.picture.shape[1] / v.picture.shape[2] - H / W) < .02 and max(v.picture.shape) == 256
    with torch.no_grad(): assert v.maps[0].allclose(net.eval()(photo(H, W)[None] / 255).maps[0], atol=1e-2)


def test_pictures_of_every_kind(here):
    net, x = tiny_net('vgg_att1_pc'), photo(40, 48)
    hwc = x.permute(1, 2, 0).numpy()
    Image.fromarray(hwc).save('x.png')
    want = inspect_image(net, x)
    for form in 'x.png', here / 'x.png', hwc, x.float() / 255, Image.fromarray(hwc), np.float32(hwc / 255):
        assert inspect_image(net, form).maps[0].equal(want.maps[0])
        assert len(show_attention(net, form).axes) == 4
    assert len(show_attention(net, [x, 'x.png', photo(64, 32)]).axes) == 3 * 3 + 1
    assert len(show_attention(net, torch.stack([x, x])).axes) == 2 * 3 + 1
    assert inspect_image(net, hwc[:, :, 0]).seen == (32, 32), 'a grey picture'


def test_verdicts():
    net = tiny_net('vgg_att1_pc')
    says = int(inspect_image(net, photo(32, 32)).probs.argmax())
    first = lambda **kw: show_attention(net, photo(32, 32), **kw).axes[0].get_xlabel()
    assert first().startswith(f'class {says}, ') and first(labels=[says]) == first()
    names = ['ant', 'bee', 'cow']
    assert f'but is {names[says - 1]}' in first(labels=[(says - 1) % 3], classes=names)
    with refuses('2 class names', 'expected 3'): first(classes=['a', 'b'])
    with refuses('2 labels for 1 pictures'): first(labels=[0, 1])
    with refuses('label 3', '0 to 2'): first(labels=[3])
    with refuses('at least one'): show_attention(net, [])
    with refuses("'sum'", 'product'): first(how='sum')


@pytest.mark.parametrize('side, drawn', [(100, 256), (192, 256), (300, 300), (800, 512)])
def test_pictures_are_enlarged_without_new_colors(side, drawn):
    black_and_white = (torch.rand(1, side, side) > .5).to(torch.uint8).expand(3, -1, -1) * 255
    picture = inspect_image(tiny_net('vgg_att2_concat_dp'), black_and_white).picture
    assert picture.shape == (3, drawn, drawn)
    assert (len(picture.unique()) == 2) == (side <= 300), 'between black and white'


def test_a_look_changes_nothing():
    net = tiny_net('vgg_att2_concat_dp').train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    show_attention(net, photo(32, 32))
    assert net.training and not differing(before, net.state_dict()) and state.equal(torch.get_rng_state())
    assert not plt.get_fignums(), 'a figure stays open'


def frozen(net):
    "The network in training mode, but for its BatchNorms"
    for m in net.train().modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.eval()
    return net


def test_a_look_wakes_nothing_that_is_frozen():
    net = frozen(tiny_net('vgg_att2_concat_dp'))
    was = [m.training for m in net.modules()]
    show_attention(net, photo(32, 32))
    assert [m.training for m in net.modules()] == was


class Foreign(torch.nn.Module):
    def forward(self, x): return x.mean((2, 3)), (x[:, 0],)


@pytest.mark.parametrize('call', [inspect_image, show_attention])
def test_networks_that_cannot_be_looked_at(call):
    with refuses('Foreign', 'none of our networks', 'vgg_att3_concat_pc'): call(Foreign(), photo(32, 32))
    for value in NAN, INF:
        net = tiny_net('vgg_att2_concat_pc')
        with torch.no_grad(): net.head.linear[0].bias[1] = value
        with refuses('picture 0', 'NaN or infinite', 'weights'): call(net, photo(32, 32))


def test_a_compiled_network_is_looked_at():
    net = tiny_net('vgg_att1_pc')
    assert inspect_image(torch.compile(net, backend='eager'), photo(32, 32)).maps[0].allclose(inspect_image(net, photo(32, 32)).maps[0])


def test_gamma_lifts_what_is_faint_and_says_so():
    net = tiny_net('vgg_att2_concat_dp')
    pixels = lambda fig: [ax.images[0].get_array().astype(int) for ax in fig.axes[1:-1]]
    plain, lifted = show_attention(net, photo(32, 32)), show_attention(net, photo(32, 32), gamma=.5)
    assert all((b.sum() > a.sum()) for a, b in zip(pixels(plain), pixels(lifted)))
    assert 'power' not in plain.get_supxlabel() and 'power 0.5' in lifted.get_supxlabel()
    for bad in 0, -1, 2, NAN:
        with refuses(f'gamma {bad}', 'at most 1'): show_attention(net, photo(32, 32), gamma=bad)


def test_the_scale_of_a_gate_is_said():
    said = {name: show_attention(tiny_net(name), photo(32, 32)).get_supxlabel() for name in ('vgg_pan', 'vgg_att2_concat_pc')}
    assert 'gate' in said['vgg_pan'] and 'gate' not in said['vgg_att2_concat_pc'] and 'twice its mean' in said['vgg_pan']


@pytest.mark.parametrize('dim', [0, 1 / 16], ids=['black', 'dark'])
def test_a_dark_picture_gives_no_black_panel(dim):
    net = tiny_net('vgg_att2_concat_dp')
    look = inspect_image(net, (photo(32, 32) * dim).byte())._replace(maps=(peak(8, 8, 1, 1), peak(4, 4, 1, 1)))
    for ax in draw_inspections(net, [look]).axes[1:-1]: assert ax.images[0].get_array().max(-1).min() >= 35


@pytest.mark.parametrize('frame, across, down', [(None, (7.5, 23.5), (15.5, 31.5)), ((4, 0, 20, 32), (-.5, 31.5), (15.5, 31.5))])
def test_an_outline_lies_on_the_edge_of_the_mask(frame, across, down):
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:16, 4:12] = True
    _, ax = plt.subplots()
    ax.imshow(np.zeros((64, 64)))
    outline(ax, mask & False)
    assert not ax.collections, 'an outline of nothing'
    outline(ax, mask, frame)
    x, y = np.concatenate([path.vertices for path in ax.collections[0].get_paths()]).T
    assert np.allclose((y.min(), y.max()), down) and np.allclose((x.min(), x.max()), across)
    assert ax.get_xlim() == (-.5, 63.5) and ax.get_ylim() == (63.5, -.5), 'the panel has changed'
    plt.close()


def test_masks_are_outlined_on_each_map_of_their_picture():
    net, mask = tiny_net('vgg_att2_concat_pc'), torch.ones(32, 40, dtype=torch.bool).tril()
    fig = show_attention(net, [photo(32, 40)] * 2, masks=[mask, mask & False])
    assert [len(ax.collections) for ax in fig.axes[:8]] == [1] * 4 + [0] * 4
    for bad in (mask.T, mask.T), (mask,):
        with refuses('masks of sizes', str(tuple(bad[0].shape)), '(32, 40)'): show_attention(net, [photo(32, 40)] * 2, masks=bad)


def test_trained_side():
    net = tiny_net('vgg_att1_pc')
    assert trained_side(net) == 32
    for source, side in ((dict(source='stl10', size=None), 96), (dict(source='photos', size=64), 64),
                         (dict(source='cluttered_fashion', size=None), 32), (None, 32)):
        net.info = dict(source=source)
        assert trained_side(net) == side
    assert trained_side(tiny_net('vgg_att2_concat_pc', layout='cub')) == 80


# Over a training

@pytest.mark.parametrize('every, epochs', [(None, [0, 1, 2]), (3, [0, .75, 1.5, 2])])
def test_film(every, epochs):
    data = pictures(32)
    def train(*callbacks):
        net = tiny_net('vgg_att2_concat_pc', dropout=True)
        Learner(net, data, get_recipe('fast', epochs=2, batch_size=8), callbacks=callbacks).fit()
        return net.state_dict()
    data.images = F.interpolate(data.images, (32, 32))
    film = Film(data.images[:2], every)
    assert not differing(train(film), train()), 'the film has changed the training'
    assert [e for e, _ in film.frames] == epochs
    fig = show_film(film, level=2)
    assert len(fig.axes) == 2 * (1 + len(epochs)) + 1
    assert len(show_film(film, most=2).axes) == 2 * 3 + 1
    with refuses('level 3', '1 to 2'): show_film(film, 3)


def test_film_of_a_network_whose_norms_are_frozen():
    class Freeze(Callback):
        def before_fit(self, learn): frozen(learn.net)
    data = pictures(16, 32)
    def train(*callbacks):
        net = tiny_net('vgg_att2_concat_pc')
        before = {k: v.clone() for k, v in net.state_dict().items()}
        Learner(net, data, get_recipe('fast', epochs=2, batch_size=8), callbacks=[Freeze(), *callbacks]).fit()
        return before, net.state_dict()
    before, after = train(Film(data.images[:2], 1))
    assert not differing(after, train()[1]), 'the film has changed the training'
    assert not [k for k in differing(before, after) if 'running' in k]


def test_film_without_frames_or_maps():
    with refuses('no frames'): show_film(Film(photo(32, 32)[None]))
    film = Film(photo(32, 32)[None])
    film.frames = [(0., ())]
    with refuses('no attention maps'): show_film(film)


# The command

START = dict(png=b'\x89PNG', svg=b'<?xml', pdf=b'%PDF')


@pytest.fixture
def weights(here):
    Image.fromarray(photo(48, 70).permute(1, 2, 0).numpy()).save(here / 'cat.png')
    return save_weights(tiny_net('vgg_att2_concat_pc'), here / 'w.safetensors', classes=['ant', 'bee', 'cow'])


@pytest.mark.parametrize('kind', START)
def test_explain(kind, weights, ltpa):
    out = f'new/map.{kind}'
    code, text, err = ltpa('explain', 'cat.png', '--model', weights, '--out', out, '--side', 64, '--device', 'cpu')
    assert (code, err) == (0, '') and all(w in text for w in ('70x48', '64x64', 'level 2', 'cells', f'written  {out}'))
    assert any(name in text for name in ('ant', 'bee', 'cow'))
    first = Path(out).read_bytes()
    assert first.startswith(START[kind])
    assert 'replaced' in ltpa('explain', 'cat.png', '--model', weights, '--out', out, '--side', 64)[1]
    assert Path(out).read_bytes() == first, 'the same picture gives another file'


def test_explain_with_the_bundled_network(ltpa, here):
    (here / 'photos').mkdir()
    Image.fromarray(photo(40, 50).permute(1, 2, 0).numpy()).save('photos/a.b.jpg')
    code, text, err = ltpa('explain', 'photos/a.b.jpg')
    assert (code, err) == (0, '') and 'level 3' in text and os.listdir(here) != ['photos']
    with Image.open('a.b-attention.png') as drawn: assert drawn.size[0] > 1000


@pytest.mark.parametrize('argv, words', [
    (['no.png'], ('no.png', 'no such file')),
    (['w.safetensors'], ('w.safetensors', 'not an image')),
    (['cat.png', '--out', 'x.gif'], ("'gif'", 'png, svg')),
    (['cat.png', '--out', 'x'], ('picture format', 'png')),
    (['cat.png', '--out', 'cat.png'], ('is the picture itself', '--out')),
    (['cat.png', '--model', 'vgg_att9'], ("'vgg_att9'", '.safetensors')),
    (['cat.png', '--model', 'no.safetensors'], ('no such file',)),
    (['cat.png', '--model', 'cat.png'], ('not a safetensors file',)),
    (['cat.png', '--model', 'cluttered_fashion/vgg_gap'], ('vgg_gap', 'no attention maps')),
    (['cat.png', '--side', '16'], ('side 16', 'at least 32')),
    (['cat.png', '--side', 'big'], ('big',)), ([], ('IMAGE',)),
    (['cat.png', '--device', 'tpu'], ("'tpu'",))], ids=lambda v: '-'.join(v) if isinstance(v, list) else '')
def test_explain_refuses(argv, words, weights, ltpa, here):
    before = sorted(os.listdir(here))
    code, out, err = ltpa('explain', *argv)
    assert (code, out) == (2, '') and err.startswith('ltpa: ')
    one_line(err.rstrip('\n'), *words)
    assert sorted(os.listdir(here)) == before, 'something is left behind'


def test_explain_leaves_the_old_file_when_it_cannot_write(weights, ltpa, here, monkeypatch):
    (here / 'map.png').write_bytes(b'old')
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    code, _, err = ltpa('explain', 'cat.png', '--model', weights, '--out', 'map.png')
    assert code == 2 and 'No space left' in err and (here / 'map.png').read_bytes() == b'old'
    assert sorted(os.listdir(here)) == ['cat.png', 'map.png', 'w.safetensors']


def test_figures_are_saved_in_three_formats_only(here):
    with refuses("'jpg'", 'png'): save_figure(None, 'x.jpg')
    assert callable(explain)
