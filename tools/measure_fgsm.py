#!/usr/bin/env python3
"""Attack trained networks and write `results/fgsm.json`: curves, controls, checks that keep FGSM honest.

    python tools/measure_fgsm.py                   # four kinds of network, three seeds each (8 minutes)
    python tools/measure_fgsm.py --seeds 0         # one seed
    python tools/measure_fgsm.py --weights A B --data cub --name fgsm_cub

Networks that are missing under runs/studies are trained first. Files of one model are its seeds.
"""
import torch
from measure import ROOT

from ltpa.adversarial import fgsm_curve, strong_attacks
from ltpa.core import keyed_rng, pick_device
from ltpa.files import provenance
from ltpa.models import load_weights
from ltpa.names import LtpaError
from ltpa.runs import open_source
from ltpa.studies import ATT3, Study, run_command, run_study, study_parser, trained, weights_digest

SETTINGS = dict(images=(1000, 'for the curves'), few=(64, 'for the slower attacks'), steps=(50, 'of PGD'),
                restarts=(5, 'of PGD'), queries=(100, 'of Square'))


def pictures(net, data, n):
    "`n` pictures of the test set in 0..1, the same whatever the network, labels, masks if there are any"
    how = net.info.get('source') or {}
    if data: how = dict(source=data, size=how.get('size'), scale=None)
    if not how.get('source'):
        raise LtpaError('the weights do not say what they were trained on; name a set by --data')
    test = open_source(how, 'test')
    some = torch.randperm(len(test), generator=keyed_rng('fgsm'))[:n]
    images, masks = test.render(some) if hasattr(test, 'render') else (test.images[some], None)
    return test, images / 255, test.labels[some], masks


def other(nets, net):
    "Whose pictures are tried on `net`: another kind of network of the same seed, the trunk if there is one"
    others = [n for n in nets if n.name != net.name and n.info.get('seed') == net.info.get('seed')]
    return min(others, key=lambda n: n.name != 'vgg_trunk', default=None)


def study(nets, device, a):
    test, images, labels, masks = pictures(nets[0], a.data, a.images)
    x, y = images.to(device), labels.to(device)
    options = {k: getattr(a, k) for k in SETTINGS}
    how = {k: options[k] for k in ('steps', 'restarts', 'queries')}

    def row(case, seed):
        rows = []
        for net in (n for n in nets if (n.name, n.info.get('seed')) == (case['model'], seed)):
            rows += fgsm_curve(net, x, y, masks)
            for e in a.few_eps:
                rows += strong_attacks(net, x[:a.few], y[:a.few], e / 255, other(nets, net), **how)
        return rows

    title = (f'{test.name}: answers changed (fooled) and right ones left (standing), '
             'by attack and size in 1/255')
    return Study('fgsm', title, [dict(model=m) for m in dict.fromkeys(n.name for n in nets)], row,
                 ('model', 'attack', 'eps', 'few', 'images'), [n.info.get('seed') for n in nets],
                 record=lambda seeds, seconds: provenance(
                     device=device, data=test.fingerprint, seconds=seconds,
                     weights=[weights_digest(net) for net in nets], settings=options))


def main(argv=None):
    p = study_parser(__doc__, [0, 1, 2], name=('fgsm', 'of the file in results/'), device=('auto', 'where'),
                     **SETTINGS)
    p.add_argument('--weights', nargs='+', help='default: those of the study `controls`, and plain VGG')
    p.add_argument('--data', help='a set or its path; default: what the first network was trained on')
    p.add_argument('--few-eps', type=int, nargs='+', default=[2], help='for the slower attacks, in 1/255')
    a = p.parse_args(argv)
    device, runs = pick_device(a.device), ROOT / 'runs' / 'studies'
    files = a.weights or [trained(f'cluttered_fashion/{m}', 'small', s, runs) / 'weights.safetensors'
                          for m in (*ATT3, 'vgg') for s in a.seeds]
    nets = [load_weights(f, device) for f in files]
    run_study(study(nets, device, a), out=ROOT / 'results' / f'{a.name}.json')


if __name__ == '__main__': run_command(main)
