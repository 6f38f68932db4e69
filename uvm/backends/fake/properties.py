"""What HCS tells of a VM when asked: numbers that follow from what happened to it."""

from __future__ import annotations

from typing import Any, Final

from uvm.backend import JSON, HostInfo
from uvm.backends.fake.clock import FakeClock
from uvm.backends.fake.vm import FakeVM
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema import properties as schema
from uvm.schema.common import MIB, PAGE_BYTES, Version
from uvm.schema.json import to_json

#: A guest's memory after boot, and what each device of it takes, in bytes.
_BOOTED: Final = 96 * MIB
_PER_DEVICE: Final = 2 * MIB
#: The share of a processor that an idle guest uses, and which part of that in the kernel.
_IDLE: Final = 0.01
_KERNEL: Final = 0.4

#: The field of the answer that holds a property; nothing for those that are answered as responses only.
_FIELDS: Final = {
    schema.PROPERTY_MEMORY: "Memory",
    schema.PROPERTY_STATISTICS: "Statistics",
    schema.PROPERTY_GUEST_CONNECTION: "GuestConnectionInfo",
    schema.PROPERTY_TERMINATE_ON_LAST_HANDLE_CLOSED: "TerminateOnLastHandleClosed",
    schema.PROPERTY_SYSTEM_GUID: "SystemGUID",
    schema.PROPERTY_PROCESSOR_TOPOLOGY: "",
    schema.PROPERTY_CPU_GROUP: "",
}


def summary(vm: FakeVM) -> JSON:
    """Return what an enumeration and a query without types tell of a VM."""
    properties = schema.Properties(
        id=vm.id,
        system_type="VirtualMachine",
        runtime_os_type=vm.os.capitalize(),
        name=vm.id,
        owner=vm.owner,
        runtime_id=vm.runtime_id,
        state=vm.state,
        stopped=vm.state == "Stopped",
        exit_type=vm.exit_status.exit_type if vm.exit_status is not None else "",
    )
    return to_json(properties)


def query(
    vm: FakeVM, types: tuple[str, ...], queries: tuple[str, ...], info: HostInfo, clock: FakeClock
) -> JSON:
    """Return the properties of the named types, on top of the summary.

    :param queries: the types that are asked for as ``Queries`` and answered in ``PropertyResponses``, as are
        those types that have no field of their own.
    :raises HostError: HCS_E_INVALID_JSON for a type that is not known; where a type needs a running VM and
        this one is not.
    """
    answer = summary(vm)
    responses: JSON = {}
    for name in (*types, *queries):
        if name not in _FIELDS:
            raise HostError(
                f"query {vm.id}", HResult.HCS_E_INVALID_JSON, f"the fake knows no property {name!r}"
            )
        found = _property(vm, name, info, clock)
        if name in types and _FIELDS[name]:
            answer[_FIELDS[name]] = found
        if name in queries or not _FIELDS[name]:
            responses[name] = {"Response": found}
    return {**answer, "PropertyResponses": responses} if responses else answer


def _property(vm: FakeVM, name: str, info: HostInfo, clock: FakeClock) -> Any:
    match name:
        case schema.PROPERTY_TERMINATE_ON_LAST_HANDLE_CLOSED:
            return vm.ends_with_last_handle
        case schema.PROPERTY_SYSTEM_GUID:
            return vm.runtime_id
        case schema.PROPERTY_GUEST_CONNECTION:
            return to_json(_guest_connection(vm))
        case schema.PROPERTY_MEMORY:
            return to_json(_memory(vm))
        case schema.PROPERTY_PROCESSOR_TOPOLOGY:
            return to_json(host_processors(info))
        case schema.PROPERTY_CPU_GROUP:
            return {"CpuGroups": [{"GroupId": vm.tree.topology.cpu_group}]}
        case _:
            return to_json(_statistics(vm, clock))


def host_processors(info: HostInfo) -> schema.ProcessorTopology:
    """Return the processors of the host; two of them share a core."""
    processors = [
        schema.LogicalProcessor(lp_index=i, core_id=i // 2, root_vp_index=i) for i in range(info.processors)
    ]
    return schema.ProcessorTopology(logical_processor_count=info.processors, logical_processors=processors)


def _guest_connection(vm: FakeVM) -> schema.GuestConnectionInfo:
    vm.require_relay()
    return schema.GuestConnectionInfo(
        supported_schema_versions=[Version(major=2, minor=1)],
        protocol_version=4,
        guest_defined_capabilities=dict(vm.guest.capabilities),
    )


def _used_bytes(vm: FakeVM) -> int:
    tree = vm.tree
    devices = len(tree.scsi.disks) + len(tree.vpmem.devices) + len(tree.vpmem.mappings)
    devices += len(tree.plan9.shares) + len(tree.vsmb.shares) + len(tree.adapters.adapters)
    devices += len(vm.guest.mounts)
    return min(_BOOTED + devices * _PER_DEVICE, tree.topology.size_in_mb * MIB)


def _memory(vm: FakeVM) -> schema.MemoryInformationForVm:
    vm.require("query", "Running", "Paused")
    topology = vm.tree.topology
    size = topology.size_in_mb * MIB
    # A VM without overcommit has all of its memory from the start.
    assigned = (_used_bytes(vm) if topology.memory.allow_overcommit else size) // PAGE_BYTES
    memory = schema.VmMemory(
        available_memory=(size - _used_bytes(vm)) // MIB,
        reserved_memory=size // PAGE_BYTES,
        assigned_memory=assigned,
    )
    node = schema.VirtualNodeInfo(
        virtual_processor_count=topology.processor.count, memory_usage_in_pages=assigned
    )
    return schema.MemoryInformationForVm(
        virtual_node_count=1, virtual_machine_memory=memory, virtual_nodes=[node]
    )


def _statistics(vm: FakeVM, clock: FakeClock) -> schema.Statistics:
    vm.require("query", "Running", "Paused")
    started = vm.started_ticks or 0
    uptime = clock.ticks - started
    runtime = round(uptime * _IDLE * vm.tree.topology.processor.count)
    kernel = round(runtime * _KERNEL)
    used = _used_bytes(vm)
    disks = len(vm.tree.scsi.disks)
    values: dict[str, Any] = {
        "timestamp": clock.timestamp(),
        "container_start_time": clock.timestamp(started),
        "uptime_100ns": uptime,
        "processor": schema.ProcessorStats(
            total_runtime_100ns=runtime, runtime_user_100ns=runtime - kernel, runtime_kernel_100ns=kernel
        ),
        "memory": schema.MemoryStats(
            memory_usage_commit_bytes=used,
            memory_usage_commit_peak_bytes=used,
            memory_usage_private_working_set_bytes=used,
        ),
        "storage": schema.StorageStats(
            read_count_normalized=64 * (1 + disks), read_size_bytes=MIB * (1 + disks)
        ),
    }
    return schema.Statistics(**values)
