#!/usr/bin/env python3
"""The course as a static site, from the notebooks' committed outputs: build/site/index.html, which opens by double click.

    python tools/website.py          # or `make site`, which installs what it needs

No notebook is run. Sphinx builds the pages, with MyST-NB for notebooks and furo for looks; search, dark mode and formulas
work from a file, and nothing is fetched from elsewhere. What `#|` lines say becomes tags that MyST-NB knows.
"""
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from check_notebooks import CODE, joined, named_directives, notebooks
from readme import addressed, in_a_browser, settings

ROOT = Path(__file__).resolve().parent.parent
NBS, PAGES = ROOT / 'nbs', ROOT / 'tools' / 'pages'
SOURCE, SITE = ROOT / 'build' / 'site-source', ROOT / 'build' / 'site'
LINK = re.compile(r'(\]\(|\b(?:src|href)=")(?![a-z]+:|#|/)([^)\s"#]+)')
TITLE = re.compile(r'^# (.+)$', re.M)
CONF = '''
project, author, copyright = 'ltpa', 'ltpa contributors', '2026 onwards, ltpa contributors'
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.mathjax']
html_theme, html_title = 'furo', 'Learn To Pay Attention'
html_static_path, html_css_files, mathjax_path = ['_static'], ['site.css'], 'tex-svg-full.js'
nb_execution_mode, nb_merge_streams = 'off', True
nb_mime_priority_overrides = [('html', 'text/markdown', 0)]
myst_enable_extensions, myst_heading_anchors = ['dollarmath', 'amsmath', 'html_image'], 4
myst_url_schemes = ['http', 'https', 'mailto']
source_suffix = {'.ipynb': 'myst-nb', '.md': 'myst-nb'}
autodoc_member_order, autodoc_typehints, autodoc_inherit_docstrings = 'bysource', 'none', False
napoleon_google_docstring, napoleon_use_rtype = False, False
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type', 'misc.highlighting_failure']
html_show_sphinx, html_copy_source, html_show_sourcelink = False, False, False
'''
CSS = '''
.cell_output img { max-width: 100%; height: auto; background: white; }
.cell_output table { font-size: .85em; }
'''


def tagged(cell):
    "A code cell as MyST-NB wants it: without its `#|` lines, which are tags and alternative text now; None: not on the site"
    known, code = named_directives(cell)
    if 'hide' in known or 'default_exp' in known: return None
    tags = ['hide-input'] * ('code-fold' in known)
    meta = dict(tags=tags) | (dict(mystnb=dict(image=dict(alt=known['fig-alt']))) if 'fig-alt' in known else {})
    return cell | dict(source=code.strip('\n'), metadata=meta)


def relinked(text, folder, files):
    "Links to what is not a page lead to a copy of it; `folder` is the notebook's, `files` the paths to copy"
    def fix(match):
        before, target = match.groups()
        path = (folder / target).resolve()
        if not path.exists(): return match[0]
        if path.is_relative_to(NBS) and path.suffix in ('.ipynb', '.png', '.webp', '.svg'): return match[0]
        if path.is_dir(): path = next(p for p in (path / 'README.md', path / 'LICENSES.md', *sorted(path.iterdir())) if p.is_file())
        name = path.relative_to(ROOT).as_posix().replace('/', '--') + ('.txt' if path.suffix in ('', '.md') else '')
        files[name] = path
        return before + posixpath.relpath(f'_static/files/{name}', folder.relative_to(NBS).as_posix())
    pieces, last = [], 0
    for m in CODE.finditer(text):
        pieces += [LINK.sub(fix, text[last:m.start()]), m[0]]
        last = m.end()
    return ''.join(pieces) + LINK.sub(fix, text[last:])


def address():
    "Settings with the user whose site this is: that of settings.ini, or who has it built on GitHub; None if nobody's"
    cfg = settings()
    user = os.environ.get('GITHUB_REPOSITORY', '').split('/')[0] if cfg['user'] == 'OWNER' else cfg['user']
    return cfg | dict(user=user) if user else None


def buttons(path):
    "A line that opens a lesson in a browser, where the site has an address"
    if path.parent != NBS or not path.name[0].isdigit() or not (cfg := address()): return ''
    colab, binder = in_a_browser(path.stem, cfg)
    return f'Run this lesson: [Colab]({colab}) · [Binder]({binder})'


def page(path, files, more=()):
    "A notebook as a page's source"
    nb = json.loads(path.read_text(encoding='utf-8'))
    cells = []
    for cell in nb['cells']:
        if cell['cell_type'] == 'markdown':
            text = relinked(joined(cell['source']), path.parent, files)
            text = re.sub(r'<!--.*?-->', '', text, flags=re.S)
            if not cells and (line := buttons(path)): text += f'\n\n{line}'
            cells.append(cell | dict(source=addressed(text, address() or settings()), metadata={}))
        elif (kept := tagged(cell)) is not None: cells.append(kept)
    cells += [dict(cell_type='markdown', id=f'more{k:04}', metadata={}, source=text) for k, text in enumerate(more)]
    return json.dumps(nb | dict(cells=cells))


def toctree(caption, names): return f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(names) + '\n```'


