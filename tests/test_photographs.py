"""The bundled photographs: each with its licence, all small, and what the tool reads from packages."""
import struct
import zlib

import build_photographs as tool
import pytest
from helpers import refuses
from PIL import Image

from ltpa import list_photographs, photograph, read_image
from ltpa.photographs import PHOTOGRAPHS, about_photographs

CIFAR10 = 'airplane automobile bird cat deer dog frog horse ship truck'.split()
TABLE = [line.strip('| ').split(' | ') for line in (PHOTOGRAPHS / 'LICENSES.md').read_text(encoding='utf-8').splitlines()
         if line.startswith('| `')]


@pytest.mark.parametrize('name', list_photographs())
def test_each_has_a_free_licence_that_is_quoted(name):
    about = about_photographs()[name]
    assert about.license in ('CC0 1.0', 'public domain') and about.author and about.source.startswith('http')
    assert about.shows in (None, *CIFAR10)
    row, = (row for row in TABLE if row[0] == f'`{name}.jpg`')
    assert row[1:5] == [about.title, about.author, about.license, about.source]
    assert any(word in row[5] for word in ('CC0', 'public domain', 'Public Domain', 'Zero')), 'where is it stated?'


@pytest.mark.parametrize('name', list_photographs())
def test_each_is_a_small_plain_jpeg(name):
    with Image.open(photograph(name)) as image:
        assert image.format == 'JPEG' and image.mode == 'RGB' and 300 <= max(image.size) <= 512
        assert not image.getexif() and 'comment' not in image.info
    assert read_image(photograph(name)).shape[1:] == image.size[::-1]


def test_nothing_else_is_there_and_all_are_small():
    files = {p.name: p.stat().st_size for p in PHOTOGRAPHS.iterdir()}
    assert set(files) == {'LICENSES.md', 'index.json', *(f'{name}.jpg' for name in list_photographs())}
    assert 6 <= len(list_photographs()) <= 10 and sum(files.values()) <= 1.5e6
    assert len(TABLE) == len(list_photographs())


def test_some_show_what_cifar_10_knows_and_some_do_not():
    shown = [about.shows for about in about_photographs().values()]
    assert len(set(shown) - {None}) >= 6 and shown.count(None) >= 3


def test_unknown():
    with refuses("unknown photograph 'kat'", 'cat'): photograph('kat')
    with refuses('unknown photograph', 'known: airplane'): photograph('../secret')


def resource_file(**files):
    "A file as Qt's resource compiler writes it, with one folder; texts are compressed, as there"
    names, name_at = b'', {}
    for name in ('folder', *files):
        name_at[name] = len(names)
        names += struct.pack('>HI', len(name), 0) + name.encode('utf-16-be')
    data, nodes = b'', [struct.pack('>IHII', 0, 2, 1, 1), struct.pack('>IHII', name_at['folder'], 2, len(files), 2)]
    for name, content in files.items():
        packed = isinstance(content, str)
        if packed: content = struct.pack('>I', len(content)) + zlib.compress(content.encode())
        nodes.append(struct.pack('>IHII', name_at[name], int(packed), 0, len(data)))
        data += struct.pack('>I', len(content)) + content
    tree = b''.join(node + bytes(8) for node in nodes)
    return b'qres' + struct.pack('>4I', 3, 20, 20 + len(tree), 20 + len(tree) + len(data)) + tree + data + names


def test_resource_files_are_read():
    found = tool.resources(resource_file(README='License: CC0-1.0', cat=b'\xff\xd8'))
    assert found == {'/folder/README': b'License: CC0-1.0', '/folder/cat': b'\xff\xd8'}


def test_another_licence_stops_the_build(monkeypatch, tmp_path):
    monkeypatch.setattr(tool, 'OUT', tmp_path / 'out')
    monkeypatch.setattr('sys.argv', ['build_photographs', '--packages', str(tmp_path)])
    monkeypatch.setitem(tool.SOURCES, 'stdlib', lambda packages, name: (b'', 'CC-BY-SA-4.0', '', ''))
    with pytest.raises(SystemExit, match='airplane: stdlib says CC-BY-SA-4.0; expected one of CC0-1.0, Public Domain'):
        tool.main()
    assert not [*(tmp_path / 'out').glob('*')]


def test_scikit_image_still_says_so():
    for name in tool.NOTES: assert tool.of_skimage(None, name)[1] in tool.FREE
