"""The reproduction: what is there and what is left, an end in the middle, clean commits, the same weights again."""
import doctest
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import refuses

import ltpa.measures
import ltpa.reproduce
from ltpa.names import EXTRAS, STUDIES
from ltpa.data import ImageSet
from ltpa.models import create_model, load_weights
from ltpa.recipes import PAPER
from ltpa.reproduce import FEW, HOURS, RATE, SCALES, Training, clock, left, repeat, reproduce, tables
from ltpa.measures import looked
from ltpa.runs import _first
from ltpa.training import predict
from ltpa.segmentation import two_piles
from ltpa.studies import stored

TINY = dict(net=dict(width=1 / 32, early_pools=2, dropout=False), changes=dict(epochs=1, batch_size=250), images=1000)
MODELS = 'vgg_gap', 'vgg_trunk', 'vgg_att1_pc'


SMALL = SCALES['small']._replace(arms=dict(cluttered_fashion=MODELS), case=TINY, pictures=8, shown=8, few=2)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Three tiny networks, trained once"
    root = tmp_path_factory.mktemp('runs')
    for m in MODELS: Training(f'cluttered_fashion/{m}', 'small', 0, TINY).make(root, 'cpu')
    return root


@pytest.fixture
def tiny(monkeypatch, tmp_path, runs):
    "Size small with three tiny networks, which are there, on few pictures; how to call `reproduce`"
    monkeypatch.setitem(SCALES, 'small', SMALL)
    monkeypatch.setattr(ltpa.reproduce, 'two_piles', lambda a, b: two_piles(8, 8))
    shutil.copytree(runs, tmp_path / 'runs')
    return dict(out=tmp_path / 'out', root=tmp_path / 'runs', seeds=[0], device='cpu')


def lines_of(*args, **kw):
    lines = []
    reproduce(*args, say=lines.append, **kw)
    return lines


@pytest.mark.parametrize('module', [ltpa.measures, ltpa.reproduce])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


# The list

@pytest.mark.parametrize('size', SCALES)
def test_every_study_at_every_size(size):
    found = tables(size)
    assert list(found) == STUDIES + EXTRAS
    for t in found.values():
        assert len({json.dumps(c) for c in t.cases}) == len(t.cases) > 0 and t.seeds == [0, 1, 2]
        assert set(t.cases[0]) <= set(t.keys), 'what differs tells rows apart'
        for case in t.cases:
            assert t.needs(case, 1) and all(x.seed == 1 and x.size == size for x in t.needs(case, 1))


def test_arms_are_cut_alike():
    for size in SCALES:
        trainings = [x for t in tables(size).values() for case in t.cases for x in t.needs(case, 0)]
        usual = dict(SCALES[size].case)
        for x in trainings:                                        # an arm of a study differs in one thing, and in no cut
            net, changes = ({k: v for k, v in x.case.get(part, {}).items() if usual.get(part, {}).get(k) != v} for part in ('net', 'changes'))
            assert len(net) + len(changes) <= 1 or 'images' in x.case
            assert {*net, *changes} <= {'u', 'u_lr', 'u_decay', 'learn_temperature', 'head_width', 'gather'} or 'images' in x.case
        assert {x.case['net']['u'] for x in trainings if 'u' in x.case.get('net', {})} == {.1, .3, 'msr'}
        recipes = {(x.plan.recipe.epochs, x.plan.recipe.lr, x.case.get('images')) for x in trainings}
        assert size == 'paper' or len(recipes) == 1 + len(FEW) + bool(SCALES[size].known), 'one recipe, whatever the model'
        assert {x.case.get('images') for c in tables(size)['sharpness'].cases
                for x in tables(size)['sharpness'].needs(c, 0)} == {SCALES[size].known}


def test_arms_are_told_apart(tmp_path):
    "Two networks of one name and seed are two trainings, and the list says what differs."
    lines = lines_of('small', ['levels', 'few'], out=tmp_path, root=tmp_path, seeds=[0], dry_run=True)
    assert any(line.startswith('networks: 0 there, 21 to train') for line in lines), lines
    assert sum('head_width 1.0' in line for line in lines) == 2 and sum(line.endswith('gather max') for line in lines) == 2
    assert sum('images 100' in line and 'epochs 100' in line for line in lines) == 4
    of_all, few = (Training('cluttered_fashion/vgg_gap', 'small', 0, dict(changes=dict(epochs=8)) | more) for more in ({}, dict(images=1600)))
    assert of_all.pmac() == pytest.approx(10 * few.pmac())


