"""Connections between host and guest, in memory: what Hyper-V sockets are on Windows.

Bytes are not copied: the ``bytes`` object that is sent is the one that is received if the reader takes it
whole. The number of bytes in transit is bounded, so that a sender waits for a slow reader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import anyio
import anyio.lowlevel

from uvm._async import Line
from uvm._names import guid_key
from uvm._repr import showing
from uvm.errors import HostError, VMExitedError, own
from uvm.hresult import HResult

#: The most that :meth:`FakeStream.receive` returns by default.
_CHUNK_BYTES: Final = 65536
#: A sender waits while so much is in transit. Larger items are sent in pieces of this size.
BUFFER_BYTES: Final = 131072
#: Raised when nothing can be received, or sent, any more.
ENDED: Final = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class _Pipe:
    """One direction of a connection.

    :ivar size: how many bytes are in transit.
    :ivar ended: nothing more will be sent.
    :ivar broken: the receiver has closed.
    :ivar cut: it ended without an end of stream.
    :ivar waiting: receivers that wait for data, or senders that wait for half of the buffer to be free; there
        are never both.
    """

    __slots__ = ("_chunks", "broken", "cut", "ended", "size", "waiting")

    def __init__(self) -> None:
        self._chunks: deque[bytes | memoryview] | None = None
        self.waiting: Line = Line()
        self.size: int = 0
        self.ended: bool = False
        self.broken: bool = False
        self.cut: bool = False

    @property
    def has_room(self) -> bool:
        """Whether a sender need not wait."""
        return self.size < BUFFER_BYTES or self.broken

    @property
    def is_quiet(self) -> bool:
        """Whether a receiver has to wait."""
        return not (self.size or self.ended or self.broken)

    def put(self, piece: bytes | memoryview) -> None:
        """Add a piece that is at most as large as the buffer."""
        if self._chunks is None:
            self._chunks = deque()
        self._chunks.append(piece)
        self.size += len(piece)
        self.waiting.wake()

    def take(self, max_bytes: int) -> bytes:
        """Remove and return what comes next; the pipe is not empty."""
        assert self._chunks
        piece = self._chunks.popleft()
        if len(piece) > max_bytes:
            view = memoryview(piece)
            self._chunks.appendleft(view[max_bytes:])
            piece = view[:max_bytes]
        elif not self._chunks:
            # Most connections are idle most of the time.
            self._chunks = None
        self.size -= len(piece)
        # Not as soon as there is room: the two sides would alternate at every piece.
        if self.size <= BUFFER_BYTES // 2:
            self.waiting.wake()
        return piece if isinstance(piece, bytes) else bytes(piece)

    def end(self, *, cut: bool = False) -> None:
        self.cut = self.cut or (cut and not self.ended)
        self.ended = True
        self.waiting.wake()

    def break_off(self) -> None:
        self.broken = True
        self._chunks = None
        self.size = 0
        self.waiting.wake()


@showing()
class FakeStream:
    """One end of a connection (:class:`~uvm.backend.ByteStream`).

    Its errors are those of anyio's streams: :class:`anyio.ClosedResourceError` if this end was closed,
    :class:`anyio.BrokenResourceError` for sending to an end that was, :class:`anyio.EndOfStream`.
    """

    __slots__ = ("_incoming", "_on_close", "_outgoing")

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, on_close: Callable[[FakeStream], None]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._on_close = on_close

    @property
    def ended(self) -> bool:
        """Whether the other end has closed its direction, and all that it sent was received."""
        return self._incoming.ended and not self._incoming.size

    async def receive(self, max_bytes: int = _CHUNK_BYTES) -> bytes:
        """Receive at least one byte; anyio.EndOfStream at the end."""
        if max_bytes < 1:
            raise ValueError("receive at least one byte")
        pipe = self._incoming
        if not pipe.is_quiet:
            await anyio.lowlevel.checkpoint()
        while pipe.is_quiet:
            await pipe.waiting.wait()
        if pipe.size:
            return pipe.take(max_bytes)
        if pipe.broken:
            raise anyio.ClosedResourceError
        raise anyio.BrokenResourceError if pipe.cut else anyio.EndOfStream

    async def receive_all(self) -> bytes:
        """Receive until the connection ends or breaks."""
        received = b""
        try:
            while True:
                received += await self.receive()
        except ENDED:
            return received

    async def send(self, item: bytes) -> None:
        """Send an item; waits while the other end is far behind.

        An item of up to :data:`BUFFER_BYTES` is not interleaved with what other tasks send.
        """
        await anyio.lowlevel.checkpoint()
        data = item if item.__class__ is bytes else bytes(item)
        if len(data) <= BUFFER_BYTES:
            await self._put(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), BUFFER_BYTES):
            await self._put(view[start : start + BUFFER_BYTES])

    def send_nowait(self, item: bytes) -> int:
        """Send at most :data:`BUFFER_BYTES` at once, and nothing if the other end is far behind."""
        pipe = self._outgoing
        if not pipe.has_room:
            return 0
        self._require_open()
        piece = item[:BUFFER_BYTES]
        if piece:
            pipe.put(piece)
        return len(piece)

    async def flush(self) -> None:
        """Wait until the other end has received everything, or was closed."""
        await anyio.lowlevel.checkpoint()
        while self._outgoing.size:
            await self._outgoing.waiting.wait()

    async def send_eof(self) -> None:
        """Close the direction to the other end."""
        self.end()
        await anyio.lowlevel.checkpoint()

    def end(self) -> None:
        """Close the direction to the other end at once."""
        self._outgoing.end()

    async def aclose(self) -> None:
        """Close both directions."""
        self.close()
        await anyio.lowlevel.checkpoint()

    def close(self, *, cut: bool = False) -> None:
        """Close both directions at once.

        :param cut: the other end, once it has received what was sent, finds the connection broken.
        """
        self._outgoing.end(cut=cut)
        self._incoming.break_off()
        self._on_close(self)

    async def _put(self, piece: bytes | memoryview) -> None:
        pipe = self._outgoing
        while not pipe.has_room:
            await pipe.waiting.wait()
        self._require_open()
        if piece:
            pipe.put(piece)

    def _require_open(self) -> None:
        if self._outgoing.ended:
            raise anyio.ClosedResourceError
        if self._outgoing.broken:
            raise anyio.BrokenResourceError


def stream_pair(on_close: Callable[[FakeStream], None]) -> tuple[FakeStream, FakeStream]:
    """Return the two ends of a connection; the function is called with each that closes."""
    to_a, to_b = _Pipe(), _Pipe()
    return FakeStream(to_a, to_b, on_close), FakeStream(to_b, to_a, on_close)


@showing("service_id")
class FakeListener:
    """Accepts connections: of the guest of one VM, or at a pipe (:class:`~uvm.backend.Listener`)."""

    def __init__(self, service_id: str, on_close: Callable[[], object]) -> None:
        self.service_id: str = service_id
        self._dialled: deque[FakeStream] = deque()
        self._callers: Line = Line()
        self._on_close = on_close
        self._end: Exception | None = None

    async def accept(self) -> FakeStream:
        """Wait for the next connection; VMExitedError once the VM has exited."""
        await anyio.lowlevel.checkpoint()
        while not self._dialled:
            if self._end is not None:
                raise own(self._end)
            await self._callers.wait()
        return self._dialled.popleft()

    def accept_nowait(self) -> FakeStream | None:
        """Accept a connection that was made; None if there is none."""
        return self._dialled.popleft() if self._dialled else None

    async def aclose(self) -> None:
        """Stop listening; connections that were not accepted are closed."""
        self.end(anyio.ClosedResourceError())
        await anyio.lowlevel.checkpoint()

    def offer(self, stream: FakeStream) -> None:
        """Add a connection to be accepted."""
        self._dialled.append(stream)
        self._callers.wake()

    def end(self, error: Exception) -> None:
        """Stop listening; `accept` raises an error from now on."""
        if self._end is None:
            self._end = error
            self._on_close()
            while self._dialled:
                self._dialled.popleft().close()
            self._callers.wake()


class Switchboard:
    """The listeners and connections of one VM, by service id."""

    def __init__(self, vm_id: str) -> None:
        self._vm_id = vm_id
        self._listeners: dict[str, FakeListener] = {}
        # In the order in which they were made: the order of waking at the exit must not depend on addresses.
        self._streams: dict[FakeStream, None] = {}
        self._diallers: Line = Line()

    def listen(self, service_id: str) -> FakeListener:
        """Listen for connections to a service; WSAEADDRINUSE if it has a listener."""
        key = guid_key(service_id)
        if key in self._listeners:
            raise HostError(f"listen {service_id}", HResult.WSAEADDRINUSE, f"on VM {self._vm_id}")
        self._listeners[key] = FakeListener(service_id, lambda: self._listeners.pop(key, None))
        self._diallers.wake()
        return self._listeners[key]

    def dial(self, service_id: str) -> FakeStream:
        """Connect from the guest to a service of the host; ConnectionRefusedError without a listener."""
        listener = self._listeners.get(guid_key(service_id))
        if listener is None:
            raise ConnectionRefusedError(f"service {service_id} of VM {self._vm_id} has no listener")
        ours, theirs = stream_pair(self._forget)
        self._streams[ours] = None
        listener.offer(theirs)
        return ours

    async def wait_for_listener(self, service_id: str) -> None:
        """Wait until a service has a listener."""
        while guid_key(service_id) not in self._listeners:
            await self._diallers.wait()

    def close(self, error: VMExitedError) -> None:
        """Close all connections: the VM has exited. The host can still receive what had arrived."""
        for listener in list(self._listeners.values()):
            listener.end(error)
        for stream in list(self._streams):
            stream.close(cut=True)

    def _forget(self, stream: FakeStream) -> None:
        self._streams.pop(stream, None)
