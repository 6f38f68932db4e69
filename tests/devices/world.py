"""A bookkeeper that watches one ledger.

Nothing here knows how the ledger decides. A :class:`World` passes events to the ledger, carries out on the
host the steps of what was begun, accounts for every ticket, slot and parent by what the ledger reported,
and compares that with the ledger and with the host.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pytest
from attrs import define, field

from tests.devices.synthetic import (
    Files,
    FilesChange,
    FilesLedger,
    FilesOperation,
    FilesTicket,
    Host,
    Placed,
    Share,
    Shelf,
)
from uvm.devices.base import (
    ABSENT,
    ADD,
    ENDED,
    HELD,
    LEAVING,
    OK,
    OWED,
    QUARANTINED,
    REMOVE,
    TRANSITIONS,
    UPDATE,
    WAITING,
    Kind,
    Outcome,
    Refused,
    State,
    Step,
    Ticket,
    TicketState,
    Unknown,
)
from uvm.devices.ledger import Ledger
from uvm.errors import NoSpaceError, OptionsError, VMExitedError

NOTHING = Files()
FOLLOWING: dict[tuple[State, str], frozenset[State]] = dict(TRANSITIONS.items())


@define
class Flight:
    """An operation that the ledger asked for and was not told the end of."""

    operation: FilesOperation
    steps: tuple[Step, ...] = ()
    begun: bool = False
    #: What was asked for when it began, and by which waiters.
    asked: Files = NOTHING
    serves: frozenset[FilesTicket] = frozenset()


#: States in which a ticket may end.
MAY_END = frozenset({WAITING, LEAVING, OWED})


@define(eq=False)
class World:
    """One ledger, its host, and the account of what was given out and what came back."""

    device: Shelf
    below: World | None = None
    ledger: FilesLedger = field(init=False)
    host: Host = field(init=False)
    tickets: dict[FilesTicket, TicketState] = field(factory=dict)
    flights: dict[str, Flight] = field(factory=dict)
    past: list[FilesOperation] = field(factory=list)
    #: The kind of the last operation, by key, where that did not end Ok; and keys whose value is unknown.
    troubled: dict[str, Kind] = field(factory=dict)
    doubtful: set[str] = field(factory=set)
    withheld: set[int] = field(factory=set)
    #: Parents that the ledger keeps, those that it returned, and those of what is withheld.
    kept: list[Any] = field(factory=list)
    returned: list[Any] = field(factory=list)
    lost: list[Any] = field(factory=list)
    closed: bool = False

    def __attrs_post_init__(self) -> None:
        self.ledger = Ledger(self.device)
        self.host = Host(self.device.parts)

    # Events.

    def acquire(self, key: str, member: str, parent: Any = None) -> FilesTicket | None:
        """Acquire; None where there was no space, or no VM."""
        before = self.ledger.dump()
        tickets: list[FilesTicket] = []

        def acquire() -> FilesChange:
            ticket, change = self.ledger.acquire(key, member, parent)
            tickets.append(ticket)
            self.tickets[ticket] = WAITING
            if parent is not None:
                self.kept.append(parent)
            return change

        try:
            self._event(key, "acquire", acquire)
        except NoSpaceError:
            assert self.ledger.get(key) is None
            assert self.device.slots.taken == self.device.slots.count
        except VMExitedError:
            assert self.closed
        if not tickets:
            assert self.ledger.dump() == before
            return None
        return tickets[0]

    def adopt(self, key: str, member: str) -> FilesTicket | None:
        """Enter a device that the host has already; None where the key is taken, or every slot is."""
        value = Files({member}) if isinstance(self.device, Share) else Files()
        before = self.ledger.dump()
        known = self.ledger.get(key) is not None
        if known or self.device.slots.taken == self.device.slots.count:
            with pytest.raises(OptionsError if known else NoSpaceError):
                self.ledger.adopt(key, member, value)
            assert self.ledger.dump() == before
            return None
        ticket = self.ledger.adopt(key, member, value)
        self.host.at[ticket.entry.slot] = Placed(self.device.parts, value)
        self.tickets[ticket] = HELD
        return ticket

    def drop(self, ticket: FilesTicket) -> None:
        """Drop a ticket in whatever state."""
        state = self.tickets[ticket]
        if state in (LEAVING, ENDED):
            self._expect_nothing(lambda: self.ledger.drop(ticket))
            return

        flight = self.flights.get(ticket.key)
        served = flight is not None and ticket in flight.serves

        def drop() -> FilesChange:
            change = self.ledger.drop(ticket)
            if state == WAITING and not served:
                assert change.released == (ticket,)
            else:
                self.tickets[ticket] = LEAVING
            return change

        self._event(ticket.key, "drop", drop)

    def begin(self, key: str) -> None:
        """Begin what is in flight on a key."""
        flight = self.flights[key]
        before = self.ledger.dump()
        flight.steps, flight.begun = self.ledger.begin(flight.operation), True
        if not flight.operation.void:
            flight.asked = Files(t.member for t in self.in_state(WAITING, HELD) if t.key == key)
            if flight.operation.kind != REMOVE:
                flight.serves = frozenset(t for t in self.in_state(WAITING) if t.key == key)
        assert self.ledger.dump() == before

    def done(self, key: str, how: str, count: int = 0) -> None:
        """End what is in flight on a key.

        :param how: ok, refused or unknown.
        :param count: of a removal that is refused, how many steps were done; of an add, how many stay since
            their undo was refused as well; and of any operation of unknown outcome, how many were done.
        """
        flight = self.flights.pop(key)
        assert flight.begun
        operation, steps = flight.operation, flight.steps
        self.past.append(operation)
        error = RuntimeError(how)
        if operation.void:
            assert not steps
            how = "ok"
        done = len(steps) if how == "ok" else min(count, len(steps) - (how == "refused"))
        remaining = steps[done:] if done else ()
        if operation.kind != REMOVE:
            remaining = tuple(step.undo for step in reversed(steps[:done]) if step.undo is not None)
        for step in steps[:done]:
            self.host.carry_out(step)
        if not operation.void:
            self._note(operation, how)
        outcomes: dict[str, Outcome] = {"refused": Refused(error, remaining), "unknown": Unknown(error)}
        outcome = outcomes.get(how, OK)
        owner = None
        if how == "refused" and operation.kind == ADD and done > 0:
            owner = operation.serves[0]
            assert owner in flight.serves
        elif how != "ok" and operation.kind == UPDATE:
            owner = self._left_with(operation, how)
        self._event(key, how, lambda: self.ledger.done(operation, outcome), error, flight.asked, owner)

    def _left_with(self, operation: FilesOperation, how: str) -> FilesTicket | None:
        """Who owns what stays of an entry all of whose tickets end with an update."""
        lost = how == "unknown" and self.device.narrows
        ended = [t for t in operation.serves if self.tickets[t] == WAITING]
        ended = [*(operation.releasers if lost else ()), *ended]
        others = [
            ticket
            for ticket in self.in_state(HELD, OWED, LEAVING)
            if ticket.entry is operation.entry and ticket not in ended
        ]
        return ended[0] if ended and not others and not self.device.retain else None

    def _note(self, operation: FilesOperation, how: str) -> None:
        if how == "ok":
            self.troubled.pop(operation.key, None)
            self.doubtful.discard(operation.key)
            return
        self.troubled[operation.key] = operation.kind
        if how == "unknown" and operation.kind == UPDATE:
            self.doubtful.add(operation.key)

    def done_again(self, operation: FilesOperation) -> None:
        """Tell of an operation that has ended, or was superseded."""
        assert self.ledger.begin(operation) == ()
        for outcome in (OK, Refused(RuntimeError("late")), Unknown(RuntimeError("late"))):
            self._expect_nothing(lambda outcome=outcome: self.ledger.done(operation, outcome))  # type: ignore[misc]

    def gone(self) -> None:
        """The VM exits."""
        waiting = {t for t, state in self.tickets.items() if state == WAITING}
        leaving = {t for t, state in self.tickets.items() if state == LEAVING}
        change = self.ledger.gone()
        failed = [ticket for ticket, error in change.failed if isinstance(error, VMExitedError)]
        assert len(failed) == len(change.failed) == len(waiting)
        assert len(change.released) == len(leaving)
        assert set(failed) == waiting
        assert set(change.released) == leaving
        assert reported(change) <= {"failed", "released"}
        self.past += [flight.operation for flight in self.flights.values()]
        for ticket in self.tickets:
            self.tickets[ticket] = ENDED
        self.closed = True
        self.host.at.clear()
        self.flights.clear()
        self.troubled.clear()
        self.doubtful.clear()
        self.withheld.clear()
        self.kept.clear()
        self.returned.clear()
        self.lost.clear()

    def _event(
        self,
        key: str,
        name: str,
        event: Callable[[], FilesChange],
        error: BaseException | None = None,
        asked: Files = NOTHING,
        owner: FilesTicket | None = None,
    ) -> None:
        before, parent = self._state(key), self.ledger.parents.get(key)
        try:
            change = event()
        except NoSpaceError:
            assert self._state(key) in FOLLOWING[before, name]
            raise
        after = self._state(key)
        if change.quarantined and after == ABSENT:
            after = QUARANTINED
        assert after in FOLLOWING[before, name], (before, name, after)
        if change.quarantined and parent is not None:
            self.kept.remove(parent)
            self.lost.append(parent)
        self._account(change, key, name, error, asked, owner)

    def _state(self, key: str) -> State:
        entry = self.ledger.get(key)
        return ABSENT if entry is None else entry.state

    def _expect_nothing(self, event: Callable[[], FilesChange]) -> None:
        before = self.ledger.dump()
        change = event()
        assert reported(change) == set()
        assert self.ledger.dump() == before

    def in_state(self, *states: TicketState) -> list[FilesTicket]:
        """The tickets in one of those states."""
        return [ticket for ticket, state in self.tickets.items() if state in states]

    def in_flight(self, *, begun: bool) -> list[str]:
        """The keys with an operation that was begun, or was not yet."""
        return [key for key, flight in self.flights.items() if flight.begun == begun]

    # What the ledger reported.

    def _account(
        self,
        change: FilesChange,
        key: str,
        name: str,
        error: BaseException | None,
        asked: Files,
        owner: FilesTicket | None,
    ) -> None:
        for ticket in change.granted:
            assert ticket.key == key
            assert self.tickets[ticket] == WAITING
            self.tickets[ticket] = HELD
        gone = []
        for ticket in change.released:
            assert ticket.key == key
            assert self.tickets[ticket] in MAY_END
            if self.tickets[ticket] != WAITING:
                gone.append(ticket)
            self.tickets[ticket] = ENDED
        for ticket, cause in change.failed:
            assert ticket.key == key
            assert cause is error or (isinstance(cause, NoSpaceError) and self.tickets[ticket] == WAITING)
            assert self.tickets[ticket] in MAY_END
            owed = self.tickets[ticket] == LEAVING and name == "refused"
            self.tickets[ticket] = OWED if owed or ticket is owner else ENDED
        assert owner is None or self.tickets[owner] == OWED
        for ticket in gone:
            self._check_released(ticket, asked)
        for withheld in change.quarantined:
            assert not gone, "released, but unknown"
            assert withheld.cause is error
            assert withheld.slot not in self.withheld
            self.withheld.add(withheld.slot)
            self.doubtful.discard(key)
        if change.operation is not None:
            assert change.operation.key == key
            assert key not in self.flights
            self.flights[key] = Flight(change.operation)
        if self.ledger.get(key) is None:
            self.troubled.pop(key, None)
        for parent in change.parents:
            self.kept.remove(parent)
            self.returned.append(parent)
            if self.below is not None:
                assert isinstance(parent, Ticket)
                self.below.drop(parent)

    def _check_released(self, ticket: FilesTicket, asked: Files) -> None:
        """What is released is gone from the host, unless it is meant to stay or somebody else wants it.

        Or wanted it when the operation began, and gave up since.
        """
        entry = self.ledger.get(ticket.key)
        if entry is None or entry.applied is None or self.device.retain:
            return
        others = {t.member for t, state in self.tickets.items() if t.key == ticket.key and state != ENDED}
        if not self.device.narrows:
            assert others, "released, but still there"
        elif ticket.key not in self.doubtful:
            value = self.host.at[entry.slot].value
            assert ticket.member in others | asked or ticket.member not in value, "released, but still there"

    # What must hold after every event.

    def check(self) -> None:
        """Hold the ledger to the account, and the account to the host."""
        self._check_tickets()
        self._check_slots_and_parents()
        self._check_host()

    def _check_tickets(self) -> None:
        found: dict[FilesTicket, TicketState] = {}
        for entry in self.ledger:
            releasers = entry.operation.releasers if entry.operation is not None else ()
            for state, tickets in (
                (WAITING, entry.waiters),
                (HELD, entry.holders),
                (LEAVING, (*entry.leaving, *releasers)),
                (OWED, entry.owed),
            ):
                for ticket in tickets:
                    assert ticket not in found, "a ticket stands in two places"
                    assert ticket.entry is entry
                    found[ticket] = state
            flight = self.flights.get(entry.key)
            assert entry.operation is (flight and flight.operation)
            if flight is None:
                assert not entry.waiters, "somebody waits for nothing"
                assert not entry.leaving, "somebody leaves and nothing happens"
        assert found == {t: state for t, state in self.tickets.items() if state != ENDED}
        assert {ticket: ticket.state for ticket in self.tickets} == self.tickets
        assert set(self.flights) <= {entry.key for entry in self.ledger}

    def _check_slots_and_parents(self) -> None:
        slots = [entry.slot for entry in self.ledger] + [held.slot for held in self.ledger.quarantined]
        assert sum(1 << slot for slot in slots) == self.device.slots.dump()
        assert len(set(slots)) == len(slots)
        assert {held.slot for held in self.ledger.quarantined} == self.withheld
        assert sorted(map(id, self.ledger.parents.values())) == sorted(map(id, self.kept))
        assert len(set(map(id, self.returned))) == len(self.returned)

    def _check_host(self) -> None:
        for entry in self.ledger:
            placed = self.host.at.get(entry.slot)
            assert entry.doubtful == (entry.key in self.doubtful)
            if placed is None:
                assert entry.applied is None
            else:
                assert placed.parts == len(entry.remaining) or not entry.remaining
                assert (placed.parts == self.device.parts) == (not entry.remaining)
                assert placed.value == entry.applied or entry.doubtful
            value = self.host.value(entry.slot)
            for ticket in entry.holders:
                assert value is not None, "held, but not there"
                assert self.device.suffices(value, ticket.member), "held, but not there"
            if entry.key in self.flights:
                continue
            if entry.key not in self.troubled.keys() | self.doubtful:
                assert self.device.settled(value, Files(ticket.member for ticket in entry.holders))
            assert entry.holders or entry.owed or self.device.retain, "it has no owner"
        assert set(self.host.at) <= {entry.slot for entry in self.ledger} | self.withheld

    # Quiet.

    def restore(self, parents: dict[int, Any] | None = None) -> dict[FilesTicket, FilesTicket]:
        """Go on with a restored ledger; gives the new ticket of each old one.

        :param parents: the new parent of each old one, by id.
        """
        assert not self.flights
        state = self.ledger.dump()
        old = [ticket for entry in self.ledger for ticket in (*entry.holders, *entry.owed)]
        by_key = {key: (parents or {}).get(id(parent), parent) for key, parent in self.ledger.parents.items()}
        self.device.load(0)
        self.ledger = Ledger(self.device)
        new = self.ledger.restore(state, by_key)
        assert self.ledger.dump() == state
        assert [(t.key, t.member, t.state) for t in new] == [(t.key, t.member, t.state) for t in old]
        self.kept = list(by_key.values())
        for before, after in zip(old, new, strict=True):
            self.tickets[after] = self.tickets.pop(before)
        return dict(zip(old, new, strict=True))

    def finish(self) -> None:
        """End with Ok whatever is in flight, and what follows from it."""
        bound = 4 * (len(self.tickets) + len(self.ledger) + 1)
        for _ in range(bound):
            if not self.flights:
                return
            key = next(iter(self.flights))
            if not self.flights[key].begun:
                self.begin(key)
            self.done(key, "ok")
            self.check()
        raise AssertionError(f"not quiet after {bound} operations")

    def wind_up(self, keep: Collection[FilesTicket] = ()) -> None:
        """Let everybody drop everything, and hold what is left to what is meant to be left."""
        self.finish()
        for ticket in list(self.tickets):
            if ticket not in keep:
                self.drop(ticket)
                self.check()
        self.finish()
        assert [e.key for e in self.ledger if not e.holders and not self.device.retain] == []
        assert [e.key for e in self.ledger if e.remaining or e.owed] == []


def reported(change: FilesChange) -> set[str]:
    """The names of what a change tells anything of."""
    return {name for name, value in vars(change).items() if value}
