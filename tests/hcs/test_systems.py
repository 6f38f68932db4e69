"""A system over the C API: its exit, its events, its handle, and what a cancelled creation leaves."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from tests.fake.support import expect_refusal, lcow
from tests.hcs.support import driven, started
from uvm.backends.hcs.handles import E_HANDLE
from uvm.errors import ExitStatus
from uvm.testing.backends.checks import until

pytestmark = pytest.mark.anyio

E_FAIL = 0x80004005
HCS_E_SERVICE_DISCONNECT = 0x8037011E

# HCS_EVENT_TYPE of computedefs.h.
EXITED = 0x1
CRASH_REPORT = 0x3
GUEST_CONNECTION_CLOSED = 0x6
SERVICE_DISCONNECT = 0x02000000


async def test_everybody_who_waits_learns_of_the_exit() -> None:
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


async def test_the_exit_is_told_over_every_handle() -> None:
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
            with expect_refusal(E_HANDLE):
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
    assert status.code == 0xC0370106
    assert status.detail is not None
    assert status.detail["CrashReport"] == {"WindowsCrashInfo": {"DumpFile": r"C:\crash.dmp"}}
    assert "GuestConnectionClosed" in status.detail


async def test_when_the_service_goes_the_system_counts_as_ended() -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.event("vm1", SERVICE_DISCONNECT)
        assert (await system.wait()).code == HCS_E_SERVICE_DISCONNECT


@pytest.mark.parametrize("data", ["", "<no json>", "[]", '{"Status": "x", "ExitType": null}', '"text"'])
async def test_an_exit_that_is_told_in_words_of_its_own_is_an_exit(data: str) -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.event("vm1", EXITED, data)
        assert (await system.wait()).exit_type == "Unknown"


async def test_an_event_of_an_unknown_kind_changes_nothing() -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.event("vm1", 0x4, "whatever")
        host.event("vm1", 0x7FFF)
        assert (await system.properties())["State"] == "Running"


async def test_a_late_event_finds_nobody() -> None:
    async with driven() as (host, backend):
        async with started(backend) as system:
            for _ in range(50):
                host.event("vm1", CRASH_REPORT, "{}")
        with expect_refusal(E_HANDLE):
            await system.wait()


async def test_a_creation_that_is_cancelled_leaves_no_system() -> None:
    async with driven() as (host, backend):
        document = lcow()
        document["ShouldTerminateOnLastHandleClosed"] = False
        with host.fake.faults.hold(operation="create") as gate:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(backend.create, "vm1", document)
                (parked,) = await gate.wait()
                tasks.cancel_scope.cancel()
            parked.proceed()
        await until(lambda: not host.fake.leftovers())


@pytest.mark.parametrize("function", ["HcsSetComputeSystemCallback", "HcsGetComputeSystemProperties"])
async def test_a_creation_that_fails_half_way_leaves_no_system(function: str) -> None:
    async with driven() as (host, backend):
        host.faults.at_once(function, E_FAIL)
        document = lcow()
        document["ShouldTerminateOnLastHandleClosed"] = False
        with expect_refusal(E_FAIL):
            await backend.create("vm1", document)
        await until(lambda: not host.fake.leftovers())


async def test_a_creation_that_the_host_says_failed_leaves_no_handle() -> None:
    async with driven() as (host, backend):
        host.faults.done_but("HcsCreateComputeSystem", E_FAIL)
        with expect_refusal(E_FAIL):
            await backend.create("vm1", lcow())


@pytest.mark.parametrize("function", ["HcsSetComputeSystemCallback", "HcsGetComputeSystemProperties"])
async def test_an_opening_that_fails_half_way_leaves_the_system_and_no_handle(function: str) -> None:
    async with driven() as (host, backend), started(backend) as system:
        host.faults.at_once(function, E_FAIL)
        with expect_refusal(E_FAIL):
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
