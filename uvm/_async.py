"""Task groups, events, and what is yet to be opened, as uvm uses them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import wraps
from inspect import CORO_CREATED, getcoroutinestate
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

from uvm._arguments import own
from uvm._checks import suggested
from uvm._home import asyncio_loop, trio_lowlevel
from uvm._repr import showing
from uvm.errors import VMStateError

A = ParamSpec("A")
C = TypeVar("C", bound=AbstractAsyncContextManager[Any])
T = TypeVar("T")


@showing("waiting")
class Line:
    """Tasks that wait until all of them are woken, in the order in which they came.

    It behaves as an event of anyio does, at a fraction of its cost and memory: a wait is a checkpoint, and a
    task that is cancelled leaves the line.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: dict[_Waiter, None] | None = None

    @property
    def waiting(self) -> int:
        """How many tasks wait."""
        return len(self._waiters or ())

    def wake(self) -> None:
        """Wake all that wait, but not those that come from now on."""
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            # One that was cancelled leaves the line when it runs.
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """Wait to be woken."""
        trio = trio_lowlevel()
        waiter: _Waiter = asyncio_loop().create_future() if trio is None else _TrioWaiter(trio)
        if self._waiters is None:
            self._waiters = {}
        self._waiters[waiter] = None
        try:
            await waiter
        except BaseException:
            if self._waiters is not None:
                self._waiters.pop(waiter, None)
            raise


class _Waiter(Protocol):
    """What a task awaits in line: what is needed here of a future of asyncio."""

    def done(self) -> bool: ...

    def set_result(self, result: None, /) -> None: ...

    def __await__(self) -> Generator[Any, Any, None]: ...


class _TrioWaiter:
    """The future of a task of trio."""

    __slots__ = ("_done", "_lowlevel", "_task")

    def __init__(self, lowlevel: Any) -> None:
        self._lowlevel = lowlevel
        self._task = lowlevel.current_task()
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_result(self, result: None, /) -> None:
        self._done = True
        self._lowlevel.reschedule(self._task)

    def __await__(self) -> Generator[Any, Any, None]:
        return self._lowlevel.wait_task_rescheduled(self._abort).__await__()  # type: ignore[no-any-return]

    def _abort(self, raise_cancel: object) -> Any:
        self._done = True
        return self._lowlevel.Abort.SUCCEEDED


@showing("is_set")
class Flag(Line):
    """An event that takes little memory until a task waits for it."""

    __slots__ = ("_set",)

    def __init__(self) -> None:
        super().__init__()
        self._set = False

    def is_set(self) -> bool:
        """Return whether it was set."""
        return self._set

    def set(self) -> None:
        """Wake every waiter. A second call does nothing."""
        self._set = True
        self.wake()

    async def wait(self) -> None:
        """Wait until it is set."""
        if self._set:
            await anyio.lowlevel.checkpoint()
        else:
            await super().wait()


_in_work: ContextVar[bool] = ContextVar("uvm_in_work", default=False)


def in_work() -> bool:
    """Return whether what runs is in flight, as of :class:`Work`, or was begun by that."""
    return _in_work.get()


