"""What the system, the network and other people's archives can do to us: refuse, hang, lie, and end us with a signal."""
import contextlib
import errno
import fcntl
import gzip
import hashlib
import io
import json
import os
import pty
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
from helpers import one_line, pictures, refuses, tar

from ltpa import downloads, files, system
from ltpa.names import LtpaError
from ltpa.downloads import fetch, unpack
from ltpa.files import git_commit, provenance, write_atomic
from ltpa.system import Bar, lock, reason, way_out

BODY = Random(1).randbytes(50_000)
MD5 = hashlib.md5(BODY).hexdigest()
LONG = 60                                         # seconds that only a hang takes


# The words

@pytest.mark.parametrize('number', [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EIO, 0])
def test_only_a_full_disk_wants_space(number):
    said = way_out(OSError(number, 'no'), 'another file')
    assert 'free some' not in said and 'remove' not in said and said.endswith('or choose another file')


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_wants_space(number): assert way_out(OSError(number, 'no')).startswith('free some space')


def test_reasons():
    assert reason(OSError(errno.EACCES, 'Permission denied', 'x')) == 'Permission denied'
    assert reason(OSError('odd')) == 'odd' and reason(TimeoutError()) == 'TimeoutError'


DROP = '''
import os, sys
if os.getuid() == 0: os.setgroups([]), os.setgid(65534), os.setuid(65534)
'''


@pytest.fixture
def public():
    "A folder that everybody may enter; pytest's own are closed to others."
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        if not all(p.stat().st_mode & 0o001 for p in Path(d).parents): pytest.skip('others cannot come here')
        yield Path(d)


def as_nobody(code, folder):
    "Runs `code` in `folder` as a user who may do nothing in particular; root may do anything."
    first = f'from ltpa.{"files" if "write_atomic" in code else "downloads"} import *\n'     # while Python's folder may be read
    done = subprocess.run([sys.executable, '-c', first + DROP + code], capture_output=True, text=True, timeout=LONG, cwd=folder,
                          env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)))
    if done.returncode and 'os.setuid' in done.stderr: pytest.skip('cannot become another user')
    return done


TELL = '''
from ltpa.names import LtpaError
try: {call}
except LtpaError as e: print(e)
'''
FORBIDDEN = 'remove', 'free some', 'fetch it again', 'fill'


@pytest.mark.parametrize('call, words', [
    ('write_atomic("closed/file", b"")', 'cannot write'),
    ('write_atomic("readonly/new", b"")', 'cannot write'),
    ('write_atomic("readonly/new/folder/file", b"")', 'cannot write'),
    ('fetch("http://127.0.0.1:9/x", "readonly/x", md5="0")', 'could not be fetched'),
    ('fetch("http://127.0.0.1:9/x", "closed/x", md5="0")', 'could not be fetched'),
    ('fetch("http://127.0.0.1:9/x", "secret", md5="0")', 'could not be fetched'),
    ('unpack("x.tar", "readonly/new")', 'cannot unpack'),
    ('unpack("secret.tar", "readonly/new")', 'cannot unpack'),
], ids=lambda v: v.split('(')[0])
def test_permission_denied(call, words, public):
    (public / 'closed').mkdir(mode=0)
    (public / 'readonly').mkdir(mode=0o555)
    tar(public / 'x.tar', ('a', b'1'))
    for name in 'secret', 'secret.tar':
        (public / name).touch()
        (public / name).chmod(0)
    done = as_nobody(TELL.format(call=call), public)
    assert not done.returncode, done.stderr
    one_line(done.stdout.strip(), words, 'Permission denied', 'change its permissions')
    assert not [word for word in FORBIDDEN if word in done.stdout]
    assert os.listdir(public / 'readonly') == []


def test_folder_that_one_may_write_to_but_not_read(public):
    "As an inbox is: there is nothing to sweep then, and nothing to lock."
    (public / 'box').mkdir()
    (public / 'box').chmod(0o733)
    done = as_nobody('write_atomic("box/x", b"letter")', public)
    assert not done.returncode, done.stderr
    assert (public / 'box' / 'x').read_bytes() == b'letter' and os.listdir(public / 'box') == ['x']


# Files

@pytest.mark.parametrize('mode', [0o600, 0o640, 0o444, 0o777])
def test_replaced_file_keeps_its_mode(mode, tmp_path):
    path = tmp_path / 'x'
    path.touch()
    path.chmod(mode)
    write_atomic(path, b'new')
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_bytes() == b'new' and os.listdir(tmp_path) == ['x']


def test_replaced_file_keeps_its_owner(tmp_path):
    if os.getuid(): pytest.skip('only root may give files away')
    (tmp_path / 'x').touch()
    os.chown(tmp_path / 'x', 65534, 65533)
    write_atomic(tmp_path / 'x', b'new')
    assert ((s := (tmp_path / 'x').stat()).st_uid, s.st_gid) == (65534, 65533)


@pytest.mark.parametrize('to', ['target', 'elsewhere/target', 'second'])
def test_link_stays_and_its_target_is_replaced(to, tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'second').symlink_to('target')
    (tmp_path / 'link').symlink_to(to)
    for text in b'dangling', b'there':                            # the first makes the target
        assert write_atomic(tmp_path / 'link', text) == tmp_path / 'link'
        assert (tmp_path / 'link').is_symlink() and os.readlink(tmp_path / 'link') == to
        target = tmp_path / ('target' if to == 'second' else to)
        assert target.read_bytes() == text and not target.is_symlink()
    assert len([*tmp_path.rglob('*')]) == 4, 'a temporary file is left'


def test_other_names_of_a_file_keep_the_old_content(tmp_path):
    (tmp_path / 'a').write_bytes(b'old')
    os.link(tmp_path / 'a', tmp_path / 'b')
    write_atomic(tmp_path / 'a', b'new')
    assert [(tmp_path / n).read_bytes() for n in 'ab'] == [b'new', b'old']


def a_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)                                        # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as s: s.bind(path.name)
    os.chdir(here)


@pytest.mark.parametrize('make, kind', [
    (os.mkdir, 'a folder'), (os.mkfifo, 'a pipe'), (a_socket, 'a socket'),
    (lambda p: p.symlink_to('/dev/null'), 'a device'), (lambda p: p.symlink_to('.'), 'a folder')])
def test_what_is_no_file_is_not_replaced(make, kind, tmp_path):
    make(tmp_path / 'x')
    before = os.lstat(tmp_path / 'x')
    with refuses(f'cannot write {tmp_path}/x', f'is {kind}', 'choose another'): write_atomic(tmp_path / 'x', b'')
    assert os.lstat(tmp_path / 'x').st_mode == before.st_mode and os.listdir(tmp_path) == ['x']


def test_devices_stay_devices():
    for path in '/dev/null', '/dev/full', '/dev/zero':
        with refuses(path, 'is a device'): write_atomic(path, b'x')
        assert stat.S_ISCHR(os.stat(path).st_mode)


@pytest.mark.parametrize('name, words', [
    ('x' * 256, 'shorten'), ('x/' * 3000 + 'x', 'shorten'), ('a\0b', 'no name of a file'), ('a\ud800b', 'no name of a file'),
    ('folder/', 'name of a folder'), ('new/', 'name of a folder'), ('folder/.', 'a folder'), ('folder/..', 'a folder'),
    ('loop', 'links')], ids=lambda v: ascii(v)[:20])
def test_odd_names(name, words, tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'loop').symlink_to('loop')
    with refuses('cannot write', words): write_atomic(f'{tmp_path}/{name}', b'')
    assert sorted(os.listdir(tmp_path)) == ['folder', 'loop'] and not os.listdir(tmp_path / 'folder')


def test_empty_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in '', '.', Path(), '..':
        with refuses('cannot write', 'folder'): write_atomic(name, b'')
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('name', ['x' * 255, 'ä' * 127, '-rf', ' ', '\udcff', 'a\nb', '.hidden'], ids=ascii)
def test_names_that_are_fine(name, tmp_path):
    for text in b'1', b'2': write_atomic(tmp_path / name, text)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == b'2'


