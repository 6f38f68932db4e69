"""A process in a guest: what can be asked of it, over our own connection or through HCS.

``uvm._gcs.process`` starts processes over our own connection to the guest, and ``uvm._hcsguest.process`` has
HCS start them over its own.

Source: hcsshim internal/cow.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, Literal, Protocol, final, overload

import anyio
import anyio.abc
import anyio.lowlevel
from attrs import define, field

from uvm._async import suggesting
from uvm._guest.access import GuestAccess
from uvm._guest.exchange import MAX_OUTPUT_BYTES, Chunks, CompletedProcess, Exchange, OutputName
from uvm._guest.exit import Exit
from uvm._guest.signals import LINUX_KILL, SignalOptions, signal_options
from uvm._guest.specs import Command, check_size, check_writable, host_process
from uvm._guest.stdio import ProcessInput, ProcessOutput, Source
from uvm._home import Bound
from uvm._log import Log
from uvm._repr import brief
from uvm.errors import (
    BridgeClosedError,
    GuestError,
    OptionsError,
    RefusedError,
    UnknownOutcomeError,
    UVMError,
    VMExitedError,
)
from uvm.hresult import HResult
from uvm.schema.process import ProcessParameters, SignalProcessOptionsLCOW

_log = Log("uvm.gcs")

_OUTPUTS: Final[tuple[OutputName, ...]] = ("stdout", "stderr")

#: A guest does not know the process (any more); HCS says that it has exited.
EXITED: Final = frozenset({HResult.ERROR_NOT_FOUND, HResult.HCS_E_PROCESS_ALREADY_STOPPED})


class ProcessHandle(Protocol):
    """A process, by either connection. What is refused comes as GuestError or HostError.

    :ivar pid: the process id, in the guest or in the container.
    :ivar contained: it is a process in a container.
    :ivar exit: the exit code, to be.
    """

    pid: int
    contained: bool
    exit: Exit[int]

    @property
    def streams(self) -> Mapping[str, Source]:
        """The standard streams, by name."""

    async def signal(self, options: SignalOptions | None) -> None:
        """Have a signal sent; None to kill."""

    async def resize(self, height: int, width: int) -> None:
        """Have the size of its terminal changed."""

    def doubt(self) -> None:
        """Settle the exit soon, with or without a code: the process is said to be gone."""

    async def has_exited(self) -> bool:
        """Ask whether it has exited."""

    async def start_helper(self, launch: Launch) -> Process:
        """Start a process of the guest itself."""

    def leave(self, failure: Callable[[], Exception]) -> None:
        """Wait for its exit no more.

        :param failure: makes the error that says so.
        """


@final
class Process(Bound, anyio.abc.AsyncResource):
    """A process in a guest, or in a container of one.

    As a context manager it closes its streams at the end; the process, where it still runs, is left running,
    as in hcsshim.

    :ivar pid: its id, in the guest or in the container.
    :ivar args: what was run; empty for a container's own process, which its specification names.
    """

    def __init__(
        self,
        guest: GuestAccess,
        handle: ProcessHandle,
        args: tuple[str, ...],
        terminal: bool,
    ) -> None:
        self.args = args
        self.pid: int = handle.pid
        self._guest = guest
        self._handle = handle
        self._terminal = terminal
        name = f"of process {self.pid} ({args[0]!r})" if args else f"of process {self.pid}"
        streams, call = handle.streams, guest.call
        self._stdin = ProcessInput(streams["stdin"], f"stdin {name}", call) if "stdin" in streams else None
        self._outputs = {
            each: ProcessOutput(streams[each], f"{each} {name}", call) for each in _OUTPUTS if each in streams
        }

    def __repr__(self) -> str:
        exit = self._handle.exit
        state = (
            "running" if not exit.settled else "exit unknown" if exit.how is None else f"exited: {exit.how}"
        )
        ran = list(self.args) or "of a container's own"
        return brief(f"<Process {self.pid} {ran} ({state})>")

    @property
    def stdin(self) -> ProcessInput:
        """The standard input.

        :raises OptionsError: it was started without one.
        """
        if self._stdin is None:
            raise self._not_opened("stdin")
        return self._stdin

    @property
    def stdout(self) -> ProcessOutput:
        """The standard output.

        :raises OptionsError: it was started without one.
        """
        return self._output("stdout")

    @property
    def stderr(self) -> ProcessOutput:
        """The standard error.

        :raises OptionsError: it was started without one; with a terminal it has none.
        """
        return self._output("stderr")

    def _output(self, name: OutputName) -> ProcessOutput:
        if name not in self._outputs:
            raise self._not_opened(name)
        return self._outputs[name]

    def _not_opened(self, name: str) -> OptionsError:
        if self._terminal and name == "stderr":
            return OptionsError(f"process {self.pid} has no stderr: its terminal writes all to stdout")
        return OptionsError(f"process {self.pid} has no {name}: start it with {name}=True")

    @property
    def exit_code(self) -> int | None:
        """The exit code, an unsigned 32-bit number; None while it runs, and where it is unknown."""
        return self._handle.exit.how

    async def wait(self) -> int:
        """Wait for its exit and return its exit code. Any number of tasks may wait, and leave at any time.

        A process of a Linux guest that a signal ended gives 0xFFFFFFFF, one in a container 128 and the
        signal's number. A process in a Linux container has exited only once its output was read to the end,
        or closed; what is not read meanwhile is read ahead, as much of each stream as a pipe would hold.

        :raises GuestError: the guest knows the process no more, so that its exit code is unknown.
        :raises HostError: HCS, which started it, does not know how it exited.
        :raises UnknownOutcomeError: the guest's answer cannot be read.
        :raises BridgeClosedError: the connection to the guest closed before the exit was known.
        :raises VMExitedError: the VM exited before.
        """
        return await self._guest.call(self._wait())

    async def _wait(self) -> int:
        exit = self._handle.exit
        outputs = self._outputs.values()
        # The Linux guest reports the exit of what is in a container only once its output was taken.
        if self._guest.os != "linux" or not self._handle.contained or not outputs:
            return await exit.wait()
        async with anyio.create_task_group() as tasks:
            for output in outputs:
                tasks.start_soon(output._read_ahead)
            # Raised below: the task group would wrap it.
            with suppress(UVMError):
                await exit.wait()
            tasks.cancel_scope.cancel()
        return await exit.wait()

    def stream(self) -> AsyncIterator[tuple[OutputName, bytes]]:
        """Iterate over ``("stdout", chunk)`` and ``("stderr", chunk)`` as they come, until both have ended.

        What it was started without is left out. The loop may be left at any time: nothing is lost. Then, or
        at the end, :meth:`wait` for the exit. Errors are those of :meth:`ProcessOutput.receive`.

        :raises OptionsError: it was started without either.
        """
        if not self._outputs:
            raise self._not_opened("stdout")
        return Chunks(self._outputs)

    @overload
    async def communicate(
        self,
        input: bytes | None = None,
        *,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        timeout: float | None = None,
        check: bool = False,
        on_stdout: Callable[[bytes], object] | None = None,
        on_stderr: Callable[[bytes], object] | None = None,
        text: Literal[False] = False,
    ) -> CompletedProcess[bytes]: ...

    @overload
    async def communicate(
        self,
        input: str | None = None,
        *,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        timeout: float | None = None,
        check: bool = False,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        text: Literal[True],
    ) -> CompletedProcess[str]: ...

    @suggesting
    async def communicate(
        self,
        input: bytes | str | None = None,
        *,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        timeout: float | None = None,
        check: bool = False,
        on_stdout: Callable[[Any], object] | None = None,
        on_stderr: Callable[[Any], object] | None = None,
        text: bool = False,
    ) -> CompletedProcess[Any]:
        """Send input and its end, take the output, and wait for the exit; then close its streams.

        If that fails, or the caller is cancelled, the process is killed. Errors are those of :meth:`wait` and
        of its streams, and:

        :param input: what it reads; the end of the input follows.
        :param max_output_bytes: how much it may write, both streams together.
        :param timeout: how many seconds it has from now; they stand still while the VM is paused.
        :param check: raise an error if its exit code is not 0.
        :param on_stdout: called, and awaited if it returns an awaitable, with each chunk of the output, which
            is returned all the same. What it raises is raised.
        :param on_stderr: called with the error output likewise.
        :param text: input and output are text, in UTF-8; bytes that are not become U+FFFD, and newlines stay.
        :raises OptionsError: there is input, and it was started without ``stdin=True``; or an argument is of
            the wrong kind. Nothing has happened.
        :raises OutputLimitError: it wrote more, and is killed.
        :raises ProcessTimeoutError: it took longer, and is killed.
        :raises ProcessFailedError: its exit code is not 0.
        """
        exchange: Exchange[Any] = Exchange(
            input=input,
            max_output_bytes=max_output_bytes,
            timeout=timeout,
            check=check,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            text=text,
        )
        if exchange.input and self._stdin is None:
            raise self._not_opened("stdin")
        return await exchange.complete(self._guest.clock, self.args, lambda: converse(self, exchange))

    async def signal(self, signal: int | str) -> bool:
        """Send a signal to it. False: it had exited.

        :param signal: a number of the guest's system, a member of :class:`signal.Signals`, or a name; see
            :func:`uvm._guest.signals.signal_options`.
        :raises OptionsError: the guest's system has no such signal.
        :raises NotSupportedError: the guest can only kill processes (:meth:`kill`).
        :raises GuestError: the guest refused.
        :raises HostError: HCS refused, or the guest that it asked.
        :raises UnknownOutcomeError: the answer was lost; it may have been sent.
        :raises BridgeClosedError: the connection to the guest is closed.
        :raises VMExitedError: the VM has exited.
        """
        options = signal_options(signal, self._guest.os)
        if options is not None:
            supported = self._guest.features.signal_process
            self._guest.needs(supported, f"signal process {self.pid}", "SignalProcessSupported")
        return await self._guest.call(self._signal(options))

    async def kill(self) -> bool:
        """Kill it. False: it had exited, or its guest has gone.

        It may still run for a moment; :meth:`wait` returns when it has exited. Other errors are those of
        :meth:`signal`.
        """
        try:
            return await self._guest.call(self._kill())
        except VMExitedError:
            return False

    async def _kill(self) -> bool:
        try:
            return await self._signal(None)
        except BridgeClosedError:
            return False

    async def resize(self, height: int, width: int) -> None:
        """Change the size of its terminal, in characters.

        :raises OptionsError: it was started without a terminal, or the size is none.
        :raises GuestError: the guest refused: it has exited, for instance.
        :raises HostError: HCS refused, or the guest that it asked.
        :raises UnknownOutcomeError: the answer was lost.
        :raises BridgeClosedError: the connection to the guest is closed.
        :raises VMExitedError: the VM has exited.
        """
        check_size(height, width)
        if not self._terminal:
            raise OptionsError(f"resize the terminal of process {self.pid}: it was started without one")
        await self._guest.call(self._resize(height, width))

    async def _resize(self, height: int, width: int) -> None:
        try:
            await self._handle.resize(height, width)
        except RefusedError as error:
            if not self._guest_must_help(error):
                raise
            terminal = f"/proc/{self.pid}/fd/0"
            code = await self._run_helper("stty", "-F", terminal, "rows", str(height), "cols", str(width))
            if code:
                operation = f"resize the terminal of process {self.pid}"
                raise GuestError(operation, HResult.E_FAIL, f"stty exited with {code}") from None

    async def aclose(self) -> None:
        """Close its streams, at once. Where it still runs, it is left running."""
        # The caller may be cancelled at any of them; the others are closed all the same.
        async with AsyncExitStack() as stack:
            for stream in (self._stdin, *self._outputs.values()):
                if stream is not None:
                    stack.push_async_callback(stream.aclose)
        await anyio.lowlevel.checkpoint()

    # Signals.

    async def _signal(self, options: SignalOptions | None) -> bool:
        if self._handle.exit.gone():
            await anyio.lowlevel.checkpoint()
            return False
        try:
            await self._handle.signal(options)
        except RefusedError as error:
            if self._handle.exit.gone():
                return False
            if error.hresult in EXITED:
                self._handle.doubt()
                return False
            if self._guest_must_help(error):
                return await self._signal_by_helper(options)
            raise
        return True

    async def _signal_by_helper(self, options: SignalOptions | None) -> bool:
        number = options.signal if isinstance(options, SignalProcessOptionsLCOW) else LINUX_KILL
        code = await self._run_helper("kill", f"-{number:d}", str(self.pid))
        if code == 0:
            return True
        if await self._handle.has_exited():
            return False
        raise GuestError(f"signal process {self.pid}", HResult.E_FAIL, f"kill exited with {code}")

    def _guest_must_help(self, error: RefusedError) -> bool:
        """Return whether a Linux guest took its own id for that of a container, and found none."""
        return (
            self._guest.os == "linux"
            and not self._handle.contained
            and error.hresult == HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND
        )

    async def _run_helper(self, *args: str) -> int:
        launch = Launch(args, host_process(Command(args), self._guest.os))
        helper = await self._handle.start_helper(launch)
        # It stands for one answer of the guest, and has as long as that.
        seconds = self._guest.timeouts.rpc_seconds
        with self._guest.clock.move_on_after(seconds):
            return await helper.wait()
        raise UnknownOutcomeError(f"{args[0]} for process {self.pid} has not ended within {seconds:g} s")


@define(eq=False, repr=False)
class Launch:
    """A process to be started.

    :ivar args: what is run, for messages; empty for a container's own process.
    :ivar parameters: what to run; which streams it has is filled in.
    :ivar pipes: whether it has ``stdin``, ``stdout`` and ``stderr``.
    :ivar terminal: whether it has one, which can be resized then.
    :ivar on_start: called when it was started, also where the caller has been cancelled meanwhile.
    """

    args: tuple[str, ...]
    parameters: ProcessParameters
    pipes: Mapping[str, bool] = field(factory=dict)
    terminal: bool = False
    on_start: Callable[[Process], None] = lambda process: None

    def __attrs_post_init__(self) -> None:
        self.parameters.create_std_in_pipe = self.pipes.get("stdin", False)
        self.parameters.create_std_out_pipe = self.pipes.get("stdout", False)
        self.parameters.create_std_err_pipe = self.pipes.get("stderr", False)

    @property
    def operation(self) -> str:
        """What is asked, for messages."""
        return f"run {self.args[0]!r}" if self.args else "run the container's own process"

    def text(self) -> str:
        """Return the parameters as JSON text; OptionsError where they hold what JSON has no form for."""
        return check_writable("what to run", self.parameters)


def exit_of(process: Process) -> Exit[int]:
    """Return the exit of a process, to wait for without reading its output."""
    return process._handle.exit


def handle_of(process: Process) -> ProcessHandle:
    """Return what a process is asked through, as its host asks: without help from the guest."""
    return process._handle


async def converse(process: Process, exchange: Exchange[Any]) -> int:
    """Exchange input and output with a process until its end; kill it if that fails or is cancelled."""
    async with process:
        try:
            streams = process._stdin, process._outputs
            return await exchange.converse(process._guest.name, process.args, *streams, process.wait)
        except BaseException:
            discard(process)
            raise


def discard(process: Process) -> None:
    """Have the VM's tasks kill a process whose caller has gone."""
    guest = process._guest

    async def end() -> None:
        with guest.clock.move_on_after(guest.timeouts.close_seconds):
            try:
                await process.kill()
            except Exception as error:
                _log.debug(guest.name, "process %d, whose caller has gone: %s", process.pid, error)

    guest.start_soon(end)


async def end_abandoned(process: Process) -> None:
    """Kill a process that no caller has, and wait for its exit, as long as that may take."""
    guest, handle = process._guest, process._handle
    # Unread, its output would keep a Linux guest from the report of its exit.
    await process.aclose()
    try:
        with guest.clock.move_on_after(guest.timeouts.close_seconds):
            await process.kill()
            await handle.exit.wait()
    finally:
        problem = f"wait for process {handle.pid}: its caller has left, and nothing waits for its exit"
        handle.leave(lambda: UnknownOutcomeError(problem))
