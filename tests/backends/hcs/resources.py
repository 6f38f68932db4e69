"""What a process has open, and what the library leaves open in the C API: to check that it does not grow."""

from __future__ import annotations

import ctypes
import os
import sys
import threading

from attrs import frozen

from tests.backends.hcs.double.control import Double

__all__ = ["Resources", "open_descriptors"]


@frozen
class Resources:
    """Counts at one time.

    :ivar objects: handles and operations of HCS.
    :ivar strings: HCS's strings that were not freed.
    :ivar descriptors: of the process; on Windows its handles.
    :ivar threads: Python's threads.
    """

    objects: int
    strings: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, double: Double) -> Resources:
        """Count now."""
        return cls(double.objects, double.strings, open_descriptors(), threading.active_count())


def open_descriptors() -> int:
    """Return how many descriptors the process has open."""
    if sys.platform == "win32":
        count = ctypes.c_ulong()
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        if not kernel.GetProcessHandleCount(ctypes.c_void_p(-1), ctypes.byref(count)):
            raise ctypes.WinError(ctypes.get_last_error())
        return count.value
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))
