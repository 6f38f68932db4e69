"""How much memory VMs can still be given: what the machine has, and the cgroups of this process allow.

The memory of a VM takes no room until the guest uses it. If there is none then, Linux kills QEMU in the
middle of what it does, so that room is looked for before. It is in memory, and nowhere else: the files of
memory have no name, and ``/dev/shm`` is not used.

Source: Linux Documentation/filesystems/proc.rst (``MemAvailable``), admin-guide/cgroup-v2.rst and cgroup-v1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from uvm.errors import NoSpaceError

#: The names of the limit and of the usage of a cgroup, and which of its counters can be reclaimed.
_FILES: Final = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


def available_mb(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many MB can be used: by the machine, and within each limit of this process."""
    machine = _counters(proc / "meminfo")
    left = [1024 * (machine.get("MemAvailable", 0) + machine.get("SwapFree", 0))]
    left += [room for group in _groups(proc, cgroups) if (room := _room_in(group)) is not None]
    return max(0, min(left)) >> 20


def check_room(operation: str, wanted_mb: int, available_mb: int) -> None:
    """Refuse what has no room.

    :raises NoSpaceError: there is less.
    """
    if wanted_mb > available_mb:
        raise NoSpaceError(
            f"{operation}: it needs {wanted_mb} MB of memory, and {available_mb} MB are available here (the "
            "machine's, or within the limit of this process's cgroup); close other VMs, or use less memory; "
            "nothing was started"
        )


def _groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """Yield the cgroups of this process that may have a limit of memory, from inside out."""
    try:
        lines = (proc / "self/cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        root = cgroups / "memory" if controllers == "memory" else cgroups
        if controllers in ("", "memory"):
            inside = root / path.lstrip("/")
            yield from [inside, *inside.parents][: len(inside.parts) - len(root.parts) + 1]


def _room_in(group: Path) -> int | None:
    """Return how much a cgroup may still use; None if it has no limit."""
    for limit_name, usage_name, reclaimable in _FILES:
        try:
            limit = (group / limit_name).read_text("ascii", "replace").strip()
            usage = int((group / usage_name).read_text("ascii", "replace"))
        except (OSError, ValueError):
            continue
        if not limit.isdecimal():
            return None
        counters = _counters(group / "memory.stat")
        return int(limit) - usage + sum(counters.get(name, 0) for name in reclaimable)
    return None


def _counters(path: Path) -> dict[str, int]:
    try:
        text = path.read_text("ascii", "replace")
    except OSError:
        return {}
    return {name: int(value) for name, value in re.findall(r"^(\w+):?\s+(\d+)", text, re.M)}
