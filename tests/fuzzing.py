"""Bad and odd inputs, made at random, for every entry that takes files or what a user types.

    python tests/fuzzing.py                          # 2,000 inputs of all kinds
    python tests/fuzzing.py --n 500 --seed 7 --kinds weights pictures
    python tests/fuzzing.py --one weights:123        # this input alone, with its traceback

An input may be refused, by an `LtpaError` of one line; or work. Whatever else happens is a finding: another
exception, a message of two lines, an escape code in the output, more memory than `MOST_MEMORY`, no end within
`PATIENCE`. Children do the work: one that hangs or is killed is a finding too, and does not end the rest.
"""
import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import struct
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from ltpa import LtpaError

PATIENCE = 30                     # seconds for one input; the slowest takes one or two
MOST_MEMORY = 700 * 2**20         # bytes that one input may add
KINDS = {}


def kind(make):
    "Adds a generator: `make(rng, folder)` writes its files there and returns what to call"
    KINDS[make.__name__] = make
    return make


# ---- pieces -------------------------------------------------------------------------------------------------------

NAMES = ['a', 'cat', 'Ärger', 'A\u0308rger', '猫', '$5_$10', 'two\nlines', '\x1b[31mred', 'sp ace', '-dash', '.hidden', '._a', 'CON',
         'a' * 200, '..', 'train', 'test', 'VAL', '__MACOSX', b'\xe4'.decode('utf-8', 'surrogateescape'), "quo'te", 'x;y', '%s', '{0}', '*']
VALUES = [None, True, False, 0, -1, 1, 2, 5, 10**7, 2**31, 2**63, 2**70, -2**63, .5, -1., 1e308, float('nan'), float('inf'), '', 'x', 'x' * 10_000,
          '\x00', '1', 'None', [], [0], [[]], {}, {'a': 1}, ['a', 'a'], [None], ['x' * 10**6, 'y'], [1, 2], 'cluttered_fashion', '../..', '/dev/zero']


def damaged(rng, data):
    "The bytes, in one of many ways no longer what they were"
    if not data: return data
    data, way = bytearray(data), rng.randrange(8)
    if way == 0:
        for _ in range(rng.choice([1, 1, 3, 20])): data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == 1: del data[rng.randrange(len(data)):]
    elif way == 2:
        at = rng.randrange(len(data))
        data[at:at + rng.randrange(1, 40)] = rng.randbytes(rng.randrange(40))
    elif way == 3:
        at = rng.randrange(min(64, len(data)))                    # numbers in headers
        data[at:at + 4] = rng.choice([b'\xff' * 4, bytes(4), b'\x7f\xff\xff\xff', struct.pack('<I', rng.randrange(2**32))])
    elif way == 4: data += rng.randbytes(rng.randrange(1, 200))
    elif way == 5:
        at = rng.randrange(len(data))
        data[at:at] = data[:rng.randrange(len(data))]
    elif way == 6: data[:] = rng.randbytes(rng.randrange(300))
    return bytes(data)


def changed(rng, value, depth=0):
    "A value of JSON in which something, somewhere, is odd"
    if depth > 3 or rng.random() < .25 or not isinstance(value, (dict, list)) or not value: return rng.choice(VALUES)
    value = value.copy()
    where = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    way = rng.randrange(4)
    if way == 0: del value[where]
    elif way == 1 and isinstance(value, dict): value[rng.choice(['x', '', 'config', 'size', 'a' * 1000])] = rng.choice(VALUES)
    else: value[where] = changed(rng, value[where], depth + 1)
    return value


def deep(n): return '[' * n + ']' * n


def entry(rng, folder, stem, data, ending):
    "A path with these bytes; seldom a folder, a pipe, a link or nothing"
    path = folder / f'{stem}{ending}'
    way = rng.randrange(60)
    if way == 0: path.mkdir()
    elif way == 1: os.mkfifo(path)
    elif way == 2: path.symlink_to(path)
    elif way == 3: pass
    elif way == 4: path.symlink_to('/dev/zero')
    elif way == 5: path.write_bytes(b'')
    else: path.write_bytes(data)
    return path


@cache
def net():
    from ltpa import load_pretrained
    return load_pretrained('cluttered_fashion/vgg_att2_concat_dp')


def trained_on(folder, classes=('cat', 'dog'), name='vgg_att1_pc'):
    "A small network, saved as `ltpa train` does"
    from ltpa import create_model, save_weights
    small = create_model(name, len(classes), width=1/16, early_pools=2)
    source = dict(source='cluttered_fashion', size=16, scale=None)
    return save_weights(small, folder / 'w.safetensors', classes=list(classes), source=source, recipe=dict(precision='fp32'), seed=0)


# ---- pictures -----------------------------------------------------------------------------------------------------

MODES = dict(PNG=['RGB', 'L', 'P', 'LA', 'RGBA', '1', 'I;16', 'I'], JPEG=['RGB', 'L', 'CMYK', 'YCbCr'], WEBP=['RGB', 'RGBA'], GIF=['P', 'L'],
             BMP=['RGB', 'L', '1', 'P'], TIFF=['RGB', 'L', 'CMYK', 'I;16', 'F', 'I', 'LAB', '1', 'RGBA'], PPM=['RGB', 'L', '1', 'I'])


def some_picture(rng):
    "(PIL picture, format)"
    form = rng.choice(list(MODES))
    mode = rng.choice(MODES[form])
    h, w = (rng.choice([1, 7, 8, 9, 32, 40, 61]) for _ in 'hw')
    rgb = Image.fromarray(np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (h, w, 3), dtype=np.uint8))
    if mode == 'I;16': return Image.fromarray((np.asarray(rgb)[..., 0].astype(np.uint16) * rng.choice([1, 16, 257]))), form
    if mode in 'FI': return Image.fromarray(np.asarray(rgb)[..., 0].astype('float32' if mode == 'F' else 'int32') * rng.choice([1, 256, -1])), form
    if mode == 'LA': return rgb.convert('L').convert('LA'), form
    if mode == 'LAB': return Image.merge('LAB', rgb.split()), form
    return (rgb.quantize(16) if mode == 'P' else rgb.convert(mode)), form


