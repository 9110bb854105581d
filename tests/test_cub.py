"""CUB-200-2011 from a small archive of the published layout, and every way in which it can be wrong."""
import hashlib
import math
import tarfile

import numpy as np
import pytest
import torch
from helpers import refuses, words_id
from PIL import Image

from ltpa.names import DOWNLOADS
from ltpa.downloads import data_root, download
from ltpa.published import load_cub, open_data
from ltpa.cli import main

# Number, class, in train?, box, mode. Not in order, as nothing promises an order; classes as in the real set.
BIRDS = [(1, 1, 0, '20.0 10.0 30.0 20.0', 'RGB'), (2, 1, 1, '0.0 0.0 40.0 40.0', 'RGB'),
         (4, 2, 1, '60.0 20.0 40.0 30.0', 'L'), (3, 2, 0, '10.5 10.5 20.0 20.0', 'L'),
         (5, 3, 1, '70.0 30.0 31.0 21.0', 'RGB'), (6, 3, 0, '30.0 5.0 40.0 40.0', 'RGB')]
CLASSES = ['001.Black_footed_Albatross', '002.Laysan_Albatross', '200.Common_Yellowthroat']
BACK, BIRD = (20, 120, 40), (230, 60, 90)


def write(root, birds=BIRDS):
    "The published layout: pictures of 100x50, all background but for the box."
    rows = dict(images=[], image_class_labels=[], train_test_split=[], bounding_boxes=[])
    for n, kind, train, box, mode in birds:
        path = f'{CLASSES[kind - 1]}/Bird_{n:04}_{n * 111}.jpg'
        for name, value in zip(rows, (path, kind, train, box)): rows[name].append(f'{n} {value}\n')
        x, y, w, h = map(float, box.split())
        img = Image.new('RGB', (100, 50), BACK)
        img.paste(BIRD, (math.floor(x), math.floor(y), math.ceil(x + w), math.ceil(y + h)))
        (root / 'images' / path).parent.mkdir(parents=True, exist_ok=True)
        img.convert(mode).save(root / 'images' / path, quality=95, subsampling=0)
    for name, lines in rows.items(): (root / f'{name}.txt').write_text(''.join(lines))
    (root / 'classes.txt').write_text(''.join(f'{i} {name}\n' for i, name in enumerate(CLASSES, 1)))
    return root


@pytest.fixture
def cub(tmp_path): return write(tmp_path / 'CUB_200_2011')


def gray(rgb): return [round(float(np.dot(rgb, [.299, .587, .114])))] * 3


def middle(image): return image[:, 10:-10, 10:-10].float().mean((1, 2)).tolist()


def close(a, b, tol=6): return np.abs(np.subtract(a, b)).max() < tol


def test_official_split_labels_and_names(cub):
    train, test = load_cub(cub), load_cub(cub, 'test')
    names = ['Black_footed_Albatross', 'Laysan_Albatross', 'Common_Yellowthroat']
    assert train.classes == test.classes == names
    assert train.labels.tolist() == test.labels.tolist() == [0, 1, 2]
    assert train.images.shape == (3, 3, 80, 80) and (train.name, test.name) == ('cub/train', 'cub/test')
    assert load_cub(cub, size=32).images.shape == (3, 3, 32, 32)
    assert train.fingerprint == load_cub(cub).fingerprint != test.fingerprint


def test_crop_is_the_box_and_nothing_else(cub):
    "Every crop is bird to its edges, also where the box is not square, not whole, or a pixel over the edge."
    for split in 'train', 'test':
        data = load_cub(cub, split)
        birds = [b for b in BIRDS if b[2] == (split == 'train')]
        for image, bird in zip(data.images, birds):
            assert close(middle(image), BIRD if bird[-1] == 'RGB' else gray(BIRD)), bird
            edge = torch.cat([image[:, 2], image[:, -3], image[:, :, 2], image[:, :, -3]], 1).float().mean(1)
            assert close(edge.tolist(), BIRD if bird[-1] == 'RGB' else gray(BIRD), tol=15), bird


def test_without_crop_the_whole_photograph(cub):
    image = load_cub(cub, 'test', crop=False).images[0]             # its box: 20..50 of 100, 10..30 of 50
    bird = (image.float() - torch.tensor(BIRD)[:, None, None]).abs().amax(0) < 40
    rows, cols = bird.any(1).nonzero().flatten(), bird.any(0).nonzero().flatten()
    assert abs(int(rows[0]) - 16) <= 1 and abs(int(rows[-1]) - 47) <= 1
    assert abs(int(cols[0]) - 16) <= 1 and abs(int(cols[-1]) - 39) <= 1


def test_gray_pictures_become_rgb(cub):
    image = load_cub(cub).images[1]
    assert image.shape[0] == 3 and image[0].equal(image[1]) and image[0].equal(image[2])


# From the archive

@pytest.fixture
def published(cub, server, tmp_path, monkeypatch):
    "The archive, with a file beside the folder as in the real one, on a server that hangs up all the time."
    (tmp_path / 'attributes.txt').write_text('1 has_bill_shape::curved\n')
    with tarfile.open(tmp_path / 'x.tgz', 'w:gz') as tar:
        for name in 'attributes.txt', 'CUB_200_2011': tar.add(tmp_path / name, name)
    server.body, server.most = (tmp_path / 'x.tgz').read_bytes(), 2_000
    url = server.url.replace('set.bin', 'CUB_200_2011.tgz?download=1')
    md5 = hashlib.md5(server.body).hexdigest()
    monkeypatch.setitem(DOWNLOADS, 'cub', ('CUB_200_2011', [(url, len(server.body), md5)]))
    monkeypatch.setenv('LTPA_DATA', str(tmp_path / 'data'))
    return server


