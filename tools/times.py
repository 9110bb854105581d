#!/usr/bin/env python3
"""How long each lesson takes: what it says of itself, and what index and the teachers' page say, against a count.

    python tools/times.py            # say which are off; exit code 1
    python tools/times.py --write    # put the counted minutes there

A lesson says "**Time:** read 25 + exercises 15 + training 10 minutes." Reading: 150 words of text and 40 lines of code a
minute, to the next five minutes; that is slow, as one reads in a second language with the cells run on the way. Hidden
cells do not count. Exercises: the sum of the minutes that stand beside them. Training: what the lesson says, the minutes
for which the reader waits for networks that train, rounded; 0 is less than half a minute.
"""
import argparse
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from check_notebooks import is_lesson, joined, meant_hidden, notebooks, store

NBS = Path(__file__).resolve().parent.parent / 'nbs'
WORDS, LINES = 150, 40                  # a minute
SAID = re.compile(r'\*\*Time:\*\* read (\d+) \+ exercises (\d+) \+ training (\d+) minutes')
TEACHERS = Path(__file__).resolve().parent / 'pages' / 'teachers.md'
TAUGHT = r'^\| \[\d\w+\]\(\.\./(\w+)\.ipynb\) \| (\d+ \+ \d+ \+ \d+) \|'
EXERCISE = re.compile(r'\((\d+) min, ★')


class Times(NamedTuple):
    "Minutes of a lesson"
    read: int
    exercises: int
    training: int

    @property
    def short(self): return ' + '.join(map(str, self))

    def __str__(self): return f'**Time:** read {self.read} + exercises {self.exercises} + training {self.training} minutes'


def lessons(): return [p for p in notebooks(NBS) if is_lesson(p, NBS)]


def said(cells):
    "What a lesson says of its time; None if nothing"
    found = next((m for c in cells if (m := SAID.search(joined(c['source'])))), None)
    return Times(*map(int, found.groups())) if found else None


def counted(cells):
    "What it takes by the count"
    text = [joined(c['source']) for c in cells if c['cell_type'] == 'markdown']
    code = [c['source'] for c in cells if c['cell_type'] == 'code' and not meant_hidden(c)]
    words = sum(len(re.findall(r'\w+', re.sub(r'<!--.*?-->|\]\([^)]*\)', '', t))) for t in text)
    lines = sum(bool(line.strip()) for source in code for line in joined(source).splitlines())
    read = max(5, 5 * round((words / WORDS + lines / LINES) / 5))
    before = said(cells)
    return Times(read, sum(int(v) for t in text for v in EXERCISE.findall(t)), before.training if before else 0)


def listed(index):
    "Minutes in the table of index, by notebook: (its row, all together)"
    return {m[1]: int(m[2]) for m in re.finditer(r'^\| \[(\w+)\]\(.*\| (\d+) \|$', index, re.M)}


def wrong():
    "What is off, in lines"
    index = '\n'.join(joined(c['source']) for c in json.loads((NBS / 'index.ipynb').read_text(encoding='utf-8'))['cells'])
    for path in lessons():
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        have, want = said(cells), counted(cells)
        if have != want: yield f'{path.name} says {have or "nothing of its time"}; counted: {want}'
        if (row := listed(index).get(path.stem)) != sum(want): yield f'index lists {path.stem} with {row} minutes; counted: {sum(want)}'
        if taught().get(path.stem) != want.short: yield f'teachers are told {taught().get(path.stem)} of {path.stem}; counted: {want.short}'


def taught():
    "Minutes on the teachers' page, by notebook"
    return {m[1]: m[2] for m in re.finditer(TAUGHT, TEACHERS.read_text(encoding='utf-8'), re.M)}


def write():
    index = NBS / 'index.ipynb'
    table = json.loads(index.read_text(encoding='utf-8'))
    for path in lessons():
        nb = json.loads(path.read_text(encoding='utf-8'))
        want = counted(nb['cells'])
        for c in nb['cells']:
            if c['cell_type'] == 'markdown': c['source'] = SAID.sub(str(want), joined(c['source'])).splitlines(True)
        store(path, nb)
        for c in table['cells']:
            text = re.sub(rf'^(\| \[{path.stem}\]\(.*\|) \d+ \|$', rf'\1 {sum(want)} |', joined(c['source']), flags=re.M)
            c['source'] = text.splitlines(True)
    store(index, table)
    short = {path.stem: counted(json.loads(path.read_text(encoding='utf-8'))['cells']).short for path in lessons()}
    page = re.sub(TAUGHT, lambda m: m[0].replace(f'| {m[2]} |', f'| {short.get(m[1], m[2])} |'), TEACHERS.read_text(encoding='utf-8'), flags=re.M)
    TEACHERS.write_text(page, encoding='utf-8')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--write', action='store_true', help='put the counted minutes there')
    if parser.parse_args().write: write()
    print(*(found := [*wrong()]), f'Times of {len(lessons())} lessons, {len(found)} off', sep='\n')
    return 1 if found else 0


if __name__ == '__main__': sys.exit(main())
