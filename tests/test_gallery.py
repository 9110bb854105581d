"""Many pictures before one network: what is found, what is said of each, and what is written, in the pictures' own pixels."""
import csv
import io
import json
import os
import shutil
import struct
import urllib.parse
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import one_line, refuses, tiny_net, words_id
from PIL import Image, ImageDraw

import ltpa.answers as answers
import ltpa.gallery as gallery
from ltpa import explain_many, inspect_image, predict_many, to_original, upsample
from ltpa.answers import find_pictures, natural, unique_names
from ltpa.fits import FITS, fit_boxes
from ltpa.gallery import places
from ltpa.maps import combine, seen_by, seen_pixels
from ltpa.models import save_weights

NAN = float('nan')


def noise(k, W=40, H=36): return Image.fromarray(np.random.default_rng(k).integers(0, 256, (H, W, 3), dtype=np.uint8))


def net_of(fit='middle', size=32, name='vgg_att2_concat_pc', **kw):
    net = tiny_net(name, **kw)
    net.info = dict(source=dict(source='mine', size=size, fit=fit))
    return net


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty folder to work in, with the weights of a small network and what a command needs to use them."
    monkeypatch.chdir(tmp_path)
    save_weights(tiny_net('vgg_att2_concat_pc'), 'w.safetensors', classes=['ant', 'bee', 'cow'])
    return tmp_path


USE = '--model', 'w.safetensors', '--device', 'cpu'


def table(path): return list(csv.DictReader(io.StringIO(Path(path).read_text(encoding='utf-8'))))


# Which part was seen, and the way back

SHAPES = [(32, 32), (40, 97), (97, 40), (33, 32), (301, 452), (9, 200), (100, 101)]


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('H, W', SHAPES)
def test_by_default_a_network_sees_what_it_saw_in_training(H, W, fit):
    net = net_of(fit)
    image = torch.from_numpy(np.array(noise(1, W, H))).permute(2, 0, 1)
    view, x = seen_by(net, image)
    assert view.seen.equal(FITS[fit](image, 32)) and x[0].equal(view.seen)
    look = inspect_image(net, image)
    assert look.seen == (32, 32) and look.size == (H, W) and (look.box, look.frame) == fit_boxes(fit, H, W, 32)
    left, top, right, bottom = look.box
    side = min(H, W)
    assert (right - left, bottom - top) == ((side, side) if fit == 'middle' else (W, H))
    assert left + right == W and top + bottom == H, 'not the middle'


def spot(W, H, x, y, r=3):
    "A black picture with a white square around (x, y)."
    img = Image.new('RGB', (W, H))
    ImageDraw.Draw(img).rectangle((x - r, y - r, x + r - 1, y + r - 1), fill='white')
    return img


def place(a):
    "Where a map's weight lies, (x, y), counted by the edges of pixels."
    n = a.sum()
    return ((a.sum(0) * (torch.arange(a.shape[1]) + .5)).sum() / n).item(), ((a.sum(1) * (torch.arange(a.shape[0]) + .5)).sum() / n).item()


@pytest.mark.parametrize('side', [None, 64])
@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('W, H, x, y', [(300, 120, 150, 40), (120, 301, 61, 170), (97, 40, 45, 21), (64, 64, 20, 50)])
def test_what_the_network_sees_bright_is_bright_there_in_the_original(W, H, x, y, fit, side):
    "The picture that the network sees, taken for a map, must fall upon the picture that was given."
    view, _ = seen_by(net_of(fit), spot(W, H, x, y), side)
    look = inspect_image(net_of(fit), spot(W, H, x, y), side)
    a = to_original(look, view.seen[0].float())
    assert a.shape == (H, W) and max(abs(p - q) for p, q in zip(place(a), (x, y))) < .6, (place(a), (x, y))


