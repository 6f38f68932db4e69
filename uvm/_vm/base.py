"""What the parts of :class:`~uvm._vm.vm.UtilityVM` share."""

from __future__ import annotations

from uvm._buses.context import Context
from uvm._buses.link import Link


class Part:
    """One part of a VM. All of them share its context."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def _link(self) -> Link:
        """The connection to the host and the guest."""
        return self._context.link
