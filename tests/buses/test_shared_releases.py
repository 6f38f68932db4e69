"""Several callers release one lease: some stay, some leave its context, some are cancelled.

Hypothesis chooses what happens: callers come, also by the name of the device, and are cancelled; a removal in
flight is answered or refused; the VM exits. Whoever of them came last and stays has what was refused; if none
stays, it is an orphan.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest
from attrs import define, field, frozen
from hypothesis import given
from hypothesis import strategies as st

from tests.clocks import jumping_backends
from tests.vm import orders
from tests.vm.audit import check_at_rest
from tests.vm.orders import Choose, run_example
from tests.vm.support import (
    ADAPTERS,
    DISK,
    ENDPOINT,
    NAMESPACE,
    OTHER_ENDPOINT,
    Attempt,
    Running,
    quiet,
    running,
    wcow,
)
from uvm import Mount
from uvm._buses.holds import Hold, HoldState
from uvm.backends.fake import Parked

anyio_backend = jumping_backends


async def _namespace(run: Running) -> Any:
    lease = await run.vm.network.add_namespace(NAMESPACE)
    for endpoint in (ENDPOINT, OTHER_ENDPOINT):
        await lease.add_endpoint(endpoint)
    return lease


@frozen
class Kind:
    """A kind of lease.

    :ivar resource: what is held up of its removal.
    :ivar by_name: removes it by its name.
    """

    resource: str
    make: Callable[[Running], Awaitable[Any]]
    by_name: Callable[[Running], Awaitable[None]]


KINDS = {
    "mounted disk": Kind(
        "*", lambda run: run.vm.scsi.attach(DISK, mount=Mount()), lambda run: run.vm.scsi.detach(DISK)
    ),
    "namespace": Kind(ADAPTERS, _namespace, lambda run: run.vm.network.remove_namespace(NAMESPACE)),
}


@define(eq=False, repr=False)
class World(orders.World):
    """One example.

    :ivar turns: how often each hold was released.
    :ivar joined: by caller, which release of each hold it waits for; none of one that has no lease.
    """

    kind: Kind = field(kw_only=True)
    lease: Any = field(kw_only=True)
    turns: dict[Hold[Any], int] = field(factory=dict)
    joined: list[dict[Hold[Any], int]] = field(factory=list)
    stay: list[bool] = field(factory=list)

    exit_odds = 30
    steps = range(4, 16)
    answers = ("proceed", "refuse", "refuse", "refuse")

    def beginning(self) -> Callable[[], Awaitable[Any]]:
        who = self.choose([self._stay, self._stay, self._leave, self._leave, self._remove], "who")
        joined: dict[Hold[Any], int] = {}
        self.joined.append(joined)
        self.stay.append(who == self._stay)
        return partial(who, joined)

    def spoiled(self, parked: Parked, how: str) -> None:
        """A refusal is known by what is left."""

    async def _stay(self, joined: dict[Hold[Any], int]) -> None:
        joined |= self._begin_release(self._holds())
        await self.lease.release()

    async def _leave(self, joined: dict[Hold[Any], int]) -> None:
        if not self.lease.released:
            joined |= self._begin_release(self._holds())
        async with self.lease:
            pass

    async def _remove(self, _: dict[Hold[Any], int]) -> None:
        self._begin_release(self._holds())
        await self.kind.by_name(self.run)

    def _holds(self) -> list[Hold[Any]]:
        holds = self.lease._all_holds
        if self.kind is KINDS["namespace"] and not self.lease._dropped:
            holds = self.lease._holds()
        return [hold for hold in holds if not hold.reported]

    def _begin_release(self, holds: list[Hold[Any]]) -> dict[Hold[Any], int]:
        """Note which release of each hold is waited for, just before it begins."""
        for hold in holds:
            if hold.state is not HoldState.RELEASING:
                self.turns[hold] = self.turns.get(hold, 0) + 1
        return {hold: self.turns[hold] for hold in holds}

    def _has_caller(self, hold: Hold[Any]) -> bool:
        """Return whether a caller has it: of its last release that had any."""
        for turn in range(self.turns.get(hold, 0), 0, -1):
            callers = [number for number, joined in enumerate(self.joined) if joined.get(hold) == turn]
            if callers:
                return any(self._has_it(self.begun[number], self.stay[number]) for number in callers)
        return True

    @staticmethod
    def _has_it(attempt: Attempt, stays: bool) -> bool:
        return not attempt.done or (stays and attempt.error is not None)

    async def play(self) -> None:
        for _ in range(self.choose(self.steps, "steps")):
            self._step()
            if self.choose([True, True, False], "settle"):
                await quiet()
                self.check()

    def check(self) -> None:
        if self.run.vm.exit_status is None:
            for hold in self.turns:
                if hold.state is HoldState.OWED:
                    assert hold.is_orphan is not self._has_caller(hold)


async def _example(kind: Kind, choose: Choose) -> None:
    async with running(wcow()) as run:
        lease = await kind.make(run)
        async with anyio.create_task_group() as tasks:
            gate = run.hold(resource=kind.resource, request_type="Remove")
            world = World(run, tasks, gate, choose, kind=kind, lease=lease)
            await world.play()
            await quiet()
            world.check()
            world.wind_up()
        world.check_errors()
        await run.vm.settled()
        if not lease.released:
            await lease.release()
        if run.vm.exit_status is None:
            assert run.vm.orphans == ()
            check_at_rest(run)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_what_is_refused_has_a_caller_that_stays_or_is_an_orphan(
    kind: str, backend: str, data: st.DataObject
) -> None:
    run_example(partial(_example, KINDS[kind]), backend, data)
