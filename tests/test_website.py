"""The site: what becomes of `#|` lines and links; in `make test-all` the whole of it, built, walked and opened."""
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
import website
from check_notebooks import joined, notebooks
from helpers import shoot


def code(source, **kw): return dict(cell_type='code', metadata=dict(jupyter=dict(source_hidden=True)), source=source, outputs=[], **kw)


@pytest.mark.parametrize('source, left, tags, alt', [
    ('#| export\nx = 1', 'x = 1', [], None), ('#| code-fold: true\n#| course\nx', 'x', ['hide-input'], None),
    ('#| fig-alt: A cat: gray\nplot()', 'plot()', [], 'A cat: gray'), ('x  # | y', 'x  # | y', [], None)])
def test_directives_become_tags_and_words(source, left, tags, alt):
    cell = website.tagged(code(source))
    assert cell['source'] == left and cell['metadata']['tags'] == tags
    assert cell['metadata'].get('mystnb', {}).get('image', {}).get('alt') == alt and 'jupyter' not in cell['metadata']


@pytest.mark.parametrize('source', ['#| hide\nassert x', '#| default_exp core', '#| course\n#| hide\n1'])
def test_what_only_asserts_is_not_on_the_site(source): assert website.tagged(code(source)) is None


def test_links_to_files_lead_to_copies():
    files = {}
    text = '[a](01_attention.ipynb) [b](../LICENSE) `[c](../LICENSE)` [d](https://x.org/LICENSE) <img src="images/house.png">'
    got = website.relinked(text, website.NBS, files)
    assert got == text.replace('[b](../LICENSE)', '[b](_static/files/LICENSE.txt)') and files == {'LICENSE.txt': website.ROOT / 'LICENSE'}
    assert website.relinked('[b](../../LICENSE)', website.NBS / 'workshop', files) == '[b](../_static/files/LICENSE.txt)'


def test_lessons_open_in_a_browser_where_the_site_has_an_address(monkeypatch):
    at = lambda name: website.page(website.NBS / name, {})
    monkeypatch.setattr(website, 'settings', lambda: dict(user='OWNER', repo='ltpa', branch='main'))
    monkeypatch.delenv('GITHUB_REPOSITORY', raising=False)
    assert 'Run this lesson' not in at('01_attention.ipynb') and 'github/OWNER/ltpa/blob' in at('index.ipynb')
    monkeypatch.setenv('GITHUB_REPOSITORY', 'ann/ltpa')
    first = json.loads(at('01_attention.ipynb'))['cells'][0]['source']
    assert 'colab.research.google.com/github/ann/ltpa/blob/main/nbs/01_attention.ipynb' in first and 'mybinder.org/v2/gh/ann/ltpa/main' in first
    assert 'Run this lesson' not in at('workshop/core.ipynb') and 'OWNER/ltpa' not in at('index.ipynb')


def test_the_course_map_knows_both_directions():
    page = website.course_map()
    row, = (line for line in page.splitlines() if line.startswith('| [01_attention]'))
    assert '[00](../00_start.ipynb)' in row.split('|')[3] and '[07]' not in row.split('|')[3]
    assert len([line for line in page.splitlines() if line.startswith('| [')]) == len([p for p in notebooks(website.NBS) if re.match(r'\d', p.name)])


@pytest.mark.parametrize('name', ['glossary', 'paths', 'teachers'])
def test_written_pages_lead_to_lessons(name):
    text = (website.PAGES / f'{name}.md').read_text(encoding='utf-8')
    targets = re.findall(r'\]\(\.\./(\w+\.ipynb)\)', text)
    assert len(targets) > 12 and all((website.NBS / t).exists() for t in targets)


