"""One door for pictures: whatever they come as, every function sees the same pixels; and files from strangers."""
import io
import os
import random as dice
import socket
import struct
import subprocess
import sys
import zlib
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from helpers import refuses, tiny_net, words_id
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from ltpa import query_maps
from ltpa.adversarial import ATTACKS, answers_and_maps, fgsm, fgsm_answers, input_gradient
from ltpa.cli import main
from ltpa.data import ImageSet
from ltpa.explorer import Gallery, Scene
from ltpa.faithfulness import (
    CONTROLS, evaluate_explainers, infidelity, interventions, learned_maps, perturbation_curves, post_hoc_maps,
    predicted, randomization, sensitivity)
from ltpa.inputs import as_floats, as_images, as_pictures, batch_of, inside, several
from ltpa.gallery import explain
from ltpa.maps import Film, inspect_image, overlay, show_attention
from ltpa.names import LtpaError
from ltpa.query import encode
from ltpa.readers import FORMATS, gray_bits, gray_range, read_image
from ltpa.saliency import METHODS, captum_suite, gradient
from ltpa.segmentation import UNet, attention_maps, attention_parts, class_maps, draw, own_maps
from ltpa.training import predict
from ltpa.transfer import features, pixels

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
CHW = torch.from_numpy(RGB).permute(2, 0, 1).contiguous()
RAMP = np.add.outer(np.arange(64), np.arange(64))               # 0 to 126


def saved(path, image=RGB, **how):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **how)
    return path


# The door

def backwards(a): return a[..., ::-1].copy()[..., ::-1]


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def strided(a):
    "Every second pixel of something larger."
    wide = np.zeros((2 * a.shape[0], 3 * a.shape[1], *a.shape[2:]), a.dtype)
    wide[::2, ::3] = a
    return wide[::2, ::3]


FLOATS = torch.from_numpy(RGB).float() / 255
DOORS = {  # one picture of RGB, in every form
    'path': lambda d: saved(d / 'x.png'), 'path as text': lambda d: str(saved(d / 'y.png')),
    'open file': lambda d: open(saved(d / 'z.png'), 'rb'), 'bytes in memory': lambda d: io.BytesIO(saved(d / 'z.png').read_bytes()),
    'tiff': lambda d: saved(d / 'x.tif'), 'bmp': lambda d: saved(d / 'x.bmp'), 'ppm': lambda d: saved(d / 'x.ppm'),
    'webp': lambda d: saved(d / 'x.webp', lossless=True),
    'pil': lambda d: Image.fromarray(RGB), 'pil from a file': lambda d: Image.open(saved(d / 'x.png')),
    'pil with alpha': lambda d: Image.fromarray(RGB).convert('RGBA'), 'pil, CMYK': lambda d: Image.fromarray(RGB).convert('CMYK'),
    'array': lambda d: RGB, 'planes': lambda d: RGB.transpose(2, 0, 1), 'batch of one': lambda d: RGB[None],
    'backwards': lambda d: backwards(RGB), 'strided': lambda d: strided(RGB), 'read-only': lambda d: read_only(RGB),
    'float64': lambda d: RGB / 255, 'float32': lambda d: FLOATS.numpy(), 'float32, backwards': lambda d: backwards(FLOATS.numpy()),
    'big-endian floats': lambda d: FLOATS.numpy().astype('>f4'), 'read-only floats': lambda d: read_only(FLOATS.numpy()),
    '16 bits': lambda d: RGB.astype(np.uint16) * 257, 'big-endian 16 bits': lambda d: (RGB.astype(np.uint16) * 257).astype('>u2'),
    'opaque array': lambda d: np.dstack([RGB, np.full((32, 32), 255, np.uint8)]),
    'tensor': lambda d: CHW, 'tensor, channels last': lambda d: torch.from_numpy(RGB), 'float tensor': lambda d: FLOATS,
    'tensor, not contiguous': lambda d: FLOATS.permute(2, 0, 1)[None], 'float64 tensor': lambda d: FLOATS.double(),
    'tensor with a gradient': lambda d: FLOATS.clone().requires_grad_(),
    'list of paths': lambda d: [str(saved(d / 'x.png'))], 'list of pictures': lambda d: [Image.fromarray(RGB)],
    'list of arrays': lambda d: [RGB], 'tuple of tensors': lambda d: (FLOATS,), 'array of paths': lambda d: np.array([str(saved(d / 'x.png'))])}


@pytest.fixture(scope='module')
def net(): return tiny_net('vgg_att2_concat_dp').eval()


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('doors')


@contextmanager
def closing(given):
    "Closes what can be closed."
    try: yield given
    finally: getattr(given, 'close', lambda: None)()


@pytest.mark.parametrize('door', DOORS)
def test_same_pixels_through_every_door(door, folder, net):
    with closing(DOORS[door](folder)) as given: assert as_images(given).equal(CHW[None])
    with closing(DOORS[door](folder)) as given: x = as_floats(given, net)
    assert x.dtype == torch.float32 and x.is_contiguous() and not x.requires_grad
    assert x.equal(CHW[None].float() / 255)


def labels(x): return torch.zeros(len(as_pictures(x)), dtype=torch.long)
def masks(x): return torch.arange(32 * 32).view(1, 32, 32).expand(len(as_pictures(x)), -1, -1) % 5 == 0
def twice(x): return torch.cat([as_pictures(x)] * 2)


