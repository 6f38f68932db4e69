"""What callers hold: leases; and orphans, which no caller holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from typing import ClassVar, Self, TypeVar

import anyio
from attrs import define, field, frozen

from uvm._async import end_after
from uvm._buses.holds import Hold, HoldState, released_by_one
from uvm._buses.link import Link
from uvm._errands import Release
from uvm._home import Bound
from uvm._repr import arguments_of, brief
from uvm.errors import AlreadyReleasedError

L = TypeVar("L", bound="Lease")


class LeaseState(Enum):
    """The states of a lease.

    ``HELD``: by its caller. ``RELEASING``: its release is under way. ``REFUSED``: its release was refused,
    and may be tried again. ``RELEASED``: the device stays, since other leases hold it or it is retained.
    ``GONE``: the device is off the host, or the VM has exited. ``UNKNOWN``: whether it is off the host is
    unknown; its slot is withheld.
    """

    HELD = "held"
    RELEASING = "releasing"
    REFUSED = "refused"
    RELEASED = "released"
    GONE = "gone"
    UNKNOWN = "unknown"


class Releasable(Bound):
    """What is released once. As an async context manager it is released on leaving, unless it was before.

    What its release fails with then is raised, or added as notes to the exception of the body.
    """

    __slots__ = ()

    @property
    def released(self) -> bool:
        """Whether its release is complete, or the VM has exited."""
        raise NotImplementedError

    async def release(self) -> None:
        """Release it."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    def _leave(self) -> None:
        """Note that no caller is expected to release it again: what stays of it is an orphan."""

    def _left(self) -> None:
        """Note that the caller that has just learnt that its release failed has left."""

    async def __aexit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        await end_after(exc, self._release_at_end, f"releasing a {type(self).__name__}")

    async def _release_at_end(self) -> None:
        try:
            if not self.released:
                await self.release()
        except Exception:
            # Other callers may have it still. One that is cancelled is noted by what it waits for.
            self._left()
            raise


def state_of(hold: Hold[object]) -> LeaseState:
    """Return the state of a lease, by its hold."""
    if hold.link.exited.is_set():
        return LeaseState.GONE
    if hold.state is HoldState.RELEASING:
        return LeaseState.RELEASING
    if hold.state is HoldState.OWED:
        return LeaseState.REFUSED
    if hold.state is not HoldState.ENDED:
        return LeaseState.HELD
    if hold.error is not None:
        return LeaseState.UNKNOWN
    return LeaseState.GONE if hold.is_gone() else LeaseState.RELEASED


_S = LeaseState
_PRECEDENCE = (_S.RELEASING, _S.REFUSED, _S.HELD, _S.UNKNOWN, _S.RELEASED)


def state_of_all(holds: Iterable[Hold[object]]) -> LeaseState:
    """Return the state of what is released together, such as a namespace and its adapters."""
    states = {*map(state_of, holds)}
    return next((state for state in _PRECEDENCE if state in states), LeaseState.GONE)


async def all_gone(holds: Sequence[Hold[object]]) -> None:
    """Wait until all of several devices are off the host; see :meth:`Lease.gone`."""
    for hold in holds:
        hold.check_not_retained()
    for hold in holds:
        await hold.gone()


@define(eq=False)
class Lease(Releasable):
    """One reference to something attached to a VM. It ends with :meth:`release`, or with the VM.

    The device is detached with its last lease.
    """

    _hold: Hold[object]

    @property
    def _all_holds(self) -> tuple[Hold[object], ...]:
        """All that it holds, in the order in which it is released."""
        return (self._hold,)

    def __repr__(self) -> str:
        vm = self._hold.link.vm_id
        return brief(f"<{type(self).__name__} of {vm}: {arguments_of(self)} ({self.state.value})>")

    @property
    def state(self) -> LeaseState:
        """The state of the lease now."""
        return state_of_all(self._all_holds)

    @property
    def released(self) -> bool:
        """Whether the release of this lease is complete, or the VM has exited."""
        return all(hold.released for hold in self._all_holds)

    async def release(self) -> None:
        """Release the lease, and wait until the device is detached if this was its last one.

        It takes effect at once: cancelling it stops only the waiting, and a further release waits for the
        same outcome. If the host or the guest refuses the removal, that error is raised, the lease is still
        held and may be released again, which goes on from the step that failed. After the VM has exited, a
        release succeeds quietly.

        :raises AlreadyReleasedError: a release of it has succeeded before.
        :raises UnknownOutcomeError: whether the device is detached is unknown; its slot stays withheld.
        """
        if self._hold.link.exited.is_set():
            return
        if self._hold.reported:
            raise AlreadyReleasedError(f"{self!r} was released before")
        self._hold.drop()
        await released_by_one([self._hold])

    async def gone(self) -> None:
        """Wait until the device is off the host, removed after its last lease.

        Any number of tasks may wait, before the lease is released or after; it releases nothing. What the
        device is a part of is waited for too, such as the disk of a mount. It returns when the VM exits.

        :raises RefusedError: the removal was refused; the device is attached, and may be released again.
        :raises UnknownOutcomeError: whether it is off the host is unknown; its slot stays withheld.
        :raises NotSupportedError: it stays attached without leases, as a direct-mapped VSMB share does.
        """
        await all_gone(self._all_holds)

    def give_up(self) -> None:
        """Release the lease without waiting, unless it was released; if that is refused, it is an orphan."""
        if not self.released:
            self._hold.abandon()

    def _leave(self) -> None:
        for hold in self._all_holds:
            hold.leave()

    def _left(self) -> None:
        for hold in self._all_holds:
            hold.left()


