"""Tidies stored notebooks beyond nbdev_clean: takes widgets out, and hides in JupyterLab what is meant to be hidden.

    python tools/tidy.py

A widget without its kernel is an error on the page, and nbdev_clean keeps it. Cells that begin with `#| hide` or
`#| code-fold` are hidden on the site by Quarto; JupyterLab hides them for `"source_hidden"` in their metadata.
"""
import json
from pathlib import Path

from check_notebooks import meant_hidden, notebooks, store

NBS = Path(__file__).resolve().parent.parent / 'nbs'
VIEW = 'application/vnd.jupyter.widget-view+json'


def strip(nb):
    "Take the widgets' state and views out of `nb`; whether there were any."
    views = [o['data'].pop(VIEW) for c in nb['cells'] for o in c.get('outputs', []) if VIEW in o.get('data', {})]
    return bool(views) | (nb['metadata'].pop('widgets', None) is not None)


def hide(nb):
    "Hide the source of each cell that is meant to be hidden, show that of all others; whether any changed."
    changed = False
    for c in nb['cells']:
        want = dict(jupyter=dict(source_hidden=True)) if meant_hidden(c) else {}
        kept = {k: v for k, v in c['metadata'].items() if k != 'jupyter'}
        changed |= c['metadata'] != kept | want
        c['metadata'] = kept | want
    return changed


def main():
    for path in notebooks(NBS):
        nb = json.loads(path.read_text(encoding='utf-8'))
        if strip(nb) | hide(nb): store(path, nb)


if __name__ == '__main__': main()
