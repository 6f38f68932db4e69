"""The clock of the fake: it moves with the calls, not with time, so that every run has the same times."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Final

from attrs import define

from uvm._checks import checked, number
from uvm._repr import call_of

#: HCS counts time in units of 100 ns.
TICKS_PER_SECOND: Final = 10_000_000
_SECONDS: Final = number("a finite number of seconds; time does not go backwards", maximum=sys.float_info.max)
_CALL: Final = TICKS_PER_SECOND // 1000
_EPOCH: Final = datetime(2024, 1, 1, tzinfo=UTC)


@define(eq=False)
class FakeClock:
    """Time in ticks of 100 ns. Each call on the fake takes one millisecond of it.

    :ivar ticks: the time since the host booted, which was at midnight of 2024-01-01 UTC.
    """

    ticks: int = 0

    __repr__ = call_of

    def tick(self) -> None:
        """Advance by the time of one call."""
        self.ticks += _CALL

    def advance(self, seconds: float) -> None:
        """Advance by a number of seconds."""
        checked(seconds, _SECONDS, "seconds")
        self.ticks += round(seconds * TICKS_PER_SECOND)

    def timestamp(self, ticks: int | None = None) -> str:
        """Return a time (now, by default) as an RFC 3339 string."""
        at = _EPOCH + timedelta(microseconds=(self.ticks if ticks is None else ticks) / 10)
        return at.isoformat().replace("+00:00", "Z")
