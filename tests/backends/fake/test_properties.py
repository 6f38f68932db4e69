"""What HCS tells of a VM, the clock, and latency."""

from __future__ import annotations

import pytest

from tests.backends.fake.support import (
    JSON,
    MIB,
    SERVICE,
    add,
    backend_of,
    disk,
    expect_refusal,
    guest_of,
    host_files,
    lcow,
    running,
    slot,
    to_guest,
    wcow,
)
from tests.backends.fake.test_cpu_groups import create_group, described
from uvm.backend import HostInfo
from uvm.backends.fake import FakeBackend, FakeClock, Latency
from uvm.hresult import HResult
from uvm.schema.json import from_json
from uvm.schema.properties import Properties
from uvm.schema.requests import CpuGroupAssignment

pytestmark = pytest.mark.anyio

ALL = ("Memory", "Statistics", "ProcessorTopology", "TerminateOnLastHandleClosed", "CpuGroup", "SystemGUID")


async def test_what_is_told_fits_the_schema() -> None:
    async with running() as system:
        told = await system.properties(*ALL)
        properties = from_json(Properties, told, forbid_extra=True)
        assert (properties.id, properties.state, properties.owner) == ("vm1", "Running", "tests")
        assert properties.terminate_on_last_handle_closed
        assert properties.system_guid == system.runtime_id


async def test_without_types_there_is_a_summary_in_every_state() -> None:
    system = await FakeBackend(files=host_files()).create("vm1", lcow())
    assert (await system.properties())["State"] == "Created"
    await system.terminate()
    told = await system.properties()
    assert (told["State"], told["Stopped"], told["ExitType"]) == ("Stopped", True, "ForcedExit")


async def test_time_moves_with_what_happens() -> None:
    async with running() as system:
        first = (await system.properties("Statistics"))["Statistics"]
        await system.properties()
        backend_of(system).clock.advance(10)
        second = (await system.properties("Statistics"))["Statistics"]
        assert second["Uptime100ns"] - first["Uptime100ns"] == 100_000_000 + 2 * 10_000
        assert second["Timestamp"] > first["Timestamp"]
        assert second["ContainerStartTime"] == first["ContainerStartTime"]
        times = second["Processor"]
        assert times["TotalRuntime100ns"] > first["Processor"]["TotalRuntime100ns"]
        assert times["TotalRuntime100ns"] == times["RuntimeUser100ns"] + times["RuntimeKernel100ns"]


async def test_every_run_tells_the_same() -> None:
    async def told() -> JSON:
        async with running() as system:
            await system.modify(add(slot(0), disk()))
            return await system.properties(*ALL)

    assert await told() == await told()


async def test_memory_in_use_grows_with_devices_and_stays_within_the_vm() -> None:
    async def pages() -> int:
        memory = (await system.properties("Memory"))["Memory"]["VirtualMachineMemory"]
        assert memory["ReservedMemory"] == 1024 * MIB // 4096
        return int(memory["AssignedMemory"])

    async with running() as system:
        before = await pages()
        await system.modify(add(slot(0), disk()))
        assert before < await pages() < 1024 * MIB // 4096


async def test_a_physically_backed_vm_has_all_of_its_memory() -> None:
    document = wcow()
    document["VirtualMachine"]["ComputeTopology"]["Memory"] = {"SizeInMB": 512}
    async with running(document) as system:
        memory = (await system.properties("Memory"))["Memory"]
        assert memory["VirtualMachineMemory"]["AssignedMemory"] == 512 * MIB // 4096
        assert memory["VirtualNodes"][0]["VirtualProcessorCount"] == 2


async def test_the_processors_are_those_of_the_host() -> None:
    backend = FakeBackend(files=host_files(), host=HostInfo(processors=6))
    async with running(backend=backend) as system:
        told = (await system.properties("ProcessorTopology"))["PropertyResponses"]["ProcessorTopology"]
        assert told["Response"]["LogicalProcessorCount"] == len(told["Response"]["LogicalProcessors"]) == 6


async def test_the_cpu_group_is_the_one_that_was_set() -> None:
    backend = FakeBackend(files=host_files())
    await backend.modify_service(create_group(SERVICE, [0, 1]))
    async with running(backend=backend) as system:
        await system.modify({"ResourcePath": CpuGroupAssignment.PATH, "Settings": {"Id": SERVICE}})
        told = (await system.properties("CpuGroup"))["PropertyResponses"]["CpuGroup"]["Response"]
        assert told == {"CpuGroups": [described(SERVICE, [0, 1])]}


async def test_the_guest_connection_is_told_where_hcs_has_one() -> None:
    async with running() as system:
        with expect_refusal(HResult.HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION):
            await system.properties("GuestConnection")
    document = lcow()
    document["VirtualMachine"]["GuestConnection"] = {}
    async with running(document) as system:
        info = (await system.properties("GuestConnection"))["GuestConnectionInfo"]
        assert info["GuestDefinedCapabilities"]["NamespaceAddRequestSupported"] is True


@pytest.mark.parametrize("name", ["Memory", "Statistics"])
async def test_a_vm_that_does_not_run_uses_nothing(name: str) -> None:
    system = await FakeBackend(files=host_files()).create("vm1", lcow())
    with expect_refusal(HResult.HCS_E_INVALID_STATE):
        await system.properties(name)
    await system.terminate()
    with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
        await system.properties(name)


async def test_an_unknown_property_is_invalid_json() -> None:
    async with running() as system:
        with expect_refusal(HResult.HCS_E_INVALID_JSON):
            await system.properties("Mood")


def test_the_clock_writes_its_time_as_a_timestamp() -> None:
    clock = FakeClock()
    clock.advance(61.5)
    assert clock.timestamp() == "2024-01-01T00:01:01.500000Z"
    assert clock.timestamp(0) == "2024-01-01T00:00:00Z"
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


async def test_latency_is_time_that_passes_on_the_clock() -> None:
    latency = Latency(host_ms=1, guest_ms=2, grant_ms=3, lifecycle_ms=4)
    backend = FakeBackend(files=host_files(), latency=latency)

    async def passed(call: object) -> int:
        before = backend.clock.ticks
        await call  # type: ignore[misc]
        return (backend.clock.ticks - before) // 10_000

    async with running(backend=backend) as system:

        async def meet() -> None:
            """Listen, be connected, and agree on the version."""
            async with guest_of(system):
                pass

        assert await passed(system.modify(add(slot(0), disk()))) == 1 + 1
        assert await passed(meet()) == (1 + 1) + 2 * (1 + 2)
        async with guest_of(system) as guest:
            assert await passed(guest.modify(to_guest("SCSIDevice", "Remove"))) == 1 + 2
        assert await passed(backend.revoke_access(disk()["Path"], "vm1")) == 1 + 3
        assert await passed(system.pause()) == 1 + 4
        assert await passed(system.properties()) == 1


async def test_the_working_set_is_the_memory_in_use() -> None:
    async with running() as system:
        statistics = (await system.properties("Statistics"))["Statistics"]
        assert await system.working_set_bytes() == statistics["Memory"]["MemoryUsagePrivateWorkingSetBytes"]
        await system.terminate()
        with expect_refusal(HResult.HCS_E_SYSTEM_ALREADY_STOPPED):
            await system.working_set_bytes()