HOLD = '''
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_EX)
print('mine', flush=True)
time.sleep(600)
'''


@contextlib.contextmanager
def holder(path):
    "Another process that has a lock on `path` and does not let go."
    with subprocess.Popen([sys.executable, '-c', HOLD, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'mine\n'
        try: yield process
        finally: process.kill()


def test_nobody_waits_for_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'PATIENCE', .2)
    monkeypatch.setattr(downloads, 'PATIENCE', .2)
    begin = time.monotonic()
    with holder(tmp_path):
        for k in range(3): write_atomic(tmp_path / 'x', b'%d' % k)
        assert (tmp_path / 'x').read_bytes() == b'2'
        unpack(tar(tmp_path / 'a.tar', ('a', b'1')), tmp_path / 'out')
    assert time.monotonic() - begin < LONG / 2 and sorted(os.listdir(tmp_path)) == ['a.tar', 'out', 'x']
    assert 0 < system.PATIENCE <= 10


def test_a_lock_dies_with_its_holder(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    with holder(tmp_path) as process:
        assert lock(fd) is False and lock(fd, shared=True, seconds=.05) is False
        process.kill()
        process.wait()
        assert lock(fd) is True
    os.close(fd)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*args): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'flock', flock)
    with open(tmp_path / 'x', 'w') as f: assert lock(f.fileno()) is None
    with serving(whole()) as url: assert fetch(url, tmp_path / 'y', md5=MD5).read_bytes() == BODY
    unpack(tar(tmp_path / 'a.tar', ('a', b'1')), tmp_path / 'out')
    assert sorted(os.listdir(tmp_path)) == ['a.tar', 'out', 'x', 'y']


# Fetching: what may be asked

@pytest.mark.parametrize('url', [
    'file:///etc/passwd', 'data:text/plain,hello', 'ftp://127.0.0.1/x', 'gopher://127.0.0.1/', '', 'x.zip', '/x.zip', '//host/x',
    'http://', 'http:///x', 'https:x', 'http://host:port/', 'http://host:99999/', 'http://host:-1/', 'http://host:0/', 'http://[::1/',
    'http://[v1.x]/', 'http://b\u00fccher.example/', 'http://host/\u00fc', 'http://host/a b', 'http://host/a\nX: y', 'http://host/\0',
    'http://a_b c/', 'http://ho<st/', 'HTTP', 'javascript:alert(1)', 'C:\\x.zip', 'http://' + 'x' * 300 + '/'], ids=ascii)
def test_odd_addresses(url, tmp_path):
    with refuses('cannot fetch', 'expected http:// or https://'): fetch(url, tmp_path / 'new' / 'x', md5='0')
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('url', [None, 7, b'http://host/', Path('x')], ids=ascii)
def test_addresses_that_are_no_text(url, tmp_path):
    with refuses('cannot fetch'): fetch(url, tmp_path / 'x', md5='0')


def test_passwords_are_neither_sent_nor_shown(tmp_path):
    with pytest.raises(LtpaError) as e: fetch('http://me:secret@127.0.0.1:9/x', tmp_path / 'x', md5='0')
    one_line(str(e.value), 'a user or a password')
    assert 'secret' not in str(e.value)


@pytest.mark.parametrize('host', ['a..b', 'x' * 64 + '.example', '-', '.'])
def test_hosts_that_nobody_has(host, tmp_path):
    with refuses('could not be fetched'): fetch(f'http://{host}/x', tmp_path / 'x', md5='0')
    assert not os.listdir(tmp_path)


# Fetching: servers. An answer is a function of the socket, the request's head and the number of the request.

