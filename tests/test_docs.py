"""What `help()` shows of the public names: every parameter, what comes back, what is raised, an example that runs."""
import ast
import doctest
import inspect
import re
from importlib import import_module

import house
import pytest
import torch

import ltpa

SECTION = re.compile(r'^(\w[\w ]*)\n-{3,}$', re.M)


def sections(doc):
    "The parts of a numpy-style docstring by their titles; '' is the beginning."
    parts = SECTION.split(inspect.cleandoc(doc))
    return dict(zip(['', *parts[1::2]], parts[::2]))


def documented(text):
    "Names that a section of parameters describes."
    heads = re.findall(r'^(\S[^\n:]*?)(?: : .*)?$', text, re.M)
    return [name.strip().lstrip('*') for head in heads for name in head.split(',')]


def signature(thing):
    "The parameters that a caller gives."
    return [p for p in inspect.signature(thing).parameters.values() if p.name != 'self']


def is_function(name): return inspect.isfunction(getattr(ltpa, name))


@pytest.mark.parametrize('name', ltpa.__all__)
def test_docstring_is_whole(name):
    thing = getattr(ltpa, name)
    parts = sections(inspect.getdoc(thing) or '')
    assert re.match(r'[A-Z`].*', parts[''].strip().splitlines()[0]), 'begin with a line that says what it is'
    if issubclass(thing, Exception) if inspect.isclass(thing) else False: return
    wanted = [p.name for p in signature(thing)]
    assert documented(parts.get('Parameters', '')) == wanted, 'describe each parameter, in order'
    if is_function(name):
        empty = inspect.signature(thing).return_annotation in (None, 'None')
        assert empty or parts.get('Returns') or parts.get('Yields'), 'say what comes back'
    assert '>>>' in parts.get('Examples', ''), 'show an example that runs'


@pytest.mark.parametrize('name', ltpa.__all__)
def test_signature_has_types(name):
    thing = getattr(ltpa, name)
    if inspect.isclass(thing) and issubclass(thing, Exception): return
    untyped = [p.name for p in signature(thing) if p.annotation is p.empty]
    assert not untyped
    if is_function(name): assert inspect.signature(thing).return_annotation is not inspect.Signature.empty


SHOWN = {f'{name}.{n.name}' for name, path in house.modules().items() for n in ast.parse(path.read_text()).body
         if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and '>>>' in (ast.get_docstring(n) or '')}


@pytest.mark.parametrize('name', sorted(SHOWN))
def test_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, _, name = name.rpartition('.')
    thing, before = getattr(import_module(f'ltpa.{module}'), name), torch.get_rng_state()
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said = []
    for test in finder.find(thing, name, globs={}): runner.run(test, out=said.append)
    torch.set_rng_state(before)
    assert not runner.summarize(verbose=False).failed, ''.join(said)


def test_the_list_is_about_sixty_names_grouped_by_lesson():
    assert 50 <= len(ltpa.__all__) <= 75
    assert sorted(name for names in ltpa.GROUPS.values() for name in names) == sorted(ltpa.__all__)


def test_an_editor_sees_the_same_names():
    from pathlib import Path
    block, = (n for n in ast.parse(Path(ltpa.__file__).read_text()).body if isinstance(n, ast.If))
    shown = {alias.name: node.module for node in block.body for alias in node.names}
    assert shown == ltpa._HOME


def test_a_docstring_that_leaves_out_a_parameter_is_noticed():
    doc = inspect.getdoc(ltpa.seed_everything)
    assert documented(sections(doc)['Parameters']) == ['seed']
    assert documented(sections(doc.replace('seed : int', 'number : int'))['Parameters']) != ['seed']
