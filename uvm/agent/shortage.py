"""Processes that the kernel kills for want of memory: it is logged, as their callers see but a signal.

The kernel counts them all, those that exceed the limit of a cgroup too. A process may have been killed below
one that fails for it, so the count is looked at after each that fails.

Source: Linux mm/oom_kill.c (``OOM_KILL`` in ``/proc/vmstat``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

_COUNT: Final = "oom_kill "


class Shortage:
    """What is known of it.

    :param warn: writes a line to the log.
    """

    def __init__(self, warn: Callable[[str], object], vmstat: str = "/proc/vmstat") -> None:
        self._warn, self._vmstat = warn, vmstat
        self._known = self._count()

    def look(self) -> None:
        """Log what was killed since the last look; a later one finds it if the count cannot be read."""
        # The agent may have no descriptor left.
        with suppress(OSError):
            self._look()

    def _look(self) -> None:
        killed = self._count() - self._known
        if killed > 0:
            self._known += killed
            self._warn(
                f"out of memory: the kernel has killed {killed} process{'es' * (killed > 1)} of this guest; "
                "the limit is that of a container, or follows from the memory of the VM"
            )

    def _count(self) -> int:
        with open(self._vmstat, encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(_COUNT)), 0)
