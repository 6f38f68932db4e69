"""How long to wait for a guest."""

from __future__ import annotations

from attrs import field, frozen

from uvm._checks import U32, Checked, go, positive_seconds, seconds, whole
from uvm._repr import call_of


@frozen
class GuestTimeouts(Checked):
    """How long to wait for what a guest does. The defaults are hcsshim's.

    A wait for the exit of a process has no limit; nor has one that is ``math.inf`` here.

    :ivar rpc_seconds: for an answer; the call ends with :class:`~uvm.errors.UnknownOutcomeError` then. Of a
        guest that sends nothing at all for so long, although answers are due, the connection is closed.
    :ivar container_seconds: for the answer to the creation and the start of a container.
    :ivar max_late_starts: how many starts of processes and containers whose callers have left, cancelled or
        after those limits, a guest may leave unanswered. Each holds an id and the listeners for its streams,
        and is undone when it is answered. Beyond, new starts raise :class:`~uvm.errors.VMStateError`.
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
    max_late_starts: int = field(default=64, metadata=go(None, whole(U32, 1)))
    boot_seconds: float = field(default=120.0, metadata=go(None, seconds))
    redial_seconds: float = field(default=0.0, metadata=go(None, seconds))
    close_seconds: float = field(default=30.0, metadata=go(None, seconds))
    grace_seconds: float = field(default=1.0, metadata=go(None, seconds))
    vm_exit_seconds: float = field(default=2.0, metadata=go(None, seconds))

    __repr__ = call_of
