"""The cgroups of containers: where they are, what runs in them, what they use.

All of them lie below one cgroup, whose limit keeps some of the VM's memory for the guest itself, so that what
containers use up never kills its compute service::

    /sys/fs/cgroup/pods                  the limit of all
                       /ID               a container of its own
                       /POD/ID           a container of a pod, the pod's own one included

A runtime makes the cgroup of a container, and removes it with the container.

Source: hcsshim internal/guest/cgroup and internal/guest/runtime/hcsv2/uvm.go.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any, Final

from uvm.agent.containers.metrics import metrics, number
from uvm.agent.refused import Refused

ROOT: Final = "/sys/fs/cgroup"
#: The cgroup of all containers, below :data:`ROOT`.
PODS: Final = "/pods"
#: What of the VM's memory is the guest's own (hcsshim's ``rootMemReserveBytes``).
RESERVED_BYTES: Final = 75 << 20


class Cgroup:
    """One cgroup.

    :param path: from the root of cgroups, as in an OCI specification.
    """

    __slots__ = ("_directory", "path")

    path: str

    def __init__(self, path: str, root: str = ROOT) -> None:
        self.path = path
        self._directory = root + path

    def read(self, name: str) -> str:
        """Return the text of one of its files; empty where there is none."""
        try:
            with open(f"{self._directory}/{name}", encoding="ascii", errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    def metrics(self) -> dict[str, Any]:
        """Return its figures."""
        return metrics(self.read)

    @property
    def used_bytes(self) -> int:
        """The memory that it uses."""
        return number(self.read("memory.current"))

    @property
    def peak_bytes(self) -> int:
        """The most memory that it has used; what it uses now, if the kernel does not know."""
        return number(self.read("memory.peak")) or self.used_bytes

    def pids(self) -> list[int]:
        """Return the processes in it, and in those below it."""
        found: list[int] = []
        for directory, _, _ in os.walk(self._directory):
            below = Cgroup(directory.removeprefix(self._directory), self._directory)
            found += map(int, below.read("cgroup.procs").split())
        return sorted(found)

    def kill_all(self) -> None:
        """Kill all that runs in it."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def remove(self) -> None:
        """Remove it, if it is there and nothing runs in it."""
        try:
            os.rmdir(self._directory)
        except OSError:
            return  # a runtime removes its own


def prepare(root: str = ROOT) -> bool:
    """Make the cgroup of all containers, with the controllers that the kernel has.

    :return: its memory can be limited.
    """
    os.makedirs(root + PODS, exist_ok=True)
    for controller in Cgroup("", root).read("cgroup.controllers").split():
        # One that is in use elsewhere stays there.
        with suppress(OSError), open(f"{root}/cgroup.subtree_control", "w", encoding="ascii") as file:
            file.write(f"+{controller}")
    return os.path.exists(f"{root}{PODS}/memory.max")


def check_limit(cgroup: Cgroup, resources: dict[str, Any], problem: str) -> None:
    """Refuse a limit of memory that the container already exceeds, which would have the kernel kill it.

    :param problem: what to say first.
    """
    memory = resources.get("memory")
    limit = memory.get("limit") if type(memory) is dict else None
    if type(limit) is int and 0 < limit < cgroup.used_bytes:
        usage = f"current usage: {cgroup.used_bytes}, peak usage: {cgroup.peak_bytes}"
        raise Refused(f"{problem}: unable to set memory limit to {limit} ({usage})")


def limit_all(total: int, root: str = ROOT) -> None:
    """Set the limit of all containers together from the memory of the VM.

    :raises OSError: the kernel refused.
    """
    with open(f"{root}{PODS}/memory.max", "w", encoding="ascii") as file:
        file.write(str(most_bytes(total)))


def most_bytes(total: int) -> int:
    """Return how much of the VM's memory may be used by others than the guest itself."""
    return max(total - RESERVED_BYTES, total // 2)


def total_bytes(meminfo: str = "/proc/meminfo") -> int:
    """Return the memory of the VM."""
    with open(meminfo, encoding="ascii") as file:
        found = next(line for line in file if line.startswith("MemTotal:"))
    return int(found.split()[1]) << 10
