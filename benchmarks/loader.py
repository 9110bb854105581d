"""The loader that augments whole batches, against a DataLoader with torchvision's transforms image by image.

The opponent reads as torchvision's CIFAR-10 does, from one uint8 array by way of Pillow, and is timed with
its workers already running; the better of none and two workers counts.
"""
import torch
from common import arguments, interleaved, report, spread
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ltpa.data import ImageSet, Loader

WORKERS = 0, 2


class Images(Dataset):
    "What `torchvision.datasets.CIFAR10` does with its array."
    transform = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
                                    transforms.ToTensor()])
    def __init__(self, array, labels): self.array, self.labels = array, labels
    def __len__(self): return len(self.array)
    def __getitem__(self, i): return self.transform(Image.fromarray(self.array[i])), self.labels[i]


def main():
    args = arguments(__doc__, images=20_000, batch=128, rounds=5)
    if args.threads: torch.set_num_threads(args.threads)
    array = torch.randint(256, (args.images, 32, 32, 3), dtype=torch.uint8).numpy()
    labels = torch.arange(args.images) % 10
    ours = Loader(ImageSet(array, labels, [str(k) for k in range(10)]), args.batch, flip=True, crop=4)
    images = Images(array, labels.tolist())
    how = dict(shuffle=True, drop_last=True)
    theirs = [DataLoader(images, args.batch, num_workers=n, persistent_workers=n > 0, **how) for n in WORKERS]
    def consume(batches):
        count = 0
        for x, y in batches: count += len(y)
        assert x.shape[1:] == (3, 32, 32) and x.dtype == torch.float32 and count == len(ours) * args.batch
    times = interleaved([lambda b=b: consume(b) for b in (ours, *theirs)], args.rounds)
    slower = [[t / ours for t in theirs] for ours, *theirs in times]
    rows = [dict(opponent='the better of them', **spread([min(s) for s in slower]))]
    rows += [dict(opponent=f'{n} workers', **spread([s[k] for s in slower])) for k, n in enumerate(WORKERS)]
    report(f'Loader: images a second over those of a DataLoader, batches of {args.batch}', rows, args)


if __name__ == '__main__': main()