@pytest.mark.parametrize('turn', range(1, 9))
def test_turned_pictures_are_in_place_too(turn, tmp_path):
    "The original is the picture as one sees it: turned as EXIF says."
    exif = Image.Exif()
    exif[274] = turn
    spot(80, 50, 52, 20).save(tmp_path / 'x.png', exif=exif)
    seen = torch.from_numpy(np.array(Image.open(tmp_path / 'x.png').convert('L'))).float()
    view, _ = seen_by(net_of(), tmp_path / 'x.png')
    look = inspect_image(net_of(), tmp_path / 'x.png')
    assert look.size == ((80, 50) if turn > 4 else (50, 80)) and view.whole.shape[1:] == look.size
    a = to_original(look, view.seen[0].float())
    assert max(abs(p - q) for p, q in zip(place(a), place(view.whole[0].float()))) < .6
    assert turn in (5, 6, 7, 8) or seen.shape == view.whole.shape[1:]


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('H, W', SHAPES)
@pytest.mark.parametrize('h, w', [(8, 8), (4, 7), (1, 1), (32, 32)])
def test_a_bright_cell_ends_up_in_its_own_pixels(h, w, H, W, fit):
    look = inspect_image(net_of(fit), torch.zeros(3, H, W, dtype=torch.uint8))
    left, top, right, bottom = look.frame
    r, c = h // 2, w // 2
    a = torch.zeros(1, h, w)
    a[0, r, c] = 1
    big = to_original(look, a)
    x, y = ((left + (c + .5) * (right - left) / w), (top + (r + .5) * (bottom - top) / h))
    assert big.shape == (H, W) and 0 <= big.min() and big.max() <= 1
    if h > 1 and fit == 'middle' and min(H, W) >= 32: assert max(abs(p - q) for p, q in zip(place(big), (x, y))) < .7
    if big.max() > 0:
        at = int(big.argmax())
        assert abs(at % W + .5 - x) <= max(1, (right - left) / w) and abs(at // W + .5 - y) <= max(1, (bottom - top) / h)
    l, t, r, b = seen_pixels(look)
    outside = torch.ones(H, W, dtype=torch.bool)
    outside[t:b, l:r] = False
    assert not outside.any() or (big[outside] == 0).all() and to_original(look, a, NAN)[outside].isnan().all()
    assert (r - l, b - t) == (round(look.box[2] - look.box[0]), round(look.box[3] - look.box[1]))


def test_without_a_crop_the_way_back_is_bilinear_enlarging():
    look = inspect_image(net_of(), torch.zeros(3, 96, 96, dtype=torch.uint8))
    for n in 4, 8, 32: torch.testing.assert_close(to_original(look, a := torch.rand(1, n, n)), upsample(a, 96)[0])
    wide = inspect_image(net_of(), torch.zeros(3, 64, 128, dtype=torch.uint8), side=32)
    torch.testing.assert_close(to_original(wide, a := torch.rand(8, 16)), upsample(a[None], (64, 128))[0])
    with refuses('2 maps', 'one at a time'): to_original(look, torch.zeros(2, 4, 4))
    with refuses('NaN'): to_original(look, torch.full((4, 4), NAN))


def test_padding_is_left_behind():
    look = inspect_image(net_of('whole'), torch.zeros(3, 20, 80, dtype=torch.uint8))
    a = torch.zeros(32, 32)
    a[:11] = a[21:] = 1                            # nothing but padding, with a row between that blurs into nothing
    assert look.box == (0, 0, 80, 20) and look.frame == (0, -30, 80, 50) and to_original(look, a).max() == 0


def test_what_makes_an_answer_doubtful_is_said():
    def warned(W, H, **kw):
        said = inspect_image(net_of(), torch.zeros(3, H, W, dtype=torch.uint8), **kw).warnings
        return [line for line in said if not line.startswith('nearly even')]         # it is untrained
    assert not warned(40, 36) and not warned(64, 40)
    assert 'only 25%' in warned(400, 100)[0] and not warned(400, 100, side=32)
    assert 'enlarged 4.0 times' in warned(8, 8)[0]


# Which pictures

def tree(root, *names):
    for k, name in enumerate(names):
        Path(root, name).parent.mkdir(parents=True, exist_ok=True)
        noise(k).save(Path(root, name))


def test_folders_are_searched_as_for_training(here):
    tree('p', 'b/10.png', 'b/2.PNG', 'b/B1.jpg', 'a/deep/x.webp', '.hidden.png', '.git/y.png', 'Thumbs.db.png')
    Path('p/notes.txt').touch(); Path('p/phone.heic').touch(); Path('p/run').mkdir(); Path('p/run/checkpoint.safetensors').touch()
    os.symlink('..', 'p/a/loop')
    os.symlink(here / 'p/b/10.png', 'p/z.png')
    found = find_pictures('p')
    assert [f.file for f in found.pictures] == [f'p/{n}' for n in ('a/deep/x.webp', 'b/2.PNG', 'b/10.png', 'b/B1.jpg', 'Thumbs.db.png', 'z.png')]
    assert found.folders and all(s in found.left for s in ('1 .txt', '1 .heic', '2 hidden files', 'convert photographs'))
    assert find_pictures(found) is found


def test_what_is_named_is_taken_once_and_in_order(here):
    tree('p', '1.png', '2.png', '10.png')
    shutil.copy('p/1.png', 'p/odd.txt'); shutil.copy('p/1.png', 'p/[1].png'); shutil.copy('p/1.png', 'p/.dot.png')
    files = lambda *names: [f.file for f in find_pictures(names).pictures]
    assert files('p/10.png', 'p/1.png', 'p/10.png', './p/../p/1.png') == ['p/10.png', 'p/1.png']
    assert files('p/odd.txt', 'p/.dot.png') == ['p/odd.txt', 'p/.dot.png'], 'named, so meant'
    assert files('p/[1].png') == ['p/[1].png'], 'a file before a pattern'
    assert files('p/[0-9]*.png') == ['p/1.png', 'p/2.png', 'p/10.png'] and files('p/*.TXT', 'p/2.png') == ['p/*.TXT', 'p/2.png']
    assert files('p/2.png', 'p') == ['p/2.png', 'p/1.png', 'p/10.png', 'p/[1].png']
    assert files(Path('p/1.png')) == ['p/1.png'] and [f.file for f in find_pictures(Path('p/1.png')).pictures] == ['p/1.png']
    Path('p/Thumbs.db').touch()
    assert set(files('p/*')) == {'p/1.png', 'p/2.png', 'p/10.png', 'p/[1].png', 'p/odd.txt'}, 'not what a system left behind'
    with refuses('no pictures'): find_pictures([])
    os.mkfifo('p/index.html')                              # nobody waits for who would write into it
    assert files('p')[0] == 'p/1.png'


def test_numbers_sort_as_numbers():
    assert sorted(['x10', 'X2', 'x1.5', 'x1', 'a', 'x' + '9' * 5000, 'x٣'], key=natural)[:4] == ['a', 'x1', 'x1.5', 'X2']


def test_odd_folders(here):
    tree('p', 'a.png')
    Path('p/x.png').mkdir(); Path('empty').mkdir()
    tree('p/y.png', 'inside.png')
    odd = {f.file: f.odd for f in find_pictures(['p', 'empty', 'none*']).pictures if f.odd}
    assert set(odd) == {'p/x.png', 'empty', 'none*'} and 'holds no pictures' in odd['empty'] and 'matches no file' in odd['none*']


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root reads all')
def test_a_folder_that_nobody_may_read(here):
    tree('p', 'a.png', 'closed/b.png')
    os.chmod('p/closed', 0)
    try: found = find_pictures('p').pictures
    finally: os.chmod('p/closed', 0o755)
    assert [f.file for f in found] == ['p/a.png', 'p/closed'] and 'cannot read the folder' in found[1].odd


# Names of what is written

def named(*paths, out='attention', ends=('-attention.png',)):
    return [*places([answers.Found(Path(p)) for p in paths], Path(out), ends).values()]


@pytest.mark.parametrize('paths, want', [
    (['a/1.png', 'b/1.png'], ['a/1', 'b/1']), (['p/1.png', 'p/1.jpg', 'p/1.webp'], ['1', '1-2', '1-3']),
    (['p/A.png', 'p/a.png', 'p/a-2.png'], ['A', 'a-2', 'a-2-2']), (['p/a-2.png', 'p/a.png', 'p/a.jpg'], ['a-2', 'a', 'a-3']), (['p/é.png', 'p/e\u0301.png'], ['é', 'e\u0301-2']),
    (['p/x.png'], ['x']), (['p/q/x.png', 'p/y.png'], ['q/x', 'y']), (['p/a\nb:c?.png'], ['a_b_c_']), (['p/\udcff.png'], ['_']),
    (['p/index.html/x.png', 'p/y.png'], ['index.html_/x', 'y']), (['p/' + 'ж' * 120 + '.png'], ['ж' * 75]),
    (['p/' + 'ж' * 120 + f'{k}.png' for k in 'ab'], ['ж' * 75, 'ж' * 75 + '-2'])], ids=lambda v: '')
def test_names_are_clean_and_each_its_own(paths, want, here): assert named(*paths) == want


def test_thousands_of_names_that_are_one(here):
    assert len(set(named(*(f'p/{"x" * 160}{k}.png' for k in range(5000))))) == 5000


def test_no_input_is_written_upon(here, ltpa):
    tree('.', 'x.png', 'x-attention.png', 'X-ATTENTION.png')
    before = {p.name: p.read_bytes() for p in Path('.').glob('*.png')}
    assert named('x.png', 'x-attention.png', out='.') == ['x-2', 'x-attention']
    code, out, err = ltpa('explain', 'x.png', 'x-attention.png', 'X-ATTENTION.png', '--out', '.', *USE)
    assert code == 0, err
    assert all(Path(n).read_bytes() == data for n, data in before.items())
    assert len(json.loads(Path('answers.json').read_text())['pictures']) == 3


def test_nobody_elses_page_is_replaced(here, ltpa):
    tree('p', '1.png', '2.png')
    for name in 'index.html', 'answers.csv':
        Path('site').mkdir(exist_ok=True); Path('site', name).write_text('mine')
        code, _, err = ltpa('explain', 'p', '--out', 'site', *USE)
        assert code == 2 and os.listdir('site') == [name]
        one_line(err.rstrip('\n'), name, 'folder of its own', '--out')
        Path('site', name).unlink()
    for out, words in ('p/1.png', ('one figure', 'folder')), ('w.safetensors', ('is a file', '--out')), ('new.svg', ('one figure',)):
        code, _, err = ltpa('explain', 'p', '--out', out, *USE)
        assert code == 2
        one_line(err.rstrip('\n'), *words)


# One

@pytest.mark.parametrize('argv', [['x.png'], ['x*.png'], ['x.png', 'x.png']])
def test_one_picture_gets_one_figure_here(argv, here, ltpa):
    tree('.', 'x.png')
    code, out, err = ltpa('explain', *argv, *USE)
    assert (code, err) == (0, '') and sorted(os.listdir()) == ['w.safetensors', 'x-attention.png', 'x.png']
    assert [line.split()[0] for line in out.splitlines()] == [
        'network', 'knows', 'picture', 'says', 'level', 'level', 'written', 'warning']      # an untrained network looks everywhere


def test_one_picture_with_everything(here, ltpa):
    noise(1, 90, 40).save('x.png')
    argv = 'explain', 'x.png', '--maps', '--overlay', '--methods', 'GradCAM,gradient', '--top', 2, '--out', 'new/y.svg', *USE
    code, out, err = ltpa(*argv)
    assert (code, err) == (0, '') and 'then' in out and 'warning  only 44%' in out
    assert sorted(os.listdir('new')) == sorted(['y.svg', 'y-overlay.png', *(f'y-{k}.npy' for k in ('level1', 'level2', 'combined', 'grad_cam', 'gradient'))])
    with Image.open('new/y-overlay.png') as over: assert over.size == (90, 40)
    assert np.load('new/y-gradient.npy').shape == (40, 90)


def test_one_picture_in_a_folder_or_for_a_folder_gets_a_gallery(here, ltpa):
    tree('p', 'x.png')
    for argv, out in (['p'], 'attention'), (['p/x.png', '--out', 'new/'], 'new'), (['p/x.png', '--out', 'p'], 'p'):
        assert ltpa('explain', *argv, *USE)[0] == 0
        assert {'index.html', 'answers.csv', 'answers.json', 'x-attention.png'} <= set(os.listdir(out))


# Many

BROKEN = {
    'truncated.png': b'', 'nothing.jpg': b'', 'text.png': b'I am a text.\n' * 40, 'drawing.jpg': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    'bomb.png': b'', 'tiny.png': b'', 'dark16.png': b'', 'folder.png': None, 'pipe.png': None, 'gone.png': None}


def fill_broken(root):
    data = io.BytesIO(); noise(0, 200, 200).save(data, 'PNG')
    chunk = lambda kind, body: struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0))
    own = {'truncated.png': data.getvalue()[:5000], 'bomb.png': b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(bytes(999))) + chunk(b'IEND', b'')}
    for name, body in BROKEN.items():
        if body is not None: Path(root, name).write_bytes(own.get(name, body))
    noise(0, 4, 4).save(f'{root}/tiny.png')
    Image.fromarray(np.full((40, 40), 900, np.uint16)).save(f'{root}/dark16.png')
    Path(root, 'folder.png').mkdir()
    os.mkfifo(f'{root}/pipe.png')
    if os.geteuid() == 0: os.symlink('nowhere', f'{root}/gone.png')
    else: noise(0).save(f'{root}/gone.png'); os.chmod(f'{root}/gone.png', 0)


