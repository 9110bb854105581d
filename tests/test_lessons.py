"""Every lesson: sources at its end, minutes in all their parts, its place in the table of index. And the solutions."""
import ast
import json
import re
import traceback
from collections import Counter
from pathlib import Path

import check_notebooks
import pytest
import times
from check_notebooks import joined

LESSONS = times.lessons()


def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']


@pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
def test_a_lesson_ends_with_its_sources(path):
    text = [joined(c['source']) for c in cells(path) if c['cell_type'] == 'markdown']
    *_, summary, last = text[:-1] if text[-1].startswith(check_notebooks.CHECKED) else text
    entries = [line for line in last.splitlines() if line.startswith('- ')]
    assert last.startswith('## References\n') and len(entries) >= 2 and '\n**Read on:** ' in last
    for line in entries: assert re.fullmatch(r'- [^\[]+: \[[^\]]+\]\(https://[^)\s]+\): .+\.', line), line
    assert summary.startswith('## What to take away')


def test_the_paper_is_linked_where_one_begins():
    for name in '00_start', '01_attention', 'index':
        text = '\n'.join(joined(c['source']) for c in cells(times.NBS / f'{name}.ipynb'))
        assert 'https://arxiv.org/abs/1804.02391' in text, name


def test_the_long_trainings_take_the_gpu_where_there_is_one():
    text = [joined(c['source']) for c in cells(times.NBS / '05_training.ipynb') if c['cell_type'] == 'code']
    trained = [m for t in text if '#| course' in t for m in re.findall(r'^.*Learner\(.*$', t, re.M)]
    assert 'device = pick_device()' in '\n'.join(text) and len(trained) >= 2
    for line in trained: assert 'device=device' in line, line


def test_minutes_are_counted(): assert not [*times.wrong()]


@pytest.mark.parametrize('source, want', [
    (['word ' * 1500], (10, 0, 0)), (['word ' * 150, '**A** (5 min, ★☆☆). word', '**B** (15 min, ★★★).'], (5, 20, 0)),
    (['**Time:** read 90 + exercises 4 + training 10 minutes.'], (5, 0, 10))])
def test_a_count(source, want):
    assert times.counted([dict(cell_type='markdown', metadata={}, source=s) for s in source]) == want


def test_code_counts_where_it_is_seen():
    def code(hidden): return dict(cell_type='code', metadata={}, source='#| hide\n' * hidden + 'x = 1\n\n' * 800)
    assert times.counted([code(False)]).read == 20 and times.counted([code(True)]).read == 5


def test_what_is_off_is_said_and_mended(tmp_path, monkeypatch):
    def save(name, *text): (tmp_path / name).write_text(json.dumps(dict(cells=[dict(cell_type='markdown', metadata={}, source=t) for t in text])))
    monkeypatch.setattr(times, 'NBS', tmp_path)
    monkeypatch.setattr(times, 'TEACHERS', tmp_path / 'teachers.md')
    times.TEACHERS.write_text('| [01](../01_a.ipynb) | 1 + 2 + 3 | can |\n')
    save('01_a.ipynb', '# A\n\n> b', 'x **Time:** read 10 + exercises 0 + training 0 minutes. y', 'word ' * 3000 + '(5 min, ★☆☆)')
    save('index.ipynb', '| notebook | | minutes |\n|---|---|---|\n| [01_a](01_a.ipynb) | builds | 7 |')
    assert [line.split()[0] for line in times.wrong()] == ['01_a.ipynb', 'index', 'teachers']
    times.write()
    assert not [*times.wrong()] and 'x **Time:** read 20 + exercises 5 + training 0 minutes. y' in (tmp_path / '01_a.ipynb').read_text()
    assert times.TEACHERS.read_text() == '| [01](../01_a.ipynb) | 20 + 5 + 0 | can |\n'
    assert '| 25 |' in (tmp_path / 'index.ipynb').read_text()


def unsaid(cells):
    "Ids of the cells with a figure behind which the text does not say what to see in it"
    texts = [joined(c['source']).lower() if c['cell_type'] == 'markdown' else None for c in cells]
    return [c['id'] for k, c in enumerate(cells)
            if c['cell_type'] == 'code' and any('image/png' in o.get('data', {}) for o in c['outputs'])
            and 'to see' not in next(filter(None, texts[k + 1:]), '')]


@pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
def test_a_figure_is_followed_by_what_to_see(path): assert not unsaid(cells(path))


def test_a_figure_without_words_is_found():
    figure = dict(cell_type='code', id='a', source='', outputs=[dict(data={'image/png': ''})])
    def said(text): return dict(cell_type='markdown', source=text)
    assert unsaid([figure, said('## Next'), said('What to see: a line.')]) == ['a'] == unsaid([figure])
    assert not unsaid([figure, figure | dict(outputs=[]), said('**What to see:** a line.')])


