"""The tools' rules: each check fails on what it is there to find, and passes what is allowed."""
import json
import os

import course
import mutants
import nbformat
import pytest
import tidy
from check_notebooks import (
    CHECKED, link_offences, notebook_offences, notebooks, offences, place_offences, split_directives, told_offences)
from course import run, summary
from readme import relink, render

TITLE = {'cell_type': 'markdown', 'id': 'a', 'source': '# Title\n\n> subtitle'}


def code(source, *outputs, cell_id='b', hidden=False):
    metadata = {'jupyter': {'source_hidden': True}} if hidden else {}
    return {'cell_type': 'code', 'id': cell_id, 'source': source, 'outputs': list(outputs), 'metadata': metadata}


def stream(text): return {'output_type': 'stream', 'name': 'stdout', 'text': text}


def data(**kinds):
    return {'output_type': 'display_data', 'data': {k.replace('_', '/'): v for k, v in kinds.items()}}


@pytest.mark.parametrize('cells, words', [
    ([code('1')], 'subtitle'),
    ([{**TITLE, 'source': '# Title'}], 'subtitle'),
    ([TITLE, code('1', cell_id='a')], '2 cells have the id a'),
    ([TITLE, code('#| exprot\nx = 1')], 'exprot'),
    ([TITLE, code('#| eval: true\n1')], 'eval: true'),
    ([TITLE, code('#| cuda\n1')], '"#| cuda" is not one of'),
    ([TITLE, code('#| net\n1')], '"#| net" is not one of'),
    ([TITLE, code("learn = Learner(net, data, device='cuda')")], 'if torch.cuda.is_available()'),
    ([TITLE, code('#| slow\nnet.to("cuda:0")')], 'if torch.cuda.is_available()'),
    ([TITLE, code('torch.cuda.synchronize()')], 'if torch.cuda.is_available()'),
    ([TITLE, code('# a comment\n#| export\nx = 1')], 'nbdev ignores it'),
    ([TITLE, code('#| export\nimport os\nx = 1')], 'imports and other code'),
    ([TITLE, code('#| export\n%timeit 1')], 'not Python'),
    ([TITLE, code('1', stream('saved /tmp/x'))], 'path of one machine ("/tmp/")'),
    ([TITLE, code('1', data(text_html='<b>/home/me/x</b>'))], 'path of one machine ("/home/me/")'),
    ([TITLE, code('1', stream(' 50%|#####     | 5/10'))], 'progress bar'),
    ([TITLE, code('1', data(text_plain='HBox(children=(FloatProgress(value=0.0)))'))], 'progress bar'),
    ([TITLE, code('#| hide\nassert x')], 'open in JupyterLab'),
    ([TITLE, code('#| code-fold: true\n1')], 'open in JupyterLab'),
    ([TITLE, code('assert x', hidden=True)], 'open in JupyterLab'),
    ([TITLE, code('plt.show()', data(image_png='AAAA'))], 'add "#| fig-alt: ..."'),
    ([TITLE, code('1', {'output_type': 'error', 'ename': 'ValueError'})], 'ValueError'),
])
def test_offence_is_found(cells, words):
    found = [message for _, message in notebook_offences({'cells': cells})]
    assert len(found) == 1 and words in found[0]


@pytest.mark.parametrize('cell', [
    code('#| export\nimport os\nfrom re import sub'),
    code('import os\nprint(os.sep)'),
    code('#|eval:false\n1'),
    code('#| code-fold: true\n#| slow\n1', hidden=True),
    code("if torch.cuda.is_available(): net.to('cuda')\nelse: print('No CUDA here')"),
    code("#| export\ndef fast(x): return x.cuda()"),
    code("assert pick_device().type in ('cpu', 'cuda')"),
    code('1', stream('https://example.com/work/x and ../tmp/x, 50% | 5')),
    code('#| fig-alt: A line.\n1', data(image_png='AA/tmp/AA', text_html='<img src="data:image/png;base64,AA/tmp/AA=">')),
])
def test_no_offence(cell): assert not list(notebook_offences({'cells': [TITLE, cell]}))


