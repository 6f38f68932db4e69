"""What the backend is made of, and where a Windows machine has it."""

from __future__ import annotations

from attrs import frozen

from uvm.backends.hcs.dlls import ComputeCore, ComputeNetwork, Library, windows_core, windows_network
from uvm.backends.hcs.machine import Machine
from uvm.backends.hcs.transport import Transport
from uvm.backends.hcs.workers import Workers
from uvm.errors import NotSupportedError


@frozen(eq=False)
class Parts:
    """The two DLLs, and what else the backend needs of Windows; each is replaceable.

    :ivar patience_seconds: how long whoever is cancelled, or cleans up, waits for HCS.
    """

    core: Library[ComputeCore]
    network: Library[ComputeNetwork]
    machine: Machine
    transport: Transport
    workers: Workers
    patience_seconds: float = 5.0


def windows_parts() -> Parts:
    """Give the parts of this machine.

    :raises NotSupportedError: something is missing, all of which the message names.
    """
    from uvm.backends.hcs.availability import availability

    problems = availability()
    if problems:
        raise NotSupportedError("the hcs backend cannot be used here: " + "; ".join(problems))
    from uvm.backends.hcs.hvsocket import HvSocketTransport
    from uvm.backends.hcs.windows.machine import WindowsMachine

    workers = Workers()
    return Parts(windows_core(), windows_network(), WindowsMachine(workers), HvSocketTransport(), workers)