def test_sharpness_is_chosen_on_pictures_that_nobody_trained_on(monkeypatch, runs):
    "What is left of the training part behind the pictures that are trained on; test pictures choose nothing."
    whole = ImageSet(torch.arange(20)[:, None, None, None].expand(20, 3, 32, 32).to(torch.uint8), torch.arange(20) % 10, [*'abcdefghij'], 'cifar10')
    monkeypatch.setattr(ltpa.reproduce, 'open_data', lambda name, part: {'train': whole}[part])
    images, labels = ltpa.reproduce._rest('cifar10', 15)
    trained_on = _first(whole, 15, False).images
    assert torch.equal(torch.cat([trained_on, images])[:, 0, 0, 0], torch.arange(20).to(torch.uint8))
    folder = next(p.parent for p in runs.rglob('result.json') if 'att1_pc' in p.parent.name)
    net = load_weights(folder / 'weights.safetensors')
    own = predict(net, images, precision='auto')[0].argmax(1)
    assert torch.equal(labels, whole.labels[15:])
    assert looked(net, folder, 0, aside=(images, own))[0]['held_out'] == 1
    assert looked(net, folder, 0, aside=(images, (own + 1) % 10))[0]['held_out'] == 0
    assert 'held_out' not in looked(net, folder, 0)[0]


def test_heads_are_made_equally_wide():
    "One level through a map as wide as three levels, and three through one as wide as one."
    case = {x.plan.net.get('head_width', 0.): x for t in [tables('small')['levels']] for c in t.cases for x in t.needs(c, 0)}
    def width(x): return create_model(x.plan.model, 10, **x.plan.net).head.linear[0].in_features
    assert width(case[2.5]) == width(Training('cluttered_fashion/vgg_att3_concat_uniform', 'small', 0, SCALES['small'].case))
    assert width(case[1.]) == width(Training('cluttered_fashion/vgg_att1_uniform', 'small', 0, SCALES['small'].case))


def test_the_paper_is_listed_in_full(tmp_path):
    lines = lines_of('paper', dry_run=True, out=tmp_path, root=tmp_path)
    said = [line.split()[0] for line in lines if line.startswith('  ') and 'seed 0' in line]
    assert {f'{s}/{m}' for s, models in PAPER.items() for m in models} <= set(said)
    assert {f'{s}/vgg_trunk' for s in PAPER} <= set(said) and any('on one GPU' in line for line in lines)
    assert not list(tmp_path.iterdir()), 'a dry run leaves nothing'
    cub, = {x.first[0].target for t in tables('paper').values() for case in t.cases
            for x in t.needs(case, 0) if x.target == 'cub/vgg_att2_concat_pc'}
    assert cub == 'cifar100/vgg_att2_concat_pc', 'as the authors did'


def test_costs():
    narrow, wide = (Training('cifar10/vgg_trunk', 'cifar', 0, dict(net=dict(width=w))) for w in (1 / 8, 1 / 4))
    assert 3 < wide.pmac() / narrow.pmac() < 4.2
    assert wide.pmac() == pytest.approx(3 * .0614e9 * 50_000 * 16 / 1e15, rel=.01)
    assert (clock(40), clock(400_000)) == ('40 s', '111 h')


def test_names_that_do_not_exist(tmp_path):
    with refuses("size 'big'", 'small'): reproduce('big')
    with refuses("set 'horse'", 'horses'): tables('cifar', dict(horse=tmp_path))
    with refuses('no folder', 'nowhere', 'for horses'): tables('cifar', dict(horses=tmp_path / 'nowhere'))
    assert not tables('small', dict(horses=tmp_path))['places'].missing(tables('small')['places'].cases[0])
    with refuses("study 'acuracy'", 'accuracy'): reproduce('small', ['acuracy'], out=tmp_path, dry_run=True)


def test_what_is_not_here_is_said_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv('LTPA_DATA', str(tmp_path))
    lines = lines_of('cifar', ['accuracy', 'places'], out=tmp_path, root=tmp_path / 'runs')
    assert any(line.startswith('accuracy') and '33 not run for want of cifar10, cifar100' in line for line in lines)
    assert 'cifar10 is not here: ltpa download cifar10' in lines and 'horses is not here: --data horses=FOLDER' in lines
    assert not list(tmp_path.glob('*.json')) and not (tmp_path / 'runs').exists()


def test_hours_of_the_paper_come_from_a_measurement():
    measured = stored(Path(__file__).parent.parent / 'results' / 'speed_paper_size.json')
    assert 'H100' in measured['provenance']['hardware'] and 'H100' in HOURS
    assert RATE['paper'] == pytest.approx(measured['rows'][0]['pmac'], rel=.05) and f'{RATE["paper"]:g}'.lstrip('0') in HOURS


# The loop

