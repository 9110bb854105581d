"""The demo: its graph is the network, and the page answers in a browser what PyTorch answers, picture by picture."""
import base64
import contextlib
import copy
import io
import json

import demo
import numpy as np
import pytest
import torch
from helpers import shoot
from lab import chromium
from PIL import Image

from ltpa.explorer import Scene
from ltpa.maps import inspect_image, seen_by
from ltpa.photographs import list_photographs, photograph
from ltpa.readers import read_image

USUAL = demo.PHOTOGRAPH_SIDE
NEAR = dict(rtol=0, atol=1e-5)


@pytest.fixture(scope='module')
def net(): return demo.network()


@pytest.fixture(scope='module')
def onnx(net):
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    data = demo.as_onnx(net)
    return data, runtime.InferenceSession(data, providers=['CPUExecutionProvider'])


def expected(net, x, temperature=1., flat=()):
    "What the library says of [1,3,h,w]: the explorer's own temperature, and its maps replaced where `flat`"
    scene = Scene(net, x)
    scene.x = x                                                    # as it is, at this size
    out = scene.out(temperature=temperature)
    maps = tuple(torch.full_like(a, 1 / a.numel()) if k in flat else a for k, a in enumerate(out.maps, 1))
    with torch.no_grad(): return net.pool(scene.encoded()[0], maps)


CASES = [((32, 32), 1., ()), ((64, 96), 1., ()), ((64, 96), .125, ()), ((96, 64), 64., (2,)), ((128, 32), 2., (1, 3)), ((32, 64), 1., (1, 2, 3))]


@pytest.mark.parametrize('size, temperature, flat', CASES)
def test_the_graph_is_the_network(net, onnx, size, temperature, flat):
    x = demo.trial(1, *size)
    want = expected(net.net, x, temperature, flat)
    if temperature == 1 and not flat:
        with torch.no_grad(): torch.testing.assert_close(net.net(x).logits, want.logits, **NEAR)
    inputs = x, torch.tensor([temperature]), torch.tensor([float(k in flat) for k in (1, 2, 3)])
    with torch.no_grad(): got = net(*inputs)
    ran = dict(zip(got, onnx[1].run([*got], dict(zip(demo.INPUTS, (v.numpy() for v in inputs))))))
    for name, w in zip(got, (want.logits, *want.maps), strict=True):
        torch.testing.assert_close(got[name], w, **NEAR)
        torch.testing.assert_close(torch.from_numpy(ran[name]), w, **NEAR)
    assert all(att.temperature == 1 for att in net.net.attention), 'the network keeps its own'


def test_a_level_without_choice_gives_the_mean(net):
    "Uniform attention is average pooling: the descriptors are means, and nothing else is changed"
    x = demo.trial(1, 64, 64)
    with torch.no_grad():
        l, _ = net.net.forward_features(x)
        want = net.net.classify([v.mean((2, 3)) for v in l])
        torch.testing.assert_close(net(x, torch.ones(1), torch.ones(3))['logits'], want, **NEAR)


def test_the_graph_knows_nothing_of_this_machine(onnx): assert str(demo.ROOT).encode() not in onnx[0] and b'site-packages' not in onnx[0]


def test_a_graph_that_differs_is_not_handed_out(net, onnx):
    assert demo.checked(onnx[0], net) == onnx[0]
    other = copy.deepcopy(net)
    other.net.attention[1].u.weight.data *= 1.01
    with pytest.raises(SystemExit, match='differs from the network by'): demo.checked(onnx[0], other)


def test_without_npm_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setattr(demo, 'CACHE', tmp_path / 'npm')
    monkeypatch.setattr(demo, 'PAGE', tmp_path / 'index.html')
    with pytest.raises(SystemExit) as e: demo.main()
    assert 'apt-get install npm' in e.value.code and 'nodejs.org' in e.value.code and '\n' not in e.value.code
    assert not [*tmp_path.iterdir()], 'something half made'


def test_where_npm_fails_its_words_are_shown(tmp_path, monkeypatch):
    (tmp_path / 'npm').write_text('#!/bin/sh\necho "no way there" >&2\nexit 1\n')
    (tmp_path / 'npm').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
    monkeypatch.setattr(demo, 'CACHE', tmp_path / 'cache')
    with pytest.raises(SystemExit, match='(?s)could not fetch onnxruntime-web.*no way there'): demo.fetched()
    assert not (demo.CACHE / 'done.json').exists()


