"""Handles on VMs that another process of this user has.

Such a VM's sockets are with that process. What is left is what Linux knows of a process: that it runs, what
it uses, and its end, which this user may bring about.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Final, NoReturn

import anyio

from uvm.backend import JSON, HostProcess, Listener
from uvm.backends.handles import Handle
from uvm.backends.qemu.properties import Usage, process_statistics, usage_of
from uvm.backends.qemu.runtime import Record
from uvm.errors import ExitStatus, HostError, NotSupportedError
from uvm.hresult import HResult
from uvm.schema.properties import PROPERTY_STATISTICS

_UNKNOWN: Final = ExitStatus("Unknown")


class OtherSystem(Handle):
    """A handle on a VM of another process (:class:`~uvm.backend.System`).

    It reports the VM and what its process uses, terminates it, and waits for its end; how it ended is known
    to the other process. Everything else is a NotSupportedError.

    :param record: what is known of the VM.
    :param pidfd: refers to its process; it belongs to the handle from now on.
    """

    def __init__(self, record: Record, pidfd: int) -> None:
        super().__init__(record.id)
        self._record = record
        self._pidfd = pidfd
        self._exit: ExitStatus | None = None

    @property
    def id(self) -> str:
        """The compute system's id."""
        return self._record.id

    @property
    def runtime_id(self) -> str:
        """The VM's GUID."""
        return self._record.runtime_id

    async def terminate(self) -> None:
        """Kill the VM, and wait for its end; HCS_E_SYSTEM_ALREADY_STOPPED if it has exited."""
        self._require_open("terminate")
        self._require_running("terminate")
        self._exit = ExitStatus("ForcedExit")
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await self.wait()

    async def wait(self) -> ExitStatus:
        """Wait for the exit; its type is ``Unknown`` unless this handle has terminated the VM."""
        await self._unless_closed("wait for", lambda: anyio.wait_readable(self._pidfd))
        self._exit = self._exit or _UNKNOWN
        return self._exit

    async def properties(self, *types: str, queries: JSON | None = None) -> JSON:
        """Return what is known of it, and ``Statistics`` of its process."""
        self._require_open("query")
        found = self._record.summary(stopped=not self._runs)
        for name in (*types, *(queries or ())):
            if name != PROPERTY_STATISTICS:
                self._refuse(f"query {name} of")
            self._require_running("query")
            found[name] = process_statistics(self._usage())
        return found

    async def working_set_bytes(self) -> int:
        """Return the physical memory that QEMU occupies."""
        self._require_open("measure")
        self._require_running("measure")
        return self._usage().resident_bytes

    async def close(self) -> None:
        """Close the handle; E_HANDLE if it was closed before. The VM runs on."""
        self._close()
        anyio.notify_closing(self._pidfd)
        os.close(self._pidfd)

    async def start(self) -> None:
        """Refuse."""
        self._refuse("start")

    async def shutdown(self, options: JSON | None = None) -> None:
        """Refuse."""
        self._refuse("shut down")

    async def crash(self, options: JSON | None = None) -> None:
        """Refuse."""
        self._refuse("crash")

    async def pause(self, options: JSON | None = None) -> None:
        """Refuse."""
        self._refuse("pause")

    async def resume(self) -> None:
        """Refuse."""
        self._refuse("resume")

    async def save(self, options: JSON | None = None) -> None:
        """Refuse."""
        self._refuse("save")

    async def modify(self, request: JSON) -> None:
        """Refuse."""
        self._refuse("modify")

    async def create_process(self, parameters: JSON) -> HostProcess:
        """Refuse."""
        self._refuse("create a process in")

    async def open_process(self, pid: int) -> HostProcess:
        """Refuse."""
        self._refuse("open a process of")

    async def listen(self, service_id: str) -> Listener:
        """Refuse."""
        self._refuse("listen on")

    @property
    def _runs(self) -> bool:
        return self._record.qemu is not None and self._record.qemu.runs

    def _usage(self) -> Usage:
        assert self._record.qemu is not None
        return usage_of(self.id, self._record.qemu.pid)

    def _require_running(self, operation: str) -> None:
        if not self._runs:
            raise HostError(f"{operation} {self.id}", HResult.HCS_E_SYSTEM_ALREADY_STOPPED, "QEMU has ended")

    def _refuse(self, operation: str) -> NoReturn:
        self._require_open(operation)
        self._require_running(operation)
        raise NotSupportedError(
            f"{operation} {self.id}: the process {self._record.host.pid} has this VM and the connections to "
            "it; another process can report it, wait for it and terminate it"
        )
