"""What a map costs: the network's own, which comes with its answer, against each of Captum's methods.

Each method has Captum's usual settings (50 steps, 16 noisy copies). Own map: one forward pass, logits included.
"""
import torch
from common import arguments, interleaved, report, spread

from ltpa.data import ClutteredFashion
from ltpa.faithfulness import learned_maps
from ltpa.models import load_pretrained
from ltpa.saliency import captum_suite, frozen_eval


def main():
    args = arguments(__doc__, images=16, rounds=5)
    if args.threads: torch.set_num_threads(args.threads)
    net = load_pretrained('cluttered_fashion/vgg_att3_concat_pc')
    x = ClutteredFashion('test', 32).render(range(args.images))[0] / 255
    target = net.eval().logits(x).argmax(1)
    def forward():
        with torch.no_grad(): return net(x).maps
    own, suite = learned_maps(net), captum_suite(net)
    runs = [forward, *(lambda f=f: f(net, x, target) for f in suite.values())]
    for name, run in zip(suite, runs[1:]):
        assert run().isfinite().all() and run().shape == (args.images, 32, 32), f'{name} gives no map of each image'
    assert all(a.equal(own[f'attention {k}'](net, x)) for k, a in enumerate(forward(), 1))
    with frozen_eval(net): times = interleaved(runs, args.rounds)
    learned, *others = zip(*times)
    rows = [dict(map='own, all levels', ms_per_image=round(1000 * sorted(learned)[len(learned) // 2] / args.images, 2))]
    for name, took in zip(suite, others):
        rows.append(dict(map=name, ms_per_image=round(1000 * sorted(took)[len(took) // 2] / args.images, 2),
                         **spread([t / one for t, one in zip(took, learned)])))
    report("Maps: time of Captum's methods over that of the network's own maps", rows, args)


if __name__ == '__main__': main()