SEES = {  # everything that takes pictures: (network, pictures) to tensors
    'predict': lambda n, x: predict(n, x), 'encode': encode, 'features': features, 'pixels': lambda n, x: pixels(x),
    'query_maps': lambda n, x: query_maps(n, x, x, x), 'inspect_image': lambda n, x: inspect_image(n, x),
    'Scene': lambda n, x: (lambda s: (s.x, s.attacked(4), *s.out().maps))(Scene(n, x)),
    'Gallery': lambda n, x: Gallery(dict(a=x), dict(n=n)).scene('n', 'a').x,
    'Film': lambda n, x: (lambda f: (f.take(type('L', (), dict(net=n, epoch=0.))()), f.frames[0][1])[1])(Film(x)),
    'overlay': lambda n, x: torch.from_numpy(overlay(x, torch.ones(32, 32))),
    'attention_parts': attention_parts, 'attention_maps': lambda n, x: attention_maps(n, x, 32),
    'own_maps': lambda n, x: own_maps(n, x, 32)[0], 'class_maps': lambda n, x: class_maps(n, x, labels(x), 32),
    'draw': lambda n, x: draw(small_unet(), x), 'predicted': lambda n, x: predicted(n, x),
    'input_gradient': input_gradient, 'fgsm_answers': fgsm_answers, 'answers_and_maps': answers_and_maps,
    'perturbation_curves': lambda n, x: perturbation_curves(n, x, as_floats(x)[:, 0], steps=2),
    'infidelity': lambda n, x: infidelity(n, x, as_floats(x)[:, 0], samples=2),
    'sensitivity': lambda n, x: sensitivity(METHODS['gradient'], n, x, samples=1),
    'randomization': lambda n, x: randomization(dict(g=METHODS['gradient']), n, x, parts=['head']),
    'interventions': lambda n, x: interventions(n, twice(x), [0, 1], masks(x).repeat(2, 1, 1)),
    'evaluate_explainers': lambda n, x: evaluate_explainers(
        dict(g=METHODS['gradient']) | learned_maps(n), n, x, masks(x), few=1, steps=1),
    **{name: (lambda n, x, f=f: f(n, x, 8 / 255)) for name, f in ATTACKS.items() if name in ('noise', 'fgsm')},
    'pgd': lambda n, x: ATTACKS['pgd'](n, x, 8 / 255, steps=5, restarts=1), 'square': lambda n, x: ATTACKS['square'](n, x, 8 / 255, queries=50),
    **{name: f for name, f in METHODS.items() if name != 'cam'},
    **{f'control {name}': f for name, f in CONTROLS.items()},
    **{f'captum {name}': (lambda n, x, name=name: captum_suite(n)[name](n, x)) for name in ('gradient', 'grad_cam', 'deep_lift')},
    'attention 1': lambda n, x: learned_maps(n)['attention 1'](n, x),
    'attention, all': lambda n, x: learned_maps(n)['attention, all'](n, x),
    'grad_cam, stage 1': lambda n, x: post_hoc_maps(n)['grad_cam, stage 1'](n, x)}
FEW = ['path', 'pil', 'array', 'backwards', 'float64', 'tensor', 'tensor, channels last', 'float tensor', 'list of paths']


@lru_cache
def small_unet():
    torch.manual_seed(0)
    return UNet(2).eval()


def flat(found):
    "Every tensor, number and text in what a function gives."
    if isinstance(found, torch.Tensor): return [found]
    if isinstance(found, dict): return [v for k in found for v in flat(found[k])]
    if isinstance(found, (list, tuple)): return [v for part in found for v in flat(part)]
    return [found]


