"""The one place where a device machine meets ``await``.

How it runs
-----------

A :class:`Driver` runs one :class:`~uvm.devices.ledger.Ledger`. Callers never talk to the host themselves:
they put an event into the ledger and wait. What the ledger decides is carried out by tasks in the VM's
own task group, one per operation. So a caller may be cancelled at any await, and what it had begun is
still finished, or undone, by the VM.

A :class:`Hold` is one caller's interest. It follows its ticket through the ledgers: when a mount is gone and
the attachment below it is to be dropped, the hold of whoever released the mount goes on with the
attachment's ticket. Its release is complete when the last of them is, and where one refuses, the hold
stays on that ticket and may be released again.

Operation tasks never raise: what a step raises becomes an outcome, Refused or Unknown, for the ledger.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
import anyio.abc
from attrs import Factory, define, field

from uvm._buses.link import Link
from uvm.devices.base import (
    ADD,
    ENDED,
    OK,
    OPERATION_NAMES,
    OWED,
    REMOVE,
    Change,
    Operation,
    Outcome,
    Quarantined,
    Refused,
    Step,
    Ticket,
    Unknown,
)
from uvm.devices.ledger import Ledger
from uvm.errors import (
    UndoFailedError,
    UnknownOutcomeError,
    UVMError,
    VMExitedError,
)

if TYPE_CHECKING:
    pass

K = TypeVar("K", bound=Hashable)
M = TypeVar("M")
S = TypeVar("S")
W = TypeVar("W")
E = TypeVar("E", bound=BaseException)

_log = logging.getLogger("uvm")


def own(error: E) -> E:
    """Give one waiter an exception of its own, of the same kind, caused by the original."""
    copy = error.__class__.__new__(error.__class__, *error.args)
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    if hasattr(error, "__notes__"):
        copy.__notes__ = list(error.__notes__)
    copy.__cause__ = error
    return copy


@define(eq=False)
class Hold:
    """One caller's interest in a device, and the ticket that it is at."""

    driver: Driver[Any, Any, Any, Any]
    ticket: Ticket[Any, Any]
    error: BaseException | None = None
    dropped: bool = False
    #: What is to be done before the device is added, if this hold is what it is added for.
    before: Callable[[], Awaitable[None]] | None = None
    #: A release failed and left the device with us.
    may_release_again: bool = False
    #: A caller has it, rather than what lives on the device, or a task that is yet to be told.
    with_caller: bool = False
    _settled: bool = field(default=False, init=False)
    _waker: anyio.Event | None = field(default=None, init=False)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to release."""
        return self.ticket.state == ENDED

    def settle(self) -> None:
        """What it waited for has come about: it is granted, released or failed."""
        self._settled = True
        if self._waker is not None:
            self._waker.set()

    async def wait_settled(self) -> None:
        """Wait for :meth:`settle`."""
        if not self._settled:
            # Most holds are never waited for, and an event is not cheap.
            self._waker = self._waker or anyio.Event()
            await self._waker.wait()

    def drop(self) -> None:
        """Give it up; takes effect at once, and the VM's tasks do what follows."""
        self._settled, self._waker, self.error = False, None, None
        self.dropped, self.may_release_again = True, False
        self.driver.drop(self)

    async def wait_released(self) -> None:
        """Wait until what :meth:`drop` began is complete; cancelling stops only the waiting."""
        await self.wait_settled()
        if self.error is not None:
            raise own(self.error)

    async def give_back(self, error: UVMError) -> None:
        """Release it because of an error, and wait until it is gone.

        :raises UndoFailedError: that failed as well.
        """
        self.drop()
        try:
            await self.wait_released()
        except UVMError as undo_error:
            raise UndoFailedError.of(error, undo_error) from None


@define(eq=False)
class Lane:
    """Operations of one device kind, started in the order in which they were decided.

    :ivar limit: how many of them the host takes at once; None for any number.
    """

    limit: int | None = None
    running: int = 0
    queue: deque[Callable[[], None]] = Factory(deque)

    def enter(self, start: Callable[[], None]) -> None:
        """Start an operation now, or when it is its turn."""
        if self.limit is not None and self.running >= self.limit:
            self.queue.append(start)
        else:
            self.running += 1
            start()

    def leave(self) -> None:
        """An operation ended: the next one's turn."""
        if self.queue:
            self.queue.popleft()()
        else:
            self.running -= 1


