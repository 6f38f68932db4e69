"""The exit of a VM: what QEMU and the host said of it, and the exit status that follows.

How the guest ended is said by QEMU's events before its process ends; a process that ends without was killed,
by :meth:`~uvm.backends.qemu.vm.VM.terminate` or by others.
"""

from __future__ import annotations

import logging
from typing import Final

from uvm._async import Flag
from uvm._log import Log
from uvm._repr import showing
from uvm.backend import JSON
from uvm.backends.qemu.launch import Process
from uvm.errors import ExitStatus, HostError
from uvm.hresult import HResult
from uvm.schema.secrets import printable

_log = Log("uvm")

#: How much of the console's end is in an exit status, in characters.
_SAID: Final = 4096
#: How many of its lines are logged.
_LINES: Final = 30


@showing("status")
class Exit:
    """How a VM exits, and has exited.

    :param vm_id: the id of the compute system.
    :ivar status: how it exited; None before.
    :ivar guest_ended: set once the guest has shut down, reset or panicked.
    :ivar crashing: set once the guest is asked to panic.
    :ivar terminated: the VM is killed by its owner.
    :ivar console: the end of what the guest has written to its console.
    """

    def __init__(self, vm_id: str) -> None:
        self.status: ExitStatus | None = None
        self.guest_ended: Flag = Flag()
        self.crashing: Flag = Flag()
        self.terminated: bool = False
        self.console: str = ""
        self._vm_id = vm_id
        self._shutdown: JSON = {}
        self._panicked = False
        self._settled = Flag()

    def on_event(self, name: str, data: JSON) -> None:
        """Note an event of QEMU that is about the end of the guest."""
        if name == "SHUTDOWN":
            # The first says how the guest ended, the next that QEMU quits.
            self._shutdown = self._shutdown or data
            self.guest_ended.set()
        elif name == "GUEST_PANICKED":
            self._panicked = True
            self.guest_ended.set()

    def settle(self, process: Process) -> None:
        """Note that the VM has exited, and log what a guest that ended by itself wrote last."""
        self.status = status = self._status_of(process)
        if status.exit_type in ("Reset", "UnexpectedExit"):
            for line in self.console.splitlines()[-_LINES:]:
                _log.say(logging.WARNING, self._vm_id, f"console: {printable(line)}")
        self._settled.set()

    def leave(self) -> None:
        """Note that how the VM exits will not be known here."""
        self.status = ExitStatus("Unknown")
        self._settled.set()

    async def wait(self) -> ExitStatus:
        """Wait for the exit."""
        await self._settled.wait()
        assert self.status is not None
        return self.status

    def error(self, operation: str) -> HostError:
        """Return the error of an operation that comes too late: HCS_E_SYSTEM_ALREADY_STOPPED."""
        text = f"exit: {self.status}" if self.status is not None else "QEMU is ending"
        return HostError(f"{operation} {self._vm_id}", HResult.HCS_E_SYSTEM_ALREADY_STOPPED, text)

    def _status_of(self, process: Process) -> ExitStatus:
        reason = str(self._shutdown.get("reason", ""))
        detail: JSON = {"QEMU": {"ExitCode": process.exit_code, "Reason": reason}}
        for name, said in (("LastWords", process.last_words), ("Console", self.console[-_SAID:])):
            if said:
                detail["QEMU"][name] = said
        if self._panicked or self.crashing.is_set():
            detail["Attribution"] = [{"GuestCrash": {"CrashParameters": [0, 0, 0, 0, 0]}}]
            return ExitStatus("UnexpectedExit", HResult.HCS_E_GUEST_CRITICAL_ERROR, detail)
        if reason == "guest-shutdown":
            return ExitStatus("GracefulExit", 0, detail)
        if reason == "guest-reset":
            return ExitStatus("Reset", 0, detail)
        if self.terminated:
            return ExitStatus("ForcedExit", 0, detail)
        detail["Attribution"] = [{"WorkerExit": {"ExitCode": process.exit_code}}]
        return ExitStatus("UnexpectedExit", HResult.HCS_E_UNEXPECTED_EXIT, detail)
