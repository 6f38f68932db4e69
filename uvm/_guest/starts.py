"""The start of a process or a container, which a task of the connection makes, so that its caller may leave.

How it works
------------

::

    the caller                              a task of the connection
    start_in_task ------------------------> make: ask, wait for the answer, however late it comes
       |                                      |
       |<-- what was made, or the error ------|
       |                                      |
       |    cancelled, or sent away since     v
       |    no answer came in time ---------> LATE: what is made is undone
       v

What a late start holds (a task, an id, the listeners that the guest may still dial) is bounded by
``GuestTimeouts.max_late_starts``: a guest that owes so many answers is asked to start nothing more. All else
goes on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

import anyio

from uvm._async import Flag
from uvm._guest.access import GuestAccess
from uvm._log import Log
from uvm.errors import VMStateError

T = TypeVar("T")

_log = Log("uvm.gcs")


class Start(Generic[T]):
    """A start of a process or a container, until its task has ended.

    :ivar left: its caller has left.
    :ivar on_leave: called when the caller leaves.
    """

    def __init__(
        self, guest: GuestAccess, operation: str, undo: Callable[[T], Awaitable[None]] | None
    ) -> None:
        self.left = False
        self.on_leave: Callable[[], None] = lambda: None
        self._guest = guest
        self._operation = operation
        self._undo = undo
        self._made: T | None = None
        self._error: Exception | None = None
        self._answered = False
        # The task has ended: a caller may leave in the turn after that.
        self._over = False
        self._ended = Flag()
        # The caller has what was made, or has left.
        self._parted = Flag()

    async def wait(self) -> T:
        """Return what was made; a caller that is cancelled leaves."""
        try:
            await self._ended.wait()
        except BaseException:
            self._leave()
            raise
        finally:
            self._parted.set()
        if self._error is not None:
            raise self._error
        assert self._made is not None
        return self._made

    def send_away(self, error: Exception) -> None:
        """Raise an error in the caller, who leaves with it."""
        if not self._ended.is_set():
            self._fail(error)
            self._leave()

    def _fail(self, error: Exception) -> None:
        if not self._ended.is_set():
            self._error = error
            self._ended.set()
        elif self.left:
            _log.debug(self._guest.name, "%s, whose caller has left: %s", self._operation, error)

    def _leave(self) -> None:
        if not (self.left or self._answered):
            self._guest.states.work.owe()
        self.left = True
        if self._undo is not None and not self._over:
            self._guest.late_starts.add(self)
        self.on_leave()

    def _note_answer(self) -> None:
        if self.left and not self._answered:
            self._guest.states.work.repay()
        self._answered = True

    async def run(self, make: Callable[[Start[T]], Awaitable[T]]) -> None:
        """Make it, and undo it if the caller has left: the task."""
        try:
            if not self.left:
                await self._run(make)
        except Exception as error:
            self._fail(error)
        finally:
            self._note_answer()
            self._over = True
            self._guest.late_starts.discard(self)
            if not self._ended.is_set():
                self._fail(self._guest.closed_error())

    async def _run(self, make: Callable[[Start[T]], Awaitable[T]]) -> None:
        self._made = await make(self)
        self._note_answer()
        self._ended.set()
        # The caller is woken just now; what it has must not be undone, nor what it has not be kept.
        with anyio.CancelScope(shield=True):
            await self._parted.wait()
        if self.left and self._undo is not None:
            await self._undo(self._made)


async def start_in_task(
    guest: GuestAccess,
    operation: str,
    make: Callable[[Start[T]], Awaitable[T]],
    undo: Callable[[T], Awaitable[None]] | None,
) -> T:
    """Have something started by a task of the connection; a cancelled caller leaves at once.

    :param operation: what is started, for messages.
    :param make: starts it, however long the guest takes.
    :param undo: undoes what was made after the caller had left; None for what ends by itself, and is not
        refused either.
    :raises VMStateError: the guest owes the answers to too many starts whose callers have left.
    :raises BridgeClosedError: the guest is out of reach, or went before anything was asked.
    """
    owed = len(guest.late_starts)
    if undo is not None and owed >= guest.timeouts.max_late_starts:
        raise VMStateError(
            f"{operation}: the guest of {guest.name} owes the answers to {owed} starts whose callers have "
            "left (GuestTimeouts.max_late_starts); nothing was sent, and what runs in it goes on. Wait for "
            "the guest, or terminate the VM"
        )
    start: Start[T] = Start(guest, operation, undo)
    if not guest.start_soon(partial(start.run, make)):
        raise guest.closed_error()
    return await start.wait()
