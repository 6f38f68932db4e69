"""The sockets between this process and QEMU, of which QEMU inherits its end.

A pair of connected sockets has no path, and nothing can connect to it later: it ends with this process, as
QEMU does. A VM that survives this process has sockets that QEMU listens at, in the directory of the VM. They
are bound and connected to here, before QEMU starts, so that there is nothing to wait for.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from attrs import frozen


@frozen(repr=False)
class Link:
    """One connection with QEMU.

    :ivar ours: our end, connected.
    :ivar theirs: what QEMU inherits: its end, or the socket that it listens at.
    :ivar argument: what QEMU is started with, the value of a ``-chardev`` without its id.
    """

    ours: socket.socket
    theirs: socket.socket
    argument: str


def pair() -> Link:
    """Return a connection that ends with this process."""
    ours, theirs = socket.socketpair()
    return Link(ours, theirs, f"fd={theirs.fileno()}")


def listening(path: str) -> Link:
    """Return a connection to a socket at a path, which QEMU will listen at; OSError if there can be none."""
    with ExitStack() as undo:
        theirs = undo.enter_context(bound(path))
        ours = reach(path)
        undo.pop_all()
    return Link(ours, theirs, f"fd={theirs.fileno()},server=on,wait=off")


def bound(path: str) -> socket.socket:
    """Return a socket that listens at a path, in place of one that was left there; OSError."""
    if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
        os.unlink(path)
    with ExitStack() as undo:
        made = undo.enter_context(socket.socket(socket.AF_UNIX))
        with _short(path) as short:
            made.bind(short)
        made.listen(1)
        undo.pop_all()
    return made


def reach(path: str) -> socket.socket:
    """Connect to a socket at which QEMU listens; OSError if it does not."""
    with ExitStack() as undo:
        ours = undo.enter_context(socket.socket(socket.AF_UNIX))
        ours.setblocking(False)
        with _short(path) as short:
            ours.connect(short)
        undo.pop_all()
    return ours


@contextmanager
def _short(path: str) -> Iterator[str]:
    """Yield a path that is short enough for a socket's address, which has 108 bytes."""
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    finally:
        os.close(directory)
