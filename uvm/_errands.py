"""What a task does for callers who may leave at once: errands, and releases that are tried again.

Theory of operation
-------------------

What changes a VM or its guest has to come to its end though a caller is cancelled, so that a task of the VM
does it, and the callers only wait. An :class:`Errand` is one such call. Its outcome is learnt by the callers
that stay; once they have all left, its result is abandoned, or its error logged, once. One that has learnt of
a failure may leave as well: the others have what it left, as long as they wait, or have learnt of it too.

A :class:`Release` is made of errands, one after the other, until one succeeds::

    HELD -- begin --> IN FLIGHT -- it succeeds, or the task group ends --> DONE   begun again, nothing happens
                      ^      |
                begin |      | it fails
                      |      v
                       FAILED     each caller raises an error of its own; where there is none, it is logged;
                                  once all have left, `leave` is called: no caller is expected to release
                                  what is left of it

That the VM has exited is no failure, and ends it: with the VM went all that there was to release.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeAlias, TypeVar

import anyio.abc
from attrs import define, field

from uvm._async import Flag
from uvm._log import Log
from uvm._observed import Door, Observed, Outcome, observe, outcome_of
from uvm.errors import VMExitedError, own

T = TypeVar("T")

#: Has a task make a call, which must not raise; returns False where the tasks have ended.
StartSoon: TypeAlias = Callable[[Callable[[], Coroutine[Any, Any, None]]], bool]

_log = Log("uvm")


@define(eq=False, repr=False)
class Errand(Generic[T]):
    """A call that a task makes for its callers, who may leave at once; the call goes on.

    :ivar name: the VM that it is for.
    :ivar operation: what is done.
    :ivar give_up: called with the result if all callers have left.
    :ivar leave: called if it failed, and all callers have left, before they learnt of it or after.
    :ivar outcome: returns how it ended by what it raised, for those that observe it.
    :ivar error: what it failed with.
    """

    name: str
    operation: str
    _call: Callable[[], Awaitable[T]]
    give_up: Callable[[T], object] = lambda result: None
    leave: Callable[[], object] = lambda: None
    outcome: Callable[[BaseException], Outcome] = outcome_of
    error: Exception | None = field(default=None, init=False)
    _ended: Flag = field(factory=Flag, init=False)
    _result: list[T] = field(factory=list, init=False)
    #: Those that wait for the outcome, or have learnt it and have not left.
    _callers: int = field(default=0, init=False)
    #: A caller has waited.
    _waited: bool = field(default=False, init=False)
    #: A caller has learnt the outcome.
    _learnt: bool = field(default=False, init=False)
    _settled: bool = field(default=False, init=False)

    @property
    def ended(self) -> bool:
        """Whether the call has been made, or was cut off."""
        return self._ended.is_set()

    async def made_in(self, tasks: anyio.abc.TaskGroup, unmade: Callable[[], Exception]) -> T:
        """Have a task of a group make the call, and wait for its result.

        :param unmade: returns what to raise if the group is cancelled first.
        """
        tasks.start_soon(self.make)
        await self.wait()
        if self.error is not None:
            raise self.error
        if not self._result:
            raise unmade()
        return self._result[0]

    async def wait(self) -> None:
        """Wait for its end. Any number of callers may."""
        self._waited = True
        self._callers += 1
        try:
            await self._ended.wait()
        except BaseException:
            self.left()
            raise
        self._learnt = True

    def left(self) -> None:
        """Note that one of its callers has left."""
        self._callers -= 1
        self._settle()

    async def make(self) -> None:
        """Make the call: the task."""
        try:
            what = Observed(Door.VM, self.name, self.operation)
            self._result.append(await observe(what, self._call, failed=self.outcome))
        except Exception as error:
            self.error = error
        finally:
            self.cut_off()

    def cut_off(self) -> None:
        """End it: the call was made, or will not be."""
        self._ended.set()
        self._settle()

    def _settle(self) -> None:
        """Abandon the result, or have what failed left, if all callers have left, maybe just as it came."""
        if self._settled or self._callers or not self.ended:
            return
        self._settled = True
        if not self._learnt:
            for result in self._result:
                self.give_up(result)
        if self.error is None or isinstance(self.error, VMExitedError):
            return
        if not self._learnt:
            text = "; ".join((str(self.error), *getattr(self.error, "__notes__", ())))
            whose = "for a caller who was cancelled" if self._waited else "for which no caller waited"
            _log.warning(self.name, "%s, %s: %s", self.operation, whose, text, operation=self.operation)
        self.leave()


@define(eq=False, repr=False)
class Release:
    """What a task releases, or ends, for its callers; tried again after a failure.

    :ivar name: the VM that it is for.
    :ivar operation: what is done.
    """

    name: str
    operation: str
    _work: Callable[[], Awaitable[object]]
    _start_soon: StartSoon
    _leave: Callable[[], object] = lambda: None
    _attempt: Errand[None] | None = field(default=None, init=False)

    @property
    def begun(self) -> bool:
        """Whether it was begun."""
        return self._attempt is not None

    @property
    def in_flight(self) -> bool:
        """Whether a task is at it."""
        return self._attempt is not None and not self._attempt.ended

    @property
    def error(self) -> Exception | None:
        """What it failed with, unless it was begun anew."""
        return None if self._attempt is None else self._attempt.error

    @property
    def done(self) -> bool:
        """Whether it has succeeded, or there is nothing any more that could be released."""
        return self.begun and not self.in_flight and self.error is None

    def begin(self) -> bool:
        """Begin it, unless it is in flight or done; one that failed is begun anew.

        :return: it was begun just now, and a task is at it.
        """
        if self._attempt is not None and self._attempt.error is None:
            return False

        def leave() -> None:
            # Of one that was begun anew, what comes of that decides.
            if self._attempt is attempt:
                self._leave()

        attempt: Errand[None] = Errand(
            self.name, self.operation, self._carry_out, leave=leave, outcome=_outcome
        )
        begun = self._start_soon(attempt.make)
        if not begun:
            attempt.cut_off()
        self._attempt = attempt
        return begun

    async def wait(self) -> None:
        """Begin it, and wait for its outcome; a caller that is cancelled stops only its own wait."""
        self.begin()
        attempt = self._attempt
        assert attempt is not None
        await attempt.wait()
        if attempt.error is not None:
            raise own(attempt.error)

    def left(self) -> None:
        """Note that a caller that has learnt of its failure has left, and will not begin it anew."""
        if self._attempt is not None and self._attempt.error is not None:
            self._attempt.left()

    async def _carry_out(self) -> None:
        try:
            await self._work()
        except VMExitedError as error:
            _log.debug(self.name, "%s", error)


def _outcome(error: BaseException) -> Outcome:
    # It has parts, and what could be released was: nothing says that all of it is as it was.
    return "unknown" if isinstance(error, Exception) else outcome_of(error)
