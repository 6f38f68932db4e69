"""The poller: tasks wait for sockets, one thread waits for all of them."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from attrs import define, field

from tests.backends.hcs.descriptors import new_poll_set, new_poller
from uvm.backends.hcs.poller import Poller, PollSet

pytestmark = pytest.mark.anyio

#: More than one select() takes on Windows.
SOCKETS = 600


@contextmanager
def a_poller(poll_set: PollSet | None = None) -> Iterator[Poller]:
    poller = Poller(poll_set or new_poll_set())
    try:
        yield poller
    finally:
        poller.close()


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        yield a, b


def fill(sock: socket.socket) -> int:
    """Send until the buffer is full, and return how much."""
    sent = 0
    try:
        while True:
            sent += sock.send(bytes(65536))
    except BlockingIOError:
        return sent


def poller_threads() -> int:
    return sum(thread.name == "uvm sockets" for thread in threading.enumerate())


async def test_a_socket_is_readable_once_data_has_arrived() -> None:
    with a_poller() as poller, connected() as (a, b):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(poller.readable, a)
            await anyio.wait_all_tasks_blocked()
            b.send(b"x")
        assert a.recv(10) == b"x"


async def test_a_socket_is_readable_once_its_peer_is_gone() -> None:
    with a_poller() as poller, connected() as (a, b):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(poller.readable, a)
            await anyio.wait_all_tasks_blocked()
            b.close()
        assert a.recv(10) == b""


async def test_a_socket_is_writable_once_there_is_room() -> None:
    with a_poller() as poller, connected() as (a, b):
        await poller.writable(a)
        unread = fill(a)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(poller.writable, a)
            await anyio.wait_all_tasks_blocked()
            while unread:
                await poller.readable(b)
                unread -= len(b.recv(1 << 20))
        assert a.send(b"x") == 1


async def test_both_directions_of_a_socket_are_waited_for_at_once() -> None:
    with a_poller() as poller, connected() as (a, b):
        fill(a)
        done = []

        async def wait(direction: str) -> None:
            await (poller.readable(a) if direction == "in" else poller.writable(a))
            done.append(direction)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, "in")
            tasks.start_soon(wait, "out")
            await anyio.wait_all_tasks_blocked()
            b.send(b"x")
            while "in" not in done:
                await anyio.lowlevel.checkpoint()
            assert done == ["in"]
            tasks.cancel_scope.cancel()
        assert len(poller._interests) == 0


async def test_every_task_that_waits_for_a_socket_is_woken() -> None:
    with a_poller() as poller, connected() as (a, b):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(poller.readable, a)
            await anyio.wait_all_tasks_blocked()
            b.send(b"x")


async def test_waits_for_a_socket_fail_when_it_is_forgotten() -> None:
    with a_poller() as poller, connected() as (a, _):
        told = []

        async def wait() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await poller.readable(a)
            told.append(True)

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            poller.forget(a)
            a.close()
        assert told == [True, True]
        assert len(poller._interests) == 0
        with pytest.raises(anyio.ClosedResourceError):
            await poller.readable(a)


async def test_a_socket_without_waits_can_be_forgotten() -> None:
    with a_poller() as poller, connected() as (a, b):
        poller.forget(a)
        b.send(b"x")
        await poller.readable(a)
        a.close()
        poller.forget(a)


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    with a_poller() as poller, a_poller() as another, connected() as (a, b), anyio.fail_after(60):
        for _ in range(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(poller.readable, a)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
            assert len(poller._interests) == 0
        # The end reaches the peer: the thread holds no reference.
        a.close()
        await another.readable(b)
        assert b.recv(1) == b""


@define(eq=False)
class Numbered:
    """A second socket object with the descriptor of another, as if the number was reused."""

    sock: socket.socket

    def fileno(self) -> int:
        return self.sock.fileno()


@define(eq=False)
class Wrapped:
    """The system's poll set, for tests to meddle with."""

    inner: PollSet = field(factory=new_poll_set, kw_only=True)

    @property
    def readable(self) -> int:
        return self.inner.readable

    @property
    def writable(self) -> int:
        return self.inner.writable

    def set(self, fd: int, events: int) -> None:
        self.inner.set(fd, events)

    def wait(self) -> list[tuple[int, int]]:
        return list(self.inner.wait())


