"""Memory and processors of a running VM.

The size of the memory can shrink, and grow again to what the VM was created with: by a balloon in the guest,
which takes pages from its kernel. That is cooperation, never a limit, and a VM without a balloon, as those of
templates are, keeps its size. Limits of processors are those of the VM's cgroup (:mod:`..cgroups`), if it has
one, and groups of them are Windows's.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import anyio.to_thread

from uvm.backend import JSON
from uvm.backends.qemu.devices.request import DeviceKind, Host
from uvm.backends.requests.request import Request
from uvm.backends.requests.topology import FULL, limits, memory_mb
from uvm.errors import NotSupportedError
from uvm.hresult import HResult
from uvm.schema.common import MIB
from uvm.schema.devices import Devices
from uvm.schema.requests import CpuGroupAssignment, CpuLimits, MemorySize, Resource
from uvm.schema.system import VirtualMachine, VirtualMachineMemory, VirtualMachineProcessor


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

    def configure(self, vm: VirtualMachine, devices: Devices) -> None:
        """Note the topology of the document."""
        topology = vm.compute_topology
        if topology is not None:
            self.memory = topology.memory or self.memory
            self.processor = topology.processor or self.processor
        self.size_in_mb = self.memory.size_in_mb

    async def adopt(self, operation: str) -> None:
        """Learn what an earlier process has changed."""
        if not self.host.fixed_memory:
            self.size_in_mb = (await self.machine.ask(operation, "query-balloon"))["actual"] // MIB

    async def modify(self, request: Request[Resource]) -> None:
        """Set a value."""
        request.allow("Add", "Update")
        match request.resource:
            case MemorySize():
                await self._set_memory(request)
            case CpuLimits():
                await self._set_limits(request)
            case _:
                raise request.lacking("CPU groups are Windows's")

    async def _set_memory(self, request: Request[Resource]) -> None:
        size = memory_mb(request, self.host.info.memory_mb)
        if self.host.fixed_memory:
            raise NotSupportedError(
                f"{request.operation} {self.machine.id}: the memory of a template is what clones start from: "
                "its size, and theirs, does not change; nothing was changed"
            )
        if size > self.memory.size_in_mb:
            raise request.lacking(
                f"memory grows to what the VM was created with at most, {self.memory.size_in_mb} MB; "
                "create it with more"
            )
        await self.machine.ask(request.operation, "balloon", {"value": size * MIB})
        self.size_in_mb = size

    async def _set_limits(self, request: Request[Resource]) -> None:
        asked = limits(request)
        if asked.reservation:
            raise request.lacking("processors cannot be reserved here, only limited and weighed")
        cgroup = self.host.cgroup
        if cgroup is not None:
            limit = partial(cgroup.limit, self.processor.count, asked.limit, asked.weight)
            try:
                await anyio.to_thread.run_sync(limit)
            except OSError as error:
                raise request.refuse(HResult.E_FAIL, f"{cgroup.path}: {error}") from error
        elif asked.limit not in (0, FULL) or asked.weight:
            raise request.lacking("the VM has no cgroup; create it with a limit, or the backend with one")

    def inventory(self) -> JSON:
        """Return the values in force."""
        return {"Memory": {"SizeInMB": self.size_in_mb}, "Processor": {"Count": self.processor.count}}
