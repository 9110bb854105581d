"""Weights, checkpoints, arrays, results and numbers that somebody else has made: one line, soon, in little memory."""
import inspect
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path
from random import Random

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import differing, one_line, pictures, refuses, tiny_net, words_id

import ltpa.files
import ltpa.weights
from ltpa.arrays import load_arrays
from ltpa.checkpoints import Checkpoint, load_checkpoint, read_checkpoint, save_checkpoint
from ltpa.data import ClutteredFashion, ImageSet, Loader
from ltpa.maps import class_names, fit_side, trained_side
from ltpa.models import create_model, init_from, list_pretrained, load_pretrained, load_weights, save_weights
from ltpa.names import LtpaError, get_recipe
from ltpa.published import open_data
from ltpa.recipes import plan
from ltpa.runs import evaluate_weights
from ltpa.studies import compared, evaluated, paired, stored, summarize
from ltpa.training import Learner
from ltpa.weights import read_tensors, write_tensors

MEGA = 'a' * 10**6
ODD = [None, [], {}, 'x', '', 5, -1, 0, 1.5, True, False, math.nan, math.inf, 1e308, 10**30, 2**63, -2**70, MEGA,
    ['a', 1],
       {'a': {}}, ['a'] * 3, [MEGA, 'b', 'c'], 'two\nlines', '\x1b[31mred', '\ud800', [[[[[[]]]]]], {'name': 'vgg'}]


def forged(path, state, text, digest=None, safe=safetensors.torch.save):
    "A file with this description, whatever it is, and a right digest."
    digest = ltpa.weights._digest(state, text) if digest is None else digest
    path.write_bytes(safe({k: v.contiguous() for k, v in state.items()}, metadata=dict(ltpa=text, digest=digest)))
    return path


def learner(**changes):
    recipe = get_recipe('fast', **dict(epochs=2, batch_size=8, precision='fp16') | changes)
    return Learner(tiny_net('vgg_att1_dp', dropout=True), pictures(16, 32), recipe)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "The parts of a file of weights and of a checkpoint after two of four steps."
    folder, half = tmp_path_factory.mktemp('good'), learner()
    half.recipe = get_recipe('fast', epochs=1, batch_size=8, precision='fp16')
    half.scaler = torch.amp.GradScaler('cpu', init_scale=2.)           # so that no step is left out
    half.fit()
    half.recipe = learner().recipe
    how = dict(source=dict(source='nowhere', size=32, scale=None))
    save_checkpoint(half, folder / 'c.safetensors', **how)
    save_weights(half.net, folder / 'w.safetensors', classes=['a', 'b', 'c'], recipe=asdict(half.recipe), seed=0,
        **how)
    return {k: read_tensors(folder / f'{k}.safetensors') for k in 'wc'}


def use(path, which='w'):
    "All that looks at a file of weights or a checkpoint; the first refusal, in one short line that names it."
    def all_of_it():
        net = load_weights(path)
        fit_side(torch.zeros(3, 40, 40, dtype=torch.uint8), trained_side(net), net.stride)
        class_names(net)
        if which == 'c': load_checkpoint(learner(), path).fit()
        else: evaluate_weights(path, 'cpu')
        raise LtpaError(f'{path}: nowhere')                      # the set that it was trained on
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)             # of other threads
        try: all_of_it()
        except LtpaError as e:
            one_line(str(e))
            assert len(str(e)) < 700 + len(str(path)), 'that is no line to read'
            return str(e)


def test_the_good_ones_are_used_up_to_the_missing_set(files, tmp_path):
    for k, (state, meta) in files.items():
        assert 'nowhere' in use(forged(tmp_path / 'x.safetensors', state, json.dumps(meta)), k)


TEXTS = ['[]', 'null', '5', '"x"', '', 'no JSON', '{', '{"kind": "weights"', '[' * 100_000, '{"a":' * 50_000, 'NaN',
    '1' * 5000,
         '{"kind": "weights", "step": ' + '9' * 5000 + '}', '{}', '{"kind": []}', '{"kind": {}}',
         '{"kind": "weights"}',
         '{"kind": "checkpoint"}', '{"kind": "weights", "model": "vgg_gap"}', '\x00', '\ufeff{}']


@pytest.mark.parametrize('text', TEXTS, ids=lambda t: t[:20])
@pytest.mark.parametrize('which', 'wc')
def test_descriptions_that_are_none(which, text, files, tmp_path):
    path = forged(tmp_path / 'x.safetensors', files[which][0], text)
    with refuses(path): load_weights(path)
    with refuses(path): load_checkpoint(learner(), path)


def places(meta, deep=('config', 'source', 'recipe', 'scaler')):
    return [(k,) for k in (*meta, 'format', 'pretrained')] + [(k, n) for k in deep if k in meta for n in (*meta[k],
        'name', 'preset', 'rule')]


@pytest.mark.parametrize('which, few', [('w', 1), *(pytest.param(which, 2, marks=pytest.mark.whole) for which in 'wc')])
def test_odd_fields(which, few, files, tmp_path):
    "Each field left out or odd, with the digest computed anew: a hundred files and more."
    state, meta = files[which]
    path, draw, refused, tried = tmp_path / 'x.safetensors', Random(0), 0, 0
    for place in places(meta):
        for odd in ['leave out', *draw.sample(ODD, few)]:
            new = json.loads(json.dumps(meta))
            *way, last = place
            table = new[way[0]] if way else new
            if odd == 'leave out': table.pop(last, None)
            else: table[last] = odd
            said = use(forged(path, state, json.dumps(new)), which)
            tried += 1
            refused += 'nowhere' not in said
    assert tried > 33 * (1 + few) and refused > tried // 3