@pytest.mark.whole
def test_all_studies_of_tiny_networks(tiny):
    files = reproduce('small', **tiny)
    assert list(files) == [name for name in STUDIES]
    for name, file in files.items():
        found = stored(file)
        assert found['rows'] and found['networks'] and found['units'], name
        assert {u['seed'] for u in found['units']} == {0} and all(u['commit'] != '' for u in found['units'])
        assert all({'target', 'seed', 'size', 'case', 'weights', 'threads', 'recipe'} <= set(n) for n in found['networks'].values())
    assert {r['model'] for r in stored(files['accuracy'])['rows']} == set(MODELS)
    assert [r['epoch'] for r in stored(files['accuracy'])['runs'] if 'epoch' in r] == [0, 1]
    assert {r['levels'] for r in stored(files['swaps'])['rows']} == {'all', '1'}
    assert 'occlusion' in {r['way'] for r in stored(files['segmentation'])['rows'] if r['model'] == 'vgg_trunk'}
    left_over = {name: left(t, 'small', tiny['out'], tiny['root'], lambda f: stored(files['accuracy'])['networks'][f.name]['weights'])
                 for name, t in tables('small', seeds=[0]).items() if name in STUDIES}
    assert not any(x.units or x.trainings for x in left_over.values())


class Enough(Exception): pass


def ended_at(word):
    def say(line):
        if word in line: raise Enough
    return say


def without_times(file):
    "What a file holds, but for when and how long"
    found = stored(file)
    for x in (*found['runs'], *found['units'], *found['networks'].values(), *found['rows']):
        for k in [k for k in x if k.startswith(('seconds', 'cpu_seconds', 'when'))]: del x[k]
    del found['provenance']
    return found


def test_it_goes_on_behind_what_is_done(tiny, tmp_path):
    want = reproduce('small', ['accuracy', 'swaps'], **tiny | dict(out=tmp_path / 'whole'))
    shutil.rmtree(next(tiny['root'].glob('*vgg_gap*')))                    # this one is trained again, to the same weights
    for word in 'vgg_trunk, seed', 'vgg_att1_pc, seed', 'swaps: ':
        with pytest.raises(Enough): reproduce('small', ['accuracy', 'swaps'], say=ended_at(word), **tiny)
    files = reproduce('small', ['accuracy', 'swaps'], **tiny)
    for name in want: assert without_times(files[name]) == without_times(want[name])
    assert {r['model'] for r in stored(files['accuracy'])['runs']} == set(MODELS), 'nothing was lost on the way'
    before = [f.read_bytes() for f in files.values()]
    reproduce('small', ['accuracy', 'swaps'], **tiny)
    assert [f.read_bytes() for f in files.values()] == before, 'nothing was left'


def test_what_another_process_adds_stays(tiny, tmp_path):
    other = tmp_path / 'other'
    reproduce('small', ['accuracy'], **tiny | dict(out=other))
    def say(line):                                  # another has written, while we were at the first network
        if 'vgg_gap, seed' in line: shutil.copytree(other, tiny['out'], dirs_exist_ok=True)
    file, = reproduce('small', ['accuracy'], say=say, **tiny).values()
    assert without_times(file)['networks'] == without_times(other / file.name)['networks']
    assert sorted(r['model'] for r in stored(file)['rows']) == sorted(MODELS)


def test_other_weights_are_measured_anew(tiny):
    file, = reproduce('small', ['accuracy'], **tiny).values()
    was = stored(file)
    run = next(n for n in was['networks'] if 'gap' in n)
    held = json.loads(file.read_text())
    held['networks'][run]['weights'] = 'f' * 16
    file.write_text(json.dumps(held))
    lines = lines_of('small', ['accuracy'], **tiny)
    assert sum(line.startswith('accuracy: ') for line in lines) == 1 and any('vgg_gap, seed 0' in line for line in lines)
    assert stored(file)['networks'][run]['weights'] == was['networks'][run]['weights']
    assert sorted(r['model'] for r in stored(file)['rows']) == sorted(MODELS)


def test_results_without_their_runs_count(tiny, tmp_path):
    reproduce('small', ['accuracy'], **tiny)
    lines = lines_of('small', ['accuracy'], **tiny | dict(root=tmp_path / 'elsewhere'))
    assert any('3 measured,   0 left' in line for line in lines) and not (tmp_path / 'elsewhere').exists()


def test_without_training_what_is_there_is_measured(tiny):
    shutil.rmtree(next(tiny['root'].glob('*vgg_gap*')))
    file, = reproduce('small', ['accuracy'], train=False, **tiny).values()
    assert [r['model'] for r in stored(file)['rows']] == ['vgg_trunk', 'vgg_att1_pc']
    assert not list(tiny['root'].glob('*vgg_gap*'))


