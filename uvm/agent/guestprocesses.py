"""The processes of the guest itself, outside of containers.

An exit is reported when the process has exited; of one with a terminal, once its output was read as well.

Source: hcsshim internal/guest/runtime/hcsv2/uvm.go (``runExternalProcess``). Unlike there, these processes
can be signalled and their terminals resized directly, a terminal has the size that was asked for from its
start, and a request without a command is refused, which crashes hcsshim's guest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from uvm._wire.frames import Procedure
from uvm.agent.children import Children
from uvm.agent.connection import Dialer
from uvm.agent.processes import Process, asked_signal, forget
from uvm.agent.refused import Refused, coded, reason
from uvm.agent.requests import JSON, Request
from uvm.agent.service import ITSELF, Service
from uvm.agent.settings import Settings
from uvm.agent.spawning import Command, spawn
from uvm.agent.streams import Connections, Dialing, asked_ports, close_all, pipes, terminal
from uvm.hresult import HResult

_MOST: Final = 0xFFFFFFFF
#: The exit code of a process that was killed by a signal: Go's -1.
_KILLED: Final = 0xFFFFFFFF


class Wanted(NamedTuple):
    """A process that is asked for.

    :ivar size: the height and width of its terminal; None if it has none.
    """

    command: Command
    size: tuple[int, int] | None


class GuestProcesses:
    """The table of them.

    :param start: starts each process, by calling a function that returns its id.
    :ivar running: them, by id, until their exit was answered.
    """

    def __init__(
        self,
        service: Service,
        children: Children,
        dialer: Dialer,
        start: Callable[[Callable[[], int]], int],
    ) -> None:
        self._service, self._loop = service, service.loop
        self._children, self._dialer, self._start_by = children, dialer, start
        self.running: dict[int, Process] = {}
        service.add(Procedure.EXECUTE_PROCESS, self.execute, ITSELF)
        service.add(Procedure.WAIT_FOR_PROCESS, lambda r: self._find(r).wait(r, self._loop), ITSELF)
        service.add(Procedure.SIGNAL_PROCESS, self._signal, ITSELF)
        service.add(Procedure.RESIZE_CONSOLE, lambda r: self._find(r).resize(r), ITSELF)

    def _find(self, request: Request) -> Process:
        process = self.running.get(request.read().number("ProcessId", _MOST))
        if process is None:
            raise coded(HResult.ERROR_NOT_FOUND)
        return process

    def _signal(self, request: Request) -> JSON:
        self._find(request).signal(asked_signal(request))
        return {}

    def execute(self, request: Request) -> None:
        """Start a process, and answer with its id."""
        settings = request.read().part("Settings") or Settings({})
        parameters = Settings(request.document("ProcessParameters", settings))
        wanted = read_process(parameters)
        ports = asked_ports(parameters, settings)
        Dialing(self._dialer, ports, request, partial(self._start, request, wanted))

    def _start(self, request: Request, wanted: Wanted, connections: Connections) -> None:
        """Start a process, in a worker: loading its program may block."""
        mark = self._children.mark()
        try:
            child, streams = pipes(connections) if wanted.size is None else terminal(*wanted.size)
        except OSError as error:
            close_all(connections)
            request.refuse(Refused(f"failed to create console for external process: {reason(error)}"))
            return

        def start() -> int:
            return spawn(wanted.command, child, terminal=wanted.size is not None)

        def started(pid: int, error: BaseException | None) -> None:
            if error is not None:
                close_all(connections)
                refused = self._service.refusal(error)
                text = f"failed to call Start for external process: {refused}"
                request.refuse(Refused(text, refused.result))
                return
            process = self.running[pid] = Process(pid, streams, partial(forget, self.running))
            process.relay(self._loop, connections, report_at_exit=wanted.size is None)
            # Posted, if it has exited: after the answer that names it.
            self._children.adopt(pid, lambda code: process.exited(_KILLED if code < 0 else code), mark)
            request.answer({"ProcessId": pid})

        self._loop.work(lambda: streams.start(child, lambda: self._start_by(start)), started)


def read_process(parameters: Settings) -> Wanted:
    """Return the process that parameters describe.

    :raises Refused: there is no command in them.
    """
    args = parameters.texts("CommandArgs") or _split(parameters.text("CommandLine"))
    if not args:
        raise Refused("the process has no command")
    env = parameters.texts_by_name("Environment")
    size = _size(parameters.numbers("ConsoleSize", 0xFFFF)) if parameters.flag("EmulateConsole") else None
    return Wanted(Command(args, env, parameters.text("WorkingDirectory")), size)


def _size(numbers: Sequence[int]) -> tuple[int, int]:
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def _split(line: str) -> list[str]:
    # Hosts send arguments, so that this is rarely needed.
    import shlex

    try:
        return shlex.split(line)
    except ValueError:
        raise Refused(f'failed to parse command line string "{line[:1024]}": invalid command line') from None
