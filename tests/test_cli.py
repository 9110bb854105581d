"""The command `ltpa`: runs from every kind of source, resuming, one line and exit code 2 for bad input."""
import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import differing, one_line, pictures, tiny_net, words_id
from PIL import Image

from ltpa import __version__, cli
from ltpa.names import DOWNLOADS, USUAL_MODEL
from ltpa.data import ClutteredFashion
from ltpa.weights import read_tensors
from ltpa.models import load_weights, save_weights
from ltpa.training import Callback
from ltpa.checkpoints import read_checkpoint

TINY = '--quiet --no-report --no-tensorboard --width 0.03125 --early-pools 2 --batch-size 8 --epochs 2 --lr 0.01 --device cpu'.split()
FILES = ['checkpoint.safetensors', 'history.csv', 'result.json', 'weights.safetensors']


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    "An empty folder to work in, without data."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('LTPA_DATA', raising=False)
    return tmp_path


def arrays(folder, n=28, size=16, classes=3, **changes):
    "Noise to train on, and twice as much to test on; `train=` and `test=` replace arrays."
    folder.mkdir(exist_ok=True)
    for split, count in (('train', n), ('test', 2 * n)):
        data = pictures(count, size, classes)
        content = dict(images=data.images.numpy(), labels=data.labels.numpy())
        np.savez(folder / f'{split}.npz', **content | changes.get(split, {}))
    return folder