def test_the_program_is_pinned():
    lock = json.loads((demo.SOURCE / 'package-lock.json').read_text(encoding='utf-8'))
    version = json.loads((demo.SOURCE / 'package.json').read_text(encoding='utf-8'))['dependencies'][demo.PROGRAM]
    assert lock['packages'][f'node_modules/{demo.PROGRAM}']['version'] == version
    assert all(p.get('integrity') and 'resolved' not in p for name, p in lock['packages'].items() if name), 'npm install --omit-lockfile-registry-resolved'


def test_another_form_of_the_program_is_noticed(tmp_path):
    (tmp_path / 'ort.wasm.bundle.min.mjs').write_text('export default ort;')
    with pytest.raises(SystemExit, match='another form'): demo.runtime(tmp_path)


# ---- In a browser

@pytest.fixture(scope='module')
def page_file(tmp_path_factory):
    pytest.importorskip('onnxscript')
    if chromium() is None: pytest.skip('no chromium here (on Debian: apt-get install chromium)')
    try: demo.fetched()
    except SystemExit as e: pytest.skip(str(e.code).splitlines()[0])
    file = tmp_path_factory.mktemp('demo') / 'index.html'
    file.write_text(demo.page(), encoding='utf-8')
    assert file.stat().st_size <= demo.MOST_BYTES
    return file


class Shown:
    "The page in a browser, and what it asked for and complained of"
    def __init__(self, browser, file, **context):
        self.page = browser.new_page(**dict(dict(viewport=dict(width=1440, height=1000)), **context))
        self.page.set_default_timeout(120_000)
        self.asked, self.said = [], []
        self.page.on('request', lambda r: self.asked.append(r.url))
        self.page.on('console', lambda m: self.said.append(m.text))
        self.page.on('pageerror', lambda e: self.said.append(str(e)))
        self.page.goto(file.as_uri())
        self.page.wait_for_function('() => window.demo?.ready')
        self.page.evaluate('demo.ready')

    def last(self):
        "The newest answer, with bytes and maps as arrays"
        out = self.page.evaluate('''async () => { await demo.settled; const d = demo.last, s = d.seen; return {
            name: d.name, ms: d.ms, scaling: d.scaling, doubts: d.doubts, rank: d.rank, probs: [...d.probs], logits: [...d.logits],
            maps: d.maps.map(m => [m.h, m.w, [...m.a]]), seen: [s.h, s.w, [...s.bytes]], box: s.box } }''')
        out['maps'] = [np.reshape(a, (h, w)) for h, w, a in out['maps']]
        h, w, data = out['seen']
        out['seen'] = np.reshape(data, (h, w, 3)).astype(np.uint8)
        return out

    def give(self, path):
        self.page.set_input_files('#file', path)
        self.page.wait_for_function('name => demo.last.name === name || !document.getElementById("status").hidden && '
                                    'document.getElementById("status").classList.contains("bad")', arg=path.name)
        return self.last()

    def key(self, name, times=1):
        for _ in range(times): self.page.keyboard.press(name)

    def words(self, selector): return self.page.inner_text(selector)


@pytest.fixture(scope='module')
def browser():
    "Starts browsers, each with flags of its own"
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    with playwright.sync_playwright() as p, contextlib.ExitStack() as opened:
        def launch(*args):
            flags = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', *args]
            try: it = p.chromium.launch(executable_path=chromium(), args=flags)
            except playwright.Error as e: pytest.skip(f'chromium does not start: {str(e).splitlines()[0]}')
            opened.callback(it.close)
            return it
        yield launch


@pytest.fixture(scope='module')
def open_page(page_file, browser): return Shown(browser(), page_file)


@pytest.fixture
def shown(open_page):
    "The one page, as it was in the beginning"
    page = open_page.page
    for button in '#reset', '#thumbs [data-name=cat]': page.click(button)
    page.select_option('#seen', str(USUAL))
    page.uncheck('#pixels')
    page.check('[name=show][value="2"]')
    page.wait_for_function('() => demo.last.name === "cat"')
    open_page.last()
    yield open_page
    assert not open_page.said, open_page.said
    assert {u.split(':')[0] for u in open_page.asked} <= {'file', 'data', 'blob'}, open_page.asked
    assert sum(u.startswith('file') for u in open_page.asked) == 1, 'no file but the page'


