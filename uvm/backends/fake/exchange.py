"""How every call is carried out: request log, latency, faults, then the change itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import anyio
import anyio.lowlevel
from attrs import define, field, frozen

from uvm._checks import Checked, go, number
from uvm._repr import call_of, showing
from uvm.backends.fake.calls import Machine, To
from uvm.backends.fake.clock import FakeClock
from uvm.backends.fake.faults import Faults
from uvm.backends.fake.request_log import Entry, RequestLog

T = TypeVar("T")


_MILLISECONDS: Final = go(None, number("a number of milliseconds, 0 or more"))


@frozen
class Latency(Checked):
    """How long the answers take, in real milliseconds, of which ``math.inf`` is for ever; by default nothing.

    :ivar host_ms: modify requests to the host.
    :ivar guest_ms: requests to the guest, and connecting to it.
    :ivar grant_ms: granting and revoking access to a path.
    :ivar lifecycle_ms: create, start, terminate and their kind.
    """

    host_ms: float = field(default=0.0, metadata=_MILLISECONDS)
    guest_ms: float = field(default=0.0, metadata=_MILLISECONDS)
    grant_ms: float = field(default=0.0, metadata=_MILLISECONDS)
    lifecycle_ms: float = field(default=0.0, metadata=_MILLISECONDS)

    __repr__ = call_of

    def of(self, to: To) -> float:
        """Return the time of a call, in milliseconds."""
        match to:
            case "host":
                return self.host_ms
            case "guest":
                return self.guest_ms
            case "grant" | "revoke":
                return self.grant_ms
            case "lifecycle":
                return self.lifecycle_ms
        return 0.0


@showing("latency")
@define(eq=False, repr=False)
class Exchange:
    """Carries out calls.

    Nothing is awaited between the check and the change, so that each change is atomic; latency comes
    before, and so does every fault that does not say otherwise.
    """

    request_log: RequestLog
    faults: Faults
    latency: Latency
    clock: FakeClock

    async def carry_out(self, entry: Entry, change: Callable[[], T], machine: Machine | None = None) -> T:
        """Carry out a call that the request log has begun. A call cancelled before the change makes none."""
        applied = False

        def apply() -> T:
            nonlocal applied
            result = change()
            applied = True
            return result

        try:
            await self._pass_time(entry.call.to)
            result = await self.faults._run(entry.call, apply, machine)
        except BaseException as e:
            self.request_log._finish(entry, e, applied=applied)
            raise
        self.request_log._finish(entry, None, applied=True)
        return result

    def is_immediate(self, to: To) -> bool:
        """Return whether calls are never delayed: there is no rule, and answers take no time."""
        return not self.faults._rules and not self.latency.of(to)

    def carry_out_at_once(self, entry: Entry, change: Callable[[], T]) -> T:
        """Carry out a call without waiting, faults and latency."""
        self.clock.tick()
        try:
            result = change()
        except BaseException as e:
            self.request_log._finish(entry, e, applied=False)
            raise
        self.request_log._finish(entry, None, applied=True)
        return result

    async def _pass_time(self, to: To) -> None:
        self.clock.tick()
        milliseconds = self.latency.of(to)
        if not milliseconds:
            await anyio.lowlevel.checkpoint()
            return
        await anyio.sleep(milliseconds / 1000)
        self.clock.advance(milliseconds / 1000)
