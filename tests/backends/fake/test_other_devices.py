"""Network adapters, PCI devices, pipes, ports, sockets, memory and processors."""

from __future__ import annotations

from typing import Any

import pytest

from tests.backends.fake.support import (
    JSON,
    SERVICE,
    add,
    backend_of,
    expect_refusal,
    host_files,
    lcow,
    remove,
    running,
    update,
    vm_of,
    wcow,
)
from tests.backends.fake.test_cpu_groups import create_group
from uvm.backends.fake import Checks, FakeBackend, FakeSystem
from uvm.hresult import HResult
from uvm.schema.requests import (
    CpuGroupAssignment,
    CpuLimits,
    MappedPipe,
    MemorySize,
    SocketService,
    VirtualAdapter,
    VirtualPci,
)

pytestmark = pytest.mark.anyio

NIC = VirtualAdapter("nic-1").path
ENDPOINT = "bbbbbbbb-0000-0000-0000-000000000001"
PCI = VirtualPci(SERVICE).path
GPU = r"PCIP\VEN_10DE&DEV_1EB8\1"
PIPE = r"\\.\pipe\docker_engine"


def adapter(endpoint: str = ENDPOINT, mac: str = "00-15-5D-52-C0-00", **fields: Any) -> JSON:
    return {"EndpointId": endpoint, "MacAddress": mac, **fields}


def functions(*numbers: int) -> JSON:
    return {"Functions": [{"DeviceInstancePath": GPU, "VirtualFunction": n} for n in numbers]}


def network_of(system: FakeSystem) -> None:
    backend_of(system).network.add_endpoint({"ID": ENDPOINT})


async def test_an_adapter_connects_an_endpoint_until_it_is_removed() -> None:
    async with running() as system:
        network_of(system)
        await system.modify(add(NIC, adapter(ENDPOINT.upper())))
        assert backend_of(system).network.attachments() == {ENDPOINT: "vm1"}
        assert list(system.vm.tree.inventory()["NetworkAdapters"]) == ["nic-1"]
        await system.modify(remove(NIC, adapter()))
        assert backend_of(system).network.attachments() == {}


async def test_an_adapter_id_is_taken_once_and_an_unknown_one_is_not_found() -> None:
    async with running() as system:
        network_of(system)
        await system.modify(add(NIC, adapter()))
        with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
            await system.modify(add(VirtualAdapter("NIC-1").path, adapter()))
        for request in (remove, update):
            with expect_refusal(HResult.ERROR_NOT_FOUND):
                await system.modify(request(VirtualAdapter("nic-2").path, adapter()))


async def test_an_endpoint_must_exist_and_is_attached_once() -> None:
    backend = FakeBackend(files=host_files())
    async with running(backend=backend) as one, running(backend=backend, system_id="vm2") as two:
        with expect_refusal(HResult.HCN_E_ENDPOINT_NOT_FOUND):
            await one.modify(add(NIC, adapter()))
        network_of(one)
        await one.modify(add(NIC, adapter()))
        for vm in (one, two):
            with expect_refusal(HResult.HCN_E_ENDPOINT_ALREADY_ATTACHED):
                await vm.modify(add(VirtualAdapter("nic-2").path, adapter()))
        await one.terminate()
        await two.modify(add(NIC, adapter()))


async def test_endpoints_are_not_looked_at_where_that_is_switched_off() -> None:
    backend = FakeBackend(files=host_files(), checks=Checks(endpoints=False))
    async with running(backend=backend) as system:
        await system.modify(add(NIC, adapter()))
        assert len(vm_of(system).tree.adapters.adapters) == 1
        await system.modify(remove(NIC))


@pytest.mark.parametrize("mac", ["x", "00-15-5D-52-C0", "00-15-5D-52-C0-0G"])
async def test_a_mac_address_has_six_bytes(mac: str) -> None:
    async with running() as system:
        network_of(system)
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(add(NIC, adapter(mac=mac)))
        await system.modify(add(NIC, adapter()))


