"""Studies: means, pairs and verdicts in closed form; interrupted and foreign runs; old rows and new ones."""
import doctest
import json
import random
import statistics
from dataclasses import asdict

import pytest
from helpers import one_line, refuses, tiny_net

import ltpa.studies
from ltpa.data import ClutteredFashion
from ltpa.models import load_weights, save_weights
from ltpa.recipes import plan
from ltpa.runs import StopAfter, run_training
from ltpa.studies import (
    Sharpness, Study, compared, evaluated, grouped, merge, paired, read_sharpness, run_command, run_study, stored,
    study_parser, summarize, trained, trained_net, training_studies, verdict, weights_digest)

TARGET = 'cluttered_fashion/vgg_gap'
TINY = dict(net=dict(width=1 / 32, early_pools=2, dropout=False), changes=dict(epochs=1, batch_size=4000),
            image_size=16)
FEW = TINY | dict(changes=dict(epochs=1, batch_size=40))


def runs(**models):
    return [dict(model=m, seed=s, accuracy=x) for m, values in models.items() for s, x in enumerate(values)]


def test_examples_in_docstrings():
    assert doctest.testmod(ltpa.studies).failed == 0


# Runs on a part of a set

def test_few_pictures_of_a_named_set(tmp_path):
    "The first so many; another number is another training; what is not there is refused."
    folder = trained(TARGET, 'small', 0, tmp_path, device='cpu', images=40, **FEW)
    record = stored(folder / 'result.json')
    assert 'images-40' in folder.name and record['provenance']['images'] == 40 and record['provenance']['steps'] == 1
    assert record['provenance']['data'] == ClutteredFashion('train', 16, n=40).fingerprint
    assert record['rows'][0]['images'] == 4000, 'tested on all'
    assert trained(TARGET, 'small', 0, tmp_path, train=False, images=40, **FEW) == folder
    assert trained(TARGET, 'small', 0, tmp_path, train=False, images=50, **FEW) is None
    folder.rename(folder.with_name(folder.name.replace('images-40', 'images-50')))
    with refuses('images 40', 'expected 50'): trained(TARGET, 'small', 0, tmp_path, train=False, images=50, **FEW)
    for n in 0, 16_001, 2.5:
        with refuses(f'images={n}', 'from 1 to 16,000'): run_training(TARGET, tmp_path / 'no', 'small', device='cpu', images=n, **TINY)
    assert not (tmp_path / 'no').exists()


def test_runs_from_before_a_field_of_recipes_are_the_same_training(tmp_path):
    folder = trained(TARGET, 'small', 0, tmp_path, device='cpu', images=40, **FEW)
    record = stored(folder / 'result.json')
    for k in 'u_lr', 'u_decay', 'balance': del record['provenance']['recipe'][k]
    (folder / 'result.json').write_text(json.dumps(record))
    assert trained(TARGET, 'small', 0, tmp_path, train=False, images=40, **FEW) == folder
    fast = FEW | dict(changes=FEW['changes'] | dict(u_lr=2.))
    assert trained(TARGET, 'small', 0, tmp_path, train=False, images=40, **fast) is None
    rows = [dict(m='a', seed=0)]
    was, now = record['provenance'], record['provenance'] | dict(recipe=asdict(plan(TARGET, 'small', changes=FEW['changes']).recipe))
    assert merge(rows, [], ['m'], [was, now]) == rows
    with refuses('recipe u_lr 1.0', '2.0'): merge(rows, [], ['m'], [was, now | dict(recipe=now['recipe'] | dict(u_lr=2.))])


# Means over seeds

@pytest.mark.parametrize('seeds', range(1, 6))
def test_mean_and_sample_deviation(seeds):
    rng = random.Random(seeds)
    values = [rng.random() for _ in range(seeds)]
    row, = summarize(runs(a=values), ['model'])
    mean = sum(values) / seeds
    assert row['seeds'] == seeds and row['accuracy'] == pytest.approx(mean, abs=1e-4)
    if seeds == 1: assert 'accuracy_sd' not in row, 'one seed has no spread'
    else:
        variance = sum((v - mean) ** 2 for v in values) / (seeds - 1)
        assert row['accuracy_sd'] == pytest.approx(variance ** .5, abs=1e-4)
        assert row['accuracy_sd'] != round(statistics.pstdev(values), 4)


