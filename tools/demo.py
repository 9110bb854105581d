#!/usr/bin/env python3
"""A network in the browser, as one page that opens by double click: build/demo/index.html.

    python tools/demo.py          # or `make demo`; needs npm the first time, for onnxruntime-web

The page holds the network as ONNX, the program that runs it, and the bundled photographs. It fetches nothing. Its sources
lie in tools/demo/; what it has to know of the library (sides, limits, colors) is read from there when it is built.
"""
import base64
import gzip
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import PIL
import torch
import torch.nn as nn
from torch.export import Dim
from torch.fx.experimental import _config as shapes

from ltpa import load_pretrained
from ltpa.explorer import HEAT, PHOTOGRAPH_SIDE, heated
from ltpa.export import TOLERANCE, difference, packages, plain, trial
from ltpa.files import write_atomic
from ltpa.foreign import EVEN, FEW
from ltpa.formats import OPSET
from ltpa.maps import COLORMAP, MOST_PIXELS, trained_fit, trained_side
from ltpa.names import USUAL_NETWORK
from ltpa.photographs import about_photographs, photograph

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / 'tools' / 'demo'
CACHE, PAGE = ROOT / 'build' / 'demo-npm', ROOT / 'build' / 'demo' / 'index.html'
MOST_BYTES = 25 * 10**6
SIDES = 64, 96, 128               # beside that of the training
PROGRAM = 'onnxruntime-web'
DIST = f'node_modules/{PROGRAM}/dist'
NO_NPM = 'npm is missing: install it (on Debian or Ubuntu: apt-get install npm; elsewhere from nodejs.org), then repeat'


class Switched(nn.Module):
    "A network of ours whose temperature and maps can be changed from outside: made of its own parts, no copy of them"
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images, temperature, uniform):
        """Logits and maps, by name, of `images` [1,3,H,W].

        `temperature` [1] multiplies the network's own; where `uniform` [levels] is above 0, all cells of the level weigh
        the same.
        """
        net = self.net
        l, g = net.forward_features(images)
        with heated(net, temperature): out = net.forward_attention(l, g)
        maps = [torch.where(u > 0, torch.ones_like(a) / a[0].numel(), a) for a, u in zip(out.maps, uniform.unbind())]
        return {'logits': net.pool(l, maps).logits} | {f'map_{k}': a for k, a in enumerate(maps, 1)}


INPUTS = 'images', 'temperature', 'uniform'


def tried(levels):
    "Inputs to compare at: sizes, temperatures and switches"
    cases = ((32, 32), 1, ()), ((64, 96), .5, ()), ((96, 64), 8, (1,)), ((128, 128), 1, range(levels))
    for size, t, flat in cases:
        yield trial(1, *size), torch.tensor([float(t)]), torch.tensor([float(k in flat) for k in range(levels)])


