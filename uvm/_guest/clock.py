"""The time that a guest has had: it stands still, with every limit on the guest, while its VM is paused."""

from __future__ import annotations

import math
from typing import Any

import anyio
from attrs import define, field


@define(eq=False, repr=False)
class GuestClock:
    """A clock that can be paused. Its times are of no use to other clocks."""

    _paused_at: float | None = field(default=None, init=False)
    _paused_seconds: float = field(default=0.0, init=False)
    _limits: dict[GuestLimit, None] = field(factory=dict, init=False)

    @property
    def paused(self) -> bool:
        """True while the clock stands still."""
        return self._paused_at is not None

    def now(self) -> float:
        """Return the time, in seconds."""
        at = anyio.current_time() if self._paused_at is None else self._paused_at
        return at - self._paused_seconds

    def pause(self) -> None:
        """Stop the clock. Does nothing if it is paused."""
        if self._paused_at is None:
            self._paused_at = anyio.current_time()
            self._changed()

    def resume(self) -> None:
        """Let the clock go on. Does nothing unless it is paused."""
        if self._paused_at is not None:
            self._paused_seconds += anyio.current_time() - self._paused_at
            self._paused_at = None
            self._changed()

    def move_on_after(self, seconds: float) -> GuestLimit:
        """Return a scope that is cancelled after so many seconds of this clock."""
        return GuestLimit(self, self.now() + seconds)

    def limit(self, deadline: float) -> GuestLimit:
        """Return a scope that is cancelled at a time of this clock."""
        return GuestLimit(self, deadline)

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds of this clock."""
        with self.move_on_after(seconds):
            await anyio.sleep_forever()

    def _changed(self) -> None:
        for limit in self._limits:
            limit.move(limit.deadline)


class GuestLimit:
    """A cancel scope with a deadline of a :class:`GuestClock`; what it cancels ends quietly.

    :ivar scope: that scope.
    :ivar deadline: a time of the clock; infinite for none.
    """

    def __init__(self, clock: GuestClock, deadline: float) -> None:
        self._clock = clock
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.move(deadline)

    def move(self, deadline: float) -> None:
        """Set the deadline, a time of the clock."""
        self.deadline = deadline
        clock = self._clock
        self.scope.deadline = math.inf if clock.paused else deadline + clock._paused_seconds

    def __enter__(self) -> GuestLimit:
        self.scope.__enter__()
        self._clock._limits[self] = None
        return self

    def __exit__(self, *exc_info: Any) -> bool:
        del self._clock._limits[self]
        return bool(self.scope.__exit__(*exc_info))
