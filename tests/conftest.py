"""What all tests share."""
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from children import end_all, end_with_make, started

ROOT = Path(__file__).resolve().parent.parent

# One thread for each process: the longest notebook runs beside the other tests, and threads that wait for each other
# on busy cores take ten times as long.
os.environ.setdefault('OMP_NUM_THREADS', '1')

# A shell that starts us in the background has Ctrl-C ignored, here and in all that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def end(signum, frame):
    "In good order, so that fixtures clean up; and at once, so that no child keeps a core busy."
    if os.getpid() != US: os._exit(128 + signum)                   # a fork of us, which inherits this
    for other in ENDING: signal.signal(other, signal.SIG_IGN)      # make sends it on, after the shell did
    end_all()
    pytest.exit(f'ended by {signal.Signals(signum).name}', 128 + signum)


US = os.getpid()
ENDING = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) == signal.SIG_DFL]
for signum in ENDING: signal.signal(signum, end)
end_with_make()


def pytest_keyboard_interrupt(): end_all()


@pytest.hookimpl(trylast=True)      # what -k and -m leave out is gone by then, and --random-order has shuffled
def pytest_collection_modifyitems(config, items):
    "The tree's state first, since a stale export makes later failures misleading; notebooks next, the longest last."
    order = {'test_repo.py': 0, 'test_notebooks.py': 1}
    if config.getoption('random_order_enabled', False): order = {}
    items.sort(key=lambda item: 3 if item.get_closest_marker('beside') else order.get(item.path.name, 2))
    run_whole = {item.callspec.id for item in items if item.name.startswith('test_run_all[')}
    if any(name.startswith('workshop/') for name in run_whole): run_whole.add('workshop')
    for item in items:
        if item.name.startswith('test_notebook[') and item.callspec.id in run_whole:
            item.add_marker(pytest.mark.skip('test_run_all runs the same cells, and those left out here'))


@pytest.fixture(scope='session', autouse=True)
def types(request, tmp_path_factory):
    "The type checker, if a test asks for it: it begins with the first test, and is done long before it is asked."
    if not any(item.name == 'test_types' for item in request.session.items): return (yield None)
    command = [sys.executable, '-m', 'mypy', '--cache-dir', str(tmp_path_factory.mktemp('types'))]
    with started(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process: yield process


@pytest.fixture(scope='session', autouse=True)
def beside(request, tmp_path_factory):
    "What the notebooks in the second lane will have found. Here, not in their file: it begins with the first test of all."
    if not any(item.get_closest_marker('beside') for item in request.session.items): return (yield {})
    from test_notebooks import second_lane
    with second_lane(request.session.items, tmp_path_factory.mktemp('beside')) as found: yield found


@pytest.fixture
def server(monkeypatch):
    "A server on this machine; how it answers is in its attributes."
    from helpers import Server                    # not above: it needs ltpa, and test_repo.py comes first
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    server = Server()
    threading.Thread(target=server.serve_forever, args=(.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ltpa(capsys):
    "Runs the command in this process: exit code, output, errors."
    from ltpa.cli import main                     # not above: test_repo.py comes first
    def run(*argv):
        try: code = main([str(a) for a in argv])
        except SystemExit as e: code = e.code
        return code, *capsys.readouterr()
    return run
