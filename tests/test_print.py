"""The printable course: what becomes of links, hints and answers on paper; in `make test-all` page and PDF, and their margins."""
import importlib
import json
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from lab import chromium

paper = importlib.import_module('print')
NAMES = ['01_attention', '05_training']


@pytest.mark.parametrize('text, want', [
    ('[a](01_attention.ipynb) and [b](03_models.ipynb#x)', '[a](01_attention.ipynb) and b'),
    ('[`core`](workshop/core.ipynb), [c](../LICENSE)', '`core`, c'), ('[d](https://x.org) ![e](images/house.png)', '[d](https://x.org) ![e](images/house.png)'),
    ('`[f](03_models.ipynb)`', '`[f](03_models.ipynb)`'), ('84.4<!--controls; accuracy--> %', '84.4 %'),
    ('<details><summary>Hint</summary>Divide.</details>', '<em>Hint:</em> Divide.')])
def test_on_paper(text, want): assert paper.on_paper(text, NAMES, []) == want


def test_answers_stand_elsewhere():
    answers = []
    text = '1. Why?\n   <details><summary>Answer</summary>So.</details>\n2. How?\n   <details><summary>Answer</summary>Thus <code>x</code>.</details>'
    assert paper.on_paper(text, NAMES, answers) == '1. Why?\n2. How?' and answers == ['So.', 'Thus <code>x</code>.']


def test_what_only_draws_leaves_its_code_out(tmp_path):
    cell = lambda source: dict(cell_type='code', id='a', metadata={}, outputs=[], source=source)
    path = tmp_path / '01_a.ipynb'
    path.write_text(json.dumps(dict(cells=[cell('#| code-fold: true\nplot()'), cell('#| hide\nassert 1'), cell('x = 1')])))
    cells = json.loads(paper.lesson(path, NAMES)[0])['cells']
    assert [(c['source'], c['metadata']['tags']) for c in cells] == [('plot()', ['remove-input']), ('x = 1', [])]


def made(out, *names):
    "The page of these lessons in the folder `out`, of which nothing is amiss"
    if any(find_spec(m) is None for m in ('sphinx', 'myst_nb', 'sphinx-mathjax-offline')): pytest.skip('not installed: make print')
    done = subprocess.run([sys.executable, 'tools/print.py', *names, '--out', out], cwd=paper.ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and ' 0 warnings' in done.stdout, done.stdout + done.stderr
    return out / 'index.html'


@pytest.fixture(scope='module')
def page(tmp_path_factory): return made(tmp_path_factory.mktemp('print'), '00', '01')


@pytest.mark.whole
def test_lessons_stand_in_order_and_nothing_comes_from_elsewhere(page):
    text = page.read_text(encoding='utf-8')
    heads = re.findall(r'<h2>(.*?)<', text)
    assert [heads.index(h) for h in ('Start', 'Attention', 'Answers')] == [0, 1, 2]
    files = [s.split('?')[0] for found in re.findall(r'<(?:script|img)[^>]+src="([^"]+)"|<link[^>]+rel="stylesheet"[^>]+href="([^"]+)"', text) for s in found if s]
    assert len(files) > 10 and all((page.parent / f).exists() for f in files), files
    assert '<details' not in text


@pytest.mark.whole
def test_the_pdf_has_its_pages_and_nothing_is_cut_at_the_margin(page):
    sync = pytest.importorskip('playwright.sync_api')
    if not chromium(): pytest.skip('no chromium')
    assert len(re.findall(rb'/Type */Page\b', (page.parent / 'course.pdf').read_bytes())) > 15
    with sync.sync_playwright() as p, p.chromium.launch(executable_path=chromium(), args=['--no-sandbox']) as browser:
        tab = browser.new_page(viewport=dict(width=673, height=1000))          # 178 mm
        tab.emulate_media(media='print')
        tab.goto(page.as_uri())
        tab.wait_for_selector('mjx-container svg', timeout=60_000)
        wide = tab.evaluate("""[...document.querySelectorAll('pre, img, table, mjx-container, p, li')]
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120))""")
        assert not wide, wide


@pytest.mark.whole
def test_a_page_without_formulas(tmp_path):
    page = made(tmp_path / 'out', '00')
    assert 'MathJax' not in page.read_text(encoding='utf-8') and (not chromium() or (page.parent / 'course.pdf').exists())
