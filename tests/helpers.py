"""What several test files need: refusals, small networks and sets, comparisons of bits."""
import io
import os
import tarfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import pytest
import torch

from ltpa.names import LtpaError
from ltpa.core import keyed_rng, seed_everything
from ltpa.data import ImageSet
from ltpa.models import create_model

MODELS = ['vgg', 'vgg_gap', 'vgg_pan', 'vgg_trunk',
          'vgg_att1_pc', 'vgg_att1_dp', 'vgg_att1_uniform',
          *(f'vgg_att{n}_{combine}_{score}' for n in (2, 3) for combine in ('concat', 'indep')
            for score in ('pc', 'dp', 'uniform')),
          'resnet164', 'resnet164_trunk',
          *(f'resnet164_att2_concat_{score}' for score in ('pc', 'dp', 'uniform'))]
# One of each kind for tests that cost much, and all of them in `make test-all`.
KINDS = {'vgg', 'vgg_gap', 'vgg_pan', 'vgg_att2_indep_dp', 'vgg_att3_concat_pc', 'resnet164_att2_concat_uniform'}
assert KINDS <= {*MODELS}, KINDS - {*MODELS}
EACH = [pytest.param(name, marks=() if name in KINDS else pytest.mark.whole) for name in MODELS]

# For networks this small, and on busy cores, threads that wait for each other cost more than they bring.
torch.set_num_threads(1)


@contextmanager
def refuses(*words):
    "The block must end in one clear line that holds all `words`: the value, what was expected, the way out."
    with pytest.raises(LtpaError) as caught: yield
    one_line(str(caught.value), *words)


def shoot(page, name, folder=None):
    "Keep what the browser's page shows as NAME.png: in `folder`, and where LTPA_SCREENSHOTS says, for a person to look at."
    for place in filter(None, (folder, os.environ.get('LTPA_SCREENSHOTS'))):
        Path(place).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(place) / f'{name}.png')


def one_line(message, *words):
    assert '\n' not in message, f'more than one line:\n{message}'
    lost = [word for word in words if str(word) not in message]
    assert not lost, f'{lost} not in: {message}'


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=keyed_rng('test', seed, shape), dtype=torch.float64).to(dtype)


def pictures(n, size=16, classes=3, name='noise'):
    "Noise, the label in its mean, so that there is something to learn."
    labels = torch.arange(n) % classes
    noise = torch.rand(n, 3, size, size, generator=keyed_rng('pictures', n, size)) * 100
    return ImageSet((noise + 50 * labels[:, None, None, None]).to(torch.uint8), labels,
                    [f'class{k}' for k in range(classes)], name)


def tiny_net(name='vgg_gap', classes=3, seed=0, **kw):
    seed_everything(seed)
    small = dict(depth=11, width=1 / 8) if name.startswith('resnet') else dict(early_pools=2, width=1 / 32)
    return create_model(name, classes, **dict(dropout=False) | small | kw)


def differing(a, b):
    "Names under which two dicts of tensors are not equal in every bit."
    same = lambda x, y: x is not None and y is not None and x.dtype == y.dtype and x.equal(y)
    return [k for k in {**a, **b} if not same(a.get(k), b.get(k))]


def words_id(value):
    "The first word that a message must hold, as the name of a parametrised case."
    return value[0] if isinstance(value, tuple) and value and isinstance(value[0], str) else ''


class Touch:
    "Unpickled, it would make a file."
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), 'w')


class Server(ThreadingHTTPServer):
    "Serves `body` under every address; `asked` holds the Range header of each request."
    body = Random(0).randbytes(100_000)
    ranges = True     # Honour Range headers
    most = None       # Hang up after so many bytes of an answer
    status = 200      # Answer with this instead
    length = True     # Tell the length
    shift = 0         # Say that a part begins so many bytes later than it was asked to
    hold = None       # An event: once all is sent, keep the connection until it is set

    def __init__(self):
        self.asked = []
        super().__init__(('127.0.0.1', 0), Answer)
        self.url = f'http://127.0.0.1:{self.server_port}/set.bin'


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        s = self.server
        s.asked.append(self.headers.get('Range'))
        start = int(s.asked[-1][len('bytes='):-1]) if s.asked[-1] and s.ranges else 0
        if start >= len(s.body): return self.send_error(416)
        if s.status != 200: return self.send_error(s.status)
        self.send_response(206 if start else 200)
        if start:
            first = start + s.shift
            self.send_header('Content-Range', f'bytes {first}-{len(s.body) - 1}/{len(s.body)}')
        if s.length: self.send_header('Content-Length', len(s.body) - start)
        self.end_headers()
        self.wfile.write(s.body[start:][:s.most])
        if s.hold: s.hold.wait(30)

    def log_message(self, *args): pass


def tar(path, *members, **options):
    "A tar of members (name, content, attributes); compressed unless its name ends in .tar."
    with tarfile.open(path, 'w' if path.suffix == '.tar' else 'w:gz', **options) as t:
        for name, content, *more in members:
            m = tarfile.TarInfo(name)
            m.size = len(content)
            for k, v in (more[0] if more else {}).items(): setattr(m, k, v)
            t.addfile(m, io.BytesIO(content))
    return path
