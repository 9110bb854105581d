#!/usr/bin/env python3
"""Build `ltpa/assets/cluttered_fashion` from Fashion-MNIST and from photographs in scikit-image.

    sudo apt-get install dataset-fashion-mnist        # Debian's copy of the set (MIT); or download its four files
    python tools/build_cluttered_fashion.py --fashion /usr/share/datasets/fashion-mnist

Only photographs whose note in scikit-image says CC0 or public domain are taken; `LICENSES.md`, written beside the
files, quotes who gave them. Objects and photographs are split here, once, so that no test picture shares either
with a training picture. The result is the same byte for byte on one machine: objects are drawn with a fixed seed.
"""
import argparse, gzip, json, sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage import data as photos

OUT = Path(__file__).resolve().parent.parent / 'ltpa' / 'assets' / 'cluttered_fashion'
CLASSES = ['t-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot']
PER_CLASS = {'train': 1600, 'test': 400}
FILES = {'train': 'train', 'test': 't10k'}
SHEET = 100                      # objects side by side in one row of the picture that stores them
SIDE = 400                       # photographs are stored with at most this short side, in pixels

# scikit-image's name -> (split, licence, who gave it, per the note in skimage.data's docstring)
PHOTOS = {
    'astronaut': ('train', 'public domain', 'NASA, Great Images database'),
    'coffee': ('train', 'CC0', 'Rachel Michetti, courtesy of Pikolo Espresso Bar'),
    'hubble_deep_field': ('train', 'public domain', 'NASA, HubbleSite'),
    'brick': ('train', 'CC0', 'CC0Textures, Bricks25'),
    'grass': ('train', 'CC0', 'linolafett, DeviantArt'),
    'clock': ('train', 'public domain', 'Stefan van der Walt'),
    'chelsea': ('test', 'CC0', 'Stefan van der Walt'),
    'rocket': ('test', 'public domain', 'SpaceX'),
    'camera': ('test', 'CC0', 'Lav Varshney'),
    'gravel': ('test', 'CC0', 'CC0Textures, Gravel04'),
    'retina': ('test', 'CC0', 'Mikael Häggström'),
}


def clean(obj):
    "Zero outside the object and at least 1 inside, so that `pixel > 0` is the exact mask; `obj` [28,28] uint8"
    mask = obj > 12                                             # fainter pixels are the set's resampling halo
    parts, n = ndimage.label(mask, np.ones((3, 3)))
    sizes = ndimage.sum_labels(mask, parts, range(1, n + 1))
    mask = np.isin(parts, 1 + np.flatnonzero(sizes >= 8))       # stray specks go, both shoes of a pair stay
    holes, n = ndimage.label(~mask)
    sizes = ndimage.sum_labels(~mask, holes, range(1, n + 1))
    mask |= np.isin(holes, 1 + np.flatnonzero(sizes <= 6))      # dark print is object, the hole in a handle is not
    return np.where(mask, np.maximum(obj, 1), 0).astype(np.uint8)


def read_fashion(folder, split):
    "Images [N,28,28] uint8 and labels [N] of one split of Fashion-MNIST"
    def read(kind, offset):
        path = folder / f'{FILES[split]}-{kind}-ubyte.gz'
        if not path.exists(): sys.exit(f'{path} not found: name the folder of the four .gz files with --fashion')
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=offset)
    return read('images-idx3', 16).reshape(-1, 28, 28), read('labels-idx1', 8)


def build_objects(folder, split):
    X, y = read_fashion(folder, split)
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:PER_CLASS[split]] for c in range(10)])
    rows = rng.permutation(rows)                                # mixed classes, so that a prefix is a fair subset
    X, y = np.stack([clean(x) for x in X[rows]]), y[rows]
    sheet = X.reshape(-1, SHEET, 28, 28).transpose(0, 2, 1, 3).reshape(-1, SHEET * 28)
    for k in range(0, len(sheet), 28 * 80):                     # 8,000 objects a file
        Image.fromarray(sheet[k:k + 28 * 80]).convert('RGB').save(
            OUT / f'objects_{split}_{k // (28 * 80)}.webp', lossless=True, quality=100, method=6)
    return y.tolist()


def build_photo(name):
    x = getattr(photos, name)()
    if name == 'retina': x = x[300:1100, 300:1100]              # the disc without its black surround
    img = Image.fromarray(x)
    k = SIDE / min(img.size)
    if k < 1: img = img.resize([round(s * k) for s in img.size], Image.Resampling.LANCZOS)
    img.save(OUT / f'photo_{name}.jpg', quality=90)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--fashion', type=Path, required=True, help='folder with the four Fashion-MNIST .gz files')
    folder = p.parse_args().fashion
    OUT.mkdir(parents=True, exist_ok=True)
    labels = {s: build_objects(folder, s) for s in PER_CLASS}
    for name in PHOTOS: build_photo(name)
    meta = dict(classes=CLASSES, sheet=SHEET, labels={s: ''.join(map(str, y)) for s, y in labels.items()},
                photos={s: [n for n, v in PHOTOS.items() if v[0] == s] for s in PER_CLASS})
    (OUT / 'index.json').write_text(json.dumps(meta, indent=1) + '\n')
    (OUT / 'LICENSES.md').write_text(LICENSES + ''.join(
        f'| `photo_{n}.jpg` | {s} | {lic} | {who} |\n' for n, (s, lic, who) in PHOTOS.items()))
    size = sum(f.stat().st_size for f in OUT.iterdir())
    print(f'{OUT.name}: {sum(map(len, labels.values())):,} objects, {len(PHOTOS)} photographs, {size / 1e6:.1f} MB')


LICENSES = """# Where these files come from

**Objects** (`objects_*.webp`, `index.json`): 20,000 product photographs of
[Fashion-MNIST](https://github.com/zalandoresearch/fashion-mnist), cleaned of their halo, otherwise unchanged;
training objects from its training part, test objects from its test part. MIT licence:

> The MIT License (MIT). Copyright © 2017 Zalando SE, https://tech.zalando.com
>
> Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
> documentation files (the “Software”), to deal in the Software without restriction, including without limitation
> the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and
> to permit persons to whom the Software is furnished to do so, subject to the following conditions:
>
> The above copyright notice and this permission notice shall be included in all copies or substantial portions of
> the Software.
>
> THE SOFTWARE IS PROVIDED “AS IS”, WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO
> THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
> AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
> CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS
> IN THE SOFTWARE.

**Photographs** (`photo_*.jpg`): from [scikit-image](https://scikit-image.org)'s `skimage.data`, scaled to a short
side of at most 400 pixels. Each one's note there says CC0 or public domain.

| file | split | licence | given by |
|---|---|---|---|
"""

if __name__ == '__main__': main()
