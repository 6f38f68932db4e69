"""Listeners on sockets, and what only sockets do; for all streams see ``test_streams``."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio
import anyio.lowlevel
import pytest

from tests.backends.hcs.descriptors import new_sockets
from uvm.backends.hcs.sockets import SocketListener, Sockets

pytestmark = pytest.mark.anyio

MUCH = 8 << 20


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    made = new_sockets()
    yield made
    made.close()


def accept(sock: socket.socket) -> socket.socket:
    accepted, _ = sock.accept()
    accepted.setblocking(False)
    return accepted


def listening(sockets: Sockets) -> tuple[SocketListener, tuple[str, int]]:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    address: tuple[str, int] = sock.getsockname()
    return sockets.listener(sock, accept), address


@contextmanager
def dialled(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=30) as sock:
        yield sock


async def test_a_connection_is_accepted(sockets: Sockets) -> None:
    listener, address = listening(sockets)
    with dialled(address) as guest:
        stream = await listener.accept()
        await stream.send(b"welcome")
        assert guest.recv(100) == b"welcome"


async def test_accept_waits_until_a_guest_dials(sockets: Sockets) -> None:
    listener, address = listening(sockets)
    accepted = anyio.Event()

    async def accept() -> None:
        await listener.accept()
        accepted.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(accept)
        await anyio.wait_all_tasks_blocked()
        assert not accepted.is_set()
        with dialled(address):
            await accepted.wait()


async def test_connections_are_accepted_in_their_order(sockets: Sockets) -> None:
    listener, address = listening(sockets)
    with dialled(address) as first, dialled(address) as second:
        first.send(b"1")
        second.send(b"2")
        assert [await (await listener.accept()).receive() for _ in range(2)] == [b"1", b"2"]


async def test_closing_a_listener_ends_an_accept(sockets: Sockets) -> None:
    listener, _ = listening(sockets)
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await listener.accept()

        tasks.start_soon(wait)
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await listener.aclose()
    await listener.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await listener.accept()


async def test_a_listener_is_closed_in_a_cancelled_scope(sockets: Sockets) -> None:
    listener, address = listening(sockets)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await listener.aclose()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_a_connection_that_was_not_accepted_ends_with_the_listener(sockets: Sockets) -> None:
    listener, address = listening(sockets)
    with dialled(address) as guest:
        await listener.aclose()
        with suppress(ConnectionError):
            assert guest.recv(1) == b""


async def test_a_cancelled_accept_loses_no_connection(sockets: Sockets) -> None:
    listener, address = listening(sockets)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.accept)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    with dialled(address) as guest:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await listener.accept()
        guest.send(b"still here")
        assert await (await listener.accept()).receive() == b"still here"


async def test_a_connection_that_ends_before_it_is_accepted_is_skipped(sockets: Sockets) -> None:
    failures = [ConnectionAbortedError(), ConnectionResetError()]

    def accept_later(sock: socket.socket) -> socket.socket:
        if failures:
            raise failures.pop()
        return accept(sock)

    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    listener = sockets.listener(sock, accept_later)
    with dialled(sock.getsockname()):
        await listener.accept()
    assert not failures


async def test_a_listener_that_cannot_accept_is_broken(sockets: Sockets) -> None:
    def refuse(_: socket.socket) -> socket.socket:
        raise OSError(24, "too many open files")

    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    listener = sockets.listener(sock, refuse)
    with pytest.raises(anyio.BrokenResourceError) as caught:
        await listener.accept()
    assert isinstance(caught.value.__cause__, OSError)


class Broken(socket.socket):
    """A connection that was reset: all of its calls fail."""

    def recv(self, *_: object) -> bytes:
        raise ConnectionResetError("reset")

    def send(self, *_: object) -> int:
        raise ConnectionResetError("reset")

    def shutdown(self, how: int, /) -> None:
        raise OSError("not connected")


async def test_a_connection_that_was_reset_is_broken_and_not_at_its_end(sockets: Sockets) -> None:
    stream = sockets.stream(Broken())
    for call in (stream.receive, lambda: stream.send(b"x"), stream.send_eof):
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await call()
        assert isinstance(caught.value.__cause__, OSError)


async def test_the_other_direction_goes_on_after_an_end(sockets: Sockets) -> None:
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    host, guest = sockets.stream(a), sockets.stream(b)
    await guest.send_eof()
    with pytest.raises(anyio.EndOfStream):
        await host.receive()
    received = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(host.send, bytes(MUCH))
        await anyio.wait_all_tasks_blocked()
        while received < MUCH:
            received += len(await guest.receive())


async def test_closing_all_closes_streams_and_listeners(sockets: Sockets) -> None:
    listener, address = listening(sockets)
    with dialled(address) as guest:
        stream = await listener.accept()
        for _ in range(2):
            sockets.close()
        assert guest.recv(1) == b""
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await listener.accept()
        with pytest.raises(anyio.ClosedResourceError):
            sockets.stream(socket.socket())
