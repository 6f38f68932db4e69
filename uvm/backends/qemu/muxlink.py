"""The guest's connections at the host: listeners and streams over one socket, which carries the mux.

Theory of operation
-------------------

:class:`MuxLink` owns the socket. What callers send is written at once as far as the socket takes it; a task
of :meth:`MuxLink.serve` writes the rest, and another one reads. Both let other tasks run after each portion,
however much the guest sends.

A stream keeps what has arrived until it is received, which is what lets the guest send more: so no stream
keeps more than its window, and one that is not read stops no other. Receiving takes the bytes only after its
last checkpoint, so a caller that is cancelled loses none.

When the socket ends, or the guest breaks a rule of the mux, every stream is broken, once what had arrived was
received, and every listener is closed.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Final

import anyio
import anyio.lowlevel

from uvm._async import Flag, Line
from uvm._log import Log
from uvm._repr import showing
from uvm._wire.channels import Buffer, Channel, MuxError, append
from uvm._wire.mux import Mux
from uvm._wire.muxevents import Data, Ended, Event, Greeted, Opened, Reset, Writable
from uvm._wire.muxframes import NONCE_SIZE
from uvm.backends.handles import ClosedOnce
from uvm.errors import HostError
from uvm.hresult import HResult

_log = Log("uvm.qemu")

#: Connections that wait to be accepted at one listener; more are reset.
BACKLOG: Final = 128
#: The most that is written before other tasks run.
PORTION_BYTES: Final = 0x40000
_RECEIVE_BYTES: Final = 65536


@showing("failure")
class MuxLink:
    """All connections with one guest.

    :param vm_id: the VM, for the log.
    :param sock: connected; it is closed with the link.
    :param mux: by default a new one, of a host that has just connected.
    :param adopts: the guest is one that an earlier process has left, and its connections wait here until they
        are listened for. Those that the guest of a clone has of its template are closed instead: their ports
        are those of other processes here.
    :ivar greeted: set once the guest has answered.
    :ivar failure: why the link has ended, if the guest or the system is to blame.
    """

    def __init__(
        self, vm_id: str, sock: socket.socket, mux: Mux | None = None, *, adopts: bool = True
    ) -> None:
        self.greeted: Flag = Flag()
        self.failure: Exception | None = None
        self._vm_id: Final = vm_id
        self._socket: Final = sock
        self._mux: Final = mux or _connected()
        self._adopts: Final = adopts
        self._listeners: Final[dict[int, MuxListener]] = {}
        # Of a guest that an earlier process has left: connections to ports that are not listened at yet.
        self._unclaimed: Final[dict[int, list[MuxStream]]] = {}
        self._full: Final = Line()
        self._ended = False
        sock.setblocking(False)

    @property
    def waiting(self) -> Collection[int]:
        """The ports at which connections for an earlier process wait."""
        return self._unclaimed.keys()

    def listen(self, port: int) -> MuxListener:
        """Listen for the guest to connect to a port.

        :raises HostError: WSAEADDRINUSE if the port is listened at.
        :raises anyio.ClosedResourceError: the link has ended.
        """
        if self._ended:
            raise anyio.ClosedResourceError
        if port in self._listeners:
            raise HostError(f"listen for the guest at port {port}", HResult.WSAEADDRINUSE)
        listener = self._listeners[port] = MuxListener(self, port)
        for stream in self._unclaimed.pop(port, ()):
            listener.offer(stream)
        self._mux.listen(port)
        self.flush()
        return listener

    async def serve(self) -> None:
        """Carry the connections until the socket ends, or :meth:`close` is called. Raises nothing."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._until_it_fails, self._write, tasks.cancel_scope)
                await self._until_it_fails(self._read, tasks.cancel_scope)
        finally:
            self.close()

    def close(self) -> None:
        """End the link and all its connections at once. Idempotent."""
        if self._ended:
            return
        self._ended = True
        anyio.notify_closing(self._socket)
        self._socket.close()
        for listener in list(self._listeners.values()):
            listener.close()
        for channel in self._mux.channels.values():
            channel.owner.break_off()
        self._full.wake()

    # What streams and listeners use.

    def flush(self) -> None:
        """Write what the socket takes at once; the rest is written by the link's task."""
        try:
            if not self._ended and not self._write_portion():
                self._full.wake()
        except OSError as error:
            self._fail(error)

    def send(self, channel: Channel, data: Buffer) -> int:
        """Send what the window of a channel takes; return how many bytes these are."""
        taken = self._mux.send(channel, data)
        if taken:
            self.flush()
        return taken

    def send_eof(self, channel: Channel) -> None:
        """Close our direction of a channel."""
        self._mux.send_eof(channel)
        self.flush()

    def consumed(self, channel: Channel, count: int) -> None:
        """Let the guest send more."""
        self._mux.consumed(channel, count)
        if channel.queued:
            self.flush()

    def close_channel(self, channel: Channel) -> None:
        """Close both directions of a channel."""
        self._mux.close(channel)
        self.flush()

    def unlisten(self, listener: MuxListener) -> None:
        """Listen at a port no more."""
        if self._listeners.get(listener.port) is listener:
            del self._listeners[listener.port]
            self._mux.unlisten(listener.port)
            self.flush()

    # The tasks.

    async def _until_it_fails(self, task: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        try:
            await task()
        except (MuxError, OSError) as error:
            self._fail(error)
        except anyio.ClosedResourceError:
            pass
        scope.cancel()

    def _fail(self, error: Exception) -> None:
        if not self._ended:
            self.failure = error
            # QEMU ends so with its VM; what a guest does wrong is worth a look.
            level = logging.WARNING if isinstance(error, MuxError) else logging.DEBUG
            _log.write(level, self._vm_id, "the connections with the guest have ended: %s", (error,))
            self.close()

    async def _read(self) -> None:
        while not self._ended:
            try:
                count = self._socket.recv_into(self._mux.space())
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                continue
            if not count:
                return
            await self._handle(count)

    async def _handle(self, count: int) -> None:
        for event in self._mux.received(count):
            self._note(event)
        self.flush()
        await anyio.lowlevel.checkpoint()
        while self._mux.more and not self._ended:
            await self._handle(0)

    async def _write(self) -> None:
        while not self._ended:
            if self._write_portion():
                await self._full.wait()
            else:
                await anyio.wait_writable(self._socket)

    def _write_portion(self) -> bool:
        """Write what the socket takes, up to a portion; return whether nothing is left."""
        left = PORTION_BYTES
        while buffers := self._mux.outgoing():
            if left <= 0:
                return False
            try:
                count = self._socket.sendmsg(buffers)
            except BlockingIOError:
                return False
            self._mux.written(count)
            left -= count
        return True

    # Events.

    def _note(self, event: Event) -> None:
        match event:
            case Data(channel, data):
                channel.owner.arrive(data)
            case Writable(channel):
                channel.owner.wake()
            case Ended(channel):
                channel.owner.end()
            case Reset(channel):
                channel.owner.reset()
            case Opened(channel):
                self._accept(channel)
            case Greeted():
                self.greeted.set()

    def _accept(self, channel: Channel) -> None:
        stream = MuxStream(self, channel)
        listener = self._listeners.get(channel.port)
        if listener is not None:
            listener.offer(stream)
        elif self._adopts:
            self._unclaimed.setdefault(channel.port, []).append(stream)
        else:
            self.close_channel(channel)


def _connected() -> Mux:
    mux = Mux(guest=False)
    mux.connect(os.urandom(NONCE_SIZE))
    return mux


@showing("port", "lost")
class MuxStream(ClosedOnce):
    """One connection with the guest (:class:`~uvm.backend.EagerByteStream`).

    :class:`anyio.ClosedResourceError` if this end was closed, :class:`anyio.BrokenResourceError` if the guest
    has reset it or the link has ended, :class:`anyio.EndOfStream`.
    """

    __slots__ = ("_arrived", "_broken", "_channel", "_ended", "_link", "_waiting")

    def __init__(self, link: MuxLink, channel: Channel) -> None:
        self._link = link
        self._channel = channel
        self._arrived: deque[Buffer] = deque()
        self._waiting = Line()
        self._ended = channel.receiver.ended
        self._broken = False
        super().__init__()
        channel.owner = self

    @property
    def port(self) -> int:
        """The port that the guest has connected to."""
        return self._channel.port

    @property
    def lost(self) -> int:
        """How many bytes an earlier process had received before this one took the guest over."""
        return self._channel.lost

    async def receive(self, max_bytes: int = _RECEIVE_BYTES) -> bytes:
        """Receive at least one byte; anyio.EndOfStream at the end. If it is cancelled, no byte is lost."""
        if max_bytes < 1:
            raise ValueError("receive at least one byte")
        if self._arrived or self._ended or self._broken or self._closed:
            await anyio.lowlevel.checkpoint()
        while not self._arrived:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._ended:
                raise anyio.EndOfStream
            if self._broken:
                raise self._error()
            await self._waiting.wait()
        return self._take(max_bytes)

    async def send(self, item: bytes) -> None:
        """Send all the bytes; wait while the guest is far behind. If cancelled, a part may have been sent."""
        await anyio.lowlevel.checkpoint()
        self._require_open()
        rest = memoryview(bytes(item))
        while rest:
            rest = rest[self._put(rest) :]
            if rest:
                await self._waiting.wait()

    def send_nowait(self, item: bytes) -> int:
        """Send at once what the guest's window takes; return how many bytes these are."""
        return self._put(item)

    async def send_eof(self) -> None:
        """Close our direction."""
        self._require_open()
        self._link.send_eof(self._channel)
        await anyio.lowlevel.checkpoint()

    def _end(self) -> None:
        """Close both directions; what was sent is still delivered."""
        self._arrived.clear()
        self._link.close_channel(self._channel)
        self._waiting.wake()

    # What the link notes.

    def arrive(self, data: bytes) -> None:
        """Keep bytes until they are received."""
        append(self._arrived, data)
        self._waiting.wake()

    def wake(self) -> None:
        """Let senders go on: there is room again."""
        self._waiting.wake()

    def end(self) -> None:
        """Note that the guest has closed its direction."""
        self._ended = True
        self._waiting.wake()

    def reset(self) -> None:
        """Note that the guest has reset it. What had arrived is dropped: no window counts it any more."""
        # An end that lost bytes is none.
        self._ended = self._ended and not self._arrived
        self._arrived.clear()
        self.break_off()

    def break_off(self) -> None:
        """Note that nothing more will come or go."""
        self._broken = True
        self._waiting.wake()

    def _take(self, max_bytes: int) -> bytes:
        piece = self._arrived.popleft()
        if len(piece) > max_bytes:
            whole = memoryview(bytes(piece))
            self._arrived.appendleft(whole[max_bytes:])
            piece = whole[:max_bytes]
        self._link.consumed(self._channel, len(piece))
        return piece if isinstance(piece, bytes) else bytes(piece)

    def _put(self, item: Buffer) -> int:
        self._require_open()
        return self._link.send(self._channel, item)

    def _require_open(self) -> None:
        if self._closed or self._channel.sender.ended:
            raise anyio.ClosedResourceError
        if self._broken or self._channel.gone:
            raise self._error()

    def _error(self) -> anyio.BrokenResourceError:
        """Return the error of a stream that is broken, which says why."""
        failure = self._link.failure
        if isinstance(failure, MuxError):
            return anyio.BrokenResourceError(f"the guest broke the protocol: {failure}")
        return anyio.BrokenResourceError("the guest has reset it, or has gone")


@showing("port")
class MuxListener(ClosedOnce):
    """Accepts the guest's connections to one port (:class:`~uvm.backend.Listener`)."""

    def __init__(self, link: MuxLink, port: int) -> None:
        self.port: Final = port
        self._link: Final = link
        self._offered: Final[deque[MuxStream]] = deque()
        self._callers: Final = Line()
        super().__init__()

    async def accept(self) -> MuxStream:
        """Wait for the next connection; anyio.ClosedResourceError if it is closed, or the link ended."""
        await anyio.lowlevel.checkpoint()
        while not self._offered:
            if self._closed:
                raise anyio.ClosedResourceError
            await self._callers.wait()
        return self._offered.popleft()

    def _end(self) -> None:
        """Stop listening; close what was not accepted."""
        self._link.unlisten(self)
        while self._offered:
            self._offered.popleft().close()
        self._callers.wake()

    def offer(self, stream: MuxStream) -> None:
        """Add a connection to be accepted; one too many is closed."""
        if len(self._offered) < BACKLOG:
            self._offered.append(stream)
            self._callers.wake()
        else:
            stream.close()
