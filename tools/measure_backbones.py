#!/usr/bin/env python3
"""What attention brings on a frozen ImageNet backbone, on real photographs: results/backbones.json.

    python tools/measure_backbones.py DIR             # DIR/train/CLASS/FILE and DIR/test/CLASS/FILE, e.g. of Caltech-101
    python tools/measure_backbones.py DIR --side 224 --seeds 0 1 2

The backbone, EfficientNet-Lite0, sees each picture and its mirror image once; what sits on it is trained on these
features. All arms share features, recipe and seeds, so a difference of two arms is paired. The recipe's rate was chosen on
a fifth of the training part, with the plain linear head and pc.

A head that learns for twenty epochs may stop short of what its descriptors hold, and another arm's may not. So each arm
has a second number, `refit`: its descriptors stay as they are, and a logistic regression, its strength chosen by
cross-validation on the training part, takes the head's place. Half an hour on two cores.
"""
import time
from dataclasses import asdict

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

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
STRENGTHS = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.]       # C of the logistic regression


def refit(train, labels, test):
    "What a logistic regression on descriptors [N,C] says of others, and its C; copies of a picture stay in one fold"
    copies = len(train) // len(labels)
    y, pictures = np.tile(labels, copies), np.tile(np.arange(len(labels)), copies)
    search = GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
                          dict(logisticregression__C=STRENGTHS), cv=StratifiedGroupKFold(3, shuffle=True, random_state=0))
    search.fit(train, y, groups=pictures)
    return search.predict(test), search.best_params_['logisticregression__C']


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

    def outputs(net, l, g):
        with torch.no_grad(): return [net.of_features([a[i] for a in l], g[i]) for i in torch.arange(len(g)).split(500)]

    def described(parts): return torch.cat([torch.cat(out.descriptors, 1) for out in parts]).float().numpy()

    def row(case, seed):
        start, net = time.monotonic(), built(case, seed)
        fit_heads(net, seen, train.labels, recipe, seed)
        seconds = round(time.monotonic() - start, 1)
        parts = outputs(net, l, g)
        right = torch.cat([out.logits.argmax(1) for out in parts]) == test.labels
        said, strength = refit(described(outputs(net, *seen)), train.labels.numpy(), described(parts))
        found = dict(accuracy=round(right.float().mean().item(), 4), seconds=seconds,
                     refit=round(float((said == test.labels.numpy()).mean()), 4), strength=strength,
                     parameters=sum(p.numel() for p in net.parameters() if p.requires_grad))
        for k in range(len(parts[0].maps)):
            a = torch.cat([out.maps[k] for out in parts])
            found[f'cells_{k + 1}'] = round(float((entropy(a).exp() / a[0].numel()).mean()), 4)
        return [found]

    def finish(runs, record):
        rows = summarize(runs, ['arm'], ['accuracy', 'refit', 'cells_1', 'cells_2', 'seconds'], keep=('scores', 'temperature', 'parameters'))
        return dict(rows=rows, runs=runs, **{name: [paired(runs, a, b, value, 'arm') for a, b in PAIRS]
                                             for name, value in (('differences', 'accuracy'), ('refit_differences', 'refit'))})

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
