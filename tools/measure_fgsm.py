#!/usr/bin/env python3
"""Attack trained networks and write `results/fgsm.json`: curves, controls, and the checks that keep FGSM honest.

    python tools/measure_fgsm.py                   # four kinds of network, three seeds each (8 minutes on two cores)
    python tools/measure_fgsm.py --seeds 0         # one seed
    python tools/measure_fgsm.py --weights A B --data cub --name fgsm_cub

Networks that are missing under runs/studies are trained first. Files that name the same model count as its seeds.
"""
import argparse
import statistics
import time

import torch
from measure import ATT3, ROOT, run

from ltpa.adversarial import EPS, fgsm, input_gradient, noise, pgd, so_far, square, step
from ltpa.names import LtpaError
from ltpa.core import keyed_rng, pick_device
from ltpa.files import fingerprint, provenance, save_result
from ltpa.models import load_weights
from ltpa.runs import open_source
from ltpa.training import pointing_hits

MODELS = *ATT3, 'vgg'


def studied(model, seed):
    "The weights of a run of `measure.py`, trained now if they are not there"
    folder = ROOT / 'runs' / 'studies' / f'cluttered_fashion-{model}-seed{seed}'
    if not (folder / 'result.json').exists(): run('cluttered_fashion', model, seed=seed)
    return folder / 'weights.safetensors'


def pictures(net, data, n):
    "`n` pictures of the test set in 0..1, the same whatever the network, labels, masks if there are any"
    how = net.info.get('source') or {}
    if data: how = dict(source=data, size=how.get('size'), scale=None)
    if not how.get('source'): raise LtpaError('the weights do not say what they were trained on; name a set by --data')
    test = open_source(how, 'test')
    some = torch.randperm(len(test), generator=keyed_rng('fgsm'))[:n]
    images, masks = test.render(some) if hasattr(test, 'render') else (test.images[some], None)
    return test, images / 255, test.labels[some], masks


@torch.no_grad()
def look(net, x, size=100):
    "Answers [B] and the maps of level 2 [B,h,w], None where there is no such level"
    outs = [net(part) for part in x.split(size)]
    level2 = torch.cat([o.maps[1] for o in outs]) if len(outs[0].maps) > 1 else None
    return torch.cat([o.logits.argmax(1) for o in outs]), level2


def curve(net, x, labels, masks):
    "FGSM at every size: rows, and the gradient's"
    g = input_gradient(net, x)
    clean, _ = look(net, x)
    wrong = clean != labels
    told = input_gradient(net, x[wrong], labels[wrong]) if wrong.any() else g[:0]
    seen = [look(net, step(x, g.sign(), e)) for e in EPS]
    fooled = torch.stack([answers != clean for answers, _ in seen])
    standing = ~wrong & ~so_far(fooled)
    rows = []
    for e, (answers, maps), now, left in zip(EPS, seen, fooled, standing):
        right = answers == labels
        if wrong.any(): right[wrong] = look(net, step(x[wrong], told.sign(), e))[0] == labels[wrong]
        row = dict(attack='fgsm', eps=round(e * 255), images=len(x), fooled=mean(now), right=mean(right),
                   standing=mean(left), lost=0. if wrong.all() else mean(~left[~wrong]))
        if maps is not None and masks is not None: row['pointing_2'] = mean(pointing_hits(maps.cpu(), masks))
        rows.append(row)
    return [*rows, dict(attack='gradient', eps=0, images=len(x), zero=mean(g == 0), tiny=mean(g.abs() <= 1e-6))]


def strong(net, source, x, labels, eps, a):
    "Every other attack at one size, on fewer pictures"
    clean, _ = look(net, x)
    moved = dict(noise=noise(net, x, eps, draws=10), square=square(net, x, eps, queries=a.queries),
                 fgsm=fgsm(net, x, eps), fgsm_margin=fgsm(net, x, eps, loss='margin'),
                 pgd=pgd(net, x, eps, steps=a.steps, restarts=a.restarts))
    if source is not None: moved['transfer'] = fgsm(source, x, eps, clean)
    fooled = {name: look(net, images)[0] != clean for name, images in moved.items()}
    fooled['any'] = torch.stack([*fooled.values()]).any(0)
    right = clean == labels
    return [dict(attack=f'{name}_few', eps=round(eps * 255), few=True, images=len(x), fooled=mean(hit),
                 standing=mean(right & ~hit)) for name, hit in fooled.items()]


def mean(hits): return hits.float().mean().item()


def other(nets, net):
    "Whose pictures are tried on `net`: another kind of network of the same seed, the trunk if there is one"
    others = [n for n in nets if n.name != net.name and n.info.get('seed') == net.info.get('seed')]
    return min(others, key=lambda n: n.name != 'vgg_trunk', default=None)


def summary(rows):
    "Mean and standard deviation of every number over the seeds of a model"
    kept = 'model', 'attack', 'eps', 'few', 'images'
    groups, table = {}, []
    for r in rows: groups.setdefault(tuple(r.get(k) for k in kept), []).append(r)
    for same in groups.values():
        row = {k: same[0][k] for k in kept if k in same[0]} | dict(seeds=len(same))
        for k in (k for k in same[0] if k not in (*kept, 'seed')):
            values = [r[k] for r in same]
            row[k] = round(statistics.mean(values), 4)
            if len(values) > 1: row[f'{k}_sd'] = round(statistics.stdev(values), 4)
        table.append(row)
    return table


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--weights', nargs='+', help='default: the networks of the study `controls`, and plain VGG')
    p.add_argument('--data', help='a set or its path; default: what the first network was trained on')
    p.add_argument('--name', default='fgsm', help='of the file in results/')
    p.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--images', type=int, default=1000, help='for the curves')
    p.add_argument('--few', type=int, default=64, help='for the slower attacks')
    p.add_argument('--few-eps', type=int, nargs='+', default=[2], help='sizes for the slower attacks, in 1/255')
    p.add_argument('--steps', type=int, default=50, help='of PGD')
    p.add_argument('--restarts', type=int, default=5, help='of PGD')
    p.add_argument('--queries', type=int, default=100, help='of Square')
    p.add_argument('--device', default='auto')
    a = p.parse_args(argv)
    device, begun = pick_device(a.device), time.time()
    files = a.weights or [studied(m, s) for m in MODELS for s in a.seeds]
    nets = [load_weights(f, device) for f in files]
    test, images, labels, masks = pictures(nets[0], a.data, a.images)
    x, y = images.to(device), labels.to(device)
    runs = []
    for net in nets:
        print('attacking', net.name, 'seed', net.info.get('seed'), flush=True)
        rows = curve(net, x, y, masks)
        for e in a.few_eps: rows += strong(net, other(nets, net), x[:a.few], y[:a.few], e / 255, a)
        runs += [dict(model=net.name, seed=net.info.get('seed')) | r for r in rows]
    record = provenance(device=device, data=test.fingerprint, seconds=round(time.time() - begun),
                        weights=[fingerprint(*n.state_dict().values()) for n in nets],
                        settings={k: getattr(a, k) for k in ('images', 'few', 'steps', 'restarts', 'queries')})
    title = f'{test.name}: answers changed (fooled) and right ones left (standing), by attack and size in 1/255'
    path = save_result(ROOT / 'results' / f'{a.name}.json', title, summary(runs), record, runs=runs)
    print(f'wrote {path.relative_to(ROOT)}')


if __name__ == '__main__':
    try: main()
    except LtpaError as e: raise SystemExit(f'measure_fgsm: {e}')
