"""The only module in which a ledger meets ``await``.

How it runs
-----------

A :class:`Driver` runs one :class:`~uvm.devices.ledger.Ledger`. Callers never talk to the host themselves:
they put an event into the ledger and wait. What the ledger decides is carried out by tasks in the VM's own
task group (:func:`carry_out`). So a caller may be cancelled at any await, and the VM still finishes or undoes
what it began. A task that has carried out an operation goes on with what follows of its end: an unmount with
the detach, and an attach with the mount, of which the caller is woken once (:meth:`Hold.through`).

What one caller has is a :class:`~uvm._buses.holds.Hold`; the driver grants it, and settles its release. What
attaches the path or key of an orphan tries its removal again first (:meth:`Driver.clear`). The access that a
device needs is taken before its ADD is sent, and left once it is known to be gone, as a part of the same
operation.

The guest does not unmount what something in it uses. A caller that is cancelled leaves several leases at
once, and the undo of the last may be decided long after the release of the first. So the removal of a device
enters its lane only when those have ended that were in flight when it was decided and use a guest path at or
under its own (:meth:`Driver._users`): operations on younger devices, such as a root that is being combined
of it, with the removals that follow them; and the ends of containers. What uses a device was attached after
it, so no two removals wait for each other.

Operation tasks never raise: what a step raises becomes an outcome, Refused or Unknown, for the ledger.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from typing import Any, Final, Generic

from attrs import Factory, define, field

from uvm._async import Flag
from uvm._buses.access import Need
from uvm._buses.holds import Hold, HoldState, Stay
from uvm._buses.link import Link, StuckDevice
from uvm._log import Log
from uvm._observed import Door, Observed, bound, observe
from uvm._observed import Outcome as Ended
from uvm.devices.base import (
    ADD,
    ENDED,
    OK,
    OWED,
    REMOVE,
    UPDATE,
    Change,
    Entry,
    K,
    M,
    Ok,
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
    OrphanError,
    UndoFailedError,
    UnknownOutcomeError,
    UVMError,
    VMExitedError,
    is_refusal,
)

_log = Log("uvm")

#: What operations are called, in the log and in spans.
_VERBS: Final = {ADD: "attach", UPDATE: "update", REMOVE: "detach"}


@define(eq=False, repr=False)
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


@define(eq=False, repr=False)
class Driver(Generic[K, M, S, W]):
    """Runs one ledger of one VM.

    :ivar lane: shared by the ledgers of one device kind.
    :ivar claims: returns what else a ticket occupies, such as a path of the host or of the guest.
    :ivar uses: returns the keys of the guest paths of other devices that a ticket's device is made of.
    :ivar part_of_parent: what a device depends on goes with its last one.
    """

    link: Link
    ledger: Ledger[K, M, S, W, Hold[object]]
    lane: Lane = Factory(Lane)
    claims: Callable[[Ticket[K, M, S, W]], Iterable[Hashable]] = lambda _: ()
    uses: Callable[[Ticket[K, M, S, W]], Iterable[str]] = lambda _: ()
    part_of_parent: bool = True
    _holds: dict[Ticket[K, M, S, W], Hold[object]] = field(factory=dict, init=False)
    _stays: dict[Entry[K, M, S, W], Stay] = field(factory=dict, init=False)
    _needs: dict[Entry[K, M, S, W], Need] = field(factory=dict, init=False)
    #: By what one operation has to itself now: that, and those that wait for it.
    _gates: dict[Hashable, deque[Operation[K, M, S, W]]] = field(factory=dict, init=False)

    def acquire(
        self,
        key: K,
        member: M,
        *,
        parent: Hold[object] | None = None,
        need: Need | None = None,
        names: tuple[Hashable, ...] = (),
        then: Callable[[Hold[S]], Hold[Any]] | None = None,
    ) -> Hold[S]:
        """Request a key, and return the hold to await.

        :param parent: a hold on what it depends on. The ledger keeps it, unless this raises.
        :param need: the access that it needs, if it is not attached yet; if that fails, so does the hold.
        :param names: what look-ups know it by; the last is its own.
        :param then: begins what is asked for beside, such as the mount of a disk, as soon as the device is
            granted; await :meth:`Hold.through`.
        :raises NoSpaceError: there is no free slot.
        """
        self.link.check_running()
        ticket, change = self.ledger.acquire(key, member, parent, names)
        if parent is not None:
            parent.state = HoldState.GRANTED
        hold: Hold[S] = Hold(self, ticket, need, then)
        self._holds[ticket] = hold
        self._settle(change)
        return hold

    def adopt(
        self,
        key: K,
        member: M,
        applied: W,
        *,
        parent: Hold[object] | None = None,
        names: tuple[Hashable, ...] = (),
        slot: S | None = None,
        need: Need | None = None,
    ) -> Hold[S]:
        """Enter what is attached already, such as what the VM was created with; return the hold on it.

        :param parent: as for :meth:`acquire`, and so is `names`; see also :meth:`Ledger.adopt`.
        :param need: the access that it has, for as long as it is attached.
        """
        hold: Hold[S] = Hold(self, self.ledger.adopt(key, member, applied, parent, names, slot))
        if parent is not None:
            parent.state = HoldState.GRANTED
        self._holds[hold.ticket] = hold
        if need is not None:
            self._needs[hold.ticket.entry] = need
        hold.stay = self._stay(hold.ticket)
        self.link.occupied.enter(hold.ticket.entry, self._guest_paths)
        hold.settle(HoldState.HELD)
        return hold

    def drop(self, hold: Hold[object]) -> None:
        """Release a hold; it may come from the ledger above."""
        ticket = hold.ticket
        if ticket.state is ENDED:
            # The VM exited, or another caller's acquire finished the removal that was refused.
            hold.settle(HoldState.ENDED)
            return
        self._holds[ticket] = hold
        self._settle(self.ledger.drop(ticket))

    def attached(self) -> list[tuple[Entry[K, M, S, W], W]]:
        """Return the entries that are applied, each with what is, in the order in which they came."""
        return [(entry, entry.applied) for entry in self.ledger if entry.applied is not None]

    def gone(self) -> None:
        """End every ticket, since the VM exited. Each wait for one raises VMExitedError."""
        self.lane.queue.clear()
        self._gates.clear()
        self._settle(self.ledger.gone())
        self._holds.clear()
        for stay in self._stays.values():
            stay.end()
        self._stays.clear()
        self.link.in_flight.clear()
        self.link.occupied.clear()

    def holds_on(self, key: K) -> list[Hold[object]]:
        """Return all callers' holds on what is attached of a key. Those that are being released come last."""
        return [hold for holds in self._held(key) for hold in holds]

    def oldest_on(self, key: K, wanted: Callable[[M], bool] = lambda _: True) -> list[Hold[object]]:
        """Return those whose members are wanted; of the many that may be held, only the oldest."""
        held = (filter(lambda hold: wanted(hold.ticket.member), holds) for holds in self._held(key))
        return [*islice(next(held, ()), 1), *chain.from_iterable(held)]

    def _held(self, key: K) -> Iterator[Iterator[Hold[object]]]:
        """Yield the callers' holds on what is attached of a key: held, owed, and being released."""
        entry = self.ledger.get(key)
        if entry is None or entry.applied is None:
            return
        releasers = () if entry.operation is None else entry.operation.releasers
        for tickets in entry.holders, entry.owed, (*releasers, *entry.leaving):
            holds = (self._holds[ticket] for ticket in tickets)
            yield (hold for hold in holds if hold.state is not HoldState.GRANTED)

    def in_use(self, key: K) -> bool:
        """Return whether a caller, or what depends on it, holds a key or waits for it."""
        entry = self.ledger.get(key)
        tickets = () if entry is None else (*entry.holders, *entry.waiters)
        return not all(self._holds[ticket].abandoned for ticket in tickets)

    def is_wanted(self, entry: Entry[K, M, S, W], member: M) -> bool:
        """Return whether a ticket wants what a member is of a device."""
        return member in entry.members() if self.ledger.device.narrows else entry.wanted

    def standing(self, entry: Entry[K, M, S, W]) -> tuple[int, bool]:
        """Return how many references a device has, and whether it is an orphan or has a part that is one."""
        return self.references(entry), self.is_orphaned(entry)

    def references(self, entry: Entry[K, M, S, W]) -> int:
        """Return how many leases a device has, those of what depends on it included."""
        # A lease whose release was refused is still held.
        return len(entry.holders) + sum(not self._holds[ticket].abandoned for ticket in entry.owed)

    def is_orphaned(self, entry: Entry[K, M, S, W]) -> bool:
        """Return whether a device is an orphan, or has a part that is one."""
        return any(self._holds[ticket].is_orphan for ticket in entry.owed)

    def owns(self, hold: Hold[object]) -> bool:
        """Return whether a hold is at a ticket of its ledger."""
        return self._holds.get(hold.ticket) is hold

    def claims_of(self, ticket: Ticket[K, M, S, W], *, if_unwanted: bool = False) -> set[Hashable]:
        """Return all that a ticket occupies, and what its device is a part of.

        :param if_unwanted: also what it occupies only if no other ticket wants the device.
        """
        claims = {*self.claims(ticket)}
        if if_unwanted or not ticket.entry.wanted:
            claims.add((self, ticket.key))
        parent = self.ledger.parents.get(ticket.key)
        if parent is not None and self.part_of_parent:
            claims |= parent.driver.claims_of(parent.ticket, if_unwanted=if_unwanted)
        return claims

    async def clear(self, key: K | None, *claims: Hashable) -> None:
        """Try again to remove the orphans that occupy what an attachment wants.

        :raises OrphanError: that was refused, or its outcome is unknown.
        """
        wanted = {(self, key), *claims}
        for hold in self.link.left.at(wanted):
            in_the_way = hold.is_orphan or hold.state is HoldState.RELEASING
            if in_the_way and not wanted.isdisjoint(hold.driver.claims_of(hold.ticket)):
                what, where = hold.describe()
                hold.abandon()
                try:
                    await hold.wait_released()
                except UnknownOutcomeError as error:
                    raise OrphanError(
                        f"nothing was attached: whether {what} is still at {where} is unknown, since the "
                        f"removal of that orphan was not answered; see vm.quarantined: {error}"
                    ) from error
                except UVMError as error:
                    raise OrphanError(
                        f"nothing was attached: {what} is still at {where}, an orphan whose removal failed "
                        f"again; see vm.orphans: {error}"
                    ) from error

    # What the ledger decided.

    def _settle(self, change: Change[K, M, S, W, Hold[object]]) -> None:
        heirs = list(change.parents)
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
            if (stay := self._stays.get(change.operation.entry)) is not None:
                stay.refusal = None
            self.link.work.begin()
            self._enter(change.operation)
        for ticket in change.granted:
            hold = self._holds[ticket]
            hold.stay = self._stay(ticket)
            hold.grant()

    def _enter(self, operation: Operation[K, M, S, W]) -> None:
        """Start an operation when its turn comes; a removal not before what uses its device has ended."""
        users = self._users(operation.entry) if operation.kind is REMOVE else []
        self.link.in_flight.begin(operation.entry, self._used_paths)
        if operation.kind is ADD:
            self.link.occupied.enter(operation.entry, self._guest_paths)
        if users and self.link.tasks is not None:
            self.link.tasks.start_soon(self._enter_unused, operation, users)
        else:
            self.lane.enter(bound(self._start, operation))

    async def _enter_unused(self, operation: Operation[K, M, S, W], users: list[Flag]) -> None:
        for ended in users:
            await ended.wait()
        self.lane.enter(partial(self._start, operation))

    def _users(self, entry: Entry[K, M, S, W]) -> list[Flag]:
        """Return, for all in flight that uses a guest path of a device, what its end sets."""
        paths = self._guest_paths(entry)
        if not paths:
            return []
        return self.link.in_flight.users(paths, entry.number) + self.link.states.users(paths)

    def _guest_paths(self, entry: Entry[K, M, S, W]) -> set[str]:
        """Return the keys of the guest paths that a device occupies."""
        claims: set[Any] = {claim for ticket in entry.tickets for claim in self.claims(ticket)}
        return {key for place, key in claims if place == "guest"}

    def _used_paths(self, entry: Entry[K, M, S, W]) -> set[str]:
        """Return the keys of the guest paths that a device occupies, and of what it is made of."""
        return self._guest_paths(entry).union(*map(self.uses, entry.tickets))

    def _start(self, operation: Operation[K, M, S, W]) -> None:
        """Have a task carry out an operation, once that has what it must have to itself."""
        # Once the VM has exited, the operation is void, and its slot unknown.
        gate = None if self.link.exited.is_set() else self.ledger.device.gate(operation)
        if gate is not None:
            if gate in self._gates:
                self._gates[gate].append(operation)
                return
            self._gates[gate] = deque([operation])
        if self.link.following is not None:
            self.link.following.append((self, operation, gate))
        elif self.link.tasks is not None:
            self.link.tasks.start_soon(carry_out, self, operation, gate)

    def open_gate(self, gate: Hashable | None, operation: Operation[K, M, S, W]) -> None:
        """Start those that wait for what an operation had to itself, up to one that takes that again."""
        queue = self._gates.get(gate)
        if queue is None or queue[0] is not operation:
            return
        del self._gates[gate]
        queue.popleft()
        while queue and gate not in self._gates:
            self._start(queue.popleft())
        if queue:
            queue.extendleft(self._gates[gate])
            self._gates[gate] = queue

    def _finish(
        self, ticket: Ticket[K, M, S, W], error: BaseException | None, heirs: list[Hold[object]]
    ) -> None:
        """Settle the hold of a ticket; one that depended on another goes on with the other's ticket."""
        owed = ticket.state is OWED
        hold = self._holds[ticket] if owed else self._holds.pop(ticket, None)
        if hold is None:
            return
        if error is not None:
            if hold.state is not HoldState.WAITING:
                what, where = self.ledger.device.describe(ticket.key, ticket.entry.slot, ticket.member)
                # What was withheld may be attached at another slot now.
                released = f"{what} at {where}" if owed else what
                _log.warning(
                    self.link.vm_id,
                    "releasing %s failed: %s",
                    released,
                    error,
                    operation="detach",
                    device=what,
                    outcome="refused" if is_refusal(error) and not ticket.entry.remaining else "unknown",
                )
            hold.error = error if hold.error is None else UndoFailedError.of(hold.error, error)
        elif hold.state is HoldState.OWED:
            # Another caller's acquire finished the removal that was refused.
            hold.error = None
        if heirs and not owed:
            hold.inherit(heirs.pop(0))
        else:
            hold.settle(HoldState.OWED if owed else HoldState.ENDED)

    def _stay(self, ticket: Ticket[K, M, S, W]) -> Stay:
        """Return the stay of the device that a ticket holds."""
        stay = self._stays.get(ticket.entry)
        if stay is None:
            parent = self.ledger.parents.get(ticket.key) if self.part_of_parent else None
            below = None if parent is None or parent.stay is None else (parent.stay, parent.ticket.member)
            stay = self._stays[ticket.entry] = Stay(self, ticket.entry, below)
        return stay

    def _note(self, operation: Operation[K, M, S, W], outcome: Outcome) -> None:
        """Note what an operation that has ended means for the stay of its device."""
        stay = self._stays.get(operation.entry)
        if stay is None or operation.void or operation.kind is ADD:
            return
        error = None if isinstance(outcome, Ok) else outcome.error
        if operation.kind is REMOVE and not isinstance(outcome, Refused):
            del self._stays[operation.entry]
            stay.end(error)
        else:
            stay.change(error if operation.releasers else None)

    def _report(self, withheld: Quarantined[K, S]) -> None:
        value: Any = withheld.value
        what, where = self.ledger.device.describe(withheld.key, withheld.slot, value)
        stuck = StuckDevice(what, where, str(withheld.cause), datetime.now(UTC))
        self.link.quarantined.append((withheld, stuck))
        _log.warning(
            self.link.vm_id,
            "%s of %s at %s: the outcome is unknown, so the slot is withheld: %s",
            withheld.operation.value,
            what,
            where,
            withheld.cause,
            operation=_VERBS[withheld.operation],
            device=what,
            outcome="unknown",
        )

    def _describe(self, entry: Entry[K, M, S, W]) -> str:
        """Name a device, for the log and for spans."""
        values = (entry.applied, *(ticket.member for ticket in entry.tickets))
        value: Any = next((each for each in values if each is not None), None)
        return self.ledger.device.describe(entry.key, entry.slot, value)[0] if value is not None else ""

    # Carrying out.

    async def in_turn(self, operation: Operation[K, M, S, W], gate: Hashable | None) -> Outcome:
        """Carry out an operation that has its turn, begin the next one, and revoke what is not needed."""
        what = Observed(
            Door.DEVICE, self.link.vm_id, _VERBS[operation.kind], partial(self._describe, operation.entry)
        )
        try:
            outcome = await observe(what, partial(self._carry_out, operation), _judged)
        finally:
            self.lane.leave()
        if (need := self._needed_until(operation, outcome)) is not None:
            # A revocation holds up this operation alone.
            self.open_gate(gate, operation)
            await need.leave()
        return outcome

    def _needed_until(self, operation: Operation[K, M, S, W], outcome: Outcome) -> Need | None:
        """Return what a device needed that is known to be gone; of what is quarantined it is kept."""
        if operation.void or operation.kind is UPDATE or (operation.kind is ADD and isinstance(outcome, Ok)):
            return None
        if isinstance(outcome, Refused) and (operation.kind is REMOVE or outcome.remaining):
            return None
        need = self._needs.pop(operation.entry, None)
        return None if isinstance(outcome, Unknown) else need

    def end(self, operation: Operation[K, M, S, W], outcome: Outcome) -> None:
        """Enter the outcome of an operation, and begin what follows of it."""
        entry = operation.entry
        change = self.ledger.done(operation, outcome)
        self._note(operation, outcome)
        freed = self.link.occupied.leave(entry) if entry.applied is None else ()
        self._settle(change)
        if entry.operation is None:
            self.link.in_flight.end(entry)
        if freed:
            self.link.states.unmounted(freed)

    async def _carry_out(self, operation: Operation[K, M, S, W]) -> Outcome:
        done: list[Step] = []
        try:
            steps = self.ledger.begin(operation)
            if operation.kind is ADD and (need := self._need(operation)):
                await self.link.call(need.take())
                self._needs[operation.entry] = need
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

    def _need(self, operation: Operation[K, M, S, W]) -> Need | None:
        """Return the access that the device of an ADD needs."""
        needs = (self._holds[ticket].need for ticket in operation.serves)
        return next(filter(None, needs), None)

    async def _undo(self, done: list[Step], error: Exception) -> Outcome:
        undo = [step.undo for step in reversed(done) if step.undo is not None]
        for number, step in enumerate(undo):
            try:
                await self.link.revoke(step)
            except Exception as undo_error:
                failure = UndoFailedError.of(error, undo_error)
                return Refused(failure, tuple(undo[number:])) if is_refusal(undo_error) else Unknown(failure)
        return Refused(error)


async def carry_out(
    driver: Driver[Any, Any, Any, Any], operation: Operation[Any, Any, Any, Any], gate: Hashable | None
) -> None:
    """Carry out an operation, and what follows of its end, such as the detach of a disk of its unmount.

    :param gate: what the operation has to itself.
    """
    link = driver.link
    while True:
        try:
            outcome = await driver.in_turn(operation, gate)
            link.following = []
            driver.end(operation, outcome)
            driver.open_gate(gate, operation)
        finally:
            following, link.following = link.following, None
            link.work.end()
        if not following or link.tasks is None:
            return
        for each in following[1:]:
            link.tasks.start_soon(carry_out, *each)
        driver, operation, gate = following[0]


def _judged(outcome: Outcome) -> tuple[Ended, BaseException | None]:
    """Return how an operation ended, and what it failed with."""
    if isinstance(outcome, Ok):
        return "ok", None
    refused = isinstance(outcome, Refused) and not outcome.remaining
    return "refused" if refused else "unknown", outcome.error


def _as_unknown(error: Exception) -> UVMError:
    if isinstance(error, UVMError):
        return error
    unknown = UnknownOutcomeError(f"whether it was done is unknown: {error!r}")
    unknown.__cause__ = error
    return unknown