ODD_TENSORS = [
    lambda v: v.to(torch.float8_e4m3fn), lambda v: v.to(torch.float8_e5m2), lambda v: v.bfloat16(),
    lambda v: v.double(),
    lambda v: v.to(torch.int32), lambda v: v.bool(), lambda v: v.to(torch.uint16), lambda v: v[None],
    lambda v: v.flatten()[:0],
    lambda v: v.flatten()[:1].sum(), lambda v: torch.zeros(0, 7), lambda v: v.flatten()[:-1],
    lambda v: v.float() * math.nan,
    lambda v: v.double() + 1e300, lambda v: torch.full_like(v, 255) if v.dtype == torch.uint8 else -v.float() - 9]


@pytest.mark.parametrize('which, few', [('w', 3), *(pytest.param('c', few, marks=pytest.mark.whole) for few in (1, 3))])
def test_odd_tensors(which, few, files, tmp_path):
    state, meta = files[which]
    path, draw, text, refused = tmp_path / 'x.safetensors', Random(1), json.dumps(meta), 0
    kinds = {}                                # one tensor of each kind, by the first and last part of its name
    for k in state: kinds.setdefault((k.split('.')[0], k.split('.')[1], k.split('.')[-1]) if '.' in k else k, k)
    for k in kinds.values():
        for odd in [None, *draw.sample(ODD_TENSORS, few)]:
            new = {n: v for n, v in state.items() if n != k} if odd is None else state | {k: odd(state[k])}
            refused += 'nowhere' not in use(forged(path, new, text), which)
    for name in ('', 'x', 'opt.', 'opt.x', 'opt.step', 'opt.evil.linear.weight', 'opt.step.no.such', 'rng.', 'rng.x',
        'net.',
                 'net.x', 'rng.cuda', 'rng.mps', 'loss', MEGA, 'a\nb', '__metadata__x'):
        new = state | {name: torch.zeros(3)}
        refused += 'nowhere' not in use(forged(path, new, text), which)
    assert refused > 30


@pytest.mark.parametrize('change', [
    lambda v: v[:-1], lambda v: v[:0], lambda v: v.float(), lambda v: v * 0, lambda v: v * 0 + 255,
    lambda v: v.flip(0), lambda v: v[None],
    lambda v: torch.zeros(10**6, dtype=torch.uint8), lambda v: v.view(torch.int64),
    lambda v: v.view(torch.float8_e4m3fn)])
def test_odd_random_states_change_nothing(change, files, tmp_path):
    state, meta = files['c']
    learn, path = learner(), tmp_path / 'x.safetensors'
    before = {k: v.clone() for k, v in learn.net.state_dict().items()}
    forged(path, state | {'rng.cpu': change(state['rng.cpu'])}, json.dumps(meta))
    with refuses(path, 'make or fetch it again'): load_checkpoint(learn, path)
    assert not differing(before, learn.net.state_dict()) and learn.step == 0 and not any(learn.opt.state.values())


@pytest.mark.parametrize('name, change, words', [
    ('opt.momentum_buffer.trunk.stages.0.0.0.weight', lambda v: v[:-1],
        ('opt.momentum_buffer.trunk.stages.0.0.0.weight of', 'shape')),
    ('opt.exp_avg.mean', lambda v: torch.zeros(1), ('opt.exp_avg.mean',)),
    ('opt.step.head.linear.0.bias', lambda v: None, ('no opt.step.head.linear.0.bias',)),
    ('losses', lambda v: None, ('no losses',)), ('losses', lambda v: v[None], ('no losses',)),
    ('losses', lambda v: torch.zeros(9), ('step 2 of 4 with 9 losses',)),
    ('rng.cpu', lambda v: None, ('no rng.cpu',)),
], ids=words_id)
def test_what_is_odd_in_a_checkpoint_is_named(name, change, words, files, tmp_path):
    state, meta = files['c']
    new = {k: v for k, v in (state | {name: change(state.get(name))}).items() if v is not None}
    path = forged(tmp_path / 'x.safetensors', new, json.dumps(meta))
    with refuses(path, 'is damaged', *words, 'start a new run'): load_checkpoint(learner(), path)


@pytest.mark.parametrize('change, words', [
    (dict(classes=5), ('classes 5', 'a list of names')),
    (dict(classes=[MEGA, 'b', 'c']), ('class 0 is', '1,000 letters')),
    (dict(classes=[None] * 3), ('class 0 is None',)),
    (dict(classes=['a'] * 100_001), ('100,001 names', 'at most 100,000')),
    (dict(source='x'), ("source is 'x'", 'a table')),
    (dict(source=dict(source='x', size=10**30)), ('size is 1', 'pixels')),
    (dict(source=dict(source=5)), ('source: source is 5',)),
    (dict(source=dict(source='x', bits=17)), ('bits is 17', '1 to 16')),
    (dict(recipe=[]), ('recipe is []', 'settings by name')), (dict(recipe=dict(precision=['fp32'])), ('recipe is',)),
    (dict(model=None), ('unknown model None',)), (dict(model=[]), ('model is []',)),
    (dict(model='vgg_gab'), ("unknown model 'vgg_gab'",)),
    (dict(config=None), ('with None', 'a model and its settings')), (dict(config=[]), ('config is []',)),
    (dict(config=dict(pretrained=True)), ("{'pretrained': True}",)),
    (dict(config=dict(hidden=1)), ("unknown switch 'hidden'",)),
    (dict(kind='x'), ('neither weights nor a checkpoint',)),
    (dict(format=3), ('newer ltpa', 'at most 2', 'update ltpa')),
], ids=words_id)
def test_what_is_odd_in_a_description_is_named(change, words, files, tmp_path):
    state, meta = files['w']
    path = forged(tmp_path / 'x.safetensors', state, json.dumps(meta | change))
    with refuses(path, *words): load_weights(path)


