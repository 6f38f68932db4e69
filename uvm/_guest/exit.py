"""The exit of a process or a container: yet to come, known, or lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from attrs import define, field

from uvm._async import Flag

T = TypeVar("T")


@define(eq=False, repr=False)
class Exit(Generic[T]):
    """The exit of a process or a container: yet to come, known, or lost. What is said first holds.

    :ivar how: an exit code, or how a container ended; None before the exit, and where it is unknown.
    """

    how: T | None = field(default=None, init=False)
    _then: Callable[[], object] | None = field(default=None, init=False)
    _failure: Callable[[], Exception] | None = field(default=None, init=False)
    _cut_off: bool = field(default=False, init=False)
    _settled: Flag = field(factory=Flag, init=False)

    @property
    def settled(self) -> bool:
        """True once the exit is known, or will stay unknown."""
        return self._settled.is_set()

    def gone(self) -> bool:
        """Return whether it is known to have happened."""
        return self.settled and not self._cut_off

    def then(self, call: Callable[[], object]) -> None:
        """Have one call made, when it is settled."""
        if self.settled:
            call()
        else:
            self._then = call

    def report(self, how: T) -> None:
        """Settle it as known."""
        if not self.settled:
            self.how = how
            self._settle()

    def lose(self, failure: Callable[[], Exception], *, cut_off: bool = False) -> None:
        """Settle it as unknown, unless it is known.

        :param failure: makes the error that says why.
        :param cut_off: it may not have happened yet: the guest is out of reach, or refused to wait for it.
        """
        if not self.settled:
            self._failure = failure
            self._cut_off = cut_off
            self._settle()

    def _settle(self) -> None:
        self._settled.set()
        if self._then is not None:
            self._then()

    async def wait(self) -> T:
        """Wait for it and return it, or raise why it is unknown."""
        await self._settled.wait()
        if self.how is None:
            assert self._failure is not None
            raise self._failure()
        return self.how
