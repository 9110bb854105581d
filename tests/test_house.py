"""The structure of the library: imports point downwards, modules stay small, a command line that needs no torch."""
import json
import re
import subprocess
import sys
import warnings

import house
import pytest
from check_notebooks import notebooks

from ltpa.moved import MOVED

EDGES = house.graph()
TOPICS = [name for name in EDGES if name.startswith('checks.')]
NOTEBOOKS = notebooks(house.ROOT / 'nbs')            # not the checkpoints that JupyterLab leaves


def test_every_module_has_its_floor():
    assert sorted(house.ORDER) == sorted(set(EDGES) - set(TOPICS))


def test_no_circle(): assert not house.circles(EDGES)


def test_imports_point_downwards(): assert not house.upwards(EDGES)


def test_a_circle_and_a_step_upwards_are_noticed():
    edges = EDGES | {'core': EDGES['core'] | {'maps'}}
    assert ('core', 'maps') in house.upwards(edges)
    assert {'core', 'maps'} <= set(house.circles(edges))


def test_nothing_imports_the_roof_or_the_checks():
    above = {name: others & {*house.ROOF, *TOPICS} for name, others in EDGES.items() if name not in house.ROOF}
    assert not {name: others for name, others in above.items() if others}


@pytest.mark.parametrize('name', EDGES)
def test_no_module_is_too_long(name):
    lines = house.code_lines(house.modules()[name])
    assert lines <= house.MOST_LINES, f'{name} has {lines} lines of code; at most {house.MOST_LINES}: split it'


def code_cells(path):
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'code': yield ''.join(cell['source'])


def test_only_the_owner_exports_into_a_module():
    "nbdev loses cells that go into a module whose owner comes later, without a word."
    foreign = {path.name: re.findall(r'^#\|\s*exporti?[ \t]+\S+', source, re.M)
               for path in NOTEBOOKS for source in code_cells(path)}
    assert not {name: lines for name, lines in foreign.items() if lines}
    owners = [name for path in NOTEBOOKS for source in code_cells(path)
              for name in re.findall(r'^#\|\s*default_exp[ \t]+(\S+)', source, re.M)]
    assert sorted(owners) == sorted(EDGES), 'each module has one notebook, and each notebook one module'


def test_notebooks_have_names_of_their_own():
    "Export goes by the bare file name, across folders."
    names = [path.name for path in NOTEBOOKS]
    assert len(names) == len(set(names))


def test_who_opens_nbs_sees_lessons_in_order_and_one_folder():
    seen = {p.relative_to(house.ROOT / 'nbs').parts[0] for p in NOTEBOOKS}
    assert all(re.fullmatch(r'\d\d[a-z]?_\w+\.ipynb|index\.ipynb|workshop', name) for name in seen), seen


def run(*args): return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=120)


SEEN = 'import sys; from ltpa.cli import main\ntry: code = main({argv})\nexcept SystemExit as e: code = e.code\n' \
       'print("torch" in sys.modules, code)'


@pytest.mark.parametrize('argv, code', [
    (['--help'], 0), (['--version'], 0), (['train', '--help'], 0), (['explain', '--help'], 0), ([], 2), (['trian'], 2), (['train'], 2),
    (['train', 'vgg'], 2), (['train', 'cifar10/vgg_at2_pc'], 2), (['train', 'cifar10/vgg', '--size', 'huge'], 2),
    (['train', 'cifar10/vgg', '--preset', 'ours'], 2), (['train', 'cifar10/vgg', '--recipe', 'fats'], 2),
    (['train', 'cifar10/vgg', '--lr', '-1'], 2), (['recipes', 'no_such'], 2), (['recipes', '--size', 'huge'], 2),
    (['download', 'cifar11'], 2), (['explain'], 2)])
def test_help_and_usage_errors_need_no_torch(argv, code):
    done = run('-c', SEEN.format(argv=argv))
    assert done.stdout.splitlines()[-1] == f'False {code}', done.stdout + done.stderr
    if code: assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_importing_the_package_needs_no_torch():
    assert run('-c', 'import sys, ltpa; print("torch" in sys.modules)').stdout == 'False\n'


@pytest.mark.parametrize('old', MOVED)
def test_old_names_still_work_and_say_where_they_went(old):
    from importlib import import_module
    module, _, name = old.rpartition('.')
    home, _, new = MOVED[old].rpartition('.')
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        there = import_module(f'ltpa.{module}' if module else 'ltpa')
        got = getattr(there, name)
    assert got is getattr(import_module(f'ltpa.{home}'), new)
    if name in vars(there): return                       # which uses it itself
    assert [w.category for w in seen] == [DeprecationWarning] and f'ltpa.{home}.{new}' in str(seen[0].message)


@pytest.mark.parametrize('lesson', [t.removeprefix('checks.') for t in TOPICS])
def test_no_exercise_comes_along_with_a_lesson(lesson):
    module = dict(start='exercises', results='studies').get(lesson, lesson)
    names = {}
    exec(f'from ltpa.{module} import *', names)
    assert not [n for n in names if n.startswith('ex_')]