@pytest.mark.parametrize('source, words', [
    ('x = 1' + ' ' * 94 + '#', ''), ('x = 1' + ' ' * 95 + '#', '101 columns'), ('#| hide\n' + 'x' * 101, ''),
    ('#| export\n' + 'x' * 101, ''), ('#| fig-alt: ' + 'x' * 101 + '\n1', ''),
    ('x\n\n' * 25, ''), ('x\n\n' * 26, '26 lines'), ('#| code-fold: true\n' + 'x\n' * 26, '')])
def test_what_is_told_has_one_screen(source, words):
    found = list(told_offences(*split_directives(source)))
    assert len(found) == bool(words) and words in ''.join(found)


def test_hidden_checks_stand_below_the_end():
    hidden, end = code('#| hide\nassert 1'), dict(cell_type='markdown', source=CHECKED + '\n\nSo.')
    assert not [*place_offences([code('assert 1'), code('#| hide\nx = 1'), end, hidden])]
    for cells in [hidden, end], [hidden], [code('#| hide\nfor x in y: pass\nif x:\n    test_eq(x, 1)'), end]:
        assert 'move it below its end' in next(place_offences(cells))


def test_tidy_hides_what_is_meant_to_be_hidden_and_shows_the_rest():
    nb = {'cells': [TITLE | {'metadata': {}}, code('#| hide\n1'), code('2', hidden=True), code('#| course\n#| code-fold: true\n3')], 'metadata': {}}
    assert tidy.hide(nb) and not tidy.hide(nb), 'the second time nothing is left to do'
    assert [bool(c['metadata']) for c in nb['cells']] == [False, True, False, True]


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
    text = '[a](00_start.ipynb#x) [b](https://x.org) [c](#d)\n```\n[a](gone.ipynb)\n```\n'
    assert relink(text) == text.replace('(00_start', '(nbs/00_start')
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


def test_notebooks_lie_in_folders_too(tmp_path):
    kept = ['00_a.ipynb', 'workshop/b.ipynb']
    for name in (*kept, '_draft.ipynb', '.ipynb_checkpoints/00_a.ipynb', 'workshop/_old/c.ipynb', 'd.py'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({'cells': []}))
    assert notebooks(tmp_path) == [tmp_path / name for name in kept]
    assert [line.split(', ')[0] for line in offences(tmp_path, tmp_path / 'lib')] == kept      # no title


def test_links(tmp_path):
    (tmp_path / 'there.md').touch()
    text = '[a](there.md#part) [b](https://x.org/gone) [c](#part) `[d](gone.md)`\n```\n[e](gone.md)\n```\n'
    cells = [TITLE, {'cell_type': 'markdown', 'id': 'b', 'source': text}, code('x["a"](gone.md)')]
    assert not list(link_offences({'cells': cells}, tmp_path))
    cells[1]['source'] += '[f](gone.md#part)'
    (place, message), = link_offences({'cells': cells}, tmp_path)
    assert place == 'cell 2 (b)' and message.startswith('links to gone.md,')


def notebook(*sources):
    nb = nbformat.v4.new_notebook()
    nb.cells = [nbformat.v4.new_code_cell(source, id=f'cell{i}') for i, source in enumerate(sources)]
    return nb


@pytest.mark.slow
def test_run_all(tmp_path, monkeypatch):
    monkeypatch.setenv('IN_TEST', '1')
    nb = notebook('import os; os.getcwd()', '#| slow\nlist(filter("IN_TEST".__eq__, os.environ))')
    assert run(nb, tmp_path) == ''
    assert [cell.outputs[0].data['text/plain'] for cell in nb.cells] == [repr(str(tmp_path)), '[]']


