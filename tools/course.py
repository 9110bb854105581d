"""Runs the course: every notebook top to bottom in a kernel of its own, then the table of results.

    python tools/course.py                    # all notebooks, in the order of their names
    python tools/course.py 01 03_models       # these only
    python tools/course.py --out DIR          # somewhere else than build/course
"""
import argparse
import html
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
import torch
from check_notebooks import split_directives
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from traitlets import default

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'


class ThisPython(KernelSpecManager):
    "Answers every kernel name with the running interpreter, whatever kernels the machine has installed."

    def get_kernel_spec(self, kernel_name):
        # Only errors are logged: a kernel's notes on its connection would break the progress lines.
        argv = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}', '--log-level=ERROR']
        return KernelSpec(argv=argv, display_name='Python 3', language='python')


class Kernels(AsyncKernelManager):
    @default('kernel_spec_manager')
    def _this_python(self): return ThisPython()


def pick(names):
    "The paths of the notebooks called `names` (whole names or numbers), or of all."
    found = sorted(p for p in NBS.glob('*.ipynb') if not p.name.startswith('_'))
    if not names: return found
    names = [Path(name).stem for name in names]
    unknown = [n for n in names if not any(n in (p.stem, p.stem.split('_')[0]) for p in found)]
    if unknown:
        sys.exit(f'No notebook {", ".join(unknown)}; there are: {", ".join(p.stem for p in found)}')
    return [p for p in found if p.stem in names or p.stem.split('_')[0] in names]


def leave_out(nb):
    "Tag the cells of `nb` that take long or need what is not here, so that they keep their stored output."
    flags = {'slow', 'net', 'eval: false'} | (set() if torch.cuda.is_available() else {'cuda'})
    cells = [c for c in nb.cells if c.cell_type == 'code' and flags & set(split_directives(c.source)[0])]
    for cell in cells: cell.metadata.setdefault('tags', []).append('skip-execution')
    return len(cells)


def run(nb):
    "Execute `nb` in place; what went wrong (empty if nothing)."
    at = []
    client = NotebookClient(nb, timeout=None, record_timing=False, kernel_manager_class=Kernels,
                            resources={'metadata': {'path': str(NBS)}},
                            on_cell_execute=lambda cell, cell_index: at.append(cell_index))
    try: client.execute()
    except CellExecutionError as e:
        plain = re.sub(r'\x1b\[[0-9;]*m', '', str(e))
        return f'cell {at[-1] + 1} of {len(nb.cells)} failed:\n\n{plain}'
    except DeadKernelError:
        return f'the kernel died in cell {at[-1] + 1} of {len(nb.cells)}: most often, memory ran out'
    return ''


def page(name):
    "The file name of a notebook's HTML copy; index.html is the list of all, so the index notebook's differs."
    return 'overview.html' if name == 'index' else f'{name}.html'


def save(nb, name, out):
    "Write the executed notebook and its HTML copy, pictures inside, to the folder `out`."
    nbformat.write(nb, out / f'{name}.ipynb')
    exporter = HTMLExporter(template_name='lab', embed_images=True)
    text, _ = exporter.from_notebook_node(nb, resources={'metadata': {'name': name, 'path': str(NBS)}})
    text = re.sub(r'(href="[\w.-]+)\.ipynb\b', r'\1.html', text)
    (out / page(name)).write_text(text, encoding='utf-8')


def write_index(out):
    "The page that links every notebook's HTML copy in `out`."
    items = []
    for path in pick([]):
        if not (out / page(path.stem)).exists(): continue
        title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].lstrip('# ')
        items.append(f'<li><a href="{page(path.stem)}">{path.stem}</a> {html.escape(title)}</li>\n')
    (out / 'index.html').write_text('<!doctype html><meta charset="utf-8"><title>The course</title>\n'
                                    f'<h1>The course</h1>\n<ul>\n{"".join(items)}</ul>\n', encoding='utf-8')


def shown(value):
    if value is None: return 'not run'
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def table(rows):
    "`rows` (flat dicts) as aligned text: numbers to the right, a column for each key in order of appearance."
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[shown(row[key]) if key in row else '-' for key in keys] for row in rows]
    right = [all(isinstance(row.get(key, 0), (int, float, type(None))) for row in rows) for key in keys]
    widths = [max(map(len, column)) for column in zip(keys, *cells)]
    line = lambda texts: '  '.join(t.rjust(w) if r else t.ljust(w) for t, w, r in zip(texts, widths, right))
    return '\n'.join(f'  {line(texts).rstrip()}' for texts in [keys, *cells])


def print_results(most=12):
    "Every stored result, then those of this run: the title, and the first rows where there are some."
    results = ROOT / 'results'
    paths = sorted(results.glob('*.json')) + sorted((results / 'live').glob('*.json'))
    print('\nResults' if paths else '\nNo stored results: results/ holds no JSON file')
    for path in paths:
        try: result = json.loads(path.read_text(encoding='utf-8'))
        except ValueError as e:
            sys.exit(f'{path.relative_to(ROOT)} is not JSON ({e}): git checkout it, or measure again')
        print(f'\n{result.get("title", path.stem)}')
        rows = result.get('rows') or []
        if rows: print(table(rows[:most]))
        if len(rows) > most: print(f'  ... and {len(rows) - most} rows more in {path.relative_to(ROOT)}')


def main():
    parser = argparse.ArgumentParser(description='Run the course notebooks and print the results.')
    parser.add_argument('names', nargs='*', help='notebooks, as 01 or 01_attention; all if none is named')
    parser.add_argument('--out', type=Path, default=ROOT / 'build' / 'course', help='where the copies go')
    args = parser.parse_args()
    paths, out = pick(args.names), args.out
    out.mkdir(parents=True, exist_ok=True)
    os.environ.pop('IN_TEST', None)  # a notebook under test takes shortcuts; here it runs as in JupyterLab
    begin = time.perf_counter()
    print(f'Running {len(paths)} notebooks')
    for path in paths:
        start = time.perf_counter()
        print(f'  {path.stem:<24}', end='', flush=True)
        nb = nbformat.read(path, as_version=4)
        skipped, error = leave_out(nb), run(nb)
        note = '  FAILED' if error else f'  ({skipped} slow, cuda or net cells left out)' if skipped else ''
        print(f'{time.perf_counter() - start:7.1f} s{note}', flush=True)
        save(nb, path.stem, out)
        if error:
            sys.exit(f'\n{path.name}: {error}\nWhat ran until then: {os.path.relpath(out / page(path.stem))}')
    seconds = time.perf_counter() - begin
    write_index(out)
    print_results()
    print(f'\n{len(paths)} notebooks in {seconds / 60:.1f} min')
    print(f'Read them: {os.path.relpath(out / "index.html")}; work through them in JupyterLab: make lab')


if __name__ == '__main__': main()