@contextlib.contextmanager
def serving(answer):
    "The address of a server on this machine, which answers each connection in a thread of its own; `.asked` are the heads."
    class Url(str): asked: list[str]
    listener, over = socket.create_server(('127.0.0.1', 0)), threading.Event()
    url = Url(f'http://127.0.0.1:{listener.getsockname()[1]}/set.bin')
    url.asked = []

    def one(s):
        with s, contextlib.suppress(OSError):
            head = b''
            while b'\r\n\r\n' not in head:
                if not (data := s.recv(4096)): return
                head += data
            url.asked.append(head.decode())
            answer(s, head.decode(), len(url.asked) - 1)

    def accept():
        while not over.is_set():
            try: s, _ = listener.accept()
            except OSError: return
            threading.Thread(target=one, args=(s,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try: yield url
    finally:
        over.set()
        listener.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch): monkeypatch.setenv('no_proxy', '127.0.0.1')


def start_of(head):
    "The byte from which a request wants its file."
    line = next((line for line in head.splitlines() if line.startswith('Range')), 'Range: bytes=0-')
    return int(line.split('=')[1].rstrip('-'))


def whole(body=BODY, head='', status='200 OK'):
    "An honest answer, and more lines of a head."
    def answer(s, asked, k): s.sendall(f'HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n'.encode() + body)
    return answer


def says(text, body=b''):
    "These bytes, whatever was asked."
    def answer(s, asked, k): s.sendall((text if isinstance(text, bytes) else text.replace('\n', '\r\n').encode()) + body)
    return answer


def ranged(most, body=BODY, then=lambda s: None):
    "From where it was asked to, `most` bytes, and `then`."
    def answer(s, asked, k):
        start = start_of(asked)
        if start >= len(body): return s.sendall(b'HTTP/1.1 416 No\r\nContent-Length: 0\r\n\r\n')
        s.sendall((f'HTTP/1.1 {"206 Part" if start else "200 OK"}\r\nContent-Length: {len(body) - start}\r\n' + (
            f'Content-Range: bytes {start}-{len(body) - 1}/{len(body)}\r\n' if start else '') + '\r\n').encode())
        s.sendall(body[start:start + most])
        then(s)
    return answer


@pytest.fixture
def hasty(monkeypatch):
    "Half a second is as long as a minute."
    for name, value in dict(QUIET=.5, SLOW=.5, STALLS=3).items(): monkeypatch.setattr(downloads, name, value)


def ends(url, path, *words, **how):
    "It is refused in one line, and in no more time than a few time-outs take."
    begin = time.monotonic()
    with refuses('could not be fetched', *words): fetch(url, path, **dict(md5=MD5) | how)
    assert time.monotonic() - begin < LONG / 2 and not path.exists()


def kept(path): return (p := path.with_name(path.name + '.part')).exists() and p.read_bytes()


@pytest.mark.parametrize('to, words', [
    ('file:///etc/passwd', 'another kind'), ('data:,x', 'another kind'), ('ftp://127.0.0.1/x', 'another kind'),
    ('http://[::1', 'IPv6'), ('http://', 'redirects more than'), ('http://me:pw@127.0.0.1/', 'password'), ('//', 'redirects more than'),
    ('http://127.0.0.1:99999/', 'Port')])
def test_redirected_to_odd_places(to, words, tmp_path):
    with serving(says(f'HTTP/1.1 302 Found\nLocation: {to}\nContent-Length: 0\n\n')) as url:
        with refuses('fetch', words): fetch(url, tmp_path / 'x', md5='0')
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('status', [301, 302, 303, 307, 308])
@pytest.mark.parametrize('to', ['/other', 'other', '?a=1', 'a b', '//127.0.0.1:{port}/x'])
def test_redirected_and_resumed(to, status, tmp_path):
    "A relative address is fine, and what was asked for is asked for there."
    (tmp_path / 'x.part').write_bytes(BODY[:500])
    send = ranged(10**6)
    def answer(s, asked, k):
        if k: return send(s, asked, k)
        s.sendall(f'HTTP/1.1 {status} There\r\nLocation: {to.format(port=url.split(":")[2].split("/")[0])}\r\n\r\n'.encode())
    with serving(answer) as url: assert fetch(url, tmp_path / 'x', md5=MD5).read_bytes() == BODY
    assert len(url.asked) == 2 and start_of(url.asked[1]) == 500


@pytest.mark.parametrize('answer, words', [
    (says('HTTP/1.1 302 Found\nLocation: /set.bin\n\n'), 'redirects more than'),
    (lambda s, asked, k: s.sendall(b'HTTP/1.1 302 Found\r\nLocation: /%d\r\n\r\n' % k), 'redirects more than'),
    (says('HTTP/1.1 302 Found\n\n'), 'redirects to nowhere'),
    (says('HTTP/1.1 302 Found\nLocation: \n\n'), 'redirects to nowhere')], ids=['itself', 'on and on', 'nowhere', 'empty'])
def test_redirected_for_ever(answer, words, tmp_path):
    (tmp_path / 'x.part').write_bytes(BODY[:500])
    with serving(answer) as url: ends(url, tmp_path / 'x', words)
    assert len(url.asked) <= 10 and kept(tmp_path / 'x') == BODY[:500]


def endless(s, first=b'', then=b'x' * 2**16, pause=0.):
    s.sendall(first)
    while True:
        s.sendall(then)
        time.sleep(pause)


HEAD = b'HTTP/1.1 200 OK\r\n'
CHUNKED = HEAD + b'Transfer-Encoding: chunked\r\n\r\n'


@pytest.mark.parametrize('first, then', [
    (b'HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n', b'x' * 2**16), (HEAD, b'A: b\r\n' * 2**10), (HEAD + b'A: ', b'x' * 2**16),
    (b'', b'HTTP/1.1 100 Continue\r\n\r\n' * 2**10), (b'', b'x' * 2**16), (CHUNKED + b'0\r\n', b'A: b\r\n' * 2**10),
    (CHUNKED + b'1;', b'x' * 2**16), (CHUNKED, b'1\r\nx\r\n' * 2**12), (CHUNKED, b'-5\r\nx\r\n' * 2**12),
], ids=['redirection', 'head', 'line', 'continue', 'status', 'trailer', 'extension', 'chunks', 'negative chunks'])
def test_what_never_ends_is_left(first, then, tmp_path):
    with serving(lambda s, asked, k: endless(s, first, then)) as url:
        begin = time.monotonic()
        with pytest.raises(LtpaError) as e: fetch(url, tmp_path / 'x', md5=MD5, size=len(BODY))
    one_line(str(e.value))
    assert time.monotonic() - begin < LONG / 2 and len(kept(tmp_path / 'x') or b'') <= len(BODY)


@pytest.mark.parametrize('size', [None, len(BODY)])
def test_a_byte_a_connection(size, tmp_path):
    with serving(ranged(1)) as url: ends(url, tmp_path / 'x', 'broke off', 'what has come is kept', size=size)
    assert len(url.asked) <= 10 and kept(tmp_path / 'x') == BODY[:len(url.asked)]
    with serving(ranged(10**6)) as url: fetch(url, tmp_path / 'x', md5=MD5, size=size)
    assert (tmp_path / 'x').read_bytes() == BODY and os.listdir(tmp_path) == ['x']


def test_a_percent_a_connection_is_enough(tmp_path):
    with serving(ranged(1000)) as url: fetch(url, tmp_path / 'x', md5=MD5, size=len(BODY))
    assert len(url.asked) == 50 and (tmp_path / 'x').read_bytes() == BODY


@pytest.mark.parametrize('before', [b'', HEAD, HEAD + b'Content-Length: 50000\r\n\r\n' + BODY[:9], CHUNKED + b'9\r\n' + BODY[:9]],
                         ids=['nothing', 'head', 'body', 'chunk'])
@pytest.mark.parametrize('drip', [b'', b'1'], ids=['silence', 'a byte at times'])
def test_a_server_that_pauses(before, drip, hasty, tmp_path):
    with serving(lambda s, asked, k: endless(s, before, drip, .1)) as url: ends(url, tmp_path / 'x', size=len(BODY))
    assert len(url.asked) <= 10


def test_a_server_that_falls_silent_again_and_again(hasty, tmp_path):
    "Each time it brings enough to go on, but all these pauses are too much."
    with serving(ranged(2000, then=lambda s: time.sleep(1))) as url: ends(url, tmp_path / 'x', size=len(BODY))
    assert len(url.asked) == 4 and kept(tmp_path / 'x') == BODY[:8000]


def test_a_slow_server_that_goes_on_is_fine(hasty, monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, 'LEAST', 1000)
    def slow(s, asked, k):
        s.sendall(HEAD + b'Content-Length: 50000\r\n\r\n')
        for i in range(0, len(BODY), 2000):
            s.sendall(BODY[i:i + 2000])
            time.sleep(.06)
    with serving(slow) as url: assert fetch(url, tmp_path / 'x', md5=MD5).read_bytes() == BODY
    assert len(url.asked) == 1


@pytest.mark.parametrize('size', [None, len(BODY)])
@pytest.mark.parametrize('text, fine', [
    ('HTTP/1.1 200 OK\nContent-Length: -1\n\n', True), ('HTTP/1.1 200 OK\nContent-Length: many\n\n', True),
    ('HTTP/1.1 200 OK\nContent-Length: 50000\nContent-Encoding: gzip\n\n', True),             # as some call any .tgz
    ('HTTP/1.1 200 OK\n\n', True), ('HTTP/1.0 200 OK\n\n', True), ('HTTP/1.1 206 Part\nContent-Range: bytes 0-49999/50000\n\n', True),
    ('HTTP/1.1 206 Part\nContent-Range: bytes 0-49999/*\n\n', True),
    ('HTTP/1.1 200 OK\nContent-Length: 99999999999999999999999\n\n', False), ('HTTP/1.1 200 OK\nContent-Length: 0\n\n', False),
    ('HTTP/1.1 206 Part\nContent-Range: bytes 7-49999/50000\n\n', False), ('HTTP/1.1 206 Part\n\n', False),
    ('HTTP/1.1 206 Part\nContent-Range: bytes 0-49999/' + '9' * 5000 + '\n\n', False),
    ('HTTP/1.1 206 Part\nContent-Range: bytes 0-49999/3\n\n', False), ('HTTP/1.1 206 Part\nContent-Range: bytes 9-0/50000\n\n', False),
    ('HTTP/1.1 204 No Content\n\n', False), ('HTTP/1.1 304 Not Modified\n\n', False), ('HTTP/1.1 416 No\n\n', False),
    ('HTTP/1.1 999 Odd\n\n', False), ('HTTP/1.1 101 Switching\n\n', False), ('HTTP/9.9 abc\n\n', False), ('SSH-2.0-x\n', False), ('\n', False),
    ('HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n', False)], ids=lambda v: ascii(v)[10:60])
def test_odd_heads(text, fine, size, tmp_path):
    with serving(says(text, BODY)) as url:
        if fine: assert fetch(url, tmp_path / 'x', md5=MD5, size=size).read_bytes() == BODY
        else:
            with pytest.raises(LtpaError) as e: fetch(url, tmp_path / 'x', md5=MD5, size=size)
            one_line(str(e.value), url)
    assert len(url.asked) < 10


@pytest.mark.parametrize('text', [
    'HTTP/1.1 206 Part\nContent-Range: bytes 0-49999/50000\n\n', 'HTTP/1.1 206 Part\nContent-Range: items 500-49999/50000\n\n',
    'HTTP/1.1 206 Part\nContent-Range: bytes 500-49999/400\n\n', 'HTTP/1.1 206 Part\n\n', 'HTTP/1.1 416 No\n\n', 'HTTP/1.1 204 No\n\n',
    'HTTP/1.1 500 Sorry\n\n', 'HTTP/1.1 206 Part\nContent-Range: bytes 500-' + '9' * 99 + '/' + '9' * 99 + '\n\n'], ids=ascii)
def test_odd_parts_leave_ours_alone(text, tmp_path):
    (tmp_path / 'x.part').write_bytes(BODY[:500])
    with serving(says(text)) as url: ends(url, tmp_path / 'x')
    assert kept(tmp_path / 'x') == BODY[:500] and len(url.asked) <= 2


def test_a_server_that_begins_anew_does_not_take_what_we_have(tmp_path):
    "It knows no ranges, and breaks off before it is as far as we were."
    (tmp_path / 'x.part').write_bytes(BODY[:30_000])
    with serving(says('HTTP/1.1 200 OK\nContent-Length: 50000\n\n', BODY[:9])) as url: ends(url, tmp_path / 'x', 'broke off')
    assert kept(tmp_path / 'x') == BODY[:30_000]


def test_packed_in_transit(tmp_path):
    "We never ask for it. What comes is not what was published, and nothing is unpacked behind our back."
    with serving(whole(gzip.compress(BODY), 'Content-Encoding: gzip\r\n')) as url:
        with refuses('damaged, or another file'): fetch(url, tmp_path / 'x', md5=MD5)


@pytest.mark.parametrize('chunk', [1, 7, 4096])
def test_chunks(chunk, tmp_path):
    text = b''.join(b'%x\r\n%s\r\n' % (len(BODY[i:i + chunk]), BODY[i:i + chunk]) for i in range(0, len(BODY), chunk))
    with serving(says(CHUNKED, text + b'0\r\n\r\n')) as url: fetch(url, tmp_path / 'x', md5=MD5)
    assert (tmp_path / 'x').read_bytes() == BODY


def test_no_more_than_announced_is_written(tmp_path, monkeypatch):
    with serving(lambda s, asked, k: endless(s, HEAD + b'\r\n')) as url:
        with refuses('damaged, or another file'): fetch(url, tmp_path / 'x', md5=MD5, size=len(BODY))
        most, write = [], downloads._written
        monkeypatch.setattr(downloads, 'MOST_BYTES', 300_000)
        ends(url, tmp_path / 'x', 'larger than 300 kB')
    assert len(kept(tmp_path / 'x')) <= 300_000


# Fetching: files

@pytest.mark.parametrize('name', ['x', 'x.part'])
@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda p: p.symlink_to('/dev/full')], ids=['pipe', 'folder', 'device'])
def test_what_is_no_file_is_in_the_way(make, name, tmp_path):
    make(tmp_path / name)
    with serving(whole()) as url, refuses(f'{tmp_path}/{name}', 'move'): fetch(url, tmp_path / 'x', md5=MD5)
    assert os.listdir(tmp_path) == [name]