def test_order_of_rows_and_groups_does_not_matter():
    rows = [r | dict(net=dict(width=.25)) for r in runs(a=(.1, .2, .4), b=(.5, .6, .9))]
    table = summarize(rows, ['model', 'net'])
    assert [r['model'] for r in table] == ['a', 'b'] and table[0]['net'] == dict(width=.25)
    mixed = random.Random(0).sample(rows, 6)
    key = lambda r: r['model']
    assert sorted(summarize(mixed, ['model', 'net']), key=key) == table


def test_what_was_not_run_is_no_zero():
    a, b = summarize(runs(a=(.2, None, .4), b=(None, None)), ['model'])
    assert a == dict(model='a', accuracy=.3, accuracy_sd=.1414, accuracy_seeds=2, seeds=3)
    assert b == dict(model='b', accuracy=None, accuracy_seeds=0, seeds=2)
    nothing = [dict(model='a', way='')]
    assert summarize(nothing, ['model', 'way']) == nothing, 'and no number of seeds'
    assert summarize([], ['model']) == []


def test_values_and_what_is_kept():
    rows = [dict(model='a', seed=s, x=float(s), y=2 * s, passes=6, name='n') for s in (0, 2)]
    assert summarize(rows, ['model'], ['x', 'z'], keep=['passes']) == [
        dict(model='a', passes=6, x=1., x_sd=1.4142, seeds=2)]


def test_refused_rows():
    with refuses('seed 0 occurs 2 times for model a', 'expected once'): summarize(runs(a=[.1]) * 2, ['model'])
    unknown = [r | dict(seed=None) for r in runs(a=[.1])] * 2
    assert summarize(unknown, ['model'])[0]['seeds'] == 2, 'of seeds that are not known'
    for odd in '0.5', True, [.5]:
        with refuses(f'accuracy={odd!r}', 'expected a number'): summarize(runs(a=[odd]), ['model'])
    with refuses("by='model'", "['model']"): grouped([], 'model')


# Pairs and verdicts

def test_differences_within_seeds():
    rows = runs(a=(.5, .75, .25, 1.), b=(.25, .25, None, .75))
    random.Random(1).shuffle(rows)
    found = paired(rows, 'a', 'b', 'accuracy')
    assert (found['differences'], found['seeds'], found['sign']) == ([.25, .5, .25], 3, 'higher')
    assert found['mean'] == .3333 and found['mean_sd'] == .1443
    back = paired(rows, 'b', 'a', 'accuracy')
    assert back['differences'] == [-.25, -.5, -.25] and back['sign'] == 'lower'


def test_common_luck_cancels():
    "Spread between seeds that both share is no spread of the difference"
    luck = [.1, .5, .9]
    found = paired(runs(a=[x + .05 for x in luck], b=luck), 'a', 'b', 'accuracy')
    assert found['differences'] == [.05] * 3 and found['mean_sd'] == 0 and found['sign'] == 'higher'
    a, b = summarize(runs(a=[x + .05 for x in luck], b=luck), ['model'])
    assert compared(a, b, 'accuracy') == 'within the spread'


@pytest.mark.parametrize('a, b, sign', [
    ((.5, .5, .5), (.4, .4, .4), 'higher'), ((.5, .5, .5), (.4, .6, .4), 'seeds disagree'),
    ((.5, .5, .5), (.4, .4, .5), 'seeds disagree'), ((.1, .2), (.2, .3), 'too few seeds'),
    ((None, .5), (.2, None), 'not run'), ((), (), 'not run')])
def test_signs(a, b, sign):
    found = paired(runs(a=a, b=b), 'a', 'b', 'accuracy')
    assert found['sign'] == sign and (found['mean'] is None) == (sign == 'not run')


def test_pairs_need_one_row_a_seed():
    rows = runs(a=[.1], b=[.2]) + runs(b=[.2])
    with refuses('seed 0 occurs 2 times for model b'): paired(rows, 'a', 'b', 'accuracy')


@pytest.mark.parametrize('a, b, word', [
    ((.8, .01, 3), (.7, .02, 3), 'higher'), ((.7, .01, 3), (.8, .02, 3), 'lower'),
    ((.8, .06, 3), (.7, .05, 3), 'within the spread'), ((.8, .01, 2), (.7, .02, 3), 'too few seeds')])
def test_means_ahead_by_both_deviations(a, b, word):
    row = lambda v: dict(zip(('x', 'x_sd', 'seeds'), v))
    assert compared(row(a), row(b), 'x') == word
    for pair in ((row(a), None), (None, row(b)), (dict(x=None), row(b))):
        assert compared(*pair, 'x') == 'not run'


def test_a_number_that_nobody_trained_has_no_spread():
    row = dict(x=.5, sd=.1, splits=3)
    assert [compared(row, v, 'x', 'sd', 'splits') for v in (.39, .41, .59, .61)] == [
        'higher', 'within the spread', 'within the spread', 'lower']


