"""What `help()` shows of the public names: every parameter, what comes back, what is raised, an example that runs. And README."""
import ast
import doctest
import inspect
import json
import re
import shlex
from importlib import import_module
from math import ceil

import house
import pytest
import readme
import torch

import ltpa
from ltpa.cli import build_parser

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


README = readme.README.read_text(encoding='utf-8')
INDEX = json.loads((readme.NBS / 'index.ipynb').read_text(encoding='utf-8'))


def rows(text, width=110):
    "Lines that a reader sees: wrapped, without targets of links, fences and pictures"
    fenced, count = False, 0
    for line in text.splitlines():
        if line.startswith('```'): fenced = not fenced
        elif not fenced: line = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', re.sub(r'!\[[^]]*\]\([^)]*\)|<img[^>]*>|<!--.*?-->', '', line))
        if not line.startswith('```') and re.search('[^-| ]', line): count += ceil(len(line) / width)
    return count


def test_readme_takes_two_screens():
    assert rows(README) <= 110, 'move something below the cell that ends README in index.ipynb'
    assert rows('# a\n\n| a | b |\n|---|---|\n[b](c) ![d](e)\n```sh\nx\n```\n' + 'y' * 111) == 6


def test_readme_has_what_a_visitor_looks_for():
    for wanted in ('readme-readme01-0.png', 'explorer.webp', 'arxiv.org/abs/1804.02391', 'openreview.net', 'make lab', 'make course', 'make test',
                   'ltpa train --data', 'attach(', '(LICENSE)', '@inproceedings', 'colab.research.google.com', 'mybinder.org'): assert wanted in README, wanted
    assert len(re.findall(r'^- .*(?:supported|open|not run)', README, re.M)) == 5, 'the verdict, a line a claim'
    assert {p.stem for p in readme.NBS.glob('[0-9]*.ipynb')} <= {*re.findall(r'nbs/(\w+)\.ipynb', README)}


@pytest.mark.parametrize('name', ['Your pictures', 'Your network'])
def test_ten_lines_are_enough(name):
    part = README.partition(f'## {name}\n')[2].partition('\n## ')[0]
    block, = re.findall(r'```\w+\n(.*?)```', part, re.S)
    assert 4 <= len(block.strip().splitlines()) <= 10


def test_commands_of_the_index_are_understood(monkeypatch):
    text = '\n'.join(''.join(c['source']) for c in INDEX['cells'] if c['cell_type'] == 'markdown')
    lines = [shlex.split(line, comments=True)[1:] for line in re.findall(r'^ltpa .*', text, re.M)]
    assert len(lines) > 15
    for words in lines: build_parser().parse_args(words)


def test_every_lesson_opens_in_a_browser():
    text = ''.join(''.join(c['source']) for c in INDEX['cells'])
    for path in sorted(readme.NBS.glob('[0-9]*.ipynb')):
        for link in readme.in_a_browser(path.stem, readme.settings()): assert f'({link})' in text, link
    assert not readme.elsewhere(), 'run make readme'


def test_links_name_the_user_of_the_settings():
    cfg = dict(user='ann', repo='ltpa', branch='main')
    text = '(https://github.com/OWNER/ltpa) /github/bob/ltpa/blob v2/gh/x-y/ltpa/main github.com/other/ltpabc github.com/a/b'
    assert readme.addressed(text, cfg) == '(https://github.com/ann/ltpa) /github/ann/ltpa/blob v2/gh/ann/ltpa/main github.com/other/ltpabc github.com/a/b'
    drawn = {}
    line = readme.badges(cfg, drawn)
    assert 'github.com/ann/ltpa/actions/workflows/test.yaml/badge.svg' in line and len(drawn) == 4 and 'gh/ann/ltpa/main' in line
    assert 'badge.svg' not in readme.badges(cfg | dict(user='OWNER'), drawn) and len(drawn) == 5


def test_readme_ends_where_the_index_says():
    cell = lambda text: dict(cell_type='markdown', id='a', source=text)
    made = readme.render(dict(cells=[cell('# t'), cell('seen'), cell(f'{readme.END}\n## In detail'), cell('unseen')]))['README.md'].decode()
    assert 'seen' in made and 'unseen' not in made and 'In detail' not in made


def test_binder_installs_what_colab_does():
    text = '\n'.join(''.join(c['source']) for c in INDEX['cells'])
    extras, tools = shlex.split(re.search(r'^%pip install -q (.*)', text, re.M)[1])
    post = readme.ROOT / 'binder' / 'postBuild'
    assert post.stat().st_mode & 0o111 and f"'{extras.replace('./ltpa', '.')}' '{tools}'" in post.read_text()
    start = (readme.NBS / '00_start.ipynb').read_text(encoding='utf-8')
    assert f'\\"{extras}\\" \\"{tools}\\"' in start
