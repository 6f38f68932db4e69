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
    :ivar close_seconds: for each step of an end, which the VM's tasks take: for a container that is closed to
        exit, and then to have its state deleted; for a process whose caller has gone to be killed.
    :ivar grace_seconds: for what should follow at once: the report of an exit that is said to have happened,
        the rest of the output of a container that was terminated, a connection for a stream of a process that
        has exited.
    :ivar vm_exit_seconds: for the exit of the VM after the connection to its guest closed: what the guest did
        not answer then fails because the VM exited. A guest that goes alone is waited for once; after that
        the host is asked.
    """

    rpc_seconds: float = field(default=300.0, metadata=go(None, positive_seconds))
    container_seconds: float = field(default=240.0, metadata=go(None, positive_seconds))
    boot_seconds: float = field(default=120.0, metadata=go(None, seconds))
    redial_seconds: float = field(default=0.0, metadata=go(None, seconds))
    close_seconds: float = field(default=30.0, metadata=go(None, seconds))
    grace_seconds: float = field(default=1.0, metadata=go(None, seconds))
    vm_exit_seconds: float = field(default=2.0, metadata=go(None, seconds))

    def __repr__(self) -> str:
        return call_of(self)