def same(a, b): return a.equal(b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize('name', SEES)
def test_same_answer_through_every_door(name, folder, net):
    want = flat(SEES[name](net, CHW[None]))
    for door in FEW:
        got = flat(SEES[name](net, DOORS[door](folder)))
        assert len(got) == len(want) and all(map(same, got, want)), f'{name} of {door}'


def test_figures_take_every_door(folder, net, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for door in FEW: assert len(show_attention(net, DOORS[door](folder)).axes) == 5, door
    assert len(show_attention(net, [RGB, CHW[:, :16], saved(folder / 'x.png')]).axes) == 13, 'of different sizes'
    assert len(show_attention(net, np.stack([RGB] * 2)).axes) == 9, 'a batch'
    from ltpa import save_weights
    save_weights(net, 'n.safetensors')
    assert str(explain(Image.fromarray(RGB), 'n.safetensors')) == 'picture-attention.png'
    assert str(explain(saved(folder / 'x.png'), 'n.safetensors')) == str('x-attention.png')
    files = [Path(f).read_bytes() for f in ('picture-attention.png', 'x-attention.png')]
    assert files[0] == files[1]


def test_floats_are_not_rounded(net):
    "After an attack of half a grey level, a picture differs for the network, and not as bytes."
    x = fgsm(net, CHW, .4 / 255)
    assert not x.equal(CHW[None] / 255) and as_images(x).equal(CHW[None])
    with torch.no_grad(): want = net(x.contiguous(memory_format=torch.channels_last)).logits
    assert predict(net, x)[0].equal(want) and predict(net, x.numpy())[0].equal(want)
    assert inspect_image(net, x).probs.equal(want.softmax(1)[0]) and Scene(net, x).x.equal(x)
    assert Gallery(dict(a=x), dict(n=net)).scene('n', 'a').x.equal(x)
    film = Film(x)
    film.take(type('L', (), dict(net=net, epoch=0.))())
    assert film.frames[0][1][0].equal(predict(net, x)[1][0])


@pytest.mark.parametrize('kind', [torch.float64, torch.float16, torch.bfloat16])
def test_networks_of_other_types(net, kind):
    "A network in double or half precision gets pictures of its own type from bytes and floats."
    import copy
    other = copy.deepcopy(net).to(kind)
    for x in CHW, FLOATS, RGB / 255: assert as_floats(x, other).dtype == kind
    if kind == torch.float64: assert predict(other, RGB)[0].allclose(predict(net, RGB)[0], atol=1e-4)


def normalized(x): return (x - .45) / .22


@pytest.mark.parametrize('bad, words', [
    (normalized(CHW / 255), ('pixels -2.05 to 2.5', 'floats in 0..1', 'before any normalization')),
    (CHW.float(), ('pixels 0 to 255', 'floats in 0..1')), (FLOATS - .1, ('pixels -0.1',)),
    (RGB.astype(np.float64), ('to 255',)), (FLOATS * torch.nan, ('image 0 has NaN', 'repair')),
    (np.where(RGB > 254, np.inf, .5), ('infinite',))], ids=words_id)
@pytest.mark.parametrize('name', ['predict', 'features', 'encode', 'inspect_image', 'Scene', 'Film', 'gradient', 'grad_cam', 'fgsm',
                                  'pgd', 'perturbation_curves', 'infidelity', 'randomization', 'attention_parts', 'draw', 'attention 1'])
def test_our_networks_refuse_other_floats(name, bad, words, net):
    if name in ('perturbation_curves', 'infidelity'):
        with refuses(*words): globals()[name](net, bad, torch.zeros(1, 32, 32))
    else:
        with refuses(*words): SEES[name](net, bad)


def test_strangers_get_floats_as_they_are():
    torch.manual_seed(0)
    stranger = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    x = normalized(CHW[None] / 255)
    assert as_floats(x, stranger).equal(x) and as_floats(x[0].numpy(), stranger).equal(x)
    assert gradient(stranger, x).shape == (1, 32, 32) and predicted(stranger, x).shape == (1,)
    assert as_floats(CHW, stranger).equal(CHW[None] / 255), 'bytes are divided for everyone'
    gray = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    assert gradient(gray, torch.randn(5, 1, 8, 8), channels='all').shape == (5, 1, 8, 8), 'one channel stays one'
    many = nn.Sequential(nn.Flatten(), nn.Linear(7 * 64, 2))
    assert gradient(many, torch.randn(5, 7, 8, 8)).shape == (5, 8, 8), 'and seven stay seven'


def test_disturbed_pictures_pass_inside(net):
    x = CHW[None] / 255 + .5
    with inside(): assert as_floats(x, net) is x
    with refuses('0..1'): as_floats(x, net)
    assert sensitivity(METHODS['gradient'], net, torch.ones(1, 3, 32, 32), radius=.3).shape == (1,)


def test_results_of_attacks_stay_on_the_pictures_device(net):
    for given in CHW, RGB, FLOATS, Image.fromarray(RGB): assert fgsm(net, given, .1).device == net.mean.device
    meta = torch.zeros(3, 32, 32, device='meta')
    with refuses('expected uint8'): fgsm(net, meta, .1)


# One or many

def test_many_of_every_kind(folder, net):
    dark = (CHW // 2)
    want = torch.stack([CHW, dark])
    lists = [RGB, dark], [saved(folder / 'x.png'), Image.fromarray(dark.permute(1, 2, 0).numpy())], np.stack([RGB, dark.permute(1, 2, 0)]), want
    for x in lists: assert as_images(x).equal(want)
    mixed = [RGB, dark / 255.]
    assert as_pictures(mixed).equal(want / 255) and as_images(mixed).equal(want)
    assert [len(several(x)) for x in (RGB, RGB[None], [RGB, RGB], CHW, 'x.png', [])] == [1, 1, 2, 1, 1, 0]


def test_sets_take_the_door_too(folder):
    data = ImageSet([saved(folder / 'x.png'), RGB, Image.fromarray(RGB), CHW], [0, 1, 0, 1], ['a', 'b'])
    assert data.images.equal(CHW.expand(4, -1, -1, -1))
    x = np.stack([RGB] * 4)
    assert ImageSet(backwards(x), np.array([0, 1, 0, 1])[::-1], ['a', 'b']).images.equal(data.images)
    gray = ImageSet(x[..., 0], [0, 1, 0, 1], ['a', 'b']).images
    assert gray.equal(CHW[:1].expand(4, 3, -1, -1)), '[N,H,W] is a stack of grey pictures'
    assert ImageSet(x[:, :, :3], [0] * 4, ['a', 'b']).images.shape == (4, 3, 32, 3), '3 pixels wide, 3 colors'


@pytest.mark.parametrize('shape', [(4, 4, 3), (3, 4, 4), (8, 3), (3, 8), (1, 4, 4), (4, 1, 3), (4, 8, 8), (8, 8, 1)], ids=str)
def test_small_arrays(shape):
    a = RNG.integers(0, 256, shape, dtype=np.uint8)
    last = len(shape) == 2 or shape[-1] == 3 or shape[0] not in (1, 3, 4)
    H, W = shape[:2] if last else shape[1:]
    assert as_images(a).shape == (1, 3, H, W)


@pytest.mark.parametrize('bad, words', [
    ([RGB, RGB[:16]], ('picture 1 is 32x16', 'the first 32x32', 'one size', 'fit_square')),
    ([], ('at least one picture',)), (np.zeros((5, 32, 32, 3, 1), np.uint8), ('(5, 32, 32, 3, 1)',)),
    (np.zeros((2, 5, 5), np.uint8), ('(2, 5, 5)', '[3,H,W]')), (None, ('expected',)), (7, ('expected',)), ({}, ('expected',)),
    (object(), ('expected',)), (torch.zeros(3, 8, 8, dtype=torch.int64), ('torch.int64', 'uint8')), (RGB.astype(bool), ('torch.bool',)),
    (torch.zeros(3, 8, 8).to_sparse(), ('not dense',)), (torch.zeros(3, 8, 8) * 1j, ('complex',)), ([RGB, None], ('picture 1',)),
    ('no such.png', ('no such file',)), (['x' * 5000], ('x',)), ('a\0b', ('no image file',)), (io.TextIOWrapper(io.BytesIO()), ('binary',)),
], ids=lambda v: str(v)[:25] if isinstance(v, tuple) else '')
def test_what_is_no_picture(bad, words):
    with refuses(*words): as_images(bad)


def test_batches_are_bounded_by_pixels():
    sizes = {side: batch_of(torch.empty(1, 3, side, side, device='meta')) for side in (8, 32, 64, 128, 512, 4096)}
    assert sizes == {8: 500, 32: 500, 64: 64, 128: 16, 512: 1, 4096: 1}
    x = torch.empty(1, 3, 32, 32)
    assert batch_of(x, 7) == 7 and batch_of(x, None, 64) == 64
    for bad in 0, -1, 2.5, '8':
        with refuses(f'batch size {bad!r}', 'at least 1'): batch_of(x, bad)


def test_large_pictures_go_through_in_small_batches(monkeypatch):
    net, seen = tiny_net('vgg_att1_pc', early_pools=2).eval(), []
    net.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[0]))
    x = torch.zeros(40, 3, 128, 128, dtype=torch.uint8)
    for f in predict, features, attention_parts_of, gradient_of: seen.clear(); f(net, x); assert max(seen) <= 16, f.__name__


def attention_parts_of(net, x): net(as_floats(x[:1])); return attention_parts(net, x)
def gradient_of(net, x): return gradient(net, x, target=0)


# Modes

@pytest.mark.parametrize('mode, name', [
    ('P', 'a.gif'), ('P', 'a.png'), ('PA', None), ('CMYK', 'a.jpg'), ('CMYK', 'a.tif'), ('YCbCr', 'b.jpg'), ('YCbCr', None),
    ('LAB', 'lab.tif'), ('LAB', None), ('HSV', None), ('LA', 'la.png'), ('La', None), ('1', 'one.png'), ('1', 'one.tif'), ('L', 'l.png'),
    ('RGBA', 'r.png'), ('RGBA', 'r.tif'), ('RGBA', 'r.webp'), ('RGBa', None), ('RGBX', None), ('I;16', 'i.png'), ('I;16', 'i.tif'), ('F', 'f.tif')])
def test_modes_as_objects_and_as_files(mode, name, tmp_path):
    y, x = np.mgrid[0:48, 0:64]
    image = Image.fromarray(np.stack([x * 3, y * 5, x + y], 2).astype(np.uint8))
    if mode == 'P': image = image.quantize(64)
    elif mode == 'PA': image = image.quantize(64).convert('PA')
    elif mode in ('La', 'RGBa'): image = image.convert(dict(La='LA', RGBa='RGBA')[mode]).convert(mode)
    elif mode == 'LAB':
        image = ImageCms.profileToProfile(image, ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB')
    elif mode == 'I;16': image = Image.fromarray((x * 1000).astype(np.uint16))
    elif mode == 'F': image = Image.fromarray((x / 63).astype(np.float32))
    else: image = image.convert(mode)
    want = as_images(image)
    near = image.convert('RGB') if mode in ('YCbCr', 'HSV', 'CMYK', 'L', '1', 'RGBX', 'P') else None
    if near is not None: assert np.array_equal(want[0].permute(1, 2, 0).numpy(), np.asarray(near))
    elif mode not in ('I;16', 'F', 'LA', 'La'):
        colors = np.stack([x * 3, y * 5, x + y], 2)
        assert np.abs(want[0].permute(1, 2, 0).numpy() - colors).mean() < 8, mode
    if name:
        image.save(tmp_path / name, **(dict(lossless=True) if name.endswith('webp') else {}))
        with Image.open(tmp_path / name) as opened: assert as_images(tmp_path / name).equal(as_images(opened))
        if not name.endswith('jpg'): assert as_images(tmp_path / name).equal(want)


def test_alpha_is_the_same_through_every_door(tmp_path):
    rgba = RNG.integers(0, 256, (64, 64, 4), dtype=np.uint8)
    want = read_image(saved(tmp_path / 'x.png', rgba))[None]
    for form in rgba, rgba.transpose(2, 0, 1), torch.from_numpy(rgba), Image.fromarray(rgba), rgba / 255, torch.from_numpy(rgba) / 255:
        assert as_images(form).equal(want) and as_floats(form).equal(want / 255)


# Files: orientation, tags, texts

def turned_by_pillow(path):
    with Image.open(path) as img: return np.asarray(ImageOps.exif_transpose(img).convert('RGB'))


@pytest.mark.parametrize('kind', ['jpg', 'png', 'webp', 'tif'])
@pytest.mark.parametrize('turn', range(1, 9))
def test_every_orientation(kind, turn, tmp_path):
    path, exif = tmp_path / f'x.{kind}', Image.Exif()
    exif[274], exif[271] = turn, 'a camera'
    saved(path, RGB[:16], exif=exif)
    want = turned_by_pillow(path)
    assert want.shape == ((32, 16, 3) if turn > 4 else (16, 32, 3))
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), want)
    with Image.open(path) as im: assert np.array_equal(as_images(im)[0].permute(1, 2, 0).numpy(), want)


