r"""Processes in a guest that are started over our own connection to it.

How it works
------------

The states of a process::

    start_process --+-- the guest refuses -----------> an error; its channels are closed
                    |
                    |-- the caller leaves -----------> killed, as soon as the guest has sent its id
                    v
                 RUNNING -- exit, or loss -----------> see uvm._gcs.exits; what it wrote can still be read
                    |
                    `-- aclose ----------------------> its streams are closed; it runs on

Source: hcsshim internal/gcs/process.go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import anyio

from uvm._gcs.calls import Call
from uvm._gcs.exits import MAX_UINT32, ExitWatch
from uvm._gcs.link import GuestLink
from uvm._guest.process import Launch, Process, end_abandoned
from uvm._guest.signals import SignalOptions
from uvm._guest.specs import execute_settings
from uvm._guest.starts import Start, start_in_task
from uvm._guest.stdio import Channel
from uvm._wire.frames import Procedure
from uvm.errors import BridgeClosedError, UnknownOutcomeError
from uvm.schema import gcs


class ConnectedProcess(ExitWatch):
    """A process over our own connection (:class:`~uvm._guest.process.ProcessHandle`).

    :ivar streams: its standard streams, by name.
    """

    def __init__(self, link: GuestLink, container_id: str, pid: int, streams: Mapping[str, Channel]) -> None:
        super().__init__(link, container_id, pid)
        self.streams = streams
        self.contained = container_id != gcs.HOST_CONTAINER_ID

    def _end(self, failure: Callable[[], Exception] | None, *, cut_off: bool = False) -> None:
        super()._end(failure, cut_off=cut_off)
        for channel in self.streams.values():
            channel.process_ended(failure)

    async def signal(self, options: SignalOptions | None) -> None:
        """Have a signal sent; None to kill."""
        request = gcs.SignalProcessRequest(
            container_id=self._container_id, process_id=self.pid, options=options
        )
        await self._ask_for(Procedure.SIGNAL_PROCESS, request, f"signal process {self.pid}")

    async def resize(self, height: int, width: int) -> None:
        """Have the size of its terminal changed."""
        request = gcs.ResizeConsoleRequest(
            container_id=self._container_id, process_id=self.pid, height=height, width=width
        )
        await self._ask_for(Procedure.RESIZE_CONSOLE, request, f"resize the terminal of process {self.pid}")

    async def _ask_for(self, procedure: Procedure, request: gcs.RequestBase, operation: str) -> None:
        await self._link.bridge.call(procedure, request, gcs.ResponseBase, operation=operation)

    async def start_helper(self, launch: Launch) -> Process:
        """Start a process of the guest itself."""
        # It ends by itself, and what it does is to be done also for a caller who leaves.
        call = _ask(self._link, gcs.HOST_CONTAINER_ID, launch, {}, starts=False)
        try:
            await call.wait()
        finally:
            call.abandon()
        return _started(self._link, gcs.HOST_CONTAINER_ID, launch, {}, call)

    def leave(self, failure: Callable[[], Exception]) -> None:
        """Wait for its exit no more."""
        if not self.exit.settled:
            self._end(failure, cut_off=True)


async def start_process(link: GuestLink, container_id: str, launch: Launch) -> Process:
    """Start a process in a container, or with :data:`HOST_CONTAINER_ID` in the guest itself.

    A cancelled caller leaves at once; a process that is started all the same is killed.

    :raises GuestError: the guest refused: there is no such program, for instance.
    :raises UnknownOutcomeError: the answer was lost, or did not come in time; the process may run. If the
        answer comes later, the process is killed.
    :raises VMStateError: the guest owes too many answers.
    :raises BridgeClosedError: the connection to the guest is closed, or closed meanwhile.
    """
    link.bridge.check_owed(Procedure.EXECUTE_PROCESS, launch.operation)
    make = partial(_make, link, container_id, launch)
    return await start_in_task(link, launch.operation, make, end_abandoned)


async def _make(link: GuestLink, container_id: str, launch: Launch, start: Start[Process]) -> Process:
    channels: dict[str, Channel] = {}

    async def close() -> None:
        # One that is closed already would let a cancellation in before the others are.
        with anyio.CancelScope(shield=True):
            for channel in channels.values():
                await channel.aclose()

    try:
        for name, wanted in launch.pipes.items():
            if wanted:
                channels[name] = await link.open_channel()
        call = _ask(link, container_id, launch, channels, starts=True)
        return _started(link, container_id, launch, channels, await link.answer(start, call, close))
    except BaseException:
        await close()
        raise


def _ask(
    link: GuestLink, container_id: str, launch: Launch, channels: Mapping[str, Channel], *, starts: bool
) -> Call:
    ports = {name: channel.port for name, channel in channels.items()}
    settings = execute_settings(link.os, launch.text(), ports)
    request = gcs.ExecuteProcessRequest(container_id=container_id, settings=settings)
    return link.bridge.submit(Procedure.EXECUTE_PROCESS, request, operation=launch.operation, starts=starts)


def _started(
    link: GuestLink, container_id: str, launch: Launch, channels: Mapping[str, Channel], call: Call
) -> Process:
    pid = call.result(gcs.ExecuteProcessResponse).process_id
    if not 0 <= pid <= MAX_UINT32:
        raise UnknownOutcomeError(f"{call.operation}: the guest's answer cannot be read: no process id")
    try:
        handle = ConnectedProcess(link, container_id, pid, channels)
    except BridgeClosedError:
        # It runs, and its exit will not be reported.
        raise link.answer_lost() from None
    process = Process(link, handle, launch.args, launch.terminal)
    launch.on_start(process)
    return process
