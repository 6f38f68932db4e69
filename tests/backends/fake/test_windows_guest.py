"""The Windows guest: disks, shares, filters, adapters in three steps, namespaces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.backends.fake.support import (
    JSON,
    SHARED,
    add,
    backend_of,
    disk,
    expect_guest_refusal,
    guest_of,
    host_files,
    remove,
    running,
    slot,
    to_guest,
    wcow,
)
from uvm._gcs.connection import GuestConnection
from uvm.backends.fake import Checks, FakeBackend, FakeSystem, WindowsGuest
from uvm.hresult import HResult
from uvm.schema.requests import VirtualAdapter, VSMBShares

pytestmark = pytest.mark.anyio

VSMB = r"\\?\VMSMB\VSMB-{dcc079ae-60ba-4d07-847c-3493609c0870}"
NAMESPACE = {"ID": "NS-1", "NamespaceId": 3, "Type": "Host"}
ENDPOINT = {"ID": "e-1", "HostComputeNamespace": "ns-1"}
NIC = VirtualAdapter("nic-1").path


@asynccontextmanager
async def windows(
    backend: FakeBackend | None = None,
) -> AsyncIterator[tuple[FakeSystem, GuestConnection, WindowsGuest]]:
    async with running(wcow(), backend) as system:
        guest = system.vm.guest
        assert isinstance(guest, WindowsGuest)
        await system.modify(add(VSMBShares.PATH, {"Name": "s1", "Path": SHARED}))
        async with guest_of(system) as connection:
            yield system, connection, guest


def mount(path: str = r"C:\m", lun: int = 0, request_type: str = "Add") -> JSON:
    return to_guest("MappedVirtualDisk", request_type, ContainerPath=path, Lun=lun)


async def test_disks_of_the_first_controller_are_mounted_and_unmounted() -> None:
    async with windows() as (system, guest, state):
        with expect_guest_refusal(HResult.ERROR_NOT_FOUND):
            await guest.modify(mount())
        await system.modify(add(slot(0), disk()))
        await guest.modify(mount(r"C:\m"))
        with expect_guest_refusal(HResult.E_INVALIDARG):
            await guest.modify(mount("c:/M"))
        await guest.modify(mount(r"c:\M", request_type="Remove"))
        assert state.mounts == {}


async def test_a_directory_is_mapped_from_a_share() -> None:
    async with windows() as (_, guest, state):
        request = to_guest("MappedDirectory", "Add", HostPath=rf"{VSMB}\s1", ContainerPath=r"C:\shared")
        with expect_guest_refusal(HResult.ERROR_PATH_NOT_FOUND):
            await guest.modify(
                to_guest("MappedDirectory", "Add", HostPath=rf"{VSMB}\s2", ContainerPath="C:\\x")
            )
        await guest.modify(request)
        await guest.modify(request | {"RequestType": "Remove"})
        assert state.mounts == {}


def combine(root: str, *paths: str, request_type: str = "Add") -> JSON:
    return to_guest(
        "CombinedLayers", request_type, ContainerRootPath=root, Layers=[{"Id": "1", "Path": p} for p in paths]
    )


async def test_layers_are_combined_at_a_mounted_scratch_disk() -> None:
    async with windows() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        await guest.modify(mount(r"C:\c1"))
        for request, code in [
            (combine("", rf"{VSMB}\s1"), HResult.E_INVALIDARG),
            (combine(r"C:\c1"), HResult.E_INVALIDARG),
            (combine(r"C:\c1", rf"{VSMB}\s2"), HResult.ERROR_PATH_NOT_FOUND),
            (combine(r"C:\c2", rf"{VSMB}\s1"), HResult.ERROR_PATH_NOT_FOUND),
            (combine(r"C:\c1", request_type="Remove"), HResult.ERROR_NOT_FOUND),
        ]:
            with expect_guest_refusal(code):
                await guest.modify(request)
        await guest.modify(combine(r"C:\c1", rf"{VSMB}\s1\layer"))
        with expect_guest_refusal(HResult.ERROR_ALREADY_EXISTS):
            await guest.modify(combine(r"c:\C1", rf"{VSMB}\s1"))
        with expect_guest_refusal(HResult.E_INVALIDARG):
            await guest.modify(mount(r"C:\c1", request_type="Remove"))
        await system.modify(remove(VSMBShares.PATH, {"Name": "s1"}))
        assert state.inconsistencies() == [rf"overlay at C:\c1 lacks its layer {VSMB}\s1\layer"]
        await guest.modify(combine(r"C:\c1", request_type="Remove"))
        await guest.modify(mount(r"C:\c1", request_type="Remove"))
        assert state.mounts == {}


async def test_confidential_guests_wrap_combined_layers() -> None:
    async with windows() as (system, guest, state):
        await system.modify(add(slot(0), disk()))
        scratch = to_guest("MappedVirtualDiskForContainerScratch", "Add", ContainerPath=r"C:\c1", Lun=0)
        await guest.modify(scratch)
        inner = combine(r"C:\c1", rf"{VSMB}\s1")["Settings"]
        await guest.modify(to_guest("CWCOWCombinedLayers", "Add", ContainerID="c1", CombinedLayers=inner))
        assert [m.kind for m in state.mounts.values()] == ["disk", "overlay"]


async def test_a_lenient_guest_combines_layers_that_are_nowhere() -> None:
    backend = FakeBackend(files=host_files(), checks=Checks(guest=False))
    async with windows(backend) as (_, guest, state):
        await guest.modify(combine(r"C:\c1", rf"{VSMB}\x"))
        await guest.modify(combine(r"C:\c1", request_type="Remove"))
        await guest.modify(combine(r"C:\c1", request_type="Remove"))
        assert state.mounts == {}


def adapter(request_type: str, outer: str = "Add", settings: Any = None) -> JSON:
    change: JSON = {"AdapterId": "nic-1", "RequestType": request_type}
    return to_guest("Network", outer, **change, **({"Settings": settings} if settings else {}))


def removal() -> JSON:
    request = adapter("Remove", "Remove")
    del request["ResourceType"]
    return request


async def test_an_adapter_is_announced_then_added_by_the_host_then_by_the_guest() -> None:
    async with windows() as (system, guest, state):
        backend_of(system).network.add_endpoint(ENDPOINT)
        await guest.modify(to_guest("NetworkNamespace", "Add", **NAMESPACE))
        with expect_guest_refusal(HResult.GCN_E_NETADAPTER_NOT_FOUND):
            await guest.modify(adapter("Add"))
        await guest.modify(adapter("PreAdd", settings=ENDPOINT))
        with expect_guest_refusal(HResult.ERROR_ALREADY_EXISTS):
            await guest.modify(adapter("PreAdd", settings=ENDPOINT))
        with expect_guest_refusal(HResult.GCN_E_NETADAPTER_NOT_FOUND):
            await guest.modify(adapter("Add"))
        await system.modify(add(NIC, {"EndpointId": "e-1"}))
        await guest.modify(adapter("Add"))
        assert [up for _, up in state.adapters.values()] == [True]
        await system.modify(remove(NIC))
        assert state.inconsistencies() == ["adapter nic-1 is no longer attached"]


async def test_an_adapter_is_removed_without_naming_the_resource_type() -> None:
    async with windows() as (_, guest, state):
        await guest.modify(to_guest("NetworkNamespace", "Add", **NAMESPACE))
        await guest.modify(adapter("PreAdd", settings=ENDPOINT))
        await guest.modify(removal())
        assert state.adapters == {}
        with expect_guest_refusal(HResult.GCN_E_NETADAPTER_NOT_FOUND):
            await guest.modify(removal())


async def test_old_builds_name_the_adapter_otherwise() -> None:
    async with windows() as (_, guest, state):
        change = {"AdapterInstanceId": "nic-1", "RequestType": "PreAdd", "Settings": {"ID": "e-1"}}
        await guest.modify(to_guest("Network", "Add", **change))
        assert list(state.adapters) == ["nic-1"]


async def test_an_adapter_needs_its_namespace_and_a_known_request_type() -> None:
    async with windows() as (_, guest, _):
        with expect_guest_refusal(HResult.GCN_E_NETCOMPARTMENT_NOT_FOUND):
            await guest.modify(adapter("PreAdd", settings=ENDPOINT))
        with expect_guest_refusal(HResult.E_INVALIDARG):
            await guest.modify(adapter("Update"))
        with expect_guest_refusal(HResult.ERROR_VMCOMPUTE_INVALID_JSON):
            await guest.modify(adapter("PreAdd", settings={"Id": "e-1"}))


async def test_a_namespace_goes_once_it_is_empty() -> None:
    async with windows() as (_, guest, state):
        namespace = to_guest("NetworkNamespace", "Add", **NAMESPACE)
        gone = namespace | {"RequestType": "Remove"}
        with expect_guest_refusal(HResult.ERROR_NOT_FOUND):
            await guest.modify(gone)
        await guest.modify(namespace)
        with expect_guest_refusal(HResult.ERROR_ALREADY_EXISTS):
            await guest.modify(namespace)
        await guest.modify(adapter("PreAdd", settings=ENDPOINT))
        with expect_guest_refusal(HResult.HCN_E_ENTITY_HAS_REFERENCES):
            await guest.modify(gone)
        await guest.modify(removal())
        await guest.modify(gone)
        assert state.namespaces == {}


async def test_block_cims_are_mounted_from_attached_disks() -> None:
    async with windows() as (system, guest, state):
        cims = {
            "BlockCIMs": [{"CimName": "a.cim", "Lun": 0}],
            "VolumeGUID": "V",
            "MountFlags": 16,
            "ContainerID": "c",
        }
        request = to_guest("WCOWBlockCims", "Add", **cims)
        with expect_guest_refusal(HResult.ERROR_NOT_FOUND):
            await guest.modify(request)
        await system.modify(add(slot(0), disk()))
        with expect_guest_refusal(HResult.E_ACCESSDENIED):
            await guest.modify(request)
        await system.modify({"RequestType": "Remove", "ResourcePath": slot(0)})
        await system.modify(add(slot(0), disk(ReadOnly=True)))
        unnamed = [{"CimName": "", "Lun": 0}]
        several: list[dict[str, Any]] = [{"MountFlags": 0}, {"BlockCIMs": []}, {"BlockCIMs": unnamed}]
        for wrong in several:
            with expect_guest_refusal(HResult.E_INVALIDARG):
                await guest.modify(to_guest("WCOWBlockCims", "Add", **{**cims, **wrong}))
        await guest.modify(request)
        with expect_guest_refusal(HResult.ERROR_ALREADY_EXISTS):
            await guest.modify(request)
        await guest.modify(request | {"RequestType": "Remove"})
        with expect_guest_refusal(HResult.ERROR_NOT_FOUND):
            await guest.modify(request | {"RequestType": "Remove"})
        assert state.volumes == {}


async def test_the_guest_is_told_its_socket_addresses() -> None:
    async with windows() as (_, guest, state):
        await guest.modify(to_guest("HvSocket", "Update", LocalAddress="a", ParentAddress="b"))
        assert state.addresses is not None
        assert state.addresses.parent_address == "b"


@pytest.mark.parametrize("resource", ["SCSIDevice", "VPMemDevice", "VPCIDevice", "Toaster", ""])
async def test_what_only_linux_guests_know_is_refused(resource: str) -> None:
    async with windows() as (_, guest, _):
        with expect_guest_refusal(HResult.E_INVALIDARG):
            await guest.modify(to_guest(resource, "Remove"))
