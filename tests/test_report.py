"""Own data, from a folder or a table to a report: labels, history, scores by class, balance, the page."""
import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import differing, pictures, refuses, tiny_net
from PIL import Image
from sklearn import metrics
from test_folders import fill, here, put, refused                        # noqa: F401  # a fixture

from ltpa import Learner, get_recipe, load_folder, open_data
from ltpa.checkpoints import load_checkpoint, read_checkpoint, save_checkpoint
from ltpa.data import ImageSet
from ltpa.history import COLUMNS, read_history, tensorboard_writer
from ltpa.report import MOST_DRAWN, Answers, confident_errors, draw_confusion, draw_errors, write_report
from ltpa.runs import RUN_FILES, evaluate_weights, run_training
from ltpa.scores import MOST_DENSE, by_class, lines_of
from ltpa.splits import survey
from ltpa.studies import evaluated, merge, summarize
from ltpa.training import class_weights, loss_of, predict
from ltpa.walker import is_run
from ltpa.weights import read_tensors

TINY = '--no-tensorboard --width 0.03125 --early-pools 2 --device cpu --image-size 32 --batch-size 8'.split()
HOW = dict(device='cpu', image_size=16, net=dict(width=1 / 32, early_pools=2))


def rows_of(out): return [(line[:16].strip(), line[18:]) for line in out.splitlines()]


def table(path, rows, head='file,label', separator=',', encoding='utf-8'):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = '\n'.join([head, *rows]).replace(',', separator) + '\n'
    path.write_bytes(text.encode(encoding))
    return path


def labeled(root='set', **how):
    "A folder of classes, and a table that says the same"
    fill(root, **how)
    return table(f'{root}/labels.csv', [f'{p.relative_to(root).as_posix()},{p.parent.name}' for p in sorted(Path(root).rglob('*.png'))])


# Labels from a table

def test_a_table_is_what_the_folder_is():
    path = labeled()
    for split in 'train', 'test', 'all':
        assert load_folder(path, split, 16).fingerprint == load_folder('set', split, 16).fingerprint == open_data(path, split, 16).fingerprint
    assert load_folder('set', 'train', 16, labels=path).fingerprint == load_folder('set', 'train', 16).fingerprint


@pytest.mark.parametrize('change', [
    lambda t: t.replace(',', ';'), lambda t: t.replace(',', '\t'), lambda t: '\ufeff' + t, lambda t: t.replace('\n', '\r\n'), lambda t: t.replace('/', '\\'),
    lambda t: t.replace('file,label', ' File , LABEL '), lambda t: re.sub('^(.*)$', r'\1,', t, flags=re.M).rstrip(','), lambda t: t + '\n\n',
    lambda t: re.sub('^([^,\n]+),(.*)$', r'"\1","\2"', t, flags=re.M), lambda t: re.sub('^([^f].*)$', r'./\1', t, flags=re.M), lambda t: t + t.partition('\n')[2],
    lambda t: re.sub('^(c.*|d.*)$', lambda m: str(Path('set').absolute() / m[1]), t, flags=re.M)],
    ids='semicolons tabs mark windows backslashes header trailing empty quotes dots twice absolute'.split())
def test_tables_from_many_hands(change):
    path = labeled()
    want = load_folder(path, 'train', 16).fingerprint
    path.write_bytes(change(path.read_bytes().decode()).encode())
    assert load_folder(path, 'train', 16).fingerprint == want


