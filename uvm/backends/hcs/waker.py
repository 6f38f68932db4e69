"""From a thread that belongs to somebody else into the event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TypeVarTuple

import anyio

Args = TypeVarTuple("Args")


class Waker:
    """Runs functions in the event loop in which it was made; any thread may ask, none waits.

    Made inside of a running event loop, asyncio's or trio's.
    """

    def __init__(self) -> None:
        trio = sys.modules.get("trio")
        # Not there while another thread is in the middle of importing it.
        lowlevel = getattr(trio, "lowlevel", None)
        self._soon: Callable[..., object]
        if trio is not None and lowlevel is not None and lowlevel.in_trio_run():
            self._soon = lowlevel.current_trio_token().run_sync_soon
            self._gone: type[RuntimeError] = trio.RunFinishedError
        else:
            self._soon = asyncio.get_running_loop().call_soon_threadsafe
            self._gone = RuntimeError

    def call_soon(self, function: Callable[[*Args], object], *args: *Args) -> bool:
        """Have the loop call a function soon; False where the loop has ended, and nothing will be called."""
        try:
            self._soon(function, *args)
        except self._gone:
            return False
        return True


class Signal:
    """Something that happens once, told from any thread to a task of the loop in which it was made."""

    def __init__(self, waker: Waker) -> None:
        self._waker = waker
        self._event = anyio.Event()

    def set(self) -> None:
        """Say that it has happened; again, it does nothing."""
        self._waker.call_soon(self._event.set)

    async def wait(self) -> None:
        """Wait until it has happened."""
        await self._event.wait()