@pytest.mark.slow
@pytest.mark.parametrize('source, words', [
    ('1 / 0', ['failed', 'ZeroDivisionError', '1 / 0']),
    ('import time; time.sleep(60)', ['took more than 5 s']),
    ('import os; os._exit(1)', ['ended its kernel']),
])
def test_run_names_the_cell(source, words):
    error = run(notebook('1', source, '2'), limit=5)
    assert error.startswith('cell 2 of 3 (cell1) ') and all(word in error for word in words), error


def test_links_of_the_copies(tmp_path):
    assert course.relink('00_start.ipynb', tmp_path) == '00_start.html'
    assert course.relink('index.ipynb', tmp_path) == 'overview.html'
    assert course.relink('gone.png', tmp_path) == 'gone.png'
    found = course.relink('../LICENSE', tmp_path)
    assert (tmp_path / found).resolve() == course.ROOT / 'LICENSE'


def test_summary(tmp_path):
    save = lambda name, *rows: (tmp_path / f'{name}.json').write_text(json.dumps({'rows': rows}))
    pc, uniform = 'vgg_att3_concat_pc', 'vgg_att3_concat_uniform'
    save('controls', dict(model=pc, accuracy=.844, accuracy_sd=.0071, pointing_2=.9203, pointing_2_sd=.0052),
         dict(model=uniform, accuracy=.8398, accuracy_sd=.0048, pointing_2=.2006, pointing_2_sd=.0),
         dict(model='vgg_trunk', accuracy=None))
    text = summary(16, 14.26, 'build/course', tmp_path)
    lines = text.splitlines()
    assert len(lines) == 10 and max(map(len, lines)) <= 110
    assert lines[0] == '16 notebooks run in 14.3 min: executed copies and HTML pages lie in build/course'
    assert lines[2].endswith(': learned attention 84.4 ± 0.7 %, uniform 84.0 ± 0.5 %, same trunk not run')
    assert lines[3].endswith('learned 92.0 ± 0.5 %, uniform 20.1 %')
    assert lines[4].split(': ')[1] == 'attention not run, CAM not run, blob in the middle not run'          # no such file
    assert os.path.join('build/course', 'index.html') in lines[6] and 'make lab' in lines[7]
    bundled = 'ClutteredFashion, 32 pixels'
    save('segmentation', dict(data=bundled, way='CAM', model='vgg_gap', otsu=.3764, otsu_sd=.0032))
    assert 'attention not run, CAM 0.376 ± 0.003, blob in the middle not run' in summary(1, 1, 'o', tmp_path)
    (tmp_path / 'controls.json').write_text('{"rows": [')
    with pytest.raises(SystemExit, match='controls.json is not a file of res'): summary(1, 1, 'o', tmp_path)


def test_summary_finds_what_is_stored():
    text = summary(1, 1, 'o')
    assert 'not run' not in text and text.count('±') >= 6, text


def test_a_copy_to_read_has_words_and_no_hidden_cells(tmp_path):
    picture = nbformat.v4.new_output('display_data', data={'image/png': 'iVBORw0KGgo='})
    nb = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell('#| hide\nsecret = 1', id='a'),
        nbformat.v4.new_code_cell('#| code-fold: true\n#| fig-alt: One <b> of "two"\nfolded = 1', outputs=[picture], id='b'),
        nbformat.v4.new_code_cell('told = 1', outputs=[picture], id='c'),
        nbformat.v4.new_code_cell('#| hide\nbroken = 1', id='d', outputs=[nbformat.v4.new_output('error', ename='E', evalue='', traceback=['why'])])])
    course.save(nb, '01_x', tmp_path)
    text = (tmp_path / '01_x.html').read_text()
    assert 'One &lt;b&gt; of &quot;two&quot;' in text and text.count('No description') == 1 and '#|' not in text
    assert [word in text for word in ('secret', 'folded', 'told', 'broken', 'why')] == [False, False, True, True, True]
    assert len(nbformat.read(tmp_path / '01_x.ipynb', as_version=4).cells) == 4
