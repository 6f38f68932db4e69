r"""One process in a guest, seen from the host.

How it works
------------

The life of a process::

    start_process --+-- the guest refuses -----------> an error; its channels are closed
                    |
                    |-- the caller is cancelled -----> killed, as soon as the guest has told its id
                    v
                 RUNNING -- exit, or loss -----------> see uvm.gcs.exits; what it wrote can still be read
                    |
                    `-- aclose ----------------------> its streams are closed; it runs on

Source: hcsshim internal/gcs/process.go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Final

import anyio
import anyio.lowlevel
from attrs import frozen

from uvm.errors import (
    AnswerLostError,
    BridgeClosedError,
    GuestError,
    OptionsError,
    UnknownOutcomeError,
    UVMError,
)
from uvm.gcs.exits import ERROR_NOT_FOUND, ExitWatch
from uvm.gcs.link import GuestLink
from uvm.gcs.signals import LinuxSignal, SignalOptions, signal_options
from uvm.gcs.specs import check_size, check_writable, command, host_process
from uvm.gcs.stdio import Channel, ProcessInput, ProcessOutput
from uvm.gcs.wire import Procedure
from uvm.schema.gcs import (
    HOST_CONTAINER_ID,
    ExecuteProcessRequest,
    ExecuteProcessResponse,
    ExecuteProcessSettings,
    ResizeConsoleRequest,
    SignalProcessRequest,
    StdioRelaySettings,
    VsockStdioRelaySettings,
)
from uvm.schema.process import ProcessParameters, SignalProcessOptionsLCOW

__all__ = ["Process", "discard", "start_process"]

_log = logging.getLogger("uvm.gcs")

_SYSTEM_NOT_FOUND: Final = 0xC037010E
_E_FAIL: Final = 0x80004005
_MAX_UINT32: Final = 0xFFFFFFFF

#: How long a process is taken care of that nobody wants any more.
_DISCARD_SECONDS: Final = 10.0


@frozen
class _Channels:
    """The channels of a process; None where it has no such stream."""

    stdin: Channel | None = None
    stdout: Channel | None = None
    stderr: Channel | None = None

    def opened(self) -> list[Channel]:
        return [each for each in (self.stdin, self.stdout, self.stderr) if each is not None]

    def process_ended(self, failure: Callable[[], Exception] | None) -> None:
        for channel in self.opened():
            channel.process_ended(failure)

    async def aclose(self) -> None:
        # One that is closed already would let a cancellation in before the others are.
        with anyio.CancelScope(shield=True):
            for channel in self.opened():
                await channel.aclose()


class Process:
    """A process in a guest, or in a container of one.

    As a context manager it closes its streams at the end; the process, where it still runs, is left running,
    as in hcsshim.

    :ivar pid: its id, in the guest or in the container.
    :ivar args: what was run; empty for a container's own process, which its specification names.
    :ivar stdin: its standard input; None where it has none.
    :ivar stdout: its standard output; None where it has none.
    :ivar stderr: its standard error; None where it has none, as with a terminal.
    """

    def __init__(
        self,
        link: GuestLink,
        container_id: str,
        args: tuple[str, ...],
        pid: int,
        terminal: bool,
        channels: _Channels,
    ) -> None:
        self.args = args
        self.pid = pid
        self._link = link
        self._container_id = container_id
        self._terminal = terminal
        self._channels = channels
        name = f"of process {pid} ({args[0]!r})" if args else f"of process {pid}"
        stdin, stdout, stderr = channels.stdin, channels.stdout, channels.stderr
        self.stdin: ProcessInput | None = ProcessInput(stdin, f"stdin {name}") if stdin else None
        self.stdout: ProcessOutput | None = ProcessOutput(stdout, f"stdout {name}") if stdout else None
        self.stderr: ProcessOutput | None = ProcessOutput(stderr, f"stderr {name}") if stderr else None
        self._exit = ExitWatch(link, container_id, pid, channels.process_ended)

    def __repr__(self) -> str:
        return f"<Process {self.pid} {list(self.args)}, exit code {self.exit_code}>"

    @property
    def exit_code(self) -> int | None:
        """Its exit code, an unsigned 32-bit number; None while it runs, or where nobody knows it."""
        return self._exit.exit_code

    async def wait(self) -> int:
        """Wait for its exit and give its exit code. Any number of tasks may wait, and leave at any time.

        The Linux guest tells of the exit of a process in a container only once its output was read to the
        end, or closed. So what nobody reads meanwhile is read ahead, as much of each stream as a pipe would
        hold; a process that writes more waits to be read, as it does anywhere.

        A process of a Linux guest that a signal ended gives 0xFFFFFFFF, one in a container 128 and the
        signal's number.

        :raises GuestError: the guest knows the process no more, so that nobody knows how it exited.
        :raises UnknownOutcomeError: the guest's answer cannot be read.
        :raises BridgeClosedError: the connection to the guest closed before the exit was known.
        """
        outputs = [each for each in (self.stdout, self.stderr) if each is not None]
        if self._link.os != "linux" or self._container_id == HOST_CONTAINER_ID or not outputs:
            return await self._exit.wait()
        failure: UVMError | None = None
        async with anyio.create_task_group() as tasks:
            for output in outputs:
                tasks.start_soon(output.read_ahead)
            try:
                await self._exit.wait()
            except UVMError as error:
                # Kept out of the task group, which would wrap it.
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return await self._exit.wait()

    async def signal(self, signal: int | str) -> bool:
        """Send a signal to it. False: it had exited.

        :param signal: a number of the guest's system, a member of :class:`signal.Signals`, or a name; see
            :func:`uvm.gcs.signals.signal_options`.
        :raises OptionsError: the guest's system has no such signal.
        :raises NotSupportedError: the guest can only kill processes (:meth:`kill`).
        :raises GuestError: the guest refused.
        """
        options = signal_options(signal, self._link.os)
        if options is not None:
            supported = self._link.features.signal_process
            self._link.needs(supported, f"signal process {self.pid}", "SignalProcessSupported")
        return await self._signal(options)

    async def kill(self) -> bool:
        """Kill it. False: it had exited, or the connection to its guest has closed.

        It may still run for a moment; :meth:`wait` tells when it has exited.
        """
        try:
            return await self._signal(None)
        except BridgeClosedError:
            return False

    async def resize(self, height: int, width: int) -> None:
        """Change the size of its terminal, in characters.

        :raises OptionsError: it was started without a terminal, or the size is none.
        :raises GuestError: the guest refused: it has exited, for instance.
        """
        check_size(height, width)
        operation = f"resize the terminal of process {self.pid}"
        if not self._terminal:
            raise OptionsError(f"{operation}: it was started without one")
        request = ResizeConsoleRequest(
            container_id=self._container_id, process_id=self.pid, height=height, width=width
        )
        call = self._link.bridge.call
        try:
            await call(Procedure.RESIZE_CONSOLE, request, operation=operation, abandonable=True)
        except GuestError as error:
            if not self._guest_must_help(error):
                raise
            terminal = f"/proc/{self.pid}/fd/0"
            code = await self._run_helper("stty", "-F", terminal, "rows", str(height), "cols", str(width))
            if code:
                raise GuestError(operation, _E_FAIL, f"stty exited with {code}") from None

    async def aclose(self) -> None:
        """Close its streams. Where it still runs, it is left running."""
        await self._channels.aclose()

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # Signals.

    async def _signal(self, options: SignalOptions | None) -> bool:
        if self._exit.gone:
            await anyio.lowlevel.checkpoint()
            return False
        request = SignalProcessRequest(container_id=self._container_id, process_id=self.pid, options=options)
        operation = f"signal process {self.pid}"
        call = self._link.bridge.call
        try:
            # To kill twice is to kill once; of any other signal the caller has to know.
            await call(Procedure.SIGNAL_PROCESS, request, operation=operation, abandonable=options is None)
        except GuestError as error:
            if error.result == ERROR_NOT_FOUND:
                self._exit.doubt()
                return False
            if self._guest_must_help(error):
                return await self._signal_by_helper(options)
            raise
        return True

    async def _signal_by_helper(self, options: SignalOptions | None) -> bool:
        number = options.signal if isinstance(options, SignalProcessOptionsLCOW) else LinuxSignal.KILL
        code = await self._run_helper("kill", f"-{number:d}", str(self.pid))
        if code == 0:
            return True
        if await self._exit.check():
            return False
        raise GuestError(f"signal process {self.pid}", _E_FAIL, f"kill exited with {code}")

    def _guest_must_help(self, error: GuestError) -> bool:
        """Tell whether a Linux guest took its own id for that of a container, and found none."""
        outside = self._link.os == "linux" and self._container_id == HOST_CONTAINER_ID
        return outside and error.result == _SYSTEM_NOT_FOUND

    async def _run_helper(self, *args: str) -> int:
        parameters = host_process(command(args), self._link.os)
        helper = await start_process(self._link, HOST_CONTAINER_ID, args, parameters)
        # It stands for one answer of the guest, and has as long as that.
        seconds = self._link.timeouts.rpc_seconds
        with anyio.move_on_after(seconds):
            return await helper.wait()
        raise UnknownOutcomeError(f"{args[0]} for process {self.pid} has not ended within {seconds:g} s")


async def start_process(
    link: GuestLink,
    container_id: str,
    args: tuple[str, ...],
    parameters: ProcessParameters,
    *,
    stdin: bool = False,
    stdout: bool = False,
    stderr: bool = False,
    terminal: bool = False,
    on_start: Callable[[Process], None] = lambda _: None,
) -> Process:
    """Start a process in a container, or with :data:`HOST_CONTAINER_ID` in the guest itself.

    A caller who is cancelled once the request is out stays until the guest has answered, and the process is
    killed then.

    :param parameters: what to run; which streams it has is filled in.
    :param terminal: whether it has one, which can be resized then.
    :param on_start: called when it was started, also where the caller has been cancelled meanwhile.
    :raises GuestError: the guest refused: there is no such program, for instance.
    :raises UnknownOutcomeError: the answer was lost; the process may run.
    :raises BridgeClosedError: the connection to the guest is closed, or closed meanwhile.
    """
    channels = await _open_channels(link, stdin, stdout, stderr)
    try:
        return await _execute(link, container_id, args, parameters, channels, terminal, on_start)
    except BaseException:
        await channels.aclose()
        raise


async def _open_channels(link: GuestLink, *wanted: bool) -> _Channels:
    channels = _Channels()
    opened: list[Channel | None] = []
    try:
        for each in wanted:
            opened.append(await link.ports.open() if each else None)
            channels = _Channels(*opened)
    except BaseException:
        await channels.aclose()
        raise
    return channels


async def _execute(
    link: GuestLink,
    container_id: str,
    args: tuple[str, ...],
    parameters: ProcessParameters,
    channels: _Channels,
    terminal: bool,
    on_start: Callable[[Process], None],
) -> Process:
    request = _request(link, container_id, parameters, channels)
    operation = f"run {args[0]!r}" if args else "run the container's own process"
    call = link.bridge.submit(Procedure.EXECUTE_PROCESS, request, operation=operation)

    def started() -> Process:
        pid = call.result(ExecuteProcessResponse).process_id
        if not 0 <= pid <= _MAX_UINT32:
            raise UnknownOutcomeError(f"{operation}: the guest's answer cannot be read: no process id")
        try:
            process = Process(link, container_id, args, pid, terminal, channels)
        except BridgeClosedError as error:
            # It runs, and nobody can be told of its exit.
            raise AnswerLostError(str(error)) from error.__cause__
        on_start(process)
        return process

    try:
        await call.wait()
    except anyio.get_cancelled_exc_class():
        if not call.sent:
            call.abandon()
            raise
        with anyio.CancelScope(shield=True):
            await call.wait()
        await discard(started)
        raise
    return started()


async def discard(started: Callable[[], Process]) -> None:
    """Kill a process, if it was started, whose caller has gone."""
    with anyio.move_on_after(_DISCARD_SECONDS, shield=True):
        try:
            await started().kill()
        except UVMError as error:
            _log.debug("a process whose caller was cancelled: %s", error)


def _request(
    link: GuestLink, container_id: str, parameters: ProcessParameters, channels: _Channels
) -> ExecuteProcessRequest:
    stdin, stdout, stderr = channels.stdin, channels.stdout, channels.stderr
    parameters.create_std_in_pipe = stdin is not None
    parameters.create_std_out_pipe = stdout is not None
    parameters.create_std_err_pipe = stderr is not None
    text = check_writable("what to run", parameters)
    settings = ExecuteProcessSettings(process_parameters=text)
    if link.os == "windows":
        settings.stdio_relay_settings = StdioRelaySettings(
            std_in=stdin.service_id if stdin else "",
            std_out=stdout.service_id if stdout else "",
            std_err=stderr.service_id if stderr else "",
        )
    else:
        settings.vsock_stdio_relay_settings = VsockStdioRelaySettings(
            std_in=stdin.port if stdin else 0,
            std_out=stdout.port if stdout else 0,
            std_err=stderr.port if stderr else 0,
        )
    return ExecuteProcessRequest(container_id=container_id, settings=settings)
