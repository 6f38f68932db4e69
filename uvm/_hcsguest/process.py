r"""Processes in a guest that HCS starts, over its own connection to the guest.

How it works
------------

Each process has one task, in the task group of its VM. It waits for the exit, and holds the handle for as
long as a caller may use it::

    start_relayed --+-- HCS, or the guest, refuses -----> an error
                    |
                    |-- the caller is cancelled --------> killed, as soon as HCS has answered
                    v
                 RUNNING -- exit, or the VM's exit -----> its output can still be read
                    |                                        |
                    `-- aclose: its streams are closed;      | its output was read to the end, or closed
                        it runs on                           v
                                                          the handle is closed

Input is ended by asking HCS to close the process's handle, since HCS does not pass on that its pipe was
closed.

Source: hcsshim internal/hcs/v2/process.go and system.go.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from attrs import define, field

from uvm._guest.access import GuestAccess
from uvm._guest.process import EXITED, Launch, Process, end_abandoned
from uvm._guest.signals import SignalOptions
from uvm._guest.stdio import close_quietly
from uvm._hcsguest.access import RelayAccess, Relayed, start_served
from uvm._log import Log
from uvm.backend import ByteStream, HostProcess
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.json import to_json
from uvm.schema.process import CloseHandle, ConsoleSize, ProcessModifyRequest

T = TypeVar("T")

_log = Log("uvm.gcs")


@define(eq=False, repr=False)
class _Pipe:
    """A stream of a process, made by HCS (:class:`~uvm._guest.stdio.Source`, and that stream itself)."""

    _access: GuestAccess
    _stream: ByteStream
    _on_close: Callable[[], None]
    #: Asks HCS to pass on the end of the input, once.
    _end_input: Callable[[], Awaitable[None]] | None = None
    closed: bool = field(default=False, init=False)

    @property
    def vm_id(self) -> str:
        """The VM of the process."""
        return self._access.name

    async def stream(self) -> ByteStream | None:
        """Return the stream; None once it was closed."""
        return None if self.closed else self

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte."""
        return await self._stream.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        """Send all of it."""
        await self._stream.send(item)

    async def send_eof(self) -> None:
        """End the input."""
        await self._end()
        await self._stream.aclose()

    async def _end(self) -> None:
        if self._end_input is not None:
            await self._end_input()
            self._end_input = None

    async def aclose(self) -> None:
        """Close it at once, also where the caller is cancelled; the VM's tasks end the input before that."""
        if self.closed:
            return
        self.closed = True
        if self._end_input is None or not self._access.start_soon(self._end_and_close):
            await self._close()

    async def _end_and_close(self) -> None:
        try:
            with self._access.clock.move_on_after(self._access.timeouts.close_seconds):
                await self._end()
        except Exception as error:
            # Whatever it is, all streams are closed, and the handle after them.
            _log.debug(self._access.name, "closing the input of a process: %r", error)
        finally:
            await self._close()

    async def _close(self) -> None:
        try:
            await close_quietly(self._stream, self.vm_id)
        finally:
            self._on_close()


