"""Waiting until the VM's own tasks are at rest."""

from __future__ import annotations

import anyio
import pytest

import uvm
from tests.vm.support import (
    DISK,
    DISKS,
    LAYER,
    SCRATCH,
    Attempt,
    idle,
    lcow,
    quiet,
    running,
)

pytestmark = pytest.mark.anyio


async def release_cancelled(lease: uvm.Lease | uvm.RootFileSystem) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await lease.release()


async def test_a_vm_at_rest_is_settled_at_once() -> None:
    async with running() as run:
        await run.vm.scsi.attach(DISK)
        await run.vm.settled()


async def test_a_vm_is_settled_when_all_that_callers_left_has_ended() -> None:
    async with running(lcow()) as run:
        root = await run.vm.mount_layers("c1", [LAYER], SCRATCH)
        disk = await run.vm.scsi.attach(DISK)
        await release_cancelled(root)
        await release_cancelled(disk)
        await run.vm.settled()
        assert all(idle(driver) for _, driver in run.vm._drivers())
        assert (run.vm.scsi.disks, run.vm.vpmem.layers) == ((), ())
        assert run.vm._link.running == {}


async def test_a_vm_is_not_settled_while_access_is_revoked() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
        with run.backend.faults.hold(to="revoke") as gate:
            async with anyio.create_task_group() as tasks:
                await release_cancelled(disk)
                await gate.wait()
                settled = Attempt.begin(tasks, run.vm.settled)
                await quiet()
                assert not settled.done
                gate.close()
        assert settled.error is None


async def test_a_vm_that_exits_is_settled() -> None:
    async with running() as run:
        with run.hold(resource=DISKS) as gate:
            async with anyio.create_task_group() as tasks:
                attach = Attempt.begin(tasks, lambda: run.vm.scsi.attach(DISK))
                await gate.wait()
                settled = Attempt.begin(tasks, run.vm.settled)
                await quiet()
                await run.vm.terminate()
        assert settled.error is None
        assert attach.error is not None
        assert run.vm._link.running == {}
