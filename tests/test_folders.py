"""Folders of pictures: what is a class and what a part, which side a picture falls on, what is left out, and said."""
import hashlib
import json
import os
import shutil
import time
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import one_line, pictures, refuses, tiny_net, words_id
from PIL import Image

from ltpa import explorer, folders, maps, splits, walker
from ltpa.checkpoints import read_checkpoint, save_checkpoint
from ltpa.fits import FITS, fitter, pad_square, trained_fit
from ltpa.folders import load_folder, load_pairs, read_folder, tally
from ltpa.inputs import fill_square, fit_square, resize
from ltpa.models import create_model, load_weights, save_weights
from ltpa.recipes import plan
from ltpa.runs import evaluate_weights, fitted_recipe, run_training
from ltpa.splits import find_groups, is_held_out, survey
from ltpa.training import Learner
from ltpa.walker import DataWarning, Item, equal_files, is_run
from ltpa.weights import read_tensors, write_tensors

TINY = '--quiet --no-report --no-tensorboard --width 0.03125 --early-pools 2 --device cpu'.split()
SHORT = [*TINY, '--batch-size', 8, '--epochs', 1, '--image-size', 16]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('LTPA_DATA', raising=False)
    return tmp_path


def picture(key, size=(20, 16)):
    "Another picture for every key."
    digest = hashlib.sha256(key.encode('utf-8', 'surrogateescape')).digest()
    return Image.fromarray(np.frombuffer(digest * 30, np.uint8)[:size[0] * size[1] * 3].reshape(size[1], size[0], 3))


def put(root, *names, size=(20, 16)):
    for name in names:
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(f'{root}/{name}', size).save(path)
    return Path(root)


def fill(root, classes=('cat', 'dog'), n=20, first=0, size=(20, 16)):
    "A folder of that many pictures for each class, all different."
    return put(root, *(f'{c}/{i:03}.png' for c in classes for i in range(first, first + n)), size=size)


def names(root, split, **how): return [i.name for i in survey(root, **how).pick(split)]


def refused(answer, *words):
    code, out, err = answer
    assert code == 2 and not out, answer
    one_line(err.strip(), 'ltpa: ', *words)


# Classes or parts

@pytest.mark.parametrize('train, test', [('train', 'val'), ('Train', 'VALID'), ('training', 'Validation'), ('TRAINING', 'Test'),
                                         ('train', 'testing'), ('Training', 'Testing')])
def test_names_of_parts(train, test):
    fill(f'set/{train}', n=3)
    fill(f'set/{test}', n=2, first=5)
    got = {split: load_folder('set', split, 8) for split in ('train', 'test')}
    assert [g.classes for g in got.values()] == [['cat', 'dog']] * 2 and [*map(len, got.values())] == [6, 4]
    assert names('set', 'test')[0] == f'{test}/cat/005.png'


def test_val_beside_test_is_left_aside_and_said():
    for k, part in enumerate(('train', 'val', 'test')): fill(f'set/{part}', n=k + 1, first=9 * k)
    s = survey('set')
    assert {k: len(v) for k, v in s.parts.items()} == dict(train=2, test=6, val=4)
    assert any('val/ (4 pictures) is left aside' in note for note in s.notes)
    assert [len(load_folder('set', split, 8)) for split in ('train', 'test', 'val', 'all')] == [2, 6, 4, 12]


def test_val_alone_is_what_is_tested_on():
    fill('set/train', n=3); fill('set/valid', n=2, first=5)
    assert names('set', 'test') == names('set', 'val') and len(names('set', 'all')) == 10


def test_train_alone_is_divided_by_the_rule():
    fill('set/Train')
    held = [n for n in names('set', 'all') if is_held_out(n, .2)]
    assert names('set', 'test') == held and held[0].startswith('Train/') and survey('set').classes == ['cat', 'dog']


@pytest.mark.parametrize('classes', [('bus', 'car', 'train'), ('Training', 'plane'), ('ship', 'train')])
def test_a_class_may_be_called_train(classes):
    fill('set', classes)
    assert survey('set').classes == sorted(classes)


def test_a_class_called_train_may_have_folders_beside_its_pictures():
    fill('set', ('bus', 'train')); put('set', 'train/steam/x.png')
    assert survey('set').classes == ['bus', 'train'] and 'train/steam/x.png' in names('set', 'all')


AMBIGUOUS = {
    'flat test': lambda: fill('set', ('cat', 'dog', 'test')),
    'test with classes': lambda: (fill('set'), fill('set/test', first=50)),
    'val with classes': lambda: (fill('set'), fill('set/Val', first=50)),
    'train with the same classes': lambda: (fill('set'), fill('set/train', first=50)),
    'train beside something else': lambda: (fill('set/train'), fill('set', ['extra'])),
}


