"""A handle of HCS: lent to calls in any thread, and closed exactly once, after the last of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Generic, TypeVar

from uvm.errors import HostError
from uvm.hresult import HResult

#: How many threads close at the end.
_CLOSERS: Final = 8
#: How long the end waits for calls that hang on a handle, and again for closes that hang.
END_SECONDS = 1.0

H = TypeVar("H")

#: What is open, to be closed before the interpreter goes, whoever else has forgotten it.
_open: set[Handle[Any]] = set()


class Handle(Generic[H]):
    """One handle, and who uses it right now.

    :param name: what errors call it.
    :param closer: the function that closes it. It may block: it waits for callbacks that are under way.
    """

    def __init__(self, name: str, value: H, closer: Callable[[H], object]) -> None:
        self.name: str = name
        self._value = value
        self._closer = closer
        self._users = 0
        self._closed = False
        self._released = False
        self._changed = threading.Condition()
        _open.add(self)

    @property
    def closed(self) -> bool:
        """Whether it was closed, or is about to be."""
        return self._closed

    @contextmanager
    def lent(self, operation: str) -> Iterator[H]:
        """Use it; it stays open so long. Short calls only: who closes it waits for them.

        :raises HostError: E_HANDLE, it was closed.
        """
        with self._changed:
            if self._closed:
                raise HostError(f"{operation} {self.name}", HResult.E_HANDLE, "the handle was closed")
            self._users += 1
        try:
            yield self._value
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def retire(self) -> bool:
        """Refuse it to whoever asks from now on; False where that was done before."""
        with self._changed:
            first, self._closed = not self._closed, True
        return first

    def close(self, timeout_seconds: float | None = None) -> bool:
        """Close it, after it was retired. Blocks until no call uses it and no callback of it is under way.

        Any number of threads may: one of them does it, and the others have nothing to do.

        :param timeout_seconds: how long to wait for the calls that use it; then it stays open, and False.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._users, timeout_seconds):
                return False
            if self._released:
                return True
            self._released = True
        _open.discard(self)
        self._closer(self._value)
        return True


def close_late(handle: Handle[Any]) -> None:
    """Close a handle, which was retired, as soon as that can be done; nobody waits for it.

    The pool cannot be asked: where HCS hangs, all of its threads may. Where there can be no more threads, it
    is left to the end of the interpreter.
    """
    with suppress(RuntimeError):
        threading.Thread(target=handle.close, name=f"uvm closes {handle.name}", daemon=True).start()


def close_all() -> None:
    """Close every handle that is still open, as far as that can be done in time."""
    left = list(_open)
    for handle in left:
        # Also one that was retired, and whose close has not begun.
        handle.retire()
    closers = [
        # Daemons: what hangs in HCS is not to keep the interpreter from ending.
        threading.Thread(target=_close_each, args=(left,), daemon=True)
        for _ in left[:_CLOSERS]
    ]
    try:
        for closer in closers:
            closer.start()
    except RuntimeError:
        # CPython 3.12.0 to 3.12.2 start no thread any more by now (gh-113964).
        _close_each(left)
    deadline = time.monotonic() + 2 * END_SECONDS
    for closer in closers:
        if closer.ident is not None:
            closer.join(max(0, deadline - time.monotonic()))


def _close_each(left: list[Handle[Any]]) -> None:
    # The others take from the same list.
    with suppress(IndexError):
        while True:
            left.pop().close(END_SECONDS)