KINDS = [('png', 'RGB'), ('png', 'L'), ('png', 'LA'), ('png', 'RGBA'), ('png', 'P'), ('png', '1'), ('png', 'I;16'), ('jpg', 'RGB'), ('jpg', 'CMYK'),
         ('jpg', 'turned'), ('webp', 'RGBA'), ('gif', 'P'), ('bmp', 'RGB'), ('tiff', 'RGB'), ('tif', 'I;16'), ('ppm', 'RGB'), ('JPEG', 'L'), ('png', 'cut palette')]
SIZES = [(40, 36), (64, 64), (8, 8), (400, 16), (17, 190), (33, 32)]


def fill_good(root, n):
    for k in range(n):
        (end, mode), size = KINDS[k % len(KINDS)], SIZES[k % len(SIZES)]
        img, more = noise(k, *size), {}
        if mode == 'I;16': img = Image.fromarray(np.random.default_rng(k).integers(0, 65536, size[::-1], dtype=np.uint16))
        elif mode == 'turned': more['exif'] = Image.Exif(); more['exif'][274] = 6
        elif mode == 'cut palette': img = img.convert('P', palette=Image.Palette.ADAPTIVE, colors=5); more['transparency'] = 2
        else: img = img.convert(mode)
        where = Path(root, ('', 'a', 'b/c')[k % 3])
        where.mkdir(parents=True, exist_ok=True)
        img.save(where / f'{k // 3}.{end}', **more)


