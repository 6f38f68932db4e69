"""Runs a coroutine to its end while the event loop is blocked in the call that asks for it."""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_at_once"]

T = TypeVar("T")

#: Far more checkpoints than any call of the fake has.
_STEPS = 1000


def run_at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has checkpoints but waits for nothing.

    :raises RuntimeError: it waits.
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
    raise RuntimeError("the coroutine waits for something, and cannot be run at once")


def _nothing() -> Any:
    """Return what the event loop resumes a task with after a checkpoint."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        import outcome

        return outcome.Value(None)
    return None
