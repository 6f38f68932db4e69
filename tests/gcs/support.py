"""A byte stream in memory that can be cut, and a guest that does what a test tells it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import anyio.lowlevel

from uvm._gcs.bridge import Bridge
from uvm._wire.frames import NOTIFY_CONTAINER, GuestSide, Kind, Request, encode, parse
from uvm.schema.gcs import ContainerNotification

JSON = dict[str, Any]

#: How long a test waits for what must happen, before it is a failed test instead of a hanging one.
PATIENCE_SECONDS = 20.0


def open_calls(bridge: Bridge) -> int:
    """Return how many calls have not ended."""
    return len(bridge.calls._open)


def unanswered_requests(bridge: Bridge) -> int:
    """Return how many requests were sent and not answered, those of calls that have ended included."""
    calls = bridge.calls
    return len(calls.host.open) - len(calls._queued) - len(calls._urgent)


class Channel:
    """One direction of a stream in memory."""

    def __init__(self, capacity: int) -> None:
        self.data = bytearray()
        self.state: Literal["open", "ended", "broken"] = "open"
        self._capacity = capacity
        self._changed = anyio.Event()

    def put(self, data: bytes) -> None:
        """Add bytes, however many there are."""
        if self.state != "open":
            raise anyio.BrokenResourceError
        self.data += data
        self._wake()

    async def send(self, data: bytes) -> None:
        """Add bytes as there is room for them."""
        await anyio.lowlevel.checkpoint()
        while True:
            data = data[self.put_what_fits(data) :]
            if not data:
                return
            await self._changed.wait()

    def put_what_fits(self, data: bytes) -> int:
        """Add what there is room for, and say how many bytes that is."""
        piece = data[: max(0, self._capacity - len(self.data))]
        self.put(piece)
        return len(piece)

    async def receive(self, max_bytes: int) -> bytes:
        """Take bytes out, at least one."""
        await anyio.lowlevel.checkpoint()
        while not self.data and self.state == "open":
            await self._changed.wait()
        if self.state == "broken":
            raise anyio.BrokenResourceError
        if not self.data:
            raise anyio.EndOfStream
        return self.take(max_bytes)

    def take(self, max_bytes: int) -> bytes:
        """Take out what is there."""
        data = bytes(self.data[:max_bytes])
        del self.data[:max_bytes]
        self._wake()
        return data

    def end(self, state: Literal["ended", "broken"]) -> None:
        """Nothing more comes; where it breaks, what is inside is lost as well."""
        if self.state == "open":
            self.state = state
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class MemoryStream:
    """One end of a stream in memory (:class:`~uvm.backend.ByteStream`).

    :ivar closed: this end was closed.
    """

    def __init__(self, incoming: Channel, outgoing: Channel) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self.closed = False

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte."""
        return await self.incoming.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        """Send all of it, while the other end makes room."""
        await self.outgoing.send(item)

    async def send_eof(self) -> None:
        """Close our direction."""
        self.outgoing.end("ended")

    async def aclose(self) -> None:
        """Close both directions."""
        self.close()

    def close(self) -> None:
        """Close both directions at once."""
        self.closed = True
        self.outgoing.end("ended")
        self.incoming.end("broken")

    def cut(self) -> None:
        """Break both directions for both ends."""
        self.outgoing.end("broken")
        self.incoming.end("broken")


class EagerStream(MemoryStream):
    """One end of a stream in memory that also sends without waiting (:class:`~uvm.backend.EagerByteStream`).

    :ivar taken: how many bytes it took at once, each time.
    """

    def __init__(self, incoming: Channel, outgoing: Channel) -> None:
        super().__init__(incoming, outgoing)
        self.taken: list[int] = []

    def send_nowait(self, item: bytes) -> int:
        """Send what there is room for."""
        self.taken.append(self.outgoing.put_what_fits(item))
        return self.taken[-1]


