"""The event loop behind :mod:`uvm.sync`, and calls into it from any thread.

How it works
------------

The first call starts a thread with an event loop; the loop ends when it has no *user* left, and the call that
was its last waits for the end of the thread. A call in progress is a user, and so is a context that is
entered, and a VM or pool from its start to its close::

    a thread                      the loop's thread
      submit ------------------->   a task makes the call
      wait                          ... no user is left? The loop ends
      <---------------------------  done

A context is entered and left in one task, which waits in between: a VM's task group asks for that.

Ctrl-C raises KeyboardInterrupt in the main thread, between any two bytecodes. What must not be torn apart is
therefore done in the loop's thread, which no signal interrupts: users come and go there. The main thread
only submits and waits; an interrupted call is cancelled, awaited to its end for as long as
`INTERRUPT_SECONDS`, and what it had returned is undone. A second ctrl-C does not wait.
"""

from __future__ import annotations

import atexit
import math
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any, ClassVar, Final

import anyio
import anyio.abc

from uvm._async import Flag
from uvm._checks import checked, seconds
from uvm._log import Log
from uvm.backends.waker import Waker
from uvm.errors import OptionsError, VMStateError

_log = Log("uvm")

#: How long an interrupted call may take to end.
INTERRUPT_SECONDS: Final = 30.0
#: How often a wait looks for ctrl-C, which locks of Windows ignore, and others as the wait begins.
_POLL_SECONDS: Final = 0.05 if sys.platform == "win32" else 0.5

_lock: Final = threading.Lock()
_deadline: ContextVar[float] = ContextVar("uvm_sync_deadline", default=math.inf)