@pytest.mark.parametrize('make', AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused_and_each_way_works(make, ltpa):
    make()
    with refuses('set', 'two ways', '--folders classes', '--folders splits', "layout='classes'"): survey('set')
    odd = next(f.name for f in Path('set').iterdir() if splits.part_of(f))
    assert odd in survey('set', 'classes').classes
    refused(ltpa('train', 'set/vgg_gap', *SHORT, '--out', 'run'), '--folders classes', '--folders splits')
    assert odd not in survey('set', 'splits').classes
    assert ltpa('train', 'set/vgg_gap', *SHORT, '--out', 'run', '--folders', 'splits', '--stop-after', 1)[0] == 0
    assert read_checkpoint('run/checkpoint.safetensors')[1]['source']['layout'] == 'splits'


def test_pictures_without_classes_beside_classes_are_left_out_and_said():
    fill('set'); put('set', 'test/1.png', 'test/2.png')
    s = survey('set', 'splits')
    assert s.classes == ['cat', 'dog'] and any('test is left out' in w and '2 pictures' in w for w in s.warnings)


def test_a_layout_that_is_not_there():
    fill('set')
    with refuses('set', 'no folder train', '--folders splits'): survey('set', 'splits')
    with refuses("layout 'class'", 'classes', 'splits'): survey('set', 'class')


@pytest.mark.parametrize('one, other', [('val', 'validation'), ('Test', 'testing'), ('TRAIN', 'training')])
def test_two_parts_that_mean_the_same(one, other):
    for part in {one, other, *([] if one == 'TRAIN' else ['train'])}: fill(f'set/{part}', n=2)
    with refuses('set has both', f'{one}/', f'{other}/', 'mean the same'): survey('set')


@pytest.mark.parametrize('flat', ['test', 'train', 'val'])
def test_a_part_without_class_folders(flat):
    for part in ('train', 'val', 'test'):
        if part == flat: put('set', f'{part}/1.png')
        else: fill(f'set/{part}', n=2)
    with refuses(f'set/{flat}', '1 picture but no class folders', f'set/{flat}/CLASS/IMAGE'): survey('set')


@pytest.mark.parametrize('make, words', [
    (lambda: fill('set', ['cat']), ('1 class folder', 'at least two', 'CLASS/IMAGE')),
    (lambda: Path('set').mkdir(), ('0 class folder', 'at least two', 'CLASS/IMAGE')),
    (lambda: None, ('no such folder', 'CLASS/IMAGE')),
    (lambda: (fill('set'), Path('set/owl').mkdir()), ('owl holds no images', '.png', 'fill or remove')),
    (lambda: (fill('set'), Path('set/owl').mkdir(), Path('set/owl/1.heic').touch()), ('owl holds no', '1 .heic', 'convert')),
    (lambda: (fill('set/train', n=2), fill('set/test', ('cat', 'owl'), 2)), ("class 'dog' is in only one", 'expected it in both')),
    (lambda: (fill('set/train', ('cat', 'dog', 'owl'), 2), fill('set/val', n=2)), ("class 'owl' is in only one",)),
    (lambda: (fill('set/train', n=2), fill('set/test', ('cat', 'dog', 'eel'), 2)), ("class 'eel' is in only one",)),
], ids=words_id)
def test_refused_folders(make, words):
    make()
    with refuses('set', *words): survey('set')


def test_a_part_that_is_not_there():
    fill('set/test', n=2)
    assert len(load_folder('set', 'test', 8)) == 4
    with refuses('set has no train part', 'test', 'set/train/CLASS/IMAGE'): load_folder('set', 'train', 8)
    with refuses("unknown split 'vali'", "'val'"): load_folder('set', 'vali')


# Names

FORMS = [unicodedata.normalize(form, '\xc4pfel') for form in ('NFC', 'NFD')]


@pytest.mark.parametrize('word', ['\xc4pfel', 'Caf\xe9', '\u1e69'])
def test_a_name_is_one_class_however_it_is_written(word):
    nfc, nfd = (unicodedata.normalize(form, word) for form in ('NFC', 'NFD'))
    fill('set/train', (nfd, 'Birnen'), 2); fill('set/test', (nfc, 'Birnen'), 2)
    s = survey('set')
    assert s.classes == sorted([nfc, 'Birnen']) and len(s.parts['test']) == 4
    fill('set/train', (nfc, 'Birnen'), 2)
    with refuses('set/train', 'two folders', 'Unicode'): survey('set')


def test_classes_are_normalised_before_they_are_sorted():
    fill('a', (FORMS[0], 'Birnen')); fill('b', (FORMS[1], 'Birnen'))
    assert survey('a').classes == survey('b').classes == ['Birnen', FORMS[0]]
    sides = [[n.split('/')[1] for n in map(walker.nfc, names(root, 'test'))] for root in 'ab']
    assert sides[0] == sides[1], 'the same names in another form lie on the same sides'


# Which side

def test_the_rule_is_a_hash_of_the_path_below_a_threshold():
    for name in [f'cat/{k}.png' for k in range(200)] + ['\xc4/1.png', 'x y/$5.JPG']:
        number = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), 'big') / 2**64
        for fraction in .05, .2, .7: assert is_held_out(name, fraction) == (number < fraction)
    held = sum(is_held_out(f'dog/{k}.png', .2) for k in range(5000)) / 5000
    assert .18 < held < .22


def test_a_fifth_is_held_out_and_the_rest_is_trained_on():
    fill('set', n=100)
    train, test = names('set', 'train'), names('set', 'test')
    assert len(train) + len(test) == len({*train, *test}) == 200 and 25 < len(test) < 55
    assert test == [n for n in sorted(train + test) if is_held_out(n, .2)]
    assert survey('set').how == dict(rule=2, layout='classes', val_fraction=.2, groups=None)


def test_pictures_and_classes_that_join_move_none():
    fill('set', n=30)
    before = {split: set(names('set', split)) for split in ('train', 'test')}
    fill('set', ('ant', 'cat', 'eel'), n=40, first=25)
    Path('set').rename('elsewhere')
    for split, were in before.items(): assert were <= set(names('elsewhere', split))


@pytest.mark.parametrize('fraction', [.05, .5, .9])
def test_the_fraction_can_be_chosen(fraction):
    fill('set', n=60)
    assert names('set', 'test', val_fraction=fraction) == [n for n in names('set', 'all') if is_held_out(n, fraction)]


@pytest.mark.parametrize('fraction', [0, 1, -.2, 1.5, float('nan'), '0.2'])
def test_refused_fractions(fraction):
    fill('set')
    with refuses(f'val fraction {fraction!r}', 'between 0 and 1'): survey('set', val_fraction=fraction)


def test_systems_do_not_matter(monkeypatch):
    "As on Windows, where paths read with backslashes."
    class Windows(type(Path())):
        def __str__(self): return super().__str__().replace('/', '\\')
        def __fspath__(self): return super().__str__()
        def as_posix(self): return super().__str__()
    fill('set')
    for split in 'train', 'test':
        ours = load_folder('set', split, 8)
        with monkeypatch.context() as patch:
            for module in folders, splits: patch.setattr(module, 'Path', Windows)
            theirs = load_folder('set', split, 8)
        assert theirs.fingerprint == ours.fingerprint


