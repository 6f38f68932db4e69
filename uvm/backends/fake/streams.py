"""Connections between host and guest, in memory: what Hyper-V sockets are on Windows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import anyio
import anyio.lowlevel
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from uvm.backends.fake.hresult import WSAEADDRINUSE
from uvm.errors import HostError, VMExitedError

#: What one chunk holds at most, and how many a sender may be ahead of the receiver.
_CHUNK_BYTES: Final = 65536
_CHUNKS: Final = 16


class FakeStream:
    """One end of a connection (:class:`~uvm.backends.base.ByteStream`)."""

    def __init__(
        self,
        incoming: MemoryObjectReceiveStream[bytes],
        outgoing: MemoryObjectSendStream[bytes],
        on_close: Callable[[FakeStream], None],
    ) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._on_close = on_close
        self._rest = b""

    async def receive(self, max_bytes: int = _CHUNK_BYTES) -> bytes:
        """Receive at least one byte; anyio.EndOfStream at the end."""
        if max_bytes < 1:
            raise ValueError("receive at least one byte")
        data = self._rest
        if data:
            await anyio.lowlevel.checkpoint()
        else:
            data = await self._incoming.receive()
        self._rest = data[max_bytes:]
        return data[:max_bytes]

    async def send(self, item: bytes) -> None:
        """Send all of it; waits while the other end is far behind."""
        for start in range(0, len(item), _CHUNK_BYTES):
            await self._outgoing.send(bytes(item[start : start + _CHUNK_BYTES]))

    async def send_eof(self) -> None:
        """Close our direction."""
        self._outgoing.close()
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close both directions."""
        self.close()
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close both directions at once."""
        self._rest = b""
        self._outgoing.close()
        self._incoming.close()
        self._on_close(self)


def stream_pair(on_close: Callable[[FakeStream], None]) -> tuple[FakeStream, FakeStream]:
    """Make a connection and give its two ends; the function is told of each that closes."""
    to_b, from_a = anyio.create_memory_object_stream[bytes](_CHUNKS)
    to_a, from_b = anyio.create_memory_object_stream[bytes](_CHUNKS)
    return FakeStream(from_b, to_b, on_close), FakeStream(from_a, to_a, on_close)


class FakeListener:
    """Where the guest of one VM dials in (:class:`~uvm.backends.base.Listener`)."""

    def __init__(self, service_id: str, on_close: Callable[[], None]) -> None:
        self.service_id = service_id
        self._dialled: deque[FakeStream] = deque()
        self._woken = anyio.Event()
        self._on_close = on_close
        self._end: Exception | None = None

    async def accept(self) -> FakeStream:
        """Wait for the next connection; VMExitedError once the VM has exited."""
        await anyio.lowlevel.checkpoint()
        while not self._dialled:
            if self._end is not None:
                raise self._end
            await self._woken.wait()
        stream = self._dialled.popleft()
        if not self._dialled and self._end is None:
            self._woken = anyio.Event()
        return stream

    async def aclose(self) -> None:
        """Stop listening; connections that nobody accepted are closed."""
        self.end(anyio.ClosedResourceError())
        await anyio.lowlevel.checkpoint()

    def offer(self, stream: FakeStream) -> None:
        """Bring a connection to be accepted."""
        self._dialled.append(stream)
        self._woken.set()

    def end(self, error: Exception) -> None:
        """Stop listening, for a reason."""
        if self._end is None:
            self._end = error
            self._on_close()
            while self._dialled:
                self._dialled.popleft().close()
            self._woken.set()


class Switchboard:
    """The listeners and connections of one VM, by service id."""

    __slots__ = ("_listeners", "_streams", "_vm_id")

    def __init__(self, vm_id: str) -> None:
        self._vm_id = vm_id
        self._listeners: dict[str, FakeListener] = {}
        self._streams: set[FakeStream] = set()

    def listen(self, service_id: str) -> FakeListener:
        """Listen for connections to a service; WSAEADDRINUSE where somebody does."""
        key = service_id.casefold()
        if key in self._listeners:
            raise HostError(f"listen {service_id}", WSAEADDRINUSE, f"on VM {self._vm_id}")
        self._listeners[key] = FakeListener(service_id, lambda: self._forget(key))
        return self._listeners[key]

    def dial(self, service_id: str) -> FakeStream:
        """Connect from the guest to a service of the host; ConnectionRefusedError where nobody listens."""
        listener = self._listeners.get(service_id.casefold())
        if listener is None:
            raise ConnectionRefusedError(f"nobody listens to service {service_id} of VM {self._vm_id}")
        ours, theirs = stream_pair(self._streams.discard)
        self._streams |= {ours, theirs}
        listener.offer(theirs)
        return ours

    def close(self, error: VMExitedError) -> None:
        """End all of it: the VM has exited."""
        for listener in list(self._listeners.values()):
            listener.end(error)
        for stream in list(self._streams):
            stream.close()

    def _forget(self, key: str) -> None:
        self._listeners.pop(key, None)
