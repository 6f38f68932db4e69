"""What the backend depends on, and its implementations on Windows."""

from __future__ import annotations

from attrs import frozen

from uvm.backends.checks import require_none
from uvm.backends.hcs.dlls import ComputeCore, ComputeNetwork, Library, windows_core, windows_network
from uvm.backends.hcs.machine import Machine
from uvm.backends.hcs.transport import Transport
from uvm.backends.workers import Workers


@frozen(eq=False, repr=False)
class Platform:
    """The two DLLs and the rest of what the backend needs of Windows; each can be replaced.

    :ivar grace_seconds: how long a cancelled caller, or a clean-up, waits for HCS.
    """

    core: Library[ComputeCore]
    network: Library[ComputeNetwork]
    machine: Machine
    transport: Transport
    workers: Workers
    grace_seconds: float = 5.0


def windows_platform() -> Platform:
    """Return the implementations of this machine.

    :raises NotSupportedError: something is missing; the message lists all of it.
    """
    from uvm.backends.hcs.availability import availability

    require_none("hcs", availability())
    from uvm.backends.hcs.hvsocket import HvSocketTransport
    from uvm.backends.hcs.windows.machine import WindowsMachine

    workers = Workers()
    return Platform(windows_core(), windows_network(), WindowsMachine(workers), HvSocketTransport(), workers)
