"""QEMU on a Linux host as a backend.

How it works
------------

A VM is a process of QEMU, which this process starts, asks over QMP, and takes with it when it ends. The
backend is entered: its task group serves the VMs, whatever scope of their callers is cancelled, and what runs
is ended when it is left. What other processes of this user run is found by its runtime directory.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from uuid import uuid4

import anyio
import anyio.abc
import anyio.to_thread
from attrs import astuple, evolve

from uvm._async import BareTaskGroup, Flag, errors_of
from uvm._checks import checked, choice, flag, text, whole
from uvm._log import Log
from uvm.backend import JSON, AccessMask, HostFiles, HostInfo, HostPipes, System
from uvm.backends.qemu.boots import Boots
from uvm.backends.qemu.cgroups import Cgroup, delegated, has_limits
from uvm.backends.qemu.commandline import MAX_ROOT_PORTS, Acceleration, Launch, check_document, command_line
from uvm.backends.qemu.devices.request import Host
from uvm.backends.qemu.devices.tree import DeviceTree
from uvm.backends.qemu.files import linux_files
from uvm.backends.qemu.inherited import Inherited, copied_mb
from uvm.backends.qemu.launch import Launcher, Process
from uvm.backends.qemu.network import QEMUNetwork
from uvm.backends.qemu.othersystem import OtherSystem
from uvm.backends.qemu.pipes import UnixPipes
from uvm.backends.qemu.preconditions import (
    check_console,
    check_memory,
    explained,
    program,
)
from uvm.backends.qemu.properties import service_property
from uvm.backends.qemu.room import available_mb, check_room
from uvm.backends.qemu.runtime import (
    ProcessName,
    Record,
    RuntimeDirectory,
    VMDirectory,
    default_runtime_directory,
)
from uvm.backends.qemu.saving import Boot, Memory, SavedVM
from uvm.backends.qemu.sockets import SocketFile
from uvm.backends.qemu.system import QEMUSystem
from uvm.backends.qemu.users import Choose, chooser
from uvm.backends.qemu.vm import VM
from uvm.backends.requests.access import AccessTable
from uvm.backends.requests.request import read_document
from uvm.backends.requests.systems import chosen, template_of
from uvm.backends.workers import finish
from uvm.errors import HostError, VMStateError
from uvm.hresult import HResult
from uvm.schema.system import ComputeSystem, Topology, VirtualMachine

if TYPE_CHECKING:
    from uvm.backends.qemu.guestimage import ImageOptions

_log = Log("uvm")

#: How long what runs may take to end when the backend is left.
_END_SECONDS: Final = 10.0
_MAX_SHARE_SLOTS: Final = 64
#: What a clone writes of its memory, and QEMU of its own, until its guest is greeted.
_CLONE_MB: Final = 128


class QEMUBackend:
    """A Linux host with QEMU (:class:`~uvm.backend.Backend`). Enter it with ``async with``.

    :param binary: the program; by default QEMU's for this machine, on the path.
    :param acceleration: ``"kvm"``, ``"tcg"`` (emulation), or ``"auto"``: KVM if guests run with it.
    :param image: what the guest image is made of that VMs boot whose options name no boot files; by default
        this machine's own kernel and programs.
    :param require_isolation: refuse emulation, which is no security boundary.
    :param runtime_directory: the directory in which the VMs of this user are found.
    :param user: the user that QEMU runs as, by name or number, if this process is root's: by default one of
        its own for each VM.
    :param cgroup: a cgroup (version 2) that this user may write to, below which each VM gets its own, with a
        ceiling of its memory; without it, VMs with limits of processors get one below this process's, if
        that is delegated to it.
    :param root_ports: how many shares and adapters a VM can have at once.
    :param share_slots: how many shares a VM can have at once, of each kind: writable and read-only.
    :param launcher: what starts QEMU.
    :ivar name: the name under which the backend is registered.
    :ivar files: the host's file system.
    :ivar network: the host's networks.
    :ivar pipes: the host's Unix sockets.
    :raises NotSupportedError: this machine has no QEMU, and the message says what to install; or `user` is
        another one, and this process is not root's.
    :raises OptionsError: an option is none, or there is no such user.
    """

    name: Final = "qemu"

    def __init__(
        self,
        *,
        binary: str = "",
        acceleration: Literal["auto", "kvm", "tcg"] = "auto",
        image: ImageOptions | None = None,
        require_isolation: bool = False,
        runtime_directory: str | os.PathLike[str] = "",
        user: str = "",
        cgroup: str | os.PathLike[str] = "",
        root_ports: int = 16,
        share_slots: int = 8,
        launcher: Launcher | None = None,
    ) -> None:
        self._binary = program(checked(binary, text, "binary"))
        wanted = checked(acceleration, choice("auto", "kvm", "tcg"), "acceleration")
        isolated = checked(require_isolation, flag, "require_isolation")
        self._runtime = os.fspath(runtime_directory) or default_runtime_directory()
        self._choose_user: Choose = chooser(checked(user, text, "user"), f"{self._runtime}/users")
        self._boots = Boots(
            self._binary, wanted, image, require_isolation=isolated, choose_user=self._choose_user
        )
        self._cgroup = os.fspath(cgroup)
        self._root_ports = checked(root_ports, whole(MAX_ROOT_PORTS), "root_ports")
        self._share_slots = checked(share_slots, whole(_MAX_SHARE_SLOTS), "share_slots")
        self.files: HostFiles = linux_files()
        self.network: Final = QEMUNetwork(self.new_id)
        self.pipes: HostPipes = UnixPipes()
        self._access = AccessTable(os.path.realpath, os.path.exists)
        self._vms: dict[str, VM] = {}
        self._adopting: dict[str, Flag] = {}
        self._available_mb: Callable[[], int] = available_mb
        self._launcher: Launcher = Launcher() if launcher is None else launcher
        self._directory: RuntimeDirectory
        self._group: BareTaskGroup
        self._tasks: anyio.abc.TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    async def host(self) -> HostInfo:
        """Return facts about the host."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return HostInfo(
            processors=len(os.sched_getaffinity(0)),
            memory_mb=memory >> 20,
            machine="arm64" if platform.machine() == "aarch64" else "amd64",
            paths="posix",
            templates=("linux",),
            guest_images=("linux",),
            overlays=True,
        )

    async def service_properties(self, *types: str) -> JSON:
        """Return properties of the compute service.

        :raises HostError: HCS_E_INVALID_JSON for an unknown type.
        """
        info = await self.host()
        return {"Properties": [service_property(name, info) for name in types]}

    async def modify_service(self, request: JSON) -> None:
        """Refuse: there is nothing to change.

        :raises HostError: HCS_E_INVALID_JSON.
        """
        text = f"unknown property {request.get('PropertyType')!r}"
        raise HostError("modify the compute service", HResult.HCS_E_INVALID_JSON, text)

    async def grant_access(self, path: str, to: str, mask: AccessMask = "read") -> None:
        """Grant a VM, or the VM group, access to a path; ERROR_FILE_NOT_FOUND if it does not exist."""
        await anyio.to_thread.run_sync(self._access.grant, path, to, mask)

    async def revoke_access(self, path: str, to: str) -> None:
        """Revoke access; do nothing if there is none."""
        await anyio.to_thread.run_sync(self._access.revoke, path, to)

    async def create(self, system_id: str, document: JSON) -> System:
        """Create a VM: start QEMU, paused, with the devices of the document attached.

        :raises HostError: HCS_E_SYSTEM_ALREADY_EXISTS; HCS_E_INVALID_JSON; ERROR_ALREADY_EXISTS if the path
            of the console is taken; a device is refused; or QEMU ended at once, and the message has its last
            words.
        :raises HostPathError: the runtime directory cannot be written to; nothing is left running.
        :raises NotSupportedError: the document asks for what this backend does not have.
        :raises NoSpaceError: the machine has not enough memory left.
        """
        self._entered()
        operation = f"create {system_id}"
        read = read_document(ComputeSystem, document, operation)
        machine = read.virtual_machine
        if machine is None:
            text = "the document has no VirtualMachine; other systems are HCS's"
            raise HostError(operation, HResult.HCS_E_INVALID_JSON, text)
        if system_id in self._vms:
            raise HostError(operation, HResult.HCS_E_SYSTEM_ALREADY_EXISTS)
        check_document(machine)
        info = await self.host()
        check_console(machine, operation)
        check_memory(machine, info.memory_mb, operation)
        template = template_of(machine, self._vms, operation)
        saved = None if template is None else template.saved
        boot, image = await self._boots.of(machine, template, operation)
        with ExitStack() as undo:
            if image is not None:
                undo.callback(image.close)
            vm = await self._claimed(read, boot, saved, system_id)
            vm.image = image
            undo.pop_all()
        vm.devices = self._devices(vm, info, self._root_ports, self._share_slots)
        if saved is not None:
            vm.devices.scsi.bases = vm.devices.vpmem.bases = saved.files
            vm.devices.vpmem.places = saved.luns
        await self._start(vm, document, saved)
        return QEMUSystem(vm, info, self._forget)

    async def _claimed(self, document: ComputeSystem, boot: Boot, saved: SavedVM | None, id: str) -> VM:
        """Return a VM with its directory and its memory; nothing of it is there if that fails."""
        machine, operation = document.virtual_machine, f"create {id}"
        assert machine is not None
        record = Record(id, self.new_id(), document.owner, "Created", _this_process())
        directory = await self._claim(record, machine.compute_topology or Topology(), boot.acceleration)
        try:
            copied = await anyio.to_thread.run_sync(copied_mb, boot, directory.record.user, operation)
            memory = await self._memory(machine, saved, copied, operation)
        except BaseException:
            directory.remove()
            raise
        return VM(document, directory, boot, memory, copied)

    async def _memory(
        self, machine: VirtualMachine, template: SavedVM | None, copied_mb: int, operation: str
    ) -> Memory:
        """Return the memory of a VM, for which there is room.

        :param copied_mb: what is needed besides, for copies of its boot files.
        :raises NoSpaceError: there is not.
        """
        topology = machine.compute_topology
        assert topology is not None
        assert topology.memory is not None
        size = topology.memory.size_in_mb
        # What is overcommitted takes the room that it uses; a template's memory stays for its clones.
        whole = machine.is_template or not topology.memory.allow_overcommit
        wanted = size if whole else min(size, _CLONE_MB) if template is not None else 0
        check_room(operation, wanted + copied_mb, await anyio.to_thread.run_sync(self._available_mb))
        return Memory.of_mb(size) if template is None else template.open_memory(operation)

    async def _claim(self, record: Record, topology: Topology, acceleration: Acceleration) -> VMDirectory:
        """Make the directory of a VM, and its cgroup if it has limits, or the backend has a cgroup."""
        cgroup = None
        if self._cgroup or has_limits(topology):
            parent = await anyio.to_thread.run_sync(delegated, self._cgroup)
            cgroup = Cgroup.of(parent, record.runtime_id)
            # Before it is made, so that it is found whenever this process is killed.
            record = evolve(record, cgroup=str(cgroup.path))
        directory = await finish(self._directory.claim, record, self._choose_user, undo=VMDirectory.remove)
        if cgroup is not None:
            make = partial(cgroup.make, topology, emulated=acceleration == "tcg")
            try:
                await finish(make)
            except BaseException:
                # With its cgroup, once it has one.
                directory.remove()
                raise
        return directory

    async def _start(self, vm: VM, document: JSON, template: SavedVM | None) -> None:
        """Start the QEMU of a VM, and attach what its document has; nothing is left of it if that fails."""
        self._vms[vm.id] = vm
        try:
            await self._launch(vm, document)
            await vm.devices.load(vm.machine)
            await self._restore(vm, template)
            # Until now, the next process ends what a process that was killed has begun.
            vm.directory.note(survives=vm.survives)
        except BaseException:
            try:
                with anyio.CancelScope(shield=True):
                    await vm.discard()
            finally:
                self._forget(vm)
            raise

    async def _launch(self, vm: VM, document: JSON) -> None:
        opening = partial(Inherited, vm.boot, vm.directory, vm.copied_mb, vm.console_path)
        with await finish(opening, undo=Inherited.discard) as files:
            vm.console = files.console_socket
            if vm.survives:
                self._keep(vm, document)
            arguments = partial(self._arguments, vm, files)
            try:
                await vm.launch(self._launcher, arguments, files.fds, self._entered())
            except HostError as error:
                raise await anyio.to_thread.run_sync(explained, error, self._binary, vm.boot) from error

    def _keep(self, vm: VM, document: JSON) -> None:
        """Keep what the next process that has the VM needs."""
        console = None if vm.console is None else astuple(vm.console)
        facts = {"Document": document, "Boot": astuple(vm.boot), "Console": console}
        vm.directory.keep({**facts, "RootPorts": self._root_ports, "ShareSlots": self._share_slots})

    async def _restore(self, vm: VM, template: SavedVM | None) -> None:
        """Load the state that a VM starts from, if its document names one."""
        state = vm.machine.restore_state
        if template is not None:
            await vm.restore(template)
        elif state is not None and state.save_state_file_path:
            await vm.restore_from_file(state.save_state_file_path)

    def _arguments(self, vm: VM, inherited: Inherited, qmp: str, mux: str) -> list[str]:
        user = vm.directory.record.user
        launch = Launch(
            name=vm.id,
            runtime_id=vm.runtime_id,
            binary=self._binary,
            acceleration=vm.boot.acceleration,
            kernel=inherited.kernel,
            initrd=inherited.initrd,
            shares=inherited.shares,
            qmp=qmp,
            mux=mux,
            memory=vm.memory.fd,
            console=inherited.console,
            restores=vm.machine.restore_state is not None,
            is_clone=vm.is_clone,
            as_root=os.geteuid() == 0 and (user is None or not user.uid),
            root_ports=self._root_ports,
            share_slots=self._share_slots,
        )
        return command_line(vm.machine, launch)

    def _devices(self, vm: VM, info: HostInfo, root_ports: int, share_slots: int) -> DeviceTree:
        host = Host(
            machine=vm.monitor,
            info=info,
            access=self._access,
            endpoints=self.network,
            directory=vm.directory.shares,
            user=vm.directory.record.user,
            cgroup=vm.directory.cgroup,
            root_ports=root_ports,
            share_slots=share_slots,
            journal=vm.journal if vm.survives else None,
            fixed_memory=vm.machine.is_template or vm.is_clone,
        )
        return DeviceTree(host)

    async def open(self, system_id: str) -> System:
        """Open another handle; HCS_E_SYSTEM_NOT_FOUND if there is no such VM of this user."""
        self._entered()
        vm = await self._one(system_id)
        if vm is not None:
            return QEMUSystem(vm, await self.host(), self._forget)
        record = await anyio.to_thread.run_sync(self._directory.record, system_id)
        pidfd = record.qemu.open() if record is not None and record.qemu is not None else None
        if record is None or pidfd is None:
            raise HostError(f"open {system_id}", HResult.HCS_E_SYSTEM_NOT_FOUND)
        return OtherSystem(record, pidfd)

    async def _one(self, system_id: str) -> VM | None:
        """Return a VM that this process has, or has from now on, however many ask at once."""
        while (other := self._adopting.get(system_id)) is not None:
            await other.wait()
        if system_id in self._vms:
            return self._vms[system_id]
        mine = self._adopting[system_id] = Flag()
        try:
            return await self._adopt(system_id)
        finally:
            del self._adopting[system_id]
            mine.set()

    async def _adopt(self, system_id: str) -> VM | None:
        """Have a VM that survived the process that had it; None if there is none, or a process has it."""
        adopt = partial(self._directory.adopt, system_id, _this_process())
        directory = await finish(adopt, undo=_leave)
        if directory is None:
            return None
        qemu = directory.record.qemu
        pidfd = None if qemu is None else qemu.open()
        if qemu is None or pidfd is None:
            directory.remove()
            return None
        with ExitStack() as undo:
            undo.callback(directory.leave)
            undo.callback(os.close, pidfd)
            kept = directory.kept()
            document = read_document(ComputeSystem, kept["Document"], f"open {system_id}")
            vm = VM(document, directory, Boot(*kept["Boot"]), Memory(-1))
            vm.console = None if kept["Console"] is None else SocketFile(*kept["Console"])
            vm.devices = self._devices(vm, await self.host(), kept["RootPorts"], kept["ShareSlots"])
            try:
                await vm.adopt(Process(qemu.pid, pidfd), self._entered())
            finally:
                if vm.lifetime.served:
                    # The task that serves it closes what there is.
                    undo.pop_all()
        self._vms[system_id] = vm
        return vm

    async def enumerate(self, query: JSON | None = None) -> list[JSON]:
        """List the VMs of this user; ``Ids``, ``Names``, ``Types`` and ``Owners`` choose among them."""
        self._entered()
        records = await anyio.to_thread.run_sync(lambda: [*self._directory.records()])
        found = [vm.summary() for vm in self._vms.values()]
        found += [each.summary() for each in records if each.id not in self._vms]
        return chosen(found, query)

    def new_id(self) -> str:
        """Return a new GUID."""
        return str(uuid4())

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise VMStateError("this QEMUBackend was entered already; make another one")
        self._directory = RuntimeDirectory(self._runtime)
        await anyio.to_thread.run_sync(self._directory.sweep)
        self._group = BareTaskGroup(self._end)
        self._tasks = await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._group.__aexit__(*exc_info)

    async def _end(self, failure: BaseException | None) -> BaseException | None:
        """End what runs."""
        left = []
        for vm in self._vms.values():
            if vm.survives and vm.state in ("Created", "Running", "Paused"):
                vm.lifetime.leave()
            else:
                left.append(vm)
        with anyio.move_on_after(_END_SECONDS, shield=True) as limit:
            await errors_of(vm.end for vm in left)
        if limit.cancelled_caught:
            for vm in left:
                vm.lifetime.abandon()
                _log.error(vm.id, "QEMU was killed, and had not ended within %g s", _END_SECONDS)
        self._launcher.close()
        self._tasks = None
        return failure

    def _entered(self) -> anyio.abc.TaskGroup:
        if self._tasks is None:
            raise VMStateError(
                "this QEMUBackend was not entered, and nothing was started; write `async with backend:` "
                "around its use"
            )
        return self._tasks

    def _forget(self, vm: VM) -> None:
        if self._vms.get(vm.id) is vm:
            del self._vms[vm.id]


def _leave(directory: VMDirectory | None) -> None:
    if directory is not None:
        directory.leave()


def _this_process() -> ProcessName:
    found = ProcessName.of(os.getpid())
    assert found is not None, "this process runs"
    return found
