"""A scenario: a requirement on backends, and its check."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial, wraps
from typing import Any, Final, TypeVar

import anyio
from attrs import evolve, frozen

from uvm._names import GuestOS
from uvm._repr import showing
from uvm.testing.backends.checks import equal, until
from uvm.testing.backends.rig import Control, Rig

T = TypeVar("T")

Play = Callable[[Rig], Awaitable[None]]
#: A function of a rig and of further arguments, by name.
Variable = Callable[..., Awaitable[None]]


class Level(enum.IntEnum):
    """How much of a backend a scenario needs: a young one conforms up to a level."""

    #: No VM: the host's facts, files, networks and pipes, and what is refused.
    HOST = 1
    #: VMs, whose guests need not answer: states, handles, exits, devices, properties.
    VM = 2
    #: Guests that connect and answer: processes, containers, a VM with all that it does.
    GUEST = 3
    #: Calls that fail, hang and are lost, each in turn, and an audit of what is left.
    EVERYTHING = 4


_VMS: Final = frozenset({Control.LINUX, Control.WINDOWS})
_OF_GUESTS: Final = frozenset({Control.PROGRAMS, Control.POLICIES, Control.DIAL})
_OF_FAULTS: Final = frozenset({Control.CALLS, Control.LOSS, Control.TWICE, Control.AUDIT})


@showing("name")
@frozen(repr=False)
class Scenario:
    """A requirement on backends.

    :ivar name: the requirement, as an identifier.
    :ivar function: checks it; raises if it does not hold.
    :ivar needs: what the rig must be able to do.
    :ivar timeouts: how many of the rig's timeouts it may take: one for each of its successive VMs.
    :ivar answers: it needs a guest that answers, whatever it needs of the rig.
    """

    name: str
    function: Play
    needs: frozenset[Control]
    timeouts: int = 1
    answers: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def level(self) -> Level:
        """How much of a backend it needs."""
        if self.needs & _OF_FAULTS:
            return Level.EVERYTHING
        if self.answers or self.needs & _OF_GUESTS:
            return Level.GUEST
        return Level.VM if self.needs & _VMS else Level.HOST

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


def scenario(*needs: Control, timeouts: int = 1, answers: bool = False) -> Callable[[Play], Scenario]:
    """Return a decorator that makes a scenario of a function, with its name."""

    def make(function: Play) -> Scenario:
        return Scenario(function.__name__, function, frozenset(needs), timeouts, answers)

    return make


def within(
    context: Callable[[Rig], AbstractAsyncContextManager[T]], *needs: Control, answers: bool = False
) -> Callable[[Callable[[Rig, T], Awaitable[None]]], Scenario]:
    """Return a decorator for a scenario within a context, such as a running system, which it gets.

    :param answers: it needs a guest that answers.
    """

    def make(function: Callable[[Rig, T], Awaitable[None]]) -> Scenario:
        @wraps(function)
        async def play(rig: Rig) -> None:
            async with context(rig) as entered:
                await function(rig, entered)

        return scenario(*needs, answers=answers)(play)

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


def scenarios_of(*modules: object, answers: bool = False) -> tuple[Scenario, ...]:
    """Return the scenarios of modules, in the order of their definition.

    :param answers: all of them need a guest that answers.
    """
    values = [value for module in modules for value in vars(module).values()]
    found = (each for value in values for each in (value if isinstance(value, tuple) else (value,)))
    return tuple(
        evolve(each, answers=each.answers or answers) for each in found if isinstance(each, Scenario)
    )
