"""Claims and verdicts: intervals, signs, seeds, and what a missing file leaves open."""
import doctest
import json

import pytest
import torch

import ltpa.claims
from ltpa.claims import CLAIMS, NETS, OURS, Lead, half_width, in_numbers, in_words, judged, leads
from ltpa.reproduce import tables

ACCURACY = next(c for c in CLAIMS if c.study == 'accuracy')
FGSM = next(c for c in CLAIMS if c.study == 'fgsm')


def test_examples_in_docstrings(): assert doctest.testmod(ltpa.claims).failed == 0


def put(folder, study, size, seeds=3, **of):
    "A file with runs: by case the value of each seed"
    runs = [r | dict(source='a', seed=s, **{value: x}) for value, cases in of.items() for r, xs in cases for s, x in enumerate(xs[:seeds])]
    (folder / f'{study}_{size}.json').write_text(json.dumps(dict(rows=[], runs=runs, provenance={})))


def verdict(folder, claim=ACCURACY, size='small'): return judged(leads(folder, chosen=[claim]), size, [claim])[0]


def short(words): return words.partition('; not run, or too few seeds')[0]


def test_intervals_cover_the_truth():
    "Of many triples of normal numbers, 95 in 100 intervals hold the mean."
    rng = torch.Generator().manual_seed(0)
    for n in 2, 3, 5:
        x = torch.randn(4000, n, generator=rng, dtype=torch.float64)
        covered = sum(abs(sum(row) / n) <= half_width(row) for row in x.tolist()) / 4000
        assert .94 < covered < .96
    assert half_width([]) is half_width([1.]) is None


@pytest.mark.parametrize('sign, better, word', [
    ('higher', 'higher', 'ahead'), ('lower', 'higher', 'behind'), ('lower', 'lower', 'ahead'), ('higher', 'lower', 'behind'),
    ('seeds disagree', 'higher', 'seeds disagree'), ('not run', 'lower', 'not run')])
def test_a_lead_is_a_lead_only_on_its_own_side(sign, better, word):
    assert Lead('', '', '', '', '', [1.], sign, better).word == word


A, LOW, MIXED = (.9, .8, .7), (.8, .7, .6), (.8, .9, .6)


def test_verdicts_by_rule(tmp_path):
    case = lambda m: dict(model=m)
    def words(**changed):
        put(tmp_path, 'accuracy', 'small', accuracy=[(case(OURS), A), *((case(m), changed.get(m, LOW)) for m in NETS.values())])
        return in_words(verdict(tmp_path))
    assert words() == 'supported: ahead of plain VGG, the trunk, global average pooling, uniform attention'
    assert words(vgg_trunk=MIXED).endswith('not ahead of the trunk') and words(vgg_trunk=MIXED).startswith('not supported')
    put(tmp_path, 'accuracy', 'cifar', accuracy=[(case(OURS), LOW), (case('vgg'), A)])
    assert short(in_words(verdict(tmp_path, size='cifar'))) == 'not supported: not ahead of plain VGG'
    assert words().startswith('supported'), 'each size by itself'
    fooled = dict(attack='fgsm', eps=1)
    put(tmp_path, 'fgsm', 'small', fooled=[(case(OURS) | fooled, LOW), (case('vgg') | fooled, A), (case('vgg') | fooled | dict(eps=2), LOW)])
    v = verdict(tmp_path, FGSM)
    assert v.word == 'open' and not v.behind, 'less is better; the other size of attack has no attention'
    assert [x.data for x in leads(tmp_path, ['small'], [FGSM])] == ['a, eps 1', 'a, eps 2']
    put(tmp_path, 'fgsm', 'small', fooled=[(case(OURS) | fooled, LOW), (case('vgg') | fooled, A), (case('vgg') | fooled | dict(eps=16), LOW)])
    assert verdict(tmp_path, FGSM).ahead == ['plain VGG'], 'and no size counts that is not named'


def test_an_interval_that_holds_zero_decides_nothing(tmp_path):
    case = lambda m: dict(model=m)
    put(tmp_path, 'accuracy', 'small', accuracy=[(case(OURS), A), (case('vgg'), LOW), (case('vgg_trunk'), (.89, .7, .69))])
    v = verdict(tmp_path)
    assert (v.word, v.ahead, v.mixed, v.behind) == ('open', ['plain VGG'], ['the trunk'], [])
    put(tmp_path, 'accuracy', 'small', accuracy=[(case(OURS), A), (case('vgg'), MIXED), (case('vgg_trunk'), (.89, .7, .69))])
    assert verdict(tmp_path).word == 'not supported', 'one control is enough'