def test_the_first_rule_is_kept_for_old_files():
    "As version 0.1.0 did it, fingerprints and all."
    for c, n in ('cat', 14), ('dog', 3):
        Path('set', c).mkdir(parents=True)
        for i in range(n): Image.new('RGB', (12, 9), (10 * i, 50 * (c == 'dog'), 0)).save(f'set/{c}/{i}.png')
    old = {split: load_folder('set', split, 8, rule=1) for split in ('train', 'test')}
    assert [int(v) // 10 for v in old['train'].images[:, 0, 4, 4]] == [6, 7, 13, 12, 5, 8, 10, 3, 11, 2, 0, 4, 1, 2]
    assert {k: v.fingerprint for k, v in old.items()} == dict(train='a900a6887e78cf7c', test='5b2bc48367537b3d')


def test_a_class_without_a_test_picture_is_named_with_the_flag():
    fill('set', n=60)
    for name in names('set', 'test'):
        if name.startswith('dog'): Path('set', name).unlink()
    with pytest.warns(DataWarning, match='no picture to test on of dog: a larger --val-fraction .now 0.2'): load_folder('set', 'test', 8)


def test_nothing_held_out_and_nothing_to_train_on():
    fill('set')
    for name in names('set', 'test'): Path('set', name).unlink()
    with refuses('set', 'none is held out', '--val-fraction 0.2', 'set/test'): survey('set')
    with refuses('set', 'no picture to train on of cat, dog', '--val-fraction (now 0.999)'): survey('set', val_fraction=.999)
    assert len(names('set', 'all', divide=False)) == len(list(Path('set').rglob('*.png'))), 'all of it is all the same'


# Groups

LEAVES = [f'{c}/leaf{k // 4:02}_{k % 4}.png' for c in ('rust', 'scab') for k in range(80)]
TABLES = {
    'with a heading': ('path,group\n', lambda n, g: f'{n},{g}\n'),
    'heading the other way': ('group,path\n', lambda n, g: f'{g},{n}\n'),
    'without a heading': ('', lambda n, g: f'{n},{g}\n'),
    'another heading': ('file,patient,age\n', lambda n, g: f'{n},{g},40\n'),
    'semicolons and slashes of Windows': ('\ufeffpath;group\r\n', lambda n, g: f'.\\{n}\r\n'.replace('/', '\\').replace('\r\n', f';{g}\r\n')),
}


@pytest.mark.parametrize('head, line', TABLES.values(), ids=TABLES)
def test_groups_from_a_table(head, line):
    Path('groups.csv').write_text(head + ''.join(line(n, n[5:11]) for n in LEAVES), newline='')
    assert find_groups('groups.csv', LEAVES, []) == {n: n[5:11] for n in LEAVES}


@pytest.mark.parametrize('pattern', ['leaf[0-9]+', 'leaf([0-9]+)_', '^.*?/(.*)_'])
def test_a_group_stays_on_one_side(pattern):
    put('set', *LEAVES)
    group = lambda n: n.split('/')[1].split('_')[0]
    sides = [set(map(group, names('set', split, groups=pattern))) for split in ('train', 'test')]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert {group(n) for n in names('set', 'train')} & {group(n) for n in names('set', 'test')}, 'without groups it does not'
    assert survey('set', groups=pattern).how['groups'] == pattern


def test_groups_by_whose_name_a_side_is_chosen():
    put('set', *LEAVES)
    assert names('set', 'test', groups='leaf[0-9]+') == [n for n in sorted(LEAVES) if is_held_out(n[5:11], .2)]


@pytest.mark.parametrize('groups, words', [
    ('(leaf', ('(leaf', 'no regular expression')), ('*', ("'*'", 'no regular expression')),
    ('leaf0[0-3]', ('128 pictures without a group', 'rust/leaf04_0.png', 'every path')),
    ('x?', ('160 pictures without a group',)), ('leaf(a)?', ('160 pictures without',)),
    ('none.csv', ('none.csv: no such file', 'path,group')), ('folder.csv', ('folder.csv: no such file',)),
    ('short.csv', ('156 pictures without a group', 'rust/leaf01_0.png', 'GROUP in the table')),
    ('twice.csv', ('row 2', "'b' and in 'a'")), ('thin.csv', ('row 1', 'expected path,group')),
    ('nul.csv', ('nul.csv', '159 pictures without'))], ids=words_id)
def test_refused_groups(groups, words):
    put('set', *LEAVES)
    Path('folder.csv').mkdir()
    Path('short.csv').write_text(''.join(f'{n},a\n' for n in LEAVES[:4]))
    Path('twice.csv').write_text(f'{LEAVES[0]},a\n{LEAVES[0]},b\n')
    Path('thin.csv').write_text(f'{LEAVES[0]}\n')
    Path('nul.csv').write_bytes(b'rust/leaf00_0.png,\0\n' * 3)
    with refuses(*words): survey('set', groups=groups)


@pytest.mark.parametrize('pattern', ['(.+)+$^', '(a|a)*b', '((a*)*)*c'])
def test_a_pattern_that_takes_for_ever_is_given_up(pattern):
    begin = time.monotonic()
    with refuses(pattern, 'seconds', 'simpler pattern'): splits._by_pattern(pattern, ['a' * 250], .3)
    assert time.monotonic() - begin < 20


def test_groups_on_both_given_sides():
    put('set', *(f'train/{n}' for n in LEAVES[::2]), *(f'test/{n}' for n in LEAVES[1::2]))
    s = survey('set', groups='leaf[0-9]+')
    assert any('20 groups on both sides' in w and 'leaf00' in w and '--strict' in w for w in s.warnings)
    with refuses('20 groups on both sides', 'leaf00', '--strict'): survey('set', groups='leaf[0-9]+', strict=True)
    assert not survey('set', groups='.+', strict=True).warnings


# Copies

def copy(a, b): Path(b).parent.mkdir(parents=True, exist_ok=True); shutil.copy(a, b)


def test_copies_on_both_sides_of_the_rule():
    fill('set')
    held = next(n for n in (f'cat/copy{k}.png' for k in range(99)) if is_held_out(n, .2))
    copy(Path('set', names('set', 'train')[0]), Path('set', held))
    with pytest.warns(DataWarning, match=r'1 test picture with a byte-for-byte copy in training: .*copy\d*.png'): load_folder('set', 'train', 8)
    with refuses('1 test picture', f'cat/001.png = {held}', '--strict', 'strict=True'): load_folder('set', 'test', 8, strict=True)


@pytest.mark.parametrize('n', [1, 3, 7])
def test_copies_in_given_parts(n):
    fill('set/train', n=10); fill('set/test', n=3, first=30)
    for k in range(n): copy(f'set/train/cat/{k:03}.png', f'set/test/cat/deep/{k}.png')
    w, = survey('set').warnings
    assert f'{n} test picture' in w and 'train/cat/000.png = test/cat/deep/0.png' in w and ('more' in w) == (n > 3)


def test_copies_in_two_classes():
    fill('set/train', n=4); fill('set/test', n=2, first=30)
    copy('set/train/cat/000.png', 'set/train/dog/again.png')
    w, = survey('set').warnings
    assert '1 picture under two classes' in w and 'train/cat/000.png = train/dog/again.png' in w
    with refuses('two classes', '--strict'): survey('set', strict=True)


def test_files_of_one_size_are_no_copies(monkeypatch):
    items = []
    for k, content in enumerate((b'a' * 9000, b'a' * 8999 + b'b', b'b' * 9000, b'a' * 9000, b'c', b'')):
        Path(f'{k}').write_bytes(content)
        items.append(Item(Path(f'{k}'), f'{k}', 0, len(content)))
    assert [[i.name for i in g] for g in equal_files(items)] == [['0', '3']]
    monkeypatch.setattr(walker, '_digest', lambda *a: pytest.fail('opened, though no other has its size'))
    assert not equal_files([i._replace(size=k + 1) for k, i in enumerate(items)])


# What is left out

@pytest.mark.parametrize('hidden', ['cat/._000.png', 'cat/.ipynb_checkpoints/000-checkpoint.png', '__MACOSX/cat/._000.png',
                                    '.git/x.png', 'cat/__macosx/1.png', 'cat/@eaDir/1.png', 'cat/Thumbs.db', 'dog/desktop.ini'])
def test_hidden_files_are_nobodys_pictures(hidden):
    fill('set')
    before = read_folder('set', size=8)
    Path('set', hidden).parent.mkdir(parents=True, exist_ok=True)
    Path('set', hidden).write_bytes(b'\0\5\26\7')
    after = read_folder('set', size=8)
    assert {k: v.fingerprint for k, v in after.sets.items()} == {k: v.fingerprint for k, v in before.sets.items()}
    assert '1 hidden file' in after.facts['left out']


@pytest.mark.parametrize('ending', ['.HEIC', '.avif', '.NEF', '.svg'])
def test_photographs_that_are_not_read_are_counted(ending, ltpa):
    fill('set')
    for k in range(7): Path(f'set/cat/IMG_{k}{ending}').write_bytes(b'not read here')
    with pytest.warns(DataWarning, match=f'left out.*7 {ending.lower()}.*convert'): load_folder('set', size=8)
    code, out, err = ltpa('train', 'set/vgg_gap', *SHORT, '--stop-after', 1)
    assert code == 0 and f'7 {ending.lower()}' in out and err.startswith('ltpa: warning: set: left out') and err.count('\n') == 1


@pytest.mark.parametrize('name', ['deep/er/x.JPG', 'x.jpeg', 'x.TIFF', 'x.webp'])
def test_every_ending_below_a_class_is_read(name):
    fill('set'); put('set', f'cat/{name}')
    assert sum(len(load_folder('set', split, 8)) for split in ('train', 'test')) == 41


def test_other_files_are_counted_without_a_warning():
    fill('set'); put('set', 'loose.png')
    for name in 'notes.txt', 'more.TXT', 'LICENSE': Path('set/cat', name).touch()
    reading = read_folder('set', size=8)
    assert not reading.warnings
    assert all(w in reading.facts['left out'] for w in ('2 .txt', '1 no ending', '1 picture in no class folder'))


def test_a_run_folder_is_no_class():
    fill('set')
    for n in 'runs/set-vgg_gap-seed0', 'runs/other', 'try 2', 'cat/run':
        run = Path('set', n); run.mkdir(parents=True)
        for f in ('checkpoint.safetensors',) if 'other' in n else ('weights.safetensors', 'result.json'): (run / f).touch()
    assert survey('set').classes == ['cat', 'dog'] and len(names('set', 'all')) == 40
    fill('set', ['owl'], 3); Path('set/owl/checkpoint.safetensors').touch()
    assert 'owl' in survey('set').classes, 'pictures lie in it'
    assert not is_run(Path('set'))


def test_training_inside_of_the_own_folder_and_evaluating(ltpa, monkeypatch):
    fill('photos')
    monkeypatch.chdir('photos')
    assert ltpa('train', './vgg_gap', *SHORT)[0] == 0
    weights = 'runs/photos-vgg_gap-seed0/weights.safetensors'
    assert ltpa('evaluate', weights)[0] == 0 and ltpa('train', './vgg_gap', *SHORT, '--seed', 1)[0] == 0


def test_links_are_followed_and_loops_are_cut():
    fill('set'); fill('far', ['x'], 3)
    os.symlink('../../far/x', 'set/cat/linked')
    for link, to in ('set/cat/up', '..'), ('set/cat/self', '.'), ('far/x/round', '../../set'): os.symlink(to, link)
    assert len(names('set', 'all')) == 43


def test_a_tree_of_links_is_walked_once():
    fill('set')
    for k in range(30):
        Path(f'deep/{k}').mkdir(parents=True)
        for side in 'ab': os.symlink(f'../{k + 1}', f'deep/{k}/{side}')
    fill('deep', ['30'], 2)
    os.symlink('../../deep/0', 'set/cat/deep')
    assert len(names('set', 'all')) == 42


def odd_files(root):
    os.mkfifo(f'{root}/cat/pipe.png')
    os.symlink('nowhere', f'{root}/cat/dangling.png')
    os.symlink('/dev/zero', f'{root}/dog/zero.png')
    Path(f'{root}/dog/empty.jpg').touch()


def test_pipes_and_devices_are_broken_and_never_opened():
    fill('set'); odd_files('set')
    with refuses('4 pictures cannot be read', 'pipe.png', 'dangling.png', 'zero.png', 'empty.jpg', '--skip-broken'): read_folder('set')
    reading = read_folder('set', skip_broken=True)
    assert len(reading.broken) == 4 and sum(map(len, reading.sets.values())) == 40
    assert any('left out, since broken: 4 pictures' in w and 'pipe.png' in w for w in reading.warnings)


# Broken files

def spoil(*paths):
    for k, path in enumerate(paths): Path(path).write_bytes([b'nothing of an image', b'\x89PNG\r\n\x1a\n', b''][k % 3])


def test_all_broken_files_of_all_sides_are_named_at_once(ltpa):
    fill('set')
    both = names('set', 'train')[:2] + names('set', 'test')[:2]
    spoil(*(f'set/{n}' for n in both))
    for split in 'train', 'test':
        with refuses('4 pictures cannot be read', *both, '--skip-broken', 'skip_broken=True'): load_folder('set', split)
    refused(ltpa('train', 'set/vgg_gap', *SHORT, '--out', 'run'), '4 pictures cannot be read', *both)
    assert not os.path.exists('run')
    code, out, err = ltpa('train', 'set/vgg_gap', *SHORT, '--out', 'run', '--skip-broken')
    assert code == 0 and '4 pictures' in out and all(n in err for n in both)
    assert ltpa('evaluate', 'run/weights.safetensors')[0] == 0, 'it goes on without them, too'


def test_of_many_broken_files_twenty_are_named():
    fill('set', n=40)
    spoil(*(f'set/cat/{k:03}.png' for k in range(25)))
    with pytest.raises(ValueError) as e: load_folder('set')
    assert '25 pictures' in str(e.value) and 'and 5 more' in str(e.value) and str(e.value).count('.png') < 25


def test_one_broken_file():
    fill('set'); spoil('set/dog/003.png')
    with refuses('set/dog/003.png', 'is not an image', '--skip-broken'): [load_folder('set', s) for s in ('train', 'test')]


def test_a_class_of_broken_files_alone():
    fill('set'); spoil(*(f'set/dog/{k:03}.png' for k in range(20)))
    with refuses('all pictures of dog are broken'): [load_folder('set', s, skip_broken=True) for s in ('train', 'test')]


def test_a_file_without_permission_says_so(monkeypatch):
    "As an ordinary user meets it; root, as whom tests may run, is refused nothing."
    fill('set')
    usual = open
    def guarded(path, *args, **kw):
        if '007' in str(path): raise PermissionError(13, 'Permission denied', str(path))
        return usual(path, *args, **kw)
    monkeypatch.setattr('builtins.open', guarded)
    with pytest.raises(ValueError) as e: [load_folder('set', s) for s in ('train', 'test')]
    one_line(str(e.value), '2 pictures', 'cat/007.png', 'permission denied')
    assert 'remove' not in str(e.value)


def test_a_folder_without_permission_says_so(monkeypatch):
    fill('set')
    usual = os.listdir
    def guarded(path):
        if str(path).endswith('dog'): raise PermissionError(13, 'Permission denied', str(path))
        return usual(path)
    monkeypatch.setattr(os, 'listdir', guarded)
    with refuses('set/dog', 'Permission denied', 'make it readable'): survey('set')


def test_pairs_are_looked_through_in_the_same_way():
    put('set', *(f'{part}/{k}.png' for part in ('images', 'masks') for k in range(5)), 'images/._1.png', 'masks/.x.png')
    for k in range(5): Image.new('L', (20, 16), 255).save(f'set/masks/{k}.png')
    assert len(load_pairs('set')) == 5
    spoil('set/images/1.png', 'set/masks/3.png', 'set/images/4.png')
    with refuses('3 pictures cannot be read', 'images/1.png', 'masks/3.png', 'images/4.png'): load_pairs('set')


# Grey depth

def xray(path, top, seed=0):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).integers(0, top + 1, (16, 20)).astype(np.uint16)
    x[0, 0] = top
    Image.fromarray(x).save(path)


