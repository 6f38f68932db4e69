"""Memory and processors of a running VM."""

from __future__ import annotations

from typing import ClassVar

from uvm._names import guid_key
from uvm.backend import JSON
from uvm.backends.fake.devices.ports import is_guid
from uvm.backends.fake.devices.request import DeviceKind
from uvm.backends.fake.host import Host
from uvm.backends.requests.request import Request
from uvm.backends.requests.topology import limits, memory_mb
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.devices import Devices
from uvm.schema.guest import NULL_GUID
from uvm.schema.json import to_json
from uvm.schema.requests import CpuGroupAssignment, CpuLimits, MemorySize, ProcessorLimits, Resource
from uvm.schema.system import CpuGroup, VirtualMachine, VirtualMachineMemory, VirtualMachineProcessor


class TopologyKind(DeviceKind[Resource]):
    """Memory size, processor limits and the CPU group. A request without a type sets the value.

    :ivar limits: the processor limits in force.
    :ivar cpu_group: the id of the CPU group; empty, or the null GUID, for none.
    """

    resources: ClassVar[tuple[type[Resource], ...]] = (MemorySize, CpuLimits, CpuGroupAssignment)
    name: ClassVar[str] = "ComputeTopology"

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self.memory: VirtualMachineMemory = VirtualMachineMemory()
        self.processor: VirtualMachineProcessor = VirtualMachineProcessor()
        self.size_in_mb: int = 0
        self.limits: ProcessorLimits = ProcessorLimits()
        self.cpu_group: str = ""

    def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Set the topology of the document, which must have memory and processors."""
        topology = vm.compute_topology
        memory = topology.memory if topology is not None else None
        processor = topology.processor if topology is not None else None
        operation = f"create {self.vm_id}"
        if memory is None or processor is None:
            raise HostError(operation, HResult.E_INVALIDARG, "ComputeTopology needs Memory and Processor")
        if not 0 < processor.count <= self.host.info.processors:
            text = f"the VM has {processor.count} processors, the host {self.host.info.processors}"
            raise HostError(operation, HResult.E_INVALIDARG, text)
        self.memory, self.processor = memory, processor
        self._set_memory(Request(MemorySize(), "Add", memory.size_in_mb))
        self.limits = ProcessorLimits(
            limit=processor.limit, weight=processor.weight, reservation=processor.reservation
        )
        if processor.cpu_group is not None:
            self._set_group(processor.cpu_group.id, operation)

    def modify(self, request: Request[Resource]) -> None:
        """Set a value."""
        request.allow("Add", "Update")
        match request.resource:
            case MemorySize():
                self._set_memory(request)
            case CpuLimits():
                self.limits = limits(request)
            case _:
                group = request.parse(CpuGroup)
                if not is_guid(group.id):
                    raise request.invalid(f"Id is {group.id!r}, not a GUID")
                self._set_group(group.id, request.operation)

    def inventory(self) -> JSON:
        """Return the values in force."""
        return {
            "Memory": {"SizeInMB": self.size_in_mb},
            "Processor": {
                "Count": self.processor.count,
                **to_json(self.limits),
                **({"CpuGroup": {"Id": self.cpu_group}} if self.cpu_group else {}),
            },
        }

    def close(self) -> None:
        """Leave the CPU group."""
        self.cpu_group = ""

    def _set_group(self, group_id: str, operation: str) -> None:
        if guid_key(group_id) != NULL_GUID and self.host.checks.cpu_groups:
            self.host.cpu_groups.find(group_id, operation)
        self.cpu_group = group_id

    def group_document(self) -> JSON:
        """Return the ``CpuGroupConfigurations`` of the group that the VM is in."""
        return self.host.cpu_groups.document([self.cpu_group] if self.cpu_group else [])

    def _set_memory(self, request: Request[Resource]) -> None:
        self.size_in_mb = memory_mb(request, self.host.info.memory_mb)
