"""What scenarios state. Functions, not ``assert`` statements, so that they hold under ``python -O`` too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.abc
from attrs import define, field

from uvm.errors import HostError

#: How often a condition is looked at that nothing tells of.
_LOOK_SECONDS = 0.001


def check(holds: object, what: str) -> None:
    """Fail where something does not hold; ``what`` says what should."""
    if not holds:
        raise AssertionError(what)


def equal(actual: object, expected: object, what: str) -> None:
    """Fail where two values differ."""
    if actual != expected:
        raise AssertionError(f"{what}: {actual!r}, expected {expected!r}")


@contextmanager
def raises(*kinds: type[BaseException]) -> Iterator[None]:
    """Fail where the body does not raise one of these."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"nothing was raised, expected {' or '.join(kind.__name__ for kind in kinds)}")


@contextmanager
def refused(*names: str, what: str = "") -> Iterator[None]:
    """Fail where the body is not refused by the host with one of these codes, by their symbolic names."""
    about = f"{what}: " if what else ""
    try:
        yield
    except HostError as error:
        if error.name not in names:
            raise AssertionError(f"{about}refused with {error.name}, expected {names}: {error}") from error
        return
    raise AssertionError(f"{about}it was not refused, expected {' or '.join(names)}")


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds of which nothing tells; the patience of the rig ends it."""
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(_LOOK_SECONDS)


def leaves(error: BaseException) -> list[BaseException]:
    """Give the errors of a group, of its groups, and so on; or the one that there is."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]


@define(eq=False)
class Attempt:
    """A call in a task of its own, with its result or its error once it has ended."""

    call: Callable[[], Awaitable[Any]]
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    result: Any = None
    error: Any = None
    _ended: anyio.Event = field(factory=anyio.Event, init=False)

    @classmethod
    def begin(cls, tasks: anyio.abc.TaskGroup, call: Callable[[], Awaitable[Any]]) -> Attempt:
        """Start a task that makes the call."""
        attempt = cls(call)
        tasks.start_soon(attempt._make)
        return attempt

    @property
    def done(self) -> bool:
        """Whether the call has ended, in whatever manner."""
        return self._ended.is_set()

    async def wait(self) -> None:
        """Wait until the call has ended."""
        await self._ended.wait()

    async def cancel(self) -> None:
        """Cancel the call, and wait until it has ended."""
        self.scope.cancel()
        await self.wait()

    async def _make(self) -> None:
        try:
            with self.scope:
                try:
                    self.result = await self.call()
                except Exception as error:
                    self.error = error
        finally:
            self._ended.set()
