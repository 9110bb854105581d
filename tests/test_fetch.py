"""Files from a server that breaks off, lies or is not there; archives that one should not unpack."""
import gzip
import hashlib
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import pytest
from helpers import Server, refuses, tar

from ltpa import downloads
from ltpa.names import LtpaError
from ltpa.names import DOWNLOADS
from ltpa.downloads import download, fetch, is_here, megabytes, unpack

BODY = Server.body
MD5, SHA256 = hashlib.md5(BODY).hexdigest(), hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def path(tmp_path): return tmp_path / 'set.bin'


def part(path, content=None):
    part = path.with_name('set.bin.part')
    if content is not None: part.write_bytes(content)
    return part


def whole(path):
    assert path.read_bytes() == BODY and os.listdir(path.parent) == ['set.bin']


# Fetching

@pytest.mark.parametrize('checksum', [dict(md5=MD5), dict(sha256=SHA256)])
@pytest.mark.parametrize('size', [None, len(BODY)])
@pytest.mark.parametrize('length', [True, False])
def test_whole(checksum, size, length, server, path):
    server.length = length
    assert fetch(server.url, path, size=size, **checksum) == path
    whole(path)
    assert server.asked == [None]
    fetch(server.url, path, size=size, **checksum)
    assert len(server.asked) == 1, 'what is there is not fetched again'


def test_folders_are_made(server, tmp_path):
    assert fetch(server.url, tmp_path / 'a' / 'b' / 'set.bin', md5=MD5).read_bytes() == BODY


def test_a_connection_that_breaks_off_is_taken_up_again(server, path):
    server.most = 30_000
    fetch(server.url, path, md5=MD5)
    whole(path)
    assert server.asked == [None, 'bytes=30000-', 'bytes=60000-', 'bytes=90000-']


def test_a_part_is_kept_and_taken_up_by_the_next_call(server, path):
    server.most, server.ranges = 30_000, False
    with refuses('set.bin (100 kB) could not be fetched', server.url, 'broke off at 30,000 of 100,000',
                 path, 'by hand', 'run again'):
        fetch(server.url, path, md5=MD5, size=len(BODY))
    assert part(path).read_bytes() == BODY[:30_000] and not path.exists()
    server.most, server.ranges, server.asked = None, True, []
    fetch(server.url, path, md5=MD5)
    whole(path)
    assert server.asked == ['bytes=30000-']


def test_without_a_length_the_size_tells_that_it_broke_off(server, path):
    server.length, server.most = False, 30_000
    fetch(server.url, path, md5=MD5, size=len(BODY))
    whole(path)


def test_server_without_ranges_begins_anew(server, path):
    server.ranges = False
    part(path, b'x' * 500)
    fetch(server.url, path, md5=MD5)
    whole(path)


@pytest.mark.parametrize('size', [None, len(BODY)])
@pytest.mark.parametrize('extra', [0, 7])
def test_part_that_does_not_fit(extra, size, server, path):
    "As long as the file, or longer: no rest to ask for."
    part(path, b'x' * (len(BODY) + extra))
    if size and not extra:
        with refuses('expected ' + MD5, 'was removed'): fetch(server.url, path, md5=MD5, size=size)
        assert not part(path).exists() and not server.asked
    fetch(server.url, path, md5=MD5, size=size)
    whole(path)


def test_part_of_another_file(server, path):
    part(path, b'x' * 500)
    with refuses('set.bin: the md5', 'expected ' + MD5, 'damaged, or another file', 'was removed', path):
        fetch(server.url, path, md5=MD5)
    assert not part(path).exists() and not path.exists()
    fetch(server.url, path, md5=MD5)
    whole(path)


def test_whole_part_needs_no_server(server, path):
    part(path, BODY)
    fetch(server.url, path, md5=MD5, size=len(BODY))
    whole(path)
    assert not server.asked


def test_server_that_begins_elsewhere(server, path):
    server.shift = 10
    part(path, BODY[:500])
    fetch(server.url, path, md5=MD5)
    whole(path)
    assert server.asked == ['bytes=500-', None]


