"""Attention without building l + g, against the broadcast form that public re-implementations compute.

Both are run forward and backward, by turns, on the same tensors, after it is made sure that they agree.
"""
import itertools
import json
import resource
import subprocess
import sys

from common import arguments, interleaved, report, spread

SHAPES = [(256, 32), (512, 16)]                       # channels and side of levels 1 and 2 at 32 px
SCORES, LAYOUTS = ('pc', 'dp'), ('channels_last', 'contiguous')


def broadcast(att, l, g):
    "l + g at every position, a 1x1 convolution, softmax, a weighted sum."
    import torch.nn.functional as F
    B, C, H, W = l.shape
    g = g[:, :, None, None].expand_as(l)
    if att.score == 'dp': c = (l * g).sum(1, keepdim=True)
    else: c = F.conv2d(l + g, att.u.weight[:, :, None, None], att.u.bias)
    a = c.reshape(B, 1, -1).softmax(2).view(B, 1, H, W)
    return (a.expand_as(l) * l).view(B, C, -1).sum(2), a[:, 0]


def contest(score, layout, batch, channels, side):
    "Two functions that each compute gradients of the same leaves, and the leaves."
    import torch
    from ltpa.attention import Attention
    torch.manual_seed(0)
    # Filled in place: a copy into another layout would count as memory in use before the measurement begins.
    order = dict(channels_last=torch.channels_last, contiguous=torch.contiguous_format)[layout]
    l = torch.empty(batch, channels, side, side, memory_format=order).normal_()
    g, upstream = torch.randn(2, batch, channels) / channels**.5
    att = Attention(channels, score=score)
    leaves = [l.requires_grad_(), g.requires_grad_(), *att.parameters()]
    def run(form):
        for leaf in leaves: leaf.grad = None
        ga, a = form(l, g)
        ga.backward(upstream)
        return ga, a
    return (lambda: run(att)), (lambda: run(lambda l, g: broadcast(att, l, g))), leaves


def agree(ours, theirs, leaves):
    import torch
    results = []
    for run in ours, theirs:
        ga, a = run()
        grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        results.append([ga, a, *grads])
    for x, y in zip(*results): torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


def peak(which, score, layout, *shape):
    "MiB that one pass adds to what the process held when its inputs were there."
    for run in contest(score, layout, 2, 8, 4)[:2]: run()                # libraries load on first use
    run = contest(score, layout, *shape)[which]
    used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = used()
    run()
    return (used() - before) / (2**20 if sys.platform == 'darwin' else 2**10)       # bytes on macOS, else KiB


def memory(score, layout, shape):
    "Peak of ours and of the broadcast form, each in a process of its own."
    peaks = []
    for which in 0, 1:
        case = json.dumps([which, score, layout, *shape])
        command = [sys.executable, __file__, '--peak', case]
        peaks.append(float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))
    return peaks


def main():
    args = arguments(__doc__, batch=64, rounds=15)
    cases = [(score, layout, (args.batch, C, side))
             for (C, side), score, layout in itertools.product(SHAPES, SCORES, LAYOUTS)]
    # Memory first, while this process is small: a child's peak counts what its parent held at the start.
    peaks = [memory(*case) for case in cases]
    import torch
    if args.threads: torch.set_num_threads(args.threads)
    rows = []
    for (score, layout, shape), (ours_mib, theirs_mib) in zip(cases, peaks):
        ours, theirs, leaves = contest(score, layout, *shape)
        agree(ours, theirs, leaves)
        times = interleaved([ours, theirs], args.rounds, warm=2)
        rows.append(dict(shape='x'.join(map(str, (*shape, shape[-1]))), score=score, layout=layout,
                         **spread([b / a for a, b in times]), peak_MiB=round(ours_mib),
                         broadcast_MiB=round(theirs_mib), peak_ratio=round(ours_mib / theirs_mib, 2)))
    report('Attention, forward and backward: time of the broadcast form over ours, our peak over its',
           rows, args)


if __name__ == '__main__':
    if sys.argv[1:2] == ['--peak']: print(peak(*json.loads(sys.argv[2])))
    else: main()
