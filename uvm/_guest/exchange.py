"""An exchange with a process until its end: what it reads and writes, its limits, and what is raised of it.

Source: hcsshim internal/cmd/cmd.go; what a caller may ask for is that of :mod:`subprocess`.
"""

from __future__ import annotations

import codecs
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from inspect import isawaitable
from typing import Any, AnyStr, Final, Generic, Literal

import anyio
from attrs import define, field, frozen

from uvm._arguments import kind_of
from uvm._checks import checked, flag, optional, seconds, whole
from uvm._guest.clock import GuestClock
from uvm._guest.stdio import ProcessInput, ProcessOutput, StreamBrokenError
from uvm._log import Log
from uvm._repr import Value
from uvm.errors import (
    BridgeClosedError,
    OptionsError,
    OutputLimitError,
    ProcessError,
    ProcessTimeoutError,
    UVMError,
    VMExitedError,
)

_log = Log("uvm.gcs")

OutputName = Literal["stdout", "stderr"]

#: How much output is taken by default.
MAX_OUTPUT_BYTES: Final = 16 * 1024 * 1024


@frozen(repr=False)
class CompletedProcess(Value, Generic[AnyStr]):
    """A process that has exited.

    :ivar args: what was run.
    :ivar exit_code: its exit code, an unsigned 32-bit number.
    :ivar stdout: what it wrote to its standard output.
    :ivar stderr: what it wrote to its standard error.
    """

    args: tuple[str, ...]
    exit_code: int
    stdout: AnyStr
    stderr: AnyStr


class ProcessFailedError(ProcessError):
    """A process that was to succeed (``check=True``) exited with another code than 0.

    :ivar completed: the process that has exited, with its exit code.
    """

    def __init__(self, completed: CompletedProcess[Any]) -> None:
        message = f"{_name(completed.args)} exited with {completed.exit_code}"
        super().__init__(message, completed.args, completed.stdout, completed.stderr)
        self.completed = completed


class Exchange(Generic[AnyStr]):
    """An exchange with a process: what the caller asks for, and what has come so far.

    :raises OptionsError: the caller asks for what is not possible.
    """

    def __init__(
        self,
        *,
        input: bytes | str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        timeout: float | None = None,
        check: bool = False,
        on_stdout: Callable[[Any], object] | None = None,
        on_stderr: Callable[[Any], object] | None = None,
        text: bool = False,
    ) -> None:
        self._text = checked(text, flag, "text")
        self.input = _input_of(input, text)
        self._max_bytes = checked(max_output_bytes, whole(sys.maxsize), "max_output_bytes")
        self._timeout = checked(timeout, optional(seconds), "timeout")
        self._check = checked(check, flag, "check")
        self._outputs: dict[OutputName, _Output] = {
            "stdout": _Output(_callback_of(on_stdout, "on_stdout"), text),
            "stderr": _Output(_callback_of(on_stderr, "on_stderr"), text),
        }
        # The one to raise comes first; kept out of the task groups, which would wrap them.
        self._failures: list[BaseException] = []

    async def complete(
        self, clock: GuestClock, cmd: tuple[str, ...], exchange: Callable[[], Awaitable[int]]
    ) -> CompletedProcess[AnyStr]:
        """Have the exchange made, which returns the exit code, within its time; raise what came of it."""
        with clock.move_on_after(math.inf if self._timeout is None else self._timeout):
            exit_code = await exchange()
            completed: CompletedProcess[AnyStr] = CompletedProcess(cmd, exit_code, *self._so_far())
            if exit_code and self._check:
                raise ProcessFailedError(completed)
            return completed
        message = f"{_name(cmd)} has not ended within {self._timeout:g} s, and is killed"
        raise ProcessTimeoutError(message, cmd, *self._so_far())

    async def converse(
        self,
        guest: str,
        cmd: tuple[str, ...],
        stdin: ProcessInput | None,
        outputs: Mapping[OutputName, ProcessOutput],
        wait: Callable[[], Awaitable[int]],
    ) -> int:
        """Send the input, take the output, wait for the exit, and return the exit code."""
        exit_code = 0
        async with anyio.create_task_group() as tasks:

            def fail(error: BaseException) -> None:
                self._failures.insert(0, error)
                tasks.cancel_scope.cancel()

            if stdin is not None:
                tasks.start_soon(self._feed, guest, stdin, fail)
            async with anyio.create_task_group() as readers:
                for name, stream in outputs.items():
                    readers.start_soon(self._collect, cmd, stream, self._outputs[name], fail)
                try:
                    exit_code = await wait()
                except UVMError as error:
                    # It says more than what a stream says of the same end.
                    fail(error)
            # The process reads no more of the input.
            tasks.cancel_scope.cancel()
        if self._failures:
            raise self._failures[0]
        return exit_code

    async def _feed(self, guest: str, stdin: ProcessInput, fail: Callable[[Exception], None]) -> None:
        try:
            await stdin.send(self.input)
            await stdin.send_eof()
        except (StreamBrokenError, VMExitedError, BridgeClosedError) as error:
            # No process has to read its input; of the end of the VM, or of its guest, the wait says more.
            _log.debug(guest, "%s", error)
        except Exception as error:
            # It may wait for the end of its input for ever.
            fail(error)

    async def _collect(
        self,
        cmd: tuple[str, ...],
        stream: ProcessOutput,
        output: _Output,
        fail: Callable[[BaseException], None],
    ) -> None:
        try:
            async for data in stream:
                output.came += data
                if sum(len(each.came) for each in self._outputs.values()) > self._max_bytes:
                    too_much = f"{_name(cmd)} wrote more than {self._max_bytes} bytes, and is killed"
                    fail(OutputLimitError(too_much, cmd, *self._so_far()))
                    return
                if raised := await output.error_of_callback(data):
                    fail(raised)
                    return
        except Exception as error:
            self._failures.append(error)
            return
        if raised := await output.error_of_callback(b"", final=True):
            fail(raised)

    def _so_far(self) -> tuple[AnyStr, AnyStr]:
        # Which of the two types it is follows from `text`.
        came: Any = [bytes(each.came) for each in self._outputs.values()]
        stdout, stderr = [each.decode(errors="replace") for each in came] if self._text else came
        return stdout, stderr