@pytest.mark.parametrize('kind, right', [('md5', MD5), ('sha256', SHA256)])
def test_wrong_checksum(kind, right, server, path):
    with refuses(f'set.bin: the {kind}', right, 'expected ' + '0' * len(right), 'by hand'):
        fetch(server.url, path, **{kind: '0' * len(right)})
    assert not os.listdir(path.parent)


def test_another_file_on_the_server(server, path):
    server.body = b'<html>Please log in</html>'
    with refuses('file of 26 bytes', 'expected 100,000', 'by hand'):
        fetch(server.url, path, md5=MD5, size=len(BODY))
    assert not os.listdir(path.parent)


@pytest.mark.parametrize('status', [403, 404, 500, 503])
def test_http_errors(status, server, path):
    server.status = status
    part(path, BODY[:500])
    with refuses('birds could not be fetched', server.url, status, path):
        fetch(server.url, path, md5=MD5, name='birds')
    assert part(path).read_bytes() == BODY[:500] and len(server.asked) == 1


def test_no_network(path):
    with refuses('birds (1.2 GB)', 'could not be fetched', path, 'by hand', 'run again'):
        fetch('http://127.0.0.1:9/birds', path, md5=MD5, size=1_150_585_339, name='birds')
    with refuses('set.bin', 'could not be fetched', 'no-such-host.invalid'):
        fetch('http://no-such-host.invalid/birds', path, md5=MD5)
    assert not os.listdir(path.parent)


def test_file_put_there_by_hand(server, path):
    path.write_bytes(BODY)
    assert fetch('http://127.0.0.1:9/', path, md5=MD5) == path
    path.write_bytes(b'x')
    with refuses(path, 'is there', 'expected ' + MD5, 'remove it'): fetch(server.url, path, md5=MD5)
    assert path.read_bytes() == b'x' and not server.asked


def test_a_checksum_is_required(path):
    with refuses('no checksum', 'md5= or sha256='): fetch('http://127.0.0.1:9/', path)


def test_no_room_and_no_right_to_write(server, path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(downloads, 'open', lambda *a: Full(), raising=False)
    with refuses('could not be fetched', 'No space left on device'): fetch(server.url, path, md5=MD5)
    monkeypatch.undo()
    path.parent.joinpath('file').write_bytes(b'')
    with refuses('could not be fetched', 'file'):
        fetch(server.url, path.parent / 'file' / 'set.bin', md5=MD5)


@pytest.mark.slow
@pytest.mark.parametrize('ending', [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.whole)])
def test_killed_and_taken_up(ending, server, path):
    server.most, server.hold = 60_000, threading.Event()
    code = f'from ltpa.data import fetch; fetch({server.url!r}, {str(path)!r}, md5={MD5!r})'
    child = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    for _ in range(3000):
        if part(path).exists() and part(path).stat().st_size: break
        time.sleep(.01)
    child.send_signal(ending)
    assert child.wait(30) and not path.exists()
    kept = part(path).stat().st_size
    assert 0 < kept <= 60_000 and part(path).read_bytes() == BODY[:kept]
    server.hold.set()
    server.most, server.asked = None, []
    fetch(server.url, path, md5=MD5)
    whole(path)
    assert server.asked == [f'bytes={kept}-']


def test_sizes_to_read():
    assert [megabytes(n) for n in (300, 170_052_171, 2_640_397_119)] == ['0 kB', '170 MB', '2.6 GB']


# Unpacking what is fine

CONTENT = {'set/a.txt': b'one', 'set/deep/er/b.txt': b'', 'set/deep/c.bin': BODY, 'notes.txt': b'beside'}
SUFFIXES = ['tar', 'tar.gz', 'tgz', 'zip', 'TGZ']


