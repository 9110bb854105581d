"""Renders README.md from nbs/index.ipynb, with the standard library alone.

    python tools/readme.py            # write README.md, and the pictures that the notebook's outputs hold
    python tools/readme.py --check    # only tell whether they are up to date; exit status 1 if not
"""
import base64
import difflib
import json
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS, README = ROOT / 'nbs', ROOT / 'README.md'
NOTE = '<!-- Written by `make readme` from nbs/index.ipynb: edit that. -->\n\n'
DIRECTIVE = re.compile(r'^\s*#\s*\|.*\n?', re.M)
# [text](target), [name]: target at a line's start, and src="target" or href="target"
LINK = re.compile(r'(\]\(|^\[[^]]+\]:\s+|\b(?:src|href)=")([^)\s"]+)', re.M)
FENCE = re.compile(r'(^```.*?^```\s*?$)', re.M | re.S)


def relink(markdown):
    "`markdown` with its relative links, written in nbs/, made to work from the repository root."
    def fix(match):
        before, target = match.groups()
        if re.match(r'[a-z]+:|#|/', target): return match[0]
        moved = posixpath.normpath(posixpath.join('nbs', target))
        if not (ROOT / moved.split('#')[0]).exists():
            sys.exit(f'nbs/index.ipynb links to {target}, which does not exist: mend the link there')
        return before + moved
    # every second piece is a fenced block, where a link is only an example
    return ''.join(part if i % 2 else LINK.sub(fix, part) for i, part in enumerate(FENCE.split(markdown)))


def fenced(text, language):
    "`text` as a fenced block whose fence is longer than any inside."
    ticks = '`' * max(3, 1 + max(map(len, re.findall('`+', text)), default=0))
    return f'{ticks}{language}\n{text.rstrip()}\n{ticks}'


def render_output(output, name, alt, pictures):
    "One stored output as Markdown; a picture goes to `pictures` under a path made from `name`."
    data = output.get('data', {'text/plain': output.get('text', '')})
    text = {kind: ''.join(value) for kind, value in data.items()}
    if 'text/markdown' in text: return relink(text['text/markdown'])
    if 'image/png' in text:
        path = f'nbs/images/readme-{name}.png'
        pictures[path] = base64.b64decode(text['image/png'])
        return f'![{alt}]({path})'
    return fenced(text['text/plain'], 'text') if text.get('text/plain', '').strip() else ''


def render(nb):
    "All files that the notebook `nb` becomes, as {path: bytes}."
    parts, pictures = [], {}
    for cell in nb['cells']:
        source = ''.join(cell['source'])
        if re.search(r'^\s*#\s*\|\s*hide\b', source, re.M): continue
        if cell['cell_type'] == 'markdown': parts.append(relink(source).strip())
        if cell['cell_type'] != 'code': continue
        code = DIRECTIVE.sub('', source).strip()
        folded = re.search(r'^#\| code-fold: true', source, re.M)      # on the site one click away; here left out
        if code and not folded: parts.append(fenced(code, 'python'))
        alt = (re.search(r'^#\| fig-alt: (.*)', source, re.M) or ['', ''])[1]
        parts += [render_output(o, f'{cell["id"]}-{i}', alt, pictures) for i, o in enumerate(cell['outputs'])]
    text = NOTE + '\n\n'.join(filter(None, parts)) + '\n'
    return {'README.md': text.encode(), **pictures}


def stored():
    "The files as they are now, as {path: bytes}."
    paths = [p for p in [README, *sorted((NBS / 'images').glob('readme-*.png'))] if p.exists()]
    return {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in paths}


def check(files):
    "Exit with a message and a difference if `files` are not what is stored."
    old = stored()
    stale = [path for path in sorted({*files, *old}) if files.get(path) != old.get(path)]
    if not stale: return print('README.md is up to date')
    lines = [side.get('README.md', b'').decode().splitlines(True) for side in (old, files)]
    sys.stdout.writelines(difflib.unified_diff(*lines, 'README.md', 'what nbs/index.ipynb gives'))
    sys.exit(f'Out of date: {", ".join(stale)}. Edit nbs/index.ipynb, never README.md; then run: make readme')


def write(files):
    for path in stored().keys() - files.keys(): (ROOT / path).unlink()
    for path, content in files.items():
        (ROOT / path).parent.mkdir(exist_ok=True)
        (ROOT / path).write_bytes(content)
    print(f'Wrote {", ".join(files)}')


if __name__ == '__main__':
    made = render(json.loads((NBS / 'index.ipynb').read_text(encoding='utf-8')))
    if sys.argv[1:] == ['--check']: check(made)
    elif sys.argv[1:]: sys.exit('Only --check is understood; without it, README.md is written')
    else: write(made)
