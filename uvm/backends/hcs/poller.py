"""Readiness of sockets, for any number of them, in one thread."""

from __future__ import annotations

import atexit
import select
import socket
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Protocol

import anyio
from attrs import Factory, define, field

from uvm.backends.hcs.waker import Signal, Waker


class HasFileno(Protocol):
    """What can be waited for: a socket, on POSIX anything with a file descriptor."""

    def fileno(self) -> int:
        """Give its descriptor (on Windows its SOCKET); -1 where it is closed."""


class PollSet(Protocol):
    """The descriptors that the thread waits for. Only that thread uses it."""

    @property
    def readable(self) -> int:
        """The bits of ``events`` that mean: something to receive, or the end."""

    @property
    def writable(self) -> int:
        """The bits that mean: room to send."""

    def set(self, fd: int, events: int) -> None:
        """Wait for these events of a descriptor; for 0, no longer for the descriptor."""

    def wait(self) -> Iterable[tuple[int, int]]:
        """Wait until there are some, and give descriptors with what was found: events, errors."""


class PosixPollSet:
    """:class:`PollSet` of ``poll``."""

    readable: int = getattr(select, "POLLIN", 0)
    writable: int = getattr(select, "POLLOUT", 0)

    def __init__(self) -> None:
        self._poll = select.poll()
        self._fds: set[int] = set()

    def set(self, fd: int, events: int) -> None:
        """Wait for these events of a descriptor; for 0, no longer for the descriptor."""
        if events:
            self._fds.add(fd)
            self._poll.register(fd, events)
        elif fd in self._fds:
            self._fds.discard(fd)
            self._poll.unregister(fd)

    def wait(self) -> list[tuple[int, int]]:
        """Wait until there are some."""
        return self._poll.poll()


def new_poll_set() -> PollSet:
    """Make the system's: of ``poll``, or of WSAPoll."""
    # Not select(), which anyio's and asyncio's selector threads use: it takes 512 sockets on Windows.
    if sys.platform == "win32":
        from uvm.backends.hcs.winsock import WinsockPollSet

        return WinsockPollSet()
    return PosixPollSet()


@define(eq=False)
class _Wait:
    """One task that waits."""

    events: int
    signal: Signal = field(factory=lambda: Signal(Waker()))
    forgotten: bool = False


@define(eq=False)
class _Interest:
    """The tasks that wait for one socket. Another socket with the same descriptor has another one."""

    sock: HasFileno
    waits: set[_Wait] = Factory(set)

    @property
    def events(self) -> int:
        """All that they wait for."""
        events = 0
        for wait in self.waits:
            events |= wait.events
        return events


class Poller:
    """Waits for sockets on behalf of tasks, in one thread, which starts with the first wait.

    Tasks of any number of event loops and threads may use it. It ends with :meth:`close`, at the latest with
    the interpreter. Before a socket is closed, it has to be forgotten (:meth:`forget`).

    :param poll_set: what the thread waits with; the system's where it is left out.
    """

    def __init__(self, poll_set: PollSet | None = None) -> None:
        self._set: Final = poll_set or new_poll_set()
        self._lock = threading.Lock()
        self._interests: dict[int, _Interest] = {}
        # Whose events the poll set holds; what it finds is theirs only, never a successor's.
        self._polled: dict[int, _Interest] = {}
        self._changed: set[int] = set()
        self._thread: threading.Thread | None = None
        self._bell: socket.socket | None = None
        self._rung = False
        self._closed = False

    @property
    def waiting(self) -> int:
        """For how many sockets somebody waits."""
        return len(self._interests)

    async def readable(self, sock: HasFileno) -> None:
        """Wait until a socket has something to receive or to accept, was ended by its peer, or broke.

        :raises anyio.ClosedResourceError: it is closed, or was forgotten meanwhile.
        """
        await self._wait(sock, self._set.readable)

    async def writable(self, sock: HasFileno) -> None:
        """Wait until a socket has room to send, or broke. Errors as of :meth:`readable`."""
        await self._wait(sock, self._set.writable)

    def forget(self, sock: HasFileno) -> None:
        """Have everybody who waits for a socket be told that it closes. To be called before it is closed."""
        fd = sock.fileno()
        with self._lock:
            interest = self._interests.get(fd)
            if interest is None or interest.sock is not sock:
                return
            self._drop(fd, interest)
        _tell(interest.waits)

    def close(self) -> None:
        """End the thread, and tell everybody who waits. Again, it does nothing."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None and not self._closed:
                self._ring()
            self._closed = True
        if thread is not None:
            thread.join()
            atexit.unregister(self.close)

    async def _wait(self, sock: HasFileno, events: int) -> None:
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
            # Its loop has gone; the garbage collector comes at any time, also where this thread has the lock.
            raise
        except BaseException:
            with self._lock:
                self._withdraw(fd, interest, wait)
            raise
        if wait.forgotten:
            raise anyio.ClosedResourceError

    # All of these are called with the lock.

    def _interest_in(self, sock: HasFileno, fd: int) -> _Interest:
        interest = self._interests.get(fd)
        if interest is not None and interest.sock is not sock:
            # A socket that nobody had us forget was closed, and this one got its descriptor.
            self._drop(fd, interest)
            _tell(interest.waits)
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
        # A daemon, so that the interpreter gets as far as to end it: it waits for other threads before.
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
        """Bring the poll set up to date; False where there is to be no more waiting."""
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
        # Whatever is neither of the two is an error or the end, which is for everybody to find out.
        errors = events & ~(self._set.readable | self._set.writable)
        taken = [wait for wait in interest.waits if errors or wait.events & events]
        interest.waits.difference_update(taken)
        if not interest.waits:
            del self._interests[fd]
        self._changed.add(fd)
        return taken

    def _end(self) -> None:
        with self._lock:
            # Also where the thread ends with an error: nobody is to wait for it.
            self._closed = True
            interests = list(self._interests.values())
            self._interests.clear()
        for interest in interests:
            _tell(interest.waits)


def _tell(waits: Iterable[_Wait]) -> None:
    for wait in waits:
        wait.forgotten = True
        wait.signal.set()
