"""The cases that a call of the public API is put through, whatever it does.

Each of its requests is spoilt in each way on asyncio, over our own connection, in the call that makes it.
Requests of one kind pass through the same code, whatever is asked: over HCS's connection, and in a call
that only makes another one of the table, the last one of each kind stands for all, and no call is made
after an exit that is known. A call that only makes another one has its cases over our own connection alone,
and so has one that asks the host for the same over both, and the guest for nothing. What becomes of a
request is handled above the loop, which only wakes the task: on trio the last request of a call stands for
all, and no call is made after the exit. A call is cancelled at each of its checkpoints on both.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.abc
import sniffio
from attrs import define, field, frozen

import uvm
from tests.api.cancelled import CancelledAt
from tests.api.stage import Left, Stage, staged
from tests.points import Point, last_of_each_kind, points
from tests.vm.support import quiet

__all__ = ["TURNS", "Examined", "Row", "examine"]

#: How many turns of the loop a call that is cancelled may take to end.
TURNS = 20
#: Longer than any limit on an answer of a guest.
_LONGER_SECONDS = 2_000.0
#: More than any call has.
_MOST_CHECKPOINTS = 150
_CASE_SECONDS = 50_000.0


@frozen
class Row:
    """How to set up and make a call, and what is to be expected of it.

    :ivar call: makes the call: the stage, and what :attr:`given` returned.
    :ivar given: prepares it, and returns the object.
    :ivar end: it ends something: after the exit of the VM it succeeds quietly.
    :ivar sure: it is done in any case, also where its caller is cancelled.
    :ivar finish: has a call return that waits for something to happen.
    :ivar wrong: calls that are refused before anything is sent, by the name of the error.
    :ivar ends_vm: the VM may have exited after it, also where it fails or is cancelled.
    :ivar pauses: the VM is paused, so that nothing else goes on in it.
    :ivar grace: it is bounded by the grace of what it ends, not by its caller.
    :ivar classes: those of which it is examined; all by default. The others have it from the same class, and
        nothing of their own in it.
    :ivar alone: what it is about knows no VM: its exit is said in another way.
    :ivar passes: it makes another call, whose row has all the requests spoilt.
    """

    call: Callable[[Stage, Any], Any]
    given: Callable[[Stage], Awaitable[Any]] | None = None
    os: str = ""
    own: bool | None = None
    vm: str = "running"
    end: bool = False
    sure: bool = False
    finish: Callable[[Stage, Any], Awaitable[Any]] | None = None
    wrong: dict[str, Callable[[Stage, Any], Awaitable[Any]]] = field(factory=dict)
    ends_vm: bool = False
    pauses: bool = False
    alone: bool = False
    passes: bool = False
    grace: bool = False
    classes: tuple[str, ...] = ()
    options: dict[str, Any] = field(factory=dict)


@define
class Examined:
    """What came of the cases of a call.

    :ivar problems: by case, what does not hold.
    :ivar raised: the classes of the errors, each with one of them.
    """

    problems: dict[str, str] = field(factory=dict)
    raised: dict[type[BaseException], str] = field(factory=dict)


@define(eq=False)
class Made:
    """A call in a task of its own.

    :ivar state: that of the VM when the call raised.
    """

    stage: Stage
    make: Callable[[], Awaitable[Any]]
    native: bool = False
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    result: Any = None
    error: BaseException | None = None
    state: uvm.VMState | None = None
    returned: bool = False
    done: bool = False
    cancelled: bool = False
    _task: asyncio.Task[Any] | None = None

    async def run(self) -> None:
        """Make the call, to its end."""
        try:
            if self.native:
                self._task = asyncio.ensure_future(self._make())
                await asyncio.wait([self._task])
            else:
                with self.scope:
                    await self._make()
        finally:
            self.done = True

    def cancel(self) -> None:
        """Cancel it, as a task group or a deadline does, or as asyncio does: once."""
        self.cancelled = True
        if self._task is not None:
            self._task.cancel()
        else:
            self.scope.cancel()

    async def _make(self) -> None:
        try:
            self.result = await self.make()
            self.returned = True
        except Exception as error:
            self.error = error
            self.state = self.stage.created.state if self.stage.created else None


#: What happens in a case; it begins the call itself.
Case = Callable[[Stage], Awaitable[None]]


@define(eq=False)
class _Examination:
    """One call over one way.

    Cases share a stage as long as each leaves it as it was.

    :ivar whole: all requests are spoilt, on asyncio, not only the last one of each kind.
    :ivar base: what is there before the call, and :attr:`after` what is after it.
    :ivar awaited: the requests without whose answer the call does not return.
    :ivar elsewhere: its requests over the connection over which it was examined before.
    """

    row: Row
    own: bool
    whole: bool
    name: str
    found: Examined
    base: Left = field(factory=Left)
    after: Left = field(factory=Left)
    acquires: bool = False
    points: list[Point] = field(factory=list)
    awaited: set[Point] = field(factory=set)
    elsewhere: list[Point] | None = None
    _todo: deque[tuple[str, Case]] = field(factory=deque)
    _tasks: anyio.abc.TaskGroup | None = None
    _case: str = ""
    _made: Made | None = None

    async def play(self) -> None:
        """Go through all cases."""
        self._todo.append(("clean", self._clean))
        while self._todo:
            try:
                async with anyio.create_task_group() as self._tasks:
                    await self._on_one_stage()
                    await quiet()
                    assert self._made is None or self._made.done, "the call did not end with the VM"
            except Exception as error:
                self.found.problems.setdefault(f"{self.name} {self._case}", _said(error))

    async def _on_one_stage(self) -> None:
        """Go through cases until one leaves another stage than it found."""
        self._case, case = self._todo.popleft()
        async with staged(self.row.os or "linux", own=self.own, vm=self.row.vm, **self.row.options) as stage:
            stage.made["it"] = await self.row.given(stage) if self.row.given else None
            await quiet()
            self.base = stage.left()
            while True:
                with anyio.fail_after(_CASE_SECONDS):
                    try:
                        await case(stage)
                    except Exception as error:
                        self.found.problems[f"{self.name} {self._case}"] = _said(error)
                        return
                    stage.backend.faults.clear()
                if not self._todo or not await self._is_as_before(stage):
                    return
                self._case, case = self._todo.popleft()

    async def _is_as_before(self, stage: Stage) -> bool:
        """Return whether the stage is as before the call, or can be set so again."""
        if not self._is_whole(stage) or self.row.finish is not None:
            return False
        done = self._made is not None and (self._made.returned or self.after == self.base)
        if done and self.row.sure and self.row.given and stage.left() == self.after:
            stage.made["it"] = await self.row.given(stage)
            await quiet()
        return stage.left() == self.base

    def _is_whole(self, stage: Stage) -> bool:
        if self._made is not None and not self._made.done:
            return False
        if self.row.vm != "running":
            return self.row.vm == "" or stage.vm.state is uvm.VMState.CREATED
        guest = stage.vm._link.guest
        return stage.vm.exit_status is None and not getattr(guest, "closed", False)

    def _plan(self) -> None:
        """Say what all the cases are, once it is known what the call asks for."""
        add, points = self._todo.append, self.points
        if points == self.elsewhere and all(point.to != "guest" for point in points):
            return
        on_trio, last = sniffio.current_async_library() == "trio", last_of_each_kind(points)
        if on_trio:
            points = points[-1:]
        elif not self.whole:
            points = last
        for point in points:
            add((f"late {point}", partial(self._late, point)))
            add((f"late answer {point}", partial(self._late_answer, point)))
            add((f"refuse {point}", partial(self._spoilt, "refuse", point)))
        for native in (False,) if on_trio else (False, True):
            add((f"cancelled{' natively' * native} at 1", partial(self._cancelled, 1, native)))
        for error, call in self.row.wrong.items():
            add((f"wrong {error}", partial(self._wrong, error, call)))
        for point in points:
            if point.to == "guest":
                add((f"never {point}", partial(self._never, point)))
            add((f"lose {point}", partial(self._spoilt, "lose", point)))
            add((f"closed {point}", partial(self._closed_meanwhile, point)))
            # After most requests is before the next one.
            for when in ("before", "after") if point in last else ("before",):
                add((f"exit {when} {point}", partial(self._exit_in, when, point)))
        if self.row.vm == "running":
            hows = ("noticed", "unnoticed", "closed") if self.whole else ("unnoticed",)
            for how in () if on_trio else hows:
                add((f"exit {how}", partial(self._exit_before, how)))
            add(("exit later", self._exit_after))
            if self.row.finish is not None:
                add(("exit meanwhile", self._exit_meanwhile))
            if self.own and not on_trio:
                add(("guest gone", self._guest_gone))

    # What cases are made of.

    async def _begin(self, stage: Stage, call: Awaitable[Any] | None = None, *, native: bool = False) -> Made:
        """Begin the call, and let it go on until it waits for something."""
        assert self._tasks is not None
        made = self._made = self._make(stage, call, native=native)
        self._tasks.start_soon(made.run)
        await quiet()
        return made

    def _make(self, stage: Stage, call: Awaitable[Any] | None = None, *, native: bool = False) -> Made:
        async def make() -> Any:
            return await (call or self.row.call(stage, stage.made["it"]))

        return Made(stage, make, native)

    async def _finish(self, stage: Stage, made: Made) -> None:
        """Wait for the end of a call to which nothing happens."""
        if not made.done and self.row.finish is not None:
            await self.row.finish(stage, stage.made["it"])
            await quiet()
        if not made.done:
            await stage.settle()

    async def _end(self, stage: Stage, made: Made) -> None:
        """Cancel a call, and see that it ends."""
        if not made.done:
            made.cancel()
            if self.row.grace:
                await stage.settle()
            for _ in range(TURNS):
                await anyio.lowlevel.checkpoint()
            assert made.done, f"it has not ended {TURNS} turns after it was cancelled"
        for each in leaves(made.error):
            assert isinstance(each, uvm.UVMError | anyio.EndOfStream), f"it raised {each!r}"
            self.found.raised.setdefault(type(each), f"{self.name}: {each}")

    def _check_left(self, stage: Stage, made: Made) -> None:
        """See that the call has left nothing, or is done."""
        if self.row.ends_vm and not stage.running:
            return
        if self.row.vm == "running" and not self.row.ends_vm:
            assert stage.running or self.row.pauses, f"the VM is {stage.vm.state}"
        left, less, more = stage.left(), self.base & self.after, self.base | self.after
        if self.row.sure:
            less = more = self.after
        elif self.acquires:
            less = more = self.after if made.returned else self.base
        assert less <= left <= more, f"left: {dict(left - more)}; missing: {dict(less - left)}"

    async def _check_gone(self, stage: Stage, made: Made, *, must_raise: bool = True) -> None:
        """See that a call to a VM that has gone says so, or succeeds quietly."""
        if not made.done:
            await stage.settle()
        assert made.done, "it has not ended"
        await self._end(stage, made)
        if self.row.vm != "running" or self.row.ends_vm:
            return
        if self.row.end or self.row.sure:
            assert made.error is None, f"it raised {_said(made.error)}"
        elif made.error is None:
            assert not must_raise, f"it returned {made.result!r}"
        elif not self.row.alone:
            errors = leaves(made.error)
            wrong = [each for each in errors if not isinstance(each, uvm.VMExitedError)]
            assert not wrong, f"it raised {_said(wrong[0])}"
            unlike = [each.status for each in errors if each.status != stage.vm.exit_status]  # type: ignore[attr-defined]
            assert not unlike, f"its exit status is {unlike[0]}"
            assert made.state in (uvm.VMState.EXITED, uvm.VMState.CLOSED), f"the VM is {made.state}"

    async def _leave(self, made: Made) -> None:
        """Leave what a call returned that acquires something."""
        if self.acquires and made.returned:
            await made.result.__aexit__(None, None, None)

    # The cases.

    async def _clean(self, stage: Stage) -> None:
        """Nothing goes wrong."""
        begun = stage.backend.request_log._seq
        made = await self._begin(stage)
        self.points = list(points(stage.backend, begun))
        await self._finish(stage, made)
        assert made.done, "it did not return"
        if made.error is not None:
            raise made.error
        await stage.settle()
        await stage.check_rest()
        self.after = stage.left()
        self.acquires = made.result is not stage.made["it"] and hasattr(made.result, "__aexit__")
        self._plan()

    async def _late(self, point: Point, stage: Stage) -> None:
        """It is carried out late: after the call was cancelled, and another job was done."""
        gate = stage.backend.faults.hold(**point.matching)
        made = await self._begin(stage)
        if not gate.pending:
            await stage.settle()
        if not gate.pending:
            gate.close()
        elif not made.done:
            self.awaited.add(point)
        await self._end(stage, made)
        if stage.running and not self.row.pauses:
            with anyio.fail_after(1.0):
                await stage.work()
        gate.close()
        await self._check_late(stage, made)

    async def _late_answer(self, point: Point, stage: Stage) -> None:
        """The answer comes late: after the call was cancelled."""
        stage.backend.faults.delay(5.0, applied=True, **point.matching)
        made = await self._begin(stage)
        await self._end(stage, made)
        await self._check_late(stage, made)

    async def _check_late(self, stage: Stage, made: Made) -> None:
        await self._leave(made)
        await stage.settle()
        if self.row.finish is None and not (self.acquires and made.returned):
            self._check_left(stage, made)
        await stage.check_rest()

    async def _closed_meanwhile(self, point: Point, stage: Stage) -> None:
        """Nothing is answered until the VM is closed."""
        if point.to == "network" or point.operation == "terminate" or self.row.vm != "running":
            # It is another service that is asked, whether there is a VM or not; or the end of the VM itself.
            return
        stage.backend.faults.hold(**point.matching)
        made = await self._begin(stage)
        if not made.done:
            await stage.vm.close()
            await self._check_gone(stage, made, must_raise=point in self.awaited)

    async def _never(self, point: Point, stage: Stage) -> None:
        """Nothing is answered, and the caller waits."""
        stage.backend.faults.hang(applied=True, **point.matching)
        made = await self._begin(stage)
        await anyio.sleep(_LONGER_SECONDS)
        await quiet()
        await self._end(stage, made)

    async def _spoilt(self, fault: str, point: Point, stage: Stage) -> None:
        """A request is refused, or its answer is lost."""
        getattr(stage.backend.faults, fault)(**point.matching)
        made = await self._begin(stage)
        await self._finish(stage, made)
        await self._end(stage, made)
        await self._leave(made)
        await stage.settle()
        await stage.check_rest()
        if made.error is not None and self.acquires and fault == "refuse":
            self._check_left(stage, made)

    async def _exit_in(self, when: str, point: Point, stage: Stage) -> None:
        """The VM exits in the call."""
        stage.backend.faults.crash(when=when, **point.matching)  # type: ignore[arg-type]
        made = await self._begin(stage)
        if self.row.vm != "running" or stage.vm.exit_status is None:
            await self._finish(stage, made)
            await self._end(stage, made)
        else:
            await self._check_gone(stage, made, must_raise=point in self.awaited)

    async def _exit_before(self, how: str, stage: Stage) -> None:
        """The VM has exited before the call, which may not be known yet."""
        if how == "closed":
            await stage.vm.close()
        else:
            stage.crash()
        if how != "unnoticed":
            await quiet()
        made = await self._begin(stage)
        # What asks nobody cannot know.
        asks = any(point.to != "network" for point in self.points)
        await self._check_gone(stage, made, must_raise=asks or how != "unnoticed")

    async def _exit_after(self, stage: Stage) -> None:
        """The VM exits after the call; what the call has returned is left."""
        made = await self._begin(stage)
        if not made.done:
            await self._finish(stage, made)
        stage.crash()
        await quiet()
        await self._leave(made)

    async def _exit_meanwhile(self, stage: Stage) -> None:
        """The VM exits while the call waits."""
        made = await self._begin(stage)
        stage.crash()
        await quiet()
        await self._check_gone(stage, made)

    async def _guest_gone(self, stage: Stage) -> None:
        """The connection to the guest has closed."""
        stage.backend.vms[stage.vm.id].service.drop()
        await quiet()
        made = await self._begin(stage)
        await self._finish(stage, made)
        await self._end(stage, made)

    async def _cancelled(self, at: int, native: bool, stage: Stage) -> None:
        """The call is cancelled at one of its checkpoints; the next one follows, if there is one."""
        made = self._make(stage, native=native)
        watched = CancelledAt(made.make(), made.cancel, at)
        made.make = lambda: watched
        assert self._tasks is not None
        self._made = made
        self._tasks.start_soon(made.run)
        for _ in range(TURNS):
            await anyio.lowlevel.checkpoint()
        await quiet()
        if watched.passed < at:
            await self._finish(stage, made)
        elif at < _MOST_CHECKPOINTS:
            following = partial(self._cancelled, at + 1, native)
            self._todo.appendleft((f"cancelled{' natively' * native} at {at + 1}", following))
        await self._end(stage, made)
        if self.acquires and made.returned:
            await self._leave(made)
            return
        await stage.settle()
        self._check_left(stage, made)
        await stage.check_rest()

    async def _wrong(self, error: str, call: Callable[[Stage, Any], Awaitable[Any]], stage: Stage) -> None:
        """The call cannot be made so, and nothing is sent."""
        before = len(stage.backend.request_log)
        made = Made(stage, partial(_awaited, call, stage))
        await made.run()
        await self._end(stage, made)
        assert type(made.error).__name__ == error, f"it raised {_said(made.error)}"
        if error in ("OptionsError", "NotSupportedError"):
            assert len(stage.backend.request_log) == before, "something was sent"


async def _awaited(call: Callable[[Stage, Any], Awaitable[Any]], stage: Stage) -> Any:
    # An argument of the wrong kind is an error at once, or when it is awaited.
    return await call(stage, stage.made["it"])


async def examine(name: str, row: Row, found: Examined, *, both: bool) -> None:
    """Put a call through all cases, over both ways if asked to, or over our own connection."""
    elsewhere = None
    for own in (True, False)[: 1 + (both and not row.passes)] if row.own is None else (row.own,):
        whole = (own or row.own is False) and not row.passes
        made = _Examination(row, own, whole, f"{name} {'own' if own else 'hcs'}", found, elsewhere=elsewhere)
        await made.play()
        elsewhere = made.points


def leaves(error: BaseException | None) -> list[BaseException]:
    """Return the errors of a call that fails with several; an UndoFailedError is one."""
    if error is None:
        return []
    if isinstance(error, BaseExceptionGroup) and not isinstance(error, uvm.UVMError):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]


def _said(error: BaseException | None) -> str:
    if error is None:
        return "nothing"
    text = "; ".join(f"{type(each).__name__}: {each}" for each in leaves(error))
    return text[:400]
