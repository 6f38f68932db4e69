"""Where processes run, in a guest or in a container of one, and how to run one to its end.

Source: hcsshim internal/cmd/cmd.go.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from uvm._async import opens, suggesting
from uvm._checks import checked, flag
from uvm._guest.access import GuestAccess
from uvm._guest.clock import GuestClock
from uvm._guest.exchange import MAX_OUTPUT_BYTES, CompletedProcess, Exchange
from uvm._guest.process import Launch, Process, converse, discard
from uvm._guest.specs import Command, host_process, pipes_of
from uvm._home import Bound
from uvm._log import Log
from uvm.errors import RefusedError

if TYPE_CHECKING:
    from uvm._guest.files import GuestFiles

_log = Log("uvm.gcs")


class ProcessHost(Bound, ABC):
    """Where processes run: a guest, or a container of one."""

    _guest: GuestAccess

    @property
    def _clock(self) -> GuestClock:
        """The clock of the guest."""
        return self._guest.clock

    @property
    def _guest_os(self) -> str:
        """The operating system of the guest."""
        return self._guest.os

    @abstractmethod
    async def _start(self, wanted: Command, pipes: Mapping[str, bool]) -> Process:
        """Start a process.

        :param pipes: whether it has ``stdin``, ``stdout`` and ``stderr``.
        """

    @property
    def files(self) -> GuestFiles:
        """The files there."""
        from uvm._guest.files import GuestFiles

        return GuestFiles(self, self._guest_os)

    @opens
    async def open_process(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        terminal: bool = False,
        size: tuple[int, int] | None = None,
        stdin: bool = True,
        stdout: bool = True,
        stderr: bool = True,
    ) -> Process:
        """Start a process, and return it with its streams. Await it, or enter it.

        Entered, its streams are closed at the end; a process that still runs is then left running.

        :param args: the program and its arguments. They reach a Windows program as one command line.
        :param env: its whole environment. By default the container's own; in the guest itself a PATH.
        :param cwd: its directory. By default the container's own; in the guest itself the root.
        :param user: by default the container's own. In a Linux container ``uid`` or ``uid:gid``.
        :param terminal: give it a terminal, whose output all comes in ``stdout``.
        :param size: height and width of that terminal, in characters.
        :raises OptionsError: this cannot be run anywhere; nothing was sent.
        :raises NotSupportedError: a Linux guest has no other users for its own processes than root.
        :raises GuestError: the guest refused: there is no such program, for instance.
        :raises HostError: HCS refused, or the guest that it asked.
        :raises UnknownOutcomeError: the answer was lost; the process may run.
        :raises BridgeClosedError: the connection to the guest is closed.
        :raises VMExitedError: the VM has exited.
        """
        pipes = pipes_of(checked(terminal, flag, "terminal"), stdin=stdin, stdout=stdout, stderr=stderr)
        asked = Command(args, env, cwd, user, terminal, size)
        return await self._start(asked, pipes)

    @overload
    async def run(
        self,
        args: Sequence[str],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        timeout: float | None = None,
        check: bool = False,
        on_stdout: Callable[[bytes], object] | None = None,
        on_stderr: Callable[[bytes], object] | None = None,
        text: Literal[False] = False,
    ) -> CompletedProcess[bytes]: ...

    @overload
    async def run(
        self,
        args: Sequence[str],
        *,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        timeout: float | None = None,
        check: bool = False,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        text: Literal[True],
    ) -> CompletedProcess[str]: ...

    @suggesting
    async def run(
        self,
        args: Sequence[str],
        *,
        input: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        timeout: float | None = None,
        check: bool = False,
        on_stdout: Callable[[Any], object] | None = None,
        on_stderr: Callable[[Any], object] | None = None,
        text: bool = False,
    ) -> CompletedProcess[Any]:
        """Run a process to its end, and return its exit code and what it wrote.

        It has ended when it has exited and its output is closed, by all that inherited it. If the caller is
        cancelled, it is killed. Errors are also those of :meth:`open_process`.

        :param args: the program and its arguments: there is no shell.
        :param input: what it reads; without any it has no standard input.
        :param env: its whole environment. By default the container's own; in the guest itself a PATH.
        :param cwd: its directory. By default the container's own; in the guest itself the root.
        :param user: by default the container's own. In a Linux container ``uid`` or ``uid:gid``.
        :param max_output_bytes: how much it may write, both streams together.
        :param timeout: how many seconds it has from now, its start included; they stand still while the VM is
            paused.
        :param check: raise an error if its exit code is not 0.
        :param on_stdout: called, and awaited if it returns an awaitable, with each chunk of the output, which
            is returned all the same. What it raises is raised.
        :param on_stderr: called with the error output likewise.
        :param text: input and output are text, in UTF-8, in place of bytes.
        :raises GuestError: the guest refused: there is no such program, for instance.
        :raises OutputLimitError: it wrote more, and is killed.
        :raises ProcessTimeoutError: it took longer, and is killed.
        :raises ProcessFailedError: its exit code is not 0, which ``check`` does not allow.
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
        return await self._complete(Command(args, env, cwd, user), exchange)

    async def _complete(self, wanted: Command, exchange: Exchange[Any]) -> CompletedProcess[Any]:
        """Run a process to its end."""
        pipes = {"stdin": bool(exchange.input), "stdout": True, "stderr": True}

        async def start_and_converse() -> int:
            process = await self._start(wanted, pipes)
            return await converse(process, exchange)

        return await exchange.complete(self._clock, wanted.args, start_and_converse)


class GuestHost(ProcessHost):
    """A guest in which processes are started, by either connection."""

    @abstractmethod
    async def _launch(self, launch: Launch) -> Process:
        """Start a process of the guest itself."""

    async def _start(self, wanted: Command, pipes: Mapping[str, bool]) -> Process:
        return await self._guest.call(self._start_sized(wanted, pipes))

    async def _start_sized(self, wanted: Command, pipes: Mapping[str, bool]) -> Process:
        os = self._guest.os
        process = await self._launch(Launch(wanted.args, host_process(wanted, os), pipes, wanted.terminal))
        if wanted.size is not None and os == "linux":
            await _give_size(process, *wanted.size)
        return process


async def _give_size(process: Process, height: int, width: int) -> None:
    """Set the size of the terminal of a Linux guest's own process, which that guest does not read."""
    try:
        await process.resize(height, width)
    except RefusedError as error:
        # It runs all the same, or has exited already.
        _log.debug(process._guest.name, "%s", error)
    except BaseException:
        discard(process)
        await process.aclose()
        raise
