"""A process that runs, of the guest itself or of a container: its exit code, signals, its terminal's size.

An exit is reported at once, or when all that the process wrote was read as well. A process that has exited
is kept until its exit code was answered; a later wait finds it no more. It is not signalled in between, since
its id may be another process's by then.

Source: hcsshim internal/guest/runtime/hcsv2/process.go.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

from uvm.agent.loop import Loop
from uvm.agent.refused import Refused, coded
from uvm.agent.requests import JSON, Request
from uvm.agent.settings import Settings
from uvm.agent.streams import Connections, Streams, set_size
from uvm.hresult import HResult

FOREVER: Final = 0xFFFFFFFF
_MOST: Final = 0xFFFFFFFF
_MOST_SIZE: Final = 0xFFFF


class Process:
    """A process that was started.

    :param forget: called once its exit code was answered.
    :ivar alive: it has not exited.
    """

    pid: int
    streams: Streams
    alive: bool

    def __init__(self, pid: int, streams: Streams, forget: Callable[[Process], object]) -> None:
        self.pid, self.streams = pid, streams
        self.alive = True
        self._code = 0
        self._reading = False
        self._forget = forget
        self._waiting: dict[Request, Callable[[], object]] = {}

    def relay(self, loop: Loop, connections: Connections, *, report_at_exit: bool = False) -> None:
        """Pass on its standard streams.

        :param report_at_exit: its exit is reported even if what it wrote was not read.
        """
        self._reading = not report_at_exit
        self.streams.relay(loop, connections, self._read_out)

    def _read_out(self) -> None:
        self._reading = False
        self._report()

    def exited(self, code: int) -> None:
        """Note that it has exited."""
        self.alive = False
        self._code = code
        self.streams.end_input()
        self._report()

    @property
    def _has_ended(self) -> bool:
        return not self.alive and not self._reading

    def _report(self) -> None:
        """Report the exit to all that wait, if it is to be reported by now."""
        if not self._has_ended:
            return
        waiting, self._waiting = self._waiting, {}
        for request, cancel in waiting.items():
            cancel()
            self._answer(request)

    def wait(self, request: Request, loop: Loop) -> None:
        """Answer a wait, now or when the process exits or the wait's own limit has passed."""
        milliseconds = request.read().number("TimeoutInMs", _MOST)
        if self._has_ended:
            self._answer(request)
        elif milliseconds == FOREVER:
            self._waiting[request] = lambda: None
        else:
            self._waiting[request] = loop.later(milliseconds / 1000, lambda: self._expire(request)).cancel

    def _answer(self, request: Request) -> None:
        request.answer({"ExitCode": self._code})
        self._forget(self)

    def _expire(self, request: Request) -> None:
        del self._waiting[request]
        request.refuse(coded(HResult.ERROR_VMCOMPUTE_TIMEOUT))

    def signal(self, number: int) -> None:
        """Send it a signal.

        :raises Refused: it has exited, or the signal is none.
        """
        if not self.alive:
            raise coded(HResult.ERROR_NOT_FOUND)
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            raise coded(HResult.ERROR_NOT_FOUND) from None
        except OSError:
            raise Refused("invalid argument") from None

    def resize(self, request: Request) -> JSON:
        """Change the size of its terminal.

        :raises Refused: it has none.
        """
        values = request.read()
        height, width = values.number("Height", _MOST_SIZE), values.number("Width", _MOST_SIZE)
        if self.streams.terminal is None:
            raise Refused(f"pid: {self.pid}, is not a tty and cannot be resized")
        set_size(self.streams.terminal, height, width)
        return {}


def asked_signal(request: Request) -> int:
    """Return the signal that a request asks for; SIGKILL if it names none."""
    options = request.read().part("Options") or Settings({})
    return options.number("Signal", _MOST) or signal.SIGKILL


def forget(table: dict[int, Process], process: Process) -> None:
    """Remove a process from a table, unless a newer one has its id."""
    if table.get(process.pid) is process:
        del table[process.pid]
