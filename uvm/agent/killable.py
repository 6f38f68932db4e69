"""Calls that may hang, in child processes that can be killed.

A mount of a share whose server does not answer hangs in the kernel. A thread that hangs there is lost, with
the work that waits for it; so such a call runs in a helper, a fork of the agent that does nothing else::

    agent --> the function's name and its arguments, as JSON --> helper
    agent <-- the error's number, or 0, as one byte          <-- helper

A fork takes longer than most calls, so a few helpers are kept for the next ones. One that has not answered
at the deadline is killed, with what it started; if even that does not end it, it stays behind alone. A
helper has none of the agent's files, so that it keeps nothing open, and ends when the agent does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

#: How long a call may take, in seconds; hcsshim's guest lets mounts take 5, on real hardware.
SECONDS: Final = 30.0
_KILLED_SECONDS: Final = 1.0

#: So many helpers are kept; a call that finds all of them busy waits so long for one before it gets another.
_FEW: Final = 4
_PATIENCE_SECONDS: Final = 0.25
#: The longest request: paths, and a page of options.
_REQUEST_SIZE: Final = 1 << 16

Functions = Mapping[str, Callable[..., object]]


class Killable:
    """Runs functions in helpers. It may be used from any thread.

    :param functions: what can be run, by name. They take and do what JSON can hold: system calls, which raise
        nothing but OSError.
    """

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._idle: list[_Helper] = []
        self._busy = 0
        self._changed = threading.Condition()

    def __call__(self, name: str, *arguments: str | int | list[str], seconds: float = SECONDS) -> None:
        """Run a function.

        :raises TimeoutError: it took longer; its helper was killed.
        :raises OSError: it failed; with its error number, and without its file name.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._idle or self._busy < _FEW, _PATIENCE_SECONDS)
            self._busy += 1
            kept = self._idle.pop() if self._idle else None
        try:
            number = self._run(kept, [name, *arguments], seconds)
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify()
        if number:
            raise OSError(number, os.strerror(number))

    def _run(self, helper: _Helper | None, call: list[Any], seconds: float) -> int:
        """Have a helper run a function, or another one if it has ended; return the error's number, or 0."""
        if helper is not None and helper.has_ended():
            helper.end()
            helper = None
        if helper is None:
            helper = _Helper(self._functions)
        number = helper.run(call, seconds)
        with self._changed:
            if not helper.broken and len(self._idle) < _FEW:
                self._idle.append(helper)
                return number
        helper.end()
        return number

    def close(self) -> None:
        """End the helpers that are kept."""
        with self._changed:
            while self._idle:
                self._idle.pop().end()


class _Helper:
    """One helper, and the agent's end of its socket.

    :ivar broken: it did not answer, and is of no use any more.
    """

    def __init__(self, functions: Functions) -> None:
        self.broken = False
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._pid = os.fork()
            if not self._pid:
                _serve(theirs.fileno(), functions)
        try:
            self._process = os.pidfd_open(self._pid)
        except ProcessLookupError:
            # Killed, and reaped by the loop: its socket, which has ended, is as ready as its process.
            self._process = os.dup(self._socket.fileno())

    def has_ended(self) -> bool:
        """Return whether its process has ended."""
        return _ready(self._process, 0)

    def run(self, call: list[Any], seconds: float) -> int:
        """Have it run a function, and return the error's number, or 0."""
        try:
            self._socket.send(json.dumps(call).encode())
            in_time = _ready(self._socket.fileno(), seconds)
            answer = self._socket.recv(1) if in_time else b""
        except (BrokenPipeError, ConnectionResetError):
            in_time, answer = True, b""
        if answer:
            return answer[0]
        # It hangs, or another process killed it.
        self.broken = True
        self._kill()
        return errno.EINTR if in_time else errno.ETIMEDOUT

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        _ready(self._process, _KILLED_SECONDS)

    def end(self) -> None:
        """Have it end, once it is idle."""
        self._socket.close()
        _ready(self._process, _KILLED_SECONDS)
        os.close(self._process)
        # The agent reaps what it does not know, and may have been first.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, os.WNOHANG)


def _ready(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _serve(fd: int, functions: Functions) -> NoReturn:
    """Carry out requests until the agent closes its end. In the helper."""
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        os.closerange(3, fd)
        os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
        while request := os.read(fd, _REQUEST_SIZE):
            name, *arguments = json.loads(request)
            os.write(fd, bytes([_number(functions[name], arguments)]))
    finally:
        os._exit(0)


def _number(function: Callable[..., object], arguments: list[Any]) -> int:
    try:
        function(*arguments)
    except OSError as error:
        return error.errno or errno.EIO
    except Exception:
        return errno.EFAULT
    return 0
