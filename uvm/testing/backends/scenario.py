"""A scenario: a requirement on backends, and its check."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial, wraps
from typing import Any, TypeVar

import anyio
from attrs import frozen

from uvm._names import GuestOS
from uvm._repr import shown
from uvm.testing.backends.checks import equal, until
from uvm.testing.backends.rig import Control, Rig

T = TypeVar("T")

Play = Callable[[Rig], Awaitable[None]]
#: A function of a rig and of further arguments, by name.
Variable = Callable[..., Awaitable[None]]


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

    def __repr__(self) -> str:
        return shown(self, "name")

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


def within(
    context: Callable[[Rig], AbstractAsyncContextManager[T]], *needs: Control
) -> Callable[[Callable[[Rig, T], Awaitable[None]]], Scenario]:
    """Return a decorator for a scenario within a context, such as a running system, which it gets."""

    def make(function: Callable[[Rig, T], Awaitable[None]]) -> Scenario:
        @wraps(function)
        async def play(rig: Rig) -> None:
            async with context(rig) as entered:
                await function(rig, entered)

        return scenario(*needs)(play)

    return make


def variants(*needs: Control, **arguments: dict[str, Any]) -> Callable[[Variable], tuple[Scenario, ...]]:
    """Return a decorator that makes scenarios of one function.

    :param arguments: the names of the scenarios, and the arguments of the function in each. Its ``os`` is the
        operating system of a VM that boots, ``linux`` unless stated.
    """

    def make(function: Variable) -> tuple[Scenario, ...]:
        return tuple(
            Scenario(name, partial(function, **given), frozenset({*needs, booting(given.get("os", "linux"))}))
            for name, given in arguments.items()
        )

    return make


def booting(os: GuestOS) -> Control:
    """Return the control that lets VMs with an operating system boot."""
    return Control[os.upper()]


def scenarios_of(*modules: object) -> tuple[Scenario, ...]:
    """Return the scenarios of modules, in the order of their definition."""
    values = [value for module in modules for value in vars(module).values()]
    found = (each for value in values for each in (value if isinstance(value, tuple) else (value,)))
    return tuple(each for each in found if isinstance(each, Scenario))
