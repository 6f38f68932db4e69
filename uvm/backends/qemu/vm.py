"""One VM: the process of QEMU, its monitor, its states and its end.

How it works
------------

One task serves a VM from the start of its process to the end of it. It belongs to the backend, and no
caller's cancellation reaches it::

    serve:  QMP       answers to commands; events
            mux       the guest's connections
            process   its error output, and its end, which ends the others
            the end   once the guest has shut down, reset or panicked, QEMU is stopped:
                      its console is read, then it quits

    Created -- start --> Running <-- pause, resume --> Paused
       |                    |                             |
       +--------------------+--- the process ends --------+----> Stopped

How the guest ended is said by QEMU's events before its process ends; a process that ends without was killed,
by this VM's own :meth:`VM.terminate` or by others.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import anyio
import anyio.abc
import anyio.to_thread
from attrs import define, field

from uvm._async import Flag, Line
from uvm._guest.logs import say
from uvm._repr import shown
from uvm._wire.ports import vsock_port
from uvm.backend import JSON, ByteStream, Listener
from uvm.backends.qemu.commandline import CONSOLE_BYTES
from uvm.backends.qemu.devices.tree import DeviceTree
from uvm.backends.qemu.hostprocess import HostConnection
from uvm.backends.qemu.launch import Process, Starter
from uvm.backends.qemu.qmp import QMP, QMPClosedError, QMPError
from uvm.backends.qemu.runtime import ProcessName, VMDirectory
from uvm.backends.qemu.saving import (
    Boot,
    Memory,
    SavedVM,
    build_of,
    check_saveable,
    open_saved,
    restore,
    save_template,
    save_to_file,
)
from uvm.backends.qemu.sockets import Link, listening, pair, reach
from uvm.errors import (
    BridgeClosedError,
    ExitStatus,
    HostError,
    HostPathError,
    NotSupportedError,
    VMExitedError,
    WireError,
)
from uvm.hresult import HResult
from uvm.schema.json import to_json
from uvm.schema.properties import Properties
from uvm.schema.requests import ModifySettingRequest
from uvm.schema.secrets import printable
from uvm.schema.system import ComputeSystem, VirtualMachine

_log = logging.getLogger("uvm")


class Connections(Protocol):
    """The connections with a guest, over one socket: :class:`uvm.backends.qemu.muxlink.MuxLink`."""

    failure: Exception | None

    async def serve(self) -> None:
        """Carry them until the socket ends, or :meth:`close` is called. Raises nothing."""

    def listen(self, port: int) -> Listener:
        """Listen for the guest to connect to a port."""

    def close(self) -> None:
        """End all of them, at once."""


@define(eq=False, repr=False)
class _GuestListener:
    """Listens for the guest's connections to a port (:class:`~uvm.backend.Listener`)."""

    _vm: VM
    _listener: Listener
    _closed: bool = field(default=False, init=False)

    async def accept(self) -> ByteStream:
        """Wait for the next connection; VMExitedError once the VM has exited."""
        try:
            return await self._listener.accept()
        except anyio.ClosedResourceError:
            if self._closed:
                raise
        raise await self._vm.link_error()

    async def aclose(self) -> None:
        """Stop listening."""
        self._closed = True
        await self._listener.aclose()


State = Literal["Created", "Running", "Paused", "SavedAsTemplate", "Stopped"]

#: The states of VMs by QEMU's.
_STATES: Final[dict[str, State]] = {"prelaunch": "Created", "paused": "Paused"}
#: The events of guests that ended while no process had the VM, by QEMU's states.
_GUEST_ENDS: Final[dict[str, tuple[str, JSON]]] = {
    "shutdown": ("SHUTDOWN", {"reason": "guest-shutdown"}),
    "guest-panicked": ("GUEST_PANICKED", {}),
}

#: How long a guest that is asked to crash may take, and QEMU to quit; both are killed then.
CRASH_SECONDS: Final = 10.0
QUIT_SECONDS: Final = 5.0
#: How long a guest may take to release a PCI device.
UNPLUG_SECONDS: Final = 30.0
#: How much of the console's end is in an exit status, in characters.
_SAID: Final = 4096
#: How many of its lines are logged.
_LINES: Final = 30


@define(eq=False)
class Unplug:
    """A device that the guest is asked to release.

    :ivar refused: the guest has said that it does not.
    """

    over: Flag = field(factory=Flag)
    refused: bool = False


