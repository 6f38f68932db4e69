"""Gates: calls parked until a test decides."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.fake.support import (
    DISK,
    OTHER_DISK,
    add,
    backend_of,
    disk,
    expect_refusal,
    host_files,
    running,
    slot,
)
from uvm.backends.fake import FakeBackend, FakeSystem, Parked
from uvm.errors import BridgeClosedError, HostError, OptionsError, UnknownOutcomeError, UVMError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio


async def test_parked_calls_can_be_looked_at_and_end_in_any_order() -> None:
    async with running() as system:
        with backend_of(system).faults.hold(to="host") as gate:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(system.modify, add(slot(0), disk()))
                await gate.wait(1)
                tasks.start_soon(system.modify, add(slot(1), disk(OTHER_DISK)))
                first, second = await gate.wait(2)
                assert [p.call.document["Settings"]["Path"] for p in (first, second)] == [DISK, OTHER_DISK]
                assert system.vm.tree.scsi.disks == {}
                second.proceed()
                await anyio.wait_all_tasks_blocked()
                assert list(system.vm.tree.scsi.disks) == [(0, 1)]
                assert gate.pending == (first,)
                first.proceed()
            assert gate.pending == ()


async def parked_modify(decide: Any) -> tuple[UVMError | None, bool]:
    """Park an attach, decide on it, and give its error and whether the disk is attached."""
    caught: list[UVMError] = []
    async with running() as system:
        with backend_of(system).faults.hold(to="host") as gate:

            async def attach() -> None:
                try:
                    await system.modify(add(slot(0), disk()))
                except UVMError as e:
                    caught.append(e)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(attach)
                (parked,) = await gate.wait()
                decide(parked)
            return (caught[0] if caught else None), bool(system.vm.tree.scsi.disks)


async def test_a_parked_call_is_refused_with_a_code() -> None:
    error, attached = await parked_modify(lambda p: p.refuse(HResult.E_FAIL, "denied"))
    assert "denied" in str(error)
    assert not attached


async def test_a_parked_call_is_not_lost_if_whether_it_is_applied_is_no_flag() -> None:
    def decide(parked: Any) -> None:
        with pytest.raises(OptionsError, match="applied"):
            parked.lose(applied="no")
        parked.proceed()

    assert await parked_modify(decide) == (None, True)


async def test_a_parked_call_is_refused_with_an_exception() -> None:
    error, attached = await parked_modify(lambda p: p.refuse(BridgeClosedError("cut")))
    assert isinstance(error, BridgeClosedError)
    assert not attached


@pytest.mark.parametrize("applied", [True, False])
async def test_the_answer_of_a_parked_call_is_lost(applied: bool) -> None:
    error, attached = await parked_modify(lambda p: p.lose(applied=applied))
    assert isinstance(error, UnknownOutcomeError)
    assert attached == applied


async def test_a_parked_call_that_is_cancelled_changes_nothing_and_is_gone() -> None:
    async with running() as system:
        gate = backend_of(system).faults.hold(to="host")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(system.modify, add(slot(0), disk()))
            (parked,) = await gate.wait()
            tasks.cancel_scope.cancel()
        assert gate.pending == ()
        with pytest.raises(RuntimeError, match="no longer parked"):
            parked.proceed()
        entry = list(backend_of(system).request_log)[-1]
        assert (entry.outcome, entry.applied) == ("cancelled", False)


async def test_the_exit_of_the_vm_wakes_what_is_parked() -> None:
    async with running() as system:
        gate = backend_of(system).faults.hold(to="host")
        async with anyio.create_task_group() as tasks:

            async def attach() -> None:
                with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
                    await system.modify(add(slot(0), disk()))

            tasks.start_soon(attach)
            await gate.wait()
            system.vm.crash()
        assert gate.pending == ()


async def test_a_call_is_decided_on_once() -> None:
    def twice(parked: Parked) -> None:
        parked.proceed()
        with pytest.raises(RuntimeError, match="no longer parked"):
            parked.refuse()

    assert await parked_modify(twice) == (None, True)


async def test_a_closed_gate_parks_no_more() -> None:
    async with running() as system:
        gate = backend_of(system).faults.hold(to="host")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(system.modify, add(slot(0), disk()))
            await gate.wait()
            gate.close()
            gate.close()
        await system.modify(add(slot(1), disk(OTHER_DISK)))
        assert len(system.vm.tree.scsi.disks) == 2


async def test_calls_that_concern_no_vm_are_parked_too() -> None:
    backend = FakeBackend(files=host_files())
    with backend.faults.hold(to="grant", nth=1) as gate:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.grant_access, DISK, "vm1")
            (parked,) = await gate.wait()
            await backend.grant_access(OTHER_DISK, "vm1")
            parked.proceed()
    assert len(backend.access.paths("vm1")) == 2


@given(data=st.data())
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_whatever_becomes_of_parked_calls_the_request_log_tells_what_the_host_has(
    data: st.DataObject, loop: str
) -> None:
    async def play() -> None:
        async with running() as system:
            backend = backend_of(system)
            gate = backend.faults.hold(to="host")
            async with anyio.create_task_group() as tasks:
                scopes = []
                for lun in range(4):
                    scope = anyio.CancelScope()
                    scopes.append(scope)
                    tasks.start_soon(attach, system, lun, scope)
                pending = list(await gate.wait(4))
                while pending:
                    chosen = data.draw(st.sampled_from(pending))
                    pending.remove(chosen)
                    match data.draw(st.sampled_from(["proceed", "refuse", "lose", "keep", "cancel"])):
                        case "proceed":
                            chosen.proceed()
                        case "refuse":
                            chosen.refuse()
                        case "lose":
                            chosen.lose(applied=False)
                        case "keep":
                            chosen.lose(applied=True)
                        case _:
                            lun = int(chosen.call.resource.rpartition("/")[2])
                            scopes[lun].cancel()
                    await anyio.lowlevel.checkpoint()
            said = {
                int(e.call.resource.rpartition("/")[2])
                for e in backend.request_log.entries(to="host")
                if e.applied
            }
            assert {lun for _, lun in system.vm.tree.scsi.disks} == said

    async def attach(system: FakeSystem, lun: int, scope: anyio.CancelScope) -> None:
        with scope, suppress(HostError, UnknownOutcomeError):
            await system.modify(add(slot(lun), disk(ReadOnly=True)))

    anyio.run(play, backend=loop)
