"""The in-memory backend: a whole host, for tests anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from types import MappingProxyType
from typing import Any
from uuid import UUID

from uvm._checks import U64, checked, instance, optional, whole
from uvm._home import Bound
from uvm._names import GuestOS
from uvm._repr import showing
from uvm.backend import JSON, VM_GROUP, AccessMask, HostInfo
from uvm.backends.fake.calls import copy_document
from uvm.backends.fake.clock import FakeClock
from uvm.backends.fake.exchange import Exchange, Latency
from uvm.backends.fake.faults import Faults
from uvm.backends.fake.files import FakeFiles
from uvm.backends.fake.guest.builtin import BUILT_IN
from uvm.backends.fake.guest.misbehaviour import Misbehaviour
from uvm.backends.fake.guest.programs import Programs
from uvm.backends.fake.guest.service import GuestEnvironment, GuestService
from uvm.backends.fake.handle import HostSide
from uvm.backends.fake.host import Checks, Host
from uvm.backends.fake.hostedsystem import HostedSystem
from uvm.backends.fake.network import FakeNetwork
from uvm.backends.fake.pipes import FakePipes
from uvm.backends.fake.properties import service_property
from uvm.backends.fake.request_log import RequestLog
from uvm.backends.fake.system import FakeHostedSystem, FakeSystem
from uvm.backends.fake.vm import FakeVM
from uvm.backends.requests.access import AccessTable
from uvm.backends.requests.request import read_document
from uvm.backends.requests.systems import chosen, template_of
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.system import ComputeSystem, VirtualMachine

#: The directory in which hcsshim expects the boot files of Linux VMs, and the files with their sizes.
_BOOT_DIRECTORY = "C:\\Program Files\\Linux Containers"
_BOOT_FILES = {"kernel": 11 << 20, "vmlinux": 46 << 20, "initrd.img": 38 << 20}


@showing("vms", "hosted_systems", "request_log")
class FakeBackend(Bound):
    """A hypervisor host in memory (:class:`~uvm.backend.Backend`).

    It refuses what HCS refuses, with the same result codes, and the same calls always have the same answers.

    :param host: the facts of the host.
    :param files: its file system. By default it holds the files that Linux VMs boot from, in hcsshim's
        directory for them, and nothing else.
    :param seed: the seed of its new ids and of faults with a probability.
    :param checks: how strictly it checks what requests name.
    :param latency: the time that its answers take.
    :param request_log_entries: how many calls the request log keeps.
    :param guest_capabilities: the capabilities that guests report, in place of their own.
    :ivar info: the facts of the host, as :meth:`host` returns them.
    :ivar files: the files of the host.
    :ivar network: the networks of the host.
    :ivar pipes: the pipes of the host.
    :ivar access: the access of VMs to paths of the host.
    :ivar request_log: the requests that reached the host and its guests.
    :ivar faults: the rules by which requests fail.
    :ivar clock: the time of the host, in ticks of its own.
    :ivar programs: the programs that its guests can run.
    :ivar misbehaviour: the rules that spoil the answers of its guests.
    """

    def __init__(
        self,
        *,
        host: HostInfo | None = None,
        files: FakeFiles | None = None,
        seed: int = 0,
        checks: Checks | None = None,
        latency: Latency | None = None,
        request_log_entries: int = 10_000,
        guest_capabilities: Mapping[str, Any] | None = None,
    ) -> None:
        for name, given, kind in (
            ("host", host, HostInfo),
            ("files", files, FakeFiles),
            ("checks", checks, Checks),
            ("latency", latency, Latency),
            ("guest_capabilities", guest_capabilities, Mapping),
        ):
            checked(given, optional(instance(kind)), name)
        checked(seed, whole(U64), "seed")
        self.info: HostInfo = HostInfo() if host is None else host
        self.files: FakeFiles = _boot_files(self.info) if files is None else files
        self.access: AccessTable = AccessTable(self.files.key, self.files.look)
        self.request_log: RequestLog = RequestLog(request_log_entries)
        self.faults: Faults = Faults(seed)
        self.programs: Programs = Programs(BUILT_IN)
        self.misbehaviour: Misbehaviour = Misbehaviour(seed)
        self.clock: FakeClock = FakeClock()
        self._exchange: Exchange = Exchange(self.request_log, self.faults, latency or Latency(), self.clock)
        self.network: FakeNetwork = FakeNetwork(self._exchange, self.new_id)
        self.pipes: FakePipes = FakePipes(self.info.paths)
        self._host = Host(self.info, self.files, self.access, self.network, checks or Checks())
        self._ids = Random(seed)
        self._side = HostSide(self._exchange, self.info)
        self._guests = GuestEnvironment(self._exchange, self.programs, self.misbehaviour)
        self._vms: dict[str, FakeVM] = {}
        self._hosted: dict[str, HostedSystem] = {}
        self._guest_capabilities = guest_capabilities

    @property
    def name(self) -> str:
        """The name under which it is registered."""
        return "fake"

    @property
    def vms(self) -> Mapping[str, FakeVM]:
        """The VMs that exist, by id; one that has exited exists until its last handle closes."""
        return MappingProxyType(self._vms)

    @property
    def hosted_systems(self) -> Mapping[str, HostedSystem]:
        """The containers that HCS hosts in VMs, by id; they exist as long as VMs do."""
        return MappingProxyType(self._hosted)

    async def host(self) -> HostInfo:
        """Return the host's facts."""
        return self.info

    async def service_properties(self, *types: str) -> JSON:
        """Return properties of the compute service, in the order of the types.

        :raises HostError: HCS_E_INVALID_JSON for an unknown type.
        """
        entry = self.request_log._begin("query", "", "service properties", {"PropertyTypes": list(types)})
        return await self._exchange.carry_out(
            entry, lambda: {"Properties": [service_property(name, self._host) for name in types]}
        )

    async def modify_service(self, request: JSON) -> None:
        """Create or delete a CPU group of the host.

        :raises HostError: HCS_E_INVALID_JSON, and what :meth:`CpuGroups.modify` refuses.
        """
        copied = copy_document(request, "modify the compute service")
        entry = self.request_log._begin("host", "", "modify service", copied)
        used = (vm.tree.topology.cpu_group for vm in self._vms.values())
        await self._exchange.carry_out(entry, lambda: self._host.cpu_groups.modify(copied, used))

    async def grant_access(self, path: str, to: str, mask: AccessMask = "read") -> None:
        """Grant a VM, or the VM group, access to a path; ERROR_FILE_NOT_FOUND if it does not exist.

        A VM's own access always includes writing, as that of ``HcsGrantVmAccess`` does; the VM group's goes
        by the mask.
        """
        document = {"path": path, "vm": to, **({"mask": mask} if to == VM_GROUP else {})}
        entry = self.request_log._begin("grant", "" if to == VM_GROUP else to, "grant", document)
        await self._exchange.carry_out(entry, lambda: self.access.grant(path, to, mask), self._vms.get(to))

    async def revoke_access(self, path: str, to: str) -> None:
        """Revoke access; do nothing if there is none."""
        document = {"path": path, "vm": to}
        entry = self.request_log._begin("revoke", "" if to == VM_GROUP else to, "revoke", document)
        await self._exchange.carry_out(entry, lambda: self.access.revoke(path, to), self._vms.get(to))

    async def create(self, system_id: str, document: JSON) -> FakeSystem:
        """Create a compute system: a VM, or with ``HostingSystemId`` a container that HCS hosts in a VM.

        :raises HostError: HCS_E_SYSTEM_ALREADY_EXISTS; HCS_E_INVALID_JSON for a document that HCS cannot
            read; or the refusal of a device of the document. For a container HCS_E_SYSTEM_NOT_FOUND
            if there is no such VM, and its guest's refusal.
        """
        operation = f"create {system_id}"
        copied = copy_document(document, operation)
        if copied.get("HostingSystemId"):
            return await self._create_hosted(system_id, copied)

        def create() -> FakeVM:
            self._require_free(system_id)
            vm = self._make(system_id, copied, _checked(copied, operation))
            self._vms[system_id] = vm
            return vm

        entry = self.request_log._begin("lifecycle", system_id, "create", copied)
        # The handle comes last: if the answer is lost, the system exists without a handle.
        return FakeSystem(self._side, await self._exchange.carry_out(entry, create))

    async def open(self, system_id: str) -> FakeSystem:
        """Open another handle; HCS_E_SYSTEM_NOT_FOUND if there is no such system."""
        hosted = self._hosted.get(system_id)
        vm = self._vms.get(system_id) if hosted is None else hosted.vm

        def find() -> FakeVM | HostedSystem:
            found = self._vms.get(system_id) or self._hosted.get(system_id)
            if found is None:
                raise HostError(f"open {system_id}", HResult.HCS_E_SYSTEM_NOT_FOUND)
            return found

        log_id, resource = (system_id, "") if hosted is None else (hosted.vm.id, system_id)
        entry = self.request_log._begin("lifecycle", log_id, "open", None, resource)
        found = await self._exchange.carry_out(entry, find, vm)
        if isinstance(found, HostedSystem):
            return FakeHostedSystem(self._side, found)
        return FakeSystem(self._side, found)

    async def enumerate(self, query: JSON | None = None) -> list[JSON]:
        """List compute systems; ``Ids``, ``Names``, ``Types`` and ``Owners`` choose among them."""

        def listed() -> list[JSON]:
            found = [system.summary() for system in (*self._vms.values(), *self._hosted.values())]
            return chosen(found, query)

        entry = self.request_log._begin("query", "", "enumerate", query)
        return await self._exchange.carry_out(entry, listed)

    def new_id(self) -> str:
        """Return a new GUID, determined by the seed."""
        return str(UUID(int=self._ids.getrandbits(128), version=4))

    def leftovers(self) -> list[str]:
        """Return what is left: VMs, containers, handles of processes, access, PCI functions, endpoints.

        Also namespaces and endpoints that were created through the backend, pipes that are listened at, and
        directories that were made through the backend and are empty. Nothing is left when everything that
        used the host has cleaned up.
        """
        left = [f"VM {vm.id} ({vm.state})" for vm in self._vms.values()]
        left += [f"{hosted}" for hosted in self._hosted.values()]
        left += [f"handle of {process}" for process in self._side.processes]
        left += [f"access of {to} to {path}" for path, to in self.access.entries() if to != VM_GROUP]
        left += [f"PCI function {path} {n} of {vm}" for (path, n), vm in self._host.pci.items()]
        left += [f"pipe {path}, listened at" for path in self.pipes.listened_at]
        left += [f"endpoint {e} attached to {vm}" for e, vm in self.network.attachments().items()]
        left += self.network.created()
        return [*left, *(f"directory {path}, empty" for path in self.files.left_empty())]

    async def __aenter__(self) -> FakeBackend:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Do nothing: there is nothing to close."""

    async def _create_hosted(self, system_id: str, document: JSON) -> FakeHostedSystem:
        operation, hosting_id = f"create {system_id}", str(document["HostingSystemId"])

        def create() -> HostedSystem:
            checked = read_document(ComputeSystem, document, operation)
            self._require_free(system_id)
            vm = self._vms.get(checked.hosting_system_id)
            if vm is None:
                text = f"there is no VM {checked.hosting_system_id}"
                raise HostError(operation, HResult.HCS_E_SYSTEM_NOT_FOUND, text)
            hosted = HostedSystem(vm, system_id, checked, self._forget_hosted)
            self._hosted[system_id] = hosted
            return hosted

        entry = self.request_log._begin("lifecycle", hosting_id, "create", document, system_id)
        made = await self._exchange.carry_out(entry, create, self._vms.get(hosting_id))
        return FakeHostedSystem(self._side, made)

    def _forget_vm(self, vm: FakeVM) -> None:
        self._vms.pop(vm.id, None)

    def _forget_hosted(self, hosted: HostedSystem) -> None:
        del self._hosted[hosted.id]

    def _require_free(self, system_id: str) -> None:
        if system_id in self._vms or system_id in self._hosted:
            raise HostError(f"create {system_id}", HResult.HCS_E_SYSTEM_ALREADY_EXISTS)

    def _make(self, system_id: str, document: JSON, checked: ComputeSystem) -> FakeVM:
        assert checked.virtual_machine is not None
        template = self._template(checked.virtual_machine, f"create {system_id}")
        vm = FakeVM(
            system_id,
            self.new_id(),
            document,
            checked,
            self._host,
            self.clock,
            self._forget_vm,
            self._guest_capabilities,
            template,
        )
        kind = _service_kind(vm.os)
        vm.service = kind(vm, checked.virtual_machine, self._guests)
        if template is not None:
            vm.service.restore(template.service)
        return vm

    def _template(self, machine: VirtualMachine, operation: str) -> FakeVM | None:
        """Return the template that a document restores, if guests of its kind can be cloned."""
        template = template_of(machine, self._vms, operation)
        if template is not None and template.os not in self.info.templates:
            text = f"there are no clones of {template.os.capitalize()} guests"
            raise HostError(operation, HResult.ERROR_NOT_SUPPORTED, text)
        return template


def _service_kind(os: GuestOS) -> type[GuestService]:
    """Return the class of the compute services of guests of an operating system."""
    if os == "linux":
        from uvm.backends.fake.guest.linux.service import LinuxService

        return LinuxService
    from uvm.backends.fake.guest.windows.service import WindowsService

    return WindowsService


def _boot_files(info: HostInfo) -> FakeFiles:
    files = FakeFiles(info.paths)
    if info.paths == "windows":
        for name, size in _BOOT_FILES.items():
            files.add(f"{_BOOT_DIRECTORY}\\{name}", size=size)
    return files


def _checked(document: JSON, operation: str) -> ComputeSystem:
    system = read_document(ComputeSystem, document, operation)
    if system.container is not None:
        text = "the fake hosts containers in virtual machines only"
        raise HostError(operation, HResult.ERROR_NOT_SUPPORTED, text)
    if system.virtual_machine is None:
        raise HostError(operation, HResult.HCS_E_INVALID_JSON, "VirtualMachine is missing")
    return system