def test_verdict_names_every_control():
    found = dict(a='higher', b='lower', c='seeds disagree', d='not run', e='higher')
    assert verdict(found) == ('supported against a and e, opposite against b, '
                              'not against c (seeds disagree), not run against d')
    assert verdict(found, 'lower').startswith('supported against b, opposite against a and e')
    assert verdict({}) == 'not run'
    with refuses("better='more'", 'higher or lower'): verdict(found, 'more')


# Stored rows and new ones

def test_merge_keeps_places():
    old = [dict(set=s, way=w, x=0) for s in 'ab' for w in (1, 2)]
    new = [dict(set='c', way=1, x=1), dict(set='a', way=3, x=1)]
    assert merge(old, new, ['set']) == [new[1], *old[2:], new[0]], 'what is replaced together goes together'
    assert merge(old, new, ['set', 'way']) == [*old, *new]
    assert merge(old, new, lambda r: r['set'] == 'a') == [new[1], new[0]]
    assert merge([], new, ['set']) == new and merge(old, [], ['set']) == old


def test_merge_refuses_other_provenance():
    old = dict(data='f703', settings=dict(images=10, few=4), commit='a')
    assert merge([], [], ['x'], (old, old | dict(commit='b'))) == [], 'another commit is no other setting'
    for new, words in ((old | dict(data='1855'), ("data 'f703', new ones '1855'", 'measure all anew')),
                       (old | dict(settings=dict(images=10, few=5)), ('settings few 4, new ones 5',)),
                       (dict(settings=old['settings']), ("data 'f703', new ones None",))):
        with refuses(*words): merge([], [], ['x'], (old, new))


def test_stored(tmp_path):
    assert stored(tmp_path / 'none.json') == {}
    (tmp_path / 'half.json').write_text('{"rows": [')
    with refuses('half.json', 'expected JSON', 'measure again'): stored(tmp_path / 'half.json')


# Studies

@pytest.fixture
def dice():
    asked = []

    def throw(case, seed):
        asked.append((case['sides'], seed))
        return [dict(eyes=seed % case['sides']), dict(eyes=-1., throw='second')]
    return Study('dice', 'Eyes', [dict(sides=2), dict(sides=6)], throw, ['sides', 'throw'], (1, 4)), asked


def test_study_asks_every_case_and_seed(dice, tmp_path, capsys):
    study, asked = dice
    found = run_study(study, out=tmp_path / 'dice.json')
    assert asked == [(2, 1), (2, 4), (6, 1), (6, 4)] and len(found['runs']) == 8
    assert found['rows'][2] == dict(sides=6, eyes=2.5, eyes_sd=2.1213, seeds=2)
    assert found['rows'][3] == dict(sides=6, throw='second', eyes=-1., eyes_sd=0., seeds=2)
    assert found == stored(tmp_path / 'dice.json') and found['title'] == 'Eyes'
    record = found['provenance']
    assert record['seeds'] == [1, 4] and {'commit', 'when', 'seconds'} <= set(record)
    assert 'dice: sides 6, seed 4' in capsys.readouterr().out
    run_study(study, [3, 3], tmp_path / 'dice.json')
    assert asked[4:] == [(2, 3), (6, 3)], 'a seed twice is asked once'
    with refuses('dice: 2 cases and 0 seeds'): run_study(study, [], tmp_path / 'dice.json')


def test_seeds_are_added(dice, tmp_path):
    study, asked = dice
    out, both = tmp_path / 'dice.json', run_study(study, out=tmp_path / 'both.json')
    run_study(study, [4], out)
    found = run_study(study, [1], out, add=True)
    assert {json.dumps(r) for r in found['runs']} == {json.dumps(r) for r in both['runs']}
    assert found['rows'] == both['rows'] and found['provenance']['seeds'] == [1, 4]
    assert run_study(study, [1], out)['provenance']['seeds'] == [1], 'else the file is made anew'
    out.write_text(json.dumps(found | dict(provenance=found['provenance'] | dict(data='f703'))))
    with refuses("data 'f703'"): run_study(study, [2], out, add=True)
    out.write_text(json.dumps(dict(title='', rows=[], provenance={})))
    with refuses('dice.json keeps no single runs'): run_study(study, [2], out, add=True)


# Runs

