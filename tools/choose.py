#!/usr/bin/env python3
"""Choose a recipe without looking at test data: train on nine tenths of a training set, compare on the last tenth.

    python tools/choose.py cluttered_fashion          # optimisers and learning rates, att3 pc, size small
    python tools/choose.py cluttered_fashion --model vgg_att2_concat_dp        # temperatures of dp
    python tools/choose.py cifar10 --passes 8         # LTPA_DATA says where CIFAR-10 is
    python tools/choose.py cifar10 --model vgg_att3_concat_pc --passes 4 --starts .01 .1 .3 1      # where u starts

In ClutteredFashion the tenth that is held out has objects and photographs of its own, as the test part has.
"""
import argparse
from dataclasses import asdict

import torch

from ltpa.names import LtpaError
from ltpa.attention import entropy
from ltpa.core import keep_buffers, seed_everything
from ltpa.files import provenance, save_result
from ltpa.data import ClutteredFashion, ImageSet, _ingredients, _photo_levels
from ltpa.published import open_data
from ltpa.models import create_model
from ltpa.recipes import plan
from ltpa.training import Learner, evaluate, predict
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


def measured(net, held):
    "Accuracy on what was held out, and for each level the effective cells, as a share of all cells"
    images = held.images[:500] if isinstance(held, ImageSet) else held.render()[0][:500]
    cells = {f'cells_{k}': round(float((entropy(a).exp() / a[0].numel()).mean()), 4)
             for k, a in enumerate(predict(net, images)[1], 1)}
    return evaluate(net, held, precision='auto') | cells


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('set', choices=MODEL)
    p.add_argument('--model', help='default: att3 pc, on CIFAR-10 att2 pc')
    p.add_argument('--passes', type=int, help='default: those of the size')
    p.add_argument('--seeds', type=int, nargs='+', default=[0])
    p.add_argument('--starts', type=float, nargs='+', metavar='SD',
                   help='compare deviations of u at the start, and not recipes')
    a = p.parse_args()
    keep_buffers()                                   # the process is ours: trainings are faster
    model, rows = a.model or MODEL[a.set], []
    train, held = hold_out(open_data(a.set, 'train'))
    dp = model.endswith('_dp')
    of_net = [dict(u=sd) for sd in a.starts] if a.starts else [dict(temperature=t) for t in TEMPERATURES] if dp else []
    for candidate in of_net or CANDIDATES:
        for seed in a.seeds:
            run = plan(f'{a.set}/{model}', net=candidate if of_net else {},
                       changes=({} if of_net else candidate) | ({'epochs': a.passes} if a.passes else {}))
            seed_everything(seed)
            net = create_model(model, len(train.classes), **run.net)
            Learner(net, train, run.recipe, seed).fit()
            rows.append(candidate | dict(seed=seed, passes=run.recipe.epochs) | measured(net, held))
            print(rows[-1], flush=True)
    record = provenance(device='cpu', net=net.config, recipe=asdict(run.recipe), train=len(train), held_out=len(held))
    what = 'starts of u' if a.starts else 'temperatures' if dp else 'recipes'
    title = (f'{a.set}/{model}: {what} compared on a tenth of the training part, '
             'never trained on')
    path = save_result(ROOT / 'results' / f'choose_{a.set}{"_u" if a.starts else "_dp" * dp}.json', title, rows, record)
    print(f'wrote {path.relative_to(ROOT)}')


if __name__ == '__main__':
    try: main()
    except LtpaError as e: raise SystemExit(f'choose: {e}')
