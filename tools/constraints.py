"""Writes constraints.txt from pip's report of a resolution (`make constraints` makes that report).

    python tools/constraints.py build/resolved.json
"""
import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# The versions that the tests last passed with (Python {python}): pip install -c constraints.txt -e .[dev,site]
# Written by `make constraints`, which resolves settings.ini anew: do not edit by hand.
# CUDA's helper packages are not listed, since each PyTorch brings its own; a package that has left an older
# Python behind is pinned only for those that it still supports.
"""


def marker(requires, oldest):
    "The condition under which a release that `requires` some Python may be pinned; empty if it always may."
    minors = range(oldest, sys.version_info.minor + 1)
    first = next(m for m in minors if SpecifierSet(requires).contains(f'3.{m}.99'))
    return '' if first == oldest else f' ; python_version >= "3.{first}"'


def main(report):
    config = ConfigParser()
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    cfg = config['DEFAULT']
    oldest = int(cfg['min_python'].split('.')[1])
    lines = []
    for item in json.loads(Path(report).read_text(encoding='utf-8'))['install']:
        meta = item['metadata']
        name = re.sub(r'[-_.]+', '-', meta['name']).lower()
        if name.startswith((cfg['lib_name'], 'nvidia-', 'cuda-', 'triton')): continue
        version = meta['version'].split('+')[0]  # '2.14.1+cpu' names one machine's build
        lines.append(f"{name}=={version}{marker(meta.get('requires_python', ''), oldest)}\n")
    python = '.'.join(map(str, sys.version_info[:2]))
    text = HEAD.format(python=python) + ''.join(sorted(lines))
    (ROOT / 'constraints.txt').write_text(text, encoding='utf-8')
    print(f'constraints.txt: {len(lines)} versions')


if __name__ == '__main__':
    if len(sys.argv) != 2: sys.exit('Give the report of pip install --dry-run, or run: make constraints')
    main(sys.argv[1])
