"""The properties of a compute system, and of the host, as HCS reports them.

Timestamps are RFC 3339 strings, times are in units of 100 ns, sizes in bytes or pages of 4 KiB as named.
"""

from __future__ import annotations

from typing import Any

from msgspec import field

from uvm.schema.common import Version
from uvm.schema.json import Model
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

    property_types: list[str] = []
    queries: dict[str, Any] = {}


class ProcessorStats(Model):
    """Processor time used."""

    total_runtime_100ns: int = 0
    runtime_user_100ns: int = 0
    runtime_kernel_100ns: int = 0


class MemoryStats(Model):
    """Memory used."""

    memory_usage_commit_bytes: int = 0
    memory_usage_commit_peak_bytes: int = 0
    memory_usage_private_working_set_bytes: int = 0


class StorageStats(Model):
    """Reads and writes; the normalised counts are in units of 8 KiB."""

    read_count_normalized: int = 0
    read_size_bytes: int = 0
    write_count_normalized: int = 0
    write_size_bytes: int = 0


class Statistics(Model):
    """Statistics of a VM or a container."""

    timestamp: str = ""
    container_start_time: str = ""
    uptime_100ns: int = 0
    processor: ProcessorStats | None = None
    memory: MemoryStats | None = None
    storage: StorageStats | None = None


class VmMemory(Model):
    """The memory of a VM, in pages."""

    available_memory: int = 0
    available_memory_buffer: int = 0
    reserved_memory: int = 0
    assigned_memory: int = 0
    slp_active: bool = False
    balancing_enabled: bool = False
    dm_operation_in_progress: bool = False


class VirtualNodeInfo(Model):
    """A virtual NUMA node."""

    virtual_node_index: int = 0
    physical_node_number: int = 0
    virtual_processor_count: int = 0
    memory_usage_in_pages: int = 0


class MemoryInformationForVm(Model):
    """The memory of a VM and its virtual NUMA nodes."""

    virtual_node_count: int = 0
    virtual_machine_memory: VmMemory | None = None
    virtual_nodes: list[VirtualNodeInfo] = []


class GuestConnectionInfo(Model):
    """The guest's facts from its connection to HCS."""

    supported_schema_versions: list[Version] = []
    protocol_version: int = 0
    guest_defined_capabilities: Any = None


class Properties(Model):
    """The properties of a compute system.

    ``state`` is ``Created``, ``Running``, ``Paused``, ``Stopped``, ``SavedAsTemplate`` or ``Unknown``.
    ``metrics`` are the Linux guest's cgroup metrics.
    """

    id: str = ""
    system_type: str = ""
    runtime_os_type: str = ""
    name: str = ""
    owner: str = ""
    runtime_id: str = ""
    system_guid: str = field(name="SystemGUID", default="")
    runtime_template_id: str = ""
    state: str = ""
    stopped: bool = False
    exit_type: str = ""
    memory: MemoryInformationForVm | None = None
    statistics: Statistics | None = None
    process_list: list[ProcessDetails] = []
    terminate_on_last_handle_closed: bool = False
    hosting_system_id: str = ""
    shared_memory_region_info: list[Any] = []
    guest_connection_info: GuestConnectionInfo | None = None
    property_responses: dict[str, Any] = {}
    lcow_metrics: Any = field(name="LCOWMetrics", default=None)


class LogicalProcessor(Model):
    """A logical processor of the host."""

    lp_index: int = 0
    node_number: int = 0
    package_id: int = 0
    core_id: int = 0
    root_vp_index: int = 0


class ProcessorTopology(Model):
    """The logical processors of the host."""

    logical_processor_count: int = 0
    logical_processors: list[LogicalProcessor] = []
