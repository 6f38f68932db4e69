"""The host's own connection to a guest, and the processes that it starts over it.

How it works
------------

A document with a ``GuestConnection`` has the host itself connect to the guest, as HCS does. Here that is our
own connection (:mod:`uvm._gcs`), which the task that serves the VM serves too::

    VM created --> listens for the guest's compute service
    guest      --> dials, is greeted and set up --> requests, processes, its shutdown
    VM exits   --> everything that waits ends

What is asked before the guest has dialled waits for it, as long as a guest may take to boot. A process is
kept for as long as a handle is open on it, or it runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

import anyio
from attrs import define, field

from uvm._async import Flag
from uvm._gcs.connection import GuestConnection
from uvm._gcs.process import start_process
from uvm._guest.process import Launch, Process, handle_of
from uvm._guest.stdio import close_quietly
from uvm._log import Log
from uvm._repr import showing
from uvm._wire.ports import LINUX_GCS_PORT, vsock_service_id
from uvm.backend import JSON, ByteStream, Listener
from uvm.backends.handles import Handle
from uvm.backends.requests.processes import process_status, read_change, streams_of
from uvm.backends.requests.request import read_document
from uvm.errors import BridgeClosedError, GuestError, HostError, UVMError
from uvm.hresult import HResult
from uvm.schema.common import Version
from uvm.schema.gcs import HOST_CONTAINER_ID
from uvm.schema.json import to_json
from uvm.schema.process import (
    CloseHandle,
    ProcessParameters,
    SignalProcessOptionsLCOW,
)
from uvm.schema.properties import GuestConnectionInfo

_log = Log("uvm")

#: How long a guest may take to be there.
BOOT_SECONDS: Final = 120.0


@showing("processes")
class HostConnection:
    """The host's own connection to the guest of one VM.

    :param name: the id of the VM.
    :param listen: listens for the guest to dial a service.
    :param waiting: returns the ports at which connections for an earlier process wait.
    :ivar processes: those that were started over it, by id.
    """

    def __init__(
        self,
        name: str,
        listen: Callable[[str], Awaitable[Listener]],
        waiting: Callable[[], Collection[int]] = tuple,
    ) -> None:
        self._name = name
        self._listen = listen
        self._connection = GuestConnection(listen, name=name, taken_ports=waiting)
        self._ready = Flag()
        self._problem: Exception | None = None
        self.processes: dict[int, HostedProcess] = {}

    async def serve(self) -> None:
        """Wait for the guest, and serve the connection until one side closes it. Raises nothing."""
        try:
            listener = await self._listen(vsock_service_id(LINUX_GCS_PORT))
            try:
                stream = await listener.accept()
            finally:
                await close_quietly(listener, self._name)
            async with anyio.create_task_group() as tasks:
                await tasks.start(self._connection.serve, stream)
                await self._connection.start_guest()
                self._ready.set()
        except* (UVMError, OSError, anyio.ClosedResourceError, anyio.BrokenResourceError) as group:
            self._problem = group.exceptions[0]
            _log.warning(self._name, "the host's connection to the guest: %s", self._problem)
        finally:
            self.close()

    def close(self) -> None:
        """Close it; what waits ends."""
        self._connection.close(self._problem)
        self._ready.set()

    async def guest(self, operation: str) -> GuestConnection:
        """Return the connection to the guest, once it is there.

        :raises HostError: the guest did not connect in time, or the connection is closed.
        """
        with anyio.move_on_after(BOOT_SECONDS):
            await self._ready.wait()
            if not self._connection.closed:
                return self._connection
            code = HResult.HCS_E_CONNECTION_CLOSED
            raise HostError(f"{operation} {self._name}", code, str(self._problem or "the guest has gone"))
        text = f"the guest did not connect within {BOOT_SECONDS:g} s"
        raise HostError(f"{operation} {self._name}", HResult.HCS_E_CONNECTION_TIMEOUT, text)

    async def info(self) -> JSON:
        """Return the ``GuestConnectionInfo``."""
        guest = await self.guest("query")
        info = GuestConnectionInfo(
            supported_schema_versions=[Version(major=2, minor=1)],
            protocol_version=guest.protocol_version,
            guest_defined_capabilities=dict(guest.capabilities),
        )
        return to_json(info)

    async def modify(self, request: JSON) -> None:
        """Have the guest carry out a request; HostError if it refuses."""
        guest = await self.guest("modify")
        with _as_the_host(f"modify {self._name}"):
            await guest.modify(request)

    async def shutdown(self) -> None:
        """Ask the guest to shut down; HostError if it refuses."""
        guest = await self.guest("shut down")
        with _as_the_host(f"shut down {self._name}"):
            await guest.shutdown()

    async def start(self, parameters: JSON) -> HostedProcess:
        """Start a process (``ProcessParameters``); HostError if the guest refuses."""
        operation = "create a process in"
        read = read_document(ProcessParameters, parameters, f"{operation} {self._name}")
        guest = await self.guest(operation)
        # With a console, both outputs are one.
        pipes = {
            "stdin": read.create_std_in_pipe,
            "stdout": read.create_std_out_pipe,
            "stderr": read.create_std_err_pipe and not read.emulate_console,
        }
        args = tuple(read.command_args) or (read.command_line,)
        launch = Launch(args, read, pipes, read.emulate_console)
        with _as_the_host(f"{operation} {self._name}"):
            process = await start_process(guest._link, HOST_CONTAINER_ID, launch)
        hosted = HostedProcess(self._name, process, pipes)
        self._forget_ended()
        self.processes[process.pid] = hosted
        return hosted

    def find(self, pid: int) -> HostedProcess:
        """Return a process that was started so and runs.

        :raises HostError: ERROR_NOT_FOUND; HCS_E_PROCESS_ALREADY_STOPPED if it has exited.
        """
        self._forget_ended()
        hosted = self.processes.get(pid)
        operation = f"open process {pid} of {self._name}"
        if hosted is None:
            raise HostError(operation, HResult.ERROR_NOT_FOUND)
        hosted.require_running(operation)
        return hosted

    def _forget_ended(self) -> None:
        for pid, each in [*self.processes.items()]:
            if each.exited and not each.handles:
                del self.processes[pid]


@contextmanager
def _as_the_host(operation: str, closed: type[UVMError] = BridgeClosedError) -> Iterator[None]:
    """Have the refusal of a guest be a HostError.

    :param closed: the errors that say that its connection has ended, which are one as well.
    """
    try:
        yield
    except GuestError as error:
        raise HostError(f"{operation}: {error.operation}", error.hresult, error.text) from error
    except closed as error:
        raise HostError(operation, HResult.HCS_E_SYSTEM_ALREADY_STOPPED, str(error)) from error


@define(eq=False, repr=False)
class HostedProcess:
    """A process that the host started, for its handles.

    :ivar handles: how many are open.
    """

    _vm: str
    process: Process
    pipes: dict[str, bool]
    handles: int = field(default=0, init=False)

    @property
    def exited(self) -> bool:
        """Whether it has exited, or is out of reach."""
        return handle_of(self.process).exit.settled

    def __str__(self) -> str:
        return f"process {self.process.pid} of {self._vm}"

    def require_running(self, operation: str) -> None:
        """Refuse if it has exited: HCS_E_PROCESS_ALREADY_STOPPED."""
        code = self.process.exit_code
        if self.exited:
            text = "it has exited" if code is None else f"exit code {code}"
            raise HostError(operation, HResult.HCS_E_PROCESS_ALREADY_STOPPED, text)

    async def ask(self, action: str, call: Callable[[], Awaitable[None]]) -> None:
        """Make a call to the guest about it; HostError if it has exited, or the guest refuses."""
        operation = f"{action} {self}"
        self.require_running(operation)
        with _as_the_host(operation):
            await call()

    async def wait(self) -> int:
        """Wait for its exit; HCS_E_SYSTEM_ALREADY_STOPPED if the VM exits before it is known."""
        with _as_the_host(f"wait for {self}", UVMError):
            return await handle_of(self.process).exit.wait()

    async def close_streams(self, closing: CloseHandle, operation: str) -> None:
        """Close streams; ERROR_NOT_FOUND if it has none of them."""
        self.require_running(operation)
        there = [each for each, has in self.pipes.items() if has]
        for each in streams_of(closing, there, operation):
            stream: Any = getattr(self.process, each)
            await (stream.send_eof() if each == "stdin" else stream.aclose())

    def status(self) -> JSON:
        """Return its ``ProcessStatus``."""
        return process_status(self.process.pid, self.process.exit_code, exited=self.exited)


class QEMUHostProcess(Handle):
    """A handle on a process (:class:`~uvm.backend.HostProcess`).

    Once it is closed, every call but :attr:`pid` and the streams is refused with E_HANDLE.

    :param opened: the process was opened by its id, and has no streams.
    """

    def __init__(self, hosted: HostedProcess, *, opened: bool = False) -> None:
        super().__init__(str(hosted))
        self._hosted = hosted
        self._opened = opened
        hosted.handles += 1

    @property
    def pid(self) -> int:
        """The process's id in the guest."""
        return self._hosted.process.pid

    @property
    def stdin(self) -> ByteStream | None:
        """The stream of the process's input."""
        return self._stream("stdin")

    @property
    def stdout(self) -> ByteStream | None:
        """The stream of the process's output."""
        return self._stream("stdout")

    @property
    def stderr(self) -> ByteStream | None:
        """The stream of the process's error output; None with a console, which has all in :attr:`stdout`."""
        return self._stream("stderr")

    def _stream(self, name: str) -> ByteStream | None:
        if self._opened or not self._hosted.pipes[name]:
            return None
        stream: ByteStream = getattr(self._hosted.process, name)
        return stream

    async def wait(self) -> int:
        """Wait for the process to exit, and return the exit code.

        :raises HostError: E_HANDLE if this handle is closed meanwhile; HCS_E_SYSTEM_ALREADY_STOPPED if the VM
            exits before the exit of the process is known.
        """
        return await self._unless_closed("wait for", self._hosted.wait)

    async def signal(self, options: JSON) -> None:
        """Have the guest signal the process; HCS_E_PROCESS_ALREADY_STOPPED if it has exited."""
        self._require_open("signal")
        read = read_document(SignalProcessOptionsLCOW, options, f"signal {self._hosted}")
        handle = handle_of(self._hosted.process)
        await self._hosted.ask("signal", lambda: handle.signal(read))

    async def terminate(self) -> None:
        """Have the guest kill the process; HCS_E_PROCESS_ALREADY_STOPPED if it has exited."""
        self._require_open("terminate")
        handle = handle_of(self._hosted.process)
        await self._hosted.ask("terminate", lambda: handle.signal(None))

    async def modify(self, request: JSON) -> None:
        """Have the guest resize the console, or close streams.

        :raises HostError: HCS_E_PROCESS_ALREADY_STOPPED if it has exited; ERROR_NOT_FOUND for a stream that
            it does not have; HCS_E_INVALID_JSON.
        """
        self._require_open("modify")
        operation = f"modify {self._hosted}"
        change = read_change(request, operation)
        if isinstance(change, CloseHandle):
            await self._hosted.close_streams(change, operation)
        else:
            handle = handle_of(self._hosted.process)
            await self._hosted.ask("modify", lambda: handle.resize(change.height, change.width))

    async def properties(self) -> JSON:
        """Return the ``ProcessStatus``."""
        self._require_open("query")
        return self._hosted.status()

    async def close(self) -> None:
        """Close the handle and its streams, even in a cancelled scope; E_HANDLE if it was closed before."""
        self._close()
        self._hosted.handles -= 1
        if not self._opened:
            await self._hosted.process.aclose()
