"""What a step of the paper's size costs on this device, bfloat16 against float32 and attention against its trunk.

Full width, 32 pixels, batches of 128, the paper's optimiser, data and augmentation on the device. `pmac` is the work
in 1e15 multiply-accumulates a second, forward and backward: `ltpa reproduce --size paper` takes its hours from it.
"""
import itertools
import statistics

from common import arguments, interleaved, report, spread

NET, TRUNK = 'vgg_att3_concat_pc', 'vgg_trunk'


def stepping(device, model, precision, batch, steps):
    "A function that trains for so many steps and waits for the device; the network's GMAC."
    import torch
    from ltpa.core import seed_everything
    from ltpa.data import ImageSet
    from ltpa.models import create_model, gmac
    from ltpa.names import get_recipe
    from ltpa.training import Learner, train_step
    seed_everything(0)
    net = create_model(model)
    cost = gmac(net, 32)
    images = torch.randint(256, (max(2_000, batch), 32, 32, 3), dtype=torch.uint8).numpy()
    data = ImageSet(images, torch.arange(len(images)) % 10, [str(k) for k in range(10)])
    learn = Learner(net, data, get_recipe('paper', batch_size=batch, precision=precision), device=device)
    batches = (b for epoch in itertools.count() for b in learn.loader.epoch(epoch))
    learn.net.train()
    def run():
        for x, y in itertools.islice(batches, steps): train_step(learn, x, y)
        if device.type == 'cuda': torch.cuda.synchronize(device)
    return run, cost


def rows(args, device):
    cases = [(NET, 'auto'), (NET, 'fp32'), (TRUNK, 'auto')]
    made = [stepping(device, *case, args.batch, args.steps) for case in cases]
    times = interleaved([run for run, _ in made], args.rounds)
    images = args.batch * args.steps
    for other, against in ((1, 'float32'), (2, TRUNK)):
        mine, its = (statistics.median(t[k] for t in times) for k in (0, other))
        yield dict(what=NET, batch=args.batch, ours=round(images / mine, 1), opponent=round(images / its, 1),
                   against=against, **spread([t[other] / t[0] for t in times]),
                   pmac=float(f'{3 * made[0][1] * images / mine / 1e6:.3g}'))


def main():
    args = arguments(__doc__, rounds=7, batch=128, steps=40)
    import torch
    from ltpa.core import pick_device
    if args.threads: torch.set_num_threads(args.threads)
    device = pick_device()
    report('Training step of the paper\'s size: images a second over those of the opponent', [*rows(args, device)], args,
           device=device)


if __name__ == '__main__': main()
