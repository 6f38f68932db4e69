"""What the processes and containers of a guest share of our own connection to it."""

from __future__ import annotations

from collections.abc import Callable

from attrs import Factory, define

from uvm._gcs.bridge import Bridge
from uvm._guest.access import GuestAccess
from uvm._guest.stdio import StdioPorts
from uvm.errors import BridgeClosedError


@define(eq=False, kw_only=True)
class GuestLink(GuestAccess):
    """The bridge to a guest and what was agreed on it.

    :ivar on_resume: called, each, when the guest has dialled again; those who wait for something in the
        guest put themselves in, and take themselves out.
    """

    bridge: Bridge
    ports: StdioPorts
    on_resume: set[Callable[[], None]] = Factory(set)

    def closed_error(self) -> BridgeClosedError:
        """Say, in a fresh exception, why nothing can be asked any more."""
        return self.bridge.error or super().closed_error()