@define(eq=False, repr=False)
class ReleasedByTask(Releasable):
    """Several parts that a task of the VM releases in order. It ends with its release, or with the VM."""

    #: Its release, as an operation.
    _operation: ClassVar[str]

    _releasing: Release = field(init=False)
    #: A caller has seen it released.
    _reported: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        link = self._link
        self._releasing = Release(link.vm_id, self._operation, self._take_apart, link.start_soon, self._leave)

    @property
    def _link(self) -> Link:
        raise NotImplementedError

    async def _take_apart(self) -> None:
        """Release its parts in order, or what is left of them; raise what failed."""
        raise NotImplementedError

    def _state_of_parts(self) -> LeaseState:
        """Return its state once a release of it has ended."""
        raise NotImplementedError

    @property
    def state(self) -> LeaseState:
        """The state of all of it now, as of a lease."""
        if self._link.exited.is_set():
            return LeaseState.GONE
        if not self._releasing.begun:
            return LeaseState.HELD
        return LeaseState.RELEASING if self._releasing.in_flight else self._state_of_parts()

    @property
    def released(self) -> bool:
        """Whether its release is complete, or the VM has exited."""
        return self.state in (LeaseState.RELEASED, LeaseState.GONE, LeaseState.UNKNOWN)

    async def release(self) -> None:
        """Release all of it.

        A task of the VM does it: cancelling this stops only the waiting, and a further release waits for the
        same outcome. If a part is refused, the rest is done as far as it can be, the errors are raised, and a
        further release goes on with what is left.

        :raises AlreadyReleasedError: a release of it has succeeded before.
        :raises UnknownOutcomeError: whether a part is off the host is unknown; its slot stays withheld.
        """
        if self._link.exited.is_set():
            return
        if self._reported:
            raise AlreadyReleasedError(f"{self!r} was released before")
        await self._releasing.wait()
        self._reported = True

    def _left(self) -> None:
        self._releasing.left()


async def leases_of(makers: Sequence[Callable[[], Awaitable[L]]]) -> list[L]:
    """Get several leases at once: all of them, in order, or none and the first error."""
    got: dict[int, L] = {}
    errors: list[Exception] = []

    async def one(index: int, make: Callable[[], Awaitable[L]]) -> None:
        try:
            got[index] = await make()
        except Exception as error:
            errors.append(error)
            tasks.cancel_scope.cancel()

    with released_on_failure(got.values()):
        async with anyio.create_task_group() as tasks:
            for index, make in enumerate(makers):
                tasks.start_soon(one, index, make)
        if errors:
            raise errors[0]
    return [got[index] for index in range(len(makers))]


@contextmanager
def released_on_failure(leases: Iterable[Lease]) -> Iterator[None]:
    """Release leases for no caller if the body fails."""
    try:
        yield
    except BaseException:
        for lease in leases:
            lease.give_up()
        raise


@frozen
class Orphan(Bound):
    r"""What is attached and no caller holds: its removal was refused, and the caller failed or was cancelled.

    It is also removed when another caller attaches the same and releases it.

    :ivar ledger: the name of its ledger in :meth:`UtilityVM.ledgers`.
    :ivar key: what makes it one device, such as its host path.
    :ivar what: the device, for people, such as ``disk C:\a.vhdx``.
    :ivar where: its slot, for people, such as ``SCSI controller 0, LUN 1``.
    :ivar error: what the removal failed with.
    :ivar since: since when it has no caller.
    """

    ledger: str
    key: object
    slot: object
    what: str
    where: str
    error: BaseException | None = field(eq=False)
    since: datetime
    _release: Callable[[], Awaitable[None]]

    def __repr__(self) -> str:
        return brief(f"<Orphan: {self.what} at {self.where} since {self.since:%H:%M:%S}: {self.error}>")

    async def release(self) -> None:
        """Try again to remove it; do nothing if it was removed meanwhile."""
        await self._release()