class VM:
    """A virtual machine that this process has started.

    :param document: the document that it is created with, checked.
    :ivar directory: its runtime directory.
    :ivar boot: what it is started with.
    :ivar qmp: the monitor of QEMU, from :meth:`launch` on.
    :ivar mux: the connections with the guest.
    :ivar devices: the devices that come and go.
    :ivar connection: the host's own connection to the guest; None if the document has none.
    :ivar memory: its memory.
    :ivar saved: what it was saved as, a template; None before. Its QEMU ends then, and not the VM.
    :ivar exit_status: how it exited; None before.
    :ivar handles: how many handles are open.
    :ivar adopted: an earlier process has created it, and only that one knows its devices.
    """

    def __init__(
        self, document: ComputeSystem, directory: VMDirectory, boot: Boot, memory: Memory | None = None
    ) -> None:
        assert document.virtual_machine is not None
        self.document: ComputeSystem = document
        self.machine: VirtualMachine = document.virtual_machine
        self.directory: VMDirectory = directory
        self.boot: Boot = boot
        self.state: State = "Created"
        self.memory: Memory = memory or Memory.of_mb(_memory_mb(self.machine))
        self.saved: SavedVM | None = None
        self.exit_status: ExitStatus | None = None
        self.handles: int = 0
        self.adopted: bool = False
        self.devices: DeviceTree
        self.connection: HostConnection | None = None
        if self.machine.guest_connection is not None:
            self.connection = HostConnection(self.id, self.listen)
        self.qmp: QMP
        self.mux: Connections
        self._child: Process
        self._process_ended = Flag()
        self._exited = Flag()
        self._changed = Line()
        self._unplugs: dict[str, Unplug] = {}
        self._shutdown: JSON = {}
        self._panic: JSON | None = None
        self._guest_ended = Flag()
        self._served = False
        self._left = False
        self._service = anyio.CancelScope(shield=True)
        self._terminated = False
        self._crashing = Flag()
        self._console = ""

    def __repr__(self) -> str:
        return shown(self, "id", "state")

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
        return self._child.pid

    @property
    def is_clone(self) -> bool:
        """Whether it starts from a template."""
        state = self.machine.restore_state
        return state is not None and bool(state.template_system_id)

    @property
    def survives(self) -> bool:
        """Whether it runs on without this process."""
        return not self.ends_with_last_handle

    @property
    def ends_with_last_handle(self) -> bool:
        """Whether it ends with its last handle."""
        return self.document.should_terminate_on_last_handle_closed

    # From its start to its end.

    async def launch(
        self,
        launcher: Starter,
        arguments: Callable[[str, str], Sequence[str]],
        connections: Callable[[socket.socket], Connections],
        tasks: anyio.abc.TaskGroup,
    ) -> None:
        """Start QEMU, paused, and wait until it takes commands.

        :param arguments: returns the command line for the sockets of QMP and of the mux.
        :param connections: makes the connections with the guest of a socket.
        :param tasks: runs the task that serves the VM.
        :raises HostError: QEMU ended at once; the message has its last words.
        """
        links = self._links()
        self._use(links[0].ours, links[1].ours, connections)
        try:
            theirs = [link.theirs.fileno() for link in links]
            command = arguments(*(link.argument for link in links))
            fds = (*theirs, self.directory.lock, self.memory.fd)
            self._child = await launcher.start(command, fds, survives=self.survives)
        except BaseException:
            self._close_channels()
            raise
        finally:
            for link in links:
                link.theirs.close()
        self.directory.note(qemu=ProcessName.of(self.pid), survives=self.survives)
        await self._begin(tasks)
        if self.qmp.closed:
            await self._exited.wait()
            raise HostError(f"create {self.id}", HResult.E_FAIL, self._never_came_up())

    async def adopt(
        self, child: Process, connections: Callable[[socket.socket], Connections], tasks: anyio.abc.TaskGroup
    ) -> None:
        """Have a VM that an earlier process has left: connect to its QEMU, and learn its state.

        :raises HostError: it cannot be reached; it is left as it is.
        """
        self._child, self.adopted = child, True
        # The guest has connected to that process, and its devices are known to that alone.
        self.connection = None
        try:
            self._use(reach(self.directory.qmp), reach(self.directory.mux), connections)
        except OSError as error:
            raise HostError(f"open {self.id}", HResult.HCS_E_CONNECT_FAILED, str(error)) from error
        await self._begin(tasks)
        status = (await self.ask("open", "query-status"))["status"]
        self._become(_STATES.get(status, "Running"))
        if status in _GUEST_ENDS:
            # Its end was kept for its next owner.
            self._on_event(*_GUEST_ENDS[status])

    def _links(self) -> list[Link]:
        if not self.survives:
            return [pair(), pair()]
        try:
            return [listening(self.directory.qmp), listening(self.directory.mux)]
        except OSError as error:
            raise HostPathError(str(self.directory.path), f"no socket can be made there: {error}") from error

    def _use(
        self, qmp: socket.socket, mux: socket.socket, connections: Callable[[socket.socket], Connections]
    ) -> None:
        self.qmp, self.mux = QMP(qmp, self._on_event), connections(mux)

    async def _begin(self, tasks: anyio.abc.TaskGroup) -> None:
        """Have a task serve the VM, and wait until QEMU takes commands, or has ended."""
        ready = Flag()
        self._served = True
        tasks.start_soon(self._serve, ready)
        await ready.wait()

    def leave(self) -> None:
        """Leave it running, for the next process that opens it."""
        self._left = True
        self._service.cancel()

    def _never_came_up(self) -> str:
        said = self._child.last_words or "it said nothing"
        return f"QEMU ended with exit code {self._child.exit_code} before it took commands: {said}"

    async def modify(self, request: ModifySettingRequest) -> None:
        """Change the devices; HostError if that is refused."""
        self.require("modify", "Running")
        if self.adopted:
            raise NotSupportedError(
                f"modify {self.id}: an earlier process created this VM, and only that one knew its devices; "
                "it can be paused, resumed, made to crash and terminated"
            )
        await self.devices.modify(request)

    async def listen(self, service_id: str) -> Listener:
        """Listen for connections of the guest to a vsock port, by its service; before the start too."""
        self.require("listen on", "Created", "Running", "Paused")
        port = vsock_port(service_id)
        if port is None:
            text = f"{service_id} is no vsock port's service, and Linux guests reach no others"
            raise HostError(f"listen on {self.id}", HResult.E_INVALIDARG, text)
        try:
            return _GuestListener(self, self.mux.listen(port))
        except anyio.ClosedResourceError:
            raise await self.link_error() from None

    async def link_error(self) -> Exception:
        """Return why the guest cannot connect any more: it broke the protocol, or the VM exits."""
        if isinstance(self.mux.failure, WireError):
            return BridgeClosedError(f"{self.id}: the guest broke its connection: {self.mux.failure}")
        return VMExitedError(f"VM {self.id} has exited", await self.wait())

    async def start(self) -> None:
        """Start the VM: Created to Running."""
        self.require("start", "Created")
        await self.ask("start", "cont")
        self._become("Running")

    async def pause(self) -> None:
        """Pause the VM: Running to Paused."""
        self.require("pause", "Running")
        await self.ask("pause", "stop")
        self._become("Paused")

    async def resume(self) -> None:
        """Resume the VM: Paused to Running."""
        self.require("resume", "Paused")
        await self.ask("resume", "cont")
        self._become("Running")

    async def save_template(self) -> None:
        """Save the VM as a template: Paused to SavedAsTemplate. Its QEMU ends.

        :raises HostError: HCS_E_INVALID_STATE if there is what no template has; or QEMU refused.
        """
        self.require("save", "Paused")
        why = "the host is connected to its guest" if self.connection is not None else ""
        why = "it is a clone, whose memory is its template's" if self.is_clone else why
        if why:
            raise HostError(f"save {self.id}", HResult.HCS_E_INVALID_STATE, why)
        check_saveable(self, self.devices)
        self.saved = await save_template(self, self.memory)
        self._child.kill()
        await self._process_ended.wait()

    async def save_to_file(self, path: str) -> None:
        """Save the VM, which stays paused, with its memory to a file.

        :raises HostError: as of :meth:`save_template`; or the file cannot be written.
        """
        self.require("save", "Paused")
        check_saveable(self, self.devices)
        await save_to_file(self, path, await build_of(self, self.boot, self.qmp.version, self.devices))

    async def restore(self, template: SavedVM) -> None:
        """Load what a template has, before the start; HostError if QEMU refuses."""
        fd = template.open_state()
        try:
            await restore(self, fd, without_memory=True)
        finally:
            os.close(fd)

    async def restore_from_file(self, path: str) -> None:
        """Load a saved state with its memory, before the start.

        :raises HostError: the file is none, does not fit, or is not this user's alone.
        """
        build = await build_of(self, self.boot, self.qmp.version, self.devices)
        fd = await anyio.to_thread.run_sync(open_saved, path, build)
        try:
            await restore(self, fd, without_memory=False)
        finally:
            os.close(fd)

    async def crash(self) -> None:
        """Have the guest panic; kill QEMU if it does not in time, or cannot as it is paused."""
        self.require("crash", "Running", "Paused")
        self._crashing.set()
        if self.state == "Paused":
            self._child.kill()
            return
        await self.ask("crash", "inject-nmi")

    async def terminate(self) -> None:
        """Kill QEMU, and wait for its end."""
        self.require("terminate", "Created", "Running", "Paused", "SavedAsTemplate")
        await self.end()

    async def end(self) -> None:
        """Kill QEMU unless it has ended, and wait for its end."""
        if self.exit_status is None:
            self._terminated = True
            if self.state == "SavedAsTemplate":
                self._stop()
            else:
                self._child.kill()
        await self._exited.wait()

    async def discard(self) -> None:
        """End what :meth:`launch` has made of it; what fails there leaves nothing."""
        if self._served:
            await self.end()
        else:
            self.memory.close()
            self.directory.remove()

    def abandon(self) -> None:
        """Serve it no more: it was killed, and Linux does not end it, as while it waits for a disk."""
        self._service.cancel()

    async def wait(self) -> ExitStatus:
        """Wait for the exit."""
        await self._exited.wait()
        assert self.exit_status is not None
        return self.exit_status

    # What it is asked.

    def require(self, operation: str, *states: State) -> None:
        """Refuse in other states: HCS_E_SYSTEM_ALREADY_STOPPED after the exit, else HCS_E_INVALID_STATE."""
        if self.state in states:
            return
        if self.state == "Stopped":
            raise self._stopped(operation)
        raise HostError(f"{operation} {self.id}", HResult.HCS_E_INVALID_STATE, f"it is {self.state}")

    async def ask(
        self,
        operation: str,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        fds: Sequence[int] = (),
        code: int = HResult.E_FAIL,
    ) -> Any:
        """Have QEMU carry out a command for an operation, and return what it returns.

        :param code: what the operation fails with if QEMU refuses.
        :raises HostError: QEMU refused, or the VM has exited.
        """
        try:
            return await self.qmp.execute(command, arguments, fds=fds)
        except QMPError as error:
            raise HostError(f"{operation} {self.id}", code, str(error)) from error
        except QMPClosedError as error:
            raise self._stopped(operation) from error

    async def unplug(self, operation: str, device: str, seconds: float = UNPLUG_SECONDS) -> None:
        """Have QEMU unplug a device, and wait until the guest has released it.

        :raises HostError: the guest refuses, or does not answer in time; the device stays.
        """
        asked = self._unplugs[device] = Unplug()
        try:
            with anyio.move_on_after(seconds) as limit:
                await self.ask(operation, "device_del", {"id": device})
                await asked.over.wait()
        finally:
            self._unplugs.pop(device, None)
        self.require(operation, "Created", "Running", "Paused")
        if asked.refused or limit.cancelled_caught:
            why = "refuses to release it" if asked.refused else f"has not released it in {seconds:g} s"
            raise HostError(f"{operation} {self.id}", HResult.E_FAIL, f"the guest {why}; {device} stays")

    def summary(self) -> JSON:
        """Return the properties that an enumeration, and a query without types, has."""
        status = self.exit_status
        return to_json(
            Properties(
                id=self.id,
                name=self.id,
                owner=self.document.owner,
                state=self.state,
                stopped=self.state == "Stopped",
                exit_type=status.exit_type if status is not None else "",
                system_type="VirtualMachine",
                runtime_os_type="Linux",
                runtime_id=self.runtime_id,
            )
        )

    async def guest_connection(self) -> JSON:
        """Return the ``GuestConnectionInfo``; HostError if the host is not connected to the guest."""
        self.require("query", "Running")
        return await self.host_connection("query").info()

    def host_connection(self, operation: str) -> HostConnection:
        """Return the host's own connection to the guest.

        :raises HostError: HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION if the document has not asked for one.
        """
        if self.connection is not None:
            return self.connection
        code = HResult.HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION
        raise HostError(f"{operation} {self.id}", code, "the backend is not connected to the guest")

    # Its service.

    async def _serve(self, ready: Flag) -> None:
        """Serve the VM until its process has ended. Raises nothing; no cancellation reaches it."""
        with self._service:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._serve_qmp, ready)
                    tasks.start_soon(self.mux.serve)
                    tasks.start_soon(self._finish)
                    tasks.start_soon(self._limit_crash)
                    if self.connection is not None:
                        tasks.start_soon(self.connection.serve)
                    await self._child.wait()
                    tasks.cancel_scope.cancel()
            finally:
                self._ended()
                ready.set()

    async def _serve_qmp(self, ready: Flag) -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(self.qmp.serve)
            ready.set()
        # Without its monitor nothing is known of it any more.
        if not self._left:
            self._child.kill()

    async def _finish(self) -> None:
        """Read the guest's last words once it has ended, and have QEMU quit."""
        await self._guest_ended.wait()
        with anyio.move_on_after(QUIT_SECONDS):
            self._console = await self.console()
            try:
                await self.qmp.execute("set-action", {"shutdown": "poweroff"})
                await self.qmp.execute("quit")
            except (QMPError, QMPClosedError):
                return
            await anyio.sleep_forever()
        self._child.kill()

    async def _limit_crash(self) -> None:
        await self._crashing.wait()
        with anyio.move_on_after(CRASH_SECONDS):
            await self._guest_ended.wait()
            return
        self._child.kill()

    async def console(self) -> str:
        """Return the end of what the guest has written to its console, and forget it."""
        try:
            read = await self.qmp.execute(
                "ringbuf-read", {"device": "console", "size": CONSOLE_BYTES, "format": "base64"}
            )
            return base64.b64decode(str(read)).decode("utf-8", "replace")
        except (QMPError, QMPClosedError, binascii.Error):
            return ""

    def _on_event(self, name: str, data: JSON) -> None:
        device = data.get("device")
        if name == "SHUTDOWN":
            # The first says how the guest ended, the next that QEMU quits.
            self._shutdown = self._shutdown or data
            self._guest_ended.set()
        elif name == "GUEST_PANICKED":
            self._panic = data
            self._guest_ended.set()
        elif name in ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR") and device in self._unplugs:
            self._unplugs[device].refused = name != "DEVICE_DELETED"
            self._unplugs[device].over.set()

    def _ended(self) -> None:
        """Note that the process has ended, and with it the VM, unless it was saved as a template."""
        self._close_channels()
        if self._left:
            self.directory.leave()
            self.memory.close()
            self.exit_status = ExitStatus("Unknown")
            self._exited.set()
        elif self.saved is None or self._terminated:
            self._stop()
        else:
            self.memory.seal()
            self._become("SavedAsTemplate")
        for asked in self._unplugs.values():
            asked.over.set()
        self._process_ended.set()

    def _stop(self) -> None:
        """Note that the VM has exited."""
        self.exit_status = self._exit_status()
        self._log_console()
        self.devices.close()
        self.memory.close()
        if self.saved is not None:
            self.saved.close()
        self._become("Stopped")
        self.directory.remove()
        self._exited.set()

    def _close_channels(self) -> None:
        self.qmp.close()
        self.mux.close()
        if self.connection is not None:
            self.connection.close()

    def _become(self, state: State) -> None:
        if self.state != "Stopped":
            self.state = state
            self._changed.wake()
            if state != "Stopped":
                self.directory.note(state=state)

    def _log_console(self) -> None:
        """Log what a guest that ended by itself wrote last."""
        assert self.exit_status is not None
        if self.exit_status.exit_type in ("Reset", "UnexpectedExit"):
            for line in self._console.splitlines()[-_LINES:]:
                say(_log, logging.WARNING, f"{self.id}: console: {printable(line)}")

    def _exit_status(self) -> ExitStatus:
        """Return how the VM has ended, by what QEMU and the host said of it."""
        reason = str(self._shutdown.get("reason", ""))
        detail: JSON = {"QEMU": {"ExitCode": self._child.exit_code, "Reason": reason}}
        for name, said in (("LastWords", self._child.last_words), ("Console", self._console[-_SAID:])):
            if said:
                detail["QEMU"][name] = said
        if self._panic is not None or self._crashing.is_set():
            detail["Attribution"] = [{"GuestCrash": {"CrashParameters": [0, 0, 0, 0, 0]}}]
            return ExitStatus("UnexpectedExit", HResult.HCS_E_GUEST_CRITICAL_ERROR, detail)
        if reason == "guest-shutdown":
            return ExitStatus("GracefulExit", 0, detail)
        if reason == "guest-reset":
            return ExitStatus("Reset", 0, detail)
        if self._terminated:
            return ExitStatus("ForcedExit", 0, detail)
        detail["Attribution"] = [{"WorkerExit": {"ExitCode": self._child.exit_code}}]
        return ExitStatus("UnexpectedExit", HResult.HCS_E_UNEXPECTED_EXIT, detail)

    def _stopped(self, operation: str) -> HostError:
        text = f"exit: {self.exit_status}" if self.exit_status is not None else "QEMU is ending"
        return HostError(f"{operation} {self.id}", HResult.HCS_E_SYSTEM_ALREADY_STOPPED, text)


def _memory_mb(machine: VirtualMachine) -> int:
    topology = machine.compute_topology
    assert topology is not None
    assert topology.memory is not None
    return topology.memory.size_in_mb