def photos(folder, classes='abc', n=6, mode='RGB'):
    for i, x in enumerate(pictures(n * len(classes), 20).images):
        (folder / classes[i // n]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x.permute(1, 2, 0).numpy()).convert(mode).save(folder / classes[i // n] / f'{i}.png')
    return folder


def result(folder): return json.loads((folder / 'result.json').read_text())


# What a run leaves behind

def test_arrays(ltpa, here):
    code, out, err = ltpa('train', f'{arrays(here / "set")}/vgg_gap', '--out', 'run', '--seed', 3, *TINY)
    assert (code, err) == (0, '') and sorted(os.listdir('run')) == FILES
    made = result(here / 'run')
    row, record = made['rows'][0], made['provenance']
    assert row['model'] == 'vgg_gap' and row['images'] == 56 and row['seed'] == 3 and row['passes'] == 2
    assert row['parameters'] == sum(p.numel() for p in load_weights('run/weights.safetensors').parameters())
    wanted = {'commit', 'when', 'device', 'hardware', 'threads', 'versions', 'target', 'size', 'seed',
              'recipe', 'net', 'source', 'seconds', 'steps', 'data'}
    assert wanted <= set(record) and record['recipe']['epochs'] == 2 and record['net']['width'] == .03125
    assert record['steps'] == len(made['losses']) == 6
    assert f'{row["accuracy"]:.4f}' in out and 'seconds' in out


def test_evaluate_repeats_the_result_exactly(ltpa, here):
    target = f'{arrays(here / "set", n=100)}/vgg_gap'
    assert ltpa('train', target, '--out', 'run', *TINY)[0] == 0
    code, out, err = ltpa('evaluate', 'run/weights.safetensors', '--json', '--device', 'cpu')
    row = json.loads(out)
    assert (code, err) == (0, '') and 0 < row['accuracy'] < 1
    made = result(here / 'run')
    assert row == {k: (made | made['rows'][0])[k] for k in row} and {'accuracy', 'balanced_accuracy', 'classes', 'confusion'} <= set(row)
    code, out, err = ltpa('evaluate', 'run/checkpoint.safetensors', '--device', 'cpu')
    assert (code, err) == (0, '') and 'accuracy' in out
    other = arrays(here / 'other', n=7)
    code, out, err = ltpa('evaluate', 'run/weights.safetensors', '--json', '--data', other)
    assert (code, err) == (0, '') and json.loads(out)['images'] == 14


def test_evaluation_with_other_class_names(ltpa, here):
    named = dict(train=dict(classes=['cat', 'dog', 'cow']), test=dict(classes=['cat', 'dog', 'cow']))
    assert ltpa('train', f'{arrays(here / "set", **named)}/vgg_gap', '--out', 'run', *TINY)[0] == 0
    for names, words in ((['cow', 'dog', 'cat'], ("class 0 is 'cow'", "'cat'")),
                         (['cat', 'dog', 'cow', 'pig'], ("class 3 is 'pig'", 'none'))):
        arrays(here / 'other', test=dict(classes=names))
        for path in 'run/weights.safetensors', 'run/checkpoint.safetensors':
            refused(ltpa('evaluate', path, '--data', 'other', '--device', 'cpu'), 'other', *words, 'same order')
    arrays(here / 'other', **named)
    assert ltpa('evaluate', 'run/weights.safetensors', '--data', 'other', '--device', 'cpu')[0] == 0


@pytest.mark.parametrize('wrong', [('train', 'test'), ('test',)], ids='-'.join)
@pytest.mark.parametrize('H, W', [(48, 32), (32, 48)])
def test_pictures_that_are_not_square_and_do_not_fit(H, W, wrong, ltpa, here):
    arrays(here / 'set', size=32, **{split: dict(images=np.zeros((n, H, W, 3), np.uint8))
                                     for split, n in dict(train=28, test=56).items() if split in wrong})
    refused(ltpa('train', 'set/vgg_att1_pc', '--out', 'run', *TINY), f'{H}x{W} pixels', 'multiples of 32')
    assert not os.path.exists('run')


def test_cost_of_pictures_that_are_not_square(ltpa, here):
    cost = {}
    for W in 32, 64:
        arrays(here / f'set{W}', **{split: dict(images=np.zeros((n, 32, W, 3), np.uint8))
                                    for split, n in dict(train=28, test=56).items()})
        assert ltpa('train', f'set{W}/vgg_gap', '--out', f'run{W}', *TINY, '--width', .125)[::2] == (0, '')
        cost[W] = result(here / f'run{W}')['rows'][0]['gmac']
    assert cost[64] == pytest.approx(2 * cost[32], rel=.05)


def test_a_set_that_stands_in_is_named(ltpa, here, monkeypatch):
    monkeypatch.setattr('ltpa.published.ClutteredFashion', lambda *a, **kw: ClutteredFashion(*a, **kw, n=40))
    assert ltpa('train', 'cifar10/vgg_gap', '--size', 'small', *TINY)[::2] == (0, '')
    run = here / 'runs' / 'cluttered_fashion-vgg_gap-seed0'
    made = result(run)
    assert made['title'].startswith('cluttered_fashion/vgg_gap, size small')
    assert made['rows'][0]['data'].startswith('cluttered_fashion') and os.listdir('runs') == [run.name]
    assert made['provenance']['target'] == 'cifar10/vgg_gap', 'what was asked for is kept as well'


def test_arrays_whose_test_part_lacks_a_class(ltpa, here):
    arrays(here / 'set', test=dict(labels=np.arange(56) % 2))
    code, out, err = ltpa('train', 'set/vgg_gap', '--out', 'run', *TINY)
    assert (code, err) == (0, '') and result(here / 'run')['rows'][0]['images'] == 56


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', 'RGBA', '1'])
def test_folder_of_images_and_the_usual_run_folder(mode, ltpa, here):
    photos(here / 'photos', mode=mode)
    code, out, err = ltpa('train', 'photos/vgg_gap', '--image-size', 16, *TINY)
    run = here / 'runs' / 'photos-vgg_gap-seed0'
    assert (code, err) == (0, '') and sorted(os.listdir(run)) == FILES
    assert result(run)['rows'][0]['images'] == 4
    assert load_weights(run / FILES[-1]).info['classes'] == ['a', 'b', 'c']


@pytest.mark.parametrize('folder', ['set', 'set/', '.'])
def test_folder_with_the_usual_model(folder, ltpa, here, monkeypatch):
    arrays(here / 'set', size=32)
    if folder == '.': monkeypatch.chdir(here / 'set')
    code, out, err = ltpa('train', '--data', folder, *TINY)
    run = Path('runs') / f'set-{USUAL_MODEL}-seed0'
    assert (code, err) == (0, '') and result(run)['rows'][0]['model'] == USUAL_MODEL
    assert load_weights(run / FILES[-1]).info['source']['source'] == folder.rstrip('/')


@pytest.mark.parametrize('argv', [[], ['set/vgg_gap', '--data', 'set']], ids=['neither', 'both'])
def test_a_model_and_its_set_are_named_in_one_way(argv, ltpa, here):
    arrays(here / 'set')
    refused(ltpa('train', *argv, *TINY, '--out', 'run'), 'SET/MODEL', '--data FOLDER', 'one of the two')
    assert not os.path.exists('run')


def test_data_that_are_not_there(ltpa):
    refused(ltpa('train', '--data', 'no/set', *TINY), 'no/set: no such file or folder')


def test_bundled_set(ltpa, here, monkeypatch):
    monkeypatch.setattr('ltpa.published.ClutteredFashion', lambda *a, **kw: ClutteredFashion(*a, **kw, n=40))
    target = 'cluttered_fashion/vgg_att2_concat_pc'
    code, out, err = ltpa('train', target, '--scale', .5, '--out', 'run', *TINY)
    made = result(here / 'run')
    first = made | made['rows'][0]
    assert (code, err) == (0, '') and {'pointing_1', 'pointing_2'} <= set(first)
    again = json.loads(ltpa('evaluate', 'run/weights.safetensors', '--json', '--device', 'cpu')[1])
    assert again == {k: first[k] for k in again}, 'the scale is part of the record'


@pytest.mark.slow
def test_bundled_set_in_full(ltpa, here):
    code, out, err = ltpa('train', 'cluttered_fashion/vgg_gap', '--image-size', 16, '--out', 'run', *TINY,
                          '--batch-size', 500, '--epochs', 1)
    assert (code, err) == (0, '') and result(here / 'run')['rows'][0]['images'] == 4000


def test_options_reach_the_network_and_the_recipe(ltpa, here):
    more = ('--dropout --norm sigmoid --temperature 2 --no-flip --crop 1 --clip 1 '
            '--optimizer sgd --schedule halve')
    target = f'{arrays(here / "set", size=32)}/vgg_att1_pc'
    code, out, err = ltpa('train', target, '--out', 'run', *TINY, *more.split())
    assert (code, err) == (0, '')
    net = dict(num_classes=3, width=.03125, early_pools=2, dropout=True, norm='sigmoid', temperature=2.)
    recipe = dict(flip=False, crop=1, clip=1., optimizer='sgd', schedule='halve', epochs=2, lr=.01)
    record = result(here / 'run')['provenance']
    assert record['net'] == net and recipe.items() <= record['recipe'].items()


def test_a_resnet_has_sizes_of_its_own(ltpa, here):
    target = f'{arrays(here / "set", size=32)}/resnet164_att2_concat_pc'
    how = '--quiet --width .0625 --batch-size 8 --epochs 1 --device cpu'.split()
    for out, more, depth in ('usual', [], 20), ('other', ['--depth', 11], 11):
        assert ltpa('train', target, '--out', out, *how, *more)[::2] == (0, '')
        net = result(here / out)['provenance']['net']
        assert net == dict(num_classes=3, width=.0625, depth=depth, dropout=False)
        assert load_weights(here / out / FILES[-1]).config == net


# Interrupted and resumed

def same_run(a, b):
    made, again = result(a), result(b)
    assert made['rows'] == again['rows'] and made['losses'] == again['losses']
    for name in FILES[0], FILES[-1]: assert not differing(read_tensors(a / name)[0], read_tensors(b / name)[0])


@pytest.mark.parametrize('at, left', [(1, 0), (4, 3), (6, 3)])
def test_interrupted_and_resumed(at, left, ltpa, here, monkeypatch):
    target = f'{arrays(here / "set", size=32)}/vgg_att1_dp'
    how = ['train', target, *TINY[1:], '--dropout', '--crop', 2]
    class Interrupt(Callback):
        def after_step(self, learn):
            if learn.step == at: raise KeyboardInterrupt
    assert ltpa(*how, '--out', 'whole')[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr('ltpa.training.Progress', Interrupt)
        code, out, err = ltpa(*how, '--out', 'run')
    assert code == 130
    one_line(err.strip(), 'interrupted', '--resume')
    assert not (here / 'run' / 'result.json').exists()
    code, out, err = ltpa(*how, '--out', 'run', '--resume')
    assert (code, err) == (0, '') and result(here / 'run')['provenance']['resumed_at_step'] == left
    same_run(here / 'whole', here / 'run')


@pytest.mark.whole       # in test_faults.py Ctrl-C ends the command, and SIGKILL a training
@pytest.mark.slow
def test_killed_and_resumed(ltpa, here):
    how = ['train', f'{arrays(here / "set")}/vgg_gap', *TINY, '--epochs', '60']
    assert ltpa(*how, '--out', 'whole')[0] == 0
    alone = {**os.environ, 'OMP_NUM_THREADS': '1'}         # as many threads as here, else the bits may differ
    process = subprocess.Popen([sys.executable, '-m', 'ltpa', *how, '--out', 'run'], env=alone)
    checkpoint, saves, give_up = here / 'run' / FILES[0], set(), time.monotonic() + 120
    try:
        while len(saves) < 8:
            assert process.poll() is None and time.monotonic() < give_up
            if checkpoint.exists(): saves.add(checkpoint.stat().st_mtime_ns)
            time.sleep(.002)
    finally: process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < read_checkpoint(checkpoint)[1]['step'] < 180, 'killed too early or too late to show anything'
    assert ltpa(*how, '--out', 'run', '--resume')[0] == 0
    same_run(here / 'whole', here / 'run')
    assert sorted(f for f in os.listdir('run') if not f.endswith('.tmp')) == FILES


def test_resuming_a_finished_run_repeats_its_result(ltpa, here):
    how = ['train', f'{arrays(here / "set")}/vgg_gap', '--out', 'run', *TINY]
    assert ltpa(*how)[0] == 0
    first = result(here / 'run')
    assert ltpa(*how, '--resume')[0] == 0
    assert result(here / 'run')['rows'] == first['rows'] and result(here / 'run')['losses'] == first['losses']


# Refused

def refused(answer, *words):
    code, out, err = answer
    assert code == 2 and not out
    one_line(err.strip(), 'ltpa: ', *words)


ZERO = np.zeros((28, 16, 16, 3), np.float32)


@pytest.mark.parametrize('argv, words', [
    (['vgg_gap'], ("'vgg_gap' is not SET/MODEL", 'cluttered_fashion/vgg_att3_concat_pc')),
    (['set/vgg_gab'], ("unknown model 'vgg_gab'", "'vgg_gap'")),
    (['cifar11/vgg_gap'], ("unknown data set 'cifar11'", "'cifar10'")),
    (['no/where/vgg_gap'], ('no/where: no such file or folder',)),
    (['cifar10/vgg_gap'], ('cifar10 is not in data', '170 MB', 'ltpa download cifar10')),
    (['set/vgg_gap', '--recipe', 'fats'], ("unknown recipe 'fats'", "'fast'")),
    (['set/vgg_gap', '--size', 'papers'], ("unknown size 'papers'", "'paper'")),
    (['set/vgg_gap', '--schedule', 'cosine'], ("unknown schedule 'cosine'", 'onecycle')),
    (['set/vgg_gap', '--optimizer', 'adam'], ("unknown optimizer 'adam'", "'adamw'")),
    (['set/vgg_att1_pc', '--norm', 'sofmax'], ("unknown normalisation 'sofmax'", "'softmax'")),
    (['set/vgg_gap', '--device', 'gpu'], ("unknown device 'gpu'", "'cpu'")),
    (['set/vgg_gap', '--seed', '-1'], ('seed -1', 'from 0')),
    (['set/vgg_gap', '--epochs', '0'], ('epochs=0', 'at least 1')),
    (['set/vgg_gap', '--epochs', 'many'], ('epochs', "'many'")),
    (['set/vgg_gap', '--lr', '-1'], ('lr=-1', 'above 0')),
    (['set/vgg_gap', '--recipe', 'paper', '--nesterov', '--dampening', '.5'], ('nesterov=True', 'dampening=0.5')),
    (['set/vgg_gap', '--recipe', 'paper', '--nesterov', '--momentum', '0'], ('nesterov=True', 'momentum=0.0')),
    (['set/vgg', '--size', 'paper', '--preset', 'official_code', '--nesterov'], ('nesterov=True', 'dampening=0.9')),
    (['set/vgg_gap', '--stop-after', '-3'], ('stop after -3 steps', 'at least 1')),
    (['set/vgg_gap', '--stop-after', '0'], ('stop after 0 steps', 'at least 1')),
    (['set/vgg_gap', '--lr', 'nan'], ('lr=nan', 'above 0')),
    (['set/vgg_gap', '--batch-size', '0'], ('batch_size=0', 'at least 1')),
    (['set/vgg_gap', '--batch-size', '29'], ('28 images', 'batch of 29', 'smaller')),
    (['set/vgg_trunk', '--image-size', '32', '--batch-size', '1'], ('batch of one', 'larger batch')),
    (['set/vgg_gap', '--image-size', '20'], ('20x20 pixels', 'multiples of 16')),
    (['set/vgg_att1_pc', '--image-size', '16'], ('16x16 pixels', 'multiples of 32')),
    (['set/vgg_gap', '--image-size', '-16'], ('-16', 'expected')),
    (['set/vgg_gap', '--image-size', '0'], ('0', 'expected')),
    (['set/vgg_gap', '--width', '0'], ('width 0', 'above 0')),
    (['set/vgg_gap', '--early-pools', '3'], ('3', '0', '1', '2')),
    (['set/vgg_att1_pc', '--image-size', '32', '--temperature', '0'], ('temperature 0', 'above 0')),
    (['set/vgg_gap', '--temperature', '2'], ('vgg_gap', 'temperature', 'known')),
    (['set/resnet164'], ("resnet164: unknown switch 'early_pools'", 'known: width, depth')),
    (['set/vgg_gap', '--depth', '11'], ("vgg_gap: unknown switch 'depth'", 'known: width')),
    (['set/vgg_gap', '--scale', '.5'], ('scale can be set for cluttered_fashion only',)),
    (['cluttered_fashion/vgg_gap', '--scale', '2'], ('scale 2.0', '<= 1')),
    (['set/vgg_gap', '--color', 'red'], ('--color',)),
    (['set/vgg_gap', '--resume'], ('no checkpoint to resume from', 'leave out --resume')),
], ids=words_id)
def test_refused_arguments(argv, words, ltpa, here):
    arrays(here / 'set')
    refused(ltpa('train', *argv[:1], *TINY, '--out', 'run', *argv[1:]), *words)
    assert not os.path.exists('run'), 'a run folder is left behind, which the corrected command trips over'


def empty_class(folder): photos(folder); (folder / 'd').mkdir()
def truncated(folder): path = photos(folder) / 'a' / '0.png'; path.write_bytes(path.read_bytes()[:99])
def no_image(folder): photos(folder); (folder / 'b' / 'x.png').write_text('no image')
def one_pixel(folder): photos(folder); Image.new('L', (1, 1)).save(folder / 'b' / 'x.png')


@pytest.mark.parametrize('make, words', [
    (lambda f: arrays(f, train=dict(labels=np.arange(28) - 1)), ('label -1 at row 0', 'expected 0 to')),
    (lambda f: arrays(f, train=dict(classes=['a', 'b'])), ('label 2 at row 2', 'expected 0 to 1')),
    (lambda f: arrays(f, train=dict(labels=np.zeros(28, int))), ('at least two',)),
    (lambda f: arrays(f, train=dict(labels=np.arange(27) % 3)), ('28 images but 27 labels',)),
    (lambda f: arrays(f, train=dict(images=ZERO * np.nan)), ('image 0 has NaN',)),
    (lambda f: arrays(f, test=dict(images=ZERO * np.nan)), ('test', 'image 0 has NaN')),
    (lambda f: arrays(f, train=dict(images=ZERO + 7)), ('pixels 7 to 7', '0..1')),
    (lambda f: arrays(f, train=dict(images=ZERO[..., :2])), ('(28, 16, 16, 2)', 'C of 1, 3 or 4')),
    (lambda f: arrays(f, test=dict(labels=np.arange(56) % 4)), ('test', '3', 'class')),
    (lambda f: arrays(f, train=dict(classes=list('abc')), test=dict(classes=list('acb'))), ('test', "'b'")),
    (lambda f: (arrays(f) / 'test.npz').unlink(), ('test.npz: no such file',)),
    (lambda f: (arrays(f) / 'train.npz').write_bytes(b'PK\3\4'), ('train.npz is truncated or damaged',)),
    (lambda f: f.mkdir(), ('0 class folder', 'at least two')),
    (lambda f: photos(f, classes='a'), ('1 class folder', 'at least two')),
    (empty_class, ('d holds no images', 'fill or remove')),
    (truncated, ('0.png is truncated or damaged', 'replace or remove')),
    (no_image, ('x.png is not an image',)),
    (one_pixel, ('x.png is 1x1 pixels', 'at least 8')),
], ids=words_id)
def test_refused_data(make, words, ltpa, here):
    make(here / 'set')
    refused(ltpa('train', 'set/vgg_gap', *TINY, '--image-size', 16, '--out', 'run'), *words)
    assert not os.path.exists('run')


def test_run_folder_in_use(ltpa, here):
    how = ['train', f'{arrays(here / "set")}/vgg_gap', '--out', 'run', *TINY]
    assert ltpa(*how)[0] == 0
    before = {f: (here / 'run' / f).read_bytes() for f in FILES}
    refused(ltpa(*how), 'run holds a run already', '--resume', '--out')
    refused(ltpa(*how, '--resume', '--epochs', 3), 'another recipe: epochs=2, not 3', 'start a new run')
    refused(ltpa(*how, '--resume', '--seed', 1), 'another seed: 0, not 1', 'start a new run')
    other = ['train', 'set/vgg_trunk', *how[2:], '--image-size', 32]
    refused(ltpa(*other, '--resume'), "another model: 'vgg_gap', not 'vgg_trunk'")
    arrays(here / 'set', n=29)
    refused(ltpa(*how, '--resume'), 'another data', 'start a new run')
    assert before == {f: (here / 'run' / f).read_bytes() for f in FILES}
    arrays(here / 'set')
    (here / 'run' / FILES[0]).write_bytes(before[FILES[0]][:-1])
    refused(ltpa(*how, '--resume'), FILES[0], 'truncated')


@pytest.mark.parametrize('out', ['file', 'file/run', '/proc/run'])
def test_run_folder_that_cannot_be_written(out, ltpa, here):
    (here / 'file').touch()
    refused(ltpa('train', f'{arrays(here / "set")}/vgg_gap', *TINY, '--out', out), out, 'another folder')


@pytest.mark.parametrize('calls', [['mkdir'], ['mkdir', 'stat']], ids=['read only', 'closed'])
def test_run_folder_without_permission(calls, ltpa, here, monkeypatch):
    "As an ordinary user meets it; root, as whom tests may run, is refused nothing."
    def refuse(call):
        def guarded(path, *args, **kw):
            if 'locked' in str(path): raise PermissionError(errno.EACCES, 'Permission denied', str(path))
            return call(path, *args, **kw)
        return guarded
    for name in calls: monkeypatch.setattr(os, name, refuse(getattr(os, name)))
    answer = ltpa('train', f'{arrays(here / "set")}/vgg_gap', *TINY, '--out', 'locked/run')
    refused(answer, 'locked', 'Permission denied', 'another folder')


def test_loss_that_diverges_keeps_the_last_good_checkpoint(ltpa, here):
    target = f'{arrays(here / "set")}/vgg_gap'
    how = ['train', target, '--out', 'run', *TINY, '--lr', '1e25', '--optimizer', 'sgd']
    kept = f'last good checkpoint is {Path("run", FILES[0])}'
    code, out, err = ltpa(*how)
    assert 'training' in out and 'accuracy' not in out, 'it began'
    refused((code, '', err), 'the loss became nan', 'lower the learning rate', kept)
    assert os.listdir('run') == FILES[:1]
    assert all(v.isfinite().all() for v in load_weights(f'run/{FILES[0]}').state_dict().values())


SET = dict(source='set', size=None, scale=None)


@pytest.mark.parametrize('make, words', [
    (lambda path: None, ('w.safetensors: no such file',)),
    (lambda path: path.mkdir(), ('w.safetensors is a folder', 'expected a .safetensors file')),
    (lambda path: path.write_bytes(b'x' * 99), ('truncated or is not a safetensors file', 'fetch it again')),
    (lambda path: torch.save({}, path), ('pickles are never loaded',)),
    (lambda path: save_weights(tiny_net(), path), ('does not say what it was trained on', '--data')),
    (lambda path: save_weights(tiny_net(classes=4), path, source=SET), ('knows 4 classes', 'trained for')),
    (lambda path: save_weights(tiny_net('vgg'), path, source=SET), ('16x16 pixels', 'multiples of 32')),
    (lambda path: save_weights(tiny_net(), path, source=SET | dict(source='no/set')), ('no/set: no such',)),
], ids=words_id)
def test_refused_evaluations(make, words, ltpa, here):
    arrays(here / 'set')
    make(here / 'w.safetensors')
    refused(ltpa('evaluate', here / 'w.safetensors', '--device', 'cpu'), *words)


def test_evaluation_on_another_kind_of_set(ltpa, here):
    "The scale of the objects belongs to the bundled set alone."
    source = dict(source='cluttered_fashion', size=16, scale=.5)
    save_weights(tiny_net(), here / 'w.safetensors', source=source)
    code, out, err = ltpa('evaluate', 'w.safetensors', '--json', '--data', arrays(here / 'set'))
    assert (code, err) == (0, '') and json.loads(out)['images'] == 56
    refused(ltpa('evaluate', 'w.safetensors', '--data', 'cifar11'), "unknown data set 'cifar11'", "'cifar10'")


def test_download(ltpa, here, server, monkeypatch):
    monkeypatch.setattr('ltpa.published.CIFAR_IMAGES', dict(train=5, test=1))
    with tarfile.open(here / 'x.tgz', 'w:gz') as tar:
        for name, content in [(f'data_batch_{i}.bin', bytes([i] * 3073)) for i in range(1, 6)] + [
                ('test_batch.bin', bytes(3073)), ('batches.meta.txt', b'a b c d e f')]:
            member = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    server.body = (here / 'x.tgz').read_bytes()
    place = server.url, len(server.body), hashlib.md5(server.body).hexdigest()
    monkeypatch.setitem(DOWNLOADS, 'cifar10', ('cifar-10-batches-bin', [place]))
    server.status = 404
    refused(ltpa('download', 'cifar10'), 'cifar10 (', 'could not be fetched', '404', 'data/cifar10/set.bin')
    server.status = 200
    refused(ltpa('download', 'cifar10'), 'ends in .tar')
    monkeypatch.setitem(DOWNLOADS, 'cifar10', ('cifar-10-batches-bin', [(server.url + '.tgz', *place[1:])]))
    code, out, err = ltpa('download', 'cifar10')
    assert (code, err) == (0, '') and 'cifar10/train: 5 images in data/cifar10' in out
    assert 'cifar10/test: 1 images in data/cifar10' in out
    assert 'cifar10' in ltpa('download')[1] and len(server.asked) == 3
    refused(ltpa('download', 'cifar11'), "'cifar11'", "did you mean 'cifar10'")


def test_download_lists_the_sets(ltpa, here):
    arrays(here / 'data').rename(here / 'svhn')
    (here / 'data').mkdir()
    (here / 'svhn').rename(here / 'data' / 'svhn')
    code, out, err = ltpa('download')
    assert (code, err) == (0, '') and [line.split()[0] for line in out.splitlines()] == list(DOWNLOADS)
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert '246 MB' in rows['svhn'] and rows['svhn'].endswith('in data/svhn') and 'not here' in rows['cub']
    assert 'nothing to fetch' in ltpa('download', 'cluttered_fashion')[1]


def test_interrupted_download(ltpa, monkeypatch):
    def interrupt(*args): raise KeyboardInterrupt
    monkeypatch.setattr(cli, 'download', interrupt)
    assert ltpa('download', 'cub') == (130, '', 'ltpa: interrupted; run it again\n')


# Help

@pytest.mark.parametrize('command', [(), *((name,) for name in cli.COMMANDS)], ids=lambda c: c[0] if c else 'ltpa')
def test_help(command, ltpa, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    code, out, err = ltpa(*command, '--help')
    assert (code, err) == (0, '')
    examples = out.split('examples:\n')[1].split('\n\n')[0]
    for name in command or cli.COMMANDS: assert f'\n  ltpa {name}' in examples, 'its own examples, not folded'
    others = set(cli.COMMANDS) - set(command or cli.COMMANDS)
    assert not any(f'ltpa {name}' in examples for name in others), 'and no others'
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize('command, example', [
    (name, line) for name, text in cli.EXAMPLES.items() for line in text.replace('\\\n', '').splitlines()
    if line.startswith('  ltpa ')])
def test_examples_are_commands(command, example):
    assert cli.build_parser().parse_args(example.split()[1:]).command == command


def test_version(ltpa):
    assert ltpa('--version') == (0, f'ltpa {__version__}\n', '')


def test_help_states_the_defaults_of_every_size(ltpa):
    text = ' '.join(ltpa('train', '--help')[1].split('examples:')[0].split())
    option = lambda name: text.split(f' --{name} ')[-1].split(' --')[0]
    for name, value in dict(epochs=16, lr=.004, crop=4, label_smoothing=.1, batch_size=128).items():
        assert f'{value} (size cifar)' in option(name.replace('_', '-'))
    assert '8 for dp except at size paper' in option('temperature')
    assert '0.25 (0.5 for ResNets)' in option('width') and 'default: 164 at size paper, else 20' in option('depth')


def test_help_as_a_module():
    done = subprocess.run([sys.executable, '-m', 'ltpa', '--help'], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '') and 'examples:' in done.stdout


def test_old_address():
    done = subprocess.run([sys.executable, '-m', 'ltpa.scaling', '--version'], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith('ltpa ')
    assert 'DeprecationWarning: python -m ltpa.scaling is now python -m ltpa' in done.stderr


def test_no_command(ltpa):
    code, out, err = ltpa()
    assert code == 2 and not out and 'COMMAND' in err