def namesakes(sock: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Return what stands for two sockets that had the same descriptor, one after the other."""
    return cast(socket.socket, Numbered(sock)), cast(socket.socket, Numbered(sock))


@define(eq=False)
class HeldBack(Wrapped):
    """A poll set that delays what it found, once, about one descriptor."""

    fd: int
    found: threading.Event = field(factory=threading.Event)
    go_on: threading.Event = field(factory=threading.Event)

    def wait(self) -> list[tuple[int, int]]:
        found = list(self.inner.wait())
        if not self.found.is_set() and any(fd == self.fd for fd, _ in found):
            self.found.set()
            self.go_on.wait()
        return found


async def test_an_event_of_a_closed_socket_does_not_wake_the_waits_for_its_successor() -> None:
    with connected() as (a, b), connected() as (c, d):
        held = HeldBack(a.fileno())
        with a_poller(held) as poller, anyio.fail_after(60):
            woken = anyio.Event()
            old, new = namesakes(a)

            async def wait_for_old() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await poller.readable(old)

            async def wait_for_new() -> None:
                await poller.readable(new)
                woken.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait_for_old)
                await anyio.wait_all_tasks_blocked()
                b.send(b"for the old one")
                await anyio.to_thread.run_sync(held.found.wait)
                poller.forget(old)
                a.recv(100)
                tasks.start_soon(wait_for_new)
                await anyio.wait_all_tasks_blocked()
                held.go_on.set()
                # A round of the thread later, the other one still waits.
                d.send(b"x")
                await poller.readable(c)
                assert not woken.is_set()
                b.send(b"for the new one")


async def test_a_socket_with_the_number_of_one_that_was_not_forgotten_ends_its_waits() -> None:
    with a_poller() as poller, connected() as (a, b):
        old, new = namesakes(a)

        async def wait_for_old() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await poller.readable(old)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_for_old)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(poller.readable, new)
            await anyio.wait_all_tasks_blocked()
            b.send(b"x")


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
async def test_one_thread_waits_for_any_number_of_sockets() -> None:
    with a_poller() as poller, ExitStack() as stack:
        pairs = [stack.enter_context(connected()) for _ in range(SOCKETS)]
        received: set[int] = set()

        async def wait(number: int, sock: socket.socket) -> None:
            await poller.readable(sock)
            assert sock.recv(10) == b"%d" % number
            received.add(number)

        threads = poller_threads()
        async with anyio.create_task_group() as tasks:
            for number, (a, _) in enumerate(pairs):
                tasks.start_soon(wait, number, a)
            await anyio.wait_all_tasks_blocked()
            assert len(poller._interests) == SOCKETS
            assert poller_threads() == threads + 1
            # From both ends inwards, so that places in the middle of the set move.
            for number in [
                n for pair in zip(range(SOCKETS), reversed(range(SOCKETS)), strict=True) for n in pair
            ]:
                if number not in received:
                    pairs[number][1].send(b"%d" % number)
                    while number not in received:
                        await anyio.lowlevel.checkpoint()
        assert received == set(range(SOCKETS))
        assert len(poller._interests) == 0


async def test_tasks_of_several_event_loops_use_one_poller(anyio_backend_name: str) -> None:
    with a_poller() as poller, connected() as (a, b), connected() as (c, d):

        async def answer() -> None:
            await poller.readable(c)
            b.send(c.recv(10))

        def another_loop() -> None:
            anyio.run(answer, backend=anyio_backend_name)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, another_loop)
            tasks.start_soon(poller.readable, a)
            await anyio.lowlevel.checkpoint()
            d.send(b"hello")
        assert a.recv(10) == b"hello"


async def test_closing_a_poller_ends_its_thread_and_fails_its_waits() -> None:
    before = poller_threads()
    poller = new_poller()
    with connected() as (a, _):

        async def wait() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await poller.readable(a)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert poller_threads() == before + 1
            poller.close()
        assert poller_threads() == before
        poller.close()
        with pytest.raises(anyio.ClosedResourceError):
            await poller.readable(a)


async def test_an_unused_poller_has_no_thread() -> None:
    before = poller_threads()
    with a_poller():
        assert poller_threads() == before


async def test_a_thread_that_cannot_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with a_poller() as poller, connected() as (a, b):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="new thread"):
                await poller.readable(a)
        assert len(poller._interests) == 0
        b.send(b"x")
        with anyio.fail_after(60):
            await poller.readable(a)


@define(eq=False)
class Failing(Wrapped):
    """A poll set that fails once the test sets it to."""

    broken: bool = False

    def wait(self) -> list[tuple[int, int]]:
        if self.broken:
            raise OSError("cannot wait")
        return list(self.inner.wait())


async def test_a_failing_thread_fails_all_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    failing, failures = Failing(), list[threading.ExceptHookArgs]()
    monkeypatch.setattr(threading, "excepthook", failures.append)
    with a_poller(failing) as poller, connected() as (a, _), connected() as (b, _), anyio.fail_after(60):

        async def wait(sock: socket.socket) -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await poller.readable(sock)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, a)
            await anyio.wait_all_tasks_blocked()
            failing.broken = True
            # This wakes the thread, which then waits again.
            tasks.start_soon(wait, b)
        await wait(b)
        poller.close()
        assert [str(failure.exc_value) for failure in failures] == ["cannot wait"]


@define(eq=False)
class Collecting(Wrapped):
    """A poll set whose changes trigger garbage collection."""

    garbage: list[Coroutine[object, object, None]] = field(factory=list)

    def set(self, fd: int, events: int) -> None:
        while self.garbage:
            self.garbage.pop().close()
        self.inner.set(fd, events)


async def test_a_wait_whose_loop_has_ended_may_be_collected_at_any_time() -> None:
    collecting = Collecting()
    with a_poller(collecting) as poller, connected() as (a, _), connected() as (c, d):

        def abandon() -> None:
            wait = poller.readable(a)
            loop = asyncio.new_event_loop()
            # It would log that a task was left.
            loop.set_exception_handler(lambda loop, context: None)
            task = loop.create_task(wait)
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
            assert not task.done()
            collecting.garbage.append(wait)

        await anyio.to_thread.run_sync(abandon)
        d.send(b"x")
        with anyio.fail_after(60):
            await poller.readable(c)
        assert not collecting.garbage


AT_EXIT = """
import socket, sys, threading
import anyio
from tests.backends.hcs.descriptors import new_poller

poller, (a, b) = new_poller(), socket.socketpair()
waits = threading.Event()

async def main():
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(poller.readable, a)
        await anyio.wait_all_tasks_blocked()
        waits.set()

threading.Thread(target=anyio.run, args=(main,), daemon=True).start()
waits.wait()
print("leaving")
"""


def test_the_interpreter_ends_during_a_wait() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "leaving"), done.stderr
