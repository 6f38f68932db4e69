"""Daemon threads for blocking calls.

The interpreter waits at its end for the threads of the standard library's pools, and of anyio's on asyncio:
forever if a call hangs in HCS. It does not wait for these.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

#: How long an idle thread waits for the next job.
_IDLE_SECONDS: Final = 10.0


class Threads:
    """A pool with as many threads as there are jobs at once; idle ones are reused for a while."""

    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._jobs: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._idle = 0

    def start(self, job: Callable[[], object]) -> None:
        """Run `job` in a thread now. It must not raise.

        :raises RuntimeError: no more threads can be started.
        """
        with self._changed:
            self._jobs.append(job)
            if self._idle >= len(self._jobs):
                self._changed.notify()
                return
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:
            with self._changed, suppress(ValueError):
                # Unless another thread has taken it meanwhile.
                self._jobs.remove(job)
                raise

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job()
            # Do not keep its objects alive until the next job.
            del job

    def _next(self) -> Callable[[], object] | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._jobs, _IDLE_SECONDS)
            self._idle -= 1
            return self._jobs.popleft() if self._jobs else None
