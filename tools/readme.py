"""Renders README.md from nbs/index.ipynb, up to the cell that ends it, with the standard library alone.

    python tools/readme.py            # write README.md, its badges, and the pictures that the notebook's outputs hold
    python tools/readme.py --check    # only tell whether they are up to date; exit status 1 if not

Links to the project's own address, in every notebook, get the user of settings.ini; OWNER stands for one that is missing.
"""
import base64
import difflib
import json
import posixpath
import re
import sys
from configparser import ConfigParser
from pathlib import Path

from check_notebooks import notebooks

ROOT = Path(__file__).resolve().parent.parent
NBS, README = ROOT / 'nbs', ROOT / 'README.md'
NOTE = '<!-- Written by `make readme` from nbs/index.ipynb: edit that. -->\n\n'
DIRECTIVE = re.compile(r'^\s*#\s*\|.*\n?', re.M)
# [text](target), [name]: target at a line's start, and src="target" or href="target"
LINK = re.compile(r'(\]\(|^\[[^]]+\]:\s+|\b(?:src|href)=")([^)\s"]+)', re.M)
END = '<!-- README ends here -->'     # a Markdown cell that begins so, and all below it, are the index's alone
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


def settings():
    "The settings of the project, `user` never empty"
    config = ConfigParser()
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    return dict(config['DEFAULT']) | dict(user=config['DEFAULT']['user'] or 'OWNER')


def addressed(text, cfg):
    "`text` with the user of `cfg` in its links to this repository: on GitHub, Colab and Binder"
    return re.sub(rf'((?:github\.com|/github|/gh)/)[\w.-]+/{cfg["repo"]}\b', rf'\g<1>{cfg["user"]}/{cfg["repo"]}', text)


def in_a_browser(name, cfg):
    "Where a notebook of nbs/ opens without an installation: Colab, Binder"
    at = f'{cfg["user"]}/{cfg["repo"]}'
    return (f'https://colab.research.google.com/github/{at}/blob/{cfg["branch"]}/nbs/{name}.ipynb',
            f'https://mybinder.org/v2/gh/{at}/{cfg["branch"]}?urlpath=lab/tree/nbs/{name}.ipynb')


def badge(left, right):
    "Two words as an SVG of our own: nothing is asked of another host"
    a, b = (12 + 7 * len(word) for word in (left, right))
    word = lambda x, text: f'<text x="{x}" y="14" text-anchor="middle">{text}</text>'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{a + b}" height="20" role="img" aria-label="{left}: {right}">'
            f'<rect width="{a}" height="20" fill="#555"/><rect x="{a}" width="{b}" height="20" fill="#2a6f97"/>'
            f'<g fill="#fff" font-family="DejaVu Sans Mono,Menlo,Consolas,monospace" font-size="11">{word(a / 2, left)}{word(a + b / 2, right)}</g></svg>\n').encode()


def badges(cfg, pictures):
    "The line of badges; those that we draw go to `pictures`. The tests' is the workflow's own, once there is an address."
    versions = re.search(r'python: \[(.*)\]', (ROOT / '.github' / 'workflows' / 'test.yaml').read_text(encoding='utf-8'))[1]
    first, *_, last = re.findall(r'[\d.]+', versions)
    colab, binder = in_a_browser('00_start', cfg)
    workflow = f'https://github.com/{cfg["user"]}/{cfg["repo"]}/actions/workflows/test.yaml'
    shown = []
    for name, left, right, target in (('tests', 'tests', 'workflow', '.github/workflows/test.yaml'), ('license', 'license', 'Apache-2.0', 'LICENSE'),
                                      ('python', 'python', f'{first}-{last}', 'settings.ini'), ('colab', 'open in', 'Colab', colab),
                                      ('binder', 'open in', 'Binder', binder)):
        if name == 'tests' and cfg['user'] != 'OWNER': shown.append(f'[![tests]({workflow}/badge.svg)]({workflow})')
        else:
            pictures[path := f'nbs/images/readme-badge-{name}.svg'] = badge(left, right)
            shown.append(f'[![{left} {right}]({path})]({target})')
    return ' '.join(shown)


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
    parts, pictures, cfg = [], {}, settings()
    for cell in nb['cells']:
        source = addressed(''.join(cell['source']), cfg)
        if source.startswith(END): break
        if re.search(r'^\s*#\s*\|\s*hide\b', source, re.M): continue
        if cell['cell_type'] == 'markdown':
            parts.append(relink(source).strip())
            if len(parts) == 1: parts.append(badges(cfg, pictures))
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
    paths = [p for p in [README, *sorted((NBS / 'images').glob('readme-*'))] if p.exists()]
    return {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in paths}


def elsewhere():
    "Notebooks whose links to this repository name another user than settings.ini"
    texts = {path: path.read_text(encoding='utf-8') for path in notebooks(NBS)}
    return [path for path, text in texts.items() if addressed(text, settings()) != text]


def check(files):
    "Exit with a message and a difference if `files` are not what is stored."
    old = stored()
    stale = [path for path in sorted({*files, *old}) if files.get(path) != old.get(path)]
    stale += [f'links of {path.name}' for path in elsewhere()]
    if not stale: return print('README.md is up to date')
    lines = [side.get('README.md', b'').decode().splitlines(True) for side in (old, files)]
    sys.stdout.writelines(difflib.unified_diff(*lines, 'README.md', 'what nbs/index.ipynb gives'))
    sys.exit(f'Out of date: {", ".join(stale)}. Edit nbs/index.ipynb, never README.md; then run: make readme')


def write(files):
    for path in stored().keys() - files.keys(): (ROOT / path).unlink()
    for path, content in files.items():
        (ROOT / path).parent.mkdir(exist_ok=True)
        (ROOT / path).write_bytes(content)
    for path in elsewhere(): path.write_text(addressed(path.read_text(encoding='utf-8'), settings()), encoding='utf-8')
    print(f'Wrote {", ".join(files)}')


if __name__ == '__main__':
    made = render(json.loads((NBS / 'index.ipynb').read_text(encoding='utf-8')))
    if sys.argv[1:] == ['--check']: check(made)
    elif sys.argv[1:]: sys.exit('Only --check is understood; without it, README.md is written')
    else: write(made)
