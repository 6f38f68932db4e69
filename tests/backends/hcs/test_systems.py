"""A system over the C API: its exit, its events, its handle, and what a cancelled creation leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from attrs import evolve

from tests.backends.fake.support import SERVICE, expect_refusal, lcow
from tests.backends.hcs.hostmachine import FakeMachine, FakeWorkingSet
from tests.backends.hcs.support import driven, started
from tests.descriptors import collect
from uvm.backends.hcs import handles
from uvm.backends.hcs.backend import HCSBackend
from uvm.backends.hcs.system import HCSSystem
from uvm.backends.workers import Workers
from uvm.errors import ExitStatus, HostError
from uvm.hresult import HResult
from uvm.testing.backends.checks import until

pytestmark = pytest.mark.anyio


# HCS_EVENT_TYPE of computedefs.h.
EXITED = 0x1
CRASH_REPORT = 0x3
GUEST_CONNECTION_CLOSED = 0x6
SERVICE_DISCONNECT = 0x02000000


async def test_every_waiter_gets_the_exit() -> None:
    statuses: list[ExitStatus] = []
    async with driven() as (_, backend), started(backend) as system:

        async def wait() -> None:
            statuses.append(await system.wait())

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(wait)
            await system.terminate()
        statuses.append(await system.wait())
    assert {str(status) for status in statuses} == {"ForcedExit"}
    assert len(statuses) == 11


async def test_the_exit_is_reported_over_every_handle() -> None:
    async with driven() as (_, backend), started(backend) as system:
        other = await backend.open("vm1")
        assert other.runtime_id == system.runtime_id
        await other.terminate()
        assert await system.wait() == await other.wait()
        await other.close()


async def test_a_system_that_ended_before_it_was_opened_has_exited() -> None:
    async with driven() as (_, backend), started(backend) as system:
        await system.terminate()
        await system.wait()
        other = await backend.open("vm1")
        assert (await other.wait()).exit_type == "ForcedExit"
        await other.close()


async def test_closing_the_handle_ends_the_waits() -> None:
    async with driven() as (_, backend), started(backend) as system, anyio.create_task_group() as tasks:

        async def wait() -> None:
            with expect_refusal(HResult.E_HANDLE):
                await system.wait()

        tasks.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        await system.close()


async def test_a_close_is_carried_out_in_a_cancelled_scope() -> None:
    async with driven() as (host, backend):
        system = await backend.create("vm1", lcow())
        with anyio.CancelScope() as scope:
            scope.cancel()
            await system.close()
        assert not host.fake.vms


async def test_a_crash_of_the_guest_is_in_the_exit_status() -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.event("vm1", CRASH_REPORT, '{"WindowsCrashInfo": {"DumpFile": "C:\\\\crash.dmp"}}')
        host.event("vm1", GUEST_CONNECTION_CLOSED)
        host.event("vm1", EXITED, '{"Status": -1070137082, "ExitType": "UnexpectedExit"}')
        status = await system.wait()
    assert status.exit_type == "UnexpectedExit"
    assert status.code == HResult.ERROR_VMCOMPUTE_UNEXPECTED_EXIT
    assert status.detail is not None
    assert status.detail["CrashReport"] == {"WindowsCrashInfo": {"DumpFile": r"C:\crash.dmp"}}
    assert "GuestConnectionClosed" in status.detail


async def test_when_the_service_goes_the_system_counts_as_ended() -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.event("vm1", SERVICE_DISCONNECT)
        assert (await system.wait()).code == HResult.HCS_E_SERVICE_DISCONNECT


@pytest.mark.parametrize(
    "data", ["", "<no json>", "[]", '{"Status": "x", "ExitType": null}', '{"ExitType": [1]}', '"text"']
)
async def test_an_exit_in_an_unknown_format_is_an_exit(data: str) -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.event("vm1", EXITED, data)
        assert (await system.wait()).exit_type == "Unknown"


async def test_an_event_of_an_unknown_kind_changes_nothing() -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.event("vm1", 0x4, "whatever")
        host.event("vm1", 0x7FFF)
        assert (await system.properties())["State"] == "Running"


async def test_a_late_event_is_ignored() -> None:
    async with driven() as (host, backend):
        async with started(backend) as system:
            for _ in range(50):
                host.event("vm1", CRASH_REPORT, "{}")
        with expect_refusal(HResult.E_HANDLE):
            await system.wait()


async def test_a_creation_that_is_cancelled_is_waited_for_and_undone() -> None:
    async with driven() as (host, backend):
        document = lcow()
        document["ShouldTerminateOnLastHandleClosed"] = False
        with host.fake.faults.hold(operation="create") as gate:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(backend.create, "vm1", document)
                (parked,) = await gate.wait()
                tasks.cancel_scope.cancel()
                parked.proceed()
        assert host.fake.request_log.entries(operation="terminate")
        assert host.fake.leftovers() == []


async def test_an_abandoned_creation_is_closed_when_it_completes() -> None:
    async with driven() as (host, _):
        backend = HCSBackend(platform=evolve(host.platform, grace_seconds=0.05))
        with host.fake.faults.hold(operation="create") as gate:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(backend.create, "vm1", lcow())
                (parked,) = await gate.wait()
                tasks.cancel_scope.cancel()
            parked.proceed()
        await until(lambda: not host.double.objects)
        assert host.fake.leftovers() == []


@pytest.mark.parametrize("steps", range(14))
async def test_a_creation_may_be_cancelled_at_each_step(steps: int) -> None:
    async with driven() as (host, backend):
        made: list[HCSSystem] = []

        async def create() -> None:
            made.append(await backend.create("vm1", lcow()))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(create)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        for system in made:
            await system.close()
        await until(lambda: not host.double.objects)
        assert host.fake.leftovers() == []


@pytest.mark.parametrize("steps", range(14))
async def test_an_opening_may_be_cancelled_at_each_step(steps: int) -> None:
    async with driven() as (host, backend), started(backend):
        before, made = host.double.objects, list[HCSSystem]()

        async def reopen() -> None:
            made.append(await backend.open("vm1"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reopen)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        for system in made:
            await system.close()
        await until(lambda: host.double.objects == before)


@pytest.mark.parametrize("function", ["HcsCreateComputeSystem", "HcsGetComputeSystemProperties"])
async def test_a_creation_that_hangs_can_be_cancelled(function: str) -> None:
    async with driven() as (host, _):
        backend = HCSBackend(platform=evolve(host.platform, grace_seconds=0.05))
        host.faults.never(function)
        with anyio.move_on_after(0.02) as scope:
            await backend.create("vm1", lcow())
        assert scope.cancelled_caught
        await until(lambda: not host.double.objects)
        assert host.fake.leftovers() == []


@pytest.mark.parametrize("function", ["HcsOpenComputeSystem", "HcsGetComputeSystemProperties"])
async def test_an_opening_that_hangs_can_be_cancelled(function: str) -> None:
    async with driven() as (host, backend), started(backend):
        host.faults.never(function)
        with anyio.move_on_after(0.02) as scope:
            await backend.open("vm1")
        assert scope.cancelled_caught


async def test_a_handle_is_closed_even_if_all_threads_of_the_pool_hang() -> None:
    async with driven() as (host, _):
        platform = evolve(host.platform, workers=Workers(threads=1), grace_seconds=0.05)
        backend = HCSBackend(platform=platform)
        system = await backend.create("vm1", lcow())
        host.faults.never("HcsGetServiceProperties")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.service_properties)
            await anyio.wait_all_tasks_blocked()
            await system.close()
            await until(lambda: not host.fake.vms)
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_close_that_asyncio_itself_cancels_is_made_all_the_same() -> None:
    """``asyncio.timeout`` and the like pass anyio's shields."""
    async with driven() as (host, _):
        backend = HCSBackend(platform=evolve(host.platform, workers=Workers(threads=1)))
        system = await backend.create("vm1", lcow())
        host.faults.never("HcsGetServiceProperties")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.service_properties)
            tasks.start_soon(refused_for_good, system.wait)
            await anyio.wait_all_tasks_blocked()
            with suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await system.close()
            await until(lambda: not host.fake.vms)
            tasks.cancel_scope.cancel()
        with expect_refusal(HResult.E_HANDLE):
            await system.close()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_wait_ends_with_a_hanging_close_that_asyncio_itself_cancels() -> None:
    async with driven() as (host, backend):
        system = await backend.create("vm1", lcow())
        host.faults.never("HcsCloseComputeSystem")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refused_for_good, system.wait)
            tasks.start_soon(refused_for_good, (await system.listen(SERVICE)).accept)
            await anyio.wait_all_tasks_blocked()
            with suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await system.close()


