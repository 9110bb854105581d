"""Checks the rules that every notebook in nbs/ keeps, and lists each offence.

    python tools/check_notebooks.py
"""
import ast
import json
import re
import sys
from collections import Counter
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {'default_exp', 'export', 'exporti', 'hide', 'code-fold', 'fig-alt', 'slow', 'course'}
TITLE = re.compile(r'# \S.*\n+> \S')
DIRECTIVE = re.compile(r'\s*#\s*\|\s*(.*)')
# A path of one machine, but not the tail of a web address or of a relative path.
PATH = re.compile(r'(?<![\w.~/:-])/(?:root|home/\w+|tmp|work|Users|private|var/folders)/|\b[A-Z]:\\Users\\')
BAR = re.compile(r'\b\d{1,3}%\||FloatProgress|IntProgress')
MOST_TOLD, MOST_COLUMNS = 25, 100          # of what is told
SOLUTIONS = '90_solutions'                 # looked up, not read
CHECKED = '## What the text says, checked' # the section of a lesson below its end
ASSERTS = re.compile(r'^\s*(assert |(test_|expect)\w*\()', re.M)
# A cell that works on a GPU, whatever the machine has.
CUDA = re.compile(r'device=[\'"]cuda|\.to\([\'"]cuda|\.cuda\(|torch\.cuda\.(?!is_available)')
# The file in [text](file#place), but no web address nor a place in the same notebook; code only shows one.
LINK = re.compile(r'\]\((?![a-z]+:|#|/)([^)\s#]+)[^)]*\)')
CODE = re.compile(r'^```.*?^```|`[^`\n]*`', re.M | re.S)
ENCODED = re.compile(r'base64,[\w+/=\s]+')


def notebooks(folder):
    "The notebooks in `folder` and below it, in order; what begins with _ or . is a draft or a checkpoint."
    return sorted(p for p in folder.rglob('*.ipynb')
                  if not any(part.startswith(('_', '.')) for part in p.relative_to(folder).parts))


def store(path, nb):
    "Write a notebook as nbdev does"
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')


def joined(text):
    return text if isinstance(text, str) else ''.join(text)


def split_directives(source):
    "The directives at the head of a cell, as nbdev reads them ('eval: false'), and the remaining source."
    lines, directives = source.splitlines(), []
    while lines and (not lines[0].strip() or lines[0].startswith('%%') or DIRECTIVE.match(lines[0])):
        match = DIRECTIVE.match(lines.pop(0))
        if match: directives.append(' '.join(match[1].replace(':', ': ').split()))
    return directives, '\n'.join(lines)


def named_directives(cell):
    "The `#|` lines of a code cell as a dict, `{'hide': '', 'fig-alt': 'A cat.'}`; and its code below them"
    directives, code = split_directives(joined(cell['source']))
    return {d.split(':')[0].split()[0]: d.partition(':')[2].strip() for d in directives if d}, code


def meant_hidden(cell):
    "Whether a cell's directives say that its source is not to be seen"
    return cell['cell_type'] == 'code' and not {'hide', 'code-fold'}.isdisjoint(named_directives(cell)[0])


def is_lesson(path, nbs):
    "Whether a notebook in the folder `nbs` is a lesson: 00 to 16, not the solutions and not the workshop"
    return path.parent == nbs and path.name[:2].isdigit() and path.stem != SOLUTIONS


def directive_offences(directives, code):
    for text in directives:
        name, value = re.match(r'([\w-]*):?\s*(.*)', text).groups()
        if name not in ALLOWED and (name, value) != ('eval', 'false'):
            yield f'directive "#| {text}" is not one of {", ".join(sorted(ALLOWED))}, eval: false'
    if re.search(r'^#\s*\|', code, re.M):
        yield 'a "#|" line below other lines: nbdev ignores it, move it up'


def exported(directives): return any(text.split()[0] in ('export', 'exporti') for text in directives if text)


def hardware_offences(directives, code):
    "JupyterLab runs every cell, whatever the machine lacks; exported code is told the device."
    if not exported(directives) and CUDA.search(code) and 'torch.cuda.is_available()' not in code:
        yield 'a cell that needs CUDA: let it ask, "if torch.cuda.is_available(): ...", and else say so'


def import_offences(directives, code):
    if not exported(directives): return
    try: kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(code).body}
    except SyntaxError as e: yield f'exported code is not Python ({e.msg}, line {e.lineno}): mend it'
    else:
        if len(kinds) == 2: yield 'imports and other code in one exported cell: give imports their own'


def output_text(output):
    "All text of a stored output; encoded pictures are left out, where a slash means nothing."
    data = output.get('data', {})
    parts = [joined(output.get('text', ''))]
    parts += [joined(value) if isinstance(value, (str, list)) else json.dumps(value)
              for kind, value in data.items() if kind == 'image/svg+xml' or not kind.startswith('image/')]
    return ENCODED.sub('', '\n'.join(parts))


def seen_offences(cell, directives):
    "What a reader sees and should not, or cannot see"
    if meant_hidden(cell) != bool(cell['metadata'].get('jupyter', {}).get('source_hidden')):
        yield 'hidden on the site and open in JupyterLab, or the other way round: run tools/tidy.py'
    if any('image/png' in o.get('data', {}) for o in cell['outputs']) and not any(d.startswith('fig-alt') for d in directives):
        yield 'a figure without words for those who do not see it: add "#| fig-alt: ..."'


