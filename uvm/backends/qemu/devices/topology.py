"""Memory and processors of a running VM.

The size of the memory can shrink, and grow again to what the VM was created with: by a balloon in the guest,
which takes pages from its kernel. That is cooperation, never a limit, and a VM without a balloon, as those of
templates are, keeps its size. Limits of processors need a cgroup, and groups of them are Windows's.
"""

from __future__ import annotations

from typing import ClassVar, Final

from uvm.backend import JSON
from uvm.backends.qemu.devices.request import DeviceKind, Host, Request
from uvm.hresult import HResult
from uvm.schema.common import MIB
from uvm.schema.devices import Devices
from uvm.schema.requests import CpuGroupAssignment, CpuLimits, MemorySize, ProcessorLimits, Resource
from uvm.schema.system import VirtualMachine, VirtualMachineMemory, VirtualMachineProcessor

#: A limit or reservation of all of a processor, in 1/100,000.
FULL: Final = 100_000
_MAXIMUM_WEIGHT: Final = 10_000


class TopologyKind(DeviceKind[Resource]):
    """Memory size and processor limits.

    :ivar memory: the memory of the document.
    :ivar processor: the processors of the document.
    :ivar size_in_mb: the size of the memory that was last asked for.
    """

    resources: ClassVar[tuple[type[Resource], ...]] = (MemorySize, CpuLimits, CpuGroupAssignment)
    name: ClassVar[str] = "ComputeTopology"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.memory: VirtualMachineMemory = VirtualMachineMemory()
        self.processor: VirtualMachineProcessor = VirtualMachineProcessor()
        self.size_in_mb: int = 0

    async def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Note the topology of the document."""
        topology = vm.compute_topology
        if topology is not None:
            self.memory = topology.memory or self.memory
            self.processor = topology.processor or self.processor
        self.size_in_mb = self.memory.size_in_mb

    async def modify(self, request: Request[Resource]) -> None:
        """Set a value."""
        request.allow("Add", "Update")
        match request.resource:
            case MemorySize():
                await self._set_memory(request)
            case CpuLimits():
                self._set_limits(request)
            case _:
                raise request.lacking("CPU groups are Windows's")

    async def _set_memory(self, request: Request[Resource]) -> None:
        size = request.settings
        if type(size) is not int:
            raise request.refuse(HResult.HCS_E_INVALID_JSON, "the size is a whole number of MB")
        if size <= 0 or size % 2:
            raise request.invalid(f"a memory size is even and more than 0, not {size} MB")
        if self.host.fixed_memory:
            raise request.lacking("the memory of a VM that is a template, or a clone of one, cannot change")
        if size > self.host.info.memory_mb:
            text = f"the host has {self.host.info.memory_mb} MB"
            raise request.refuse(HResult.ERROR_NO_SYSTEM_RESOURCES, text)
        if size > self.memory.size_in_mb:
            raise request.lacking(
                f"memory grows to what the VM was created with at most, {self.memory.size_in_mb} MB; "
                "create it with more"
            )
        await self.machine.ask(request.operation, "balloon", {"value": size * MIB})
        self.size_in_mb = size

    def _set_limits(self, request: Request[Resource]) -> None:
        limits = request.parse(ProcessorLimits)
        if not (0 <= limits.limit <= FULL and 0 <= limits.reservation <= FULL):
            raise request.invalid(f"Limit and Reservation are at most {FULL}")
        if not 0 <= limits.weight <= _MAXIMUM_WEIGHT:
            raise request.invalid(f"Weight is at most {_MAXIMUM_WEIGHT}")
        if limits.limit not in (0, FULL) or limits.weight or limits.reservation:
            raise request.lacking("limits of processors need a cgroup: start this process in one")

    def inventory(self) -> JSON:
        """Return the values in force."""
        return {"Memory": {"SizeInMB": self.size_in_mb}, "Processor": {"Count": self.processor.count}}
