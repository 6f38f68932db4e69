"""Calls that may hang, in a child process that can be killed.

A mount of a share whose server does not answer hangs in the kernel. A thread that hangs there is lost, with
the work that waits for it; so such a call runs in a fork of the agent, which does nothing else, and whose
result is one byte in a pipe: the error's number, or 0. At the deadline the child is killed, with what it
started. One that cannot even be killed stays behind alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Callable
from typing import Final, NoReturn

#: How long a call may take, in seconds; hcsshim's guest lets mounts take 5, on real hardware.
SECONDS: Final = 30.0
_KILLED_SECONDS: Final = 1.0


def killable(call: Callable[[], object], seconds: float = SECONDS) -> None:
    """Run a call in a child process, which shares nothing but the kernel's state with this one.

    :param call: it does system calls only, and raises nothing but OSError.
    :raises TimeoutError: it took longer; the child was killed.
    :raises OSError: it failed; with its error number, and without its file name.
    """
    reader, writer = os.pipe()
    try:
        pid = os.fork()
        if not pid:
            _run(call, writer)
        number = _result(pid, reader, seconds)
    finally:
        os.close(reader)
        os.close(writer)
    if number:
        raise OSError(number, os.strerror(number))


def _run(call: Callable[[], object], writer: int) -> NoReturn:
    number = errno.EFAULT
    try:
        os.setpgid(0, 0)
        call()
        number = 0
    except OSError as error:
        number = error.errno or errno.EIO
    finally:
        os.write(writer, bytes([number]))
        os._exit(0)


def _result(pid: int, reader: int, seconds: float) -> int:
    """Return the error number of a child's call, or 0."""
    child = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        poll.register(child, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(seconds * 1000)]
        if not ready:
            os.killpg(pid, signal.SIGKILL)
            # The kernel may hold on to it; then the agent reaps it later.
            poll.unregister(reader)
            poll.poll(_KILLED_SECONDS * 1000)
    finally:
        os.close(child)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0 if ready else os.WNOHANG)
    if not ready:
        return errno.ETIMEDOUT
    # A child that another process killed has written nothing.
    return os.read(reader, 1)[0] if reader in ready else errno.EINTR
