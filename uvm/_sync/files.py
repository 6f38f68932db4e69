"""The standard streams of processes as files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import anyio

from uvm._sync.loop import Task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    # At run time the same: bytes, and what is like bytes.
    from _typeshed import ReadableBuffer, WriteableBuffer

    Buffer: TypeAlias = ReadableBuffer

_CHUNK_BYTES = 65536


def _await(call: Callable[[], Awaitable[Any]]) -> Any:
    return Task(call).make()


class ProcessOutput(io.BufferedReader):
    """The standard output, or standard error, of a process in a guest: a binary file to read.

    Errors are those of :meth:`uvm.ProcessOutput.receive`; the end of the stream is that of the file.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(_Reading(stream), _CHUNK_BYTES)

    def __del__(self) -> None:
        """Do nothing: what is not closed ends with its process, whichever thread collects the garbage."""

    def __repr__(self) -> str:
        return f"<ProcessOutput of {self.raw!r}>"


class _Reading(io.RawIOBase):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __repr__(self) -> str:
        return repr(self._stream)

    def __del__(self) -> None:
        pass

    @property
    def name(self) -> str:
        return repr(self._stream)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = _await(lambda: self._receive(len(view)))
        view[: len(data)] = data
        return len(data)

    async def _receive(self, size: int) -> bytes:
        try:
            received: bytes = await self._stream.receive(size)
        except anyio.EndOfStream:
            return b""
        return received

    def close(self) -> None:
        if not self.closed:
            super().close()
            _await(self._stream.aclose)


class ProcessInput(io.BufferedIOBase):
    """The standard input of a process in a guest: a binary file to write, of which nothing is buffered.

    Errors are those of :meth:`uvm.ProcessInput.send`. To close it ends the input.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __del__(self) -> None:
        """Do nothing: the input of a process that still runs does not end with the garbage."""

    def __repr__(self) -> str:
        return f"<ProcessInput of {self._stream!r}>"

    @property
    def name(self) -> str:
        """Which stream it is, for people."""
        return repr(self._stream)

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Send all of it, and return how much that is; waits while the process is far behind."""
        if self.closed:
            raise ValueError("write to closed file")
        sent = bytes(memoryview(data))  # which refuses text in the words of every binary file
        _await(lambda: self._stream.send(sent))
        return len(sent)

    def close(self) -> None:
        """End the input, and close it. Again, it does nothing."""
        if not self.closed:
            super().close()
            _await(self._end)

    async def _end(self) -> None:
        try:
            await self._stream.send_eof()
        finally:
            await self._stream.aclose()