def tiff_of(*entries, order='<'):
    "EXIF with raw entries (tag, type, count, four bytes)."
    head = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'IH', 8, len(entries))
    return head + b''.join(struct.pack(order + 'HHI', *e[:3]) + e[3] for e in entries) + bytes(4)


ODD = {  # the raw entry of the orientation, and how the picture must be turned
    'zero': ((274, 3, 1, b'\0\0\0\0'), 1), 'nine': ((274, 3, 1, b'\x09\0\0\0'), 1), 'two of them': ((274, 3, 2, b'\x06\0\x06\0'), 1),
    'none at all': ((274, 3, 0, b'\x06\0\0\0'), 1), 'text': ((274, 2, 2, b'6\0\0\0'), 1), 'a fraction far away': ((274, 5, 1, b'\xff\xff\xff\x7f'), 1),
    'unknown type': ((274, 99, 1, b'\x06\0\0\0'), 1), 'long': ((274, 4, 1, b'\x06\0\0\0'), 6), 'fine': ((274, 3, 1, b'\x06\0\0\0'), 6)}


@pytest.mark.parametrize('name', ODD)
def test_odd_orientations(name, tmp_path):
    entry, turn = ODD[name]
    want = np.rot90(RGB[:16], -1) if turn == 6 else RGB[:16]
    for kind in 'png', 'webp', 'jpg':
        how = dict(lossless=True) if kind == 'webp' else dict(quality=100, subsampling=0) if kind == 'jpg' else {}
        path = saved(tmp_path / f'x.{kind}', RGB[:16], exif=b'Exif\0\0' + tiff_of(entry), **how)
        got = read_image(path).permute(1, 2, 0).numpy().astype(int)
        assert got.shape == want.shape and np.abs(got - want).max() <= (kind == 'jpg') * 8
    big = tiff_of((274, 3, 1, b'\0\x06\0\0'), order='>')
    assert read_image(saved(tmp_path / 'x.png', RGB[:16], exif=b'Exif\0\0' + big)).shape == (3, 32, 16)


