"""A process in a guest, whoever started it: what can be asked of it.

There are two kinds: ``uvm._gcs.process`` starts them over our own connection to the guest, and
``uvm._hcsguest.process`` has HCS start them over its own.

Source: hcsshim internal/cow.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final

import anyio
import anyio.lowlevel

from uvm._guest.access import GuestAccess
from uvm._guest.signals import LinuxSignal, SignalOptions, signal_options
from uvm._guest.specs import check_size
from uvm._guest.stdio import ProcessInput, ProcessOutput, Source
from uvm.errors import (
    BridgeClosedError,
    GuestError,
    OptionsError,
    RefusedError,
    UnknownOutcomeError,
    UVMError,
)
from uvm.hresult import HResult
from uvm.schema.process import SignalProcessOptionsLCOW

_log = logging.getLogger("uvm.gcs")

#: A guest does not know the process (any more); HCS says that it has exited.
EXITED: Final = frozenset({HResult.ERROR_NOT_FOUND, HResult.HCS_E_PROCESS_ALREADY_STOPPED})

#: How long a process is taken care of that nobody wants any more.
_DISCARD_SECONDS: Final = 10.0


class Process(ABC):
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
        guest: GuestAccess,
        args: tuple[str, ...],
        pid: int,
        terminal: bool,
        streams: Mapping[str, Source | None],
    ) -> None:
        self.args = args
        self.pid = pid
        self._guest = guest
        self._terminal = terminal
        name = f"of process {pid} ({args[0]!r})" if args else f"of process {pid}"
        stdin, stdout, stderr = (streams.get(each) for each in ("stdin", "stdout", "stderr"))
        self.stdin: ProcessInput | None = ProcessInput(stdin, f"stdin {name}") if stdin else None
        self.stdout: ProcessOutput | None = ProcessOutput(stdout, f"stdout {name}") if stdout else None
        self.stderr: ProcessOutput | None = ProcessOutput(stderr, f"stderr {name}") if stderr else None

    def __repr__(self) -> str:
        return f"<Process {self.pid} {list(self.args)}, exit code {self.exit_code}>"

    @property
    @abstractmethod
    def exit_code(self) -> int | None:
        """Its exit code, an unsigned 32-bit number; None while it runs, or where nobody knows it."""

    async def wait(self) -> int:
        """Wait for its exit and give its exit code. Any number of tasks may wait, and leave at any time.

        A process of a Linux guest that a signal ended gives 0xFFFFFFFF, one in a container 128 and the
        signal's number. A process in a Linux container has exited only once its output was read to the end,
        or closed; what nobody reads meanwhile is read ahead, as much of each stream as a pipe would hold.

        :raises GuestError: the guest knows the process no more, so that nobody knows how it exited.
        :raises HostError: HCS, which started it, does not know how it exited.
        :raises UnknownOutcomeError: the guest's answer cannot be read.
        :raises BridgeClosedError: the connection to the guest closed before the exit was known.
        """
        outputs = [each for each in (self.stdout, self.stderr) if each is not None]
        # The Linux guest tells of the exit of what is in a container only once its output was taken.
        if self._guest.os != "linux" or not self._contained or not outputs:
            return await self._wait_for_exit()
        failure: UVMError | None = None
        async with anyio.create_task_group() as tasks:
            for output in outputs:
                tasks.start_soon(output.read_ahead)
            try:
                await self._wait_for_exit()
            except UVMError as error:
                # Kept out of the task group, which would wrap it.
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return await self._wait_for_exit()

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
        """
        options = signal_options(signal, self._guest.os)
        if options is not None:
            supported = self._guest.features.signal_process
            self._guest.needs(supported, f"signal process {self.pid}", "SignalProcessSupported")
        return await self._signal(options)

    async def kill(self) -> bool:
        """Kill it. False: it had exited, or the connection to its guest has closed.

        It may still run for a moment; :meth:`wait` tells when it has exited. Other errors are those of
        :meth:`signal`.
        """
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
        """
        check_size(height, width)
        operation = f"resize the terminal of process {self.pid}"
        if not self._terminal:
            raise OptionsError(f"{operation}: it was started without one")
        try:
            await self._change_size(height, width)
        except RefusedError as error:
            if not self._guest_must_help(error):
                raise
            terminal = f"/proc/{self.pid}/fd/0"
            code = await self._run_helper("stty", "-F", terminal, "rows", str(height), "cols", str(width))
            if code:
                raise GuestError(operation, HResult.E_FAIL, f"stty exited with {code}") from None

    async def aclose(self) -> None:
        """Close its streams. Where it still runs, it is left running."""
        # One that is closed already would let a cancellation in before the others are.
        with anyio.CancelScope(shield=True):
            for stream in (self.stdin, self.stdout, self.stderr):
                if stream is not None:
                    await stream.aclose()

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # What the kinds do each in their way.

    @abstractmethod
    async def _wait_for_exit(self) -> int:
        """Wait for its exit and give its exit code, whatever becomes of its output."""

    @abstractmethod
    def _is_gone(self) -> bool:
        """It has exited, or the guest knows it no more; not that the connection closed."""

    @property
    @abstractmethod
    def _contained(self) -> bool:
        """It runs in a container."""

    @abstractmethod
    async def _deliver(self, options: SignalOptions | None) -> None:
        """Have a signal sent; None to kill."""

    @abstractmethod
    async def _change_size(self, height: int, width: int) -> None:
        """Have the size of the terminal changed."""

    @abstractmethod
    async def _start_helper(self, *args: str) -> Process:
        """Start a process of the guest itself, without streams."""

    @abstractmethod
    def _doubt(self) -> None:
        """The process is said to be no more: the wait has to end soon, with or without an exit code."""

    @abstractmethod
    async def _has_exited(self) -> bool:
        """Ask whether it has exited."""

    # Signals.

    async def _signal(self, options: SignalOptions | None) -> bool:
        if self._is_gone():
            await anyio.lowlevel.checkpoint()
            return False
        try:
            await self._deliver(options)
        except RefusedError as error:
            if self._is_gone():
                return False
            if error.hresult in EXITED:
                self._doubt()
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
        if await self._has_exited():
            return False
        raise GuestError(f"signal process {self.pid}", HResult.E_FAIL, f"kill exited with {code}")

    def _guest_must_help(self, error: RefusedError) -> bool:
        """Tell whether a Linux guest took its own id for that of a container, and found none."""
        return (
            self._guest.os == "linux"
            and not self._contained
            and error.hresult == HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND
        )

    async def _run_helper(self, *args: str) -> int:
        helper = await self._start_helper(*args)
        # It stands for one answer of the guest, and has as long as that.
        seconds = self._guest.timeouts.rpc_seconds
        with self._guest.clock.move_on_after(seconds):
            return await helper.wait()
        raise UnknownOutcomeError(f"{args[0]} for process {self.pid} has not ended within {seconds:g} s")


async def discard(started: Callable[[], Process], *, shield: bool = True) -> None:
    """Kill a process, if it was started, whose caller has gone.

    :param shield: do so also where we are cancelled.
    """
    with anyio.move_on_after(_DISCARD_SECONDS, shield=shield):
        try:
            await started().kill()
        except UVMError as error:
            _log.debug("a process whose caller was cancelled: %s", error)