def check_gallery(out, n, broken):
    "Tables, page and files agree; each figure is whole."
    doc, rows = json.loads(Path(out, 'answers.json').read_text()), table(Path(out, 'answers.csv'))
    assert len(doc['pictures']) == n and len(doc['broken']) == broken and len(rows) == n + broken
    assert sum(bool(r['error']) for r in rows) == broken and all(bool(r['error']) != bool(r['class']) for r in rows)
    for r in doc['pictures']:
        with Image.open(Path(out, r['figure'])) as img:
            img.load()
            assert [*img.size] == r['figure_size']
        assert abs(sum(r['probabilities'].values()) - 1) < 1e-4 and r['probabilities'][r['class']] == r['probability']
    assert len({r['figure'].casefold() for r in doc['pictures']}) == n
    page = Page(Path(out, 'index.html').read_text(encoding='utf-8'))
    assert page.count['article'] == n and {'answers.csv', 'answers.json'} < page.links
    for link in page.links - {'#broken'}: assert Path(out, urllib.parse.unquote(link)).is_file(), link
    return doc


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.count, self.text = set(), {}, ''
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links |= {v for k, v in attrs if k in ('href', 'src')}
        assert not [k for k, _ in attrs if k.startswith('on')]

    def handle_data(self, data): self.text += data


