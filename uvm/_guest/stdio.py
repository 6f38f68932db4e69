"""The standard streams of the processes of a guest: a connection each, on a port of its own.

How it works
------------

Before a process is asked for, the host listens for each of its streams; the guest dials while it starts the
process. The states of such a channel::

    LISTENING --- first use ---> ACCEPTING --- the guest's connection ---> CONNECTED
        |                            |                                         |
        |                            | the process has ended, and the guest    | end of the stream,
        |                            | has dialled for a second                | or closed
        |                            v                                         v
        +--------- closed -------> CLOSED <------------------------------------+

The connection is accepted at the first use of the stream, and its bytes go straight to the reader: until then
they wait in the guest, so that back-pressure reaches the process, and a reader who is slow costs no memory.
Only during a wait for the exit of a process in a Linux container, which that guest reports once the
output was taken, is a pipe's worth of each stream read ahead.

Source: hcsshim internal/gcs/iochannel.go; internal/guest/stdio for the Linux guest.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

from uvm._arguments import kind_of
from uvm._async import Flag
from uvm._checks import checked, whole
from uvm._guest.access import Caller, as_it_is
from uvm._guest.clock import GuestClock, GuestLimit
from uvm._home import Bound, Home
from uvm._log import Log
from uvm._repr import brief
from uvm._wire.ports import vsock_service_id
from uvm.backend import BROKEN_STREAM, ByteStream, Listener
from uvm.errors import ExitStatus, GuestError, OptionsError, UVMError, VMExitedError
from uvm.hresult import HResult

T = TypeVar("T")

_log = Log("uvm.gcs")

_CHUNK_BYTES: Final = 65536
#: How much is read ahead of the reader during a wait for the exit: what a pipe of Linux holds.
READ_AHEAD_BYTES: Final = 65536


class StreamClosedError(GuestError, anyio.ClosedResourceError):
    """A stream of a process was closed before, on our side.

    It can be caught as the :class:`~uvm.errors.GuestError` that every refusal of a guest's process is, or as
    anyio's error of a closed stream, so that code written for anyio's streams works with a guest's.
    """

    def __init__(self, operation: str) -> None:
        super().__init__(operation, HResult.E_HANDLE)
        self.args: tuple[Any, ...] = (f"{operation}: it was closed before, on our side",)


class StreamBrokenError(GuestError, anyio.BrokenResourceError):
    """The guest's end of a stream is gone: the process closed it, or ended.

    Caught as :class:`StreamClosedError` is, with anyio's error of a broken stream.
    """

    def __init__(self, operation: str, problem: str) -> None:
        super().__init__(operation, HResult.ERROR_BROKEN_PIPE, problem)
        self.args: tuple[Any, ...] = (f"{operation}: {problem}",)


class StreamVMExitedError(VMExitedError, anyio.BrokenResourceError):
    """The VM exited, and the stream of a process with it.

    It can be caught as :class:`~uvm.errors.VMExitedError`, which every call of a VM that has gone raises, or
    as anyio's error of a broken stream.
    """

    def __init__(self, operation: str, status: ExitStatus | None) -> None:
        super().__init__(f"{operation}: the VM has exited", status)


class StreamBusyError(UVMError, anyio.BusyResourceError):
    """Another task is using the stream."""

    def __init__(self, operation: str) -> None:
        super().__init__(operation)
        self.args: tuple[Any, ...] = (f"{operation}: another task is doing so",)


class Source(Protocol):
    """Where a stream of a process comes from: a :class:`Channel`, or a pipe of HCS's.

    :ivar closed: it was closed on our side.
    """

    closed: bool

    @property
    def vm_id(self) -> str:
        """The VM of the process."""

    async def stream(self) -> ByteStream | None:
        """Return the connection, once it is there; None where it never came, or was closed."""

    async def aclose(self) -> None:
        """Close it at once, also where the caller is cancelled. Again, it does nothing."""


class Channel:
    """One stream of a process, from the host's listening to its end. For one task at a time, but for closing.

    :param dial_seconds: how long after the exit of its process the guest may still dial: a Windows guest may
        answer before it dials.
    :ivar vm_id: the VM of the process.
    :ivar port: the vsock port that the guest dials.
    :ivar closed: it was closed on our side.
    """

    def __init__(
        self, vm_id: str, port: int, listener: Listener, clock: GuestClock, dial_seconds: float
    ) -> None:
        self.vm_id = vm_id
        self.port = port
        self._clock = clock
        self._dial_seconds = dial_seconds
        self._listener: Listener | None = listener
        self._stream: ByteStream | None = None
        self.closed = False
        self._accepting: GuestLimit | None = None
        self._process_ended = False
        self._failure: Callable[[], Exception] | None = None

    @property
    def service_id(self) -> str:
        """The Hyper-V service that the guest dials, a GUID."""
        return vsock_service_id(self.port)

    async def stream(self) -> ByteStream | None:
        """Return the guest's connection, once it is there; None if it never came, or the channel is closed.

        Raises what the listener raises, and where the connection to the guest closed first, why.
        """
        if self._stream is None and self._listener is not None:
            await self._accept(self._listener)
        if self._stream is None and not self.closed and self._failure is not None:
            raise self._failure()
        return None if self.closed else self._stream

    async def _accept(self, listener: Listener) -> None:
        # From now: what the guest dialled long ago still waits to be accepted.
        seconds = self._dial_seconds if self._process_ended else math.inf
        with self._clock.move_on_after(seconds) as self._accepting:
            try:
                self._stream = await listener.accept()
            except BROKEN_STREAM:
                # The listener of a channel that is being closed says so.
                if not self.closed:
                    raise
            finally:
                self._accepting = None
        if self.closed:
            # It came just as the channel was closed.
            await close_quietly(self._stream, self.vm_id)
        await self._stop_listening()

    def process_ended(self, failure: Callable[[], Exception] | None = None) -> None:
        """Wait no more than a moment for the guest's connection.

        :param failure: makes the error to raise instead of an end of the stream; None where the process
            has ended in order.
        """
        self._failure = failure
        self._process_ended = True
        if self._accepting is not None:
            self._accepting.move(self._clock.now() + self._dial_seconds)

    async def aclose(self) -> None:
        """Close it at once, also where the caller is cancelled. Again, it does nothing."""
        if self.closed:
            return
        self.closed = True
        if self._accepting is not None:
            self._accepting.scope.cancel()
        try:
            await self._stop_listening()
        finally:
            await close_quietly(self._stream, self.vm_id)

    async def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        await close_quietly(listener, self.vm_id)


async def close_quietly(resource: Listener | ByteStream | None, vm_id: str | None) -> None:
    """Close what there is; that it had ended is no error. It is closed at once, also if this is cancelled.

    :param vm_id: the VM that it is of, for the log.
    """
    if resource is None:
        return
    try:
        await resource.aclose()
    except Exception as e:
        # A stream of another backend may raise anything.
        _log.say(logging.DEBUG, vm_id, f"closing what had ended: {e!r}")


class _Stdio(Bound):
    """What both directions share."""

    def __init__(self, channel: Source, name: str, call: Caller = as_it_is) -> None:
        self._channel = channel
        self._name = name
        self._home = Home.here()
        self._call = call
        self._busy = False
        self._at_end = False

    def __repr__(self) -> str:
        state = "at its end" if self._at_end else "closed" if self._channel.closed else "open"
        return brief(f"<{type(self).__name__} {self._name} ({state})>")

    @contextmanager
    def _use(self, action: str) -> Iterator[str]:
        """Let one task use it, and say in our words what is wrong with it."""
        operation = f"{action} {self._name}"
        self._home.check(self._name)
        if self._busy:
            raise StreamBusyError(operation)
        if self._channel.closed:
            raise StreamClosedError(operation)
        self._busy = True
        try:
            yield operation
        except (StreamClosedError, StreamBrokenError):
            raise
        except BROKEN_STREAM as e:
            if self._channel.closed:
                raise StreamClosedError(operation) from e
            raise StreamBrokenError(operation, "the guest's end of the stream is gone") from e
        finally:
            self._busy = False

    async def _or_vm_exited(self, action: str, call: Awaitable[T]) -> T:
        """Await an exchange with the guest, and say so if it fails because the VM has exited."""
        try:
            return await self._call(call)
        except VMExitedError as e:
            raise StreamVMExitedError(f"{action} {self._name}", e.status) from e

    async def _connected(self, operation: str) -> ByteStream | None:
        stream = await self._channel.stream()
        if self._channel.closed:
            raise StreamClosedError(operation)
        return stream

    async def aclose(self) -> None:
        """Close it at once, also under a task that uses it, which gets an error. Again, it does nothing."""
        self._home.check(self._name)
        await self._channel.aclose()
        await anyio.lowlevel.checkpoint()


class ProcessInput(_Stdio, anyio.abc.ByteSendStream):
    """The standard input of a process in a guest."""

    async def send(self, item: bytes) -> None:
        """Send all of it; waits while the process is far behind.

        Where that is cancelled, how much of it was sent is unknown.

        :raises StreamClosedError: the stream was closed, or its end was sent.
        :raises StreamBrokenError: the process closed it, or ended.
        :raises StreamBusyError: another task is sending.
        :raises BridgeClosedError: the connection to the guest closed before the process connected to it.
        :raises StreamVMExitedError: the VM has exited.
        """
        if not isinstance(item, bytes | bytearray | memoryview):
            raise OptionsError(f"the input of a process is bytes, not {kind_of(item)}")
        await self._or_vm_exited("write to", self._send(item))

    async def _send(self, item: bytes) -> None:
        with self._use("write to") as operation:
            if self._at_end:
                raise StreamClosedError(operation)
            if (stream := await self._connected(operation)) is None:
                raise StreamBrokenError(operation, "the process has ended and never connected to it")
            await stream.send(item)

    async def send_eof(self) -> None:
        """End the input. Again, or after the process ended, it does nothing.

        :raises StreamClosedError: the stream was closed.
        :raises StreamBusyError: another task is sending.
        :raises HostError: HCS, which started the process, refused to pass it on.
        :raises BridgeClosedError: the connection to the guest closed before the process connected to it.
        :raises StreamVMExitedError: the VM has exited.
        """
        try:
            await self._or_vm_exited("end", self._end())
        except StreamBrokenError as e:
            _log.debug(self._channel.vm_id, "the process reads it no more: %s", e)
        self._at_end = True

    async def _end(self) -> None:
        with self._use("end") as operation:
            if self._at_end:
                await anyio.lowlevel.checkpoint()
            elif (stream := await self._connected(operation)) is not None:
                await stream.send_eof()


class ProcessOutput(_Stdio, anyio.abc.ByteReceiveStream):
    """The standard output, or standard error, of a process in a guest; iterate over it for its bytes."""

    def __init__(self, channel: Source, name: str, call: Caller = as_it_is) -> None:
        super().__init__(channel, name, call)
        # What was read ahead of the reader, and what wakes those who wait for that to change.
        self._ahead = bytearray()
        self._pumping = False
        self._reading = False
        self._changed = Flag()

    async def receive(self, max_bytes: int = _CHUNK_BYTES) -> bytes:
        """Receive at least one byte.

        :raises anyio.EndOfStream: the process, and all that inherited the stream, closed it or ended.
        :raises StreamClosedError: we closed it.
        :raises StreamBrokenError: it broke: the guest is gone.
        :raises StreamBusyError: another task is reading.
        :raises BridgeClosedError: the connection to the guest closed before the process connected to it.
        :raises StreamVMExitedError: the VM has exited; what had come before was returned first.
        """
        checked(max_bytes, whole(sys.maxsize, 1), "max_bytes")
        self._home.check(self._name)
        if self._reading:
            raise StreamBusyError(f"read from {self._name}")
        self._reading = True
        try:
            while self._pumping and not self._ahead:
                await self._changed.wait()
            if self._ahead:
                await anyio.lowlevel.checkpoint()
            # Meanwhile it may have been closed.
            if self._ahead:
                data = bytes(self._ahead[:max_bytes])
                del self._ahead[:max_bytes]
                return data
            if self._at_end:
                await anyio.lowlevel.checkpoint()
                raise anyio.EndOfStream
            return await self._or_vm_exited("read from", self._receive(max_bytes))
        finally:
            self._reading = False
            self._say_change()

    async def _read_ahead(self, *, once: bool = False) -> None:
        """Read ahead of the reader, as much as a pipe would hold, until the stream ends.

        :param once: only until there is something to read: `receive` returns or raises at once then.
        """
        while not self._at_end and not self._channel.closed and not (once and self._ahead):
            if self._pumping or self._reading or len(self._ahead) >= READ_AHEAD_BYTES:
                await self._changed.wait()
                continue
            self._pumping = True
            try:
                self._ahead += await self._receive(_CHUNK_BYTES)
            except Exception:
                # The reader gets the same.
                return
            finally:
                self._pumping = False
                self._say_change()

    async def aclose(self) -> None:
        """Close it at once, also under a task that reads it, which gets an error. Again, it does nothing."""
        self._home.check(self._name)
        self._ahead.clear()
        self._say_change()
        await super().aclose()

    async def _receive(self, max_bytes: int) -> bytes:
        with self._use("read from") as operation:
            stream = await self._connected(operation)
            try:
                if stream is None:
                    raise anyio.EndOfStream
                return await stream.receive(max_bytes)
            except anyio.EndOfStream:
                # At once, and not when the reader thinks of it: the Linux guest waits for it.
                self._at_end = True
                await self._channel.aclose()
                raise

    def _say_change(self) -> None:
        changed, self._changed = self._changed, Flag()
        changed.set()
