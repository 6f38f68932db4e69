"""The guest's connections at the host, over a socket."""

from __future__ import annotations

import os
import socket
import struct
from unittest.mock import Mock

import anyio
import anyio.lowlevel
import pytest

from tests.backends.qemu.muxes import linked
from tests.wire.muxes import Pair, receive
from uvm._wire.channels import MAX_WINDOW, MuxError
from uvm._wire.mux import Mux
from uvm._wire.muxframes import HEADER_SIZE, FrameKind
from uvm.backends.qemu.muxlink import BACKLOG, MuxLink, MuxStream
from uvm.errors import HostError

pytestmark = pytest.mark.anyio

MUCH = os.urandom(1 << 16) * 64


async def everything(stream: MuxStream) -> bytes:
    received = bytearray()
    try:
        while True:
            received += await stream.receive()
    except anyio.EndOfStream:
        return bytes(received)


async def keep_sending(stream: MuxStream) -> None:
    while True:
        stream.send_nowait(b"unwanted")
        await anyio.lowlevel.checkpoint()


async def test_much_passes_both_ways_at_once() -> None:
    async with linked() as links:
        guest, host = await links.connect()
        got: dict[MuxStream, bytes] = {}

        async def send(stream: MuxStream) -> None:
            await stream.send(MUCH)
            await stream.send_eof()

        async def receive(stream: MuxStream) -> None:
            got[stream] = await everything(stream)

        async with anyio.create_task_group() as tasks:
            for stream in (guest, host):
                tasks.start_soon(send, stream)
                tasks.start_soon(receive, stream)
        assert got[guest] == got[host] == MUCH


async def test_each_port_has_its_own_connections_in_the_order_in_which_they_were_made() -> None:
    async with linked() as links:
        listeners = {port: links.host.listen(port) for port in (1, 2)}
        dialled = [(port, links.guest.dial(port)) for port in (1, 2, 2, 1)]
        for number, (_, guest) in enumerate(dialled):
            await guest.send(bytes([number]))
        for number, (port, _) in enumerate(dialled):
            accepted = await listeners[port].accept()
            assert (accepted.port, await accepted.receive()) == (port, bytes([number]))


async def test_a_port_is_listened_at_once() -> None:
    async with linked() as links:
        listener = links.host.listen(1)
        with pytest.raises(HostError, match="WSAEADDRINUSE"):
            links.host.listen(1)
        await listener.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await listener.accept()
        links.host.listen(1)


async def test_a_dial_to_a_port_that_is_not_listened_at_is_refused() -> None:
    async with linked() as links:
        guest = links.guest.dial(5)
        with pytest.raises(anyio.BrokenResourceError):
            await guest.receive()


async def test_connections_that_are_not_accepted_end_with_their_listener() -> None:
    async with linked() as links:
        listener = links.host.listen(1)
        guest = links.guest.dial(1)
        while not guest._channel.accepted:
            await anyio.lowlevel.checkpoint()
        await listener.aclose()
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await guest.receive()


async def test_more_connections_than_wait_to_be_accepted_are_closed() -> None:
    async with linked() as links:
        listener = links.host.listen(1)
        guests = [links.guest.dial(1) for _ in range(BACKLOG + 1)]
        assert await everything(guests[-1]) == b""
        for guest in guests[:-1]:
            await guest.send(b"x")
            assert await (await listener.accept()).receive() == b"x"


async def test_a_stream_that_is_not_read_stops_no_other() -> None:
    async with linked() as links:
        slow, unread = await links.connect()
        fast, host = await links.connect()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow.send, MUCH)
            tasks.start_soon(fast.send, MUCH)
            received = 0
            while received < len(MUCH):
                received += len(await host.receive())
            assert sum(map(len, unread._arrived)) <= MAX_WINDOW
            tasks.cancel_scope.cancel()


async def test_a_sender_waits_for_the_reader() -> None:
    async with linked() as links:
        guest, host = await links.connect()
        async with anyio.create_task_group() as tasks:
            done = anyio.Event()

            async def send() -> None:
                await host.send(MUCH)
                done.set()

            tasks.start_soon(send)
            received = len(await guest.receive())
            while received < len(MUCH) - 2 * MAX_WINDOW:
                assert not done.is_set()
                received += len(await guest.receive())
            tasks.cancel_scope.cancel()


async def test_a_receiver_that_is_cancelled_loses_nothing() -> None:
    async with linked() as links:
        guest, host = await links.connect()
        received = bytearray()

        async def receive() -> None:
            received.extend(await host.receive(3))

        for number in range(200):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                for _ in range(number % 5):
                    await anyio.lowlevel.checkpoint()
                await guest.send(bytes([number]))
                tasks.cancel_scope.cancel()
        await guest.send_eof()
        received += await everything(host)
        assert received == bytes(range(200))


async def test_no_more_is_received_than_was_asked_for() -> None:
    async with linked() as links:
        guest, host = await links.connect()
        await guest.send(b"0123456789")
        assert [await host.receive(size) for size in (3, 4, 100)] == [b"012", b"3456", b"789"]
        with pytest.raises(ValueError, match="at least one"):
            await host.receive(0)


