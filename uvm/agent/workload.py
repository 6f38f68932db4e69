"""The cgroup of the guest's own processes, and what sets them apart from the agent.

The agent is never killed for memory, so nothing that it starts may inherit that; and what its processes use
is limited below the memory of the VM, as :mod:`uvm.agent.containers.cgroups` limits containers. A process is
moved before its program is loaded, so that none of its own children is left outside.

All workloads can be frozen, for a VM whose memory is saved.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final

from uvm.agent.containers.cgroups import PODS, RESERVED_BYTES, ROOT

#: The cgroup of the guest's own processes.
PROCESSES: Final = "/processes"
_CONTROLLERS: Final = ("cpu", "memory", "pids", "io")
#: How long freezing may take, in seconds: a process in a call of the kernel freezes after it.
_FREEZE_SECONDS: Final = 5.0
_PAUSE: Final = 0.002


def protect_agent() -> None:
    """Keep the agent from being killed for memory."""
    _write("/proc/self/oom_score_adj", "-1000")


class Workload:
    """The cgroup. Making one sets it up."""

    def __init__(self, total_bytes: int, root: str = ROOT) -> None:
        self._root = root
        for controller in _CONTROLLERS:
            # A kernel may lack one.
            with contextlib.suppress(OSError):
                _write(f"{root}/cgroup.subtree_control", f"+{controller}")
        os.makedirs(f"{root}{PROCESSES}", exist_ok=True)
        with contextlib.suppress(OSError):
            _write(f"{root}{PROCESSES}/memory.max", str(max(total_bytes // 2, total_bytes - RESERVED_BYTES)))
        self._members = os.open(f"{root}{PROCESSES}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def enter(self) -> None:
        """Move the process that calls, which the agent has just forked."""
        os.write(self._members, b"0")
        _write("/proc/self/oom_score_adj", "0")

    def freeze(self) -> None:
        """Freeze all workloads.

        :raises TimeoutError: one did not freeze; all go on.
        """
        self._set_frozen("1")
        until = time.monotonic() + _FREEZE_SECONDS
        while not all(self._is_frozen(name) for name in self._groups()):
            if time.monotonic() > until:
                self.thaw()
                raise TimeoutError("a process did not freeze")
            time.sleep(_PAUSE)

    def thaw(self) -> None:
        """Let all workloads go on."""
        self._set_frozen("0")

    def _groups(self) -> list[str]:
        return [name for name in (PROCESSES, PODS) if os.path.isdir(self._root + name)]

    def _set_frozen(self, value: str) -> None:
        for name in self._groups():
            _write(f"{self._root}{name}/cgroup.freeze", value)

    def _is_frozen(self, name: str) -> bool:
        with open(f"{self._root}{name}/cgroup.events", encoding="ascii") as file:
            return "frozen 1" in file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
