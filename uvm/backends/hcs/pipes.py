"""Overlapped named pipes: the standard handles of processes, and pipes between processes of the host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
import anyio.lowlevel

from uvm._names import pipe_path
from uvm.backends.hcs.dlls import CData
from uvm.backends.hcs.iocp import CompletionPort, Operation
from uvm.backends.hcs.sockets import PIECE_BYTES, Closing
from uvm.backends.hcs.windows.pipes import PipeHandles, windows_pipes
from uvm.backends.winerrors import code_of, host_error
from uvm.errors import HostError
from uvm.hresult import HResult

_ERROR_HANDLE_EOF: Final = 38
_ERROR_BROKEN_PIPE: Final = 109
_ERROR_NO_DATA: Final = 232
_ERROR_PIPE_NOT_CONNECTED: Final = 233
#: The errors of a read once the other end is closed and everything was read.
_END: Final = frozenset({_ERROR_HANDLE_EOF, _ERROR_BROKEN_PIPE, _ERROR_PIPE_NOT_CONNECTED})

#: The pause between two attempts to connect to a pipe whose instances all have clients (as go-winio).
_BUSY_SECONDS: Final = 0.01


class PipeStream(Closing):
    """One end of a named pipe (:class:`~uvm.backend.ByteStream`), with the errors of ``SocketStream``.

    A read or write goes on after its task was cancelled: the data is kept for the next ``receive``, and the
    next ``send`` waits for the write.
    """

    def __init__(self, port: CompletionPort, handle: CData, siblings: set[Closing]) -> None:
        # Closing the handle cancels its operations.
        super().__init__(partial(port.end, handle), siblings)
        self._port: Final = port
        self._handle: Final = handle
        self._ended = False
        self._kept = memoryview(b"")
        self._read: Operation | None = None
        self._write: Operation | None = None
        self._receiving = anyio.ResourceGuard("receiving from")
        self._sending = anyio.ResourceGuard("sending to")

    async def receive(self, max_bytes: int = PIECE_BYTES) -> bytes:
        """Receive at least one byte; anyio.EndOfStream at the end. Cancellation loses no data."""
        if max_bytes < 1:
            raise ValueError("receive at least one byte")
        with self._receiving:
            await anyio.lowlevel.checkpoint()
            self._require_open()
            if not self._kept:
                self._kept = memoryview(await self._next(min(max_bytes, PIECE_BYTES)))
            data, self._kept = bytes(self._kept[:max_bytes]), self._kept[max_bytes:]
            return data

    async def send(self, item: bytes) -> None:
        """Send all of it. On cancellation a part may have been sent."""
        with self._sending:
            await anyio.lowlevel.checkpoint()
            await self._finish_write()
            view = memoryview(item)
            while view:
                piece = bytes(view[:PIECE_BYTES])
                try:
                    self._write = self._port.write(self._handle, piece)
                except OSError as error:
                    raise anyio.BrokenResourceError from error
                view = view[await self._finish_write() :]

    async def send_eof(self) -> None:
        """Close the handle after the writes in progress: a pipe has no direction that can be closed alone."""
        with self._sending:
            await anyio.lowlevel.checkpoint()
            await self._finish_write()
        self.close()

    async def _next(self, size: int) -> bytes:
        if self._ended:
            raise anyio.EndOfStream
        if self._read is None:
            try:
                self._read = self._port.read(self._handle, size)
            except OSError as error:
                raise _read_failure(error) from error
        operation = self._read
        await operation.signal.wait()
        self._read = None
        self._require_open()
        failure = self._port.failure(operation)
        if failure is not None:
            raise _read_failure(failure) from failure
        data = self._port.data(operation)
        if not data:
            # An empty message is the end of the output, as for go-winio, which hcsshim reads with.
            self._ended = True
            raise anyio.EndOfStream
        return data

    async def _finish_write(self) -> int:
        operation = self._write
        if operation is not None:
            await operation.signal.wait()
            self._write = None
        self._require_open()
        if operation is None:
            return 0
        error = self._port.failure(operation)
        if error is not None:
            raise anyio.BrokenResourceError from error
        return operation.count


def _read_failure(error: OSError) -> Exception:
    return anyio.EndOfStream() if code_of(error) in _END else anyio.BrokenResourceError()


class PipeListener(Closing):
    """A :class:`~uvm.backend.Listener` at a named pipe.

    An instance of the pipe always waits for the next client, so that its name stays ours.

    :param instance: makes another instance of the pipe, attached to the port.
    :param stream: makes a stream of an instance that has a client.
    """

    def __init__(
        self,
        port: CompletionPort,
        first: CData,
        instance: Callable[[], CData],
        stream: Callable[[CData], PipeStream],
        siblings: set[Closing],
    ) -> None:
        super().__init__(lambda: port.end(self._waiting), siblings)
        self._port: Final = port
        self._waiting = first
        self._instance: Final = instance
        self._stream: Final = stream
        self._connecting: Operation | None = None
        self._accepting = anyio.ResourceGuard("accepting from")

    async def accept(self) -> PipeStream:
        """Wait for the next client. Cancellation loses none.

        :raises anyio.ClosedResourceError: the listener is closed.
        :raises anyio.BrokenResourceError: no more can be accepted; the cause says why.
        """
        with self._accepting:
            while True:
                await anyio.lowlevel.checkpoint()
                self._require_open()
                try:
                    if await self._connected():
                        return self._next()
                except (HostError, OSError) as error:
                    raise anyio.BrokenResourceError from error

    async def _connected(self) -> bool:
        """Wait for a client; return False for one that has left already."""
        try:
            if self._connecting is None:
                self._connecting = self._port.connect(self._waiting)
        except OSError as error:
            if code_of(error) != _ERROR_NO_DATA:
                raise
            left, self._waiting = self._waiting, self._instance()
            self._port.end(left)
            return False
        await self._connecting.signal.wait()
        operation, self._connecting = self._connecting, None
        self._require_open()
        failure = self._port.failure(operation)
        if failure is not None:
            raise failure
        return True

    def _next(self) -> PipeStream:
        """Return the stream of the client that has come; another instance waits for the next."""
        connected, self._waiting = self._waiting, self._instance()
        return self._stream(connected)


class NamedPipes:
    """The pipes of Windows (:class:`~uvm.backends.hcs.transport.Pipes`), all on one completion port.

    :param handles: makes the handles of pipes; by default those of this machine.
    """

    def __init__(self, handles: PipeHandles | None = None) -> None:
        self._handles = handles
        self._port: Final = CompletionPort()
        self._streams: Final[set[Closing]] = set()
        self._closed = False

    def open(self, handle: int) -> PipeStream:
        """Make a stream of a HANDLE, and take the handle over, also if this fails.

        :raises HostError: the handle does not support overlapped I/O.
        """
        if self._closed:
            self._port.end(self._port.handle(handle))
            raise anyio.ClosedResourceError
        attached = self._attached(handle, "open a standard stream of a process")
        return PipeStream(self._port, attached, self._streams)

    async def listen(self, path: str) -> PipeListener:
        """Listen at a pipe of which there is no instance; see :class:`~uvm.backend.HostPipes`."""
        await anyio.lowlevel.checkpoint()
        path, handles = pipe_path(path), self._made()

        def instance(*, first: bool = False) -> CData:
            return self._attached(handles.serve(path, first=first), f"listen at {path}")

        def stream(handle: CData) -> PipeStream:
            return PipeStream(self._port, handle, self._streams)

        return PipeListener(self._port, instance(first=True), instance, stream, self._streams)

    async def dial(self, path: str) -> PipeStream:
        """Connect to a pipe, as soon as an instance of it waits; see :class:`~uvm.backend.HostPipes`."""
        path, handles = pipe_path(path), self._made()
        while True:
            await anyio.lowlevel.checkpoint()
            try:
                number = handles.dial(path)
            except HostError as error:
                if error.hresult != HResult.ERROR_PIPE_BUSY:
                    raise
                await anyio.sleep(_BUSY_SECONDS)
                continue
            return PipeStream(self._port, self._attached(number, f"dial {path}"), self._streams)

    def _made(self) -> PipeHandles:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._handles is None:
            self._handles = windows_pipes()
        return self._handles

    def _attached(self, number: int, operation: str) -> CData:
        """Return a handle that is associated with the port, or closed if that fails."""
        handle = self._port.handle(number)
        try:
            self._port.attach(handle)
        except OSError as error:
            self._port.end(handle)
            raise host_error(operation, error) from error
        return handle

    def close(self) -> None:
        """Close all streams and listeners, and end the thread. Idempotent."""
        self._closed = True
        for stream in list(self._streams):
            stream.close()
        self._port.close()
