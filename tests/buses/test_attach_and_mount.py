"""A disk is attached and mounted in one: by one task of the VM, and its caller is woken once.

Whatever comes between the attachment and the mount, the disk is detached with what was to be mounted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest

import uvm
from tests.clocks import jumping_backends
from tests.vm.audit import check_at_rest
from tests.vm.support import DISK, DISKS, OTHER_DISK, Attempt, Running, quiet, running
from uvm._buses import driver
from uvm.errors import (
    GuestError,
    HostError,
    OptionsError,
    UndoFailedError,
    UndoUnknownError,
    UnknownOutcomeError,
    VMExitedError,
)

pytestmark = pytest.mark.anyio

anyio_backend = jumping_backends

PLACE = "/mnt/one"
MOUNTS = "MappedVirtualDisk"


def mounted(run: Running, path: str = DISK, **mount: Any) -> Any:
    return run.vm.scsi.attach(path, mount=uvm.Mount(guest_path=PLACE, **mount))


@pytest.fixture
def tasks_begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of operation with which tasks of the VM began."""
    begun: list[str] = []
    carry_out = driver.carry_out

    async def noted(run_by: Any, operation: Any, gate: Any) -> None:
        begun.append(operation.kind.value)
        await carry_out(run_by, operation, gate)

    monkeypatch.setattr(driver, "carry_out", noted)
    return begun


async def test_one_task_attaches_and_mounts_and_one_unmounts_and_detaches(tasks_begun: list[str]) -> None:
    async with running() as run:
        disk = await mounted(run)
        assert tasks_begun == ["Add"]
        await disk.release()
        assert tasks_begun == ["Add", "Remove"]
        assert len(run.sent("host", "guest")) == 5
        check_at_rest(run)


async def test_each_of_what_follows_an_end_is_carried_out(tasks_begun: list[str]) -> None:
    """The mounts of two callers follow the end of one attachment."""
    async with running() as run, anyio.create_task_group() as tasks:
        for place in ("/a", "/b"):
            mount = uvm.Mount(guest_path=place, filesystem=place[1:])
            tasks.start_soon(partial(run.vm.scsi.attach, DISK, mount=mount))
        await quiet()
        assert {*run.guest.mounts} == {"/a", "/b"}
        assert tasks_begun == ["Add", "Add"]
        check_at_rest(run)


async def test_all_that_want_one_mount_of_a_new_disk_have_it() -> None:
    async with running() as run:
        async with anyio.create_task_group() as tasks:
            attempts = [Attempt.begin(tasks, lambda: mounted(run)) for _ in range(3)]
        assert {attempt.result.guest_path for attempt in attempts} == {PLACE}
        assert [disk.references for disk in run.vm.scsi.disks] == [3]
        assert len(run.guest.mounts) == 1
        for attempt in attempts:
            await attempt.result.release()
        check_at_rest(run)
        assert run.vm.scsi.disks == ()


async def _refused_mount(run: Running) -> Attempt:
    """Have a disk mounted where another one is, while this one is attached; return what came of it."""
    with run.hold(resource=DISKS, request_type="Add", nth=1) as gate:
        async with anyio.create_task_group() as tasks:
            refused = Attempt.begin(tasks, lambda: mounted(run, OTHER_DISK))
            [parked] = await gate.wait()
            assert (await mounted(run)).guest_path == PLACE
            parked.proceed()
    return refused


async def test_a_mount_that_is_refused_after_the_attachment_detaches_the_disk() -> None:
    async with running() as run:
        refused = await _refused_mount(run)
        assert isinstance(refused.error, OptionsError)
        assert "is mounted" in str(refused.error)
        assert [disk.host_path for disk in run.vm.scsi.disks] == [DISK]
        assert [entry.document["path"] for entry in run.sent("revoke")] == [OTHER_DISK]
        assert run.vm.orphans == ()
        check_at_rest(run)
        assert (await run.vm.scsi.attach(OTHER_DISK)).lun == 0


async def test_a_mount_that_is_refused_of_a_disk_that_others_have_leaves_it_to_them() -> None:
    async with running() as run:
        await mounted(run, OTHER_DISK)
        held = await run.vm.scsi.attach(DISK)
        mounts = run.vm.scsi._mounts
        before = len(run.sent())
        hold = run.vm.scsi._disks.acquire(
            held._hold.ticket.key,
            DISK,
            then=lambda disk: run.vm.scsi._mount(disk, uvm.Mount(guest_path=PLACE), read_only=False),
        )
        with pytest.raises(OptionsError):
            await hold.through()
        assert (len(run.sent()), len(mounts.ledger)) == (before, 1)
        await held.release()
        check_at_rest(run)


