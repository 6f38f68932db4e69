"""A process that HCS started in a system, over HCS's own connection to the guest."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

import anyio
from attrs import frozen

from uvm._async import Flag
from uvm.backend import JSON, ByteStream
from uvm.backends.hcs.calls import SERVICE_DISCONNECT
from uvm.backends.hcs.dlls import CData, OperationHandle, ProcessHandle, SystemHandle
from uvm.backends.hcs.handles import Handle
from uvm.backends.hcs.host import Host
from uvm.backends.hcs.text import parse_object, take
from uvm.errors import HostError
from uvm.hresult import HResult

# HCS_EVENT_TYPE of computedefs.h.
_PROCESS_EXITED: Final = 0x00010000

_INVALID_HANDLE_VALUE: Final = (1 << 64) - 1

#: How long the exit of a process may follow HCS's answer that the process is gone (hcsshim's limit).
_EXIT_GRACE_SECONDS: Final = 1.0


@frozen(eq=False, repr=False)
class _Information:
    """``HCS_PROCESS_INFORMATION``; its handles are owned by streams."""

    pid: int
    stdin: ByteStream | None = None
    stdout: ByteStream | None = None
    stderr: ByteStream | None = None

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            async with AsyncExitStack() as streams:
                for stream in (self.stderr, self.stdout, self.stdin):
                    if stream is not None:
                        streams.push_async_callback(stream.aclose)


class HCSProcess:
    """A process in a guest (:class:`~uvm.backend.HostProcess`).

    :ivar pid: its id in the guest.
    :ivar stdin: its input; None if none was asked for, or if the process was opened.
    :ivar stdout: its output, likewise.
    :ivar stderr: its error output, likewise.
    """

    def __init__(
        self, host: Host, system_id: str, handle: Handle[ProcessHandle], information: _Information
    ) -> None:
        self._host = host
        self._system_id = system_id
        self._handle = handle
        self.pid: Final = information.pid
        self.stdin: Final = information.stdin
        self.stdout: Final = information.stdout
        self.stderr: Final = information.stderr
        self._information = information
        self._registration = 0
        self._ended = Flag()
        #: The process has exited, or was reported gone.
        self._news = Flag()
        self._exit: int | HostError | None = None
        #: The report that the process or its system is gone, while its own exit has not been reported.
        self._gone: HostError | None = None

    def __repr__(self) -> str:
        state = "running" if self._exit is None else f"exited: {self._exit}"
        return f"<HCSProcess {self.pid} of {self._system_id} ({state})>"

    async def wait(self) -> int:
        """Wait for the exit, and return the exit code; E_HANDLE if the handle is closed meanwhile.

        :raises HostError: also if HCS lost the process: HCS_E_SERVICE_DISCONNECT, or the error of its own
            wait.
        """
        await self._news.wait()
        if self._gone is not None:
            # The exit may be about to be reported, or have been reported before this handle was watched.
            with anyio.move_on_after(_EXIT_GRACE_SECONDS):
                await self._ended.wait()
            self._set_outcome(self._gone)
        if isinstance(self._exit, int):
            return self._exit
        if self._exit is None:
            self._handle.require_open("wait for")
        assert self._exit is not None
        raise HostError(f"wait for {self._handle.name}", self._exit.hresult, self._exit.text)

    async def signal(self, options: JSON) -> None:
        """Send a signal (``SignalProcessOptionsLCOW`` or ``...WCOW``)."""
        await self._host.request(self._handle, "signal", self._host.functions.HcsSignalProcess, options)

    async def terminate(self) -> None:
        """Kill the process, through a handle of its own: HCS sends the signals of a handle one by one."""
        host, operation = self._host, f"terminate {self._handle.name}"
        self._handle.require_open("terminate")
        system = await host.open_system(self._system_id, operation)
        try:
            process = await host.open_process(system, self.pid, operation)
            try:
                await host.request(process, "terminate", host.functions.HcsTerminateProcess)
            finally:
                await host.close(process)
        finally:
            await host.close(system)

    async def modify(self, request: JSON) -> None:
        """Carry out a ``ProcessModifyRequest``."""
        await self._host.request(self._handle, "modify", self._host.functions.HcsModifyProcess, request)

    async def properties(self) -> JSON:
        """Return its ``ProcessStatus``."""
        ask = self._host.functions.HcsGetProcessProperties
        text = await self._host.request(self._handle, "query", ask)
        return parse_object(text, f"query {self._handle.name}")

    async def close(self) -> None:
        """Close the handle and the streams; E_HANDLE if they were closed before."""
        self._handle.require_open("close")
        await self._end()

    def _system_exited(self) -> None:
        """Note that its system has exited, so that its own exit may never be reported."""
        self._report_gone(HostError("wait", HResult.HCS_E_SYSTEM_ALREADY_STOPPED, "its system has exited"))

    async def _watch(self) -> None:
        """Register for its exit, which may have happened before."""
        try:
            self._registration = await self._host.watch(
                self._handle, self._host.functions.HcsSetProcessCallback, self._on_event
            )
            await self._query_exit()
        except BaseException:
            await self._end()
            raise

    async def _query_exit(self) -> None:
        """Ask whether it exited before it was watched; if HCS does not say, events have to."""
        try:
            status = await self.properties()
        except HostError as e:
            if e.hresult in (HResult.ERROR_NOT_FOUND, HResult.HCS_E_PROCESS_ALREADY_STOPPED):
                self._report_gone(e)
        else:
            if status.get("Exited") is True:
                self._set_outcome(_outcome(status))

    async def _end(self) -> None:
        self._handle.retire()
        self._ended.set()
        self._news.set()
        try:
            # First, or readers would take what HCS does to the pipes for the end of the output.
            await self._information.aclose()
        finally:
            try:
                await self._host.release(self._handle)
            finally:
                self._host.service.forget(self._registration)

    def _on_event(self, kind: int, text: str) -> None:
        if kind == _PROCESS_EXITED:
            self._set_outcome(_reported_outcome(text))
        elif kind == SERVICE_DISCONNECT:
            text = "HCS has stopped; the exit code is unknown"
            self._set_outcome(HostError("wait", HResult.HCS_E_SERVICE_DISCONNECT, text))

    def _set_outcome(self, outcome: int | HostError) -> None:
        if not self._ended.is_set():
            self._exit = outcome
            self._ended.set()
            self._news.set()

    def _report_gone(self, reason: HostError) -> None:
        """Note HCS's report that it is gone: its exit follows soon, or never."""
        if self._gone is None:
            self._gone = reason
            self._news.set()


