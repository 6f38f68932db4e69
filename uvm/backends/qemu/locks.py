"""Files that are locked as long as a process has their descriptor, which no fork of this process keeps.

A lock (flock) ends with the last copy of the descriptor that has it, and a process that is forked, as by
``multiprocessing``, has copies of all. So it closes those that are kept here, before anything else.

A process can lock and unlock what it inherits. QEMU inherits locks that stand for itself alone, and for which
no process waits: a guest that has escaped keeps or loses what is its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

#: The descriptors that a fork closes.
_kept: Final[set[int]] = set()


def open_lock(path: Path, *, make: bool = False) -> int:
    """Return the descriptor of a file to lock, which is kept from forks; OSError if it cannot be opened.

    :param make: make the file if it is not there.
    """
    # QEMU, which inherits some, cannot fill the disk that they are on.
    how = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if make else 0)
    return keep(os.open(path, how, 0o600))


def try_lock(path: Path, *, make: bool = False) -> int:
    """Return the descriptor of a file that is locked now; BlockingIOError if it was locked."""
    # Python has it on Unix only.
    import fcntl

    lock = open_lock(path, make=make)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        release(lock)
        raise
    return lock


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is not there, waiting for it."""
    import fcntl

    lock = open_lock(path, make=True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        release(lock)


def keep(fd: int) -> int:
    """Have forks close a descriptor; return it."""
    _kept.add(fd)
    return fd


def release(fd: int, *, shared: bool = False) -> None:
    """Close a descriptor.

    :param shared: the lock goes on as long as there is another copy, as QEMU's.
    """
    # A fork in between closes no other's descriptor.
    _kept.discard(fd)
    if not shared:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _close_in_fork() -> None:
    for fd in _kept:
        with suppress(OSError):
            os.close(fd)
    _kept.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_fork)