SIZES = [(451, 300), (300, 451), (64, 64), (65, 64), (97, 331), (1024, 768), (800, 801), (1500, 1001), (40, 30), (8, 9), (33, 32), (128, 96),
         (400, 131), (257, 255), (2000, 1500), (96, 64), (190, 127), (500, 63), (321, 320), (76, 260)]


def opened(file):
    "The picture in a file, which is closed again"
    with Image.open(file) as image: return image.copy()


def pictures(folder):
    "Twenty PNG files of as many sizes: photographs, some of them gray, with a palette, or of noise"
    names = list_photographs()
    for k, size in enumerate(SIZES):
        image = opened(photograph(names[k % len(names)])).convert('RGB').resize(size, Image.Resampling.LANCZOS)
        if k % 5 == 2: image = image.convert('L')
        if k % 7 == 3: image = image.quantize(64)
        if k % 9 == 5: image = Image.fromarray(np.random.default_rng(k).integers(0, 256, (*size[::-1], 3), np.uint8))
        path = folder / f'{k}.png'
        image.save(path)
        yield path


def as_library(net, path, side=USUAL):
    "What the library sees and says: of a picture that is smaller than `side`, or at the side of training, the middle square"
    if min(opened(path).size) < side or side == 32: side = None
    return seen_by(net, path, side)[0].seen.permute(1, 2, 0).numpy(), inspect_image(net, path, side)


def apart(got, look):
    "The largest differences of probabilities and of weights"
    return (np.abs(np.array(got['probs']) - look.probs.numpy()).max(),
            max(np.abs(g - a[0].numpy()).max() for g, a in zip(got['maps'], look.maps, strict=True)))


@pytest.mark.slow
def test_twenty_pictures_as_in_pytorch(shown, net, tmp_path, capsys):
    worst, times = [], []
    for path in pictures(tmp_path):
        got = shown.give(path)
        seen, look = as_library(net.net, path)
        np.testing.assert_array_equal(got['seen'], seen, err_msg=f'{path.name}: the pixels that the network sees')
        assert got['box'] == pytest.approx(look.box)
        worst.append(apart(got, look))
        times.append(got['ms'])
        assert max(worst[-1]) < 1e-5, path.name
        assert len(got['doubts']) == len(look.warnings), (path.name, got['doubts'], look.warnings)
        assert got['rank'] < demo.FEW if any('unlike' in w for w in look.warnings) else got['rank'] >= demo.FEW
    probs, weights = np.max(worst, 0)
    with capsys.disabled():
        print(f'\n20 pictures: probabilities within {probs:.1e}, weights within {weights:.1e}; '
              f'{np.median(times):.0f} ms an answer, {max(times):.0f} at most')
    assert np.median(times) < 1000, times


@pytest.mark.whole
def test_other_sides_and_other_files(shown, net, tmp_path):
    path = tmp_path / 'horses.png'
    opened(photograph('horses')).save(path)
    shown.give(path)
    for side in (32, *demo.SIDES):
        shown.page.select_option('#seen', str(side))
        got, (seen, look) = shown.last(), as_library(net.net, path, side)
        np.testing.assert_array_equal(got['seen'], seen)
        assert max(apart(got, look)) < 1e-5, side
    shown.page.select_option('#seen', str(USUAL))
    turned, clear = tmp_path / 'turned.jpg', tmp_path / 'clear.png'
    exif = Image.Exif()
    exif[274] = 6
    opened(photograph('dog')).save(turned, quality=95, exif=exif)
    x = np.array(opened(photograph('bird')).convert('RGBA'))
    x[..., 3] = np.linspace(0, 255, x.shape[1])
    Image.fromarray(x).save(clear)
    for path in (turned, clear, *(photograph(name) for name in list_photographs())):
        got, (seen, look) = shown.give(path), as_library(net.net, path)
        off = np.abs(got['seen'].astype(int) - seen).max()
        assert got['seen'].shape == seen.shape and off <= 2, (path.name, off)     # decoders and blending round in their own ways
        assert max(apart(got, look)) < .02, path.name