@pytest.mark.parametrize('info, words', [
    (dict(source='here'), ("source is 'here'", 'a table', 'change it')), (dict(classes=5), ('classes 5',)),
    (dict(recipe='fast'), ("recipe is 'fast'",)),
    (dict(note=object()), ('what JSON can hold',)), (dict(note={(1, 2): 3}), ('what JSON can hold',))], ids=words_id)
def test_what_could_not_be_read_again_is_not_written(info, words, tmp_path):
    path = tmp_path / 'w.safetensors'
    with refuses(path, *words): save_weights(tiny_net(), path, **info)
    if not {'classes', 'recipe'} & set(info):
        with refuses(path, *words): save_checkpoint(learner(), path, **info)
    assert not path.exists()


def test_own_fields_may_hold_anything(tmp_path):
    own = dict(note=[1, None, {'a': [True]}], score=math.inf, seed=[1, 2], step='last', source=None,
               classes=[0, 1, 2], text=MEGA)
    info = load_weights(save_weights(tiny_net(), tmp_path / 'w.safetensors', **own)).info
    assert all(info[k] == v for k, v in own.items())
    more = dict(source='x', rule=2, val_fraction=.1, groups='a.csv', fit='middle', bits=12, layout='splits',
        from_run='r', other=[1])
    info = load_weights(save_weights(tiny_net(), tmp_path / 'w.safetensors', source=more)).info
    assert info['source'] == more | dict(size=None, scale=None)


def test_init_from_takes_no_classifier(tmp_path):
    path = save_weights(tiny_net('vgg_att1_pc', 5, head='plain'), tmp_path / 'w.safetensors')
    net = tiny_net('vgg_att1_pc', 3, seed=1)
    own = {k: v.clone() for k, v in net.state_dict().items() if k.startswith('head')}
    init_from(net, path)
    assert not differing(own, {k: v for k, v in net.state_dict().items() if k.startswith('head')})
    with refuses(path, 'does not fit vgg_trunk', 'lacks glob'): init_from(tiny_net('vgg_trunk'),
        save_weights(tiny_net(), path))


# Headers of the format itself

def raw(header, numbers=b''):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(header).to_bytes(8, 'little') + header + numbers


F32 = dict(dtype='F32', shape=[1], data_offsets=[0, 4])


@pytest.mark.parametrize('content', [
    b'', b'x', b'\xff' * 8, b'\0' * 8, (2**62).to_bytes(8, 'little') + b'{}', (10**8).to_bytes(8, 'little') + b'{}',
    raw(b'[]'), raw(b'5'), raw(b'{}'),
    raw(b'[' * 10**5), raw(b'{"a":' * 10**4), raw(b'\xff\xfe'), raw({'x': []}), raw({'x': None}), raw({'x': 'F32'}),
    raw({'x': {}}), raw({'__metadata__': 5}),
    raw({'__metadata__': []}), raw({'__metadata__': {'ltpa': 5}}), raw({'__metadata__': {'ltpa': '{}'}}),
    raw({'__metadata__': {'ltpa': '{}', 'digest': ''}}),
    raw({'x': F32}), raw({'x': F32}, b'1234'), raw({'x': F32, 'y': F32}, b'1234'),
    raw({'x': F32 | dict(shape=[2**63])}, b'1234'),
    raw({'x': F32 | dict(shape=[2**62, 0, 2**62], data_offsets=[0, 0])}), raw({'x': F32 | dict(shape=[-1])}, b'1234'),
    raw({'x': F32 | dict(shape=5)}, b'1234'),
    raw({'x': F32 | dict(data_offsets=[4, 0])}, b'1234'), raw({'x': F32 | dict(data_offsets=[0, 2**63])}, b'1234'),
    raw({'x': F32 | dict(dtype='F8_E4M3')}, b'1'),
    raw({'x': F32 | dict(dtype='F4')}, b'1234'),
    raw({'x': F32 | dict(dtype='C64', data_offsets=[0, 8])}, b'12345678'), raw({'x': F32 | dict(dtype=[])}, b'1234'),
    raw(b'{"x": {"dtype": "F32", "shape": [' + b'9' * 5000 + b'], "data_offsets": [0, 4]}}', b'1234')],
    ids=lambda b: repr(b[8:50]))
def test_headers_that_are_odd(content, tmp_path):
    for name, read in ('x.safetensors', load_weights), ('x.safetensors',
        lambda p: load_checkpoint(learner(), p)), ('y.safetensors', load_arrays):
        path = tmp_path / name
        path.write_bytes(content)
        with refuses(path): read(path)


# What is no file, or not ours to read

