#!/usr/bin/env python3
"""How many foreign pictures a network warns of, and how many of its own: `results/foreign.json`.

    python tools/measure_foreign.py                       # LTPA_DATA says where CIFAR-10 and CIFAR-100 are
    python tools/measure_foreign.py --caltech FOLDER      # and photographs: FOLDER/train/CLASS/IMAGE, FOLDER/test/…
    python tools/measure_foreign.py --models cluttered_fashion/vgg_gap

Two things are kept apart. `choice`: rules compared on pictures of training parts alone, to choose one. `rows`: the
rule that was chosen, `ltpa.foreign`, on test parts that no choice was made on (`auroc`: against its own test part, of
photographs against those of its classes). `sides`: the answers of CIFAR-10's networks about photographs of their ten
classes, at several sides, on Caltech-101's train part to choose a side and on its test part to say what it gives. A class that may or may not be one of CIFAR-10's is left out of both piles.

Of the bundled photographs, crops of three lie behind the objects of ClutteredFashion too: astronaut and coffee in its
training part, the cat in its test part.
"""
from pathlib import Path

import numpy as np
import torch
from measure import ROOT
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from ltpa.core import eval_mode, keyed_rng
from ltpa.data import ClutteredFashion
from ltpa.files import provenance
from ltpa.foreign import EVEN, FEW, evidence, evenness, fit_foreign, foreign
from ltpa.inputs import to_floats
from ltpa.maps import seen_by
from ltpa.models import load_pretrained
from ltpa.names import LtpaError
from ltpa.photographs import about_photographs, photograph
from ltpa.published import open_data
from ltpa.studies import Study, run_command, run_study, study_parser, weights_digest
from ltpa.training import predict

MODELS = [f'{data}/{model}' for data in ('cifar10', 'cluttered_fashion')
          for model in ('vgg_att3_concat_pc', 'vgg_att2_concat_dp', 'vgg_gap', 'vgg_trunk')]
SIDES = 32, 64, 96, 128                # multiples of the networks' stride
OF_TEN = {'airplanes': 'airplane', 'car_side': 'automobile', 'dalmatian': 'dog', 'ferry': 'ship', 'ketch': 'ship',
          'schooner': 'ship', **dict.fromkeys('emu flamingo flamingo_head ibis pigeon rooster'.split(), 'bird')}
# May be a cat, a deer or horse, a dog, a truck or an airplane to one eye and none to another
DOUBTFUL = dict(
    caltech='Leopards cougar_body cougar_face wild_cat garfield snoopy gerenuk okapi llama helicopter'.split(),
    cifar100='bus fox leopard lion pickup_truck streetcar tank tiger tractor wolf'.split())


# Pictures

def spread(images, n): return images[torch.linspace(0, len(images) - 1, min(n, len(images))).long()]


def noise(n, seed): return torch.randint(0, 256, (n, 3, 32, 32), generator=keyed_rng('noise', seed)).to(torch.uint8)


def cifar100(split, n):
    "Pictures of the classes that are surely none of CIFAR-10's"
    data = open_data('cifar100', split)
    other = [k for k, c in enumerate(data.classes) if c not in DOUBTFUL['cifar100']]
    if len(data.classes) - len(other) != len(DOUBTFUL['cifar100']):
        raise LtpaError(f'{data.name}: not all of {", ".join(DOUBTFUL["cifar100"])} are among its classes')
    return spread(data.images[torch.isin(data.labels, torch.tensor(other))], n)


def caltech(folder, split):
    "Paths of the photographs of a part by what they show: one of CIFAR-10's classes, or None for none of them"
    found = {}
    for place in sorted((folder / split).iterdir()):
        if place.name in DOUBTFUL['caltech']: continue
        found.setdefault(OF_TEN.get(place.name), []).extend(sorted(place.iterdir()))
    return found


def seen(net, paths, side): return torch.cat([predict(net, seen_by(net, p, side)[1])[0] for p in paths])


# Rules that were compared: what each makes of logits and descriptors; the larger, the more foreign

def outputs(net, images):
    with eval_mode(net), torch.no_grad():
        out = [net(to_floats(x, net)) for x in images.split(500)]
    return torch.cat([o.logits for o in out]).numpy(), torch.cat([torch.cat(o.descriptors, 1) for o in out]).numpy()


def rules(logits, descriptors, labels):
    "Fitted on pictures of the training"
    unit = lambda d: d / np.linalg.norm(d, axis=1, keepdims=True)
    means = np.stack([descriptors[labels == k].mean(0) for k in range(logits.shape[1])])
    shared = LedoitWolf().fit(descriptors - means[labels])
    near = NearestNeighbors(n_neighbors=10).fit(unit(descriptors))
    return {'energy': lambda z, d: -evidence(torch.from_numpy(z)).numpy(),
            'largest probability': lambda z, d: -torch.from_numpy(z).softmax(1).amax(1).numpy(),
            'largest logit': lambda z, d: -z.max(1),
            'Mahalanobis': lambda z, d: np.min([shared.mahalanobis(d - m) for m in means], axis=0),
            'cosine to the mean of a class': lambda z, d: -(unit(d) @ unit(means).T).max(1),
            'tenth neighbour': lambda z, d: near.kneighbors(unit(d))[0][:, -1]}


def compared(net, data, others, n):
    "Rows of `choice`: each rule on foreign pictures of training parts, its threshold at one in twenty of its own"
    images, labels = data.tensors(0)
    order = torch.randperm(len(images), generator=keyed_rng('choice', 0))
    fit, own = order[:n], order[n:2 * n]
    made = rules(*outputs(net, images[fit]), labels[fit].numpy())
    out = {k: outputs(net, x) for k, x in others.items()}
    for way, rule in made.items():
        ours = rule(*outputs(net, images[own]))
        for what, found in out.items():
            theirs = rule(*found)
            yield dict(way=way, pictures=what, n=len(theirs),
                       warned=float((theirs > np.quantile(ours, 1 - FEW)).mean()), auroc=auroc(theirs, ours))


