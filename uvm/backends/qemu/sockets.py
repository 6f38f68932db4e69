"""The sockets between this process and QEMU, of which QEMU inherits its end.

A pair of connected sockets has no path, and nothing can connect to it later: it ends with this process, as
QEMU does. A VM that survives this process has sockets that QEMU listens at, in the directory of the VM. They
are bound and connected to here, before QEMU starts, so that there is nothing to wait for.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from attrs import frozen

#: Held while a path is found free and bound to: a socket that does not listen yet seems to be left there.
_binding: Final = threading.Lock()


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
    with _binding, ExitStack() as undo:
        if is_left(path):
            os.unlink(path)
        made = undo.enter_context(socket.socket(socket.AF_UNIX))
        with _short(path) as short:
            made.bind(short)
        made.listen(1)
        undo.pop_all()
    return made


def is_left(path: str) -> bool:
    """Return whether a socket is at a path, and nothing listens at it."""
    try:
        reach(path).close()
    except ConnectionRefusedError:
        # Files refuse too.
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False
    return False


@frozen
class SocketFile:
    """A socket at a path, by what no other has as long as it is listened at."""

    path: str
    device: int
    inode: int

    @classmethod
    def at(cls, path: str) -> SocketFile:
        """Return the one that is at a path now; OSError."""
        found = os.lstat(path)
        return cls(path, found.st_dev, found.st_ino)

    def remove(self) -> None:
        """Remove it, and nothing that has come in its place."""
        with suppress(OSError):
            found = os.lstat(self.path)
            if stat.S_ISSOCK(found.st_mode) and (found.st_dev, found.st_ino) == (self.device, self.inode):
                os.unlink(self.path)


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