@pytest.mark.whole
def test_sliders_and_switches_by_keys(shown, net):
    page, got = shown.page, shown.last()
    x = torch.from_numpy(got['seen'].copy()).permute(2, 0, 1)[None] / 255
    assert page.evaluate('document.querySelector("a[href], button, input, select, textarea, summary, [tabindex]").id') == 'file', 'the first stop of Tab'
    page.focus('#file')
    order = []
    for _ in range(20):
        order.append(page.evaluate('document.activeElement.id || document.activeElement.name || document.activeElement.dataset.name'))
        shown.key('Tab')
    assert order[:3] == ['file', 'camera', 'cat'], order
    assert order[12:] == ['show', 'seen', 'strength', 'pixels', 'temperature', 'uniform-all', 'uniform-1', 'uniform-2'], order
    page.focus('#temperature')
    shown.key('ArrowRight', 4)
    assert shown.words('#temperature-value') == '2' and page.get_attribute('#temperature', 'aria-valuetext') == '2'
    def same(temperature, flat=()):
        got, want = shown.last(), expected(net.net, x, temperature, flat)
        np.testing.assert_allclose(got['logits'], want.logits[0].numpy(), atol=5e-5, rtol=0)
        for g, a in zip(got['maps'], want.maps): np.testing.assert_allclose(g, a[0].numpy(), atol=1e-5, rtol=0)
        return got
    same(2.)
    assert 'As it was trained it says cat' in shown.words('#usually')
    page.focus('#uniform-2')
    shown.key('Space')
    same(2., (2,))
    assert page.evaluate('document.getElementById("uniform-all").indeterminate') and 'all alike' in shown.words('#caption')
    page.focus('#uniform-all')
    shown.key('Space')
    uniform = same(2., (1, 2, 3))
    page.focus('#temperature')
    shown.key('Home')
    assert same(.125, (1, 2, 3))['logits'] == pytest.approx(uniform['logits'], abs=1e-4), 'where all weigh the same, nothing is left to divide'
    page.focus('#reset')
    shown.key('Enter')
    assert same(1.)['logits'] == pytest.approx(got['logits'], abs=1e-6) and shown.words('#usually') == ''
    page.focus('[name=show]:checked')
    drawn = page.evaluate('document.getElementById("stage").toDataURL()')
    shown.key('ArrowRight')
    assert 'level 3' in page.get_attribute('#stage', 'aria-label') and page.evaluate('document.getElementById("stage").toDataURL()') != drawn
    names = page.evaluate('''() => [...document.querySelectorAll("input, select, button")].filter(e =>
        !(e.labels?.length || e.innerText?.trim() || e.getAttribute("aria-label"))).map(e => e.outerHTML)''')
    assert not names, names


def blend(net, shown, k, strength=.6):
    "What the large picture should be, of the pixels that the network sees"
    from ltpa.maps import overlay, shade, upsample
    got = shown.last()
    seen = torch.from_numpy(got['seen'].copy()).permute(2, 0, 1)
    h, w = shown.page.evaluate('[document.getElementById("stage").height, document.getElementById("stage").width]')
    zoom = h // seen.shape[1]
    image = seen.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    return overlay(image, shade(upsample(torch.from_numpy(got['maps'][k - 1]).float()[None], (h, w)))[0], strength)


@pytest.mark.slow
def test_the_map_is_drawn_as_the_library_draws_it(shown, net):
    shown.page.check('#pixels')
    for k in 1, 2, 3:
        shown.page.check(f'[name=show][value="{k}"]')
        png = shown.page.evaluate('document.getElementById("stage").toDataURL()').partition(',')[2]
        got = np.asarray(opened(io.BytesIO(base64.b64decode(png))).convert('RGB'))
        off = np.abs(got - blend(net, shown, k).astype(int))
        assert off.mean() < .5 and (off > 8).mean() < 1e-3, (k, off.mean(), off.max())         # a color apart, here and there


