"""The log of the fake guest, as its host reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import anyio
from attrs import define, field

from uvm._repr import showing
from uvm.backends.fake.clock import FakeClock
from uvm.backends.fake.guest.machine import GuestMachine
from uvm.backends.fake.guest.outlet import Outlet
from uvm.backends.fake.streams import FakeStream

#: How long a guest that exits waits for the host to read its last output.
LAST_WORDS_SECONDS: Final = 1.0


@showing("service_id")
@define(eq=False, repr=False)
class GuestLog:
    """The log connection to the host: the output of a Linux guest's compute service, or the events that the
    log forwarding service of a Windows guest sends.

    :ivar service_id: the service that a Windows guest forwards its log to; empty while it does not.
    """

    _vm: GuestMachine
    _clock: FakeClock
    _spawn: Callable[..., bool]
    service_id: str = field(default="", init=False)
    _outlet: Outlet | None = field(default=None, init=False)
    _forwarding: anyio.CancelScope | None = field(default=None, init=False)

    def line(self, message: str, *, level: str = "info", **fields: Any) -> None:
        """Write a line; do nothing without a connection."""
        # A Windows guest forwards events of ETW, in which the message has another name.
        said = {"msg": message} if self._vm.os == "linux" else {"Source": "ETW", "Message": message}
        line = {"level": level, **said, "time": self._clock.timestamp(), **fields}
        self.write(json.dumps(line).encode() + b"\n")

    def write(self, data: bytes) -> None:
        """Write bytes; do nothing without a connection."""
        if self._outlet is not None:
            self._outlet.send(data)

    def open(self, stream: FakeStream) -> None:
        """Write to a connection from now on."""
        self._outlet = Outlet(stream, self._vm, self._spawn)

    def close(self) -> None:
        """Close the connection; what was written can still be read."""
        if self._outlet is not None:
            self._outlet.close()
            self._outlet = None

    async def last_words(self, data: bytes = b"") -> None:
        """Write for the last time, and wait a little for the host to read it."""
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            if data:
                outlet.send(data)
            with anyio.move_on_after(LAST_WORDS_SECONDS):
                await outlet.stream.flush()

    def forward(self, service_id: str) -> None:
        """Connect to a service of the host whenever the host listens."""
        self.service_id = service_id
        if self._forwarding is None:
            self._forwarding = anyio.CancelScope()
            self._spawn(self._forward, self._forwarding)

    def stop(self) -> None:
        """Stop forwarding."""
        self.service_id = ""
        if self._forwarding is not None:
            self._forwarding.cancel()
            self._forwarding = None
        self.close()

    async def _forward(self, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                while True:
                    self.open(await self._vm.dial_when_listening(self.service_id))
                    self.line("log forwarding started")
                    assert self._outlet is not None
                    await self._outlet.stream.receive_all()
                    self.close()
        finally:
            if self._forwarding is scope:
                self._forwarding = None
                self.close()