def test_a_limit_on_the_size_of_files(tmp_path):
    with serving(whole()) as url:
        usual, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, usual[1]))
        try: ends(url, tmp_path / 'x', 'File too large', 'free some space', 'what has come is kept')
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
            signal.signal(signal.SIGXFSZ, handler)
    assert BODY.startswith(kept(tmp_path / 'x'))


def two_at_once(tmp_path, second):
    "The second comes when the first is half-way: the first goes on and has it all, from one request."
    half, go_on, got = threading.Event(), threading.Event(), []
    def slow(s, asked, k):
        s.sendall(HEAD + b'Content-Length: 50000\r\n\r\n' + BODY[:30_000])
        half.set()
        go_on.wait(LONG)
        s.sendall(BODY[30_000:])
    with serving(slow) as url:
        first = threading.Thread(target=lambda: got.append(fetch(url, tmp_path / 'x', md5=MD5)))
        first.start()
        assert half.wait(LONG)
        while len(kept(tmp_path / 'x') or b'') < 30_000: time.sleep(.01)
        said = second(url, tmp_path / 'x')
        assert kept(tmp_path / 'x') == BODY[:30_000]
        go_on.set()
        first.join(LONG)
        assert got and len(url.asked) == 1
    one_line(said, 'is being fetched', 'by another process', 'wait', 'run again')
    assert (tmp_path / 'x').read_bytes() == BODY and os.listdir(tmp_path) == ['x']


def test_two_threads_fetch_one_file(tmp_path):
    def second(url, path):
        with pytest.raises(LtpaError) as e: fetch(url, path, md5=MD5)
        return str(e.value)
    two_at_once(tmp_path, second)


FETCH = 'import sys; from ltpa.downloads import fetch' + TELL.format(call='print(fetch(*sys.argv[1:3], md5=sys.argv[3]))')


def test_two_processes_fetch_one_file(tmp_path):
    def second(url, path):
        return subprocess.run([sys.executable, '-c', FETCH, url, path, MD5], capture_output=True, text=True, timeout=LONG).stdout.strip()
    two_at_once(tmp_path, second)


def test_a_dead_fetcher_is_in_nobodys_way(tmp_path):
    with serving(ranged(30_000, then=lambda s: time.sleep(LONG))) as url:
        with subprocess.Popen([sys.executable, '-c', FETCH, url, tmp_path / 'x', MD5]) as process:
            while len(kept(tmp_path / 'x') or b'') < 30_000: time.sleep(.01)
            process.kill()
    with serving(ranged(10**6)) as url: fetch(url, tmp_path / 'x', md5=MD5)
    assert start_of(url.asked[0]) == 30_000 and (tmp_path / 'x').read_bytes() == BODY


def test_whoever_comes_just_too_late_finds_the_file(tmp_path, monkeypatch):
    "Between our opening the part and our locking it, the other has finished, and it has another name."
    def finished(fd):
        if not (tmp_path / 'x').exists():
            (tmp_path / 'x.part').write_bytes(BODY)
            (tmp_path / 'x.part').rename(tmp_path / 'x')
        return lock(fd)
    monkeypatch.setattr(downloads, 'lock', finished)
    with serving(whole()) as url: assert fetch(url, tmp_path / 'x', md5=MD5) == tmp_path / 'x'
    assert not url.asked and (tmp_path / 'x').read_bytes() == BODY and os.listdir(tmp_path) == ['x']


def test_many_at_once_lose_nothing(tmp_path):
    said = []
    def one(url):
        try: said.append(fetch(url, tmp_path / 'x', md5=MD5, size=len(BODY)))
        except LtpaError as e: said.append(str(e))
    with serving(ranged(9_000)) as url:
        threads = [threading.Thread(target=one, args=(url,)) for _ in range(8)]
        for t in threads: t.start()
        for t in threads: t.join(LONG)
    assert len(said) == 8 and tmp_path / 'x' in said and all(s == tmp_path / 'x' or 'is being fetched' in s for s in said)
    assert (tmp_path / 'x').read_bytes() == BODY and os.listdir(tmp_path) == ['x'] and len(url.asked) == 6


# Archives

def block(name, size, kind):
    "A header of a tar that announces whatever size, and its checksum."
    field = b'%011o\0' % size if 0 <= size < 8**11 else bytes([0x80 if size > 0 else 0xff]) + (size % 2**88).to_bytes(11, 'big')
    head = name.encode().ljust(100, b'\0') + b'0000644\0' + b'0000000\0' * 2 + field + b'00000000000\0' + b' ' * 8 + kind
    head += bytes(100) + b'ustar\x0000' + bytes(247)
    return head[:148] + b'%06o\0 ' % sum(head) + head[156:]


def padded(data): return data + bytes(-len(data) % 512)


def record(key, value):
    "A line of an extended header."
    text = f' {key}={value}\n'.encode() if isinstance(value, str) else b' %s=%s\n' % (key.encode(), value)
    n = next(n for n in range(len(text), len(text) + 20) if len(str(n)) + len(text) == n)
    return str(n).encode() + text


def extended(*records, kind=b'x'):
    text = b''.join(records)
    return block('pax', len(text), kind) + padded(text)


PLAIN = block('a', 1, b'0') + padded(b'1')
END = bytes(1024)

UNPACK = '''
import os, resource, sys
from ltpa.downloads import unpack
def peak():
    if not os.path.exists('/proc/self/status'): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])      # the other is our parent's, too
before = peak()
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
resource.setrlimit(resource.RLIMIT_CPU, (15, 15))
''' + TELL.format(call='unpack(sys.argv[1], sys.argv[1] + ".out")') + '''
print((peak() - before) // 1024)
'''