async def test_only_the_sriov_settings_of_an_adapter_change() -> None:
    async with running() as system:
        network_of(system)
        await system.modify(add(NIC, adapter()))
        await system.modify(update(NIC, adapter(IovSettings={"OffloadWeight": 100})))
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(update(NIC, adapter(mac="00-15-5D-52-C0-01")))


async def test_the_adapters_of_the_document_are_connected_from_the_start() -> None:
    backend = FakeBackend(files=host_files())
    backend.network.add_endpoint({"ID": ENDPOINT})
    async with running(lcow(NetworkAdapters={"nic-1": adapter()}), backend) as system:
        assert system.vm.tree.adapters.find("NIC-1") is not None


async def test_a_pci_function_is_assigned_to_one_device_at_a_time() -> None:
    backend = FakeBackend(files=host_files())
    async with running(backend=backend) as one, running(backend=backend, system_id="vm2") as two:
        await one.modify(add(PCI, functions(0)))
        with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
            await one.modify(add(PCI, functions(1)))
        for vm in (one, two):
            with expect_refusal(HResult.ERROR_SHARING_VIOLATION):
                await vm.modify(add(VirtualPci("other").path, functions(1, 0)))
        await two.modify(add(PCI, functions(1)))
        await one.modify(remove(PCI))
        await two.modify(add(VirtualPci("other").path, functions(0)))
        await two.terminate()
        assert [line for line in backend.leftovers() if "PCI" in line] == []


async def test_a_pci_device_needs_functions_and_has_no_updates() -> None:
    async with running() as system:
        malformed: list[JSON] = [{"Functions": []}, {"Functions": [{}]}]
        for settings in malformed:
            with expect_refusal(HResult.E_INVALIDARG):
                await system.modify(add(PCI, settings))
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(update(PCI, functions(0)))
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.modify(remove(PCI))


async def test_the_pci_devices_of_the_document_are_assigned_from_the_start() -> None:
    async with running(lcow(VirtualPci={SERVICE: functions(0)})) as system:
        assert system.vm.tree.inventory()["VirtualPci"] == {
            SERVICE: {"Functions": [{"DeviceInstancePath": GPU}]}
        }


async def test_a_pipe_is_mapped_once_and_has_no_settings() -> None:
    async with running(wcow()) as system:
        path = MappedPipe(PIPE).path
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(add(path, {"Name": "x"}))
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.modify(remove(path))
        await system.modify(add(path))
        assert system.vm.tree.pipes.pipes == [PIPE]
        with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
            await system.modify(add(MappedPipe(PIPE.upper()).path))
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(update(path))
        await system.modify(remove(path))
        assert system.vm.tree.pipes.pipes == []


async def test_there_are_two_serial_ports() -> None:
    com = "VirtualMachine/Devices/ComPorts/"
    async with running(lcow(ComPorts={"0": {"NamedPipe": PIPE}})) as system:
        with expect_refusal(HResult.ERROR_ALREADY_EXISTS):
            await system.modify(add(com + "0", {"NamedPipe": PIPE}))
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.modify(remove(com + "1"))
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(add(com + "2", {"NamedPipe": PIPE}))
        await system.modify(add(com + "1", {"NamedPipe": PIPE}))
        await system.modify(update(com + "1", {"NamedPipe": PIPE, "OptimizeForDebugger": True}))
        await system.modify(remove(com + "0"))
        assert system.vm.tree.inventory()["ComPorts"] == {
            "1": {"NamedPipe": PIPE, "OptimizeForDebugger": True}
        }


async def test_a_socket_service_is_made_by_an_update_and_removed_without_complaint() -> None:
    path = SocketService(SERVICE).path
    async with running() as system:
        await system.modify(remove(path))
        await system.modify(update(path, {"BindSecurityDescriptor": "D:P", "AllowWildcardBinds": True}))
        assert system.vm.tree.inventory()["HvSocket"][SERVICE]["BindSecurityDescriptor"] == "D:P"
        await system.modify(update(path, {"Disabled": True}))
        assert system.vm.tree.sockets.services == {}
        await system.modify(update(path, {"Disabled": True}))
        assert list(system.vm.tree.sockets.services) == [SERVICE]
        await system.modify(remove(path))
        assert system.vm.tree.sockets.services == {}
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(update(SocketService("not-a-guid").path, {}))