def needs():
    "From each lesson to the lessons that it says it needs, in order, with its title"
    found = {}
    for path in notebooks(NBS):
        if path.parent != NBS or not path.name[0].isdigit(): continue
        text = '\n'.join(joined(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'][:6])
        wanted = re.search(r'\*\*Needs:\*\*(.*)', text)
        found[path.stem] = TITLE.search(text)[1], re.findall(r'\]\((\d\w+)\.ipynb', wanted[1] if wanted else '')
    return found


def course_map():
    "A page: what each lesson needs, and what needs it"
    of = needs()
    lines = ['# Course map', '', 'Read down. A lesson needs those in its third column; it is needed by those in its fourth.', '',
             '| lesson | | needs | is needed by |', '|---|---|---|---|']
    link = lambda names: ', '.join(f'[{n.split("_")[0]}](../{n}.ipynb)' for n in names) or '–'
    for name, (title, wanted) in of.items():
        lines.append(f'| [{name}](../{name}.ipynb) | {title} | {link(wanted)} | {link([n for n, (_, w) in of.items() if name in w])} |')
    return '\n'.join(lines)


def modules():
    "Names of the library's modules, in the order of the house, without its roof's `__main__`"
    from house import ORDER
    return [m for m in ORDER if m != '__main__']


def write_source():
    "All that Sphinx reads"
    shutil.rmtree(SOURCE, ignore_errors=True)
    files: dict[str, Path] = {}
    titles = [p.relative_to(NBS).with_suffix('').as_posix() for p in notebooks(NBS)]
    trees = (toctree('Lessons', [t for t in titles if '/' not in t and t != 'index']),
             toctree('Beside them', ['reading/paths', 'reading/course_map', 'reading/teachers', 'reading/glossary', 'api/index',
                                     'reading/workshop', 'reading/checks']))
    for path in notebooks(NBS):
        name = path.relative_to(NBS)
        more = trees if name.name == 'index.ipynb' else ()
        target = SOURCE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(path, files, more), encoding='utf-8')
    shutil.copytree(NBS / 'images', SOURCE / 'images')
    for folder in 'reading', 'api', '_static/files': (SOURCE / folder).mkdir(parents=True)
    for name, path in files.items(): shutil.copy(path, SOURCE / '_static' / 'files' / name)
    (SOURCE / 'reading' / 'course_map.md').write_text(course_map(), encoding='utf-8')
    for written in sorted(PAGES.glob('*.md')): shutil.copy(written, SOURCE / 'reading' / written.name)
    below = [t for t in titles if '/' in t]
    lists = {'reading/workshop': ('Workshop', 'The engineering under the lessons. Nobody has to read it to follow the story.', [f'../{t}' for t in below if 'checks_' not in t]),
             'reading/checks': ('Checks of the exercises', 'Answers can be read out of these. Try the exercises first.', [f'../{t}' for t in below if 'checks_' in t]),
             'api/index': ('API reference', 'The library, module by module, from the ground up.', modules())}
    for name, (title, said, entries) in lists.items():
        (SOURCE / f'{name}.md').write_text(f'# {title}\n\n{said}\n\n' + '```{toctree}\n:maxdepth: 1\n\n' + '\n'.join(entries) + '\n```\n', encoding='utf-8')
    for m in modules():
        (SOURCE / 'api' / f'{m}.md').write_text(f'# ltpa.{m}\n\n```{{eval-rst}}\n.. automodule:: ltpa.{m}\n   :members:\n```\n', encoding='utf-8')
    (SOURCE / 'conf.py').write_text(CONF, encoding='utf-8')
    (SOURCE / '_static' / 'site.css').write_text(CSS, encoding='utf-8')
    shutil.copy(mathjax(), SOURCE / '_static' / 'tex-svg-full.js')


def mathjax():
    "The one file that draws all formulas, fonts included"
    return Path(find_spec('sphinx-mathjax-offline').origin).parent / 'static' / 'mathjax' / 'tex-svg-full.js'


def run_sphinx(builder, source, out):
    "Build `out` from `source`; how many warnings there were, of which forty are printed. An error ends the process."
    done = subprocess.run([sys.executable, '-m', 'sphinx', '-b', builder, '-q', '-j', '2', source, out,
                           '-d', source.with_name(f'{out.name}-doctrees')], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.strip()]
    print(*said[:40], sep='\n', flush=True)
    if done.returncode: sys.exit(f'sphinx ended with {done.returncode}, for the reason above: mend it and repeat')
    return len(said)


def main():
    missing = [m for m in ('sphinx', 'myst_nb', 'furo', 'sphinx-mathjax-offline') if find_spec(m) is None]
    if missing: sys.exit(f'{", ".join(missing)} not installed: use make site, which installs them')
    begin = time.monotonic()
    write_source()
    shutil.rmtree(SITE, ignore_errors=True)
    said = run_sphinx('html', SOURCE, SITE)
    pages = len([*SITE.rglob('*.html')])
    size = sum(p.stat().st_size for p in SITE.rglob('*') if p.is_file()) / 1e6
    print(f'{pages} pages, {size:.0f} MB, {said} warnings, {time.monotonic() - begin:.0f} s: open build/site/index.html')


if __name__ == '__main__': main()
