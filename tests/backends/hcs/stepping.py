"""Runs a coroutine to its end without the event loop, which is blocked in the call that asks for it."""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_at_once"]

T = TypeVar("T")

#: Far more checkpoints than any call of the fake passes.
_STEPS = 1000


def run_at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing, and only gives others their turn, which they do not get here.

    :raises RuntimeError: it does wait.
    """
    value: Any = None
    try:
        for _ in range(_STEPS):
            coroutine.send(value)
            value = _nothing()
    except StopIteration as e:
        result: T = e.value
        return result
    finally:
        coroutine.close()
    raise RuntimeError("what was to be done at once waits for something")


def _nothing() -> Any:
    """Make what the event loop resumes a task with that has had its checkpoint."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        import outcome

        return outcome.Value(None)
    return None
