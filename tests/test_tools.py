"""The tools' rules: each check fails on what it is there to find, and passes what is allowed."""
import mutants
import pytest
from check_notebooks import notebook_offences, offences
from course import table
from readme import relink, render

TITLE = {'cell_type': 'markdown', 'id': 'a', 'source': '# Title\n\n> subtitle'}


def code(source, *outputs, cell_id='b'):
    return {'cell_type': 'code', 'id': cell_id, 'source': source, 'outputs': list(outputs)}


def stream(text): return {'output_type': 'stream', 'name': 'stdout', 'text': text}


def data(**kinds):
    return {'output_type': 'display_data', 'data': {k.replace('_', '/'): v for k, v in kinds.items()}}


@pytest.mark.parametrize('cells, words', [
    ([code('1')], 'subtitle'),
    ([{**TITLE, 'source': '# Title'}], 'subtitle'),
    ([TITLE, code('1', cell_id='a')], '2 cells have the id a'),
    ([TITLE, code('#| exprot\nx = 1')], 'exprot'),
    ([TITLE, code('#| eval: true\n1')], 'eval: true'),
    ([TITLE, code('# a comment\n#| export\nx = 1')], 'nbdev ignores it'),
    ([TITLE, code('#| export\nimport os\nx = 1')], 'imports and other code'),
    ([TITLE, code('#| export\n%timeit 1')], 'not Python'),
    ([TITLE, code('1', stream('saved /tmp/x'))], 'path of one machine ("/tmp/")'),
    ([TITLE, code('1', data(text_html='<b>/home/me/x</b>'))], 'path of one machine ("/home/me/")'),
    ([TITLE, code('1', stream(' 50%|#####     | 5/10'))], 'progress bar'),
    ([TITLE, code('1', data(text_plain='HBox(children=(FloatProgress(value=0.0)))'))], 'progress bar'),
    ([TITLE, code('1', {'output_type': 'error', 'ename': 'ValueError'})], 'ValueError'),
])
def test_offence_is_found(cells, words):
    found = [message for _, message in notebook_offences({'cells': cells})]
    assert len(found) == 1 and words in found[0]


@pytest.mark.parametrize('cell', [
    code('#| export\nimport os\nfrom re import sub'),
    code('import os\nprint(os.sep)'),
    code('#|eval:false\n1'),
    code('#| code-fold: true\n#| slow\n1'),
    code('1', stream('https://example.com/work/x and ../tmp/x, 50% | 5')),
    code('1', data(image_png='AA/tmp/AA', text_html='<img src="data:image/png;base64,AA/tmp/AA=">')),
])
def test_no_offence(cell): assert not list(notebook_offences({'cells': [TITLE, cell]}))


def test_module_without_notebook(tmp_path):
    (tmp_path / 'orphan.py').touch()
    (tmp_path / '_modidx.py').touch()
    found, = offences(tmp_path, tmp_path)
    assert 'orphan.py: no notebook' in found


def test_mutants_stand_where_they_can_be_made():
    texts = {old for m in mutants.MUTANTS for old, _ in mutants.pairs(*m[1:3])}
    wrong = [w for text in texts if (w := mutants.not_one_place(mutants.ROOT, text))]
    assert not wrong, 'tools/mutants.py: ' + '\n'.join(wrong)
    for test in {test for m in mutants.MUTANTS for test in m[3].split()}:
        file, _, name = test.partition('::')
        assert f'def {name}(' in (mutants.ROOT / 'tests' / file).read_text(encoding='utf-8'), test
    assert len({m[0] for m in mutants.MUTANTS}) == len(mutants.MUTANTS), 'two of one name'
    said = (mutants.ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    assert mutants.table() in said, 'CONTRIBUTING.md: put in what python tools/mutants.py --table prints'


def test_change_to_a_copy(tmp_path):
    (tmp_path / 'ltpa').mkdir()
    file = tmp_path / 'ltpa' / 'a.py'
    file.write_text('x = 1\ny = x\n')
    assert 'in no module' in mutants.change(tmp_path, 'z', 'y') and 'a.py (2)' in mutants.change(tmp_path, 'x', 'y')
    assert mutants.change(tmp_path, ['= 1', 'y'], ['= 2', 'z']) is None and file.read_text() == 'x = 2\nz = x\n'


def test_relink():
    text = '[a](00_core.ipynb#x) [b](https://x.org) [c](#d)\n```\n[a](gone.ipynb)\n```\n'
    assert relink(text) == text.replace('(00_core', '(nbs/00_core')
    assert relink('[a](../LICENSE)') == '[a](LICENSE)'
    with pytest.raises(SystemExit, match='gone.ipynb, which does not exist'): relink('[a](gone.ipynb)')


def test_render():
    shown = code('#| fig-alt: a map\nx', stream('```\n'), data(image_png='YWJj'))
    folded = code('#| code-fold: true\nplotting()', stream('seen'))
    files = render({'cells': [TITLE, code('#| hide\nsecret'), shown, folded]})
    assert files['nbs/images/readme-b-1.png'] == b'abc'
    text = files['README.md'].decode()
    assert not any(word in text for word in ('secret', 'fig-alt', 'code-fold', 'plotting'))
    assert '```python\nx\n```\n\n````text\n```\n````\n\n![a map](nbs/images/readme-b-1.png)\n' in text
    assert '```text\nseen\n```' in text


def test_table():
    rows = [{'model': 'vgg', 'acc': 0.123456}, {'model': 'vgg_pan', 'acc': None}, {'model': 'x', 'seeds': 3}]
    assert table(rows).splitlines() == [
        '  model        acc  seeds',
        '  vgg       0.1235      -',
        '  vgg_pan  not run      -',
        '  x              -      3']
