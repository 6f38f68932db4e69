"""What one caller has of a device: its holds. What a hold asks of its driver is :class:`Runner`.

A :class:`Hold` is one caller's interest. It follows its ticket through the ledgers: when a mount is gone and
the attachment below it is to be dropped, the hold that released the mount goes on with the
attachment's ticket. Its release is complete when the last of them is; if one is refused, the hold
stays on that ticket and may be released again.

A hold whose release was refused and whose caller has gone is an orphan, listed in ``Link.left``. A
:class:`Stay` is a device from its first grant until it is off the host, and what :meth:`Hold.gone` waits for.

A hold waits, and is woken by :meth:`Hold.settle`; it runs no task. What it begins, the driver carries out, so
its caller may be cancelled at any await.

Any number of callers may release a hold. A :class:`Turn` is one release of it, and has its outcome for those
that wait for it, though the next one may begin before they go on. A caller that is cancelled has left it; one
that has learnt that it was refused has it still, unless it is noted that it has left. With the last one that
leaves, the hold has no caller. Who removes a device by its name is none of them: it has no lease.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable
from datetime import UTC, datetime
from enum import Enum
from itertools import count
from typing import Any, Generic, Protocol, Self, TypeVar

from attrs import Factory, define, field

from uvm._async import Flag, Line
from uvm._buses.access import Need
from uvm._buses.link import Link
from uvm.devices.base import Entry, Ticket
from uvm.devices.ledger import Ledger
from uvm.errors import NotSupportedError, UndoFailedError, UVMError, is_refusal, own, together

S_co = TypeVar("S_co", covariant=True)


class HoldState(Enum):
    """The states of a hold."""

    WAITING = "waiting"  # for the device to be attached
    GRANTED = "granted"  # the caller has not resumed yet, or it is held for what depends on it
    HELD = "held"  # by a caller
    RELEASING = "releasing"
    OWED = "owed"  # the removal was refused: may be released again
    ENDED = "ended"


_WAITING, _GRANTED, _HELD, _RELEASING, _OWED, _ENDED = HoldState


class Runner(Protocol):
    """What a hold asks of the driver whose ledger has its ticket."""

    link: Link
    ledger: Ledger[Any, Any, Any, Any, Any]

    def drop(self, hold: Hold[Any]) -> None:
        """Release a hold."""

    def is_wanted(self, entry: Entry[Any, Any, Any, Any], member: Any) -> bool:
        """Return whether a ticket wants what a member is of a device."""

    def claims_of(self, ticket: Ticket[Any, Any, Any, Any], *, if_unwanted: bool = False) -> set[Hashable]:
        """Return all that a ticket occupies, and what its device is a part of."""


@define(eq=False, repr=False)
class Stay:
    """A device on the host, from the grant of its first hold until it is removed.

    :ivar below: what it is a part of, such as the disk of a mount, and the member that it holds there.
    :ivar error: why it cannot be known whether it is gone.
    :ivar refusal: what its last removal was refused with.
    """

    _driver: Runner
    _entry: Entry[Any, Any, Any, Any]
    below: tuple[Stay, Any] | None = None
    ended: bool = field(default=False, init=False)
    error: BaseException | None = field(default=None, init=False)
    refusal: BaseException | None = field(default=None, init=False)
    _changed: Line = field(factory=Line, init=False)

    def change(self, refusal: BaseException | None = None) -> None:
        """Note the outcome of an operation, and wake those that wait."""
        self.refusal = refusal
        self._changed.wake()

    def end(self, error: BaseException | None = None) -> None:
        """Note that the device is gone, or that this is unknown."""
        self.ended, self.error = True, error
        self.change()

    def is_gone(self, member: Any) -> bool:
        """Return whether what a member is of it is off the host."""
        return self.ended or not self._driver.ledger.device.covers(self._entry.applied, member)

    def check_not_retained(self) -> None:
        """Refuse to wait for the end of a device that stays without holders.

        :raises NotSupportedError: it does.
        """
        entry = self._entry
        if not self.ended and self._driver.ledger.retains(entry):
            raise NotSupportedError(
                f"{entry.key} stays attached to {self._driver.link.vm_id} until the VM closes, since the "
                "guest may have its files mapped: its end cannot be waited for"
            )

    async def wait(self, member: Any) -> None:
        """Wait until what a member is of it is off the host; raise what its removal was refused with."""
        while not self.is_gone(member):
            if self.refusal is not None and not self._driver.is_wanted(self._entry, member):
                raise own(self.refusal)
            await self._changed.wait()
        if self.error is not None:
            raise own(self.error)


class Turn(Flag):
    """One grant or one release of a hold; set once it has come or failed.

    :ivar error: what it failed with.
    :ivar callers: of a release, how many wait for it, or have learnt that it failed and have not left.
    """

    __slots__ = ("callers", "error")

    def __init__(self) -> None:
        super().__init__()
        self.callers = 0
        self.error: BaseException | None = None


@define(eq=False, repr=False)
class Hold(Generic[S_co]):
    """One caller's interest in a device, and the ticket that it is at. Await it to have it granted.

    :ivar driver: the one whose ledger has the ticket.
    :ivar need: the access that the device needs, if this hold is what it is added for.
    :ivar then: what is begun as soon as it is granted; returns the hold on that.
    :ivar upper: that hold, which keeps this one.
    :ivar refusal: what `then` raised.
    :ivar number: of two holds, the older has the lower one.
    :ivar error: what the last wait ends with, if it fails.
    :ivar stay: the device, once granted.
    :ivar since: when it was left without a caller.
    :ivar below: what it was made of, released for no caller once it is known to have ended itself.
    """

    driver: Runner
    _granted: Ticket[Hashable, object, S_co, object]
    need: Need | None = None
    then: Callable[[Hold[Any]], Hold[Any]] | None = None
    number: int = field(factory=count().__next__, init=False)
    ticket: Ticket[Any, Any, Any, Any] = field(
        default=Factory(lambda self: self._granted, takes_self=True), init=False
    )
    state: HoldState = field(default=_WAITING, init=False)
    error: BaseException | None = field(default=None, init=False)
    upper: Hold[Any] | None = field(default=None, init=False)
    refusal: Exception | None = field(default=None, init=False)
    stay: Stay | None = field(default=None, init=False)
    since: datetime | None = field(default=None, init=False)
    below: tuple[Hold[object], ...] = field(default=(), init=False)
    #: No caller holds it or waits for it any more.
    abandoned: bool = field(default=False, init=False)
    #: A caller has seen it released.
    reported: bool = field(default=False, init=False)
    #: Its grant, or its last release, once that is waited for.
    _turn: Turn | None = field(default=None, init=False)
    #: The release whose outcome a caller of it has learnt last.
    _learnt: Turn | None = field(default=None, init=False)

    @property
    def link(self) -> Link:
        """The VM."""
        return self.driver.link

    @property
    def slot(self) -> S_co:
        """The slot of the device, once granted and until it is released."""
        return self._granted.entry.slot

    @property
    def released(self) -> bool:
        """Whether its release is complete, or the VM has exited."""
        return self.state is _ENDED or self.link.exited.is_set()

    @property
    def is_orphan(self) -> bool:
        """Whether what it is for is attached for no caller, since a removal was refused."""
        return (
            self.abandoned
            and self.state is _OWED
            and not self.driver.is_wanted(self.ticket.entry, self.ticket.member)
        )

    def describe(self) -> tuple[str, str]:
        """Return what it is at now, and where, for people."""
        ticket = self.ticket
        return self.driver.ledger.device.describe(ticket.key, ticket.entry.slot, ticket.member)

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._wait_granted().__await__()

    async def _wait_granted(self) -> Self:
        """Wait until it is granted. Cancelled or failed, nothing is left behind."""
        try:
            error = await self._wait_settled()
        except BaseException:
            self._forsake()
            raise
        return self._taken(error)

    def _taken(self, error: BaseException | None) -> Self:
        """Have it held by the caller that waited for it, or raise what that failed with."""
        if error is not None:
            self.leave()
            raise own(error)
        self.state, self._turn = _HELD, None
        return self

    def _forsake(self) -> None:
        """Note that the caller that waited for it has gone: release it, or have it listed as an orphan."""
        self.leave() if self.state is _OWED else self.abandon()

    async def through(self) -> Hold[Any]:
        """Wait until it is granted and what was begun `then` as well; return the hold on that.

        Cancelled or failed, nothing is left behind.

        :raises UndoFailedError: what was to follow was refused, and so was the release of this.
        """
        granted = self.upper if self.state is _GRANTED else None
        try:
            error = await (granted or self)._wait_settled()
        except BaseException:
            (self.upper or self)._forsake()
            raise
        if self.upper is not None:
            return self.upper._taken(error)
        self._taken(error)
        assert self.refusal is not None
        await self.undo(self.refusal)
        raise self.refusal

    def grant(self) -> None:
        """Note that the device is attached; begin what is to follow, whose end then wakes the caller."""
        if self.then is None:
            self.settle(_GRANTED)
            return
        turn, self._turn = self._turn, None
        self.state = _GRANTED
        try:
            self.upper = self.then(self)
        except Exception as error:
            self.refusal = error
        if self.upper is not None and self.upper.state is _WAITING:
            self.upper._turn = turn
        elif turn is not None:
            turn.error = None if self.upper is None else self.upper.error
            turn.set()

    def settle(self, state: HoldState) -> None:
        """End the wait for a grant or a release."""
        self.state = state
        self._list()
        if self._turn is not None:
            self._turn.error = self.error
            self._turn.set()
        # What may still be used stays.
        if state is _ENDED and (self.error is None or is_refusal(self.error)):
            for hold in self.below:
                hold.abandon()

    def _list(self) -> None:
        """List it among what may be an orphan, or no longer; it stays listed while its removal is retried."""
        retried = self.state is _RELEASING and self.since is not None
        if self.abandoned and (self.state is _OWED or retried):
            self.since = self.since or datetime.now(UTC)
            self.link.left.add(self, Hold._claims)
        elif self.since is not None:
            self.since = None
            self.link.left.remove(self)

    def _claims(self) -> set[Hashable]:
        """Return all that others may want to attach, and that it occupies."""
        return self.driver.claims_of(self.ticket, if_unwanted=True)

    def _joined(self) -> Turn:
        """Return what :meth:`settle` ends, or has ended."""
        if self._turn is None:
            self._turn = Turn()
            if self.state is not _WAITING and self.state is not _RELEASING:
                self._turn.error = self.error
                self._turn.set()
        return self._turn

    async def _wait_settled(self) -> BaseException | None:
        """Wait for :meth:`settle`; return what failed."""
        turn = self._joined()
        if not turn.is_set():
            await turn.wait()
        return turn.error

    def drop(self, *, abandoned: bool = False) -> None:
        """Release it, unless that is under way. It takes effect at once; the VM's tasks do what follows.

        A template keeps the device all the same.

        :raises VMStateError: the VM belongs to another event loop.
        """
        self.link.check_here()
        self.abandoned = abandoned
        if self.link.saved:
            self.settle(_ENDED)
        elif self.state is not _RELEASING and self.state is not _ENDED:
            self._turn = self.error = None
            self.state = _RELEASING
            self.driver.drop(self)
        self._list()

    def abandon(self) -> None:
        """Release it for no caller: if that is refused, it is an orphan."""
        self.drop(abandoned=True)

    def leave(self) -> None:
        """Note that its caller has gone: if its release was refused, or will be, it is an orphan."""
        self.abandoned = True
        self._list()

    def inherit(self, parent: Hold[object]) -> None:
        """Go on with the ticket of what the device depended on, and release that as well."""
        self.ticket, self.driver = parent.ticket, parent.driver
        self.state = _RELEASING
        self._list()
        self.driver.drop(self)

    async def wait_released(self) -> None:
        """Wait until what :meth:`drop` began is complete; cancelling stops only the waiting."""
        if (error := await self._wait_settled()) is not None:
            raise own(error)

    async def release(self) -> None:
        """Release it for the caller that has it, unless that is under way, and wait for the outcome."""
        self.drop(abandoned=self.abandoned)
        await self.report()

    async def report(self) -> None:
        """Wait for the outcome of what :meth:`drop` began, and note that a caller has seen it."""
        await self.wait_released()
        self.reported = True

    def left(self) -> None:
        """Note that the caller that has just learnt how its release ended has left, if that failed."""
        if self._learnt is not None and self._learnt.error is not None:
            self._left_by_one(self._learnt)

    def _left_by_one(self, turn: Turn) -> None:
        turn.callers -= 1
        # The next one may have begun, and has callers of its own, unless that is by the name of the device.
        if turn.callers <= 0 and (self._turn is None or self._turn.callers <= 0):
            self.leave()

    async def undo(self, error: Exception) -> None:
        """Release it because of an error, and wait until it is released.

        :raises UndoFailedError: that failed as well.
        """
        self.abandon()
        try:
            await self.wait_released()
        except UVMError as undo_error:
            raise UndoFailedError.of(error, undo_error) from None

    def reclaim(self) -> None:
        """Note that a caller has it: it is no orphan. Errors as of :meth:`drop`."""
        self.link.check_here()
        self.abandoned = False
        self._list()

    def _parts(self) -> list[tuple[Stay, Any]]:
        """Return the stays of the device and of all that it is a part of, each with what is held."""
        parts: list[tuple[Stay, Any]] = []
        part = None if self.stay is None else (self.stay, self._granted.member)
        while part is not None:
            parts.append(part)
            part = part[0].below
        return parts

    def is_gone(self) -> bool:
        """Return whether the device is off the host, and all that it is a part of."""
        return all(stay.is_gone(member) for stay, member in self._parts())

    def check_not_retained(self) -> None:
        """Refuse to wait for the end of what stays without holders.

        :raises NotSupportedError: the device does, or what it is a part of.
        """
        for stay, _ in self._parts():
            stay.check_not_retained()

    async def gone(self) -> None:
        """Wait until the device is off the host, and all that it is a part of."""
        self.link.check_here()
        for stay, member in self._parts():
            await stay.wait(member)


async def released_by_one(holds: Iterable[Hold[Any]], what: str = "") -> None:
    """Wait, as one of their callers, until what :meth:`Hold.drop` began of several holds is complete.

    Cancelling it stops only the waiting; the caller has left all of them then.

    :param what: what is done, for the error if several fail.
    """
    turns = [(hold, hold._joined()) for hold in holds]
    for _, turn in turns:
        turn.callers += 1
    try:
        for _, turn in turns:
            if not turn.is_set():
                await turn.wait()
    except BaseException:
        for hold, turn in turns:
            hold._left_by_one(turn)
        raise
    for hold, turn in turns:
        hold._learnt = turn
        hold.reported = hold.reported or turn.error is None
    errors: list[Any] = [own(turn.error) for _, turn in turns if turn.error is not None]
    if errors:
        raise together(what, errors)
