"""The explorer in a real browser: JupyterLab opens its notebook, runs it, and a slider moves the picture."""
import contextlib
import os
import re
from pathlib import Path

import pytest
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


def shoot(page, name, folder):
    for place in filter(None, (folder, os.environ.get('LTPA_SCREENSHOTS'))):
        Path(place).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(place) / f'{name}.png')


PIXELS = """all => all.map(img => { const c = document.createElement("canvas");
    c.width = img.naturalWidth; c.height = img.naturalHeight; c.getContext("2d").drawImage(img, 0, 0);
    return c.toDataURL() })"""


def pictures(explorer):
    "The pixels of the pictures that the explorer shows."
    return explorer.locator('img.widget-image').evaluate_all(PIXELS)


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


def test_a_slider_moves_the_picture(page, lab, tmp_path):
    open_notebook(page, lab, NOTEBOOK)
    run_all(page)
    explorer = page.locator('.jp-OutputArea-output .widget-vbox', has=page.locator('.widget-gridbox')).first
    explorer.scroll_into_view_if_needed()
    slider = explorer.locator('.widget-hslider', has_text='attack')
    wait_for(page, lambda: len(pictures(explorer)) == 4, 'four pictures')
    explorer.locator('.widget-dropdown', has_text='beside it').locator('select').select_option('grad_cam')
    explorer.get_by_text('signs left out').wait_for()
    shown = explorer.locator('select').evaluate_all('all => all.map(s => s.selectedOptions[0]?.textContent)')
    assert all(shown) and 'its own' in [text.replace('\xa0', ' ') for text in shown], shown
    shoot(page, 'explorer', tmp_path)

    before = pictures(explorer)
    handle = slider.locator('.noUi-handle')
    handle.focus()
    for _ in range(8): handle.press('ArrowRight')
    wait_for(page, lambda: all(a != b for a, b in zip(pictures(explorer)[:2], before)), 'another picture and map')
    assert 'moved by' in explorer.inner_text()
    shoot(page, 'attacked', tmp_path)

    cell = explorer.locator('.widget-gridbox button').first
    cell.click()                                # of 24 by 16 cells: a button stands for four, and picks the last of them
    wait_for(page, lambda: 'what cell (1, 1) sees' in explorer.inner_text(), 'the field of the clicked cell')
    (tmp_path / 'notes.txt').write_text('no picture')
    with page.expect_file_chooser() as chooser: explorer.get_by_role('button', name='your own picture').click()
    chooser.value.set_files(tmp_path / 'notes.txt')
    wait_for(page, lambda: 'notes.txt is not an image' in explorer.inner_text(), 'the refusal')
    shoot(page, 'refused', tmp_path)

    page.set_viewport_size(dict(width=900, height=1000))          # beside the list of files little room is left
    inside = """all => all.every(e => { const b = e.getBoundingClientRect(), area = e.closest('.jp-OutputArea-output');
        return b.width > 4 && b.right <= area.getBoundingClientRect().right + 1 })"""
    wait_for(page, lambda: explorer.locator('.widget-gridbox button, img.widget-image, select').evaluate_all(inside),
             'every cell, picture and list to be in sight in a narrow window')
    shoot(page, 'narrow', tmp_path)
