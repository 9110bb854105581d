"""ClutteredFashion rendered in batches, against the same scenes pasted together image by image with Pillow.

One thread each. The pictures are compared first; they differ a little along the outlines, where Pillow
resamples before it knows what is transparent.
"""
import numpy as np
import torch
from common import arguments, interleaved, report, spread
from PIL import Image

from ltpa.data import ClutteredFashion


class Collage:
    "The scenes of `data`, rendered by Pillow."
    def __init__(self, data):
        self.data, self.size = data, data.size
        self.scenes = {k: v.tolist() for k, v in data.scenes().items()}
        pixels, first, width, height = data._levels
        cut = lambda f, w, h: Image.fromarray(pixels[f:f + w * h].view(h, w, 3).numpy())
        tables = zip(first.tolist(), width.tolist(), height.tolist())
        self.levels = [[cut(*level) for level in zip(*photo)] for photo in tables]
        self.objects = data.objects[data.item].numpy()

    def background(self, s):
        level = self.levels[s['photo']][s['zoom']]
        y, x = (int(c * (side - self.size + 1)) for c, side in zip(s['corner'], reversed(level.size)))
        darker = [i * light for light in s['light'] for i in range(256)]
        return level.crop((x, y, x + self.size, y + self.size)).point(darker)

    def garment(self, i, s):
        gray = Image.fromarray(self.objects[i])
        bands = [gray.point([t * (.15 * 255 + .85 * v) for v in range(256)]) for t in s['tint']]
        cos, sin = np.cos(s['angle']) / s['side'], np.sin(s['angle']) / s['side']
        tx, ty = s['center']
        rows = (cos, sin, -cos * tx - sin * ty), (-sin, cos, sin * tx - cos * ty)
        rows = [[s['flip'] * v for v in rows[0]], rows[1]]
        # From pixels of the picture to pixels of the 28x28 object, both counted from their corner.
        k = 28 / self.size
        to_object = [v for a, b, c in rows for v in (k * a, k * b, 14 * (c - a - b + 1))]
        rgba = Image.merge('RGBA', [*bands, gray.point(lambda v: 255 * (v > 0))])
        side = self.size, self.size
        return rgba.transform(side, Image.Transform.AFFINE, to_object, Image.Resampling.BILINEAR)

    def __getitem__(self, i):
        s = {k: v[i] for k, v in self.scenes.items()}
        picture, garment = self.background(s), self.garment(i, s)
        picture.paste(garment, mask=garment.getchannel('A'))
        return np.asarray(picture)


def main():
    args = arguments(__doc__, images=4096, size=32, rounds=7)
    torch.set_num_threads(args.threads or 1)
    data = ClutteredFashion('train', size=args.size, n=args.images)
    collage, share = Collage(data), max(1, args.images // 16)
    ours = data.render(slice(0, share))[0].permute(0, 2, 3, 1).numpy()
    off = np.abs(ours.astype(int) - np.stack([collage[i] for i in range(share)])).mean()
    assert off < 4, f'not the same pictures: {off:.1f} of 255 apart on average'
    times = interleaved([data.render, lambda: [collage[i] for i in range(share)]], args.rounds)
    speed = sorted(len(data) / a for a, _ in times)[len(times) // 2]
    ratios = [b / share / (a / len(data)) for a, b in times]
    apart = f'{off:.2f} of 255'
    rows = [dict(size=args.size, images_per_second=round(speed), **spread(ratios), difference=apart)]
    report('Rendering on one thread: images a second, and over those of a collage with Pillow', rows, args)


if __name__ == '__main__': main()
