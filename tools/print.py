#!/usr/bin/env python3
"""The course to print: all lessons in order on one page, and as a PDF where there is a chromium. build/print/index.html.

    python tools/print.py            # or `make print`, which installs what it needs
    python tools/print.py 00 01      # these lessons alone
    python tools/print.py --out DIR  # somewhere else than build/print

From the notebooks' committed outputs, as the site; nothing is fetched from elsewhere. On paper nothing unfolds: what only
draws a figure leaves its code out, hints stand open, and answers to questions are collected at the end.
"""
import argparse
import json
import os
import re
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import website
from check_notebooks import CODE, joined
from course import pick
from lab import chromium, chromium_page

NBS, ROOT = website.NBS, website.ROOT
SOURCE = ROOT / 'build' / 'print-source'
# code as it is, or a link, which may have code in its words
LINK = re.compile(rf'{CODE.pattern}|(?<!!)\[((?:[^][]|\[[^]]*\])+)\]\((?![a-z]+:|#)([^)\s#]+)[^)]*\)', re.M | re.S)
ANSWER = re.compile(r'\n? *<details><summary>Answer</summary>(.*?)</details>', re.S)
HINT = re.compile(r'<details><summary>Hint</summary>(.*?)</details>', re.S)
CONF = website.CONF.replace("'furo'", "'basic'").replace("'site.css'", "'print.css'") + '''
html_theme_options, html_title = dict(nosidebar=True), 'Learn To Pay Attention: the course'
numfig, html_permalinks, html_use_index = False, False, False
'''
CSS = '''
:root { color-scheme: only light; }
@page { size: A4; margin: 17mm 16mm 19mm; }
body { max-width: 178mm; margin: 0 auto; font: 10pt/1.42 "DejaVu Serif", Georgia, serif; color: black; background: white; }
h1, h2, h3, h4, h5 { font-family: "DejaVu Sans", Helvetica, sans-serif; line-height: 1.2; break-after: avoid; }
h1 { font-size: 24pt; } h2 { font-size: 18pt; } h3 { font-size: 13pt; } h4 { font-size: 11pt; }
a { color: #1f5673; text-decoration: none; }
pre, code { font: 7.2pt/1.35 "DejaVu Sans Mono", Menlo, Consolas, monospace; }
p code, li code, td code { font-size: 8.6pt; overflow-wrap: anywhere; }
pre { margin: 4pt 0; padding: 4pt 6pt; background: #f5f5f3; white-space: pre-wrap; overflow-wrap: anywhere; }
.cell_output pre { background: white; border-left: 2pt solid #bbb; }
img, svg { max-width: 100%; height: auto; max-height: 235mm; }
table { border-collapse: collapse; font-size: 8pt; max-width: 100%; }
td, th { border: .5pt solid #999; padding: 2pt 4pt; text-align: left; overflow-wrap: anywhere; hyphens: auto; }
table pre { background: none; padding: 0; }
blockquote { margin-left: 0; padding-left: 8pt; border-left: 2pt solid #999; }
mjx-container { overflow: visible; }
.related, .footer, .sphinxsidebar, .headerlink { display: none; }
pre, tr, img, figure, blockquote, .cell_output { break-inside: avoid; }
p, li { orphans: 2; widows: 2; }
.toctree-wrapper > section { break-before: page; }
'''


def to_text(match, names):
    "A link as paper has it: to a lesson that is on the page too, or its words alone; code stays"
    words, target = match.groups()
    return match[0] if target is None or Path(target).stem in names and '/' not in target else words


def on_paper(text, names, answers):
    "A Markdown cell for the page of the lessons `names`; answers to its questions go to `answers`"
    text = re.sub(r'<!--.*?-->', '', text, flags=re.S)
    answers += [a.strip() for a in ANSWER.findall(text)]
    text = HINT.sub(r'<em>Hint:</em> \1', ANSWER.sub('', text))
    return LINK.sub(lambda m: to_text(m, names), text)