@pytest.mark.parametrize('tops, bits', [((900, 300), 10), ((4095, 900), 12), ((4096, 100), 14), ((60000, 100), 16)])
def test_one_scale_of_grey_for_a_whole_set(tops, bits):
    for k in range(40): xray(f'set/{"ab"[k % 2]}/{k:02}.png', tops[k % 2], k)
    reading = read_folder('set', size=16, fit='stretch')
    assert reading.how['bits'] == bits and f'{bits} bits' in reading.facts['greys'] and '--gray-bits' in reading.facts['greys']
    bright = max(int(s.images.max()) for s in reading.sets.values())
    assert bright == pytest.approx(255 * max(tops) / (2**bits - 1), abs=60)


def test_given_bits_are_taken_and_kept(ltpa):
    for k in range(40): xray(f'set/{"ab"[k % 2]}/{k:02}.png', 1000, k)
    assert ltpa('train', 'set/vgg_gap', *SHORT, '--gray-bits', 12, '--out', 'run')[0] == 0
    assert load_weights('run/weights.safetensors').info['source']['bits'] == 12
    with refuses('gray bits 8', '9 to 32'): read_folder('set', bits=8)
    with refuses('40 pictures', '1000', 'expected 0 to 511'): read_folder('set', bits=9)


# Fit

