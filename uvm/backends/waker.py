"""Wake-ups of an event loop from foreign threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVarTuple

from uvm._async import Flag
from uvm._home import trio_lowlevel

Args = TypeVarTuple("Args")


class Waker:
    """Calls functions in the event loop in which it was created, from any thread, without blocking it.

    Created inside a running event loop of asyncio or trio.
    """

    def __init__(self) -> None:
        trio = trio_lowlevel()
        self._soon: Callable[..., object] = (
            asyncio.get_running_loop().call_soon_threadsafe
            if trio is None
            else trio.current_trio_token().run_sync_soon
        )

    def call_soon(self, function: Callable[[*Args], object], *args: *Args) -> bool:
        """Schedule a call of `function`; return False if the loop has ended, which then never calls it."""
        try:
            self._soon(function, *args)
        except RuntimeError:
            return False
        return True


class Signal:
    """A one-shot event that any thread may set for the tasks of the loop in which it was created."""

    def __init__(self, waker: Waker) -> None:
        self._waker = waker
        self._event = Flag()

    def set(self) -> None:
        """Set it. Idempotent."""
        self._waker.call_soon(self._event.set)

    async def wait(self) -> None:
        """Wait until it is set."""
        await self._event.wait()