def mixed(ltpa, n, more=()):
    Path('files').mkdir()
    fill_good('files', n)
    fill_broken('files')
    code, out, err = ltpa('explain', 'files', *USE, '--quiet', *more)
    assert code == 1 and f'{n} of {n + len(BROKEN)}' in out
    lines = err.splitlines()
    assert len(lines) == len(BROKEN) and all(sum(f'files/{name}' in line for line in lines) == 1 for name in BROKEN), err
    doc = check_gallery('attention', n, len(BROKEN))
    assert {b['file'] for b in doc['broken']} == {f'files/{name}' for name in BROKEN} and all(len(b['reason']) > 20 for b in doc['broken'])
    return doc


def test_broken_files_are_named_and_the_rest_is_done(here, ltpa): mixed(ltpa, 18)


@pytest.mark.whole
def test_a_hundred_files_of_which_ten_are_broken(here, ltpa):
    doc = mixed(ltpa, 90, ['--maps', '--overlay'])
    for r in doc['pictures']:
        W, H = r['size']
        with Image.open(f'attention/{r["overlay"]}') as over: assert over.size == (W, H)
        both = np.load(f'attention/{r["maps"]["combined"]}')
        assert both.shape == (H, W) and both.dtype == np.float32 and abs(both.sum() - 1) < 1e-3
    first = {p: p.read_bytes() for p in Path('attention').rglob('*') if p.is_file()}
    assert ltpa('explain', 'files', *USE, '--quiet', '--maps', '--overlay')[0] == 1
    assert {p: p.read_bytes() for p in Path('attention').rglob('*') if p.is_file()} == first, 'not the same twice'


def test_answers_are_those_of_each_picture_alone(here, ltpa):
    "A picture's files do not depend on its neighbors; raw maps are the network's, and the overlay keeps what was cut off."
    noise(0, 90, 40).save('a.png'); noise(1, 40, 40).save('b.png')
    assert ltpa('explain', 'a.png', 'b.png', '--maps', '--overlay', '--top', 9, *USE)[0] == 0
    doc = check_gallery('attention', 2, 0)
    look = inspect_image(answers.new_job('w.safetensors', 'cpu', None, None, 1).net, 'a.png')
    r = doc['pictures'][0]
    assert r['box'] == [25, 0, 65, 40] and r['seen'] == [32, 32] and [t['class'] for t in r['top']] == sorted(r['probabilities'], key=r['probabilities'].get, reverse=True)
    for k, a in enumerate(look.maps, 1): assert (np.load(f'attention/a-level{k}.npy') == a[0].numpy()).all()
    both = np.load('attention/a-combined.npy')
    want = to_original(look, combine(look.maps, look.seen)).numpy()
    assert both.shape == (40, 90) and np.allclose(both, want / want.sum()) and not both[:, :25].any() and not both[:, 65:].any()
    over, whole = np.array(Image.open('attention/a-overlay.png')), np.array(Image.open('a.png'))
    assert (over[:, :25] == whole[:, :25]).all() and (over[:, 65:] == whole[:, 65:]).all() and (over[:, 25:65] != whole[:, 25:65]).mean() > .5
    shutil.copy('attention/a-attention.png', 'old.png')
    assert ltpa('explain', 'a.png', '--out', 'alone/', *USE)[0] == 0
    assert Path('old.png').read_bytes() == Path('alone/a-attention.png').read_bytes()


