"""The life of devices in a real VM, with real file systems: what the host attaches, the guest has."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import uvm
from tests.qemu.filesystems import CONTENT, NAME, Images
from tests.qemu.vms import backend_of, open_to_all, running_vm
from uvm.backends.qemu.backend import QEMUBackend
from uvm.devices.scsi import Mount
from uvm.errors import GuestError
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS, ScsiAttachment

pytestmark = pytest.mark.anyio

NAMESPACE = "0d0d0d0d-1111-2222-3333-444444444444"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """The images of this module."""
    return Images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[QEMUBackend]:
    """QEMU on this machine."""
    async with backend_of(tmp_path_factory.mktemp("backend")) as backend:
        yield backend


@pytest.fixture(scope="module")
async def vm(backend: QEMUBackend) -> AsyncIterator[uvm.UtilityVM]:
    """One VM for all tests, each of which leaves it as it was."""
    async with running_vm(backend, scsi_controllers=4) as vm:
        yield vm


async def said(vm: uvm.UtilityVM, script: str) -> str:
    """Return what a script of the guest's shell wrote to both of its outputs."""
    done = await vm.run(["sh", "-c", script])
    return (done.stdout + done.stderr).decode()


async def read(vm: uvm.UtilityVM, path: str) -> str:
    """Return the content of a file in the guest."""
    done = await vm.run(["cat", path])
    assert done.exit_code == 0, done
    return done.stdout.decode()


async def mount_of(vm: uvm.UtilityVM, path: str) -> list[str]:
    """Return the device, the kind and the options of what is mounted at a path of the guest."""
    lines = [line.split() for line in (await read(vm, "/proc/mounts")).splitlines()]
    found = [[device, kind, *options.split(",")] for device, at, kind, options, *_ in lines if at == path]
    assert len(found) == 1, lines
    return found[0]


async def disks_of(vm: uvm.UtilityVM) -> list[str]:
    """Return the SCSI devices that the kernel of the guest knows."""
    return (await said(vm, "ls /sys/bus/scsi/devices | grep :.*:.*: || true")).split()


@contextlib.contextmanager
def refused(text: str) -> Iterator[None]:
    """Have the guest refuse what is done inside."""
    with pytest.raises(GuestError, match=text) as caught:
        yield
    assert caught.value.hresult == 0x80004005


async def modify(vm: uvm.UtilityVM, resource: str, request_type: str, **settings: Any) -> None:
    """Send a request to the guest as it is."""
    request = {"ResourceType": resource, "RequestType": request_type, "Settings": settings}
    await vm.guest_request(request)


async def test_a_disk_at_the_last_slot_is_read(
    backend: QEMUBackend, vm: uvm.UtilityVM, images: Images
) -> None:
    slot, path = ScsiAttachment(SCSI_CONTROLLER_GUIDS[3], 63), images.ext4("last")
    disk = {"Path": str(path), "Type": "VirtualDisk", "ReadOnly": True}
    await backend.grant_access(str(path), vm.id)
    await vm.modify({"ResourcePath": slot.path, "RequestType": "Add", "Settings": disk})
    mount = {"Controller": 3, "Lun": 63, "MountPath": "/run/last", "ReadOnly": True}
    await modify(vm, "MappedVirtualDisk", "Add", **mount)
    assert await read(vm, f"/run/last/{NAME}") == CONTENT
    with refused("the device is busy: /dev/sd. is mounted or mapped"):
        await modify(vm, "SCSIDevice", "Remove", Controller=3, Lun=63)
    await modify(vm, "MappedVirtualDisk", "Remove", **mount)
    await modify(vm, "SCSIDevice", "Remove", Controller=3, Lun=63)
    await modify(vm, "SCSIDevice", "Remove", Controller=3, Lun=63)
    await vm.modify({"ResourcePath": slot.path, "RequestType": "Remove"})
    assert await disks_of(vm) == []
    with refused("there is no disk 3:63"):
        await modify(vm, "MappedVirtualDisk", "Remove", **mount)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_what_is_written_is_there_when_the_disk_is_mounted_again(
    vm: uvm.UtilityVM, images: Images, kind: str
) -> None:
    path = getattr(images, kind)(f"again-{kind}")
    async with vm.scsi.attach(path, mount=Mount(options=("noatime",))) as disk:
        _, mounted, *options = await mount_of(vm, disk.guest_path)
        assert mounted == kind
        assert {"rw", "noatime"} <= {*options}
        assert await said(vm, f"echo written > {disk.guest_path}/file") == ""
    async with vm.scsi.attach(path, read_only=True, mount=Mount()) as disk:
        assert await read(vm, f"{disk.guest_path}/file") == "written\n"
        assert "ro" in await mount_of(vm, disk.guest_path)
        assert "Read-only file system" in await said(vm, f"echo x > {disk.guest_path}/file")


