"""Properties of VMs and of the compute service: numbers that follow from what happened on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from uvm.backend import JSON, HostInfo
from uvm.backends.fake.clock import FakeClock
from uvm.backends.fake.host import Host
from uvm.backends.fake.vm import FakeVM
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema import properties as schema
from uvm.schema.common import MIB, PAGE_BYTES, RS5, V19H1, V20H1, V21H2_SERVER, V21H2_WIN11, Version
from uvm.schema.json import to_json

#: A guest's memory after boot, and what each device of it takes, in bytes.
_BOOTED: Final = 96 * MIB
_PER_DEVICE: Final = 2 * MIB
#: The share of a processor that an idle guest uses, and which part of that in the kernel.
_IDLE: Final = 0.01
_KERNEL: Final = 0.4

#: The minor number of the newest version 2 of the schema that a build of Windows knows, newest first.
_SCHEMAS: Final = ((V21H2_WIN11, 6), (V21H2_SERVER, 5), (V20H1, 3), (V19H1, 2), (RS5, 1))


#: The field of the answer that holds a property, empty for those that are responses only; and its value.
_PROPERTIES: Final[dict[str, tuple[str, Callable[[FakeVM, HostInfo, FakeClock], Any]]]] = {
    schema.PROPERTY_MEMORY: ("Memory", lambda vm, info, clock: to_json(_memory(vm))),
    schema.PROPERTY_STATISTICS: ("Statistics", lambda vm, info, clock: to_json(_statistics(vm, clock))),
    schema.PROPERTY_GUEST_CONNECTION: (
        "GuestConnectionInfo",
        lambda vm, info, clock: to_json(_guest_connection(vm)),
    ),
    schema.PROPERTY_TERMINATE_ON_LAST_HANDLE_CLOSED: (
        "TerminateOnLastHandleClosed",
        lambda vm, info, clock: vm.ends_with_last_handle,
    ),
    schema.PROPERTY_SYSTEM_GUID: ("SystemGUID", lambda vm, info, clock: vm.runtime_id),
    schema.PROPERTY_PROCESSOR_TOPOLOGY: ("", lambda vm, info, clock: to_json(_host_processors(info))),
    schema.PROPERTY_CPU_GROUP: ("", lambda vm, info, clock: vm.tree.topology.group_document()),
}


def query(
    vm: FakeVM, types: tuple[str, ...], queries: tuple[str, ...], info: HostInfo, clock: FakeClock
) -> JSON:
    """Return the properties of the named types, on top of the summary.

    :param queries: the types that are asked for as ``Queries`` and answered in ``PropertyResponses``, as are
        those types that have no field of their own.
    :raises HostError: HCS_E_INVALID_JSON for an unknown type; a type needs a running VM and this one is not.
    """
    answer = vm.summary()
    responses: JSON = {}
    for name in (*types, *queries):
        if name not in _PROPERTIES:
            raise HostError(f"query {vm.id}", HResult.HCS_E_INVALID_JSON, f"unknown property {name!r}")
        field, value = _PROPERTIES[name]
        found = value(vm, info, clock)
        if name in types and field:
            answer[field] = found
        if name in queries or not field:
            responses[name] = {"Response": found}
    return {**answer, "PropertyResponses": responses} if responses else answer


def service_property(name: str, host: Host) -> JSON:
    """Return one property of the host's compute service; HCS_E_INVALID_JSON if its type is unknown.

    Source: the HCS schema (``GetPropertyType``, ``BasicInformation``, ``CpuGroupConfigurations``, ...).
    """
    match name:
        case "Basic":
            minor = next((minor for since, minor in _SCHEMAS if host.info.build >= since), 0)
            # The newest version of each schema includes the older ones.
            return {"SupportedSchemaVersions": [{"Major": 1, "Minor": 0}, {"Major": 2, "Minor": minor}]}
        case "ProcessorTopology":
            return to_json(_host_processors(host.info))
        case "CpuGroup":
            return host.cpu_groups.document(host.cpu_groups.groups)
        case "ContainerCredentialGuard":
            return {"Instances": []}
        case "QoSCapabilities":
            return {"ProcessorQoSSupported": True}
    raise HostError("query the compute service", HResult.HCS_E_INVALID_JSON, f"unknown property {name!r}")


def _host_processors(info: HostInfo) -> schema.ProcessorTopology:
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
    kinds = (tree.scsi, tree.vpmem, tree.plan9, tree.vsmb, tree.adapters)
    devices = sum(kind.count for kind in kinds) + len(vm.guest.mounts)
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
    disks = vm.tree.scsi.count
    return schema.Statistics(
        timestamp=clock.timestamp(),
        container_start_time=clock.timestamp(started),
        uptime_100ns=uptime,
        processor=schema.ProcessorStats(
            total_runtime_100ns=runtime, runtime_user_100ns=runtime - kernel, runtime_kernel_100ns=kernel
        ),
        memory=schema.MemoryStats(
            memory_usage_commit_bytes=used,
            memory_usage_commit_peak_bytes=used,
            memory_usage_private_working_set_bytes=used,
        ),
        storage=schema.StorageStats(
            read_count_normalized=64 * (1 + disks), read_size_bytes=MIB * (1 + disks)
        ),
    )
