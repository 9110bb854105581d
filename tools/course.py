"""Runs the course: every lesson top to bottom in a kernel of its own; ten lines then say what came out.

    python tools/course.py                    # all lessons, in the order of their names
    python tools/course.py 01 03_models       # these only
    python tools/course.py --out DIR          # somewhere else than build/course
"""
import argparse
import asyncio
import copy
import functools
import html
import json
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import nbformat
from check_notebooks import named_directives, split_directives
from children import end_with_make, ending
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
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
    "Tag the cells of `nb` that take long, so that they keep their stored output."
    cells = [c for c in nb.cells if c.cell_type == 'code'
             and {'slow', 'eval: false'} & set(split_directives(c.source)[0])]
    for cell in cells: cell.metadata.setdefault('tags', []).append('skip-execution')
    return len(cells)


def run(nb, folder=NBS, limit=None):
    """Execute `nb` in place in `folder`, as JupyterLab's Run All does; what went wrong (empty if nothing).

    A cell that takes more than `limit` seconds is an error. The kernel and what it started end with the call.
    """
    at, ready = [], threading.Event()
    with ThreadPoolExecutor(1) as thread, ExitStack() as stack:

        def begin(notebook):
            stack.enter_context(ending(client.km.provisioner.pgid))
            ready.set()

        client = NotebookClient(
            nb, timeout=limit, record_timing=False, kernel_manager_class=Kernels, on_notebook_start=begin,
            resources={'metadata': {'path': str(folder)}},
            on_cell_execute=lambda cell, cell_index: at.append(cell_index))
        # A notebook under test takes shortcuts; here it runs as a reader runs it.
        env = {key: value for key, value in os.environ.items() if key != 'IN_TEST'}
        # In a thread of its own, since in the main one nbclient would take over our signals.
        work = thread.submit(asyncio.run, client.async_execute(env=env))      # execute() leaves its loop open
        work.add_done_callback(lambda _: ready.set())
        try: work.result()
        except CellExecutionError as e: error = 'failed:\n\n' + re.sub(r'\x1b\[[0-9;]*m', '', str(e))
        except CellTimeoutError: error = f'took more than {limit} s'
        except DeadKernelError: error = 'ended its kernel: most often, memory ran out'
        else: return ''
        finally: ready.wait()      # after a signal: a kernel that is starting cannot be ended yet
    return f'cell {at[-1] + 1} of {len(nb.cells)} ({nb.cells[at[-1]].id}) {error}'


def page(name):
    "The file name of a notebook's HTML copy; index.html is the list of all, so the index notebook's differs."
    return 'overview.html' if name == 'index' else f'{name}.html'


def for_reading(nb):
    """A copy of `nb` as one reads it, and the words for its figures by cell id: no `#|` lines, no code that is folded,
    no hidden cells but for one that failed."""
    nb, words = copy.deepcopy(nb), {}
    for cell in [*nb.cells]:
        if cell.cell_type != 'code': continue
        known, source = named_directives(cell)
        failed = any(o.output_type == 'error' for o in cell.outputs)
        if known.keys() & {'hide', 'default_exp'} and not failed: nb.cells.remove(cell)
        cell.source = source.strip('\n')
        cell.metadata.transient = dict(remove_source='code-fold' in known and not failed)
        if 'fig-alt' in known: words[cell.id] = known['fig-alt']
    return nb, words


def save(nb, name, out):
    "Write the executed notebook and its HTML copy, pictures inside and with words, to the folder `out`."
    nbformat.write(nb, out / f'{name}.ipynb')
    exporter = HTMLExporter(template_name='lab', embed_images=True)
    read, words = for_reading(nb)
    text, _ = exporter.from_notebook_node(read, resources={'metadata': {'name': name, 'path': str(NBS)}})
    head, *cells = re.split(r'(?=<div[^>]* id="cell-id=)', text)
    for k, cell in enumerate(cells):
        found = words.get(re.search(r'cell-id=([\w-]+)', cell)[1])
        if found: cells[k] = re.sub(r'(?<=alt=")No description[^"]*', lambda _: html.escape(found), cell)
    text = re.sub(r'(?<= href=")([^":#]+)', lambda match: relink(match[0], out), head + ''.join(cells))
    (out / page(name)).write_text(text, encoding='utf-8')