async def test_other_file_systems_and_partitions_are_mounted(vm: uvm.UtilityVM, images: Images) -> None:
    async with vm.scsi.attach(images.erofs(), read_only=True, mount=Mount()) as disk:
        assert (await mount_of(vm, disk.guest_path))[1] == "erofs"
        assert await read(vm, f"{disk.guest_path}/{NAME}") == CONTENT
    async with vm.scsi.attach(images.partitioned(), mount=Mount(partition=2)) as disk:
        assert await read(vm, f"{disk.guest_path}/{NAME}") == CONTENT
        assert (await mount_of(vm, disk.guest_path))[0].endswith("2")
    with refused("could not get device filesystem type"):
        await vm.scsi.attach(images.empty("none"), mount=Mount())


async def test_a_file_system_is_made_on_a_disk_that_has_none(vm: uvm.UtilityVM, images: Images) -> None:
    path, wanted = images.empty("scratch"), Mount(filesystem="ext4", ensure_filesystem=True)
    async with vm.scsi.attach(path, mount=wanted) as disk:
        await said(vm, f"echo written > {disk.guest_path}/file")
    # One that is there is kept.
    async with vm.scsi.attach(path, mount=wanted) as disk:
        assert await read(vm, f"{disk.guest_path}/file") == "written\n"
    with refused("unsupported filesystem btrfs requested"):
        await vm.scsi.attach(path, mount=Mount(filesystem="btrfs", ensure_filesystem=True))
    with refused("dm-crypt"):
        await vm.scsi.attach(path, mount=Mount(encrypted=True, filesystem="xfs"))


async def test_a_block_device_is_a_link_to_the_disk(vm: uvm.UtilityVM, images: Images) -> None:
    path = images.ext4("device")
    async with vm.scsi.attach(path, mount=Mount(block_device=True, guest_path="/dev/mine/disk")):
        assert await said(vm, "dd if=/dev/mine/disk bs=512 count=1 2>/dev/null | wc -c") == "512\n"
        assert (await said(vm, "readlink /dev/mine/disk")).startswith("/dev/sd")
    assert await said(vm, "ls /dev/mine") == ""


async def test_sixty_four_disks_come_and_go_at_once(vm: uvm.UtilityVM, images: Images) -> None:
    one = images.ext4("many", 4)
    paths = [one.with_name(f"many-{number}.img") for number in range(64)]
    for path in paths:
        path.write_bytes(one.read_bytes())
    leases = []

    async def attach(path: Path) -> None:
        leases.append(await vm.scsi.attach(path, mount=Mount()))

    async with anyio.create_task_group() as group:
        for path in paths:
            group.start_soon(attach, path)
    names = " ".join(f"{lease.guest_path}/{NAME}" for lease in leases)
    assert await said(vm, f"cat {names}") == CONTENT * 64
    assert len({(lease.controller, lease.lun) for lease in leases}) == 64
    async with anyio.create_task_group() as group:
        for lease in leases:
            group.start_soon(lease.release)
    assert await disks_of(vm) == []
    assert await said(vm, "grep /run/mounts /proc/mounts || true") == ""


async def test_verity_refuses_what_was_changed(vm: uvm.UtilityVM, images: Images) -> None:
    path, info = images.verity()
    async with vm.scsi.attach(path, read_only=True) as disk:
        mount = {"Controller": disk.controller, "Lun": disk.lun, "MountPath": "/run/verity", "ReadOnly": True}
        await modify(vm, "MappedVirtualDisk", "Add", **mount, VerityInfo=info)
        assert await read(vm, f"/run/verity/{NAME}") == CONTENT
        device = (await mount_of(vm, "/run/verity"))[0]
        name = f"dm-verity-scsi-contr{disk.controller}-lun{disk.lun}-p0-{info['RootDigest']}"
        assert device == f"/dev/mapper/{name}"
        await modify(vm, "MappedVirtualDisk", "Remove", **mount, VerityInfo=info)
        with refused("input/output error"):
            await modify(vm, "MappedVirtualDisk", "Add", **mount, VerityInfo={**info, "RootDigest": "0" * 64})
        assert await said(vm, "ls /dev/mapper; ls -d /run/verity") == (
            "control\nls: /run/verity: No such file or directory\n"
        )


