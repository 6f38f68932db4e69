"""One VM: its states, and what is asked of it in each.

How it works
------------

::

    Created -- start --> Running <-- pause, resume --> Paused
       |                    |                             |
       +--------------------+--- the process ends --------+----> Stopped

A VM that is saved as a template is none of these: its QEMU ends, and the VM does not. The process of QEMU,
which is served meanwhile, is :class:`~uvm.backends.qemu.lifetime.Lifetime`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Literal

import anyio
import anyio.abc

from uvm._log import Log
from uvm._repr import showing
from uvm.backend import JSON, Listener
from uvm.backends.qemu.devices.journal import Journal
from uvm.backends.qemu.devices.tree import DeviceTree
from uvm.backends.qemu.hostprocess import HostConnection
from uvm.backends.qemu.launch import Launcher, Process
from uvm.backends.qemu.lifetime import Lifetime
from uvm.backends.qemu.monitor import Monitor
from uvm.backends.qemu.runtime import VMDirectory
from uvm.backends.qemu.saving import (
    Boot,
    Build,
    Memory,
    SavedVM,
    build_of,
    check_fits,
    check_saveable,
    open_saved,
    restore,
    save_template,
    save_to_file,
)
from uvm.backends.qemu.sockets import SocketFile
from uvm.backends.workers import finish
from uvm.errors import ExitStatus, HostError, HostPathError
from uvm.hresult import HResult
from uvm.schema.requests import ModifySettingRequest
from uvm.schema.system import ComputeSystem, VirtualMachine

if TYPE_CHECKING:
    from uvm.backends.qemu.guestimage.cache import Hold

_log = Log("uvm")

State = Literal["Created", "Running", "Paused", "SavedAsTemplate", "Stopped"]

#: QEMU's state of a VM that was saved since it was paused.
_SAVED: Final = "postmigrate"
#: The states of VMs by QEMU's.
_STATES: Final[dict[str, State]] = {"prelaunch": "Created", "paused": "Paused", _SAVED: "Paused"}
#: The events of guests that ended while no process had the VM, by QEMU's states.
_GUEST_ENDS: Final[dict[str, tuple[str, JSON]]] = {
    "shutdown": ("SHUTDOWN", {"reason": "guest-shutdown"}),
    "guest-panicked": ("GUEST_PANICKED", {}),
}


@showing("id", "state")
class VM:
    """A virtual machine that this process has started.

    :param document: the document that it is created with, checked.
    :ivar directory: its runtime directory.
    :ivar boot: what it is started with.
    :ivar lifetime: the process of QEMU.
    :ivar devices: the devices that come and go.
    :ivar memory: its memory.
    :ivar copied_mb: the memory that copies of its boot files may take.
    :ivar image: keeps the guest image that it boots from being pruned; None for none.
    :ivar saved: what it was saved as, a template; None before. Its QEMU ends then, and not the VM.
    :ivar console: the socket of its serial port; None if there is none.
    :ivar handles: how many handles are open.
    """

    def __init__(
        self,
        document: ComputeSystem,
        directory: VMDirectory,
        boot: Boot,
        memory: Memory,
        copied_mb: int = 0,
    ) -> None:
        assert document.virtual_machine is not None
        self.document: ComputeSystem = document
        self.machine: VirtualMachine = document.virtual_machine
        self.directory: VMDirectory = directory
        self.boot: Boot = boot
        self.state: State = "Created"
        self.memory: Memory = memory
        self.copied_mb: int = copied_mb
        self.image: Hold | None = None
        self.saved: SavedVM | None = None
        self._saving = anyio.Lock()
        self.handles: int = 0
        self.console: SocketFile | None = None
        self.devices: DeviceTree
        self.lifetime: Lifetime = Lifetime(directory, self._ended, survives=self.survives)

    @property
    def id(self) -> str:
        """The id of the compute system."""
        return self.directory.record.id

    @property
    def runtime_id(self) -> str:
        """The VM's GUID."""
        return self.directory.record.runtime_id

    @property
    def pid(self) -> int:
        """The id of QEMU's process."""
        return self.lifetime.process.pid

    @property
    def monitor(self) -> Monitor:
        """How QEMU is asked."""
        return self.lifetime.monitor

    @property
    def exit_status(self) -> ExitStatus | None:
        """How it exited; None before."""
        return self.lifetime.exit.status

    @property
    def template_id(self) -> str:
        """The id of the template that it starts from; empty if it is no clone."""
        state = self.machine.restore_state
        return "" if state is None else state.template_system_id

    @property
    def is_clone(self) -> bool:
        """Whether it starts from a template."""
        return bool(self.template_id)

    @property
    def survives(self) -> bool:
        """Whether it runs on without this process."""
        return not self.ends_with_last_handle

    @property
    def journal(self) -> Journal:
        """What is attached, if it runs on without this process."""
        return Journal(str(self.directory.path / "devices"))

    @property
    def console_path(self) -> str:
        """Where its serial port is listened at; empty if it is not."""
        ports = self.machine.devices.com_ports if self.machine.devices is not None else {}
        return ports["0"].named_pipe if "0" in ports else ""

    @property
    def ends_with_last_handle(self) -> bool:
        """Whether it ends with its last handle."""
        return self.document.should_terminate_on_last_handle_closed

    async def launch(
        self,
        launcher: Launcher,
        arguments: Callable[[str, str], Sequence[str]],
        inherited: Sequence[int],
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        """Start QEMU, paused, and wait until it takes commands: see :meth:`.Lifetime.launch`."""
        self._connect_host()
        await self.lifetime.launch(launcher, arguments, (self.memory.fd, *inherited), tasks)
        qemu = self.directory.record.qemu
        if self.survives and self.image is not None and qemu is not None:
            self.image.keep_for(qemu)

    async def adopt(self, process: Process, tasks: anyio.abc.TaskGroup) -> None:
        """Have a VM that an earlier process has left: connect to its QEMU, and learn its state and devices.

        :raises HostError: it cannot be reached; it is left as it is.
        """
        self._connect_host()
        await self.lifetime.adopt(process, tasks)
        try:
            await self.devices.restore(self.machine, self.journal, f"open {self.id}")
            status = (await self.monitor.ask("open", "query-status"))["status"]
        except BaseException:
            self.lifetime.leave()
            raise
        self._become(_STATES.get(status, "Running"))
        if status in _GUEST_ENDS:
            # Its end was kept for its next owner.
            self.lifetime.exit.on_event(*_GUEST_ENDS[status])

    def _connect_host(self) -> None:
        """Have the host connect to the guest, if the document asks for that."""
        if self.machine.guest_connection is not None:
            self.lifetime.connection = HostConnection(
                self.id, self.listen, lambda: self.lifetime.guest.connections.waiting
            )

    async def modify(self, request: ModifySettingRequest) -> None:
        """Change the devices; HostError if that is refused."""
        self.require("modify", "Running")
        await self.devices.modify(request)

    async def listen(self, service_id: str) -> Listener:
        """Listen for connections of the guest to a vsock port, by its service; before the start too."""
        self.require("listen on", "Created", "Running", "Paused")
        return await self.lifetime.guest.listen(service_id)

    async def start(self) -> None:
        """Start the VM: Created to Running."""
        self.require("start", "Created")
        await self.monitor.ask("start", "cont")
        self._become("Running")

    async def pause(self) -> None:
        """Pause the VM: Running to Paused."""
        self.require("pause", "Running")
        await self.monitor.ask("pause", "stop")
        self._become("Paused")

    async def resume(self) -> None:
        """Resume the VM, once it is saved if it is being saved: Paused to Running."""
        self.require("resume", "Paused")
        # One that ran meanwhile would be stopped at the end of that.
        async with self._saving:
            self.require("resume", "Paused")
            await self.monitor.ask("resume", "cont")
            self._become("Running")

    async def save_template(self) -> None:
        """Save the VM as a template: Paused to SavedAsTemplate. Its QEMU ends.

        :raises HostError: HCS_E_INVALID_STATE if there is what no template has, or the VM was saved since it
            was paused; QEMU refused; or HCS_E_SYSTEM_ALREADY_STOPPED if the VM was terminated meanwhile, or
            its memory cannot be sealed.
        """
        self.require("save", "Paused")
        why = "the host is connected to its guest" if self.lifetime.connection is not None else ""
        why = why if self.machine.is_template else "it was not created to be one (IsTemplate)"
        why = "an earlier process has its memory" if self.memory.fd < 0 else why
        why = "it is a clone, whose memory is its template's" if self.is_clone else why
        if why:
            raise HostError(f"save {self.id}", HResult.HCS_E_INVALID_STATE, why)
        check_saveable(self.monitor, self.devices)
        async with self._saving:
            await self._require_unsaved()
            self.saved = await save_template(self.monitor, self.memory, self.devices, await self._build())
            self.lifetime.process.kill()
            await self.lifetime.process_ended.wait()
        self.require("save", "SavedAsTemplate")

    async def save_to_file(self, path: str) -> None:
        """Save the VM, which stays paused, with its memory to a file; once, until it is resumed.

        Cancelled, QEMU ends the save before this returns, or is killed if it does not in time.

        :raises HostError: as of :meth:`save_template`; or the file cannot be written.
        """
        self.require("save", "Paused")
        check_saveable(self.monitor, self.devices)
        async with self._saving:
            await self._require_unsaved()
            await save_to_file(self.monitor, path, await self._build())

    async def _require_unsaved(self) -> None:
        """Refuse to save a VM that is not paused, or was saved since it was."""
        self.require("save", "Paused")
        if (await self.monitor.ask("save", "query-status"))["status"] == _SAVED:
            text = "QEMU saves a paused VM once, and has saved it; resume it, and pause it again"
            raise HostError(f"save {self.id}", HResult.HCS_E_INVALID_STATE, text)

    async def restore(self, template: SavedVM) -> None:
        """Load what a template has, before the start.

        :raises HostError: QEMU refuses; or it, or the guest image, is another than the template's.
        """
        operation = f"clone {self.template_id}"
        check_fits(operation, template.build.as_json(), await self._build())
        fd = template.open_state(operation)
        try:
            await restore(self.monitor, fd, without_memory=True)
        finally:
            os.close(fd)

    async def restore_from_file(self, path: str) -> None:
        """Load a saved state with its memory, before the start.

        :raises HostError: the file is none, does not fit, is not this user's alone, or cannot be loaded.
        """
        fd = await finish(open_saved, path, await self._build(), undo=os.close)
        try:
            await restore(self.monitor, fd, without_memory=False)
        except HostError as error:
            if not self.monitor.qmp.closed:
                raise
            await self.wait()
            said = self.lifetime.process.last_words or "it said nothing"
            text = f"QEMU cannot load it, and has ended: {said}; it is damaged or cut short; save it again"
            raise HostError(f"restore {path}", HResult.ERROR_INVALID_DATA, text) from error
        finally:
            os.close(fd)

    async def _build(self) -> Build:
        """Return what its saved state fits."""
        return await build_of(self.monitor, self.boot, self.monitor.qmp.version, self.devices)

    async def crash(self) -> None:
        """Have the guest panic; kill QEMU if it does not in time, or cannot as it is paused."""
        self.require("crash", "Running", "Paused")
        await self.lifetime.crash(paused=self.state == "Paused")

    async def terminate(self) -> None:
        """Kill QEMU, and wait for its end."""
        self.require("terminate", "Created", "Running", "Paused", "SavedAsTemplate")
        await self.end()

    async def end(self) -> None:
        """Kill QEMU unless it has ended, and wait for its end."""
        if self.exit_status is None:
            self.lifetime.exit.terminated = True
            if self.state == "SavedAsTemplate":
                self._stop()
            else:
                self.lifetime.process.kill()
        await self.wait()

    async def discard(self) -> None:
        """End what :meth:`launch` has made of it; what fails there leaves nothing."""
        if self.lifetime.served:
            await self.end()
        else:
            self._remove_console()
            self._release()
            self.directory.remove()

    async def wait(self) -> ExitStatus:
        """Wait for the exit."""
        return await self.lifetime.exit.wait()

    def require(self, operation: str, *states: State) -> None:
        """Refuse in other states: HCS_E_SYSTEM_ALREADY_STOPPED after the exit, else HCS_E_INVALID_STATE."""
        if self.state in states:
            return
        if self.state == "Stopped":
            raise self.lifetime.exit.error(operation)
        raise HostError(f"{operation} {self.id}", HResult.HCS_E_INVALID_STATE, f"it is {self.state}")

    def summary(self) -> JSON:
        """Return the properties that an enumeration, and a query without types, has."""
        status = self.exit_status
        exit_type = status.exit_type if status is not None else ""
        return self.directory.record.summary(
            stopped=self.state == "Stopped",
            exit_type=exit_type,
            template_id=self.template_id,
        )

    async def guest_connection(self) -> JSON:
        """Return the ``GuestConnectionInfo``; HostError if the host is not connected to the guest."""
        self.require("query", "Running")
        return await self.host_connection("query").info()

    def host_connection(self, operation: str) -> HostConnection:
        """Return the host's own connection to the guest.

        :raises HostError: HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION if the document has not asked for one.
        """
        if self.lifetime.connection is not None:
            return self.lifetime.connection
        code = HResult.HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION
        raise HostError(f"{operation} {self.id}", code, "the backend is not connected to the guest")

    def _ended(self) -> None:
        """Note that the process has ended, and with it the VM, unless it was saved as a template."""
        if self.lifetime.left:
            self.directory.leave()
            self._release()
            self.lifetime.exit.leave()
        elif self.saved is None or self.lifetime.exit.terminated or not self._sealed():
            self._stop()
        else:
            self._become("SavedAsTemplate")

    def _sealed(self) -> bool:
        """Seal the memory; return whether no process can write it any more."""
        try:
            self.memory.seal()
        except OSError as error:
            _log.error(self.id, "it is no template: its memory cannot be sealed: %s", error.strerror)
            return False
        return True

    def _stop(self) -> None:
        """Note that the VM has exited."""
        self.lifetime.exit.settle(self.lifetime.process)
        self.devices.close()
        self._release()
        self._remove_console()
        if self.saved is not None:
            self.saved.close()
        self._become("Stopped")
        self.directory.remove()

    def _release(self) -> None:
        """Release what it holds for its QEMU."""
        self.memory.close()
        if self.image is not None:
            self.image.close()

    def _remove_console(self) -> None:
        if self.console is not None:
            self.console.remove()

    def _become(self, state: State) -> None:
        if self.state != "Stopped":
            self.state = state
            if state != "Stopped":
                self._note(state)

    def _note(self, state: State) -> None:
        """Have other processes know the state, which it is in whether they do or not."""
        try:
            self.directory.note(state=state)
        except HostPathError as error:
            _log.error(self.id, "it is %s, and other processes do not see it: %s", state, error)