def test_a_run_is_trained_once(tmp_path, monkeypatch):
    assert trained(TARGET, 'small', 0, tmp_path, train=False, **TINY) is None
    folder = trained(TARGET, 'small', 0, tmp_path, device='cpu', **TINY)
    assert folder.name.startswith('cluttered_fashion-vgg_gap-width-0.03125-early_pools-2-')
    assert {'weights.safetensors', 'result.json'} <= {p.name for p in folder.iterdir()}
    monkeypatch.setattr('ltpa.studies.run_training', lambda *a, **k: pytest.fail('trained again'))
    for train in True, False: assert trained(TARGET, 'small', 0, tmp_path, train, **TINY) == folder
    net = trained_net(TARGET, 'small', 0, tmp_path, **TINY)
    assert net.name == 'vgg_gap' and weights_digest(net) != weights_digest(tiny_net('vgg_gap', 10, 1))
    result = json.loads((folder / 'result.json').read_text())
    right = result['rows'][0]['accuracy']
    result['rows'][0]['accuracy'] = 7.
    (folder / 'result.json').write_text(json.dumps(result))
    assert evaluated(folder, 'cpu')['rows'][0]['accuracy'] == right, 'of its weights, not of the file'


@pytest.fixture
def asked(monkeypatch):
    "What would be trained; each leaves what a run leaves, with the plan as its record"
    calls = []

    def run(target, out, size, seed, device, **case):
        assert not case.pop('resume') and not (out / 'weights.safetensors').exists() and not case.pop('report')
        watch, = case.pop('callbacks')
        assert watch.file == out / 'cells.csv'
        calls.append((target, size, seed, case))
        p = plan(target, size, net=case.get('net', ()), changes=case.get('changes', ()))
        how = dict(source=p.source, size=p.image_size, scale=case.get('scale'))
        record = dict(seed=seed, recipe=p.recipe.__dict__, net=p.net | dict(num_classes=10), source=how)
        save_weights(tiny_net(p.model, 10, seed), out / 'weights.safetensors')
        (out / 'result.json').write_text(json.dumps(dict(rows=[{}], provenance=record)))
    monkeypatch.setattr('ltpa.studies.run_training', run)
    return calls


def interrupted(folder, steps, **case):
    "What a run leaves that was ended after some steps"
    run_training('cluttered_fashion/vgg_att1_pc', folder, 'small', 0, 'cpu', report=False,
                 callbacks=[StopAfter(steps), Sharpness(folder / 'cells.csv')], **case)
    for name in 'result.json', 'weights.safetensors': (folder / name).unlink()


@pytest.mark.whole
def test_what_was_interrupted_goes_on_to_the_same_weights(tmp_path):
    case = dict(net=dict(width=1 / 32, early_pools=1), changes=dict(epochs=2, batch_size=2000))
    target = 'cluttered_fashion/vgg_att1_pc'
    whole = trained(target, 'small', 0, tmp_path / 'whole', device='cpu', **case)
    rows = read_sharpness(whole / 'cells.csv')
    assert [(r['epoch'], r['level']) for r in rows] == [(0, 1), (1, 1), (2, 1)]
    assert len({r['cells'] for r in rows}) == 3 and all(1 <= r['cells'] <= r['of'] for r in rows)
    for steps in 11,:                                       # within the second pass
        folder = tmp_path / f'{steps}' / whole.name
        interrupted(folder, steps, **case)
        assert trained(target, 'small', 0, folder.parent, device='cpu', **case) == folder
        assert (folder / 'cells.csv').read_bytes() == (whole / 'cells.csv').read_bytes()
        assert weights_digest(load_weights(folder / 'weights.safetensors')) == weights_digest(
            load_weights(whole / 'weights.safetensors'))
        assert json.loads((folder / 'result.json').read_text())['provenance']['resumed_at_step'] == steps
    other = case | dict(net=dict(width=1 / 16, early_pools=1))
    interrupted(tmp_path / 'other' / whole.name, 3, **other)
    with refuses('checkpoint.safetensors'):                 # a stranger under this name
        trained(target, 'small', 0, tmp_path / 'other', device='cpu', **case)


def test_who_does_not_look_leaves_no_table(tmp_path):
    folder = trained(TARGET, 'small', 0, tmp_path, device='cpu', **TINY)
    assert not (folder / 'cells.csv').exists() and read_sharpness(folder / 'cells.csv') == []
    (tmp_path / 'odd.csv').write_text('epoch,level\n1,x\n')
    assert read_sharpness(tmp_path / 'odd.csv') == []


