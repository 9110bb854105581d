"""A real JupyterLab on a copy of the notebooks, for what opens them in a browser: the browser test and the README's film."""
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOKEN = 'test'
BROWSERS = 'chromium', 'chromium-browser', 'google-chrome', 'chrome'
PATIENCE = 240           # Seconds for what takes ten on an idle machine
# No news, no questions, and cells out of sight stay in the page
SETTINGS = {
    '@jupyterlab/apputils-extension:notification':
        {'fetchNews': 'false', 'checkForUpdates': False, 'doNotDisturbMode': True},
    '@jupyterlab/notebook-extension:tracker': {'windowingMode': 'none'}}


def chromium():
    "The browser of this machine, or None."
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def ask(url, data=None):
    "The JSON that JupyterLab's own interface answers, past any proxy."
    request = urllib.request.Request(f'{url}?token={TOKEN}', data and json.dumps(data).encode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=PATIENCE if data else 5) as answer: return json.load(answer)


def answers(url):
    try: return bool(ask(url))
    except (OSError, urllib.error.URLError): return False


def until(ready, what, alive=lambda: True, sleep=time.sleep):
    "Wait for `ready()`, and say in vain for what, or why not."
    end = time.monotonic() + PATIENCE
    while not ready():
        if not alive() or time.monotonic() > end: raise TimeoutError(f'waited in vain for {what}')
        sleep(.2)


@contextlib.contextmanager
def jupyterlab(folder):
    "JupyterLab on a copy of nbs/ under `folder`, with settings of its own: its address."
    folder = Path(folder)
    shutil.copytree(ROOT / 'nbs', folder / 'nbs')
    settings = folder / 'config' / 'labconfig'
    settings.mkdir(parents=True)
    (settings / 'default_setting_overrides.json').write_text(json.dumps(SETTINGS))
    port = free_port()
    own = {f'JUPYTER_{k}_DIR': str(folder / k.lower()) for k in ('CONFIG', 'DATA', 'RUNTIME')}
    env = os.environ | own | dict(PYTHONPATH=str(ROOT), JUPYTER_PREFER_ENV_PATH='1', IPYTHONDIR=str(folder / 'ipython'),
                                  JUPYTERLAB_SETTINGS_DIR=str(folder / 'settings'),
                                  JUPYTERLAB_WORKSPACES_DIR=str(folder / 'workspaces'))
    env.pop('IN_TEST', None)
    command = [sys.executable, '-m', 'jupyterlab', str(folder / 'nbs'), '--no-browser', '--allow-root',
               f'--port={port}', '--ServerApp.port_retries=0', '--ip=127.0.0.1',
               f'--IdentityProvider.token={TOKEN}', '--LabApp.news_url=None']
    log = folder / 'lab.log'
    with log.open('w') as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
    address = f'http://127.0.0.1:{port}'
    try:
        try: until(lambda: answers(f'{address}/api/status'), 'JupyterLab', lambda: process.poll() is None)
        except TimeoutError as e: raise TimeoutError(f'{e}:\n{log.read_text()[-3000:]}') from None
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try: process.wait(10)
        except subprocess.TimeoutExpired:                    # a kernel was restarted; kernels end with their parent
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def chromium_page(playwright, width=1400, height=1000, **context):
    "An empty page of a headless chromium; `playwright` is what `sync_playwright()` gives."
    browser = playwright.chromium.launch(executable_path=chromium(),
                                         args=['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'])
    try:
        page = browser.new_page(viewport=dict(width=width, height=height), **context)
        page.set_default_timeout(PATIENCE * 1000)
        yield page
    finally: browser.close()


def open_notebook(page, address, name):
    "Open a notebook with its kernel started, which the page then finds: on a busy machine it tires of waiting and asks."
    session = ask(f'{address}/api/sessions', dict(path=name, name=name, type='notebook', kernel=dict(name='python3')))
    page.goto(f'{address}/lab/tree/{name}?token={TOKEN}&reset')
    page.locator('.jp-Notebook').wait_for()
    kernel = f'{address}/api/kernels/{session["kernel"]["id"]}'
    until(lambda: ask(kernel)['connections'], 'the page to find its kernel', sleep=lambda s: page.wait_for_timeout(1000 * s))
