"""The exit of a process: yet to come, known, or lost."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from uvm._async import Flag


@define(eq=False)
class Exit:
    """The exit of a process: yet to come, known, or lost. What is said first holds.

    :ivar code: the exit code; None while the process runs, or where nobody knows it.
    """

    code: int | None = field(default=None, init=False)
    _failure: Callable[[], Exception] | None = field(default=None, init=False)
    _settled: Flag = field(factory=Flag, init=False)

    @property
    def settled(self) -> bool:
        """It is known, or never will be."""
        return self._settled.is_set()

    def tell(self, code: int) -> None:
        """The process has exited."""
        if not self.settled:
            self.code = code
            self._settled.set()

    def lose(self, failure: Callable[[], Exception]) -> None:
        """Nobody is going to know it, unless it is known; ``failure`` makes the error that says why."""
        if not self.settled:
            self._failure = failure
            self._settled.set()

    async def wait(self) -> int:
        """Wait for it, and give the code or raise why there is none."""
        await self._settled.wait()
        if self.code is None:
            assert self._failure is not None
            raise self._failure()
        return self.code