def bounded(path, *words, megabytes=100):
    "Refused in one line, in fifteen seconds of the processor, and with no more memory than that."
    done = subprocess.run([sys.executable, '-c', UNPACK, path], capture_output=True, text=True, timeout=3 * LONG)
    *said, took = done.stdout.splitlines()
    assert not done.returncode and len(said) == 1, done.stdout + done.stderr
    one_line(said[0], path, *words)
    assert int(took) < megabytes, f'{took} MB'
    assert os.listdir(path.parent) == [path.name]


def huge(path, head, size=1_500_000_000):
    "A tar of that size which takes no room on the disk: zeros that were never written."
    path.write_bytes(head)
    os.truncate(path, size + 10240)
    return path


@pytest.mark.parametrize('kind', [b'L', b'K', b'x', b'g', b'X'], ids=bytes.decode)
@pytest.mark.parametrize('before', [b'', PLAIN], ids=['first', 'later'])
def test_header_of_a_gigabyte(kind, before, tmp_path):
    bounded(huge(tmp_path / 'x.tar', before + block('long', 1_500_000_000, kind)), 'no set of pictures')


SPARSE = [record('GNU.sparse.major', '1'), record('GNU.sparse.minor', '0'), record('GNU.sparse.name', 'a'),
          record('GNU.sparse.realsize', '9')]


@pytest.mark.parametrize('head', [
    extended(*SPARSE) + block('a', 10**9, b'0'),                                      # its map has no end of a line
    extended(*SPARSE) + block('a', 10**9, b'0') + b'99999999999\n' + b'0\n' * 20_000_000,
    block('a', 10**9, b'S')[:482] + b'\1' + block('a', 10**9, b'S')[483:],
    PLAIN + extended(record('GNU.sparse.map', ','.join(['0'] * 9000))) + block('a', 1, b'0') + padded(b'1'),
], ids=['a line', 'lines', 'old', 'a long map'])
def test_maps_of_sparse_files(head, tmp_path): bounded(huge(tmp_path / 'x.tar', head, 10**9), 'x.tar')


