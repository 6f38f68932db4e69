"""Blocking calls in a bounded number of threads, for the event loop.

A thread cannot be cancelled. A cancelled caller leaves a call by one of two rules (the end of the interpreter
leaves all calls):

- :meth:`Workers.run` returns at once. A result that arrives later is passed to ``undo``, exactly once: a
  handle is closed even if its opener was cancelled.
- :meth:`Workers.finish`, for calls that change something, asks the call to stop and waits for its end, so
  that nothing happens after the caller has returned.
"""

from __future__ import annotations

import contextvars
import enum
import functools
import logging
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar, TypeVarTuple

import anyio
import anyio.lowlevel
from anyio import CancelScope, CapacityLimiter

from uvm.backends.hcs.threads import Threads
from uvm.backends.hcs.waker import Signal, Waker

_log = logging.getLogger("uvm")

#: How many calls block at once. HCS and HCN serialise most of them anyway.
_THREADS: Final = 8

#: Shared by all :class:`Workers`, which bound their own calls.
_threads: Final = Threads("uvm worker")

T = TypeVar("T")
Args = TypeVarTuple("Args")


class _State(enum.Enum):
    NEW = enum.auto()
    RUNNING = enum.auto()
    DONE = enum.auto()
    #: The caller has left, before the call began or before it ended.
    LEFT = enum.auto()


class _Call(Generic[T]):
    """One call, shared by its thread and the loop; each transition is made by one of them only."""

    def __init__(self, function: Callable[[], T], undo: Callable[[T], object] | None) -> None:
        self._function = function
        self._undo = undo
        self._lock = threading.Lock()
        self._state = _State.NEW
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._ended = Signal(Waker())

    def run(self) -> None:
        """Make the call, in its thread; undo the result if the caller has left."""
        with self._lock:
            if self._state is _State.LEFT:
                return
            self._state = _State.RUNNING
        try:
            result = self._function()
            with self._lock:
                left = self._state is _State.LEFT
                if not left:
                    self._state = _State.DONE
                    self._results.append(result)
            if left and self._undo is not None:
                _undo_late(self._undo, result)
        except BaseException as e:
            self._error = e
        finally:
            self._ended.set()

    def outcome(self) -> T:
        """Return the result of a call that has ended, or raise its exception."""
        if self._error is None:
            return self._results[0]
        try:
            raise self._error
        finally:
            # The exception's traceback refers to this call.
            self._error = None

    def leave(self) -> _State:
        """Note that the caller has left; return the state that the call was in."""
        with self._lock:
            state = self._state
            if state is not _State.DONE:
                self._state = _State.LEFT
        return state

    def unclaimed(self) -> list[T]:
        """Return the result that has to be undone, if there is one, and forget it."""
        results, self._results = self._results, []
        return results if self._undo is not None else []

    async def wait(self) -> None:
        """Wait for the call's end."""
        await self._ended.wait()


class Workers:
    """A bounded number of threads for blocking calls.

    :param threads: how many calls may block at once, including those whose caller has left.
    """

    def __init__(self, threads: int = _THREADS) -> None:
        self._limiter = CapacityLimiter(threads)

    async def run(
        self, function: Callable[[*Args], T], *args: *Args, undo: Callable[[T], object] | None = None
    ) -> T:
        """Make a blocking call. On cancellation return at once, while the call goes on.

        :param undo: called with the result if the caller was cancelled: by the caller if the result is there
            (it waits for that), otherwise by the call's thread.
        """
        call = _Call(lambda: function(*args), undo)
        delivered = False
        try:
            result = await self._start(call)
            delivered = True
            return result
        finally:
            if not delivered:
                call.leave()
                await self._undo_now(call, undo)

    async def finish(
        self, function: Callable[[*Args], T], *args: *Args, stop: Callable[[], object] | None = None
    ) -> T:
        """Make a blocking call that changes something. On cancellation wait until it has ended.

        :param stop: called in the event loop on cancellation; asks the call to end early.
        """
        call = _Call(lambda: function(*args), None)
        try:
            return await self._start(call)
        except anyio.get_cancelled_exc_class():
            if call.leave() is _State.RUNNING:
                if stop is not None:
                    stop()
                with CancelScope(shield=True):
                    await call.wait()
            raise

    async def _undo_now(self, call: _Call[T], undo: Callable[[T], object] | None) -> None:
        for result in call.unclaimed():
            assert undo is not None
            late = _Call(functools.partial(_undo_late, undo, result), None)
            # Without a token: all other threads may hang.
            _threads.start(late.run)
            with CancelScope(shield=True):
                await late.wait()

    async def _start(self, call: _Call[T]) -> T:
        await self._limiter.acquire_on_behalf_of(call)
        waker, context = Waker(), contextvars.copy_context()

        def run() -> None:
            context.run(call.run)
            # Only now, even if the caller has left.
            waker.call_soon(self._limiter.release_on_behalf_of, call)

        try:
            _threads.start(run)
        except RuntimeError:
            self._limiter.release_on_behalf_of(call)
            raise
        await call.wait()
        return call.outcome()


def _undo_late(undo: Callable[[T], object], result: T) -> None:
    try:
        undo(result)
    except Exception:
        _log.exception("undoing a call whose caller was cancelled failed")