@define(eq=False, repr=False)
class _Output:
    """What has come of one output, and who is called with it."""

    callback: Callable[[Any], object] | None
    text: bool
    came: bytearray = field(factory=bytearray)
    decoder: codecs.IncrementalDecoder = field(
        factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    async def error_of_callback(self, data: bytes, *, final: bool = False) -> BaseException | None:
        """Call the callback with what came, and return what it raises."""
        if self.callback is None:
            return None
        chunk = self.decoder.decode(data, final) if self.text else data
        try:
            if chunk and isawaitable(called := self.callback(chunk)):
                await called
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            # Raised by the task, it would be raised in a group, and end a loop of asyncio.
            return error
        return None


class Chunks(AsyncIterator[tuple[OutputName, bytes]]):
    """The outputs of a process as one sequence of chunks, in the order in which they come.

    No task outlives a call, and what was read and not returned waits in the streams: a loop can be left at
    any time.
    """

    def __init__(self, outputs: Mapping[OutputName, ProcessOutput]) -> None:
        self._open = dict(outputs)

    async def __anext__(self) -> tuple[OutputName, bytes]:
        for stream in self._open.values():
            stream._home.check(stream._name)
        while self._open:
            name = await self._first_ready()
            # The one that is served is asked last the next time: an endless one does not hide the other.
            stream = self._open[name] = self._open.pop(name)
            try:
                return name, await stream.receive()
            except anyio.EndOfStream:
                del self._open[name]
        raise StopAsyncIteration

    async def _first_ready(self) -> OutputName:
        ready: list[OutputName] = []

        async def wait_for(name: OutputName) -> None:
            await self._open[name]._read_ahead(once=True)
            ready.append(name)
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for name in self._open:
                tasks.start_soon(wait_for, name)
        return ready[0]


def _name(cmd: tuple[str, ...]) -> str:
    """Name what was run; its arguments may be secret."""
    return repr(cmd[0]) if cmd else "the container's own process"


def _input_of(input: bytes | str | None, text: bool) -> bytes:
    if input is None:
        return b""
    if text and isinstance(input, str):
        try:
            return input.encode()
        except UnicodeEncodeError as error:
            raise OptionsError(f"the input of a process is no text: {error.reason}") from None
    if text or not isinstance(input, bytes | bytearray | memoryview):
        wanted = "text, because text=True" if text else "bytes, or text with text=True"
        raise OptionsError(f"the input of a process is {wanted}, not {kind_of(input)}")
    return bytes(input)


def _callback_of(callback: Callable[[Any], object] | None, what: str) -> Callable[[Any], object] | None:
    if callback is not None and (isinstance(callback, type) or not callable(callback)):
        raise OptionsError(f"{what} must be called with each chunk of output, but is {kind_of(callback)}")
    return callback
