"""Wake-ups of an event loop from other threads."""

from __future__ import annotations

import sys
import types

import anyio
import anyio.to_thread
import pytest

from uvm.backends.waker import Signal, Waker

pytestmark = pytest.mark.anyio


async def test_a_signal_of_another_thread_wakes_the_task_that_waits() -> None:
    signal, woken = Signal(Waker()), anyio.Event()

    async def wait() -> None:
        await signal.wait()
        woken.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert not woken.is_set()
        await anyio.to_thread.run_sync(signal.set)
        await woken.wait()


def test_a_loop_that_has_ended_is_no_longer_called(anyio_backend_name: str) -> None:
    async def make() -> Waker:
        return Waker()

    waker, calls = anyio.run(make, backend=anyio_backend_name), list[str]()
    assert not waker.call_soon(calls.append, "late")
    assert calls == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_another_thread_may_be_in_the_middle_of_importing_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trio", types.ModuleType("trio"))
    signal = Signal(Waker())
    signal.set()
    with anyio.fail_after(60):
        await signal.wait()
