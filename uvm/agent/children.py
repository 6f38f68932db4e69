"""The children of the agent: the loop reaps them all, and passes each exit to the starter of the process.

As PID 1 the agent also gets the children of processes that have exited: those of a container's runtime, and
any that were left behind. A child may exit before its starter has asked for that; the last exits of
children that are not known are therefore kept, and numbered, so that an older process of the same id is not
mistaken for a newer one.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from uvm.agent.loop import Loop

#: How many exits of unknown children are kept.
_MOST_UNKNOWN: Final = 1024

OnExit = Callable[[int], object]


class Children:
    """The children; there is one such object in a process, made in its main thread.

    :ivar on_failure: called, in the loop, before the exit of a child that failed is passed on.
    """

    on_failure: Callable[[], object]

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.on_failure = lambda: None
        self._lock = threading.Lock()
        self._waiting: dict[int, OnExit] = {}
        # The exit code, and the number of the exit, by process id; the oldest first.
        self._unknown: dict[int, tuple[int, int]] = {}
        self._reaped = 0
        loop.on_signal(signal.SIGCHLD, self._reap)

    def mark(self) -> int:
        """Return the number of exits so far, for :meth:`adopt`; taken before the process is started."""
        return self._reaped

    def adopt(self, pid: int, on_exit: OnExit, mark: int) -> None:
        """Call in the loop when a child exits, or soon if it has. Any thread may ask for it.

        :param on_exit: gets the exit code; negative, the signal that killed it.
        :param mark: see :meth:`mark`.
        """
        with self._lock:
            code, number = self._unknown.pop(pid, (0, -1))
            if number < mark:
                self._waiting[pid] = on_exit
                return
        self._loop.post(lambda: on_exit(code))

    def start(self, start: Callable[[], int], on_exit: OnExit) -> int:
        """Start a process by a function that returns its id, and call in the loop when it exits."""
        mark = self.mark()
        pid = start()
        self.adopt(pid, on_exit, mark)
        return pid

    def run(self, start: Callable[[], int], seconds: float) -> int:
        """Start a process, wait until it has exited, and return its exit code. Only workers may wait.

        :raises TimeoutError: it took longer, and was killed.
        """
        ended = threading.Event()
        codes: list[int] = []

        def on_exit(code: int) -> None:
            codes.append(code)
            ended.set()

        pid = self.start(start, on_exit)
        if not ended.wait(seconds):
            self._loop.post(lambda: None if codes else os.kill(pid, signal.SIGKILL))
            raise TimeoutError
        return codes[0]

    def _reap(self) -> None:
        while True:
            # Under the lock: an adoption meanwhile finds it in one of the tables.
            with self._lock:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    return
                if not pid:
                    return
                code = os.waitstatus_to_exitcode(status)
                on_exit = self._waiting.pop(pid, None)
                if on_exit is None:
                    self._keep(pid, code)
                self._reaped += 1
            # Neither keeps the other, or the exits that follow, from being passed on.
            if code:
                self._loop.call(self.on_failure)
            if on_exit is not None:
                self._loop.call(partial(on_exit, code))

    def _keep(self, pid: int, code: int) -> None:
        self._unknown.pop(pid, None)
        self._unknown[pid] = code, self._reaped
        if len(self._unknown) > _MOST_UNKNOWN:
            del self._unknown[next(iter(self._unknown))]
