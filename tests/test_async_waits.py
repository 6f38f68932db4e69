"""Lines and flags, in which tasks wait: what an event of anyio promises, they do."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing
from attrs import Factory, define
from hypothesis import given
from hypothesis import strategies as st

from uvm._async import Flag, Line
from uvm._home import trio_lowlevel


class EventLine:
    """What a line does, by events of anyio."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    @property
    def waiting(self) -> int:
        """How many tasks wait."""
        return self._event.statistics().tasks_waiting

    def wake(self) -> None:
        """Wake all that wait."""
        self._event.set()
        self._event = anyio.Event()

    async def wait(self) -> None:
        """Wait to be woken."""
        await self._event.wait()


@define(eq=False, repr=False)
class Waiter:
    """A task that waits, and what became of it."""

    scope: anyio.CancelScope = Factory(anyio.CancelScope)
    was_cancelled: bool = False
    outcome: str = "waits"
    left: bool = False


@define(eq=False, repr=False)
class Queue:
    """A line and the tasks that wait in it.

    :ivar came: the tasks, in the order in which they came.
    :ivar woken: those that were woken, in the order in which they went on.
    """

    tasks: anyio.abc.TaskGroup
    line: Line | EventLine
    waiters: list[Waiter] = Factory(list)
    came: list[int] = Factory(list)
    woken: list[int] = Factory(list)

    def join(self) -> None:
        """One more task waits."""
        self.waiters.append(Waiter())
        self.tasks.start_soon(self._wait, len(self.waiters) - 1)

    async def _wait(self, number: int) -> None:
        waiter = self.waiters[number]
        waiter.outcome = "was cancelled"
        with waiter.scope:
            self.came.append(number)
            await self.line.wait()
            self.woken.append(number)
            waiter.outcome = "was woken"
        waiter.left = True

    def take(self, step: str | int) -> None:
        """Take a step of a script."""
        if step == "join":
            self.join()
        elif step == "wake":
            self.line.wake()
        elif isinstance(step, int):
            self.cancel(step)

    def cancel(self, number: int) -> None:
        """One of the tasks is cancelled, if there are any."""
        for waiter in self.waiters[number % (len(self.waiters) or 1) :][:1]:
            waiter.was_cancelled = True
            waiter.scope.cancel()


#: What a script does: a number cancels one of the tasks.
STEPS = st.sampled_from(["join", "join", "join", "turn", "turn", "turn", "wake"]) | st.integers(0, 20)


async def play(steps: list[str | int], *lines: Line | EventLine) -> list[Queue]:
    """Do the same with some lines, and wake all in the end."""
    async with anyio.create_task_group() as tasks:
        queues = [Queue(tasks, line) for line in lines]
        for step in [*steps, *["turn"] * 5]:
            if step == "turn":
                await anyio.lowlevel.checkpoint()
            for queue in queues:
                queue.take(step)
        for queue in queues:
            staying = [each for each in queue.waiters if not each.left]
            assert queue.line.waiting == len(staying)
            queue.line.wake()
    return queues


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(steps=st.lists(STEPS, max_size=40))
def test_every_task_in_line_is_woken_or_cancelled_and_none_stays(
    backend: str, steps: list[str | int]
) -> None:
    (queue,) = anyio.run(play, steps, Line(), backend=backend)

    assert queue.line.waiting == 0
    for waiter in queue.waiters:
        assert waiter.outcome == "was woken" or waiter.was_cancelled


@given(steps=st.lists(STEPS, max_size=40))
def test_tasks_are_woken_and_cancelled_in_the_order_in_which_events_would_do_it(
    steps: list[str | int],
) -> None:
    """On asyncio: trio runs what is ready in an order of its own."""
    of_line, of_events = anyio.run(play, steps, Line(), EventLine())

    assert of_line.woken == of_events.woken
    assert [each.outcome for each in of_line.waiters] == [each.outcome for each in of_events.waiters]


def test_a_task_of_trio_that_is_cancelled_first_is_passed_over_by_the_wake() -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            queue = Queue(tasks, Line())
            for _ in range(3):
                queue.join()
            await anyio.wait_all_tasks_blocked()
            queue.cancel(1)
            queue.line.wake()
        outcomes = [each.outcome for each in queue.waiters]
        assert outcomes == ["was woken", "was cancelled", "was woken"]

    anyio.run(main, backend="trio")


@pytest.mark.anyio
@pytest.mark.parametrize("is_set", [False, True])
async def test_a_task_that_was_cancelled_does_not_get_past_a_flag(is_set: bool) -> None:
    flag = Flag()
    if is_set:
        flag.set()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await flag.wait()
    assert scope.cancelled_caught
    assert flag.waiting == 0


@pytest.mark.anyio
async def test_a_flag_that_is_set_lets_others_run_first() -> None:
    flag, ran = Flag(), Flag()
    flag.set()

    async def run() -> None:
        ran.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        # trio runs what is ready in an order of its own.
        for _ in range(50):
            await flag.wait()
        assert ran.is_set()


@pytest.mark.anyio
async def test_a_flag_wakes_all_that_wait_and_lets_all_pass_that_come() -> None:
    flag = Flag()
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(flag.wait)
        await anyio.wait_all_tasks_blocked()
        assert flag.waiting == 3
        flag.set()
        flag.set()
        await flag.wait()
    assert flag.waiting == 0


def test_a_task_that_asyncio_cancels_in_the_turn_in_which_it_is_woken_is_cancelled() -> None:
    async def main() -> None:
        line = Line()
        task = asyncio.create_task(line.wait())
        await asyncio.sleep(0)
        line.wake()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert line.waiting == 0

    asyncio.run(main())


def test_a_task_that_asyncio_cancels_first_is_passed_over_by_the_wake() -> None:
    async def main() -> None:
        line = Line()
        cancelled, other = (asyncio.create_task(line.wait()) for _ in range(2))
        await asyncio.sleep(0)
        cancelled.cancel()
        line.wake()
        await other
        assert cancelled.cancelled()

    asyncio.run(main())


def test_trio_waits_as_the_guest_of_another_loop() -> None:
    async def main() -> str:
        flag = Flag()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flag.wait)
            await trio.testing.wait_all_tasks_blocked()
            flag.set()
        return "woken"

    async def host() -> Any:
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        trio.lowlevel.start_guest_run(
            main,
            run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
            done_callback=ended.set_result,
            host_uses_signal_set_wakeup_fd=True,
        )
        outcome = await ended
        assert trio_lowlevel() is None
        return outcome.unwrap()

    assert asyncio.run(host()) == "woken"
