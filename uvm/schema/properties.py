"""The properties of a compute system, and of the host, as HCS reports them.

Timestamps are RFC 3339 strings, times are in units of 100 ns, sizes in bytes or pages of 4 KiB as named.
"""

from __future__ import annotations

from typing import Any

from uvm.schema.common import Version
from uvm.schema.field import Model, named
from uvm.schema.process import ProcessDetails

#: Names of properties, for :class:`PropertyQuery`.
PROPERTY_MEMORY = "Memory"
PROPERTY_STATISTICS = "Statistics"
PROPERTY_PROCESS_LIST = "ProcessList"
PROPERTY_TERMINATE_ON_LAST_HANDLE_CLOSED = "TerminateOnLastHandleClosed"
PROPERTY_GUEST_CONNECTION = "GuestConnection"
PROPERTY_PROCESSOR_TOPOLOGY = "ProcessorTopology"
PROPERTY_CPU_GROUP = "CpuGroup"
PROPERTY_SYSTEM_GUID = "SystemGUID"


class PropertyQuery(Model):
    """The properties to query; the names are ``PROPERTY_*``."""

    property_types: list[str] = named("PropertyTypes", factory=list)
    queries: dict[str, Any] = named("Queries", factory=dict)


class ProcessorStats(Model):
    """Processor time used."""

    total_runtime_100ns: int = named("TotalRuntime100ns", default=0)
    runtime_user_100ns: int = named("RuntimeUser100ns", default=0)
    runtime_kernel_100ns: int = named("RuntimeKernel100ns", default=0)


class MemoryStats(Model):
    """Memory used."""

    memory_usage_commit_bytes: int = named("MemoryUsageCommitBytes", default=0)
    memory_usage_commit_peak_bytes: int = named("MemoryUsageCommitPeakBytes", default=0)
    memory_usage_private_working_set_bytes: int = named("MemoryUsagePrivateWorkingSetBytes", default=0)


class StorageStats(Model):
    """Reads and writes; the normalised counts are in units of 8 KiB."""

    read_count_normalized: int = named("ReadCountNormalized", default=0)
    read_size_bytes: int = named("ReadSizeBytes", default=0)
    write_count_normalized: int = named("WriteCountNormalized", default=0)
    write_size_bytes: int = named("WriteSizeBytes", default=0)


class Statistics(Model):
    """Statistics of a VM or a container."""

    timestamp: str = named("Timestamp", default="")
    container_start_time: str = named("ContainerStartTime", default="")
    uptime_100ns: int = named("Uptime100ns", default=0)
    processor: ProcessorStats | None = named("Processor", default=None)
    memory: MemoryStats | None = named("Memory", default=None)
    storage: StorageStats | None = named("Storage", default=None)


class VmMemory(Model):
    """The memory of a VM, in pages."""

    available_memory: int = named("AvailableMemory", default=0)
    available_memory_buffer: int = named("AvailableMemoryBuffer", default=0)
    reserved_memory: int = named("ReservedMemory", default=0)
    assigned_memory: int = named("AssignedMemory", default=0)
    slp_active: bool = named("SlpActive", default=False)
    balancing_enabled: bool = named("BalancingEnabled", default=False)
    dm_operation_in_progress: bool = named("DmOperationInProgress", default=False)


class VirtualNodeInfo(Model):
    """A virtual NUMA node."""

    virtual_node_index: int = named("VirtualNodeIndex", default=0)
    physical_node_number: int = named("PhysicalNodeNumber", default=0)
    virtual_processor_count: int = named("VirtualProcessorCount", default=0)
    memory_usage_in_pages: int = named("MemoryUsageInPages", default=0)


class MemoryInformationForVm(Model):
    """The memory of a VM and its virtual NUMA nodes."""

    virtual_node_count: int = named("VirtualNodeCount", default=0)
    virtual_machine_memory: VmMemory | None = named("VirtualMachineMemory", default=None)
    virtual_nodes: list[VirtualNodeInfo] = named("VirtualNodes", factory=list)


class GuestConnectionInfo(Model):
    """The guest's facts from its connection to HCS."""

    supported_schema_versions: list[Version] = named("SupportedSchemaVersions", factory=list)
    protocol_version: int = named("ProtocolVersion", default=0)
    guest_defined_capabilities: Any = named("GuestDefinedCapabilities", default=None)


class Properties(Model):
    """The properties of a compute system.

    ``state`` is ``Created``, ``Running``, ``Paused``, ``Stopped``, ``SavedAsTemplate`` or ``Unknown``.
    ``metrics`` are the Linux guest's cgroup metrics.
    """

    id: str = named("Id", default="")
    system_type: str = named("SystemType", default="")
    runtime_os_type: str = named("RuntimeOsType", default="")
    name: str = named("Name", default="")
    owner: str = named("Owner", default="")
    runtime_id: str = named("RuntimeId", default="")
    system_guid: str = named("SystemGUID", default="")
    runtime_template_id: str = named("RuntimeTemplateId", default="")
    state: str = named("State", default="")
    stopped: bool = named("Stopped", default=False)
    exit_type: str = named("ExitType", default="")
    memory: MemoryInformationForVm | None = named("Memory", default=None)
    statistics: Statistics | None = named("Statistics", default=None)
    process_list: list[ProcessDetails] = named("ProcessList", factory=list)
    terminate_on_last_handle_closed: bool = named("TerminateOnLastHandleClosed", default=False)
    hosting_system_id: str = named("HostingSystemId", default="")
    shared_memory_region_info: list[Any] = named("SharedMemoryRegionInfo", factory=list)
    guest_connection_info: GuestConnectionInfo | None = named("GuestConnectionInfo", default=None)
    property_responses: dict[str, Any] = named("PropertyResponses", factory=dict)
    lcow_metrics: Any = named("LCOWMetrics", default=None)


class LogicalProcessor(Model):
    """A logical processor of the host."""

    lp_index: int = named("LpIndex", default=0)
    node_number: int = named("NodeNumber", default=0)
    package_id: int = named("PackageId", default=0)
    core_id: int = named("CoreId", default=0)
    root_vp_index: int = named("RootVpIndex", default=0)


class ProcessorTopology(Model):
    """The logical processors of the host."""

    logical_processor_count: int = named("LogicalProcessorCount", default=0)
    logical_processors: list[LogicalProcessor] = named("LogicalProcessors", factory=list)
