"""The explorer in a real browser: JupyterLab opens its notebook, runs it, and hands move it."""
import contextlib
import os
import re
from pathlib import Path

import pytest
from helpers import shoot
from lab import chromium, chromium_page, jupyterlab, open_notebook, until

NOTEBOOK = '08_explorer.ipynb'

pytestmark = pytest.mark.slow


@pytest.fixture
def lab(tmp_path):
    with jupyterlab(tmp_path) as address: yield address


@pytest.fixture
def page():
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    if chromium() is None: pytest.skip('no chromium here (on Debian: apt-get install chromium)')
    with playwright.sync_playwright() as p, contextlib.ExitStack() as opened:
        try: page = opened.enter_context(chromium_page(p))
        except playwright.Error as e: pytest.skip(f'chromium does not start: {str(e).splitlines()[0]}')
        yield page


def pictures(explorer):
    "The pictures that the explorer shows: what it sees, the map, what a cell sees, the cells."
    return explorer.locator('img:visible').evaluate_all('all => all.map(img => img.src)')


def color_of(part):
    "How bright a text is, and what it stands on, as WCAG counts it: from 0 to 1."
    return part.evaluate("""e => { const linear = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const bright = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(linear);
        return .2126 * r + .7152 * g + .0722 * b };
        let under = e; while (getComputedStyle(under).backgroundColor.match(/, 0\\)$/)) under = under.parentElement;
        return [bright(getComputedStyle(e).color), bright(getComputedStyle(under).backgroundColor)] }""")


def wait_for(page, test, what): until(test, what, sleep=lambda seconds: page.wait_for_timeout(1000 * seconds))


def run_all(page):
    "Run every cell, and wait until the last has a number; no cell may fail."
    prompts = page.locator('.jp-Notebook .jp-CodeCell .jp-InputPrompt')
    failed = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    dialog = page.locator('dialog.jp-Dialog')
    # a cell whose source is hidden shows no number
    done = lambda: all(re.fullmatch(r'(\[\d+\]:)?', text) for text in prompts.all_inner_texts())
    for item in 'Run', 'Run All Cells': page.get_by_role('menuitem', name=item, exact=True).click()
    wait_for(page, lambda: failed.count() or dialog.count() or done(), 'the last cell')
    assert not dialog.count(), f'JupyterLab asks: {dialog.first.inner_text()}'
    assert not failed.count(), failed.first.inner_text()[-1000:]


@pytest.mark.whole
def test_the_explorer_in_a_browser(page, lab, tmp_path):
    open_notebook(page, lab, NOTEBOOK)
    run_all(page)
    explorer = page.locator('.ltpa-explorer').first
    explorer.scroll_into_view_if_needed()
    wait_for(page, lambda: len(pictures(explorer)) == 4, 'four pictures')
    for role, name in [('combobox', 'picture'), ('combobox', 'g from'), ('spinbutton', 'temperature'),
                       ('spinbutton', 'attack, /255'), ('textbox', 'or its path'), ('button', 'reset')]:
        assert explorer.get_by_role(role, name=name).count() == 1, name
    explorer.get_by_role('combobox', name='beside it').select_option('grad_cam')
    explorer.get_by_text('signs left out').wait_for()
    shown = explorer.locator('select').evaluate_all('all => all.map(s => s.selectedOptions[0]?.textContent)')
    assert all(shown) and 'its own' in [text.replace('\xa0', ' ') for text in shown], shown
    shoot(page, 'explorer', tmp_path)

    before = pictures(explorer)
    handle = explorer.locator('.widget-hbox', has_text='attack').last.locator('.noUi-handle')
    handle.focus()
    for _ in range(8): handle.press('ArrowRight')
    wait_for(page, lambda: all(a != b for a, b in zip(pictures(explorer)[:2], before)), 'another picture and map')
    assert 'moved by' in explorer.inner_text()
    shoot(page, 'attacked', tmp_path)

    grid = explorer.locator('.ltpa-stack:not(.ltpa-over) .ltpa-cells')
    grid.get_by_role('button', name='row 1, column 1', exact=True).click()
    wait_for(page, lambda: 'what cell (1, 1) sees' in explorer.inner_text(), 'the field of the clicked cell')
    area = explorer.locator('.ltpa-over').bounding_box()                  # 24 by 16 cells
    page.mouse.click(area['x'] + area['width'] * 20.5 / 24, area['y'] + area['height'] * 3.5 / 16)
    wait_for(page, lambda: 'what cell (3, 20) sees' in explorer.inner_text(), 'the field of the clicked place')
    assert explorer.locator('.ltpa-cells .mod-active').evaluate_all('all => all.map(b => b.title.split(":")[0])') == \
        ['row 3, column 20'] * 2
    explorer.get_by_role('button', name='reset').click()
    wait_for(page, lambda: len(pictures(explorer)) == 4 and 'as they are' in explorer.inner_text(), 'the first state')

    (tmp_path / 'notes.png').write_text('no picture')
    (tmp_path / 'large.png').write_bytes(os.urandom(12_000_000))
    for name, told in [('large.png', 'too large'), ('notes.png', 'notes.png is not an image')]:
        with page.expect_file_chooser() as chooser: explorer.get_by_role('button', name='your own picture').click()
        chooser.value.set_files(tmp_path / name)
        wait_for(page, lambda: told in explorer.inner_text(), told)
        shoot(page, f'refused_{name[:5]}', tmp_path)

    for theme in 'JupyterLab Dark', 'JupyterLab Light':
        page.keyboard.press('Control+Shift+c')
        page.locator('.lm-CommandPalette-input, .lm-CommandPalette input').first.wait_for()
        page.keyboard.type(f'Theme: {theme}')
        page.locator('.lm-CommandPalette-item').filter(has_text=theme).first.wait_for()
        page.keyboard.press('Enter')
        page.locator(f'body[data-jp-theme-name="{theme}"]').wait_for(state='attached')
        for part in explorer.locator('.ltpa-bad, .ltpa-good, td, b, label').locator('visible=true').all():
            text, under = color_of(part)
            contrast = (max(text, under) + .05) / (min(text, under) + .05)
            assert contrast >= 4.5, f'{part.inner_text()!r} in {theme}: {contrast:.1f}'
        shoot(page, theme.replace(' ', '_'), tmp_path)

    page.set_viewport_size(dict(width=1440, height=1000))
    shoot(page, 'wide', tmp_path)
    page.set_viewport_size(dict(width=900, height=1000))          # beside the list of files little room is left
    inside = """all => all.every(e => { const b = e.getBoundingClientRect(), area = e.closest('.jp-OutputArea-output');
        return b.width > 4 && b.right <= area.getBoundingClientRect().right + 1 })"""
    parts = explorer.locator('img:visible, select, input, .widget-html-content:visible, .widget-box:visible')
    wait_for(page, lambda: parts.evaluate_all(inside), 'every part to be in sight in a narrow window')
    shoot(page, 'narrow', tmp_path)

    assert not explorer.locator('.ltpa-dead').is_visible()
    page.get_by_role('menuitem', name='Kernel', exact=True).click()
    page.get_by_role('menuitem').filter(has_text='Restart Kernel…').first.click()
    page.locator('dialog.jp-Dialog button.jp-mod-accept').click()
    explorer.locator('.ltpa-dead').wait_for()
    shoot(page, 'dead', tmp_path)
