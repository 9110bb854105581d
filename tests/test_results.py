"""What is stored in results/: provenance everywhere, and the ratios that the project promises."""
import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parent.parent / 'results'
FILES = sorted(RESULTS.glob('*.json'))


def rows(name): return json.loads((RESULTS / f'{name}.json').read_text())['rows']


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
