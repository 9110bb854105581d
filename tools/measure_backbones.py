#!/usr/bin/env python3
"""What attention brings on a frozen ImageNet backbone, on real photographs: results/backbones.json.

    python tools/measure_backbones.py DIR             # DIR/train/CLASS/FILE and DIR/test/CLASS/FILE, e.g. of Caltech-101
    python tools/measure_backbones.py DIR --side 224 --seeds 0 1 2

The backbone, EfficientNet-Lite0, sees each picture and its mirror image once; what sits on it is trained on these
features. All arms share features, recipe and seeds, so a difference of two arms is paired. The recipe's rate was chosen on
a fifth of the training part, with the plain linear head and pc. Twenty minutes on two cores.
"""
import time
from dataclasses import asdict

import torch

from ltpa.attention import entropy
from ltpa.backbones import attach, backbone_features, fit_heads
from ltpa.core import seed_everything
from ltpa.files import provenance
from ltpa.names import get_recipe
from ltpa.published import open_data
from ltpa.studies import Study, paired, run_command, run_study, study_parser, summarize
from ltpa.zoo import open_backbone
from measure import ROOT

ARMS = [dict(arm='linear', scores='head'), dict(arm='uniform', scores='uniform'), dict(arm='pc', scores='pc'),
        dict(arm='dp', scores='dp'), dict(arm='dp, softened', scores='dp', temperature=512.)]
PAIRS = [('uniform', 'linear'), ('pc', 'linear'), ('dp', 'linear'), ('pc', 'uniform'), ('dp', 'uniform'), ('dp, softened', 'uniform'),
         ('dp, softened', 'dp')]


def study(folder, side):
    train, test = (open_data(folder, split, side) for split in ('train', 'test'))
    backbone, recipe = open_backbone('efficientnet_lite0'), get_recipe('heads')

    def built(case, seed):
        seed_everything(seed)
        kw = {k: v for k, v in case.items() if k != 'arm'}
        return attach(backbone, len(train.classes), frozen=True, verbose=False, **kw)

    start = time.monotonic()
    seen = backbone_features(built(ARMS[2], 0), train.images, flip=True)
    l, g = backbone_features(built(ARMS[2], 0), test.images)
    features = round(time.monotonic() - start)

    def row(case, seed):
        start, net = time.monotonic(), built(case, seed)
        fit_heads(net, seen, train.labels, recipe, seed)
        seconds = round(time.monotonic() - start, 1)
        with torch.no_grad(): parts = [net.of_features([a[i] for a in l], g[i]) for i in torch.arange(len(g)).split(500)]
        right = torch.cat([out.logits.argmax(1) for out in parts]) == test.labels
        found = dict(accuracy=round(right.float().mean().item(), 4), seconds=seconds,
                     parameters=sum(p.numel() for p in net.parameters() if p.requires_grad))
        for k in range(len(parts[0].maps)):
            a = torch.cat([out.maps[k] for out in parts])
            found[f'cells_{k + 1}'] = round(float((entropy(a).exp() / a[0].numel()).mean()), 4)
        return [found]

    def finish(runs, record):
        rows = summarize(runs, ['arm'], ['accuracy', 'cells_1', 'cells_2', 'seconds'], keep=('scores', 'temperature', 'parameters'))
        return dict(rows=rows, runs=runs, differences=[paired(runs, a, b, 'accuracy', 'arm') for a, b in PAIRS])

    def record(seeds, seconds):
        return provenance(seeds=seeds, seconds=seconds, recipe=asdict(recipe), backbone='efficientnet_lite0', side=side,
                          taps=built(ARMS[2], 0).tap_names, feature_seconds=features, train=len(train), test=len(test),
                          data=[train.fingerprint, test.fingerprint])
    title = f'{train.name.split("/")[0]}, {side} px, on a frozen EfficientNet-Lite0: accuracy of what sits on it, after the last epoch'
    return Study('backbones', title, ARMS, row, ['arm'], finish=finish, record=record)


def main(argv=None):
    p = study_parser(__doc__, None)
    p.add_argument('folder')
    p.add_argument('--side', type=int, default=128)
    a = p.parse_args(argv)
    run_study(study(a.folder, a.side), a.seeds and sorted(a.seeds), ROOT / 'results' / 'backbones.json')


if __name__ == '__main__': run_command(main)
