"""The order in which the containers of a confidential VM are brought up: one at a time.

How it works
------------

The enforcer of a security policy ties what is mounted to the container that is created next, and a Windows
guest that is asked for two at once resets. So a caller has a turn, over the mounting of the layers and the
creation of the container::

    WAITING -- those before have ended --> HELD -- left in order -------------------------> the next one
       |                                    |
       |-- cancelled: out of line           `-- failed, or cancelled --> UNDONE -- quiet --> the next one
       `-- the VM exits: VMExitedError

What a body that failed has begun is finished, or undone, by tasks of the VM: the next turn begins when they
have nothing in flight, or at the end of the time that a guest may take for an answer.

Source: hcsshim ``LockContainerCreate`` (internal/uvm/combine_layers.go), which unlocks whatever goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager

import anyio
from attrs import define, field

from uvm._async import Flag, in_work
from uvm._buses.link import Link
from uvm.errors import VMStateError


@define(eq=False)
class _Turn:
    """A place in the line.

    :ivar task: of which task, until that leaves.
    :ivar in_work: the task is in flight itself: one of the VM's.
    :ivar come: its turn has come, or the VM has gone.
    """

    task: int | None
    in_work: bool
    come: Flag = field(factory=Flag, init=False)


class CreationOrder:
    """The turns of those that bring up containers in one VM.

    :param limit: returns the scope of the time that a guest may take for an answer.
    """

    def __init__(self, link: Link, limit: Callable[[], AbstractContextManager[object]]) -> None:
        self._link = link
        self._limit = limit
        self._line: deque[_Turn] = deque()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it."""
        me = _Turn(anyio.get_current_task().id, in_work())
        if any(turn.task == me.task for turn in self._line):
            raise VMStateError(
                f"{self._link.vm_id}: this task holds container_creation() already, and would wait for "
                "itself; bring up one container in each"
            )
        self._line.append(me)
        # It may have been what the turn before waits for.
        self._link.work.look()
        try:
            await self._reach(me)
            yield
        except BaseException:
            self._leave(me)
            raise
        self._pass_on(me)

    async def _reach(self, me: _Turn) -> None:
        if self._line[0] is me:
            me.come.set()
        await me.come.wait()
        self._link.check_running()

    def _leave(self, me: _Turn) -> None:
        """Leave without success: a turn that was held goes on until what it began is finished or undone."""
        link, me.task = self._link, None
        if self._line[0] is me and link.tasks is not None and not link.exited.is_set():
            link.tasks.start_soon(self._pass_on_when_quiet, me)
        else:
            self._pass_on(me)

    async def _pass_on_when_quiet(self, me: _Turn) -> None:
        try:
            with self._limit():
                await self._link.work.wait_until(self._is_quiet)
        finally:
            self._pass_on(me)

    def _is_quiet(self) -> bool:
        """Return whether the tasks of the VM have nothing in flight, but those that wait in line."""
        work, waiting = self._link.work, sum(turn.in_work for turn in [*self._line][1:])
        return work.busy <= waiting and not work.owed

    def _pass_on(self, me: _Turn) -> None:
        self._line.remove(me)
        if self._line:
            self._line[0].come.set()

    def gone(self) -> None:
        """Wake all that wait: the VM has exited."""
        for turn in self._line:
            turn.come.set()
