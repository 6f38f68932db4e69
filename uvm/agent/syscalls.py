"""System calls that the standard library does not have, through ctypes.

Each raises OSError as the functions of :mod:`os` do. They release the GIL while they run.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any, Final

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
CLONE_NEWNET: Final = 0x40000000
_CLONE_FS: Final = 0x200

#: The most that the kernel reads of a mount's data; it drops the rest silently.
MOUNT_DATA_SIZE: Final = 4095

#: LINUX_REBOOT_CMD_POWER_OFF.
_POWER_OFF: Final = 0x4321FEDC

_FINIT_MODULE: Final = {"x86_64": 313, "aarch64": 273}

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _call(function: Any, arguments: Sequence[object], *names: str) -> None:
    if function(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *names)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """Mount a file system at a directory that is there."""
    encoded = os.fsencode(data) if data else None
    arguments = os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), encoded
    _call(_libc.mount, arguments, target)


def umount(target: str, flags: int = 0) -> None:
    """Unmount what was mounted last at a path."""
    _call(_libc.umount2, (os.fsencode(target), flags), target)


def load_module(fd: int, parameters: str = "") -> None:
    """Load a kernel module from an open file."""
    number = ctypes.c_long(_FINIT_MODULE[os.uname().machine])
    _call(_libc.syscall, (number, fd, parameters.encode(), 0))


def enter_network(fd: int) -> None:
    """Put the calling thread, and no other, into the network namespace of an open ``/proc/PID/ns/net``."""
    _call(_libc.setns, (fd, CLONE_NEWNET))


def own_umask() -> None:
    """Stop sharing the umask and the working directory of the calling thread with the other threads."""
    _call(_libc.unshare, (_CLONE_FS,))


def remount_read_only(target: str) -> None:
    """Make a file system read-only, with what it has not written yet."""
    arguments = None, os.fsencode(target), None, ctypes.c_ulong(MS_REMOUNT | MS_RDONLY), None
    _call(_libc.mount, arguments, target)


def power_off() -> None:
    """Power the machine off; only root may, and nothing is written before."""
    _call(_libc.reboot, (ctypes.c_int(_POWER_OFF),))
