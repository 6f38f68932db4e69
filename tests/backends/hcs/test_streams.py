"""What holds for every stream of the backend: sockets, pipes."""

from __future__ import annotations

import sys

import anyio
import anyio.lowlevel
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.hcs.streampairs import KINDS, Kind, connected
from uvm.backend import ByteStream
from uvm.backends.hcs.sockets import PIECE_BYTES

pytestmark = pytest.mark.anyio

#: More than any of the systems buffers.
MUCH = 8 << 20


@pytest.fixture(params=KINDS, ids=lambda kind: str(kind.__name__))
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


async def receive_exactly(stream: ByteStream, size: int) -> bytes:
    received = b""
    while len(received) < size:
        received += await stream.receive(size - len(received))
    return received


async def receive_all(stream: ByteStream) -> bytes:
    received = bytearray()
    while True:
        try:
            received += await stream.receive()
        except anyio.EndOfStream:
            return bytes(received)


async def test_what_is_sent_is_received(kind: Kind) -> None:
    async with connected(kind) as (a, b):
        await a.send(b"hello")
        assert await receive_exactly(b, 5) == b"hello"


async def test_both_directions_work_at_once() -> None:
    for both_ways in KINDS[:2]:
        async with connected(both_ways) as (a, b), anyio.create_task_group() as tasks:
            tasks.start_soon(a.send, bytes(MUCH))
            tasks.start_soon(b.send, bytes(MUCH))
            tasks.start_soon(receive_exactly, a, MUCH)
            tasks.start_soon(receive_exactly, b, MUCH)


async def test_no_more_is_received_than_was_asked_for(kind: Kind) -> None:
    async with connected(kind) as (a, b):
        await a.send(b"hello")
        assert await b.receive(2) == b"he"
        assert await receive_exactly(b, 3) == b"llo"
        with pytest.raises(ValueError, match="at least one"):
            await b.receive(0)


async def test_any_number_of_bytes_may_be_asked_for(kind: Kind) -> None:
    async with connected(kind) as (a, b):
        await a.send(b"hello")
        assert (await b.receive(sys.maxsize)).startswith(b"h")


async def test_any_kind_of_bytes_is_sent(kind: Kind) -> None:
    async with connected(kind) as (a, b):
        for item in (bytearray(b"abc"), memoryview(b"abc"), b""):
            await a.send(item)  # type: ignore[arg-type]
        assert await receive_exactly(b, 6) == b"abcabc"


