"""The processes that HCS starts in a guest over its own connection, and what it keeps of them.

HCS asks the guest for them in the same messages as anybody else does who is connected to it. It waits for the
exit of each from the start, and keeps what it learns for as long as a handle is open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import anyio
from attrs import define, field

from uvm._async import Flag
from uvm._guest.specs import execute_settings
from uvm._wire.frames import Procedure
from uvm._wire.ports import vsock_service_id
from uvm.backend import JSON
from uvm.backends.fake.streams import FakeListener, FakeStream
from uvm.backends.fake.vm import FakeVM
from uvm.errors import GuestError, HostError
from uvm.hresult import HResult
from uvm.schema.gcs import (
    HOST_CONTAINER_ID,
    ExecuteProcessRequest,
    ExecuteProcessResponse,
    LinuxProcessParameters,
    ResizeConsoleRequest,
    SignalProcessRequest,
)
from uvm.schema.json import SchemaError, dumps, from_json, to_json
from uvm.schema.process import (
    ConsoleSize,
    ProcessModifyRequest,
    ProcessParameters,
    ProcessStatus,
    SignalProcessOptionsLCOW,
    SignalProcessOptionsWCOW,
)

T = TypeVar("T")

#: Where HCS listens for the standard streams. It takes the connections before it listens again.
_PORTS: Final = {"stdin": 0xC0000000, "stdout": 0xC0000001, "stderr": 0xC0000002}
#: The handles that a process can be told to close, by HCS's names.
_HANDLES: Final = {"StdIn": ("stdin",), "StdOut": ("stdout",), "StdErr": ("stderr",), "All": tuple(_PORTS)}


@define(eq=False)
class HostedProcess:
    """A process that HCS started.

    :ivar container_id: the container that it runs in, or :data:`HOST_CONTAINER_ID`.
    :ivar streams: the host's ends of its standard streams, by name, as far as they were asked for.
    :ivar handles: how many handles are open.
    :ivar exit_code: None while it runs, and where the VM exited before it was known.
    :ivar ended: nothing more is going to be learnt.
    """

    vm: FakeVM = field(repr=False)
    pid: int
    container_id: str
    streams: dict[str, FakeStream] = field(repr=False)
    handles: int = field(default=0, init=False)
    exit_code: int | None = field(default=None, init=False)
    ended: Flag = field(factory=Flag, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.vm.hosted[self.pid] = self
        self.vm.add_exit_hook(self._end)
        self.vm.service.processes[self.pid].when_exited(self._exited)

    def __str__(self) -> str:
        return f"process {self.pid} of {self.vm.id}"

    def opened(self) -> None:
        """Take note of a handle."""
        self.handles += 1

    def closed(self) -> None:
        """Take note of a handle that was closed."""
        self.handles -= 1
        self._forget_if_unused()

    def close_streams(self) -> None:
        """Close the host's ends of its streams."""
        for stream in self.streams.values():
            stream.close()

    async def wait(self) -> int:
        """Wait for the exit; HCS_E_SYSTEM_ALREADY_STOPPED where the VM exited before it was known."""
        await self.ended.wait()
        if self.exit_code is None:
            self.vm.require(f"wait for process {self.pid} of", "Running")
        assert self.exit_code is not None
        return self.exit_code

    def signal(self, options: JSON | None) -> None:
        """Signal it, or with None kill it."""
        kind = SignalProcessOptionsLCOW if self.vm.os == "linux" else SignalProcessOptionsWCOW
        read = None if options is None else _read(kind, options, f"signal {self}")
        request = SignalProcessRequest(container_id=self.container_id, process_id=self.pid, options=read)
        self._ask(Procedure.SIGNAL_PROCESS, request, "signal")

    def modify(self, document: JSON) -> None:
        """Carry out a ``ProcessModifyRequest``."""
        operation = f"modify {self}"
        request = _read(ProcessModifyRequest, document, operation)
        match request:
            case ProcessModifyRequest(operation="ConsoleSize", console_size=ConsoleSize() as size):
                resize = ResizeConsoleRequest(
                    container_id=self.container_id,
                    process_id=self.pid,
                    height=size.height,
                    width=size.width,
                )
                self._ask(Procedure.RESIZE_CONSOLE, resize, "modify")
            case ProcessModifyRequest(operation="CloseHandle", close_handle=closing) if (
                closing is not None and closing.handle in _HANDLES
            ):
                self._close_handle(closing.handle)
            case _:
                raise HostError(operation, HResult.HCS_E_INVALID_JSON, f"Operation {request.operation!r}")

    def status(self) -> JSON:
        """Return its ``ProcessStatus``."""
        exited = self.ended.is_set()
        lost = exited and self.exit_code is None
        return to_json(
            ProcessStatus(
                process_id=self.pid,
                exited=exited,
                exit_code=self.exit_code or 0,
                last_wait_result=HResult.HCS_E_SYSTEM_ALREADY_STOPPED - (1 << 32) if lost else 0,
            )
        )

    def require_running(self, operation: str) -> None:
        """Refuse where it has exited, or the VM does not run."""
        if self.exit_code is not None:
            raise HostError(operation, HResult.HCS_E_PROCESS_ALREADY_STOPPED, f"exit code {self.exit_code}")
        self.vm.require_relay(operation)

    def _close_handle(self, name: str) -> None:
        self.require_running(f"modify {self}")
        found = [self.streams[each] for each in _HANDLES[name] if each in self.streams]
        if not found:
            raise HostError(f"modify {self}", HResult.ERROR_NOT_FOUND, f"it has no {name}")
        for stream in found:
            if stream is self.streams.get("stdin"):
                stream.end()
            else:
                stream.close()

    def _ask(self, procedure: Procedure, message: object, action: str) -> None:
        self.require_running(f"{action} {self}")
        relayed(f"{action} {self}", lambda: self.vm.service.ask(procedure, message, f"{action} {self}"))

    def _exited(self, code: int) -> None:
        # What was cut off by the exit of the VM has no exit code.
        if not self.ended.is_set():
            self.exit_code = code
            self._end()

    def _end(self) -> None:
        self.vm.remove_exit_hook(self._end)
        self.ended.set()
        self._forget_if_unused()

    def _forget_if_unused(self) -> None:
        if self.ended.is_set() and not self.handles:
            self.vm.hosted.pop(self.pid, None)


