"""What callers hold: leases; and orphans, which no caller holds."""

from __future__ import annotations

from typing import Self

from attrs import define, field, frozen

from uvm._arguments import Bound
from uvm._buses.driver import Hold
from uvm._repr import arguments_of, brief, brief_call


class Releasable(Bound):
    """What is released once. As an async context manager it is released on leaving, unless it was before."""

    __slots__ = ()

    @property
    def released(self) -> bool:
        """Whether it was released, or the VM has exited."""
        raise NotImplementedError

    async def release(self) -> None:
        """Release it."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        if not self.released:
            await self.release()


@define(eq=False)
class Lease(Releasable):
    """One reference to something attached to a VM. It ends with :meth:`release`, or with the VM.

    The device is detached with its last lease.
    """

    _hold: Hold[object] = field(repr=False)

    def __repr__(self) -> str:
        state = "released" if self.released else "held"
        return brief(f"<{type(self).__name__} of {self._hold.link.vm_id}: {arguments_of(self)} ({state})>")

    @property
    def released(self) -> bool:
        """Whether this lease was released, or the VM has exited."""
        return self._hold.released

    async def release(self) -> None:
        """Release the lease, and wait until the device is detached if this was its last one.

        It takes effect at once: cancelling it stops only the waiting. If the host or the guest refuses
        the removal, that error is raised, the lease is still held and may be released again, which goes
        on from the step that failed. After the VM has exited, a release succeeds quietly.

        :raises AlreadyReleasedError: it was released before.
        :raises UnknownOutcomeError: whether the device is detached is unknown; its slot stays withheld.
        """
        self._hold.check_first_release(self)
        self._hold.drop()
        await self._hold.wait_released()

    def give_up(self) -> None:
        """Release the lease without waiting, unless it was released; what then fails is logged."""
        if not self.released:
            self._hold.abandon()


@frozen
class Orphan(Bound):
    """What is attached and no caller holds: its removal was refused, and the caller failed or was cancelled.

    It is also removed when another caller attaches the same and releases it.

    :ivar ledger: the name of its ledger in :meth:`UtilityVM.ledgers`.
    :ivar key: what makes it one device, such as its host path.
    :ivar error: what the removal failed with.
    """

    ledger: str
    key: object
    slot: object
    error: BaseException | None = field(eq=False)
    _hold: Hold[object] = field(repr=False)

    def __repr__(self) -> str:
        return brief_call(self)

    async def release(self) -> None:
        """Try again to remove it; do nothing if it was removed meanwhile."""
        self._hold.abandon()
        await self._hold.wait_released()
