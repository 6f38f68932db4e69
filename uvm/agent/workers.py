"""Threads for what may block. They are started when there is work for them, and stay for more."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

#: More work than this waits for a worker. Each may be stuck in a call of the kernel.
MOST: Final = 64


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
