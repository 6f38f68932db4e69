"""What holds for every stream that sends without waiting: the fake's, Hyper-V and Unix sockets, the mux's."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from tests.backends.hcs.descriptors import new_sockets
from uvm._gcs.unix import _UnixStream
from uvm.backend import BROKEN_STREAM, ByteStream, EagerByteStream
from uvm.backends.fake.streams import stream_pair

pytestmark = pytest.mark.anyio

#: More than any of the systems buffers, and without a period that divides what they take at once.
MUCH = bytes(range(251)) * 40_000

Pair = tuple[EagerByteStream, ByteStream]
Connected = Callable[[Path], AbstractAsyncContextManager[Pair]]


@asynccontextmanager
async def fake(tmp_path: Path) -> AsyncIterator[Pair]:
    """Connect two streams of the fake."""
    one, other = stream_pair(lambda stream: None)
    yield one, other
    one.close()
    other.close()


@asynccontextmanager
async def hyperv(tmp_path: Path) -> AsyncIterator[Pair]:
    """Connect two sockets as the Windows backend has them."""
    sockets = new_sockets()
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    try:
        yield sockets.stream(one), sockets.stream(other)
    finally:
        sockets.close()


@asynccontextmanager
async def unix(tmp_path: Path) -> AsyncIterator[Pair]:
    """Connect two Unix sockets."""
    path = tmp_path / "s"
    async with await anyio.create_unix_listener(path) as listener:
        one = _UnixStream(await anyio.connect_unix(path))
        other = _UnixStream(await listener.accept())
        yield one, other
        await one.aclose()
        await other.aclose()


@asynccontextmanager
async def mux(tmp_path: Path) -> AsyncIterator[Pair]:
    """Connect a guest's stream to the host, over the mux."""
    from tests.backends.qemu.muxes import linked

    async with linked() as links:
        guest, host = await links.connect()
        yield host, guest


KINDS: list[Connected] = [fake, hyperv, *([] if sys.platform == "win32" else [unix])]
KINDS += [mux] if sys.platform == "linux" else []


@pytest.fixture(params=KINDS, ids=lambda kind: str(kind.__name__))
def connected(request: pytest.FixtureRequest) -> Connected:
    kind: Connected = request.param
    return kind


async def receive(stream: ByteStream, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        received += await stream.receive()
    return bytes(received)


async def keep_sending(stream: EagerByteStream) -> None:
    """Send until the stream refuses: a socket may learn only by sending that its other end has gone."""
    while True:
        stream.send_nowait(b"hello")
        await anyio.lowlevel.checkpoint()


async def test_what_is_small_is_sent_whole(connected: Connected, tmp_path: Path) -> None:
    async with connected(tmp_path) as (sender, receiver):
        assert isinstance(sender, EagerByteStream)
        assert sender.send_nowait(b"hello") == 5
        assert await receive(receiver, 5) == b"hello"


async def test_what_is_not_taken_at_once_is_sent_later(connected: Connected, tmp_path: Path) -> None:
    async with connected(tmp_path) as (sender, receiver):
        taken = 0
        while count := sender.send_nowait(MUCH[taken:]):
            taken += count
        assert 0 < taken < len(MUCH)
        # It is full: nothing is taken, and nothing is sent.
        assert sender.send_nowait(b"x") == 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sender.send, MUCH[taken:])
            assert await receive(receiver, len(MUCH)) == MUCH


async def test_a_stream_whose_other_end_has_gone_is_broken(connected: Connected, tmp_path: Path) -> None:
    async with connected(tmp_path) as (sender, receiver):
        await receiver.aclose()
        with pytest.raises(BROKEN_STREAM):
            await keep_sending(sender)
        with pytest.raises(BROKEN_STREAM):
            await sender.send(b"hello")


async def test_a_stream_that_is_closed_takes_nothing(connected: Connected, tmp_path: Path) -> None:
    async with connected(tmp_path) as (sender, _):
        await sender.aclose()
        with pytest.raises(BROKEN_STREAM):
            sender.send_nowait(b"hello")


async def test_an_end_that_was_sent_is_the_last(connected: Connected, tmp_path: Path) -> None:
    async with connected(tmp_path) as (sender, receiver):
        sender.send_nowait(b"last")
        await sender.send_eof()
        assert await receive(receiver, 4) == b"last"
        with pytest.raises(anyio.EndOfStream):
            await receiver.receive()
        with pytest.raises(BROKEN_STREAM):
            sender.send_nowait(b"more")