def as_onnx(net):
    "The bytes of a `Switched` as ONNX, for one picture of any size that the network takes"
    packages('onnx', 'onnx', 'onnxscript')
    levels = len(net.net.attention)
    inputs = trial(1, 64, 96), torch.ones(1), torch.zeros(levels)
    free = dict(images={2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, temperature=None, uniform=None)
    with torch.no_grad(), shapes.patch(backed_size_oblivious=True):
        program = torch.export.export(net, inputs, dynamic_shapes=free)
        names = ['logits', *(f'map_{k}' for k in range(1, levels + 1))]
        proto = torch.onnx.export(program, input_names=[*INPUTS], output_names=names, opset_version=OPSET, verbose=False,
                                  external_data=False).model_proto
    graph = proto.graph
    for part in *graph.node, *graph.input, *graph.output, *graph.value_info:        # lines of code, with paths
        for field in 'metadata_props', 'doc_string': part.ClearField(field)
    return proto.SerializeToString(deterministic=True)


def checked(data, net):
    "`data` again, if it computes what the network does"
    [runtime] = packages('onnx', 'onnxruntime')
    session = runtime.InferenceSession(data, providers=['CPUExecutionProvider'])
    for case in tried(len(net.net.attention)):
        with torch.no_grad(): expected = net(*case)
        got = session.run([*expected], {k: v.numpy() for k, v in zip(INPUTS, case)})
        if not (apart := difference(dict(zip(expected, got)), expected)) <= TOLERANCE:
            sys.exit(f'the ONNX file differs from the network by {apart:.1e}; expected at most {TOLERANCE:g}')
    return data


def network():
    "The network of the page, in eval mode"
    return Switched(plain(load_pretrained(USUAL_NETWORK)).net).eval()


def fetched():
    "The folder with onnxruntime-web in the version of tools/demo/package.json; npm brings it once"
    lock = (SOURCE / 'package-lock.json').read_bytes()
    done = CACHE / 'done.json'
    if done.is_file() and done.read_bytes() == lock: return CACHE / DIST
    if not (npm := shutil.which('npm')): sys.exit(NO_NPM)
    shutil.rmtree(CACHE, ignore_errors=True)
    CACHE.mkdir(parents=True)
    for name in 'package.json', 'package-lock.json': shutil.copy(SOURCE / name, CACHE)
    print(f'Fetching {PROGRAM} by npm', flush=True)
    ran = subprocess.run([npm, 'ci', '--ignore-scripts', '--no-audit', '--no-fund'], cwd=CACHE, capture_output=True, text=True)
    if ran.returncode: sys.exit(f'npm could not fetch {PROGRAM}, for this reason; mend it and repeat:\n{ran.stderr.strip()[-1500:]}')
    write_atomic(done, lock)
    return CACHE / DIST


def runtime(folder):
    "The script that gives the page `ort`, and the WebAssembly under it: one thread of the CPU, nothing more"
    script = (folder / 'ort.wasm.bundle.min.mjs').read_text(encoding='utf-8')
    found = re.search(r'export\{([^{}]*)\};\s*(?://# sourceMappingURL=\S*\s*)?$', script)
    if not found or '<!--' in script: sys.exit(f'{PROGRAM} is of another form than expected: see `runtime` in tools/demo.py')
    pairs = (p.split(' as ') for p in found[1].split(','))
    names = ','.join(f'{p[-1]}:{p[0]}' for p in pairs if p[-1] in ('InferenceSession', 'Tensor', 'env'))
    script = script[:found.start()] + f'globalThis.ort={{{names}}};'        # a page from a file can import no other file
    return script.replace('</script', r'<\/script'), (folder / 'ort-wasm-simd-threaded.wasm').read_bytes()


def as_text(data): return base64.b64encode(data).decode('ascii')


def packed(data): return as_text(gzip.compress(data, 9, mtime=0))


def colors():
    "RGB of the 256 colors that weights are drawn in"
    from matplotlib import colormaps
    return bytes((colormaps[COLORMAP](range(256))[:, :3] * 255).round().astype('uint8'))


def facts(net):
    "What the page has to know of the network and the library"
    assert trained_fit(net) == 'middle', 'the page scales pictures in this way alone'
    about = about_photographs()
    names = sorted(about, key=lambda name: name != 'cat')                    # as in the explorer
    return dict(network=USUAL_NETWORK, classes=net.info['classes'], levels=len(net.attention), stride=net.stride,
                trained=trained_side(net), usual=PHOTOGRAPH_SIDE, sides=SIDES, heat=HEAT, most=MOST_PIXELS, few=FEW, even=EVEN,
                quantiles=net.info['foreign']['quantiles'],
                columns_first=int(PIL.__version__.split('.')[0]) >= 13, colors=as_text(colors()),
                pictures=[about[name]._asdict() | dict(name=name, file=as_text(photograph(name).read_bytes())) for name in names])


def page():
    "All of the page, as one text"
    script, wasm = runtime(fetched())
    net = network()
    source = {end: (SOURCE / f'page.{end}').read_text(encoding='utf-8') for end in ('html', 'css', 'js')}
    version = json.loads((SOURCE / 'package.json').read_text(encoding='utf-8'))['dependencies'][PROGRAM]
    parts = dict(css=source['css'], js=source['js'], version=version, ort=script, wasm=packed(wasm), network=packed(checked(as_onnx(net), net)),
                 facts=json.dumps(facts(net.net)).replace('</', r'<\/'))
    return re.sub(r'\{\{(\w+)\}\}', lambda m: parts[m[1]], source['html'])


def main():
    begin = time.monotonic()
    data = page().encode('utf-8')
    if len(data) > MOST_BYTES: sys.exit(f'the page would have {len(data) / 1e6:.1f} MB; expected at most {MOST_BYTES / 1e6:.0f}')
    write_atomic(PAGE, data)
    print(f'{PAGE.relative_to(ROOT)}: {USUAL_NETWORK} in one page, {len(data) / 1e6:.1f} MB, {time.monotonic() - begin:.0f} s: open it '
          'by double click')


if __name__ == '__main__': main()
