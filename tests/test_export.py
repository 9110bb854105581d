"""Networks as files for other programs: what they compute, what they say, and what is refused."""
import json
import logging
import random as python_random
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn as nn
from helpers import MODELS, differing, one_line, refuses, tiny_net

import ltpa.export
from ltpa.data import ASSETS, ClutteredFashion
from ltpa.export import MOST_ONNX, TOLERANCE, Plain, difference, export_network, plain, traced, trial
from ltpa.formats import OPSET
from ltpa.models import Net, create_model, list_pretrained, load_pretrained, save_weights

PRETRAINED = list_pretrained()
FIRST = 'cluttered_fashion/vgg_att3_concat_pc'


def session(path): return onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])


def texts(path): return session(path).get_modelmeta().custom_metadata_map


def of_network(net, x):
    "Logits and maps of a network in eval mode, as arrays."
    with torch.no_grad(): out = net.eval()(x)
    return [v.numpy() for v in (out.logits, *out.maps)]


def apart(got, want):
    "The largest difference, relative to the largest value, of any picture in any output."
    assert [a.shape for a in got] == [a.shape for a in want]
    flat = lambda a: np.abs(a.reshape(len(a), -1)).max(1)
    return max(float((flat(a - b) / flat(b)).max()) for a, b in zip(got, want))


class Odd(Net):
    "Networks that are hard to export: what `how` says is done to the logits."
    stride = 4
    def __init__(self, how, num_classes=3):
        super().__init__()
        self.how, self.conv = how, nn.Conv2d(3, num_classes, 3, padding=1)
        self.places = nn.Parameter(torch.rand(1, num_classes, 32, 32))
    def features(self, x): return (x.mean(1).sigmoid(),), (x,)
    def classify(self, descriptors): return self.how(self, descriptors[0], self.conv(descriptors[0]).mean((2, 3)))


def simple(): return Odd(lambda net, x, y: y)


def scored():
    "A network with scores like those of pc: a matrix, transposed, times a vector."
    return Odd(lambda net, x, y: y + (net.conv(x).flatten(2).transpose(1, 2) @ net.places[0, :, 0, 0])[:, :3])


@pytest.mark.parametrize('name', [n if n == FIRST else pytest.param(n, marks=pytest.mark.whole) for n in PRETRAINED])
def test_trained_networks_agree_in_onnx(name, tmp_path):
    "Logits and maps, real pictures and noise, batches of 1 and 7, three sizes."
    net, path = load_pretrained(name), tmp_path / 'n.onnx'
    done, run = export_network(name, path), session(path)
    s, photos = net.stride, ClutteredFashion('test', n=7).render()[0].float() / 255
    worst = 0.
    for h, w in (32, 32), (96, 64), (s, 3 * s):
        for n in 1, 7:
            noise = torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(n))
            for x in (noise, nn.functional.interpolate(photos[:n], (h, w), mode='bilinear')):
                worst = max(worst, apart(run.run(None, dict(images=x.numpy())), of_network(net, x)))
    print(f'{name}: {worst:.1e} at most; export says {done.difference:.1e} at {done.tried}')
    assert worst < 1e-4 and done.difference <= TOLERANCE and done.sizes == f'any multiple of {s}' and len(done.tried) == 2


SMALL = {name: {} if name == 'vgg' or name.startswith('resnet') else dict(early_pools=1) for name in MODELS}
SWITCHED = [(name, dict(preset=p)) for p in ('paper', 'official_code', 'modern') for name in ('vgg_att3_indep_pc', 'vgg_pan', 'resnet164_att2_concat_dp')]
SWITCHED += [('vgg_att3_concat_pc', kw) for kw in (dict(norm='sigmoid'), dict(norm='sigmoid', project='l'), dict(project='l'), dict(layout='cub'))]
SWITCHED += [('vgg_att3_concat_dp', dict(project='l', temperature=8.)), ('vgg_gap', dict(color='yuv_lcn'))]
QUICK = 'vgg_pan', 'vgg_att3_indep_pc', 'resnet164_att2_concat_uniform'


