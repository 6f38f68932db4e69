"""Where processes run, in a guest or in a container of one, and how to run one to its end.

Source: hcsshim internal/cmd/cmd.go.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final

import anyio
from attrs import frozen

from uvm._arguments import Bound, kind_of
from uvm._async import opens
from uvm._guest.access import GuestAccess
from uvm._guest.process import Launch, Process, discard
from uvm._guest.specs import Command, host_process
from uvm._guest.stdio import ProcessInput, ProcessOutput, StreamBrokenError
from uvm._repr import brief_call
from uvm.errors import OptionsError, OutputLimitError, RefusedError, UVMError

_log = logging.getLogger("uvm.gcs")

#: How much output :meth:`ProcessHost.run` takes by default.
MAX_OUTPUT_BYTES: Final = 16 * 1024 * 1024


@frozen
class CompletedProcess:
    """A process that has exited.

    :ivar args: what was run.
    :ivar exit_code: its exit code, an unsigned 32-bit number.
    """

    args: tuple[str, ...]
    exit_code: int
    stdout: bytes = b""
    stderr: bytes = b""

    def __repr__(self) -> str:
        return brief_call(self)


class ProcessHost(Bound, ABC):
    """Where processes run: a guest, or a container of one."""

    @abstractmethod
    async def _start(self, wanted: Command, pipes: Mapping[str, bool]) -> Process:
        """Start a process.

        :param pipes: whether it has ``stdin``, ``stdout`` and ``stderr``.
        """

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
        pipes = {"stdin": stdin, "stdout": stdout, "stderr": stderr and not terminal}
        asked = Command(args, env, cwd, user, terminal, size)
        return await self._start(asked, pipes)

    async def run(
        self,
        args: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> CompletedProcess:
        """Run a process to its end, and return its exit code and what it wrote.

        It has ended when it has exited and its output is closed, by all that inherited it. Where the caller
        is cancelled, it is killed. Parameters and errors are those of :meth:`open_process`, and:

        :param input: what it reads; without any it has no standard input.
        :param max_output_bytes: how much it may write, both streams together.
        :raises OutputLimitError: it wrote more, and was killed.
        """
        if not isinstance(input, bytes | bytearray | memoryview):
            raise OptionsError(f"the input of a process is bytes, not {kind_of(input)}")
        process = await self.open_process(args, env=env, cwd=cwd, user=user, stdin=bool(input))
        return await run_to_end(process, input, max_output_bytes)


async def run_to_end(
    process: Process, input: bytes = b"", max_output_bytes: int = MAX_OUTPUT_BYTES
) -> CompletedProcess:
    """Exchange input and output with a process until its end; if that fails or is cancelled, kill it."""
    async with process:
        try:
            return await _converse(process, input, max_output_bytes)
        except BaseException:
            discard(process)
            raise


class GuestHost(ProcessHost):
    """A guest in which processes are started, by either connection."""

    _access: GuestAccess

    @abstractmethod
    async def _launch(self, launch: Launch) -> Process:
        """Start a process of the guest itself."""

    async def _start(self, wanted: Command, pipes: Mapping[str, bool]) -> Process:
        return await self._access.call(self._start_sized(wanted, pipes))

    async def _start_sized(self, wanted: Command, pipes: Mapping[str, bool]) -> Process:
        os = self._access.os
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
        _log.debug("%s: %s", process._guest.name, error)
    except BaseException:
        discard(process)
        raise


async def _converse(process: Process, text: bytes, max_bytes: int) -> CompletedProcess:
    """Send the input, collect the output, and wait for the exit."""
    stdout, stderr = bytearray(), bytearray()
    # The one to raise comes first; kept out of the task groups, which would wrap them.
    failures: list[Exception] = []

    async def feed(stdin: ProcessInput) -> None:
        try:
            await stdin.send(text)
            await stdin.send_eof()
        except StreamBrokenError as error:
            # No process has to read its input.
            _log.debug("%s: %s", process._guest.name, error)
        except Exception as error:
            failures.append(error)
            # It may wait for the end of its input for ever.
            tasks.cancel_scope.cancel()

    async def collect(stream: ProcessOutput, into: bytearray) -> None:
        try:
            async for data in stream:
                into += data
                if len(stdout) + len(stderr) > max_bytes:
                    what = repr(process.args[0]) if process.args else "the container's own process"
                    too_much = f"{what} wrote more than {max_bytes} bytes; it was killed"
                    failures.insert(0, OutputLimitError(too_much))
                    tasks.cancel_scope.cancel()
                    return
        except Exception as error:
            failures.append(error)

    exit_code = 0
    async with anyio.create_task_group() as tasks:
        if process.stdin is not None:
            tasks.start_soon(feed, process.stdin)
        async with anyio.create_task_group() as outputs:
            for stream, into in ((process.stdout, stdout), (process.stderr, stderr)):
                if stream is not None:
                    outputs.start_soon(collect, stream, into)
            try:
                exit_code = await process.wait()
            except UVMError as error:
                # It says more than what a stream says of the same end.
                failures.insert(0, error)
                tasks.cancel_scope.cancel()
        # The process reads no more of the input.
        tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return CompletedProcess(process.args, exit_code, bytes(stdout), bytes(stderr))
