"""The standard streams of processes: from the listener on the host to the end of the stream."""

from __future__ import annotations

import logging

import anyio
import pytest

from tests.clocks import jumping_backends
from tests.gcs.guests import CountedListener
from uvm._gcs.bridge import Bridge
from uvm._gcs.link import GuestLink
from uvm._guest.stdio import (
    Channel,
    ProcessInput,
    ProcessOutput,
    StreamBrokenError,
    StreamBusyError,
    StreamClosedError,
)
from uvm._guest.timeouts import GuestTimeouts
from uvm._wire.ports import FIRST_STDIO_PORT, vsock_service_id
from uvm.backend import Listener
from uvm.backends.fake.streams import FakeStream, Switchboard
from uvm.errors import BridgeClosedError, GuestError, OptionsError, UVMError, VMExitedError

pytestmark = pytest.mark.anyio

anyio_backend = jumping_backends


class Host:
    """A host that listens in memory, and what its guest dials."""

    def __init__(self) -> None:
        self.switchboard = Switchboard("vm")
        self.listeners: list[CountedListener] = []
        bridge = Bridge("vm", notify=lambda _: None)
        self.link = GuestLink(name="vm", timeouts=GuestTimeouts(), bridge=bridge, listen=self.listen)

    async def listen(self, service_id: str) -> Listener:
        listener = CountedListener(self.switchboard.listen(service_id))
        self.listeners.append(listener)
        return listener

    def dial(self, channel: Channel) -> FakeStream:
        return self.switchboard.dial(channel.service_id)


@pytest.fixture
async def host() -> Host:
    return Host()


async def output_of(host: Host) -> tuple[ProcessOutput, FakeStream, Channel]:
    channel = await host.link.open_channel()
    return ProcessOutput(channel, "stdout of a process"), host.dial(channel), channel


async def input_of(host: Host) -> tuple[ProcessInput, FakeStream, Channel]:
    channel = await host.link.open_channel()
    return ProcessInput(channel, "stdin of a process"), host.dial(channel), channel


async def test_each_stream_has_a_port_of_its_own(host: Host) -> None:
    channels = [await host.link.open_channel() for _ in range(3)]
    assert [each.port for each in channels] == [FIRST_STDIO_PORT + i for i in range(3)]
    assert channels[0].service_id == vsock_service_id(FIRST_STDIO_PORT)


async def test_output_is_read_to_its_end(host: Host) -> None:
    stdout, guest, _ = await output_of(host)
    await guest.send(b"one")
    await guest.send_eof()
    assert [data async for data in stdout] == [b"one"]


async def test_reading_gives_the_very_bytes_that_the_stream_gave(host: Host) -> None:
    stdout, guest, _ = await output_of(host)
    sent = bytes(60_000)
    await guest.send(sent)
    assert await stdout.receive() is sent


async def test_at_most_so_many_bytes_are_received_as_asked_for(host: Host) -> None:
    stdout, guest, _ = await output_of(host)
    await guest.send(b"abc")
    assert await stdout.receive(2) == b"ab"
    assert await stdout.receive(2) == b"c"
    with pytest.raises(OptionsError):
        await stdout.receive(0)


async def test_nothing_is_read_from_the_guest_before_somebody_reads(host: Host) -> None:
    stdout, guest, _ = await output_of(host)
    sent = 0
    with anyio.move_on_after(0.05):
        while True:
            await guest.send(bytes(65536))
            sent += 65536
    assert sent <= 2**21, "the sender was not held up"
    assert len(await stdout.receive()) == 65536


async def test_our_end_of_output_is_closed_as_soon_as_its_end_was_read(host: Host) -> None:
    stdout, guest, _ = await output_of(host)
    await guest.send_eof()
    with pytest.raises(anyio.EndOfStream):
        await stdout.receive()
    # The Linux guest waits for this before it tells of the exit.
    with pytest.raises(anyio.EndOfStream):
        await guest.receive()
    with pytest.raises(anyio.EndOfStream):
        await stdout.receive()


