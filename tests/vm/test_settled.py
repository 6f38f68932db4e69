"""Waiting until nothing is in flight that tasks of the VM have begun: then ledgers, host and guest agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import uvm
from tests.clocks import jumping_backends
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    DISK,
    DISKS,
    LAYER,
    NAMESPACE,
    SCRATCH,
    Attempt,
    Running,
    host_backend,
    lcow,
    quiet,
    running,
)
from uvm._guest.timeouts import GuestTimeouts

anyio_backend = jumping_backends

pytestmark = pytest.mark.anyio

SLEEP = {"process": {"args": ["sleep", "1000"], "cwd": "/"}, "linux": {}}
EITHER = pytest.mark.parametrize("external", [True, False], ids=["our own", "through HCS"])


async def begin_and_leave(call: Callable[[], Any]) -> None:
    """Make a call whose caller is cancelled as soon as it waits."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await call()


async def check_settles_with(run: Running, gate: Any) -> None:
    """Settling waits for what is parked at a gate, and for what follows."""
    async with anyio.create_task_group() as tasks:
        waits = [Attempt.begin(tasks, run.vm.settled) for _ in range(2)]
        await gate.wait()
        await quiet()
        assert not any(wait.done for wait in waits)
        gate.close()
        await run.vm.settled()
        check_at_rest(run)
    assert [wait.error for wait in waits] == [None, None]


def any_alive(run: Running) -> bool:
    """Whether any process runs in the guest."""
    return any(process.alive for process in run.backend.vms["vm1"].service.processes.values())


async def test_a_vm_at_rest_is_settled_at_once() -> None:
    async with uvm.UtilityVM.create(lcow(), backend=host_backend()) as vm:
        await vm.settled()
        await vm.start()
        await vm.scsi.attach(DISK)
        begun = anyio.current_time()
        await vm.settled()
        assert anyio.current_time() == begun
    await vm.settled()


async def test_a_start_is_waited_for() -> None:
    backend = host_backend()
    async with uvm.UtilityVM.create(lcow(), backend=backend) as vm, anyio.create_task_group() as tasks:
        with backend.faults.hold(operation="start") as gate:
            starting = Attempt.begin(tasks, vm.start)
            await gate.wait()
            settling = Attempt.begin(tasks, vm.settled)
            await quiet()
            assert not settling.done
            starting.scope.cancel()
        await vm.settled()
        assert vm.state is uvm.VMState.EXITED


async def test_an_attachment_whose_caller_left_is_rolled_back_first() -> None:
    async with running() as run:
        with run.hold(resource=DISKS) as gate:
            async with anyio.create_task_group() as tasks:
                attaching = Attempt.begin(tasks, lambda: run.vm.scsi.attach(DISK, mount=uvm.Mount()))
                await gate.wait()
                attaching.scope.cancel()
            await check_settles_with(run, gate)
        assert run.vm.devices().disks == ()


@pytest.mark.parametrize("at", ["CombinedLayers", "MappedVirtualDisk", "VPMemDevice", DISKS])
async def test_a_root_file_system_is_taken_apart_first(at: str) -> None:
    async with running() as run:
        root = await run.vm.mount_layers("c", [LAYER], SCRATCH)
        with run.hold(resource=at) as gate:
            await begin_and_leave(root.release)
            await check_settles_with(run, gate)
        assert root.state is uvm.LeaseState.GONE


async def test_access_is_revoked_first() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
        with run.backend.faults.hold(to="revoke") as gate:
            await begin_and_leave(disk.release)
            await check_settles_with(run, gate)
        assert DISK not in run.backend.access.paths("vm1")


async def test_operations_that_wait_for_their_turn_are_waited_for() -> None:
    async with running() as run:
        namespace = await run.vm.network.setup(NAMESPACE)
        with run.hold(resource="Network") as gate:
            await begin_and_leave(namespace.release)
            await check_settles_with(run, gate)
        assert run.vm.network.namespaces == ()


@EITHER
async def test_a_container_whose_caller_left_is_ended_and_its_state_deleted_first(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        root = await run.vm.mount_layers("c1", [LAYER], SCRATCH)
        container = await run.vm.create_container("c1", SLEEP, root=root)
        await container.start()
        await container.open_init()
        await begin_and_leave(container.aclose)
        await begin_and_leave(root.release)
        await run.vm.settled()
        assert list(run.backend.vms["vm1"].service.containers) == []
        assert run.vm._link.states.pending("c1") is None
        check_at_rest(run)


@EITHER
async def test_a_process_whose_caller_left_is_killed_first(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        with anyio.move_on_after(1):
            await run.vm.run(["sleep", "1000"])
        await run.vm.settled()
        assert not any_alive(run)


@EITHER
async def test_a_start_that_is_answered_late_is_undone_first(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        run.backend.faults.delay(7, operation="execute process")
        run.backend.faults.delay(7, operation="create process")
        begun = anyio.current_time()
        with anyio.move_on_after(1):
            await run.vm.run(["sleep", "1000"])
        await run.vm.settled()
        assert 7 <= anyio.current_time() - begun < GuestTimeouts().rpc_seconds
        assert not any_alive(run)


async def test_a_start_that_is_never_answered_is_waited_for_no_longer_than_any_answer() -> None:
    async with running(timeouts=GuestTimeouts(rpc_seconds=20)) as run:
        run.backend.misbehaviour.silent(operation="execute process")
        with anyio.move_on_after(1):
            await run.vm.run(["true"])
        with pytest.raises(TimeoutError), anyio.fail_after(3):
            await run.vm.settled()
        begun = anyio.current_time()
        await run.vm.settled()
        assert anyio.current_time() - begun == pytest.approx(20)
        assert run.vm._link.work.owed == 1


async def test_an_operation_that_is_never_answered_holds_it_no_longer_than_the_caller_allows() -> None:
    async with running() as run:
        run.backend.faults.hang(resource=DISKS)
        with anyio.move_on_after(1):
            await run.vm.scsi.attach(DISK)
        with pytest.raises(TimeoutError), anyio.fail_after(1000):
            await run.vm.settled()


async def test_what_is_an_orphan_or_quarantined_is_not_waited_for() -> None:
    async with running() as run:
        disk, other = await run.vm.scsi.attach(DISK), await run.vm.vpmem.add(LAYER)
        run.backend.faults.refuse(request_type="Remove", resource=DISKS, first=1)
        run.backend.faults.lose(request_type="Remove", resource="VPMemDevice", first=1)
        for each in (disk, other):
            await begin_and_leave(each.release)
            await run.vm.settled()
        devices = run.vm.devices()
        assert (len(devices.orphans), len(devices.quarantined)) == (1, 1)
        check_at_rest(run)


async def test_with_the_exit_all_is_settled() -> None:
    async with running() as run:
        with run.hold(resource=DISKS) as gate:
            async with anyio.create_task_group() as tasks:
                attaching = Attempt.begin(tasks, lambda: run.vm.scsi.attach(DISK))
                await gate.wait()
                settling = Attempt.begin(tasks, run.vm.settled)
                await quiet()
                assert not settling.done
                run.backend.vms["vm1"].crash()
            assert settling.error is None
            assert isinstance(attaching.error, uvm.VMExitedError)
        await run.vm.settled()