async def refused_for_good(call: Callable[[], Awaitable[object]]) -> None:
    """Check that a call fails once its object is closed."""
    with pytest.raises((HostError, anyio.ClosedResourceError)):
        await call()


async def test_a_listener_that_was_closed_is_forgotten() -> None:
    async with driven() as (_, backend), started(backend) as system:
        for _ in range(10):
            await (await system.listen(SERVICE)).aclose()
        collect()
        assert not list(system._listeners)


async def test_handles_are_closed_even_if_no_more_threads_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handles, "_open", set())
    closed: list[int] = []
    kept = [handles.Handle(f"h{number}", number, closed.append) for number in range(3)]

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert kept[0].retire()
    handles.close_late(kept[0])
    assert closed == []
    handles.close_all()
    assert sorted(closed) == [0, 1, 2]


async def test_a_forgotten_handle_is_closed_at_the_end_of_the_interpreter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handles, "_open", set())
    monkeypatch.setattr(handles, "END_SECONDS", 20.0)
    async with driven() as (host, backend):
        await backend.create("vm1", lcow())
        collect()
        # It still finds what it reports.
        host.event("vm1", CRASH_REPORT, "{}")
        await anyio.to_thread.run_sync(handles.close_all)
        assert not host.fake.vms


async def test_closing_twice_at_once_closes_once() -> None:
    async with driven() as (host, backend):
        system = await backend.create("vm1", lcow())
        refused: list[int] = []

        async def close() -> None:
            try:
                await system.close()
            except HostError as e:
                refused.append(e.hresult)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(close)
        assert refused == [HResult.E_HANDLE, HResult.E_HANDLE]
        assert not host.fake.vms


