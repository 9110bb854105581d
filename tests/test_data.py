"""Pictures in, pictures out: every form that is converted, every one that is refused, and the loader."""
import json
import pickle
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
from helpers import Touch, pictures, refuses, words_id
from PIL import Image
from safetensors.numpy import save_file
from torchvision import datasets

from ltpa import data as data_module
from ltpa import published
from ltpa.names import LtpaError
from ltpa.core import keyed_rng
from ltpa.files import fingerprint
from ltpa.names import DOWNLOADS
from ltpa.inputs import fill_square, fit_square, resize
from ltpa.readers import FORMATS, read_image
from ltpa.data import ASSETS, ClutteredFashion, Collage, ImageSet, Loader, random_crops, random_flips
from ltpa.arrays import load_arrays
from ltpa.folders import load_folder
from ltpa.downloads import download_size
from ltpa.walker import SUFFIXES
from ltpa.published import TORCHVISION, open_data

TWO = ['a', 'b']
GRAY = np.arange(128, dtype=np.uint8).reshape(8, 16) * 2
RGB = np.stack([GRAY, GRAY[::-1], 255 - GRAY], 2)


# Images of every mode

def palette(transparent=None):
    img = Image.fromarray((GRAY // 64).astype(np.uint8), 'P')
    img.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 250, 240, 230])
    return img, {} if transparent is None else dict(transparency=transparent)


