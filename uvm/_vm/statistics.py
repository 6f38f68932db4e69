"""Statistics of a running VM."""

from __future__ import annotations

from attrs import frozen

from uvm._guest.access import has_gone
from uvm._repr import Value
from uvm.backend import System
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.common import PAGE_BYTES
from uvm.schema.json import SchemaError, from_json
from uvm.schema.properties import (
    MemoryInformationForVm,
    ProcessorStats,
    Properties,
    Statistics,
    VmMemory,
)


@frozen(repr=False)
class VMMemory(Value):
    """The hypervisor's view of the memory (``VmMemory`` of the HCS schema).

    :ivar available: what the guest has left, as HCS counts it (``AvailableMemory``).
    :ivar available_buffer: ``AvailableMemoryBuffer``.
    :ivar reserved_pages: ``ReservedMemory``, in 4 KiB pages.
    :ivar assigned_pages: ``AssignedMemory``, in 4 KiB pages.
    """

    available: int
    available_buffer: int
    reserved_pages: int
    assigned_pages: int
    slp_active: bool
    balancing_enabled: bool
    dynamic_operation_in_progress: bool


@frozen(repr=False)
class VMStatistics(Value):
    """What :meth:`uvm._vm.settings.RuntimeSettings.stats` returns (hcsshim internal/uvm/stats.go).

    :ivar processor_runtime_ns: processor time used by the VM since it started.
    :ivar uptime_ns: time since it started.
    :ivar working_set_bytes: physical memory that it occupies on the host.
    :ivar virtual_nodes: virtual NUMA nodes.
    """

    processor_runtime_ns: int
    uptime_ns: int
    working_set_bytes: int
    virtual_nodes: int
    memory: VMMemory | None


async def read_assigned_memory_bytes(system: System) -> int:
    """Return how much memory the host has assigned to a system.

    :raises SchemaError: the host left it out.
    """
    memory = from_json(Properties, await system.properties("Memory")).memory
    if memory is None or memory.virtual_machine_memory is None:
        raise SchemaError(f"{system.id}: the host's properties have no Memory.VirtualMachineMemory")
    return memory.virtual_machine_memory.assigned_memory * PAGE_BYTES


async def read_statistics(system: System, *, physically_backed: bool) -> VMStatistics:
    """Return a system's statistics.

    :param physically_backed: then all that is assigned is also occupied; otherwise the host is asked.
    """
    properties = from_json(Properties, await system.properties("Statistics", "Memory"))
    statistics = properties.statistics or Statistics()
    processor = statistics.processor or ProcessorStats()
    memory = properties.memory or MemoryInformationForVm()
    view = memory.virtual_machine_memory
    if physically_backed:
        working_set_bytes = view.assigned_memory * PAGE_BYTES if view else 0
    else:
        working_set_bytes = await _working_set_bytes(system)
    return VMStatistics(
        processor_runtime_ns=processor.total_runtime_100ns * 100,
        uptime_ns=statistics.uptime_100ns * 100,
        working_set_bytes=working_set_bytes,
        virtual_nodes=memory.virtual_node_count,
        memory=None if view is None else _memory(view),
    )


async def _working_set_bytes(system: System) -> int:
    try:
        return await system.working_set_bytes()
    except HostError as error:
        # The process that has the memory ends before the exit of its VM is reported.
        if error.system_gone or not await has_gone(system):
            raise
        raise HostError(error.operation, HResult.HCS_E_SYSTEM_ALREADY_STOPPED, error.text) from error


def _memory(view: VmMemory) -> VMMemory:
    return VMMemory(
        available=view.available_memory,
        available_buffer=view.available_memory_buffer,
        reserved_pages=view.reserved_memory,
        assigned_pages=view.assigned_memory,
        slp_active=view.slp_active,
        balancing_enabled=view.balancing_enabled,
        dynamic_operation_in_progress=view.dm_operation_in_progress,
    )
