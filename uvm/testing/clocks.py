"""Event loops on which time passes only when nothing else can happen, and then at once.

A deadline then differs from what merely took long, however busy the machine is: a test has the same course
each time, takes no time to sleep, and one that is stuck fails at once. For tests that do no real I/O, as
those on the in-memory backend.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

__all__ = ["JumpingLoop", "jumping_options", "run_without_waiting"]

T = TypeVar("T")

_STUCK_SECONDS = 3600.0


class _JumpingSelector(selectors.DefaultSelector):
    """Does not sleep: it notes how long it should have slept."""

    slept = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(0)
        if not ready:
            self.slept += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop of asyncio whose clock is what its selector did not sleep; pass it as a ``loop_factory``."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.slept


def jumping_options(backend: str) -> dict[str, Any]:
    """Return the options that have a loop's time jump: ``anyio.run``'s ``backend_options``.

    :param backend: ``asyncio`` or ``trio``.
    """
    if backend == "trio":
        import trio.testing

        return {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return {"loop_factory": JumpingLoop}


def run_without_waiting(call: Callable[..., Awaitable[T]], *args: Any, backend: str) -> T:
    """Run a call that does no real I/O on an event loop, ``asyncio`` or ``trio``, whose time jumps.

    :raises TimeoutError: it got stuck.
    """
    return anyio.run(_limited, call, args, backend=backend, backend_options=jumping_options(backend))


async def _limited(call: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> T:
    with anyio.fail_after(_STUCK_SECONDS):
        return await call(*args)