@pytest.mark.parametrize('change, words', [
    (lambda t: t.replace('file,label', 'filename,class'), ("begins with 'filename,class'", 'expected a first line file,label')),
    (lambda t: '', ('begins with nothing',)), (lambda t: t.partition('\n')[2], ("begins with 'cat/000.png,cat'",)),
    (lambda t: t.replace('file,label', 'file,label,label'), ("two columns 'label'",)),
    (lambda t: t + 'cat/000.png,dog\n', ('row 42', "'dog'", "'cat' in row 2", 'expected one')),
    (lambda t: t + './cat\\000.png,dog\n', ('row 42', "'dog'")),
    (lambda t: t.replace('cat/003.png,cat', 'cat/003.png,'), ('row 5', "'cat/003.png' has an empty label")),
    (lambda t: t.replace('cat/003.png,cat', ',cat'), ('row 5', 'empty file')),
    (lambda t: t.replace('cat/003.png,cat', 'cat/003.png,cta'), ("one picture alone is of class 'cta' (row 5)", 'misspelt')),
    (lambda t: t.replace(',dog', ',cat'), ('40 pictures of 1 class', 'at least two')),
    (lambda t: t.replace('cat/003.png,cat', 'cat/003.png'), ('row 5, has 1 cell', 'expected 2')),
    (lambda t: t.replace('cat/003.png,cat', 'cat/003.png,cat, black'), ('row 5, has 3 cells', 'double quotes')),
    (lambda t: t + '"cat/000.png,cat\n', ('no table', 'double quote')),
    (lambda t: t.replace(',cat', ',K\xe4tzchen').encode('latin1'), ('line 2, is not UTF-8 (byte 0xe4)', 'CSV UTF-8')),
    (lambda t: t.encode('utf-16'), ('UTF-16', 'CSV UTF-8')), (lambda t: t + '\0', ('zero bytes',)),
    (lambda t: t.replace('cat/', 'cats/').replace('dog/', 'dogs/'), ('none of which is there', 'cats/000.png', '--labels')),
    (lambda t: t.replace('cat/003', 'cat/903').replace('dog/004', 'dog/904'), ('2 pictures cannot be read', 'cat/903.png', 'row 5 of labels.csv', '--skip-broken')),
    (lambda t: t.replace('cat/003', 'cat/903'), ('cat/903.png is missing', 'row 5 of labels.csv'))])
def test_refused_tables(change, words, ltpa):
    path = labeled()
    data = change(path.read_text())
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    refused(ltpa('train', '--data', path, *TINY, '--out', 'run'), *words)
    assert not os.path.exists('run')


def test_missing_pictures_can_be_left_out(ltpa):
    path = labeled()
    path.write_text(path.read_text().replace('cat/003', 'cat/903'))
    code, out, err = ltpa('train', '--data', path, *TINY, '--quiet', '--no-report', '--epochs', 1, '--out', 'run', '--skip-broken')
    assert code == 0 and 'cat/903.png' in dict(rows_of(out))['broken'] and 'left out' in err


def test_names_as_a_mac_writes_them():
    "Decomposed on the disk, composed in the table, and the other way round"
    put('set', *(f'A\u0308rger/{k}.png' for k in range(10)), *(f'\xc4tna/{k}.png' for k in range(10)))
    path = table('set/labels.csv', [f'\xc4rger/{k}.png,\xc4' for k in range(10)] + [f'A\u0308tna/{k}.png,b' for k in range(10)])
    assert len(load_folder(path, 'all', 16)) == 20 and load_folder(path, 'all', 16).classes == ['b', '\xc4']


