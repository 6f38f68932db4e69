"""What a guest dials while it boots: random bytes for it, its output for a handler."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from uvm._gcs.boot import MAX_PENDING_BYTES, forward_output, give_entropy
from uvm._guest.logs import log_to
from uvm.backend import ByteStream
from uvm.backends.fake.streams import FakeListener, FakeStream, stream_pair
from uvm.errors import VMExitedError

pytestmark = pytest.mark.anyio

LINE = b"x" * 1023 + b"\n"


OutputHandler = Callable[[ByteStream], Awaitable[None]]


class Line:
    """A listener, and the guest that dials it."""

    def __init__(self) -> None:
        self.listener = FakeListener("service", self._closed)
        self.closed = anyio.Event()

    def _closed(self) -> None:
        self.closed.set()

    def dial(self) -> FakeStream:
        guest, host = stream_pair(lambda end: None)
        self.listener.offer(host)
        return guest


@asynccontextmanager
async def forwarding(handler: OutputHandler, *, again: bool = False) -> AsyncIterator[Line]:
    """Output that is forwarded to a handler, until all of it has ended."""
    line = Line()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(forward_output, line.listener, handler, again, "vm-1"))
        yield line


async def say(guest: ByteStream, *texts: bytes) -> None:
    """Send some output and hang up."""
    for each in texts:
        await guest.send(each)
    await guest.aclose()


class Collector:
    """A handler that keeps what it gets of each connection."""

    def __init__(self) -> None:
        self.outputs: list[list[bytes]] = []

    async def __call__(self, stream: ByteStream) -> None:
        self.outputs.append([])
        try:
            while True:
                self.outputs[-1].append(await stream.receive())
        except anyio.EndOfStream:
            return


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


async def received(guest: ByteStream) -> bytes:
    data = b""
    try:
        while True:
            data += await guest.receive()
    except anyio.EndOfStream:
        return data


# Entropy.


async def test_the_guest_gets_512_random_bytes_and_the_end_of_the_stream_once() -> None:
    line = Line()
    guest = line.dial()
    await give_entropy(line.listener)
    data = await received(guest)
    assert len(data) == 512
    assert len(set(data)) > 100
    assert line.closed.is_set()


async def test_the_bytes_come_from_the_source_that_is_given() -> None:
    line = Line()
    guest = line.dial()
    await give_entropy(line.listener, lambda count: bytes([7]) * count)
    assert await received(guest) == bytes([7]) * 512


async def test_a_guest_that_hangs_up_before_its_random_bytes_hurts_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    line = Line()
    await line.dial().aclose()
    await give_entropy(line.listener)
    assert messages(caplog) == []
    assert line.closed.is_set()


async def test_a_source_that_fails_is_told_of_and_the_guest_is_hung_up_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(count: int) -> bytes:
        raise OSError("no randomness left")

    line = Line()
    guest = line.dial()
    await give_entropy(line.listener, fail, "vm-1")
    assert await received(guest) == b""
    assert messages(caplog) == ["vm-1: it got no random bytes to boot with"]


@pytest.mark.parametrize("error", [VMExitedError("vm-1 has exited"), anyio.ClosedResourceError()])
async def test_the_end_of_the_vm_ends_the_wait_for_the_guest_quietly(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    collector = Collector()
    async with forwarding(collector, again=True) as line:
        async with anyio.create_task_group() as tasks:
            other = Line()
            tasks.start_soon(give_entropy, other.listener)
            await anyio.wait_all_tasks_blocked()
            other.listener.end(error)
        line.listener.end(error)
    assert collector.outputs == []
    assert messages(caplog) == []


@pytest.mark.parametrize("dialled", [False, True], ids=["nobody dialled", "dialled"])
async def test_cancelling_closes_the_listener_and_the_connection(dialled: bool) -> None:
    line = Line()
    async with anyio.create_task_group() as tasks:
        guest = line.dial() if dialled else None
        tasks.start_soon(forward_output, line.listener, Collector())
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert line.closed.is_set()
    if guest is not None:
        with pytest.raises(anyio.BrokenResourceError):
            await guest.send(b"hello")


# Output.


async def test_a_handler_gets_lines_when_they_have_ended_and_the_last_one_when_the_output_has() -> None:
    collector = Collector()
    async with forwarding(collector) as line:
        guest = line.dial()
        for text in (b"on", b"e\ntwo", b"\nthree\nfo", b"ur"):
            await guest.send(text)
            await anyio.wait_all_tasks_blocked()
        assert collector.outputs == [[b"one\n", b"two\nthree\n"]]
        await guest.aclose()
    assert collector.outputs == [[b"one\n", b"two\nthree\n", b"four"]]


async def test_a_long_line_is_passed_on_before_its_end_has_come() -> None:
    collector = Collector()
    async with forwarding(collector) as line:
        guest = line.dial()
        await guest.send(b"x" * 65536)
        await anyio.wait_all_tasks_blocked()
        assert collector.outputs == [[b"x" * 65536]]
        await guest.aclose()


async def test_a_handler_may_take_its_output_in_small_pieces() -> None:
    taken: list[bytes] = []

    async def handler(stream: ByteStream) -> None:
        taken.extend([await stream.receive(2), await stream.receive(2), await stream.receive(2)])

    async with forwarding(handler) as line:
        await say(line.dial(), b"abcd\n")
    assert taken == [b"ab", b"cd", b"\n"]


async def test_a_linux_guest_is_listened_to_once() -> None:
    collector = Collector()
    async with forwarding(collector) as line:
        guest, late = line.dial(), line.dial()
        await line.closed.wait()
        assert await received(late) == b""
        await say(guest, b"hello\n")
    assert collector.outputs == [[b"hello\n"]]


async def test_a_windows_guest_is_listened_to_again_one_connection_at_a_time() -> None:
    collector = Collector()
    async with forwarding(collector, again=True) as line:
        first, second = line.dial(), line.dial()
        await second.send(b"second\n")
        await anyio.wait_all_tasks_blocked()
        assert collector.outputs == [[]]
        await say(first, b"first\n")
        await say(second)
        await anyio.wait_all_tasks_blocked()
        await say(line.dial(), b"third\n")
        await anyio.wait_all_tasks_blocked()
        await line.listener.aclose()
    assert collector.outputs == [[b"first\n"], [b"second\n"], [b"third\n"]]


async def test_a_handler_that_raises_is_told_of_and_the_guest_is_read_to_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(stream: ByteStream) -> None:
        await stream.receive()
        raise RuntimeError("this handler is broken")

    async with forwarding(handler) as line:
        await say(line.dial(), *[LINE] * 4096)
    (record,) = caplog.records
    assert record.getMessage() == "vm-1: the handler of its output failed; the rest of the output is dropped"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "this handler is broken"


@pytest.mark.parametrize("closes", [False, True], ids=["returns", "closes the stream"])
async def test_a_handler_that_wants_no_more_lets_the_guest_go_on(
    closes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(stream: ByteStream) -> None:
        if closes:
            await stream.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()

    async with forwarding(handler) as line:
        await say(line.dial(), *[LINE] * 4096)
    assert messages(caplog) == []


async def test_a_handler_that_is_slow_keeps_no_guest_waiting_and_loses_whole_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go_on = anyio.Event()
    collector = Collector()

    async def handler(stream: ByteStream) -> None:
        await go_on.wait()
        await collector(stream)

    async with forwarding(handler) as line:
        guest = line.dial()
        for number in range(4096):
            await guest.send(b"%08d" % number + LINE[8:])
        await anyio.wait_all_tasks_blocked()
        assert messages(caplog) == [
            "vm-1: the handler of its output is 1,048,576 bytes behind; output is dropped"
        ]
        go_on.set()
        await anyio.wait_all_tasks_blocked()
        await say(guest, b"99999999\n")
    kept = b"".join(collector.outputs[0]).splitlines()
    assert [line[:8] for line in kept] == [b"%08d" % number for number in [*range(1024), 99999999]]
    assert messages(caplog)[1:] == ["vm-1: 3,145,728 bytes of its output were dropped"]


async def test_a_line_whose_beginning_was_dropped_is_dropped_to_its_end() -> None:
    """What it quotes can be told from its beginning alone."""
    go_on = anyio.Event()
    collector = Collector()

    async def handler(stream: ByteStream) -> None:
        await go_on.wait()
        await collector(stream)

    async with forwarding(handler) as line:
        guest = line.dial()
        for _ in range(MAX_PENDING_BYTES // len(LINE)):
            await guest.send(LINE)
        await guest.send(b"beginning" + bytes(65536))
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        await anyio.wait_all_tasks_blocked()
        await say(guest, b"the rest\nanother line\n")
    assert b"".join(collector.outputs[0]).removeprefix(LINE * (MAX_PENDING_BYTES // len(LINE))) == (
        b"another line\n"
    )


async def test_what_a_handler_never_took_is_counted_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    ended = anyio.Event()

    async def handler(stream: ByteStream) -> None:
        await ended.wait()

    async with forwarding(handler) as line:
        await say(line.dial(), *[LINE] * (MAX_PENDING_BYTES // len(LINE) + 10))
        await anyio.wait_all_tasks_blocked()
        ended.set()
    assert messages(caplog)[1:] == ["vm-1: 10,240 bytes of its output were dropped"]


async def test_the_guest_can_be_spoken_to_though_none_listens() -> None:
    async def handler(stream: ByteStream) -> None:
        await stream.send(b"hello")
        await stream.send_eof()

    async with forwarding(handler) as line:
        guest = line.dial()
        assert await received(guest) == b"hello"
        await guest.aclose()


async def test_a_stream_that_breaks_ends_the_output(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(stream: FakeStream, max_bytes: int = 65536) -> bytes:
        raise ValueError("a bug")

    line = Line()
    line.dial()
    collector = Collector()
    with monkeypatch.context() as patch:
        patch.setattr(FakeStream, "receive", fail)
        await forward_output(line.listener, collector, False, "vm-1")
    assert collector.outputs == [[]]
    assert messages(caplog) == ["vm-1: its output broke off"]


async def test_the_log_of_a_guest_goes_all_the_way_into_records(caplog: pytest.LogCaptureFixture) -> None:
    async with forwarding(log_to("vm-1")) as line:
        await say(line.dial(), b'{"level":"warning","msg":"low mem', b'ory"}\npanic: out of memory')
    assert messages(caplog) == ["vm-1: low memory", "vm-1: guest terminated: panic: out of memory"]


async def test_a_logging_handler_that_raises_does_not_end_the_forwarding(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("this logging handler is broken")

    async def handler(stream: ByteStream) -> None:
        raise ValueError("and so is this one")

    failing = Failing()
    logging.getLogger("uvm.gcs").addHandler(failing)
    try:
        async with forwarding(handler) as line:
            await say(line.dial(), LINE)
    finally:
        logging.getLogger("uvm.gcs").removeHandler(failing)
    shown = capsys.readouterr().err
    assert "this logging handler is broken" in shown
