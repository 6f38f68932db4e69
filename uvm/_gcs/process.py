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
from types import MappingProxyType
from typing import Final

import anyio
from attrs import define, field

from uvm._gcs.exits import ExitWatch
from uvm._gcs.link import GuestLink
from uvm._guest.exit import Exit
from uvm._guest.process import Process, discard
from uvm._guest.signals import SignalOptions
from uvm._guest.specs import check_writable, command, execute_settings, host_process
from uvm._guest.stdio import Channel
from uvm._wire.frames import Procedure
from uvm.errors import AnswerLostError, BridgeClosedError, UnknownOutcomeError
from uvm.schema.gcs import (
    HOST_CONTAINER_ID,
    ExecuteProcessRequest,
    ExecuteProcessResponse,
    ResizeConsoleRequest,
    SignalProcessRequest,
)
from uvm.schema.process import ProcessParameters

_MAX_UINT32: Final = 0xFFFFFFFF


@define(eq=False)
class ConnectedProcess:
    """A process over our own connection (:class:`~uvm._guest.process.ProcessHandle`)."""

    _link: GuestLink
    _container_id: str
    pid: int
    #: Its standard streams, by name.
    streams: Mapping[str, Channel]
    _watch: ExitWatch = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._watch = ExitWatch(self._link, self._container_id, self.pid, self._ended)

    @property
    def contained(self) -> bool:
        """True for a process in a container."""
        return self._container_id != HOST_CONTAINER_ID

    @property
    def exit(self) -> Exit[int]:
        """The exit code, to be."""
        return self._watch.exit

    def _ended(self, failure: Callable[[], Exception] | None) -> None:
        for channel in self.streams.values():
            channel.process_ended(failure)

    async def signal(self, options: SignalOptions | None) -> None:
        """Have a signal sent; None to kill."""
        request = SignalProcessRequest(container_id=self._container_id, process_id=self.pid, options=options)
        operation = f"signal process {self.pid}"
        call = self._link.bridge.call
        # To kill twice is to kill once; of any other signal the caller has to know.
        await call(Procedure.SIGNAL_PROCESS, request, operation=operation, abandonable=options is None)

    async def resize(self, height: int, width: int) -> None:
        """Have the size of its terminal changed."""
        request = ResizeConsoleRequest(
            container_id=self._container_id, process_id=self.pid, height=height, width=width
        )
        operation = f"resize the terminal of process {self.pid}"
        await self._link.bridge.call(Procedure.RESIZE_CONSOLE, request, operation=operation, abandonable=True)

    def doubt(self) -> None:
        """Settle the exit soon: the guest says that there is no such process."""
        self._watch.doubt()

    async def has_exited(self) -> bool:
        """Ask the guest whether it has exited."""
        return await self._watch.check()

    async def start_helper(self, *args: str) -> Process:
        """Start a process of the guest itself, without streams."""
        return await start_process(
            self._link, HOST_CONTAINER_ID, args, host_process(command(args), self._link.os)
        )


def _ignore(process: Process) -> None:
    pass


async def start_process(
    link: GuestLink,
    container_id: str,
    args: tuple[str, ...],
    parameters: ProcessParameters,
    pipes: Mapping[str, bool] = MappingProxyType({}),
    terminal: bool = False,
    on_start: Callable[[Process], None] = _ignore,
) -> Process:
    """Start a process in a container, or with :data:`HOST_CONTAINER_ID` in the guest itself.

    A caller who is cancelled once the request is out stays until the guest has answered, and the process is
    killed then.

    :param parameters: what to run; which streams it has is filled in.
    :param pipes: whether it has ``stdin``, ``stdout`` and ``stderr``.
    :param terminal: whether it has one, which can be resized then.
    :param on_start: called when it was started, also where the caller has been cancelled meanwhile.
    :raises GuestError: the guest refused: there is no such program, for instance.
    :raises UnknownOutcomeError: the answer was lost; the process may run.
    :raises BridgeClosedError: the connection to the guest is closed, or closed meanwhile.
    """
    channels: dict[str, Channel] = {}
    try:
        for name, wanted in pipes.items():
            if wanted:
                channels[name] = await link.ports.open()
        return await _execute(link, container_id, args, parameters, channels, terminal, on_start)
    except BaseException:
        # One that is closed already would let a cancellation in before the others are.
        with anyio.CancelScope(shield=True):
            for channel in channels.values():
                await channel.aclose()
        raise


async def _execute(
    link: GuestLink,
    container_id: str,
    args: tuple[str, ...],
    parameters: ProcessParameters,
    channels: Mapping[str, Channel],
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
            handle = ConnectedProcess(link, container_id, pid, channels)
        except BridgeClosedError as error:
            # It runs, and its exit will not be reported.
            raise AnswerLostError(str(error)) from error.__cause__
        process = Process(link, handle, args, terminal)
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


def _request(
    link: GuestLink, container_id: str, parameters: ProcessParameters, channels: Mapping[str, Channel]
) -> ExecuteProcessRequest:
    parameters.create_std_in_pipe = "stdin" in channels
    parameters.create_std_out_pipe = "stdout" in channels
    parameters.create_std_err_pipe = "stderr" in channels
    text = check_writable("what to run", parameters)
    ports = {name: channel.port for name, channel in channels.items()}
    settings = execute_settings(link.os, text, ports)
    return ExecuteProcessRequest(container_id=container_id, settings=settings)
