"""What the processes and containers of a guest share of our own connection to it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import anyio
from attrs import define, field

from uvm._gcs.bridge import Bridge
from uvm._gcs.calls import Call
from uvm._guest.access import GuestAccess
from uvm._guest.starts import Start
from uvm._guest.stdio import Channel
from uvm._wire.ports import FIRST_STDIO_PORT, vsock_service_id
from uvm.backend import Listener
from uvm.errors import BridgeClosedError


@define(eq=False, repr=False, kw_only=True)
class GuestLink(GuestAccess):
    """The bridge to a guest and what was agreed on it.

    :ivar listen: listens for the guest to dial a service id (:meth:`uvm.backend.System.listen`).
    :ivar taken_ports: returns the ports that are not to be used for streams.
    """

    bridge: Bridge
    listen: Callable[[str], Awaitable[Listener]]
    taken_ports: Callable[[], Collection[int]] = tuple
    _next_port: int = field(default=FIRST_STDIO_PORT, init=False)

    def closed_error(self) -> BridgeClosedError:
        """Return a fresh exception that says why nothing can be asked any more."""
        return self.bridge.error or super().closed_error()

    async def open_channel(self) -> Channel:
        """Listen for a standard stream, on a port that was never used; raises what listening raises."""
        while self._next_port in self.taken_ports():
            self._next_port += 1
        port = self._next_port
        self._next_port += 1
        listener = await self.listen(vsock_service_id(port))
        return Channel(self.name, port, listener, self.clock, self.timeouts.grace_seconds)

    async def answer(self, start: Start[Any], call: Call, lost: Callable[[], Awaitable[None]]) -> Call:
        """Wait for the answer to a call that starts something, also after its caller has left.

        :param lost: awaited if the answer may be lost with a stream.
        :return: the call that has ended with the answer.
        """
        start.on_leave = call.abandon
        if start.left:
            call.abandon()
        try:
            await call.wait()
            if call.late is None:
                return call
            assert call.error is not None
            start.send_away(call.error)
            if call.late.deadline < math.inf:
                await lost()
            await call.late.wait()
            return call.late
        except anyio.get_cancelled_exc_class():
            if call.sent:
                start.send_away(self.answer_lost())
            raise
