"""Pairs of connected streams, of every kind that the backend creates."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from tests.backends.hcs.descriptors import new_sockets, system_pipes
from tests.backends.hcs.pipepairs import make_pipe_pair
from uvm.backend import ByteStream
from uvm.backends.hcs.sockets import Sockets
from uvm.backends.hcs.transport import Pipes

__all__ = ["KINDS", "Kind", "connected", "pipes_of"]

Pair = tuple[ByteStream, ByteStream]


#: Makes two streams: what is sent on the first is received on the second.
Kind = Callable[[Sockets, Pipes], Pair]


def two_sockets(sockets: Sockets, pipes: Pipes) -> Pair:
    """Connect two sockets."""
    first, second = socket.socketpair()
    first.setblocking(False)
    second.setblocking(False)
    return sockets.stream(first), sockets.stream(second)


def two_handles(sockets: Sockets, pipes: Pipes) -> Pair:
    """Connect two handles like those of a standard stream, in both directions."""
    first, second = make_pipe_pair()
    return pipes.open(first), pipes.open(second)


def one_way(sockets: Sockets, pipes: Pipes) -> Pair:
    """Make a POSIX pipe."""
    reading, writing = os.pipe()
    return pipes.open(writing), pipes.open(reading)


KINDS: list[Kind] = [two_sockets, two_handles]
if sys.platform != "win32":
    KINDS.append(one_way)


@contextmanager
def pipes_of(sockets: Sockets) -> Iterator[Pipes]:
    """Yield the system's own pipes."""
    pipes = system_pipes(sockets)
    try:
        yield pipes
    finally:
        pipes.close()


@asynccontextmanager
async def connected(kind: Kind) -> AsyncIterator[Pair]:
    """Yield a pair of streams."""
    sockets = new_sockets()
    try:
        with pipes_of(sockets) as pipes:
            yield kind(sockets, pipes)
    finally:
        sockets.close()
