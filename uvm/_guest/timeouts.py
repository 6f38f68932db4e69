"""How long to wait for a guest."""

from __future__ import annotations

from attrs import field, frozen

from uvm._checks import Checked, go, positive_seconds, seconds
from uvm._repr import call_of


@frozen
class GuestTimeouts(Checked):
    """How long to wait for what a guest does. The defaults are hcsshim's.

    A wait for the exit of a process has no limit; nor has one that is ``math.inf`` here.

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

    rpc_seconds: float = field(default=300.0, metadata=go(None, positive_seconds))
    container_seconds: float = field(default=240.0, metadata=go(None, positive_seconds))
    boot_seconds: float = field(default=120.0, metadata=go(None, seconds))
    redial_seconds: float = field(default=0.0, metadata=go(None, seconds))
    close_seconds: float = field(default=30.0, metadata=go(None, seconds))
    vm_exit_seconds: float = field(default=2.0, metadata=go(None, seconds))