@pytest.mark.whole
def test_seeds_join_a_file(tiny, monkeypatch):
    monkeypatch.setitem(SCALES, 'small', SMALL._replace(arms=dict(cluttered_fashion=['vgg_gap'])))
    reproduce('small', ['accuracy'], **tiny)
    file, = reproduce('small', ['accuracy'], **tiny | dict(seeds=[1])).values()
    assert {r['seeds'] for r in stored(file)['rows']} == {2} and all('accuracy_sd' in r for r in stored(file)['rows'])


def test_results_of_uncommitted_code_are_refused(tiny, tmp_path, monkeypatch):
    real = ltpa.reproduce.provenance
    monkeypatch.setattr(ltpa.reproduce, 'provenance', lambda **k: real(**k) | dict(commit='abcdefabcdef+'))
    into = tiny | dict(out=tmp_path / 'results')
    with refuses('abcdefabcdef+', 'commit first', '--out'): reproduce('small', ['accuracy'], **into)
    assert not (tmp_path / 'results').exists(), 'found out before anything is done'
    reproduce('small', ['accuracy'], **tiny)                               # elsewhere it may be written
    monkeypatch.setattr(ltpa.reproduce, 'provenance', lambda **k: real(**k) | dict(commit='abcdefabcdef'))
    for f in (tmp_path / 'runs').glob('*/result.json'):
        f.write_text(f.read_text().replace('"commit": ', '"commit": "abcdefabcdef+", "was": '))
    with refuses('abcdefabcdef+', 'remove that folder'): reproduce('small', ['accuracy'], **into)


# Once more

@pytest.mark.whole
def test_a_network_comes_out_the_same_from_the_file_alone(tiny):
    file, = reproduce('small', ['accuracy'], **tiny).values()
    run, usual = next(n for n in stored(file)['networks'] if 'gap' in n), torch.get_num_threads()
    then, now = repeat(run, [file], 'cpu')
    assert then == now and torch.get_num_threads() == usual
    held = json.loads(file.read_text())
    held['networks'][run]['seed'] = 5
    file.write_text(json.dumps(held))
    was, other = repeat(run, [file], 'cpu')
    assert was == then != other, 'another seed, other weights'
    held['networks'][run]['recipe']['lr'] = 9.
    file.write_text(json.dumps(held))
    with refuses('recipe of', 'by now', 'take the commit'): repeat(run, [file], 'cpu')
    with refuses("no file knows the run 'x'", run): repeat('x', [file])


@pytest.mark.parametrize('odd', [
    dict(networks=[1]), dict(networks=dict(a=1)), dict(networks=dict(a=dict(weights=3))), dict(units=dict(a=1)), dict(units=[dict(case=1, seed=0)]),
    dict(units=[dict(case={}, seed='0')])], ids=str)
def test_files_of_others_end_in_a_line(odd, tmp_path):
    (tmp_path / 'accuracy_small.json').write_text(json.dumps(dict(rows=[], runs=[], provenance={}) | odd))
    with refuses('accuracy_small.json', 'move it away'): reproduce('small', ['accuracy'], out=tmp_path, root=tmp_path / 'runs', dry_run=True)
    with refuses('accuracy_small.json', 'move it away'): repeat('a', [tmp_path / 'accuracy_small.json'])


# The command

def test_the_command_ends_with_numbers_and_verdicts(tiny, capsys, tmp_path, monkeypatch):
    from ltpa.cli import main
    where = ['--out', str(tiny['out']), '--runs', str(tiny['root']), '--seeds', '0']
    assert main(['reproduce', '--only', 'accuracy', '--dry-run', *where]) == 0
    assert '3 left' in capsys.readouterr().out and not tiny['out'].exists()
    assert main(['reproduce', '--only', 'accuracy', *where]) == 0
    out = capsys.readouterr().out
    assert 'accuracy_small.json' in out and 'the trunk    ' in out
    assert 'It classifies better: open: not run' in out and 'It transfers' not in out
    run = next(n for n in stored(tiny['out'] / 'accuracy_small.json')['networks'] if 'gap' in n)
    for answers, code in ((('a', 'a'), 0), (('a', 'b'), 2)):
        monkeypatch.setattr(ltpa.reproduce, 'repeat', lambda *a: answers)
        assert main(['reproduce', '--repeat', run, *where]) == code
    said = capsys.readouterr()
    place = f'torch {torch.__version__}, commit '
    assert f'{run}: made on ' in said.out and place in said.out and 'expected the same bits only on ' in said.err and place in said.err
    for odd in ['--data', 'horses'], ['--only', 'acuracy', *where], ['--data', 'horses=nowhere']:
        try: code = main(['reproduce', '--size', 'cifar', *odd])
        except SystemExit as e: code = e.code
        err = capsys.readouterr().err
        assert code == 2 and err.count('\n') == 1 and err.startswith('ltpa: ')
