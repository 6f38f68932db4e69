"""Settings and state of a running VM: memory, processors, hvsocket services; statistics; saved state."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from uvm._arguments import kind_of
from uvm._checks import U32, U64, checked, flag, guid_of, instance, plain_guid, text, whole
from uvm._document.common import hvsocket_service
from uvm._names import HostPath, host_path
from uvm._vm.base import Part
from uvm._vm.statistics import VMStatistics, read_assigned_memory_bytes, read_statistics
from uvm.backend import JSON
from uvm.errors import NotSupportedError, OptionsError
from uvm.options import HvSocketService
from uvm.options.common import MAX_PROCESSOR_LIMIT, MAX_PROCESSOR_WEIGHT
from uvm.schema import requests
from uvm.schema.common import MIB, V20H2
from uvm.schema.guest import RESOURCE_POD_CGROUP_MEMORY_LIMIT
from uvm.schema.json import to_json
from uvm.schema.system import CpuGroup

#: Moving a VM into this group takes it out of its group (hcsshim internal/cpugroup).
_NULL_CPU_GROUP = "00000000-0000-0000-0000-000000000000"


class RuntimeSettings(Part):
    """Settings and state of a running VM. A part of :class:`~uvm._vm.vm.UtilityVM`."""

    async def modify(self, request: JSON | requests.ModifySettingRequest) -> None:
        """Send a request to the compute system as it is, if uvm has no method for it.

        The VM's own devices do not know what it attaches or detaches.
        """
        await self._link.carry_out(partial(self._link.modify, _as_json(request)))

    async def guest_request(self, request: JSON | requests.ModificationRequest) -> None:
        """Send a request to the guest as it is."""
        await self._link.carry_out(partial(self._link.modify_guest, _as_json(request)))

    async def update_memory(self, size_bytes: int | None = None, *, memory_mb: int | None = None) -> None:
        """Change the size of the memory, in bytes or in MB as :attr:`~uvm.options.Options.memory_mb`.

        The VM gets an even number of MiB: bytes are rounded down to MiB, then an odd number is raised by one.

        :raises OptionsError: the size is given twice or not at all, or is less than 1 MiB.
        """
        if (size_bytes is None) is (memory_mb is None):
            raise OptionsError("update_memory takes either size_bytes or memory_mb; the memory is unchanged")
        if size_bytes is not None:
            memory_mb = _whole("size_bytes", size_bytes, U64) // MIB
        size_mb = _whole("memory_mb", memory_mb, U64 - 1)
        if size_mb == 0:
            raise OptionsError(f"the memory must be at least {MIB} bytes, 1 MiB; it is unchanged")
        await self._set(requests.MemorySize.PATH, size_mb + size_mb % 2)

    async def assigned_memory_bytes(self) -> int:
        """Return how much memory the host has assigned to the VM.

        :raises SchemaError: the host left it out.
        """
        self._link.check_running()
        return await self._link.call(read_assigned_memory_bytes(self._link.system))

    async def update_cpu_limits(
        self, *, limit: int = 0, weight: int = 0, reservation: int = 0, maximum_frequency_mhz: int = 0
    ) -> None:
        """Change the processor limits; 0 leaves the choice to the host.

        :param limit: the share of each virtual processor that the VM may use, in 1/100,000: up to 100,000.
        :param weight: weight against other VMs, up to 10,000.
        :param reservation: the share of each virtual processor that is set aside for the VM, as `limit`.
        :raises OptionsError: a number is out of its range; nothing was sent.
        :raises NotSupportedError: the host is older than build 19042.
        """
        limits = requests.ProcessorLimits(
            limit=_whole("limit", limit, MAX_PROCESSOR_LIMIT),
            weight=_whole("weight", weight, MAX_PROCESSOR_WEIGHT),
            reservation=_whole("reservation", reservation, MAX_PROCESSOR_LIMIT),
            maximum_frequency_mhz=_whole("maximum_frequency_mhz", maximum_frequency_mhz, U32),
        )
        # hcsshim cpulimits_update.go.
        if self._context.host.build < V20H2:
            raise NotSupportedError(
                f"changing processor limits needs Windows build {V20H2}; "
                f"this host is {self._context.host.build}"
            )
        await self._set(requests.CpuLimits.PATH, limits)

    async def set_cpu_group(self, group_id: str) -> None:
        """Move the VM into a CPU group of the host; it must be in none (see :meth:`release_cpu_group`)."""
        plain = plain_guid(group_id)
        if not plain or text(plain) is not None:
            raise OptionsError("a CPU group id is needed; release_cpu_group() takes the VM out of its group")
        await self._set(requests.CpuGroupAssignment.PATH, CpuGroup(id=plain))

    async def release_cpu_group(self) -> None:
        """Move the VM out of its CPU group."""
        await self._set(requests.CpuGroupAssignment.PATH, CpuGroup(id=_NULL_CPU_GROUP))

    async def update_hvsocket_service(self, service_id: str, service: HvSocketService) -> None:
        """Add an hvsocket service of the VM, or change the access to it.

        :param service_id: the service's GUID.
        """
        if not isinstance(service, HvSocketService):
            raise OptionsError(f"a service is an HvSocketService, not {kind_of(service)}")
        path = requests.SocketService(guid_of(service_id, "a service id")).path
        config = hvsocket_service(service)
        await self.modify(
            requests.ModifySettingRequest(resource_path=path, request_type=requests.UPDATE, settings=config)
        )

    async def remove_hvsocket_service(self, service_id: str) -> None:
        """Remove an hvsocket service from the VM's table."""
        path = requests.SocketService(guid_of(service_id, "a service id")).path
        await self.modify(requests.ModifySettingRequest(resource_path=path, request_type=requests.REMOVE))

    async def update_container_memory_limits(self) -> None:
        """Have a Linux guest fit its pods' memory cgroup to the VM's memory, after :meth:`update_memory`."""
        self._context.need_guest(RESOURCE_POD_CGROUP_MEMORY_LIMIT, "linux")
        await self.guest_request(
            requests.ModificationRequest(
                request_type=requests.UPDATE, resource_type=RESOURCE_POD_CGROUP_MEMORY_LIMIT
            )
        )

    async def save(self, path: HostPath, *, as_template: bool = False) -> None:
        """Save the VM's state into a file of the host; the VM must be paused.

        :param path: empty leaves the choice to the host.
        :param as_template: save it as a template that other VMs start from.
        :raises OptionsError: the path is not an absolute one of the host.
        """
        link = self._link
        link.check_running()
        file = host_path(path, self._context.host.paths, "path") if path else ""
        save_type = "AsTemplate" if checked(as_template, flag, "as_template") else "ToFile"
        options = {"SaveType": save_type, "SaveStateFilePath": file}
        await link.carry_out(lambda: link.call(link.system.save(options)))

    async def crash(self) -> None:
        """Crash the guest, for a dump."""
        link = self._link
        link.check_running()
        await link.carry_out(lambda: link.call(link.system.crash()))

    async def stats(self) -> VMStatistics:
        """Return statistics of the VM."""
        self._link.check_running()
        physically_backed = not self._context.options.allow_overcommit
        return await self._link.call(read_statistics(self._link.system, physically_backed=physically_backed))

    async def _set(self, path: str, settings: Any) -> None:
        await self.modify(requests.ModifySettingRequest(resource_path=path, settings=settings))


def _as_json(request: JSON | requests.ModifySettingRequest | requests.ModificationRequest) -> JSON:
    """Return a request as a JSON object that the caller does not share."""
    checked(request, instance(dict, requests.ModifySettingRequest, requests.ModificationRequest), "request")
    return copy.deepcopy(request) if isinstance(request, dict) else to_json(request)


def _whole(name: str, value: Any, maximum: int) -> int:
    """Check that a number is a whole one up to a maximum, and return it."""
    if (allowed := whole(maximum)(value)) is not None:
        raise OptionsError(f"{name} must be {allowed}, not {value!r}; nothing was sent")
    number: int = value
    return number