@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('W, H', [(90, 40), (41, 120), (64, 64)])
def test_the_overlay_is_bright_where_the_map_is(W, H, fit, here):
    "A cell of all the weight, right of and below the middle, over a black picture."
    job = answers.new_job('w.safetensors', 'cpu', None, None, 1)
    job.net.info['source'] = dict(size=32, fit=fit)
    seen = gallery.see(job, np.zeros((H, W, 3), np.uint8), {})
    a = torch.zeros(1, 8, 8)
    a[0, 4, 4] = 1
    over = gallery.full_overlay(seen._replace(look=seen.look._replace(maps=(a,)))).sum(2)
    left, top, right, bottom = seen.look.frame
    y, x = np.unravel_index(over.argmax(), over.shape)
    assert abs(x + .5 - left - (right - left) * 4.5 / 8) < 1.5 and abs(y + .5 - top - (bottom - top) * 4.5 / 8) < 1.5
    l, t, r, b = seen_pixels(seen.look)
    assert over[t:b, l:r].min() <= over.max() / 3 and over.sum() == over[t:b, l:r].sum(), 'outside it is black'


def test_a_second_run_explains_no_figure_of_the_first(here, ltpa):
    tree('.', 'a.png', 'c/b.png')
    for k in range(2):
        assert ltpa('explain', 'a.png', '--overlay', *USE)[0] == 0 and ltpa('explain', '.', *USE)[0] == 0
        assert [r['file'] for r in check_gallery('attention', 2, 0)['pictures']] == ['a.png', 'c/b.png']
    assert ltpa('explain', '.', '--out', 'other', *USE)[0] == 0
    assert len(check_gallery('other', 2, 0)['pictures']) == 2
    code, _, err = ltpa('explain', 'attention', *USE)
    assert code == 2 and 'holds no pictures' in err


def test_if_nothing_can_be_done_nothing_is_written(here, ltpa):
    Path('p').mkdir()
    for name in 'a.png', 'b.png': Path('p', name).touch()
    for command in 'explain', 'predict':
        code, out, err = ltpa(command, 'p', *USE)
        assert (code, out) == (2, '') and 'none of 2 pictures' in err.splitlines()[-1] and len(err.splitlines()) == 3
    assert sorted(os.listdir()) == ['p', 'w.safetensors']


# Names in tables, page and terminal

ODD = ['<script>alert(1)</script>.png'.replace('/', ''), 'a"b\'&amp;.png', 'line\nbreak.png', '\x1b[2J.png', '$x_1$.png', '=1+1.png', '%41 #?.png', 'снег 猫.png', 'x' * 240 + '.png']


def test_no_name_changes_page_table_or_terminal(here, ltpa):
    save_weights(tiny_net('vgg_att2_concat_pc'), 'w.safetensors', classes=['<b>&', 'two\nlines', '$\x1b[31m'])
    for k, name in enumerate([*ODD, os.fsdecode(b'\xff.png')]): noise(k).save(name)
    n = len(ODD) + 1
    code, out, err = ltpa('explain', '.', *USE, '--overlay')
    assert (code, err) == (0, '') and not set(out) & {'\x1b', '\r'}
    check_gallery('attention', n, 0)
    page = Page(Path('attention/index.html').read_text(encoding='utf-8'))
    assert page.count['script'] == 1 and 'b' not in page.count and '\x1b' not in page.text
    assert len(Path('attention/answers.csv').read_text(encoding='utf-8').splitlines()) == n + 1
    code, out, err = ltpa('predict', '.', *USE)
    assert code == 0 and len(out.splitlines()) == n and all(line.count('\t') == 2 for line in out.splitlines())


def test_classes_of_one_name_are_told_apart():
    assert unique_names(['a', 'b', 'a', 3]) == ['a (0)', 'b', 'a (2)', '3']


# Methods

