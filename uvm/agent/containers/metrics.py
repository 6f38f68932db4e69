"""The figures of a container's cgroup, in the form that hosts read: containerd's ``Metrics`` of cgroup v1.

The guest has cgroup v2 alone. What v1 knows and v2 does not is left out, as are zeros, which Go's JSON omits;
figures of disks and of networks are left out as in hcsshim, because they may become very large.

Source: hcsshim internal/guest/cgroup/convert.go and containerd/cgroups cgroup2/manager.go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

#: What a limit is that there is none of.
NO_LIMIT: Final = (1 << 64) - 1

#: Returns the text of a file of the cgroup; empty where there is no such file.
Read = Callable[[str], str]

#: Names in ``memory.stat``, by the names of v1.
_MEMORY: Final = {
    "cache": "file",
    "rss": "anon",
    "mapped_file": "file_mapped",
    "dirty": "file_dirty",
    "writeback": "file_writeback",
    "pg_fault": "pgfault",
    "pg_maj_fault": "pgmajfault",
    "inactive_anon": "inactive_anon",
    "active_anon": "active_anon",
    "inactive_file": "inactive_file",
    "active_file": "active_file",
    "unevictable": "unevictable",
}


def metrics(read: Read) -> dict[str, Any]:
    """Return the figures of a cgroup; parts that it has no files for are empty."""
    cpu, events = table(read("cpu.stat")), table(read("memory.events"))
    usage = {"total": "usage_usec", "kernel": "system_usec", "user": "user_usec"}
    throttling = {"periods": cpu.get("nr_periods", 0), "throttled_periods": cpu.get("nr_throttled", 0)}
    return {
        "pids": _some({"current": number(read("pids.current")), "limit": number(read("pids.max"))}),
        "cpu": {
            "usage": _some({name: cpu.get(key, 0) * 1000 for name, key in usage.items()}),
            "throttling": _some({**throttling, "throttled_time": cpu.get("throttled_usec", 0) * 1000}),
        },
        "memory": _memory(read),
        "memory_oom_control": _some({"oom_kill": events.get("oom_kill", 0)}),
    }


def _memory(read: Read) -> dict[str, Any]:
    stat = table(read("memory.stat"))
    limit, swap_limit = number(read("memory.max")), number(read("memory.swap.max"))
    usage, swap = (
        {
            "limit": most,
            "usage": number(read(f"{prefix}.current")),
            "max": number(read(f"{prefix}.peak")),
        }
        for prefix, most in (("memory", limit), ("memory.swap", swap_limit))
    )
    figures = {name: stat.get(key, 0) for name, key in _MEMORY.items()}
    limits = {"hierarchical_memory_limit": limit, "hierarchical_swap_limit": swap_limit}
    entries = {
        "usage": _some(usage),
        "swap": _some(swap),
        "kernel": _some({"usage": stat.get("kernel_stack", 0)}),
        "kernel_tcp": _some({"usage": stat.get("sock", 0)}),
    }
    return {**_some(figures), **_some(limits), **entries}


def table(text: str) -> dict[str, int]:
    """Return a file with a name and a number in each line."""
    lines = (line.split() for line in text.splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdecimal()}


def number(text: str) -> int:
    """Return a file with one number, or ``max``; 0 where it has none."""
    word = text.strip()
    return NO_LIMIT if word == "max" else int(word) if word.isdecimal() else 0


def _some(figures: Mapping[str, int]) -> dict[str, int]:
    return {name: value for name, value in figures.items() if value}
