"""Scenarios: the life of a VM with a fault in each call that reaches the host, one after the other.

Each scenario lives an undisturbed life first, to see which calls there are, then one life for each of them.
After each the VM is closed, what failed was told, the ledgers and the host agree, and nothing is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import anyio
from attrs import define

from uvm.errors import HostError, UnknownOutcomeError, UVMError, VMExitedError
from uvm.hresult import HResult
from uvm.testing.backends.checks import check, equal, leaves
from uvm.testing.backends.life import KINDS, Kind, Life, Things, put_things
from uvm.testing.backends.rig import Control, HeldCalls, HostCall, ParkedCall, Rig
from uvm.testing.backends.scenario import Scenario, nothing_left

#: Calls whose answer is not needed: the exit tells.
_TOLD_BY_THE_EXIT = frozenset({"shutdown", "terminate"})
#: Calls that are waited for where a creation is taken back, as they may have done something all the same.
_OF_THE_CREATION = frozenset({"grant", "create"})
#: Calls that the closing makes.
_OF_THE_CLOSING = frozenset({"terminate", "revoke"})


@define
class Disturbed:
    """A life that is disturbed at one of its calls."""

    life: Life
    call: HostCall
    nth: int
    reached: bool = False

    @property
    def rig(self) -> Rig:
        """The rig it lives on."""
        return self.life.rig

    @property
    def told(self) -> list[BaseException]:
        """What failed in it, one by one."""
        return [leaf for error in self.life.errors for leaf in leaves(error)]

    async def live(self, disturb: Callable[[ParkedCall, HeldCalls], Awaitable[None]]) -> None:
        """Have it live; the call is parked, and then disturbed."""
        held = self.rig.host.hold(nth=self.nth)

        async def saboteur() -> None:
            [parked] = await held.wait()
            self.reached = True
            await disturb(parked, held)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(saboteur)
            await self.life.live()
            if not self.reached:
                tasks.cancel_scope.cancel()
        for parked in held.pending:
            # So that what nobody waits for any more is not done after all.
            parked.refuse()
        check(self.reached, "the call came")


Fault = Callable[[Disturbed], Awaitable[None]]


# The faults. Each has the life lived, and checks what was told of the fault.


async def fails_at_once(run: Disturbed) -> None:
    """It is refused, by the function itself."""
    run.rig.host.refuse(HResult.ERROR_NO_SYSTEM_RESOURCES, nth=run.nth)
    await run.life.live()
    _refusal_was_told(run)


async def fails_later(run: Disturbed) -> None:
    """It is accepted, and completes with a refusal."""

    async def refuse(parked: ParkedCall, held: HeldCalls) -> None:
        parked.refuse(HResult.ERROR_NO_SYSTEM_RESOURCES)

    await run.live(refuse)
    _refusal_was_told(run)


async def never_completes(run: Disturbed) -> None:
    """It never completes; its caller is cancelled, and the VM is closed while it is still under way."""
    if run.call.operation in run.rig.host.blocking:
        return

    async def leave(parked: ParkedCall, held: HeldCalls) -> None:
        run.life.cancel(cut_short=True)
        await run.life.until_step_is_over()

    run.life.hangs = run.call.operation in _OF_THE_CREATION | _OF_THE_CLOSING
    await run.live(leave)


async def loses_its_answer(run: Disturbed, *, applied: bool) -> None:
    """Nobody is told whether it was carried out, which it was or was not."""

    async def lose(parked: ParkedCall, held: HeldCalls) -> None:
        parked.lose(applied=applied)

    told_by_the_exit = run.call.operation in _TOLD_BY_THE_EXIT
    run.life.hangs = told_by_the_exit and not applied
    await run.live(lose)
    if not told_by_the_exit:
        check(
            any(isinstance(each, UnknownOutcomeError) for each in run.told),
            f"an unknown outcome was told: {run.told}",
        )


async def completes_twice(run: Disturbed) -> None:
    """It is answered, and answered again."""
    run.rig.host.answer_twice(nth=run.nth)
    await run.life.live()
    equal(run.told, [], "what failed")


async def is_overtaken_by_the_exit(run: Disturbed) -> None:
    """The system exits by itself while it is under way."""

    async def crash(parked: ParkedCall, held: HeldCalls) -> None:
        run.rig.host.crash("vm1")
        held.close()

    await run.live(crash)
    others = [each for each in run.told if not isinstance(each, VMExitedError)]
    equal(others, [], "what was told beside the exit")


async def is_cancelled_before_the_answer(run: Disturbed) -> None:
    """Its caller is cancelled and gone when the answer comes."""

    async def cancel(parked: ParkedCall, held: HeldCalls) -> None:
        run.life.cancel()
        if not run.life.closing and run.call.operation not in run.rig.host.blocking:
            await run.life.until_step_is_over()
        held.close()

    run.life.hangs = run.call.operation in _OF_THE_CREATION
    await run.live(cancel)
    _nothing_else_failed(run)


async def is_cancelled_with_the_answer(run: Disturbed) -> None:
    """Its caller is cancelled at the moment when the answer comes."""

    async def cancel(parked: ParkedCall, held: HeldCalls) -> None:
        parked.proceed()
        run.life.cancel()

    await run.live(cancel)
    _nothing_else_failed(run)


def _refusal_was_told(run: Disturbed) -> None:
    refusals = [
        e for e in run.told if isinstance(e, HostError) and e.hresult == HResult.ERROR_NO_SYSTEM_RESOURCES
    ]
    check(refusals, f"the refusal was told: {run.told}")


def _nothing_else_failed(run: Disturbed) -> None:
    equal(run.told, [], "what failed because of a cancellation")


#: By name, with what they need beyond :data:`Control.CALLS`.
FAULTS: dict[str, tuple[Fault, Control | None]] = {
    "fails_at_once": (fails_at_once, None),
    "fails_later": (fails_later, None),
    "never_completes": (never_completes, None),
    "is_lost_and_was_carried_out": (partial(loses_its_answer, applied=True), Control.LOSS),
    "is_lost_and_was_not_carried_out": (partial(loses_its_answer, applied=False), Control.LOSS),
    "completes_twice": (completes_twice, Control.TWICE),
    "is_overtaken_by_the_exit": (is_overtaken_by_the_exit, Control.EXIT),
    "is_cancelled_before_the_answer": (is_cancelled_before_the_answer, None),
    "is_cancelled_with_the_answer": (is_cancelled_with_the_answer, None),
}


# Living, over and over.


async def _disturb_each_call(rig: Rig, *, kind: Kind, fault: Fault) -> None:
    things = put_things(rig)
    for nth, call in enumerate(await _calls_of(rig, kind, things), 1):
        try:
            await _disturb(rig, Disturbed(Life(rig, kind, things), call, nth), fault)
        except BaseException as error:
            error.add_note(f"in the run of a {kind}, the fault was at its call {nth}: {call}")
            raise


async def _calls_of(rig: Rig, kind: Kind, things: Things) -> list[HostCall]:
    """Live an undisturbed life, and give the calls that reached the host."""
    before = len(rig.host.calls())
    life = Life(rig, kind, things)
    with anyio.fail_after(rig.patience_seconds):
        await life.live()
    equal(life.errors, [], "what failed in an undisturbed life")
    return list(rig.host.calls())[before:]


async def _disturb(rig: Rig, run: Disturbed, fault: Fault) -> None:
    try:
        with anyio.fail_after(rig.patience_seconds):
            await fault(run)
    finally:
        rig.host.undisturbed()
    strange = [each for each in run.told if not isinstance(each, UVMError)]
    equal(strange, [], "what failed with other errors than ours")
    if run.call.operation == "revoke":
        # The one call that may leave something: what it, and those after it, were to take away.
        left = rig.host.leftovers()
        check(run.life.errors or not left, f"whoever closed the VM was told of what is left: {left}")
        for path in {each.resource for each in rig.host.calls() if each.operation == "grant"}:
            await rig.backend.revoke_access(path, run.call.system_id)
    await nothing_left(rig)


def _scenarios() -> Iterator[Scenario]:
    for fault_name, (fault, extra) in FAULTS.items():
        for kind_name, kind in KINDS.items():
            needs: set[Any] = {Control.CALLS, Control.FILES, Control.NETWORKS, Control.DEVICES, Control.AUDIT}
            needs |= {Control.WINDOWS if kind.os == "windows" else Control.LINUX}
            needs |= {extra} if extra is not None else set()
            yield Scenario(
                f"any_call_of_a_{kind_name}_vm_{fault_name}",
                partial(_disturb_each_call, kind=kind, fault=fault),
                frozenset(needs),
                lives=100,
            )


#: One for each fault and each kind of VM.
SCENARIOS = tuple(_scenarios())
