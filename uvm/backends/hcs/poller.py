"""Readiness of any number of sockets, in one thread."""

from __future__ import annotations

import atexit
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Protocol

import anyio
from attrs import Factory, define, field

from uvm.backends.hcs.winsock import WinsockPollSet
from uvm.backends.waker import Signal, Waker


class PollSet(Protocol):
    """The descriptors that the thread polls. Used by that thread only."""

    @property
    def readable(self) -> int:
        """The bits of ``events`` for: data to receive, or the end."""

    @property
    def writable(self) -> int:
        """The bits for: room to send."""

    def set(self, fd: int, events: int) -> None:
        """Set the events to poll a descriptor for; 0 removes it."""

    def wait(self) -> Iterable[tuple[int, int]]:
        """Wait until a descriptor has events, and return those that have, with their events or errors."""


@define(eq=False, repr=False)
class _Wait:
    """A waiting task."""

    events: int
    signal: Signal = field(factory=lambda: Signal(Waker()))
    forgotten: bool = False


@define(eq=False, repr=False)
class _Interest:
    """The tasks that wait for one socket; a successor with the same descriptor has an interest of its own."""

    sock: socket.socket
    waits: set[_Wait] = Factory(set)

    @property
    def events(self) -> int:
        """The events that any of them waits for."""
        events = 0
        for wait in self.waits:
            events |= wait.events
        return events


class Poller:
    """Waits for sockets on behalf of tasks, in one thread, which starts with the first wait.

    Tasks of any number of event loops and threads may use it. It ends with :meth:`close`, at the latest with
    the interpreter. A socket must be forgotten (:meth:`forget`) before it is closed.

    :param poll_set: what the thread polls with; by default WSAPoll. Not select(), which anyio's and asyncio's
        selector threads use: it is limited to 512 sockets on Windows.
    """

    def __init__(self, poll_set: PollSet | None = None) -> None:
        self._set: Final = poll_set or WinsockPollSet()
        self._lock = threading.Lock()
        self._interests: dict[int, _Interest] = {}
        # The interests that the poll set holds: events found for one must not wake its successor.
        self._polled: dict[int, _Interest] = {}
        self._changed: set[int] = set()
        self._thread: threading.Thread | None = None
        self._bell: socket.socket | None = None
        self._rung = False
        self._closed = False

    async def readable(self, sock: socket.socket) -> None:
        """Wait until a socket has something to receive or to accept, was ended by its peer, or broke.

        :raises anyio.ClosedResourceError: the socket is closed, or was forgotten meanwhile.
        """
        await self._wait(sock, self._set.readable)

    async def writable(self, sock: socket.socket) -> None:
        """Wait until a socket has room to send, or broke. Errors as of :meth:`readable`."""
        await self._wait(sock, self._set.writable)

    def forget(self, sock: socket.socket) -> None:
        """Fail the waits for a socket. Call this before the socket is closed."""
        fd = sock.fileno()
        with self._lock:
            interest = self._interests.get(fd)
            if interest is None or interest.sock is not sock:
                return
            self._drop(fd, interest)
        _fail(interest.waits)

    def close(self) -> None:
        """End the thread, and fail all waits. Idempotent."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None and not self._closed:
                self._ring()
            self._closed = True
        if thread is not None:
            thread.join()
            atexit.unregister(self.close)

    async def _wait(self, sock: socket.socket, events: int) -> None:
        wait = _Wait(events)
        with self._lock:
            fd = sock.fileno()
            if fd < 0 or self._closed:
                raise anyio.ClosedResourceError
            self._start()
            interest = self._interest_in(sock, fd)
            interest.waits.add(wait)
            self._change(fd)
        try:
            await wait.signal.wait()
        except GeneratorExit:
            # Its loop has ended; the garbage collector runs at any time, also while this thread holds the
            # lock.
            raise
        except BaseException:
            with self._lock:
                self._withdraw(fd, interest, wait)
            raise
        if wait.forgotten:
            raise anyio.ClosedResourceError

    # All of these are called with the lock held.

    def _interest_in(self, sock: socket.socket, fd: int) -> _Interest:
        interest = self._interests.get(fd)
        if interest is not None and interest.sock is not sock:
            # That socket was closed without being forgotten, and this one got its descriptor.
            self._drop(fd, interest)
            _fail(interest.waits)
            interest = None
        if interest is None:
            interest = self._interests[fd] = _Interest(sock)
        return interest

    def _withdraw(self, fd: int, interest: _Interest, wait: _Wait) -> None:
        if wait not in interest.waits or self._interests.get(fd) is not interest:
            return
        interest.waits.discard(wait)
        if interest.waits:
            self._change(fd)
        else:
            self._drop(fd, interest)

    def _drop(self, fd: int, interest: _Interest) -> None:
        del self._interests[fd]
        self._change(fd)

    def _change(self, fd: int) -> None:
        self._changed.add(fd)
        if not self._rung:
            self._ring()

    def _ring(self) -> None:
        assert self._bell is not None
        self._rung = True
        self._bell.send(b"\0")

    def _start(self) -> None:
        if self._thread is not None:
            return
        heard, bell = socket.socketpair()
        thread = threading.Thread(target=self._run, args=(heard, bell), name="uvm sockets", daemon=True)
        try:
            for end in (heard, bell):
                end.setblocking(False)
            self._set.set(heard.fileno(), self._set.readable)
            thread.start()
        except BaseException:
            self._set.set(heard.fileno(), 0)
            heard.close()
            bell.close()
            raise
        self._bell, self._thread = bell, thread
        # A daemon: the interpreter joins other threads before it runs this.
        atexit.register(self.close)

    # The thread.

    def _run(self, heard: socket.socket, bell: socket.socket) -> None:
        try:
            while self._apply():
                self._fire(self._set.wait(), heard)
        finally:
            self._end()
            heard.close()
            bell.close()

    def _apply(self) -> bool:
        """Update the poll set; return False if the poller was closed."""
        with self._lock:
            for fd in self._changed:
                interest = self._interests.get(fd)
                if interest is None:
                    self._polled.pop(fd, None)
                    self._set.set(fd, 0)
                else:
                    self._polled[fd] = interest
                    self._set.set(fd, interest.events)
            self._changed.clear()
            return not self._closed

    def _fire(self, found: Iterable[tuple[int, int]], heard: socket.socket) -> None:
        ready: list[_Wait] = []
        with self._lock:
            for fd, events in found:
                if fd == heard.fileno():
                    self._hear(heard)
                    continue
                interest = self._polled.get(fd)
                if interest is not None and self._interests.get(fd) is interest:
                    ready += self._take(fd, interest, events)
        for wait in ready:
            wait.signal.set()

    def _hear(self, heard: socket.socket) -> None:
        with suppress(BlockingIOError):
            heard.recv(1)
            self._rung = False

    def _take(self, fd: int, interest: _Interest, events: int) -> list[_Wait]:
        # All other events are errors or the end, which every waiter has to find out by itself.
        errors = events & ~(self._set.readable | self._set.writable)
        taken = [wait for wait in interest.waits if errors or wait.events & events]
        interest.waits.difference_update(taken)
        if not interest.waits:
            del self._interests[fd]
        self._changed.add(fd)
        return taken

    def _end(self) -> None:
        with self._lock:
            # Also if the thread ends with an error: no task may wait for it any more.
            self._closed = True
            interests = list(self._interests.values())
            self._interests.clear()
        for interest in interests:
            _fail(interest.waits)


def _fail(waits: Iterable[_Wait]) -> None:
    for wait in waits:
        wait.forgotten = True
        wait.signal.set()