def test_parts_and_groups_by_columns():
    path = labeled()
    lines = path.read_text().splitlines()[1:]
    parts = [['train', 'Validation', 'TEST'][min(2, max(0, k % 10 - 6))] for k in range(len(lines))]
    s = survey(table('set/parts.csv', [f'{line},{part}' for line, part in zip(lines, parts)], 'file,label,split'))
    assert [len(s.parts[p]) for p in ('train', 'val', 'test')] == [28, 4, 8] and s.where['test'] == 'the split test'
    grouped = table('set/groups.csv', [f'{line},{k // 4}' for k, line in enumerate(lines)], 'file,label,group')
    s = survey(grouped)
    sides = [{lines.index(f'{i.name},{s.classes[i.label]}') // 4 for i in s.parts[p]} for p in ('train', 'test')]
    assert not sides[0] & sides[1] and all(sides)
    with refuses('column group', '--groups'): survey(grouped, groups='(.)')
    with refuses("has the split 'tset'", 'train, val or test'): survey(table('set/p.csv', [f'{line},tset' for line in lines], 'file,label,split'))
    with refuses('row 2', 'empty split'): survey(table('set/p.csv', [f'{line},' for line in lines], 'file,label,split'))
    with refuses('no folders', 'column split'): survey(path, layout='classes')
    with refuses('--labels'): survey(path, labels=path)
    with refuses('no picture to train on of dog', 'change their split'):
        survey(table('set/p.csv', [f'{line},{"test" if "dog" in line else "train"}' for line in lines], 'file,label,split'))
    s = survey(table('set/p.csv', [f'{line},{"train" if "dog" in line or k % 2 else "test"}' for k, line in enumerate(lines)], 'file,label,split'))
    assert any('no picture to test on of dog' in w for w in s.warnings)
    only = table('set/t.csv', [f'{line},test' for line in lines], 'file,label,split')
    assert len(load_folder(only, 'test', 16)) == 40
    with refuses('no train part', 'rows with the split train'): load_folder(only, 'train', 16)


def test_what_a_table_does_not_name_is_said():
    labeled()
    put('set', 'cat/999.png')
    assert any('1 picture in set that labels.csv does not name' in n for n in survey('set', labels='set/labels.csv').notes)
    assert not survey('set/labels.csv').notes


@pytest.mark.parametrize('apart', [False, True], ids=['table', 'folder and table'])
def test_from_table_to_explanation(apart, ltpa, here, monkeypatch):
    "Trained, gone on with, judged and asked again, from elsewhere and after a move"
    path = labeled('a/set')
    how = ['--data', 'a/set', '--labels', path] if apart else ['--data', path]
    run = ['train', *how, *TINY, '--quiet', '--no-report', '--out', 'a/run']
    code, out, err = ltpa(*run, '--epochs', 2, '--stop-after', 3)
    assert code == 0 and ('labels' in dict(rows_of(out))) == apart
    assert ltpa(*run, '--epochs', 2, '--resume')[0] == 0
    want = json.loads(ltpa('evaluate', 'a/run', '--json')[1])
    (here / 'b').mkdir()
    os.rename('a', 'b/moved')
    monkeypatch.chdir('b')
    assert json.loads(ltpa('evaluate', 'moved/run', '--json')[1]) == want
    again = json.loads(ltpa('evaluate', 'moved/run', '--json', '--split', 'all', '--data', 'moved/set/labels.csv')[1])
    assert again['images'] == 40
    assert ltpa('evaluate', 'moved/run', '--data', 'moved/set', '--labels', 'moved/set/labels.csv')[0] == 0
    assert ltpa('explain', 'moved/set/cat/000.png', '--model', 'moved/run')[0] in (0, 2)


# Scores by class

def test_a_class_may_be_called_accuracy(ltpa):
    "Case 18, and its kind: the score comes first, and what is by class stands below names"
    fill('set', ('accuracy', 'images', 'balanced_accuracy 1.0'), 12)
    code, out, err = ltpa('train', '--data', 'set', *TINY, '--quiet', '--no-report', '--epochs', 1, '--out', 'run')
    lines = out.splitlines()
    assert [line.split()[0] for line in lines].count('accuracy') == 1 and sum(line.split()[0] == 'recall' for line in lines) == 3
    row = json.loads(ltpa('evaluate', 'run', '--json')[1])
    made = json.loads(Path('run/result.json').read_text())
    assert isinstance(row['accuracy'], float) and set(row['classes']) == {'accuracy', 'images', 'balanced_accuracy 1.0'}
    assert row['classes'] == made['classes'] and row['confusion'] == made['confusion'] and made['rows'][0]['balanced_accuracy'] == row['balanced_accuracy']
    assert sum(c['images'] for c in row['classes'].values()) == row['images'] == sum(n for r in row['confusion'].values() for n in r.values())
    text = ltpa('evaluate', 'run')[1]
    assert re.search(r'^ *accuracy +\d\.\d{4}$', text, re.M) and re.search(r'^balanced_accuracy +\d\.\d{4}$', text, re.M)
    assert {line[18] for line in text.splitlines()} and all(line[17] == ' ' for line in text.splitlines()), 'values stand below each other'


def test_rare_class_without_a_test_picture():
    truth, said = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 2, 2])
    scores = by_class(said, truth, ['a', 'b', 'c'])
    assert scores['classes']['c'] == dict(images=0, recall=None, said=2, precision=0.)
    assert scores['classes']['a']['precision'] == 1 and scores['classes']['a']['recall'] == pytest.approx(2 / 3)
    assert scores['classes']['b']['precision'] is None and scores['confusion']['b'] == dict(a=0, b=0, c=1)
    assert scores['balanced_accuracy'] == pytest.approx(1 / 3)
    both = truth[:3].tolist() + [1], said[:2].tolist() + [1, 1]
    assert by_class(torch.tensor(both[1]), torch.tensor(both[0]), 'ab')['balanced_accuracy'] == pytest.approx(metrics.balanced_accuracy_score(*both))
    assert 'none of 0 pictures: c' in lines_of(scores['classes'])


