"""Byte streams and listeners on non-blocking sockets, which wait with the :class:`Poller`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import anyio
import anyio.lowlevel

from uvm.backends.handles import ClosedOnce
from uvm.backends.hcs.poller import Poller

C = TypeVar("C", bound="Closing")

#: The most that a stream receives or sends before it lets other tasks run.
PIECE_BYTES: Final = 65536
#: The pause before another attempt to send on a socket that was reported writable and is not.
_PAUSE_SECONDS: Final = 0.005


class Closing(ClosedOnce):
    """A stream or a listener of a backend.

    :param shut: closes what it has.
    :param siblings: those that are open; it is one of them until it is closed.
    """

    def __init__(self, shut: Callable[[], object], siblings: set[Closing]) -> None:
        super().__init__()
        self._shut: Final = shut
        self._siblings: Final = siblings
        siblings.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} ({'closed' if self._closed else 'open'})>"

    def _end(self) -> None:
        self._shut()
        self._siblings.discard(self)

    def _require_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError


class SocketStream(Closing):
    """A connection (:class:`~uvm.backend.ByteStream`) with anyio's errors.

    :class:`anyio.ClosedResourceError` after :meth:`aclose`, :class:`anyio.BrokenResourceError`, caused by the
    OSError, if the connection broke, and :class:`anyio.BusyResourceError` for a second task that receives, or
    sends, at the same time.
    """

    def __init__(self, sock: socket.socket, poller: Poller, siblings: set[Closing]) -> None:
        super().__init__(partial(_close, sock, poller), siblings)
        self._socket: Final = sock
        self._poller: Final = poller
        self._receiving = anyio.ResourceGuard("receiving from")
        self._sending = anyio.ResourceGuard("sending to")

    async def receive(self, max_bytes: int = PIECE_BYTES) -> bytes:
        """Receive at least one byte; anyio.EndOfStream at the end. Cancellation loses no data."""
        if max_bytes < 1:
            raise ValueError("receive at least one byte")
        with self._receiving:
            # First, because received data must not be lost on cancellation.
            await anyio.lowlevel.checkpoint()
            while True:
                try:
                    data = self._socket.recv(min(max_bytes, PIECE_BYTES))
                except BlockingIOError:
                    await self._poller.readable(self._socket)
                    continue
                except OSError as error:
                    raise self._failure() from error
                if not data:
                    raise anyio.EndOfStream
                return data

    async def send(self, item: bytes) -> None:
        """Send all of it. On cancellation a part may have been sent."""
        with self._sending:
            await anyio.lowlevel.checkpoint()
            self._require_open()
            view = memoryview(item)
            while view:
                view = view[await self._send_piece(view[:PIECE_BYTES]) :]
                if view:
                    await anyio.lowlevel.checkpoint()

    def send_nowait(self, item: bytes) -> int:
        """Send at most :data:`PIECE_BYTES` at once; return how many bytes the system took."""
        with self._sending:
            self._require_open()
            try:
                return self._socket.send(memoryview(item)[:PIECE_BYTES])
            except BlockingIOError:
                return 0
            except OSError as error:
                raise self._failure() from error

    async def send_eof(self) -> None:
        """Close the sending direction."""
        with self._sending:
            await anyio.lowlevel.checkpoint()
            self._require_open()
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                raise self._failure() from error

    async def _send_piece(self, piece: memoryview) -> int:
        waited = False
        while True:
            try:
                return self._socket.send(piece)
            except BlockingIOError:
                if waited:
                    # WSAPoll reports a connection writable once its peer has closed its direction.
                    await anyio.sleep(_PAUSE_SECONDS)
                await self._poller.writable(self._socket)
                waited = True
            except OSError as error:
                raise self._failure() from error

    def _failure(self) -> Exception:
        return anyio.ClosedResourceError() if self._closed else anyio.BrokenResourceError()


def _close(sock: socket.socket, poller: Poller) -> None:
    poller.forget(sock)
    sock.close()


class SocketListener(Closing):
    """A :class:`~uvm.backend.Listener` on a socket. The system ends connections that were not accepted.

    :param accept: accepts a connection from a non-blocking socket, and returns it, non-blocking.
    :param stream: makes a stream of a connection.
    """

    def __init__(
        self,
        sock: socket.socket,
        poller: Poller,
        accept: Callable[[socket.socket], socket.socket],
        stream: Callable[[socket.socket], SocketStream],
        siblings: set[Closing],
    ) -> None:
        super().__init__(partial(_close, sock, poller), siblings)
        self._socket: Final = sock
        self._poller: Final = poller
        self._accept: Final = accept
        self._stream: Final = stream

    async def accept(self) -> SocketStream:
        """Wait for the next connection.

        :raises anyio.ClosedResourceError: the listener is closed.
        :raises anyio.BrokenResourceError: nothing can be accepted; the cause is the OSError.
        """
        while True:
            await anyio.lowlevel.checkpoint()
            self._require_open()
            try:
                return self._stream(self._accept(self._socket))
            except BlockingIOError:
                await self._poller.readable(self._socket)
            except ConnectionError:
                # The peer has left already; others may wait.
                continue
            except OSError as error:
                raise anyio.BrokenResourceError from error


class Sockets:
    """All streams and listeners of one poller.

    :ivar poller: the poller they wait with.
    """

    def __init__(self, poller: Poller | None = None) -> None:
        self.poller: Final = poller or Poller()
        self._open: Final[set[Closing]] = set()
        self._closed = False

    def stream(self, sock: socket.socket) -> SocketStream:
        """Make a stream of a connected, non-blocking socket, and take the socket over."""
        return self._kept(SocketStream(sock, self.poller, self._open))

    def listener(
        self, sock: socket.socket, accept: Callable[[socket.socket], socket.socket]
    ) -> SocketListener:
        """Make a listener of a listening, non-blocking socket, and take the socket over."""
        return self._kept(SocketListener(sock, self.poller, accept, self.stream, self._open))

    def close(self) -> None:
        """Close all streams and listeners, and end the poller's thread. Idempotent."""
        self._closed = True
        for each in list(self._open):
            each.close()
        self.poller.close()

    def _kept(self, made: C) -> C:
        if self._closed:
            made.close()
            raise anyio.ClosedResourceError
        return made