def auroc(theirs, ours):
    return float(roc_auc_score(np.r_[np.ones(len(theirs)), np.zeros(len(ours))], np.r_[theirs, ours]))


# What the chosen rule does

def measured(net, own, others):
    "Rows: the share warned of as foreign, and for even maps, on its own test pictures and on others"
    def asked(images):
        logits, maps = predict(net, images)
        even = [bool(s) and min(s) > EVEN for s in (evenness([a[k:k + 1] for a in maps]) for k in range(len(images)))]
        return foreign(net, logits), float(np.mean(even)) if maps else None
    ranks, even = asked(own)
    yield dict(pictures='own test part', side=own.shape[2], n=len(own), warned=share(ranks), even=even)
    for what, images in others.items():
        found, even = asked(images)
        yield dict(pictures=what, side=images.shape[2], n=len(found), warned=share(found), even=even,
                   auroc=auroc(-found.numpy(), -ranks.numpy()))


def share(ranks): return float((ranks < FEW).float().mean())


def of_photographs(net, name, known, strange, sides):
    "Rows: photographs as `ltpa explain` shows them, of its classes and of none, at several sides"
    for side in sides:
        ours = foreign(net, seen(net, known, side)) if known else torch.ones(0)
        theirs = foreign(net, seen(net, strange, side))
        if known: yield dict(pictures=f'{name}, of the ten', side=side, n=len(ours), warned=share(ours))
        yield dict(pictures=f'{name}, foreign', side=side, n=len(theirs), warned=share(theirs)) | (
            dict(auroc=auroc(-theirs.numpy(), -ours.numpy())) if known else {})


def at_sides(net, folder, split):
    "Rows of `sides`: answers about photographs of the ten classes, the mean over the classes that they show"
    known = {k: v for k, v in caltech(folder, split).items() if k}
    for side in SIDES:
        right, ranks = {}, []
        for name, paths in known.items():
            logits = seen(net, paths, side)
            right[name] = float((logits.argmax(1) == net.info['classes'].index(name)).float().mean())
            ranks.append(foreign(net, logits))
        ranks = torch.cat(ranks)
        yield dict(part=split, side=side, n=len(ranks), accuracy=float(np.mean([*right.values()])),
                   warned=share(ranks)) | {f'accuracy_{k}': v for k, v in right.items()}


def load(name):
    net, data = load_pretrained(name), open_data(name.split('/')[0], 'train')
    net.info.setdefault('foreign', fit_foreign(net, data))
    return net, data


def row(case, seed, n, folder):
    name = case['model']
    (net, data), test = load(name), open_data(name.split('/')[0], 'test')
    own = spread(test.tensors(0)[0], n)
    fashion = {part: ClutteredFashion(part, n=n).render()[0] for part in ('train', 'test')}
    if name.startswith('cifar10'):
        trained = {'CIFAR-100': cifar100('train', n), 'ClutteredFashion': fashion['train'], 'noise': noise(500, 0)}
        tested = {'CIFAR-100': cifar100('test', n), 'ClutteredFashion': fashion['test'], 'noise': noise(500, 1)}
    else:
        trained, tested = ({'CIFAR-10': spread(open_data('cifar10', part).images, n), 'noise': noise(500, k)}
                           for k, part in enumerate(('train', 'test')))
    rows = [dict(kind='choice') | r for r in compared(net, data, trained, n)]
    rows += [dict(kind='row') | r for r in measured(net, own, tested)]
    of_cifar, about = name.startswith('cifar10'), about_photographs()
    known = [photograph(k) for k in about if about[k].shows and of_cifar]
    strange = [photograph(k) for k in about if not (about[k].shows and of_cifar)]
    sides = SIDES if of_cifar else (32,)
    rows += [dict(kind='row') | r for r in of_photographs(net, 'bundled photographs', known, strange, sides)]
    if folder and of_cifar:
        piles = caltech(folder, 'test')
        known = [p for k, paths in piles.items() if k for p in paths]
        rows += [dict(kind='row') | r for r in of_photographs(net, 'Caltech-101', known, piles[None], sides)]
        rows += [dict(kind='side') | r for part in ('train', 'test') for r in at_sides(net, folder, part)]
    return [dict(weights=weights_digest(net)) | r for r in rows]


def study(models, n, folder):
    def finish(runs, record):
        def of(kind): return [{k: round(v, 4) if isinstance(v, float) else v for k, v in r.items() if k != 'kind'}
                              for r in runs if r['kind'] == kind]
        return dict(rows=of('row'), choice=of('choice'), sides=of('side'))
    return Study('foreign', 'Foreign pictures that networks warn of, and their own', [dict(model=m) for m in models],
                 lambda case, seed: row(case, seed, n, folder), ('model',), (0,), finish=finish,
                 record=lambda seeds, seconds: provenance(seconds=seconds, threshold=FEW, even=EVEN,
                                                          doubtful=DOUBTFUL, of_ten=OF_TEN))


def main(argv=None):
    p = study_parser(__doc__, (), most=(3000, 'pictures of a kind'))
    p.add_argument('--models', nargs='+', default=MODELS, metavar='SET/MODEL', help='bundled networks')
    p.add_argument('--caltech', type=Path, metavar='FOLDER', help='photographs in train/CLASS and test/CLASS')
    p.add_argument('--out', default=ROOT / 'results/foreign.json', type=Path)
    a = p.parse_args(argv)
    run_study(study(a.models, a.most, a.caltech), None, a.out)


if __name__ == '__main__': run_command(main)
