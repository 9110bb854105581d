"""What all tests share."""
import signal
import threading

import pytest

# A shell that starts us in the background has Ctrl-C ignored, here and in all that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    "The tree's state first, since a stale export makes later failures misleading; notebooks next."
    order = {'test_repo.py': 0, 'test_notebooks.py': 1}
    items.sort(key=lambda item: order.get(item.path.name, 2))


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
