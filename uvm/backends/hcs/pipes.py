"""The standard handles of processes: overlapped named pipes."""

from __future__ import annotations

from functools import partial
from typing import Final, Protocol

import anyio
import anyio.lowlevel

from uvm.backend import ByteStream
from uvm.backends.hcs.dlls import CData
from uvm.backends.hcs.iocp import CompletionPort, Operation
from uvm.backends.hcs.sockets import PIECE_BYTES, Closing
from uvm.backends.hcs.winerrors import code_of, host_error

_ERROR_HANDLE_EOF: Final = 38
_ERROR_BROKEN_PIPE: Final = 109
_ERROR_PIPE_NOT_CONNECTED: Final = 233
#: The errors of a read once the other end is closed and everything was read.
_END: Final = frozenset({_ERROR_HANDLE_EOF, _ERROR_BROKEN_PIPE, _ERROR_PIPE_NOT_CONNECTED})


class Pipes(Protocol):
    """Makes streams of the handles that the host returns for the standard streams of a process."""

    def open(self, handle: int) -> ByteStream:
        """Make a stream of a handle, and take the handle over, also if this fails."""

    def close(self) -> None:
        """Close all streams. Idempotent."""


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


class NamedPipes:
    """:class:`Pipes` of Windows: handles for overlapped I/O, all on one completion port."""

    def __init__(self) -> None:
        self._port: Final = CompletionPort()
        self._streams: Final[set[Closing]] = set()
        self._closed = False

    def open(self, handle: int) -> PipeStream:
        """Make a stream of a HANDLE, and take the handle over, also if this fails.

        :raises HostError: the handle does not support overlapped I/O.
        """
        stream = PipeStream(self._port, self._port.handle(handle), self._streams)
        try:
            if self._closed:
                raise anyio.ClosedResourceError
            self._port.attach(self._port.handle(handle))
        except BaseException as error:
            stream.close()
            if isinstance(error, OSError):
                raise host_error("open a standard stream of a process", error) from error
            raise
        return stream

    def close(self) -> None:
        """Close all streams, and end the thread. Idempotent."""
        self._closed = True
        for stream in list(self._streams):
            stream.close()
        self._port.close()