async def test_layers_on_packed_and_plain_devices_are_combined(vm: uvm.UtilityVM, images: Images) -> None:
    packed = [await vm.vpmem.add(images.ext4("layer")), await vm.vpmem.add(images.erofs("layer2"))]
    assert [layer.device for layer in vm.vpmem.layers] == [0, 0]
    for layer, kind in zip(packed, ("ext4", "erofs"), strict=True):
        device, mounted, *options = await mount_of(vm, layer.guest_path)
        assert (mounted, "ro" in options) == (kind, True)
        assert device.startswith("/dev/mapper/dm-linear-pmem0-")
    scratch = await vm.scsi.attach(images.ext4("writable"), mount=Mount())
    layers = [layer.guest_path for layer in packed]
    root = await vm.layers.combine("/run/root", layers, scratch_path=f"{scratch.guest_path}/c")
    assert await read(vm, f"/run/root/{NAME}") == CONTENT
    await said(vm, f"echo changed > /run/root/{NAME}")
    assert await read(vm, f"{scratch.guest_path}/c/upper/{NAME}") == "changed\n"
    assert await read(vm, f"{packed[0].guest_path}/{NAME}") == CONTENT
    await root.release()
    for lease in (scratch, *packed):
        await lease.release()
    assert await disks_of(vm) == []
    assert await said(vm, "ls /dev/mapper; ls -d /dev/pmem* 2>/dev/null") == "control\n"


async def test_a_single_layer_is_a_root_that_is_read_only(vm: uvm.UtilityVM, images: Images) -> None:
    async with vm.vpmem.add(images.ext4("single")) as layer:
        async with vm.layers.combine("/run/one", [layer.guest_path]):
            assert await read(vm, f"/run/one/{NAME}") == CONTENT
            assert "Read-only file system" in await said(vm, "echo x > /run/one/x")
        with refused("mounting overlay at /run/two: no such file or directory"):
            await vm.layers.combine("/run/two", [layer.guest_path, "/run/nowhere"])


async def test_a_share_is_written_from_both_sides(vm: uvm.UtilityVM, tmp_path: Path) -> None:
    (tmp_path / "host").write_text("of the host")
    async with vm.plan9.add(open_to_all(tmp_path), "/run/share"):
        assert await read(vm, "/run/share/host") == "of the host"
        await said(vm, "echo -n of the guest > /run/share/guest; mkdir /run/share/directory")
        assert (tmp_path / "guest").read_text() == "of the guest"
        (tmp_path / "host").write_text("changed")
        assert await read(vm, "/run/share/host") == "changed"
    async with vm.plan9.add(tmp_path, "/run/share", read_only=True):
        assert await read(vm, "/run/share/guest") == "of the guest"
        assert "Read-only file system" in await said(vm, "echo x > /run/share/other")
    assert await said(vm, "grep 9p /proc/mounts; ls -d /run/share") == (
        "ls: /run/share: No such file or directory\n"
    )


async def test_an_adapter_reaches_its_gateway_and_nothing_when_it_is_gone(
    vm: uvm.UtilityVM, backend: QEMUBackend
) -> None:
    network = backend.network
    namespace = await network.create_namespace({"ID": NAMESPACE})
    endpoint = await network.create_endpoint("restricted", {})
    await network.add_namespace_endpoint(namespace["ID"], endpoint["ID"])
    [route] = endpoint["Routes"]
    async with vm.network.setup(namespace["ID"]):
        assert "1 packets received" in await said(vm, f"ping -c 1 -W 60 {route['NextHop']}")
        address = endpoint["IpConfigurations"][0]["IpAddress"]
        assert address in await said(vm, "ip -4 addr show eth0")
        assert endpoint["Dns"]["ServerList"][0] in await read(vm, "/etc/resolv.conf")
    assert "eth0" not in await said(vm, "ip link")
    assert await read(vm, "/etc/resolv.conf") == ""
    await network.delete_endpoint(endpoint["ID"])
    await network.delete_namespace(namespace["ID"])


async def test_what_the_guest_does_not_know_is_refused(vm: uvm.UtilityVM) -> None:
    with refused('the RequestType "Update" is not supported'):
        await modify(vm, "MappedVirtualDisk", "Update")
    with refused("MountPath 'relative' is no absolute path"):
        await modify(vm, "MappedDirectory", "Remove", MountPath="relative")
    with pytest.raises(GuestError, match="Lun cannot be 'x'"):
        await modify(vm, "SCSIDevice", "Remove", Lun="x")