def test_orientation_in_xmp(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt('XML:com.adobe.xmp', xmp.decode(), zip=True)
    for path in saved(tmp_path / 'x.jpg', RGB[:16], xmp=xmp), saved(tmp_path / 'x.png', RGB[:16], pnginfo=text), \
            saved(tmp_path / 'x.webp', RGB[:16], xmp=xmp, lossless=True), saved(tmp_path / 'x.tif', RGB[:16], tiffinfo={700: xmp}):
        assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), turned_by_pillow(path)), path
        assert read_image(path).shape == (3, 32, 16)


def test_a_thousand_odd_tags(tmp_path):
    "Intact pixels with any rubbish in EXIF, ICC and XMP are read, and are the same pixels."
    rng = dice.Random(0)
    whole = {kind: saved(tmp_path / f'x.{kind}', **how) for kind, how in dict(jpg={}, png={}, webp=dict(lossless=True), tif={}).items()}
    want = {kind: read_image(path) for kind, path in whole.items()}
    for k in range(250):
        entries = [(rng.choice([270, 271, 282, 296, 305, 306, 330, 34665, 34853, 40965, rng.randrange(2**16)]), rng.randrange(16),
                    rng.choice([0, 1, 2, 5, 2**16, 2**32 - 1]), rng.randbytes(4)) for _ in range(rng.randrange(1, 6))]
        exif = tiff_of(*entries)[:rng.choice([None, None, rng.randrange(4, 40)])]
        odd = dict(exif=b'Exif\0\0' + exif, icc_profile=rng.randbytes(rng.randrange(200)), xmp=rng.randbytes(50))
        for kind in 'jpg', 'png', 'webp':
            how = dict(lossless=True) if kind == 'webp' else {}
            told = {k: v for k, v in odd.items() if kind != 'png' or k != 'xmp'}
            path = saved(tmp_path / f'y.{kind}', **told, **how)
            assert read_image(path).equal(want[kind]), f'{kind} {k}: {entries}'
        data = bytearray(whole['tif'].read_bytes())                      # its directory moves to the end, with more tags
        at, = struct.unpack_from('<I', data, 4)
        n, = struct.unpack_from('<H', data, at)
        more = [struct.pack('<HHI', t, kind, count) + v for t, kind, count, v in entries if t >= 270 and t not in (273, 277, 278, 279, 284, 338, 339)
                and t not in range(317, 350) and t not in range(512, 533)]
        found = sorted([data[at + 2 + 12 * i:at + 14 + 12 * i] for i in range(n)] + more, key=lambda e: e[:2][::-1])
        data += bytes(len(data) % 2) + struct.pack('<H', len(found)) + b''.join(found) + struct.pack('<I', rng.choice([0, 8, 2**31]))
        struct.pack_into('<I', data, 4, len(data) - 6 - 12 * len(found))
        (tmp_path / 'y.tif').write_bytes(data)
        assert read_image(tmp_path / 'y.tif').equal(want['tif']), f'tif {k}: {entries}'


def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def with_chunks(path, *chunks, before=b'IDAT'):
    data = path.read_bytes()
    at = data.index(before) - 4
    path.write_bytes(data[:at] + b''.join(chunks) + data[at:])
    return path


PACKED = zlib.compress(bytes(5 * 10**7), 9)


@pytest.mark.parametrize('body', [
    chunk(b'iTXt', b'a\0\1\0\0\0' + PACKED), chunk(b'zTXt', b'a\0\0' + PACKED), chunk(b'iCCP', b'a\0\0' + PACKED),
    chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0\0\0' + PACKED), chunk(b'zTXt', b'Raw profile type exif\0\0' + PACKED),
    chunk(b'zTXt', b'a\0\0rubbish'), chunk(b'iCCP', b''), chunk(b'tEXt', b''), chunk(b'iTXt', b'no end'), chunk(b'eXIf', b'MM'),
    chunk(b'tEXt', b'a\0b')[:-1] + b'?', chunk(b'gAMA', b''), chunk(b'pHYs', b'1'), chunk(b'cHRM', b'\xff' * 7), chunk(b'sRGB', b'')], ids=range(15))
@pytest.mark.parametrize('before', [b'IDAT', b'IEND'])
def test_whatever_a_png_tells_beside_its_pixels(body, before, tmp_path):
    "Bombs of text, damaged checksums, empty chunks."
    assert read_image(with_chunks(saved(tmp_path / 'x.png'), *[body] * 40, before=before)).equal(CHW)


def test_animations_and_phones_give_their_first_picture(tmp_path):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    for name, how in ('x.png', {}), ('x.webp', dict(lossless=True)), ('x.tif', {}):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **how)
        assert read_image(tmp_path / name).equal(CHW), name
    frames[0].quantize(256).save(tmp_path / 'x.gif', save_all=True, append_images=[frames[1].quantize(256)])
    assert (read_image(tmp_path / 'x.gif').float() - CHW).abs().mean() < 20
    frames[0].save(tmp_path / 'x.mpo', save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / 'x.mpo') as mpo: assert mpo.format == 'MPO'
    (tmp_path / 'x.mpo').rename(tmp_path / 'phone.jpg')
    with Image.open(tmp_path / 'phone.jpg') as im: want = np.asarray(im.convert('RGB'))
    assert np.array_equal(read_image(tmp_path / 'phone.jpg').permute(1, 2, 0).numpy(), want)


