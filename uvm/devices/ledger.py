"""The life of every device: who wants it, what is applied, and what to do next.

Theory of operation
-------------------

A :class:`Ledger` is a table. Per key it knows what has been **applied** on the host and in the guest, who
**wants** it (tickets: holders, who have it, and waiters, who wait for it), and at most one **operation** in
flight. Four events move it::

    acquire(key, member)    somebody wants it
    drop(ticket)            somebody no longer does; legal in every state
    done(operation, how)    the operation ended: Ok, Refused or Unknown
    gone()                  the VM exited: nothing is applied any more

After every event one function, ``_plan``, compares what is wanted with what is applied and decides the
next operation on that key: ADD, UPDATE, REMOVE or none. There is no other place where that is decided.
The event returns a :class:`Change`: who was granted, released or failed, what was quarantined, and the
operation that the caller is to carry out. The caller asks :meth:`Ledger.begin` for its steps when it
really starts on it (which may be later, where the host takes one at a time): only then is it fixed
what the operation will do, so that whatever was asked for in between rides along.

What a device is like, the ledger learns from a :class:`Device`: where it goes (``place``, ``vacate``),
what is wanted of the host given those who want it (``wanted``), and the ``steps`` of an operation.

States of a key::

                    acquire                   Ok                    acquire/drop
        ABSENT ---------------> ADDING ---------------> APPLIED ----------------> UPDATING
          ^  ^      Refused       |                      ^   |  <----------------   |
          |  +--------------------+              Refused |   | last drop  Ok, Refused, Unknown
          |                       | Unknown              |   v
          |                       +-----> QUARANTINED <-- REMOVING <----------+
          |                                      Unknown   |  |   half way     |  drop, acquire
          +------------------------------------------------+  +---------> PARTIAL
                               Ok

- **Refused** means that nothing changed (the caller undid what had been done). A refused ADD fails every
  waiter. A refused REMOVE leaves the device with the one who released it, who may drop its ticket again;
  where that was nobody (the waiters of its ADD had given up), with whoever acquires it next.
- **PARTIAL** is a removal that stopped half way: the guest let go and the host refused. Nobody is given
  the device; a further drop by its owner, or an acquire by anybody, goes on from the step that failed.
- **Unknown** means that nobody can tell. The slot is withheld (QUARANTINED) and the key leaves the table:
  who wants it again gets another slot, and the host has the last word. An UPDATE of unknown outcome takes
  no slot away; it makes the entry *doubtful*, and the next update states the whole value again.
- An acquire while REMOVING waits and then adds anew, unless the removal had not begun: then it is void, and
  those who were releasing are done when somebody else has the device, or go with the next removal.
- An ADD that ends with nobody wanting is removed.

This module is pure: no I/O, no clock, no randomness, no async.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from uvm.devices.base import (
    ADD,
    APPLIED,
    ENDED,
    HELD,
    LEAVING,
    OWED,
    PARTIAL,
    REMOVE,
    STATE_NAMES,
    UPDATE,
    WAITING,
    Change,
    Device,
    Entry,
    EntrySnapshot,
    LedgerSnapshot,
    Ok,
    Operation,
    Outcome,
    Quarantined,
    Refused,
    Step,
    Ticket,
    Unknown,
)
from uvm.errors import OptionsError, UVMError, VMExitedError

__all__ = ["Ledger"]

K = TypeVar("K", bound=Hashable)
M = TypeVar("M")
S = TypeVar("S")
W = TypeVar("W")


class Ledger(Generic[K, M, S, W]):
    """A reference-counted table of one kind of device. See the module's theory of operation."""

    __slots__ = ("_closed", "_entries", "device", "quarantined")

    def __init__(self, device: Device[K, M, S, W]) -> None:
        self.device: Device[K, M, S, W] = device
        self._entries: dict[K, Entry[K, M, S, W]] = {}
        self.quarantined: list[Quarantined[K, S]] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry[K, M, S, W]]:
        return iter(self._entries.values())

    def get(self, key: K) -> Entry[K, M, S, W] | None:
        """Look up a key."""
        return self._entries.get(key)

    # Events.

    def acquire(self, key: K, member: M, parent: Any = None) -> tuple[Ticket[K, M], Change[K, M, S, W]]:
        """Somebody wants a key.

        :param parent: a ticket of the ledger below that this lives on. The ledger owns it from here: it
            comes back in :attr:`Change.parents` when it is no longer needed.
        :raises NoSpaceError: there is no slot; nothing has changed, and the parent is still the caller's.
        :raises VMExitedError: after :meth:`gone`.
        """
        self._check_open()
        change: Change[K, M, S, W] = Change()
        entry = self._entries.get(key)
        if entry is None:
            entry = Entry(key, self.device.place(key, member), parent)
            self._entries[key] = entry
        elif parent is not None:
            change.parents += (parent,)
        ticket = Ticket(entry, member)
        entry.waiters[ticket] = None
        if entry.operation is None:
            self._plan(entry, change)
        return ticket, change

    def adopt(self, key: K, member: M, applied: W) -> Ticket[K, M]:
        """Enter what is applied already, such as a device that the VM boots with; gives its holder's ticket.

        :raises OptionsError: the key is in the table already.
        :raises NoSpaceError: there is no slot. Either way nothing has changed.
        :raises VMExitedError: after :meth:`gone`.
        """
        self._check_open()
        if key in self._entries:
            raise OptionsError(f"{key} cannot be entered as attached: it is in use already")
        entry = self._entries[key] = Entry(key, self.device.place(key, member), applied=applied)
        ticket = Ticket(entry, member, HELD)
        entry.holders[ticket] = None
        return ticket

    def drop(self, ticket: Ticket[K, M]) -> Change[K, M, S, W]:
        """Somebody no longer wants it: a release, or a waiter that gives up. Legal in every state."""
        change: Change[K, M, S, W] = Change()
        entry = ticket.entry
        if ticket.state == WAITING:
            del entry.waiters[ticket]
            self._release((ticket,), change)
        elif ticket.state in (HELD, OWED):
            if ticket.state == HELD:
                del entry.holders[ticket]
            else:
                entry.owed = tuple(t for t in entry.owed if t is not ticket)
            ticket.state = LEAVING
            entry.leaving += (ticket,)
        else:
            return change
        if entry.operation is None:
            self._plan(entry, change)
        return change

    def begin(self, operation: Operation[K, M, S, W]) -> tuple[Step, ...]:
        """Fix what an operation will do, and give its steps; none where it has become void."""
        entry = operation.entry
        if entry.operation is not operation:
            return ()
        wanted = self.device.wanted(entry)
        if self._is_void(operation, wanted):
            operation.void = True
            return ()
        operation.target = None if operation.kind == REMOVE else wanted
        operation.serves = tuple(entry.waiters)
        if entry.leaving and (operation.kind == REMOVE or self.device.narrows):
            operation.releasers += entry.leaving
            entry.leaving = ()
        return self.device.steps(operation)[entry.progress :]

    @staticmethod
    def _is_void(operation: Operation[K, M, S, W], wanted: W | None) -> bool:
        """Whether there is nothing left to do; the plan that follows its end decides what is next."""
        entry = operation.entry
        if operation.kind == REMOVE:
            return wanted is not None and not entry.progress
        if wanted is None:
            return True
        return wanted == entry.applied and not entry.doubtful

    def done(self, operation: Operation[K, M, S, W], outcome: Outcome) -> Change[K, M, S, W]:
        """Tell how an operation that was begun ended.

        Ignored are a second end of the same operation and any end after :meth:`gone`. How a void one ended
        does not matter, since it had no steps.
        """
        change: Change[K, M, S, W] = Change()
        entry = operation.entry
        if entry.operation is not operation:
            return change
        entry.operation = None
        if operation.void:
            # Nothing was sent, so those who were releasing go with what comes next.
            entry.leaving = operation.releasers + entry.leaving
            self._plan(entry, change)
        elif isinstance(outcome, Ok):
            self._carried_out(operation, change)
        elif operation.kind == UPDATE:
            self._not_updated(operation, outcome, change)
        elif isinstance(outcome, Unknown):
            self._quarantine(operation, outcome.error, change)
        elif operation.kind == ADD:
            self._fail(tuple(entry.waiters), outcome.error, change)
            self._forget(entry, change)
        else:
            self._not_removed(operation, outcome, change)
        return change

    def gone(self) -> Change[K, M, S, W]:
        """The VM exited: every ticket ends, every operation is void, every slot is free.

        Waiters are in :attr:`Change.failed`; those who were releasing are in :attr:`Change.released`. Who
        held or was owed something is not told, and parents end with their own ledger.
        """
        change: Change[K, M, S, W] = Change()
        self._closed = True
        exited = VMExitedError("the VM exited")
        for entry in self._entries.values():
            releasing = entry.leaving + (entry.operation.releasers if entry.operation else ())
            self._fail(tuple(entry.waiters), exited, change)
            self._release(releasing, change)
            for ticket in (*entry.holders, *entry.owed):
                ticket.state = ENDED
            entry.holders.clear()
            entry.owed = entry.leaving = ()
            entry.operation = entry.applied = None
            self.device.vacate(entry.key, entry.slot)
        for held in self.quarantined:
            self.device.vacate(held.key, held.slot)
        self._entries.clear()
        self.quarantined.clear()
        return change

    def _check_open(self) -> None:
        if self._closed:
            raise VMExitedError("the VM has exited: nothing can be attached any more")

    # The one decision, and what leads to it.

    def _plan(self, entry: Entry[K, M, S, W], change: Change[K, M, S, W]) -> None:
        """Compare wanted with applied; grant what can be granted and start the next operation, if any."""
        wanted = self.device.wanted(entry)
        if entry.applied is None:
            if wanted is None:
                self._forget(entry, change)
                return
            kind = ADD
        elif entry.progress:
            kind = REMOVE
        else:
            # An update that may have taken away has to be settled before anybody is granted what it left.
            if entry.waiters and not (entry.doubtful and self.device.narrows):
                self._grant(entry, change)
            if wanted == entry.applied and not (entry.doubtful and entry.waiters):
                self._release(entry.leaving, change)
                entry.leaving = ()
                return
            kind = REMOVE if wanted is None else UPDATE
        operation = entry.operation = change.operation = Operation(kind, entry)
        if kind == REMOVE or self.device.narrows:
            operation.releasers = entry.leaving
        else:
            self._release(entry.leaving, change)
        entry.leaving = ()

    def _carried_out(self, operation: Operation[K, M, S, W], change: Change[K, M, S, W]) -> None:
        entry = operation.entry
        entry.applied = operation.target
        entry.doubtful = False
        self._release(operation.releasers, change)
        if operation.kind != REMOVE:
            self._plan(entry, change)
            return
        entry.progress = 0
        self._release(entry.owed, change)
        entry.owed = ()
        self._anew(entry, change)

    def _anew(self, entry: Entry[K, M, S, W], change: Change[K, M, S, W]) -> None:
        """What was there is gone: whoever waits gets a fresh entry at a fresh slot."""
        waiters = tuple(entry.waiters)
        if not waiters:
            self._forget(entry, change)
            return
        self._release(entry.leaving, change)
        entry.leaving = ()
        self.device.vacate(entry.key, entry.slot)
        self._place_again(entry, waiters, change)

    def _place_again(
        self, entry: Entry[K, M, S, W], waiters: tuple[Ticket[K, M], ...], change: Change[K, M, S, W]
    ) -> None:
        try:
            entry.slot = self.device.place(entry.key, waiters[0].member)
        except UVMError as error:
            self._fail(waiters, error, change)
            self._entries.pop(entry.key)
            if entry.parent is not None:
                change.parents += (entry.parent,)
            return
        self._plan(entry, change)

    def _not_updated(
        self, operation: Operation[K, M, S, W], outcome: Refused | Unknown, change: Change[K, M, S, W]
    ) -> None:
        entry = operation.entry
        self._fail([t for t in operation.serves if t.state == WAITING], outcome.error, change)
        if isinstance(outcome, Unknown):
            entry.doubtful = True
            self._end(operation.releasers, outcome.error, change)
        else:
            self._owe(operation, outcome.error, change)
        # The same update is not tried again before somebody asks; a removal was not tried yet.
        if entry.waiters or entry.leaving or self.device.wanted(entry) is None:
            self._plan(entry, change)

    def _not_removed(
        self, operation: Operation[K, M, S, W], outcome: Refused, change: Change[K, M, S, W]
    ) -> None:
        entry = operation.entry
        entry.progress += outcome.progress
        operation.releasers += entry.leaving
        entry.leaving = ()
        self._owe(operation, outcome.error, change)
        if entry.progress:
            self._fail(tuple(entry.waiters), outcome.error, change)
        # Not tried again before somebody asks.
        if entry.waiters:
            self._plan(entry, change)

    def _quarantine(
        self, operation: Operation[K, M, S, W], error: BaseException, change: Change[K, M, S, W]
    ) -> None:
        entry = operation.entry
        withheld = Quarantined(entry.key, entry.slot, operation.kind, error, entry.parent)
        self.quarantined.append(withheld)
        change.quarantined += (withheld,)
        self._end(operation.releasers + entry.leaving + entry.owed, error, change)
        waiters = tuple(entry.waiters)
        if operation.kind == ADD:
            self._fail(waiters, error, change)
            waiters = ()
        entry.owed = entry.leaving = ()
        entry.applied, entry.progress, entry.doubtful, entry.parent = None, 0, False, None
        if waiters:
            self._place_again(entry, waiters, change)
        else:
            del self._entries[entry.key]

    def _forget(self, entry: Entry[K, M, S, W], change: Change[K, M, S, W]) -> None:
        self._release(entry.leaving, change)
        del self._entries[entry.key]
        self.device.vacate(entry.key, entry.slot)
        if entry.parent is not None:
            change.parents += (entry.parent,)

    # Ends of tickets.

    def _grant(self, entry: Entry[K, M, S, W], change: Change[K, M, S, W]) -> None:
        applied = entry.applied
        assert applied is not None
        for ticket in tuple(entry.waiters):
            if self.device.covers(applied, ticket.member):
                del entry.waiters[ticket]
                entry.holders[ticket] = None
                ticket.state = HELD
                change.granted += (ticket,)

    def _release(self, tickets: tuple[Ticket[K, M], ...], change: Change[K, M, S, W]) -> None:
        if not tickets:
            return
        for ticket in tickets:
            ticket.state = ENDED
        change.released += tickets

    def _fail(
        self, tickets: Iterable[Ticket[K, M]], error: BaseException, change: Change[K, M, S, W]
    ) -> None:
        for ticket in tickets:
            del ticket.entry.waiters[ticket]
            ticket.state = ENDED
            change.failed += ((ticket, error),)

    def _end(self, tickets: Iterable[Ticket[K, M]], error: BaseException, change: Change[K, M, S, W]) -> None:
        for ticket in tickets:
            ticket.state = ENDED
            change.failed += ((ticket, error),)

    def _owe(
        self, operation: Operation[K, M, S, W], error: BaseException, change: Change[K, M, S, W]
    ) -> None:
        for ticket in operation.releasers:
            ticket.state = OWED
            change.failed += ((ticket, error),)
        operation.entry.owed += operation.releasers

    # Values.

    def snapshot(self) -> LedgerSnapshot[K, M, S, W]:
        """Give the whole state as a value."""
        return LedgerSnapshot(
            tuple(
                EntrySnapshot(
                    entry.key,
                    entry.slot,
                    STATE_NAMES[entry.state],
                    entry.applied,
                    tuple(entry.members()),
                    entry.progress,
                    entry.doubtful,
                    tuple(ticket.member for ticket in entry.owed),
                )
                for entry in self._entries.values()
            ),
            tuple(self.quarantined),
            self.device.dump(),
        )

    def restore(
        self, snapshot: LedgerSnapshot[K, M, S, W], parents: Mapping[K, Any] | None = None
    ) -> list[Ticket[K, M]]:
        """Take back a snapshot, into an empty ledger.

        Gives the tickets, in its order: per key those of the holders, then the ``OWED`` ones.

        :param parents: per key, the ticket of the ledger below that it lives on.
        :raises OptionsError: the ledger is in use, or the snapshot was taken with operations in flight.
        :raises VMExitedError: after :meth:`gone`.
        """
        self._check_open()
        quiet = (STATE_NAMES[APPLIED], STATE_NAMES[PARTIAL])
        busy = [e.key for e in snapshot.entries if e.state not in quiet]
        if busy or self._entries or self.quarantined:
            raise OptionsError(
                f"only a quiet snapshot can be restored, into an empty ledger; in flight: {busy}, "
                f"present: {list(self._entries)}, withheld: {[held.slot for held in self.quarantined]}"
            )
        self.device.load(snapshot.allocator)
        self.quarantined = list(snapshot.quarantined)
        tickets: list[Ticket[K, M]] = []
        for saved in snapshot.entries:
            entry: Entry[K, M, S, W] = Entry(
                saved.key, saved.slot, (parents or {}).get(saved.key), saved.applied
            )
            entry.progress, entry.doubtful = saved.progress, saved.doubtful
            self._entries[saved.key] = entry
            for member in saved.members:
                ticket = Ticket(entry, member, HELD)
                entry.holders[ticket] = None
                tickets.append(ticket)
            for member in saved.owed:
                ticket = Ticket(entry, member, OWED)
                entry.owed += (ticket,)
                tickets.append(ticket)
        return tickets