def test_weights_without_a_result_are_removed(tmp_path, asked):
    folder = tmp_path / 'cluttered_fashion-vgg_gap-seed3'
    folder.mkdir()
    (folder / 'weights.safetensors').write_bytes(b'half')
    (folder / 'notes.txt').write_text('mine')
    assert trained(TARGET, seed=3, root=tmp_path) == folder and len(asked) == 1
    assert (folder / 'notes.txt').exists(), 'only what a run makes is removed'
    assert trained(TARGET, seed=3, root=tmp_path) == folder and len(asked) == 1


@pytest.mark.parametrize('change, words', [
    (dict(recipe=dict(lr=.5)), ('recipe lr 0.5', 'expected 0.008')),
    (dict(net=dict(width=.5)), ('net width 0.5', 'expected 0.25')),
    (dict(net=dict(project='l')), ("net project 'l'", 'expected None')),
    (dict(seed=4), ('seed 4', 'expected 0')),
    (dict(source=dict(scale=.4)), ('scale 0.4', 'expected None')),
    (dict(source=dict(source='cifar10')), ("source 'cifar10'",))])
def test_a_run_with_other_settings_is_refused(change, words, tmp_path, asked):
    file = trained(TARGET, root=tmp_path) / 'result.json'
    result = json.loads(file.read_text())
    record = result['provenance']
    for k, v in change.items(): record[k] = record[k] | v if isinstance(v, dict) else v
    file.write_text(json.dumps(result))
    with refuses('vgg_gap-seed0', *words, 'remove that folder'): trained(TARGET, root=tmp_path)


def test_fields_that_recipes_got_later_are_no_difference(tmp_path, asked):
    file = trained(TARGET, root=tmp_path) / 'result.json'
    result = json.loads(file.read_text())
    del result['provenance']['recipe']['compile']
    file.write_text(json.dumps(result))
    assert trained(TARGET, root=tmp_path) == file.parent


def test_names_of_folders(tmp_path, asked):
    case = dict(changes=dict(epochs=2), scale=.4, net=dict(width=1 / 8))
    assert trained(TARGET, 'small', 1, tmp_path, **case).name == (
        'cluttered_fashion-vgg_gap-scale-0.4-width-0.125-epochs-2-seed1')
    assert trained(TARGET, 'small', 1, tmp_path, scale=None).name == 'cluttered_fashion-vgg_gap-seed1'
    assert trained('cifar10/vgg_gap', 'cifar', 0, tmp_path).name == 'cifar10-vgg_gap-seed0'
    assert [size for _, size, _, _ in asked] == ['small', 'small', 'cifar']
    with refuses('nowhere', 'no result.json'): evaluated('nowhere')


def test_training_studies(tmp_path, asked, monkeypatch):
    def scored(path, device):
        name = path.parent.name
        return None, dict(accuracy=.5 + int(name[-1]) / 10) | (dict(pointing_1=.25) if 'pc' in name else {})
    monkeypatch.setattr('ltpa.studies.evaluate_weights', scored)
    for name, study in training_studies(tmp_path).items():
        assert study.name == name and study.cost
        assert len({json.dumps(c) for c in study.cases}) == len(study.cases), 'every case is another'
    real = ltpa.studies.evaluated

    def with_record(folder, device='auto'):
        result = real(folder)
        result['provenance'] |= dict(seconds=10. + int(folder.name[-1]), commit='c', when='t')
        result['rows'][0] |= dict(passes=6, parameters=9, gmac=.1)
        return result
    monkeypatch.setattr('ltpa.studies.evaluated', with_record)
    study = training_studies(tmp_path)['controls']
    rows = [case | r | dict(seed=s) for case in study.cases for s in (0, 1) for r in study.row(case, s)]
    table = study.finish(rows, {})['rows']
    assert table[0] == dict(model='vgg_att3_concat_pc', passes=6, parameters=9, gmac=.1, accuracy=.55,
                            accuracy_sd=.0707, pointing_1=.25, pointing_1_sd=0., seeds=2, seconds=10)
    assert 'pointing_1' not in table[1] and len(asked) == 6


# What tools share

def test_options_and_errors(monkeypatch, capsys):
    a = study_parser('x', None, n=(5, 'pictures'), name=('a', 'of it')).parse_args(['--n', '3'])
    assert (a.seeds, a.n, a.name) == (None, 3, 'a')
    with pytest.raises(SystemExit): study_parser('x').parse_args(['--seeds', '1'])
    monkeypatch.setattr('sys.argv', ['tools/measure_dice.py'])
    with pytest.raises(SystemExit) as caught: run_command(lambda: summarize(runs(a=['x']), ['model']))
    one_line(str(caught.value), 'measure_dice: accuracy=', 'expected a number')
    with pytest.raises(ZeroDivisionError): run_command(lambda: 1 / 0)
