"""What is stored in results/: provenance everywhere, and the ratios that the project promises."""
import importlib
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch

RESULTS = Path(__file__).resolve().parent.parent / 'results'
FILES = sorted([*RESULTS.glob('*.json'), *RESULTS.glob('again/*.json')])       # not those of lessons that ran, in live/


def rows(name): return json.loads((RESULTS / f'{name}.json').read_text())['rows']


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    "Run a benchmark as its command would, at a small size: the rows that it writes, from this very library."
    monkeypatch.syspath_prepend(str(RESULTS.parent / 'benchmarks'))
    threads = torch.get_num_threads()
    def run(name, numbers, changes):
        module, out = importlib.import_module(name), tmp_path / f'{name}.json'
        for k, v in changes.items(): monkeypatch.setattr(module, k, v)
        options = [word for k, v in numbers.items() for word in (f'--{k}', str(v))]
        monkeypatch.setattr('sys.argv', [f'{name}.py', '--json', str(out), *options])
        module.main()
        return json.loads(out.read_text())
    yield run
    torch.set_num_threads(threads)
    for name in [k for k, m in sys.modules.items() if (getattr(m, '__file__', None) or '').startswith(
            str(RESULTS.parent / 'benchmarks'))]: del sys.modules[name]


def quartiles(row): return [float(v) for v in row['quartiles'].split(' to ')]


@pytest.mark.parametrize('name, small, changes', [
    ('attacks', dict(batch=2, rounds=2), {}), ('loader', dict(images=300, batch=32, rounds=2), {}),
    ('rendering', dict(images=64, size=16, rounds=2), {}),
    pytest.param('paper_size', dict(batch=2, rounds=2, steps=1), {}, marks=pytest.mark.whole),
    # Its peaks are those of 16 processes, some seconds each; here nobody measures them.
    ('attention', dict(batch=2, rounds=2), dict(SHAPES=[(8, 4), (16, 2)], memory=lambda *case: [1., 2.]))],
    ids=['attacks', 'loader', 'rendering', 'paper_size', 'attention'])
def test_benchmarks_give_what_is_stored(name, small, changes, benchmark):
    "As many rows, the same columns, the same kinds of value; ratios that are ratios, whatever they are."
    stored, now = json.loads((RESULTS / f'speed_{name}.json').read_text()), benchmark(name, small, changes)
    assert now['provenance']['arguments'] == stored['provenance']['arguments'] | small
    assert stored['provenance'].keys() <= now['provenance'].keys()
    assert len(now['rows']) == len(stored['rows'])
    for row, old in zip(now['rows'], stored['rows']):
        assert [(k, type(v)) for k, v in row.items()] == [(k, type(v)) for k, v in old.items()]
        assert all(math.isfinite(v) and v > 0 for v in row.values() if isinstance(v, (int, float)))
        low, high = quartiles(row)
        assert 0 < low <= (row['cost'] if 'cost' in row else row['ratio']) <= high


def test_attached_attention_costs_little():
    "With the usual two levels, over the bare backbone: 8 % of a training step, 4 % of a forward pass at most."
    cost = {(r['levels'], r['mode']): r['cost'] for r in rows('speed_backbones')}
    assert cost[2, 'training'] <= 1.08 and cost[2, 'inference'] <= 1.04


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_provenance(path):
    record = json.loads(path.read_text())
    assert record['title'] and record['rows']
    assert {'commit', 'when', 'device', 'threads', 'versions'} <= record['provenance'].keys()


def test_attention_is_twice_as_fast_in_less_memory():
    ours = [r for r in rows('speed_attention') if r['layout'] == 'channels_last']
    assert {r['shape'].split('x', 1)[1] for r in ours} == {'256x32x32', '512x16x16'}
    assert min(r['ratio'] for r in ours) >= 2
    assert max(r['peak_ratio'] for r in ours if '256x32x32' in r['shape']) <= .7


def test_loader_gives_twenty_times_the_images():
    best, = (r for r in rows('speed_loader') if r['opponent'] == 'the better of them')
    assert best['ratio'] >= 20


def test_rendering_gives_five_thousand_images_a_second_on_one_thread():
    assert [r['images_per_second'] >= 5000 for r in rows('speed_rendering') if r['size'] == 32] == [True]


def test_a_learned_map_costs_a_twentieth_of_integrated_gradients():
    ratios = {r['map']: r.get('ratio') for r in rows('speed_maps')}
    assert ratios['integrated_gradients'] >= 20


def test_fgsm_costs_one_forward_and_backward_pass():
    assert max(r['cost'] for r in rows('speed_attacks')) <= 1.15


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_results_come_from_commits(path):
    "A '+' would say that the code differed from its commit."
    commits = re.findall(r'"commit": "([^"]*)"', path.read_text())
    assert commits and all(re.fullmatch('[0-9a-f]{12}', c) for c in commits)
