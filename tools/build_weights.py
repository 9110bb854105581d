#!/usr/bin/env python3
"""Bundle trained weights: `ltpa/assets/weights/cluttered_fashion/*.safetensors`, their scores and a model card.

    python tools/build_weights.py         # trains what is not trained yet: five networks, about three minutes each

Takes seed 0 of each network as it is: the seed was fixed beforehand, no run was picked.
"""
import json
import shutil
from pathlib import Path

from ltpa.attention import entropy
from ltpa.data import ClutteredFashion
from ltpa.models import load_weights
from ltpa.studies import evaluated, trained
from ltpa.training import predict

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / 'ltpa' / 'assets' / 'weights' / 'cluttered_fashion'
MODELS = 'vgg_att2_concat_pc', 'vgg_att2_concat_dp', 'vgg_att3_concat_pc', 'vgg_gap', 'vgg_trunk'

CARD = """# Bundled networks

Trained on the training part of `ClutteredFashion` (32x32, standard scale), measured on its test part: objects
and photographs that no training picture shows. Seed 0, last epoch; the spread over seeds is in
`results/controls.json`. Optimiser, learning rate and the temperature of `dp` were chosen on a held-out tenth of the
training part (`results/choose_*.json`). The standard scale and the number of passes were set before that, in trials
of `vgg_att3_concat_pc` that looked at test accuracy; all networks share them.

| network | test accuracy | brightest point on the object, by level | effective cells, by level | parameters | commit |
|---|---|---|---|---|---|
{rows}

**Made by** `ltpa train cluttered_fashion/MODEL --size small --seed 0`, at the commit in the table; a `+` says that files
differed from it.
**Recipe:** {recipe}.
**Effective cells** is the exponential of a map's mean entropy over 500 test pictures. The scores of `dp` are divided
by 8; without that, as in the paper, they saturate with this recipe, and the maps are one cell.
**For** the lessons of the course, and as a small example of trained attention. **Not for** recognising clothes in
earnest: the training set is a collage of 28-pixel product photographs.
**Files:** safetensors, matrices in float16. **Licence:** Apache-2.0, as the code.
"""


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    scores, lines = {}, []
    images, _ = ClutteredFashion('test', n=500).render()
    for model in MODELS:
        folder = trained(f'cluttered_fashion/{model}', 'small', root=ROOT / 'runs' / 'studies')
        result = evaluated(folder)
        shutil.copy(folder / 'weights.safetensors', OUT / f'{model}.safetensors')
        row, record = result['rows'][0], result['provenance']
        scores[model] = row | dict(provenance=record)
        hits = ', '.join(f'{row[k]:.1%}' for k in sorted(row) if k.startswith('pointing'))
        maps = predict(load_weights(OUT / f'{model}.safetensors'), images)[1]
        cells = ', '.join(f'{entropy(a).mean().exp():.1f} of {a[0].numel()}' for a in maps)
        lines.append(f'| `{model}` | {row["accuracy"]:.1%} | {hits or "no maps"} | {cells or "no maps"} | '
                     f'{row["parameters"]:,} | {record["commit"]} |')
    recipe = ', '.join(f'{k} {v}' for k, v in record['recipe'].items() if v not in (0., False))
    (OUT / 'scores.json').write_text(json.dumps(scores, indent=1) + '\n')
    (OUT / 'README.md').write_text(CARD.format(rows='\n'.join(lines), recipe=recipe))
    print('\n'.join(lines))


if __name__ == '__main__': main()