async def test_where_the_disk_of_a_refused_mount_stays_both_are_raised_and_it_is_an_orphan() -> None:
    async with running() as run:
        run.backend.faults.refuse(resource="SCSIDevice", request_type="Remove", first=1)
        refused = await _refused_mount(run)
        assert isinstance(refused.error, UndoFailedError)
        assert [type(each) for each in refused.error.exceptions] == [OptionsError, GuestError]
        [orphan] = run.vm.orphans
        await orphan.release()
        check_at_rest(run)


async def test_where_the_detachment_after_a_refused_mount_is_lost_the_slot_is_withheld() -> None:
    async with running() as run:
        run.backend.faults.lose(resource=DISKS, request_type="Remove", first=1)
        refused = await _refused_mount(run)
        assert isinstance(refused.error, UndoUnknownError)
        assert [withheld.slot for withheld in run.vm.quarantined] == [(0, 0)]
        check_at_rest(run)


async def test_nothing_is_mounted_where_the_attachment_fails() -> None:
    async with running() as run:
        run.backend.faults.refuse(resource=DISKS, request_type="Add", first=1)
        with pytest.raises(HostError):
            await mounted(run)
        run.backend.faults.lose(resource=DISKS, request_type="Add", first=1, applied=False)
        with pytest.raises(UnknownOutcomeError):
            await mounted(run)
        assert run.sent("guest") == []
        assert [withheld.slot for withheld in run.vm.quarantined] == [(0, 0)]
        check_at_rest(run)


@pytest.mark.parametrize("request_type", ["Add", "Remove"])
async def test_a_mount_whose_outcome_is_unknown_keeps_its_disk(request_type: str) -> None:
    async with running() as run:
        run.backend.faults.lose(resource=MOUNTS, request_type=request_type, first=1)
        with pytest.raises(UnknownOutcomeError):
            await (await mounted(run)).release()
        [withheld] = run.vm.quarantined
        assert withheld.operation.value == request_type
        assert run.vm.scsi.find(DISK) == (0, 0)
        check_at_rest(run)


PHASES: dict[str, dict[str, Any]] = {
    "attached": {"resource": DISKS, "request_type": "Add"},
    "mounted": {"resource": MOUNTS, "request_type": "Add"},
}
Answer = Callable[[Any], object]
ANSWERS: dict[str, Answer] = {
    "done": lambda parked: parked.proceed(),
    "refused": lambda parked: parked.refuse(),
    "lost": lambda parked: parked.lose(applied=True),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("phase", PHASES)
async def test_a_caller_that_is_cancelled_leaves_nothing(phase: str, answer: str) -> None:
    """Cancelled before the answer, or in the turn in which it comes."""
    for turns in range(6):
        async with running() as run:
            with run.hold(**PHASES[phase]) as gate:
                async with anyio.create_task_group() as tasks:
                    attempt = Attempt.begin(tasks, lambda: mounted(run))
                    [parked] = await gate.wait()
                    ANSWERS[answer](parked)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    attempt.scope.cancel()
            await run.vm.settled()
            if attempt.result is not None:
                await attempt.result.release()
            withheld = answer == "lost"
            assert len(run.vm.quarantined) == withheld
            assert (run.vm.scsi.find(DISK) is None) is not (withheld and phase == "mounted")
            assert run.vm.orphans == ()
            check_at_rest(run)


@pytest.mark.parametrize("phase", PHASES)
async def test_a_caller_whose_vm_exits_learns_that(phase: str) -> None:
    async with running() as run:
        with run.hold(**PHASES[phase]) as gate:
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, lambda: mounted(run))
                await gate.wait()
                run.backend.vms[run.vm.id].crash()
        assert isinstance(attempt.error, VMExitedError)


async def test_a_vm_that_is_closed_between_the_attachment_and_the_mount_begins_no_mount() -> None:
    async with running() as run:
        with run.hold(**PHASES["attached"]) as gate:
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, lambda: mounted(run))
                [parked] = await gate.wait()
                run.vm._link.closing = True
                parked.proceed()
        assert isinstance(attempt.error, VMExitedError)
        assert MOUNTS not in {entry.call.resource for entry in run.sent("guest")}
        run.vm._link.closing = False
        check_at_rest(run)
