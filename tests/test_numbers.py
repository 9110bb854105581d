"""Numbers in the text are those of the files; and the text says where each is from."""
import json

import pytest

import numbers_in_prose as numbers

FOUND = [m for path in numbers.notebooks() for m in numbers.marked(path)]


def test_the_text_marks_its_numbers():
    assert len(FOUND) >= 18 and len({m.where.split(',')[0] for m in FOUND}) >= 5


@pytest.mark.parametrize('m', FOUND, ids=lambda m: f'{m.where.split(",")[0]}-{m.number}-{m.spec[:50]}')
def test_number(m):
    if not (numbers.ROOT / 'results' / f'{m.spec.split(";")[0].split(".")[0]}.json').exists(): pytest.skip('not run')
    assert numbers.wrong(m) is None


@pytest.fixture
def results(tmp_path):
    runs = [dict(model=m, seed=s, x=x) for m, xs in dict(a=(.5, .25), b=(.25, .25)).items() for s, x in enumerate(xs)]
    (tmp_path / 'file.json').write_text(json.dumps(dict(
        rows=[dict(model='a', x=.84375), dict(model='b, c', x=-1234.5)], runs=runs, other=[dict(x=1)])))
    return tmp_path


@pytest.mark.parametrize('spec, number, right', [
    ('file; model=a; x; 100', '84.4', '84.4'), ('file; model=a; x', '.8', '.8'), ('file; model=a; x', '0.844', '0.844'),
    ('file; model=b, c; x', '-1,234', '-1,234'), ('file; model=b, c; x', '−1234.5', '−1234.5'),
    ('file.other; x', '1', '1'), ('file; lead a b x; 100', '+12.5', '+12.5'), ('file; lead b a x; 100', '+3', '-12')])
def test_what_a_mark_means(results, spec, number, right):
    assert numbers.as_written(numbers.value_of(spec, results), number) == right


def test_a_wrong_number_is_found(results, monkeypatch):
    monkeypatch.setattr(numbers.value_of, '__defaults__', (results,))
    at = lambda number, spec: numbers.wrong(numbers.Marked('x', number, spec))
    assert at('84.4', 'file; model=a; x; 100') is None and '84.4' in at('84.5', 'file; model=a; x; 100')
    assert 'picks 2 rows' in at('84.4', 'file; x') and 'y' in at('1', 'file; model=a; y') and at('1', 'nowhere; x') is None


def test_write_puts_the_right_number_there(results, tmp_path, monkeypatch):
    monkeypatch.setattr(numbers.value_of, '__defaults__', (results,))
    cell = dict(cell_type='markdown', id='a', source=['has 80.0<!--file; model=a; x; 100--> % and 7<!--nowhere; x-->'])
    path = tmp_path / 'a.ipynb'
    path.write_text(json.dumps(dict(cells=[cell])))
    numbers.rewrite(path)
    assert [m.number for m in numbers.marked(path)] == ['84.4', '7']