def test_many_classes_take_no_square():
    K = 100_000
    truth = torch.arange(0, K, 50)
    scores = by_class(truth.roll(1), truth, range(K))
    assert len(json.dumps(scores)) < 2e7 and scores['balanced_accuracy'] == 0 and MOST_DENSE < K
    assert draw_confusion(by_class(torch.arange(2), torch.arange(2), range(MOST_DRAWN + 1))) is None


def test_studies_read_the_rows():
    "Rows stay flat: numbers are averaged, and what is by class stands beside them"
    made = run_training('cluttered_fashion/vgg_gap', 'run', **HOW | dict(changes=dict(epochs=1, batch_size=4000)), report=False)
    again = evaluated('run', 'cpu')
    assert all(not isinstance(v, (dict, list)) for v in again['rows'][0].values()) and again['classes'] == made['classes']
    assert summarize([again['rows'][0] | dict(seed=k) for k in (0, 1)], ['model', 'data'])[0]['balanced_accuracy_sd'] == 0
    old = dict(recipe={k: v for k, v in made['provenance']['recipe'].items() if k != 'balance'})
    assert merge([dict(a=1)], [dict(a=2)], ['a'], (old, dict(recipe=made['provenance']['recipe'])))
    with refuses('recipe balance'): merge([], [], ['a'], (old, dict(recipe=made['provenance']['recipe'] | dict(balance=True))))


# Balance

def uneven():
    data = pictures(40, 32)
    keep = torch.tensor([i for i in range(40) if i % 3 == 0 or i % 9 == 1 or i % 19 == 2])
    return ImageSet(data.images[keep], data.labels[keep], data.classes, 'uneven')


def test_weights_of_classes():
    labels = torch.tensor([0] * 30 + [2] * 10)
    w = class_weights(labels, 4)
    assert w[labels].mean() == pytest.approx(1) and w[0] * 30 == pytest.approx(w[2] * 10) and w.isfinite().all()
    assert class_weights(torch.arange(6) % 3, 3).tolist() == [1, 1, 1]


def test_balanced_loss():
    "Each picture's loss, smoothed as ever, times the weight of its class: a batch in two halves is the batch"
    learn = Learner(tiny_net(), uneven(), get_recipe('fast', epochs=1, batch_size=8, balance=True, label_smoothing=.2))
    logits, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 0, 1])
    each = -(F.one_hot(y, 3) * .8 + .2 / 3).mul(logits.log_softmax(1)).sum(1)
    want = (learn.class_weights[y] * each).mean()
    assert torch.allclose(loss_of(learn.recipe, logits, y, learn.class_weights), want)
    assert torch.allclose((loss_of(learn.recipe, logits[:3], y[:3], learn.class_weights) + loss_of(learn.recipe, logits[3:], y[3:], learn.class_weights)) / 2, want)
    plain = Learner(tiny_net(), uneven(), get_recipe('fast', epochs=1, batch_size=8, label_smoothing=.2))
    assert loss_of(plain.recipe, logits, y, None).equal(F.cross_entropy(logits, y, label_smoothing=.2))