def case(name, kw, quick=()):
    label = '-'.join([name, *(str(v) for v in kw.values())])
    return pytest.param(name, kw, id=label, marks=() if name in quick else pytest.mark.whole)


@pytest.mark.parametrize('name, kw', [*(case(n, kw, QUICK) for n, kw in SMALL.items()), *(case(n, kw) for n, kw in SWITCHED)])
def test_any_batch_and_size_as_a_program(name, kw):
    "Of each architecture, with each switch: the same in every bit, at sizes that were not tried before."
    t = traced(tiny_net(name, **kw))
    s, program = t.net.net.stride, t.program.module()
    assert t.free, t.why
    for n, h, w in (1, s, s), (5, s, 3 * s), (2, 3 * s, s), (9, 2 * s, 2 * s):
        x = trial(n, h, w)
        with torch.no_grad(): assert difference(program(x), t.net(x)) == 0


@pytest.mark.whole
@pytest.mark.parametrize('name, kw', [*(case(n, kw) for n, kw in SMALL.items()), *(case(n, kw) for n, kw in SWITCHED)])
def test_every_architecture_in_onnx(name, kw, tmp_path):
    net, path = tiny_net(name, **kw), tmp_path / 'n.onnx'
    export_network(net, path)
    x = trial(3, net.stride, 2 * net.stride)
    assert apart(session(path).run(None, dict(images=x.numpy())), of_network(net, x)) < 1e-4


def test_a_program_read_again_is_the_same_in_every_bit(tmp_path):
    net, path, about = tiny_net('vgg_att2_indep_dp', early_pools=1), tmp_path / 'n.pt2', {'ltpa.json': ''}
    net.info = dict(classes=['cat', 'ünï', '<b>'])
    done = export_network(net, path)
    program = torch.export.load(path, extra_files=about).module()
    x = trial(4, 32, 96)
    out = program(x)
    assert [*out] == done.outputs == ['logits', 'map_1', 'map_2']
    assert apart([v.numpy() for v in out.values()], of_network(net, x)) == done.difference == 0
    told = json.loads(about['ltpa.json'])
    assert told['classes'] == ['cat', 'ünï', '<b>'] and told['network'] == net.name and told['stride'] == 32


def test_what_an_onnx_says_of_itself(tmp_path):
    net, path = simple(), tmp_path / 'n.onnx'
    net.info = dict(classes=['cat', 'two\nlines', '猫'], source=dict(source='/home/ann/photos', size=64, fit='whole'))
    export_network(net, path, opset=20)
    told, model = texts(path), onnx.load(path)
    assert json.loads(told['classes']) == net.info['classes'] and told['opset'] == '20' and told['network'] == net.name
    assert told['stride'] == '4' and 'RGB in 0..1' in told['input'] and 'normalizes inside' in told['input']
    assert json.loads(told['trained_on']) == dict(size=64, fit='whole')
    assert model.opset_import[0].version == 20
    axes = lambda v: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
    assert axes(model.graph.input[0]) == ['batch', 3, 'height', 'width'] and model.graph.input[0].name == 'images'
    assert [v.name for v in model.graph.output] == ['logits', 'map_1'] and axes(model.graph.output[0]) == ['batch', 3]
    assert axes(model.graph.output[1]) == ['batch', 'height', 'width']


@pytest.mark.parametrize('ending', ['onnx', 'pt2'])
def test_a_file_holds_nothing_of_the_machine_and_is_the_same_twice(ending, tmp_path):
    net = simple()
    net.info = dict(source=dict(source=str(tmp_path / 'photos'), size=32))
    one, two = (export_network(net, tmp_path / f'{k}.{ending}').path.read_bytes() for k in 'ab')
    assert one == two
    for path in (ltpa.__file__.removesuffix('/__init__.py'), str(tmp_path), sys.prefix, 'models.py', 'test_export.py'): assert path.encode() not in one