@showing("busy", "owed")
class Work:
    """How much the tasks of a VM have in flight, so that one can wait for the end of it.

    :ivar owed: how many starts, whose callers have left, the guest has not answered; they are not in `busy`.
    """

    __slots__ = ("_changed", "_closed", "busy", "owed")

    def __init__(self) -> None:
        self.busy: int = 0
        self.owed: int = 0
        self._closed = False
        self._changed = Line()

    def begin(self) -> None:
        """Note that a task begins something."""
        self._change(+1, 0)

    def end(self) -> None:
        """Note that it has ended."""
        self._change(-1, 0)

    def owe(self) -> None:
        """Note that the guest owes the answer to something that was begun."""
        self._change(-1, +1)

    def repay(self) -> None:
        """Note that the guest has answered it, or will not."""
        self._change(+1, -1)

    def close(self) -> None:
        """Note that nothing is in flight any more, and will not be: the VM has exited."""
        self._change(-self.busy, -self.owed)
        self._closed = True

    def _change(self, busy: int, owed: int) -> None:
        if self._closed:
            return
        self.busy += busy
        self.owed += owed
        self._changed.wake()

    def start_soon(self, tasks: anyio.abc.TaskGroup, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have a task of a group make a call, which is in flight until it has ended."""
        self.begin()
        tasks.start_soon(self.carry_out, call)

    async def carry_out(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that was noted as begun."""
        _in_work.set(True)
        try:
            return await call()
        finally:
            self.end()

    def look(self) -> None:
        """Have those that wait look again: what else they wait for has changed."""
        self._changed.wake()

    async def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait until what is in flight is such."""
        while not done():
            await self._changed.wait()


class BareTaskGroup:
    """Runs tasks beside a body, whose exception is raised as it is, not wrapped in a group.

    :param close: called at the end of the body, with its exception, to have the tasks end; it returns the
        exception to raise, if any.
    :param elsewhere: the error if it is left in another task: VMStateError; the tasks have ended.
    """

    __slots__ = ("_close", "_elsewhere", "_entered_in", "_tasks")

    def __init__(
        self,
        close: Callable[[BaseException | None], Awaitable[BaseException | None]],
        elsewhere: str = "a task group was left in another task than it was entered in",
    ) -> None:
        self._close = close
        self._elsewhere = elsewhere
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> anyio.abc.TaskGroup:
        self._entered_in = anyio.get_current_task().id
        return await self._tasks.__aenter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failure = await self._close(exc)
        # What else the body raised is kept out of the task group, which would wrap it.
        cancelled = failure if isinstance(failure, anyio.get_cancelled_exc_class()) else None
        if anyio.get_current_task().id != self._entered_in:
            # Only the task that entered a group can leave it: trio waits for ever, and anyio raises.
            if cancelled is None and not isinstance(failure, GeneratorExit):
                raise VMStateError(self._elsewhere) from failure
        elif cancelled is None:
            await self._tasks.__aexit__(None, None, None)
        else:
            await self._tasks.__aexit__(type(cancelled), cancelled, cancelled.__traceback__)
        if failure is not None and failure is not exc:
            raise failure


@contextmanager
def cancelled_too(failure: object) -> Iterator[None]:
    """Cancel what is awaited within if a context is left by a cancellation: it begins, and is not waited for.

    asyncio cancels a task once, and would not end the wait.

    :param failure: what the body of the context raised.
    """
    with anyio.CancelScope() as scope:
        if isinstance(failure, anyio.get_cancelled_exc_class()):
            scope.cancel()
        yield


async def end_after(failure: BaseException | None, end: Callable[[], Awaitable[object]], what: str) -> None:
    """End what a context is left of; what that fails with is raised, or becomes notes of a failure.

    A caller that is cancelled does not wait for it: see :func:`cancelled_too`.

    :param failure: what the body of the context raised.
    :param what: what is done, for the notes.
    """
    with cancelled_too(failure):
        try:
            await end()
        except Exception as error:
            if failure is None:
                raise
            note_failed(failure, what, error)


def note_failed(failure: BaseException, what: str, error: Exception) -> None:
    """Add what failed after a failure to that, as notes."""
    for each in error.exceptions if isinstance(error, ExceptionGroup) else (error,):
        failure.add_note(f"and {what} failed: {each}")


async def errors_of(
    calls: Iterable[Callable[[], Awaitable[object]]], at_once: int | None = None
) -> list[Exception]:
    """Make calls at once, and return the errors of those that fail.

    :param at_once: how many calls are in flight at most; None for all of them.
    """
    calls = [*calls]
    waiting = iter(calls)
    errors: list[Exception] = []

    async def make() -> None:
        for call in waiting:
            try:
                await call()
            except Exception as error:
                errors.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in calls[:at_once]:
            tasks.start_soon(make)
    return errors


class Opening(Coroutine[Any, Any, C]):
    """What is yet to be opened: ``await`` it, or enter it with ``async with`` to have it closed on leaving.

    Either is done once. It is a coroutine: tasks can be made of it, and one that is never awaited warns.
    """

    __slots__ = ("_coroutine", "_opened")

    def __init__(self, coroutine: Coroutine[Any, Any, C]) -> None:
        self._coroutine: Any = coroutine
        self._opened: C | None = None

    def __repr__(self) -> str:
        used = "" if getcoroutinestate(self._coroutine) == CORO_CREATED else ", which was done"
        return f"<{type(self).__name__} {self._coroutine.__qualname__}: to be awaited or entered{used}>"

    def send(self, value: Any, /) -> Any:
        """Go on, as an event loop does."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an exception in it, as an event loop does to cancel."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """End it, without opening anything if it was not awaited yet."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, C]:
        if getcoroutinestate(self._coroutine) != CORO_CREATED:
            name = self._coroutine.__qualname__
            raise RuntimeError(f"{name}: what it returned was already awaited or entered; call it again")
        return self._coroutine.__await__()  # type: ignore[no-any-return]

    async def __aenter__(self) -> C:
        opened = await self
        self._opened = opened
        await opened.__aenter__()
        return opened

    async def __aexit__(self, *error: Any) -> bool | None:
        assert self._opened is not None
        return await self._opened.__aexit__(*error)

    if not TYPE_CHECKING:  # To a type checker it has no attributes but its own.

        def __getattr__(self, name: str) -> Any:
            """Return what event loops and debuggers read of a coroutine: its frame, its name."""
            if name.startswith("cr_") or name in ("__name__", "__qualname__"):
                return getattr(self._coroutine, name)
            raise AttributeError(f"{self!r} has no attribute {name!r}: await or enter it first")


class Entering(AbstractAsyncContextManager[T]):
    """What is entered with ``async with``, once; what else is tried with it says so."""

    def __init__(self, context: AbstractAsyncContextManager[T], name: str, hint: str) -> None:
        self._context = context
        self._name = name
        self._hint = hint
        self._entered = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}: to be entered with 'async with'>"

    # Neither is a coroutine function: tracebacks have no frame of theirs.
    def __aenter__(self) -> Coroutine[Any, Any, T]:
        if self._entered:
            raise RuntimeError(f"{self._name}: what it returned was entered before; call it again")
        self._entered = True
        return self._context.__aenter__()

    def __aexit__(self, *error: Any) -> Coroutine[Any, Any, bool | None]:
        return self._context.__aexit__(*error)

    if not TYPE_CHECKING:  # To a type checker it can be entered alone.

        def __await__(self) -> Generator[Any, Any, T]:
            raise TypeError(f"{self._name}() is entered with 'async with', not awaited{self._hint}")

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"{self!r} has no attribute {name!r}: enter it first")


def enters(hint: str = "") -> Callable[[Callable[A, AsyncIterator[T]]], Callable[A, Entering[T]]]:
    """Have an asynchronous generator function return what is entered, as of ``asynccontextmanager``.

    :param hint: for those who await it: what may be awaited.
    """

    def decorate(function: Callable[A, AsyncIterator[T]]) -> Callable[A, Entering[T]]:
        make = asynccontextmanager(function)

        @wraps(function)
        def entering(*args: A.args, **kwargs: A.kwargs) -> Entering[T]:
            return Entering(make(*args, **kwargs), function.__qualname__, hint)

        return entering

    return decorate


def suggesting(function: Callable[A, T]) -> Callable[A, T]:
    """Have a call with a wrong keyword suggest the one that is like it."""

    @wraps(function)
    def call(*args: A.args, **kwargs: A.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            raise suggested(error, function, kwargs) from None

    return call


def opens(function: Callable[A, Coroutine[Any, Any, C]]) -> Callable[A, Opening[C]]:
    """Have a coroutine function return an :class:`Opening` of what it returns.

    Lists, documents and models that the caller passes are copied at once: the call may be awaited later.
    """
    start = suggesting(function)

    @wraps(function)
    def opening(*args: A.args, **kwargs: A.kwargs) -> Opening[C]:
        # A ParamSpec says nothing of single arguments.
        copies: Any = [*map(own, args)], {name: own(value) for name, value in kwargs.items()}
        return Opening(start(*copies[0], **copies[1]))

    return opening
