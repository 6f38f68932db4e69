"""The standard streams of a program in the fake guest."""

from __future__ import annotations

import anyio
import anyio.lowlevel
from attrs import define

from uvm._repr import showing
from uvm.backends.fake.guest.machine import GuestMachine
from uvm.backends.fake.streams import FakeStream


@define(eq=False)
class Terminal:
    """The terminal of a program, its size in characters. Lines are not edited, and input is not echoed."""

    height: int = 0
    width: int = 0


@showing()
@define(eq=False, repr=False)
class ProcessInput:
    """The standard input of a program; empty if the host connected none."""

    _vm: GuestMachine
    _stream: FakeStream | None

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte; anyio.EndOfStream at the end."""
        if self._stream is None:
            await anyio.lowlevel.checkpoint()
            raise anyio.EndOfStream
        data = await self._stream.receive(max_bytes)
        if self._vm.state in ("Paused", "SavedAsTemplate"):
            await self._vm.until_running()
        return data

    def __aiter__(self) -> ProcessInput:
        """Receive until the end."""
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Close the stream; the host cannot send any more."""
        if self._stream is not None:
            self._stream.close()


@showing()
@define(eq=False, repr=False)
class ProcessOutput:
    """An output stream of a program; what is sent is dropped if the host connected none.

    Sending to a stream whose reader has closed raises anyio.BrokenResourceError; a program that does not
    catch it is killed as by SIGPIPE.
    """

    _vm: GuestMachine
    _stream: FakeStream | None
    _terminal: bool = False

    async def send(self, item: bytes) -> None:
        """Send an item; waits while the reader is far behind. A terminal puts a CR before each LF."""
        if self._vm.state in ("Paused", "SavedAsTemplate"):
            await self._vm.until_running()
        if self._stream is None:
            await anyio.lowlevel.checkpoint()
            return
        await self._stream.send(item.replace(b"\n", b"\r\n") if self._terminal else item)

    def close(self) -> None:
        """Close the stream; what was sent can still be received."""
        if self._stream is not None:
            self._stream.close()

    async def finish(self) -> None:
        """End the stream, and wait until the reader has closed it."""
        if self._stream is not None:
            await self._stream.send_eof()
            await self._stream.receive_all()
            self._stream.close()
