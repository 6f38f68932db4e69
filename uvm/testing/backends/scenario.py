"""A scenario: a requirement on backends, and its check."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from attrs import frozen

from uvm.testing.backends.checks import equal, until
from uvm.testing.backends.rig import Control, Rig

Play = Callable[[Rig], Awaitable[None]]


@frozen
class Scenario:
    """A requirement on backends.

    :ivar name: the requirement, as an identifier.
    :ivar function: checks it; raises if it does not hold.
    :ivar needs: what the rig must be able to do.
    :ivar timeouts: how many of the rig's timeouts it may take: one for each of its successive VMs.
    """

    name: str
    function: Play
    needs: frozenset[Control]
    timeouts: int = 1

    def __str__(self) -> str:
        return self.name

    def lacks(self, rig: Rig) -> list[str]:
        """Return what the scenario needs and a rig cannot do; if that is empty, it can be played."""
        return sorted(control.value for control in self.needs - rig.controls)

    async def play(self, rig: Rig) -> None:
        """Run the scenario, and check that nothing is left on the host.

        :raises AssertionError: the backend does not conform; the message says how.
        :raises TimeoutError: it hangs.
        """
        with anyio.fail_after(rig.timeout_seconds * self.timeouts):
            await self.function(rig)
        if Control.AUDIT in rig.controls:
            await nothing_left(rig)


async def nothing_left(rig: Rig) -> None:
    """Check that nothing stays on the host: a thread may still be removing it."""
    with anyio.move_on_after(rig.timeout_seconds):
        await until(lambda: not rig.host.leftovers())
    equal(rig.host.leftovers(), [], "what is left on the host")


def scenario(*needs: Control, timeouts: int = 1) -> Callable[[Play], Scenario]:
    """Return a decorator that makes a scenario of a function, with its name."""

    def make(function: Play) -> Scenario:
        return Scenario(function.__name__, function, frozenset(needs), timeouts)

    return make


def scenarios_of(*modules: object) -> tuple[Scenario, ...]:
    """Return the scenarios of modules, in the order of their definition."""
    return tuple(each for module in modules for each in vars(module).values() if isinstance(each, Scenario))
