"""The structure of the library: which module stands on which, how large each is, and a picture of it.

    python tools/house.py                 # floors, sizes, what each module stands on
    python tools/house.py --draw          # the picture in CONTRIBUTING.md: nbs/images/house.png
"""
import argparse
import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIB = ROOT / 'ltpa'
MOST_LINES = 400
# From the ground up. A module may import only from floors below its own, or from the left of it on the same floor.
FLOORS = {
    'ground': 'moved text names grids formats system core files weights exercises photographs',
    'pictures': 'attention readers inputs fits data',
    'sources': 'arrays walker tables splits folders downloads published',
    'networks': 'registry models zoo taps resnets interrupts training pruning foreign backbones checkpoints recipes distributed scores history',
    'maps': 'maps widgets explorer saliency answers gallery metrics faithfulness report',
    'experiments': 'runs transfer segmentation adversarial query studies measures reproduce claims export hub',
    'roof': 'examples cli scaling __main__'}
ORDER = [name for floor in FLOORS.values() for name in floor.split()]
ROOF = FLOORS['roof'].split()


def modules():
    "Paths of the library's modules by name, as 'core' or 'checks.maps'."
    found = {'.'.join(p.relative_to(LIB).with_suffix('').parts): p for p in sorted(LIB.rglob('*.py'))}
    return {name: p for name, p in found.items() if name.split('.')[-1] not in ('__init__', '_modidx')}


def imports(path):
    "Names of the library's modules that the file imports, anywhere in it."
    inside = len(path.relative_to(LIB).parts)                # how many dots lead to `ltpa` itself
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): found |= {a.name[5:] for a in node.names if a.name.startswith('ltpa.')}
        if not isinstance(node, ast.ImportFrom): continue
        module = node.module or ''
        if node.level == inside: full = module
        elif node.level == 0 and module.split('.')[0] == 'ltpa': full = module[5:]
        elif node.level: full = '.'.join([*path.relative_to(LIB).parent.parts, module])
        else: continue
        found |= {full} if full else {a.name for a in node.names}
    return found & set(modules())


def graph(): return {name: imports(path) for name, path in modules().items()}


def code_lines(path):
    "Lines that are neither empty nor a comment nor part of a docstring."
    text = path.read_text(encoding='utf-8')
    doc = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            doc |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(bool(line.strip()) and not line.strip().startswith('#') and number not in doc
               for number, line in enumerate(text.splitlines(), 1))


def circles(edges):
    "Modules that stand on themselves, by whatever way."
    def below(name, seen):
        for other in edges[name] - seen: seen |= {other} | below(other, seen | {other})
        return seen
    return sorted(name for name in edges if name in below(name, set()))


def upwards(edges):
    "Imports (from, to) against the order of the floors."
    place = {name: k for k, name in enumerate(ORDER)}
    return sorted((name, other) for name, others in edges.items() if name in place
                  for other in others if place.get(other, len(ORDER)) >= place[name])


def draw(path):
    "One row a floor, the roof on top; a line from each module to what it imports directly and not through another."
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    edges = {name: others for name, others in graph().items() if name in ORDER}
    def wide(row): return min(1.9, 19 / len(row.split()))                # a long row stands closer
    at = {name: (wide(row) * (k - (len(row.split()) - 1) / 2), 1.7 * floor)
          for floor, row in enumerate(FLOORS.values()) for k, name in enumerate(row.split()) if name in edges}
    fig, ax = plt.subplots(figsize=(14, 8.7))
    for floor, name in enumerate(FLOORS):
        ax.axhspan(1.7 * floor - .62, 1.7 * floor + .62, color='#f2efe8' if floor % 2 else '#e6eef5', zorder=0)
        ax.text(-12.2, 1.7 * floor, name, va='center', fontsize=10, color='#555555')
    edges = {name: others - {'moved'} for name, others in edges.items()}             # old names: nobody's story
    direct = {name: others - set().union(*(edges[o] for o in others), set()) for name, others in edges.items()}
    for name, others in direct.items():
        for other in others:
            ax.annotate('', at[other], at[name], zorder=1, arrowprops=dict(
                arrowstyle='-|>', color='#8a8a8a', lw=.8, shrinkA=13, shrinkB=13,
                connectionstyle='arc3,rad=-.35' if at[name][1] == at[other][1] else 'arc3,rad=.05'))
    for name, (x, y) in at.items():
        ax.text(x, y, f'{name}\n{code_lines(modules()[name])}', ha='center', va='center', fontsize=8.5, zorder=2,
                bbox=dict(boxstyle='round,pad=.3', fc='white', ec='#30507a'))
    ax.set(xlim=(-12.4, 10.2), ylim=(-.8, 1.7 * (len(FLOORS) - 1) + .8)); ax.axis('off')
    fig.savefig(path, dpi=110, bbox_inches='tight', metadata={'Software': None})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--draw', action='store_true', help='write nbs/images/house.png')
    if p.parse_args().draw: return draw(ROOT / 'nbs' / 'images' / 'house.png')
    edges, paths = graph(), modules()
    for floor, row in FLOORS.items():
        print(floor)
        for name in row.split():
            if name in edges:
                print(f'  {name:14} {code_lines(paths[name]):4}  {" ".join(sorted(edges[name], key=ORDER.index))}')


if __name__ == '__main__': main()
