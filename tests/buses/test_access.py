"""Access to a path of the host is granted with a device and revoked with the last one on that path."""

from __future__ import annotations

import logging

import anyio
import pytest

import uvm
from tests.vm.audit import check_at_rest
from tests.vm.support import DISK, DISKS, LAYER, OTHER_DISK, Attempt, Running, lcow, quiet, running, wcow
from uvm._buses.access import HostName
from uvm.backend import VM_GROUP
from uvm.errors import GuestError, HostError, OptionsError, UnknownOutcomeError, UVMError

pytestmark = pytest.mark.anyio


def has_access(run: Running, path: str = DISK) -> bool:
    return "vm1" in run.backend.access.granted(path)


async def test_a_path_is_revoked_before_the_release_of_its_last_device_returns() -> None:
    async with running() as run:
        disk, layer = await run.vm.scsi.attach(DISK), await run.vm.vpmem.add(LAYER)
        assert has_access(run)
        assert has_access(run, LAYER)
        await disk.release()
        assert not has_access(run)
        await layer.release()
        assert not has_access(run, LAYER)
        assert run.vm._context.access._paths.keys().isdisjoint({DISK.upper(), LAYER.upper()})


async def test_of_two_devices_on_one_path_the_last_revokes_it() -> None:
    async with running() as run:
        one, two = await run.vm.vpmem.add(LAYER), await run.vm.scsi.attach(LAYER.upper(), read_only=True)
        await one.release()
        assert has_access(run, LAYER)
        await two.release()
        assert not has_access(run, LAYER)


async def test_access_is_kept_until_the_removal_is_confirmed() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
        with run.backend.faults.hold(to="revoke") as gate:
            async with anyio.create_task_group() as tasks:
                release = Attempt.begin(tasks, disk.release)
                [parked] = await gate.wait()
                assert not release.done
                assert run.backend.vms["vm1"].tree.scsi.disks.get((disk.controller, disk.lun)) is None
                parked.proceed()
        check_at_rest(run)


async def test_what_attaches_the_path_meanwhile_waits_and_grants_anew() -> None:
    async with running() as run:
        layer = await run.vm.vpmem.add(LAYER)
        with run.backend.faults.hold(to="revoke") as gate:
            async with anyio.create_task_group() as tasks:
                Attempt.begin(tasks, layer.release)
                [parked] = await gate.wait()
                attempts = [
                    Attempt.begin(tasks, lambda: run.vm.vpmem.add(LAYER)),
                    Attempt.begin(tasks, lambda: run.vm.scsi.attach(LAYER, read_only=True)),
                ]
                await quiet()
                assert len(run.sent("grant")) == 1
                parked.proceed()
        assert [attempt.error for attempt in attempts] == [None, None]
        assert len(run.sent("grant")) > 1
        assert has_access(run, LAYER)
        check_at_rest(run)


async def test_an_add_that_is_refused_after_its_grant_revokes_it() -> None:
    async with running() as run:
        run.backend.faults.refuse(resource=DISKS, request_type="Add", first=1)
        with pytest.raises(HostError):
            await run.vm.scsi.attach(DISK)
        assert not has_access(run)
        run.backend.faults.refuse(to="guest", resource="VPMemDevice", request_type="Add", first=1)
        with pytest.raises(GuestError):
            await run.vm.vpmem.add(LAYER)
        assert not has_access(run, LAYER)
        check_at_rest(run)


async def test_what_is_an_orphan_keeps_its_access_until_it_is_removed() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await disk.release()
        await quiet()
        assert has_access(run)
        await run.vm.orphans[0].release()
        assert not has_access(run)


async def test_what_is_quarantined_keeps_its_access_until_the_vm_closes() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK, read_only=True)
        run.backend.faults.lose(resource=DISKS, request_type="Remove", first=1)
        with pytest.raises(UnknownOutcomeError):
            await disk.release()
        await (await run.vm.scsi.attach(DISK, read_only=True)).release()
        assert has_access(run)
        check_at_rest(run)
    assert not has_access(run)


async def test_access_of_boot_files_and_of_the_vm_group_stays() -> None:
    async with running(wcow()) as run:
        boot = run.backend.access.paths("vm1")
        assert boot
        for path in boot:
            # It is in use, so that the attachment is refused after the grant.
            with pytest.raises(uvm.UVMError):
                await run.vm.scsi.attach(path)
        run.backend.access.grant(DISK, VM_GROUP, "read")
        await (await run.vm.scsi.attach(DISK)).release()
        assert run.backend.access.granted(DISK) == {VM_GROUP: "read"}
        assert run.backend.access.paths("vm1") == boot


async def test_access_that_its_caller_sees_to_is_never_revoked() -> None:
    async with running() as run:
        run.backend.access.grant(DISK, "vm1", "all")
        theirs = await run.vm.scsi.attach(DISK, read_only=True, grant_access=False)
        ours = await run.vm.vpmem.add(DISK)
        await theirs.release()
        await ours.release()
        assert has_access(run)
        await run.backend.revoke_access(DISK, "vm1")


