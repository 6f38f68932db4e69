"""The processes that HCS starts in a guest over its own connection, and what it keeps of them.

HCS asks the guest for them in the same messages as every other host. It waits for the exit of each from the
start, and keeps what it learns for as long as a handle is open.
"""

from __future__ import annotations

import anyio

from uvm._async import Flag
from uvm._guest.specs import execute_settings
from uvm._repr import showing
from uvm._wire.frames import Procedure
from uvm._wire.ports import vsock_service_id
from uvm.backend import JSON
from uvm.backends.fake.computesystem import Opened
from uvm.backends.fake.guest.execution import asked_streams
from uvm.backends.fake.streams import FakeStream
from uvm.backends.fake.vm import FakeVM
from uvm.backends.requests.processes import process_status, read_change, streams_of
from uvm.backends.requests.request import read_document
from uvm.errors import GuestError, HostError
from uvm.hresult import HResult
from uvm.schema import gcs
from uvm.schema.json import dumps, from_json
from uvm.schema.process import (
    CloseHandle,
    ProcessParameters,
    SignalProcessOptionsLCOW,
    SignalProcessOptionsWCOW,
)

#: The ports on which HCS listens for the standard streams. It accepts them before it listens again.
_STDIN, _STDOUT, _STDERR = 0xC0000000, 0xC0000001, 0xC0000002


@showing("pid", "container_id", "exit_code")
class HostedProcess(Opened):
    """A process that HCS started.

    :ivar container_id: the container that it runs in, or :data:`HOST_CONTAINER_ID`.
    :ivar streams: the host's ends of its standard streams, by name, as far as they were asked for.
    :ivar exit_code: None while it runs, and if the VM exited before it was known.
    :ivar ended: the process, or the VM, has exited.
    """

    def __init__(self, vm: FakeVM, pid: int, container_id: str, streams: dict[str, FakeStream]) -> None:
        super().__init__()
        self.vm: FakeVM = vm
        self.pid: int = pid
        self.container_id: str = container_id
        self.streams: dict[str, FakeStream] = streams
        self.exit_code: int | None = None
        self.ended: Flag = Flag()
        vm.hosted[pid] = self
        vm.add_exit_hook(self._end)
        vm.service.processes[pid].when_exited(self._exited)

    def __str__(self) -> str:
        return f"process {self.pid} of {self.vm.id}"

    def last_closed(self) -> None:
        """Forget the process if it has ended."""
        if self.ended.is_set():
            self.vm.hosted.pop(self.pid, None)

    async def wait(self) -> int:
        """Wait for the exit; HCS_E_SYSTEM_ALREADY_STOPPED if the VM exits before it is known."""
        await self.ended.wait()
        if self.exit_code is None:
            self.vm.require(f"wait for process {self.pid} of", "Running")
        assert self.exit_code is not None
        return self.exit_code

    def signal(self, options: JSON | None) -> None:
        """Signal the process, or with None kill it."""
        kind = SignalProcessOptionsLCOW if self.vm.os == "linux" else SignalProcessOptionsWCOW
        read = None if options is None else read_document(kind, options, f"signal {self}")
        request = gcs.SignalProcessRequest(container_id=self.container_id, process_id=self.pid, options=read)
        self._ask(Procedure.SIGNAL_PROCESS, request, "signal")

    def modify(self, document: JSON) -> None:
        """Carry out a ``ProcessModifyRequest``."""
        operation = f"modify {self}"
        change = read_change(document, operation)
        if isinstance(change, CloseHandle):
            self._close_streams(change, operation)
            return
        resize = gcs.ResizeConsoleRequest(
            container_id=self.container_id,
            process_id=self.pid,
            height=change.height,
            width=change.width,
        )
        self._ask(Procedure.RESIZE_CONSOLE, resize, "modify")

    def status(self) -> JSON:
        """Return the ``ProcessStatus``."""
        return process_status(self.pid, self.exit_code, exited=self.ended.is_set())

    def require_running(self, operation: str) -> None:
        """Refuse if the process has exited, or the VM does not run."""
        if self.exit_code is not None:
            raise HostError(operation, HResult.HCS_E_PROCESS_ALREADY_STOPPED, f"exit code {self.exit_code}")
        self.vm.require_relay(operation)

    def _close_streams(self, closing: CloseHandle, operation: str) -> None:
        self.require_running(operation)
        for each in streams_of(closing, self.streams, operation):
            if each == "stdin":
                self.streams[each].end()
            else:
                self.streams[each].close()

    def _ask(self, procedure: Procedure, message: object, action: str) -> None:
        self.require_running(f"{action} {self}")
        ask_guest(self.vm, procedure, message, f"{action} {self}")

    def _exited(self, code: int) -> None:
        # A process that was cut off by the exit of the VM has no exit code.
        if not self.ended.is_set():
            self.exit_code = code
            self._end()

    def _end(self) -> None:
        self.vm.remove_exit_hook(self._end)
        self.ended.set()
        if not self.handles:
            self.last_closed()


def find_hosted(vm: FakeVM, pid: int, container_id: str) -> HostedProcess:
    """Return a process to open, of the guest itself or of a container.

    :raises HostError: ERROR_NOT_FOUND; HCS_E_PROCESS_ALREADY_STOPPED if it has exited and a handle is open.
    """
    operation = f"open process {pid} of {vm.id}"
    vm.require_relay(f"open process {pid} of")
    hosted = vm.hosted.get(pid)
    if not isinstance(hosted, HostedProcess) or hosted.container_id != container_id:
        raise HostError(operation, HResult.ERROR_NOT_FOUND)
    hosted.require_running(operation)
    return hosted


def start_hosted(vm: FakeVM, document: JSON, container_id: str) -> HostedProcess:
    """Start a process (``ProcessParameters``), of the guest itself or in a container.

    :raises HostError: HCS_E_INVALID_JSON, HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION, HCS_E_INVALID_STATE,
        or the guest's refusal.
    """
    operation = f"create a process in {vm.id}"
    vm.require_relay("create a process in")
    in_linux_container = vm.os == "linux" and container_id != gcs.HOST_CONTAINER_ID
    kind = gcs.LinuxProcessParameters if in_linux_container else ProcessParameters
    parameters = read_document(kind, document, operation)
    if parameters.emulate_console:
        # With a console, both outputs are one.
        parameters.create_std_err_pipe = False
    ports = asked_streams(parameters, (_STDIN, _STDOUT, _STDERR))
    listeners = {name: vm.listen(vsock_service_id(port)) for name, port in ports.items()}
    settings = execute_settings(vm.os, dumps(parameters), ports)
    request = gcs.ExecuteProcessRequest(container_id=container_id, settings=settings)
    try:
        answer = ask_guest(vm, Procedure.EXECUTE_PROCESS, request, operation)
        # The guest connected before it answered.
        dialled = {name: listener.accept_nowait() for name, listener in listeners.items()}
        streams = {name: stream for name, stream in dialled.items() if stream is not None}
        return HostedProcess(
            vm, from_json(gcs.ExecuteProcessResponse, answer).process_id, container_id, streams
        )
    finally:
        for listener in listeners.values():
            listener.end(anyio.ClosedResourceError())


def ask_guest(vm: FakeVM, procedure: Procedure, message: object, operation: str) -> JSON:
    """Ask the guest as HCS does; its refusal becomes HCS's, with the guest's code."""
    try:
        return vm.service.ask(procedure, message, operation)
    except GuestError as e:
        raise HostError(operation, e.hresult, e.text) from None
