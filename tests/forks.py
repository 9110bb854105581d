"""Runs notebooks as nbdev_test does, each in a fork of this process, which has loaded what nearly all of them import.

Reads lines of a path and a log file, parted by a tab; answers each with an exit code. Ends with its input.
The arguments are the modules to load.
"""
import importlib
import os
import sys


def test(path, log):
    "Run the notebook or the folder `path`; what it prints goes to the file `log`."
    out, none = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), os.open(os.devnull, os.O_RDONLY)
    for old, new in (none, 0), (out, 1), (out, 2): os.dup2(old, new)
    for old in none, out: os.close(old)
    sys.argv[:] = ['nbdev_test', '--path', path, '--n_workers', '0']
    from nbdev.test import nbdev_test
    nbdev_test.__wrapped__(path, n_workers=0)


def main():
    for name in sys.argv[1:]: importlib.import_module(name)
    sys.path.pop(0)                               # this file's folder, which no notebook has
    while line := sys.stdin.readline():           # no loop over the file: it would read ahead
        if not (child := os.fork()): return test(*line.rstrip('\n').split('\t'))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == '__main__': main()
