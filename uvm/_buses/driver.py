"""The only module in which a ledger meets ``await``.

How it runs
-----------

A :class:`Driver` runs one :class:`~uvm.devices.ledger.Ledger`. Callers never talk to the host themselves:
they put an event into the ledger and wait. What the ledger decides is carried out by tasks in the VM's own
task group, one per operation. So a caller may be cancelled at any await, and the VM still finishes or undoes
what it began.

A :class:`Hold` is one caller's interest. It follows its ticket through the ledgers: when a mount is gone and
the attachment below it is to be dropped, the hold that released the mount goes on with the
attachment's ticket. Its release is complete when the last of them is; if one is refused, the hold
stays on that ticket and may be released again.

Operation tasks never raise: what a step raises becomes an outcome, Refused or Unknown, for the ledger.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Hashable, Iterable, Iterator
from enum import Enum
from functools import partial
from itertools import count
from typing import Any, Generic, Self, TypeVar

import anyio
import anyio.abc
from attrs import Factory, define, field

from uvm._buses.link import Link
from uvm.devices.base import (
    ADD,
    ENDED,
    OK,
    OWED,
    REMOVE,
    Change,
    Entry,
    K,
    M,
    Operation,
    Outcome,
    Quarantined,
    Refused,
    S,
    Step,
    Ticket,
    Unknown,
    W,
)
from uvm.devices.ledger import Ledger
from uvm.errors import (
    AlreadyReleasedError,
    NotAttachedError,
    UndoFailedError,
    UnknownOutcomeError,
    UVMError,
    VMExitedError,
    own,
)

S_co = TypeVar("S_co", covariant=True)

_log = logging.getLogger("uvm")


class HoldState(Enum):
    """The states of a hold."""

    WAITING = "waiting"  # for the device to be attached
    GRANTED = "granted"  # the caller has not resumed yet, or it is held for what depends on it
    HELD = "held"  # by a caller
    RELEASING = "releasing"
    OWED = "owed"  # the removal was refused: may be released again
    ENDED = "ended"


_WAITING, _GRANTED, _HELD, _RELEASING, _OWED, _ENDED = HoldState


@define(eq=False)
class Hold(Generic[S_co]):
    """One caller's interest in a device, and the ticket that it is at. Await it to have it granted.

    :ivar before: called before the device is added, if this hold is what it is added for.
    :ivar number: of two holds, the older has the lower one.
    :ivar error: what the last wait ends with, if it fails.
    """

    link: Link = field(repr=False)
    _granted: Ticket[Hashable, object, S_co, object] = field(repr=False)
    #: Drops the ticket, in the driver whose ledger has it.
    _drop_ticket: Callable[[Hold[object]], None] = field(repr=False)
    before: Callable[[], Awaitable[None]] | None = field(default=None, repr=False)
    number: int = field(factory=count().__next__, init=False)
    ticket: Ticket[Hashable, object, object, object] = field(
        default=Factory(lambda self: self._granted, takes_self=True), init=False
    )
    state: HoldState = field(default=_WAITING, init=False)
    error: BaseException | None = field(default=None, init=False)
    #: No caller holds it or waits for it any more.
    abandoned: bool = field(default=False, init=False)
    _waker: anyio.Event | None = field(default=None, init=False, repr=False)

    @property
    def slot(self) -> S_co:
        """The slot of the device, once granted and until it is released."""
        return self._granted.entry.slot

    @property
    def ended(self) -> bool:
        """Whether nothing is left to release."""
        return self.ticket.state is ENDED

    @property
    def released(self) -> bool:
        """Whether it was released and nothing is owed, or the VM has exited."""
        return self.ended or self.state is _RELEASING or self.state is _ENDED

    @property
    def may_release_again(self) -> bool:
        """Whether a release failed and left the device attached."""
        return self.state is _OWED and not self.ended

    def check_first_release(self, what: object) -> None:
        """Refuse a second release.

        :raises AlreadyReleasedError: it was released before, by this caller.
        """
        if (self.state is _RELEASING or self.state is _ENDED) and not self.link.exited.is_set():
            raise AlreadyReleasedError(f"{what!r} was released before")

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._wait_granted().__await__()

    async def _wait_granted(self) -> Self:
        """Wait until it is granted. Cancelled or failed, nothing is left behind."""
        try:
            await self._wait_settled()
        except BaseException:
            self.abandon()
            raise
        if self.error is not None:
            self.abandoned = True
            raise own(self.error)
        self.state = _HELD
        return self

    def settle(self, state: HoldState) -> None:
        """End the wait for a grant or a release."""
        self.state = state
        if self._waker is not None:
            self._waker.set()

    async def _wait_settled(self) -> None:
        """Wait for :meth:`settle`."""
        if self.state is _WAITING or self.state is _RELEASING:
            # Most holds are never waited for, and an event is not cheap.
            self._waker = self._waker or anyio.Event()
            await self._waker.wait()

    def drop(self, *, abandoned: bool = False) -> None:
        """Release it. This takes effect at once; the VM's tasks do what follows.

        :raises VMStateError: the VM belongs to another event loop.
        """
        self.link.check_here()
        self._waker = self.error = None
        self.state, self.abandoned = _RELEASING, abandoned
        self._drop_ticket(self)

    def abandon(self) -> None:
        """Release it for no caller: if that is refused, it is an orphan."""
        self.drop(abandoned=True)

    def inherit(self, parent: Hold[object]) -> None:
        """Go on with the ticket of what the device depended on, and release that as well."""
        self.ticket, self._drop_ticket = parent.ticket, parent._drop_ticket
        if self.state is not _OWED:
            self.state = _RELEASING
        self._drop_ticket(self)

    async def wait_released(self) -> None:
        """Wait until what :meth:`drop` began is complete; cancelling stops only the waiting."""
        try:
            await self._wait_settled()
        except BaseException:
            self.abandoned = True
            raise
        if self.error is not None:
            raise own(self.error)

    async def undo(self, error: UVMError) -> None:
        """Release it because of an error, and wait until it is released.

        :raises UndoFailedError: that failed as well.
        """
        self.abandon()
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
        """Start an operation now, or when its turn comes."""
        if self.limit is not None and self.running >= self.limit:
            self.queue.append(start)
        else:
            self.running += 1
            start()

    def leave(self) -> None:
        """Start the next operation, since one ended."""
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
    ledger: Ledger[K, M, S, W, Hold[object]]
    lane: Lane = Factory(Lane)
    _holds: dict[Ticket[K, M, S, W], Hold[object]] = field(factory=dict, init=False)
    _gates: dict[Hashable, anyio.Event] = field(factory=dict, init=False)

    def acquire(
        self,
        key: K,
        member: M,
        *,
        parent: Hold[object] | None = None,
        before: Callable[[], Awaitable[None]] | None = None,
        names: tuple[Hashable, ...] = (),
    ) -> Hold[S]:
        """Request a key, and return the hold to await.

        :param parent: a hold on what it depends on. The ledger keeps it, unless this raises.
        :param before: called first if it is not attached yet; if it raises, so does the hold.
        :param names: what look-ups know it by; the last is its own.
        :raises NoSpaceError: there is no free slot.
        """
        self.link.check_running()
        ticket, change = self.ledger.acquire(key, member, parent, names)
        if parent is not None:
            parent.state = _GRANTED
        hold = self._hold(ticket, before)
        self._settle(change)
        return hold

    def _hold(
        self, ticket: Ticket[K, M, S, W], before: Callable[[], Awaitable[None]] | None = None
    ) -> Hold[S]:
        hold: Hold[S] = Hold(self.link, ticket, partial(self._drop, ticket), before)
        self._holds[ticket] = hold
        return hold

    def adopt(self, key: K, member: M, applied: W) -> Hold[S]:
        """Enter what is attached already, such as what the VM was created with; return the hold on it."""
        hold = self._hold(self.ledger.adopt(key, member, applied))
        hold.settle(_HELD)
        return hold

    def _drop(self, ticket: Ticket[K, M, S, W], hold: Hold[object]) -> None:
        if ticket.state is ENDED:
            # The VM exited, or another caller's acquire finished the removal that was refused.
            hold.settle(_ENDED)
            return
        # It may come from the ledger above.
        self._holds[ticket] = hold
        self._settle(self.ledger.drop(ticket))

    def attached(self) -> list[tuple[Entry[K, M, S, W], W]]:
        """Return the entries that are applied, each with what is, in the order in which they came."""
        return [(entry, entry.applied) for entry in self.ledger if entry.applied is not None]

    def gone(self) -> None:
        """End every ticket, since the VM exited. Each wait for one raises VMExitedError."""
        self.lane.queue.clear()
        self._settle(self.ledger.gone())
        self._holds.clear()

    def holds_on(self, key: K, wanted: Callable[[M], bool] = lambda _: True) -> list[Hold[object]]:
        """Return all callers' holds on a key whose members are wanted, in the order in which they came."""
        entry = self.ledger.get(key)
        if entry is None:
            return []
        tickets = [t for t in (*entry.holders, *entry.owed) if wanted(t.member)]
        holds = (self._holds[ticket] for ticket in tickets)
        return [hold for hold in holds if hold.state is _HELD or hold.state is _OWED]

    def in_use(self, key: K) -> bool:
        """Return whether a caller, or what depends on it, holds a key or waits for it."""
        entry = self.ledger.get(key)
        tickets = () if entry is None else (*entry.holders, *entry.waiters)
        return not all(self._holds[ticket].abandoned for ticket in tickets)

    def orphans(self) -> Iterator[Hold[object]]:
        """Yield the holds on what is attached and has no caller, since its removal was refused."""
        for hold in self._holds.values():
            if hold.abandoned and hold.may_release_again and not hold.ticket.entry.holders:
                yield hold

    # What the ledger decided.

    def _settle(self, change: Change[K, M, S, W, Hold[object]]) -> None:
        heirs = list(change.parents)
        for ticket in change.granted:
            self._holds[ticket].settle(_GRANTED)
        for ticket, error in change.failed:
            exited = isinstance(error, VMExitedError)
            self._finish(ticket, self.link.exit_error() if exited else error, heirs)
        for ticket in change.released:
            self._finish(ticket, None, heirs)
        for parent in heirs:
            parent.abandon()
        for withheld in change.quarantined:
            self._report(withheld)
        if change.operation is not None:
            self.lane.enter(partial(self._start, change.operation))

    def _start(self, operation: Operation[K, M, S, W]) -> None:
        if self.link.tasks is not None:
            self.link.tasks.start_soon(self._run, operation)

    def _finish(
        self, ticket: Ticket[K, M, S, W], error: BaseException | None, heirs: list[Hold[object]]
    ) -> None:
        """Settle the hold of a ticket; one that depended on another goes on with the other's ticket."""
        owed = ticket.state is OWED
        hold = self._holds[ticket] if owed else self._holds.pop(ticket, None)
        if hold is None:
            return
        if error is not None:
            if hold.state is not _WAITING:
                _log.warning("%s: releasing %s failed: %s", self.link.vm_id, ticket.key, error)
            # The caller that waits for it has an error and no lease.
            hold.abandoned = hold.abandoned or (owed and hold.state is _WAITING)
            hold.error = error if hold.error is None else UndoFailedError.of(hold.error, error)
        if heirs and not owed:
            hold.inherit(heirs.pop(0))
        elif owed or hold.state is not _OWED or error is not None:
            hold.settle(_OWED if owed else _ENDED)
        # Else another caller's acquire finished the removal that was refused; its owner may still release.

    def _report(self, withheld: Quarantined[K, S]) -> None:
        self.link.quarantined.append(withheld)
        _log.warning(
            "%s: %s of %s at %s: the outcome is unknown, so the slot is withheld: %s",
            self.link.vm_id,
            withheld.operation.value,
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
            self._settle(self.ledger.done(operation, outcome))
            if operation.kind is REMOVE:
                self.link.states.unmounted()
        finally:
            self.lane.leave()

    async def _through_gate(self, operation: Operation[K, M, S, W]) -> Hashable | None:
        """Wait for what this operation must have to itself, take it and return it, if anything."""
        while (gate := self._gate(operation)) is not None and gate in self._gates:
            await self._gates[gate].wait()
        if gate is not None:
            self._gates[gate] = anyio.Event()
        return gate

    def _gate(self, operation: Operation[K, M, S, W]) -> Hashable | None:
        # Once the VM has exited, the operation is void, and its slot unknown.
        return None if self.link.exited.is_set() else self.ledger.device.gate(operation)

    async def _carry_out(self, operation: Operation[K, M, S, W]) -> Outcome:
        done: list[Step] = []
        try:
            steps = self.ledger.begin(operation)
            calls = (self._holds[ticket].before for ticket in operation.serves)
            if operation.kind is ADD and (before := next(filter(None, calls), None)):
                await self.link.call(before())
        except Exception as error:
            return Refused(error)
        send = self.link.revoke if operation.kind is REMOVE else self.link.send
        for step in steps:
            try:
                await send(step)
            except Exception as error:
                if not is_refusal(error):
                    return Unknown(_as_unknown(error))
                if operation.kind is REMOVE:
                    return Refused(error, steps[len(done) :] if done else ())
                return await self._undo(done, error)
            done.append(step)
        return OK

    async def _undo(self, done: list[Step], error: Exception) -> Outcome:
        undo = [step.undo for step in reversed(done) if step.undo is not None]
        for number, step in enumerate(undo):
            try:
                await self.link.revoke(step)
            except Exception as undo_error:
                failure = UndoFailedError.of(error, undo_error)
                return Refused(failure, tuple(undo[number:])) if is_refusal(undo_error) else Unknown(failure)
        return Refused(error)


async def release_oldest(holds: Iterable[Hold[object]], missing: str) -> None:
    """Release the oldest of some holds.

    :raises NotAttachedError: there is none; `missing` is the message.
    """
    oldest = min(holds, key=lambda hold: hold.number, default=None)
    if oldest is None:
        raise NotAttachedError(missing)
    oldest.drop()
    await oldest.wait_released()


def is_refusal(error: Exception) -> bool:
    """Return whether an exception says that nothing was changed."""
    # A closed bridge says by its kind whether the request had been sent.
    return isinstance(error, UVMError) and not isinstance(error, UnknownOutcomeError | VMExitedError)


def _as_unknown(error: Exception) -> UVMError:
    if isinstance(error, UVMError):
        return error
    unknown = UnknownOutcomeError(f"whether it was done is unknown: {error!r}")
    unknown.__cause__ = error
    return unknown
