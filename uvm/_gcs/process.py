r"""Processes in a guest that are started over our own connection to it.

How it works
------------

The states of a process::

    start_process --+-- the guest refuses -----------> an error; its channels are closed
                    |
                    |-- the caller is cancelled -----> killed, as soon as the guest has sent its id
                    v
                 RUNNING -- exit, or loss -----------> see uvm._gcs.exits; what it wrote can still be read
                    |
                    `-- aclose ----------------------> its streams are closed; it runs on

Source: hcsshim internal/gcs/process.go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import anyio

from uvm._gcs.exits import MAX_UINT32, ExitWatch
from uvm._gcs.link import GuestLink
from uvm._guest.process import Launch, Process, discard
from uvm._guest.signals import SignalOptions
from uvm._guest.specs import execute_settings
from uvm._guest.stdio import Channel
from uvm._wire.frames import Procedure
from uvm.errors import AnswerLostError, BridgeClosedError, UnknownOutcomeError, UVMError
from uvm.schema.gcs import (
    HOST_CONTAINER_ID,
    ExecuteProcessRequest,
    ExecuteProcessResponse,
    ResizeConsoleRequest,
    ResponseBase,
    SignalProcessRequest,
)


class ConnectedProcess(ExitWatch):
    """A process over our own connection (:class:`~uvm._guest.process.ProcessHandle`).

    :ivar streams: its standard streams, by name.
    """

    def __init__(self, link: GuestLink, container_id: str, pid: int, streams: Mapping[str, Channel]) -> None:
        super().__init__(link, container_id, pid)
        self.streams = streams
        self.contained = container_id != HOST_CONTAINER_ID

    def _end(self, failure: Callable[[], Exception] | None, *, cut_off: bool = False) -> None:
        super()._end(failure, cut_off=cut_off)
        for channel in self.streams.values():
            channel.process_ended(failure)

    async def signal(self, options: SignalOptions | None) -> None:
        """Have a signal sent; None to kill."""
        request = SignalProcessRequest(container_id=self._container_id, process_id=self.pid, options=options)
        operation = f"signal process {self.pid}"
        call = partial(self._link.bridge.call, Procedure.SIGNAL_PROCESS, request, ResponseBase)
        # To kill twice is to kill once; of any other signal the caller has to know.
        await call(operation=operation, abandonable=options is None)

    async def resize(self, height: int, width: int) -> None:
        """Have the size of its terminal changed."""
        request = ResizeConsoleRequest(
            container_id=self._container_id, process_id=self.pid, height=height, width=width
        )
        operation = f"resize the terminal of process {self.pid}"
        call = partial(self._link.bridge.call, Procedure.RESIZE_CONSOLE, request, ResponseBase)
        await call(operation=operation, abandonable=True)

    async def start_helper(self, launch: Launch) -> Process:
        """Start a process of the guest itself."""
        return await start_process(self._link, HOST_CONTAINER_ID, launch)


async def start_process(link: GuestLink, container_id: str, launch: Launch) -> Process:
    """Start a process in a container, or with :data:`HOST_CONTAINER_ID` in the guest itself.

    A caller who is cancelled once the request is out stays until the guest has answered, and the process is
    killed then.

    :raises GuestError: the guest refused: there is no such program, for instance.
    :raises UnknownOutcomeError: the answer was lost; the process may run.
    :raises BridgeClosedError: the connection to the guest is closed, or closed meanwhile.
    """
    channels: dict[str, Channel] = {}
    try:
        for name, wanted in launch.pipes.items():
            if wanted:
                channels[name] = await link.open_channel()
        return await _execute(link, container_id, launch, channels)
    except BaseException:
        # One that is closed already would let a cancellation in before the others are.
        with anyio.CancelScope(shield=True):
            for channel in channels.values():
                await channel.aclose()
        raise


async def _execute(
    link: GuestLink, container_id: str, launch: Launch, channels: Mapping[str, Channel]
) -> Process:
    ports = {name: channel.port for name, channel in channels.items()}
    settings = execute_settings(link.os, launch.text(), ports)
    request = ExecuteProcessRequest(container_id=container_id, settings=settings)
    operation = f"run {launch.args[0]!r}" if launch.args else "run the container's own process"
    call = link.bridge.submit(Procedure.EXECUTE_PROCESS, request, operation=operation)

    def started() -> Process:
        pid = call.result(ExecuteProcessResponse).process_id
        if not 0 <= pid <= MAX_UINT32:
            raise UnknownOutcomeError(f"{operation}: the guest's answer cannot be read: no process id")
        try:
            handle = ConnectedProcess(link, container_id, pid, channels)
        except BridgeClosedError as error:
            # It runs, and its exit will not be reported.
            raise AnswerLostError(str(error)) from error.__cause__
        process = Process(link, handle, launch.args, launch.terminal)
        launch.on_start(process)
        return process

    async def discard_started() -> None:
        with suppress(UVMError):
            discard(started())

    await call.wait_or_discard(discard_started)
    return started()