async def test_a_refused_revoke_does_not_fail_the_release_and_is_tried_again_at_close(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "uvm")
    async with running() as run:
        disk, other = await run.vm.scsi.attach(DISK), await run.vm.scsi.attach(OTHER_DISK)
        run.backend.faults.refuse(to="revoke", first=1)
        await disk.release()
        await other.release()
        assert has_access(run)
        assert not has_access(run, OTHER_DISK)
        assert f"access to {DISK} was not revoked" in caplog.text
        assert [each.host_path for each in run.vm.devices().unrevoked_access] == [DISK]
        check_at_rest(run)
    assert not has_access(run)


async def test_a_release_that_is_cancelled_revokes_all_the_same() -> None:
    async with running(lcow()) as run:
        disk = await run.vm.scsi.attach(DISK)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await disk.release()
        await disk.gone()
        assert not has_access(run)


async def test_a_close_revokes_all_paths_with_few_of_them_in_flight_at_once() -> None:
    async with running() as run:
        names = [HostName(path, (path,)) for path in (rf"C:\many\{number}" for number in range(200))]
        access = run.vm._context.access
        for name in names:
            run.backend.files.add(name.path, size=1)
            await access.take(name, True)
        others = len(run.backend.access.paths("vm1")) - len(names)
        with run.backend.faults.hold(to="revoke") as gate:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(access.revoke_all)
                for left in range(len(names) + others, 0, -1):
                    await quiet()
                    assert len(gate.pending) == min(left, 64)
                    parked = gate.pending[0]
                    (parked.refuse if parked.call.document["path"] == names[76].path else parked.proceed)()
        assert run.backend.access.paths("vm1") == [names[76].path]
        await run.backend.revoke_access(names[76].path, "vm1")


async def test_shared_layers_are_opened_to_the_vm_group_and_stay_so() -> None:
    async with running() as run:
        layer = await run.vm.vpmem.add(LAYER, grant_access=VM_GROUP)
        disk = await run.vm.scsi.attach(DISK, read_only=True, grant_access=VM_GROUP)
        for path, lease in ((LAYER, layer), (DISK, disk)):
            assert run.backend.access.granted(path) == {VM_GROUP: "read"}
            await lease.release()
            assert run.backend.access.granted(path) == {VM_GROUP: "read"}
        check_at_rest(run)


async def test_a_root_file_system_opens_its_layers_to_the_vm_group_and_its_scratch_to_its_vm() -> None:
    async with running() as run:
        async with run.vm.mount_layers("c1", [LAYER], DISK, grant_access=VM_GROUP):
            assert run.backend.access.granted(LAYER) == {VM_GROUP: "read"}
            assert run.backend.access.granted(DISK) == {"vm1": "all"}
        assert run.backend.access.granted(LAYER) == {VM_GROUP: "read"}
        assert not has_access(run)


async def test_the_vm_group_is_granted_no_access_to_what_a_vm_writes() -> None:
    async with running() as run:
        before = len(run.sent("grant"))
        for wrong in ("everyone", None, 1):
            with pytest.raises(OptionsError, match="grant_access"):
                await run.vm.scsi.attach(DISK, read_only=True, grant_access=wrong)  # type: ignore[arg-type]
        with pytest.raises(OptionsError, match="read_only"):
            await run.vm.scsi.attach(DISK, grant_access=VM_GROUP)
        assert len(run.sent("grant")) == before
    async with running(wcow()) as run:
        with pytest.raises(OptionsError, match="leave out grant_access"):
            await run.vm.mount_layers("c1", [uvm.WCOWLayer(DISK, "x")], DISK, grant_access=VM_GROUP)


async def test_of_two_devices_on_one_path_each_has_the_access_that_it_asked_for() -> None:
    async with running() as run:
        with run.backend.faults.hold(to="grant") as gate:
            async with anyio.create_task_group() as tasks:
                ours = Attempt.begin(tasks, lambda: run.vm.vpmem.add(LAYER))
                [parked] = await gate.wait()
                theirs = Attempt.begin(
                    tasks, lambda: run.vm.scsi.attach(LAYER, read_only=True, grant_access=VM_GROUP)
                )
                await quiet()
                assert list(gate.pending) == [parked]
                parked.proceed()
                [parked] = await gate.wait()
                parked.proceed()
        assert run.backend.access.granted(LAYER) == {"vm1": "all", VM_GROUP: "read"}
        await ours.result.release()
        assert has_access(run, LAYER)
        await theirs.result.release()
        assert run.backend.access.granted(LAYER) == {VM_GROUP: "read"}
        check_at_rest(run)


@pytest.mark.parametrize("fails", ["refuse", "lose"])
async def test_access_of_the_vm_group_that_fails_leaves_the_vms_own_as_it_was(fails: str) -> None:
    async with running() as run:
        for held in (False, True):
            layer = await run.vm.vpmem.add(LAYER) if held else None
            rule = getattr(run.backend.faults, fails)(to="grant", first=1)
            with pytest.raises(UVMError):
                await run.vm.scsi.attach(LAYER, read_only=True, grant_access=VM_GROUP)
            assert rule.fired == 1
            assert has_access(run, LAYER) is held
            check_at_rest(run)
            if layer is not None:
                await layer.release()
        assert not has_access(run, LAYER)