def test_downloaded_and_opened_by_name(published, cub):
    with refuses('cub is not in', 'ltpa download cub'): open_data('cub')
    got = open_data('cub', download=True)
    assert got.fingerprint == load_cub(cub).fingerprint and len(published.asked) > 1
    assert sorted(p.name for p in (data_root() / 'cub').iterdir()) == ['CUB_200_2011', 'CUB_200_2011.tgz']
    assert open_data('cub', 'test', size=16).images.shape == (3, 3, 16, 16)
    with refuses('scale can be set for cluttered_fashion only'): open_data('cub', scale=.5)


def test_command(published, capsys, monkeypatch, tmp_path):
    assert main(['download', 'cub']) == 0
    out, err = capsys.readouterr()
    assert 'cub/train: 3 images' in out and 'cub/test: 3 images' in out and not err
    published.asked.clear()
    assert main(['download', 'cub']) == 0 and not published.asked


def test_archive_of_something_else(published, tmp_path, monkeypatch):
    (tmp_path / 'note').write_text('hello')
    with tarfile.open(tmp_path / 'y.tgz', 'w:gz') as tar: tar.add(tmp_path / 'note', 'note')
    published.body = (tmp_path / 'y.tgz').read_bytes()
    with refuses('the server has a file of', 'expected'): download('cub')
    place = published.url + '.tgz', len(published.body), hashlib.md5(published.body).hexdigest()
    monkeypatch.setitem(DOWNLOADS, 'cub', ('CUB_200_2011', [place]))
    with refuses('holds no folder', 'CUB_200_2011'): download('cub')


# What can be wrong

def edit(name, old, new):
    return lambda root: (root / name).write_text((root / name).read_text().replace(old, new))


def remove(name): return lambda root: (root / name).unlink()


def cut(name): return lambda root: (root / name).write_bytes((root / name).read_bytes()[:600])


JPEG = 'images/001.Black_footed_Albatross/Bird_0002_222.jpg'

WRONG = [
    (('images.txt', 'no such file', 'CUB_200_2011 as published'), remove('images.txt')),
    (('classes.txt', 'no such file'), remove('classes.txt')),
    (('bounding_boxes.txt', 'no such file', 'as published'), remove('bounding_boxes.txt')),
    (('Bird_0002_222.jpg: no such file',), remove(JPEG)),
    (('Bird_0002_222.jpg', 'not an image'), lambda root: (root / JPEG).write_text('no')),
    (('Bird_0002_222.jpg', 'truncated or damaged'), cut(JPEG)),
    (('image 6 is in only one of images.txt and bounding_boxes.txt', '6 images in both'),
     edit('bounding_boxes.txt', '6 30.0', '7 30.0')),
    (('image 6 is in only one of', 'image_class_labels.txt'), edit('image_class_labels.txt', '6 3\n', '')),
    (('image 6 is in only one of', 'train_test_split.txt'), edit('train_test_split.txt', '6 0\n', '')),
    (('image_class_labels.txt, line 2', "'2 one'", '1 value(s)'),
     edit('image_class_labels.txt', '2 1', '2 one')),
    (('images.txt, line 3', 'a number of its own'), edit('images.txt', '4 002', '2 002')),
    (('train_test_split.txt, line 2', "'2 2'"), edit('train_test_split.txt', '2 1', '2 2')),
    (('bounding_boxes.txt, line 2', '4 value(s)'), edit('bounding_boxes.txt', '2 0.0 ', '2 ')),
    (('bounding_boxes.txt, line 2', 'wide'), edit('bounding_boxes.txt', '2 0.0 0.0 40.0', '2 0.0 0.0 wide')),
    (('classes.txt has numbers [1, 2, 4]', 'expected [1, 2, 3]'), edit('classes.txt', '3 200', '4 200')),
    (('cub/train: label 3 at row 1', 'expected 0 to 2'), edit('image_class_labels.txt', '4 2', '4 4')),
    (('cub/train: label -1 at row 1', 'expected 0 to 2'), edit('image_class_labels.txt', '4 2', '4 0')),
    (('train_test_split.txt puts no image into train',), edit('train_test_split.txt', ' 1', ' 0')),
    *[(('Bird_0002_222.jpg', 'lies outside the image of 100x50', 'belong together'),
       edit('bounding_boxes.txt', '2 0.0 0.0 40.0 40.0', f'2 {box}')) for box in (
        '400.0 0.0 40.0 40.0', '81.0 0.0 40.0 40.0', '-21.0 0.0 40.0 40.0', '0.0 31.0 40.0 40.0',
        '0.0 0.0 0.0 40.0', '50.0 40.0 -40.0 -40.0', 'nan 0.0 40.0 40.0', '0.0 0.0 inf 40.0')],
]


@pytest.mark.parametrize('words, damage', WRONG, ids=words_id)
def test_wrong(words, damage, cub):
    damage(cub)
    with refuses(*words): load_cub(cub)


def test_wrong_folder_and_split(tmp_path):
    with refuses('images.txt', 'no such file', 'CUB_200_2011'): load_cub(tmp_path / 'nowhere')
    with refuses("unknown split 'val'", 'test, train'): load_cub(tmp_path, 'val')


def test_windows_line_ends_do_no_harm(cub):
    want = load_cub(cub).fingerprint
    for file in cub.glob('*.txt'): file.write_bytes(file.read_bytes().replace(b'\n', b'\r\n'))
    assert load_cub(cub).fingerprint == want