def packed(path, content=CONTENT):
    if path.suffix != '.zip': return tar(path, *content.items())
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, data in content.items(): z.writestr(name, data)
    return path


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_unpack(suffix, tmp_path):
    archive = packed(tmp_path / f'x.{suffix}')
    assert unpack(archive, tmp_path / 'out') == tmp_path / 'out' and files(tmp_path / 'out') == CONTENT
    unpack(archive, tmp_path / 'new' / 'part', only='set')
    assert files(tmp_path / 'new' / 'part') == {n[4:]: c for n, c in CONTENT.items() if n.startswith('set/')}
    assert len(os.listdir(tmp_path)) == 3 and os.listdir(tmp_path / 'new') == ['part']


FOLDER = dict(type=tarfile.DIRTYPE)


def test_folders_dots_long_names_and_rights(tmp_path):
    "A folder without files, names that begin with ./, names of 180 letters; rights are not taken over."
    long = '/'.join(['x' * 60] * 3)
    for kind in tarfile.GNU_FORMAT, tarfile.PAX_FORMAT:
        archive = tar(tmp_path / 'x.tar', ('./', b'', FOLDER), ('./empty', b'', FOLDER | dict(mode=0)),
                      ('./a', b'1', dict(mode=0o4777, uid=1)), (long, b'2'), format=kind)
        out = unpack(archive, tmp_path / f'out{kind}')
        assert files(out) == {'a': b'1', long: b'2'} and (out / 'empty').is_dir()
        assert not (out / 'a').stat().st_mode & (stat.S_ISUID | stat.S_IXUSR)
        assert (out / 'a').stat().st_mode == archive.stat().st_mode and out.stat().st_mode & 0o555 == 0o555


# Refused: before anything is written, and nothing is left

def zip_of(path, *members):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, data, *mode in members:
            info = zipfile.ZipInfo('placeholder')
            info.filename, info.external_attr = name, (mode[0] if mode else 0) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            z.writestr(info, data)
    return path


FINE = ('fine.txt', b'fine')
IN_ZIP = {tarfile.SYMTYPE: stat.S_IFLNK, tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK,
          tarfile.FIFOTYPE: stat.S_IFIFO, tarfile.DIRTYPE: stat.S_IFDIR}
ZEROS = bytes(30_000_000)
OUTSIDE, LINK, DEVICE, BOMB = 'is a path that leads outside', 'is a link', 'is a device', 'no set of pictures'
DAMAGED = 'truncated, damaged or no archive'


def odd(name, kind, **more): return name, b'', dict(type=kind, **more)


HARD_LINKS = [odd('l', tarfile.LNKTYPE, linkname=to) for to in ('/etc/passwd', 'fine.txt')]  # no zip has any
REFUSED = [
    (OUTSIDE, ('../evil', b'x')), (OUTSIDE, ('a/../../evil', b'x')), (OUTSIDE, odd('a/..', tarfile.DIRTYPE)),
    (OUTSIDE, ('/evil', b'x')), (OUTSIDE, ('//evil', b'x')), (OUTSIDE, ('..\\evil', b'x')),
    (OUTSIDE, ('C:\\evil', b'x')), (OUTSIDE, ('C:evil', b'x')), (OUTSIDE, ('\\evil', b'x')),
    (LINK, odd('l', tarfile.SYMTYPE, linkname='/etc/passwd')),
    (LINK, odd('l', tarfile.SYMTYPE, linkname='fine.txt')),
    *((LINK, member) for member in HARD_LINKS),
    (DEVICE, odd('d', tarfile.CHRTYPE)), (DEVICE, odd('d', tarfile.BLKTYPE)),
    (DEVICE, odd('d', tarfile.FIFOTYPE)),
    (BOMB, ('zeros', ZEROS)),
]


def member_id(value): return value[0] if isinstance(value, tuple) else None


@pytest.fixture
def refused(monkeypatch):
    "The archive must be refused before a folder to unpack to is made."
    def early(*args, **kw): raise AssertionError('it begins to unpack')
    monkeypatch.setattr(downloads.tempfile, 'TemporaryDirectory', early)
    return check_refused


