"""The standard handles of processes on systems other than Windows: file descriptors."""

from __future__ import annotations

import errno
import io
import os
import socket
import stat
import sys
from typing import Final

from uvm.backend import ByteStream
from uvm.backends.hcs.pipes import NamedPipes, Pipes
from uvm.backends.hcs.sockets import Sockets

__all__ = ["system_pipes"]


def system_pipes(sockets: Sockets) -> Pipes:
    """Return the pipes of this system; elsewhere than on Windows `sockets` has their streams."""
    return NamedPipes() if sys.platform == "win32" else DescriptorPipes(sockets)


class _File(io.FileIO):
    """A pipe's descriptor as an :class:`~uvm.backends.hcs.sockets.Endpoint`; its direction is the pipe's."""

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
        return self._sockets.stream(_File(handle))

    def close(self) -> None:
        """Do nothing: the streams are closed with the sockets."""
