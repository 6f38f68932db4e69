"""Requests for devices, and what QEMU is asked for them; what it refuses is undone whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.backends.qemu import images
from tests.backends.qemu.machine import ADAPTERS, PLAN9, VPMEM, Rig, rig
from tests.descriptors import descriptors
from uvm.errors import HostError, NoSpaceError, NotSupportedError
from uvm.hresult import HResult
from uvm.schema.requests import ModifySettingRequest, scsi_attachment_path

pytestmark = pytest.mark.anyio

_MEMORY = "VirtualMachine/ComputeTopology/Memory/SizeInMB"
_LIMITS = "VirtualMachine/ComputeTopology/Processor/Limits"
_ENDPOINT = "aaaaaaaa-0000-0000-0000-000000000001"


def _refused(code: HResult, text: str = "") -> Any:
    return pytest.raises(HostError, match=f"{code.name}.*{text}")


def _disk(directory: Path, name: str = "disk.img") -> str:
    return images.written(directory / name, bytes(images.MIB))


def _open_paths() -> set[str]:
    return {os.path.realpath(f"/proc/self/fd/{fd}") for fd in descriptors()}


# SCSI.


async def test_a_disk_is_opened_here_and_its_format_is_stated(tmp_path: Path) -> None:
    vm, path = await rig(tmp_path), _disk(tmp_path)
    await vm.attach(path, controller=3, lun=63)
    assert vm.machine.commands == ["add-fd", "blockdev-add", "device_add"]
    assert vm.machine.opened == [path]
    node, device = vm.machine.last("blockdev-add"), vm.machine.last("device_add")
    assert (node["driver"], node["read-only"]) == ("raw", False)
    assert (node["file"]["driver"], node["file"]["filename"]) == ("file", "/dev/fdset/1")
    assert (device["driver"], device["bus"], device["lun"]) == ("scsi-hd", "scsi3.0", 63)
    assert (device["werror"], device["rerror"]) == ("report", "report")


@pytest.mark.parametrize(
    ("name", "data", "driver"),
    [
        ("disk.vhd", images.dynamic_vhd(), "vpc"),
        ("disk.vhdx", images.vhdx(), "vhdx"),
        ("disk.qcow2", images.qcow2(), "qcow2"),
        # What a guest has written to a raw image changes nothing.
        ("disk.raw", images.qcow2(backing="/etc/passwd"), "raw"),
    ],
)
async def test_the_format_is_that_of_the_name(tmp_path: Path, name: str, data: bytes, driver: str) -> None:
    vm = await rig(tmp_path)
    await vm.attach(images.written(tmp_path / name, data))
    assert vm.machine.last("blockdev-add")["driver"] == driver


async def test_a_fixed_vhd_is_shown_without_its_footer(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    await vm.attach(images.written(tmp_path / "layer.vhd", images.fixed_vhd(images.MIB)), ReadOnly=True)
    node = vm.machine.last("blockdev-add")
    assert (node["driver"], node["offset"], node["size"]) == ("raw", 0, images.MIB)
    assert node["read-only"]
    assert node["file"]["read-only"]


async def test_a_qcow2_image_reads_no_name_of_a_backing_file(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    await vm.attach(images.written(tmp_path / "disk.qcow2", images.qcow2()))
    assert vm.machine.last("blockdev-add")["backing"] is None


async def test_a_backing_file_is_opened_only_with_access_to_it(tmp_path: Path) -> None:
    vm, base = await rig(tmp_path), _disk(tmp_path, "base.img")
    path = images.written(tmp_path / "disk.qcow2", images.qcow2(backing="base.img", backing_format="raw"))
    vm.grants.every, vm.grants.granted_paths = False, {path}
    with _refused(HResult.E_ACCESSDENIED, "base.img"):
        await vm.attach(path)
    assert vm.machine.asked == []
    vm.grants.granted_paths = {path, base}
    await vm.attach(path)
    assert vm.machine.opened == [path, base]
    backing = vm.machine.last("blockdev-add")["backing"]
    assert (backing["driver"], backing["read-only"]) == ("raw", True)
    assert backing["file"]["filename"] == "/dev/fdset/2"


@pytest.mark.parametrize(
    ("name", "code"),
    [("missing.img", HResult.ERROR_FILE_NOT_FOUND), ("other.vmdk", HResult.ERROR_INVALID_DATA)],
)
async def test_a_backing_file_that_cannot_be_opened_is_named_and_the_image_is_closed(
    tmp_path: Path, name: str, code: HResult
) -> None:
    vm = await rig(tmp_path)
    _disk(tmp_path, "other.vmdk")
    path = images.written(tmp_path / "disk.qcow2", images.qcow2(backing=name))
    with _refused(code, name):
        await vm.attach(path)
    assert path not in _open_paths()
    assert vm.machine.asked == []


async def test_backing_files_that_never_end_are_refused(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    path = images.written(tmp_path / "disk.qcow2", images.qcow2(backing="disk.qcow2"))
    with _refused(HResult.ERROR_INVALID_DATA, "more than 16"):
        await vm.attach(path)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.vhd", images.dynamic_vhd(kind=images.DIFFERENCING, parent="/etc/passwd"), "differencing"),
        ("a.vhdx", images.vhdx(parent="/etc/passwd"), "differencing"),
        ("a.qcow2", images.qcow2(data_file="/etc/passwd"), "another file"),
        ("a.vhdx", b"no image", "no VHDX"),
        ("a.img", b"", "empty"),
    ],
)
async def test_what_would_open_other_files_or_is_no_image_is_refused_with_access_to_all(
    tmp_path: Path, name: str, data: bytes, why: str
) -> None:
    vm = await rig(tmp_path)
    with _refused(HResult.ERROR_INVALID_DATA, why):
        await vm.attach(images.written(tmp_path / name, data))
    assert vm.machine.asked == []
    assert vm.tree.count == 0


async def test_what_cannot_be_opened_is_refused_for_what_it_is(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    with _refused(HResult.ERROR_FILE_NOT_FOUND):
        await vm.attach(str(tmp_path / "missing.vhdx"))
    with _refused(HResult.E_ACCESSDENIED, "directory"):
        await vm.attach(str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    with _refused(HResult.ERROR_INVALID_DATA, "neither"):
        await vm.attach(str(tmp_path / "fifo"))
    with _refused(HResult.E_INVALIDARG, "no block device"):
        await vm.attach(_disk(tmp_path), Type="PassThru")
    vm.grants.every = False
    with _refused(HResult.E_ACCESSDENIED, "grant_access"):
        await vm.attach(_disk(tmp_path))
    await vm.attach(_disk(tmp_path), ReadOnly=True)


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EACCES, "this user may not write to it"),
        (errno.EROFS, "mounted read-only; attach it read-only"),
    ],
)
async def test_a_disk_that_cannot_be_written_to_says_why_and_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    vm, path, opened = await rig(tmp_path), _disk(tmp_path), os.open

    def refuse(name: str, flags: int, *rest: Any, **more: Any) -> int:
        if name == path and flags & os.O_RDWR:
            raise OSError(number, os.strerror(number))
        return opened(name, flags, *rest, **more)

    # Root may write to what others may not.
    monkeypatch.setattr(os, "open", refuse)
    with _refused(HResult.E_ACCESSDENIED, why):
        await vm.attach(path)
    assert vm.machine.asked == []
    await vm.attach(path, ReadOnly=True)


async def test_a_disk_in_use_is_a_sharing_violation_and_leaves_nothing(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    vm.machine.refuse("device_add", 'Failed to get "write" lock')
    with _refused(HResult.ERROR_SHARING_VIOLATION, "in use"):
        await vm.attach(_disk(tmp_path))
    assert vm.machine.commands == ["add-fd", "blockdev-add", "device_add", "blockdev-del", "remove-fd"]
    vm.machine.refusals.clear()
    await vm.attach(_disk(tmp_path))


async def test_a_refused_node_takes_its_descriptor_with_it(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    vm.machine.refuse("blockdev-add")
    vm.machine.refuse("blockdev-del", "Failed to find node with node-name='disk-0-0'")
    with _refused(HResult.E_FAIL):
        await vm.attach(_disk(tmp_path))
    assert vm.machine.commands[-1] == "remove-fd"


async def test_an_image_whose_damage_qemu_finds_says_how_to_see_it(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    vm.machine.refuse("blockdev-add", "Image does not contain a reference count table")
    with _refused(HResult.ERROR_INVALID_DATA, "disk.qcow2: it is damaged.*qemu-img check.*reference count"):
        await vm.attach(images.written(tmp_path / "disk.qcow2", images.qcow2()))
    assert vm.machine.commands[-1] == "remove-fd"


async def test_no_descriptor_stays_open_here(tmp_path: Path) -> None:
    vm, path = await rig(tmp_path), _disk(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    await vm.attach(path)
    vm.machine.refuse("add-fd")
    with _refused(HResult.E_FAIL):
        await vm.attach(path, lun=1)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_slot_has_one_disk_until_it_is_detached(tmp_path: Path) -> None:
    vm, path = await rig(tmp_path), _disk(tmp_path)
    with _refused(HResult.ERROR_NOT_FOUND):
        await vm.detach()
    await vm.attach(path)
    with _refused(HResult.ERROR_ALREADY_EXISTS):
        await vm.attach(path)
    vm.machine.asked.clear()
    await vm.detach()
    assert vm.machine.commands == ["device_del", "blockdev-del", "remove-fd"]
    with _refused(HResult.ERROR_NOT_FOUND):
        await vm.detach()


async def test_a_disk_that_the_guest_keeps_stays_attached(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    await vm.attach(_disk(tmp_path))
    vm.machine.kept.add("disk-0-0")
    with _refused(HResult.E_FAIL):
        await vm.detach()
    assert vm.machine.commands[-1] == "device_del"
    with _refused(HResult.ERROR_ALREADY_EXISTS):
        await vm.attach(_disk(tmp_path))
    vm.machine.kept.clear()
    await vm.detach()


async def test_what_qemu_has_no_more_is_detached(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    await vm.attach(_disk(tmp_path))
    vm.machine.refuse("device_del", "Device 'disk-0-0' not found", "DeviceNotFound")
    await vm.detach()
    assert vm.tree.count == 0


async def test_requests_that_make_no_sense_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    with _refused(HResult.HCS_E_INVALID_JSON, "Type is"):
        await vm.attach("/x", Type="Floppy")
    with _refused(HResult.HCS_E_INVALID_JSON):
        await vm.attach("/x", Colour="red")
    with _refused(HResult.E_INVALIDARG, "Path"):
        await vm.modify(scsi_attachment_path(0, 0), Type="VirtualDisk")
    with _refused(HResult.E_INVALIDARG, "below 64"):
        await vm.attach("/x", lun=64)
    with _refused(HResult.ERROR_NOT_SUPPORTED):
        await vm.attach("/x", Type="ExtensibleVirtualDisk", ExtensibleVirtualDiskType="space")
    with _refused(HResult.ERROR_NOT_FOUND, "controller"):
        await vm.modify("VirtualMachine/Devices/Scsi/other/Attachments/0", Type="VirtualDisk", Path="/x")
    with _refused(HResult.E_INVALIDARG, "unknown"):
        await vm.modify("VirtualMachine/Nothing")
    with _refused(HResult.HCS_E_INVALID_JSON, "Perhaps"):
        await vm.modify(PLAN9, "Perhaps")
    assert vm.machine.asked == []


async def test_a_request_for_a_device_that_another_is_about_is_refused(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    vm.machine.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(vm.attach, _disk(tmp_path))
        while not vm.machine.asked:
            await anyio.lowlevel.checkpoint()
        with _refused(HResult.HCS_E_OPERATION_PENDING):
            await vm.detach()
        vm.machine.gate.set()
    await vm.detach()


async def test_what_a_cancelled_caller_began_is_there_to_be_detached(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    vm.machine.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(vm.attach, _disk(tmp_path))
        while not vm.machine.asked:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    vm.machine.gate = None
    with _refused(HResult.ERROR_ALREADY_EXISTS):
        await vm.attach(_disk(tmp_path))
    vm.machine.refuse("device_del", "Device 'disk-0-0' not found", "DeviceNotFound")
    await vm.detach()
    assert vm.tree.count == 0


# VPMEM.


async def test_a_vpmem_device_is_a_read_only_disk_at_the_lun_of_its_number(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    path = images.written(tmp_path / "layer.vhd", images.fixed_vhd())
    await vm.modify(f"{VPMEM}/7", HostPath=path, ReadOnly=True, ImageFormat="Vhd1")
    node, device = vm.machine.last("blockdev-add"), vm.machine.last("device_add")
    assert (node["read-only"], node["size"]) == (True, images.MIB)
    assert (device["bus"], device["lun"], device["serial"]) == ("vpmem.0", 7, "pmem-7")
    await vm.modify(f"{VPMEM}/7", "Remove")
    assert vm.tree.count == 0


async def test_mappings_are_disks_of_their_own_found_by_their_serials(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    path = images.written(tmp_path / "layer.vhd", images.fixed_vhd())
    for offset, lun in ((0, 256), (images.MIB, 257)):
        await vm.modify(f"{VPMEM}/0/Mappings/{offset}", HostPath=path, ImageFormat="Vhd1")
        device = vm.machine.last("device_add")
        assert (device["lun"], device["serial"]) == (lun, f"pmem-0-{offset}")
    with _refused(HResult.E_INVALIDARG, "overlaps"):
        await vm.modify(f"{VPMEM}/0/Mappings/{images.MIB - 4096}", HostPath=path)
    with _refused(HResult.HCS_E_INVALID_STATE, "mapped"):
        await vm.modify(f"{VPMEM}/0", "Remove")
    with _refused(HResult.ERROR_ALREADY_EXISTS):
        await vm.modify(f"{VPMEM}/0", HostPath=path, ReadOnly=True)
    await vm.modify(f"{VPMEM}/0/Mappings/0", "Remove")
    await vm.modify(f"{VPMEM}/0/Mappings/{8 * images.MIB}", HostPath=path)
    assert vm.machine.last("device_add")["lun"] == 256


async def test_what_does_not_fit_a_vpmem_device_is_refused(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    path = images.written(tmp_path / "layer.vhd", images.fixed_vhd())
    with _refused(HResult.E_INVALIDARG, "beyond"):
        await vm.modify(f"{VPMEM}/0/Mappings/{(1 << 30) - 4096}", HostPath=path)
    with _refused(HResult.E_INVALIDARG, "below 64"):
        await vm.modify(f"{VPMEM}/64", HostPath=path, ReadOnly=True)
    with _refused(HResult.E_INVALIDARG, "multiples"):
        await vm.modify(f"{VPMEM}/0/Mappings/1", HostPath=path)
    with _refused(HResult.ERROR_NOT_SUPPORTED, "read-only"):
        await vm.modify(f"{VPMEM}/0", HostPath=path)
    assert (vm.tree.count, vm.machine.asked) == (0, [])


# Shares.


async def test_a_share_leads_to_its_directory_while_it_is_plugged(tmp_path: Path) -> None:
    shared, run = tmp_path / "shared", tmp_path / "run"
    shared.mkdir()
    run.mkdir()
    (tmp_path / "link").symlink_to(shared)
    vm = await rig(run)
    await vm.modify(PLAN9, Name="1", Path=str(tmp_path / "link"))
    assert vm.machine.links == [str(shared)]
    assert vm.machine.commands == ["add-fd", "device_add", "remove-fd"]
    assert not list(run.iterdir())
    device = vm.machine.last("device_add")
    assert (device["fsdev"], device["mount_tag"], device["bus"]) == ("share0", "1", "port0")
    await vm.modify(PLAN9, Name="2", Path=str(shared), Flags=1)
    device = vm.machine.last("device_add")
    assert (device["fsdev"], device["mount_tag"], device["bus"]) == ("roshare0", "2", "port1")


async def test_shares_are_as_many_as_there_are_slots_and_ports(tmp_path: Path) -> None:
    vm = await rig(tmp_path, share_slots=2, root_ports=3)
    path = str(tmp_path)
    await vm.modify(PLAN9, Name="1", Path=path)
    await vm.modify(PLAN9, Name="2", Path=path)
    with pytest.raises(NoSpaceError, match="share_slots"):
        await vm.modify(PLAN9, Name="3", Path=path)
    await vm.modify(PLAN9, Name="3", Path=path, Flags=1)
    with pytest.raises(NoSpaceError, match="root_ports"):
        await vm.modify(PLAN9, Name="4", Path=path, Flags=1)
    await vm.modify(PLAN9, "Remove", Name="1")
    await vm.modify(PLAN9, Name="4", Path=path, Flags=1)


async def test_a_share_that_the_guest_keeps_stays_in_its_slot(tmp_path: Path) -> None:
    vm = await rig(tmp_path, share_slots=1)
    await vm.modify(PLAN9, Name="1", Path=str(tmp_path))
    vm.machine.kept.add("plan9-share0")
    with _refused(HResult.E_FAIL):
        await vm.modify(PLAN9, "Remove", Name="1")
    with pytest.raises(NoSpaceError):
        await vm.modify(PLAN9, Name="2", Path=str(tmp_path))


async def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    with _refused(HResult.ERROR_PATH_NOT_FOUND, "there is no directory .*/missing"):
        await vm.modify(PLAN9, Name="1", Path=str(tmp_path / "missing"))
    with _refused(HResult.ERROR_DIRECTORY):
        await vm.modify(PLAN9, Name="1", Path=_disk(tmp_path))
    with _refused(HResult.E_INVALIDARG, "31 bytes"):
        await vm.modify(PLAN9, Name="n" * 32, Path=str(tmp_path))
    with _refused(HResult.ERROR_NOT_SUPPORTED, "all files"):
        await vm.modify(PLAN9, Name="1", Path=str(tmp_path), Flags=0x80, AllowedFiles=["a"])
    with _refused(HResult.ERROR_NOT_FOUND):
        await vm.modify(PLAN9, "Remove", Name="1")
    vm.machine.refuse("device_add")
    with _refused(HResult.E_FAIL):
        await vm.modify(PLAN9, Name="1", Path=str(tmp_path))
    assert vm.host.ports.free == 8
    assert vm.machine.commands == ["add-fd", "device_add", "remove-fd"]


# Adapters.


async def _adapter(vm: Rig, network: str, adapter: str = "nic1", endpoint: str = _ENDPOINT) -> None:
    made = await vm.network.create_endpoint(network, {"ID": endpoint})
    await vm.modify(f"{ADAPTERS}/{adapter}", EndpointId=endpoint, MacAddress=made["MacAddress"])


async def test_an_adapter_reaches_a_restricted_network_and_has_its_mac_address(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    await _adapter(vm, "restricted")
    netdev, device = vm.machine.last("netdev_add"), vm.machine.last("device_add")
    assert (netdev["type"], netdev["restrict"], netdev["net"]) == ("user", True, "10.64.0.0/24")
    made = (await vm.network.endpoint(_ENDPOINT))["MacAddress"]
    assert (device["driver"], device["mac"]) == ("virtio-net-pci", made.replace("-", ":"))
    assert (device["netdev"], device["romfile"]) == (netdev["id"], "")


async def test_an_adapter_of_no_network_is_connected_to_nothing(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    await _adapter(vm, "none")
    assert vm.machine.commands == ["device_add"]
    assert "netdev" not in vm.machine.last("device_add")


async def test_a_tap_device_is_opened_here_and_opens_nothing_of_the_kernel_in_qemu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def opens(name: str, operation: str) -> int:
        opened.append(name)
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr("uvm.backends.qemu.devices.adapters.open_tap", opens)
    vm = await rig(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    await _adapter(vm, "tap:vm0")
    assert len(os.listdir("/proc/self/fd")) == before
    assert opened == ["vm0"]
    assert vm.machine.last("getfd") == {"fdname": "net-0"}
    assert vm.machine.last("netdev_add") == {"id": "net-0", "type": "tap", "fd": "net-0", "vhost": False}


async def test_a_tap_device_that_is_refused_leaves_no_descriptor_in_qemu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = "uvm.backends.qemu.devices.adapters.open_tap"
    monkeypatch.setattr(opens, lambda name, operation: os.open("/dev/null", os.O_RDONLY))
    vm = await rig(tmp_path)
    vm.machine.refuse("netdev_add", "busy")
    # It may have closed it itself.
    vm.machine.refuse("closefd", "File descriptor named 'net-0' not found")
    with _refused(HResult.E_FAIL, "busy"):
        await _adapter(vm, "tap:vm0")
    assert vm.machine.asked[-1] == ("closefd", {"fdname": "net-0"})


async def test_a_tap_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    vm = await rig(tmp_path, root_ports=1)
    with _refused(HResult.ERROR_FILE_NOT_FOUND, "ip tuntap add uvm-nonesuch mode tap"):
        await _adapter(vm, "tap:uvm-nonesuch")
    assert (vm.network.attachments(), vm.host.ports.free, vm.machine.commands) == ({}, 1, [])


async def test_the_link_is_cut_before_the_guest_is_asked_to_release_an_adapter(tmp_path: Path) -> None:
    vm = await rig(tmp_path, root_ports=1)
    await _adapter(vm, "restricted")
    vm.machine.asked.clear()
    vm.machine.kept.add("nic-0")
    with _refused(HResult.E_FAIL):
        await vm.modify(f"{ADAPTERS}/nic1", "Remove")
    assert vm.machine.asked[0] == ("set_link", {"name": "nic-0", "up": False})
    assert "netdev_del" not in vm.machine.commands
    with _refused(HResult.HCN_E_ENDPOINT_ALREADY_ATTACHED):
        await vm.modify(f"{ADAPTERS}/nic2", EndpointId=_ENDPOINT)
    vm.machine.kept.clear()
    await vm.modify(f"{ADAPTERS}/NIC1", "Remove")
    assert vm.machine.commands[-1] == "netdev_del"
    await vm.network.delete_endpoint(_ENDPOINT)
    assert vm.host.ports.free == 1


async def test_an_adapter_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    vm = await rig(tmp_path, root_ports=1)
    vm.machine.refuse("device_add")
    with _refused(HResult.E_FAIL):
        await _adapter(vm, "open")
    assert vm.machine.commands == ["netdev_add", "device_add", "netdev_del"]
    assert (vm.network.attachments(), vm.host.ports.free) == ({}, 1)
    with _refused(HResult.HCN_E_ENDPOINT_NOT_FOUND):
        await vm.modify(f"{ADAPTERS}/nic1", EndpointId="missing")
    vm.machine.refusals.clear()
    await vm.modify(f"{ADAPTERS}/nic1", EndpointId=_ENDPOINT)
    await vm.network.create_endpoint("none", {"ID": "other"})
    with pytest.raises(NoSpaceError, match="root_ports"):
        await vm.modify(f"{ADAPTERS}/nic2", EndpointId="other")
    assert vm.network.attachments() == {_ENDPOINT: "vm1"}
    vm.tree.close()
    assert vm.network.attachments() == {}


# Memory, processors, and what there is not.


async def test_memory_shrinks_and_grows_again_by_a_balloon(tmp_path: Path) -> None:
    vm = await rig(tmp_path)
    await vm.tree.modify(_resize(512))
    assert vm.machine.last("balloon") == {"value": 512 << 20}
    assert vm.tree.topology.size_in_mb == 512
    with _refused(HResult.ERROR_NOT_SUPPORTED, "1024 MB"):
        await vm.tree.modify(_resize(2048))
    with _refused(HResult.ERROR_NO_SYSTEM_RESOURCES, "4096 MB"):
        await vm.tree.modify(_resize(8192))
    for size in (0, 3, -2):
        with _refused(HResult.E_INVALIDARG, "even"):
            await vm.tree.modify(_resize(size))
    with _refused(HResult.HCS_E_INVALID_JSON):
        await vm.tree.modify(_resize("512"))


async def test_memory_that_is_a_file_of_a_template_does_not_change(tmp_path: Path) -> None:
    vm = await rig(tmp_path, fixed_memory=True)
    with pytest.raises(NotSupportedError, match="template"):
        await vm.tree.modify(_resize(512))
    assert vm.machine.asked == []


@pytest.mark.parametrize(
    ("path", "action", "settings", "code"),
    [
        (_LIMITS, "Update", {"Limit": 50_000}, HResult.ERROR_NOT_SUPPORTED),
        (_LIMITS, "Update", {"Limit": 100_001}, HResult.E_INVALIDARG),
        (_LIMITS, "Remove", {}, HResult.E_INVALIDARG),
        ("VirtualMachine/Devices/VirtualSmb/Shares", "Add", {"Name": "1"}, HResult.ERROR_NOT_FOUND),
        ("VirtualMachine/Devices/VirtualPci/x", "Add", {"Functions": []}, HResult.ERROR_NOT_SUPPORTED),
        ("VirtualMachine/Devices/VirtualPci/x", "Remove", {}, HResult.ERROR_NOT_FOUND),
        (r"VirtualMachine/Devices/MappedPipes/\\.\pipe\x", "Add", {}, HResult.ERROR_NOT_SUPPORTED),
        ("VirtualMachine/Devices/MappedPipes/x", "Add", {}, HResult.E_INVALIDARG),
        ("VirtualMachine/Devices/ComPorts/1", "Add", {"NamedPipe": "x"}, HResult.ERROR_NOT_SUPPORTED),
        ("VirtualMachine/Devices/ComPorts/2", "Add", {}, HResult.E_INVALIDARG),
        ("VirtualMachine/Devices/Licensing", "Add", {}, HResult.ERROR_NOT_SUPPORTED),
    ],
)
async def test_what_qemu_does_not_have_is_refused(
    tmp_path: Path, path: str, action: str, settings: dict[str, Any], code: HResult
) -> None:
    vm = await rig(tmp_path)
    with _refused(code):
        await vm.modify(path, action, **settings)
    assert vm.machine.asked == []


def _resize(size: Any) -> ModifySettingRequest:
    return ModifySettingRequest(resource_path=_MEMORY, settings=size)
