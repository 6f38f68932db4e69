"""Who runs the guest of a VM: one of those who wait for its exit, so that no task outlives its owner."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

import anyio
import anyio.abc
import anyio.lowlevel


class Hosting:
    """Runs the guest in the task of the first who waits; when that one leaves, the next takes over.

    :param run: runs the guest, with a task group for what it does beside; it does not end by itself.
    """

    __slots__ = ("_hosted", "_next", "_run")

    def __init__(self, run: Callable[[anyio.abc.TaskGroup], Awaitable[None]]) -> None:
        self._run = run
        self._hosted = False
        self._next: list[anyio.Event] = []

    async def attend(self) -> NoReturn:
        """Run the guest, or wait for one's turn, until cancelled."""
        await anyio.lowlevel.checkpoint()
        while True:
            if self._hosted:
                await self._turn()
                continue
            self._hosted = True
            try:
                async with anyio.create_task_group() as tasks:
                    await self._run(tasks)
            finally:
                self._hosted = False
                self._wake_next()

    async def _turn(self) -> None:
        turn = anyio.Event()
        self._next.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self._wake_next()
            else:
                self._next.remove(turn)
            raise

    def _wake_next(self) -> None:
        if self._next:
            self._next.pop(0).set()
