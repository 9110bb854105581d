"""A training step with its data, against the plain one: float32, NCHW, a DataLoader that augments image by image.

The plain side has the same network, with the same attention, and a stock optimiser; the better of none and two
workers counts. Then it takes over our parts one after another, to show what each brings. Also here: what bfloat16
brings to a bare matrix product, which is the most that can be had from it; what the three attention levels add to the
same trunk's step; compilation; and, by turns in processes of their own, what `keep_buffers` brings.
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
PARTS = 'our loader', 'channels_last', 'bfloat16', 'fused optimiser'
KEEP = (WIDE, 64, 3), (NARROW, 64, 20)                 # blocks above 32 MiB, and none


def images(n):
    import torch
    return torch.randint(256, (n, 32, 32, 3), dtype=torch.uint8).numpy(), torch.arange(n) % 10


def network(name, size):
    from ltpa.core import seed_everything
    from ltpa.models import create_model
    seed_everything(0)
    return create_model(name, **size)


def ours(name, size, batch, steps, **changes):
    "A function that trains for so many steps as `Learner.fit` does, and its network."
    from ltpa.data import ImageSet
    from ltpa.names import get_recipe
    from ltpa.training import Learner, train_step
    data = ImageSet(*images(2_000), [str(k) for k in range(10)])
    learn = Learner(network(name, size), data, get_recipe(
        'fast', batch_size=batch, crop=4, epochs=10**5, **changes))
    batches = (b for epoch in itertools.count() for b in learn.loader.epoch(epoch))
    learn.net.train()
    def run():
        for x, y in itertools.islice(batches, steps): train_step(learn, x, y)
    return run, learn.net


def climb(size, batch, steps, parts=(), workers=0):
    "The plain step, with some of `PARTS` taken over from ours."
    import torch
    import torch.nn.functional as F
    from loader import Images
    from ltpa.core import autocast
    from ltpa.data import ImageSet, Loader
    from torch.utils.data import DataLoader
    array, labels = images(2_000)
    layout = torch.channels_last if 'channels_last' in parts else torch.contiguous_format
    precision = 'auto' if 'bfloat16' in parts else 'fp32'
    if 'our loader' in parts: loader = Loader(ImageSet(array, labels, [str(k) for k in range(10)]), batch)
    else: loader = DataLoader(Images(array, labels.tolist()), batch, shuffle=True, drop_last=True,
                              num_workers=workers, persistent_workers=workers > 0)
    net = network(NET, size).train().to(memory_format=layout)
    opt = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(.9, .98), weight_decay=.05,
                            fused='fused optimiser' in parts or None)
    batches = (b for epoch in itertools.count() for b in loader)
    def run():
        for x, y in itertools.islice(batches, steps):
            with autocast('cpu', precision): logits = net(x.contiguous(memory_format=layout)).logits
            loss = F.cross_entropy(logits.float(), y)
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


def rate(images, seconds): return round(images / statistics.median(seconds), 1)


def steps_against_plain(args):
    "Our step against the plain one; then what each part brings, taken over one after another."
    for size, batch, steps in CASES:
        (mine, net), *plain = [ours(NET, size, batch, steps), *(climb(size, batch, steps, workers=n) for n in (0, 2))]
        rungs = [climb(size, batch, steps, PARTS[:k + 1])[0] for k in range(len(PARTS))]
        agree(net, plain[0][1])
        for n in net, plain[0][1]: n.train()
        every = interleaved([mine, *(run for run, _ in plain), *rungs], args.rounds)
        times = [(t[0], min(t[1:3]), *t[3:]) for t in every]
        row = lambda what, a, b, against: dict(
            what=what, width=size['width'], batch=batch, ours=rate(batch * steps, [t[a] for t in times]),
            opponent=rate(batch * steps, [t[b] for t in times]), against=against,
            **spread([t[b] / t[a] for t in times]))
        yield row(NET, 0, 1, 'plain step')
        for k, part in enumerate(PARTS): yield row(f'+ {part}', k + 2, k + 1, 'the step without')


def products(args):
    "What bfloat16 brings to a bare matrix product, in GFLOP/s: nothing made of products gains more."
    import torch
    n = 2048
    pairs = [[torch.rand(n, n).to(dtype) for _ in range(2)] for dtype in (torch.bfloat16, torch.float32)]
    times = interleaved([lambda p=p: p[0] @ p[1] for p in pairs], 5 * args.rounds)
    half, full = [rate(2 * n**3 / 1e9, t) for t in zip(*times)]
    return dict(what='matrix product', batch=n, ours=half, opponent=full, against='float32',
                **spread([b / a for a, b in times]))


def compiled_against_eager(args):
    size, batch, steps = CASES[-1]
    times = interleaved([ours(NET, size, batch, steps, compile=c)[0] for c in (True, False)], args.rounds)
    return dict(what='compile', width=size['width'], batch=batch, ours=rate(batch * steps, [a for a, _ in times]),
                opponent=rate(batch * steps, [b for _, b in times]), against='eager',
                **spread([b / a for a, b in times]))


def attention_against_trunk(args):
    for size, batch, steps in CASES:
        (mine, _), (trunk, _) = ours(NET, size, batch, steps), ours(TRUNK, size, batch, steps)
        times = interleaved([mine, trunk], args.rounds)
        yield dict(what=NET, width=size['width'], batch=batch, ours=rate(batch * steps, [a for a, _ in times]),
                   opponent=rate(batch * steps, [b for _, b in times]), against=TRUNK,
                   **spread([b / a for a, b in times]))


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
    rows = [products(args), *steps_against_plain(args), *attention_against_trunk(args), *kept_against_returned(args),
            compiled_against_eager(args)]
    report('Training step: images a second over those of the opponent', rows, args)


if __name__ == '__main__':
    if sys.argv[1:2] == ['--keeping']: print(json.dumps(keeping(*json.loads(sys.argv[2]))))
    else: main()
