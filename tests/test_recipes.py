"""Every row of the paper's tables: listed, planned as the authors had it, and run for a few steps."""
import json
from pathlib import Path

import pytest
from helpers import refuses

from ltpa.names import switches
from ltpa.models import create_model, load_weights
from ltpa.names import SETS
from ltpa.recipes import PAPER, plan, recipe_table
from ltpa.runs import run_training
from ltpa.cli import main

RECIPES = [f'{s}/{m}' for s in PAPER for m in PAPER[s]]
TINY = '--width', '.04', '--batch-size', '32', '--stop-after', '3', '--device', 'cpu', '--quiet'


def test_all_rows_of_the_two_tables_are_there():
    assert {s: len(rows) for s, rows in PAPER.items()} == dict(cifar10=11, cifar100=11, cub=5, svhn=5)
    best = {s: min(rows, key=lambda m: rows[m][0]) for s, rows in PAPER.items()}
    assert best == dict(cifar10='vgg_att2_concat_pc', cifar100='vgg_att3_concat_pc', cub='vgg_att2_concat_pc',
                        svhn='vgg_att3_concat_pc')


@pytest.mark.parametrize('name', RECIPES)
def test_at_size_paper_a_row_is_what_the_authors_ran(name):
    p = plan(name, 'paper')
    assert (p.net.get('width'), p.net.get('early_pools', 0), p.net.get('dropout', True)) == (1., 0, True)
    set_, model = name.split('/')
    r = p.recipe
    assert r.optimizer == 'sgd' and r.momentum == .9 and r.weight_decay == 5e-4
    if model == 'resnet164': assert (r.epochs, r.batch_size, r.lr, r.nesterov, r.crop) == (200, 64, .1, True, 4)
    else:
        assert (r.batch_size, r.crop, r.nesterov) == (128, 0, False)
        assert (r.epochs, r.lr) == {'cub': (320, .01), 'svhn': (300, .01)}.get(set_, (300, .1))
    assert r.flip is (set_ != 'svhn')
    assert p.image_size == (80 if set_ == 'cub' else None)
    assert p.net.get('layout') == ('cub' if set_ == 'cub' and 'layout' in switches(model) else None)


def test_presets_reach_network_and_optimizer():
    p = plan('cifar100/vgg_att3_concat_pc', 'paper', 'official_code')
    assert (p.recipe.lr, p.recipe.dampening, p.net['branch_grad'], p.net['color']) == (1., .9, 'mean', 'yuv_lcn')
    assert plan('svhn/vgg', 'paper', 'official_code').recipe.lr == pytest.approx(.1)
    p = plan('cifar10/resnet164', 'paper', 'official_code').recipe
    assert (p.lr, p.dampening) == (.1, 0.)                              # there the authors do not dampen
    p = plan('cifar10/vgg_att2_concat_pc', 'paper', 'modern')
    assert (p.recipe.name, p.net['dropout'], p.net['width']) == ('fast', False, 1.)
    p = plan('cifar10/vgg_att2_concat_pc', 'small', 'official_code', net=dict(u='small'), changes=dict(lr=.5))
    assert (p.net['dropout'], p.net['u'], p.recipe.lr, p.recipe.optimizer) == (True, 'small', .5, 'muon')


def test_small_has_pictures_that_stand_in():
    assert plan('cub/vgg', 'small').source == 'cluttered_fashion' == plan('cifar10/vgg', 'small').source
    assert plan('cifar10/vgg').source == 'cifar10' and plan('some/folder/vgg').source == 'some/folder'


def test_dp_is_as_cool_as_was_best_but_in_the_papers_size():
    path = Path(__file__).parent.parent / 'results' / 'choose_cluttered_fashion_dp.json'
    best = max(json.loads(path.read_text())['rows'], key=lambda row: row['accuracy'])
    for size in 'small', 'cifar':
        assert plan('cifar10/vgg_att2_concat_dp', size).net['temperature'] == best['temperature'] != 1
        assert 'temperature' not in plan('cifar10/vgg_att2_concat_pc', size).net
    assert 'temperature' not in plan('cifar10/vgg_att2_concat_dp', 'paper').net


def test_costs():
    rows = {r['recipe']: r for r in recipe_table('paper', 'cifar100')}
    att3 = rows['cifar100/vgg_att3_concat_pc']
    assert att3['params_m'] == pytest.approx(19.971751)
    assert att3['gmac'] == pytest.approx(3.79, rel=.01)
    assert att3['train_pmac'] == pytest.approx(3 * att3['gmac'] * 50_000 * 300 / 1e6)
    with refuses("unknown size 'big'"): plan('cifar10/vgg', 'big')
    assert set(SETS) >= set(PAPER)


def test_the_table_is_printed(capsys):
    assert main(['recipes', 'cifar10/']) == 0
    text = capsys.readouterr().out
    assert 'cifar10/vgg_att2_concat_pc' in text and '5.23 ± 0.04' in text and '19.72 M' in text
    assert main(['recipes', 'svhn', '--json', '--size', 'small']) == 0
    assert [r['recipe'] for r in json.loads(capsys.readouterr().out)] == [f'svhn/{m}' for m in PAPER['svhn']]
    assert main(['recipes', 'imagenet']) == 2
    assert 'no recipe contains' in capsys.readouterr().err


QUICK = 'svhn/vgg_att2_concat_pc'
SOME = 'cifar10/resnet164',      # birds: test_cub.py, and make test-all


@pytest.mark.parametrize('name', [
    pytest.param(r, marks=[] if r == QUICK else pytest.mark.slow if r in SOME else pytest.mark.whole) for r in RECIPES])
def test_every_recipe_runs_a_few_steps(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    depth = ['--depth', '11'] if 'resnet' in name else []
    assert main(['train', name, '--size', 'small', '--out', 'run', *TINY, *depth]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    assert result['provenance']['steps'] == 3 and result['provenance']['source']['source'] == 'cluttered_fashion'
    assert len(result['losses']) == 3
    net = load_weights(tmp_path / 'run' / 'weights.safetensors')
    assert net.name == name.split('/')[1] and (net.config.get('layout') == 'cub') == (
        name.startswith('cub') and 'layout' in switches(net.name))


@pytest.mark.whole
def test_birds_start_from_cifar100(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = dict(size='small', device='cpu', net=dict(width=.04), changes=dict(batch_size=32))
    from ltpa.models import save_weights
    old = create_model('vgg_att2_concat_pc', 100, .04, early_pools=1, dropout=False)
    save_weights(old, 'old.safetensors')
    from ltpa.runs import StopAfter
    run_training('cub/vgg_att2_concat_pc', out='run', init='old.safetensors', callbacks=[StopAfter(1)], **quick)
    new = load_weights('run/weights.safetensors')
    moved = (new.trunk.stages[0][0][0].weight - old.trunk.stages[0][0][0].weight).abs().max()
    assert 0 < moved < .01
    with refuses('nowhere.safetensors'):
        run_training('cub/vgg_att2_concat_pc', out='other', init='nowhere.safetensors', **quick)
    assert not (tmp_path / 'other').exists()