def stream_pair(
    capacity: int = 65536, host: type[MemoryStream] = MemoryStream
) -> tuple[MemoryStream, MemoryStream]:
    """Make a stream and give its two ends; a sender is at most so many bytes ahead."""
    one, other = Channel(capacity), Channel(capacity)
    return host(one, other), MemoryStream(other, one)


class ScriptedGuest:
    """The guest's end of a connection, that does nothing by itself: the test says what it does.

    :param host: what the host's end is.
    :ivar seen: every request that came, over all streams.
    """

    def __init__(self, capacity: int = 65536, host: type[MemoryStream] = MemoryStream) -> None:
        self.seen: list[Request] = []
        self._capacity = capacity
        self._host = host
        self._wire = GuestSide()
        self._stream: MemoryStream | None = None
        self._unread: deque[Request] = deque()

    @property
    def stream(self) -> MemoryStream:
        """Our end of the last stream that was dialled."""
        assert self._stream is not None, "the guest has not dialled"
        return self._stream

    def dial(self) -> MemoryStream:
        """Make a new stream and give the host's end of it; requests of the last one can still be answered."""
        self._wire = GuestSide()
        host, self._stream = stream_pair(self._capacity, self._host)
        return host

    async def next(self) -> Request:
        """Wait for the next request."""
        while not self._unread:
            self._feed(await self.stream.receive())
        return self._unread.popleft()

    def read(self) -> list[Request]:
        """Give the requests that are there."""
        if self.stream.incoming.data:
            self._feed(self.stream.incoming.take(1 << 30))
        requests = list(self._unread)
        self._unread.clear()
        return requests

    @property
    def unread(self) -> deque[Request]:
        """The requests that came and were not read yet."""
        return self._unread

    def take(self, max_bytes: int) -> bytes:
        """Take bytes that are there, and note the requests that they complete."""
        data = self.stream.incoming.take(max_bytes)
        self._feed(data)
        return data

    def respond(self, request: Request, **body: Any) -> None:
        """Answer a request, with ``Result`` 0 unless it says something else."""
        self.send(encode(Kind.RESPONSE, request.procedure, request.id, {"Result": 0} | body))

    def refuse(self, request: Request, code: int, message: str, **body: Any) -> None:
        """Refuse a request, with a code as an unsigned number."""
        self.respond(request, Result=code - (1 << 32), ErrorMessage=message, **body)

    def notify(self, container_id: str, **body: Any) -> None:
        """Tell of a container's exit."""
        self.send(
            encode(
                Kind.NOTIFICATION,
                NOTIFY_CONTAINER,
                0,
                {"ContainerId": container_id, "Type": "GracefulExit"} | body,
            )
        )

    def send(self, data: bytes) -> None:
        """Send any bytes."""
        self.stream.outgoing.put(data)

    def hang_up(self) -> None:
        """Close our end; the host reads what was sent, and then the end."""
        self.stream.close()

    async def serve(self, answer: Callable[[Request, JSON], JSON | None]) -> None:
        """Answer each request of this stream as it comes, with what a function says of its body."""
        try:
            while True:
                request = await self.next()
                body = answer(request, parse(request.payload))
                if body is not None:
                    self.respond(request, **body)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return

    def _feed(self, data: bytes) -> None:
        requests = list(self._wire.receive(data))
        self.seen += requests
        self._unread += requests


async def no_greeting() -> None:
    """Greet nobody."""


@asynccontextmanager
async def serving(
    guest: ScriptedGuest,
    greeting: Callable[[], Awaitable[None]] = no_greeting,
    notify: Callable[[ContainerNotification], None] = lambda _: None,
    **options: Any,
) -> AsyncIterator[Bridge]:
    """A bridge that serves one stream of a guest; it is closed at the end."""
    bridge = Bridge("vm", notify=notify, **options)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bridge.run, guest.dial(), greeting)
            yield bridge
            bridge.close()
