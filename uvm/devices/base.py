"""What the ledger and the devices share: tickets, entries, operations and their outcomes, and the Device.

:mod:`uvm.devices.ledger` explains how they work together. Pure.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from enum import Enum
from itertools import count
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from attrs import define, field, frozen

from uvm._repr import Value, showing
from uvm.devices.slots import Allocator
from uvm.schema.requests import ModificationRequest, ModifySettingRequest

K = TypeVar("K", bound=Hashable)
M = TypeVar("M")
S = TypeVar("S")
W = TypeVar("W")
P = TypeVar("P")
K_co = TypeVar("K_co", bound=Hashable, covariant=True)
M_co = TypeVar("M_co", covariant=True)
S_co = TypeVar("S_co", covariant=True)
W_co = TypeVar("W_co", covariant=True)

#: The numbers of entries.
_numbers = count()

# Members are compared by identity with the module's constants, which are in the same order: looking one up in
# its enum is slow.


class State(Enum):
    """The states of a key."""

    ABSENT = "absent"
    ADDING = "adding"
    APPLIED = "applied"
    UPDATING = "updating"
    REMOVING = "removing"
    PARTIAL = "partial"
    QUARANTINED = "quarantined"


ABSENT, ADDING, APPLIED, UPDATING, REMOVING, PARTIAL, QUARANTINED = State


class Kind(Enum):
    """The kinds of operation: attach, change what is applied, detach. The values are types of requests."""

    ADD = "Add"
    UPDATE = "Update"
    REMOVE = "Remove"


ADD, UPDATE, REMOVE = Kind


class TicketState(Enum):
    """The states of a ticket."""

    WAITING = "waiting"  # for the device to be applied
    HELD = "held"
    LEAVING = "leaving"  # dropped; the operation that this takes is under way
    OWED = "owed"  # dropped, and the removal was refused: may be dropped again
    ENDED = "ended"


WAITING, HELD, LEAVING, OWED, ENDED = TicketState

#: The events of a key: those of the ledger, and the three outcomes of an operation.
Event = Literal["acquire", "drop", "ok", "refused", "unknown", "gone"]

#: Which states may follow, per state and event. The tests hold the ledger to it; the docs draw it.
TRANSITIONS: Final[dict[tuple[State, Event], frozenset[State]]] = {
    (ABSENT, "acquire"): frozenset({ADDING, ABSENT}),  # ABSENT: no slot was free
    (ADDING, "acquire"): frozenset({ADDING}),
    (ADDING, "drop"): frozenset({ADDING}),
    (ADDING, "ok"): frozenset({APPLIED, UPDATING, REMOVING, ABSENT, ADDING}),  # last two: it was void
    (ADDING, "refused"): frozenset({ABSENT, PARTIAL}),  # PARTIAL: its undo was refused too
    (ADDING, "unknown"): frozenset({QUARANTINED}),
    (ADDING, "gone"): frozenset({ABSENT}),
    (APPLIED, "acquire"): frozenset({APPLIED, UPDATING}),
    (APPLIED, "drop"): frozenset({APPLIED, UPDATING, REMOVING}),
    (APPLIED, "gone"): frozenset({ABSENT}),
    (UPDATING, "acquire"): frozenset({UPDATING}),
    (UPDATING, "drop"): frozenset({UPDATING}),
    (UPDATING, "ok"): frozenset({APPLIED, UPDATING, REMOVING}),
    (UPDATING, "refused"): frozenset({APPLIED, UPDATING, REMOVING}),
    (UPDATING, "unknown"): frozenset({APPLIED, UPDATING, REMOVING}),
    (UPDATING, "gone"): frozenset({ABSENT}),
    (REMOVING, "acquire"): frozenset({REMOVING}),
    (REMOVING, "drop"): frozenset({REMOVING}),
    (REMOVING, "ok"): frozenset({ABSENT, ADDING, APPLIED, UPDATING, REMOVING}),  # last three: it was void
    (REMOVING, "refused"): frozenset({APPLIED, UPDATING, PARTIAL}),
    (REMOVING, "unknown"): frozenset({QUARANTINED, ADDING}),  # ADDING: at another slot
    (REMOVING, "gone"): frozenset({ABSENT}),
    (PARTIAL, "acquire"): frozenset({REMOVING}),
    (PARTIAL, "drop"): frozenset({REMOVING}),
    (PARTIAL, "gone"): frozenset({ABSENT}),
    (QUARANTINED, "gone"): frozenset({ABSENT}),
}


#: A request of a step: to the host, or to the guest.
Request = ModifySettingRequest | ModificationRequest


class Step(NamedTuple):
    """One request of an operation.

    :ivar undo: reverts it when a later step of an ADD or UPDATE is refused.
    """

    request: Request
    undo: Step | None = None


@frozen(repr=False)
class Ok(Value):
    """The operation was carried out."""


@frozen(repr=False)
class Refused(Value):
    """A step failed and changed nothing.

    :ivar remaining: what is left to send until the device is removed, if it is attached in part now: the
        steps of a REMOVE from the one that failed on, since those before it are not undone; or the undo of an
        ADD or UPDATE, from the step of it that was refused on.
    """

    error: BaseException
    remaining: tuple[Step, ...] = ()


@frozen(repr=False)
class Unknown(Value):
    """What the operation, or its undo, did is unknown: timed out, connection lost, cancelled."""

    error: BaseException


OK: Final = Ok()
Outcome = Ok | Refused | Unknown


def on_host(request_type: str, path: str, settings: object = None, undo: Step | None = None) -> Step:
    """Return the step that changes a resource of the host."""
    request = ModifySettingRequest(resource_path=path, request_type=request_type, settings=settings)
    return Step(request, undo)


def in_guest(request_type: str, resource_type: str, settings: object, undo: Step | None = None) -> Step:
    """Return the step that changes a resource of the guest."""
    request = ModificationRequest(request_type=request_type, resource_type=resource_type, settings=settings)
    return Step(request, undo)


@define(eq=False, repr=False)
class Ticket(Generic[K_co, M_co, S_co, W_co]):
    """One interest in a key. Compared by identity.

    :ivar names: what it was asked for as, by which it is looked up once it is granted; the last is its own.
    """

    entry: Entry[K_co, M_co, S_co, W_co]
    member: M_co
    state: TicketState = WAITING
    names: tuple[Hashable, ...] = ()

    @property
    def key(self) -> K_co:
        """The key that the ticket is for."""
        return self.entry.key


@define(eq=False, init=False, repr=False)
class Entry(Generic[K, M, S, W]):
    """The state of one key in the ledger. Tickets are kept in the order in which they came.

    :ivar number: of two entries of any ledgers, the older has the lower one.
    :ivar remaining: the steps that remove the rest of a device that is attached in part.
    :ivar doubtful: the outcome of the last update is unknown.
    :ivar waiters: each with the operation that was last begun for it, if any.
    :ivar names: each name that it was asked for as, with the own name of what was meant; and its member.
    """

    key: K
    slot: S
    applied: W | None
    number: int
    operation: Operation[K, M, S, W] | None
    remaining: tuple[Step, ...]
    doubtful: bool
    holders: dict[Ticket[K, M, S, W], None]
    waiters: dict[Ticket[K, M, S, W], Operation[K, M, S, W] | None]
    owed: dict[Ticket[K, M, S, W], None]
    leaving: dict[Ticket[K, M, S, W], None]
    names: dict[tuple[Hashable, Hashable], M]

    def __init__(self, key: K, slot: S, applied: W | None = None) -> None:
        # By hand: attrs calls a function for each empty dict.
        self.key = key
        self.slot = slot
        self.applied = applied
        self.number = next(_numbers)
        self.operation = None
        self.remaining = ()
        self.doubtful = False
        self.holders = {}
        self.waiters = {}
        self.owed = {}
        self.leaving = {}
        self.names = {}

    @property
    def wanted(self) -> bool:
        """Whether any ticket wants it."""
        return bool(self.holders or self.waiters)

    @property
    def tickets(self) -> tuple[Ticket[K, M, S, W], ...]:
        """Those that have not ended; one that an operation serves may be there twice."""
        served = () if self.operation is None else (*self.operation.serves, *self.operation.releasers)
        return (*self.holders, *self.waiters, *self.leaving, *self.owed, *served)

    def members(self) -> Iterator[M]:
        """Yield the members of the tickets that want it, in the order in which they came."""
        for ticket in self.holders:
            yield ticket.member
        for ticket in self.waiters:
            yield ticket.member

    @property
    def state(self) -> State:
        """The state of the key, as in :data:`TRANSITIONS`."""
        if self.operation is not None:
            return {ADD: ADDING, UPDATE: UPDATING, REMOVE: REMOVING}[self.operation.kind]
        if self.applied is None:
            return ABSENT
        return PARTIAL if self.remaining else APPLIED


@define(eq=False, repr=False)
class Operation(Generic[K, M, S, W]):
    """An operation to carry out: ``Ledger.begin`` returns its steps, ``Ledger.done`` takes its outcome.

    :ivar target: what will be applied when it is done; fixed by ``begin``.
    :ivar void: it sends nothing: it was not begun, or ``begin`` found nothing left to do.
    :ivar serves: the waiters when it was begun; a later one is not among them.
    """

    kind: Kind
    entry: Entry[K, M, S, W]
    target: W | None = None
    void: bool = True
    serves: tuple[Ticket[K, M, S, W], ...] = ()
    releasers: tuple[Ticket[K, M, S, W], ...] = ()

    @property
    def key(self) -> K:
        """The key of its entry."""
        return self.entry.key

    @property
    def slot(self) -> S:
        """The slot of its entry."""
        return self.entry.slot

    @property
    def value(self) -> W:
        """What it applies or, for a REMOVE, removes."""
        value = self.entry.applied if self.kind is REMOVE else self.target
        assert value is not None
        return value


@frozen(repr=False)
class Quarantined(Value, Generic[K_co, S_co]):
    """A slot that is withheld, since what is in it is unknown. What it depends on stays held.

    :ivar operation: the kind of operation whose outcome is unknown.
    :ivar value: what may be applied there.
    """

    key: K_co
    slot: S_co
    operation: Kind
    value: object
    cause: BaseException = field(eq=False)


class Change(Generic[K, M, S, W, P]):
    """What an event brought about; each sets few of these attributes, and leaves the others to the class.

    :ivar granted: waiters that hold the device now.
    :ivar released: tickets whose drop is complete, waiters that were dropped, and ``OWED`` tickets of a
        device that another ticket's removal detached.
    :ivar failed: waiters that failed (now ``ENDED``; one is ``OWED`` if its device stays in part, since the
        undo was refused) and tickets whose drop failed (``OWED``: may be dropped again; ``ENDED``: the
        outcome is unknown), each with the cause.
    :ivar parents: what entries depended on and no longer need, to be dropped by the caller.
    :ivar operation: the next operation to carry out on this key.
    """

    granted: tuple[Ticket[K, M, S, W], ...] = ()
    released: tuple[Ticket[K, M, S, W], ...] = ()
    failed: tuple[tuple[Ticket[K, M, S, W], BaseException], ...] = ()
    parents: tuple[P, ...] = ()
    quarantined: tuple[Quarantined[K, S], ...] = ()
    operation: Operation[K, M, S, W] | None = None

    def release(self, tickets: Iterable[Ticket[K, M, S, W]]) -> None:
        """End tickets, whose drop is complete."""
        released = tuple(tickets)
        for ticket in released:
            ticket.state = ENDED
        self.released += released

    def fail(
        self, tickets: Iterable[Ticket[K, M, S, W]], error: BaseException, state: TicketState = ENDED
    ) -> None:
        """Fail tickets, which are no waiters any more."""
        failed = tuple(tickets)
        for ticket in failed:
            ticket.entry.waiters.pop(ticket, None)
            ticket.state = state
        self.failed += tuple((ticket, error) for ticket in failed)


class Device(Generic[K, M, S, W]):
    """What differs between devices: their slots, what is wanted of them, and the steps to it."""

    #: An UPDATE can revoke what only one holder wanted; that holder's release completes with it.
    narrows = False
    #: The allocator of its slots, if it has one alone.
    _slots: Allocator

    def place(self, key: K, member: M) -> S:
        """Choose and take a slot.

        :raises NoSpaceError: none is free.
        """
        raise NotImplementedError

    def occupy(self, slot: S) -> None:
        """Take a slot in which something is already."""
        raise NotImplementedError

    def vacate(self, key: K, slot: S) -> None:
        """Free a slot."""
        self._slots.free(slot)

    def wanted(self, entry: Entry[K, M, S, W]) -> W | None:
        """Return what ought to be applied for the tickets that want it; None for nothing."""
        raise NotImplementedError

    def covers(self, applied: W, member: M) -> bool:
        """Return whether what is applied suffices for a member; what :meth:`wanted` returns has to."""
        return True

    def steps(self, operation: Operation[K, M, S, W]) -> tuple[Step, ...]:
        """Return the steps of an operation, in order; of a REMOVE all of them."""
        raise NotImplementedError

    def describe(self, key: K, slot: S, value: M | W) -> tuple[str, str]:
        """Return what a device is, and where, for people.

        :param value: what is applied or wanted.
        """
        return str(key), str(slot)

    def gate(self, operation: Operation[K, M, S, W]) -> Hashable | None:
        """Return what this operation must have to itself while it runs, if anything."""
        return None

    def ended(self, entry: Entry[K, M, S, W]) -> None:
        """Note that an operation on an entry has ended."""

    def dump(self) -> Any:
        """Return the state of the allocator, as a value."""
        return self._slots.dump()

    def load(self, state: Any) -> None:
        """Load what :meth:`dump` returned."""
        self._slots.load(state)


@frozen(repr=False)
class EntryState(Value, Generic[K_co, M_co, S_co, W_co]):
    """One key, in a :class:`LedgerState`."""

    key: K_co
    slot: S_co
    state: State
    applied: W_co | None
    members: tuple[M_co, ...]
    remaining: tuple[Step, ...] = ()
    doubtful: bool = False
    owed: tuple[M_co, ...] = ()
    names: tuple[tuple[tuple[Hashable, Hashable], M_co], ...] = ()


@showing("entries", "quarantined")
@frozen(repr=False)
class LedgerState(Generic[K_co, M_co, S_co, W_co]):
    """The whole of a ledger, as a value that compares."""

    entries: tuple[EntryState[K_co, M_co, S_co, W_co], ...]
    quarantined: tuple[Quarantined[K_co, S_co], ...]
    allocator: Any