@define(eq=False)
class Driver(Generic[K, M, S, W]):
    """Runs one ledger of one VM.

    :ivar lane: shared by the ledgers of one device kind.
    """

    link: Link
    ledger: Ledger[K, M, S, W]
    lane: Lane = Factory(Lane)
    _holds: dict[Ticket[K, M], Hold] = field(factory=dict, init=False)
    _gates: dict[Hashable, anyio.Event] = field(factory=dict, init=False)

    async def acquire(
        self, key: K, member: M, *, before: Callable[[], Awaitable[None]] | None = None
    ) -> Hold:
        """Want a key, and wait until it is there. Cancelled or failed, nothing is left behind.

        :param before: what is to be done first where it is not there yet; if it raises, so does this.
        """
        hold = self.start(key, member, before=before)
        await self.wait(hold)
        return hold

    def start(
        self,
        key: K,
        member: M,
        *,
        parent: Hold | None = None,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> Hold:
        """Put the wish into the ledger, without waiting.

        :param parent: a hold on what it lives on. The ledger takes it over, unless this raises.
        :raises NoSpaceError: there is no place for it.
        """
        self.link.check_running()
        ticket, change = self.ledger.acquire(key, member, parent)
        if parent is not None:
            parent.with_caller = False
        hold = self._holds[ticket] = Hold(self, ticket, before=before)
        self._settle(change)
        return hold

    def adopt(self, key: K, member: M, applied: W) -> Hold:
        """Enter what is there already, such as what the VM was created with; gives the hold on it."""
        ticket = self.ledger.adopt(key, member, applied)
        hold = self._holds[ticket] = Hold(self, ticket)
        hold.with_caller = True
        hold.settle()
        return hold

    async def wait(self, hold: Hold) -> None:
        """Wait until a hold is granted."""
        try:
            await hold.wait_settled()
        except BaseException:
            hold.drop()
            raise
        if hold.error is not None:
            raise own(hold.error)
        hold.with_caller = True

    def drop(self, hold: Hold) -> None:
        """Put a drop into the ledger."""
        if hold.ended:
            # The VM has gone, or somebody else's acquire finished the removal that had failed for us.
            hold.settle()
            return
        self._settle(self.ledger.drop(hold.ticket))

    def gone(self) -> None:
        """The VM exited: end every ticket. Whoever waits for one gets VMExitedError."""
        self.lane.queue.clear()
        self._settle(self.ledger.gone())
        for hold in self._holds.values():
            hold.settle()
        self._holds.clear()

    def holds_on(self, key: K) -> list[Hold]:
        """Give every caller's granted holds on a key, in the order in which they came."""
        entry = self.ledger.get(key)
        if entry is None:
            return []
        held = (self._holds[ticket] for ticket in entry.holders)
        return [*(hold for hold in held if hold.with_caller), *(self._holds[ticket] for ticket in entry.owed)]

    async def release_one(self, key: K) -> bool:
        """Give up the oldest hold on a key, whoever has it; False where nobody has."""
        holds = self.holds_on(key)
        if not holds:
            return False
        holds[0].drop()
        await holds[0].wait_released()
        return True

    # What the ledger decided.

    def _settle(self, change: Change[K, M, S, W]) -> None:
        heirs = list(change.parents)
        for ticket in change.granted:
            self._holds[ticket].settle()
        for ticket, error in change.failed:
            self._finish(ticket, self._explain(error), heirs)
        for ticket in change.released:
            self._finish(ticket, None, heirs)
        for parent in heirs:
            parent.driver.drop(parent)
        for withheld in change.quarantined:
            self._report(withheld)
        if change.operation is not None:
            self.lane.enter(partial(self._start, change.operation))

    def _start(self, operation: Operation[K, M, S, W]) -> None:
        if self.link.tasks is not None:
            self.link.tasks.start_soon(self._run, operation)

    def _explain(self, error: BaseException) -> BaseException:
        if isinstance(error, VMExitedError):
            return self.link.exit_error()
        return error

    def _finish(self, ticket: Ticket[K, M], error: BaseException | None, heirs: list[Hold]) -> None:
        """A ticket's story is over, or stuck; a hold whose ticket lived on another goes on with that one."""
        owed = ticket.state == OWED
        hold = self._holds[ticket] if owed else self._holds.pop(ticket, None)
        if hold is None:
            return
        # Where somebody else's acquire finished a removal that had failed, its owner was not told so far.
        hold.may_release_again = owed or (hold.may_release_again and error is None)
        if error is not None:
            if hold.dropped:
                _log.warning("%s: releasing %s failed: %s", self.link.vm_id, ticket.key, error)
            hold.error = error if hold.error is None else UndoFailedError.of(hold.error, error)
        if heirs and not owed:
            parent = heirs.pop(0)
            hold.driver, hold.ticket = parent.driver, parent.ticket
            parent.driver._holds[parent.ticket] = hold
            parent.driver.drop(hold)
        else:
            hold.settle()

    def _report(self, withheld: Quarantined[K, S]) -> None:
        self.link.quarantined.append(withheld)
        _log.warning(
            "%s: %s of %s at %s: the outcome is unknown, so the slot is withheld: %s",
            self.link.vm_id,
            OPERATION_NAMES[withheld.operation],
            withheld.key,
            withheld.slot,
            withheld.cause,
        )

    # Carrying out.

    async def _run(self, operation: Operation[K, M, S, W]) -> None:
        try:
            gate = await self._through_gate(operation)
            try:
                outcome = await self._carry_out(operation)
            finally:
                if gate is not None:
                    self._gates.pop(gate).set()
            self._end(operation, outcome)
        finally:
            self.lane.leave()

    def _end(self, operation: Operation[K, M, S, W], outcome: Outcome) -> None:
        if isinstance(outcome, Refused) and operation.kind == REMOVE and not operation.releasers:
            # Whoever it was added for had given up, so that nobody is there to be told.
            what = f"{self.link.vm_id}: removing {operation.key}, which nobody waits for any more, failed"
            _log.warning("%s: %s; it stays until it is acquired and released again", what, outcome.error)
        self._settle(self.ledger.done(operation, outcome))

    async def _through_gate(self, operation: Operation[K, M, S, W]) -> Hashable | None:
        """Wait for what this operation must have to itself, take it and give it, if anything."""
        while (gate := self._gate(operation)) is not None and gate in self._gates:
            await self._gates[gate].wait()
        if gate is not None:
            self._gates[gate] = anyio.Event()
        return gate

    def _gate(self, operation: Operation[K, M, S, W]) -> Hashable | None:
        # Once the VM has gone, the operation is void, and its slot is not known any more.
        return None if self.link.exited.is_set() else self.ledger.device.gate(operation)

    async def _carry_out(self, operation: Operation[K, M, S, W]) -> Outcome:
        done: list[Step] = []
        try:
            steps = self.ledger.begin(operation)
            await self._before(operation)
        except Exception as error:
            return Refused(error)
        send = self.link.take_back if operation.kind == REMOVE else self.link.send
        for step in steps:
            try:
                await send(step)
            except Exception as error:
                if not is_refusal(error):
                    return Unknown(_as_unknown(error))
                if operation.kind == REMOVE:
                    return Refused(error, len(done))
                return await self._undo(done, error)
            done.append(step)
        return OK

    async def _before(self, operation: Operation[K, M, S, W]) -> None:
        if operation.kind != ADD:
            return
        for ticket in operation.serves:
            before = self._holds[ticket].before
            if before is not None:
                await before()
                return

    async def _undo(self, done: list[Step], error: Exception) -> Outcome:
        for step in reversed(done):
            if step.undo is None:
                continue
            try:
                await self.link.take_back(step.undo)
            except Exception as undo_error:
                return Unknown(UndoFailedError.of(error, undo_error))
        return Refused(error)


def is_refusal(error: Exception) -> bool:
    """Whether an exception says that nothing was changed."""
    # A closed bridge says by its kind whether the request had been sent.
    return isinstance(error, UVMError) and not isinstance(error, UnknownOutcomeError | VMExitedError)


def _as_unknown(error: Exception) -> UVMError:
    if isinstance(error, UVMError):
        return error
    unknown = UnknownOutcomeError(f"nobody knows whether it was done: {error!r}")
    unknown.__cause__ = error
    return unknown
