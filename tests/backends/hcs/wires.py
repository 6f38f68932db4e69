"""Carries bytes between the library and the fake: pipes of processes and connections of guests."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final
from uuid import UUID

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from attrs import Factory, frozen

from tests.backends.hcs.descriptors import new_sockets, new_transport, system_pipes
from tests.backends.hcs.pipepairs import make_pipe_pair
from uvm.backend import BROKEN_STREAM, ByteStream
from uvm.backends.fake import FakeListener
from uvm.backends.hcs.hvsocket import StandardSockets
from uvm.backends.hcs.sockets import SocketListener, SocketStream
from uvm.backends.hcs.transport import Pipes
from uvm.errors import VMExitedError

__all__ = ["HostStreams", "LoopbackTransport", "copy_and_close"]

#: Listens on the fake for the guest of a VM: the VM's runtime id and the service's id.
Listen = Callable[[str, str], Awaitable[FakeListener]]

#: ``struct linger`` that makes a close reset the connection, as when a VM exits.
_RESETS: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class HostStreams:
    """The host's ends of pipes and connections."""

    def __init__(self) -> None:
        self._sockets = new_sockets()
        self._pipes = system_pipes(self._sockets)

    def pipe(self) -> tuple[int, ByteStream]:
        """Make a pipe for a stream of a process; return the HANDLE for the library, and the host's end."""
        theirs, ours = make_pipe_pair()
        return theirs, self._pipes.open(ours)

    def stream(self, sock: socket.socket) -> ByteStream:
        """Make a stream of a connected socket, and take the socket over."""
        sock.setblocking(False)
        return self._sockets.stream(sock)

    def close(self) -> None:
        """Close all streams."""
        self._pipes.close()
        self._sockets.close()


@frozen
class LoopbackSockets:
    """The library's sockets (``uvm.backends.hcs.hvsocket.SocketApi``), over TCP to this machine.

    :ivar ports: the port of each service of a VM.
    """

    ports: dict[tuple[UUID, UUID], int] = Factory(dict)

    def listen(self, vm_id: UUID, service_id: UUID) -> socket.socket:
        """Return a listening socket."""
        sock = socket.create_server(("127.0.0.1", 0), backlog=128)
        sock.setblocking(False)
        self.ports[vm_id, service_id] = sock.getsockname()[1]
        return sock

    def accept(self, sock: socket.socket) -> socket.socket:
        """Accept a pending connection."""
        return StandardSockets().accept(sock)


class LoopbackTransport:
    """The library's own transport, with TCP in place of hvsocket, and the guests of the fake.

    :param listen: listens on the fake.
    :param streams: the host's ends.
    :param task_group: runs the tasks that copy the bytes.
    """

    def __init__(self, listen: Listen, streams: HostStreams, task_group: TaskGroup) -> None:
        self._listen = listen
        self._streams = streams
        self._task_group = task_group
        self._sockets = LoopbackSockets()
        self._transport = new_transport(self._sockets)

    async def listen(self, runtime_id: str, service_id: str) -> LoopbackListener:
        """Listen for the guest: a connection to the fake becomes one to a port of this machine."""
        fake = await self._listen(runtime_id, service_id)
        try:
            listener = await self._transport.listen(runtime_id, service_id)
        except BaseException:
            fake.end(anyio.ClosedResourceError())
            raise
        port = self._sockets.ports[UUID(runtime_id), UUID(service_id)]
        self._task_group.start_soon(self._bring, fake, port)
        return LoopbackListener(listener, fake)

    @property
    def pipes(self) -> Pipes:
        """The pipes of the host, which need no guest."""
        return self._transport.pipes

    async def aclose(self) -> None:
        """Close everything."""
        await self._transport.aclose()

    async def _bring(self, fake: FakeListener, port: int) -> None:
        with suppress(VMExitedError, anyio.ClosedResourceError):
            while True:
                self._task_group.start_soon(self._connect, await fake.accept(), port)

    async def _connect(self, guest: ByteStream, port: int) -> None:
        try:
            # To this machine, whose backlog takes it at once.
            sock = socket.create_connection(("127.0.0.1", port))
        except OSError:
            await guest.aclose()
            return
        stream = self._streams.stream(sock)
        async with closing(guest, stream):
            try:
                async with anyio.create_task_group() as task_group:
                    task_group.start_soon(copy, guest, stream)
                    task_group.start_soon(copy, stream, guest)
            except* BROKEN_STREAM:
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETS)


@frozen(eq=False)
class LoopbackListener:
    """A listener of the library, and the listener of the fake behind it."""

    listener: SocketListener
    fake: FakeListener

    async def accept(self) -> SocketStream:
        """Wait for the next connection."""
        return await self.listener.accept()

    async def aclose(self) -> None:
        """Stop listening."""
        self.close()
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """Stop listening at once."""
        self.listener.close()
        self.fake.end(anyio.ClosedResourceError())


async def copy(source: ByteStream, target: ByteStream) -> None:
    """Copy until the end, and pass the end on; BROKEN_STREAM if either breaks."""
    with suppress(anyio.EndOfStream):
        while True:
            await target.send(await source.receive())
    await target.send_eof()


async def copy_and_close(source: ByteStream, target: ByteStream) -> None:
    """Copy until the end, or until either breaks, and close both."""
    async with closing(source, target):
        with suppress(*BROKEN_STREAM):
            await copy(source, target)


@asynccontextmanager
async def closing(*streams: ByteStream) -> AsyncIterator[None]:
    """Close streams at the end, shielded from cancellation."""
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            for stream in streams:
                await stream.aclose()