@pytest.mark.slow
def test_what_is_no_picture_and_what_is_dropped(shown, net, tmp_path):
    notes, small, long = tmp_path / 'notes.txt', tmp_path / 'small.png', tmp_path / 'long.png'
    notes.write_text('no picture')
    Image.new('RGB', (7, 40)).save(small)
    before = shown.last()
    for path, words in (notes, 'notes.txt is no picture that this browser can read.'), (small, 'small.png has 7×40 pixels; expected at least 8'):
        assert shown.give(path)['name'] == before['name'] == 'cat' and words in shown.words('#status')
    opened(photograph('bird')).save(long)
    shown.page.evaluate('''text => { const data = new DataTransfer(), bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
        data.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })) }''', demo.as_text(long.read_bytes()))
    shown.page.wait_for_function('() => demo.last.name === "dropped.png"')
    assert max(apart(shown.last(), as_library(net.net, long)[1])) < 1e-5 and shown.page.is_hidden('#status')
    shown.page.click('#camera')
    shown.page.wait_for_selector('#status.bad')                        # no camera here, or it is refused
    assert 'camera' in shown.words('#status')


@pytest.mark.whole
def test_forty_megapixels(shown, net, tmp_path):
    path = tmp_path / 'large.png'
    ramp = np.add.outer(np.arange(5477), np.arange(7303))
    Image.fromarray(np.stack([ramp % 251, ramp // 7 % 256, ramp // 50], 2).astype(np.uint8)).save(path, compress_level=1)
    got, (seen, look) = shown.give(path), as_library(net.net, path)
    np.testing.assert_array_equal(got['seen'], seen)
    assert max(apart(got, look)) < 1e-5 and shown.page.is_hidden('#status')


@pytest.mark.whole
def test_the_camera(page_file, browser):
    shown = Shown(browser('--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream'), page_file)
    page = shown.page
    page.click('#camera')
    page.wait_for_function('() => demo.last.name === "the camera"')
    assert 'camera is on' in shown.words('#status')
    page.evaluate('window.first = demo.last.seen.bytes.join()')
    page.wait_for_function('() => demo.last.seen.bytes.join() !== first')           # it goes on by itself
    page.click('#camera')
    assert shown.words('#camera') == 'use the camera' and shown.last()['name'] == 'the camera'
    assert page.evaluate('demo.state.camera') is None and page.is_hidden('#status') and not shown.said
    page.close()


@pytest.mark.slow
@pytest.mark.whole
@pytest.mark.parametrize('dark', [False, True])
def test_every_width_in_both_themes(page_file, browser, dark):
    shown = Shown(browser(), page_file, color_scheme='dark' if dark else 'light')
    page = shown.page
    page.click('#thumbs [data-name=coffee]')
    page.wait_for_function('() => demo.last.name === "coffee"')
    page.check('#uniform-3')
    page.evaluate('for (const d of document.querySelectorAll("details")) d.open = true')
    shown.last()
    for width in 500, 900, 1440:
        page.set_viewport_size(dict(width=width, height=1000))
        wide = page.evaluate('''() => [...document.querySelectorAll("main *")].filter(e => !e.closest(".unseen, [type=file]") &&
            e.getBoundingClientRect().right > document.documentElement.clientWidth).map(e => e.id || e.className || e.tagName)''')
        assert not wide and page.evaluate('document.documentElement.scrollWidth <= innerWidth'), (width, wide)
        ground = page.evaluate('getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)')
        assert (max(ground) < 60) == dark, ground
        faint = page.evaluate(FAINT)
        assert not faint, (width, faint)
        shoot(page, f'demo_{width}_{"dark" if dark else "light"}')
    assert not shown.said, shown.said
    page.close()


# Texts that stand out too little from what is behind them: less than 4.5 to 1
FAINT = '''() => {
    const linear = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4
    const light = rgb => rgb.slice(0, 3).map(linear).reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0)
    const color = (e, name) => getComputedStyle(e)[name].match(/[\\d.]+/g).map(Number)
    const behind = e => { for (; e; e = e.parentElement) { const c = color(e, "backgroundColor"); if (c.length < 4 || c[3]) return c } return [255, 255, 255] }
    const spoken = e => e.checkVisibility() && !e.closest("option") && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())
    return [...document.querySelectorAll("body *")].filter(spoken).map(e => {
        const [a, b] = [light(color(e, "color")), light(behind(e))].sort((x, y) => y - x)
        return [(a + .05) / (b + .05), e.textContent.slice(0, 30)] }).filter(([ratio]) => ratio < 4.5) }'''
