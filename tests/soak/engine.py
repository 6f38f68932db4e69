"""Rounds of the soak."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final

import anyio
import anyio.abc
import anyio.lowlevel
import sniffio
import trio._core._run as trio_scheduler
from attrs import define, field

import uvm
from tests.soak.puppeteer import Puppeteer
from tests.soak.world import (
    DISK_FILES,
    Action,
    acquisitions,
    errands,
    make_backend,
    make_options,
    make_timeouts,
)
from tests.vm.audit import check_at_rest, check_opened
from tests.vm.support import Running
from uvm._buses.holds import HoldState
from uvm.backends.fake import Entry, FakeBackend
from uvm.errors import (
    BridgeClosedError,
    GuestError,
    HostError,
    UnknownOutcomeError,
    UVMError,
    VMExitedError,
    VMStateError,
)

__all__ = ["Tally", "play_round"]

_MOST_VMS: Final = 4
_MOST_WORKERS: Final = 5
_MOST_STEPS: Final = 30
_MOST_LEASES: Final = 12
#: How many turns those need who waited for the last of them.
_TURNS_TO_HEAR: Final = 10


@define
class Tally:
    """What was done and how it ended: operations by (kind, outcome), calls of hosts and guests by outcome.

    :ivar withheld: slots that were quarantined.
    """

    operations: Counter[tuple[str, str]] = field(factory=Counter)
    calls: Counter[str] = field(factory=Counter)
    rounds: int = 0
    vms: int = 0
    withheld: int = 0
    _digest: Any = field(factory=hashlib.sha256, repr=False)

    @property
    def digest(self) -> str:
        """A fingerprint of every call, in order, and of how each ended: the same for the same seed."""
        return str(self._digest.hexdigest()[:16])

    def note(self, entry: Entry) -> None:
        """Count a call."""
        self.calls[entry.outcome] += 1
        self._digest.update(f"{entry.seq} {entry.vm} {entry.call} {entry.outcome} {entry.applied}\n".encode())


async def play_round(seed: int, tally: Tally) -> None:
    """Play one round; what it finds is raised.

    :raises AssertionError: something leaked, got stuck, or is not as the ledgers have it. It may be inside
        an exception group.
    """
    random = Random(seed)
    _seed_scheduler(seed)
    backend = make_backend(random)
    backend.request_log.listen(tally.note)
    puppeteer = Puppeteer(backend, Random(random.getrandbits(64)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(puppeteer.run)
        async with anyio.create_task_group() as players:
            for number in range(random.randint(1, _MOST_VMS)):
                player = _Player(backend, puppeteer, tally, number, Random(random.getrandbits(64)))
                players.start_soon(player.play)
        tasks.cancel_scope.cancel()
    assert backend.leftovers() == [], backend.leftovers()
    assert [path for path in DISK_FILES if backend.files.is_open(path)] == []
    tally.rounds += 1


def _seed_scheduler(seed: int) -> None:
    """Have trio, which runs ready tasks in random order, do so from a seed, as hypothesis does."""
    if sniffio.current_async_library() == "trio":
        trio_scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
        trio_scheduler._r.seed(seed)


@define(eq=False)
class _Player:
    """Plays with one VM, from its creation to its end."""

    backend: FakeBackend
    puppeteer: Puppeteer
    tally: Tally
    number: int
    random: Random
    leases: list[Any] = field(factory=list)

    async def play(self) -> None:
        options = make_options(self.random, self.backend, self.number)
        created = False
        try:
            timeouts = make_timeouts(self.random)
            async with uvm.UtilityVM.create(options, backend=self.backend, timeouts=timeouts) as vm:
                created = True
                self.tally.vms += 1
                await self._live(vm)
                # Closing has to succeed, whatever went wrong before.
                self.puppeteer.calm.add(vm.id)
        except UVMError as error:
            if created:
                raise
            self.count("create", outcome_of(error))
        else:
            self.count("create", "ok")

    async def _live(self, vm: uvm.UtilityVM) -> None:
        if await self.tried("start", vm.start) != "ok":
            return
        self.puppeteer.working.add(vm.id)
        async with anyio.create_task_group() as cancellers, anyio.create_task_group() as workers:
            for _ in range(self.random.randint(1, _MOST_WORKERS)):
                worker = _Worker(self, vm, Random(self.random.getrandbits(64)), cancellers)
                workers.start_soon(worker.work)
        self.puppeteer.calm.add(vm.id)
        await self._check(vm)
        await self._release_all(vm)
        self.tally.withheld += len(vm.quarantined)

    async def _check(self, vm: uvm.UtilityVM) -> None:
        """Wait until nothing is in flight; then the ledgers, the host and the guest have to agree."""
        # What a guest owes whose answer was lost does not come: vm.settled() would wait for its limit.
        await vm._link.work.wait_until(lambda: not vm._link.work.busy)
        for _ in range(_TURNS_TO_HEAR):
            await anyio.lowlevel.checkpoint()
        if vm.state is uvm.VMState.RUNNING:
            run = Running(vm, self.backend)
            check_at_rest(run)
            if vm.id not in self.puppeteer.unsure:
                check_opened(run, [])

    async def _release_all(self, vm: uvm.UtilityVM) -> None:
        """Release what is left: then nothing is held, but by what lives on it and cannot go."""
        # What is refused while something else is on it can go once that has gone.
        for lease in self.leases * 2:
            if not lease.released:
                await self.tried("last release", lease.release)
        await self._check(vm)
        below = {hold for orphan in vm._link.left for hold in orphan.below}
        held = [
            (name, hold.ticket.key)
            for name, driver in vm._drivers()
            for entry in driver.ledger
            for hold in driver.holds_on(entry.key)
            if hold.state is HoldState.HELD and hold not in below
        ]
        assert held == []

    async def tried(self, kind: str, do: Callable[[], Awaitable[Any]]) -> str:
        """Do something that may fail, and count how it ended."""
        outcome = "ok"
        try:
            await do()
        except (UVMError, ExceptionGroup) as error:
            outcome = outcome_of(error)
        self.count(kind, outcome)
        return outcome

    def count(self, kind: str, outcome: str) -> None:
        """Count an operation."""
        self.tally.operations[kind, outcome] += 1


@define(eq=False)
class _Worker:
    """One of the tasks that use a VM at once."""

    player: _Player
    vm: uvm.UtilityVM
    random: Random
    cancellers: anyio.abc.TaskGroup
    leases: list[Any] = field(factory=list)

    async def work(self) -> None:
        for _ in range(self.random.randint(1, _MOST_STEPS)):
            with anyio.CancelScope() as scope:
                if self.random.random() < 0.15:
                    self.cancellers.start_soon(_cancel_after, scope, self.random.randrange(25))
                await self._step()
            await anyio.lowlevel.checkpoint()
        self.player.leases += self.leases

    async def _step(self) -> None:
        what = self.random.random()
        # Kept for the end are all: a release that was cancelled may fail, and leave the lease with us.
        ours = [lease for lease in self.leases if not lease.released]
        if what < 0.12:
            kind, do = self.random.choice([*errands().items()])
            await self._counted(kind, lambda: do(self.vm, self.random))
        elif ours and (what < 0.5 or len(ours) > _MOST_LEASES):
            await self._counted("release", self.random.choice(ours).release)
        else:
            kind, do = self.random.choice([*acquisitions(self.vm.os).items()])
            await self._counted(kind, lambda: self._acquire(do))

    async def _acquire(self, do: Action) -> None:
        self.leases.append(await do(self.vm, self.random))

    async def _counted(self, kind: str, do: Callable[[], Awaitable[Any]]) -> None:
        try:
            await self.player.tried(kind, do)
        except anyio.get_cancelled_exc_class():
            self.player.count(kind, "cancelled")
            raise


async def _cancel_after(scope: anyio.CancelScope, turns: int) -> None:
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


def outcome_of(error: UVMError | ExceptionGroup[Any]) -> str:
    """Say in a word how an operation failed.

    :raises BaseException: what it failed with, where that is no error of the library.
    """
    if isinstance(error, UnknownOutcomeError | BridgeClosedError):
        return "unknown"
    if isinstance(error, ExceptionGroup):
        return min(outcome_of(each) for each in error.exceptions)
    if not isinstance(error, UVMError):
        raise error
    if isinstance(error, HostError | GuestError):
        return "refused"
    return "exited" if isinstance(error, VMExitedError | VMStateError) else "denied"
