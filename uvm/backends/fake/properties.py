"""Properties of VMs and of the compute service: numbers that follow from what happened on the host."""

from __future__ import annotations

from typing import Any, Final

from uvm.backend import JSON, HostInfo
from uvm.backends.fake.clock import FakeClock
from uvm.backends.fake.host import Host
from uvm.backends.fake.vm import FakeVM
from uvm.backends.requests import properties
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


def query(
    vm: FakeVM, types: tuple[str, ...], queries: tuple[str, ...], info: HostInfo, clock: FakeClock
) -> JSON:
    """Return the properties of the named types, on top of the summary: see :func:`.properties.answer`.

    :raises HostError: HCS_E_INVALID_JSON for an unknown type; a type needs a running VM and this one is not.
    """
    values = {name: _value(vm, info, clock, name) for name in (*types, *queries)}
    return properties.answer(vm.summary(), values, types, queries)


def _value(vm: FakeVM, info: HostInfo, clock: FakeClock, name: str) -> Any:
    match name:
        case schema.PROPERTY_MEMORY:
            return to_json(_memory(vm))
        case schema.PROPERTY_STATISTICS:
            return to_json(_statistics(vm, clock))
        case schema.PROPERTY_GUEST_CONNECTION:
            return to_json(_guest_connection(vm))
        case schema.PROPERTY_TERMINATE_ON_LAST_HANDLE_CLOSED:
            return vm.ends_with_last_handle
        case schema.PROPERTY_SYSTEM_GUID:
            return vm.runtime_id
        case schema.PROPERTY_PROCESSOR_TOPOLOGY:
            return to_json(_host_processors(info))
        case schema.PROPERTY_CPU_GROUP:
            return vm.tree.topology.group_document()
    raise properties.unknown(f"query {vm.id}", name)


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
    raise properties.unknown("query the compute service", name)


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
    return properties.memory(size, _used_bytes(vm), assigned, topology.processor.count)


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
