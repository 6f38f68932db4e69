"""The Linux guest: it sees what the host attached, and refuses what cannot be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from tests.backends.fake.guesthost import booted
from tests.backends.fake.support import (
    DISK,
    JSON,
    LAYER,
    MIB,
    SERVICE,
    SHARED,
    add,
    backend_of,
    disk,
    expect_guest_refusal,
    guest_of,
    host_files,
    image,
    mapping,
    pmem,
    remove,
    running,
    slot,
    to_guest,
)
from uvm._gcs.connection import GuestConnection
from uvm._wire.frames import Procedure
from uvm.backends.fake import Checks, FakeBackend, FakeSystem, LinuxGuest
from uvm.errors import BridgeClosedError
from uvm.hresult import HResult
from uvm.schema.requests import Plan9Shares, VirtualAdapter, VirtualPci

pytestmark = pytest.mark.anyio

NIC = VirtualAdapter("nic-1").path


@asynccontextmanager
async def linux(
    backend: FakeBackend | None = None,
) -> AsyncIterator[tuple[FakeSystem, GuestConnection, LinuxGuest]]:
    async with running(backend=backend) as system:
        guest = system.vm.guest
        assert isinstance(guest, LinuxGuest)
        async with guest_of(system) as connection:
            yield system, connection, guest


def mount(path: str = "/m", lun: int = 0, request_type: str = "Add", **settings: Any) -> JSON:
    return to_guest("MappedVirtualDisk", request_type, MountPath=path, Lun=lun, **settings)


def unmount(path: str = "/m", lun: int = 0) -> JSON:
    return mount(path, lun, "Remove")


def eject(lun: int = 0) -> JSON:
    return to_guest("SCSIDevice", "Remove", Lun=lun)


def paths(guest: LinuxGuest) -> list[str]:
    return list(guest.mounts)


async def test_it_sees_the_disks_that_the_host_attached_and_did_not_eject() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        assert [d.lun for d in state.block_devices] == [0]
        await guest.modify(eject())
        assert state.block_devices == []
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(mount())


async def test_a_disk_attached_anew_is_a_new_device() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        await guest.modify(eject())
        await system.modify(remove(slot(0)))
        await system.modify(add(slot(0), disk()))
        await guest.modify(mount())
        assert paths(state) == ["/m"]


async def test_ejecting_what_is_not_there_is_no_error() -> None:
    async with linux() as (_, guest, state):
        await guest.modify(eject())
        assert state.inconsistencies() == []


async def test_a_mounted_disk_is_not_ejected() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        await guest.modify(mount())
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(eject())
        await guest.modify(unmount())
        await guest.modify(eject())
        assert state.block_devices == []


async def test_what_is_not_attached_is_not_mounted() -> None:
    async with linux() as (system, guest, _):
        await system.modify(add(slot(0), disk()))
        for request in (mount(lun=1), mount(Controller=1)):
            with expect_guest_refusal(HResult.E_FAIL):
                await guest.modify(request)


@pytest.mark.parametrize("path", ["/m", "/m/", "//m/./x/.."])
async def test_nothing_is_mounted_over_a_mount(path: str) -> None:
    async with linux() as (system, guest, _):
        await system.modify(add(slot(0), disk()))
        await guest.modify(mount("/m"))
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(mount(path, Partition=1))


async def test_one_disk_is_mounted_at_several_paths() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        await guest.modify(mount("/a"))
        await guest.modify(mount("/b", Partition=1))
        assert paths(state) == ["/a", "/b"]


async def test_a_read_only_disk_is_mounted_read_only_or_as_a_device() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk(ReadOnly=True)))
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(mount())
        await guest.modify(mount("/ro", ReadOnly=True))
        await guest.modify(mount("/dev/x", BlockDev=True))
        assert [(m.kind, m.read_only) for m in state.mounts.values()] == [("disk", True), ("blockdev", False)]


async def test_only_known_filesystems_are_made() -> None:
    async with linux() as (system, guest, _):
        await system.modify(add(slot(0), disk()))
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(mount(EnsureFilesystem=True, Filesystem="ntfs"))
        await guest.modify(mount(EnsureFilesystem=True, Filesystem="xfs"))


async def test_what_is_not_mounted_there_is_not_unmounted() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        await system.modify(add(slot(1), disk(LAYER, ReadOnly=True)))
        await guest.modify(mount())
        for request in (unmount("/other"), unmount("/m", lun=1)):
            with expect_guest_refusal(HResult.E_FAIL):
                await guest.modify(request)
        await guest.modify(unmount())
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(unmount())
        assert paths(state) == []


async def test_a_path_with_a_mount_inside_is_busy() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        await guest.modify(mount("/m"))
        await guest.modify(mount("/m/inside", Partition=1))
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(unmount("/m"))
        await guest.modify(unmount("/m/inside"))
        await guest.modify(unmount("/m"))
        assert paths(state) == []


async def test_a_disk_detached_under_a_mount_leaves_it_dangling() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        await guest.modify(mount())
        assert state.inconsistencies() == []
        await system.modify(remove(slot(0)))
        assert state.inconsistencies() == [rf"disk 0:0 ({DISK}) at /m is no longer attached"]


async def test_a_lenient_guest_takes_what_is_not_mounted_for_unmounted() -> None:
    backend = FakeBackend(files=host_files(), checks=Checks(guest=False))
    async with linux(backend) as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        await guest.modify(unmount())
        await guest.modify(mount())
        await guest.modify(eject())
        assert state.block_devices == []
        await system.modify(remove(slot(0)))
        assert len(state.inconsistencies()) == 1


async def test_pmem_devices_and_mapped_regions_are_mounted() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(pmem(0), image()))
        await system.modify(add(pmem(1, 0), mapping()))
        await system.modify(add(pmem(1, MIB), mapping()))
        info = {"DeviceOffsetInBytes": MIB, "DeviceSizeInBytes": MIB}
        await guest.modify(to_guest("VPMemDevice", "Add", MountPath="/p0"))
        mapped = {"DeviceNumber": 1, "MountPath": "/p1", "MappingInfo": info}
        await guest.modify(to_guest("VPMemDevice", "Add", **mapped))
        assert paths(state) == ["/p0", "/p1"]
        await guest.modify(to_guest("VPMemDevice", "Remove", **mapped))
        await system.modify(remove(pmem(0)))
        assert len(state.inconsistencies()) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"DeviceNumber": 1},
        {"DeviceNumber": 0, "MappingInfo": {"DeviceSizeInBytes": MIB}},
        {"DeviceNumber": 1, "MappingInfo": {"DeviceOffsetInBytes": 4096, "DeviceSizeInBytes": 4096}},
        {"DeviceNumber": 1, "MappingInfo": {"DeviceSizeInBytes": MIB + 4096}},
    ],
)
async def test_pmem_that_is_not_there_is_not_mounted(settings: JSON) -> None:
    async with linux() as (system, guest, _):
        await system.modify(add(pmem(0), image()))
        await system.modify(add(pmem(1, 0), mapping()))
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(to_guest("VPMemDevice", "Add", MountPath="/p", **settings))


async def test_a_share_is_mounted_by_its_name_and_port() -> None:
    async with linux() as (system, guest, state):
        share = {"Name": "0", "AccessName": "0", "Path": SHARED, "Port": 564, "Flags": 4}
        await system.modify(add(Plan9Shares.PATH, share))
        for wrong in ({"ShareName": "1", "Port": 564}, {"ShareName": "0", "Port": 565}):
            with expect_guest_refusal(HResult.E_FAIL):
                await guest.modify(to_guest("MappedDirectory", "Add", MountPath="/s", **wrong))
        await guest.modify(to_guest("MappedDirectory", "Add", MountPath="/s", ShareName="0", Port=564))
        await system.modify(remove(Plan9Shares.PATH, {"Name": "0"}))
        assert state.inconsistencies() == [rf"share 0 ({SHARED}) at /s is no longer attached"]
        await guest.modify(to_guest("MappedDirectory", "Remove", MountPath="/s", ShareName="0", Port=564))
        assert state.inconsistencies() == []


def layers(root: str, *paths: str, scratch: str = "") -> JSON:
    settings: JSON = {"ContainerRootPath": root, "Layers": [{"Path": p} for p in paths]}
    return to_guest("CombinedLayers", "Add", **settings, **({"ScratchPath": scratch} if scratch else {}))


async def test_layers_are_combined_from_what_is_mounted() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        await system.modify(add(slot(1), disk(LAYER, ReadOnly=True)))
        await guest.modify(mount("/scratch"))
        await guest.modify(mount("/layer", lun=1, ReadOnly=True))
        for request in (
            layers("/root"),
            layers("/root", "/elsewhere"),
            layers("/root", "/layer", scratch="/elsewhere/c1"),
            layers("/root", "/layer", scratch="/layer/c1"),
            layers("/scratch", "/layer"),
        ):
            with expect_guest_refusal(HResult.E_FAIL):
                await guest.modify(request)
        await guest.modify(layers("/scratch/c1/rootfs", "/layer", scratch="/scratch/c1"))
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(unmount("/scratch"))
        await guest.modify(unmount("/layer", lun=1))
        assert state.inconsistencies() == ["overlay at /scratch/c1/rootfs lacks its layer /layer"]
        await guest.modify(to_guest("CombinedLayers", "Remove", ContainerRootPath="/scratch/c1/rootfs"))
        assert paths(state) == ["/scratch"]


async def test_a_lenient_guest_combines_layers_that_are_nowhere() -> None:
    backend = FakeBackend(files=host_files(), checks=Checks(guest=False))
    async with linux(backend) as (_, guest, state):
        await guest.modify(layers("/root", "/layer", scratch="/scratch"))
        assert state.inconsistencies() == []


def nic(request_type: str = "Add", **settings: Any) -> JSON:
    return to_guest("Network", request_type, NamespaceID="NS-1", ID="nic-1", **settings)


async def test_an_adapter_is_configured_once_the_host_has_added_it() -> None:
    async with linux() as (system, guest, state):
        backend_of(system).network.add_endpoint({"ID": "e"})
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(nic())
        await system.modify(add(NIC, {"EndpointId": "e"}))
        await guest.modify(nic())
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(nic())
        assert list(state.namespaces["ns-1"]) == ["nic-1"]
        await system.modify(remove(NIC))
        assert state.inconsistencies() == ["adapter nic-1 in namespace ns-1 is no longer attached"]
        await guest.modify(nic("Remove"))
        assert state.inconsistencies() == []


async def test_an_unknown_adapter_is_removed_without_complaint() -> None:
    async with linux() as (_, guest, state):
        await guest.modify(nic("Remove"))
        assert state.inconsistencies() == []


async def test_an_assigned_adapter_is_a_pci_device() -> None:
    async with linux() as (system, guest, _):
        functions = {"Functions": [{"DeviceInstancePath": "x"}]}
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(nic(VPCIAssigned=True))
        await system.modify(add(VirtualPci("nic-1").path, functions))
        await guest.modify(nic(VPCIAssigned=True))


async def test_a_pci_device_is_waited_for_and_never_removed() -> None:
    async with linux() as (system, guest, _):
        request = to_guest("VPCIDevice", "Add", VMBusGUID=SERVICE)
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(request)
        await system.modify(add(VirtualPci(SERVICE).path, {"Functions": [{"DeviceInstancePath": "x"}]}))
        await guest.modify(request)
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(request | {"RequestType": "Remove"})


async def test_the_security_policy_is_set_once_and_takes_fragments() -> None:
    async with linux() as (_, guest, state):
        fragment = to_guest("SecurityPolicyFragment", "Add", Fragment="Zg==")
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(fragment)
        policy = to_guest("SecurityPolicy", "Add", EncodedSecurityPolicy="cA==")
        await guest.modify(policy)
        await guest.modify(fragment)
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify(policy)
        assert state.policy is not None
        assert state.policy.encoded_security_policy == "cA=="
        assert [f.fragment for f in state.fragments] == ["Zg=="]


async def test_the_pod_memory_limit_is_updated_only() -> None:
    async with linux() as (_, guest, _):
        await guest.modify({"ResourceType": "PodCgroupMemoryLimit", "RequestType": "Update"})
        with expect_guest_refusal(HResult.E_FAIL):
            await guest.modify({"ResourceType": "PodCgroupMemoryLimit", "RequestType": "Add"})


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"ResourceType": "Toaster", "RequestType": "Add"}, HResult.E_FAIL),
        ({"RequestType": "Add"}, HResult.E_FAIL),
        (to_guest("MappedVirtualDisk", "PreAdd"), HResult.E_FAIL),
        (to_guest("SCSIDevice", "Add"), HResult.E_FAIL),
        (mount(""), HResult.E_FAIL),
        (mount(Colour="red"), HResult.ERROR_VMCOMPUTE_INVALID_JSON),
        (mount() | {"Extra": 1}, HResult.ERROR_VMCOMPUTE_INVALID_JSON),
        (to_guest("MappedVirtualDisk", "Add", MountPath="/m", Lun="0"), HResult.ERROR_VMCOMPUTE_INVALID_JSON),
        ({"ResourceType": "MappedVirtualDisk", "Settings": "text"}, HResult.ERROR_VMCOMPUTE_INVALID_JSON),
        (to_guest("ContainerConstraints", "Update", Linux={}), HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND),
    ],
)
async def test_a_request_that_the_guest_cannot_read_or_does_not_know_is_refused(
    request_: Any, code: int
) -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        with expect_guest_refusal(code):
            await guest.modify(request_)
        assert paths(state) == []


async def test_a_request_that_is_no_object_is_refused() -> None:
    async with booted() as host:
        code, _ = await host.refusal(Procedure.MODIFY_SETTINGS, Request="text")
        assert code == HResult.ERROR_VMCOMPUTE_INVALID_JSON


async def test_a_request_without_a_type_adds() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        request = mount()
        del request["RequestType"]
        await guest.modify(request)
        assert paths(state) == ["/m"]


async def test_a_paused_guest_answers_once_it_goes_on() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        await system.pause()
        async with anyio.create_task_group() as tasks:
            answered = anyio.Event()

            async def ask() -> None:
                await guest.modify(mount())
                answered.set()

            tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            assert (answered.is_set(), paths(state)) == (False, [])
            await system.resume()
        assert (answered.is_set(), paths(state)) == (True, ["/m"])


async def test_the_guest_does_not_answer_after_the_exit() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        await guest.modify(mount())
        await system.terminate()
        # At once, and when the connection knows of it.
        for _ in range(2):
            with pytest.raises(BridgeClosedError, match="the connection to the guest is closed"):
                await guest.modify(eject())
        assert guest.closed
        assert paths(state) == []


async def test_a_closed_connection_carries_nothing_and_a_new_one_finds_the_guest_as_it_was() -> None:
    async with linux() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        await guest.modify(mount())
        await guest.aclose()
        with pytest.raises(BridgeClosedError, match="the connection to the guest is closed"):
            await guest.modify(unmount())
        assert paths(state) == ["/m"]
        async with guest_of(system) as again:
            await again.modify(unmount())
        assert paths(state) == []


async def test_the_guest_says_what_it_can_do_or_what_it_is_told_to_say() -> None:
    async with linux() as (_, guest, _):
        assert guest.capabilities["NamespaceAddRequestSupported"] is True
    backend = FakeBackend(files=host_files(), guest_capabilities={"NamespaceAddRequestSupported": False})
    async with linux(backend) as (_, guest, _):
        assert guest.capabilities == {"NamespaceAddRequestSupported": False}