def test_methods_stand_beside_attention_and_alone(here, ltpa):
    tree('p', '1.png', '2.png')
    save_weights(tiny_net('vgg_gap'), 'gap.safetensors')
    code, _, err = ltpa('explain', 'p', '--model', 'gap.safetensors', '--device', 'cpu')
    assert code == 2 and not Path('attention').exists()
    one_line(err.rstrip('\n'), 'vgg_gap', 'no attention maps')
    argv = 'explain', 'p', '--model', 'gap.safetensors', '--device', 'cpu', '--methods', 'cam, grad-cam', '--maps', '--overlay'
    assert ltpa(*argv)[0] == 0
    for r in check_gallery('attention', 2, 0)['pictures']: assert set(r['maps']) == {'cam', 'grad_cam'} and not r['levels']
    assert ltpa('explain', 'p/1.png', '--model', 'gap.safetensors', '--device', 'cpu', '--methods', 'cam')[0] == 0
    for bad in 'gradcan', 'grad_cam,,', 'lime', 'cam':
        code, _, err = ltpa('explain', 'p', '--methods', bad, *USE)
        assert code == 2 and 'unknown method' in err and 'grad' in err


# Answers alone

def test_predict(here, ltpa):
    tree('p', '1.png', '2.png', '10.png')
    Path('p/broken.png').touch()
    code, out, err = ltpa('predict', 'p', *USE, '--top', 2, '--csv', 'new/t.csv')
    assert code == 1 and len(err.splitlines()) == 1 and 'p/broken.png' in err
    lines = [line.split('\t') for line in out.splitlines()]
    assert [line[0] for line in lines] == ['p/1.png', 'p/2.png', 'p/10.png'] and all(len(line) == 5 for line in lines)
    rows = table('new/t.csv')
    assert [r['file'] for r in rows] == ['p/1.png', 'p/2.png', 'p/10.png', 'p/broken.png'] and rows[3]['error']
    assert [(r['class'], r['class_2']) for r in rows[:3]] == [(line[1], line[3]) for line in lines]
    code, out, _ = ltpa('predict', 'p', *USE, '--json')
    doc = json.loads(out)
    assert code == 1 and [r['file'] for r in doc['pictures']] == [r['file'] for r in rows[:3]] and doc['broken'][0]['file'] == 'p/broken.png'
    want = inspect_image(answers.new_job('w.safetensors', 'cpu', None, None, 1).net, 'p/2.png').probs
    assert [*doc['pictures'][1]['probabilities'].values()] == pytest.approx(want.tolist(), abs=1e-6)
    assert ltpa('predict', 'p', *USE, '--csv', '-')[1].splitlines()[0].startswith('file,class,probability,width')
    assert ltpa('predict', 'p/1.png', *USE)[::2] == (0, '') and sorted(os.listdir()) == ['new', 'p', 'w.safetensors']


def test_predict_sees_what_evaluation_sees(here):
    net = net_of('stretch', 64)
    save_weights(net, 's.safetensors', classes=['a', 'b', 'c'], source=dict(source='x', size=64, fit='stretch'))
    noise(3, 100, 50).save('x.png')
    doc = predict_many('x.png', 's.safetensors', device='cpu', json=True)
    x = FITS['stretch'](torch.from_numpy(np.array(Image.open('x.png'))).permute(2, 0, 1), 64)
    with torch.no_grad(): want = net.eval()(x[None] / 255).logits.softmax(1)[0]
    assert [*doc['pictures'][0]['probabilities'].values()] == pytest.approx(want.tolist(), abs=2e-5)
    assert doc['pictures'][0]['box'] == [0, 0, 100, 50]


@pytest.mark.parametrize('command', ['explain', 'predict'])
@pytest.mark.parametrize('argv, words', [
    (['p', '--top', '0'], ('top 0', 'at least 1')), (['p', '--side', '16'], ('side 16', 'at least 32')), (['p', '--model', 'nope'], ("'nope'", '.safetensors')),
    (['nowhere'], ('nowhere: no such file',)), (['no*.png'], ('no*.png', 'no such file')), ([], ('IMAGE',)), (['p', '--top', 'x'], ("'x'",)),
    (['p', '--gray-bits', '99'], ('bits 99',))], ids=lambda v: '-'.join(v) if isinstance(v, list) else '')
def test_refused(command, argv, words, here, ltpa):
    tree('p', '1.png')
    code, out, err = ltpa(command, *argv, *([] if '--model' in argv else USE))
    if command == 'predict' and argv == ['no*.png']: words = ('no*.png matches no file',)
    assert (code, out) == (2, '') and err.startswith('ltpa: ')
    one_line(err.rstrip('\n'), *words)
    assert sorted(os.listdir()) == ['p', 'w.safetensors']