@pytest.mark.parametrize('read', [load_weights, read_checkpoint, load_arrays, stored], ids=lambda f: f.__name__)
def test_no_ordinary_file(read, tmp_path, monkeypatch):
    path = tmp_path / 'x.safetensors'
    os.mkfifo(path)
    with refuses(path, 'a pipe or a device', 'expected'): read(path)
    path.unlink()
    path.mkdir()
    with refuses(path, 'is a folder', 'expected'): read(path)
    path.rmdir()
    path.symlink_to('/dev/zero')
    with refuses(path, 'a pipe or a device'): read(path)
    path.unlink()
    path.write_bytes(b'{}')
    def denied(*args, **kw): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(ltpa.files, 'open', denied, raising=False)
    with refuses(f'cannot read {path}: permission denied', 'make it readable') as _: read(path)
    with pytest.raises(LtpaError) as e: read(path)
    assert not re.search('again|truncated|remove|fetch', str(e.value))
    def full(*args, **kw): raise MemoryError
    monkeypatch.setattr(ltpa.files, 'open', full)
    with refuses(path, 'does not fit into the memory'): read(path)
    def broken(*args, **kw): raise OSError(5, 'Input/output error')
    monkeypatch.setattr(ltpa.files, 'open', broken)
    with refuses(path, 'Input/output error'): read(path)
    if read is not stored:
        with refuses('no such file'): read(tmp_path / 'gone.safetensors')
        with refuses('no such file'): read(tmp_path / 'a\0b.safetensors')


# Same content, same bytes; other threads, other bits

def write(path):
    g = torch.Generator().manual_seed(0)
    write_tensors(path, {k: torch.rand(7, generator=g) for k in 'badcfe'},
                  dict(z=1, a=dict(y=[1, 2], b=None), kind='note', text='ä\n'))


WRITE = 'import sys, torch\nfrom ltpa.weights import write_tensors\n' + inspect.getsource(write) + 'write(sys.argv[1])'


def test_same_bytes_in_every_process(tmp_path):
    subprocess.run([sys.executable, '-c', WRITE, tmp_path / '1'], check=True, timeout=100)
    write(tmp_path / '2')
    one, other = ((tmp_path / k).read_bytes() for k in '12')
    state, meta = read_tensors(tmp_path / '1')
    assert one == other == write_tensors(tmp_path / '3', state, meta).read_bytes()
    n = int.from_bytes(one[:8], 'little')
    assert n % 8 == 0 and list(json.loads(one[8:8 + n])) == sorted(json.loads(one[8:8 + n]))
    assert sorted(safetensors.torch.load(one)) == list('abcdef'), 'the format is kept'
    assert read_tensors(tmp_path / '1')[1]['a'] == dict(b=None, y=[1, 2])


def test_order_of_description_and_tensors_does_not_matter(tmp_path):
    x = {'a': torch.zeros(2), 'b': torch.ones(3, 2)}
    a = write_tensors(tmp_path / 'a', x, dict(k=1, l=dict(m=2, n=3))).read_bytes()
    b = write_tensors(tmp_path / 'b', dict(reversed(x.items())), dict(l=dict(n=3, m=2), k=1)).read_bytes()
    assert a == b != write_tensors(tmp_path / 'c', x, dict(k=1, l=dict(m=2, n=4))).read_bytes()


def test_resume_with_other_threads_says_so(files, tmp_path):
    state, meta = files['c']
    assert meta['threads'] == torch.get_num_threads() == 1 and meta['format'] == 2
    path = tmp_path / 'x.safetensors'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for same in meta, {k: v for k, v in meta.items() if k not in ('threads',
            'format')}:   # of today, and of yesterday
            load_checkpoint(learner(), forged(path, state, json.dumps(same)))
    forged(path, state, json.dumps(meta | dict(threads=2)))
    with pytest.warns(UserWarning, match=r'made with 2 thread\(s\), this process has 1: .*OMP_NUM_THREADS=2') as seen:
        load_checkpoint(learner(), path)
    assert seen[0].filename == __file__
    for newer in 3, 2**31:
        forged(path, state, json.dumps(meta | dict(format=newer)))
        with refuses(path, f'format {newer}', 'update ltpa'): load_checkpoint(learner(), path)


def test_files_of_before_are_read_and_resume_to_the_bit(files, tmp_path):
    "Their descriptions were not sorted, and told neither format nor threads."
    state, meta = files['c']
    old = {k: v for k, v in reversed(meta.items()) if k not in ('format', 'threads')}
    resumed = load_checkpoint(learner(), forged(tmp_path / 'c.safetensors', state, json.dumps(old))).fit()
    new = load_checkpoint(learner(), write_tensors(tmp_path / 'd.safetensors', state, meta)).fit()
    assert resumed.step == 4 and not differing(resumed.net.state_dict(), new.net.state_dict())
    for name in list_pretrained(): assert load_pretrained(name).info['classes']


def test_loading_leaves_the_random_state_to_who_made_the_network(files, tmp_path):
    "Networks built without memory, to compare shapes, draw nothing."
    path = forged(tmp_path / 'w.safetensors', files['w'][0], json.dumps(files['w'][1]))
    torch.manual_seed(0)
    create_model('vgg_att1_dp', **files['w'][1]['config'])
    want = torch.get_rng_state()
    torch.manual_seed(0)
    load_weights(path)
    assert torch.get_rng_state().equal(want)


# Arrays

OK = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)
Y = np.array([0, 1, 0])


