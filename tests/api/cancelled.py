"""Calls that are cancelled at one of their checkpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any

__all__ = ["CancelledAt"]


class CancelledAt:
    """An awaitable that cancels its call at a checkpoint.

    :ivar passed: how many there were.
    """

    def __init__(self, call: Awaitable[Any], cancel: Callable[[], None], at: int) -> None:
        self.passed = 0
        self._call = call
        self._cancel = cancel
        self._at = at

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._call.__await__()
        step = partial(next, steps)
        while True:
            try:
                trap = step()
            except StopIteration as end:
                return end.value
            self.passed += 1
            if self.passed == self._at:
                self._cancel()
            try:
                value = yield trap
            except BaseException as error:
                step = partial(steps.throw, error)
            else:
                step = partial(steps.send, value)
