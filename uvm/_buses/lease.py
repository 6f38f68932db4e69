"""What callers get: leases, and the awaitables that give them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from attrs import define, field

from uvm._buses.driver import Hold
from uvm.errors import AlreadyReleasedError


class Releasable(Protocol):
    """What a :class:`Pending` gives: it can be released, once."""

    @property
    def released(self) -> bool:
        """Whether it has been given back."""

    async def release(self) -> None:
        """Give it back."""


L = TypeVar("L", bound=Releasable)


@define(eq=False)
class Lease:
    """One reference to something attached to a VM. It ends with :meth:`release`, or with the VM.

    What is attached goes when its last lease does.
    """

    _hold: Hold = field(repr=False)

    @property
    def released(self) -> bool:
        """Whether this lease has been given back, or the VM has gone."""
        return self._hold.ended or (self._hold.dropped and not self._hold.may_release_again)

    async def release(self) -> None:
        """Give it back, and wait until the device is gone if this was its last lease.

        It takes effect at once: cancelling it stops only the waiting. Where the host or the guest refuses
        the removal, that error is raised, the lease is still yours, and you may release it again: it goes
        on from the step that failed. After the VM has exited, a release succeeds quietly.

        :raises AlreadyReleasedError: it was released before.
        :raises UnknownOutcomeError: nobody knows whether it is gone; its slot stays withheld.
        """
        self._refuse_twice()
        self._hold.drop()
        await self._hold.wait_released()

    def give_up(self) -> None:
        """Give it back without waiting, if it has not been given back; what then fails is logged."""
        if not self.released:
            self._hold.drop()

    def _refuse_twice(self) -> None:
        hold = self._hold
        if hold.dropped and not hold.may_release_again and not hold.driver.link.exited.is_set():
            raise AlreadyReleasedError(f"{self!r} was released before")


class Pending(Generic[L]):
    """A lease that is yet to be had: ``await`` it, or enter it with ``async with`` to have it released."""

    __slots__ = ("_lease", "_make")

    def __init__(self, make: Callable[[], Awaitable[L]]) -> None:
        self._make = make
        self._lease: L | None = None

    def __await__(self) -> Generator[Any, Any, L]:
        return self._make().__await__()

    async def __aenter__(self) -> L:
        self._lease = await self._make()
        return self._lease

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._lease is not None
        if not self._lease.released:
            await self._lease.release()