def overlapping(n):
    "Records that each claim one byte: their keys run on to the end of the header, and together take its square."
    return b'1 ' * (n // 2) + b'='


@pytest.mark.parametrize('text', [overlapping(4000), b'9' * 4000, b'1' * 4000 + b' a=b\n', record('a', 'b') * 1500,
                                  b''.join(record(f'k{i}', '') for i in range(700))], ids=lambda t: t[:12].decode())
@pytest.mark.parametrize('kind', [b'x', b'g'], ids=bytes.decode)
def test_headers_that_take_time_and_memory(text, kind, tmp_path):
    one = block('pax', len(text), kind) + padded(text) + block('a', 0, b'0')
    (tmp_path / 'x.tgz').write_bytes(gzip.compress(one * 50 + PLAIN, 1))           # cut off: refused in any case
    bounded(tmp_path / 'x.tgz', 'x.tgz')


def test_an_archive_that_takes_too_long(tmp_path, monkeypatch):
    "The processor's time is counted, not the day's: a slow disk is no bomb."
    clock = iter(range(0, 10**6, 5))
    monkeypatch.setattr(downloads.time, 'thread_time', lambda: next(clock))
    with refuses('no set of pictures'): unpack(tar(tmp_path / 'x.tar', *((f'{k}', BODY[:20_000]) for k in range(20))), tmp_path / 'out')
    assert os.listdir(tmp_path) == ['x.tar']


@pytest.mark.parametrize('text', [b'x' * 5000, record('path', 'a' * 5000), b''.join(record(f'k{i}', '') for i in range(200))],
                         ids=['name', 'path', 'keys'])
def test_headers_that_no_picture_needs(text, tmp_path):
    "Small enough to be read, and too large to be meant."
    (tmp_path / 'x.tar').write_bytes(block('pax', len(text), b'L' if text[:1] == b'x' else b'x') + padded(text) + PLAIN + END)
    with refuses('no set of pictures', 'names and headers without an end'): unpack(tmp_path / 'x.tar', tmp_path / 'out')


def test_headers_that_are_fine(tmp_path):
    (tmp_path / 'x.tar').write_bytes(extended(record('path', 'd/' + 'a' * 200), *(record(f'k{i}', 'v' * 30) for i in range(50))) + PLAIN + END)
    assert [p.name for p in unpack(tmp_path / 'x.tar', tmp_path / 'out').rglob('*')] == ['d', 'a' * 200]


def test_headers_one_after_another(tmp_path):
    for kind in b'L', b'x', b'g':
        (tmp_path / 'x.tar').write_bytes((block('pax', 512, kind) + padded(b'9 a=b\n\n' * 70)) * 5000)
        bounded(tmp_path / 'x.tar', 'x.tar')


@pytest.mark.parametrize('kind', [b'L', b'K', b'x', b'g', b'0', b'5', b'7', b'\0', b'Q', b'S', b'V'], ids=lambda k: ascii(k))
@pytest.mark.parametrize('size', [-1, -512, -10**12, 2**40, 2**80, 8**11 - 1])
def test_sizes_that_no_file_has(kind, size, tmp_path):
    (tmp_path / 'x.tar').write_bytes(PLAIN + block('b', size, kind) + bytes(2048) + PLAIN + END)
    with pytest.raises(LtpaError) as e: unpack(tmp_path / 'x.tar', tmp_path / 'out')
    one_line(str(e.value), 'x.tar')
    assert os.listdir(tmp_path) == ['x.tar']


@pytest.mark.parametrize('value', ['-1', '-512', '9' * 30, '9' * 4000, '1e9', 'nan', '', '0x10', '1_0'])
def test_sizes_in_extended_headers(value, tmp_path):
    (tmp_path / 'x.tar').write_bytes(extended(record('size', value)) + PLAIN + PLAIN.replace(b'a', b'b', 1) + END)
    try: out = unpack(tmp_path / 'x.tar', tmp_path / 'out')
    except LtpaError as e: one_line(str(e), 'x.tar')
    else: assert sum(p.stat().st_size for p in out.rglob('*')) < 3000
    assert {'x.tar'} <= set(os.listdir(tmp_path)) <= {'x.tar', 'out'}


ODD = [('a\0b', 'control characters'), ('a\nb', 'control characters'), ('a\x1b[31mb', 'control characters'), ('a\x7f', 'control characters'),
       ('x' * 256, 'too long'), ('d/' * 60 + 'x', 'too deep'), ('ä' * 128, 'too long'), ('/'.join(['x' * 100] * 11), 'too long'),
       ('/'.join('x' * 2000), 'too'), ('../' * 99 + 'x', 'outside'), ('./.', 'without a name')]


@pytest.mark.parametrize('name, words', ODD, ids=lambda v: ascii(v)[:20])
def test_odd_names_in_a_tar(name, words, tmp_path):
    (tmp_path / 'x.tar').write_bytes(extended(record('path', name)) + PLAIN + END)
    with refuses('x.tar', words): unpack(tmp_path / 'x.tar', tmp_path / 'out')
    assert os.listdir(tmp_path) == ['x.tar']


@pytest.mark.parametrize('name, words', [pair for pair in ODD if '\0' not in pair[0]], ids=lambda v: ascii(v)[:20])
def test_odd_names_in_a_zip(name, words, tmp_path):
    with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as z:
        info = zipfile.ZipInfo('x')
        info.filename = name
        z.writestr(info, b'1')
    with refuses('x.zip', words): unpack(tmp_path / 'x.zip', tmp_path / 'out')
    assert os.listdir(tmp_path) == ['x.zip']


def archive(path, *members):
    if path.suffix != '.zip': return tar(path, *members)
    with zipfile.ZipFile(path, 'w') as z:
        for name, data in members: z.writestr(zipfile.ZipInfo(name), data)
    return path


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('suffix', ['tar', 'tgz', 'zip'])
@pytest.mark.parametrize('names, words', [
    (['a/x.png', 'A/y.png'], "on some systems the same name as 'a'"), (['x.png', 'X.PNG'], "the same name as 'x.png'"),
    (['stra\u00dfe/1', 'STRASSE/2'], 'the same name'), (['u\u0308/1', '\u00fc/2'], 'the same name'),
    (['a', 'a/b'], 'both a file and a folder'), (['a/b', 'a'], 'both a file and a folder'), (['a/b/c/d', 'a/b'], 'both a file')])
def test_names_that_do_not_go_together(names, words, suffix, tmp_path):
    archive(tmp_path / f'x.{suffix}', *((name, b'1') for name in names))
    with refuses(f'cannot unpack {tmp_path}/x.{suffix}', words, 'nothing was unpacked'): unpack(tmp_path / f'x.{suffix}', tmp_path / 'out')
    assert os.listdir(tmp_path) == [f'x.{suffix}']


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('suffix', ['tar', 'zip'])
def test_of_two_members_with_one_name_the_last_counts(suffix, tmp_path):
    out = unpack(archive(tmp_path / f'x.{suffix}', ('a/x', b'longer'), ('a/y', b'2'), ('a/x', b'3')), tmp_path / 'out')
    assert {p.name: p.read_bytes() for p in (out / 'a').iterdir()} == dict(x=b'3', y=b'2')


def test_names_that_the_locale_lacks(tmp_path):
    "Bytes that are no UTF-8 stay what they are."
    out = unpack(tar(tmp_path / 'x.tar', ('\udcff.txt', b'1'), format=tarfile.GNU_FORMAT), tmp_path / 'out')
    assert os.listdir(os.fsencode(out)) == [b'\xff.txt']


def changed(path, offset, data, mark=b'PK\1\2'):
    "Write over the entry in a zip's list."
    whole = bytearray(path.read_bytes())
    at = whole.index(mark) + offset
    whole[at:at + len(data)] = data
    path.write_bytes(whole)


def packed(path, data=bytes(50_000), kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, 'w', kind) as z: z.writestr('a', data)
    return path


@pytest.mark.parametrize('offset, data', [
    (24, struct.pack('<I', 7)), (24, struct.pack('<I', 90_000)), (24, struct.pack('<I', 2**32 - 1)), (20, struct.pack('<I', 3)),
    (20, struct.pack('<I', 2**32 - 1)), (42, struct.pack('<I', 9)), (42, struct.pack('<I', 2**31)), (42, b'\xff' * 4), (28, b'\xff\xff'),
    (30, b'\xff\xff'), (16, b'abcd')], ids=lambda v: str(v))
def test_lists_of_zips_that_lie(offset, data, tmp_path):
    changed(packed(tmp_path / 'x.zip'), offset, data)
    try: out = unpack(tmp_path / 'x.zip', tmp_path / 'out')
    except LtpaError as e: one_line(str(e), 'x.zip')
    else: assert [p.read_bytes() for p in out.iterdir()] == [bytes(50_000)]
    assert {'x.zip'} <= set(os.listdir(tmp_path)) <= {'x.zip', 'out'}


def test_no_more_is_unpacked_than_is_announced(tmp_path):
    "The checksum is that of the seven bytes that the list announces; behind them come megabytes."
    import zlib
    changed(packed(tmp_path / 'x.zip', bytes(90_000_000)), 24, struct.pack('<I', 7))
    changed(tmp_path / 'x.zip', 16, struct.pack('<I', zlib.crc32(bytes(7))))
    try: out = unpack(tmp_path / 'x.zip', tmp_path / 'out')
    except LtpaError as e: one_line(str(e))
    else: assert (out / 'a').stat().st_size == 7
    with open(packed(tmp_path / 'y.zip', bytes(7), zipfile.ZIP_STORED), 'rb'): changed(tmp_path / 'y.zip', 24, struct.pack('<I', 9))
    with refuses('y.zip', 'damaged'): unpack(tmp_path / 'y.zip', tmp_path / 'other')


@pytest.mark.parametrize('kind', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packed_in_ways_that_swell(kind, tmp_path):
    "Four kilobytes of these give a hundred megabytes at once."
    bounded(packed(tmp_path / 'x.zip', bytes(100_000), kind), 'packed in a way that is not known')


@pytest.mark.parametrize('method', [1, 6, 9, 98, 99, 65535])
def test_unknown_ways_to_pack(method, tmp_path):
    changed(packed(tmp_path / 'x.zip'), 10, struct.pack('<H', method))
    with refuses('packed in a way that is not known'): unpack(tmp_path / 'x.zip', tmp_path / 'out')


def test_encrypted(tmp_path):
    changed(packed(tmp_path / 'x.zip'), 8, struct.pack('<H', 1))
    with refuses("member 'a' is encrypted"): unpack(tmp_path / 'x.zip', tmp_path / 'out')


def test_members_that_share_their_bytes(tmp_path):
    "The bomb whose entries all lead to one piece: what they announce together is counted."
    packed(tmp_path / 'x.zip', bytes(10_000_000))
    whole = (tmp_path / 'x.zip').read_bytes()
    local, entry = whole[:whole.index(b'PK\1\2')], whole[whole.index(b'PK\1\2'):whole.index(b'PK\5\6')]
    n = 500
    end = struct.pack('<4sHHHHIIH', b'PK\5\6', 0, 0, n, n, n * len(entry), len(local), 0)
    (tmp_path / 'x.zip').write_bytes(local + entry * n + end)
    bounded(tmp_path / 'x.zip', 'no set of pictures')


def test_a_list_of_a_million_members(tmp_path):
    entry = packed(tmp_path / 'x.zip', b'').read_bytes()
    entry = entry[entry.index(b'PK\1\2'):entry.index(b'PK\5\6')]
    n = 1_000_000
    end = struct.pack('<4sHHHHIIH', b'PK\5\6', 0, 0, 65535, 65535, n * len(entry), 0, 0)
    (tmp_path / 'x.zip').write_bytes(entry * n + end)
    bounded(tmp_path / 'x.zip', 'no set of pictures')


def test_pipes_and_folders_are_no_archives(tmp_path):
    os.mkfifo(tmp_path / 'x.tar')
    (tmp_path / 'y.zip').mkdir()
    for name in 'x.tar', 'y.zip':
        with refuses(f'cannot unpack {tmp_path}/{name}', 'is no file'): unpack(tmp_path / name, tmp_path / 'out')


KILLED = '''
import os, sys, shutil
from ltpa.downloads import unpack
shutil.copyfileobj = lambda *a: os.kill(os.getpid(), 9)
unpack(sys.argv[1], sys.argv[2])
'''


def test_leftovers_of_a_kill_are_swept(tmp_path):
    path = tar(tmp_path / 'x.tar', ('a/b', b'1'), ('c', b'2'))
    for _ in range(3):
        done = subprocess.run([sys.executable, '-c', KILLED, path, tmp_path / 'out'])
        assert done.returncode == -9
        assert len(os.listdir(tmp_path)) == 2, 'the last one is left, those before are gone'
    for kept in '.out.mine', '.other.abcdefgh', '.out.ABC':                   # not ours
        (tmp_path / kept).mkdir()
        (tmp_path / kept / 'photo').touch()
    (tmp_path / '.out.link').symlink_to(tmp_path / '.out.mine')
    unpack(path, tmp_path / 'out')
    assert sorted(os.listdir(tmp_path)) == ['.other.abcdefgh', '.out.ABC', '.out.link', '.out.mine', 'out', 'x.tar']
    assert (tmp_path / '.out.mine' / 'photo').exists()


def test_sweeping_spares_those_who_unpack(tmp_path, monkeypatch):
    path, copy = tar(tmp_path / 'x.tar', ('a', b'1'), ('b', b'2')), downloads.shutil.copyfileobj
    seen = []
    def meanwhile(source, target):
        if not seen:
            seen.append(1)
            other = subprocess.run([sys.executable, '-c', KILLED.replace('shutil.copyfileobj =', 'x ='), path, tmp_path / 'out'])
            seen.append(other.returncode)
        copy(source, target)
    monkeypatch.setattr(downloads.shutil, 'copyfileobj', meanwhile)
    with refuses('cannot unpack', 'not empty'): unpack(path, tmp_path / 'out')     # the other was first
    assert seen == [1, 0] and sorted(os.listdir(tmp_path)) == ['out', 'x.tar'] and len(os.listdir(tmp_path / 'out')) == 2


# Signals

@pytest.fixture(autouse=True, scope='module')
def hang_up_is_heard():
    "Under nohup it is ignored, here and in all that we start."
    usual = signal.getsignal(signal.SIGHUP)
    if usual == signal.SIG_IGN: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    if usual == signal.SIG_IGN: signal.signal(signal.SIGHUP, usual)


def command(*argv, **kw):
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS='1') | kw.pop('env', {})
    return subprocess.Popen([sys.executable, *kw.pop('python', ()), '-m', 'ltpa', *map(str, argv)], env=env,
                            stdout=kw.pop('stdout', subprocess.PIPE), stderr=subprocess.PIPE, text=True, **kw)


def photo(folder):
    from PIL import Image
    Image.new('RGB', (40, 40), (200, 30, 30)).save(folder / 'p.png')
    return folder / 'p.png'


NAMES = {signal.SIGINT: 'interrupted', signal.SIGTERM: 'stopped by SIGTERM', signal.SIGHUP: 'stopped by SIGHUP'}
MOMENTS = ['argparse', 'ltpa.recipes', 'numpy.core' if np.__version__ < '2' else 'numpy._core', 'torch._C', 'torch.nn.functional', 'torch',
           'PIL.Image', 'ltpa.data', 'ltpa.training', 'ltpa.maps', 'matplotlib.figure']


@pytest.mark.slow
@pytest.mark.parametrize('moment, signum', [('torch', signal.SIGINT)] + [
    pytest.param(m, s, marks=pytest.mark.whole) for m in MOMENTS for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if (m, s) != ('torch', signal.SIGINT) and (s == signal.SIGINT or m in (MOMENTS[0], MOMENTS[3], 'ltpa.maps', MOMENTS[-1]))])
def test_a_signal_while_importing(moment, signum, tmp_path):
    "Python says what it has imported; right after `moment` comes the signal."
    said = []
    with command('explain', photo(tmp_path), '--out', tmp_path / 'map.png', python=['-X', 'importtime'], cwd=tmp_path) as process:
        for line in process.stderr:
            said.append(line)
            if line.split('|')[-1].strip() == moment: break
        else: pytest.skip(f'{moment} is not imported here')
        process.send_signal(signum)
        rest = process.stderr.read()
    own = [line for line in [*said, *rest.splitlines()] if not line.startswith('import time:')]
    assert process.wait(LONG) == 128 + signum and own == [f'ltpa: {NAMES[signum]}; run it again'], own
    assert os.listdir(tmp_path) == ['p.png']


@pytest.mark.parametrize('signum', NAMES)
@pytest.mark.parametrize('catch', ['except BaseException: pass', 'except KeyboardInterrupt as e: raise ImportError from e', 'finally: 1 / 0'])
def test_a_signal_that_an_import_would_swallow(catch, signum, tmp_path):
    (tmp_path / 'swallows.py').write_text(f'import signal\ntry: signal.raise_signal({signum:d})\n{catch}\n')
    code = 'from ltpa.interrupts import *\non_signals(interrupt)\nimport swallows\nprint("it is lost")'
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path)))
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, '', f'ltpa: {NAMES[signum]}; run it again\n')