def relink(target, out):
    "A link of a lesson as its copy in the folder `out` needs it: to another copy, or to the file itself."
    path = NBS / target
    if path.suffix == '.ipynb' and path.parent == NBS: return page(path.stem)
    return Path(os.path.relpath(path, out)).as_posix() if path.exists() else target


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>The course</title><style>
:root {{ color-scheme: light dark }} body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem }}
li {{ margin: .8rem 0 }} small {{ opacity: .75 }}
</style><h1>The course</h1>
<p>Each lesson as it just ran here. To work in them: <code>make lab</code>. With search and an index: <code>make site</code>.</p>
<ul>
{}</ul></html>
"""


def write_index(out):
    "The page that links every notebook's HTML copy in `out`: its title, what it is about, its time."
    items = []
    for path in sorted(pick([]), key=lambda p: (p.stem != 'index', p)):
        if not (out / page(path.stem)).exists(): continue
        text = [c.source for c in nbformat.read(path, as_version=4).cells[:5]]
        title, _, about = text[0].partition('\n\n> ')
        time = next((m[1] for t in text if (m := re.search(r'\*\*Time:\*\* ([^.]*)', t))), '')
        items.append(f'<li><a href="{page(path.stem)}">{path.stem}: {html.escape(title.lstrip("# "))}</a>'
                     f'<br>{html.escape(about.splitlines()[0] if about else "")} <small>{time}</small></li>\n')
    (out / 'index.html').write_text(PAGE.format(''.join(items)), encoding='utf-8')


def per_cent(value, sd):
    return f'{100 * value:.1f}' + (f' ± {100 * sd:.1f}' if sd else '') + ' %'


def jaccard(value, sd):
    return f'{value:.3f}' + (f' ± {sd:.3f}' if sd else '')


def stored(name, key, show=per_cent, results=None, **where):
    "The number `key` in the row of results/NAME.json that matches `where`, with its deviation over seeds."
    path = (results or ROOT / 'results') / f'{name}.json'
    try: rows = json.loads(path.read_text(encoding='utf-8'))['rows']
    except FileNotFoundError: return 'not run'
    except (ValueError, KeyError) as e:
        sys.exit(f'{path.name} is not a file of results ({e!r}): git checkout it, or measure again')
    row = next((r for r in rows if all(r.get(k) == v for k, v in where.items())), {})
    return 'not run' if row.get(key) is None else show(row[key], row.get(f'{key}_sd'))


def summary(count, minutes, out, results=None):
    "The ten lines at the end: what was made, the three figures that matter, how to go on."
    get = functools.partial(stored, results=results)
    pc, uniform, trunk = 'vgg_att3_concat_pc', 'vgg_att3_concat_uniform', 'vgg_trunk'
    accuracy = lambda model: get('controls', 'accuracy', model=model)
    points = lambda model: get('controls', 'pointing_2', model=model)
    mask = lambda way, model: get('segmentation', 'otsu', jaccard, data='ClutteredFashion, 32 pixels',
                                  way=way, model=model)
    masks = mask('scores, product', pc), mask('CAM', 'vgg_gap'), mask('centre', '')
    return f"""\
{count} notebook{'s' * (count != 1)} run in {minutes:.1f} min: executed copies and HTML pages lie in {out}
Measured before, on bundled pictures (mean ± deviation over seeds; the files in results/ hold all):
  right answers: learned attention {accuracy(pc)}, uniform {accuracy(uniform)}, same trunk {accuracy(trunk)}
  points at the object, never told where it is: learned {points(pc)}, uniform {points(uniform)}
  masks, Jaccard: attention {masks[0]}, CAM {masks[1]}, blob in the middle {masks[2]}
How to go on:
  read        {os.path.join(out, 'index.html')}
  work        make lab: change a cell, run it, do the exercises
  your photo  .venv/bin/ltpa explain photo.jpg --out attention.png
  your set    .venv/bin/ltpa train my_photos/vgg_att2_concat_pc --image-size 64    (my_photos/CLASS/IMAGE)"""


def main():
    parser = argparse.ArgumentParser(description='Run the course notebooks and print the results.')
    parser.add_argument('names', nargs='*', help='lessons, as 01 or 01_attention; all if none is named')
    parser.add_argument('--out', type=Path, default=ROOT / 'build' / 'course', help='where the copies go')
    args = parser.parse_args()
    paths, out = pick(args.names), args.out
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # its kernel ends too
    end_with_make()
    begin = time.perf_counter()
    print(f'Running {len(paths)} notebooks')
    for path in paths:
        start = time.perf_counter()
        print(f'  {path.stem:<24}', end='', flush=True)
        nb = nbformat.read(path, as_version=4)
        skipped, error = leave_out(nb), run(nb)
        note = '  FAILED' if error else f'  ({skipped} slow cells left out)' if skipped else ''
        print(f'{time.perf_counter() - start:7.1f} s{note}', flush=True)
        save(nb, path.stem, out)
        if error:
            sys.exit(f'\n{path.name}: {error}\nWhat ran until then: {os.path.relpath(out / page(path.stem))}')
    seconds = time.perf_counter() - begin
    write_index(out)
    print('', summary(len(paths), seconds / 60, os.path.relpath(out)), sep='\n')


if __name__ == '__main__': main()