class RelayedProcess(Relayed[int]):
    """A process that HCS started (:class:`~uvm._guest.process.ProcessHandle`)."""

    def __init__(self, access: RelayAccess, handle: HostProcess) -> None:
        super().__init__(access, handle, f"process {handle.pid}")
        named = {"stdin": handle.stdin, "stdout": handle.stdout, "stderr": handle.stderr}
        self.pid = handle.pid
        self.contained = access.container is not None
        self.streams = {
            name: _Pipe(access, stream, self._stream_closed, self._end_input if name == "stdin" else None)
            for name, stream in named.items()
            if stream is not None
        }
        self._handle = handle
        self._stream_closed()

    async def _report_exit(self) -> None:
        self.exit.report(await self._handle.wait())

    def leave(self, failure: Callable[[], Exception]) -> None:
        """Wait for its exit no more."""
        self.exit.lose(failure, cut_off=True)
        self._waiting.cancel()

    def _stream_closed(self) -> None:
        # Its output will not be read any more.
        if all(self.streams[name].closed for name in ("stdout", "stderr") if name in self.streams):
            self._unused.set()

    # What can be asked of it.

    async def signal(self, options: SignalOptions | None) -> None:
        """Have a signal sent; None to kill."""
        if options is None:
            await self._ask(self._terminate)
        else:
            await self._ask(partial(self._handle.signal, to_json(options)))

    async def _terminate(self) -> None:
        try:
            await self._handle.terminate()
        except HostError as error:
            # Windows' word for what is ending already.
            if error.hresult != HResult.E_ACCESSDENIED:
                raise

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await super()._ask(call)
        except HostError as error:
            if error.system_gone:
                text = "its container has exited"
            elif error.hresult == HResult.E_HANDLE and self.exit.gone():
                # The handle went with the process.
                text = "it has exited"
            else:
                raise
            raise HostError(error.operation, HResult.HCS_E_PROCESS_ALREADY_STOPPED, text) from error

    async def resize(self, height: int, width: int) -> None:
        """Have the size of its terminal changed."""
        size = ConsoleSize(height=height, width=width)
        request = ProcessModifyRequest(operation="ConsoleSize", console_size=size)
        await self._ask(partial(self._handle.modify, to_json(request)))

    async def _end_input(self) -> None:
        if self.exit.gone():
            return
        request = ProcessModifyRequest(operation="CloseHandle", close_handle=CloseHandle(handle="StdIn"))
        try:
            await self._ask(partial(self._handle.modify, to_json(request)))
        except HostError as error:
            if error.hresult not in EXITED | {HResult.E_HANDLE}:
                raise
            _log.debug(self._access.name, "the input of process %d: %s", self.pid, error)

    async def start_helper(self, launch: Launch) -> Process:
        """Start a process of the guest itself."""
        return await self._ask(partial(start_relayed, self._access, launch, undone=False))

    def doubt(self) -> None:
        """Settle the exit soon: the process is said to be gone."""
        if not self.exit.gone():
            self._access.watch(self._give_up)

    async def _give_up(self) -> None:
        """Settle the exit, if HCS forgets to report it."""
        await self._access.clock.sleep(self._access.timeouts.grace_seconds)
        text = "HCS knows the process no more, and did not report how it exited"
        self.exit.lose(lambda: HostError(f"wait for process {self.pid}", HResult.ERROR_NOT_FOUND, text))
        self._waiting.cancel()

    async def has_exited(self) -> bool:
        """Ask HCS whether it has exited."""
        return await self._ask(self._ask_for_exit)

    async def _ask_for_exit(self) -> bool:
        status = await self._handle.properties()
        lost = status.get("LastWaitResult")
        if isinstance(lost, int) and lost:
            # It went with its VM, for instance.
            raise HostError(f"wait for process {self.pid}", lost)
        return status.get("Exited") is True


async def start_relayed(access: RelayAccess, launch: Launch, *, undone: bool = True) -> Process:
    """Have HCS start a process in the guest, or in the container that the access means.

    A cancelled caller leaves at once; the process is killed as soon as HCS has answered.

    :param undone: False for one that ends by itself, also where its caller has left.
    :raises HostError: HCS refused, or the guest that it asked; or the VM has exited.
    :raises UnknownOutcomeError: the answer was lost; the process may run.
    :raises AnswerLostError: the VM went before the answer.
    :raises VMStateError: HCS, or the guest, owes too many answers.
    """
    document = json.loads(launch.text())

    async def make() -> Process:
        handle = RelayedProcess(access, await (access.container or access.system).create_process(document))
        process = Process(access, handle, launch.args, launch.terminal)
        launch.on_start(process)
        return process

    return await start_served(access, launch.operation, make, end_abandoned if undone else None)
