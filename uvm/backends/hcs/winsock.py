"""ws2_32.dll: polling of any number of sockets, and what Python 3.11 cannot do with an AF_HYPERV socket."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import compress
from typing import Any, Final, Protocol

from uvm.backends.hcs.dlls import CData
from uvm.backends.hcs.windows.dlls import SystemLibrary, load

_POLLERR: Final = 0x0001
_POLLWRNORM: Final = 0x0010
_POLLRDNORM: Final = 0x0100
_INVALID_SOCKET: Final = 2**64 - 1


class Ws2Functions(Protocol):
    """ws2_32.dll (winsock2.h)."""

    def accept(self, sock: int, address: CData, length: CData, /) -> int: ...
    def bind(self, sock: int, address: CData, length: int, /) -> int: ...
    def WSAPoll(self, array: CData, count: int, timeout_ms: int, /) -> int: ...


#: Loads ws2_32.dll.
winsock: Callable[[], SystemLibrary[Ws2Functions]] = functools.partial(load, "ws2_32.dll")


def bind(sock: int, address: bytes) -> None:
    """Bind a SOCKET to an address, the bytes of its structure; OSError if Winsock refuses."""
    library = winsock()
    structure = library.ffi.cast("struct sockaddr *", buffer := library.ffi.from_buffer(address))
    if library.functions.bind(sock, structure, len(buffer)):
        raise library.os_error()


def accept(sock: int) -> int:
    """Accept a connection and return its SOCKET; BlockingIOError if there is none, or OSError."""
    library = winsock()
    accepted = library.functions.accept(sock, library.ffi.NULL, library.ffi.NULL)
    if accepted == _INVALID_SOCKET:
        raise library.os_error()
    return accepted


class WinsockPollSet:
    """A :class:`~uvm.backends.hcs.poller.PollSet` that uses WSAPoll.

    The array for WSAPoll is kept between calls, so that the cost of a change does not depend on its length.
    """

    readable: int = _POLLRDNORM
    writable: int = _POLLWRNORM

    def __init__(self) -> None:
        self._functions: Final = winsock().functions
        self._ffi: Final = winsock().ffi
        self._fds: list[int] = []
        self._places: dict[int, int] = {}
        self._array: Any
        self._found: memoryview
        self._grow(64)

    def set(self, fd: int, events: int) -> None:
        """Set the events to poll a socket for; 0 removes it."""
        place = self._places.get(fd)
        if not events:
            if place is not None:
                self._remove(fd, place)
            return
        if place is None:
            place = self._add(fd)
        self._array[place].events = events

    def wait(self) -> list[tuple[int, int]]:
        """Wait until a socket has events, and return the sockets that have, with their events."""
        count = len(self._fds)
        if self._functions.WSAPoll(self._array, count, -1) < 0:
            # At least one is no socket (any more): let every waiter try its own.
            return [(fd, _POLLERR) for fd in self._fds]
        found = self._found[:count].tolist()
        return list(compress(zip(self._fds, found, strict=True), found))

    def _add(self, fd: int) -> int:
        place = len(self._fds)
        if place == len(self._array):
            self._grow(2 * place)
        self._array[place].fd = fd
        self._fds.append(fd)
        self._places[fd] = place
        return place

    def _remove(self, fd: int, place: int) -> None:
        last = self._fds.pop()
        del self._places[fd]
        if last != fd:
            self._fds[place] = last
            self._places[last] = place
            self._array[place] = self._array[len(self._fds)]

    def _grow(self, size: int) -> None:
        array = self._ffi.new("WSAPOLLFD[]", size)
        if self._fds:
            self._ffi.memmove(array, self._array, self._ffi.sizeof(self._array))
        self._array = array
        # A view of the member revents of all entries: finding those that are set runs no loop in Python.
        stride, offset = self._ffi.sizeof("WSAPOLLFD") // 2, self._ffi.offsetof("WSAPOLLFD", "revents") // 2
        self._found = memoryview(self._ffi.buffer(array)).cast("H")[offset::stride]