class timeout(AbstractContextManager[None]):
    """Bound all calls of :mod:`uvm.sync` that this thread makes in a ``with`` block.

    A call that is not done in time is cancelled, as by a caller who leaves, and raises TimeoutError. A block
    within another has no more time than that one. Leaving a VM, a pool or a backend is not cut short.

    :param seconds: from the beginning of the block.
    :raises OptionsError: it is no number of seconds.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = checked(seconds, _seconds, "seconds")

    def __enter__(self) -> None:
        self._token = _deadline.set(min(_deadline.get(), time.monotonic() + self._seconds))

    def __exit__(self, *exc: object) -> None:
        _deadline.reset(self._token)


_seconds = seconds


def _seconds_left() -> float:
    return _deadline.get() - time.monotonic()


class Waiting:
    """What one thread waits for, and another reports, once."""

    __slots__ = ("_lock", "_reported")

    def __init__(self) -> None:
        self._reported = False
        # To wait for a lock is one call of C, which a signal leaves in order.
        self._lock = threading.Lock()
        self._lock.acquire()

    def report(self) -> None:
        """End the wait. Again, it does nothing."""
        if not self._reported:
            self._reported = True
            self._lock.release()

    def wait(self, seconds: float = math.inf) -> bool:
        """Wait for the report; return False if it does not come in time."""
        end = time.monotonic() + seconds
        is_main = threading.current_thread() is threading.main_thread()
        longest = _POLL_SECONDS if is_main else threading.TIMEOUT_MAX
        while not self._reported:
            if (left := end - time.monotonic()) <= 0:
                return False
            if self._lock.acquire(timeout=min(left, longest)):
                self._lock.release()
        return True


class Call(ABC):
    """What a thread has a task of the loop do.

    :ivar result: what is returned to the thread.
    :ivar error: what is raised in it.
    :ivar done: the thread has its answer.
    """

    def __init__(self) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = Waiting()
        self.context: Context = copy_context()
        self.loop: Loop | None = None
        self.withdrawn = False
        self._cancelled = False
        self._seconds = _seconds_left()
        self._scope: anyio.CancelScope | None = None

    def make(self) -> Any:
        """Have it done, and return its result: what a thread calls."""
        try:
            submit(self)
            self.done.wait()
            self._join()
            # No call follows, so that no signal is raised once the result is on its course.
            if self.error is None:
                return self.result
        except BaseException:
            self.interrupt()
            raise
        raise self.error

    def _join(self) -> None:
        """Wait for the thread of the loop, if this was its last call."""
        if self.loop is not None and self.loop.closed:
            self.loop.join(INTERRUPT_SECONDS)

    def interrupt(self) -> None:
        """End it, since its thread was interrupted; wait for that, and undo what it returned."""
        with _lock:
            self.withdrawn = self.loop is None
        if self.withdrawn:
            return
        self.cancel()
        if not self.ended.wait(INTERRUPT_SECONDS):
            _log.warning(
                None, "uvm.sync: a call has not ended %g s after its interruption", INTERRUPT_SECONDS
            )
        elif (undo := self.undone_by()) is not None:
            rest = Task(undo)
            submit(rest)
            rest.done.wait(INTERRUPT_SECONDS)
        self._join()

    @property
    def ended(self) -> Waiting:
        """The end of the task."""
        return self.done

    def undone_by(self) -> Callable[[], Awaitable[Any]] | None:
        """Return what undoes the result that its thread does not get, if anything."""
        return None

    def cancel(self) -> None:
        """Cancel it, from any thread."""
        self._cancelled = True
        if self.loop is not None:
            self.loop.call_soon(self._cancel)

    def _cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    async def serve(self) -> None:
        """Do it: the task."""
        assert self.loop is not None
        try:
            with anyio.CancelScope(deadline=anyio.current_time() + self._seconds) as self._scope:
                if self._cancelled:
                    self._scope.cancel()
                await self._do()
            if self._scope.cancelled_caught and self.error is None:
                self.error = TimeoutError("the time of uvm.sync.timeout has passed; the call was cancelled")
        except anyio.get_cancelled_exc_class():
            self.error = VMStateError("the event loop of uvm.sync was ended, since the interpreter ends")
            raise
        except BaseException as error:
            self.error = error
        finally:
            self.loop.leave(self)

    @abstractmethod
    async def _do(self) -> None:
        """Do it."""

    def report_end(self) -> None:
        """Report that the task has ended."""
        self.done.report()


class Task(Call):
    """A call of a function, whose result is awaited."""

    def __init__(self, function: Callable[[], Awaitable[Any]]) -> None:
        super().__init__()
        self._function = function

    async def _do(self) -> None:
        self.result = await self._function()


class _Hosting(Call):
    """A context manager that a task enters and leaves."""

    def __init__(
        self, open: Callable[[], AbstractAsyncContextManager[Any]], show: Callable[[Any], Any]
    ) -> None:
        super().__init__()
        self._open = open
        self._show = show
        self._ended = Waiting()
        self._leave = Flag()
        self._failure: BaseException | None = None
        self.suppressed: bool | None = False

    @property
    def ended(self) -> Waiting:
        return self._ended

    async def _do(self) -> None:
        manager = self._open()
        value = await manager.__aenter__()
        try:
            assert self._scope is not None
            self._scope.deadline = math.inf
            self.result = self._show(value)
            self.done.report()
            await self._leave.wait()
        except BaseException as error:
            if not await manager.__aexit__(type(error), error, error.__traceback__):
                raise
        else:
            self._scope.deadline = anyio.current_time() + self._seconds
            failure: Any = self._failure
            kind = None if failure is None else type(failure)
            self.suppressed = await manager.__aexit__(kind, failure, getattr(failure, "__traceback__", None))

    def let_leave(self) -> None:
        """Have it left."""
        if self.loop is not None:
            self.loop.call_soon(self._leave.set)

    def leave(self, failure: BaseException | None) -> bool | None:
        """Have it left, and wait for that: what the thread calls."""
        assert self.loop is not None
        try:
            self._failure, self._seconds = failure, _seconds_left()
            self.let_leave()
            self._ended.wait()
            self._join()
        except BaseException:
            self.let_leave()
            self.interrupt()
            raise
        if self.error is not None and self.error is not failure:
            raise self.error
        return self.suppressed

    def report_end(self) -> None:
        self.done.report()
        self._ended.report()


class Hosted(AbstractContextManager[Any]):
    """A context manager of the loop, for a ``with`` statement of any thread. It is entered once at a time.

    :param open: makes it, in the loop.
    :param show: returns what the thread gets for what entering it returns.
    """

    _hosting: _Hosting | None = None

    def __init__(
        self, open: Callable[[], AbstractAsyncContextManager[Any]], show: Callable[[Any], Any] = lambda _: _
    ) -> None:
        self._open = open
        self._show = show

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name!r} is of what a 'with' statement has: enter this first", name=name)

    def __enter__(self) -> Any:
        if self._hosting is not None:
            raise VMStateError("the context was entered before, and has not been left")
        self._hosting = _Hosting(self._open, self._show)
        try:
            return self._hosting.make()
        except BaseException:
            self._hosting = None
            raise

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> bool | None:
        hosting = self._hosting
        if hosting is None:
            raise VMStateError("the context was left before it was entered")
        try:
            return hosting.leave(exc)
        finally:
            # Again, if ctrl-C came before it was.
            hosting.let_leave()
            self._hosting = None

    def __del__(self) -> None:
        # Ctrl-C came just as it was to be left.
        if self._hosting is not None:
            self._hosting.let_leave()


class event_loop(Hosted):
    """Keep the event loop of :mod:`uvm.sync` for a ``with`` block, rather than as long as it has users.

    :param backend: ``"asyncio"``, or ``"trio"``, which has to be installed (``utilityvm[trio]``).
    :raises OptionsError: there is no such event loop.
    :raises VMStateError: the other one is running.
    """

    def __init__(self, backend: str = "asyncio") -> None:
        if backend not in ("asyncio", "trio"):
            raise OptionsError(f"the event loop is 'asyncio' or 'trio', not {backend!r}")
        self._backend = backend
        super().__init__(anyio.create_task_group, lambda _: None)

    def __enter__(self) -> None:
        if not running():
            with _lock:
                Loop.backend = self._backend
        elif Loop.backend != self._backend:
            raise VMStateError(
                f"event_loop({self._backend!r}): uvm.sync runs on {Loop.backend}; enter this before all else"
            )
        super().__enter__()

    def __exit__(self, *exc: Any) -> bool | None:
        try:
            return super().__exit__(*exc)
        finally:
            if not running():
                Loop.backend = "asyncio"


class Loop(threading.Thread):
    """A thread with an event loop.

    :cvar now: the one that runs.
    :cvar backend: which one the next is.
    :cvar backend_options: its options, as for :func:`anyio.run`.
    :ivar closed: it has ended, or is about to.
    """

    now: ClassVar[Loop | None] = None
    backend: ClassVar[str] = "asyncio"
    backend_options: ClassVar[dict[str, Any] | None] = None

    def __init__(self) -> None:
        # A daemon, since what its users forgot must not keep the interpreter: see _end_at_exit.
        super().__init__(name="uvm.sync", daemon=True)
        self.pending: deque[Call] = deque()
        self.users: set[object] = set()
        self.closed = False
        self._last: list[Call] = []
        self._waker: Waker | None = None

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have the loop call a function, from any thread."""
        if self._waker is not None:
            self._waker.call_soon(function)

    def run(self) -> None:
        """Run the event loop: the thread."""
        failure: BaseException = VMStateError("the event loop of uvm.sync has ended")
        try:
            # In a context of its own, without the variables of the thread that started it.
            options = self.backend_options
            Context().run(partial(anyio.run, self._main, backend=self.backend, backend_options=options))
        except BaseException as error:
            failure = error
        with _lock:
            self._close()
        for call in self.pending:
            call.error = failure
        for call in (*self._last, *self.pending):
            call.report_end()

    async def _main(self) -> None:
        async with anyio.create_task_group() as self._tasks:
            # What the event loop has set there: which library it is.
            self._variables = copy_context()
            self._unused = Flag()
            self._waker = Waker()
            self.pick_up()
            await self._unused.wait()

    def pick_up(self) -> None:
        """Begin the calls that threads have submitted."""
        while self.pending:
            with _lock:
                call = self.pending.popleft()
                if call.withdrawn:
                    continue
                call.loop = self
                self.users.add(call)
            for variable, value in self._variables.items():
                call.context.run(variable.set, value)
            call.context.run(self._tasks.start_soon, call.serve)
        self._end_if_unused()

    def leave(self, call: Call) -> None:
        """Note that the task of a call has ended."""
        self.users.discard(call)
        # A thread that was interrupted as it submitted a call has not woken the loop.
        self.pick_up()
        if self.closed:
            # Its thread goes on when this one ends.
            self._last.append(call)
        else:
            call.report_end()

    def _end_if_unused(self) -> None:
        with _lock:
            if not self.users and not self.pending:
                self._close()
        if self.closed:
            self._unused.set()

    def _close(self) -> None:
        self.closed = True
        if Loop.now is self:
            Loop.now = None

    def cancel(self) -> None:
        """End it, with all that runs in it."""
        self._tasks.cancel_scope.cancel()