def test_cmyk_and_ycck_keep_the_segment_that_names_their_colors(tmp_path):
    path = saved(tmp_path / 'x.jpg', Image.fromarray(RGB).convert('CMYK'), quality=100)
    with Image.open(path) as im: assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), np.asarray(im.convert('RGB')))


# Files from strangers

EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n'


def test_a_picture_starts_no_program(tmp_path, monkeypatch):
    "A false Ghostscript stands in the way of the real one; an EPS by any name must not wake it."
    gs = tmp_path / 'gs'
    gs.write_text(f'#!/bin/sh\ntouch {tmp_path}/ran\n')
    gs.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    for name in 'holiday.jpg', 'x.png', 'x.eps', 'x.tif':
        path = tmp_path / name
        path.write_bytes(EPS)
        with refuses(name, 'is not an image'): read_image(path)
        with refuses('is not an image'): as_images([path])
    from ltpa.widgets import read_upload
    with refuses('is not an image'): read_upload(dict(name='holiday.jpg', content=EPS))
    with Image.open(path) as im, refuses('EPS', "img.convert('RGB')"): as_images(im)
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('kind', ['ico', 'icns', 'pcx', 'tga', 'sgi', 'dds', 'im', 'msp', 'xbm', 'jp2', 'pdf', 'eps', 'dib', 'blp', 'palm'])
@pytest.mark.filterwarnings('ignore:IM image format:DeprecationWarning')       # what Pillow no longer writes, nobody reads either
def test_only_the_listed_formats(kind, tmp_path):
    path = tmp_path / f'x.{kind}'
    image = Image.fromarray(RGB)
    try: image.convert(dict(msp='1', xbm='1', blp='P', palm='L').get(kind, 'RGB')).save(path)
    except (OSError, KeyError, ValueError): pytest.skip('this Pillow does not write it')
    path.rename(tmp_path / 'x.png')
    with refuses('is not an image', *FORMATS): read_image(tmp_path / 'x.png')


def test_pipes_sockets_devices_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / 'x.png')
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / 's.png'))
        for path in tmp_path / 'x.png', tmp_path / 's.png', '/dev/zero', '/dev/tty':
            if Path(path).exists():
                with refuses(path, 'pipe', 'expected an ordinary image file'): read_image(path)
    (tmp_path / 'link.png').symlink_to(tmp_path / 'x.png')
    with refuses('link.png', 'pipe'): as_images(tmp_path / 'link.png')
    with refuses('is a folder'): read_image(tmp_path)
    (tmp_path / 'loop').symlink_to('loop')
    with refuses('loop', 'cannot be read'): read_image(tmp_path / 'loop')
    with refuses('no such file'): read_image(tmp_path / 'x.png' / 'y.png')


def test_permission_denied_is_said(tmp_path, monkeypatch):
    path = saved(tmp_path / 'x.png')
    def closed(*args, **kw): raise PermissionError(13, 'Permission denied', str(path))
    monkeypatch.setattr('builtins.open', closed)
    with refuses(path, 'permission denied', 'allow reading') as e: read_image(path)
    with pytest.raises(LtpaError) as e: read_image(path)
    assert 'remove' not in str(e.value) and 'replace' not in str(e.value)


@pytest.mark.parametrize('raised', [MemoryError(), RecursionError(), struct.error('x'), KeyError('x'), IndexError(), OverflowError(),
                                    zlib.error('x'), AttributeError(), ZeroDivisionError(), AssertionError(), UnicodeError()], ids=lambda e: type(e).__name__)
def test_whatever_pillow_raises(raised, tmp_path, monkeypatch):
    def load(self): raise raised
    path = saved(tmp_path / 'x.png')
    monkeypatch.setattr(PngImagePlugin.PngImageFile, 'load', load)
    words = ('not enough free memory',) if isinstance(raised, MemoryError) else ('truncated or damaged',)
    with refuses(path, *words): read_image(path)
    with Image.open(path) as im, refuses(*words[:len(words) - 1 + isinstance(raised, MemoryError)]): as_images(im)


@pytest.mark.parametrize('kind', ['png', 'jpg', 'webp', 'bmp', 'gif', 'tif', 'ppm', 'pgm'])
def test_bytes_turned_over(kind, tmp_path):
    "Any bytes of an intact file changed: pixels, or one clear message."
    rng, path = dice.Random(kind), tmp_path / f'x.{kind}'
    exif = {} if kind in ('bmp', 'gif', 'ppm', 'pgm') else dict(exif=tiff_of((274, 3, 1, b'\x06\0\0\0')))
    whole = saved(path, Image.fromarray(RGB).convert('L' if kind == 'pgm' else 'RGB'), **exif).read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            place = rng.randrange(min(len(data), rng.choice([64, 400, 10**6])))
            data[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        path.write_bytes(data)
        try: assert read_image(path).shape[0] == 3
        except LtpaError as e: assert str(path) in str(e) and '\n' not in str(e)


# Memory

def png(width, height, depth=8, color=0, rows=b''):
    "A PNG that claims a size and holds next to nothing."
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(rows, 9)) + chunk(b'IEND', b''))


@pytest.mark.parametrize('size', [(4097, 4097), (9000, 9000), (60000, 60000), (2**31 - 1, 1), (1, 2**31 - 1), (70000, 70000)])
def test_sizes_that_the_file_cannot_hold(size, tmp_path):
    (tmp_path / 'x.png').write_bytes(png(*size))
    with refuses('x.png is too large', 'shrink it'): read_image(tmp_path / 'x.png')


BOUND = '''
import resource, sys
from ltpa.readers import read_image
from ltpa.names import LtpaError
pages = int(open('/proc/self/statm').read().split()[0])
most = pages * resource.getpagesize() + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for path in sys.argv[2:]:
    try: print(tuple(read_image(path, bits=16).shape))
    except LtpaError as e: print(e)
'''