def test_balance_finds_the_rare_class():
    labels = torch.tensor([0] * 76 + [1] * 4)
    noise = torch.rand(80, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 200
    images = (noise + 12 * labels[:, None, None, None]).byte()
    data = ImageSet(images, labels, ['healthy', 'ill'])
    def recall(**change):
        learn = Learner(tiny_net(classes=2), data, get_recipe('fast', epochs=6, batch_size=16, **change)).fit()
        return predict(learn.net, images)[0].argmax(1)[labels == 1].float().mean().item(), learn.loss_curve()
    assert recall(balance=True)[0] > recall()[0] or recall(balance=True)[0] == 1


def test_balance_is_kept_and_gone_on_with(ltpa):
    fill('set', ('cat',), 30)
    fill('set', ('dog',), 12)
    how = ['train', '--data', 'set', *TINY, '--quiet', '--no-report', '--epochs', 2, '--balance']
    assert ltpa(*how, '--out', 'whole')[0] == ltpa(*how, '--out', 'parts', '--stop-after', 5)[0] == 0
    refused(ltpa(*how[:-1], '--out', 'parts', '--resume'), 'another recipe', 'balance')
    assert ltpa(*how, '--out', 'parts', '--resume')[0] == 0
    a, b = (read_tensors(f'{d}/weights.safetensors')[0] for d in ('whole', 'parts'))
    assert not differing(a, b) and json.loads(Path('whole/result.json').read_text())['provenance']['recipe']['balance'] is True
    assert ltpa(*how[:-1], '--out', 'plain')[0] == 0 and differing(a, read_tensors('plain/weights.safetensors')[0])


def test_checkpoints_from_before_balance_go_on(tmp_path):
    from ltpa.weights import write_tensors
    learn = Learner(tiny_net(), pictures(16, 32), get_recipe('fast', epochs=2, batch_size=8))
    save_checkpoint(learn, tmp_path / 'c.safetensors')
    state, meta = read_checkpoint(tmp_path / 'c.safetensors')
    del meta['recipe']['balance']
    write_tensors(tmp_path / 'c.safetensors', state, meta)
    assert load_checkpoint(learn, tmp_path / 'c.safetensors').step == 0
    meta['recipe'] = dict(name='fast')
    write_tensors(tmp_path / 'c.safetensors', state, meta)
    with refuses('another recipe'): load_checkpoint(learn, tmp_path / 'c.safetensors')


# History

def test_history_of_a_training_in_parts(ltpa):
    fill('set', n=30)
    how = ['train', '--data', 'set', *TINY, '--quiet', '--no-report', '--epochs', 4, '--out']
    assert ltpa(*how, 'whole')[0] == 0
    for n in 3, 9, 10, None:
        more = ['--resume'] * (n != 3) + (['--stop-after', n] if n else [])
        assert ltpa(*how, 'parts', *more)[0] == 0
        rows = read_history('parts/history.csv')
        assert [r['epoch'] for r in rows] == list(range(1, len(rows) + 1)) and (n is None or rows[-1]['steps'] == n)
    whole = read_history('whole/history.csv')
    for a, b in zip(whole, rows, strict=True):
        assert {k: a[k] for k in COLUMNS[:4]} == {k: b[k] for k in COLUMNS[:4]} and b['seconds'] > 0
    with open('whole/history.csv', newline='') as f: assert tuple(next(csv.reader(f))) == COLUMNS
    losses = json.loads(Path('whole/result.json').read_text())['losses']
    n = len(losses) // 4
    assert [r['loss'] for r in whole] == pytest.approx([float(np.mean(losses[k * n:k * n + n])) for k in range(4)], abs=1e-4)


def test_a_history_that_is_lost_or_odd_is_written_anew(ltpa):
    fill('set', n=20)
    how = ['train', '--data', 'set', *TINY, '--quiet', '--no-report', '--epochs', 3, '--out', 'run']
    assert ltpa(*how, '--stop-after', 5)[0] == 0
    Path('run/history.csv').write_bytes(b'\xff\0epoch,steps\n1,x\n')
    assert ltpa(*how, '--resume')[0] == 0
    rows = read_history('run/history.csv')
    assert [r['epoch'] for r in rows] == [1, 2, 3] and rows[0]['seconds'] is None and all(r['loss'] for r in rows)


def test_lines_where_there_is_no_terminal(ltpa):
    fill('set', n=20)
    how = ['train', '--data', 'set', *TINY, '--no-report', '--epochs', 2]
    code, out, err = ltpa(*how, '--out', 'a')
    lines = [text for key, text in rows_of(out) if key == 'epoch']
    assert (code, err, len(lines)) == (0, '', 2) and re.fullmatch(r'1 of 2, loss \d\.\d{4}, rate [\d.e-]+, \d+ s left', lines[0])
    assert not [key for key, _ in rows_of(ltpa(*how, '--quiet', '--out', 'b')[1]) if key == 'epoch']


def test_what_was_written_and_what_comes_next(ltpa):
    fill('my set', n=20)
    code, out, err = ltpa('train', '--data', 'my set', *TINY, '--epochs', 1, '--quiet')
    run = 'runs/my set-vgg_att2_concat_pc-seed0'
    there = [f for f in RUN_FILES if os.path.exists(f'{run}/{f}')]
    assert dict(rows_of(out))['written'] == f'{run}: {", ".join(there)}' and {'report.html', 'curve.png', 'confusion.png', 'history.csv'} <= set(there)
    nexts = [text for key, text in rows_of(out) if key == 'next']
    assert shlex.split(nexts[0]) == ['ltpa', 'evaluate', run] and ltpa(*shlex.split(nexts[0])[1:])[0] == 0
    assert '--model' in nexts[1] and 'report.html' in nexts[2]
    assert is_run(Path(run)), 'its pictures are no class'
    assert ltpa('train', '--data', '.', *TINY, '--epochs', 1)[0] == 2


def test_tensorboard(ltpa, monkeypatch):
    fill('set', n=20)
    how = ['train', '--data', 'set', *TINY[1:], '--quiet', '--no-report', '--epochs', 2, '--tensorboard', '--out']
    if tensorboard_writer():
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        assert ltpa(*how, 'run', '--stop-after', 6)[0] == ltpa(*how, 'run', '--resume')[0] == 0
        # one by one: of two files of one second, which name comes first is chance
        files = [EventAccumulator(str(f)).Reload() for f in Path('run/tensorboard').iterdir()]
        steps = sorted(e.step for events in files for e in events.Scalars('loss/step'))
        assert steps == list(range(len(json.loads(Path('run/result.json').read_text())['losses'])))
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    refused(ltpa(*how, 'other'), 'pip install tensorboard')
    assert not os.path.exists('other')
    assert ltpa(*[h for h in how if h != '--tensorboard'], 'other')[::2] == (0, '') and not os.path.exists('other/tensorboard')


# The page

ODD = ['<script>alert(1)</script>', '$x_1$ "& \'', 'a' * 120]


def odd_set(n=10):
    for k, name in enumerate(ODD):
        name = name.replace('/', '\u2215')
        for i in range(n): put('set', f'{name}/{i:02} <b>$.png')
    return 'set'


def page_of(run): return Path(run, 'report.html').read_text(encoding='utf-8')


@pytest.mark.parametrize('model', ['vgg_att2_concat_pc', 'vgg_gap', 'vgg_pan'])
def test_report_with_odd_names(model, ltpa):
    "Every name is escaped, nothing is fetched; a network without maps has pictures alone"
    code, out, err = ltpa('train', f'{odd_set()}/{model}', *TINY, '--epochs', 1, '--quiet', '--out', 'run')
    page = page_of('run')
    assert (code, err) == (0, '') and '<script' not in page and '&lt;script&gt;' in page and ' <b>$.png' not in page
    assert not re.search(r'(src|href|srcset)="(?!data:image/)', page) and 'http' not in re.sub('data:[^"]*', '', page)
    assert page.count('prefers-color-scheme') >= 3 and 'name="viewport"' in page
    for words in ('By class', 'What is taken for what', 'How to go on', 'Recipe', 'ltpa evaluate run', 'held out'): assert words in page
    with Image.open('run/errors.png') as errors: assert ('level 1' in page) == (model != 'vgg_gap') and errors.width > 100
    for name in 'curve.png', 'confusion.png':
        with Image.open(f'run/{name}') as drawn: drawn.load()


def test_report_of_arrays_and_of_the_bundled_set(monkeypatch):
    data = pictures(40, 16)
    os.mkdir('set')
    for split in 'train', 'test': np.savez(f'set/{split}.npz', images=data.images.numpy(), labels=data.labels.numpy())
    run_training('set/vgg_gap', 'a', **HOW | dict(changes=dict(epochs=1, batch_size=8)))
    assert 'picture ' in page_of('a') or 'None.' in page_of('a')
    from ltpa.data import ClutteredFashion
    monkeypatch.setattr('ltpa.published.ClutteredFashion', lambda *a, **kw: ClutteredFashion(*a, **kw, n=40))
    run_training('cluttered_fashion/vgg_att2_concat_pc', 'b', device='cpu', net=dict(width=1 / 32, early_pools=2), changes=dict(epochs=1, batch_size=20))
    assert 'points at the object' in page_of('b') and 'picture ' in page_of('b')


def test_warnings_stand_in_the_page(ltpa):
    fill('set', ('cat',), 40)
    fill('set', ('dog',), 8)
    Path('set/dog/x.heic').write_bytes(b'x')
    assert ltpa('train', '--data', 'set', *TINY, '--epochs', 1, '--quiet', '--out', 'run')[0] == 0
    page = page_of('run')
    assert 'class="warn">left out, since they are not read: 1 .heic' in page and 'look at the balanced accuracy' in page and '--balance' in page


def black(answers, labels, classes, net=None):
    logits = F.one_hot(torch.tensor(answers), len(classes)) * torch.linspace(1, 5, len(answers))[:, None]
    data = ImageSet(torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8), labels, classes, 'black')
    return Answers(net or tiny_net(classes=len(classes)), data, logits, ())


