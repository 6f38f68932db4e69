"""A scenario: something that a backend has to get right, and how it is played."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from attrs import frozen

from uvm.testing.backends.checks import equal, until
from uvm.testing.backends.rig import Control, Rig

Play = Callable[[Rig], Awaitable[None]]


@frozen
class Scenario:
    """Something that a backend has to get right.

    :ivar name: what has to hold, as an identifier.
    :ivar function: what finds out; it raises where it does not hold.
    :ivar needs: what the rig must be able to do.
    :ivar lives: how many VMs live in it, one after the other, each with the rig's patience.
    """

    name: str
    function: Play
    needs: frozenset[Control]
    lives: int = 1

    def __str__(self) -> str:
        return self.name

    def lacks(self, rig: Rig) -> list[str]:
        """Name what a rig cannot do that this needs; where it is nothing, it can be played."""
        return sorted(control.value for control in self.needs - rig.controls)

    async def play(self, rig: Rig) -> None:
        """Play it, and look that nothing is left on the host.

        :raises AssertionError: the backend does not conform; the message says in what.
        :raises TimeoutError: it hangs.
        """
        with anyio.fail_after(rig.patience_seconds * self.lives):
            await self.function(rig)
        if Control.AUDIT in rig.controls:
            await nothing_left(rig)


async def nothing_left(rig: Rig) -> None:
    """Fail where something stays on the host: a thread may still be taking it away."""
    with anyio.move_on_after(rig.patience_seconds):
        await until(lambda: not rig.host.leftovers())
    equal(rig.host.leftovers(), [], "what is left on the host")


def scenario(*needs: Control, lives: int = 1) -> Callable[[Play], Scenario]:
    """Make a scenario of a function, under its name."""

    def make(function: Play) -> Scenario:
        return Scenario(function.__name__, function, frozenset(needs), lives)

    return make


def scenarios_of(*modules: object) -> tuple[Scenario, ...]:
    """Give the scenarios of modules, in the order in which they stand there."""
    return tuple(each for module in modules for each in vars(module).values() if isinstance(each, Scenario))
