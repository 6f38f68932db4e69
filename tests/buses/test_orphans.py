"""What is attached and has no caller, since its removal was refused: the VM lists and releases it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

import uvm
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    DISK,
    DISKS,
    LAYER,
    LAYERS,
    PLAN9,
    SHARED,
    Attempt,
    Running,
    lcow,
    quiet,
    running,
    wcow,
)
from uvm.errors import HostError, UndoFailedError, UnknownOutcomeError

pytestmark = pytest.mark.anyio

ATTACHED: dict[str, tuple[str, str, Callable[[Running], Awaitable[Any]]]] = {
    "disk": (DISKS, "scsi.disks", lambda run: run.vm.scsi.attach(DISK)),
    "layer": (LAYERS, "vpmem.layers", lambda run: run.vm.vpmem.add(LAYER)),
    "share": (PLAN9, "plan9.shares", lambda run: run.vm.plan9.add(SHARED, "/a")),
}


async def cancelled_while_it_is_added(run: Running, resource: str, add: Callable[[], Awaitable[Any]]) -> None:
    """A caller is cancelled while its device is added; the host refuses to remove it again, once."""
    run.backend.faults.refuse(resource=resource, request_type="Remove", first=1)
    with run.hold(resource=resource, request_type="Add") as gate:
        async with anyio.create_task_group() as tasks:
            attempt = Attempt.begin(tasks, add)
            await gate.wait()
            attempt.scope.cancel()
    await quiet()


@pytest.mark.parametrize("kind", ATTACHED)
async def test_what_nobody_waited_for_and_stays_is_listed_and_can_be_released(kind: str) -> None:
    resource, ledger, add = ATTACHED[kind]
    async with running(lcow()) as run:
        await cancelled_while_it_is_added(run, resource, lambda: add(run))
        [orphan] = run.vm.orphans
        assert orphan.ledger == ledger
        assert isinstance(orphan.error, HostError)
        [entry] = run.vm.ledgers()[ledger].entries
        assert (orphan.key, orphan.slot) == (entry.key, entry.slot)
        check_at_rest(run)
        await orphan.release()
        assert not run.vm.orphans
        assert run.vm.ledgers()[ledger].entries == ()
        check_at_rest(run)


async def test_an_orphan_that_is_refused_again_stays_one() -> None:
    async with running(lcow()) as run:
        await cancelled_while_it_is_added(run, DISKS, lambda: run.vm.scsi.attach(DISK))
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        [orphan] = run.vm.orphans
        with pytest.raises(HostError):
            await orphan.release()
        assert run.vm.orphans == (orphan,)
        await orphan.release()
        assert not run.vm.orphans


async def test_to_release_an_orphan_that_has_gone_does_nothing() -> None:
    async with running(lcow()) as run:
        await cancelled_while_it_is_added(run, DISKS, lambda: run.vm.scsi.attach(DISK))
        [orphan] = run.vm.orphans
        await orphan.release()
        sent = len(run.sent())
        await orphan.release()
        assert len(run.sent()) == sent


async def test_an_orphan_whose_removal_is_lost_is_quarantined_instead() -> None:
    async with running(lcow()) as run:
        await cancelled_while_it_is_added(run, DISKS, lambda: run.vm.scsi.attach(DISK))
        run.backend.faults.lose(resource=DISKS, request_type="Remove", first=1)
        with pytest.raises(UnknownOutcomeError):
            await run.vm.orphans[0].release()
        assert not run.vm.orphans
        assert len(run.vm.quarantined) == 1


async def test_whoever_attaches_the_same_takes_an_orphan_over() -> None:
    async with running(lcow()) as run:
        await cancelled_while_it_is_added(run, DISKS, lambda: run.vm.scsi.attach(DISK))
        async with run.vm.scsi.attach(DISK):
            assert not run.vm.orphans, "it has a caller again"
        assert not run.vm.orphans
        assert run.vm.scsi.disks == ()


async def test_a_disk_whose_mount_failed_and_that_stays_is_an_orphan() -> None:
    async with running(lcow()) as run:
        run.backend.faults.refuse(resource="MappedVirtualDisk", request_type="Add", first=1)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        with pytest.raises(UndoFailedError):
            await run.vm.scsi.attach(DISK, mount=uvm.Mount())
        [orphan] = run.vm.orphans
        assert orphan.ledger == "scsi.disks"
        assert isinstance(orphan.error, UndoFailedError)
        await orphan.release()
        assert run.vm.scsi.disks == ()


async def test_what_a_lease_still_holds_is_no_orphan() -> None:
    async with running(lcow()) as run:
        disk = await run.vm.scsi.attach(DISK)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        with pytest.raises(HostError):
            await disk.release()
        assert not run.vm.orphans
        await disk.release()
        assert run.vm.scsi.disks == ()


async def test_a_release_that_was_cancelled_and_refused_leaves_an_orphan_that_its_lease_can_release() -> None:
    async with running(lcow()) as run:
        disk = await run.vm.scsi.attach(DISK)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await disk.release()
        await quiet()
        assert [orphan.slot for orphan in run.vm.orphans] == [(0, 0)]
        await disk.release()
        assert not run.vm.orphans


async def test_a_direct_mapped_share_that_is_kept_is_no_orphan() -> None:
    async with running(wcow()) as run:
        async with run.vm.vsmb.add(SHARED):
            pass
        assert not run.vm.orphans


async def test_a_vm_that_has_exited_has_no_orphans() -> None:
    async with running(lcow()) as run:
        await cancelled_while_it_is_added(run, DISKS, lambda: run.vm.scsi.attach(DISK))
        [orphan] = run.vm.orphans
        await run.vm.terminate()
        await run.vm.wait()
        assert not run.vm.orphans
        await orphan.release()
