"""Event loops on which time passes only when nothing else can happen, and then at once.

What limits a wait is then told apart from what merely took long, however busy the machine is: an example
goes the same way each time, and one that is stuck is told so at once.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import pytest
import trio.testing

__all__ = ["JumpingLoop", "jumping_backends", "run_without_waiting"]

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
    """A loop whose clock is what its selector did not sleep."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.slept


def _options(backend: str) -> dict[str, Any]:
    if backend == "trio":
        return {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return {"loop_factory": JumpingLoop}


@pytest.fixture(params=["asyncio", "trio"])
def jumping_backends(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Both event loops, with time that jumps, a fresh one for each test.

    A module whose tests do no real I/O says ``anyio_backend = jumping_backends``.
    """
    return request.param, _options(request.param)


def run_without_waiting(call: Callable[..., Awaitable[T]], *args: Any, backend: str) -> T:
    """Run a call that does no real I/O on an event loop, ``asyncio`` or ``trio``, whose time jumps.

    :raises TimeoutError: it got stuck.
    """
    return anyio.run(_limited, call, args, backend=backend, backend_options=_options(backend))


async def _limited(call: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> T:
    with anyio.fail_after(_STUCK_SECONDS):
        return await call(*args)
