"""A compute system of HCS: its handle, its calls and its events."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

import anyio

from uvm._async import Flag
from uvm._log import Log
from uvm.backend import JSON, HostProcess, Listener
from uvm.backends.hcs.calls import SERVICE_DISCONNECT
from uvm.backends.hcs.dlls import Request, SystemHandle
from uvm.backends.hcs.handles import Handle
from uvm.backends.hcs.host import Host
from uvm.backends.hcs.machine import WorkingSet
from uvm.backends.hcs.process import HCSProcess, create_process, open_process
from uvm.backends.hcs.text import parse, parse_object
from uvm.backends.hcs.transport import GuestListener
from uvm.backends.winerrors import tolerating
from uvm.errors import ExitStatus, HostError
from uvm.hresult import HResult

_log = Log("uvm")

# HCS_EVENT_TYPE of computedefs.h.
_SYSTEM_EXITED: Final = 0x1
_CRASH_INITIATED: Final = 0x2
_CRASH_REPORT: Final = 0x3
_GUEST_CONNECTION_CLOSED: Final = 0x6

#: HCS's answers while a request goes on (the second is HCS v1's, known to hcsshim): success, because the exit
#: reports the end of a system.
_PENDING: Final = (HResult.HCS_E_OPERATION_PENDING, HResult.ERROR_VMCOMPUTE_OPERATION_PENDING)


class HCSSystem:
    """A handle of a compute system (:class:`~uvm.backend.System`).

    Once the handle is closed, everything but :attr:`id` and :attr:`runtime_id` is refused with E_HANDLE.

    :ivar id: the id of the compute system.
    :ivar runtime_id: the Hyper-V VM id, a GUID; empty if the system is no VM.
    """

    def __init__(self, host: Host, handle: Handle[SystemHandle]) -> None:
        self._host = host
        self._handle = handle
        self.id: Final = handle.name
        self.runtime_id: str = ""
        self._registration = 0
        self._ended = Flag()
        self._exit: ExitStatus | None = None
        #: What HCS reported before the exit, by its key in the exit status.
        self._reported: dict[str, Any] = {}
        #: The open listeners, kept alive by the transport; a guest may have thousands, one after another.
        self._listeners: WeakSet[GuestListener] = WeakSet()
        self._processes: WeakSet[HCSProcess] = WeakSet()
        self._working_set: WorkingSet | None = None
        self._finding = anyio.Lock()

    def __repr__(self) -> str:
        state = "exited" if self._exit is not None else "closed" if self._handle.closed else "open"
        return f"<HCSSystem {self.id} ({state})>"

    async def start(self) -> None:
        """Start the system (``HcsStartComputeSystem``)."""
        await self._request("start", self._host.functions.HcsStartComputeSystem)

    async def shutdown(self, options: JSON | None = None) -> None:
        """Request an orderly shutdown (``HcsShutDownComputeSystem``)."""
        with tolerating(*_PENDING):
            await self._request("shutdown", self._host.functions.HcsShutDownComputeSystem, options)

    async def terminate(self) -> None:
        """Terminate the system (``HcsTerminateComputeSystem``)."""
        with tolerating(*_PENDING):
            await self._request("terminate", self._host.functions.HcsTerminateComputeSystem)

    async def crash(self, options: JSON | None = None) -> None:
        """Crash the guest (``HcsCrashComputeSystem``)."""
        await self._request("crash", self._host.functions.HcsCrashComputeSystem, options)

    async def pause(self, options: JSON | None = None) -> None:
        """Pause the system (``HcsPauseComputeSystem``)."""
        await self._request("pause", self._host.functions.HcsPauseComputeSystem, options)

    async def resume(self) -> None:
        """Resume the system (``HcsResumeComputeSystem``)."""
        await self._request("resume", self._host.functions.HcsResumeComputeSystem)

    async def save(self, options: JSON | None = None) -> None:
        """Save the system (``HcsSaveComputeSystem``), to a file or as a template, according to `options`."""
        await self._request("save", self._host.functions.HcsSaveComputeSystem, options)

    async def modify(self, request: JSON) -> None:
        """Send a ``ModifySettingRequest`` (``HcsModifyComputeSystem``). Cancelled, its outcome is unknown."""
        modify, null = self._host.functions.HcsModifyComputeSystem, self._host.null
        await self._request("modify", lambda h, o, text: modify(h, o, text, null), request)

    async def properties(self, *types: str, queries: JSON | None = None) -> JSON:
        """Query properties (``HcsGetComputeSystemProperties``).

        :param types: the query's ``PropertyTypes``.
        :param queries: the query's newer ``Queries``: arguments by type.
        """
        query: JSON = {"PropertyTypes": list(types)} if types else {}
        if queries is not None:
            query["Queries"] = queries
        ask = self._host.functions.HcsGetComputeSystemProperties
        return parse_object(await self._request("query", ask, query), f"query {self.id}")

    async def working_set_bytes(self) -> int:
        """Return the physical memory used by the VM's vmmem process, which is looked up once."""
        async with self._finding:
            if self._working_set is None:
                self._require_vm("measure")
                self._working_set = await self._host.platform.machine.open_working_set(self.runtime_id)
                if self._handle.closed:
                    self._forget_working_set()
        self._handle.require_open("measure")
        assert self._working_set is not None
        return self._working_set.bytes()

    async def create_process(self, parameters: JSON) -> HostProcess:
        """Start a process in the guest (``HcsCreateProcess``)."""
        return self._keep(await create_process(self._host, self._handle, parameters))

    async def open_process(self, pid: int) -> HostProcess:
        """Open a process that :meth:`create_process` started (``HcsOpenProcess``)."""
        return self._keep(await open_process(self._host, self._handle, pid))

    async def listen(self, service_id: str) -> Listener:
        """Listen on an hvsocket for connections of the guest, until the VM exits."""
        self._require_vm("listen for")
        listener = await self._host.platform.transport.listen(self.runtime_id, service_id)
        if self._handle.closed or self._exit is not None:
            listener.close()
        else:
            self._listeners.add(listener)
        return listener

    async def wait(self) -> ExitStatus:
        """Wait for the exit; E_HANDLE if this handle is closed meanwhile.

        The exit status holds HCS's ``SystemExitStatus`` and, if HCS reported them, ``CrashReport`` and
        ``GuestConnectionClosed``. If HCS itself stops, the exit status is HCS_E_SERVICE_DISCONNECT.
        """
        await self._ended.wait()
        if self._exit is None:
            self._handle.require_open("wait for")
        assert self._exit is not None
        return self._exit

    async def close(self) -> None:
        """Close the handle, shielded from cancellation; E_HANDLE if it was closed before."""
        self._handle.require_open("close")
        try:
            await self._host.close(self._handle)
        finally:
            self._host.service.forget(self._registration)
            self._forget_working_set()
            self._end()

    async def _watch(self) -> None:
        """Register for the exit, which may have happened before, and query the VM's id. Call this first."""
        self._registration = await self._host.watch(
            self._handle, self._host.functions.HcsSetComputeSystemCallback, self._on_event
        )
        properties = await self.properties()
        self.runtime_id = str(properties.get("RuntimeId") or "")
        if properties.get("Stopped") is True or properties.get("State") == "Stopped":
            self._exited(ExitStatus(_exit_type(properties)))

    async def _discard(self) -> None:
        """Terminate and close a system whose caller has left, shielded from cancellation."""
        try:
            # After a failed creation there is nothing to terminate; a hanging HCS is not waited for.
            with suppress(HostError), anyio.move_on_after(self._host.platform.grace_seconds, shield=True):
                await self.terminate()
        finally:
            await self.close()

    async def _request(self, operation: str, call: Request[SystemHandle], body: JSON | None = None) -> str:
        return await self._host.request(self._handle, operation, call, body)

    def _on_event(self, kind: int, text: str) -> None:
        if kind == _SYSTEM_EXITED:
            self._exited(_exit_status(text))
        elif kind == SERVICE_DISCONNECT:
            self._exited(ExitStatus("UnexpectedExit", HResult.HCS_E_SERVICE_DISCONNECT))
        elif kind in (_CRASH_INITIATED, _CRASH_REPORT):
            _log.warning(self.id, "the guest crashed: %s", text)
            self._reported["CrashReport"] = _document(text)
        elif kind == _GUEST_CONNECTION_CLOSED:
            _log.warning(self.id, "HCS lost its connection to the guest")
            self._reported["GuestConnectionClosed"] = _document(text)

    def _exited(self, status: ExitStatus) -> None:
        if self._exit is None:
            detail = {**(status.detail or {}), **self._reported}
            self._exit = ExitStatus(status.exit_type, status.code, detail or None)
        for process in self._processes:
            process._system_exited()
        self._end()

    def _keep(self, process: HCSProcess) -> HCSProcess:
        self._processes.add(process)
        if self._exit is not None:
            process._system_exited()
        return process

    def _end(self) -> None:
        self._ended.set()
        for listener in list(self._listeners):
            listener.close()

    def _forget_working_set(self) -> None:
        if self._working_set is not None:
            self._working_set.close()
            self._working_set = None

    def _require_vm(self, operation: str) -> None:
        self._handle.require_open(operation)
        if not self.runtime_id:
            # For example a container that HCS hosts in a VM.
            raise HostError(
                f"{operation} {self.id}", HResult.ERROR_NOT_SUPPORTED, "the system has no VM of its own"
            )


def _document(text: str) -> Any:
    try:
        return parse(text, "event")
    except HostError:
        return text


def _exit_status(text: str) -> ExitStatus:
    status = _document(text)
    if not isinstance(status, dict):
        return ExitStatus("Unknown", detail={"EventData": text} if text else None)
    code = status.get("Status")
    return ExitStatus(_exit_type(status), code & 0xFFFFFFFF if isinstance(code, int) else 0, status)


def _exit_type(document: JSON) -> str:
    found = document.get("ExitType")
    return found if isinstance(found, str) and found else "Unknown"
