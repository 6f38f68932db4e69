"""Settings and state of a running VM: memory, processors, hvsocket services; statistics; saved state."""

from __future__ import annotations

from typing import Any

from uvm._vm.base import Part
from uvm._vm.statistics import VMStatistics, read_statistics
from uvm.backend import JSON
from uvm.errors import NotSupportedError, OptionsError
from uvm.options import HvSocketService
from uvm.options.checks import guid
from uvm.schema.common import MIB, PAGE_BYTES, V20H2
from uvm.schema.devices import HvSocketServiceConfig
from uvm.schema.json import to_json
from uvm.schema.requests import (
    CPU_GROUP_PATH,
    CPU_LIMITS_PATH,
    MEMORY_SIZE_PATH,
    REMOVE,
    UPDATE,
    ModificationRequest,
    ModifySettingRequest,
    ProcessorLimits,
    hvsocket_service_path,
)
from uvm.schema.system import CpuGroup

#: Moving a VM into this group takes it out of its group (hcsshim internal/cpugroup).
_NULL_CPU_GROUP = "00000000-0000-0000-0000-000000000000"


class RuntimeSettings(Part):
    """Settings and state of a running VM. A part of :class:`~uvm._vm.vm.UtilityVM`."""

    async def modify(self, request: JSON | ModifySettingRequest) -> None:
        """Send any request to the compute system, as it is: for what uvm has no method for.

        What it attaches or detaches, the VM's own devices do not know of.
        """
        await self._link.modify(_as_json(request))

    async def guest_request(self, request: JSON | ModificationRequest) -> None:
        """Send any request to the guest, as it is."""
        await self._link.modify_guest(_as_json(request))

    async def update_memory(self, size_bytes: int) -> None:
        """Change the size of its memory; rounded down to MiB and then up to an even number of them.

        :raises OptionsError: the size is less than a MiB.
        """
        if size_bytes < MIB:
            raise OptionsError(f"the memory size must be at least {MIB} bytes, not {size_bytes}")
        await self._set(MEMORY_SIZE_PATH, (size_bytes // MIB + 1) & ~1)

    async def assigned_memory_bytes(self) -> int:
        """Ask how much memory the host has assigned to it."""
        self._link.check_running()
        properties = await self._link.call(self._link.system.properties("Memory"))
        pages: int = properties["Memory"]["VirtualMachineMemory"]["AssignedMemory"]
        return pages * PAGE_BYTES

    async def update_cpu_limits(
        self, *, limit: int = 0, weight: int = 0, reservation: int = 0, maximum_frequency_mhz: int = 0
    ) -> None:
        """Change the processor limits; what is 0 is left to the host's default.

        :param limit: the share of each virtual processor that it may use, in 1/100000.
        :param weight: relative to other VMs.
        :raises NotSupportedError: the host is older than build 19042.
        """
        # hcsshim cpulimits_update.go.
        if self._context.host.build < V20H2:
            raise NotSupportedError(
                f"changing processor limits needs Windows build {V20H2}; "
                f"this host is {self._context.host.build}"
            )
        limits = ProcessorLimits(
            limit=limit,
            weight=weight,
            reservation=reservation,
            maximum_frequency_mhz=maximum_frequency_mhz,
        )
        await self._set(CPU_LIMITS_PATH, limits)

    async def set_cpu_group(self, group_id: str) -> None:
        """Move it into a CPU group of the host; it must be in none (see :meth:`release_cpu_group`)."""
        if not group_id:
            raise OptionsError("a CPU group id is needed; release_cpu_group() takes the VM out of its group")
        await self._set(CPU_GROUP_PATH, CpuGroup(id=group_id))

    async def release_cpu_group(self) -> None:
        """Take it out of its CPU group."""
        await self._set(CPU_GROUP_PATH, CpuGroup(id=_NULL_CPU_GROUP))

    async def update_hvsocket_service(self, service_id: str, service: HvSocketService) -> None:
        """Add or change who may use an hvsocket service of the VM.

        :param service_id: the service's GUID.
        """
        config = HvSocketServiceConfig(
            bind_security_descriptor=service.bind_security_descriptor,
            connect_security_descriptor=service.connect_security_descriptor,
            allow_wildcard_binds=service.allow_wildcard_binds,
            disabled=service.disabled,
        )
        path = hvsocket_service_path(_guid(service_id))
        await self.modify(ModifySettingRequest(resource_path=path, request_type=UPDATE, settings=config))

    async def remove_hvsocket_service(self, service_id: str) -> None:
        """Take an hvsocket service out of the VM's table."""
        path = hvsocket_service_path(_guid(service_id))
        await self.modify(ModifySettingRequest(resource_path=path, request_type=REMOVE))

    async def update_container_memory_limits(self) -> None:
        """Have a Linux guest fit its pods' memory cgroup to the VM's memory, after :meth:`update_memory`."""
        self._context.need_guest("PodCgroupMemoryLimit", "linux")
        await self.guest_request(
            ModificationRequest(request_type=UPDATE, resource_type="PodCgroupMemoryLimit")
        )

    async def save(self, path: str, *, as_template: bool = False) -> None:
        """Save its state into a file of the host; it must be paused.

        :param as_template: save it as a template that other VMs start from.
        """
        self._link.check_running()
        save_type = "AsTemplate" if as_template else "ToFile"
        await self._link.call(self._link.system.save({"SaveType": save_type, "SaveStateFilePath": path}))

    async def crash(self) -> None:
        """Make its guest crash, for a dump."""
        self._link.check_running()
        await self._link.call(self._link.system.crash())

    async def stats(self) -> VMStatistics:
        """Ask for its statistics."""
        self._link.check_running()
        physically_backed = not self._context.options.allow_overcommit
        return await self._link.call(read_statistics(self._link.system, physically_backed=physically_backed))

    async def _set(self, path: str, settings: Any) -> None:
        await self.modify(ModifySettingRequest(resource_path=path, settings=settings))


def _as_json(request: JSON | ModifySettingRequest | ModificationRequest) -> JSON:
    return request if isinstance(request, dict) else to_json(request)


def _guid(text: str) -> str:
    if (allowed := guid(text)) is not None:
        raise OptionsError(f"a service id is {allowed}, not {text!r}")
    return text