def check_refused(path, words, member):
    expected = '100 times its own size' if words == BOMB else repr(member[0])
    with refuses(path, words, expected, 'nothing was unpacked', 'publisher'):
        unpack(path, path.parent / 'out')
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize('words, member', REFUSED, ids=member_id)
def test_refused_in_a_tar(words, member, refused, tmp_path):
    refused(tar(tmp_path / 'x.tgz', FINE, member, FINE), words, member)
    if words != BOMB: (tmp_path / 'x.tgz').unlink(); refused(tar(tmp_path / 'x.tar', member), words, member)


@pytest.mark.parametrize('words, member', [
    (words, member) for words, member in REFUSED if member not in HARD_LINKS], ids=member_id)
def test_refused_in_a_zip(words, member, refused, tmp_path):
    kind = IN_ZIP[member[2]['type']] if len(member) > 2 else 0
    refused(zip_of(tmp_path / 'x.zip', FINE, (*member[:2], kind)), words, member)


@pytest.mark.parametrize('suffix', ['tgz', 'tar', 'zip'])
def test_too_many_members(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, 'MOST_MEMBERS', 3)
    unpack(packed(tmp_path / f'x.{suffix}', {f'{k}': b'' for k in range(3)}), tmp_path / 'three')
    with refuses('more than 3 members'):
        unpack(packed(tmp_path / f'x.{suffix}', {f'{k}': b'' for k in range(4)}), tmp_path / 'four')
    assert sorted(os.listdir(tmp_path)) == ['three', f'x.{suffix}']


@pytest.mark.parametrize('suffix', ['tgz', 'tar', 'zip'])
def test_too_many_bytes(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, 'MOST_BYTES', 110_000)
    unpack(packed(tmp_path / f'x.{suffix}', dict(a=BODY)), tmp_path / 'one')
    with refuses('no set of pictures', '110 kB'):
        unpack(packed(tmp_path / f'x.{suffix}', dict(a=BODY, b=BODY)), tmp_path / 'two')


def test_sizes_that_lie(tmp_path):
    "A size of terabytes with nothing behind it, or below zero; a sparse file; a name that fills the memory."
    header = tarfile.TarInfo('big')
    for header.size in 10**13, -512:
        (tmp_path / 'x.tar').write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
        with refuses('x.tar is no set of pictures'): unpack(tmp_path / 'x.tar', tmp_path / 'out')
    with refuses("'holes' is a sparse file"):
        unpack(tar(tmp_path / 'y.tar', odd('holes', tarfile.GNUTYPE_SPARSE), FINE), tmp_path / 'out')
    with refuses('no set of pictures'):
        unpack(tar(tmp_path / 'z.tgz', ('x' * 30_000_000, b''), format=tarfile.GNU_FORMAT), tmp_path / 'out')


def test_zeros_behind_the_end(tmp_path):
    "The bomb lies where tarfile does not look any more."
    whole = gzip.decompress(packed(tmp_path / 'x.tgz').read_bytes())
    (tmp_path / 'x.tgz').write_bytes(gzip.compress(whole + ZEROS))
    with refuses('no set of pictures'): unpack(tmp_path / 'x.tgz', tmp_path / 'out')


@pytest.mark.parametrize('suffix', ['tar', 'tgz', 'zip'])
def test_cut_at_any_length(suffix, tmp_path):
    content = {'a': BODY[:3000], 'b': BODY[:700], 'c': b''}
    path = packed(tmp_path / f'x.{suffix}', content)
    whole = path.read_bytes()
    end = len(whole.rstrip(b'\0')) + 512 if suffix == 'tar' else len(whole) - 1    # the padding may be short
    for cut in {*range(0, end, 97), *range(0, end, 512), end}:
        path.write_bytes(whole[:cut])
        with refuses(path, DAMAGED, 'fetch it again'): unpack(path, tmp_path / 'out')
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize('suffix', ['tgz', 'zip'])
def test_any_byte_changed(suffix, tmp_path):
    "A clear message, or what was packed: a checksum covers the content."
    content = {'a': BODY[:3000], 'b': BODY[:700]}
    path = packed(tmp_path / f'x.{suffix}', content)
    whole, refused = path.read_bytes(), 0
    for k in range(0, len(whole), 11):
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 0x55]) + whole[k + 1:])
        try: out = unpack(path, tmp_path / f'out{k}')
        except LtpaError as e:
            refused += 1
            assert '\n' not in str(e) and not (tmp_path / f'out{k}').exists()
        else: assert sorted(files(out).values()) == sorted(content.values())
    assert refused > len(whole) / 11 / 2