async def test_sending_waits_for_a_slow_peer(kind: Kind) -> None:
    async with connected(kind) as (a, b), anyio.create_task_group() as tasks:
        data = bytes(range(256)) * (MUCH // 256)
        tasks.start_soon(a.send, data)
        await anyio.wait_all_tasks_blocked()
        assert await receive_exactly(b, MUCH) == data


async def test_the_end_follows_all_data_and_repeats(kind: Kind) -> None:
    async with connected(kind) as (a, b):
        await a.send(b"last words")
        await a.send_eof()
        assert await receive_all(b) == b"last words"
        with pytest.raises(anyio.EndOfStream):
            await b.receive()


async def test_the_end_wakes_a_receiver(kind: Kind) -> None:
    async with connected(kind) as (a, b), anyio.create_task_group() as tasks:

        async def receive() -> None:
            with pytest.raises(anyio.EndOfStream):
                await b.receive()

        tasks.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        await a.aclose()


async def test_sending_to_a_closed_peer_breaks(kind: Kind) -> None:
    async with connected(kind) as (a, b):
        await b.aclose()
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await a.send(bytes(MUCH))
        assert isinstance(caught.value.__cause__, OSError)


async def test_a_peer_that_closes_breaks_off_a_send(kind: Kind) -> None:
    async with connected(kind) as (a, b), anyio.create_task_group() as tasks:

        async def send() -> None:
            with pytest.raises(anyio.BrokenResourceError):
                await a.send(bytes(MUCH))

        tasks.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        await b.aclose()


async def test_a_closed_stream_is_of_no_more_use(kind: Kind) -> None:
    async with connected(kind) as (a, b):
        for _ in range(2):
            await a.aclose()
            await b.aclose()
        for call in (b.receive, lambda: a.send(b"x"), lambda: a.send(b""), a.send_eof):
            with pytest.raises(anyio.ClosedResourceError):
                await call()


async def test_closing_wakes_a_receiver(kind: Kind) -> None:
    async with connected(kind) as (_, b), anyio.create_task_group() as tasks:

        async def receive() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await b.receive()

        tasks.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        await b.aclose()


async def test_closing_wakes_a_sender(kind: Kind) -> None:
    async with connected(kind) as (a, _), anyio.create_task_group() as tasks:

        async def send() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await a.send(bytes(MUCH))

        tasks.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        await a.aclose()


async def test_a_stream_is_closed_in_a_cancelled_scope(kind: Kind) -> None:
    async with connected(kind) as (a, b):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await a.aclose()
        assert await receive_all(b) == b""


async def test_one_task_at_a_time_receives_and_one_sends(kind: Kind) -> None:
    async with connected(kind) as (a, b), anyio.create_task_group() as tasks:
        tasks.start_soon(b.receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await b.receive()
        await a.send(b"x")
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(a.send, bytes(MUCH))
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await a.send(b"x")
        tasks.cancel_scope.cancel()


async def test_a_cancelled_receive_loses_nothing(kind: Kind) -> None:
    async with connected(kind) as (a, b):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(b.receive)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        await a.send(b"hello")
        assert await b.receive(1) == b"h"
        assert await receive_exactly(b, 4) == b"ello"


async def test_a_cancelled_send_has_sent_a_part(kind: Kind) -> None:
    async with connected(kind) as (a, b):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.send, b"a" * MUCH)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:

            async def finish() -> None:
                await a.send(b"b" * PIECE_BYTES)
                await a.send_eof()

            tasks.start_soon(finish)
            received = await receive_all(b)
        part = received.count(b"a")
        assert received == b"a" * part + b"b" * PIECE_BYTES
        assert part < MUCH


async def test_a_stream_that_is_always_ready_lets_others_run(kind: Kind) -> None:
    async with connected(kind) as (a, b), anyio.create_task_group() as tasks:
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1

        tasks.start_soon(take_turns)
        await a.send(bytes(100))
        await receive_exactly(b, 1)
        turns = 0
        for _ in range(99):
            await b.receive(1)
        assert turns >= 50
        tasks.cancel_scope.cancel()


@frozen
class Reception:
    """An attempt to receive, which is cancelled after some turns of the event loop."""

    max_bytes: int
    patience: int


RECEPTIONS = st.lists(
    st.builds(Reception, max_bytes=st.integers(1, 5000), patience=st.integers(0, 12)), max_size=20
)
ITEMS = st.lists(
    st.binary(max_size=20) | st.integers(0, 300_000).map(lambda n: b"0123456789abc" * (n // 13)), max_size=8
)


@given(items=ITEMS, receptions=RECEPTIONS, kind_drawn=st.sampled_from(KINDS))
async def test_every_byte_arrives_once_and_in_order_wherever_receiving_is_cancelled(
    items: list[bytes], receptions: list[Reception], kind_drawn: Kind
) -> None:
    received = bytearray()

    async def attempt(stream: ByteStream, max_bytes: int, scope: anyio.CancelScope) -> None:
        received.extend(await stream.receive(max_bytes))
        scope.cancel()

    async def send(stream: ByteStream) -> None:
        for item in items:
            await stream.send(item)
        await stream.send_eof()

    async with connected(kind_drawn) as (a, b), anyio.create_task_group() as tasks:
        tasks.start_soon(send, a)
        try:
            for reception in receptions:
                async with anyio.create_task_group() as attempts:
                    attempts.start_soon(attempt, b, reception.max_bytes, attempts.cancel_scope)
                    for _ in range(reception.patience):
                        await anyio.lowlevel.checkpoint()
                    attempts.cancel_scope.cancel()
        except* anyio.EndOfStream:
            pass
        received += await receive_all(b)
    assert received == b"".join(items)