def lesson(path, names):
    "A notebook as a part of the page, and the answers to its questions"
    nb, cells, answers = json.loads(path.read_text(encoding='utf-8')), [], []
    for cell in nb['cells']:
        if cell['cell_type'] == 'markdown':
            cells.append(cell | dict(source=on_paper(joined(cell['source']), names, answers), metadata={}))
        elif (kept := website.tagged(cell)) is not None:
            meta = kept['metadata']
            cells.append(kept | dict(metadata=meta | dict(tags=['remove-input'] if meta.pop('tags') else [])))
    return json.dumps(nb | dict(cells=cells)), answers


def write_source(paths):
    "All that Sphinx reads"
    shutil.rmtree(SOURCE, ignore_errors=True)
    (SOURCE / '_static').mkdir(parents=True)
    shutil.copytree(NBS / 'images', SOURCE / 'images')
    names, contents, ends = [p.stem for p in paths], [], ['# Answers', '', 'To the questions that stand near the end of each lesson.']
    for path in paths:
        text, answers = lesson(path, names)
        (SOURCE / path.name).write_text(text, encoding='utf-8')
        title = website.TITLE.search(joined(json.loads(text)['cells'][0]['source']))[1]
        contents.append(f'- [{path.stem}: {title}]({path.name})')
        if answers: ends += ['', f'## {title}', '', *(f'{k}. {a}' for k, a in enumerate(answers, 1))]
    (SOURCE / 'answers.md').write_text('\n'.join(ends) + '\n', encoding='utf-8')
    tree = '```{toctree}\n:hidden:\n\n' + '\n'.join([*names, 'answers']) + '\n```\n'
    (SOURCE / 'index.md').write_text('\n'.join(['# Learn To Pay Attention', '', 'The course, all lessons in their order.', '', *contents,
                                                '- [Answers to the questions](answers.md)', '', tree.replace(':hidden:\n', '')]), encoding='utf-8')
    (SOURCE / 'conf.py').write_text(CONF, encoding='utf-8')
    (SOURCE / '_static' / 'print.css').write_text(CSS, encoding='utf-8')
    shutil.copy(website.mathjax(), SOURCE / '_static' / 'tex-svg-full.js')


def write_pdf(page, pdf):
    "`page` on A4, its formulas set, with page numbers and an outline; False where there is no browser"
    if not chromium() or find_spec('playwright') is None: return False
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p, chromium_page(p, color_scheme='light') as tab:
        tab.goto(page.as_uri())
        tab.evaluate('window.MathJax && MathJax.startup.promise.then(() => true)')      # a page without formulas loads none
        tab.pdf(path=pdf, format='A4', print_background=True, prefer_css_page_size=True, outline=True, tagged=True,
                display_header_footer=True, header_template='<span></span>',
                footer_template='<div style="font-size:8px;width:100%;text-align:center"><span class="pageNumber"></span></div>')
    return True


def main():
    missing = [m for m in ('sphinx', 'myst_nb', 'sphinx-mathjax-offline') if find_spec(m) is None]
    if missing: sys.exit(f'{", ".join(missing)} not installed: use make print, which installs them')
    parser = argparse.ArgumentParser(description='Set the lessons on one page, and make a PDF of it.')
    parser.add_argument('names', nargs='*', help='lessons, as 01 or 01_attention; all if none is named')
    parser.add_argument('--out', type=Path, default=ROOT / 'build' / 'print', help='where page and PDF go')
    args = parser.parse_args()
    begin, out, paths = time.monotonic(), args.out.resolve(), [p for p in pick(args.names) if p.stem != 'index']
    print(f'Setting {len(paths)} lessons on one page', flush=True)
    write_source(paths)
    shutil.rmtree(out, ignore_errors=True)
    said = website.run_sphinx('singlehtml', SOURCE, out)
    pdf, made = out / 'course.pdf', os.path.relpath(out / 'index.html')
    if write_pdf(out / 'index.html', pdf):
        pages = len(re.findall(rb'/Type */Page\b', pdf.read_bytes()))
        made += f' and {os.path.relpath(pdf)} ({pages} pages, {pdf.stat().st_size / 1e6:.0f} MB)'
    else: made += '; no PDF, since there is no chromium: print the page from a browser'
    print(f'{made}, {said} warnings, {time.monotonic() - begin:.0f} s')


if __name__ == '__main__': main()
