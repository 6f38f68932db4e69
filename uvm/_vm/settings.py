"""Settings and state of a running VM: memory, processors, hvsocket services; statistics; saved state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

from uvm._arguments import kind_of
from uvm._checks import (
    U32,
    U64,
    check_names,
    checked,
    guid_of,
    instance,
    items,
    optional,
    plain_guid,
    text,
    whole,
    without_mark,
)
from uvm._document.common import hvsocket_service, need_build
from uvm._guest.specs import check_writable
from uvm._names import HostPath, guid_key, host_path
from uvm._vm.base import Part
from uvm._vm.statistics import VMStatistics, read_assigned_memory_bytes, read_statistics
from uvm.backend import JSON
from uvm.errors import OptionsError, VMExitedError
from uvm.options import HvSocketService, LCOWOptions
from uvm.options.common import MAX_PROCESSOR_LIMIT, MAX_PROCESSOR_WEIGHT
from uvm.schema import requests
from uvm.schema.common import MIB, V20H2, V21H1
from uvm.schema.guest import (
    NULL_GUID,
    RESOURCE_POD_CGROUP_MEMORY_LIMIT,
    RESOURCE_SECURITY_POLICY_FRAGMENT,
    SecurityPolicyFragment,
)
from uvm.schema.json import from_json, to_json
from uvm.schema.system import CpuGroup

if TYPE_CHECKING:
    from uvm._guest.resources import VMResources
    from uvm._guest.updates import Setting, Settings

_FIT_PODS: Final = requests.ModificationRequest(
    request_type=requests.UPDATE, resource_type=RESOURCE_POD_CGROUP_MEMORY_LIMIT
)
#: The annotation that names the CPU group of a VM (hcsshim pkg/annotations).
_CPU_GROUP_ANNOTATION = "io.microsoft.virtualmachine.cpugroup.id"
#: The one field of a policy fragment (hcsshim pkg/ctrdtaskapi).
_FRAGMENT = "fragment"


class RuntimeSettings(Part):
    """Settings and state of a running VM. A part of :class:`~uvm._vm.vm.UtilityVM`."""

    @cached_property
    def _settings(self) -> Settings:
        """The settings in force."""
        from uvm._guest.updates import Settings

        return Settings(_as_created(self._context.plan.document), self._send)

    async def _send(self, setting: Setting) -> None:
        request = requests.ModifySettingRequest(resource_path=setting.path, settings=setting.value)
        await self._link.modify(to_json(request))

    async def _set(self, path: str, value: Any) -> None:
        from uvm._guest.updates import Setting

        await self._link.carry_out("change setting", lambda: self._settings.set(Setting(path, value)))

    async def update(
        self, resources: Mapping[str, Any] | None = None, annotations: Mapping[str, str] | None = None
    ) -> None:
        """Update the VM in OCI terms: all that is asked for, or nothing. What is absent or null stays.

        In this order: the memory, to which a Linux guest fits its pods; the share of the processors and the
        weight; the CPU group. Everything is checked first, and a step that fails has those before it changed
        back. A second update waits for the first. A caller that is cancelled leaves at once, and the update
        goes on to its end.

        :param resources: ``LinuxResources`` or ``WindowsResources``, as the guest is. ``memory.limit`` is in
            bytes; Linux's ``cpu.quota`` of each ``cpu.period`` becomes a share of the VM's processors, its
            ``cpu.shares`` of 1,024 the weight 100; Windows' ``cpu.maximum`` and ``cpu.shares`` are share and
            weight. Or ``{"fragment": ...}``, a fragment of the security policy, alone.
        :param annotations: ``io.microsoft.virtualmachine.cpugroup.id`` moves the VM into a CPU group; others
            are ignored.
        :raises OptionsError: a value is out of its range, or a VM has no such resource; nothing was sent.
        :raises NotSupportedError: the host is older than build 19042; nothing was sent.
        :raises HostError: the host refused; what had been changed before was changed back.
        :raises UndoFailedError: changing back failed as well; it says what stays changed.

        Source: hcsshim internal/uvm/update_uvm.go, which passes quota and shares on as they are, and leaves
        what was changed before a failure.
        """
        checked(annotations, optional(items(text, text)), "annotations")
        if isinstance(resources, Mapping) and _FRAGMENT in resources:
            check_names("a policy fragment", map(str, resources), [_FRAGMENT])
            if annotations:
                raise OptionsError(
                    "a policy fragment is injected alone, without annotations; nothing was sent"
                )
            await self.inject_policy_fragment(resources[_FRAGMENT])
            return
        from uvm._guest.resources import vm_resources

        plan = self._context.plan
        asked = vm_resources({} if resources is None else resources, plan.os, plan.processors)
        if asked.limit is not None or asked.weight is not None:
            self._need_processor_limits()
        group = (annotations or {}).get(_CPU_GROUP_ANNOTATION, "")
        group = group and guid_of(group, _CPU_GROUP_ANNOTATION)
        self._link.check_running()
        update = partial(self._settings.update, partial(self._asked_settings, asked, group), [])
        await self._link.carry_out("update", update)

    async def inject_policy_fragment(self, fragment: str, media_type: str = "") -> None:
        """Add a signed fragment to the security policy of a confidential guest, also through HCS.

        :param fragment: base64 of the fragment.
        :raises GuestError: the guest refused.
        """
        request = requests.ModificationRequest(
            request_type=requests.ADD,
            resource_type=RESOURCE_SECURITY_POLICY_FRAGMENT,
            settings=SecurityPolicyFragment(
                fragment=without_mark(checked(fragment, text, "fragment")),
                media_type=checked(media_type, text, "media_type"),
            ),
        )
        await self._link.carry_out("inject policy fragment", partial(self._link.modify_guest, request))

    def _asked_settings(self, asked: VMResources, group: str) -> list[Setting]:
        from uvm._guest.updates import Setting

        made: list[Setting] = []
        options, in_force = self._context.options, self._settings.value
        if asked.memory_mb is not None:
            has_pods = isinstance(options, LCOWOptions) and options.use_guest_connection
            fit = self._fit_pods if has_pods else None
            made.append(Setting(requests.MemorySize.PATH, asked.memory_mb, fit))
        if asked.limit is not None or asked.weight is not None:
            limits = in_force(requests.CpuLimits.PATH)
            limit = limits.limit if asked.limit is None else asked.limit
            weight = limits.weight if asked.weight is None else asked.weight
            made.append(Setting(requests.CpuLimits.PATH, limits.replaced(limit=limit, weight=weight)))
        if group and guid_key(group) != guid_key(in_force(requests.CpuGroupAssignment.PATH).id):
            made.append(Setting(requests.CpuGroupAssignment.PATH, CpuGroup(id=group)))
        return made

    async def _fit_pods(self) -> None:
        await self._link.modify_guest(_FIT_PODS)

    async def modify(self, request: JSON | requests.ModifySettingRequest) -> None:
        """Send a request to the compute system as it is, if uvm has no method for it.

        The VM's own devices do not know what it attaches or detaches.

        :raises OptionsError: it is no JSON; nothing was sent.
        """
        await self._link.carry_out("modify", partial(self._link.modify, _as_json(request)))

    async def guest_request(self, request: JSON | requests.ModificationRequest) -> None:
        """Send a request to the guest as it is.

        :raises OptionsError: it is no JSON; nothing was sent.
        """
        await self._link.carry_out("guest request", partial(self._link.modify_guest, _as_json(request)))

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
        self._need_processor_limits()
        await self._set(requests.CpuLimits.PATH, limits)

    def _need_processor_limits(self) -> None:
        # hcsshim cpulimits_update.go.
        need_build(self._context.host, V20H2, "changing processor limits")

    async def set_cpu_group(self, group_id: str) -> None:
        """Move the VM into a CPU group of the host; it must be in none (see :meth:`release_cpu_group`)."""
        plain = plain_guid(group_id)
        if not plain or text(plain) is not None:
            raise OptionsError("a CPU group id is needed; release_cpu_group() takes the VM out of its group")
        await self._set(requests.CpuGroupAssignment.PATH, CpuGroup(id=plain))

    async def release_cpu_group(self) -> None:
        """Move the VM out of its CPU group."""
        # Into the null group, that is (hcsshim internal/cpugroup).
        await self._set(requests.CpuGroupAssignment.PATH, CpuGroup(id=NULL_GUID))

    async def _join_cpu_group(self) -> None:
        """Move the VM into its group on a host that cannot do that at the creation (hcsshim v0.8.16)."""
        if self._context.options.cpu_group_id and self._context.host.build < V21H1:
            from uvm._guest.updates import Setting

            group = CpuGroup(id=self._context.options.cpu_group_id)
            await self._settings.set(Setting(requests.CpuGroupAssignment.PATH, group))

    async def _leave_cpu_group(self) -> None:
        """Move the VM out of a group that it was moved into as it ran: only an empty group can be deleted."""
        settings: Settings | None = vars(self).get("_settings")
        path = requests.CpuGroupAssignment.PATH
        if settings is not None and settings.was_set(path) and settings.value(path).id != NULL_GUID:
            from uvm._guest.updates import Setting

            await settings.set(Setting(path, CpuGroup(id=NULL_GUID)))

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
        await self.guest_request(_FIT_PODS)

    async def save(self, path: HostPath) -> None:
        """Save the VM's state into a file of the host; the VM must be paused.

        :param path: empty leaves the choice to the host.
        :raises OptionsError: the path is not an absolute one of the host.
        """
        link = self._link
        link.check_running()
        file = host_path(path, self._context.host.paths, "path") if path else ""
        options = {"SaveType": "ToFile", "SaveStateFilePath": file}
        await link.carry_out("save", lambda: link.call(link.system.save(options)))

    async def crash(self) -> None:
        """Crash the guest, for a dump. If the VM exits before the answer comes, the exit is the answer.

        :raises VMExitedError: the VM is known to have exited before.
        """
        link = self._link
        link.check_running()
        with suppress(VMExitedError):
            await link.carry_out("crash", lambda: link.call(link.system.crash()))

    async def stats(self) -> VMStatistics:
        """Return statistics of the VM."""
        self._link.check_running()
        physically_backed = not self._context.options.allow_overcommit
        return await self._link.call(read_statistics(self._link.system, physically_backed=physically_backed))


def _as_created(document: JSON) -> dict[str, Any]:
    """Return the settings that a VM is created with, by their paths."""
    topology = document.get("VirtualMachine", {}).get("ComputeTopology", {})
    processor = topology.get("Processor", {})
    limits = {name: processor[name] for name in ("Limit", "Weight", "Reservation") if name in processor}
    return {
        requests.MemorySize.PATH: topology.get("Memory", {}).get("SizeInMB"),
        requests.CpuLimits.PATH: from_json(requests.ProcessorLimits, limits),
        requests.CpuGroupAssignment.PATH: CpuGroup(id=processor.get("CpuGroup", {}).get("Id") or NULL_GUID),
    }


def _as_json(request: JSON | requests.ModifySettingRequest | requests.ModificationRequest) -> JSON:
    """Return a request as a JSON object that the caller does not share.

    :raises OptionsError: it holds what JSON has no form for.
    """
    checked(request, instance(dict, requests.ModifySettingRequest, requests.ModificationRequest), "request")
    return json.loads(check_writable("the request, of which nothing was sent,", request))  # type: ignore[no-any-return]


def _whole(name: str, value: Any, maximum: int) -> int:
    """Check that a number is a whole one up to a maximum, and return it."""
    if (allowed := whole(maximum)(value)) is not None:
        raise OptionsError(f"{name} must be {allowed}, not {value!r}; nothing was sent")
    number: int = value
    return number
