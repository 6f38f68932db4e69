"""Blocking calls in a bounded number of threads, for the event loop.

A thread cannot be cancelled. A cancelled caller leaves a call by one of two rules (the end of the interpreter
leaves all calls):

- :meth:`Workers.run` returns at once. A result that arrives later is passed to ``undo``, exactly once: a
  handle is closed even if its opener was cancelled.
- :meth:`Workers.finish`, for calls that change something, asks the call to stop and waits for its end, so
  that nothing happens after the caller has returned; then its result is passed to ``undo``.

Both hold for asyncio's own cancellation too (``Task.cancel``, ``asyncio.timeout``), which no shield of
anyio's prevents, and by which ``anyio.to_thread.run_sync`` loses the result.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, TypeVar, TypeVarTuple

import anyio
from anyio import CancelScope, Semaphore

from uvm._log import Log, doing
from uvm.backends.threads import Threads
from uvm.backends.waker import Signal, Waker

_log = Log("uvm")

#: How many calls block at once. HCS and HCN serialise most of them anyway.
_THREADS: Final = 8

#: Shared by all :class:`Workers`, which bound their own calls.
_threads: Final = Threads("uvm worker")

T = TypeVar("T")
Args = TypeVarTuple("Args")


class Workers:
    """A bounded number of threads for blocking calls.

    :param threads: how many calls may block at once, including those whose caller has left.
    """

    def __init__(self, threads: int = _THREADS) -> None:
        self._free = Semaphore(threads, max_value=threads)

    async def run(
        self, function: Callable[[*Args], T], *args: *Args, undo: Callable[[T], object] | None = None
    ) -> T:
        """Make a blocking call. On cancellation return at once, while the call goes on.

        :param undo: called with the result if the caller was cancelled: by the caller if the result is there
            (it waits for that), otherwise by the call's thread.
        """
        call, ended = Future[T](), Signal(Waker())
        try:
            return await self._result(call, ended, lambda: function(*args))
        except BaseException:
            if not call.cancel() and undo is not None:
                await _undo_result(call, undo, wait=call.done())
            raise

    async def finish(
        self,
        function: Callable[[*Args], T],
        *args: *Args,
        stop: Callable[[], object] | None = None,
        undo: Callable[[T], object] | None = None,
    ) -> T:
        """Make a blocking call that changes something. On cancellation wait until it has ended.

        :param stop: called in the event loop on cancellation; asks the call to end early.
        :param undo: called with the result on cancellation, in a thread, and waited for.
        """
        call, ended = Future[T](), Signal(Waker())
        try:
            return await self._result(call, ended, lambda: function(*args))
        except anyio.get_cancelled_exc_class():
            if not call.cancel():
                if stop is not None:
                    stop()
                await _undo_result(call, undo or _keep, wait=True)
            raise

    async def _result(self, call: Future[T], ended: Signal, function: Callable[[], T]) -> T:
        await self._free.acquire()
        waker, context = Waker(), contextvars.copy_context()
        call.add_done_callback(lambda _: ended.set())

        def work() -> None:
            if call.set_running_or_notify_cancel():
                try:
                    result = context.run(function)
                except BaseException as error:
                    call.set_exception(error)
                else:
                    call.set_result(result)
            # Only now, even if the caller has left.
            waker.call_soon(self._free.release)

        try:
            _threads.start(work)
        except RuntimeError:
            self._free.release()
            raise
        await ended.wait()
        return call.result()


async def finish(
    function: Callable[[*Args], T], *args: *Args, undo: Callable[[T], object] | None = None
) -> T:
    """Make a blocking call that changes something, in a thread of its own: see :meth:`Workers.finish`."""
    return await Workers(1).finish(function, *args, undo=undo)


async def finished(call: Future[T], undo: Callable[[T], object]) -> T:
    """Return the result of a call that an executor makes; cancelled as in :meth:`Workers.finish`."""
    ended = Signal(Waker())
    call.add_done_callback(lambda _: ended.set())
    try:
        await ended.wait()
    except anyio.get_cancelled_exc_class():
        if not call.cancel():
            await _undo_result(call, undo, wait=True)
        raise
    return call.result()


def _keep(result: object) -> None:
    """Undo nothing."""


async def _undo_result(call: Future[T], undo: Callable[[T], object], *, wait: bool) -> None:
    """Undo the result of a call whose caller has left, once it is there, and wait for that if asked to."""
    if call.done() and call.exception() is not None:
        return
    undone, loop = Signal(Waker()), threading.get_ident()
    vm_id = None if (now := doing.get()) is None else now.vm_id

    def undo_result() -> None:
        try:
            if call.exception() is None:
                undo(call.result())
        except Exception:
            _log.exception(vm_id, "undoing a call whose caller was cancelled failed")
        finally:
            undone.set()

    def ended(_: Future[T]) -> None:
        # Not in the event loop if a thread can be started, and not as one of the bounded calls: all others
        # may hang.
        try:
            _threads.start(undo_result) if threading.get_ident() == loop else undo_result()
        except RuntimeError:
            undo_result()

    call.add_done_callback(ended)
    with CancelScope(shield=True):
        while wait:
            # What the call uses is its caller's, whom asyncio may cancel again before it has ended.
            with suppress(anyio.get_cancelled_exc_class()):
                await undone.wait()
                return