@pytest.mark.parametrize('ending', [pytest.param('onnx', marks=pytest.mark.whole), 'pt2'])
def test_nothing_of_the_network_or_the_process_is_changed(ending, tmp_path):
    net = tiny_net('vgg_att1_pc', dropout=True).train()
    net.trunk.eval()
    net.head.linear[0].weight.requires_grad_(False)
    net(torch.rand(4, 3, 32, 32)).logits.sum().backward()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    rest = lambda: ([m.training for m in net.modules()], [p.requires_grad for p in net.parameters()], [id(p.grad) for p in net.parameters()],
                    torch.get_rng_state().tolist(), python_random.getstate(), np.random.get_state()[1].tolist(), torch.is_grad_enabled(), torch.get_default_dtype(),
                    torch.get_num_threads(), ltpa.export.shapes.backed_size_oblivious, logging.getLogger('onnxscript').level, logging.root.level)
    before = rest()
    export_network(net, tmp_path / f'n.{ending}')
    assert rest() == before and not differing(state, net.state_dict())


@pytest.mark.parametrize('kind', [torch.bfloat16, torch.float16, torch.float64])
def test_of_whatever_type_the_network_is_the_file_computes_in_float32(kind, tmp_path):
    net = simple().to(kind)
    export_network(net, tmp_path / 'n.pt2')
    assert net.mean.dtype == kind
    x = trial(2, 32, 32)
    out = torch.export.load(tmp_path / 'n.pt2').module()(x)
    assert out['logits'].dtype == torch.float32 and apart([v.numpy() for v in out.values()], of_network(net.float(), x)) == 0


def test_a_compiled_network_is_exported_as_what_it_was_made_from():
    assert traced(torch.compile(simple())).free


def test_a_network_with_places_of_its_own_keeps_its_size(tmp_path):
    def with_places(net, x, y): return y + (net.conv(x) * net.places).mean((2, 3))
    net = Odd(with_places)
    done = export_network(net, tmp_path / 'n.onnx')
    assert done.sizes == '32x32 alone' and done.why and done.tried == [(32, 32)]
    assert session(tmp_path / 'n.onnx').get_inputs()[0].shape == ['batch', 3, 32, 32]
    x = trial(5, 32, 32)
    assert apart(session(done.path).run(None, dict(images=x.numpy())), of_network(net, x)) < 1e-4


@pytest.mark.parametrize('asked, size', [(None, (16, 16)), (16, (16, 16)), ((8, 24), None)])
def test_a_size_can_be_fixed(asked, size, tmp_path):
    net = simple()
    if asked is None: net.fixed_size = 16
    done = export_network(net, tmp_path / 'n.pt2', asked)
    assert done.tried == [size or asked] and done.sizes == '{}x{} alone'.format(*done.tried[0])
    with pytest.raises(AssertionError): torch.export.load(done.path).module()(trial(2, 32, 32))


@pytest.mark.parametrize('how, words', [
    (lambda net, x, y: y if len(x) == 2 else y + 1, ('Odd cannot be made a program', 'use its weights')),
    (lambda net, x, y: y * float(x.sum()), ('Odd cannot be made a program',)),
    (lambda net, x, y: y * float('nan'), ('logits', 'NaN')), (lambda net, x, y: y / 0, ('logits', 'NaN')),
    (lambda net, x, y: y @ torch.rand(7, 2), ('Odd takes no pictures of 32x32', 'give size'))])
def test_what_cannot_be_a_program_is_said_in_a_line(how, words, tmp_path):
    with refuses(*words): export_network(Odd(how), tmp_path / 'n.pt2')
    assert not [*tmp_path.iterdir()]


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    path, net = tmp_path / 'n.onnx', scored()
    export_network(net, path)
    good = path.read_bytes()
    def wrong(a, b):
        from onnxscript import opset18 as op
        return op.MatMul(a, b) if len(b.shape) > 1 else op.Squeeze(op.MatMul(a, op.Unsqueeze(op.Neg(b), [1])), [-1])
    monkeypatch.setattr(ltpa.export, '_matmul', wrong)
    with refuses(path, 'its numbers would differ', 'Odd', 'was not written'): export_network(net, path)
    assert path.read_bytes() == good and [*tmp_path.iterdir()] == [path]


