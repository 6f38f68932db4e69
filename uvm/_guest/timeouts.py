"""How long to wait for a guest."""

from __future__ import annotations

from attrs import frozen

from uvm._repr import call_of


@frozen
class GuestTimeouts:
    """How long to wait for what a guest does. The defaults are hcsshim's.

    A wait for the exit of a process has no limit.

    :ivar rpc_seconds: for an answer. A guest that takes longer is taken for dead: the connection is closed.
    :ivar container_seconds: for the answer to the creation and the start of a container, likewise.
    :ivar boot_seconds: for the guest to be there after the start of its VM, all boot channels included.
    :ivar redial_seconds: for a guest to dial again after its connection broke. With 0 a broken connection
        stays closed, as in hcsshim outside of a live migration.
    :ivar close_seconds: for the exit of a container that was terminated at the end of its ``async with``.
    :ivar vm_exit_seconds: for the exit of the VM after the connection to its guest closed: an operation that
        the guest did not answer then fails because the VM exited. Not more than once is it waited for.
    """

    __repr__ = call_of

    rpc_seconds: float = 300.0
    container_seconds: float = 240.0
    boot_seconds: float = 120.0
    redial_seconds: float = 0.0
    close_seconds: float = 30.0
    vm_exit_seconds: float = 2.0
