"""Removes widgets from stored notebooks: errors where there is no kernel, and nbdev_clean keeps them.

    python tools/strip_widgets.py
"""
import json
from pathlib import Path

from check_notebooks import notebooks

NBS = Path(__file__).resolve().parent.parent / 'nbs'
VIEW = 'application/vnd.jupyter.widget-view+json'


def strip(nb):
    "Take the widgets' state and views out of `nb`; whether there were any."
    views = [o['data'].pop(VIEW) for c in nb['cells'] for o in c.get('outputs', []) if VIEW in o.get('data', {})]
    return bool(views) | (nb['metadata'].pop('widgets', None) is not None)


def main():
    for path in notebooks(NBS):
        nb = json.loads(path.read_text(encoding='utf-8'))
        if strip(nb):
            text = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)
            path.write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__': main()
