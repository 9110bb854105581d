#!/usr/bin/env python3
"""Compare the numbers in the text with the files they come from; every notebook, README by way of index.

    python tools/numbers_in_prose.py            # say which are wrong; exit code 1
    python tools/numbers_in_prose.py --write    # put the files' numbers there

A number in a Markdown cell is marked by a comment right behind it, which no reader sees:

    attention has 84.4<!--controls; model=vgg_att3_concat_pc; accuracy; 100--> %

that is: file (in `results/`, and after a dot another list than `rows`); what picks one row, any number of times; the field;
by how much it is multiplied (left out: 1). Instead of a field `lead A B FIELD` gives the mean paired difference of two
models, A less B, over the file's runs; `lead by KEY+KEY; A; B; FIELD` does so for what these fields, joined with '+',
tell apart ('' for one that a run lacks). A pick `KEY=` takes the rows that lack it. As many digits are compared as the
text has.
"""
import argparse
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r'(?P<number>[-+−]?(?:\d[\d,]*)?\.?\d+)<!--(?P<spec>[^>]*?)-->')


class Marked(NamedTuple):
    "A marked number"
    where: str
    number: str
    spec: str


def value_of(spec, results=ROOT / 'results'):
    "What the file says; None if there is no such file"
    from ltpa.studies import paired, stored
    parts = [p.strip() for p in spec.split(';')]
    scale = float(parts.pop()) if re.fullmatch(r'-?[\d.]+', parts[-1]) else 1.
    by, a, b = next((parts[k:k + 3] for k, p in enumerate(parts) if p.startswith('lead by ')), ('', '', ''))
    if by: parts = [p for p in parts if p not in (by, a, b)]
    source, *picks, field = parts
    name, _, table = source.partition('.')
    found = stored(results / f'{name}.json')
    if not found: return None
    keys = by.removeprefix('lead by ').split('+') if by else ['model']
    if by: field = f'lead {field}'
    elif field.startswith('lead '): _, a, b, what = field.split(); field = f'lead {what}'
    rows = found['runs' if field.startswith('lead ') and not table else table or 'rows']
    rows = [r for r in rows if 'epoch' not in r]                 # those are of a training's course
    for k, v in (p.split('=', 1) for p in picks): rows = [r for r in rows if str('' if r.get(k) is None else r[k]) == v]
    if field.startswith('lead '):
        named = [r | dict(case='+'.join(str('' if r.get(k) is None else r[k]) for k in keys)) for r in rows]
        value = paired(named, a, b, field.removeprefix('lead '), by='case')['mean']
        if value is None: raise ValueError(f'{spec!r}: no pairs')
        return scale * value
    if len(rows) != 1: raise ValueError(f'{spec!r} picks {len(rows)} rows; expected one')
    return scale * rows[0][field]


def as_written(value, number):
    "`value` with the digits, sign and separators of `number`"
    digits = len(number.partition('.')[2])
    text = f'{abs(value):,.{digits}f}' if ',' in number else f'{abs(value):.{digits}f}'
    if number.lstrip('+-−').startswith('.'): text = text.removeprefix('0')
    sign = ('−' if '−' in number else '-') if round(value, digits) < 0 else '+' * number.startswith('+')
    return sign + text


def marked(path):
    "The marked numbers of a notebook's text"
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'markdown':
            for m in MARKED.finditer(''.join(cell['source'])):
                yield Marked(f'{path.name}, cell {cell["id"]}', m['number'], m['spec'])


def notebooks(): return sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if not p.name.startswith('_') and '.ipynb_checkpoints' not in p.parts)


def wrong(m):
    "What is wrong with a marked number, in a line; None if it is right, or its file is not there"
    try: value = value_of(m.spec)
    except (KeyError, ValueError, TypeError) as e: return f'{m.where}: {m.number}: {e}'
    if value is None or (right := as_written(value, m.number)) == m.number: return None
    return f'{m.where}: {m.number} should be {right} ({m.spec})'


def rewrite(path):
    "Put the files' numbers into a notebook's text"
    text = path.read_text(encoding='utf-8')
    def right(m):
        value = value_of(json.loads(f'"{m["spec"]}"'))
        return m[0] if value is None else m[0].replace(m['number'], as_written(value, m['number']), 1)
    new = MARKED.sub(right, text)
    if new != text: path.write_text(new, encoding='utf-8')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--write', action='store_true', help="put the files' numbers there")
    if p.parse_args().write:
        for path in notebooks(): rewrite(path)
    found = [m for path in notebooks() for m in marked(path)]
    bad = [line for m in found if (line := wrong(m))]
    print('\n'.join([*bad, f'{len(found)} marked numbers, {len(bad)} wrong']))
    sys.exit(bool(bad))


if __name__ == '__main__': main()
