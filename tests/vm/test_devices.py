"""All that is attached to a VM, as one value."""

from __future__ import annotations

import copy
import json
import pickle

import anyio
import pytest

import uvm
from tests.vm.support import (
    ADAPTERS,
    DEVICE,
    DISK,
    DISKS,
    FILE,
    LAYER,
    LAYERS,
    NAMESPACE,
    OTHER_DISK,
    OTHER_SHARED,
    PIPE,
    SCRATCH,
    SHARED,
    Running,
    host_backend,
    lcow,
    quiet,
    running,
    wcow,
)

pytestmark = pytest.mark.anyio


async def leave_an_orphan(run: Running) -> None:
    """Have a removal refused whose caller has left."""
    disk = await run.vm.scsi.attach(OTHER_DISK)
    run.backend.faults.refuse(request_type="Remove", resource=DISKS, first=1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await disk.release()
    await quiet()


async def quarantine_a_slot(run: Running) -> None:
    run.backend.faults.lose(request_type="Add", resource=DISKS, first=1)
    with pytest.raises(uvm.UnknownOutcomeError):
        await run.vm.scsi.attach(DISK, read_only=True)


async def test_it_has_all_that_is_attached_to_a_linux_vm() -> None:
    async with running() as run:
        vm = run.vm
        await vm.mount_layers("c", [LAYER], SCRATCH)
        await vm.share(FILE, "/file", read_only=True)
        await vm.plan9.add(OTHER_SHARED, "/other")
        await vm.vpci.assign(DEVICE)
        await vm.network.setup(NAMESPACE)
        devices = vm.devices()
        assert devices.disks == vm.scsi.disks
        assert devices.layers == vm.vpmem.layers
        assert devices.plan9_shares == vm.plan9.shares
        assert devices.shared == vm.shared
        assert devices.roots == vm.layers.roots
        assert devices.pci_devices == vm.vpci.devices
        assert devices.namespaces == vm.network.namespaces == (NAMESPACE,)
        assert devices.adapters == vm.network.adapters
        assert [each.references for each in devices.adapters] == [1, 1]
        assert [each.references for each in devices.shared] == [1, 1]
        assert devices.orphans == devices.quarantined == ()
        assert repr(devices) == (
            "<VMDevices of vm1: 1 disk, 1 layer, 2 plan9 shares, 2 shared, 1 root, 1 pci device, 1 namespace,"
            " 2 adapters>"
        )
        assert str(vm) == (
            "vm1: a Linux VM, running, with 1 disk, 1 layer, 2 plan9 shares, 2 shared, 1 root, 1 pci device,"
            " 1 namespace, 2 adapters"
        )


async def test_it_has_all_that_is_attached_to_a_windows_vm() -> None:
    async with running(wcow()) as run:
        vm = run.vm
        await vm.pipes.add(PIPE)
        await vm.share(SHARED, r"C:\there")
        devices = vm.devices()
        assert devices.pipes == vm.pipes.pipes
        assert devices.vsmb_shares == vm.vsmb.shares
        assert devices.shared == vm.shared
        assert devices.reserved_scsi == ((0, 0),)


async def test_it_is_taken_at_one_moment_compares_by_content_and_travels() -> None:
    async with running() as run:
        before = run.vm.devices()
        assert before == run.vm.devices()
        await run.vm.scsi.attach(DISK)
        await leave_an_orphan(run)
        after = run.vm.devices()
        assert before.disks == ()
        assert before != after
        assert hash(after) == hash(run.vm.devices())
        for copied in (copy.deepcopy(after), pickle.loads(pickle.dumps(after))):
            assert copied == after


async def test_orphans_and_quarantined_slots_say_what_is_where_why_and_since_when() -> None:
    async with running() as run:
        await leave_an_orphan(run)
        await quarantine_a_slot(run)
        devices = run.vm.devices()
        (row,) = devices.disks
        assert (row.host_path, row.references, row.orphaned) == (OTHER_DISK, 0, True)
        (orphan,), (withheld,) = devices.orphans, devices.quarantined
        assert (orphan.what, orphan.where) == (f"disk {OTHER_DISK}", "SCSI controller 0, LUN 0")
        assert "E_FAIL" in orphan.why
        assert (withheld.what, withheld.where) == (f"disk {DISK}", "SCSI controller 0, LUN 1")
        assert "the answer was lost" in withheld.why
        assert orphan.since <= withheld.since
        assert repr(devices) == "<VMDevices of vm1: 1 disk, 1 orphan, 1 quarantined>"
        assert devices.quarantined_scsi == ((0, 1),)
        assert "  0 OQ" in str(devices)


@pytest.mark.parametrize("packed", [True, False])
async def test_a_quarantined_vpmem_device_is_withheld_in_part_or_as_a_whole(packed: bool) -> None:
    async with running(lcow(vpmem_multi_mapping=packed)) as run:
        run.backend.faults.lose(request_type="Add", resource=LAYERS, first=1)
        with pytest.raises(uvm.UnknownOutcomeError):
            await run.vm.vpmem.add(LAYER)
        devices = run.vm.devices()
        [(device, offset_bytes, size_bytes)] = devices.quarantined_vpmem
        assert (device, offset_bytes) == (0, 0)
        assert (size_bytes < devices.vpmem_size_bytes) is packed
        assert "  0 Q" in str(devices)


async def test_the_last_requests_are_kept_with_their_outcomes() -> None:
    async with running() as run:
        await run.vm.scsi.attach(SCRATCH, mount=uvm.Mount())
        await leave_an_orphan(run)
        await quarantine_a_slot(run)
        requests = run.vm.devices().requests
        assert [(each.to, each.verb, each.resource, each.outcome) for each in requests] == [
            ("host", "add", "Scsi 0:0", "ok"),
            ("guest", "add", "MappedVirtualDisk 0:0", "ok"),
            ("host", "add", "Scsi 0:1", "ok"),
            ("guest", "remove", "SCSIDevice 0:1", "ok"),
            ("host", "remove", "Scsi 0:1", "refused"),
            ("host", "add", "Scsi 0:2", "unknown"),
        ]
        assert requests[0].settings == (SCRATCH,)
        assert ["E_FAIL" in each.why for each in requests] == [False] * 4 + [True, False]
        assert "the answer was lost" in requests[-1].why
        assert [each.at for each in requests] == sorted(each.at for each in requests)
        assert all(each in str(run.vm.devices()) for each in ("Recent requests", "  refused  "))


async def test_a_request_is_in_flight_until_it_has_an_outcome() -> None:
    async with running() as run, anyio.create_task_group() as tasks:
        with run.backend.faults.hold(request_type="Add", resource=DISKS) as gate:
            tasks.start_soon(run.vm.scsi.attach, DISK)
            await gate.wait()
            assert [each.outcome for each in run.vm.devices().requests] == ["in flight"]
        await run.vm.settled()
        assert [each.outcome for each in run.vm.devices().requests] == ["ok"]


async def test_no_more_than_sixteen_requests_are_kept_the_last_ones() -> None:
    async with running() as run:
        for _ in range(9):
            await (await run.vm.scsi.attach(DISK)).release()
        requests = run.vm.devices().requests
        assert len(requests) == 16
        assert [each.resource for each in requests[-2:]] == ["SCSIDevice 0:0", "Scsi 0:0"]


async def test_what_was_asked_lately_makes_no_difference_between_two_values() -> None:
    async with running() as run:
        before = run.vm.devices()
        await (await run.vm.scsi.attach(DISK)).release()
        after = run.vm.devices()
        assert after.requests != before.requests
        assert (after, hash(after)) == (before, hash(before))


async def test_a_secret_of_a_request_is_not_in_the_value() -> None:
    async with running() as run:
        fragment = "c2VjcmV0IGZyYWdtZW50"
        with pytest.raises(uvm.GuestError):
            await run.vm.update({"fragment": fragment})
        [request] = run.vm.devices().requests
        assert (request.to, request.resource, request.settings) == ("guest", "SecurityPolicyFragment", ())
        assert fragment not in str(run.vm.devices().as_json())


async def test_a_disk_whose_mount_is_an_orphan_is_one_until_a_lease_has_it() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK, mount=uvm.Mount())
        run.backend.faults.refuse(request_type="Remove", resource="MappedVirtualDisk", first=1)
        with pytest.raises(uvm.GuestError):
            async with disk:
                pass
        assert [(each.references, each.orphaned) for each in run.vm.devices().disks] == [(0, True)]
        assert [each.what for each in run.vm.devices().orphans] == [
            "mount of the disk at SCSI controller 0, LUN 0"
        ]
        await run.vm.scsi.attach(DISK)
        assert [(each.references, each.orphaned) for each in run.vm.devices().disks] == [(1, False)]