@pytest.mark.parametrize('name, content, words', [
    ('x.tgz', b'<html>Please log in</html>', DAMAGED),
    ('x.tar', b'<html>Please log in</html>' * 50, DAMAGED),
    ('x.zip', b'<html>Please log in</html>', DAMAGED),
    ('x.tgz', b'', DAMAGED), ('x.tar', b'', DAMAGED),
    ('x.zip', b'', DAMAGED),
    ('x.rar', b'Rar!', 'ends in .tar, .tar.gz, .tgz or .zip'),
    ('x.gz', gzip.compress(b'text'), 'ends in .tar, .tar.gz, .tgz or .zip'),
])
def test_not_an_archive(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with refuses(tmp_path / name, words): unpack(tmp_path / name, tmp_path / 'out')
    assert os.listdir(tmp_path) == [name]


def test_where_unpacking_cannot_go(tmp_path):
    archive = packed(tmp_path / 'x.tgz')
    (tmp_path / 'out').mkdir()
    with refuses('out is there already', 'move it away'): unpack(archive, tmp_path / 'out')
    with refuses('cannot unpack', 'no.tgz', 'No such file'): unpack(tmp_path / 'no.tgz', tmp_path / 'new')
    with refuses("holds no folder 'other'"): unpack(archive, tmp_path / 'new', only='other')
    with refuses('cannot unpack', 'x.tgz'): unpack(archive, archive / 'below_a_file')
    clash = packed(tmp_path / 'y.tgz', {'a': b'a file', 'a/b': b'and a folder'})
    with refuses('cannot unpack', 'y.tgz'): unpack(clash, tmp_path / 'new')
    assert sorted(os.listdir(tmp_path)) == ['out', 'x.tgz', 'y.tgz'] and not os.listdir(tmp_path / 'out')


# A set from end to end

def test_download(server, tmp_path, monkeypatch, capfd):
    "Fetched, checked, unpacked; from the archive alone if the folder is gone; not at all if it is there."
    monkeypatch.setenv('LTPA_DATA', str(tmp_path))
    server.body, server.most = packed(tmp_path / 'x.tgz').read_bytes(), 50_000
    md5 = hashlib.md5(server.body).hexdigest()
    files_of = [(server.url.replace('set.bin', 'set.tgz?download=1'), len(server.body), md5)]
    monkeypatch.setitem(DOWNLOADS, 'tiny', ('set', files_of))
    assert not is_here('tiny')
    assert download('tiny') == tmp_path / 'tiny' and is_here('tiny') and len(server.asked) > 1
    assert sorted(os.listdir(tmp_path / 'tiny')) == ['set', 'set.tgz']
    assert (tmp_path / 'tiny' / 'set' / 'deep' / 'c.bin').read_bytes() == BODY
    (tmp_path / 'tiny' / 'set').rename(tmp_path / 'gone')
    server.asked.clear()
    assert download('tiny') and is_here('tiny') and not server.asked
    (tmp_path / 'tiny' / 'set.tgz').unlink()
    assert download('tiny') and not server.asked
    assert capfd.readouterr() == ('', ''), 'no progress where there is no terminal'
    with refuses("unknown data set 'cub-200'", "'cub'"): download('cub-200')


def test_names_and_sizes_of_the_published_sets():
    for name, (folder, urls) in DOWNLOADS.items():
        for url, size, md5 in urls:
            assert url.startswith('http') and size > 10**7 and len(bytes.fromhex(md5)) == 16
        assert not folder or url.split('?')[0].endswith(('.tar.gz', '.tgz')), 'unpack knows it'