@pytest.mark.slow
@pytest.mark.parametrize('signum', NAMES)
def test_a_signal_at_work(signum, tmp_path):
    "What is half-done is cleared away, but for the part that a download goes on from."
    with serving(ranged(30_000, then=lambda s: time.sleep(LONG))) as url:
        code = ('import ltpa.names, sys; from ltpa.__main__ import run\n'
                f'ltpa.names.DOWNLOADS["svhn"] = None, [({str(url)!r}, 50000, {MD5!r})]; sys.exit(run())')
        env = os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path), LTPA_DATA=str(tmp_path))
        with subprocess.Popen([sys.executable, '-c', code, 'download', 'svhn'], stderr=subprocess.PIPE, text=True, env=env) as process:
            part = tmp_path / 'svhn' / 'set.bin.part'
            while not (part.exists() and part.stat().st_size >= 30_000): time.sleep(.02)
            process.send_signal(signum)
            assert process.stderr.read() == f'ltpa: {NAMES[signum]}; run it again\n' and process.wait() == 128 + signum
    assert part.read_bytes() == BODY[:30_000]


def small_set(folder):
    for split in 'train', 'test':
        data = pictures(28, 16)
        np.savez(folder / f'{split}.npz', images=data.images.numpy(), labels=data.labels.numpy())
    return (f'train {folder}/vgg_gap --width 0.03125 --early-pools 2 --batch-size 8 --device cpu --epochs 4000 --out {folder}/run').split()


def wait_for(path, process, seconds=LONG):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(.02)


@pytest.mark.slow
def test_a_closed_terminal_saves_the_training(tmp_path):
    "The system sends SIGHUP, the shell once more, and what is printed from then on goes nowhere."
    from ltpa.checkpoints import read_checkpoint
    how = small_set(tmp_path)
    pid, terminal = pty.fork()
    if not pid:
        os.environ |= dict(PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS='1')
        os.execv(sys.executable, [sys.executable, '-m', 'ltpa', *how])
    drain = threading.Thread(target=lambda: [None for _ in iter(lambda: _read(terminal), b'')], daemon=True)
    drain.start()
    checkpoint, end = tmp_path / 'run' / 'checkpoint.safetensors', time.monotonic() + LONG
    while not checkpoint.exists() or not read_checkpoint(checkpoint)[1]['step']:
        assert time.monotonic() < end
        time.sleep(.05)
    os.kill(pid, signal.SIGHUP)
    os.close(terminal)
    with contextlib.suppress(ProcessLookupError): os.kill(pid, signal.SIGHUP)
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        assert time.monotonic() < end + LONG
        time.sleep(.05)
    assert os.waitstatus_to_exitcode(done[1]) == 128 + signal.SIGHUP
    step = read_checkpoint(checkpoint)[1]['step']
    assert 0 < step < 12_000 and not (tmp_path / 'run' / 'result.json').exists()


def _read(terminal):
    try: return os.read(terminal, 4096)
    except OSError: return b''


@pytest.mark.whole
def test_nohup_is_heeded(tmp_path):
    how = small_set(tmp_path)
    process = command(*how, '--quiet', preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN), cwd=tmp_path)
    wait_for(tmp_path / 'run' / 'checkpoint.safetensors', process)
    process.send_signal(signal.SIGHUP)
    time.sleep(.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=LONG)
    assert process.returncode == 143 and 'stopped by SIGTERM' in said.splitlines()[-1]


def test_messages_that_nobody_hears_do_not_end_a_training(monkeypatch):
    from types import SimpleNamespace
    from ltpa.interrupts import Interrupted, orderly_stop
    class Gone(io.StringIO):
        def write(self, text): raise OSError(errno.EIO, 'Input/output error')
    for stderr in Gone(), None, closed():
        monkeypatch.setattr(sys, 'stderr', stderr)
        learn = SimpleNamespace(step=3, steps=9, saved_in=lambda: ['c'])
        with pytest.raises(Interrupted, match='stopped by SIGHUP after step 3 of 9, saved in c') as e, orderly_stop(learn) as asked:
            for _ in range(3): signal.raise_signal(signal.SIGHUP)                 # one request
        assert asked == [signal.SIGHUP] * 3 and e.value.signum == signal.SIGHUP


def closed():
    f = io.StringIO()
    f.close()
    return f


def shell(text, tmp_path, unbuffered=''):
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path), LTPA=f'{sys.executable} -m ltpa', PYTHONUNBUFFERED=unbuffered)
    done = subprocess.run(['bash', '-c', text], capture_output=True, text=True, timeout=LONG, env=env, cwd=tmp_path)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize('unbuffered', ['', '1'], ids=['at the end', 'line by line'])