def test_teachers_are_told_of_exercises_that_there_are():
    page = (website.PAGES / 'teachers.md').read_text(encoding='utf-8')
    rows = {m[1]: m[2].split(' | ')[2].split('; ') for m in re.finditer(r'^\| \[\d\w+\]\(\.\./(\w+)\.ipynb\) \| (.*) \|$', page, re.M)}
    assert len(rows) == 18
    for name, titles in rows.items():
        lesson = '\n'.join(joined(c['source']) for c in json.loads((website.NBS / f'{name}.ipynb').read_text(encoding='utf-8'))['cells'])
        for title in titles: assert re.search(re.escape(title.rstrip('?')[:17]), lesson), (name, title)


class Links(HTMLParser):
    "Targets and anchors of a page, and its pictures without words"
    def __init__(self, text):
        super().__init__()
        self.targets, self.anchors, self.wordless = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.anchors.add(a['id'])
        if tag == 'img' and not (a.get('alt') or '').strip(): self.wordless.append(a.get('src'))
        self.targets += [a[k] for k in ('href', 'src') if a.get(k) and tag != 'link']


@pytest.fixture(scope='module')
def site():
    if any(find_spec(m) is None for m in ('sphinx', 'myst_nb', 'furo', 'sphinx-mathjax-offline')): pytest.skip('not installed: make site')
    done = subprocess.run([sys.executable, 'tools/website.py'], cwd=website.ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and ' 0 warnings' in done.stdout, done.stdout + done.stderr
    return website.SITE


@pytest.mark.whole
def test_no_link_is_broken_and_no_figure_is_without_words(site):
    pages = {p: Links(p.read_text(encoding='utf-8')) for p in site.rglob('*.html')}
    assert len(pages) > len([*notebooks(website.NBS)])
    broken = []
    for page, found in pages.items():
        for target in found.targets:
            if re.match(r'https?:|mailto:|data:|javascript:', target): continue
            path, _, anchor = unquote(target.split('?')[0] if '#' not in target else target).partition('#')
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or anchor and file in pages and anchor not in pages[file].anchors: broken.append(f'{page.name}: {target}')
    assert not broken, '\n'.join(broken[:20])
    lessons = [p for p in pages if re.match(r'\d\d', p.name)]
    assert not [f'{p.name}: {src}' for p in lessons for src in pages[p].wordless]


@pytest.mark.whole
def test_nothing_comes_from_elsewhere(site):
    for page in site.rglob('*.html'):
        text = page.read_text(encoding='utf-8')
        assert not re.search(r'<(?:script|img)[^>]+src="https?:|<link[^>]+rel="(?:stylesheet|preload)"[^>]+href="https?:', text), page.name


@pytest.mark.whole
@pytest.mark.parametrize('dark', [False, True])
def test_pages_open_from_a_file_without_errors(site, dark):
    sync = pytest.importorskip('playwright.sync_api')
    import shutil
    if not (chromium := shutil.which('chromium')): pytest.skip('no chromium')
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        for width in 500, 900, 1440:
            page = browser.new_page(viewport=dict(width=width, height=1000), color_scheme='dark' if dark else 'light')
            said = []
            page.on('console', lambda m: said.append(m.text) if m.type == 'error' else None)
            page.on('pageerror', lambda e: said.append(str(e)))
            for name in 'index', '01_attention', '16_results', 'api/attention':
                page.goto((site / f'{name}.html').as_uri())
                page.wait_for_timeout(800)
                assert page.evaluate('document.documentElement.scrollWidth') <= width + 1, (name, width)
                shoot(page, f'site_{Path(name).name}_{width}_{"dark" if dark else "light"}')
            page.goto((site / '01_attention.html').as_uri())
            page.wait_for_selector('mjx-container svg', timeout=20_000)
            assert not said, said
        browser.close()


@pytest.mark.whole
def test_every_lesson_is_in_the_search(site):
    index = (site / 'searchindex.js').read_text(encoding='utf-8')
    names = json.loads(re.search(r'"docnames":(\[.*?\])', index)[1])
    assert {p.relative_to(website.NBS).with_suffix('').as_posix() for p in notebooks(website.NBS)} <= set(names)
