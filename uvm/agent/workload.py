"""The cgroup of the guest's own processes, and what sets them apart from the agent.

The agent is never killed for memory, but what it starts may be; and what its processes use is limited below
the memory of the VM, as :mod:`uvm.agent.containers.cgroups` limits containers.

Running code of ours in a new process would take a copy of the agent's memory, which costs more than the rest
of its start. So the agent itself may be killed for the moment in which a process inherits that, and moves
the process once it runs. Children that it has by then are outside of the cgroup; they are moved before all
is frozen, for a VM whose memory is saved.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Final

from uvm.agent.attempts import attempts
from uvm.agent.containers.cgroups import PODS, ROOT, most_bytes

#: The cgroup of the guest's own processes.
PROCESSES: Final = "/processes"
_OOM_SCORE: Final = "/proc/self/oom_score_adj"
_CONTROLLERS: Final = ("cpu", "memory", "pids", "io")
#: How long freezing may take, in seconds: a process in a call of the kernel freezes after it.
_FREEZE_SECONDS: Final = 5.0


def protect_agent() -> None:
    """Keep the agent from being killed for memory."""
    _write(_OOM_SCORE, "-1000")


class Workload:
    """The cgroup. Making one sets it up."""

    def __init__(self, total: int) -> None:
        for controller in _CONTROLLERS:
            # A kernel may lack one.
            with contextlib.suppress(OSError):
                _write(f"{ROOT}/cgroup.subtree_control", f"+{controller}")
        os.makedirs(f"{ROOT}{PROCESSES}", exist_ok=True)
        with contextlib.suppress(OSError):
            _write(f"{ROOT}{PROCESSES}/memory.max", str(most_bytes(total)))
        self._starting = 0
        self._lock = threading.Lock()
        self._members = os.open(f"{ROOT}{PROCESSES}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def start(self, start: Callable[[], int]) -> int:
        """Start a process of the workload by a function that returns its id."""
        self._count(1)
        try:
            pid = start()
        finally:
            self._count(-1)
        self._move(pid)
        return pid

    def _count(self, change: int) -> None:
        """Count the processes that are being started, while which the agent is as any other process."""
        with self._lock:
            self._starting += change
            if self._starting == max(0, change):
                _write(_OOM_SCORE, "0" if self._starting else "-1000")

    def _move(self, pid: int) -> None:
        # It may have exited.
        with contextlib.suppress(ProcessLookupError):
            os.write(self._members, str(pid).encode())

    def _move_strays(self) -> None:
        """Move what is outside of a cgroup, but for the agent and the threads of the kernel."""
        with open(f"{ROOT}/cgroup.procs", encoding="ascii") as file:
            pids = [int(line) for line in file]
        for pid in pids:
            if pid != os.getpid():
                with contextlib.suppress(OSError):
                    # Threads of the kernel have no program, and cannot be moved.
                    os.readlink(f"/proc/{pid}/exe")
                    self._move(pid)

    def freeze(self) -> None:
        """Freeze all workloads.

        :raises TimeoutError: one did not freeze; all go on.
        """
        self._move_strays()
        self._set_frozen("1")
        if not any(self._are_frozen() for _ in attempts(_FREEZE_SECONDS)):
            self.thaw()
            raise TimeoutError("a process did not freeze")

    def thaw(self) -> None:
        """Let all workloads go on."""
        self._set_frozen("0")

    def _groups(self) -> list[str]:
        return [name for name in (PROCESSES, PODS) if os.path.isdir(ROOT + name)]

    def _set_frozen(self, value: str) -> None:
        for name in self._groups():
            _write(f"{ROOT}{name}/cgroup.freeze", value)

    def _are_frozen(self) -> bool:
        for name in self._groups():
            with open(f"{ROOT}{name}/cgroup.events", encoding="ascii") as file:
                if "frozen 1" not in file.read():
                    return False
        return True


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
