"""The checks of scenarios: functions, not ``assert`` statements, so that ``python -O`` keeps them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVarTuple

import anyio
import anyio.abc
from attrs import define, field

from uvm._async import Flag
from uvm.errors import HostError

Args = TypeVarTuple("Args")

#: The interval between looks at a condition that nothing signals.
_LOOK_SECONDS = 0.001


def check(holds: object, what: str) -> None:
    """Fail unless `holds`; ``what`` says what should hold."""
    if not holds:
        raise AssertionError(what)


def equal(actual: object, expected: object, what: str) -> None:
    """Fail if two values differ."""
    if actual != expected:
        raise AssertionError(f"{what}: {actual!r}, expected {expected!r}")


@contextmanager
def raises(*kinds: type[BaseException]) -> Iterator[None]:
    """Fail unless the body raises one of these."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"nothing was raised, expected {' or '.join(kind.__name__ for kind in kinds)}")


@contextmanager
def refused(*names: str, what: str = "") -> Iterator[None]:
    """Fail unless the host refuses the body with one of these codes, by their symbolic names."""
    about = f"{what}: " if what else ""
    try:
        yield
    except HostError as error:
        if error.name not in names:
            raise AssertionError(f"{about}refused with {error.name}, expected {names}: {error}") from error
        return
    raise AssertionError(f"{about}it was not refused, expected {' or '.join(names)}")


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds that nothing signals, up to the rig's timeout."""
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(_LOOK_SECONDS)


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors in a group and its subgroups; a single error is returned alone."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaves(each)]
    return [error]


@define(eq=False)
class Attempt:
    """A call in a task of its own, and its result or error."""

    call: Callable[[], Awaitable[Any]]
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    result: Any = None
    error: Any = None
    _ended: Flag = field(factory=Flag, init=False)

    @classmethod
    def begin(
        cls, tasks: anyio.abc.TaskGroup, call: Callable[[*Args], Awaitable[Any]], *args: *Args
    ) -> Attempt:
        """Start a task that makes the call."""
        attempt = cls(partial(call, *args))
        tasks.start_soon(attempt._make)
        return attempt

    @property
    def refusal(self) -> Any:
        """The symbolic name of the host's refusal; otherwise the error, or None."""
        return getattr(self.error, "name", self.error)

    @property
    def done(self) -> bool:
        """Whether the call has ended, by whatever means."""
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


async def cancel_one_waiter(wait: Callable[[], Awaitable[Any]], end: Callable[[], Awaitable[object]]) -> Any:
    """Cancel one of two waits, have what they wait for end, and return the result of the other wait."""
    async with anyio.create_task_group() as tasks:
        staying, leaving = Attempt.begin(tasks, wait), Attempt.begin(tasks, wait)
        await leaving.cancel()
        equal((leaving.result, leaving.error), (None, None), "the result of the cancelled wait")
        await end()
    return staying.result
