"""What a guest dials while it boots, besides its compute service: random bytes for it, its output for us.

How it works
------------

The output is always read as fast as it comes, so that no guest waits for its log to be taken::

    guest --> pump --> [ whole lines, at most 1 MiB ] --> handler

What a handler leaves behind is dropped by lines, said and counted, until it has caught up with half of that.
When it has ended, or failed, the rest is read and dropped. A handler that is known to keep up needs none of
this, and reads the guest itself.

Nothing here raises: the VM goes on without its log, and its start fails where a guest cannot boot. What went
wrong goes to the logger ``uvm.gcs``.

Source: hcsshim internal/uvm/start.go.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.lowlevel

from uvm._async import Line
from uvm._guest.stdio import close_quietly
from uvm._log import Log
from uvm._wire.ports import ENTROPY_BYTES
from uvm.backend import BROKEN_STREAM, ByteStream, Listener
from uvm.errors import VMExitedError

#: How far a handler may be behind, in bytes.
MAX_PENDING_BYTES: Final = 1 << 20
#: A longer line is passed on before its end has come.
_MAX_LINE_BYTES: Final = 65536

_log = Log("uvm.gcs")

_GONE: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, VMExitedError)


async def give_entropy(
    listener: Listener, source: Callable[[int], bytes] = os.urandom, name: str = "the guest"
) -> None:
    """Send a Linux guest the random bytes that its init waits for, once, and close the listener.

    :param source: gives so many random bytes.
    :param name: whose guest it is, for messages.
    """
    try:
        stream = await listener.accept()
        try:
            await stream.send(source(ENTROPY_BYTES))
        finally:
            await close_quietly(stream, name)
    except Exception as e:
        _say_failure(name, "it got no random bytes to boot with", e)
    finally:
        await close_quietly(listener, name)


async def forward_output(
    listener: Listener,
    handler: Callable[[ByteStream], Awaitable[None]],
    again: bool = False,
    name: str = "the guest",
    keeps_up: bool = False,
) -> None:
    """Wait for the guest to dial, close the listener, and pass the guest's output to a handler.

    It ends when the output has ended and the handler too.

    :param handler: reads the output to its end; see :class:`GuestOutput`.
    :param again: keep the listener and go on with the next connection, as the log service of a Windows
        guest may be restarted; it ends when the listener is closed.
    :param name: whose guest it is, for messages.
    :param keeps_up: the handler waits for nothing but more output, and returns at its end, as
        :func:`uvm._guest.logs.read_log` does.
    """
    try:
        while again:
            await _forward(await listener.accept(), handler, name, keeps_up)
        stream = await listener.accept()
    except Exception as e:
        _say_failure(name, "its output cannot be listened to any more", e)
        return
    finally:
        await close_quietly(listener, name)
    # It is not kept for as long as the output is read.
    del listener
    await _forward(stream, handler, name, keeps_up)


async def _forward(
    stream: ByteStream, handler: Callable[[ByteStream], Awaitable[None]], name: str, keeps_up: bool
) -> None:
    try:
        if not keeps_up:
            await _pump(stream, handler, name)
        elif not await _handle(stream, handler, name):
            rest = GuestOutput(stream, name)
            rest.close()
            await rest.pump()
    finally:
        await close_quietly(stream, name)


async def _pump(stream: ByteStream, handler: Callable[[ByteStream], Awaitable[None]], name: str) -> None:
    """Read a stream, and pass it on to a handler."""
    output = GuestOutput(stream, name)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(output.pump)
        await _handle(output, handler, name)
        output.close()


async def _handle(stream: ByteStream, handler: Callable[[ByteStream], Awaitable[None]], name: str) -> bool:
    """Have a handler read a stream; return whether it did not fail."""
    try:
        await handler(stream)
    except Exception as e:
        problem = "the handler of its output failed; the rest of the output is dropped"
        _log.say(logging.ERROR, name, problem, error=e)
        return False
    return True


class GuestOutput:
    """The output of a guest, as a handler gets it (:class:`~uvm.backend.ByteStream`).

    A line comes when it has ended, or is 64 KiB long, or the output has ended. What was dropped before it,
    because the handler was slow, were whole lines, or the ends of longer ones.
    """

    def __init__(self, stream: ByteStream, name: str) -> None:
        self._stream = stream
        self._name = name
        self._line = bytearray()
        self._pending = bytearray()
        # How many bytes were dropped since the handler kept up.
        self._dropped = 0
        # The beginning of a line was dropped: what the rest is can be seen from it alone.
        self._torn = False
        self._ended = False
        self._closed = False
        self._arrived = Line()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte; anyio.EndOfStream at the end of the output."""
        await anyio.lowlevel.checkpoint()
        while not self._pending:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._ended:
                raise anyio.EndOfStream
            await self._arrived.wait()
        data = bytes(self._pending[:max_bytes])
        del self._pending[:max_bytes]
        return data

    async def send(self, item: bytes) -> None:
        """Send to the guest, though none is known to read it."""
        await self._stream.send(item)

    async def send_eof(self) -> None:
        """Close our direction."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Want no more of it: what comes is dropped."""
        self.close()
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """Want no more of it, at once."""
        self._closed = True
        self._pending.clear()
        self._line.clear()
        self._arrived.wake()

    async def pump(self) -> None:
        """Read the output to its end."""
        try:
            while True:
                self._take(await self._stream.receive())
        except (anyio.EndOfStream, *BROKEN_STREAM):
            pass
        except Exception as e:
            _say_failure(self._name, "its output broke off", e)
        finally:
            self._pass_on(len(self._line))
            self._end_dropping()
            self._ended = True
            self._arrived.wake()

    def _take(self, data: bytes) -> None:
        if self._closed:
            return
        end = data.rfind(b"\n") + 1
        whole = len(self._line) + end if end else 0
        self._line += data
        if not whole and len(self._line) >= _MAX_LINE_BYTES:
            whole = len(self._line)
        self._pass_on(whole)

    def _pass_on(self, size: int) -> None:
        """Pass on so many bytes, or drop them."""
        if self._torn and size:
            rest = self._line.find(b"\n", 0, size) + 1 or size
            self._drop(rest)
            size -= rest
        if not size:
            return
        pending = len(self._pending)
        if self._dropped and pending <= MAX_PENDING_BYTES // 2:
            self._end_dropping()
        if self._dropped or pending + size > MAX_PENDING_BYTES:
            self._drop(size)
        else:
            self._pending += self._line[:size]
            self._arrived.wake()
            del self._line[:size]

    def _drop(self, size: int) -> None:
        if not self._dropped:
            behind = f"{len(self._pending):,} bytes behind"
            problem = f"the handler of its output is {behind}; output is dropped"
            _log.say(logging.WARNING, self._name, problem)
        self._dropped += size
        self._torn = self._line[size - 1] != ord("\n")
        del self._line[:size]

    def _end_dropping(self) -> None:
        if self._dropped:
            _log.say(logging.WARNING, self._name, f"{self._dropped:,} bytes of its output were dropped")
        self._dropped = 0


def _say_failure(name: str, problem: str, error: Exception) -> None:
    """Log an error; that a VM has exited, or that the host listens no more, is none."""
    _log.say(logging.DEBUG if isinstance(error, _GONE) else logging.ERROR, name, problem, error=error)