def find_hosted(vm: FakeVM, pid: int, container_id: str = HOST_CONTAINER_ID) -> HostedProcess:
    """Find a process to open, of the guest itself or of a container.

    :raises HostError: ERROR_NOT_FOUND; HCS_E_PROCESS_ALREADY_STOPPED where it has exited and a handle
        is open.
    """
    operation = f"open process {pid} of {vm.id}"
    vm.require_relay(f"open process {pid} of")
    hosted = vm.hosted.get(pid)
    if not isinstance(hosted, HostedProcess) or hosted.container_id != container_id:
        raise HostError(operation, HResult.ERROR_NOT_FOUND)
    hosted.require_running(operation)
    return hosted


def start_hosted(vm: FakeVM, document: JSON, container_id: str = HOST_CONTAINER_ID) -> HostedProcess:
    """Start a process (``ProcessParameters``), of the guest itself or in a container.

    :raises HostError: HCS_E_INVALID_JSON, HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION, HCS_E_INVALID_STATE,
        or what the guest refuses with.
    """
    operation = f"create a process in {vm.id}"
    vm.require_relay("create a process in")
    in_linux_container = vm.os == "linux" and container_id != HOST_CONTAINER_ID
    kind = LinuxProcessParameters if in_linux_container else ProcessParameters
    parameters = _read(kind, document, operation)
    if parameters.emulate_console:
        # With a console, both outputs are one.
        parameters.create_std_err_pipe = False
    asked = (
        ("stdin", parameters.create_std_in_pipe),
        ("stdout", parameters.create_std_out_pipe),
        ("stderr", parameters.create_std_err_pipe),
    )
    ports = {name: _PORTS[name] for name, wanted in asked if wanted}
    listeners = {name: vm.listen(vsock_service_id(port)) for name, port in ports.items()}
    request = ExecuteProcessRequest(
        container_id=container_id, settings=execute_settings(vm.os, dumps(parameters), ports)
    )
    try:
        answer = relayed(operation, lambda: vm.service.ask(Procedure.EXECUTE_PROCESS, request, operation))
        pid = from_json(ExecuteProcessResponse, answer).process_id
        return HostedProcess(vm, pid, container_id, _accept(listeners))
    finally:
        for listener in listeners.values():
            listener.end(anyio.ClosedResourceError())


def _accept(listeners: dict[str, FakeListener]) -> dict[str, FakeStream]:
    """Take the connections that the guest made before it answered."""
    dialled = {name: listener.accept_nowait() for name, listener in listeners.items()}
    return {name: stream for name, stream in dialled.items() if stream is not None}


def relayed(operation: str, ask: Callable[[], JSON]) -> JSON:
    """Ask the guest; its refusal is HCS's, with the guest's code."""
    try:
        return ask()
    except GuestError as e:
        raise HostError(operation, e.hresult, e.text) from None


def _read(cls: type[T], document: JSON, operation: str) -> T:
    try:
        return from_json(cls, document, forbid_extra=True)
    except SchemaError as e:
        raise HostError(operation, HResult.HCS_E_INVALID_JSON, str(e)) from None
