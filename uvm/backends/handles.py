"""What handles, streams and listeners have in common: they are closed once, and refuse everything then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import anyio.lowlevel

from uvm.errors import HostError
from uvm.hresult import HResult

T = TypeVar("T")


class Handle:
    """A handle. Once it is closed, every call is refused with E_HANDLE.

    :param name: the name in errors of what it is a handle on.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._closed = False
        self._waiting: dict[anyio.CancelScope, None] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._name} ({'closed' if self._closed else 'open'})>"

    def _require_open(self, operation: str) -> None:
        if self._closed:
            raise self._closed_error(operation)

    async def _unless_closed(self, operation: str, wait: Callable[[], Awaitable[T]]) -> T:
        """Wait; E_HANDLE if the handle is closed, now or meanwhile."""
        self._require_open(operation)
        with anyio.CancelScope() as scope:
            self._waiting[scope] = None
            try:
                return await wait()
            finally:
                del self._waiting[scope]
        raise self._closed_error(operation)

    def _close(self, operation: str = "close") -> None:
        """Close it, at once; E_HANDLE if it is closed."""
        self._require_open(operation)
        self._closed = True
        for scope in self._waiting:
            scope.cancel()

    def _closed_error(self, operation: str) -> HostError:
        return HostError(f"{operation} {self._name}", HResult.E_HANDLE, "the handle was closed")


class ClosedOnce:
    """A stream or a listener, which is closed once, with or without awaiting."""

    __slots__ = ("_closed",)

    def __init__(self) -> None:
        self._closed = False

    async def aclose(self) -> None:
        """Close it, also in a cancelled scope. Idempotent."""
        self.close()
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close it at once. Idempotent."""
        if not self._closed:
            self._closed = True
            self._end()

    def _end(self) -> None:
        raise NotImplementedError
