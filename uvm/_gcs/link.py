"""What the processes and containers of a guest share of our own connection to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import define, field

from uvm._gcs.bridge import Bridge
from uvm._guest.access import GuestAccess
from uvm._guest.stdio import Channel
from uvm._wire.ports import FIRST_STDIO_PORT, vsock_service_id
from uvm.backend import Listener
from uvm.errors import BridgeClosedError


@define(eq=False, kw_only=True)
class GuestLink(GuestAccess):
    """The bridge to a guest and what was agreed on it.

    :ivar listen: listens for the guest to dial a service id (:meth:`uvm.backend.System.listen`).
    """

    bridge: Bridge
    listen: Callable[[str], Awaitable[Listener]]
    _next_port: int = field(default=FIRST_STDIO_PORT, init=False)

    def closed_error(self) -> BridgeClosedError:
        """Return a fresh exception that says why nothing can be asked any more."""
        return self.bridge.error or super().closed_error()

    async def open_channel(self) -> Channel:
        """Listen for a standard stream, on a port that was never used; raises what listening raises."""
        port = self._next_port
        self._next_port += 1
        listener = await self.listen(vsock_service_id(port))
        return Channel(port, listener, self.clock, self.timeouts.grace_seconds)