# Ends and progress

@pytest.mark.parametrize('end', [KeyboardInterrupt, OSError(28, 'No space left on device')], ids=['interrupted', 'disk full'])
def test_what_was_done_before_an_end_is_whole(end, here, ltpa, monkeypatch):
    tree('p', *(f'{k}.png' for k in range(5)))
    usual, asked = gallery.see, []
    def see(*args):
        asked.append(args)
        if len(asked) == 3 and end is KeyboardInterrupt: raise end
        return usual(*args)
    def full(fd):
        if len(asked) == 3: raise end
    monkeypatch.setattr(gallery, 'see', see)
    if end is not KeyboardInterrupt: monkeypatch.setattr(os, 'fsync', full)
    code, _, err = ltpa('explain', 'p', *USE)
    assert code == (130 if end is KeyboardInterrupt else 2) and len(err.splitlines()) == 1
    assert not list(Path('attention').rglob('*.tmp'))
    if end is KeyboardInterrupt: check_gallery('attention', 2, 0)
    else: assert sorted(os.listdir('attention')) == ['0-attention.png', '1-attention.png'] and len(asked) == 3
    monkeypatch.undo()
    os.chdir(here)
    assert ltpa('explain', 'p', *USE)[0] == 0
    check_gallery('attention', 5, 0)


def test_one_at_a_time(here, monkeypatch):
    "Memory is that of one picture: the next is read only when the last is written."
    tree('p', *(f'{k}.png' for k in range(4)))
    usual, write, order = gallery.see, gallery.write_atomic, []
    monkeypatch.setattr(gallery, 'see', lambda *a: (order.append('read'), usual(*a))[1])
    monkeypatch.setattr(gallery, 'write_atomic', lambda *a: (order.append('write'), write(*a))[1])
    explain_many('p', 'w.safetensors', device='cpu', quiet=True)
    assert order == ['read', 'write'] * 4 + ['write'] * 3


def test_progress(here, ltpa, monkeypatch):
    tree('p', *(f'{k}.png' for k in range(3)))
    monkeypatch.setattr(answers, 'EVERY', 0)
    assert ltpa('predict', 'p', *USE)[2].splitlines() == [f'ltpa: {k} of 3 pictures' for k in range(3)]
    assert ltpa('predict', 'p', *USE, '--quiet')[2] == ltpa('explain', 'p/1.png', *USE)[2] == ''
    monkeypatch.setattr('sys.stderr', Terminal := type('T', (io.StringIO,), dict(isatty=lambda self: True))())
    assert ltpa('explain', 'p', *USE)[0] == 0 and '0/3' in Terminal.getvalue()


def test_large_pictures_cost_no_more_than_a_few_copies(here):
    "Of six million pixels, 18 MB; colors for all of them at once, as matplotlib makes them, would be half a gigabyte."
    import tracemalloc
    Image.new('RGB', (3000, 2000), 'gray').save('big.png')
    job = answers.new_job('w.safetensors', 'cpu', None, None, 1)
    seen = gallery.see(job, 'big.png', {})
    tracemalloc.start()
    gallery.full_overlay(seen)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6, f'{peak / 1e6:.0f} MB'


# In a browser

@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which('chromium') or shutil.which('chromium-browser')), reason='no chromium here')
def test_the_page_in_a_browser(here, ltpa):
    from playwright.sync_api import sync_playwright
    tree('p', 'b.png', 'a10.png', 'a2.png', 'w' * 100 + '.png')
    Path('p/broken.png').touch()
    assert ltpa('explain', 'p', *USE, '--maps', '--overlay')[0] == 1
    browser = shutil.which('chromium') or shutil.which('chromium-browser')
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=browser, args=['--no-sandbox'])
        for width in 390, 900, 1440:
            for scheme in 'light', 'dark':
                page = b.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
                said = []
                page.on('console', lambda m: said.append(m.text)); page.on('pageerror', lambda e: said.append(str(e)))
                page.on('request', lambda r: said.append(r.url) if not r.url.startswith('file:') else None)
                page.goto((here / 'attention/index.html').as_uri())
                assert page.evaluate('document.documentElement.scrollWidth') <= width and not said
                for img in page.query_selector_all('img'):
                    img.scroll_into_view_if_needed()
                    page.wait_for_function('i => i.complete && i.naturalWidth > 0', arg=img)
                page.select_option('select', 'sure')
                order = [float(a.get_attribute('data-p')) for a in page.query_selector_all('article')]
                assert order == sorted(order, reverse=True) and len(order) == 4
                page.close()
        b.close()
