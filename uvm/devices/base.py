"""What the ledger and the devices speak of: tickets, entries, operations and their outcomes, and the Device.

How they play together is told in :mod:`uvm.devices.ledger`. Pure.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Final, Generic, NamedTuple, TypeVar

from attrs import define, field, frozen

__all__ = [
    "ABSENT",
    "ADD",
    "ADDING",
    "APPLIED",
    "Change",
    "Device",
    "ENDED",
    "Entry",
    "EntrySnapshot",
    "GUEST",
    "HELD",
    "HOST",
    "LEAVING",
    "LedgerSnapshot",
    "OK",
    "OPERATION_NAMES",
    "OWED",
    "Ok",
    "Operation",
    "Outcome",
    "PARTIAL",
    "QUARANTINED",
    "Quarantined",
    "REMOVE",
    "REMOVING",
    "Refused",
    "STATE_NAMES",
    "Step",
    "TRANSITIONS",
    "Ticket",
    "UPDATE",
    "UPDATING",
    "Unknown",
    "WAITING",
]

K = TypeVar("K", bound=Hashable)
M = TypeVar("M")
S = TypeVar("S")
W = TypeVar("W")

# States of a key, kinds of operation, states of a ticket and targets of a step are ints: they are
# compared on every event.
ABSENT: Final = 0
ADDING: Final = 1
APPLIED: Final = 2
UPDATING: Final = 3
REMOVING: Final = 4
PARTIAL: Final = 5
QUARANTINED: Final = 6
STATE_NAMES: Final = ("absent", "adding", "applied", "updating", "removing", "partial", "quarantined")

#: Make it so, from nothing.
ADD: Final = 0
#: Change what is applied.
UPDATE: Final = 1
#: Take it away.
REMOVE: Final = 2
OPERATION_NAMES: Final = ("add", "update", "remove")

WAITING: Final = 0  # wants it, does not have it yet
HELD: Final = 1  # has it
LEAVING: Final = 2  # dropped; the operation that this takes is under way
OWED: Final = 3  # dropped, and the removal failed: may be dropped again
ENDED: Final = 4

#: A step for the host.
HOST: Final = 0
#: A step for the guest.
GUEST: Final = 1

#: Which states may follow, per state and event. The tests hold the machine to it; the docs draw it.
TRANSITIONS: Final[dict[tuple[int, str], frozenset[int]]] = {
    (ABSENT, "acquire"): frozenset({ADDING, ABSENT}),  # ABSENT: no slot was free
    (ADDING, "acquire"): frozenset({ADDING}),
    (ADDING, "drop"): frozenset({ADDING}),
    (ADDING, "ok"): frozenset({APPLIED, UPDATING, REMOVING, ABSENT, ADDING}),  # last two: it was void
    (ADDING, "refused"): frozenset({ABSENT}),
    (ADDING, "unknown"): frozenset({QUARANTINED}),
    (APPLIED, "acquire"): frozenset({APPLIED, UPDATING}),
    (APPLIED, "drop"): frozenset({APPLIED, UPDATING, REMOVING}),
    (UPDATING, "acquire"): frozenset({UPDATING}),
    (UPDATING, "drop"): frozenset({UPDATING}),
    (UPDATING, "ok"): frozenset({APPLIED, UPDATING, REMOVING}),
    (UPDATING, "refused"): frozenset({APPLIED, UPDATING, REMOVING}),
    (UPDATING, "unknown"): frozenset({APPLIED, UPDATING, REMOVING}),
    (REMOVING, "acquire"): frozenset({REMOVING}),
    (REMOVING, "drop"): frozenset({REMOVING}),
    (REMOVING, "ok"): frozenset({ABSENT, ADDING, APPLIED, UPDATING, REMOVING}),  # last three: it was void
    (REMOVING, "refused"): frozenset({APPLIED, UPDATING, PARTIAL}),
    (REMOVING, "unknown"): frozenset({QUARANTINED, ADDING}),  # ADDING: at another slot
    (PARTIAL, "acquire"): frozenset({REMOVING}),
    (PARTIAL, "drop"): frozenset({REMOVING}),
}


@frozen
class Ok:
    """The operation was carried out."""


@frozen
class Refused:
    """A step failed and, undone, changed nothing.

    :ivar progress: of a REMOVE, how many of its steps had been done (they are not undone).
    """

    error: BaseException
    progress: int = 0


@frozen
class Unknown:
    """Nobody knows what the operation did: timed out, connection lost, cancelled, undo failed."""

    error: BaseException


OK: Final = Ok()
Outcome = Ok | Refused | Unknown


class Step(NamedTuple):
    """One request of an operation, to the host or to the guest.

    :ivar target: :data:`HOST` or :data:`GUEST`.
    :ivar request: a model of ``uvm.schema``.
    :ivar undo: what takes it back when a later step of an ADD or UPDATE is refused.
    """

    target: int
    request: Any
    undo: Step | None = None


@define(eq=False)
class Ticket(Generic[K, M]):
    """One party's interest in a key. Compared by identity."""

    entry: Entry[K, M, Any, Any] = field(repr=False)
    member: M
    state: int = WAITING

    @property
    def key(self) -> K:
        """The key that it is about."""
        return self.entry.key