async def test_input_reaches_the_process_and_its_end_as_well(host: Host) -> None:
    stdin, guest, _ = await input_of(host)
    await stdin.send(b"hello")
    await stdin.send_eof()
    await stdin.send_eof()
    assert await guest.receive() == b"hello"
    with pytest.raises(anyio.EndOfStream):
        await guest.receive()


async def test_writing_after_the_end_of_input_is_a_clear_error(host: Host) -> None:
    stdin, _, _ = await input_of(host)
    await stdin.send_eof()
    with pytest.raises(StreamClosedError, match="write to stdin of a process: it was closed before"):
        await stdin.send(b"more")


async def test_input_that_is_closed_while_its_end_is_sent_says_so(host: Host) -> None:
    channel = await host.link.open_channel()
    stdin = ProcessInput(channel, "stdin of a process")

    async def send_eof() -> None:
        with pytest.raises(StreamClosedError):
            await stdin.send_eof()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send_eof)
        await anyio.wait_all_tasks_blocked()
        await stdin.aclose()


async def test_what_is_no_bytes_is_not_sent(host: Host) -> None:
    stdin, _, _ = await input_of(host)
    with pytest.raises(OptionsError, match="str"):
        await stdin.send("text")  # type: ignore[arg-type]


async def test_writing_to_a_process_that_went_away_is_a_clear_error(host: Host) -> None:
    stdin, guest, _ = await input_of(host)
    await stdin.send(b"hello")
    guest.close()
    with pytest.raises(StreamBrokenError, match="gone"):
        await stdin.send(b"more")
    await stdin.send_eof()


async def test_what_is_logged_of_streams_says_of_which_vm(
    host: Host, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, "uvm")
    stdin, _, _ = await input_of(host)

    async def refuse(self: FakeStream) -> None:
        raise anyio.BrokenResourceError

    monkeypatch.setattr(FakeStream, "send_eof", refuse)
    await stdin.send_eof()
    monkeypatch.setattr(FakeStream, "aclose", refuse)
    await stdin.aclose()
    reads, closing = caplog.records
    assert reads.message.startswith("vm: the process reads it no more: end stdin of a process: ")
    assert closing.message == "vm: closing what had ended: BrokenResourceError()"
    assert [vars(each)["vm_id"] for each in caplog.records] == ["vm", "vm"]


async def test_closed_streams_say_so(host: Host) -> None:
    stdin, _, _ = await input_of(host)
    stdout, _, _ = await output_of(host)
    for stream in (stdin, stdout):
        await stream.aclose()
        await stream.aclose()
    with pytest.raises(StreamClosedError):
        await stdin.send(b"")
    with pytest.raises(StreamClosedError):
        await stdin.send_eof()
    with pytest.raises(StreamClosedError):
        await stdout.receive()


def test_the_errors_of_streams_are_ours_and_anyios() -> None:
    closed, broken, busy = (
        StreamClosedError("read"),
        StreamBrokenError("read", "gone"),
        StreamBusyError("read"),
    )
    assert isinstance(closed, GuestError)
    assert isinstance(closed, anyio.ClosedResourceError)
    assert isinstance(broken, GuestError)
    assert isinstance(broken, anyio.BrokenResourceError)
    assert isinstance(busy, UVMError)
    assert isinstance(busy, anyio.BusyResourceError)


async def test_two_tasks_cannot_use_one_stream_at_once(host: Host) -> None:
    stdout, guest, _ = await output_of(host)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stdout.receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(StreamBusyError, match="read from stdout of a process: another task"):
            await stdout.receive()
        await guest.send(b"x")
    await guest.send(b"y")
    assert await stdout.receive() == b"y"