def told_offences(directives, code):
    "A lesson's cell that is neither hidden nor exported is read: it has one screen."
    if exported(directives) or any(d.split(':')[0] in ('hide', 'code-fold') for d in directives): return
    lines = [line for line in code.splitlines() if line.strip()]
    wide = max(map(len, lines), default=0)
    if wide > MOST_COLUMNS: yield f'{wide} columns in a cell that is told; at most {MOST_COLUMNS}: break the line'
    if len(lines) > MOST_TOLD: yield f'{len(lines)} lines in a cell that is told; at most {MOST_TOLD}: split it, or fold it'


def place_offences(cells):
    "A reader meets no check of a sentence on the way: hidden ones stand below the lesson's end."
    end = next((k for k, c in enumerate(cells) if joined(c['source']).startswith(CHECKED)), len(cells))
    for cell in (c for c in cells[:end] if c['cell_type'] == 'code'):
        directives, code = named_directives(cell)
        if 'hide' in directives and ASSERTS.search(code):
            yield f'cell {cell.get("id")}: a hidden check amid the lesson: move it below its end, under "{CHECKED}"'


def output_offences(output):
    if output['output_type'] == 'error': yield f'stored error ({output["ename"]}): mend the cell and run it'
    text = output_text(output)
    path = PATH.search(text)
    if path: yield f'stored output holds a path of one machine ("{path[0]}"): print a relative path'
    if 'application/vnd.jupyter.widget-view+json' in output.get('data', {}):
        yield 'stored widget, an error where there is no kernel: run tools/tidy.py'
    if BAR.search(text): yield 'stored output holds a progress bar: turn it off or clear the output'


def notebook_offences(nb):
    "Every offence within one notebook, as (place, message)."
    first = nb['cells'][0] if nb['cells'] else {'cell_type': '', 'source': ''}
    if first['cell_type'] != 'markdown' or not TITLE.match(joined(first['source'])):
        yield 'cell 1', 'the first cell is not "# Title" with a "> subtitle" below'
    counts = Counter(cell.get('id') for cell in nb['cells'])
    for cell_id, count in counts.items():
        if cell_id is None: yield 'notebook', f'{count} cells have no id: run nbdev_clean once'
        elif count > 1: yield 'notebook', f'{count} cells have the id {cell_id}: ids must differ'
    for number, cell in enumerate(nb['cells'], 1):
        if cell['cell_type'] != 'code': continue
        directives, code = split_directives(joined(cell['source']))
        found = [*directive_offences(directives, code), *import_offences(directives, code),
                 *hardware_offences(directives, code)]
        found += [message for output in cell['outputs'] for message in output_offences(output)]
        found += seen_offences(cell, directives)
        yield from ((f'cell {number} ({cell.get("id")})', message) for message in found)


def link_offences(nb, folder):
    "Links, beside the notebook's `folder`, to what does not exist."
    for number, cell in enumerate(nb['cells'], 1):
        if cell['cell_type'] != 'markdown': continue
        for target in LINK.findall(CODE.sub('', joined(cell['source']))):
            if not (folder / unquote(target)).exists():
                yield f'cell {number} ({cell.get("id")})', f'links to {target}, which does not exist: mend it'


def exported_module(nb):
    "The module that a notebook exports to, or None."
    for cell in nb['cells']:
        for text in split_directives(joined(cell['source']))[0] if cell['cell_type'] == 'code' else []:
            if text.startswith('default_exp '): return text.split()[1]
    return None


def offences(nbs, lib):
    "Every offence in the folders `nbs` and `lib`, a line each."
    owners = {}
    for path in notebooks(nbs):
        nb, name = json.loads(path.read_text(encoding='utf-8')), path.relative_to(nbs).as_posix()
        if path.parent == nbs and path.stem != SOLUTIONS:
            for cell in (c for c in nb['cells'] if c['cell_type'] == 'code'):
                yield from (f'{name}, cell {cell.get("id")}: {message}'
                            for message in told_offences(*split_directives(joined(cell['source']))))
        if is_lesson(path, nbs):
            yield from (f'{name}, {message}' for message in place_offences(nb['cells']))
        yield from (f'{name}, {place}: {message}' for place, message in notebook_offences(nb))
        yield from (f'{name}, {place}: {message}' for place, message in link_offences(nb, path.parent))
        module = exported_module(nb)
        if module in owners: yield f'{name}: exports {module}, as {owners[module]} does: rename one'
        if module: owners[module] = name
    for path in sorted(lib.glob('*.py')):
        if path.name not in ('__init__.py', '_modidx.py') and path.stem not in owners:
            yield f'{lib.name}/{path.name}: no notebook exports it: delete it, or name it in a default_exp'


def main():
    config = ConfigParser()
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    found = list(offences(ROOT / config['DEFAULT']['nbs_path'], ROOT / config['DEFAULT']['lib_path']))
    print(*found, f'Notebooks: {len(found)} offences' if found else 'Notebooks keep the rules', sep='\n')
    return 1 if found else 0


if __name__ == '__main__': sys.exit(main())