def test_errors_are_the_most_confident():
    cards = confident_errors(black([1, 1, 0, 0], [0, 1, 1, 0], ['a', 'b']))
    assert [(c.said, c.truth, c.file) for c in cards] == [('a', 'b', 'picture 2'), ('b', 'a', 'picture 0')] and cards[0].sure > cards[1].sure
    assert len(confident_errors(black([1] * 30, [0] * 30, ['a', 'b']))) == 12
    assert draw_errors(cards).get_figwidth() > 1


def test_no_error_leaves_no_picture_of_errors(tmp_path):
    (tmp_path / 'errors.png').write_bytes(b'of the run before')
    t = black([0, 1, 0], [0, 1, 0], ['a', 'b'])
    scores = by_class(t.logits.argmax(1), t.data.labels, t.data.classes)
    row = dict(model='vgg_gap', images=3, accuracy=1., balanced_accuracy=scores.pop('balanced_accuracy'), passes=1)
    record = dict(source=dict(source='black'), seconds=1., when='now', seed=0, recipe={}, versions=dict(ltpa='0'))
    wrote = write_report(tmp_path, dict(rows=[row], provenance=record) | scores, t, t.data.labels, kept=RUN_FILES)
    assert 'errors.png' not in wrote and not (tmp_path / 'errors.png').exists() and 'errors.png' not in page_of(tmp_path)


