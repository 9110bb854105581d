#!/usr/bin/env python3
"""Build `ltpa/assets/animals` from the animal silhouettes of the package `animal-mnist`.

    pip download --no-deps animal-mnist==0.4          # MIT; its own loader wants TensorFlow, which we do not need
    python tools/build_animals.py animal_mnist-0.4-py3-none-any.whl

The package stores two NumPy arrays as pickles. They are not unpickled: `pickletools` lists what is in them, and the one
long string of bytes is the array. Only zebras have stripes there, which would give them away, so all animals become
plain silhouettes. Many pictures come twice, mirrored, or in another size; one of each such group is kept, or else
training and test pictures would share animals. The result is the same byte for byte.
"""
import argparse
import gzip
import pickletools
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

OUT = Path(__file__).resolve().parent.parent / 'ltpa' / 'assets' / 'animals'
PER_CLASS, SHEET = 300, 100              # 300 of each kind, 100 side by side in a row of the picture
LIKE = .9                                # two outlines that share so much of their union are one animal


def array_bytes(wheel, kind):
    "The bytes of one of the two arrays: of all that the pickle holds, the longest string"
    with zipfile.ZipFile(wheel) as z:
        raw = gzip.decompress(z.read(f'animal_mnist/data/Animal_MNIST/animal_{kind}_version_3.gz'))
    return max((arg for _, arg, _ in pickletools.genops(raw) if isinstance(arg, bytes)), key=len)


def silhouette(image):
    "The largest connected part of an image [28,28], small holes (stripes) filled, as a mask"
    parts, n = ndimage.label(image > 80, np.ones((3, 3)))
    mask = parts == 1 + np.argmax(ndimage.sum_labels(image > 80, parts, range(1, n + 1)))
    holes, n = ndimage.label(~mask)
    sizes = ndimage.sum_labels(~mask, holes, range(1, n + 1))
    return mask | np.isin(holes, 1 + np.flatnonzero(sizes <= 20))


def outline(mask):
    "The mask's box, brought to [16,16], so that size and place do not count"
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0]:rows[-1] + 1, cols[0]:cols[-1] + 1]
    return F.adaptive_avg_pool2d(torch.from_numpy(box).float()[None], 16)[0]


def distinct(masks):
    "Rows of `masks`, in their order, that are like no row taken before, mirrored or not"
    a = torch.stack([outline(m) for m in masks])
    like = lambda p, q: (i := p @ q.T) / (p.square().sum(1)[:, None] + q.square().sum(1) - i)
    s = torch.maximum(like(a.flatten(1), a.flatten(1)), like(a.flatten(1), a.flip(2).flatten(1)))
    taken = []
    for k in range(len(masks)):
        if not taken or s[k, taken].max() < LIKE: taken.append(k)
    return taken


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('wheel', type=Path, help='animal_mnist-0.4-py3-none-any.whl')
    wheel = p.parse_args().wheel
    images = np.frombuffer(array_bytes(wheel, 'data'), np.uint8).reshape(-1, 28, 28)
    labels = np.frombuffer(array_bytes(wheel, 'label'), '<i8')
    kept = []
    for k in range(10):
        masks = np.stack([silhouette(x) for x in images[labels == k]])
        rows = np.random.default_rng(0).permutation(distinct(masks))
        print(f'class {k}: {len(masks)} pictures, {len(rows)} distinct')
        kept.append(masks[rows[:PER_CLASS]])
    sheet = np.concatenate(kept).reshape(-1, SHEET, 28, 28).transpose(0, 2, 1, 3).reshape(-1, SHEET * 28)
    OUT.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).convert('1').save(OUT / 'silhouettes.png', optimize=True)
    with zipfile.ZipFile(wheel) as z: license = z.read('animal_mnist-0.4.dist-info/licenses/LICENSE').decode()
    (OUT / 'LICENSE.md').write_text(NOTE + '\n'.join(f'> {line}'.rstrip() for line in license.splitlines()) + '\n')
    print(f'{len(sheet) // 28 * SHEET} silhouettes, {(OUT / "silhouettes.png").stat().st_size / 1e3:.0f} kB')


NOTE = """# Where these files come from

`silhouettes.png`: 3,000 animal silhouettes, 300 of each of ten kinds, from the package
[animal-mnist](https://pypi.org/project/animal-mnist/) 0.4 by Sina Mohammadi (Tohoku University), reduced to plain
outlines, near-copies left out, by `tools/build_animals.py`. The package does not say which photographs they were
cut from. Its licence:

"""

if __name__ == '__main__': main()
