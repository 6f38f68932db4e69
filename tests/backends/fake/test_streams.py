"""Connections from the guest to the host."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from tests.backends.fake.support import SERVICE, expect_refusal, host_files, lcow, running
from uvm.backends.fake import FakeBackend, FakeListener, FakeStream, FakeSystem
from uvm.backends.fake.streams import BUFFER_BYTES
from uvm.errors import VMExitedError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio


async def connected(system: FakeSystem) -> tuple[FakeStream, FakeStream]:
    """The guest's end and the host's end of a connection."""
    listener = await system.listen(SERVICE)
    guest = system.vm.dial(SERVICE.upper())
    host = await listener.accept()
    await listener.aclose()
    return guest, host


async def test_bytes_go_both_ways_in_order_whatever_the_reader_takes_at_once() -> None:
    async with running() as system:
        guest, host = await connected(system)
        await guest.send(b"hello")
        assert [await host.receive(2), await host.receive(2), await host.receive(2)] == [b"he", b"ll", b"o"]
        await host.send(b"world")
        assert await guest.receive() == b"world"


async def test_a_large_message_arrives_whole() -> None:
    message = bytes(range(256)) * 8192
    async with running() as system:
        guest, host = await connected(system)
        received = bytearray()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guest.send, message)
            while len(received) < len(message):
                received += await host.receive()
        assert bytes(received) == message


async def test_the_end_of_one_direction_leaves_the_other_open() -> None:
    async with running() as system:
        guest, host = await connected(system)
        await guest.send(b"last")
        await guest.send_eof()
        assert await host.receive() == b"last"
        with pytest.raises(anyio.EndOfStream):
            await host.receive()
        await host.send(b"still here")
        assert await guest.receive() == b"still here"


async def test_a_closed_connection_ends_for_the_other_side() -> None:
    async with running() as system:
        guest, host = await connected(system)
        await guest.aclose()
        with pytest.raises(anyio.EndOfStream):
            await host.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await host.send(b"x")
        with pytest.raises(anyio.ClosedResourceError):
            await guest.receive()


async def test_at_least_one_byte_is_received() -> None:
    async with running() as system:
        guest, _ = await connected(system)
        with pytest.raises(ValueError, match="at least one byte"):
            await guest.receive(0)


async def test_connections_are_accepted_in_the_order_in_which_the_guest_dialled() -> None:
    async with running() as system:
        listener = await system.listen(SERVICE)
        for n in range(3):
            await system.vm.dial(SERVICE).send(bytes([n]))
        assert [await (await listener.accept()).receive() for _ in range(3)] == [b"\0", b"\1", b"\2"]


async def test_accept_waits_for_the_guest() -> None:
    async with running() as system:
        listener = await system.listen(SERVICE)
        async with anyio.create_task_group() as tasks:
            accepted = []

            async def accept() -> None:
                accepted.append(await listener.accept())

            tasks.start_soon(accept)
            tasks.start_soon(accept)
            await anyio.wait_all_tasks_blocked()
            assert accepted == []
            system.vm.dial(SERVICE)
            await anyio.wait_all_tasks_blocked()
            assert len(accepted) == 1
            system.vm.dial(SERVICE)


async def test_nobody_answers_where_nobody_listens() -> None:
    async with running() as system:
        with pytest.raises(ConnectionRefusedError):
            system.vm.dial(SERVICE)
        listener = await system.listen(SERVICE)
        await listener.aclose()
        with pytest.raises(ConnectionRefusedError):
            system.vm.dial(SERVICE)
        with pytest.raises(anyio.ClosedResourceError):
            await listener.accept()


async def test_a_service_has_one_listener() -> None:
    async with running() as system:
        listener = await system.listen(SERVICE)
        with expect_refusal(HResult.WSAEADDRINUSE):
            await system.listen(SERVICE.upper())
        await listener.aclose()
        await system.listen(SERVICE)


async def test_the_host_listens_before_the_guest_starts() -> None:
    system = await FakeBackend(files=host_files()).create("vm1", lcow())
    listener = await system.listen(SERVICE)
    with pytest.raises(ConnectionRefusedError):
        system.vm.dial(SERVICE)
    await system.start()
    system.vm.dial(SERVICE)
    await (await listener.accept()).aclose()
    await system.terminate()


async def test_the_exit_ends_listeners_and_connections() -> None:
    async with running() as system:
        guest, host = await connected(system)
        listener = await system.listen(SERVICE)
        unaccepted = system.vm.dial(SERVICE)
        async with anyio.create_task_group() as tasks:
            other = await system.listen("other")

            async def accept() -> None:
                with pytest.raises(VMExitedError, match="ForcedExit"):
                    await other.accept()

            tasks.start_soon(accept)
            await anyio.wait_all_tasks_blocked()
            await system.terminate()
        with pytest.raises(VMExitedError):
            await listener.accept()
        for end in (guest, unaccepted):
            with pytest.raises(anyio.ClosedResourceError):
                await end.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await host.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await host.send(b"to nobody")
        with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
            await system.listen(SERVICE)


async def test_what_a_guest_said_before_it_went_can_still_be_read() -> None:
    async with running() as system:
        guest, host = await connected(system)
        await guest.send(b"last words")
        await system.terminate()
        assert await host.receive() == b"last words"
        with pytest.raises(anyio.BrokenResourceError):
            await host.receive()


async def test_a_sender_waits_for_a_slow_reader_whatever_it_sends_at_once() -> None:
    async with running() as system:
        guest, host = await connected(system)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(guest.send, bytes(10 * BUFFER_BYTES))
            await anyio.wait_all_tasks_blocked()
            assert not guest.send_nowait(b"x")
            received = 0
            while received < 10 * BUFFER_BYTES:
                received += len(await host.receive())
            assert guest.send_nowait(b"x")
        assert await host.receive() == b"x"


async def test_what_is_received_whole_is_the_object_that_was_sent() -> None:
    async with running() as system:
        guest, host = await connected(system)
        data = bytes(65536)
        await guest.send(data)
        assert await host.receive() is data


async def test_what_a_sender_changes_later_is_not_what_it_sent() -> None:
    async with running() as system:
        guest, host = await connected(system)
        data: Any = bytearray(b"before")
        await guest.send(data)
        data[:] = b"after!"
        assert await host.receive() == b"before"


async def test_a_sender_that_waits_is_told_that_the_reader_is_gone() -> None:
    async with running() as system:
        guest, host = await connected(system)

        async def send() -> None:
            with pytest.raises(anyio.BrokenResourceError):
                await guest.send(bytes(10 * BUFFER_BYTES))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            await host.aclose()


async def test_flushing_waits_until_everything_was_received_or_nobody_will() -> None:
    async with running() as system:
        guest, host = await connected(system)
        await guest.send(b"ab")
        flushed = anyio.Event()

        async def flush() -> None:
            await guest.flush()
            flushed.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flush)
            await host.receive(1)
            await anyio.wait_all_tasks_blocked()
            assert not flushed.is_set()
            await host.receive(1)
            await flushed.wait()
        await guest.send(b"c")
        await host.aclose()
        await guest.flush()


async def test_small_messages_of_several_senders_do_not_mix() -> None:
    async with running() as system:
        guest, host = await connected(system)
        received = bytearray()
        async with anyio.create_task_group() as tasks:
            for letter in b"abc":
                for _ in range(20):
                    tasks.start_soon(guest.send, bytes([letter]) * 40_000)
            while len(received) < 60 * 40_000:
                received += await host.receive()
        messages = [received[i : i + 40_000] for i in range(0, len(received), 40_000)]
        assert all(len(set(message)) == 1 for message in messages)


@pytest.mark.anyio
async def test_each_task_that_accepts_gets_an_error_of_its_own() -> None:
    listener, errors = FakeListener("service", lambda: None), []

    async def accept() -> None:
        try:
            await listener.accept()
        except anyio.ClosedResourceError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(accept)
        await anyio.wait_all_tasks_blocked()
        await listener.aclose()
    assert len({id(error) for error in errors}) == 3
