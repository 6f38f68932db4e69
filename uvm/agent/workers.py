"""Threads for what may block. They are started when there is work for them, and stay for more.

What changes its thread has one of its own, which ends with it (:func:`apart`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, TypeVar

#: More work than this waits for a worker. Each may be stuck in a call of the kernel.
MOST: Final = 64

_T = TypeVar("_T")


class Workers:
    """A pool of threads, which end with the process."""

    def __init__(self) -> None:
        self._work: deque[Callable[[], None]] = deque()
        self._there_is_work = threading.Condition()
        self._idle = 0
        self._count = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Run a function, which raises nothing, in a thread."""
        with self._there_is_work:
            self._work.append(work)
            if len(self._work) > self._idle and self._count < MOST:
                self._count += 1
                threading.Thread(target=self._run, name=f"worker {self._count}", daemon=True).start()
            else:
                self._there_is_work.notify()

    def _run(self) -> None:
        while True:
            with self._there_is_work:
                while not self._work:
                    self._idle += 1
                    self._there_is_work.wait()
                    self._idle -= 1
                work = self._work.popleft()
            work()


def apart(function: Callable[[], _T]) -> _T:
    """Run a function in a thread of its own, and wait for it: what it sets is set for no other.

    :raises OSError: the function did.
    """
    results: list[_T | OSError] = []

    def run() -> None:
        try:
            results.append(function())
        except OSError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    (result,) = results
    if isinstance(result, OSError):
        raise result
    return result