async def test_memory_is_set_without_a_request_type() -> None:
    async with running() as system:
        await system.modify({"ResourcePath": MemorySize.PATH, "Settings": 3074})
        assert system.vm.tree.topology.size_in_mb == 3074


@pytest.mark.parametrize(
    ("size", "code"),
    [
        (3073, HResult.E_INVALIDARG),
        (0, HResult.E_INVALIDARG),
        (-2, HResult.E_INVALIDARG),
        (1 << 30, HResult.ERROR_NO_SYSTEM_RESOURCES),
        ("2048", HResult.HCS_E_INVALID_JSON),
        (True, HResult.HCS_E_INVALID_JSON),
        (2048.0, HResult.HCS_E_INVALID_JSON),
    ],
)
async def test_memory_is_an_even_number_of_megabytes_that_the_host_has(size: object, code: int) -> None:
    async with running() as system:
        with expect_refusal(code):
            await system.modify(update(MemorySize.PATH, size))
        assert system.vm.tree.topology.size_in_mb == 1024


async def test_processor_limits_and_the_group_are_set() -> None:
    backend = FakeBackend(files=host_files())
    await backend.modify_service(create_group(SERVICE, [0]))
    async with running(backend=backend) as system:
        await system.modify({"ResourcePath": CpuLimits.PATH, "Settings": {"Limit": 5000, "Weight": 100}})
        await system.modify({"ResourcePath": CpuGroupAssignment.PATH, "Settings": {"Id": SERVICE}})
        assert system.vm.tree.inventory()["ComputeTopology"]["Processor"] == {
            "Count": 2,
            "Limit": 5000,
            "Weight": 100,
            "CpuGroup": {"Id": SERVICE},
        }


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        (CpuLimits.PATH, {"Limit": 100_001}),
        (CpuLimits.PATH, {"Limit": -1}),
        (CpuLimits.PATH, {"Weight": 10_001}),
        (CpuLimits.PATH, {"Reservation": 100_001}),
        (CpuGroupAssignment.PATH, {"Id": ""}),
        (CpuGroupAssignment.PATH, {"Id": "group"}),
    ],
)
async def test_processor_settings_have_bounds(path: str, settings: JSON) -> None:
    async with running() as system:
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(update(path, settings))


async def test_the_topology_cannot_be_removed() -> None:
    async with running() as system:
        with expect_refusal(HResult.E_INVALIDARG):
            await system.modify(remove(MemorySize.PATH))


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (add("VirtualMachine/Devices/Toaster"), HResult.E_INVALIDARG),
        (add(""), HResult.E_INVALIDARG),
        (add("VirtualMachine/Devices/Scsi/x/Attachments/one"), HResult.E_INVALIDARG),
        (add("VirtualMachine/ComputeTopology/Gpu"), HResult.ERROR_NOT_SUPPORTED),
        (add("VirtualMachine/Devices/FlexibleIov/x"), HResult.ERROR_NOT_SUPPORTED),
        ({"ResourcePath": MemorySize.PATH, "RequestType": "Grow"}, HResult.HCS_E_INVALID_JSON),
        ({"ResourcePath": 5}, HResult.HCS_E_INVALID_JSON),
        ({"Path": MemorySize.PATH}, HResult.HCS_E_INVALID_JSON),
        ({"Settings": {1, 2}}, HResult.HCS_E_INVALID_JSON),
        ([], HResult.HCS_E_INVALID_JSON),
    ],
)
async def test_a_request_that_hcs_does_not_know_is_refused(request_: Any, code: int) -> None:
    async with running() as system:
        with expect_refusal(code):
            await system.modify(request_)