def test_a_matrix_times_a_vector_is_right_in_onnxruntime(tmp_path):
    "As the exporter itself would write it, onnxruntime 1.32 computes something else, when it has transposed the matrix."
    net = scored()
    export_network(net, tmp_path / 'n.onnx')
    x = trial(3, 32, 64)
    assert apart(session(tmp_path / 'n.onnx').run(None, dict(images=x.numpy())), of_network(net, x)) < 1e-5


def test_difference():
    want = dict(a=torch.tensor([[1., 2.], [10., 20.]]))
    assert difference(dict(a=want['a'].numpy()), want) == 0
    assert difference(dict(a=want['a'] + torch.tensor([[0., .02], [0., 0.]])), want) == pytest.approx(.01)
    assert difference(dict(a=want['a'] + torch.tensor([[0., 0.], [0., .02]])), want) == pytest.approx(.001, rel=1e-4)
    for odd in (want['a'][:1], want['a'][:, :1], want['a'] / 0, want['a'] * float('nan')): assert difference(dict(a=odd), want) == float('inf')


@pytest.mark.parametrize('name', ['onnx', 'onnxscript', 'onnxruntime'])
def test_a_missing_package_gives_its_pip_line(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with refuses(f'{name} is missing', "pip install 'ltpa[onnx]'"): export_network(simple(), tmp_path / 'n.onnx')
    assert not [*tmp_path.iterdir()]
    assert export_network(simple(), tmp_path / 'n.pt2').path.exists()                       # which needs none of them


@pytest.mark.parametrize('kw, words', [
    (dict(path='n.pb'), ('n.pb', ".pb'", '.onnx or .pt2')), (dict(path='n'), ('n', '.onnx or .pt2')),
    *((dict(opset=k), (f'opset {k!r}', f'at least {OPSET}')) for k in (17, 0, -1, True, 18.5, '18', 999)),
    (dict(size=33), ('33x33', 'multiples of 16')), (dict(size=0), ('image size 0',)), (dict(size=(32, 32, 32)), ('image size (32, 32, 32)',)),
    (dict(size='big'), ("image size 'big'",)), (dict(net='nobody'), ("unknown network 'nobody'",)), (dict(net='n.safetensors'), ('no such file',))])
def test_refusals(kw, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refuses(*words): export_network(**dict(net=tiny_net(), path='n.onnx') | kw)
    assert not [*tmp_path.iterdir()]


def test_onnx_holds_two_gigabytes(tmp_path, monkeypatch):
    assert MOST_ONNX == 2**31
    monkeypatch.setattr(ltpa.export, 'MOST_ONNX', 1000)
    with refuses('bytes of weights', 'less than 1,000', 'format torch'): export_network(simple(), tmp_path / 'n.onnx')


def test_plain_copies():
    net = tiny_net('vgg_att1_pc').train()
    copy = plain(net)
    assert isinstance(copy, Plain) and net.training and not any(m.training for m in copy.modules())
    assert not {id(p) for p in net.parameters()} & {id(p) for p in copy.parameters()}


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['onnx', pytest.param('torch', marks=pytest.mark.whole)])
def test_the_command_and_the_lines_that_it_shows(kind, ltpa, tmp_path, monkeypatch):
    "They run where there is no ltpa, on a photograph, and give what the network says."
    monkeypatch.chdir(tmp_path)
    code, out, err = ltpa('export', FIRST, '--format', kind)
    assert (code, err) == (0, '') and all(word in out for word in ('logits, map_1, map_2, map_3', 'any multiple of 32', '32x32 and 96x64'))
    assert ('ONNX, opset 18' in out) == (kind == 'onnx')
    file, = tmp_path.iterdir()
    assert file.name == 'cluttered_fashion-vgg_att3_concat_pc' + dict(onnx='.onnx', torch='.pt2')[kind]
    script = '\n'.join(line[4:] for line in out.partition('To go on:')[2].splitlines() if line)
    assert script.count('\n') == 5
    (tmp_path / 'photo.jpg').write_bytes((ASSETS / 'cluttered_fashion/photo_chelsea.jpg').read_bytes())
    done = subprocess.run([sys.executable, '-c', f'import sys; sys.modules["ltpa"] = None\n{script}'], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    from PIL import Image
    photo = np.asarray(Image.open('photo.jpg').convert('RGB').resize((32, 32)), np.float32).transpose(2, 0, 1)[None] / 255
    net = load_pretrained(FIRST)
    best = of_network(net, torch.from_numpy(photo))[0][0].argsort()[::-1][:3]
    assert str([net.info['classes'][k] for k in best]) in done.stdout and '[(1, 16, 16), (1, 8, 8), (1, 4, 4)]' in done.stdout


@pytest.mark.parametrize('args, words', [
    (['x'], ("unknown network 'x'",)), ([FIRST, '--format', 'tf'], ('invalid choice', 'onnx')), ([FIRST, '--opset', '3'], ('--opset 3', '18 or more')),
    ([FIRST, '--opset', '18', '--format', 'torch'], ('--opset 18', 'expected onnx')), ([FIRST, '--license', 'mit'], ('--license mit', 'expected hub')),
    ([FIRST, '--image-size', '32', '--format', 'hub'], ('--image-size 32', 'onnx or torch')), ([FIRST, '--image-size', '5000'], ('--image-size 5000', 'at most 2048')),
    ([FIRST, '--image-size', '33'], ('33x33', 'multiples of 32')), ([FIRST, '--out', 'a.pt2', '--format', 'onnx'], ('--out a.pt2', 'ends in .onnx')),
    ([FIRST, '--out', 'a'], ('--out a', 'ends in .onnx')), ([], ('required',))])
def test_the_command_refuses_in_a_line(args, words, ltpa, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = ltpa('export', *args)
    assert (code, out) == (2, '') and not [*tmp_path.iterdir()]
    one_line(err.strip(), *words)


def test_the_command_names_what_it_writes(ltpa, tmp_path, monkeypatch):
    from ltpa.formats import called
    monkeypatch.chdir(tmp_path)
    for path in 'runs/mine/weights.safetensors', 'a.safetensors': save_weights(create_model('vgg_gap', 3, width=1/32, early_pools=2), path)
    for given, name in ('runs/mine', 'mine'), ('runs/mine/weights.safetensors', 'mine'), ('a.safetensors', 'a'), (FIRST, FIRST.replace('/', '-')), ('', 'network'):
        assert called(given) == name
    assert ltpa('export', 'a.safetensors', '--out', 'b.pt2', '--image-size', '16')[0] == 0 and (tmp_path / 'b.pt2').exists()


def test_what_cannot_be_written_is_said_in_a_line(tmp_path):
    (tmp_path / 'n.pt2').mkdir()
    with refuses('cannot write', 'it is a folder'): export_network(simple(), tmp_path / 'n.pt2')


@pytest.mark.whole
def test_networks_on_backbones(tmp_path):
    timm = pytest.importorskip('timm')
    from ltpa.backbones import attach
    net = attach(timm.create_model('resnet10t'), num_classes=3, verbose=False)
    done = export_network(net, tmp_path / 'n.onnx')
    assert done.outputs == ['logits', 'map_1', 'map_2'] and done.why == '' and done.difference < 1e-4
    x = trial(2, 96, 64)
    assert apart(session(done.path).run(None, dict(images=x.numpy())), of_network(net, x)) < 1e-4
