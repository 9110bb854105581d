"""Children that end when we end, however that happens: by themselves, by a signal, even by SIGKILL."""
import ctypes
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import psutil

# Reads until its pipe closes, which happens when we close it or die; then ends the group.
WATCH = 'read _; kill -KILL -"$0"'


@contextmanager
def ending(group):
    "Ends the process group `group` with the block, and when this process dies within it."
    watcher = subprocess.Popen(['sh', '-c', WATCH, str(group)], stdin=subprocess.PIPE, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try: yield
    finally:
        # It is gone if all went well; PermissionError is macOS's answer where only dead ones are left.
        with suppress(ProcessLookupError, PermissionError): os.killpg(group, signal.SIGKILL)
        watcher.kill()
        watcher.communicate()


@contextmanager
def started(command, **how):
    "Starts `command` in a group of its own, which ends with the block, and when this process dies within it."
    process = subprocess.Popen(command, start_new_session=True, **how)
    try:
        with ending(process.pid): yield process
    finally: process.wait()


def end_all():
    "Ends every process that descends from this one."
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess): process.kill()


def end_with_make():
    "If make started this process: SIGTERM when make is gone, which itself passes SIGTERM on but not SIGKILL."
    parent = psutil.Process().parent()
    if not (sys.platform == 'linux' and parent and parent.name() == 'make'): return
    set_death_signal = 1                                     # PR_SET_PDEATHSIG of <sys/prctl.h>
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)