@pytest.mark.parametrize("dialled", [True, False])
async def test_a_reader_is_told_when_the_stream_is_closed_under_it(host: Host, dialled: bool) -> None:
    channel = await host.link.open_channel()
    stdout = ProcessOutput(channel, "stdout of a process")
    if dialled:
        host.dial(channel)
    raised: list[BaseException] = []

    async def read() -> None:
        with pytest.raises(StreamClosedError) as caught:
            await stdout.receive()
        raised.append(caught.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        await stdout.aclose()
    assert raised
    assert host.listeners[0].closed == 1


async def test_a_listener_is_closed_once_when_the_guest_has_dialled(host: Host) -> None:
    stdout, guest, _ = await output_of(host)
    await guest.send(b"x")
    assert host.listeners[0].closed == 0
    await stdout.receive()
    assert host.listeners[0].closed == 1
    await stdout.aclose()
    assert host.listeners[0].closed == 1


async def test_a_listener_is_closed_once_where_nobody_used_the_stream(host: Host) -> None:
    stdout, guest, _ = await output_of(host)
    await stdout.aclose()
    await stdout.aclose()
    assert host.listeners[0].closed == 1
    with pytest.raises(anyio.EndOfStream):
        await guest.receive()


async def test_a_reader_that_is_cancelled_while_it_waits_for_the_guest_may_come_back(host: Host) -> None:
    channel = await host.link.open_channel()
    stdout = ProcessOutput(channel, "stdout of a process")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await stdout.receive()
    guest = host.dial(channel)
    await guest.send(b"x")
    assert await stdout.receive() == b"x"


async def test_a_stream_is_closed_also_in_a_cancelled_scope(host: Host) -> None:
    stdout, _, _ = await output_of(host)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await stdout.aclose()
    assert host.listeners[0].closed == 1


# A guest that never dials. The second of grace is not waited for: the clock says that it has passed.


async def test_a_stream_that_a_guest_never_dialled_is_at_its_end_after_the_process_has_ended(
    host: Host,
) -> None:
    host.link.timeouts = GuestTimeouts(grace_seconds=0)
    channel, other = await host.link.open_channel(), await host.link.open_channel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_expect_end, ProcessOutput(channel, "stdout"))
        await anyio.wait_all_tasks_blocked()
        channel.process_ended()
    other.process_ended()
    stdin = ProcessInput(other, "stdin")
    with pytest.raises(StreamBrokenError, match="never connected"):
        await stdin.send(b"x")
    await stdin.send_eof()
    assert [each.closed for each in host.listeners] == [1, 1]


async def _expect_end(stdout: ProcessOutput) -> None:
    with pytest.raises(anyio.EndOfStream):
        await stdout.receive()


async def test_a_stream_that_was_never_dialled_tells_that_the_connection_closed(
    host: Host,
) -> None:
    host.link.timeouts = GuestTimeouts(grace_seconds=0)
    channel = await host.link.open_channel()
    channel.process_ended(lambda: BridgeClosedError("the guest is gone"))
    with pytest.raises(BridgeClosedError):
        await ProcessOutput(channel, "stdout").receive()


async def test_output_that_waits_is_read_also_after_the_process_has_ended(
    host: Host,
) -> None:
    host.link.timeouts = GuestTimeouts(grace_seconds=60)
    stdout, guest, channel = await output_of(host)
    await guest.send(b"last words")
    guest.close()
    channel.process_ended()
    assert await stdout.receive() == b"last words"


async def test_the_exit_of_the_vm_is_told_to_readers(host: Host) -> None:
    unused = ProcessOutput(await host.link.open_channel(), "stdout")
    stdout, guest, _ = await output_of(host)
    await guest.send(b"x")
    await stdout.receive()
    host.switchboard.close(VMExitedError("the VM has exited"))
    with pytest.raises(VMExitedError):
        await unused.receive()
    with pytest.raises((StreamBrokenError, anyio.EndOfStream)):
        await stdout.receive()
    await stdout.aclose()
    await unused.aclose()


# Read ahead, while somebody waits for the exit.


async def test_what_was_read_ahead_is_read_or_closed_under_its_reader(host: Host) -> None:
    for _ in range(20):
        output, program, _ = await output_of(host)
        await program.send(b"read ahead")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(output._read_ahead)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(output.aclose)
            try:
                assert await output.receive() == b"read ahead"
            except StreamClosedError:
                with pytest.raises(StreamClosedError):
                    await output.receive()