def some_exif(rng):
    exif = Image.Exif()
    for _ in range(rng.randrange(6)):
        tag = rng.choice([0x0112, 0x0100, 0x8769, 0x8825, 0xa005, 0x927c, 0x010f, rng.randrange(65536)])
        with contextlib.suppress(Exception): exif[tag] = rng.choice([1, 3, 6, 8, 9, 0, -1, 2**31, 'x' * 70, b'\xff' * 9, (1, 2), 1.5, ''])
    try: return exif.tobytes()
    except Exception: return b'Exif\0\0' + rng.randbytes(30)


def picture_bytes(rng):
    im, form = some_picture(rng)
    more = {}
    if form in ('JPEG', 'PNG', 'WEBP', 'TIFF') and rng.random() < .5: more['exif'] = some_exif(rng)
    if form in ('JPEG', 'PNG') and rng.random() < .2: more['icc_profile'] = rng.randbytes(200)
    if form == 'PNG' and rng.random() < .2:
        info = PngImagePlugin.PngInfo()
        info.add_itxt('a', 'x' * rng.choice([10, 10**6]), zip=True)
        more['pnginfo'] = info
    out = io.BytesIO()
    try: im.save(out, form, **more)
    except Exception: im.convert('RGB').save(out, 'PNG')
    data = out.getvalue()
    if rng.random() < .1 and data[1:4] == b'PNG':                  # a huge size, with a right checksum
        head = data[12:16] + struct.pack('>II', *(rng.choice([1, 2**15, 2**31 - 1, 50_000]) for _ in 'wh')) + data[24:29]
        data = data[:12] + head + struct.pack('>I', zlib.crc32(head)) + data[33:]
    if rng.random() < .05: data = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n'
    return damaged(rng, data) if rng.random() < .7 else data


def look(path):
    from ltpa import inspect_image
    return inspect_image(net(), path)


@kind
def pictures(rng, folder):
    from ltpa import predict, read_image
    from ltpa.widgets import read_upload
    data = picture_bytes(rng)
    stem = rng.choice([n for n in NAMES if '..' not in n])
    ending = rng.choice(['.png', '.jpg', '.PNG', '.tif', '.webp', '.gif', '', '.heic', '.eps'])
    upload = dict(name=stem + ending, content=memoryview(data))
    path = entry(rng, folder, stem, data, ending)
    return rng.choice([partial(read_image, path), partial(read_image, io.BytesIO(data)), partial(read_upload, upload), partial(look, path),
                       partial(predict, net(), path)])


@kind
def opened_pictures(rng, folder):
    "Objects of Pillow, perhaps not loaded yet, perhaps closed"
    from ltpa import show_attention
    im, form = some_picture(rng)
    path = folder / 'a'
    try:
        im.save(path, form)
        data = path.read_bytes()
        if rng.random() < .4: path.write_bytes(damaged(rng, data))
        im = Image.open(path)
        if rng.random() < .1: im.close()
    except Exception: pass
    return rng.choice([partial(look, im), partial(show_attention, net(), im), partial(show_attention, net(), [im, im])])


# ---- arrays at the door -------------------------------------------------------------------------------------------

