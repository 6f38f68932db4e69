"""Scenarios: calls on a system that are in progress when something else happens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from operator import methodcaller
from typing import Any, TypeVar

import anyio

from uvm.backend import System
from uvm.errors import HostError, UnknownOutcomeError, UVMError
from uvm.hresult import HResult
from uvm.testing.backends.checks import Attempt, check, equal, refused
from uvm.testing.backends.rig import Control, HeldCalls, Rig
from uvm.testing.backends.scenario import scenario, within
from uvm.testing.backends.systems import OPERATIONS, Operation
from uvm.testing.backends.world import running_system

T = TypeVar("T")

CALLS: dict[str, Operation] = {
    "modify": OPERATIONS["modify"],
    "properties": methodcaller("properties", "Memory"),
    **{name: OPERATIONS[name] for name in ("pause", "crash", "shutdown", "terminate")},
}


@asynccontextmanager
async def held_call(
    rig: Rig, name: str, call: Callable[[T], Awaitable[Any]], on: T
) -> AsyncIterator[tuple[HeldCalls, Attempt]]:
    """Make a call that is parked at the host; the body decides its outcome. Ends with the call."""
    held = rig.host.hold(operation=name, nth=1)
    async with anyio.create_task_group() as tasks:
        attempt = Attempt.begin(tasks, call, on)
        await held.wait()
        yield held, attempt


async def refuse_at_once_and_later(rig: Rig, name: str, call: Callable[[T], Awaitable[Any]], on: T) -> None:
    """Check that both refusals of a call are reported, and that the next call succeeds."""
    rig.host.refuse(HResult.ERROR_NO_SYSTEM_RESOURCES, operation=name, nth=1)
    with refused("ERROR_NO_SYSTEM_RESOURCES", what=f"{name}, at once"):
        await call(on)
    async with held_call(rig, name, call, on) as (held, attempt):
        held.pending[0].refuse(HResult.ERROR_NO_SYSTEM_RESOURCES)
    equal(attempt.refusal, "ERROR_NO_SYSTEM_RESOURCES", f"the later error of {name}")
    rig.host.undisturbed()
    await call(on)


async def cancel_unanswered(rig: Rig, name: str, call: Callable[[T], Awaitable[Any]], on: T) -> None:
    """Check that a call that never completes ends when it is cancelled."""
    async with held_call(rig, name, call, on) as (held, attempt):
        await attempt.cancel()
    equal((attempt.result, attempt.error), (None, None), f"the result of the cancelled {name}")
    for parked in held.pending:
        parked.refuse()
    rig.host.undisturbed()


async def overtake_by_the_exit(rig: Rig, name: str, call: Callable[[T], Awaitable[Any]], on: T) -> Attempt:
    """Have the system exit while a call is in progress, and return the ended call."""
    async with held_call(rig, name, call, on) as (_, attempt):
        rig.host.crash(rig.own("vm1"))
    rig.host.undisturbed()
    return attempt


@scenario(Control.LINUX, Control.CALLS)
async def a_call_refused_at_once_or_later_reports_the_reason(rig: Rig) -> None:
    for name, call in CALLS.items():
        async with running_system(rig) as system:
            await refuse_at_once_and_later(rig, name, call, system)


@scenario(Control.LINUX, Control.CALLS)
async def a_call_that_never_completes_is_cancelled_and_the_system_goes_on(rig: Rig) -> None:
    for name, call in CALLS.items():
        async with running_system(rig) as system:
            await cancel_unanswered(rig, name, call, system)
            equal((await system.properties())["State"], "Running", f"the state after {name} was cancelled")


@scenario(Control.LINUX, Control.CALLS)
async def a_call_answered_after_its_caller_left_does_no_harm(rig: Rig) -> None:
    for _ in range(10):
        async with running_system(rig) as system:
            held = rig.host.hold(operation="modify")
            async with anyio.create_task_group() as tasks:
                attempts = [Attempt.begin(tasks, CALLS["modify"], system) for _ in range(4)]
                await held.wait(4)
                for attempt in attempts[:3]:
                    attempt.scope.cancel()
                held.close()
            equal(attempts[3].error, None, "what failed of the call that was not cancelled")
            rig.host.undisturbed()
            await CALLS["modify"](system)


@within(running_system, Control.LINUX, Control.CALLS, Control.LOSS)
async def an_answer_that_is_lost_is_an_unknown_outcome(rig: Rig, system: System) -> None:
    for applied in (True, False):
        async with held_call(rig, "modify", CALLS["modify"], system) as (held, attempt):
            held.pending[0].lose(applied=applied)
        check(isinstance(attempt.error, UnknownOutcomeError), f"the error of the call: {attempt.error!r}")


@within(running_system, Control.LINUX, Control.CALLS)
async def answers_in_any_order_reach_their_callers(rig: Rig, system: System) -> None:
    held = rig.host.hold(operation="modify")
    async with anyio.create_task_group() as tasks:
        attempts = [Attempt.begin(tasks, CALLS["modify"], system) for _ in range(16)]
        parked = await held.wait(16)
        for number, call in enumerate(reversed(list(parked))):
            if number % 2:
                call.proceed()
            else:
                call.refuse(0x80070000 + number)
    found = sorted(e.error.hresult - 0x80070000 for e in attempts if isinstance(e.error, HostError))
    equal(found, list(range(0, 16, 2)), "the refusals that arrived")
    equal(sum(each.error is None for each in attempts), 8, "the calls that succeeded")


@scenario(Control.LINUX, Control.CALLS, Control.EXIT)
async def calls_overtaken_by_the_exit_fail(rig: Rig) -> None:
    for name, call in CALLS.items():
        async with running_system(rig) as system:
            attempt = await overtake_by_the_exit(rig, name, call, system)
            equal((await system.wait()).exit_type, "UnexpectedExit", "the type of the exit")
            if name == "properties":
                with refused("HCS_E_SYSTEM_ALREADY_STOPPED"):
                    await call(system)
            equal(attempt.refusal, "HCS_E_SYSTEM_ALREADY_STOPPED", f"the error of {name}")


@within(running_system, Control.LINUX, Control.CALLS)
async def a_handle_can_be_closed_while_calls_are_in_progress(rig: Rig, system: System) -> None:
    held = rig.host.hold(operation="modify")
    async with anyio.create_task_group() as tasks:
        attempts = [Attempt.begin(tasks, CALLS["modify"], system) for _ in range(4)]
        await held.wait(4)
        await system.close()
        held.close()
    for attempt in attempts:
        check(isinstance(attempt.error, UVMError), f"the error of the call: {attempt.error!r}")


@within(running_system, Control.LINUX, Control.CALLS, Control.TWICE)
async def a_call_that_completes_twice_is_answered_once(rig: Rig, system: System) -> None:
    rig.host.answer_twice(operation="modify")
    for _ in range(10):
        await CALLS["modify"](system)
    rig.host.undisturbed()
    await CALLS["modify"](system)