def _reported_outcome(text: str) -> int | HostError:
    """Return the outcome from the exit's event."""
    if not text:
        return HostError("wait", HResult.HCS_E_INVALID_JSON, "HCS reported the exit without an exit code")
    try:
        return _outcome(parse_object(text, "wait"))
    except HostError as e:
        return e


def _outcome(status: JSON) -> int | HostError:
    """Return the outcome from a ``ProcessStatus``, in which zeros may be omitted."""
    lost, code = (0 if status.get(k) is None else status[k] for k in ("LastWaitResult", "ExitCode"))
    if not (isinstance(lost, int) and isinstance(code, int)):
        return HostError("wait", HResult.HCS_E_INVALID_JSON, f"HCS reported the exit with {status}")
    if lost:
        return HostError("wait", lost, "HCS's own wait for the process failed")
    return code & 0xFFFFFFFF


async def create_process(host: Host, system: Handle[SystemHandle], parameters: JSON) -> HCSProcess:
    """Start a process in a system (``HcsCreateProcess``)."""
    handle, start = await _start(host, system, parameters)
    assert start.information is not None
    handle.name = f"{system.name}:{start.information.pid}"
    process = HCSProcess(host, system.name, handle, start.information)
    if start.broken is not None:
        await process.close()
        raise start.broken
    await process._watch()
    return process


async def _start(
    host: Host, system: Handle[SystemHandle], parameters: JSON
) -> tuple[Handle[ProcessHandle], _Start]:
    create, null = host.functions.HcsCreateProcess, host.null
    document = host.document(parameters, f"create process in {system.name}")
    out, start = host.service.library.ffi.new("HCS_PROCESS *"), _Start(host)
    try:
        await host.operate(
            system, "create process in", lambda h, o: create(h, document, o, null, out), start.fetch
        )
    except BaseException as failure:
        # There may be a handle whatever the outcome, also on cancellation.
        if out[0] == null:
            raise
        handle = host.process_handle(f"{system.name}: process", out[0])
        try:
            if not isinstance(failure, HostError):
                raise
            # Server 2022 was seen to fail the operation of a process that it had started: ask the process.
            await host.operate(handle, "ask", host.functions.HcsGetProcessInfo, start.fetch)
        except BaseException as error:
            await host.close(handle)
            if isinstance(error, HostError):
                raise failure from None
            raise
        return handle, start
    assert out[0] != null, "HCS returned neither a process nor an error"
    return host.process_handle(f"{system.name}: process", out[0]), start


async def open_process(host: Host, system: Handle[SystemHandle], pid: int) -> HCSProcess:
    """Return a new handle of a process of a system; it has no streams."""
    operation = f"open process {pid} of {system.name}"
    if not 0 <= pid < 1 << 32:
        raise HostError(operation, HResult.ERROR_NOT_FOUND, "no process has such an id")
    handle = await host.open_process(system, pid, operation)
    process = HCSProcess(host, system.name, handle, _Information(pid))
    await process._watch()
    return process


class _Start:
    """Fetches the result of the operation that started a process."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.information: _Information | None = None
        self.broken: Exception | None = None

    def fetch(self, operation: OperationHandle) -> tuple[int, str]:
        library = self._host.service.library
        raw, document = library.ffi.new("HCS_PROCESS_INFORMATION *"), library.ffi.new("PWSTR *")
        hresult = library.functions.HcsGetOperationResultAndProcessInfo(operation, raw, document)
        text = take(library, document[0])
        if hresult >= 0:
            streams = [self._stream(handle) for handle in (raw.StdInput, raw.StdOutput, raw.StdError)]
            self.information = _Information(raw.ProcessId, *streams)
        return hresult, text

    def _stream(self, handle: CData) -> ByteStream | None:
        number = int(self._host.service.library.ffi.cast("uintptr_t", handle))
        # HCS returns either for a stream that was not asked for.
        if number in (0, _INVALID_HANDLE_VALUE):
            return None
        try:
            return self._host.platform.transport.pipes.open(number)
        except Exception as e:
            # The other handles have to be taken over all the same.
            self.broken = e
            return None
