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

    :ivar on_resume: called, in order, when the guest has dialled again; what waits for something in the
        guest puts itself in, as the key, and takes itself out.
    """

    bridge: Bridge
    ports: StdioPorts
    on_resume: dict[object, Callable[[], None]] = Factory(dict)

    def closed_error(self) -> BridgeClosedError:
        """Return a fresh exception that says why nothing can be asked any more."""
        return self.bridge.error or super().closed_error()