def within(megabytes, *paths):
    "What `read_image` says in a process that may take only so much more memory than it has after its imports."
    if not Path('/proc/self/statm').exists(): pytest.skip('memory is counted as on Linux')
    done = subprocess.run([sys.executable, '-c', BOUND, str(megabytes), *map(str, paths)], capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    return done.stdout.splitlines()


def tiled_tiff():
    "32 pixels a side in one tile of 30000."
    entries = [(256, 3, 1, 32), (257, 3, 1, 32), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1), (322, 4, 1, 30000),
               (323, 4, 1, 30000), (324, 4, 1, 200), (325, 4, 1, 12)]
    body = b'II*\0' + struct.pack('<IH', 8, len(entries)) + b''.join(struct.pack('<HHII', *e) for e in entries) + bytes(4)
    return body.ljust(200, b'\0') + zlib.compress(b'')[:12].ljust(12, b'\0')


def many_tags():
    "A grey picture, and sixty thousand tags that all point to the same megabyte."
    layout = [(256, 3, 1, 32), (257, 3, 1, 32), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 720200), (277, 3, 1, 1),
              (278, 3, 1, 32), (279, 4, 1, 1024)]
    entries = layout + [(k, 1, 10**6, 720200) for k in range(1000, 61000)]
    body = b'II*\0' + struct.pack('<IH', 8, len(entries)) + b''.join(struct.pack('<HHII', *e) for e in entries) + bytes(4)
    return body.ljust(720200, b'\0') + bytes(10**6)


def rows(side, bytes_a_pixel): return bytes(1 + bytes_a_pixel * side) * side


def compressed(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, 'tiff', compression='tiff_deflate')
    return buffer.getvalue()


SMALL = {  # files that claim much, and what is said of them
    'black.png': (lambda: png(4096, 4096), 'damaged'), 'deep.png': (lambda: png(4096, 4096, 16), 'damaged'),
    'wide.png': (lambda: png(2**24, 1), 'damaged'), 'deep colors.png': (lambda: png(4096, 4096, 16, 6), 'damaged'),
    'tile.tif': (tiled_tiff, 'damaged'), 'tags.tif': (many_tags, '(3, 32, 32)'),
    'whole grey.png': (lambda: png(4000, 4000, 16, 0, rows(4000, 2)), '(3, 4000, 4000)'),
    'whole.png': (lambda: png(4000, 4000, 8, 6, rows(4000, 4)), '(3, 4000, 4000)'),
    'floats.tif': (lambda: compressed(np.zeros((4000, 4000), np.float32)), '(3, 4000, 4000)')}


def test_small_files_take_little_memory(tmp_path):
    for name, (content, _) in SMALL.items(): (tmp_path / name).write_bytes(content())
    for line, (name, (_, words)) in zip(within(300, *(tmp_path / name for name in SMALL)), SMALL.items(), strict=True):
        assert words in line, f'{name}: {line}'


def test_a_large_picture_needs_a_large_file(tmp_path):
    "Just above 2**24 pixels: noise is read, what is packed too small is not, and nothing was allocated for it."
    noise = saved(tmp_path / 'x.png', RNG.integers(0, 256, (4200, 4200), dtype=np.uint8), compress_level=0)
    assert within(300, noise) == ['(3, 4200, 4200)']
    (tmp_path / 'y.png').write_bytes(png(4200, 4200, 8, 0, rows(4200, 1)))
    assert 'too large' in within(30, tmp_path / 'y.png')[0]


# Depth

def deep(path, values, **how): return saved(path, np.asarray(values, np.uint16), **how)


def with_bits(path, bits): return with_chunks(path, chunk(b'sBIT', bytes([bits])))


TWELVE = (RAMP * 4095 / 126).round()


@pytest.mark.parametrize('kind', ['png', 'tif', 'pgm'])
@pytest.mark.parametrize('bits', [9, 10, 12, 14])
def test_bits_that_nobody_declares(kind, bits, tmp_path):
    top = 2**bits - 1
    path = deep(tmp_path / f'x.{kind}', RAMP * top / 126)
    with refuses(path, f'up to {top} of 65535', 'bits=12', 'bits=16'): read_image(path)
    with Image.open(path) as im, refuses('bits=12'): as_images(im)
    want = torch.from_numpy((RAMP * 255 / 126).round()).byte()
    assert (read_image(path, bits=bits)[0].int() - want).abs().max() <= 1
    with Image.open(path) as im: assert as_images(im, bits=bits)[0].equal(read_image(path, bits=bits))
    assert read_image(path, bits=16).max() == round(top / 257)
    with refuses(f'0 to {top}', f'expected 0 to {2**(bits - 1) - 1}'): read_image(path, bits=bits - 1)


