"""Handles of HCS: lent to calls in any thread, and closed exactly once, after the last of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Generic, TypeVar

from uvm.errors import HostError
from uvm.hresult import HResult

#: How many threads close handles at the end of the interpreter.
_CLOSERS: Final = 8
#: How long that waits for calls that hang on a handle, and again for closes that hang.
END_SECONDS = 1.0

H = TypeVar("H")

#: The open handles, to be closed before the interpreter ends, even if forgotten.
_open: set[Handle[Any]] = set()


class Handle(Generic[H]):
    """A handle and the number of its users.

    :param name: its name in errors.
    :param closer: closes the value; may block, because it waits for callbacks in progress.
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
        """Whether the handle was closed, or is about to be."""
        return self._closed

    def require_open(self, operation: str) -> None:
        """Raise E_HANDLE if the handle was closed."""
        if self._closed:
            raise HostError(f"{operation} {self.name}", HResult.E_HANDLE, "the handle was closed")

    @contextmanager
    def lent(self, operation: str) -> Iterator[H]:
        """Lend the value, and keep it open meanwhile. For short calls only: closing waits for them.

        :raises HostError: E_HANDLE: the handle was closed.
        """
        with self._changed:
            self.require_open(operation)
            self._users += 1
        try:
            yield self._value
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def retire(self) -> bool:
        """Lend it no more; return False if it was retired before."""
        with self._changed:
            first, self._closed = not self._closed, True
        return first

    def close(self, timeout_seconds: float | None = None) -> bool:
        """Close the handle after it was retired. Blocks until it has neither users nor callbacks in progress.

        Any number of threads may call this: one of them closes it.

        :param timeout_seconds: how long to wait for the users; after that it stays open, and False is
            returned.
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
    """Close a retired handle in a thread of its own, without waiting for it.

    A pool will not do: if HCS hangs, all of its threads may. If no more threads can be started, the handle is
    left to the end of the interpreter.
    """
    with suppress(RuntimeError):
        threading.Thread(target=handle.close, name=f"uvm closes {handle.name}", daemon=True).start()


def close_all() -> None:
    """Close every open handle, as far as the time allows."""
    left = list(_open)
    for handle in left:
        # Including retired ones whose close has not begun.
        handle.retire()
    closers = [
        # Daemons: a call that hangs in HCS must not keep the interpreter from ending.
        threading.Thread(target=_close_each, args=(left,), daemon=True)
        for _ in left[:_CLOSERS]
    ]
    try:
        for closer in closers:
            closer.start()
    except RuntimeError:
        # CPython 3.12.0 to 3.12.2 start no threads this late (gh-113964).
        _close_each(left)
    deadline = time.monotonic() + 2 * END_SECONDS
    for closer in closers:
        if closer.ident is not None:
            closer.join(max(0, deadline - time.monotonic()))


def _close_each(left: list[Handle[Any]]) -> None:
    # The other closers take from the same list.
    with suppress(IndexError):
        while True:
            left.pop().close(END_SECONDS)
