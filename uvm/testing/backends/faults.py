"""Scenarios: a VM from creation to exit with a fault in each call that reaches the host, one after the other.

Each scenario runs a VM without a fault first, to list the calls, then one VM for each of them. After each the
VM is closed, the failures were reported, the ledgers and the host agree, and nothing is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
from attrs import define

from uvm._async import BareTaskGroup
from uvm.errors import HostError, UnknownOutcomeError, UVMError, VMExitedError
from uvm.hresult import HResult
from uvm.testing.backends.checks import Attempt, check, equal, leaves, until
from uvm.testing.backends.lifecycle import KINDS, Kind, Lifecycle, Resources
from uvm.testing.backends.rig import Control, HeldCalls, HostCall, Rig
from uvm.testing.backends.scenario import Scenario, booting, nothing_left

#: Calls whose answer is not needed: the exit reports their success.
_REPORTED_BY_THE_EXIT = frozenset({"shutdown", "terminate"})
#: Calls that undoing a creation waits for, because they may have made a change nevertheless.
_OF_THE_CREATION = frozenset({"grant", "create"})
#: Calls made by closing a VM.
_OF_THE_CLOSING = frozenset({"terminate", "revoke"})
#: A call that fails no release: it is logged, and made again when the VM closes.
_TRIED_AGAIN = "revoke"


@define
class DisturbedRun:
    """A run that is disturbed at one of its calls.

    :ivar call: the call as it was in the run without faults.
    :ivar nth: which of the calls of its operation it is, from 1: those of different operations that run at
        once may reach the host in another order.
    """

    lifecycle: Lifecycle
    call: HostCall
    nth: int

    @property
    def rig(self) -> Rig:
        """The rig of the run."""
        return self.lifecycle.rig

    @property
    def errors(self) -> list[BaseException]:
        """The failures of the run, one by one."""
        return [leaf for error in self.lifecycle.errors for leaf in leaves(error)]

    @asynccontextmanager
    async def held(self, *, hangs: bool = False) -> AsyncIterator[HeldCalls]:
        """Run the VM, and park the call: the body decides its outcome. Ends with the run.

        :param hangs: ending the VM, or undoing its creation, waits for the call.
        """
        self.lifecycle.hangs = hangs
        held = self.rig.host.hold(operation=self.call.operation, nth=self.nth)

        async def end(failure: BaseException | None) -> BaseException | None:
            if failure is not None:
                tasks.cancel_scope.cancel()
            return failure

        async with BareTaskGroup(end) as tasks:
            attempt = Attempt.begin(tasks, self.lifecycle.run)
            await until(lambda: held.pending or attempt.done)
            check(held.pending, "the call was made")
            yield held
        for parked in held.pending:
            # A call without a caller must not be carried out after all.
            parked.refuse()


Fault = Callable[[DisturbedRun], Awaitable[None]]


# The faults. Each runs the VM, and checks what was reported of the fault.


async def fails_at_once(run: DisturbedRun) -> None:
    """Have the function itself refuse the call."""
    refused = run.call.operation
    run.rig.host.refuse(HResult.ERROR_NO_SYSTEM_RESOURCES, operation=refused, nth=run.nth)
    await run.lifecycle.run()
    _refusal_was_reported(run)


async def fails_later(run: DisturbedRun) -> None:
    """Have the call accepted, and completed with a refusal."""
    async with run.held() as held:
        held.pending[0].refuse(HResult.ERROR_NO_SYSTEM_RESOURCES)
    _refusal_was_reported(run)


async def never_completes(run: DisturbedRun) -> None:
    """Never complete the call; its caller is cancelled, and the VM is closed meanwhile."""
    if run.call.operation not in run.rig.host.blocking:
        async with run.held(hangs=run.call.operation in _OF_THE_CREATION | _OF_THE_CLOSING):
            run.lifecycle.cancel(cut_short=True)
            await run.lifecycle.step_ended()


async def loses_its_answer(run: DisturbedRun, *, applied: bool) -> None:
    """Lose the answer, with or without the change."""
    reported_by_the_exit = run.call.operation in _REPORTED_BY_THE_EXIT
    async with run.held(hangs=reported_by_the_exit and not applied) as held:
        held.pending[0].lose(applied=applied)
    unknown = any(isinstance(each, UnknownOutcomeError) for each in run.errors)
    check(
        unknown or reported_by_the_exit or run.call.operation == _TRIED_AGAIN,
        f"an unknown outcome was reported: {run.errors}",
    )


async def completes_twice(run: DisturbedRun) -> None:
    """Complete the call twice."""
    run.rig.host.answer_twice(operation=run.call.operation, nth=run.nth)
    await run.lifecycle.run()
    equal(run.errors, [], "what failed")


async def is_overtaken_by_the_exit(run: DisturbedRun) -> None:
    """Have the system exit by itself while the call is in progress."""
    async with run.held() as held:
        run.rig.host.crash(run.rig.own("vm1"))
        held.close()
    others = [each for each in run.errors if not isinstance(each, VMExitedError)]
    equal(others, [], "what was reported besides the exit")


async def is_cancelled_before_the_answer(run: DisturbedRun) -> None:
    """Cancel the caller, which is gone when the answer arrives."""
    async with run.held(hangs=run.call.operation in _OF_THE_CREATION) as held:
        run.lifecycle.cancel()
        if not run.lifecycle.closing and run.call.operation not in run.rig.host.blocking:
            await run.lifecycle.step_ended()
        held.close()
    equal(run.errors, [], "what failed because of a cancellation")


async def is_cancelled_with_the_answer(run: DisturbedRun) -> None:
    """Cancel the caller at the moment when the answer arrives."""
    async with run.held() as held:
        held.pending[0].proceed()
        run.lifecycle.cancel()
    equal(run.errors, [], "what failed because of a cancellation")


def _refusal_was_reported(run: DisturbedRun) -> None:
    refusals = [
        e for e in run.errors if isinstance(e, HostError) and e.hresult == HResult.ERROR_NO_SYSTEM_RESOURCES
    ]
    check(refusals or run.call.operation == _TRIED_AGAIN, f"the refusal was reported: {run.errors}")


#: The faults by name, with what they need beyond :data:`Control.CALLS`.
FAULTS: dict[str, tuple[Fault, *tuple[Control, ...]]] = {
    "fails_at_once": (fails_at_once,),
    "fails_later": (fails_later,),
    "never_completes": (never_completes,),
    "is_lost_and_was_carried_out": (partial(loses_its_answer, applied=True), Control.LOSS),
    "is_lost_and_was_not_carried_out": (partial(loses_its_answer, applied=False), Control.LOSS),
    "completes_twice": (completes_twice, Control.TWICE),
    "is_overtaken_by_the_exit": (is_overtaken_by_the_exit, Control.EXIT),
    "is_cancelled_before_the_answer": (is_cancelled_before_the_answer,),
    "is_cancelled_with_the_answer": (is_cancelled_with_the_answer,),
}


# The runs.


async def _disturb_each_call(rig: Rig, *, kind: Kind, fault: Fault) -> None:
    resources = Resources(rig.host)
    seen: Counter[str] = Counter()
    for number, call in enumerate(await _calls_of(rig, kind, resources), 1):
        seen[call.operation] += 1
        run = DisturbedRun(Lifecycle(rig, kind, resources), call, seen[call.operation])
        try:
            await _disturb(rig, run, fault)
        except BaseException as error:
            error.add_note(f"in the run of a {kind}, the fault was at its call {number}: {call}")
            raise


async def _calls_of(rig: Rig, kind: Kind, resources: Resources) -> list[HostCall]:
    """Return the calls that reach the host in a run without faults."""
    before = len(rig.host.calls())
    lifecycle = Lifecycle(rig, kind, resources)
    with anyio.fail_after(rig.timeout_seconds):
        await lifecycle.run()
    equal(lifecycle.errors, [], "what failed without a fault")
    return list(rig.host.calls())[before:]


async def _disturb(rig: Rig, run: DisturbedRun, fault: Fault) -> None:
    try:
        with anyio.fail_after(rig.timeout_seconds):
            await fault(run)
    finally:
        rig.host.undisturbed()
    strange = [each for each in run.errors if not isinstance(each, UVMError)]
    equal(strange, [], "what failed with other errors than the library's")
    if run.call.operation == "revoke":
        # The only call that may leave something: what it, and those after it, were to revoke.
        left = rig.host.leftovers()
        check(run.lifecycle.errors or not left, f"closing the VM reported what is left: {left}")
        for path in {each.resource for each in rig.host.calls() if each.operation == "grant"}:
            await rig.backend.revoke_access(path, run.call.system_id)
    await nothing_left(rig)


_NEEDS = {Control.CALLS, Control.FILES, Control.NETWORKS, Control.DEVICES, Control.AUDIT}

#: One for each fault and each kind of VM.
SCENARIOS = tuple(
    Scenario(
        f"any_call_of_a_{kind_name}_vm_{fault_name}",
        partial(_disturb_each_call, kind=kind, fault=fault),
        frozenset({booting(kind.os), *_NEEDS, *needs}),
        timeouts=100,
    )
    for fault_name, (fault, *needs) in FAULTS.items()
    for kind_name, kind in KINDS.items()
)