def npy(shape, descr='|u1', fortran=False, data=b'', version=1, header=None):
    text = repr(dict(descr=descr, fortran_order=fortran, shape=shape)) if header is None else header
    text = text.encode('latin1') if isinstance(text, str) else text
    return b'\x93NUMPY' + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, 'little') + text + data


def zipped(path, packed=zipfile.ZIP_DEFLATED, **members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', packed) as z:
        for k, v in members.items():
            if isinstance(v, np.ndarray):
                f = io.BytesIO()
                np.save(f, v)
                v = f.getvalue()
            z.writestr(f'{k}.npy', v)
    path.write_bytes(out.getvalue())
    return path


@pytest.mark.parametrize('odd', [
    npy((10**12,)), npy((2**62, 2**62)), npy((-1, 8, 8)), npy((3, 8, 8, 3)), npy((0,) * 70), npy((1,) * 70),
    npy((), '<U1000000000'), npy((10**12,), '<U0'),
    npy((10**12,), '|V0'), npy((3,), '|O'), npy((3,), [('a', '<i4')]), npy((3,), ('<i4', (10**9,))), npy(3), npy('x'),
    npy([3]), npy((True,)), npy((1.5,)),
    npy((3,), 'nonsense'), npy((3,), 5), npy((3,), '<M8[s]'), npy((3,), '<c8', data=b'\0' * 24),
    npy((3,), '<f16', data=b'\0' * 48), npy((3,), '|b1', data=b'\0' * 3),
    npy((3,), '>u2', fortran=5), npy((3,), header=''), npy((3,), header='{'), npy((3,), header='(' * 9000),
    npy((3,), header='[]'), npy((3,), header='{"a": 1}'),
    npy((3,), header='__import__("os")'),
    npy((3,), header="{'descr': '|u1', 'fortran_order': False, 'shape': (3,)}  " + ' ' * 60_000, data=b'123'),
    npy((3,), header=b'\xff\xfe' * 9), npy((3,), version=2), npy((3,), version=3), npy((3,), version=9), b'',
    b'\x93NUMPY', b'x' * 99,
    npy((3,), version=2)[:8] + b'\xff' * 4], ids=lambda b: repr(b[10:50]))
def test_odd_arrays_in_a_zip(odd, tmp_path):
    for k, packed in itertools.product(('images', 'labels', 'classes'), (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)):
        path = zipped(tmp_path / 'x.npz', packed,
            **dict(images=OK, labels=Y, classes=np.array(['a', 'b'])) | {k: odd})
        with refuses(f'{tmp_path.name}/x'): load_arrays(path)


@pytest.mark.parametrize('which', ['images', 'labels', 'classes'])
def test_zeros_that_unpack_to_gigabytes(which, tmp_path):
    "4 MB on the disk; the bound counts all arrays together, and small files have room."
    path = tmp_path / 'x.npz'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        for k, v in dict(images=OK, labels=Y, classes=np.array(['a', 'b'])).items():
            with z.open(f'{k}.npy', 'w', force_zip64=True) as f:
                if k != which: np.save(f, v)
                else:
                    f.write(npy((300 * 2**20,)))
                    for _ in range(300): f.write(bytes(2**20))
    with refuses(path, 'would take 314,57', 'at most 100 times its size', 'np.savez'): load_arrays(path)
    np.savez_compressed(path, images=np.zeros((5000, 32, 32, 3), np.uint8), labels=np.arange(5000) % 2)
    assert path.stat().st_size < 50_000 and len(load_arrays(path)) == 5000


def test_zip_tricks(tmp_path):
    good = zipped(tmp_path / 'x.npz', images=OK, labels=Y).read_bytes()
    path = tmp_path / 'x.npz'
    def patched(at, value):                                       # in the directory of the zip, for its first file
        start = good.index(b'PK\1\2') + at
        return good[:start] + value + good[start + len(value):]
    first = good.index(b'PK\1\2')
    second = good.index(b'PK\1\2', first + 4)
    overlap = good[:second + 42] + good[first + 42:first + 46] + good[second + 46:]
    for content in (patched(8, b'\1\0'), patched(10, b'\x0e\0'), patched(10, b'\x63\0'),
                    patched(24, b'\1\0\0\0'), patched(42, b'\xff' * 4), patched(16, b'\0' * 4),
                    patched(46, b'../../'), overlap, good[:-1], good[:99], good + b'x' * 70_000):
        path.write_bytes(content)
        with refuses(f'{tmp_path.name}/x'): load_arrays(path)
    for harmless in patched(20, b'\xff' * 4), patched(24,
        b'\xff\xff\xff\x7f'):        # the arrays know their sizes better
        path.write_bytes(harmless)
        assert np.array_equal(load_arrays(path).images.permute(0, 2, 3, 1).numpy(), OK)
    for packed in zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2:
        with refuses(path, 'packed in a way that numpy does not use'): load_arrays(zipped(path, packed, images=OK,
            labels=Y))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with zipfile.ZipFile(path, 'w') as z:
            for k in 'images', 'labels', 'labels': z.writestr(f'{k}.npy', npy((1,), data=b'\0'))
    with refuses(path, "two arrays are called 'labels'"): load_arrays(path)
    for name in '../images', '/images', 'images/', 'a/images': assert 'no images' in pytest.raises(LtpaError,
        load_arrays, zipped(path, **{name: OK, 'labels': Y})).value.args[0]


def test_many_names_make_one_short_line(tmp_path):
    zipped(tmp_path / 'x.npz', **{f'{k}{"n" * 300}': Y for k in range(300)})
    with refuses('no images and no labels', ', …') as _: load_arrays(tmp_path / 'x.npz')
    assert len(str(pytest.raises(LtpaError, load_arrays, tmp_path / 'x.npz').value)) < 700


@pytest.mark.parametrize('classes, want', [
    (np.array([b'cat', b'dog']), ['cat', 'dog']), (np.array(['käse', 'dog']), ['käse', 'dog']),
    (np.array([7, 9], np.uint8), ['7', '9']),
    (np.array(['k\xe4se'.encode('latin1'), b'x']), ['k\\xe4se', 'x']),
    (np.array(['a\ud800', 'b']), ['a\\ud800', 'b']), (np.array(['$5', 'a\nb']), ['$5', 'a\nb'])])
def test_names_of_many_kinds(classes, want, tmp_path):
    assert load_arrays(zipped(tmp_path / 'x.npz', images=OK, labels=Y, classes=classes)).classes == want


@pytest.mark.parametrize('classes, words', [
    (np.array('cat'), ('classes of type', 'shape ()')), (np.array([['a'], ['b']]), ('shape (2, 1)',)),
    (np.array([.5, 1.5]), ('float64', 'names')),
    (np.array([True, False]), ('bool', 'names')), (np.array([MEGA, 'b']), ('class 0 is', '1,000 letters')),
    (np.array(['a', 'b', 'a']), ("classes 0 and 2 are both called 'a'",)),
    (np.zeros(100_001, 'U1'), ('at most 100,000',)), (np.array(['a']), ('at least two',)),
    (np.array([], 'U3'), ('at least two',))], ids=words_id)
def test_names_that_are_none(classes, words, tmp_path):
    with refuses('x', *words): load_arrays(zipped(tmp_path / 'x.npz', images=OK, labels=Y, classes=classes))


def test_letters_that_no_code_stands_for(tmp_path):
    path = zipped(tmp_path / 'x.npz', images=OK, labels=Y, classes=npy((2,), '<U1', data=b'\xff' * 8))
    with refuses('x', 'what is no text'): load_arrays(path)


@pytest.mark.parametrize('change, words', [
    (dict(images=torch.zeros(3, 3, 8, 8).to(torch.float8_e4m3fn)), ('F8_E4M3', 'make or fetch it again')),
    (dict(images=torch.zeros(3, 3, 8, 8, dtype=torch.complex64)), ('C64',)),
    (dict(images=torch.zeros(3, 3, 8, 8, dtype=torch.int64)), ('int64', 'uint8')),
    (dict(images=torch.tensor(1.)), ('shape ()',)), (dict(images=torch.zeros(0, 3, 8, 8)), ('shape (0',)),
    (dict(labels=torch.tensor(1)), ('shape ()', 'whole numbers of shape [N]')),
    (dict(labels=torch.zeros(3).bfloat16()), ('bfloat16', 'whole')),
    (dict(labels=torch.tensor([0, -5, 1])), ('label -5 at row 1',)),
    (dict(labels=torch.tensor([0, 2**62, 1])), (f'label {2**62}', '0, 1, 2')),
    (dict(labels=torch.zeros(0, dtype=torch.int64)), ('at least two',)),
    (dict(labels=torch.tensor([True, False, True])), ('bool',)),
    (dict(classes=torch.tensor(2)), ('shape ()',)), (dict(classes=torch.zeros(2).bfloat16()), ('bfloat16',)),
    (dict(classes=torch.tensor([1, 1])), ('both called',)),
], ids=words_id)
def test_odd_tensors_for_pictures(change, words, tmp_path):
    good = dict(images=torch.zeros(3, 3, 8, 8, dtype=torch.uint8), labels=torch.tensor([0, 1, 0]))
    safetensors.torch.save_file(good | change, tmp_path / 'x.safetensors')
    with refuses('x', *words): load_arrays(tmp_path / 'x.safetensors')


def test_arrays_of_other_machines(tmp_path):
    "Bytes the other way round, columns first, old versions of the format."
    x = np.asfortranarray(OK.astype('>u2') * 257)
    got = load_arrays(zipped(tmp_path / 'x.npz', images=x, labels=Y.astype('>i4')))
    assert np.array_equal(got.images.permute(0, 2, 3, 1).numpy(), OK) and got.labels.tolist() == [0, 1, 0]
    f = io.BytesIO()
    np.lib.format.write_array(f, OK, version=(2, 0))
    assert load_arrays(zipped(tmp_path / 'x.npz', images=f.getvalue(), labels=Y)).images.equal(got.images)


def test_memory_that_ran_out_is_not_damage(tmp_path, monkeypatch):
    path = zipped(tmp_path / 'x.npz', images=OK, labels=Y)
    def full(*args, **kw): raise MemoryError
    monkeypatch.setattr(np.lib.format, 'read_array', full)
    with refuses(path, 'does not fit into the memory', 'larger machine'): load_arrays(path)
    def torch_full(*args, **kw): raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
    monkeypatch.setattr(np.lib.format, 'read_array', torch_full)
    with refuses(path, 'does not fit into the memory', 'larger machine'): load_arrays(path)


# Results

@pytest.mark.parametrize('content', [
    b'', b'[]', b'5', b'null', b'no JSON', b'\xff\xfe', b'[' * 10**5, b'{"a":' * 10**5, b'1' * 5000, b'{"rows": 5}',
    b'{"rows": {"a": 1}}', b'{"rows": [5]}', b'{"rows": [[]]}',
    b'{"runs": "x"}', b'{"runs": [null]}', b'{"provenance": []}', b'{"provenance": 5}',
    b'{"provenance": {"source": 5}}', b'{"provenance": {"recipe": []}, "rows": [{"seed": "x"}]}',
    b'{"rows": [{"seed": []}]}', b'{"rows": [{"seed": 1.5}]}', b'{"provenance": {"net": [1]}}'],
    ids=lambda b: repr(b[:30]))
def test_results_that_are_none(content, tmp_path):
    path = tmp_path / 'result.json'
    path.write_bytes(content)
    with refuses(path, 'expected', 'measure again'): stored(path)
    with refuses(path): evaluated(tmp_path)


def test_results_of_odd_numbers(tmp_path):
    assert stored(tmp_path / 'none.json') == {}
    (tmp_path / 'result.json').write_text('{"rows": []}')
    with refuses(tmp_path, 'no rows'): evaluated(tmp_path)
    for odd in 'x', [1], {}, True, math.nan, math.inf:
        rows = [dict(model=m, seed=k, accuracy=odd) for m in 'ab' for k in range(3)]
        with refuses('accuracy=', 'expected a number'): summarize(rows, ['model'], ['accuracy'])
        with refuses('accuracy=', 'expected a number'): paired(rows, 'a', 'b', 'accuracy')
        with refuses('x=', 'expected a number'): compared(dict(x=odd, x_sd=1, seeds=3), .5, 'x')
        with refuses('x_sd=', 'expected a number'): compared(dict(x=.5, x_sd=odd, seeds=3), .5, 'x')
    with refuses('x_sd=None'): compared(dict(x=.5, seeds=3), .5, 'x')


# Numbers

HUGE = 10**18


@pytest.mark.parametrize('make, words', [
    *((lambda kw=kw: create_model('resnet164_att2_concat_pc', **kw), words) for kw, words in (
        (dict(num_classes=10**7), ('num_classes 10000000', 'at most 100,000')),
        (dict(num_classes=1), ('at least 2',)), (dict(num_classes=True), ('num_classes True',)),
        (dict(depth=9_000_002), ('depth 9000002', 'at most 1001')), (dict(depth=-7), ('depth -7',)),
        (dict(depth=math.nan), ('depth nan',)),
        (dict(width=8.01), ('width 8.01', 'at most 8')), (dict(width=math.nan), ('width nan',)),
        (dict(width='1'), ("width '1'",)), (dict(width=10**400), ('width 1000', '…')),
        (dict(width=True), ('width True',)), (dict(temperature=math.inf), ('temperature inf',)),
        (dict(temperature=1e-300), ('temperature 1e-300',)),
        (dict(temperature='x'), ("temperature 'x'",)), (dict(dropout='no'), ("dropout 'no'", 'True or False')),
        (dict(dropout=5), ('dropout 5',)), (dict(norm=[]), ('norm []',)),
        (dict(norm={}), ('norm {}',)), (dict(head=[]), ('head []',)))),
    (lambda: create_model([]), ('unknown model []',)), (lambda: create_model(MEGA), ('unknown model', '…')),
    (lambda: get_recipe([]), ('unknown recipe []',)),
    *((lambda kw=kw: get_recipe('fast', **kw), words) for kw, words in (
        (dict(crop=100_000), ('crop=100000', 'at most 2048')), (dict(crop=True), ('crop=True',)),
        (dict(epochs=HUGE), ('at most 100,000',)), (dict(epochs=10**5000), ('nobody can read',)),
        (dict(batch_size=2**63), ('batch_size', 'at most 1,000,000')), (dict(batch_size=-1), ('at least 1',)),
        (dict(lr=10**400), ('lr=1000',)), (dict(weight_decay=1e300), ('at most 1e9',)),
        (dict(clip=math.inf), ('clip=inf',)), (dict(flip='x'), ("flip='x'", 'True or False')),
        (dict(schedule=[]), ('schedule []',)), (dict(optimizer=MEGA), ('optimizer', '…')))),
    *((lambda size=size: open_data('cluttered_fashion', 'test', size),
        (f'size {size}'[:40], 'at least 8 and at most 2048')) for size in (20_000, 2**63, -1, 7, True, 32.,
        math.nan)),
    *((lambda size=size: plan('cluttered_fashion/vgg', image_size=size),
        ('image size', 'at most 2048')) for size in (20_000, 2**63, 0, -5)),
    (lambda: ClutteredFashion('test', n=10**12), ('n 1000000000000', 'at most 1,000,000')),
    (lambda: ClutteredFashion('test', n=True), ('n True',)),
    (lambda: ClutteredFashion('test', n=-1), ('n -1', 'at least 1')),
    (lambda: ClutteredFashion('train', 2048), ('16,000 pictures of size 2048', 'GB', 'fewer with n')),
    (lambda: ClutteredFashion('train', 256, n=10**6), ('1,000,000 pictures', 'GB')),
    *((lambda s=s: ClutteredFashion('test', scale=s, n=4), ('scale', '0 < from <= to <= 1')) for s in ('x', (1,),
        (.1, .2, .3), [None, 1], (0, 1), 1e-30, math.nan, 10**400, (.5, MEGA))),
    (lambda: Loader(pictures(20), 4, crop=17), ('crop 17', 'at most 16', 'noise')),
    (lambda: Loader(pictures(20), 4, crop=-1), ('crop -1', 'at least 0')),
    (lambda: Loader(pictures(20), 4, crop=1.5), ('crop 1.5',)),
    (lambda: Loader(pictures(20), 'x'), ("batch size 'x'",)),
    (lambda: Loader(pictures(20), math.nan), ('batch size nan',)),
    (lambda: Loader(ClutteredFashion('test', 16, n=9), 4, crop=100_000), ('crop 100000', 'at most 16')),
    (lambda: Checkpoint('x', every=0), ('every 0', 'at least 1')),
    (lambda: Learner(tiny_net(), pictures(9), seed=10**400), ('seed', 'whole number')),
    (lambda: fit_side(pictures(1).images[0], 10**400, 8), ('side 1000', 'whole number')),
    (lambda: ImageSet(OK, Y, ['a', MEGA]), ('class 1 is', '1,000 letters')),
    (lambda: ImageSet(OK, Y, ['a'] * 100_001), ('100,001 names',)),
], ids=words_id)
def test_numbers_out_of_range(make, words):
    with refuses(*words): make()


def test_numbers_within_the_range_stay_allowed():
    assert len(Loader(pictures(20), 4, crop=16)) == 5 and len(Loader(pictures(20), 4, train=False, crop=99)) == 5
    assert create_model('resnet164', depth=11, width=1 / 16, num_classes=2).num_classes == 2
    with torch.device('meta'): assert create_model('resnet164', depth=1001,
        num_classes=100_000).num_classes == 100_000
    assert ClutteredFashion('test', 8, n=1, scale=(1, 1)).size == 8 and get_recipe('fast', crop=0, epochs=100_000,
        clip=0).crop == 0
    assert open_data('cluttered_fashion', 'test', 512, n=3).render([0])[0].shape == (1, 3, 512, 512)


# In little memory: one process in which little more may be taken than what it has

GREEDY = '''
import contextlib, io, json, resource, sys, warnings
sys.path.insert(0, TESTS)
import test_strangers as t
import torch
from ltpa.cli import main
from pathlib import Path
state, meta = {'x': torch.zeros(1)}, dict(kind='weights', model='vgg_gap')
t.use(t.forged(Path('w.safetensors'), state, json.dumps(meta | dict(config=dict(width=1/32)))))      # all is imported
main(['train', 'nowhere/vgg_gap'])
def pages(): return int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
room = pages() + 256 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
many = dict(num_classes=100_000)
for config in dict(num_classes=10**7), many, many | dict(width=8), dict(depth=9_000_002), dict(width=8):
    for model in 'vgg_gap', 'resnet164', 'vgg_att3_concat_pc':
        if 'depth' in config and model != 'resnet164': continue
        said = t.use(t.forged(Path('w.safetensors'), state, json.dumps(meta | dict(model=model, config=config))))
        assert 'memory' not in said and ('does not fit' in said or 'at most' in said), said
def arrays(**kw): return t.pytest.raises(t.LtpaError, t.load_arrays, t.zipped(Path('x.npz'), **kw)).value.args[0]
good = dict(images=t.OK, labels=t.Y, classes=t.np.array(['a', 'b']))
for k in good:
    said = arrays(**good | {k: t.npy((10**10,), data=bytes(10**6))})
    assert 'times its size' in said, said
    head = t.npy((1,), version=2)[:8] + (2**31).to_bytes(4, 'little')
    said = arrays(**good | {k: head + b' ' * 10**7})
    assert 'too long' in said, said
for argv in ARGV:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try: code = main(['train', *argv, '--out', 'run', '--quiet', '--device', 'cpu'])
        except SystemExit as e: code = e.code
    said = said.getvalue()
    assert code == 2 and said.count('\\n') == 1 and 'memory' not in said, (argv, code, said)
assert not Path('run').exists()
print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
'''
ARGV = [['cluttered_fashion/vgg_gap', *more.split()] for more in (
    '--crop 100000', '--crop 33', '--crop -1', '--image-size 20000', f'--image-size {2**63}', '--image-size -1',
    '--image-size 0', '--image-size 2048', '--batch-size 0',
    f'--batch-size {10**30}', '--batch-size 999999', f'--epochs {10**30}', '--epochs -1', '--seed -1',
    f'--seed {2**32}', '--lr nan', '--lr inf', '--lr 1e400', '--lr -1', '--width nan',
    '--width 1e9', '--width -1', '--scale nan', '--scale inf', '--scale 1e-300', '--scale -1', '--stop-after -1',
    '--stop-after 0', '--clip nan', '--clip 1e300', '--weight-decay inf')] + [
    ['cluttered_fashion/vgg_att1_dp', *more.split()] for more in ('--temperature nan', '--temperature inf',
        '--temperature 1e-300', '--temperature -1', '--temperature 0')] + [
    ['cluttered_fashion/resnet164', *more.split()] for more in ('--depth 9000002', '--depth -7', f'--depth {10**30}',
        '--depth 1010')]


@pytest.mark.whole
def test_in_little_memory(tmp_path):
    "256 MB more than it has, for all of them together, and soon."
    code = f'TESTS, ARGV = {str(Path(__file__).parent)!r}, {ARGV!r}\n{GREEDY}'
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
