"""FGSM against the one forward and backward pass that it cannot do without."""
import torch
import torch.nn.functional as F
from common import arguments, interleaved, report, spread

from ltpa.adversarial import fgsm
from ltpa.core import keyed_rng
from ltpa.models import create_model

MODELS = 'vgg_att3_concat_pc', 'vgg_trunk', 'vgg'


def bare(net, x, y):
    "The gradient of the loss with respect to the pixels; the parameters need none."
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net.logits(x), y, reduction='sum'), x)[0]


def main():
    args = arguments(__doc__, batch=100, rounds=15)
    if args.threads: torch.set_num_threads(args.threads)
    x = torch.rand(args.batch, 3, 32, 32, generator=keyed_rng('attacks'))
    eps, rows = 8/255, []
    for name in MODELS:
        net = create_model(name, width=1/4, early_pools=1, dropout=False).eval()
        for p in net.parameters(): p.requires_grad_(False)
        with torch.no_grad(): y = net.logits(x).argmax(1)
        moved = (x + eps * bare(net, x, y).sign()).clamp(0, 1)
        torch.testing.assert_close(fgsm(net, x, eps), moved, rtol=0, atol=1e-6)
        times = interleaved([lambda: fgsm(net, x, eps), lambda: bare(net, x, y)], args.rounds, warm=2)
        cost = spread([a / b for a, b in times])
        rows.append(dict(model=name, batch=args.batch, cost=cost['ratio'], quartiles=cost['quartiles']))
    report('FGSM: its time over that of one forward and backward pass', rows, args)


if __name__ == '__main__': main()