@pytest.mark.parametrize("function", ["HcsSetComputeSystemCallback", "HcsGetComputeSystemProperties"])
async def test_a_creation_that_fails_late_leaves_no_system(function: str) -> None:
    async with driven() as (host, backend):
        host.faults.at_once(function, HResult.E_FAIL)
        document = lcow()
        document["ShouldTerminateOnLastHandleClosed"] = False
        with expect_refusal(HResult.E_FAIL):
            await backend.create("vm1", document)
        await until(lambda: not host.fake.leftovers())


async def test_a_creation_that_the_host_says_failed_leaves_no_handle() -> None:
    async with driven() as (host, backend):
        host.faults.done_but("HcsCreateComputeSystem", HResult.E_FAIL)
        with expect_refusal(HResult.E_FAIL):
            await backend.create("vm1", lcow())


@pytest.mark.parametrize("function", ["HcsSetComputeSystemCallback", "HcsGetComputeSystemProperties"])
async def test_an_opening_that_fails_late_leaves_the_system_and_no_handle(function: str) -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.at_once(function, HResult.E_FAIL)
        with expect_refusal(HResult.E_FAIL):
            await backend.open("vm1")
        assert (await system.properties())["State"] == "Running"


async def test_an_opening_that_is_cancelled_while_it_hangs_closes_what_it_gets() -> None:
    async with driven() as (host, backend), started(backend):
        with host.fake.faults.hold(operation="open") as gate:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(backend.open, "vm1")
                (parked,) = await gate.wait()
                tasks.cancel_scope.cancel()
            parked.proceed()


async def test_a_listener_ends_with_its_vm() -> None:
    async with driven() as (_, backend), started(backend) as system:
        listener = await system.listen("11111111-2222-3333-4444-555555555555")
        async with anyio.create_task_group() as tasks:

            async def accept() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await listener.accept()

            tasks.start_soon(accept)
            await system.terminate()


async def test_the_working_set_is_that_of_the_machine() -> None:
    async with driven() as (_, backend), started(backend) as system:
        first = await system.working_set_bytes()
        assert first > 0
        assert await system.working_set_bytes() == first


async def test_a_working_set_that_is_found_after_the_close_is_let_go() -> None:
    found: list[FakeWorkingSet] = []
    asked, go_on = anyio.Event(), anyio.Event()

    class Slow(FakeMachine):
        async def open_working_set(self, runtime_id: str) -> FakeWorkingSet:
            found.append(await super().open_working_set(runtime_id))
            asked.set()
            await go_on.wait()
            return found[0]

    async with driven() as (host, _):
        backend = HCSBackend(platform=evolve(host.platform, machine=Slow(host.fake)))
        async with started(backend) as system, anyio.create_task_group() as tasks:

            async def measure() -> None:
                with expect_refusal(HResult.E_HANDLE):
                    await system.working_set_bytes()

            tasks.start_soon(measure)
            await asked.wait()
            await system.close()
            go_on.set()
    assert [each.closed for each in found] == [True]
