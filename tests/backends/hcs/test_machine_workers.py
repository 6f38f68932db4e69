"""Blocking calls in threads: cancelled at any point, nothing is lost and nothing happens twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.lowlevel
import pytest
from attrs import define, field

from uvm._observed import Door, Observed, observe
from uvm.backends import workers as workers_module
from uvm.backends.waker import Signal, Waker
from uvm.backends.workers import Workers, finished

pytestmark = pytest.mark.anyio


@define(eq=False)
class Opening:
    """A blocking call that returns a handle when released, and what becomes of the handle."""

    let: threading.Event = field(factory=threading.Event)
    begun: Signal = field(factory=lambda: Signal(Waker()))
    undone: Signal = field(factory=lambda: Signal(Waker()))
    closed: list[str] = field(factory=list)
    calls: int = 0

    def open(self, handle: str = "handle") -> str:
        self.calls += 1
        self.begun.set()
        assert self.let.wait(30)
        return handle

    def close(self, handle: str) -> None:
        self.closed.append(handle)
        self.undone.set()


def fail() -> str:
    raise LookupError("no such call")


async def test_the_result_is_returned_and_not_undone() -> None:
    opening = Opening()
    opening.let.set()
    assert await Workers().run(opening.open, "mine", undo=opening.close) == "mine"
    assert opening.closed == []


async def test_what_the_call_raises_is_raised() -> None:
    opening = Opening()
    with pytest.raises(LookupError, match="no such call"):
        await Workers().run(fail, undo=opening.close)
    with pytest.raises(LookupError, match="no such call"):
        await Workers().finish(fail)
    assert opening.closed == []


async def test_a_cancelled_caller_is_free_at_once_and_the_late_result_is_undone() -> None:
    opening, workers = Opening(), Workers()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancel_when_begun() -> None:
                await opening.begun.wait()
                scope.cancel()

            tasks.start_soon(cancel_when_begun)
            await workers.run(opening.open, undo=opening.close)
    assert scope.cancelled_caught
    assert opening.closed == []
    opening.let.set()
    await opening.undone.wait()
    assert opening.closed == ["handle"]


async def test_what_undoing_fails_with_is_logged_with_the_vm(caplog: pytest.LogCaptureFixture) -> None:
    opening, workers = Opening(), Workers()

    def refuse(handle: str) -> None:
        raise LookupError(handle)

    async def cancel_when_begun() -> None:
        await opening.begun.wait()
        scope.cancel()
        opening.let.set()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_when_begun)
            what = Observed(Door.VM, "vm1", "open")
            await observe(what, lambda: workers.finish(opening.open, undo=refuse))
    [failed] = caplog.records
    assert vars(failed)["vm_id"] == "vm1"
    assert failed.message == "vm1: undoing a call whose caller was cancelled failed"


async def test_a_call_that_never_began_is_never_made() -> None:
    first, second, workers = Opening(), Opening(), Workers(threads=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: workers.run(first.open))
        await first.begun.wait()
        for method in (workers.run, workers.finish):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await method(second.open)
            assert scope.cancelled_caught
        first.let.set()
    assert second.calls == 0


async def test_a_result_that_meets_the_cancellation_is_undone_once() -> None:
    workers, waker = Workers(), Waker()
    for _ in range(200):
        opening = Opening()
        opening.let.set()
        given = ""
        with anyio.CancelScope() as scope:

            def open_and_cancel(opening: Opening = opening, cancel: Callable[[], None] = scope.cancel) -> str:
                waker.call_soon(cancel)
                return opening.open()

            given = await workers.run(open_and_cancel, undo=opening.close)
        if not given:
            await opening.undone.wait()
        assert [given, *opening.closed] in (["handle"], ["", "handle"])


async def test_a_result_is_undone_even_if_no_more_threads_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opening = Opening()
    jobs: list[Callable[[], object]] = []

    def start_one(job: Callable[[], object]) -> None:
        if jobs:
            raise RuntimeError("can't start new thread")
        jobs.append(job)

    monkeypatch.setattr(workers_module._threads, "start", start_one)
    opening.let.set()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: Workers().run(opening.open, undo=opening.close))
        await anyio.wait_all_tasks_blocked()
        # The result is there, and not delivered yet.
        jobs[0]()
        tasks.cancel_scope.cancel()
    assert opening.closed == ["handle"]


async def test_a_call_whose_thread_has_not_begun_is_not_made_after_its_caller_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opening = Opening()
    jobs: list[Callable[[], object]] = []
    monkeypatch.setattr(workers_module._threads, "start", jobs.append)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: Workers().run(opening.open))
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    jobs[0]()
    assert opening.calls == 0


async def test_no_more_calls_block_at_once_than_there_are_threads() -> None:
    openings, workers = [Opening() for _ in range(5)], Workers(threads=2)
    async with anyio.create_task_group() as tasks:
        for opening in openings:
            tasks.start_soon(workers.run, opening.open, "handle")
        while sum(opening.calls for opening in openings) < 2:
            await anyio.lowlevel.checkpoint()
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        assert sum(opening.calls for opening in openings) == 2
        for opening in openings:
            opening.let.set()
    assert sum(opening.calls for opening in openings) == 5


async def test_an_abandoned_call_counts_until_it_ends() -> None:
    first, second, workers = Opening(), Opening(), Workers(threads=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(workers.run, first.open, "handle")
        await first.begun.wait()
        tasks.cancel_scope.cancel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(workers.run, second.open, "handle")
        await anyio.wait_all_tasks_blocked()
        assert second.calls == 0
        first.let.set()
        await second.begun.wait()
        second.let.set()


async def test_threads_are_used_again() -> None:
    workers = Workers()
    threads = {await workers.run(threading.get_ident) for _ in range(200)}
    # More than one: the thread that ended a call may not be idle yet when the next call comes.
    assert len(threads) < 20


async def test_a_call_that_makes_changes_is_stopped_and_waited_for() -> None:
    opening, workers = Opening(), Workers()
    ended: list[str] = []

    def change() -> None:
        opening.open()
        ended.append("changed")

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancel_when_begun() -> None:
                await opening.begun.wait()
                scope.cancel()

            tasks.start_soon(cancel_when_begun)
            await workers.finish(change, stop=opening.let.set)
    assert scope.cancelled_caught
    assert ended == ["changed"]


@pytest.mark.parametrize("executor", [False, True], ids=["threads", "executor"])
async def test_the_result_of_a_change_that_meets_the_cancellation_is_undone_before_the_caller_leaves(
    executor: bool,
) -> None:
    workers, waker = Workers(), Waker()
    with ThreadPoolExecutor(1) as pool:
        for _ in range(100):
            opening = Opening()
            opening.let.set()
            given = ""
            with anyio.CancelScope() as scope:

                def change(opening: Opening = opening, cancel: Callable[[], None] = scope.cancel) -> str:
                    waker.call_soon(cancel)
                    return opening.open()

                if executor:
                    given = await finished(pool.submit(change), opening.close)
                else:
                    given = await workers.finish(change, undo=opening.close)
            assert [given, *opening.closed] in (["handle"], ["", "handle"])


async def test_a_change_that_fails_after_its_caller_was_cancelled_is_not_undone() -> None:
    opening = Opening()

    def change() -> str:
        opening.open()
        return fail()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: Workers().finish(change, undo=opening.close))
        await opening.begun.wait()
        tasks.cancel_scope.cancel()
        opening.let.set()
    assert opening.closed == []


async def test_an_undo_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    opening = Opening()

    def close(handle: str) -> None:
        opening.close(handle)
        raise OSError(f"cannot close {handle}")

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancel_when_begun() -> None:
                await opening.begun.wait()
                scope.cancel()

            tasks.start_soon(cancel_when_begun)
            await Workers(threads=1).run(opening.open, undo=close)
    opening.let.set()
    await opening.undone.wait()
    while "cannot close handle" not in caplog.text:
        await anyio.lowlevel.checkpoint()