async def test_as_json_it_is_plain_values() -> None:
    async with running() as run:
        await run.vm.scsi.attach(DISK, mount=uvm.Mount())
        await leave_an_orphan(run)
        plain = run.vm.devices().as_json()
        assert json.loads(json.dumps(plain)) == plain
        assert type(plain["disks"][0]["type"]) is str
        assert plain["disks"][0] == {
            "host_path": DISK,
            "controller": 0,
            "lun": 0,
            "read_only": False,
            "type": "VirtualDisk",
            "mounts": ["/run/mounts/scsi/m0"],
            "references": 1,
            "orphaned": False,
        }
        assert plain["orphans"][0]["since"] == run.vm.orphans[0].since.isoformat()


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_a_vm_that_does_not_run_has_what_it_was_created_with(os: str) -> None:
    async with running(wcow() if os == "windows" else None) as run:
        await run.vm.network.setup(NAMESPACE)
        await run.vm.scsi.attach(DISK)
        await run.vm.terminate()
        devices = run.vm.devices()
        assert devices == uvm.VMDevices(
            vm_id="vm1",
            scsi_controllers=run.vm.plan.scsi_controllers,
            reserved_scsi=devices.reserved_scsi,
            vpmem_count=run.vm.plan.vpmem_count,
            vpmem_size_bytes=run.vm.plan.vpmem_size_bytes,
            vpmem_multi_mapping=run.vm.plan.vpmem_multi_mapping,
            boot_vpmem_bytes=run.vm.plan.boot_vpmem_bytes,
        )
        assert devices.reserved_scsi == run.vm.plan.reserved_scsi


async def test_a_vm_that_was_not_started_has_what_it_is_created_with() -> None:
    async with uvm.UtilityVM.create(wcow(), backend=host_backend()) as vm:
        before = vm.devices()
        assert before.reserved_scsi == ((0, 0),)
        assert repr(before) == "<VMDevices of vm1: none>"
        await vm.start()
        await vm.network.setup(NAMESPACE)
        assert len(vm.devices().adapters) == 2


async def test_the_log_says_what_is_where(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as run:
        await leave_an_orphan(run)
        await quarantine_a_slot(run)
        run.backend.faults.refuse(request_type="Remove", resource=ADAPTERS, first=1)
        namespace = await run.vm.network.setup(NAMESPACE)
        with pytest.raises(uvm.HostError):
            await namespace.release()
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    said = (
        f"vm1: releasing disk {OTHER_DISK} at SCSI controller 0, LUN 0 failed: ",
        f"vm1: Add of disk {DISK} at SCSI controller 0, LUN 1: the outcome is unknown",
        "vm1: releasing adapter of endpoint endpoint-eth",
    )
    for message, beginning in zip(messages, said, strict=True):
        assert message.startswith(beginning)