def running() -> bool:
    """Return whether a loop runs."""
    return Loop.now is not None


def current() -> Loop:
    """Return the loop of this thread, which is its own."""
    thread = threading.current_thread()
    assert isinstance(thread, Loop)
    return thread


def in_loop() -> bool:
    """Return whether this thread is that of a loop."""
    return isinstance(threading.current_thread(), Loop)


def submit(call: Call) -> None:
    """Have the loop make a call; start one if none runs.

    :raises VMStateError: this is the thread of the loop, which cannot wait for itself.
    """
    if in_loop():
        raise VMStateError(
            "uvm.sync was called in the thread of its own event loop, which would wait for itself; nothing "
            "was done. Call it in another thread, or use what uvm has to await"
        )
    with _lock:
        if Loop.now is not None:
            loop = Loop.now
            loop.pending.append(call)
        else:
            loop = Loop()
            loop.pending.append(call)
            try:
                Loop.now = loop
                loop.start()
            except BaseException:
                # Where it runs all the same, it ends when it has no users.
                Loop.now = None
                raise
    loop.call_soon(loop.pick_up)


@atexit.register
def _end_at_exit() -> None:
    """End what is left when the interpreter ends, and wait for it."""
    loop = Loop.now
    if loop is not None:
        loop.call_soon(loop.cancel)
        loop.join(INTERRUPT_SECONDS)
