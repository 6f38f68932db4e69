"""The agent's event loop: one thread, which waits for descriptors, timers, signals and workers.

Everything of the agent's own state is used in the loop's thread only, and nothing in there blocks. What may
block runs in a worker, a thread::

    loop.work(function, then)      # function() in a worker, then(result, error) in the loop

Any thread may :meth:`~Loop.post` a call to the loop; a byte in a pipe wakes it. Signals come through the same
pipe, which Python's own handler writes their numbers to.

A callback that raises ends neither the loop nor, with it, the VM: its error is reported, and a descriptor
whose callback raised is watched no more, since it would raise again.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from uvm.agent.workers import Workers

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
#: The other end has gone; it comes whatever is watched for.
HANGUP: Final = select.EPOLLHUP | select.EPOLLERR

#: The byte that wakes the loop, and is no signal.
_POSTED: Final = b"\0"


class Timer:
    """A call that comes later, unless it is cancelled."""

    __slots__ = ("_callback", "_when")

    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self._when = when
        self._callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Do not call; nothing happens if the call has come."""
        self._callback = None

    def __lt__(self, other: Timer) -> bool:
        return self._when < other._when


class Loop:
    """The event loop.

    :param on_error: reports an error of a callback.
    """

    def __init__(self, on_error: Callable[[BaseException], object]) -> None:
        self._on_error = on_error
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], object]] = {}
        self._timers: list[Timer] = []
        self._signals: dict[int, Callable[[], object]] = {}
        self._idle: list[Callable[[], object]] = []
        self._posted: deque[Callable[[], object]] = deque()
        self._running = True
        self._workers = Workers()
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.watch(self._woken, READ, self._on_wake)

    def watch(self, fd: int, events: int, callback: Callable[[int], object]) -> None:
        """Call when a descriptor is ready, with the events that it is ready for.

        :param events: :data:`READ`, :data:`WRITE`, or both; :data:`HANGUP` always comes.
        """
        self._epoll.register(fd, events)
        self._watched[fd] = callback

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor that is watched."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Watch a descriptor no more, before it is closed; nothing happens if it is not watched."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def on_signal(self, number: int, callback: Callable[[], object]) -> None:
        """Call when a signal has come, once for however many; only the main thread may ask for it."""
        self._signals[number] = callback
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(number, lambda number, frame: None)

    def before_waiting(self, callback: Callable[[], object]) -> None:
        """Call each time before the loop waits: what callbacks have queued is sent at once, together."""
        self._idle.append(callback)

    def later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call after so many seconds."""
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def post(self, callback: Callable[[], object]) -> None:
        """Call in the loop, soon. Any thread may ask for it."""
        self._posted.append(callback)
        # A pipe that is full wakes the loop all the same.
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, _POSTED)

    def work(self, function: Callable[[], Any], then: Callable[[Any, BaseException | None], object]) -> None:
        """Run a function that may block in a worker, then call in the loop with its result, or its error."""

        def run() -> None:
            try:
                result, error = function(), None
            except BaseException as e:
                result, error = None, e
            self.post(lambda: then(result, error))

        self._workers.submit(run)

    def stop(self) -> None:
        """End :meth:`run` before it waits again."""
        self._running = False

    def run(self) -> None:
        """Run until it is stopped."""
        while self._running:
            for callback in self._idle:
                self.call(callback)
            for fd, events in self._epoll.poll(self._seconds()):
                self._ready(fd, events)
            self._expire()

    def _seconds(self) -> float:
        """Return how long to wait; -1 without limit."""
        if self._posted:
            return 0
        return max(0.0, self._timers[0]._when - time.monotonic()) if self._timers else -1

    def _ready(self, fd: int, events: int) -> None:
        callback = self._watched.get(fd)
        if callback is None:
            return  # an earlier callback unwatched it
        try:
            callback(events)
        except Exception as error:
            self._on_error(error)
            self.unwatch(fd)

    def _expire(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0]._when <= now:
            callback = heapq.heappop(self._timers)._callback
            if callback is not None:
                self.call(callback)

    def _on_wake(self, events: int) -> None:
        try:
            woken = os.read(self._woken, 4096)
        except BlockingIOError:
            return
        for number in set(woken):
            if number in self._signals:
                self.call(self._signals[number])
        for _ in range(len(self._posted)):
            self.call(self._posted.popleft())

    def call(self, callback: Callable[[], object]) -> None:
        """Call now, in the loop; an error of it is reported, and the caller goes on."""
        try:
            callback()
        except Exception as error:
            self._on_error(error)
