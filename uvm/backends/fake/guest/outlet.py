"""Sending without waiting: what a stream does not accept at once is sent later, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio
from attrs import define, field

from uvm.backends.fake.guest.machine import GuestMachine
from uvm.backends.fake.streams import FakeStream


@define(eq=False, repr=False)
class Outlet:
    """Sends on a connection of the guest. It has a task only while data waits.

    Nothing is sent while the VM is paused. As in the real guest, what waits for a host that does not read is
    bounded only by the host's requests.
    """

    stream: FakeStream
    _vm: GuestMachine
    _spawn: Callable[..., bool]
    _backlog: deque[bytes] | None = field(default=None, init=False)

    def send(self, data: bytes) -> None:
        """Send, now or later; what cannot be sent when the connection has ended is lost."""
        if self._backlog is not None:
            self._backlog.append(data)
            return
        if self._vm.state == "Stopped":
            return
        try:
            unsent = data[self.stream.send_nowait(data) :] if self._vm.state == "Running" else data
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
        backlog = deque([unsent])
        if unsent and self._spawn(self._drain, backlog):
            self._backlog = backlog

    def close(self) -> None:
        """Close the connection; what was sent at once can still be received."""
        self.stream.close()

    async def _drain(self, backlog: deque[bytes]) -> None:
        try:
            while backlog:
                await self._vm.until_running()
                await self.stream.send(backlog.popleft())
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # the connection ended; what was to be sent is lost
        finally:
            self._backlog = None
