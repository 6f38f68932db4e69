"""All scenarios of a backend, one after the other, each on a rig of its own; and what became of each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from importlib.util import find_spec
from typing import Literal

import anyio
from attrs import frozen

from uvm._arguments import kind_of
from uvm._repr import Value, described
from uvm.backend import Backend
from uvm.backends import backend_factory
from uvm.backends.fake import FakeBackend
from uvm.errors import NotSupportedError, OptionsError, UVMError
from uvm.options import LCOWOptions
from uvm.testing.backends.fakehost import FakeHost
from uvm.testing.backends.rig import RUNS, Rig
from uvm.testing.backends.scenario import Scenario

#: Makes a rig: for each scenario a new one.
MakeRig = Callable[[], AbstractAsyncContextManager[Rig]]


@frozen(repr=False)
class Played(Value):
    """What became of a scenario.

    :ivar outcome: ``holds``, ``fails``, or ``skipped`` since the rig lacks something.
    :ivar why: the error, or what the rig lacks; empty if it holds.
    """

    scenario: Scenario
    outcome: Literal["holds", "fails", "skipped"]
    why: str = ""


def play_all(make_rig: MakeRig, scenarios: Iterable[Scenario], *, loop: str = "asyncio") -> Iterator[Played]:
    """Play scenarios on a backend, and yield what became of each.

    :param make_rig: makes a rig of the backend, entered.
    :param loop: the event loop, ``asyncio`` or ``trio``.
    :raises NotSupportedError: it is not installed.
    """
    _require(loop)
    for scenario in scenarios:
        yield anyio.run(_play, make_rig, scenario, backend=loop)


def other_runs(make_rig: MakeRig, *, loop: str = "asyncio") -> list[str]:
    """Make a rig, to see that it can be made; return the systems that other runs have on its host.

    Such a run plays now, or was killed and has left them.

    :param loop: the event loop, ``asyncio`` or ``trio``.
    :raises OptionsError: what is to make rigs makes none, or fails.
    :raises NotSupportedError: the event loop is not installed, or the backend cannot be used.
    """
    _require(loop)
    return anyio.run(_other_runs, make_rig, backend=loop)


async def _other_runs(make_rig: MakeRig) -> list[str]:
    made: object = None
    try:
        async with _context_of(make_rig) as made:
            if isinstance(made, Rig):
                return await _systems_of_others(made)
    except UVMError:
        raise
    # A function of another package may raise, or be, anything.
    except Exception as error:
        raise OptionsError(f"a rig cannot be made: {described(error)}") from error
    raise OptionsError(f"what was made is no uvm.testing.backends.Rig but {kind_of(made)}")


def _context_of(make_rig: MakeRig) -> AbstractAsyncContextManager[Rig]:
    made: object = make_rig()
    if isinstance(made, AbstractAsyncContextManager):
        return made
    if isinstance(made, Coroutine):
        made.close()
    raise TypeError(f"what it returns is not entered with `async with`: it is {kind_of(made)}")


async def _systems_of_others(rig: Rig) -> list[str]:
    there: list[str] = []
    # A young backend may fail here with anything, or not answer: the suite says what it lacks.
    with anyio.move_on_after(rig.timeout_seconds), suppress(Exception):
        there = [str(each["Id"]) for each in await rig.backend.enumerate()]
    return [each for each in there if each.startswith(RUNS) and not each.startswith(rig.run)]


def _require(loop: str) -> None:
    if find_spec(loop) is None:
        raise NotSupportedError(f"play on {loop}: it is not installed; run: pip install 'utilityvm[{loop}]'")


async def _play(make_rig: MakeRig, scenario: Scenario) -> Played:
    try:
        async with make_rig() as rig:
            if missing := scenario.lacks(rig):
                return Played(scenario, "skipped", ", ".join(missing))
            await scenario.play(rig)
    # What a backend under test raises may be anything.
    except Exception as error:
        return Played(scenario, "fails", described(error))
    return Played(scenario, "holds")


def rig_of(name: str) -> MakeRig:
    """Return what makes a rig of a backend, by its name.

    The in-memory backend is controlled wholly. Of another, only what needs no control of its host can be
    played; its Linux VMs boot if it has a guest image of its own.

    :raises OptionsError: no backend has that name.
    :raises NotSupportedError: it cannot be used on this machine.
    """
    return _fake if name == "fake" else partial(_uncontrolled, backend_factory(name))


@asynccontextmanager
async def _fake() -> AsyncIterator[Rig]:
    async with FakeBackend() as fake:
        host = FakeHost(fake)
        yield Rig(fake, host, host.linux(), host.windows())


@asynccontextmanager
async def _uncontrolled(factory: Callable[[], Backend]) -> AsyncIterator[Rig]:
    async with factory() as backend:
        boots = "linux" in (await backend.host()).guest_images
        yield Rig(backend, linux=LCOWOptions() if boots else None)