COLORS = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [250, 240, 230]], np.uint8)[GRAY // 64]
ALPHA = np.where(np.arange(16) < 8, 255, 51).astype(np.uint8) * np.ones((8, 1), np.uint8)
OVER_WHITE = lambda rgb, alpha: np.rint(rgb * (alpha / 255.) + 255 * (1 - alpha / 255.))
CLEAR_1 = np.where((GRAY // 64 == 1)[..., None], 255, COLORS)

CMYK = Image.fromarray(255 - np.dstack([RGB, np.full_like(GRAY, 255)]), 'CMYK')

FORMS = {  # name: (image, how to save it, RGB that must come out, tolerance)
    'grey.png': (Image.fromarray(GRAY), {}, GRAY[..., None], 0),
    'rgb.png': (Image.fromarray(RGB), {}, RGB, 0),
    'rgb.bmp': (Image.fromarray(RGB), {}, RGB, 0),
    'rgb.tif': (Image.fromarray(RGB), {}, RGB, 0),
    'rgb.ppm': (Image.fromarray(RGB), {}, RGB, 0),
    'rgb.webp': (Image.fromarray(RGB), dict(lossless=True), RGB, 0),
    'one_bit.png': (Image.fromarray(GRAY > 100), {}, np.where(GRAY > 100, 255, 0)[..., None], 0),
    'palette.png': (*palette(), COLORS, 0),
    'palette.gif': (*palette(), COLORS, 0),
    'palette_one_clear.png': (*palette(1), CLEAR_1, 0),
    'palette_one_clear.gif': (*palette(1), CLEAR_1, 0),
    'palette_half_clear.png': (*palette(bytes([255, 51, 0, 255])), OVER_WHITE(
        COLORS, np.array([255, 51, 0, 255])[GRAY // 64][..., None]), 1),
    'rgba.png': (Image.fromarray(np.dstack([RGB, ALPHA])), {}, OVER_WHITE(RGB, ALPHA[..., None]), 1),
    'rgba.tif': (Image.fromarray(np.dstack([RGB, ALPHA])), {}, OVER_WHITE(RGB, ALPHA[..., None]), 1),
    'la.png': (Image.fromarray(np.dstack([GRAY, ALPHA])), {}, OVER_WHITE(GRAY, ALPHA)[..., None], 1),
    'one_grey_clear.png': (
        Image.fromarray(GRAY), dict(transparency=4), np.where(GRAY == 4, 255, GRAY)[..., None], 0),
    'bits16.png': (Image.fromarray(GRAY.astype(np.uint16) * 257), {}, GRAY[..., None], 0),
    'bits16.tif': (Image.fromarray(GRAY.astype(np.uint16) * 257), {}, GRAY[..., None], 0),
    'bits16.pgm': (Image.fromarray(GRAY.astype(np.uint16) * 257), {}, GRAY[..., None], 0),
    'bits16_rounded.png': (Image.fromarray(GRAY.astype(np.uint16) * 257 + 100), {}, GRAY[..., None], 0),
    'floats.tif': (Image.fromarray((GRAY / 255.).astype(np.float32)), {}, GRAY[..., None], 0),
    'cmyk.tif': (CMYK, {}, RGB, 0),
    'cmyk.jpg': (CMYK, dict(quality=100), RGB, 8),
    'grey.jpg': (Image.fromarray(GRAY), dict(quality=100), GRAY[..., None], 2),
}


@pytest.mark.filterwarnings('ignore:.*mode.*:DeprecationWarning')
@pytest.mark.parametrize('name', FORMS)
def test_forms_of_images(name, tmp_path):
    img, how, want, tol = FORMS[name]
    img.save(tmp_path / name, **how)
    got = read_image(tmp_path / name)
    assert got.dtype == torch.uint8 and got.shape == (3, 8, 16)
    want = np.broadcast_to(want, (8, 16, 3)).astype(int)
    off = np.abs(got.permute(1, 2, 0).numpy().astype(int) - want).max()
    assert off <= tol, f'{name}, for Pillow of mode {Image.open(tmp_path / name).mode}: off by {off}'


@pytest.mark.parametrize('orientation, turned', [
    (2, lambda x: x[:, ::-1]), (3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1)), (8, np.rot90)])
@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'I;16'])
def test_camera_orientation(mode, orientation, turned, tmp_path):
    deep = mode == 'I;16'
    img = Image.fromarray(GRAY.astype(np.uint16) * 257) if deep else Image.fromarray(RGB).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    img.save(tmp_path / 'turned.png', exif=exif)
    want = turned(GRAY[..., None].repeat(3, 2) if deep else RGB)
    assert np.array_equal(read_image(tmp_path / 'turned.png').permute(1, 2, 0).numpy(), want)


def test_suffixes_are_those_of_the_formats_that_are_read():
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in SUFFIXES} == set(FORMATS)


# Images that are refused

def written(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp', 'bmp', 'gif', 'tif', 'ppm'])
def test_truncated_or_damaged(suffix, tmp_path):
    "Cut at any length, or with any byte replaced, a file gives pixels or one clear message."
    Image.fromarray(RGB).resize((32, 32)).save(tmp_path / f'whole.{suffix}')
    whole, path = (tmp_path / f'whole.{suffix}').read_bytes(), tmp_path / f'x.{suffix}'
    refused = 0
    for cut in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        for content in whole[:cut], whole[:cut] + bytes([whole[cut] ^ 0xff]) + whole[cut + 1:]:
            try: read_image(written(path, content))
            except LtpaError as e:
                refused += 1
                assert str(path) in str(e)
    written(path, whole[:len(whole) // 2])
    with refuses(path, 'truncated or damaged', 'replace or remove it'): read_image(path)
    assert refused > 20


@pytest.mark.parametrize('content, words', [
    (b'', ('is not an image that can be read here',)),
    (b'just a note\n', ('is not an image that can be read here', 'PNG')),
    (b'<svg xmlns="http://www.w3.org/2000/svg"/>', ('is not an image that can be read here',)),
], ids=words_id)
def test_not_an_image(content, words, tmp_path):
    path = written(tmp_path / 'x.png', content)
    with refuses(path, *words): read_image(path)


@pytest.mark.parametrize('size', [(1, 1), (7, 30), (30, 7)])
def test_too_small(size, tmp_path):
    Image.new('RGB', size).save(tmp_path / 'x.png')
    with refuses('x.png', '{}x{} pixels'.format(*size), 'at least 8'): read_image(tmp_path / 'x.png')
    assert read_image(tmp_path / 'x.png', min_side=1).shape == (3, *size[::-1])


def test_missing_file_and_folder(tmp_path):
    with refuses('x.png: no such file'): read_image(tmp_path / 'x.png')
    with refuses('is a folder', 'expected an image file'): read_image(tmp_path)


def test_decompression_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 50)
    Image.fromarray(RGB).save(tmp_path / 'x.png')
    with refuses('x.png is too large', 'shrink it'): read_image(tmp_path / 'x.png')


@pytest.mark.parametrize('pixels, words', [
    (np.full((8, 8), np.nan, np.float32), ('NaN', 'remove or repair')),
    (np.full((8, 8), 1e6, np.float32), ('1e+06', 'expected 0 to')),
    (np.full((8, 8), -5, np.int32), ('-5', 'expected 0 to')),
    (np.full((8, 8), 70000, np.int32), ('70000', 'expected 0 to')),
], ids=words_id)
def test_pixels_out_of_range_in_a_file(pixels, words, tmp_path):
    Image.fromarray(pixels).save(tmp_path / 'x.tif')
    with refuses('x.tif', *words): read_image(tmp_path / 'x.tif')


# Arrays

DEEP = RGB.astype(np.uint16) * 257

ARRAYS = {  # name: (image, RGB that must come out, tolerance)
    'grey HW': (GRAY, GRAY[..., None], 0), 'grey CHW': (GRAY[None], GRAY[..., None], 0),
    'grey HWC': (GRAY[..., None], GRAY[..., None], 0), 'rgb HWC': (RGB, RGB, 0),
    'rgb CHW': (RGB.transpose(2, 0, 1), RGB, 0), 'tensor': (torch.from_numpy(RGB), RGB, 0),
    'float': (RGB / 255, RGB, 0), 'half': ((RGB / 255).astype(np.float16), RGB, 0),
    'bfloat16': (torch.from_numpy(RGB / 255).bfloat16(), RGB, 1), '16 bits': (DEEP, RGB, 0),
    '16 bits, tensor': (torch.from_numpy(DEEP), RGB, 0),
    '16 bits, rounded': (DEEP - (RGB > 0) * np.uint16(100), RGB, 0),
    'opaque': (np.dstack([RGB, np.full_like(GRAY, 255)]), RGB, 0),
    'clear': (np.dstack([RGB, 0 * GRAY]), 255, 0),
    'half clear': (np.dstack([RGB, ALPHA]), OVER_WHITE(RGB, ALPHA[..., None]), 1),
}


@pytest.mark.parametrize('name', ARRAYS)
def test_layouts_and_types_of_arrays(name):
    image, want, tol = ARRAYS[name]
    got = ImageSet(image[None], [1], TWO).images
    assert got.dtype == torch.uint8 and got.shape == (1, 3, 8, 16) and got.is_contiguous()
    off = np.abs(got[0].permute(1, 2, 0).numpy() - np.broadcast_to(want, (8, 16, 3)).astype(int))
    assert off.max() <= tol


NAN = np.zeros((3, 8, 8, 3), np.float32)
NAN[1, 2, 3, 0] = np.nan
OK = np.zeros((3, 8, 8, 3), np.uint8)


@pytest.mark.parametrize('images, labels, classes, words', [
    (NAN, [0, 1, 0], TWO, ('image 1 has NaN', 'remove or repair')),
    (NAN + np.inf, [0, 1, 0], TWO, ('infinite', 'remove or repair')),
    (OK + 1.5, [0, 1, 0], TWO, ('pixels', '1.5', 'floats in 0..1')),
    (OK - .5, [0, 1, 0], TWO, ('pixels', '-0.5', 'floats in 0..1')),
    (OK.astype(np.int64), [0, 1, 0], TWO, ('torch.int64', 'expected uint8')),
    (OK.astype(bool), [0, 1, 0], TWO, ('torch.bool', 'expected uint8')),
    (OK.astype(complex), [0, 1, 0], TWO, ('complex', 'expected uint8')),
    (OK.astype(str), [0, 1, 0], TWO, ('<U', 'expected')),
    (OK.astype(object), [0, 1, 0], TWO, ('object', 'expected')),
    ([OK[0], OK[0, :4]], [0, 1], TWO, ('expected',)),
    (OK[..., :2], [0, 1, 0], TWO, ('(3, 8, 8, 2)', 'C of 1, 3 or 4')),
    (OK[0, 0], [0], TWO, ('(8, 3)', 'expected images as')),
    (OK[None], [0], TWO, ('(1, 3, 8, 8, 3)', 'expected images as')),
    (OK[:0], [], TWO, ('(0, 8, 8, 3)', 'at least one picture')),
    (OK, [0, 1, 2], TWO, ('label 2 at row 2', 'expected 0 to 1')),
    (OK, [0, -1, 1], TWO, ('label -1 at row 1', 'expected 0 to 1')),
    (OK, [0, 1], TWO, ('3 images but 2 labels', 'one label per image')),
    (OK, [0., 1., 0.], TWO, ('torch.float64', 'expected whole numbers')),
    (OK, [True, False, True], TWO, ('torch.bool', 'expected whole numbers')),
    (OK, [[0], [1], [0]], TWO, ('(3, 1)', 'expected whole numbers of shape [N]')),
    (OK, ['a', 'b', 'a'], TWO, ('<U1', 'expected whole numbers')),
    (OK, [0, 0, 0], ['only'], ('1 class (only)', 'at least two')),
    (OK, [0, 0, 0], [], ('0 class', 'at least two')),
], ids=words_id)
def test_refused_arrays(images, labels, classes, words):
    with refuses('mine', *words): ImageSet(images, labels, classes, 'mine')


# Array files

@pytest.mark.parametrize('suffix', ['npz', 'safetensors'])
def test_array_files(suffix, tmp_path):
    save = np.savez if suffix == 'npz' else lambda path, **kw: save_file(kw, path)
    save(tmp_path / f'train.{suffix}', images=np.stack([RGB, RGB[::-1]]), labels=np.array([1, 0]))
    got = load_arrays(tmp_path / f'train.{suffix}')
    assert got.labels.tolist() == [1, 0] and got.classes == ['0', '1'] and got[0][1] == 1
    assert np.array_equal(got.images[1].permute(1, 2, 0).numpy(), RGB[::-1])


@pytest.mark.parametrize('suffix', ['npz', 'safetensors'])
@pytest.mark.parametrize('kind', ['uint8', 'uint16', 'uint32', 'uint64', 'int8', 'int64'])
def test_labels_of_any_whole_type(kind, suffix, tmp_path):
    save = np.savez if suffix == 'npz' else lambda path, **kw: save_file(kw, path)
    save(tmp_path / f'x.{suffix}', images=OK, labels=np.array([0, 2, 1], kind))
    got = load_arrays(tmp_path / f'x.{suffix}')
    assert got.labels.tolist() == [0, 2, 1] and got.classes == ['0', '1', '2']


def test_class_names_of_an_array_file(tmp_path):
    np.savez(tmp_path / 'x.npz', images=OK, labels=np.array([0, 1, 0]), classes=['cat', 'dog', 'newt'])
    assert load_arrays(tmp_path / 'x.npz').classes == ['cat', 'dog', 'newt']


def test_bfloat16_file(tmp_path):
    from safetensors.torch import save_file
    images = torch.full((2, 3, 8, 8), .5).bfloat16()
    save_file(dict(images=images, labels=torch.tensor([0, 1])), tmp_path / 'x.safetensors')
    assert load_arrays(tmp_path / 'x.safetensors').images.unique().tolist() == [128]


@pytest.mark.parametrize('how', ['a member', 'the file'])
def test_pickles_are_never_loaded(how, tmp_path):
    path, trap = tmp_path / 'x.npz', tmp_path / 'executed'
    if how == 'a member': np.savez(path, images=np.array([Touch(trap)], dtype=object), labels=[0])
    else: path.write_bytes(pickle.dumps(Touch(trap)))
    with refuses(path, 'pickled objects, which are never loaded', 'plain arrays'): load_arrays(path)
    assert not trap.exists()


@pytest.mark.parametrize('arrays, words', [
    (dict(images=OK), ('no labels', 'it holds: images')),
    (dict(labels=np.zeros(3, int)), ('no images', 'it holds: labels')),
    (dict(x=OK), ('no images and no labels', 'it holds: x')),
    (dict(images=OK, labels=np.array([0, 5, -1])), ('label -1 at row 2', 'expected 0 to 5')),
    (dict(images=OK, labels=np.array([0, 2, 1]), classes=TWO), ('label 2 at row 1', 'expected 0 to 1')),
    (dict(images=OK, labels=np.array([0, -1, 1]).astype(np.uint32)), ('label 4294967295', 'numbered 0, 1, 2')),
    (dict(images=OK, labels=np.array([0, 0, 0])), ('at least two',)),
    (dict(images=OK, labels=np.array([0., 1., 0.])), ('float64', 'whole numbers')),
    (dict(images=OK, labels=np.array(['a', 'b', 'a'])), ('whole numbers',)),
    (dict(images=NAN, labels=np.array([0, 1, 0])), ('image 1 has NaN',)),
], ids=words_id)
def test_array_file_with_the_wrong_content(arrays, words, tmp_path):
    np.savez(tmp_path / 'x.npz', **arrays)
    with refuses('x', *words): load_arrays(tmp_path / 'x.npz')


@pytest.mark.parametrize('kind', ['npz', 'compressed npz', 'safetensors'])
def test_damaged_array_file(kind, tmp_path):
    "Cut at any length, or with any byte changed: one clear message, or what it holds is well formed."
    path = tmp_path / f'x.{kind.split()[-1]}'
    content = dict(images=np.stack([RGB] * 6), labels=np.arange(6) % 2)
    if kind == 'safetensors': save_file(content, path)
    else: (np.savez if kind == 'npz' else np.savez_compressed)(path, **content)
    whole, refused = path.read_bytes(), 0
    for cut in range(0, len(whole) - 1, max(1, len(whole) // 150)):
        for content in whole[:cut], whole[:cut] + bytes([whole[cut] ^ 0x55]) + whole[cut + 1:]:
            try: load_arrays(written(path, content))
            except LtpaError as e:
                refused += 1
                assert f'{tmp_path.name}/x' in str(e)
    with refuses(path, 'truncated or damaged', 'write it again'): load_arrays(written(path, whole[:-100]))
    assert refused > 150


def test_array_file_that_is_something_else(tmp_path):
    np.save(tmp_path / 'x.npy', OK)
    with refuses('x.npy', 'ends in .npz or .safetensors'): load_arrays(tmp_path / 'x.npy')
    (tmp_path / 'x.npy').rename(tmp_path / 'x.npz')
    with refuses('x.npz', 'write it again'): load_arrays(tmp_path / 'x.npz')
    with refuses('y.npz: no such file'): load_arrays(tmp_path / 'y.npz')


# Folders

def folder(root, **classes):
    "A class for each argument, of as many pictures, all different."
    for c, (name, n) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(n): Image.new('RGB', (12, 9), (10 * i, 50 * c, 0)).save(root / name / f'{i}.png')
    return root


@pytest.mark.parametrize('H, W, size', [(9, 9, 20), (40, 75, 32), (75, 40, 32), (100, 101, 7)])
def test_pictures_are_scaled_by_pillow(H, W, size):
    from PIL import ImageOps
    x = torch.randint(256, (3, H, W), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    img = Image.fromarray(x.permute(1, 2, 0).numpy())
    def same(ours, theirs): return ours.equal(torch.from_numpy(np.array(theirs)).permute(2, 0, 1))
    assert same(fit_square(x, size), ImageOps.fit(img, (size, size), Image.Resampling.BICUBIC))
    assert same(fill_square(x, size), img.resize((size, size), Image.Resampling.BICUBIC))
    box = (.5, 1.25, W - 2.5, H - 1.)
    assert same(resize(x, (5, size), Image.Resampling.BOX, box), img.resize((size, 5), Image.Resampling.BOX, box))
    assert resize(x, (H, W)) is x, 'nothing is to be done'
    assert not resize(x, (H, W), box=box).equal(x), 'a part of it, enlarged to the size of the whole'


def test_fit_square_keeps_the_middle():
    x = torch.zeros(3, 8, 24, dtype=torch.uint8)
    x[:, :, 8:16] = 200
    assert fit_square(x, 8).equal(torch.full((3, 8, 8), 200, dtype=torch.uint8))
    assert fit_square(x, 5).shape == (3, 5, 5)


# Sets by name

@pytest.mark.parametrize('name, split, kw, words', [
    ('cifar11', 'train', {}, ("unknown data set 'cifar11'", "'cifar10'")),
    ('cluttered-fashion', 'train', {}, ("unknown data set", "'cluttered_fashion'")),
    ('cifar10', 'val', {}, ("unknown split 'val'", 'known: test, train')),
    ('cluttered_fashion', 'tset', {}, ("unknown split 'tset'", "'test'")),
    ('some/where', 'train', {}, ('some/where: no such file or folder',)),
    ('cifar10', 'train', dict(scale=.5), ('scale can be set for cluttered_fashion only', 'cifar10')),
    ('cluttered_fashion', 'train', dict(size=4), ('size 4', 'at least 8')),
    ('cluttered_fashion', 'train', dict(size=0), ('size 0', 'at least 8')),
    ('cluttered_fashion', 'train', dict(scale=1.5), ('scale 1.5', '0 < from <= to <= 1')),
    ('cluttered_fashion', 'train', dict(scale=(.7, .4)), ('scale (0.7, 0.4)', '0 < from <= to <= 1')),
    ('cluttered_fashion', 'train', dict(scale=float('nan')), ('scale nan', '0 < from <= to <= 1')),
    ('cluttered_fashion', 'train', dict(n=0), ('n 0', 'at least 1')),
], ids=words_id)
def test_refused_names_and_settings(name, split, kw, words):
    with refuses(*words): open_data(name, split, **kw)


@pytest.mark.parametrize('size', [-3, 0])
def test_refused_size_of_a_folder(size, tmp_path):
    folder(tmp_path, cat=2, dog=2)
    with refuses(f'size {size}', 'expected'): open_data(str(tmp_path), size=size)


def test_file_where_a_folder_belongs(tmp_path):
    np.savez(tmp_path / 'train.npz', images=OK, labels=np.array([0, 1, 0]))
    with refuses('train.npz is a file', 'test.npz', 'CLASS/IMAGE'): open_data(tmp_path / 'train.npz')
    assert len(open_data(tmp_path)) == 3
    with refuses('test.npz: no such file'): open_data(tmp_path, 'test')


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv('LTPA_DATA', str(tmp_path / 'here'))
    return tmp_path / 'here'


@pytest.mark.parametrize('name', DOWNLOADS)
def test_missing_set_says_how_to_get_it(name, root):
    words = f'{name} is not in', 'here', f'a download of {download_size(name)}', f'run: ltpa download {name}'
    with refuses(*words): open_data(name)
    assert not root.exists()


def cifar(root, name, n=6):
    "CIFAR's binary layout: n training records, and half as many to test on."
    folder, k = root / name / DOWNLOADS[name][0], 10 if name == 'cifar10' else 100
    folder.mkdir(parents=True)
    records = np.random.default_rng(0).integers(256, size=(n, 3074 if k == 100 else 3073), dtype=np.uint8)
    records[:, -3073] = np.arange(n) * 7 % k
    files = [f'data_batch_{i}.bin' for i in range(1, 6)] if k == 10 else ['train.bin']
    for f, some in zip(files, np.array_split(records, len(files))): some.tofile(folder / f)
    records[:n // 2].tofile(folder / ('test_batch.bin' if k == 10 else 'test.bin'))
    names = 'batches.meta.txt' if k == 10 else 'fine_label_names.txt'
    (folder / names).write_text(''.join(f'class{i}\n' for i in range(k)) + '\n')
    return folder, records


@pytest.fixture
def small_cifar(monkeypatch): monkeypatch.setattr(published, 'CIFAR_IMAGES', dict(train=6, test=3))


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar(name, root, small_cifar):
    "The pixels of record i are image i; of CIFAR-100's two labels the second, fine one counts."
    records = cifar(root, name)[1]
    for split, n in (('train', 6), ('test', 3)):
        got = open_data(name, split)
        assert got.images.shape == (n, 3, 32, 32)
        assert np.array_equal(got.images.view(n, -1), records[:n, -3072:])
        assert got.labels.tolist() == records[:n, -3073].tolist() and got.name == f'{name}/{split}'
        assert got.classes == [f'class{i}' for i in range(10 if name == 'cifar10' else 100)]
    assert open_data(name, 'test', size=8).images.shape == (3, 3, 8, 8)


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_damaged_cifar(name, root, small_cifar):
    folder, records = cifar(root, name)
    file = folder / ('test_batch.bin' if name == 'cifar10' else 'test.bin')
    words = f'{name} in {folder} is damaged', f'remove that and run: ltpa download {name}'
    for content in file.read_bytes()[:-1], file.read_bytes() + b'x', b'':
        file.write_bytes(content)
        with refuses(*words, f'{len(content):,} bytes', '3 records of'): open_data(name, 'test')
    assert len(open_data(name)) == 6
    file.unlink()
    with refuses(file.name, 'no such file', f'or remove {folder} and run: ltpa download {name}'): open_data(name, 'test')


def test_cifar_label_out_of_range(root, small_cifar):
    folder, records = cifar(root, 'cifar100')
    records[4, 1] = 250
    records.tofile(folder / 'train.bin')
    with refuses('cifar100/train: label 250 at row 4', 'expected 0 to 99'): open_data('cifar100')


@pytest.mark.parametrize('name, python_form', [
    ('cifar10', 'cifar-10-batches-py'), ('cifar100', 'cifar-100-python')])
def test_pickled_cifar_is_never_opened(name, python_form, root, small_cifar):
    "Neither in the folder of its Python form, nor under the names of the binary one."
    trap = root.parent / 'executed'
    evil, binary = pickle.dumps(Touch(trap)), cifar(root, name)[0]
    for f in list(binary.iterdir()): f.write_bytes(evil)
    for split in 'train', 'test':
        with refuses(f'{name} in {binary} is damaged', f'ltpa download {name}'): open_data(name, split)
    (root / name / python_form).mkdir()
    batches = [f'data_batch_{i}' for i in range(1, 6)]
    for f in [*batches, 'test_batch', 'batches.meta', 'train', 'test', 'meta']:
        (root / name / python_form / f).write_bytes(evil)
    binary.rename(root.parent / 'gone')
    for split in 'train', 'test':
        with refuses(f'{name} is not in', f'ltpa download {name}'): open_data(name, split)
    assert not trap.exists()


@pytest.mark.parametrize('name', TORCHVISION)
@pytest.mark.parametrize('split', ['train', 'test'])
def test_torchvision_sets(name, split, root, monkeypatch):
    "The right part is asked for, and what comes back is an `ImageSet` of the size wished."
    asked, images = [], np.stack([RGB, RGB[::-1]])
    class Fake:
        def __init__(self, root, split):
            asked.append((root, split))
            self.data, self.labels = images.transpose(0, 3, 1, 2), np.array([3, 9])
            if name != 'svhn': self.classes = list('abcdefghij')
    monkeypatch.setattr(datasets, TORCHVISION[name], Fake)
    monkeypatch.setattr(published, 'is_here', lambda name: True)
    got = open_data(name, split)
    assert asked == [(root / name, split)]
    assert np.array_equal(got.images[1].permute(1, 2, 0), RGB[::-1])
    assert got.labels.tolist() == [3, 9] and len(got.classes) == 10 and got.name == f'{name}/{split}'
    assert open_data(name, split, size=8).images.shape == (2, 3, 8, 8)


@pytest.mark.parametrize('name, files', [
    ('svhn', ['train_32x32.mat', 'test_32x32.mat']),
    ('stl10', ['stl10_binary/train_X.bin', 'stl10_binary/train_y.bin', 'stl10_binary/test_X.bin'])])
def test_torchvision_checks_what_it_reads(name, files, root):
    "A pickle under the names of its files is refused for its checksum, before anything reads it."
    trap = root.parent / 'executed'
    for f in files:
        (root / name / f).parent.mkdir(parents=True, exist_ok=True)
        (root / name / f).write_bytes(pickle.dumps(Touch(trap)))
    for split in 'train', 'test':
        with refuses(f'{name} in', 'is damaged', f'ltpa download {name}'): open_data(name, split)
    assert not trap.exists()


def test_arrays_stand_in_for_a_download(root):
    (root / 'cifar10').mkdir(parents=True)
    for split in 'train', 'test': np.savez(root / 'cifar10' / f'{split}.npz', images=OK, labels=[0, 1, 0])
    assert len(open_data('cifar10')) == len(open_data('cifar10', 'test', download=True)) == 3


def test_failed_download(root, server, monkeypatch):
    server.status = 404
    monkeypatch.setitem(DOWNLOADS, 'cifar10', ('cifar-10-batches-bin', [(server.url, 100_000, '0' * 32)]))
    with refuses('cifar10 (100 kB) could not be fetched', '404', root / 'cifar10' / 'set.bin', 'by hand'):
        open_data('cifar10', download=True)


# ClutteredFashion

@pytest.fixture(scope='module')
def sets(): return {split: ClutteredFashion(split, seed=7, n=600) for split in ('train', 'test')}


def test_same_pictures_in_another_process_with_other_threads(sets):
    code = ('import torch; torch.set_num_threads(2)\n'
            'from ltpa.data import *; from ltpa.core import fingerprint\n'
            'd = ClutteredFashion("test", seed=7, n=600)\n'
            'print(fingerprint(*d.render(epoch=2)), d.fingerprint)')
    there = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert there.split() == [fingerprint(*sets['test'].render(epoch=2)), sets['test'].fingerprint]


def test_item_does_not_depend_on_its_neighbors(sets):
    "300 pictures are rendered in more than one piece."
    images, masks = sets['test'].render(slice(0, 300))
    some = torch.tensor([299, 0, 256, 255, 257, 17, 17])
    again, again_masks = sets['test'].render(some)
    assert again.equal(images[some]) and again_masks.equal(masks[some])
    image, label, mask = sets['test'][-301]
    assert image.equal(images[299]) and mask.equal(masks[299]) and label == int(sets['test'].labels[299])
    sets['test'].render([3], epoch=5)
    assert sets['test'].render(some)[0].equal(again), 'another epoch in between changes nothing'


@pytest.mark.parametrize('size', [8, 9, 31, 32, 64, 128])
def test_sizes(size):
    d = ClutteredFashion('test', size=size, n=40)
    images, masks = d.render()
    assert images.shape == (40, 3, size, size) and images.dtype == torch.uint8
    assert masks.shape == (40, size, size) and masks.dtype == torch.bool
    assert masks.flatten(1).any(1).all(), 'every picture shows some of its object'
    share = masks.float().mean().item()
    assert .08 < share < .25, f'{share:.0%} of the pixels are object'


def test_seed_split_epoch_and_scale_change_the_picture():
    base = dict(split='test', n=8, seed=0)
    settings = [{}, dict(seed=1), dict(split='train'), dict(scale=.5)]
    seen = {ClutteredFashion(**base | kw).render()[0].numpy().tobytes() for kw in settings}
    seen.add(ClutteredFashion(**base).render(epoch=1)[0].numpy().tobytes())
    assert len(seen) == 5
    settings += [dict(size=40), dict(n=9)]
    assert len({ClutteredFashion(**base | kw).fingerprint for kw in settings}) == 6


@pytest.mark.parametrize('size, scale', [(64, .6), (128, (.4, .8)), (128, 1.)])
def test_mask_is_the_object_exactly(size, scale):
    "A full square in place of the garment: its outline follows from the scene, without the renderer's warp."
    d = ClutteredFashion('test', size=size, n=30, scale=scale)
    d.objects = torch.full_like(d.objects, 255)
    masks, s = d.render()[1], d.scenes()
    angle, side = s['angle'][:, None, None], s['side'][:, None, None]
    p = (torch.arange(size) + .5) * 2 / size - 1
    x, y = p - s['center'][:, 0, None, None], p[:, None] - s['center'][:, 1, None, None]
    wrong = []
    for turn in angle, -angle:               # which direction is positive is a convention
        right, down = turn.cos() * x + turn.sin() * y, turn.cos() * y - turn.sin() * x
        distance = torch.maximum(right.abs(), down.abs()) / side
        edge = (distance - 1).abs() < 2 / size / side                       # within a pixel of the outline
        wrong.append(((masks != (distance < 1)) & ~edge).sum().item())
    assert min(wrong) == 0 < max(wrong)


def test_scenes_are_spread_evenly_over_their_ranges():
    "Turned by up to 20 degrees, half of them mirrored; tints from a half, light from .4 to .9; of all zooms as many."
    d = ClutteredFashion('train', size=8)
    s, n = d.scenes(), len(d)
    assert n == 16_000
    for name, low, high in (('angle', -np.pi / 9, np.pi / 9), ('tint', .5, 1), ('light', .4, .9), ('corner', 0, 1),
                            ('side', .5, .8)):
        v, width = s[name], high - low
        assert low <= v.min() < low + width / 100 and high - width / 100 < v.max() <= high, name
        assert abs(v.mean() - (low + high) / 2) < width / 50, name
    assert s['flip'].unique().tolist() == [-1, 1] and abs(s['flip'].mean()) < .04
    for name, k in ('zoom', 3), ('photo', len(d.photos)):
        assert s[name].bincount().tolist() == pytest.approx([n / k] * k, rel=.1)


def test_zooms_show_two_thirds_two_fifths_and_a_quarter_of_the_short_side():
    "A picture that brightens from left to right by one grey a pixel: its crop tells how wide it was."
    ramp = Image.fromarray(np.broadcast_to(np.arange(240, dtype=np.uint8), (240, 240))[..., None].repeat(3, 2).copy())
    d = Collage('x', 'test', torch.zeros(3, 28, 28, dtype=torch.uint8), torch.arange(3), TWO, dict(ramp=ramp), 60)
    s = d.scenes()
    s['zoom'], s['light'] = torch.arange(3), torch.ones(3, 3)
    for corner, edge in (0., 0), (1 - 1e-6, 239):                         # as far as the picture goes, to either side
        s['corner'] = torch.full((3, 2), corner)
        row = d.render()[0][:, 0, 30].float()
        assert (row[:, -1] - row[:, 0]).tolist() == pytest.approx([160, 96, 60], abs=5)
        assert row[:, -1 if edge else 0].tolist() == pytest.approx([edge] * 3, abs=3)


def test_black_cloth_reflects_a_little():
    "The darkest thread of an object has .15 of its tint, white all of it."
    objects = torch.stack([torch.full((28, 28), v, dtype=torch.uint8) for v in (1, 255)])
    d = Collage('x', 'test', objects, torch.arange(2), TWO, dict(black=Image.new('RGB', (60, 60))), 32)
    d.scenes()['tint'].fill_(1)
    images, masks = d.render()
    got = [x[:, m.roll(1, 0) & m.roll(-1, 0) & m.roll(1, 1) & m.roll(-1, 1)].float().median() for x, m in zip(images, masks)]
    assert [v.item() / 255 for v in got] == pytest.approx([.15, 1], abs=.01)


def test_mask_is_where_the_object_hides_the_background():
    "Black objects on the same scenes: on the mask, less than half of the background is left, off it more."
    d = ClutteredFashion('test', size=64, n=100, seed=7)
    real, d.objects = d.objects, torch.zeros_like(d.objects)
    back, none = d.render()
    d.objects = real
    d.scenes()['tint'].zero_()
    dark, masks = d.render()
    left = (dark.float() - back.float() / 2).amax(1)
    clear = (back.amax(1) >= 20) & (left.abs() > 1)               # rounding to bytes decides nothing here
    assert not none.any() and clear.float().mean() > .9
    assert masks[clear].equal(left[clear] < 0)
    assert dark.eq(back).all(1).float().mean() > .5, 'off the object nothing changes'


def test_objects_and_photographs_of_the_parts_are_disjoint():
    train, test = ({o.numpy().tobytes() for o in ClutteredFashion(s, n=1).objects} for s in ('train', 'test'))
    assert len(train) > 15_900 and len(test) > 3_900 and not train & test
    index = json.loads((ASSETS / 'cluttered_fashion' / 'index.json').read_text())
    assert not set(index['photos']['train']) & set(index['photos']['test'])
    photos = [path.read_bytes() for path in (ASSETS / 'cluttered_fashion').glob('photo_*.jpg')]
    assert len(set(photos)) == len(photos) == sum(map(len, index['photos'].values()))


@pytest.mark.parametrize('split, each', [('train', 1600), ('test', 400)])
def test_classes_are_balanced(split, each):
    d = ClutteredFashion(split, size=8)
    assert Counter(d.labels.tolist()) == dict.fromkeys(range(10), each) and len(set(d.classes)) == 10


def test_licenses_name_every_file():
    root = ASSETS / 'cluttered_fashion'
    lines = (root / 'LICENSES.md').read_text(encoding='utf-8').splitlines()
    objects = next(line for line in lines if line.startswith('**Objects**'))
    index = json.loads((root / 'index.json').read_text())
    splits = {f'photo_{n}.jpg': split for split, names in index['photos'].items() for n in names}
    for file in root.iterdir():
        if file.name == 'LICENSES.md': continue
        if not file.name.startswith('photo_'):
            named = any(fnmatch(file.name, name) for name in objects.split('`')[1::2])
            assert named, f'{file.name} is not named'
            continue
        rows = [line.split('|')[1:-1] for line in lines if line.startswith(f'| `{file.name}`')]
        assert len(rows) == 1, f'{file.name} is not named once'
        row = [cell.strip() for cell in rows[0]]
        assert row[1] == splits.pop(file.name) and row[2] in ('CC0', 'public domain') and row[3]
    assert not splits, f'photographs without a file: {splits}'


def test_incomplete_installation(monkeypatch, tmp_path):
    monkeypatch.setattr(data_module, 'ASSETS', tmp_path)
    with refuses(str(tmp_path), 'missing or incomplete', 'reinstall ltpa'): ClutteredFashion('test')


# Augmentation and the loader

@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32])
@pytest.mark.parametrize('shape, pad', [
    ((5, 3, 8, 8), 4), ((4, 1, 6, 10), 1), ((2, 3, 5, 5), 7), ((3, 2, 4, 4), 0)])
def test_crops_equal_the_loop(shape, pad, dtype):
    x = (torch.rand(shape, generator=keyed_rng(1)) * 255).to(dtype)
    top, left = torch.randint(0, 2 * pad + 1, (2, len(x)), generator=keyed_rng(2))
    for i, got in enumerate(random_crops(x, pad, keyed_rng(2))):
        canvas = torch.zeros(shape[1], shape[2] + 2 * pad, shape[3] + 2 * pad, dtype=dtype)
        canvas[:, pad:pad + shape[2], pad:pad + shape[3]] = x[i]
        assert got.equal(canvas[:, top[i]:top[i] + shape[2], left[i]:left[i] + shape[3]])


def test_flips_only_mirror():
    x = torch.rand(400, 2, 3, 5, generator=keyed_rng(1))
    out = random_flips(x, keyed_rng(0))
    mirrored = [o.equal(i.flip(2)) for o, i in zip(out, x)]
    assert all(m or o.equal(i) for m, o, i in zip(mirrored, out, x)) and 150 < sum(mirrored) < 250
    assert out.equal(random_flips(x, keyed_rng(0))) and not out.equal(random_flips(x, keyed_rng(1)))


def test_a_flip_is_a_fair_coin():
    x = torch.tensor([0., 1.]).view(1, 1, 1, 2).expand(40_000, -1, -1, -1)
    assert abs(random_flips(x, keyed_rng(0))[..., 0].mean() - .5) < 4 * .5 / 200


def coded(n, classes=5):
    "Pictures whose every pixel says which row they are: red row, green row // 200, blue label."
    i = torch.arange(n)
    colors = torch.stack([i % 200, i // 200, i % classes], 1).to(torch.uint8)
    images = colors[:, :, None, None].expand(-1, -1, 8, 8)
    return ImageSet(images, i % classes, [str(c) for c in range(classes)], 'coded')


def decode(x):
    "Row and label of each picture, wherever it was cropped."
    red, green, blue = (x.amax((2, 3)) * 255).round().long().unbind(1)
    return red + 200 * green, blue


def test_labels_stay_with_their_images():
    seen = []
    for x, y in Loader(coded(250), 32, crop=3).epoch(2):
        assert x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
        rows, labels = decode(x)
        assert labels.equal(y)
        seen += rows.tolist()
    assert len(seen) == len(set(seen)) == 224, 'the last partial batch of a training pass is left out'


def test_passes_differ_and_repeat():
    def order(epoch, **kw):
        return torch.cat([decode(x)[0] for x, _ in Loader(coded(128), 32, **kw).epoch(epoch)]).tolist()
    assert order(1) == order(1) and sorted(order(1)) == sorted(order(2)) == list(range(128))
    assert len({tuple(o) for o in (order(0), order(1), order(2), order(0, seed=1))}) == 4
    assert order(0) == order(0, flip=False, crop=0), 'augmentation does not change the order'


@pytest.mark.parametrize('flip, crop', [(True, 0), (False, 2), (True, 2)])
def test_pass_can_start_anywhere(flip, crop):
    loader = Loader(pictures(70), 16, flip=flip, crop=crop, seed=3)
    torch.manual_seed(1)
    whole = list(loader.epoch(1))
    torch.manual_seed(2)
    for start in range(5):
        rest = list(loader.epoch(1, start))
        assert len(rest) == 4 - start
        for (x, y), (x0, y0) in zip(rest, whole[start:]): assert x.equal(x0) and y.equal(y0)


def test_without_training_all_images_come_in_order():
    data = coded(70)
    batches = list(Loader(data, 32, train=False))
    assert [len(y) for _, y in batches] == [32, 32, 6] and len(Loader(data, 32, train=False)) == 3
    assert torch.cat([x for x, _ in batches]).mul(255).round().to(torch.uint8).equal(data.images)


def test_rendered_set_changes_with_the_pass():
    loader = Loader(ClutteredFashion('test', n=32, size=16), 32, flip=False, crop=0)
    a, b = (next(iter(loader.epoch(e))) for e in (0, 1))
    where = [torch.argsort(torch.randperm(32, generator=keyed_rng(0, 'order', e))) for e in (0, 1)]
    assert a[1][where[0]].equal(b[1][where[1]]) and not a[0][where[0]].equal(b[0][where[1]])


@pytest.mark.parametrize('size, words', [
    (0, ('batch size 0', 'at least 1')), (-2, ('batch size -2', 'at least 1')),
    (71, ('noise has 70 images', 'one batch of 71', 'smaller batch size'))], ids=words_id)
def test_refused_batch_sizes(size, words):
    with refuses(*words): Loader(pictures(70), size)
    assert len(Loader(pictures(70), 71, train=False)) == 1
