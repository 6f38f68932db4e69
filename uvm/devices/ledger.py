"""Reference counts of devices: what is wanted, what is applied, and which operation is next.

Theory of operation
-------------------

A :class:`Ledger` is a table. Per key it holds what is **applied** on the host and in the guest, the tickets
that **want** it (holders, and waiters until it is applied), and at most one **operation** in flight. Four
events change it::

    acquire(key, member)    one more ticket wants the key
    drop(ticket)            a ticket no longer does; legal in every state
    done(operation, how)    the operation ended: Ok, Refused or Unknown
    gone()                  the VM exited: nothing is applied any more

After every event one function, ``_plan``, compares what is wanted with what is applied and decides the
next operation on that key: ADD, UPDATE, REMOVE or none. It is decided nowhere else.
The event returns a :class:`Change`: the tickets granted, released or failed, what was quarantined, and the
operation that the caller is to carry out. The caller asks :meth:`Ledger.begin` for its steps when it
starts on it (which may be later, if the host takes one at a time): only then is it fixed
what the operation will do, so that whatever was asked for in between rides along.

A :class:`Device` supplies what differs: the slot (``place``, ``vacate``), what the host should have for the
tickets that want it (``wanted``), and the ``steps`` of an operation.

States of a key::

                    acquire                   Ok                    acquire/drop
        ABSENT ---------------> ADDING ---------------> APPLIED ----------------> UPDATING
          ^  ^      Refused      | |                     ^   |  <----------------   |
          |  +-------------------+ |             Refused |   | last drop  Ok, Refused, Unknown
          |              |         | Unknown             |   v
          |              |         +----> QUARANTINED <-- REMOVING <------------------+
          |              |                       Unknown   |  |   some steps           |  drop, acquire
          +--------------)---------------------------------+  +---------> PARTIAL -----+
                         |     Ok                                           ^
                         +--------------------------------------------------+
                                             the undo too

- **Refused** means that nothing changed (the caller undid what had been done). A refused ADD fails every
  waiter. A refused REMOVE leaves the device with the ticket that released it, which may be dropped again.
- **PARTIAL** is a device of which some steps stay applied: a removal stopped between its steps (the guest
  removed the device and the host refused), or an ADD was refused and its undo as well. The outcome says which
  steps remain until it is gone; undo is not the mirror of add, so the ledger keeps them. No ticket is granted
  the device; a further drop by its owner, or any acquire, goes on from the step that failed.
- What is attached and wanted by no ticket, and is not retained, has an **owner**: the ``OWED`` ticket of the
  one that dropped it last, or of a waiter of the ADD whose undo was refused. A waiter that is dropped while
  its ADD is in flight stays (``LEAVING``) until that has ended, for the same reason.
- **Unknown**: it may have happened or not. The slot is withheld (QUARANTINED) and the key leaves the table:
  another acquire gets another slot, and the host may refuse it. An UPDATE of unknown outcome withholds no
  slot; it makes the entry *doubtful*, and the next update states the whole value again.
- An acquire while REMOVING waits and then adds anew, unless the removal had not begun: then it is void, and
  the tickets that were releasing end when another one is granted, or go with the next removal.
- A device that no ticket wants when its ADD ends is removed.
- ``gone`` leads from every state to ABSENT.

Besides its key, an entry has **names**: whatever its tickets were asked for as. Look-ups by name
(:meth:`Ledger.named`) answer from what is applied. A name is entered with the grant of a ticket, and leaves
with what is applied, not with the ticket.

This module is pure: no I/O, no clock, no randomness, no async.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Generic

from attrs import evolve

from uvm.devices.base import (
    ADD,
    APPLIED,
    ENDED,
    HELD,
    LEAVING,
    OWED,
    PARTIAL,
    REMOVE,
    REMOVING,
    UPDATE,
    WAITING,
    Change,
    Device,
    Entry,
    EntryState,
    K,
    LedgerState,
    M,
    Ok,
    Operation,
    Outcome,
    P,
    Quarantined,
    Refused,
    S,
    Step,
    Ticket,
    Unknown,
    W,
)
from uvm.errors import OptionsError, UnknownOutcomeError, UVMError, VMExitedError


class Ledger(Generic[K, M, S, W, P]):
    """A reference-counted table of one kind of device. See the module's theory of operation.

    ``P`` is what an entry depends on, such as a hold on an entry of the ledger below: opaque here, kept with
    the entry and returned in :attr:`Change.parents`.
    """

    __slots__ = ("_closed", "_entries", "_named", "device", "parents", "quarantined")

    def __init__(self, device: Device[K, M, S, W]) -> None:
        self.device: Device[K, M, S, W] = device
        self._entries: dict[K, Entry[K, M, S, W]] = {}
        #: By name, the newest last: entries, each with the own name of what was meant.
        self._named: dict[Hashable, dict[tuple[Entry[K, M, S, W], Hashable], None]] = {}
        self.parents: dict[K, P] = {}
        self.quarantined: list[Quarantined[K, S]] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry[K, M, S, W]]:
        return iter(self._entries.values())

    def get(self, key: K) -> Entry[K, M, S, W] | None:
        """Look up a key."""
        return self._entries.get(key)

    def named(self, name: Hashable) -> list[tuple[Entry[K, M, S, W], Hashable]]:
        """Look up what is applied and was asked for by a name; of each, return the entry and its own name.

        The newest comes first, what is being removed last.
        """
        known = reversed(self._named.get(name, {}))
        found = [(entry, own) for entry, own in known if self._covers(entry, (name, own))]
        return sorted(found, key=lambda each: each[0].state in (REMOVING, PARTIAL))

    def retains(self, entry: Entry[K, M, S, W]) -> bool:
        """Return whether what is applied stays without tickets."""
        return self.device.wanted(Entry(entry.key, entry.slot, entry.applied)) is not None

    # Events.

    def acquire(
        self, key: K, member: M, parent: P | None = None, names: tuple[Hashable, ...] = ()
    ) -> tuple[Ticket[K, M, S, W], Change[K, M, S, W, P]]:
        """Return a new ticket for a key.

        :param parent: what the entry depends on. The ledger keeps it and returns it in
            :attr:`Change.parents` when it is no longer needed.
        :param names: what :meth:`named` finds it by, from the grant on until its entry ends.
        :raises NoSpaceError: there is no slot; nothing has changed, and the parent is still the caller's.
        :raises VMExitedError: after :meth:`gone`.
        """
        if self._closed:
            raise self._exited()
        change: Change[K, M, S, W, P] = Change()
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(key, self.device.place(key, member))
            if parent is not None:
                self.parents[key] = parent
        elif parent is not None:
            change.parents += (parent,)
        ticket = Ticket(entry, member, WAITING, names)
        entry.waiters[ticket] = None
        if entry.operation is None:
            self._plan(entry, change)
        return ticket, change

    def adopt(
        self,
        key: K,
        member: M,
        applied: W,
        parent: P | None = None,
        names: tuple[Hashable, ...] = (),
        slot: S | None = None,
    ) -> Ticket[K, M, S, W]:
        """Enter what is applied already, such as a device that the VM boots with; return its holder's ticket.

        :param parent: what the entry depends on, as well as `names`: see :meth:`acquire`.
        :param slot: where it is; by default the device chooses.
        :raises OptionsError: the key is in the table already.
        :raises NoSpaceError: there is no slot. In both cases nothing has changed.
        :raises VMExitedError: after :meth:`gone`.
        """
        if self._closed:
            raise self._exited()
        if key in self._entries:
            raise OptionsError(f"{key} cannot be entered as attached: it is in use already")
        if slot is None:
            slot = self.device.place(key, member)
        else:
            self.device.occupy(slot)
        entry = self._entries[key] = Entry(key, slot, applied)
        if parent is not None:
            self.parents[key] = parent
        ticket = Ticket(entry, member, HELD, names)
        entry.holders[ticket] = None
        self._name(entry, ticket)
        return ticket

    def drop(self, ticket: Ticket[K, M, S, W]) -> Change[K, M, S, W, P]:
        """Release a held ticket, or abandon a waiting one. Legal in every state."""
        change: Change[K, M, S, W, P] = Change()
        entry = ticket.entry
        if ticket.state is WAITING:
            begun = entry.waiters.pop(ticket)
            # One that an operation in flight is for may have to own what that leaves.
            if begun is None or begun is not entry.operation or begun.kind is REMOVE:
                change.release((ticket,))
                return change
        elif ticket.state is HELD:
            del entry.holders[ticket]
        elif ticket.state is OWED:
            del entry.owed[ticket]
        else:
            return change
        ticket.state = LEAVING
        entry.leaving[ticket] = None
        if entry.operation is None:
            self._plan(entry, change)
        return change

    def begin(self, operation: Operation[K, M, S, W]) -> tuple[Step, ...]:
        """Fix what an operation will do and return its steps; none if it has become void."""
        entry = operation.entry
        if entry.operation is not operation:
            return ()
        wanted = self.device.wanted(entry)
        if self._is_void(operation, wanted):
            operation.void = True
            return ()
        operation.void = False
        operation.target = None if operation.kind is REMOVE else wanted
        if entry.waiters:
            operation.serves = tuple(entry.waiters)
            entry.waiters = dict.fromkeys(entry.waiters, operation)
        if entry.leaving and (operation.kind is REMOVE or self.device.narrows):
            operation.releasers += _emptied(entry.leaving)
        # A device may note the operation with its steps, whether or not they remain.
        steps = self.device.steps(operation)
        return entry.remaining or steps

    @staticmethod
    def _is_void(operation: Operation[K, M, S, W], wanted: W | None) -> bool:
        """Return whether nothing is left to do; the plan that follows its end decides what is next."""
        entry = operation.entry
        if operation.kind is REMOVE:
            return wanted is not None and not entry.remaining
        return wanted is None or (wanted == entry.applied and not entry.doubtful)

    def done(self, operation: Operation[K, M, S, W], outcome: Outcome) -> Change[K, M, S, W, P]:
        """Apply the outcome of an operation.

        A second outcome of the same operation is ignored, and any outcome after :meth:`gone`. The outcome of
        a void one, or of one that was not begun, means nothing, since nothing was sent.
        """
        change: Change[K, M, S, W, P] = Change()
        entry = operation.entry
        if entry.operation is not operation:
            return change
        entry.operation = None
        if operation.void:
            # Nothing was sent, so the tickets that were releasing go with what comes next.
            self._leave_first(operation)
            self._plan(entry, change)
        elif isinstance(outcome, Ok):
            self._carried_out(operation, change)
        elif operation.kind is UPDATE:
            self._not_updated(operation, outcome, change)
        elif isinstance(outcome, Unknown):
            self._quarantine(operation, outcome.error, change)
        elif operation.kind is ADD:
            self._not_added(operation, outcome, change)
        else:
            self._not_removed(operation, outcome, change)
        self.device.ended(entry)
        return change

    def gone(self) -> Change[K, M, S, W, P]:
        """End every ticket, void every operation and free every slot, since the VM exited.

        Waiters are in :attr:`Change.failed`, releasing tickets in :attr:`Change.released`. Held and owed
        tickets are in neither, and parents end with their own ledger.
        """
        change: Change[K, M, S, W, P] = Change()
        self._closed = True
        exited = VMExitedError("the VM exited")
        for entry in self._entries.values():
            if entry.operation is not None:
                change.release(entry.operation.releasers)
            change.release(_emptied(entry.leaving))
            change.fail(entry.waiters, exited)
            for ticket in _emptied(entry.holders) + _emptied(entry.owed):
                ticket.state = ENDED
            entry.operation = entry.applied = None
            self.device.vacate(entry.key, entry.slot)
        for held in self.quarantined:
            self.device.vacate(held.key, held.slot)
        self._entries.clear()
        self._named.clear()
        self.parents.clear()
        self.quarantined.clear()
        return change

    @staticmethod
    def _exited() -> VMExitedError:
        return VMExitedError("the VM has exited: nothing can be attached any more")

    # The one decision, and what leads to it.

    def _plan(self, entry: Entry[K, M, S, W], change: Change[K, M, S, W, P]) -> None:
        """Compare wanted with applied; grant what can be granted and start the next operation, if any."""
        wanted = self.device.wanted(entry)
        if entry.applied is None:
            if wanted is None:
                self._detached(entry, change)
                return
            kind = ADD
        elif entry.remaining:
            kind = REMOVE
        else:
            # An update that may have revoked has to be settled before a ticket is granted what it left.
            if entry.waiters and not (entry.doubtful and self.device.narrows):
                self._grant(entry, change)
            restated = entry.waiters or (entry.leaving and self.device.narrows)
            if wanted == entry.applied and not (entry.doubtful and restated):
                if entry.leaving:
                    change.release(_emptied(entry.leaving))
                return
            kind = REMOVE if wanted is None else UPDATE
        operation = entry.operation = change.operation = Operation(kind, entry)
        if entry.leaving:
            leaving = _emptied(entry.leaving)
            # If a waiter fails, what is left without holders needs an owner.
            if kind is REMOVE or self.device.narrows or not entry.holders:
                operation.releasers = leaving
            else:
                change.release(leaving)

    def _carried_out(self, operation: Operation[K, M, S, W], change: Change[K, M, S, W, P]) -> None:
        entry = operation.entry
        entry.applied = operation.target
        entry.doubtful = False
        if operation.releasers:
            self._revoked(operation, change)
        if operation.kind is not REMOVE:
            if entry.leaving:
                self._name_all(entry, entry.leaving)
            if self.device.narrows:
                self._narrowed(entry, change)
            self._plan(entry, change)
            return
        entry.remaining = ()
        if entry.names:
            self._unname(entry, [*entry.names])
        if entry.owed:
            change.release(_emptied(entry.owed))
        self._detached(entry, change)

    def _revoked(self, operation: Operation[K, M, S, W], change: Change[K, M, S, W, P]) -> None:
        """Release the tickets of an operation; those of an UPDATE that adds are left to the plan."""
        if operation.kind is REMOVE or self.device.narrows:
            change.release(operation.releasers)
        else:
            self._leave_first(operation)

    @staticmethod
    def _leave_first(operation: Operation[K, M, S, W]) -> None:
        """Have the tickets of an operation leave before those that left later."""
        entry = operation.entry
        entry.leaving = dict.fromkeys((*operation.releasers, *entry.leaving))

    def _narrowed(self, entry: Entry[K, M, S, W], change: Change[K, M, S, W, P]) -> None:
        """Forget what an UPDATE revoked, and release the tickets that owed it."""
        self._unname(entry, [each for each in entry.names if not self._covers(entry, each)])
        applied = entry.applied
        assert applied is not None
        revoked = [ticket for ticket in entry.owed if not self.device.covers(applied, ticket.member)]
        for ticket in revoked:
            del entry.owed[ticket]
        change.release(revoked)

    def _not_added(
        self, operation: Operation[K, M, S, W], outcome: Refused, change: Change[K, M, S, W, P]
    ) -> None:
        entry = operation.entry
        if outcome.remaining:
            entry.applied, entry.remaining = operation.target, outcome.remaining
            self._name_all(entry, operation.serves)
            owner = operation.serves[0]
            entry.owed = {owner: None}
            entry.leaving.pop(owner, None)
            change.fail(entry.owed, outcome.error, OWED)
        change.fail(entry.waiters, outcome.error)
        if outcome.remaining:
            change.release(_emptied(entry.leaving))
        else:
            self._detached(entry, change)

    def _not_updated(
        self, operation: Operation[K, M, S, W], outcome: Refused | Unknown, change: Change[K, M, S, W, P]
    ) -> None:
        entry = operation.entry
        ended = tuple(ticket for ticket in operation.serves if ticket.state is WAITING)
        if isinstance(outcome, Unknown) or outcome.remaining:
            entry.doubtful = True
        if not self.device.narrows:
            self._revoked(operation, change)
        elif isinstance(outcome, Unknown):
            ended = operation.releasers + ended
        else:
            change.fail(operation.releasers, outcome.error, OWED)
            entry.owed.update(dict.fromkeys(operation.releasers))
        if ended and not (entry.holders or entry.owed or entry.leaving or self.retains(entry)):
            # The removal that follows may be refused; what stays then has an owner.
            entry.owed, ended = {ended[0]: None}, ended[1:]
            change.fail(entry.owed, outcome.error, OWED)
        change.fail(ended, outcome.error)
        # The same update is not tried again before the next event; a removal was not tried yet.
        if entry.waiters or entry.leaving or self.device.wanted(entry) is None:
            self._plan(entry, change)

    def _not_removed(
        self, operation: Operation[K, M, S, W], outcome: Refused, change: Change[K, M, S, W, P]
    ) -> None:
        entry = operation.entry
        entry.remaining = outcome.remaining or entry.remaining
        releasers = operation.releasers + _emptied(entry.leaving)
        change.fail(releasers, outcome.error, OWED)
        entry.owed.update(dict.fromkeys(releasers))
        if entry.remaining:
            change.fail(entry.waiters, outcome.error)
        # Not tried again before the next event.
        if entry.waiters:
            self._plan(entry, change)

    def _quarantine(
        self, operation: Operation[K, M, S, W], error: BaseException, change: Change[K, M, S, W, P]
    ) -> None:
        entry = operation.entry
        value = operation.target if operation.kind is ADD else entry.applied
        withheld = Quarantined(entry.key, entry.slot, operation.kind, value, error)
        self.quarantined.append(withheld)
        change.quarantined += (withheld,)
        change.fail(operation.releasers + _emptied(entry.leaving) + _emptied(entry.owed), error)
        if operation.kind is ADD:
            change.fail(entry.waiters, error)
        self._unname(entry, [*entry.names])
        entry.applied, entry.remaining, entry.doubtful = None, (), False
        self.parents.pop(entry.key, None)
        self._place_again(entry, change)

    def _detached(self, entry: Entry[K, M, S, W], change: Change[K, M, S, W, P]) -> None:
        """Free the slot of what is not applied, for others or for the waiters of the entry."""
        if entry.leaving:
            change.release(_emptied(entry.leaving))
        self.device.vacate(entry.key, entry.slot)
        self._place_again(entry, change)

    def _place_again(self, entry: Entry[K, M, S, W], change: Change[K, M, S, W, P]) -> None:
        """Place the waiters of an entry at a fresh slot; forget the entry without any."""
        if entry.waiters:
            try:
                entry.slot = self.device.place(entry.key, next(iter(entry.waiters)).member)
            except UVMError as error:
                change.fail(entry.waiters, error)
            else:
                self._plan(entry, change)
                return
        del self._entries[entry.key]
        if entry.key in self.parents:
            change.parents += (self.parents.pop(entry.key),)

    # Names.

    def _covers(self, entry: Entry[K, M, S, W], name: tuple[Hashable, Hashable]) -> bool:
        return entry.applied is not None and self.device.covers(entry.applied, entry.names[name])

    def _name(self, entry: Entry[K, M, S, W], ticket: Ticket[K, M, S, W]) -> None:
        """File an entry under the names of a ticket."""
        for name in ticket.names:
            own = ticket.names[-1]
            named = self._named.setdefault(name, {})
            named.pop((entry, own), None)
            named[entry, own] = None
            entry.names[name, own] = ticket.member

    def _name_all(self, entry: Entry[K, M, S, W], tickets: Iterable[Ticket[K, M, S, W]]) -> None:
        """File what is attached under the names of tickets that are not granted it."""
        for ticket in tickets:
            if entry.applied is not None and self.device.covers(entry.applied, ticket.member):
                self._name(entry, ticket)

    def _unname(self, entry: Entry[K, M, S, W], names: Iterable[tuple[Hashable, Hashable]]) -> None:
        for name, own in names:
            del entry.names[name, own], self._named[name][entry, own]
            if not self._named[name]:
                del self._named[name]

    # Ends of tickets.

    def _grant(self, entry: Entry[K, M, S, W], change: Change[K, M, S, W, P]) -> None:
        applied = entry.applied
        assert applied is not None
        granted = [ticket for ticket in entry.waiters if self.device.covers(applied, ticket.member)]
        for ticket in granted:
            del entry.waiters[ticket]
            entry.holders[ticket] = None
            ticket.state = HELD
            self._name(entry, ticket)
        change.granted += tuple(granted)

    # Values.

    def dump(self) -> LedgerState[K, M, S, W]:
        """Return the whole state as a value."""
        return LedgerState(
            tuple(
                EntryState(
                    entry.key,
                    entry.slot,
                    entry.state,
                    entry.applied,
                    tuple(entry.members()),
                    entry.remaining,
                    entry.doubtful,
                    tuple(ticket.member for ticket in entry.owed),
                    tuple(entry.names.items()),
                )
                for entry in self._entries.values()
            ),
            # An error holds frames, and not each can be pickled.
            tuple(evolve(held, cause=UnknownOutcomeError(str(held.cause))) for held in self.quarantined),
            self.device.dump(),
        )

    def restore(
        self, state: LedgerState[K, M, S, W], parents: Mapping[K, P] | None = None
    ) -> list[Ticket[K, M, S, W]]:
        """Load what :meth:`dump` returned into an empty ledger.

        Returns the tickets, in its order: per key those of the holders, then the ``OWED`` ones.

        :param parents: per key, what its entry depends on.
        :raises OptionsError: the ledger is in use, or the state has operations in flight.
        :raises VMExitedError: after :meth:`gone`.
        """
        if self._closed:
            raise self._exited()
        busy = [e.key for e in state.entries if e.state not in (APPLIED, PARTIAL)]
        if busy or self._entries or self.quarantined:
            raise OptionsError(
                f"only a quiet state can be restored, into an empty ledger; in flight: {busy}, "
                f"present: {list(self._entries)}, withheld: {[held.slot for held in self.quarantined]}"
            )
        self.device.load(state.allocator)
        self.quarantined = [*state.quarantined]
        self.parents = dict(parents or {})
        return [ticket for saved in state.entries for ticket in self._restore(saved)]

    def _restore(self, saved: EntryState[K, M, S, W]) -> Iterator[Ticket[K, M, S, W]]:
        entry: Entry[K, M, S, W] = Entry(saved.key, saved.slot, saved.applied)
        entry.remaining, entry.doubtful = saved.remaining, saved.doubtful
        self._entries[saved.key] = entry
        entry.holders = {Ticket(entry, member, HELD): None for member in saved.members}
        entry.owed = {Ticket(entry, member, OWED): None for member in saved.owed}
        entry.names = dict(saved.names)
        for name, own in entry.names:
            self._named.setdefault(name, {})[entry, own] = None
        yield from entry.holders
        yield from entry.owed


def _emptied(tickets: dict[Ticket[K, M, S, W], None]) -> tuple[Ticket[K, M, S, W], ...]:
    """Return some tickets of an entry, which they are not any more."""
    emptied = tuple(tickets)
    tickets.clear()
    return emptied