def test_three_ways_to_make_a_square():
    x = torch.randint(256, (3, 40, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert fitter('middle')(x, 16).equal(fit_square(x, 16)) and fitter('stretch')(x, 16).equal(fill_square(x, 16))
    whole = fitter('whole')(x, 20)
    assert whole.shape == (3, 20, 20) and whole[:, 6:14].equal(resize(x, (8, 20))), 'all of it, in its own shape'
    assert whole[:, :6].flatten(1).unique(dim=1).shape[1] == whole[:, 14:].flatten(1).unique(dim=1).shape[1] == 1
    with refuses("unknown fit 'whale'", "'whole'"): fitter('whale')


@pytest.mark.parametrize('H, W', [(8, 32), (32, 8), (3, 300), (16, 16)])
def test_the_whole_is_padded_with_the_mean_of_the_edges_it_touches(H, W):
    x = torch.full((3, H, W), 90, dtype=torch.uint8); x[1] = 40
    assert pad_square(x, 16).flatten(1).unique(dim=1).tolist() == [[90], [40], [90]]


def scans(root, n=20):
    "Wide pictures, whose classes differ at the ends alone."
    for k, c in enumerate(('left', 'right')):
        Path(root, c).mkdir(parents=True)
        for i in range(n):
            a = np.random.default_rng([k, i]).integers(0, 60, (16, 64, 3), dtype=np.uint8)
            a[2:14, (2, 50)[k]:(14, 62)[k]] = 220
            Image.fromarray(a).save(f'{root}/{c}/{i:02}.png')


@pytest.mark.parametrize('fit', FITS)
def test_the_fit_is_said_and_kept_and_used_by_whoever_looks_later(fit, ltpa):
    scans('set')
    how = '--width 0.03125 --device cpu --quiet --batch-size 8 --epochs 1'.split()
    code, out, err = ltpa('train', 'set/vgg_att1_pc', *how, '--fit', fit, '--out', 'run')
    line = next(line for line in out.splitlines() if 'seen as' in line)
    assert code == 0 and '32x32 pixels' in line and f'{fit}: 40 of 40 pictures' in line
    assert ('--fit whole keeps all' in line) == (fit == 'middle')
    net = load_weights('run/weights.safetensors')
    assert trained_fit(net) == fit and trained_fit(load_weights('run/checkpoint.safetensors')) == fit
    image = torch.from_numpy(np.array(Image.open('set/left/00.png'))).permute(2, 0, 1)
    look = maps.inspect_image(net, image)
    seen = (explorer.Scene(net, image).x[0] * 255).round().byte()
    assert look.seen == (32, 32) and seen.equal(FITS[fit](image, 32)), 'as in training'
    figure = maps.show_attention(net, image)
    assert figure.axes[0].get_title() == 'picture'
    assert (look.picture.shape[1] == look.picture.shape[2]) == (fit != 'stretch'), 'drawn on what was seen'
    again = json.loads(ltpa('evaluate', 'run/weights.safetensors', '--json')[1])
    assert again['accuracy'] == json.loads(Path('run/result.json').read_text())['rows'][0]['accuracy']
    text = ltpa('explain', 'set/left/00.png', '--model', 'run/weights.safetensors')[1]
    assert dict(middle='its middle seen as 32x32', whole='padded to a square', stretch='stretched')[fit] in text


def test_explain_says_what_was_cut_off(ltpa):
    picture('x', (20, 16)).resize((90, 60)).save('x.png')
    save_weights(tiny_net('vgg_att2_concat_pc'), 'w.safetensors')
    out = ltpa('explain', 'x.png', '--model', 'w.safetensors')[1]
    assert '33% cut off at left and right' in out
    picture('x', (20, 16)).resize((60, 60)).save('x.png')
    assert 'cut off' not in ltpa('explain', 'x.png', '--model', 'w.safetensors')[1]


def test_weights_that_say_nothing_look_as_ever():
    net = tiny_net()
    for info in None, {}, dict(source='x'), dict(source=dict(fit='odd')), dict(source=dict(fit=3)):
        net.info = info
        assert trained_fit(net) == 'middle'


def test_what_is_wide_can_be_learned_from_the_whole(ltpa):
    "What lies at the ends is lost in the middle square."
    scans('set', 40)
    shares = {}
    for fit in 'middle', 'stretch':
        sets = read_folder('set', fit=fit).sets
        x = sets['train'].images.float().mean((1, 2))
        shares[fit] = ((x[:, :16].mean(1) > x[:, 16:].mean(1)) == (sets['train'].labels == 0)).float().mean()
    assert shares['stretch'] == 1 and shares['middle'] < .8


# Few pictures

@pytest.mark.parametrize('n', [2, 7, 8, 48, 300, 16000])
def test_batch_and_passes_fit_the_pictures(n):
    usual = plan('set/vgg_gap').recipe
    r = fitted_recipe(usual, n)
    steps = n // r.batch_size
    assert r.batch_size <= min(n, usual.batch_size) and steps * r.epochs >= 300 and (n < 16 or steps >= 4)
    assert (r == usual) == (n == 16000)
    assert fitted_recipe(usual, n, ('batch_size', 'epochs')) == usual
    assert n < 6 or fitted_recipe(usual, n, processes=3).batch_size % 3 == 0


def test_what_is_given_stays_and_what_is_not_is_said(ltpa):
    fill('set', n=24)
    out = ltpa('train', 'set/vgg_gap', *TINY, '--image-size', 16, '--out', 'a', '--stop-after', 1)[1]
    made = read_checkpoint('a/checkpoint.safetensors')[1]['recipe']
    assert made['batch_size'] == 8 and made['epochs'] > 6 and all(w in out for w in ('--epochs', '--batch-size', f'{made["epochs"]} passes'))
    ltpa('train', 'set/vgg_gap', *TINY, '--image-size', 16, '--out', 'b', '--stop-after', 1, '--epochs', 2)
    made = read_checkpoint('b/checkpoint.safetensors')[1]['recipe']
    assert made['batch_size'] == 8 and made['epochs'] == 2
    answer = ltpa('train', 'set/vgg_gap', *TINY, '--image-size', 16, '--out', 'c', '--batch-size', 64)
    refused(answer, 'fewer than one batch of 64', '--batch-size', 'into set')


def test_arrays_are_fitted_as_well_and_bundled_pictures_are_not(ltpa, monkeypatch):
    for split in 'train', 'test':
        data = pictures(28)
        os.makedirs('set', exist_ok=True)
        np.savez(f'set/{split}.npz', images=data.images.numpy(), labels=data.labels.numpy())
    assert ltpa('train', 'set/vgg_gap', *TINY, '--out', 'a', '--stop-after', 1)[0] == 0
    assert read_checkpoint('a/checkpoint.safetensors')[1]['recipe']['batch_size'] == 8
    refused(ltpa('train', 'set/vgg_gap', *TINY, '--out', 'b', '--val-fraction', .3), '--val-fraction', 'set is none')
    refused(ltpa('train', 'cluttered_fashion/vgg_gap', *TINY, '--fit', 'whole'), '--fit', 'cluttered_fashion is none')


# What is said before training

def test_counts_are_said_before_the_training_also_when_quiet(ltpa):
    fill('set', ('cat', 'dog', 'eel'), 20)
    code, out, err = ltpa('train', 'set/vgg_gap', *SHORT)
    rows = {line[:16].strip(): line[18:] for line in out.splitlines()}
    s = survey('set')
    for key, part in ('training', 'train'), ('test', 'test'):
        n = Counter(i.label for i in s.parts[part])
        assert rows[key].startswith(f'{len(s.parts[part])} pictures of set') and rows[key].endswith(f'cat {n[0]}, dog {n[1]}, eel {n[2]}')
    assert list(rows).index('training') < list(rows).index('model') and 'by the hash of each path' in rows['test']
    assert [line.split()[0] for line in out.splitlines()].count('accuracy') == 1


def test_of_many_classes_the_range_is_said():
    data = pictures(100, classes=20)
    assert tally(data) == '20 classes of 5 to 5 pictures: class0 5, class1 5, class2 5, class3 5, class4 5 and 15 more'


# The run folder

@pytest.mark.parametrize('out, words', [
    ('file', ('file is a file', '--out')), ('file/run', ('file is a file', '--out')),
    ('set/cat', ('holds pictures', '--out')), ('weights', ('holds a run already', '--out')),
    ('run', ('holds a run already', '--resume'))])
def test_the_run_folder_is_checked_before_anything_is_read(out, words, ltpa, monkeypatch):
    fill('set'); Path('file').touch()
    for f in 'weights/weights.safetensors', 'run/checkpoint.safetensors': Path(f).parent.mkdir(); Path(f).touch()
    monkeypatch.setattr('ltpa.runs.read_folder', lambda *a, **kw: pytest.fail('read'))
    refused(ltpa('train', 'set/vgg_gap', *SHORT, '--out', out), *words)


def test_a_run_folder_that_cannot_be_written_says_permission(ltpa, monkeypatch):
    fill('set'); Path('locked').mkdir()
    monkeypatch.setattr(os, 'access', lambda path, mode: 'locked' not in str(path))
    monkeypatch.setattr('ltpa.runs.read_folder', lambda *a, **kw: pytest.fail('read'))
    refused(ltpa('train', 'set/vgg_gap', *SHORT, '--out', 'locked/run'), 'locked', 'Permission denied', '--out')


# Evaluating

@pytest.fixture
def trained(ltpa):
    fill('work/photos')
    os.chdir('work')
    assert ltpa('train', 'photos/vgg_gap', *SHORT)[0] == 0
    os.chdir('..')
    return Path('work/runs/photos-vgg_gap-seed0/weights.safetensors').absolute()


def judged(ltpa, *argv):
    code, out, err = ltpa('evaluate', *argv, '--json', '--device', 'cpu')
    assert code == 0, err
    return json.loads(out)['images'], err


def test_new_pictures_are_judged_in_full_and_that_is_said(ltpa, trained):
    fill('fresh', n=7, first=500)
    n, err = judged(ltpa, trained, '--data', 'fresh')
    assert n == 14 and '14 pictures of fresh (all): cat 7, dog 7' in err
    code, out, err = ltpa('evaluate', trained, '--data', 'fresh')
    assert 'judged' in out and not err


@pytest.mark.parametrize('parts, want', [(('train', 'val', 'test'), 'test'), (('train', 'val'), 'val'), (('test',), 'test'), (('val',), 'val'), (('train',), 'all')])
def test_of_new_parts_the_test_part_is_judged(parts, want, ltpa, trained):
    for k, part in enumerate(parts): fill(f'fresh/{part}', n=k + 3, first=100 * (k + 5))
    n, err = judged(ltpa, trained, '--data', 'fresh')
    assert n == 2 * (3 + (parts.index(want) if want in parts else 0)) and (f'{want}/' in err or want == 'all')


@pytest.mark.parametrize('split', ['train', 'val', 'test', 'all'])
def test_what_is_judged_can_be_chosen(split, ltpa, trained):
    for k, part in enumerate(('train', 'val', 'test')): fill(f'fresh/{part}', n=k + 3, first=100 * (k + 5))
    n, err = judged(ltpa, trained, '--data', 'fresh', '--split', split)
    assert n == dict(train=6, val=8, test=10, all=24)[split]


def test_the_own_folder_by_the_rule_of_its_training(ltpa, trained):
    held = len(names('work/photos', 'test'))
    for data in 'work/photos', Path('work/photos').absolute(), 'work/../work/photos/':
        n, err = judged(ltpa, trained, '--data', data)
        assert n == held and 'held out' in err
    assert judged(ltpa, trained, '--split', 'train')[0] == 40 - held
    assert judged(ltpa, trained, '--split', 'all')[0] == 40


def test_the_own_folder_is_found_from_elsewhere_and_after_a_move(ltpa, trained):
    held = len(names('work/photos', 'test'))
    Path('elsewhere').mkdir(); os.chdir('elsewhere')
    assert judged(ltpa, trained)[0] == held
    os.chdir('..'); Path('work').rename('moved')
    weights = Path('moved', *trained.parts[-3:])
    assert judged(ltpa, weights)[0] == held
    fill('photos', n=3)
    assert judged(ltpa, weights)[0] == held, 'not another folder of the same name'
    shutil.rmtree('photos'); Path('moved/photos').rename('moved/pictures')
    refused(ltpa('evaluate', weights), 'was trained on photos', 'neither', '--data')


def test_a_copy_of_the_training_pictures_is_noticed(ltpa, trained):
    shutil.copytree('work/photos', 'new')
    n, err = judged(ltpa, trained, '--data', 'new')
    assert n == 40 and 'ltpa: warning: new: about 100% of the pictures that the network was trained on' in err
    fill('other', first=300)
    assert 'warning' not in judged(ltpa, trained, '--data', 'other')[1]


def test_a_class_less_in_the_new_folder(ltpa, trained):
    fill('fresh', ('cat', 'eel'), 3)
    refused(ltpa('evaluate', trained, '--data', 'fresh'), "'eel'", "'dog'", 'same classes')
    fill('fresh2', ('cat', 'dog', 'eel'), 3)
    refused(ltpa('evaluate', trained, '--data', 'fresh2'), "'eel'", 'none')


def test_groups_and_fraction_are_used_again(ltpa):
    put('set', *LEAVES)
    Path('tables').mkdir()
    Path('tables/groups.csv').write_text(''.join(f'{n},{n[5:11]}\n' for n in LEAVES))
    assert ltpa('train', 'set/vgg_gap', *SHORT, '--groups', 'tables/groups.csv', '--val-fraction', .3, '--out', 'a/run')[0] == 0
    want = len(names('set', 'test', groups='leaf[0-9]+', val_fraction=.3))
    Path('else').mkdir(); os.chdir('else')
    assert judged(ltpa, '../a/run/weights.safetensors')[0] == want


# Resuming

HOW = ('--val-fraction', .4, '--groups', '[a-z]+/[0-9]+', '--fit', 'stretch', '--gray-bits', 12, '--skip-broken')


def test_a_run_goes_on_as_it_was_made(ltpa):
    fill('set')
    base = 'train', 'set/vgg_gap', *TINY, '--image-size', 16, '--epochs', 2
    assert ltpa(*base, *HOW, '--out', 'whole')[0] == 0
    assert ltpa(*base, *HOW, '--out', 'run', '--stop-after', 2)[0] == 0
    code, out, err = ltpa('train', 'set/vgg_gap', *TINY, '--out', 'run', '--resume')
    assert code == 0, err
    one, other = (json.loads(Path(f, 'result.json').read_text()) for f in ('whole', 'run'))
    assert one['losses'] == other['losses'] and one['rows'] == other['rows']


@pytest.mark.parametrize('flag, value, then', [('--val-fraction', .3, '0.4'), ('--groups', 'x', '[a-z]+/[0-9]+'), ('--fit', 'whole', 'stretch'),
                                               ('--gray-bits', 14, '12'), ('--folders', 'splits', 'classes')])
def test_a_run_does_not_go_on_otherwise(flag, value, then, ltpa):
    fill('set')
    base = 'train', 'set/vgg_gap', *TINY, '--image-size', 16, '--out', 'run'
    assert ltpa(*base, *HOW, '--stop-after', 2)[0] == 0
    refused(ltpa(*base, '--resume', flag, value), f'{flag} {then}', f'not {value}', f'leave {flag} out', 'new run')


@pytest.mark.parametrize('more, words', [([], None), (['--fit', 'middle'], None), (['--fit', 'whole'], ('--fit middle, not whole',)),
                                         (['--val-fraction', '.3'], ('--val-fraction unset, not 0.3',))])
def test_a_checkpoint_of_the_first_rule_goes_on_with_it(more, words, ltpa):
    "Made as version 0.1.0 did."
    fill('set', n=30)
    p = plan('set/vgg_gap', net=dict(width=1 / 32, early_pools=2), changes=dict(epochs=2, batch_size=8), image_size=16)
    torch.manual_seed(0)
    net = create_model(p.model, 2, **p.net)
    data = load_folder('set', 'train', 16, rule=1)
    save_checkpoint(Learner(net, data, p.recipe), 'run/checkpoint.safetensors', source=dict(source='set', size=16, scale=None))
    answer = ltpa('train', 'set/vgg_gap', *TINY, '--image-size', 16, '--out', 'run', '--resume', *more)
    if words: return refused(answer, *words)
    assert answer[0] == 0, answer
    source = load_weights('run/weights.safetensors').info['source']
    assert source['rule'] == 1 and judged(ltpa, 'run/weights.safetensors')[0] == len(load_folder('set', 'test', 16, rule=1)) == 12


def test_weights_without_a_rule_are_judged_by_the_first(ltpa):
    fill('set', n=30)
    save_weights(tiny_net(classes=2), 'w.safetensors', source=dict(source='set', size=16, scale=None), classes=['cat', 'dog'])
    assert judged(ltpa, 'w.safetensors')[0] == judged(ltpa, 'w.safetensors', '--data', 'set')[0] == 12


def test_a_clock_that_is_set_back(ltpa, monkeypatch):
    fill('set')
    ticks = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, 'time', lambda: next(ticks))
    assert ltpa('train', 'set/vgg_gap', *SHORT, '--out', 'run')[0] == 0
    assert json.loads(Path('run/result.json').read_text())['provenance']['seconds'] >= 0


def test_as_a_function():
    fill('set')
    said = {}
    with warnings.catch_warnings():
        warnings.simplefilter('error', DataWarning)
        result = run_training('set/vgg_gap', 'run', device='cpu', image_size=16, net=dict(width=1 / 32, early_pools=2),
                              changes=dict(epochs=1, batch_size=8), own=dict(fit='whole', strict=True), say=said.__setitem__)
        row = evaluate_weights('run/weights.safetensors', 'cpu', say=said.__setitem__)[1]
    assert row['accuracy'] == result['rows'][0]['accuracy'] and {'training', 'test', 'seen as', 'recipe', 'judged'} <= set(said)
    assert 'strict' not in load_weights('run/weights.safetensors').info['source']


# Sixty photographs

def photograph(k, i, size=(96, 72)):
    a = np.random.default_rng([k, i]).integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
    a[8:60, 8:60, k % 3] = 200
    return Image.fromarray(a)


def test_sixty_photographs(ltpa):
    "What one command says to somebody who has just copied a camera."
    root = Path('money')
    for k, c in enumerate(('$5_$10', 'euro', 'pound')):
        for part, first, n in ('train', 0, 16), ('val', 16, 4):
            (root / part / c).mkdir(parents=True)
            for i in range(first, first + n): photograph(k, i).save(root / part / c / f'IMG_{i:03}.jpg', quality=95)
    upright = Image.Exif(); upright[0x0112] = 6
    photograph(1, 2).save(root / 'train/euro/IMG_002.jpg', exif=upright)
    (root / 'train/euro/IMG_900.HEIC').write_bytes(b'\0\0\0\x18ftypheic')
    broken = root / 'train/pound/IMG_003.jpg'
    broken.write_bytes(broken.read_bytes()[:300])
    (root / 'train/euro/._IMG_000.jpg').write_bytes(b'\0\5\26\7')
    copy(root / 'train/pound/IMG_001.jpg', root / 'val/pound/copy.jpg')
    how = ['train', root / 'vgg_att2_concat_pc', '--width', .03125, '--device', 'cpu', '--quiet', '--epochs', 1]
    refused(ltpa(*how), 'train/pound/IMG_003.jpg', '--skip-broken')
    code, out, err = ltpa(*how, '--skip-broken')
    rows = {line[:16].strip(): line[18:] for line in out.splitlines()}
    assert code == 0 and rows['training'] == '47 pictures of money (train/): $5_$10 16, euro 16, pound 15'
    assert rows['test'] == '13 pictures of money (val/): $5_$10 4, euro 4, pound 5'
    assert rows['seen as'] == '32x32 pixels, middle: 60 of 60 pictures lose more than a tenth of their area; --fit whole keeps all'
    assert rows['left out'] == '1 .heic; 1 hidden file' and rows['broken'].startswith('1 picture') and 'IMG_003' in rows['broken']
    assert rows['recipe'].startswith('1 pass of 5 steps with 8 pictures') and rows['images'] == '13'
    lines = err.splitlines()
    assert len(lines) == 3 and all(line.startswith('ltpa: warning: money: ') for line in lines)
    for words in ('1 .heic', 'convert'), ('1 test picture', 'train/pound/IMG_001.jpg = val/pound/copy.jpg', '--strict'), ('broken', 'IMG_003.jpg'):
        assert any(all(w in line for w in words) for line in lines)
    seen = read_folder(root, ['train'], 32, fit='stretch', skip_broken=True).sets['train'].images[16 + 2].float()[1]
    assert seen[10, 24] > 100 > seen[24, 10], 'turned as the camera was held'
    refused(ltpa(*how, '--skip-broken', '--strict', '--out', 'b'), '1 test picture', '--strict')


@pytest.mark.parametrize('flag, value, words', [
    ('--val-fraction', 0, ('val fraction 0.0',)), ('--groups', '', ('without a group',)), ('--gray-bits', 0, ('gray bits 0',)),
    ('--val-fraction', 'nan', ('val fraction nan',)), ('--gray-bits', -12, ('gray bits -12',)), ('--fit', 'whale', ('--fit', "'whale'"))])
def test_refused_flags(flag, value, words, ltpa):
    fill('set')
    refused(ltpa('train', 'set/vgg_gap', *SHORT, '--out', 'run', f'{flag}={value}'), *words)
    assert not os.path.exists('run')


@pytest.mark.parametrize('source', [
    5, 'x', [], dict(source=5), dict(source='set', rule=9), dict(source='set', rule='x'), dict(source='set', rule=2, fit='odd'),
    dict(source='set', rule=2, fit=[]), dict(source='set', rule=2, val_fraction='x'), dict(source='set', rule=2, layout={}),
    dict(source='set', rule=2, groups=5), dict(source='set', rule=2, bits='x'), dict(source='set', rule=2, size='x'),
    dict(source='set', rule=2, relative=5, size=16), dict(source='set', rule=2, relative='no', groups_relative=[], sample=5, size=16)],
    ids=str)
def test_odd_words_in_a_file_from_a_stranger(source, ltpa):
    fill('set')
    save_weights(tiny_net('vgg_att2_concat_pc', classes=2), 'w.safetensors', classes=['cat', 'dog'])
    state, meta = read_tensors('w.safetensors')
    write_tensors('w.safetensors', state, meta | dict(source=source))          # `save_weights` would refuse it
    for argv in ['w.safetensors'], ['w.safetensors', '--data', 'set']:
        code, out, err = ltpa('evaluate', *argv)
        assert code == 0 or code == 2 and len(err.strip().splitlines()) == 1 and not out, (code, out, err)
    assert ltpa('explain', 'set/cat/000.png', '--model', 'w.safetensors')[0] in (0, 2)


def test_options_of_own_pictures_have_names():
    fill('set')
    with refuses("unknown option of own pictures 'fitt'", "'fit'"): run_training('set/vgg_gap', 'run', own=dict(fitt='whole'))


def test_a_folder_in_a_folder_is_pointed_to():
    fill('set/set')
    with refuses('1 class folder', 'did you mean set/set?'): survey('set')
