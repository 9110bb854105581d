"""The explorer in a real browser: JupyterLab opens its notebook, runs it, and a slider moves the picture."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = '08_explorer.ipynb'
PATIENCE = 240           # Seconds for what takes ten on an idle machine
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
TOKEN = 'test'

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture
def lab(tmp_path):
    "JupyterLab on a copy of the notebooks, with settings of its own; its address."
    shutil.copytree(ROOT / 'nbs', tmp_path / 'nbs')
    settings = tmp_path / 'config' / 'labconfig'
    settings.mkdir(parents=True)
    (settings / 'default_setting_overrides.json').write_text(json.dumps({
        '@jupyterlab/apputils-extension:notification':
            {'fetchNews': 'false', 'checkForUpdates': False, 'doNotDisturbMode': True},
        '@jupyterlab/notebook-extension:tracker': {'windowingMode': 'none'}}))     # cells out of sight stay there
    port = free_port()
    own = {f'JUPYTER_{k}_DIR': str(tmp_path / k.lower()) for k in ('CONFIG', 'DATA', 'RUNTIME')}
    env = os.environ | own | dict(PYTHONPATH=str(ROOT), JUPYTER_PREFER_ENV_PATH='1', IPYTHONDIR=str(tmp_path / 'ipython'),
                                  JUPYTERLAB_SETTINGS_DIR=str(tmp_path / 'settings'),
                                  JUPYTERLAB_WORKSPACES_DIR=str(tmp_path / 'workspaces'))
    env.pop('IN_TEST', None)
    command = [sys.executable, '-m', 'jupyterlab', str(tmp_path / 'nbs'), '--no-browser', '--allow-root',
               f'--port={port}', '--ServerApp.port_retries=0', '--ip=127.0.0.1',
               f'--IdentityProvider.token={TOKEN}', '--LabApp.news_url=None']
    with (tmp_path / 'lab.log').open('w') as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True)
    address = f'http://127.0.0.1:{port}'
    try:
        until(lambda: answers(f'{address}/api/status'), process, tmp_path / 'lab.log')
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try: process.wait(30)
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)


def ask(url, data=None):
    "The JSON that JupyterLab's own interface answers, past any proxy."
    request = urllib.request.Request(f'{url}?token={TOKEN}', data and json.dumps(data).encode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=PATIENCE if data else 5) as answer: return json.load(answer)


def answers(url):
    try: return bool(ask(url))
    except (OSError, urllib.error.URLError): return False


def until(ready, process, log):
    end = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None and time.monotonic() < end, f'JupyterLab did not start:\n{log.read_text()[-3000:]}'
        time.sleep(.3)


@pytest.fixture
def page(tmp_path):
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    if CHROMIUM is None: pytest.skip('no chromium here (on Debian: apt-get install chromium)')
    with playwright.sync_playwright() as p:
        try: browser = p.chromium.launch(executable_path=CHROMIUM,
                                         args=['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'])
        except playwright.Error as e: pytest.skip(f'chromium does not start: {str(e).splitlines()[0]}')
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        page.set_default_timeout(PATIENCE * 1000)
        yield page
        browser.close()


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


def wait_for(page, test, what):
    end = time.monotonic() + PATIENCE
    while not test():
        assert time.monotonic() < end, f'waited in vain for {what}'
        page.wait_for_timeout(200)


def start_kernel(lab):
    "Start the notebook's kernel, which the page then finds: on a busy machine the page tires of waiting and asks."
    session = ask(f'{lab}/api/sessions', dict(path=NOTEBOOK, name=NOTEBOOK, type='notebook', kernel=dict(name='python3')))
    return session['kernel']['id']


def run_all(page):
    "Run every cell, and wait until the last has a number; no cell may fail."
    prompts = page.locator('.jp-Notebook .jp-CodeCell .jp-InputPrompt')
    failed = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    dialog = page.locator('dialog.jp-Dialog')
    done = lambda: all(re.fullmatch(r'\[\d+\]:', text) for text in prompts.all_inner_texts())
    for item in 'Run', 'Run All Cells': page.get_by_role('menuitem', name=item, exact=True).click()
    wait_for(page, lambda: failed.count() or dialog.count() or done(), 'the last cell')
    assert not dialog.count(), f'JupyterLab asks: {dialog.first.inner_text()}'
    assert not failed.count(), failed.first.inner_text()[-1000:]


def test_a_slider_moves_the_picture(page, lab, tmp_path):
    kernel = start_kernel(lab)
    page.goto(f'{lab}/lab/tree/{NOTEBOOK}?token={TOKEN}&reset')
    page.locator('.jp-Notebook').wait_for()
    wait_for(page, lambda: ask(f'{lab}/api/kernels/{kernel}')['connections'], 'the page to find its kernel')
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
    cell.click()
    wait_for(page, lambda: 'what cell (0, 0) sees' in explorer.inner_text(), 'the field of the clicked cell')
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
