"""A handle of HCS: lent to calls in any thread, and closed exactly once, after the last of them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from uvm.errors import HostError

__all__ = ["E_HANDLE", "Handle", "close_all"]

E_HANDLE = 0x80070006

H = TypeVar("H")

#: What is open, to be closed before the interpreter goes.
_open: weakref.WeakSet[Handle[Any]] = weakref.WeakSet()


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
                raise HostError(f"{operation} {self.name}", E_HANDLE, "the handle was closed")
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

        :param timeout_seconds: how long to wait for the calls that use it; then it stays open, and False.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._users, timeout_seconds):
                return False
        _open.discard(self)
        self._closer(self._value)
        return True


def close_all(timeout_seconds: float = 1.0) -> None:
    """Close every handle that is still open and that no call hangs on."""
    for handle in list(_open):
        if handle.retire():
            handle.close(timeout_seconds)
