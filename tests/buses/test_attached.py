"""What a VM lists as attached: frozen values, per bus."""

from __future__ import annotations

import pytest

import uvm
from tests.vm.support import (
    DEVICE,
    DISK,
    ENDPOINT,
    FILE,
    LAYER,
    NAMESPACE,
    OTHER_DISK,
    OTHER_SHARED,
    PIPE,
    SHARED,
    lcow,
    running,
    wcow,
)
from uvm.schema.common import MIB

pytestmark = pytest.mark.anyio


async def test_a_vm_with_nothing_attached_lists_nothing() -> None:
    async with running(lcow()) as run:
        vm = run.vm
        assert (vm.scsi.disks, vm.vpmem.layers, vm.plan9.shares, vm.vpci.devices) == ((), (), (), ())
        assert (vm.network.adapters, vm.network.namespaces, vm.layers.roots, vm.shared) == ((), (), (), ())


async def test_disks_are_listed_with_their_mounts_and_references() -> None:
    async with running(lcow()) as run:
        scsi = run.vm.scsi
        await scsi.attach(DISK, read_only=True)
        mount = await scsi.attach(OTHER_DISK, mount=uvm.Mount(guest_path="/data"))
        await scsi.attach(OTHER_DISK, mount=uvm.Mount())
        first, second = scsi.disks
        assert first == uvm.ScsiDisk(DISK, 0, 0, True, uvm.DiskType.VIRTUAL_DISK, (), 1)
        assert second == uvm.ScsiDisk(OTHER_DISK, 0, 1, False, uvm.DiskType.VIRTUAL_DISK, ("/data",), 2)
        await mount.release()
        assert [disk.references for disk in scsi.disks] == [1, 1]


async def test_a_disk_is_listed_from_when_it_is_attached_until_it_is_detached() -> None:
    async with running(lcow()) as run:
        async with await run.vm.scsi.attach(DISK):
            assert [disk.host_path for disk in run.vm.scsi.disks] == [DISK]
        assert run.vm.scsi.disks == ()


@pytest.mark.parametrize("packed", [True, False])
async def test_layers_are_listed_where_they_lie(packed: bool) -> None:
    async with running(lcow(vpmem_multi_mapping=packed)) as run:
        first = await run.vm.vpmem.add(LAYER)
        await run.vm.vpmem.add(LAYER)
        [layer] = run.vm.vpmem.layers
        assert layer == uvm.VPMemLayer(LAYER, first.guest_path, layer.device, 0, MIB, 2)
        await first.release()
        assert run.vm.vpmem.layers[0].size_bytes == MIB, "the first lease took the size along"


async def test_plan9_shares_are_listed_and_so_is_what_they_show() -> None:
    async with running(lcow()) as run:
        await run.vm.plan9.add(SHARED, "/a", read_only=True)
        share = await run.vm.share(OTHER_SHARED, "/b")
        assert run.vm.plan9.shares == (
            uvm.Plan9Share(SHARED, "/a", "0", True, (), 1),
            uvm.Plan9Share(OTHER_SHARED, "/b", "1", False, (), 1),
        )
        assert run.vm.shared[1] == uvm.SharedPath(share.host_path, share.guest_path, False, 1)


async def test_vsmb_shares_are_listed_with_their_files_and_so_is_what_is_shown_of_them() -> None:
    async with running(wcow()) as run:
        lease = await run.vm.vsmb.add(OTHER_SHARED)
        await run.vm.share(FILE, r"C:\here", read_only=True)
        whole, single = run.vm.vsmb.shares
        assert whole == uvm.VSMBShare(OTHER_SHARED, lease.guest_path, lease.name, False, (), 1)
        assert (single.host_path, single.read_only, single.files) == (SHARED, True, (FILE,))
        assert run.vm.shared == (uvm.SharedPath(FILE, r"C:\here", True, 1),)


async def test_a_direct_mapped_share_that_is_kept_has_no_reference() -> None:
    async with running(wcow()) as run:
        async with run.vm.vsmb.add(SHARED):
            pass
        assert [(share.host_path, share.references) for share in run.vm.vsmb.shares] == [(SHARED, 0)]


async def test_pipes_and_pci_devices_are_listed() -> None:
    async with running(wcow()) as run:
        await run.vm.pipes.add(PIPE)
        device = await run.vm.vpci.assign(DEVICE, 3)
        assert run.vm.pipes.pipes == (uvm.MappedPipe(PIPE, 1),)
        assert run.vm.vpci.devices == (uvm.VPCIDevice(DEVICE, 3, device.vmbus_guid, 1),)


async def test_a_device_assigned_at_boot_is_listed() -> None:
    async with running(lcow(assigned_devices=(uvm.PCIDevice(DEVICE),))) as run:
        assert [device.instance_path for device in run.vm.vpci.devices] == [DEVICE]


async def test_namespaces_and_adapters_are_listed() -> None:
    async with running(lcow()) as run:
        async with run.vm.network.add_namespace(NAMESPACE) as namespace:
            lease = await namespace.add_endpoint(ENDPOINT)
            assert run.vm.network.namespaces == (NAMESPACE,)
            [adapter] = run.vm.network.adapters
            assert (adapter.nic_id, adapter.endpoint_id) == (lease.nic_id, ENDPOINT)
            assert (adapter.namespace_id, adapter.endpoint_name) == (NAMESPACE, "endpoint-eth0")
        assert [*run.vm.network.namespaces, *run.vm.network.adapters] == []


async def test_combined_roots_are_listed() -> None:
    async with running(lcow()) as run:
        root = await run.vm.mount_layers("c1", [LAYER], DISK)
        [layer] = root.layers
        assert isinstance(layer, uvm.VPMemLease)
        expected = uvm.CombinedRoot(root.root, (layer.guest_path,), root.scratch_path, "c1", 1)
        assert run.vm.layers.roots == (expected,)
