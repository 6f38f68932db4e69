"""What a task does for callers who may leave at once: errands, and releases that are tried again.

One test has hypothesis choose what happens to a release, on a loop of its own: callers come, are cancelled,
or leave once it has failed, the attempt in flight succeeds or fails, the task group ends; all of that in any
order, in turns of the loop of its own or in one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import anyio
import anyio.abc
import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from tests.clocks import jumping_backends
from tests.vm.orders import Choose, run_example
from tests.vm.support import quiet
from uvm._errands import Errand, Release
from uvm.errors import NoSpaceError, UVMError, VMExitedError

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends


@pytest.mark.parametrize("fails", [False, True])
async def test_a_caller_who_leaves_in_the_turn_of_the_answer_has_it_given_up_or_logged(
    fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    given_up: list[str] = []

    async def call() -> str:
        scope.cancel()
        if fails:
            raise NoSpaceError("no slot")
        return "device"

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            await Errand("vm1", "do", call, given_up.append).made_in(tasks, AssertionError)
    assert scope.cancelled_caught
    assert given_up == ([] if fails else ["device"])
    assert [record.getMessage() for record in caplog.records] == (
        ["vm1: do, for a caller who was cancelled: no slot"] if fails else []
    )


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("who", [0, 1])
async def test_what_one_caller_has_learnt_is_not_given_up_when_another_leaves_in_that_turn(
    fails: bool, who: int, caplog: pytest.LogCaptureFixture
) -> None:
    given_up: list[str] = []
    learnt: list[str] = []
    scopes = [anyio.CancelScope(), anyio.CancelScope()]

    async def call() -> str:
        await quiet()
        scopes[who].cancel()
        if fails:
            raise NoSpaceError("no slot")
        return "device"

    errand = Errand("vm1", "do", call, given_up.append, lambda: given_up.append("left"))

    async def wait(scope: anyio.CancelScope) -> None:
        with scope:
            await errand.wait()
            learnt.append(str(errand.error))

    async with anyio.create_task_group() as tasks:
        for scope in scopes:
            tasks.start_soon(wait, scope)
        tasks.start_soon(errand.make)
    assert (learnt, given_up) == ([str(errand.error)], [])
    assert caplog.records == []


async def test_a_caller_learns_of_its_own_attempt_though_another_is_begun_before_it_goes_on() -> None:
    fail = anyio.Event()
    attempts: list[str] = []

    async def work() -> None:
        attempts.append("begun")
        if len(attempts) == 1:
            await fail.wait()
            raise NoSpaceError("no slot")

    async with anyio.create_task_group() as tasks:

        async def make(call: Callable[[], Coroutine[Any, Any, None]]) -> None:
            await call()
            release.begin()

        def start_soon(call: Callable[[], Coroutine[Any, Any, None]]) -> bool:
            tasks.start_soon(make, call)
            return True

        release = Release("vm1", "do", work, start_soon)

        async def first() -> None:
            with pytest.raises(NoSpaceError):
                await release.wait()

        tasks.start_soon(first)
        await quiet()
        fail.set()
    assert (attempts, release.done) == (["begun"] * 2, True)


async def test_with_the_vm_went_all_that_there_was_to_release() -> None:
    async def work() -> None:
        raise VMExitedError("the VM has exited")

    async with anyio.create_task_group() as tasks:

        def start_soon(call: Callable[[], Coroutine[Any, Any, None]]) -> bool:
            tasks.start_soon(call)
            return True

        release = Release("vm1", "do", work, start_soon)
        await release.wait()
    assert (release.done, release.error) == (True, None)


class Failure(UVMError):
    """What one attempt fails with."""


@define(eq=False)
class Attempt:
    """A task that is at the release, until it is answered.

    :ivar answer: what it is to fail with.
    :ivar failure: what it has failed with; it may have been cut off instead.
    """

    answered: anyio.Event = field(factory=anyio.Event)
    answer: Failure | None = None
    failure: Failure | None = None
    ended: bool = False


@define(eq=False)
class Caller:
    """A task that waits for the release.

    :ivar attempt: the number of the attempt that it waits for; 0 if the tasks have ended.
    :ivar learnt: what it has raised; None if it has returned.
    :ivar stays: it may begin it anew after a failure; it does not leave then.
    """

    scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    attempt: int = 0
    learnt: list[Exception | None] = field(factory=list)
    stays: bool = True


@define(eq=False, repr=False)
class World(logging.Handler):
    """One example: a release, its callers, and the tasks of a VM."""

    choose: Choose
    callers_group: anyio.abc.TaskGroup
    tasks: anyio.abc.TaskGroup = field(init=False)
    subject: Release = field(init=False)
    begun: int = 0
    attempts: list[Attempt] = field(factory=list)
    callers: list[Caller] = field(factory=list)
    logged: list[str] = field(factory=list)
    #: The numbers of the attempts after whose failure it was left.
    left: list[int] = field(factory=list)
    gone: bool = False

    def __attrs_post_init__(self) -> None:
        logging.Handler.__init__(self)
        self.subject = Release("vm1", "do", self._work, self._start_soon, self._leave)

    def emit(self, record: logging.LogRecord) -> None:
        self.logged.append(record.getMessage())

    def _start_soon(self, call: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        if self.gone:
            return False
        self.begun += 1
        self.tasks.start_soon(call)
        return True

    async def _work(self) -> None:
        assert all(each.ended for each in self.attempts), "two attempts at once"
        assert all(each.failure for each in self.attempts), "begun again after a success"
        attempt = Attempt()
        self.attempts.append(attempt)
        try:
            await attempt.answered.wait()
            if attempt.answer is not None:
                attempt.failure = attempt.answer
                raise attempt.failure
        finally:
            attempt.ended = True

    def _leave(self) -> None:
        self.left.append(len(self.attempts))

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Own the tasks, until they are to end."""
        async with anyio.create_task_group() as self.tasks:
            task_status.started()
            await anyio.sleep_forever()

    # What can happen.

    def step(self) -> None:
        actions: list[Callable[[], object]] = [self._come, self._come, self.subject.begin]
        if waiting := [each for each in self.callers if not each.learnt and not each.scope.cancel_called]:
            actions.append(partial(self._cancel, waiting))
        if self.attempts and not self.attempts[-1].answered.is_set():
            actions += [self._succeed, self._fail, self._fail]
        if self.choose([False] * 9 + [True], "may end"):
            actions = [self._end]
        self.choose(actions, "action")()

    def _come(self) -> None:
        self.callers.append(Caller(stays=self.choose([True, False], "stays")))
        self.callers_group.start_soon(self._wait, self.callers[-1])

    async def _wait(self, caller: Caller) -> None:
        with caller.scope:
            in_flight = self.subject.in_flight
            if in_flight or not self.gone:
                caller.attempt = self.begun + (not in_flight and not self.subject.done)
            try:
                await self.subject.wait()
            except UVMError as error:
                caller.learnt.append(error)
                if not caller.stays:
                    self.subject.left()
            else:
                caller.learnt.append(None)

    def _cancel(self, waiting: list[Caller]) -> None:
        self.choose(waiting, "cancel").scope.cancel()

    def _succeed(self) -> None:
        self.attempts[-1].answered.set()

    def _fail(self) -> None:
        self.attempts[-1].answer = Failure(f"failure {len(self.attempts)}")
        self.attempts[-1].answered.set()

    def _end(self) -> None:
        self.gone = True
        self.tasks.cancel_scope.cancel()

    # What has to hold.

    def check(self) -> None:
        failed = [each.failure for each in self.attempts if each.failure is not None]
        errors = [error for caller in self.callers for error in caller.learnt if error is not None]
        assert len({*map(id, errors)}) == len(errors), "two callers were given the same exception"
        alone = [each for each in failed if all(error.__cause__ is not each for error in errors)]
        awaited = {caller.attempt for caller in self.callers}
        whose = ["for which no caller waited", "for a caller who was cancelled"]
        said = [
            f"vm1: do, {whose[number in awaited]}: {each.failure}"
            for number, each in enumerate(self.attempts, 1)
            if each.failure in alone
        ]
        assert self.logged == said
        staying = [error for each in self.callers if each.stays for error in each.learnt if error is not None]
        for number, attempt in enumerate(self.attempts, 1):
            kept = any(error.__cause__ is attempt.failure for error in staying)
            last = number == self.begun
            # What comes of one that was begun anew decides.
            allowed = {0} if attempt.failure is None or kept else {1} if last else {0, 1}
            assert self.left.count(number) in allowed
        for caller in self.callers:
            assert caller.learnt or caller.scope.cancelled_caught
            for error in caller.learnt:
                # With the tasks went all that there was to release.
                its = [None, *(each.failure for each in self.attempts), None][caller.attempt]
                assert (error and error.__cause__) is its, caller


async def _example(choose: Choose) -> None:
    log = logging.getLogger("uvm")
    async with anyio.create_task_group() as tasks:
        world = World(choose, tasks)
        await tasks.start(world.serve)
        log.addHandler(world)
        try:
            for _ in range(choose(range(1, 30), "steps")):
                world.step()
                for _ in range(choose([0, 0, 1, 1, 2], "turns")):
                    await anyio.lowlevel.checkpoint()
                if choose([True, False], "settle"):
                    await quiet()
            await quiet()
            # An attempt that nothing answers is cut off.
            world._end()
            await quiet()
            world.check()
        finally:
            # Where hypothesis has the example end, callers may come yet, to a group that has ended.
            world.gone = True
            log.removeHandler(world)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(data=st.data())
def test_it_is_released_once_and_each_caller_learns_its_outcome_whatever_happens(
    backend: str, data: st.DataObject
) -> None:
    run_example(_example, backend, data)
