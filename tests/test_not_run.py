"""16_results without files: it says 'not run' where one is missing, and nothing else changes."""
import ast
import contextlib
import io
import json
import shutil
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parent.parent
CELLS = json.loads((ROOT / 'nbs' / '16_results.ipynb').read_text(encoding='utf-8'))['cells']
FILES = sorted(p.name for p in (ROOT / 'results').glob('*_*.json') if p.stem.rpartition('_')[2] in ('small', 'cifar', 'paper'))
FILES += ['controls.json', 'transfer.json']


def told(results, monkeypatch):
    "What each cell of the lesson prints and shows as a table, by id, with the files of that folder"
    import matplotlib.pyplot as plt
    import IPython.display
    matplotlib.use('Agg')
    out = io.StringIO()
    monkeypatch.setattr(IPython.display, 'display', lambda m: print(getattr(m, 'data', m)))
    monkeypatch.setattr(plt, 'show', lambda: (print(*(t.get_text() for f in map(plt.figure, plt.get_fignums()) for ax in f.axes for t in (ax.title,))), plt.close('all')))
    monkeypatch.chdir(ROOT / 'nbs')
    space, said = {}, {}
    for c in CELLS:
        source = ''.join(c['source'])
        if c['cell_type'] != 'code' or '#| course' in source or '#| default_exp' in source or 'attempt()' in source: continue
        if 'load_pretrained(' in source: continue                       # of bundled networks and photographs, of no file
        if c['id'] == 'c1600060': break
        out.seek(0), out.truncate()
        body = ast.parse(source.replace("Path('../results')", f'Path({str(results)!r})'), c['id']).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None               # JupyterLab shows its value
        with contextlib.redirect_stdout(out):
            exec(compile(ast.Module(body, []), c['id'], 'exec'), space)
            if last and (value := eval(compile(ast.Expression(last.value), c['id'], 'eval'), space)) is not None: print(value)
        said[c['id']] = out.getvalue()
    return said


@pytest.fixture(scope='module')
def whole():
    with pytest.MonkeyPatch.context() as patch: return told(ROOT / 'results', patch)


@pytest.mark.whole
def test_the_tables_are_there(whole):
    assert sum('not run' in text for text in whole.values()) >= 2 and any('supported' in text for text in whole.values())


def test_without_any_file_all_is_not_run(tmp_path, monkeypatch):
    said = told(tmp_path, monkeypatch)
    assert said['c1610031'].count('open: not run') == 5 and 'supported' not in said['c1610002']
    assert said['c1610002'].count('not run') == 15, 'five claims at three sizes'


@pytest.mark.parametrize('name', [pytest.param(n, marks=pytest.mark.whole) for n in FILES])
def test_one_file_less(name, whole, tmp_path, monkeypatch):
    shutil.copytree(ROOT / 'results', tmp_path / 'results')
    (tmp_path / 'results' / name).unlink()
    said = told(tmp_path / 'results', monkeypatch)
    changed = [k for k in whole if said[k] != whole[k]]
    assert changed, 'the lesson shows that file'
    for k in changed:                                   # a line is gone, or says so; no number is another
        new = set(said[k].splitlines()) - set(whole[k].splitlines())
        known = set(whole[k].replace('*', '').split())           # another may be the best now
        for line in new:
            others = [word for word in line.replace('*', '').split() if word not in known and any(d.isdigit() for d in word)]
            assert 'not run' in line or not others, (k, line)
