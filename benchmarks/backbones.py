"""What attached attention costs: the network with it, over the bare backbone with its own classifier, in the same run.

One training step (forward, backward, SGD) and one forward pass, by turns; peak memory of each in a process of its own.
"""
import json
import resource
import subprocess
import sys

from common import arguments, interleaved, report, spread

NAME = 'resnet18'
LEVELS = 2, 3
MODES = 'training', 'inference'


def contest(levels, mode, batch, side):
    "Two functions, without and with attention, for the same pictures."
    import torch
    import torch.nn.functional as F
    from ltpa.backbones import attach
    torch.manual_seed(0)
    x, y = torch.rand(batch, 3, side, side), torch.randint(1000, (batch,))
    bare = attach(f'torchvision/{NAME}', 1000, scores='head', pretrained=False, verbose=False)
    attached = attach(f'torchvision/{NAME}', 1000, levels, pretrained=False, verbose=False)
    for net in bare, attached:
        net.to(memory_format=torch.channels_last).train(mode == 'training')
    # The bare one is the backbone alone: no taps.
    for m in bare.backbone.modules(): m._forward_hooks.clear()
    x = x.to(memory_format=torch.channels_last)
    def step(net, logits):
        opt = torch.optim.SGD(net.parameters(), .01)
        def run():
            opt.zero_grad()
            F.cross_entropy(logits(x), y).backward()
            opt.step()
        return run
    def look(logits):
        def run():
            with torch.no_grad(): logits(x)
        return run
    plain = lambda x: bare.head(bare.backbone(bare.normalize(x)))
    if mode == 'training': return step(bare, plain), step(attached, attached.logits)
    return look(plain), look(attached.logits)


def peak(which, *case):
    "MiB that two passes add to what the process held when its inputs were there."
    run = contest(*case)[which]
    used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = used()
    run()
    run()
    return (used() - before) / (2**20 if sys.platform == 'darwin' else 2**10)       # bytes on macOS, else KiB


def memory(*case):
    "Peak of the bare backbone and of the attached network, each in a process of its own."
    command = lambda which: [sys.executable, __file__, '--peak', json.dumps([which, *case])]
    return [float(subprocess.run(command(which), stdout=subprocess.PIPE, text=True, check=True).stdout) for which in (0, 1)]


def main():
    args = arguments(__doc__, batch=16, side=224, rounds=15)
    cases = [(levels, mode, args.batch, args.side) for levels in LEVELS for mode in MODES]
    # Memory first, while this process is small: a child's peak counts what its parent held at the start.
    peaks = [memory(*case) for case in cases]
    import torch
    if args.threads: torch.set_num_threads(args.threads)
    rows = []
    for case, (bare_mib, ours_mib) in zip(cases, peaks):
        bare, ours = contest(*case)
        times = interleaved([bare, ours], args.rounds, warm=2)
        found = spread([b / a for a, b in times])
        rows.append(dict(backbone=NAME, levels=case[0], mode=case[1], cost=found['ratio'], quartiles=found['quartiles'],
                         bare_MiB=round(bare_mib), attached_MiB=round(ours_mib), peak_ratio=round(ours_mib / bare_mib, 2)))
    report('Attached attention: time of the network with it over the bare backbone, and its peak memory', rows, args)


if __name__ == '__main__':
    if sys.argv[1:2] == ['--peak']: print(peak(*json.loads(sys.argv[2])))
    else: main()