def test_some_exercises_are_guesses_and_some_are_searches():
    "A guess stands right before the cell that answers it; a search has a note that unfolds."
    guesses, searches = [], []
    for path in LESSONS:
        found = cells(path)
        for cell, after in zip(found, found[1:]):
            text = joined(cell['source'])
            if text.startswith('**Predict, then run**'): guesses.append((path.stem, after['cell_type'] == 'code' and 'Then run the next' in text))
            if text.startswith('**Investigate**'): searches.append((path.stem, '<summary>What to look for</summary>' in text))
    assert len(guesses) >= 4 and len(searches) >= 3 and all(ok for _, ok in guesses + searches), (guesses, searches)


def unsolved(cells):
    "Names of the exercises with minutes, neither guesses nor searches, that have no link to the solutions"
    text = [joined(c['source']) for c in cells if c['cell_type'] == 'markdown']
    return [m[1] for t in text if (m := re.search(r'\*\*([^*]+)\*\*[^*]*' + times.EXERCISE.pattern, t))
            and not m[1].startswith(('Predict', 'Investigate')) and '(90_solutions.ipynb' not in t]


@pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
def test_each_exercise_links_its_solution(path): assert not unsolved(cells(path))


def test_a_missing_link_is_found():
    def text(s): return dict(cell_type='markdown', source=s)
    assert unsolved([text('**A** (5 min, ★☆☆). Do.'), text('**B** (2 min, ★★☆). Do. [x](90_solutions.ipynb)'),
                     text('**Predict, then run** (2 min, ★☆☆). Say.')]) == ['A']


def untold(cell):
    """Wrong answers that `cell` gives to `refuses` and that the stored output does not tell of, and those that only it
    tells of"""
    given = {word.arg for node in ast.walk(ast.parse(joined(cell['source']))) if isinstance(node, ast.Call)
             and getattr(node.func, 'id', '') == 'refuses' for word in node.keywords}
    text = ''.join(joined(o.get('text', '')) for o in cell['outputs'])
    return given ^ {*re.findall(r'^✗ (\w+): ', text, re.M)}


def test_each_wrong_answer_of_the_solutions_was_refused():
    code = [c for c in cells(times.NBS / '90_solutions.ipynb') if c['cell_type'] == 'code']
    assert sum('refuses(ex_' in joined(c['source']) for c in code) > 40
    assert not {c['id']: names for c in code if (names := untold(c))}


def test_an_output_that_is_older_than_its_cell_is_found():
    cell = dict(source='refuses(ex, a=f, b=lambda x: f(x,\n  0))', outputs=[dict(text=['✗ a: no\n']), dict(text='✗ b: no\n')])
    assert not untold(cell) and untold(cell | dict(outputs=cell['outputs'][:1])) == {'b'}
    assert untold(cell | dict(source='refuses(ex, a=f)')) == {'b'} and untold(cell | dict(outputs=[])) == {'a', 'b'}


def test_an_error_in_an_answer_comes_without_the_frames_of_the_course():
    from ltpa.checks.attention import ex_softmax
    from ltpa.exercises import Exercise, WrongAnswer, check

    def broken(*args): return args[0].no_such_name
    with pytest.raises(WrongAnswer, match='it raised AttributeError') as found: check(broken, ex_softmax)
    frames = [f.name for f in traceback.extract_tb(found.value.__cause__.__traceback__)]
    assert frames[0] == 'broken', frames
    ex = Exercise('what a check does itself', 1, 1)
    ex.case('breaks')(eval('lambda answer: answer().no_such_name', dict(__name__='ltpa.checks.attention')))
    with pytest.raises(WrongAnswer, match='it raised AttributeError') as found: check(lambda: None, ex)
    assert found.value.__cause__ is None


def test_a_time_names_all_three_parts():
    text = dict(cell_type='markdown', source='**Time:** read 25 + exercises 15 minutes.')
    assert times.said([text]) is None
    assert times.said([text | dict(source='**Time:** read 25 + exercises 15 + training 0 minutes.')]) == (25, 15, 0)


def test_each_check_refuses_three_answers_and_has_a_solution():
    text = '\n'.join(joined(c['source']) for c in cells(times.NBS / '90_solutions.ipynb') if c['cell_type'] == 'code')
    tree = ast.parse('\n'.join(line for line in text.splitlines() if not line.lstrip().startswith(('%', '!'))))
    solved, wrong = set(), Counter()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call): continue
        name, args = ast.unparse(node.func), [ast.unparse(a) for a in node.args]
        if name == 'check' and len(args) == 2: solved.add(args[1])
        if name == 'refuses': wrong[args[0]] += len(node.keywords)
    made = {m for path in Path(times.NBS / 'workshop').glob('checks_*.ipynb') for c in cells(path)
            for m in re.findall(r'^(ex_\w+) = Exercise\(', joined(c['source']), re.M)}
    assert made <= solved, made - solved
    assert not (few := {ex: wrong[ex] for ex in made if wrong[ex] < 3}), few
