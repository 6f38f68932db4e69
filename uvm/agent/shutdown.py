"""The end of the VM, asked for by the host: processes end, file systems are written, the power goes off.

Each step has a limit, and the next one comes whatever became of it: a process that ignores SIGTERM is
killed, a file system that cannot be unmounted is made read-only, and a disk that does not answer keeps
nothing else from being written.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Final

from uvm.agent import syscalls
from uvm.agent.attempts import attempts
from uvm.agent.mounts import mount_points

#: How long processes may take to end after SIGTERM, then after SIGKILL, in seconds.
TERM_SECONDS: Final = 2.0
KILL_SECONDS: Final = 1.0
#: How long file systems may take.
UNMOUNT_SECONDS: Final = 5.0
SYNC_SECONDS: Final = 10.0

_PF_KTHREAD: Final = 0x00200000
#: Those without which nothing could be said or done any more.
_KEPT: Final = ("/", "/proc", "/sys", "/dev")


def shut_down(gracefully: bool) -> None:
    """End everything, and power off; in a worker.

    :param gracefully: processes may end by themselves.
    """
    if gracefully:
        end_processes(signal.SIGTERM, TERM_SECONDS)
    end_processes(signal.SIGKILL, KILL_SECONDS)
    bounded(unmount_all, UNMOUNT_SECONDS)
    bounded(os.sync, SYNC_SECONDS)
    syscalls.power_off()


def end_processes(number: int, seconds: float) -> None:
    """Signal all processes but this one, and wait until they have ended; the loop reaps them."""
    for pid in processes():
        with contextlib.suppress(OSError):
            os.kill(pid, number)
    any(not processes() for _ in attempts(seconds))


def processes() -> list[int]:
    """Return the ids of all processes, without this one and threads of the kernel."""
    return [pid for name in os.listdir("/proc") if name.isdecimal() and _runs(pid := int(name))]


def _runs(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name before it is in brackets, and may have any.
            state, *fields = file.read().rpartition(")")[2].split()
    except OSError:
        return False
    return state not in ("Z", "X") and not int(fields[5]) & _PF_KTHREAD


def unmount_all() -> None:
    """Unmount what can be, the last mount first; make read-only what cannot."""
    for path in reversed([path for path in mount_points() if path not in _KEPT]):
        try:
            syscalls.umount(path)
        except OSError:
            with contextlib.suppress(OSError):
                syscalls.remount_read_only(path)


def bounded(function: Callable[[], object], seconds: float) -> None:
    """Run a function for so long at most; it is left behind then."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)