@pytest.mark.parametrize('text, code, out, err', [
    ('$LTPA download | head -c 3; exit ${PIPESTATUS[0]}', 0, '   ', ''),
    ('$LTPA download | (exec <&-; sleep 1); exit ${PIPESTATUS[0]}', 0, '', ''),
    ('$LTPA --help | (exec <&-; sleep 1); exit ${PIPESTATUS[0]}', 0, '', ''),
    ('$LTPA download >&-', 0, '', ''), ('$LTPA download >&- 2>&- <&-', 0, '', ''), ('$LTPA download cifar11 2>&-', 2, '', ''),
    ('$LTPA download > /dev/full', 2, '', 'No space left on device; free some space'),
    ('$LTPA download cifar11 2> /dev/full', 2, '', ''), ('$LTPA trian 2>&-', 2, '', '')])
def test_output_that_nobody_takes(text, code, out, err, unbuffered, tmp_path):
    done = shell(text, tmp_path, unbuffered)
    assert done[0] == code and done[1] == out and (err in done[2] if err else not done[2]), done
    if err: one_line(done[2].strip(), 'ltpa: ')


def test_closed_outputs_do_not_write_into_our_files(tmp_path):
    "What is opened next would get the number of what is closed, and what is printed would go there."
    code = ('import os, sys\nfrom ltpa.__main__ import _open_what_is_closed\n_open_what_is_closed()\n'
            'f = open(sys.argv[1], "wb"); print("lost"); print("lost", file=sys.stderr); os.write(2, b"lost"); f.write(b"ours")')
    done = subprocess.run(['bash', '-c', f'exec >&- 2>&- <&-; {sys.executable} -c "$CODE" "$FILE"'],
                          env=os.environ | dict(CODE=code, FILE=str(tmp_path / 'x'), PYTHONPATH=os.pathsep.join(sys.path)))
    assert done.returncode == 0 and (tmp_path / 'x').read_bytes() == b'ours'


def test_the_command_begins_without_torch():
    "So that the first line of ours comes early, from where on signals are heeded."
    code = 'import sys, ltpa.__main__; print(sorted({"torch", "numpy", "argparse", "typing"} & {*sys.modules}))'
    done = subprocess.run([sys.executable, '-I', '-S', '-c', f'import sys; sys.path[:0] = {sys.path!r}; ' + code], capture_output=True, text=True)
    assert 'torch' not in done.stdout and 'numpy' not in done.stdout and 'argparse' not in done.stdout, done.stdout + done.stderr
    settings = (Path(__file__).parents[1] / 'settings.ini').read_text()
    assert 'console_scripts = ltpa=ltpa.__main__:run\n' in settings


def test_handlers_of_a_caller_stay(monkeypatch):
    "A program that calls the command with arguments keeps its process to itself."
    from ltpa.cli import main
    usual = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert main(['download', 'cifar11']) == 2
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == usual


# The clock

@pytest.fixture
def set_back(monkeypatch):
    "Each look at the time of day shows an hour less."
    now = iter(range(2**31, 0, -3600))
    monkeypatch.setattr(time, 'time', lambda: float(next(now)))


def test_a_study_takes_no_negative_time(set_back, tmp_path, capsys):
    from ltpa.studies import Study, run_study
    dice = Study('dice', 'Eyes', [dict(sides=6)], lambda case, seed: [dict(eyes=seed)], keys=['sides'])
    found = run_study(dice, [1, 2], tmp_path / 'dice.json')
    assert found['provenance']['seconds'] >= 0
    assert provenance()['cpu_seconds'] >= 0


def test_a_bar_shows_no_negative_time(set_back):
    text = io.StringIO()
    with Bar(range(50), file=text, mininterval=0, miniters=1) as bar:
        for _ in bar: pass
    assert '50/50' in text.getvalue() and '-' not in text.getvalue(), text.getvalue()
    bar = Bar(total=9, file=io.StringIO(), mininterval=0)
    bar.update(3)
    assert 0 <= bar.format_dict['elapsed'] < LONG and bar.last_print_n == 3, 'it stands still until the clock has caught up'


def test_library_measures_with_the_clock_that_only_goes_forward():
    for path in Path(files.__file__).parent.glob('*.py'):
        assert 'time.time()' not in path.read_text() and 'st_mtime' not in path.read_text(), path.name


# Git

def fake_git(folder, monkeypatch, text):
    (folder / 'bin').mkdir()
    (folder / 'bin' / 'git').write_text(text)
    (folder / 'bin' / 'git').chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder}/bin{os.pathsep}{os.environ["PATH"]}')


@pytest.mark.parametrize('text, commit', [
    ('#!/bin/sh\nsleep 600\n', None), ('#!/bin/sh\nsleep 600 & sleep 600\n', None), ('#!/bin/sh\necho 0123456789ab\nsleep 600\n', None),
    ('#!/bin/sh\nyes 0123456789ab\n', None), ('#!/bin/sh\nexec cat /dev/zero\n', None), ('#!/bin/sh\nprintf "\\377\\376"\n', None),
    ('#!/bin/sh\nexit 3\n', None), ('#!/bin/sh\nkill -9 $$\n', None), ('no program', None), ('#!/no/such/program\n', None),
    ('#!/bin/sh\nread x; echo 0123456789ab\n', '0123456789ab+'), ('#!/bin/sh\necho 0123456789ab; yes >&2 & sleep .1; kill $!\n', '0123456789ab+'),
    ('#!/bin/sh\ntrap "" TERM\nsleep 600\n', None)], ids=ascii)
def test_hostile_git(text, commit, tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'GIT_SECONDS', 1.)
    fake_git(tmp_path, monkeypatch, text)
    begin = time.monotonic()
    assert git_commit(tmp_path) == commit
    assert time.monotonic() - begin < 20


def test_no_more_of_git_is_read_than_is_needed(tmp_path, monkeypatch):
    fake_git(tmp_path, monkeypatch, '#!/bin/sh\nhead -c 10000000 /dev/zero | tr "\\0" a\n')
    assert files._git(tmp_path, 'status') == 'a' * files.GIT_BYTES


def test_git_ends_with_all_that_it_started(tmp_path, monkeypatch):
    import psutil
    monkeypatch.setattr(files, 'GIT_SECONDS', .5)
    fake_git(tmp_path, monkeypatch, '#!/bin/sh\nsleep 612 &\necho $! > pid\nsleep 612\n')
    assert git_commit(tmp_path) is None
    pid = int((tmp_path / 'pid').read_text())
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE: break
        time.sleep(.05)
    else: pytest.fail('it sleeps on')


def test_a_repository_starts_no_program(tmp_path):
    "`git status` would run what `core.fsmonitor` names."
    git = lambda *args: subprocess.run(['git', '-c', 'user.name=x', '-c', 'user.email=x@y.z', *args], cwd=tmp_path, check=True, capture_output=True)
    git('init', '-q')
    (tmp_path / 'a').touch()
    git('add', 'a')
    git('commit', '-qm', 'x')
    (tmp_path / 'evil').write_text(f'#!/bin/sh\ntouch {tmp_path}/executed\n')
    (tmp_path / 'evil').chmod(0o755)
    git('config', 'core.fsmonitor', str(tmp_path / 'evil'))
    assert len(git_commit(tmp_path)) == 12 and not (tmp_path / 'executed').exists()


def test_changes_of_a_thousand_files_are_changes(tmp_path):
    git = lambda *args: subprocess.run(['git', '-c', 'user.name=x', '-c', 'user.email=x@y.z', *args], cwd=tmp_path, check=True, capture_output=True)
    git('init', '-q')
    for k in range(1000): (tmp_path / f'{k:090}').touch()
    git('add', '.')
    git('commit', '-qm', 'x')
    for k in range(1000): (tmp_path / f'{k:090}').write_text('x')
    assert git_commit(tmp_path).endswith('+') and json.dumps(git_commit(tmp_path))
