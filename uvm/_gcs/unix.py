"""A connection to a guest's compute service over Unix sockets: to any process that speaks the protocol.

There are no ports on a Unix socket, so each port of the host is a socket of its own, by default
``<path>_<port>``, which the guest dials: Firecracker's convention for vsock over Unix sockets. A guest dials
the host also for the connection itself (:func:`listen_unix`); one that is itself listened to is dialled
(:func:`connect_unix`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Final

import anyio
import anyio.abc
from anyio.abc import SocketAttribute
from attrs import define, field

from uvm._async import BareTaskGroup
from uvm._gcs.connection import GuestConnection
from uvm._guest.timeouts import GuestTimeouts
from uvm._wire.ports import LINUX_GCS_PORT, vsock_port, vsock_service_id
from uvm.backend import ByteStream
from uvm.errors import BridgeClosedError, HostPathError
from uvm.schema.guest import TimeZoneInformation

StrPath = str | os.PathLike[str]

_DEFAULT_TIMEOUTS: Final = GuestTimeouts()

#: How long to wait between two attempts to connect again (as the Linux guest does).
REDIAL_PAUSE_SECONDS: Final = 0.1


def connect_unix(
    path: StrPath,
    *,
    listen_at: Callable[[int], StrPath] | None = None,
    cold_start: bool = True,
    time_zone: TimeZoneInformation | None = None,
    timeouts: GuestTimeouts = _DEFAULT_TIMEOUTS,
) -> AbstractAsyncContextManager[GuestConnection]:
    """Connect to a guest's compute service that listens at a path.

    The connection is closed, and the sockets that were made are removed, at the end of the ``async with``;
    an exception of its body is raised as it is. Where ``timeouts.redial_seconds`` is not 0, a connection
    that broke is made again, once the path is listened at again.

    :param listen_at: says at which path the guest dials a port of the host; by default ``<path>_<port>``.
    :param cold_start: the guest was just started, so that it is set up, as far as it wants that.
    :param time_zone: the time zone of a Windows guest at a cold start.
    :raises HostPathError: the path is not listened at.
    :raises BridgeClosedError: the guest did not greet, or not within ``timeouts.boot_seconds``.
    :raises NotSupportedError: it speaks another version of the protocol.
    """
    base = os.fspath(path)

    async def dial() -> ByteStream:
        try:
            return _UnixStream(await anyio.connect_unix(base))
        except OSError as error:
            raise HostPathError(base, f"no guest answers there: {error}") from error

    async def dial_again() -> ByteStream:
        while True:
            with suppress(HostPathError):
                return await dial()
            await anyio.sleep(REDIAL_PAUSE_SECONDS)

    sockets = _Sockets(base, listen_at)
    return _connected(sockets, dial, dial_again, cold_start, time_zone, timeouts)


def listen_unix(
    path: StrPath,
    *,
    listen_at: Callable[[int], StrPath] | None = None,
    cold_start: bool = True,
    time_zone: TimeZoneInformation | None = None,
    timeouts: GuestTimeouts = _DEFAULT_TIMEOUTS,
    on_listening: Callable[[], Awaitable[None]] | None = None,
) -> AbstractAsyncContextManager[GuestConnection]:
    """Listen for a guest's compute service, which dials port 1073741824 as in a VM, and wait for it.

    Parameters and errors are those of :func:`connect_unix`, where a guest that dials again takes the place
    of a connection that is made again; and:

    :param on_listening: awaited when the guest may be started.
    :raises HostPathError: a socket cannot be made there.
    """
    sockets = _Sockets(os.fspath(path), listen_at)
    listening: list[_UnixListener] = []

    async def accept() -> ByteStream:
        if not listening:
            listening.append(await sockets.listen(vsock_service_id(LINUX_GCS_PORT)))
            if on_listening is not None:
                await on_listening()
        stream = await listening[0].accept()
        if timeouts.redial_seconds <= 0:
            # No other client is to be taken for the guest.
            await listening[0].aclose()
        return stream

    return _connected(sockets, accept, accept, cold_start, time_zone, timeouts)


@define(eq=False, repr=False)
class _UnixStream:
    """A connection over a Unix socket (:class:`~uvm.backend.EagerByteStream`): anyio's, which waits."""

    _stream: anyio.abc.SocketStream
    _socket: socket.socket = field(init=False)

    def __attrs_post_init__(self) -> None:
        # It does not block: both loops have it so.
        self._socket = self._stream.extra(SocketAttribute.raw_socket)

    def send_nowait(self, item: bytes) -> int:
        """Send what the system takes at once."""
        try:
            return self._socket.send(item)
        except BlockingIOError:
            return 0

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte."""
        return await self._stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        """Send all the bytes."""
        await self._stream.send(item)

    async def send_eof(self) -> None:
        """Close our direction."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close both directions."""
        await self._stream.aclose()


@define(eq=False, repr=False)
class _UnixListener:
    """A socket of the host that the guest dials (:class:`~uvm.backend.Listener`)."""

    path: str
    socket: anyio.abc.SocketListener
    sockets: _Sockets

    async def accept(self) -> ByteStream:
        """Wait for the next connection."""
        return _UnixStream(await self.socket.accept())

    async def aclose(self) -> None:
        """Stop listening, and remove the socket."""
        if self in self.sockets.open:
            del self.sockets.open[self]
            # A caller that is cancelled here would leave the socket behind.
            with anyio.CancelScope(shield=True):
                try:
                    await self.socket.aclose()
                finally:
                    await anyio.Path(self.path).unlink(missing_ok=True)


@define(eq=False, repr=False)
class _Sockets:
    """The sockets that the guest dials."""

    base: str
    path_of: Callable[[int], StrPath] | None = None
    open: dict[_UnixListener, None] = field(factory=dict)

    async def listen(self, service_id: str) -> _UnixListener:
        """Listen for the guest to dial the port of a service; HostPathError where no socket can be made."""
        port = vsock_port(service_id)
        assert port is not None, "the ports of processes have services of their own"
        path = os.fspath(self.path_of(port)) if self.path_of else f"{self.base}_{port}"
        try:
            # A thread makes it, also for a caller who has left.
            with anyio.CancelScope(shield=True):
                socket = await anyio.create_unix_listener(path)
        except OSError as error:
            raise HostPathError(path, f"no socket can be made there: {error}") from error
        listener = _UnixListener(path, socket, self)
        self.open[listener] = None
        return listener

    async def aclose(self) -> None:
        """Stop listening everywhere."""
        with anyio.CancelScope(shield=True):
            for listener in list(self.open):
                await listener.aclose()


@asynccontextmanager
async def _connected(
    sockets: _Sockets,
    dial: Callable[[], Awaitable[ByteStream]],
    redial: Callable[[], Awaitable[ByteStream]],
    cold_start: bool,
    time_zone: TimeZoneInformation | None,
    timeouts: GuestTimeouts,
) -> AsyncIterator[GuestConnection]:
    """Connect, and close at the end."""
    connection = GuestConnection(sockets.listen, name=sockets.base, timeouts=timeouts, redial=redial)

    async def close(failure: BaseException | None) -> BaseException | None:
        connection.close()
        await sockets.aclose()
        return failure

    async with BareTaskGroup(close) as tasks:
        try:
            with anyio.fail_after(timeouts.boot_seconds):
                await tasks.start(connection.serve, await dial())
                if cold_start:
                    await connection.start_guest(time_zone)
        except TimeoutError as error:
            late = f"the guest did not connect within {timeouts.boot_seconds:g} s"
            raise BridgeClosedError(late) from error
        yield connection