@pytest.mark.parametrize('K', [2, 12, 13, 101, 300])
def test_confusion_of_few_and_of_many(K):
    "Names are drawn literally, as far as they can be read; they never change the figure's square"
    truth = torch.arange(4 * K) % K
    names = [f'${k}_$ \\frac{{' + 'x' * (k % 40) for k in range(K)]
    fig = draw_confusion(by_class(truth.roll(1), truth, names))
    labels = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert (len(labels) == K) == (K <= 250) and fig.get_figwidth() == fig.get_figheight() < 40
    assert all(len(t) <= 24 for t in labels) and not any(t.get_parse_math() for t in fig.axes[0].get_yticklabels())
    fig.savefig(os.devnull, format='png', dpi=40)


def test_report_leaves_matplotlib_and_torch_as_they_were():
    import matplotlib
    import matplotlib.pyplot as plt
    before, figures = dict(matplotlib.rcParams), plt.get_fignums()
    t = black([1, 1, 0, 0], [0, 1, 1, 0], ['a', 'b'], tiny_net('vgg_att1_pc', classes=2).train())
    draw_errors(confident_errors(t))
    draw_confusion(by_class(t.logits.argmax(1), t.data.labels, t.data.classes))
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == figures and t.net.training


def test_run_folders_and_bundled_names_everywhere(ltpa):
    fill('set', n=20)
    assert ltpa('train', 'set/vgg_att1_pc', *TINY, '--no-report', '--quiet',
                '--epochs', 1, '--out', 'run')[0] == 0
    assert evaluate_weights('run', 'cpu')[1]['images'] == json.loads(ltpa('evaluate', 'run', '--json')[1])['images']
    assert ltpa('explain', 'set/cat/000.png', '--model', 'run', '--out', 'a.png')[0] == 0
    assert ltpa('explain', 'set/cat/000.png', '--model', 'cluttered_fashion/vgg_att2_concat_pc', '--out', 'b.png')[0] == 0


@pytest.mark.whole
@pytest.mark.slow
def test_piped_in_a_process_of_its_own():
    "What a cluster's log holds: no bar, no escapes, a line a pass"
    fill('set', n=20)
    done = subprocess.run([sys.executable, '-m', 'ltpa', 'train', '--data', 'set', *map(str, TINY), '--epochs', '3', '--out', 'run'], capture_output=True, text=True,
                          env=os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(sys.path)))
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r'^ +epoch  \d of 3, loss', done.stdout, re.M)) == 3 and '\r' not in done.stderr + done.stdout
