"""The standard streams of a process, between its pipes or its terminal and connections to the host.

::

    pipe      --> Output --> connection      its end, then the host's end, then both are closed
    pipe      <-- Input  <-- connection      its end closes the pipe; a pipe that is closed, the connection
    terminal  <-> both                       the end of input is not passed on, as a terminal has none

No more is read from a process than the host has room for, and no more from the host than a process takes: the
connection's credit comes back as the pipe is written.

Source: hcsshim internal/guest/stdio/stdio.go.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from uvm.agent.connection import Connection, Receiver
from uvm.agent.loop import READ, WRITE, Loop

#: What is read and written at once, and what a pipe holds: calls cost a guest more than their bytes do.
PIPE_BYTES: Final = 1 << 18


class Descriptor:
    """A descriptor that does not block, shared by those that read and write it; the last one closes it."""

    def __init__(self, loop: Loop, fd: int, users: int = 1) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._loop, self._users = loop, users
        self._events = 0
        self._on_read: Callable[[], object] | None = None
        self._on_write: Callable[[], object] | None = None

    def wait(
        self, *, read: Callable[[], object] | None = None, write: Callable[[], object] | None = None
    ) -> None:
        """Call when it can be read or written, or its other end has gone; in place of an earlier call."""
        self._on_read, self._on_write = read or self._on_read, write or self._on_write
        self._update()

    def stop(self, *, read: bool = False, write: bool = False) -> None:
        """Call no more."""
        self._on_read = None if read else self._on_read
        self._on_write = None if write else self._on_write
        self._update()

    def release(self) -> None:
        """Use it no more; the last one closes it."""
        self._users -= 1
        if not self._users:
            self.stop(read=True, write=True)
            os.close(self.fd)

    def _update(self) -> None:
        events = (READ if self._on_read else 0) | (WRITE if self._on_write else 0)
        if events == self._events:
            return
        # One that is watched for nothing would go on to say that its other end has gone.
        if not events:
            self._loop.unwatch(self.fd)
        elif not self._events:
            self._loop.watch(self.fd, events, self._ready)
        else:
            self._loop.change(self.fd, events)
        self._events = events

    def _ready(self, events: int) -> None:
        if self._on_read is not None and events & ~WRITE:
            self._on_read()
        if self._on_write is not None and events & ~READ:
            self._on_write()


class Output(Receiver):
    """What a process writes, relayed to the host.

    :param connection: None drops it.
    :param on_end: called once when all of it has been read, or the host wants no more.
    """

    def __init__(
        self, source: Descriptor, connection: Connection | None, on_end: Callable[[], object]
    ) -> None:
        self._source, self._connection, self._on_end = source, connection, on_end
        self._ended = False
        if connection is not None:
            connection.receiver = self
        self.writable()

    def writable(self) -> None:
        """Go on: the host has room."""
        if not self._ended:
            self._source.wait(read=self._read)

    def _read(self) -> None:
        room = PIPE_BYTES if self._connection is None else min(PIPE_BYTES, self._connection.room)
        if not room:
            self._source.stop(read=True)
            if self._connection is not None:
                self._connection.wait_for_room()
            return
        try:
            data = os.read(self._source.fd, room)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # EIO: no process has the terminal open any more
        if not data:
            self._end()
            if self._connection is not None:
                self._connection.send_eof()
        elif self._connection is not None:
            self._connection.send(data)

    def received(self, data: bytes) -> None:
        """Drop what the host sends here."""
        assert self._connection is not None
        self._connection.consumed(len(data))

    def ended(self) -> None:
        """Close the connection if the host has, after all was sent."""
        if self._ended and self._connection is not None:
            self._connection.close()

    def closed(self) -> None:
        """End: the host reads no more. A process that goes on to write gets SIGPIPE."""
        self._connection = None
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._source.stop(read=True)
            self._source.release()
            self._on_end()


class Input(Receiver):
    """What the host sends to a process.

    :param terminal: it is one, which the end of the input does not close.
    """

    def __init__(self, target: Descriptor, connection: Connection, *, terminal: bool = False) -> None:
        self._target, self._connection, self._terminal = target, connection, terminal
        self._pending = bytearray()
        self._host_ended = False
        self._done = False
        connection.receiver = self

    def received(self, data: bytes) -> None:
        """Write what the host sends, now or as the process takes it."""
        if self._done:
            self._connection.consumed(len(data))
            return
        if self._pending:
            self._pending += data
            return
        # Most is taken at once, and copied nowhere.
        taken = self._put(data)
        if taken is None:
            self.end()
        elif taken < len(data):
            self._pending += memoryview(data)[taken:]
            self._target.wait(write=self._write)

    def ended(self) -> None:
        """Close the pipe when all is written."""
        self._host_ended = True
        if not self._pending:
            self._end_of_input()

    def closed(self) -> None:
        """End: the connection was lost."""
        self._finish()

    def end(self) -> None:
        """End: the process has exited, and the host may close its side."""
        if not self._done:
            self._connection.close()
            self._finish()

    def _put(self, data: bytes | memoryview) -> int | None:
        """Return how much the process has taken; None if it takes no more."""
        try:
            size = os.write(self._target.fd, data)
        except BlockingIOError:
            return 0
        except OSError:
            return None
        self._connection.consumed(size)
        return size

    def _write(self) -> None:
        while self._pending:
            taken = self._put(memoryview(self._pending)[:PIPE_BYTES])
            if taken is None:
                self.end()
                return
            if not taken:
                return
            del self._pending[:taken]
        self._target.stop(write=True)
        if self._host_ended:
            self._end_of_input()

    def _end_of_input(self) -> None:
        if self._terminal:
            return
        self._connection.send_eof()
        self._finish()

    def _finish(self) -> None:
        if not self._done:
            self._done = True
            self._pending.clear()
            self._target.stop(write=True)
            self._target.release()
