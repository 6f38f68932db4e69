"""A process that runs, of the guest itself or of a container: its exit code, signals, its terminal's size.

A process that has exited is kept until its exit code was answered; a later wait finds it no more.

Source: hcsshim internal/guest/runtime/hcsv2/process.go.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
from collections.abc import Callable, Sequence
from typing import Final

from uvm.agent.loop import Loop
from uvm.agent.refused import Refused, coded
from uvm.agent.requests import JSON, Request
from uvm.agent.settings import Settings
from uvm.hresult import HResult

FOREVER: Final = 0xFFFFFFFF
_MOST: Final = 0xFFFFFFFF
_MOST_SIZE: Final = 0xFFFF


class Process:
    """A process that was started.

    :param forget: called once its exit code was answered.
    :ivar terminal: the master end of its terminal, while that is open.
    :ivar code: its exit code, once that is reported.
    """

    pid: int
    args: Sequence[str]

    def __init__(self, pid: int, args: Sequence[str], forget: Callable[[Process], object]) -> None:
        self.pid, self.args = pid, args
        self.terminal: int | None = None
        self.code: int | None = None
        self._forget = forget
        self._waiting: dict[Request, Callable[[], object]] = {}

    def report(self, code: int) -> None:
        """Report the exit to all that wait."""
        self.code = code
        waiting, self._waiting = self._waiting, {}
        for request, cancel in waiting.items():
            cancel()
            self._answer(request, code)

    def wait(self, request: Request, loop: Loop) -> None:
        """Answer a wait, now or when the process exits or the wait's own limit has passed."""
        milliseconds = request.read().number("TimeoutInMs", _MOST)
        if self.code is not None:
            self._answer(request, self.code)
        elif milliseconds == FOREVER:
            self._waiting[request] = lambda: None
        else:
            self._waiting[request] = loop.later(milliseconds / 1000, lambda: self._expire(request)).cancel

    def _answer(self, request: Request, code: int) -> None:
        request.answer({"ExitCode": code})
        self._forget(self)

    def _expire(self, request: Request) -> None:
        del self._waiting[request]
        request.refuse(coded(HResult.ERROR_VMCOMPUTE_TIMEOUT))

    def signal(self, request: Request) -> JSON:
        """Send it a signal; SIGKILL if the request names none.

        :raises Refused: it has exited, or the signal is none.
        """
        options = request.read().part("Options") or Settings({})
        number = options.number("Signal", _MOST) or signal.SIGKILL
        if self.code is not None:
            raise coded(HResult.ERROR_NOT_FOUND)
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            raise coded(HResult.ERROR_NOT_FOUND) from None
        except OSError:
            raise Refused("invalid argument") from None
        return {}

    def resize(self, request: Request) -> JSON:
        """Change the size of its terminal.

        :raises Refused: it has none.
        """
        values = request.read()
        height, width = values.number("Height", _MOST_SIZE), values.number("Width", _MOST_SIZE)
        if self.terminal is None:
            raise Refused(f"pid: {self.pid}, is not a tty and cannot be resized")
        set_size(self.terminal, height, width)
        return {}


def set_size(terminal: int, height: int, width: int) -> None:
    """Set the size of a terminal, in characters."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