def test_two_sets_must_agree(tmp_path):
    claim = next(c for c in CLAIMS if c.study == 'transfer')
    put(tmp_path, 'transfer', 'small', accuracy=[(dict(model=m, data=d), xs) for d, m, xs in (
        ('b', OURS, A), ('b', 'vgg', LOW), ('c', OURS, LOW), ('c', 'vgg', A))])
    v = verdict(tmp_path, claim)
    assert (v.word, v.mixed, v.ahead) == ('not supported', ['plain VGG'], [])
    assert {x.data for x in leads(tmp_path, ['small'], [claim])} == {'a to b', 'a to c'}
    assert len(in_numbers(tmp_path, 'small', [claim])) == 6


def test_two_seeds_leave_a_claim_open(tmp_path):
    put(tmp_path, 'accuracy', 'small', seeds=2, accuracy=[(dict(model=OURS), A), (dict(model='vgg'), LOW)])
    assert in_words(verdict(tmp_path)).startswith('open: not run, or too few seeds, against plain VGG')


def test_one_seed_elsewhere_hides_nothing(tmp_path):
    "What three seeds say on one set stands, whatever one seed says on another."
    def put_both(control):
        runs = [dict(source=s, model=m, seed=k, accuracy=x) for s, n, of in (('a', 3, {OURS: A, 'vgg': control}), ('b', 1, {OURS: A, 'vgg': LOW, 'vgg_gap': LOW}))
                for m, xs in of.items() for k, x in enumerate(xs[:n])]
        (tmp_path / 'accuracy_cifar.json').write_text(json.dumps(dict(rows=[], runs=runs, provenance={})))
        return verdict(tmp_path, size='cifar')
    v = put_both(MIXED)
    assert (v.word, v.behind) == ('not supported', ['plain VGG']) and 'global average pooling' in v.untold
    v = put_both(LOW)
    assert (v.word, v.mixed, v.behind) == ('open', ['plain VGG'], []) and 'too few seeds, against the trunk' in in_words(v)


def test_a_control_that_lacks_a_set_is_told_and_supports_nothing(tmp_path):
    "'On every set' is the rule: a control that was run on one of two sets leaves the claim open, and its name says where it is missing."
    def put_both(control, elsewhere=()):
        of = {OURS: A, 'vgg_trunk': LOW, 'vgg_gap': LOW, 'vgg_att3_concat_uniform': LOW}
        runs = [dict(source=s, model=m, seed=k, accuracy=x) for s, vgg in (('a', elsewhere), ('b', control))
                for m, xs in (of | dict(vgg=vgg)).items() for k, x in enumerate(xs)]
        (tmp_path / 'accuracy_cifar.json').write_text(json.dumps(dict(rows=[], runs=runs, provenance={})))
        return verdict(tmp_path, size='cifar')
    others = [name for name in NETS if name != 'plain VGG']
    v = put_both(LOW)
    assert (v.word, v.ahead, v.partly, v.mixed, v.behind, v.untold) == ('open', others, ['plain VGG'], [], [], [])
    assert in_words(v) == f'open: ahead of {", ".join(others)}; ahead, where it was run, of plain VGG (not run on a)'
    assert {x.data: x.word for x in leads(tmp_path, ['cifar'], [ACCURACY]) if x.control == 'plain VGG'} == {'a': 'not run', 'b': 'ahead'}
    v = put_both(MIXED)
    assert (v.word, v.partly) == ('not supported', []) and in_words(v).endswith('; not ahead of plain VGG (not run on a)')
    v = put_both(LOW, A[:1])
    assert (v.word, v.partly) == ('open', []) and in_words(v).endswith('not surely, ahead of plain VGG (too few seeds on a)')
    v = put_both(())
    assert (v.word, v.ahead, v.untold, v.gaps) == ('open', others, ['plain VGG'], {}), 'a control that the size lacks altogether'
    assert 'plain VGG' not in {x.control for x in leads(tmp_path, ['cifar'], [ACCURACY])}
    assert put_both(LOW, LOW).word == 'supported' and not put_both(LOW, LOW).gaps


def test_nothing_is_open_and_says_so(tmp_path):
    assert {in_words(v) for size in ('small', 'cifar', 'paper') for v in judged(leads(tmp_path), size)} == {'open: not run'} and not in_numbers(tmp_path, 'cifar')


@pytest.mark.parametrize('claim', CLAIMS, ids=lambda c: c.name)
def test_claims_ask_for_what_is_measured(claim):
    "Each control is a model of some size, each study is one of `ltpa reproduce`."
    assert claim.study in tables('small')
    models = {c['model'] for c in tables('small')[claim.study].cases}
    assert {case.partition(':')[0] for case in (claim.ours, *claim.controls.values())} <= models
    assert set(claim.compared.values()) <= {'higher', 'lower'}