@define(eq=False)
class Entry(Generic[K, M, S, W]):
    """What the ledger knows of one key."""

    key: K
    slot: S
    parent: Any = None
    applied: W | None = None
    operation: Operation[K, M, S, W] | None = field(default=None, init=False)
    #: Steps of the removal that are done; not 0 means that the device is only partly there.
    progress: int = field(default=0, init=False)
    #: The last update's outcome is unknown.
    doubtful: bool = field(default=False, init=False)
    holders: dict[Ticket[K, M], None] = field(factory=dict, init=False)
    waiters: dict[Ticket[K, M], None] = field(factory=dict, init=False)
    owed: tuple[Ticket[K, M], ...] = field(default=(), init=False)
    leaving: tuple[Ticket[K, M], ...] = field(default=(), init=False)

    @property
    def wanted(self) -> bool:
        """Whether anybody wants it."""
        return bool(self.holders or self.waiters)

    def members(self) -> Iterator[M]:
        """What those who want it want of it, in the order in which they came."""
        for ticket in self.holders:
            yield ticket.member
        for ticket in self.waiters:
            yield ticket.member

    @property
    def state(self) -> int:
        """The state of the key, as in :data:`TRANSITIONS`."""
        if self.operation is not None:
            return (ADDING, UPDATING, REMOVING)[self.operation.kind]
        if self.applied is None:
            return ABSENT
        return PARTIAL if self.progress else APPLIED


@define(eq=False)
class Operation(Generic[K, M, S, W]):
    """Something to be carried out: ask :meth:`Ledger.begin` for its steps, then tell the ledger how it went.

    :ivar kind: :data:`ADD`, :data:`UPDATE` or :data:`REMOVE`.
    :ivar target: what will be applied when it is done; fixed by ``begin``.
    """

    kind: int
    entry: Entry[K, M, S, W]
    target: W | None = None
    void: bool = False
    #: The waiters that it serves; who came after ``begin`` is not among them.
    serves: tuple[Ticket[K, M], ...] = ()
    releasers: tuple[Ticket[K, M], ...] = ()

    @property
    def key(self) -> K:
        """The key that it is about."""
        return self.entry.key

    @property
    def slot(self) -> S:
        """The slot that it is about."""
        return self.entry.slot


@frozen
class Quarantined(Generic[K, S]):
    """A slot that is withheld, since nobody knows what is in it.

    :ivar operation: the kind of operation whose outcome is unknown.
    :ivar parent: the ticket of what it lives on, which stays held.
    """

    key: K
    slot: S
    operation: int
    cause: BaseException = field(eq=False)
    parent: Any = field(default=None, eq=False, repr=False)


@define(eq=False)
class Change(Generic[K, M, S, W]):
    """What an event brought about.

    :ivar granted: waiters who have it now.
    :ivar released: tickets whose drop is complete, waiters that gave up, and ``OWED`` tickets of what
        somebody else's removal has taken away.
    :ivar failed: waiters who will not get it (now ``ENDED``) and tickets whose drop failed (``OWED``: may be
        dropped again; ``ENDED``: the outcome is unknown), each with the cause.
    :ivar parents: tickets of the ledger below, to be dropped there.
    :ivar operation: what is to be carried out next on this key.
    """

    granted: tuple[Ticket[K, M], ...] = ()
    released: tuple[Ticket[K, M], ...] = ()
    failed: tuple[tuple[Ticket[K, M], BaseException], ...] = ()
    parents: tuple[Any, ...] = ()
    quarantined: tuple[Quarantined[K, S], ...] = ()
    operation: Operation[K, M, S, W] | None = None


class Device(Generic[K, M, S, W]):
    """What differs between devices. Subclasses say where it goes, what is wanted, and by which steps."""

    #: An UPDATE may take away what one holder alone wanted; then its release waits for the update.
    narrows = False

    def place(self, key: K, member: M) -> S:
        """Choose and take a slot.

        :raises NoSpaceError: none is free.
        """
        raise NotImplementedError

    def vacate(self, key: K, slot: S) -> None:
        """Free a slot."""
        raise NotImplementedError

    def wanted(self, entry: Entry[K, M, S, W]) -> W | None:
        """What ought to be applied, given who wants it; None for nothing."""
        raise NotImplementedError

    def covers(self, applied: W, member: M) -> bool:
        """Tell whether what is applied is enough for a member; what :meth:`wanted` gives has to be."""
        return True

    def steps(self, operation: Operation[K, M, S, W]) -> tuple[Step, ...]:
        """The steps of an operation, in order; of a REMOVE all of them, also when it is resumed."""
        raise NotImplementedError

    def gate(self, operation: Operation[K, M, S, W]) -> Hashable | None:
        """Give what this operation must have to itself while it runs, if anything."""
        return None

    def dump(self) -> Any:
        """The state of the allocator, as a value."""
        raise NotImplementedError

    def load(self, state: Any) -> None:
        """Take back what :meth:`dump` gave."""
        raise NotImplementedError


@frozen
class EntrySnapshot(Generic[K, M, S, W]):
    """One key, in a :class:`LedgerSnapshot`."""

    key: K
    slot: S
    state: str
    applied: W | None
    members: tuple[M, ...]
    progress: int = 0
    doubtful: bool = False
    owed: tuple[M, ...] = ()


@frozen
class LedgerSnapshot(Generic[K, M, S, W]):
    """The whole of a ledger, as a value that compares."""

    entries: tuple[EntrySnapshot[K, M, S, W], ...]
    quarantined: tuple[Quarantined[K, S], ...]
    allocator: Any
