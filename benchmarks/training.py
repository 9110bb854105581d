"""A training step with its data, against the plain one: float32, NCHW, a DataLoader that augments image by image.

The plain side has the same network, with the same attention, and a stock optimiser; the better of none and two
workers counts. Also here: what the three attention levels add to the same trunk's step, and, by turns in processes
of their own, what `keep_buffers` brings.
"""
import itertools
import json
import statistics
import subprocess
import sys

from common import arguments, interleaved, report, seconds, spread

NET, TRUNK = 'vgg_att3_concat_pc', 'vgg_trunk'
WIDE, NARROW = dict(width=1., early_pools=0), dict(width=.25, early_pools=1)
CASES = (WIDE, 16, 2), (NARROW, 64, 8)                 # network, batch, steps a round
KEEP = (WIDE, 64, 3), (NARROW, 64, 20)                 # blocks above 32 MiB, and none


def images(n):
    import torch
    return torch.randint(256, (n, 32, 32, 3), dtype=torch.uint8).numpy(), torch.arange(n) % 10


def network(name, size):
    from ltpa.core import seed_everything
    from ltpa.models import create_model
    seed_everything(0)
    return create_model(name, **size)


def ours(name, size, batch, steps):
    "A function that trains for so many steps as `Learner.fit` does, and its network."
    from ltpa.data import ImageSet
    from ltpa.training import Learner, get_recipe, train_step
    data = ImageSet(*images(2_000), [str(k) for k in range(10)])
    learn = Learner(network(name, size), data, get_recipe('fast', batch_size=batch, crop=4, epochs=10**6))
    batches = (b for epoch in itertools.count() for b in learn.loader.epoch(epoch))
    learn.net.train()
    def run():
        for x, y in itertools.islice(batches, steps): train_step(learn, x, y)
    return run, learn.net


def plain(size, batch, steps, workers):
    "The same with a DataLoader, in float32 and NCHW."
    import torch
    import torch.nn.functional as F
    from loader import Images
    from torch.utils.data import DataLoader
    array, labels = images(2_000)
    loader = DataLoader(Images(array, labels.tolist()), batch, shuffle=True, drop_last=True, num_workers=workers,
                        persistent_workers=workers > 0)
    net = network(NET, size).train()
    opt = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(.9, .98), weight_decay=.05)
    batches = (b for epoch in itertools.count() for b in loader)
    def run():
        for x, y in itertools.islice(batches, steps):
            loss = F.cross_entropy(net(x).logits, y)
            opt.zero_grad(); loss.backward(); opt.step()
    return run, net


def agree(fast, slow):
    import torch
    from ltpa.core import autocast
    x = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        slow = slow.eval()(x).logits
        with autocast('cpu'): fast = fast.eval()(x.contiguous(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(fast.float(), slow, rtol=.05, atol=.05 * slow.std().item())


def steps_against_plain(args):
    for size, batch, steps in CASES:
        (mine, net), *theirs = [ours(NET, size, batch, steps),
                                *(plain(size, batch, steps, workers) for workers in (0, 2))]
        agree(net, theirs[0][1])
        for n in net, theirs[0][1]: n.train()
        times = interleaved([mine, *(run for run, _ in theirs)], args.rounds)
        rate = lambda t: round(batch * steps / statistics.median(t), 1)
        yield dict(what=NET, width=size['width'], batch=batch, ours=rate([t for t, *_ in times]),
                   opponent=rate([min(others) for _, *others in times]), against='plain step',
                   **spread([min(others) / t for t, *others in times]))


def attention_against_trunk(args):
    for size, batch, steps in CASES:
        (mine, _), (trunk, _) = ours(NET, size, batch, steps), ours(TRUNK, size, batch, steps)
        times = interleaved([mine, trunk], args.rounds)
        rate = lambda t: round(batch * steps / statistics.median(t), 1)
        yield dict(what=NET, width=size['width'], batch=batch, ours=rate([a for a, _ in times]),
                   opponent=rate([b for _, b in times]), against=TRUNK, **spread([b / a for a, b in times]))


def keeping(keep, size, batch, steps, threads):
    "Images a second in this process, with or without `keep_buffers`."
    import torch
    from ltpa.core import keep_buffers
    if threads: torch.set_num_threads(threads)
    if keep and not keep_buffers(): return None
    run, _ = ours(NET, size, batch, steps)
    run()
    return batch * steps / seconds(run)


def kept_against_returned(args):
    for case in KEEP:
        def process(keep):
            command = [sys.executable, __file__, '--keeping', json.dumps([keep, *case, args.threads])]
            return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        rates = [[process(keep) for keep in (True, False)] for _ in range(args.rounds)]
        if rates[0][0] is None: return                                 # no glibc, nothing to measure
        kept, returned = [round(statistics.median(r), 1) for r in zip(*rates)]
        yield dict(what='keep_buffers', width=case[0]['width'], batch=case[1], ours=kept, opponent=returned,
                   against='memory returned', **spread([a / b for a, b in rates]))


def main():
    args = arguments(__doc__, rounds=7)
    import torch
    if args.threads: torch.set_num_threads(args.threads)
    rows = [*steps_against_plain(args), *attention_against_trunk(args), *kept_against_returned(args)]
    report('Training step: images a second over those of the opponent', rows, args)


if __name__ == '__main__':
    if sys.argv[1:2] == ['--keeping']: print(json.dumps(keeping(*json.loads(sys.argv[2]))))
    else: main()