def test_bits_that_a_file_declares(tmp_path):
    plain = deep(tmp_path / 'x.png', TWELVE)
    assert read_image(with_bits(plain, 12)).equal(read_image(plain, bits=12)), 'as they are, whatever the standard says'
    stretched = deep(tmp_path / 'y.png', TWELVE * 16 + TWELVE // 256)
    assert (read_image(with_bits(stretched, 12)).int() - read_image(plain).int()).abs().max() <= 1, 'as the standard says'
    dark = with_bits(deep(tmp_path / 'z.png', RAMP // 2 * 16), 12)
    with refuses('bits=12'): read_image(dark)
    for largest in 4095, 4000, 2048:
        path = deep(tmp_path / 'x.tif', TWELVE.clip(max=largest), tiffinfo={281: largest})
        assert read_image(path).equal(read_image(path, bits=12))
    for maximum in 300, 1023, 4095, 40000:
        (tmp_path / 'x.pgm').write_bytes(b'P5 64 64 %d\n' % maximum + (RAMP * maximum // 126).astype('>u2').tobytes())
        got = read_image(tmp_path / 'x.pgm')
        assert got.max() == 255 and (got[0].int() - torch.from_numpy(RAMP * 255 / 126).round()).abs().max() <= 1
        assert read_image(tmp_path / 'x.pgm', bits=16).max() == round(maximum / 257)


def test_black_is_black_at_any_depth(tmp_path):
    for kind in 'png', 'tif', 'pgm': assert not read_image(deep(tmp_path / f'x.{kind}', RAMP * 0)).any()


def test_whole_and_real_numbers_of_32_bits(tmp_path):
    whole, real = tmp_path / 'i.tif', tmp_path / 'f.tif'
    saved(whole, (RAMP * 32).astype(np.int32))
    with refuses('bits=12', 'bits=16'): read_image(whole)
    assert read_image(whole, bits=12)[0].max() == round(4032 * 255 / 4095)
    saved(real, (RAMP * 32).astype(np.float32))
    with refuses('0 to 4032', 'expected 0 to 1', 'bits=12'): read_image(real)
    assert read_image(real, bits=12).equal(read_image(whole, bits=12))
    saved(real, (RAMP / 252).astype(np.float32))
    assert read_image(real).max() == 128


@pytest.mark.parametrize('bits', [0, 33, -1, 12., '12', True])
def test_bits_that_are_no_number_of_bits(bits, tmp_path):
    with refuses(f'bits {bits!r}', '1 to 32'): read_image(saved(tmp_path / 'x.png'), bits=bits)


def deep_colors(values):
    "A PNG of 16 bits a color."
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in np.asarray(values))
    return png(values.shape[1], values.shape[0], 16, 2, rows)


def test_colors_of_16_bits(tmp_path):
    path, values = tmp_path / 'x.png', np.repeat(RAMP[..., None], 3, 2)
    path.write_bytes(deep_colors(values * 520))
    assert read_image(path).max() == 126 * 520 // 256
    for top in 1023, 4095, 32767:
        path.write_bytes(deep_colors(values * top // 126))
        with refuses('colors of 16 bits', f'at most {top // 256}', 'bits=16'): read_image(path)
        assert read_image(path, bits=16).max() == top // 256
        with refuses('bits=12 cannot be'): read_image(path, bits=12)
    (tmp_path / 'x.ppm').write_bytes(b'P6 64 64 65535\n' + (values * 32).astype('>u2').tobytes())
    with refuses('colors of 16 bits'): read_image(tmp_path / 'x.ppm')
    (tmp_path / 'x.bmp').write_bytes(b'')
    assert read_image(saved(tmp_path / 'x.bmp', RGB // 4)).max() < 64, 'eight bits are never in doubt'


@pytest.mark.parametrize('kind', [np.array, torch.tensor], ids=['array', 'tensor'])
def test_arrays_of_16_bits_have_one_scale(kind):
    dark, light = TWELVE.astype(np.uint16), (RAMP * 520).astype(np.uint16)
    with refuses('up to 4095 of 65535', 'images / 4095'): as_images(kind(dark))
    with refuses('up to 4095 of 65535'): ImageSet(kind(np.stack([dark, dark])), [0, 1], ['a', 'b'])
    together = as_images(kind(np.stack([dark, light])[..., None]))
    assert together[0].max() == 16 and together[1].max() == 255
    assert as_images([kind(dark), kind(light)]).equal(together), 'and in a list'
    assert as_images(kind(dark), bits=12).max() == 255
    with refuses('values up to 4095', '11 bits'): as_images(kind(dark), bits=11)
    assert not as_images(kind(dark * 0)).any()


def test_one_scale_for_a_folder(tmp_path):
    light, dark = deep(tmp_path / 'light.png', RAMP * 520), deep(tmp_path / 'dark.tif', RAMP)
    eight, real = saved(tmp_path / 'x.png'), saved(tmp_path / 'f.tif', (RAMP / 126).astype(np.float32))
    said = with_bits(deep(tmp_path / 'said.png', TWELVE), 12)
    assert [gray_range(f) for f in (eight, dark, light, said)] == [None, (None, 126), (None, 65520), (12, 4095)]
    assert gray_bits([eight, dark, light, said]) == {dark: 16, light: 16, said: 12}
    assert gray_bits([eight]) == {} and gray_bits([real, said]) == {real: None, said: 12}
    for files in [dark], [dark, real], [dark, said]:
        with refuses('mine', 'how many bits'): gray_bits(files, 'mine')
    for path, bits in gray_bits([dark, light, said]).items(): assert read_image(path, bits=bits).shape == (3, 64, 64)


def test_a_network_reads_deep_greys_as_in_its_training(tmp_path, monkeypatch):
    "Twelve bits, learned at twelve bits: the same pixels through every door that has the network; a flag says it too."
    monkeypatch.chdir(tmp_path)
    deep = (np.arange(40 * 40).reshape(40, 40) * 4095 // 1599).astype(np.uint16)
    Image.fromarray(deep).save('xray.png')
    net = tiny_net('vgg_att2_concat_pc')
    with refuses('xray.png', 'bits=12', '--gray-bits 12'): inspect_image(net, 'xray.png')
    net.info = dict(source=dict(source='scans', size=40, scale=None, bits=12))
    want = read_image('xray.png', bits=12)
    with Image.open('xray.png') as im:
        for x in 'xray.png', im, deep: assert as_pictures(x, net=net)[0].equal(want)
    assert inspect_image(net, 'xray.png').picture.unique().numel() > 150
    assert main(['explain', 'xray.png', '--device', 'cpu']) == 2
    assert main(['explain', 'xray.png', '--device', 'cpu', '--gray-bits', '12']) == 0


@pytest.mark.parametrize('dtype', [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_numbers_that_torch_can_hardly_compute_with(dtype):
    x = torch.zeros(2, 3, 32, 32).to(dtype)
    for take in (as_pictures, as_images, as_floats, lambda x: predict(tiny_net('vgg_gap'), x), lambda x: ImageSet(x, [0, 1], ['a', 'b'])):
        with refuses(str(dtype), 'expected uint8, uint16 or floats'): take(x)
