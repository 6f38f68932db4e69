"""What the parts of :class:`~uvm._vm.vm.UtilityVM` share."""

from __future__ import annotations

from abc import ABC, abstractmethod

from uvm._async import end_after
from uvm._buses.context import Context
from uvm._buses.link import Link


class Part:
    """One part of a VM. All of them share its context."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def id(self) -> str:
        """The id of the compute system."""
        return self._context.plan.id

    @property
    def _link(self) -> Link:
        """The connection to the host and the guest."""
        return self._context.link


class ClosedOnLeaving(ABC):
    """What is closed at the end of its ``async with``; a caller who is cancelled does not wait for that."""

    @abstractmethod
    async def close(self) -> None:
        """Begin the closing, which goes on if the caller leaves, and wait for its end."""

    async def __aexit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        await end_after(exc, self.close, "closing the VM")
