"""Threads for calls that block, none of which keeps the interpreter from ending.

Those of the standard library's pools, and anyio's on asyncio, do: the interpreter waits for what they are in
the middle of, for good where HCS hangs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

#: How long a thread waits for something to do.
_IDLE_SECONDS: Final = 10.0


class Threads:
    """As many threads as there are jobs at once; they stay a while for those to come."""

    def __init__(self, name: str) -> None:
        self._name: Final = name
        self._jobs: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._idle = 0

    def start(self, job: Callable[[], object]) -> None:
        """Have a thread do it now. It must not raise.

        :raises RuntimeError: there can be no more threads.
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
                # Unless another has it meanwhile.
                self._jobs.remove(job)
                raise

    def _work(self) -> None:
        while (job := self._next()) is not None:
            job()
            # What it holds is not to live until the next one comes.
            del job

    def _next(self) -> Callable[[], object] | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._jobs, _IDLE_SECONDS)
            self._idle -= 1
            return self._jobs.popleft() if self._jobs else None
