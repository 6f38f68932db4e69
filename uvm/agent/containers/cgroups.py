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
from typing import Any, Final

from uvm.agent.containers.metrics import metrics, number

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

    def remove(self) -> None:
        """Remove it, if it is there and nothing runs in it."""
        try:
            os.rmdir(self._directory)
        except OSError:
            return  # a runtime removes its own


def limit_all(total_bytes: int, root: str = ROOT) -> None:
    """Set the limit of all containers together from the memory of the VM.

    :raises OSError: the kernel refused.
    """
    pods = root + PODS
    os.makedirs(pods, exist_ok=True)
    with open(f"{pods}/memory.max", "w", encoding="ascii") as file:
        file.write(str(max(total_bytes - RESERVED_BYTES, total_bytes // 2)))


def memory_bytes(meminfo: str) -> int:
    """Return the memory of the guest from the text of ``/proc/meminfo``."""
    found = next(line for line in meminfo.splitlines() if line.startswith("MemTotal:"))
    return int(found.split()[1]) << 10
