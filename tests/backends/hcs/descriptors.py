"""What takes the place of WSAPoll and of named pipes elsewhere than on Windows: ``poll``, descriptors."""

from __future__ import annotations

import errno
import io
import itertools
import os
import select
import socket
import stat
import sys
from collections.abc import Iterator
from typing import ClassVar, Final, cast

import anyio.lowlevel

from uvm._names import pipe_key
from uvm.backend import ByteStream
from uvm.backends.hcs.hvsocket import HvSocketTransport, SocketApi, StandardSockets
from uvm.backends.hcs.pipes import NamedPipes
from uvm.backends.hcs.poller import Poller, PollSet
from uvm.backends.hcs.sockets import SocketListener, Sockets
from uvm.backends.hcs.transport import Pipes
from uvm.errors import HostError
from uvm.hresult import HResult

__all__ = ["new_poll_set", "new_poller", "new_sockets", "new_transport", "system_pipes"]


def new_poll_set() -> PollSet:
    """Return a poll set of this system."""
    if sys.platform == "win32":
        from uvm.backends.hcs.winsock import WinsockPollSet

        return WinsockPollSet()
    return PosixPollSet()


def new_poller() -> Poller:
    """Return a poller of this system."""
    return Poller(new_poll_set())


def new_sockets() -> Sockets:
    """Return the sockets of this system."""
    return Sockets(new_poller())


def new_transport(api: SocketApi) -> HvSocketTransport:
    """Return the library's transport over the sockets of an API."""
    sockets = new_sockets()
    return HvSocketTransport(api, sockets, system_pipes(sockets))


def system_pipes(sockets: Sockets) -> Pipes:
    """Return the pipes of this system; elsewhere than on Windows `sockets` has their streams."""
    return NamedPipes() if sys.platform == "win32" else DescriptorPipes(sockets)


class _File(io.FileIO):
    """A pipe's descriptor with the methods of a socket that a stream uses; its direction is the pipe's."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "r+b")

    def fileno(self) -> int:
        return -1 if self.closed else super().fileno()

    def recv(self, size: int, /) -> bytes:
        self._require_open()
        data: bytes | None = self.read(size)
        if data is None:
            raise BlockingIOError
        return data

    def send(self, data: memoryview, /) -> int:
        self._require_open()
        sent: int | None = self.write(data)
        if sent is None:
            raise BlockingIOError
        return sent

    def shutdown(self, how: int, /) -> None:
        self.close()

    def _require_open(self) -> None:
        # Like a socket; a file would raise ValueError.
        if self.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))


class _Listening(socket.socket):
    """The listening socket of a pipe, whose name is free as soon as it is closed.

    The thread that polls a socket keeps it, and its address, until it wakes: each has an address of its own.
    """

    _numbers: ClassVar[Iterator[int]] = itertools.count(1)
    _addresses: ClassVar[dict[str, str]] = {}

    def __init__(self, path: str) -> None:
        self._key = pipe_key(path)
        super().__init__(socket.AF_UNIX)
        address = f"\0uvm-test-{os.getpid()}-{next(self._numbers)}"
        if self._addresses.setdefault(self._key, address) != address:
            super().close()
            raise HostError(f"listen at {path}", HResult.E_ACCESSDENIED, "there is an instance of it")
        self.setblocking(False)
        self.bind(address)
        self.listen()

    @classmethod
    def address(cls, path: str) -> str:
        """Return the address of the socket that listens at a path."""
        try:
            return cls._addresses[pipe_key(path)]
        except KeyError:
            raise HostError(f"dial {path}", HResult.ERROR_FILE_NOT_FOUND, "nothing listens at it") from None

    def close(self) -> None:
        """Close it, and free the name."""
        if self.fileno() >= 0:
            del self._addresses[self._key]
        super().close()


class DescriptorPipes:
    """:class:`Pipes` of POSIX: file descriptors of pipes and of Unix sockets."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets: Final = sockets

    def open(self, handle: int) -> ByteStream:
        """Make a stream of a file descriptor, and take the descriptor over."""
        if stat.S_ISSOCK(os.fstat(handle).st_mode):
            sock = socket.socket(fileno=handle)
            sock.setblocking(False)
            return self._sockets.stream(sock)
        os.set_blocking(handle, False)
        return self._sockets.stream(cast(socket.socket, _File(handle)))

    async def listen(self, path: str) -> SocketListener:
        """Listen at a Unix socket that stands for a named pipe."""
        await anyio.lowlevel.checkpoint()
        return self._sockets.listener(_Listening(path), StandardSockets().accept)

    async def dial(self, path: str) -> ByteStream:
        """Connect to the Unix socket that stands for a named pipe."""
        await anyio.lowlevel.checkpoint()
        address, sock = _Listening.address(path), socket.socket(socket.AF_UNIX)
        # To this machine, whose backlog takes it at once.
        sock.connect(address)
        sock.setblocking(False)
        return self._sockets.stream(sock)

    def close(self) -> None:
        """Do nothing: the streams are closed with the sockets."""


class PosixPollSet:
    """:class:`PollSet` that uses ``poll``."""

    readable: int = getattr(select, "POLLIN", 0)
    writable: int = getattr(select, "POLLOUT", 0)

    def __init__(self) -> None:
        self._poll = select.poll()
        self._fds: set[int] = set()

    def set(self, fd: int, events: int) -> None:
        """Set the events to poll a descriptor for; 0 removes it."""
        if events:
            self._fds.add(fd)
            self._poll.register(fd, events)
        elif fd in self._fds:
            self._fds.discard(fd)
            self._poll.unregister(fd)

    def wait(self) -> list[tuple[int, int]]:
        """Wait until a descriptor has events, and return those that have, with their events or errors."""
        return self._poll.poll()
