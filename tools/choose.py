#!/usr/bin/env python3
"""Choose a recipe without looking at test data: train on nine tenths of a training set, compare on the last tenth.

    python tools/choose.py cluttered_fashion          # optimisers and learning rates, att3 pc, size small
    python tools/choose.py cluttered_fashion --model vgg_att2_concat_dp        # temperatures of dp
    python tools/choose.py cifar10 --passes 8         # LTPA_DATA says where CIFAR-10 is

In ClutteredFashion the tenth that is held out has objects and photographs of its own, as the test part has.
"""
import argparse
from dataclasses import asdict

import torch

from ltpa.names import LtpaError
from ltpa.core import keep_buffers, seed_everything
from ltpa.files import provenance, save_result
from ltpa.data import ClutteredFashion, ImageSet, _ingredients, _photo_levels
from ltpa.published import open_data
from ltpa.models import create_model
from ltpa.recipes import plan
from ltpa.training import Learner, evaluate
from measure import ROOT

CANDIDATES = [dict(optimizer='sgd', lr=.1, weight_decay=5e-4, nesterov=True), dict(optimizer='adamw', lr=.004),
              dict(optimizer='muon', lr=.002), dict(optimizer='muon', lr=.004), dict(optimizer='muon', lr=.008)]
TEMPERATURES = 1., 8.
MODEL = dict(cluttered_fashion='vgg_att3_concat_pc', cifar10='vgg_att2_concat_pc')


def hold_out(data, share=.1):
    "Two disjoint parts of a training set: the larger to train on, the smaller to compare on"
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    k = int(len(data) * share)
    if isinstance(data, ImageSet):
        return [ImageSet(data.images[i], data.labels[i], data.classes, data.name) for i in (order[k:], order[:k])]
    photos = list(_ingredients('train')[-1].items())
    few = max(1, int(len(photos) * share))
    return [part(order[k:], dict(photos[few:])), part(order[:k], dict(photos[:few]))]


def part(items, photos):
    "ClutteredFashion's training part with some of its objects on some of its photographs"
    data = ClutteredFashion('train')
    data.item, data.labels, data.photos = items, data.labels[items], list(photos)
    data._levels = _photo_levels(photos, data.size)
    return data


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('set', choices=MODEL)
    p.add_argument('--model', help='default: att3 pc, on CIFAR-10 att2 pc')
    p.add_argument('--passes', type=int, help='default: those of the size')
    p.add_argument('--seeds', type=int, nargs='+', default=[0])
    a = p.parse_args()
    keep_buffers()                                   # the process is ours: trainings are faster
    model, rows = a.model or MODEL[a.set], []
    train, held = hold_out(open_data(a.set, 'train'))
    dp = model.endswith('_dp')
    for candidate in [dict(temperature=t) for t in TEMPERATURES] if dp else CANDIDATES:
        for seed in a.seeds:
            run = plan(f'{a.set}/{model}', net=candidate if dp else {},
                       changes=({} if dp else candidate) | ({'epochs': a.passes} if a.passes else {}))
            seed_everything(seed)
            net = create_model(model, len(train.classes), **run.net)
            Learner(net, train, run.recipe, seed).fit()
            rows.append(candidate | dict(seed=seed, passes=run.recipe.epochs) | evaluate(net, held, precision='auto'))
            print(rows[-1], flush=True)
    record = provenance(device='cpu', net=net.config, recipe=asdict(run.recipe), train=len(train), held_out=len(held))
    title = (f'{a.set}/{model}: {"temperatures" if dp else "recipes"} compared on a tenth of the training part, '
             'never trained on')
    path = save_result(ROOT / 'results' / f'choose_{a.set}{"_dp" * dp}.json', title, rows, record)
    print(f'wrote {path.relative_to(ROOT)}')


if __name__ == '__main__':
    try: main()
    except LtpaError as e: raise SystemExit(f'choose: {e}')