async def test_a_stream_that_is_closed_delivers_what_was_sent_and_takes_nothing() -> None:
    async with linked() as links:
        guest, host = await links.connect()
        host.send_nowait(b"last")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await host.aclose()
        assert await everything(guest) == b"last"
        with pytest.raises(anyio.ClosedResourceError):
            await host.receive()
        with pytest.raises(anyio.ClosedResourceError):
            host.send_nowait(b"x")
        with pytest.raises(anyio.ClosedResourceError):
            await host.send(b"x")
        # The guest is told that nothing more is taken.
        with pytest.raises(anyio.BrokenResourceError):
            await keep_sending(guest)


async def test_a_caller_that_waits_is_woken_when_its_stream_is_closed() -> None:
    async with linked() as links:
        _, host = await links.connect()
        async with anyio.create_task_group() as tasks:

            async def receive() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await host.receive()

            async def send() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await host.send(MUCH)

            tasks.start_soon(receive)
            tasks.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            await host.aclose()


async def test_the_end_of_the_link_breaks_every_stream_once_what_had_arrived_was_received() -> None:
    async with linked() as links:
        guest, host = await links.connect()
        listener = links.host.listen(2)
        await guest.send(b"last words")
        while not host._arrived:
            await anyio.lowlevel.checkpoint()
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                with pytest.raises(anyio.BrokenResourceError):
                    await host.send(MUCH)

            async def accept() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await listener.accept()

            tasks.start_soon(send)
            tasks.start_soon(accept)
            await anyio.wait_all_tasks_blocked()
            links.guest.close()
        assert await host.receive() == b"last words"
        with pytest.raises(anyio.BrokenResourceError):
            await host.receive()
        with pytest.raises(anyio.ClosedResourceError):
            links.host.listen(3)


@pytest.mark.parametrize("portion", [b"\xff" * 64, struct.pack("<IIIQ", FrameKind.DATA, 1, 1 << 20, 0)])
async def test_a_guest_that_breaks_a_rule_ends_its_link(
    portion: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked() as links:
        _, host = await links.connect()
        links.socket.send(portion)
        with pytest.raises(anyio.BrokenResourceError, match="the guest broke the protocol: "):
            await host.receive()
        assert isinstance(links.host.failure, MuxError)
    [record] = caplog.records
    assert record.message.startswith("vm1: the connections with the guest have ended: ")
    assert vars(record)["vm_id"] == "vm1"


async def test_a_flood_lets_other_tasks_run_and_is_kept_in_bounds() -> None:
    one, other = socket.socketpair()
    link, mux = MuxLink("vm1", one), Mux(guest=True)
    other.setblocking(False)
    turns = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(link.serve)
        listener = link.listen(1)
        await anyio.wait_readable(other)
        receive(mux, other.recv(1 << 20))
        mux.open(1)
        other.setblocking(True)
        other.sendall(b"".join(mux.outgoing()))
        stream = await listener.accept()
        window = stream._channel.receiver.window
        flood = b"".join(
            struct.pack("<IIIQ", FrameKind.DATA, 1, 1, offset) + b"x\0" for offset in range(window)
        )

        async def count() -> None:
            nonlocal turns
            while len(stream._arrived) * 1024 < window // 2:
                turns += 1
                await anyio.lowlevel.checkpoint()

        tasks.start_soon(count)
        await anyio.to_thread.run_sync(other.sendall, flood)
        while sum(map(len, stream._arrived)) < window:
            await anyio.lowlevel.checkpoint()
        # An object for each byte would be more than its window by far.
        assert len(stream._arrived) <= window // 1024
        link.close()
        tasks.cancel_scope.cancel()
    other.close()
    assert turns > 10


async def test_the_connections_of_an_earlier_process_wait_until_they_are_listened_for() -> None:
    earlier = Pair(9)
    channel, _ = earlier.open(9)
    async with linked(earlier.guest.mux) as links:
        await MuxStream(links.guest, channel).send(b"not received before")
        while not links.host.waiting:
            await anyio.lowlevel.checkpoint()
        assert [*links.host.waiting] == [9]
        stream = await links.host.listen(9).accept()
        assert not links.host.waiting
        assert await stream.receive() == b"not received before"
        assert stream.lost == 0


@pytest.mark.parametrize("cut", [0, 1, HEADER_SIZE, 500])
async def test_the_connections_that_a_clone_has_of_its_template_are_closed(cut: int) -> None:
    template = Pair(9)
    channel, sender = template.open(9)
    # It was saved in the middle of a frame, of each end.
    template.host.mux.send(sender, b"x" * 1000)
    template.host.write(cut)
    template.guest.receive(bytes(template.host.pipe))
    template.guest.mux.send(channel, b"y" * 1000)
    template.guest.write(cut)
    channel.owner = Mock()
    async with linked(template.guest.mux, adopts=False) as links:
        # A later process has its streams at the same port.
        guest, host = await links.connect(9)
        await guest.send(b"the clone's own")
        assert await host.receive() == b"the clone's own"
        assert channel.owner.end.called or channel.owner.reset.called