def some_array(rng):
    shape = rng.choice([(3, 32, 32), (32, 32, 3), (32, 32), (2, 3, 32, 32), (2, 32, 32, 3), (1, 3, 40, 24), (0, 3, 32, 32), (3, 0, 4), (), (5,),
                        (1, 1, 32, 32), (2, 4, 32, 32), (2, 5, 32, 32), (1, 2, 3, 32, 32), (3, 3, 3), (1, 3, 9, 9), (2, 3, 1, 1)])
    values = np.random.default_rng(rng.randrange(2**32)).random(shape)
    dtype = rng.choice(['uint8', 'uint8', 'float32', 'float32', 'float64', 'float16', 'uint16', 'int64', 'bool', 'complex64', 'object', '>u2', '>f4', 'U3', 'S2',
                        'M8[s]', 'V4', 'int8'])
    scale = rng.choice([1, 1, 255, 65535, -1, 1e30])
    with np.errstate(all='ignore'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: a = np.asarray(values * scale if dtype not in ('bool', 'U3', 'S2', 'object') else values, dtype=dtype)
        except (TypeError, ValueError): a = np.zeros(shape, dtype)
    if a.dtype.kind == 'f' and a.size and rng.random() < .2: a.flat[0] = rng.choice([np.nan, np.inf, -1e-9, 1.0001])
    way = rng.randrange(8)
    if way == 0 and a.ndim: a = a[..., ::-1]
    if way == 1: a = a.T
    if way == 2: a = a.tolist()
    if way == 3: a = np.ma.masked_array(a)
    if way > 4:
        try: a = torch.as_tensor(np.ascontiguousarray(a))
        except (TypeError, ValueError): return a
        way = rng.randrange(9)
        if way == 0: a = a.to('meta')
        if way == 1 and a.is_floating_point(): a = a.to(torch.bfloat16)
        if way == 2 and a.is_floating_point(): a = a.requires_grad_()
        if way == 3 and a.is_floating_point() and not a.isnan().any(): a = a.float().to(torch.float8_e4m3fn)
        if way == 4 and a.ndim == 2: a = a.to_sparse()
        if way == 5 and a.ndim: a = a.flip(0)
    return a


@kind
def arrays_at_the_door(rng, folder):
    from ltpa import ImageSet, fgsm, grad_cam, inspect_image, pgd, predict, query_maps, show_attention
    from ltpa.data import Loader
    a = some_array(rng) if rng.random() < .9 else rng.choice([*VALUES, object(), [None, 1], ['nowhere.png'], 'nowhere.png', Path('x')])
    few = dict(target=rng.choice([None, 0, 3, 10, -1, [0], [0, 1], torch.tensor([1]), 'x']))
    def batch():
        data = ImageSet(a, rng.choice([[0], [0, 1], torch.zeros(2), np.array(['a']), some_array(rng)]), rng.choice([['a', 'b'], ['a'], [1, 2]]))
        return next(iter(Loader(data, rng.choice([1, 2, 10**9]), flip=True, crop=rng.choice([0, 4, 10**5]))))
    return rng.choice([batch, partial(predict, net(), a), partial(inspect_image, net(), a, rng.choice([None, 32, 8, -1, 10**7, 2**63, 'x'])),
                       partial(show_attention, net(), a), partial(grad_cam, net(), a, **few), partial(fgsm, net(), a, rng.choice([.1, -1, 0, float('nan'), 2.])),
                       partial(pgd, net(), a, .03, steps=2), partial(query_maps, net(), a, a)])


# ---- folders ------------------------------------------------------------------------------------------------------

def tree(rng, root, deep=0):
    "Folders and files as people have them, and as nobody should"
    layouts = [['cat', 'dog'], ['train', 'test'], ['Train', 'VAL'], ['cat', 'dog', 'test'], ['images', 'masks'], ['train', 'val', 'test'], ['cat'],
               ['bus', 'car', 'train'], rng.sample(NAMES, 3)]
    for name in rng.choice(layouts):
        if name in ('..',): continue
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        if not deep and name.lower() in ('train', 'test', 'val') and rng.random() < .8: tree_of_classes(rng, folder)
        else: fill(rng, folder)
    if rng.random() < .2: (root / 'loop').symlink_to(root)
    if rng.random() < .2: (root / 'readme.txt').write_text('x')


def tree_of_classes(rng, root):
    for name in rng.choice([['cat', 'dog'], ['cat', 'dog'], ['dog', 'emu'], ['Ärger', 'A\u0308rger', 'b']]):
        (root / name).mkdir(exist_ok=True)
        fill(rng, root / name)


def fill(rng, folder):
    for k in range(rng.choice([0, 1, 3, 6, 10])):
        stem = rng.choice(['', '', 'é', 'e\u0301', 'a b', '$'])
        path = folder / f'{stem}{k}{rng.choice([".png", ".png", ".jpg", ".JPG", ".heic", ".txt", ""])}'
        way = rng.randrange(14)
        if way == 0: path.write_bytes(picture_bytes(rng))
        elif way == 1: os.mkfifo(path)
        elif way == 2: path.symlink_to('nowhere')
        elif way == 3: path.mkdir(); fill_one(path / 'deep.png', rng)
        elif way == 4: (folder / f'._{path.name}').write_bytes(b'\0\5\26\7')
        else: fill_one(path, rng)
    if rng.random() < .2:
        (folder / '.ipynb_checkpoints').mkdir(exist_ok=True)
        fill_one(folder / '.ipynb_checkpoints/a-checkpoint.png', rng)


def fill_one(path, rng):
    size = rng.choice([(16, 16), (16, 16), (40, 10), (9, 64)])
    a = np.random.default_rng(rng.randrange(50)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(a).save(path, 'PNG')


def a_table(rng, root):
    "A CSV of groups: right, or not"
    files = [p.relative_to(root).as_posix() for p in root.rglob('*') if p.suffix in ('.png', '.jpg')][:50]
    text = 'path,group\n' + ''.join(f'{f},{rng.choice("abc")}\n' for f in files if f.isprintable())
    data = rng.choice([text, text.replace(',', ';'), text.replace('/', '\\'), text * 2, '', 'path,group', '"', 'a,b,c\n1,2,3\n', 'x' * 10**6, text.upper()])
    data = data.encode(rng.choice(['utf-8', 'utf-8-sig', 'utf-16']), 'replace')
    return entry(rng, root.parent, 'groups', damaged(rng, data) if rng.random() < .4 else data, '.csv')


def labels(rng, root):
    "A CSV of labels: right, or not"
    files = [p.relative_to(root).as_posix() for p in root.rglob('*') if p.suffix in ('.png', '.jpg')][:50]
    head = rng.choice(['file,label', 'file,label', 'file,label,split', 'file,label,group', 'FILE,Label,age', 'path,class', 'file,file,label', ''])
    rows = [[rng.choice([f, f, f, rng.choice(NAMES) if isinstance(f, str) else f, str(root / f)]), rng.choice(['cat', 'dog', rng.choice(NAMES)])] for f in files]
    for r in rows: r += [rng.choice(['train', 'test', 'VAL', '', 'x'])] * (head.count(',') - 1)
    text = '\n'.join([head, *(','.join(f'"{c}"' if rng.random() < .2 else c for c in r) for r in rows)])
    data = rng.choice([text, text, text.replace(',', ';'), text.replace('/', '\\'), text * 2, '"', 'x' * 10**6, text + '\0'])
    data = data.encode(rng.choice(['utf-8', 'utf-8', 'utf-8-sig', 'utf-16', 'latin1']), 'replace')
    return entry(rng, rng.choice([root, root.parent]), 'labels', damaged(rng, data) if rng.random() < .3 else data, '.csv')


@kind
def tables(rng, folder):
    from ltpa import load_folder, open_data
    root = folder / 'photos'
    root.mkdir()
    for c in 'cat', 'dog':
        (root / c).mkdir()
        for k in range(rng.choice([1, 6])): fill_one(root / c / f'{k}.png', rng)
    table, split = labels(rng, root), rng.choice(['train', 'test', 'val', 'all'])
    kw = odd_options(rng, root, ['val_fraction', 'groups', 'layout', 'strict', 'skip_broken'])
    return rng.choice([partial(load_folder, table, split, **kw), partial(load_folder, root, split, labels=table, **kw), partial(open_data, table, split)])


def odd_options(rng, root, known):
    from ltpa.folders import load_folder
    import inspect
    takes = inspect.signature(load_folder).parameters
    some = dict(val_fraction=[.2, .5, 0, 1, -1, float('nan'), 'x'], groups=[None, r'(\d)', '(', 'x', '(a+)+$', a_table(rng, root)], layout=['classes', 'splits', 'x'],
                strict=[True], skip_broken=[True], bits=[8, 12, 16, 0, -1, 99, 'x'], fit=['middle', 'whole', 'stretch', 'x'], size=[8, 16, 32, 0, -1, 10**7, 2**63])
    return {k: rng.choice(v) for k, v in some.items() if k in takes and k in known and rng.random() < .3}


@kind
def folders(rng, folder):
    from ltpa import load_folder, load_pairs, open_data
    root = folder / rng.choice(['photos', '$5', 'Ä b'])
    root.mkdir()
    tree(rng, root)
    kw = odd_options(rng, root, ['val_fraction', 'groups', 'layout', 'strict', 'skip_broken', 'bits', 'fit', 'size'])
    split = rng.choice(['train', 'test', 'val', 'x'])
    return rng.choice([partial(load_folder, root, split, **kw), partial(load_folder, root, 'train', **kw), partial(open_data, root, split),
                       partial(load_pairs, root), partial(load_pairs, root, 'noise')])


# ---- arrays in files ----------------------------------------------------------------------------------------------

def npy(rng, a):
    out = io.BytesIO()
    np.save(out, a, allow_pickle=True)
    data = out.getvalue()
    if rng.random() < .25:
        text = rng.choice(["{'descr': '|u1', 'fortran_order': False, 'shape': (%d,)}" % rng.choice([-1, 2**40, 2**70]), '{', "{'descr': 'O'}", '[' * 500,
                           "{'descr': [('a', '<f4')], 'fortran_order': True, 'shape': (2,)}", "{'shape': 5}", "__import__('os')"]).encode()
        data = b'\x93NUMPY\1\0' + struct.pack('<H', len(text)) + text + rng.randbytes(40)
    return damaged(rng, data) if rng.random() < .15 else data


@kind
def array_files(rng, folder):
    from ltpa import load_arrays, open_data
    from safetensors.torch import save
    images = rng.choice([np.zeros((4, 8, 8, 3), np.uint8), np.zeros((2**rng.choice([8, 20, 24]),), np.uint8), some_array(rng)])
    labels = rng.choice([np.array([0, 1, 0, 1]), np.array(1), np.array([-1, 0, 1, 2]), np.array([2**40] * 4), np.array(['a'] * 4), np.array([None] * 4), np.zeros(4)])
    classes = rng.choice([None, np.array(['a', 'b']), np.array('a'), np.array([b'\xff', b'b']), np.array([1.5, 2]), np.array(['x' * 10**5, 'y']), np.array([['a'], ['b']])])
    out, ending = io.BytesIO(), rng.choice(['.npz', '.npz', '.safetensors'])
    if ending == '.npz':
        with zipfile.ZipFile(out, 'w', rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as z:
            for name, a in dict(images=images, labels=labels, classes=classes).items():
                if a is None or rng.random() < .03: continue
                with warnings.catch_warnings():
                    warnings.simplefilter('ignore')
                    z.writestr(name + rng.choice(['.npy'] * 9 + ['', '/x.npy']), npy(rng, np.asarray(a) if not isinstance(a, torch.Tensor) else np.zeros(3)))
        data = out.getvalue()
    else:
        as_tensor = lambda a: torch.zeros(4, 3, 8, 8, dtype=rng.choice([torch.uint8, torch.float8_e4m3fn, torch.bfloat16, torch.float32, torch.bool, torch.int64]))
        data = save(dict(images=as_tensor(0), labels=torch.tensor(rng.choice([[0, 1, 0, 1], [0, 1, 2, 9], [0]])),
                         **({} if classes is None else dict(classes=rng.choice([torch.zeros(2), torch.tensor(5), torch.zeros(2, dtype=torch.bfloat16)])))))
    if rng.random() < .4: data = damaged(rng, data)
    path = entry(rng, folder, 'train', data, ending)
    with contextlib.suppress(OSError): shutil.copy(path, folder / f'test{ending}') if path.is_file() and not path.is_symlink() else None
    return rng.choice([partial(load_arrays, path), partial(load_arrays, path), partial(open_data, folder, rng.choice(['train', 'test']))])


# ---- weights and checkpoints --------------------------------------------------------------------------------------

@cache
def good_files():
    "(tensors, description) of weights and of a checkpoint"
    from ltpa import Learner, create_model, get_recipe
    from ltpa.checkpoints import save_checkpoint
    from ltpa.weights import read_tensors
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as tmp:
        weights = read_tensors(trained_on(Path(tmp)))
        save_checkpoint(learner(), Path(tmp) / 'c.safetensors', source=dict(source='cluttered_fashion', size=16, scale=None))
        return weights, read_tensors(Path(tmp) / 'c.safetensors')


def learner():
    from ltpa import ImageSet, Learner, create_model, get_recipe
    data = ImageSet(torch.arange(8 * 3 * 16 * 16).view(8, 3, 16, 16).remainder(251).to(torch.uint8), [0, 1] * 4, ['cat', 'dog'])
    return Learner(create_model('vgg_att1_pc', 2, width=1/16, early_pools=2), data, get_recipe('fast', epochs=1, batch_size=4))


def odd_tensors(rng, state):
    state = dict(state)
    for _ in range(rng.choice([0, 0, 1, 1, 3])):
        k = rng.choice(list(state))
        t, way = state[k], rng.randrange(8)
        if way == 0: del state[k]
        elif way == 1: state[k] = t[..., None].expand(*t.shape, 2)
        elif way == 2: state[k] = t.to(rng.choice([torch.int64, torch.bool, torch.uint8, torch.float64]))
        elif way == 3 and t.is_floating_point(): state[k] = t.float().to(rng.choice([torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]))
        elif way == 4 and t.is_floating_point(): state[k] = torch.full_like(t.float(), rng.choice([float('nan'), float('inf'), 1e30])).to(t.dtype)
        elif way == 5: state[k] = torch.zeros(rng.choice([(), (0,), (0, 5), (1,)]))
        elif way == 6: state[rng.choice(['x', 'net.', 'opt.', 'opt.a', 'rng.cpu', 'losses', 'rng.cuda', 'a\nb', ''])] = torch.zeros(3)
        else: state[k] = t.reshape(-1)
        if not state: break
    return state


def with_digest(state, text):
    "The bytes of a file of ours, its digest right"
    from safetensors.torch import save
    from ltpa.weights import _digest
    state = {k: v.detach().contiguous() for k, v in state.items()}
    return save(state, dict(ltpa=text, digest=_digest(state, text)))


@kind
def weights(rng, folder):
    from ltpa import create_model, load_checkpoint, load_weights
    from ltpa.checkpoints import read_checkpoint
    from ltpa.cli import main
    from ltpa.models import init_from
    from ltpa.runs import evaluate_weights
    state, meta = rng.choice(good_files())
    state, meta = dict(state), json.loads(json.dumps(meta))
    for _ in range(rng.choice([0, 1, 1, 2])): meta = changed(rng, meta) if isinstance(meta, (dict, list)) else meta
    if isinstance(meta, dict) and isinstance(meta.get('config'), dict) and rng.random() < .2:
        meta['model'] = rng.choice(['vgg', 'resnet164', 'vgg_att3_concat_pc', 'resnet164_att2_concat_dp'])
        meta['config'] |= dict([rng.choice([('num_classes', 10**7), ('depth', 9000002), ('width', 8.), ('width', float('nan')), ('num_classes', 2**63), ('depth', 1001)])])
    text = rng.choice([json.dumps(meta)] * 9 + [deep(10**5), '', '{', 'null', '[]', '1e999', '{"a":' * 2000])
    data = with_digest(odd_tensors(rng, state), text)
    if rng.random() < .25: data = damaged(rng, data)
    if rng.random() < .03: data = struct.pack('<Q', rng.choice([2**63, 2**40, 10**8, 0])) + data[8:]
    path = entry(rng, folder, rng.choice(['w', 'two\nlines', 'Ä']), data, '.safetensors')
    def cheap_evaluation():                       # the whole test set would take a second
        if isinstance(meta, dict): evaluate_weights(path, 'cpu', folder)
    picture = folder / 'p.png'
    fill_one(picture, rng)
    explain = ['explain', str(picture), '--model', str(path), '--out', str(folder / 'o.png'), '--device', 'cpu']
    return rng.choice([partial(load_weights, path), partial(load_weights, path), lambda: load_checkpoint(learner(), path), partial(read_checkpoint, path),
                       lambda: init_from(create_model('vgg_att1_pc', 3, width=1/16, early_pools=2), path), cheap_evaluation, partial(main, explain)])


@kind
def shared(rng, folder):
    "Folders in the form of the hub: settings and tensors of somebody else"
    from safetensors.torch import save
    from ltpa import from_pretrained, load_weights
    from ltpa.hub import handed_on, model_card
    state, meta = good_files()[0]
    state, meta = dict(state), json.loads(json.dumps(meta))
    if rng.random() < .3: meta['model'], meta['config'] = rng.choice(['vgg', 'resnet164', 'vgg_pan', 'vgg_att3_concat_pc']), dict(width=rng.choice([1/16, 8.]), num_classes=rng.choice([2, 100_000]))
    for _ in range(rng.choice([0, 1, 1, 2])): meta = changed(rng, meta) if isinstance(meta, (dict, list)) else meta
    if isinstance(meta, dict) and isinstance(meta.get('config'), dict) and rng.random() < .3:
        meta['config'] |= dict([rng.choice([('num_classes', 10**7), ('num_classes', 100_000), ('depth', 1001), ('width', 8.), ('width', float('nan')), ('num_classes', 2**63), ('backbone', rng.choice(['timm/resnet18', 'x', None]))])])
    text = rng.choice([json.dumps(meta)] * 9 + [deep(10**5), '', '{', 'null', '[]', '1e999', '{"a":' * 2000, ' ' * 5 * 10**6])
    config = text.encode(rng.choice(['utf-8'] * 9 + ['utf-16', 'utf-8-sig']), 'surrogatepass')
    tensors = {k: v.contiguous() for k, v in odd_tensors(rng, state).items()}
    data = rng.choice([save(tensors), save(tensors, {rng.choice(['format', 'ltpa', 'digest', 'x' * 1000]): rng.choice(['pt', '', '{}', '\x1b[31m'])}), with_digest(tensors, rng.choice(['{}', text]))])
    if rng.random() < .2: data = damaged(rng, data)
    if rng.random() < .2: config = damaged(rng, config)
    if rng.random() < .05: data = struct.pack('<Q', rng.choice([2**63, 2**40, 10**8, 0])) + data[8:] + b' ' * rng.choice([0, 10**7])
    root = folder / rng.choice(['net', 'two\nlines', 'Ä', 'a/b'])
    root.mkdir(parents=True)
    entry(rng, root, 'config', config, '.json')
    path = entry(rng, root, 'model', data, '.safetensors')
    def card():
        net = from_pretrained(root)
        handed_on(net)
        model_card(net, rng.choice([None, dict(rows=[changed(rng, dict(accuracy=.5, data='a/test', note='x'))]), changed(rng, dict(rows=[dict(accuracy=.5)], provenance=dict(seed=0, recipe=dict(name='x'))))]))
    return rng.choice([partial(from_pretrained, root), partial(from_pretrained, root), partial(load_weights, path), card])


# ---- archives and servers -----------------------------------------------------------------------------------------

@kind
def archives(rng, folder):
    from ltpa.downloads import unpack
    out, form = io.BytesIO(), rng.choice(['.tar', '.tar.gz', '.zip'])
    names = [*(n for n in NAMES if '\0' not in n), '../up', '/abs', 'a/b/c', 'C:\\x', 'a/' * 600, 'A', 'a/./b', '', '.']
    if form == '.zip':
        with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for _ in range(rng.randrange(6)):
                info = zipfile.ZipInfo(rng.choice(names).encode('utf-8', 'replace').decode() or 'x')
                info.external_attr = rng.choice([0, 0o100644 << 16, 0o120777 << 16, 0o40755 << 16, 0o20644 << 16, 2**32 - 1])
                z.writestr(info, bytes(rng.choice([0, 10, 10**6])))
    else:
        with tarfile.open(fileobj=out, mode='w' if form == '.tar' else 'w:gz', format=rng.choice([0, 1, 2])) as t:
            for _ in range(rng.randrange(6)):
                info = tarfile.TarInfo(rng.choice(names))
                data = bytes(rng.choice([0, 10, 10**6]))
                info.size = len(data)
                info.type = rng.choice([b'0', b'0', b'0', b'5', b'1', b'2', b'3', b'6', b'S', b'L', b'K', b'x', b'g', b'7', b'z'])
                info.linkname = rng.choice(['', 'a', '/etc/passwd'])
                if rng.random() < .2: info.pax_headers = {rng.choice(['path', 'size', 'GNU.sparse.map', 'x']): rng.choice(['-1', '9' * 30, 'a' * 10**5, '\n'])}
                with contextlib.suppress(Exception): t.addfile(info, io.BytesIO(data))
    data = out.getvalue()
    if rng.random() < .5: data = damaged(rng, data)
    path = entry(rng, folder, 'a', data, rng.choice([form] * 9 + ['.tar', '.zip', '.rar', '']))
    target = folder / rng.choice(['out', 'out', 'deep/out', 'two\nlines', '.'])
    def run():
        before = {p for p in folder.rglob('*')}
        try: unpack(path, target, rng.choice([None, None, 'a', '..', 'nowhere']))
        except LtpaError:
            left = {p for p in folder.rglob('*')} - before - {folder / 'deep'}
            assert not left, f'a refused archive left {sorted(left)[:3]}'
            raise
    return run


class Server:
    "Answers the first requests with the given bytes, each connection once, and then with nothing"
    def __init__(self, answers):
        self.socket = socket.create_server(('127.0.0.1', 0))
        self.url = f'http://127.0.0.1:{self.socket.getsockname()[1]}/file'
        threading.Thread(target=self.serve, args=(answers,), daemon=True).start()

    def serve(self, answers):
        with contextlib.suppress(OSError):
            for answer in [*answers, *[b''] * 50]:
                connection, _ = self.socket.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(2)
                    connection.recv(2**16)
                    connection.sendall(answer)


@kind
def servers(rng, folder):
    import hashlib
    from ltpa.downloads import fetch
    data = rng.randbytes(rng.choice([0, 10, 5000]))
    n = len(data)
    server_url = []
    def answer():
        status = rng.choice([b'200 OK'] * 4 + [b'206 Partial Content'] * 2 + [b'301 Moved', b'302 Found', b'404 No', b'416 Range', b'500 Oh', b'204 None', b'999 x', b'abc', b'100 Go'])
        heads = [rng.choice([b'Content-Length: %d' % n] * 3 + [b'Content-Length: -1', b'Content-Length: x', b'Content-Length: %d' % 10**19, b'Content-Length: %d' % (n + 9), b'Transfer-Encoding: chunked', b'X: y']),
                 rng.choice([b'A: b', b'Content-Range: bytes 0-%d/%d' % (n - 1, n), b'Content-Range: bytes 5-9/2', b'Content-Range: x', b'Content-Encoding: gzip'])]
        if status[:1] == b'3': heads.append(b'Location: ' + rng.choice([b'file:///etc/passwd', b'data:,x', b'', b'ftp://localhost/x', b'http://[', b'http://127.0.0.1:1/', server_url[0].encode(), b'//', b'\xff']))
        body = rng.choice([data, data, data[:n // 2], data + b'x', rng.randbytes(n), b'5\r\nabcde\r\n0\r\n\r\n', b'zz\r\n'])
        return rng.choice([b'HTTP/1.1 ' + status + b'\r\n' + b'\r\n'.join(heads) + b'\r\nConnection: close\r\n\r\n' + body] * 5 + [b'', b'garbage\r\n\r\n', b'HTTP/1.1 200 OK\r\n' + b'A: b\r\n' * 500 + b'\r\n' + data])
    holder = []
    def run():
        lazy = iter(lambda: answer(), None)
        server = Server([])                                            # its port must be known to the answers
        server_url.append(server.url)
        server.socket.close()
        server = Server([next(lazy) for _ in range(rng.choice([1, 2, 4]))])
        holder.append(server)
        url = rng.choice([server.url] * 12 + ['', 'file:///etc/hostname', 'data:,hello', 'ftp://127.0.0.1/x', 'http://', 'http://[::1', 'x', 'http://127.0.0.1:99999/', 'http://a b/', 'HTTP://user:pw@127.0.0.1:1/'])
        path = folder / rng.choice(['f.bin', 'deep/f.bin', 'Ä\n'])
        if rng.random() < .2:
            path.parent.mkdir(exist_ok=True)
            path.with_name(path.name + '.part').write_bytes(rng.choice([data[:n // 2], b'x' * 9, data + b'y']))
        try: fetch(url, path, md5=hashlib.md5(data).hexdigest(), size=rng.choice([n, n, None, n + 1, 0]))
        finally: server.socket.close()
        assert path.read_bytes() == data
    return run


# ---- results, published sets, command lines -----------------------------------------------------------------------

@kind
def results(rng, folder):
    from ltpa.studies import evaluated, stored, summarize, trained
    good = dict(title='x', rows=[dict(model='a', seed=k, accuracy=.5 + .1 * k) for k in range(3)],
                provenance=dict(commit='0' * 12, source=dict(source='cluttered_fashion', size=32, scale=None), seed=0, net={}, recipe={}))
    value = good
    for _ in range(rng.choice([0, 1, 2])): value = changed(rng, value) if isinstance(value, (dict, list)) else value
    text = rng.choice([json.dumps(value)] * 8 + [deep(10**5), '', 'NaN', '{"rows": 1e999}', '\ufeff{}'])
    data = text.encode(rng.choice(['utf-8', 'utf-8', 'utf-16', 'latin-1']), 'replace')
    if rng.random() < .3: data = damaged(rng, data)
    run = folder / 'cluttered_fashion-vgg_gap-seed0'
    run.mkdir()
    path = entry(rng, run, 'result', data, '.json')
    def told():
        rows = stored(path).get('rows', [])
        return summarize(rows, ['model'])
    return rng.choice([told, partial(stored, path), partial(evaluated, run), partial(trained, 'cluttered_fashion/vgg_gap', root=folder, train=False)])


@kind
def published(rng, folder):
    "Files of published sets: lists, records, tables"
    from ltpa import load_object_discovery, open_data
    from ltpa.published import load_cub, load_published
    lines = lambda: rng.choice(['1 a.jpg\n2 b.jpg\n', '1\n', '', '1 2 3 4 5\n' * 3, '\x00', 'x y\n', '1 1\n1 1\n', '-1 0\n', '9' * 5000 + ' 1\n', 'é ü\n']).encode()
    cub = folder / 'CUB_200_2011'
    cub.mkdir()
    for name in 'images', 'image_class_labels', 'train_test_split', 'bounding_boxes', 'classes':
        if rng.random() < .9: entry(rng, cub, name, damaged(rng, lines()) if rng.random() < .3 else lines(), '.txt')
    for name, files in dict(cifar10=['data_batch_1', 'test_batch'], svhn=['train_32x32', 'test_32x32']).items():
        root = folder / name / ('cifar-10-batches-bin' if name == 'cifar10' else '')
        root.mkdir(parents=True, exist_ok=True)
        for f in files: entry(rng, root, f, rng.randbytes(rng.choice([0, 128, 3073])), '.bin' if name == 'cifar10' else '.mat')
    scenes = folder / 'scene67'
    (scenes / 'Images').mkdir(parents=True)
    for f in 'TrainImages', 'TestImages': entry(rng, scenes, f, rng.choice([b'a/b.jpg\n', b'../x\n', b'\xff\xfe', b'', b'a\n' * 9]), '.txt')
    (folder / 'Car100/GroundTruth').mkdir(parents=True)
    fill(rng, folder / 'Car100')
    def there(name, split):
        os.environ['LTPA_DATA'] = str(folder)
        try: return open_data(name, split)
        finally: del os.environ['LTPA_DATA']
    return rng.choice([partial(load_cub, cub, rng.choice(['train', 'test', 'x'])), partial(there, 'cifar10', 'train'), partial(there, 'svhn', 'test'), partial(there, 'cub', 'test'),
                       partial(load_published, 'scene67', 'train', scenes), partial(load_object_discovery, folder, 'Car100')])


@kind
def command_lines(rng, folder):
    from ltpa.cli import build_parser, main
    root = folder / 'photos'
    root.mkdir()
    if rng.random() < .4: tree(rng, root)
    else:
        for name in 'cat', 'dog':
            (root / name).mkdir()
            for k in range(8): fill_one(root / name / f'{k}.png', random.Random(f'{name}{k}'))
    weights = trained_on(folder)
    commands = next(a for a in build_parser()._actions if hasattr(a, 'choices') and isinstance(a.choices, dict)).choices
    command = rng.choice(['train', 'train', 'evaluate', 'explain', 'predict', 'recipes', 'download', 'export'])
    options = [a for a in commands[command]._actions if a.option_strings and not {'-h', '--resume', '--download', '--compile'} & set(a.option_strings)]
    words = ['', '0', '-1', '1', '2', '1e9', 'nan', 'inf', '1e-400', str(2**63), '9000002', '100000', '0x10', 'x', 'None', *(n for n in NAMES if '\0' not in n), str(root), str(weights)]
    args = []
    for a in rng.sample(options, min(len(options), rng.choice([0, 1, 1, 2, 3]))):
        args.append(rng.choice(a.option_strings))
        if a.nargs != 0: args.append(rng.choice([rng.choice(words), *(str(c) for c in list(a.choices or [])[:3])]))
    first = dict(train=rng.choice([['--data', str(root)], [f'{root}/vgg_att1_pc'], [rng.choice(words)], ['nowhere/vgg'], []]),
                 evaluate=[rng.choice([str(weights), rng.choice(words)])] + rng.choice([[], ['--data', str(root)], ['--data', rng.choice(words)]]),
                 explain=(asked := rng.choices([str(next(root.rglob('*.png'), root)), rng.choice(words), f'{root}/*.png'], k=rng.choice([1, 1, 2]))),
                 predict=asked, export=[rng.choice([str(weights), rng.choice(words)]), '--format', rng.choice(['hub', 'hub', 'torch'])], recipes=[rng.choice(['', 'cifar', 'x', '['])], download=[rng.choice(['x', '', 'cluttered_fashion'])])[command]
    if command == 'train': args += ['--width', '0.0625', '--stop-after', '1', '--out', str(folder / 'run'), '--quiet', '--device', 'cpu']
    if command == 'evaluate' and '--data' not in first + args: args += ['--data', str(root)]
    return lambda: main([command, *first, *args])


# ---- running ------------------------------------------------------------------------------------------------------

class Late(BaseException): pass


def late(signum, frame): raise Late()


def peak():
    "The most memory that this process has had since the last `forget_peak`, in bytes"
    with open('/proc/self/status') as f: return next(int(line.split()[1]) * 1024 for line in f if line.startswith('VmHWM'))


def forget_peak():
    with contextlib.suppress(OSError), open('/proc/self/clear_refs', 'w') as f: f.write('5')


def finding(name, seed):
    "What went wrong with an input, in a line, or None; and its traceback"
    rng = random.Random(f'{name}:{seed}')
    out, err, here = io.StringIO(), io.StringIO(), os.getcwd()
    folder = Path(tempfile.mkdtemp(prefix='fuzz-'))
    try:
        os.chdir(folder)
        (folder / 'in').mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            call = KINDS[name](rng, folder / 'in')
        forget_peak()
        before = peak()
        signal.signal(signal.SIGALRM, late)
        signal.alarm(PATIENCE)
        odd = trace = None
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                code = call()
            if name == 'command_lines' and repr(code) not in ('0', '1', '2'): odd = f'exit code {code!r}'
        except LtpaError as e:
            text = str(e)
            if len(text.splitlines()) != 1 or not text.isprintable() or len(text) > 4100: odd = f'a message that is no line: {text[:300]!r}'
        except SystemExit as e:
            if e.code not in (0, 2): odd = f'exit code {e.code!r}'
        except Late: odd, trace = f'no end after {PATIENCE} s', traceback.format_exc()
        except BaseException as e: odd, trace = f'{type(e).__module__}.{type(e).__name__}: {str(e)[:200]}', traceback.format_exc()
        finally: signal.alarm(0)
        grown = peak() - before
        if odd is None and grown > MOST_MEMORY: odd = f'{grown / 2**20:.0f} MiB more memory'
        said = out.getvalue() + err.getvalue()
        if odd is None and ('\x1b' in said or 'Traceback' in said): odd = f'odd output: {said[-300:]!r}'
        return odd, trace
    finally:
        os.chdir(here)
        shutil.rmtree(folder, ignore_errors=True)


def work(names, seeds, pipe):
    "In a child: each input, its start and its end told through the pipe"
    torch.set_num_threads(1)
    for name, seed in zip(names, seeds):
        pipe.send((name, seed, None, None))
        pipe.send((name, seed, *finding(name, seed)))
    pipe.close()


def run(n=2000, seed=0, kinds=None, workers=2, start='spawn', patience=PATIENCE + 60):
    "The findings among n inputs: [(kind, seed, what, traceback)]; `patience`: seconds that a child may be silent"
    names = list(kinds or KINDS)
    todo = [(names[k % len(names)], seed * 10**6 + k // len(names)) for k in range(n)]
    queues = [todo[k::workers] for k in range(workers)]
    found, context, begun = [], multiprocessing.get_context(start), time.monotonic()
    def drive(queue):
        while queue:
            ours, theirs = context.Pipe(False)
            child = context.Process(target=work, args=(*zip(*queue), theirs), daemon=True)
            child.start()
            theirs.close()
            now, done = None, 0
            try:
                while True:
                    if not ours.poll(patience): what = 'it hangs'; break
                    name, number, odd, trace = message = ours.recv()
                    if now == (name, number): now, done = None, done + 1
                    else: now = name, number
                    if odd: found.append((name, number, odd, trace))
            except EOFError: what = 'the process died'
            child.kill()
            child.join()
            if now: found.append((*now, f'{what} (exit code {child.exitcode})', None)); done += 1
            queue = queue[done:] if now or done < len(queue) else []
    threads = [threading.Thread(target=drive, args=(q,)) for q in queues]
    for t in threads: t.start()
    for t in threads: t.join()
    print(f'{n} inputs of {len(names)} kinds, {len(found)} findings, {time.monotonic() - begun:.0f} s')
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=2000)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--kinds', nargs='+', choices=KINDS)
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--one', metavar='KIND:SEED')
    a = p.parse_args()
    if a.one:
        name, _, number = a.one.partition(':')
        odd, trace = finding(name, int(number))
        print(trace or '', odd)
        return bool(odd)
    found = run(a.n, a.seed, a.kinds, a.workers)
    for (name, what), count in Counter((f[0], f[2][:110]) for f in found).most_common():
        first = next(f for f in found if f[0] == name and f[2][:110] == what)
        print(f'{count:4} x {name}:{first[1]}  {what}')
    return bool(found)


if __name__ == '__main__': sys.exit(main())
