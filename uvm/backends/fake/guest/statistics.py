"""Statistics of containers in the fake guest: numbers that follow from the fake's clock."""

from __future__ import annotations

from typing import Any, Final

from uvm.backend import JSON
from uvm.backends.fake.clock import FakeClock
from uvm.backends.fake.guest.containers import Container, LinuxContainer

_PROCESS_BYTES: Final = 1 << 20
_CACHE_BYTES: Final = 4096
#: The limit that means none in cgroups.
_NO_LIMIT: Final = 0x7FFFFFFFFFFFF000
#: Nanoseconds of processor time for each tick (100 ns) of the clock: one per cent.
_NS_PER_TICK: Final = 1


def lcow_metrics(container: LinuxContainer, clock: FakeClock) -> JSON:
    """Return the metrics of a Linux container, in the form of containerd's cgroup v1 ``Metrics``."""
    running = len(container.pids) if container.status == "running" else 0
    used = used_bytes(container)
    total = clock.ticks * _NS_PER_TICK
    kernel = total // 5
    return {
        "pids": {"current": running} if running else {},
        "cpu": {
            "usage": {"total": total, "kernel": kernel, "user": total - kernel, "per_cpu": [total]},
            "throttling": {},
        },
        "memory": {
            "cache": _CACHE_BYTES,
            "rss": used - _CACHE_BYTES,
            "usage": {"limit": _memory_limit(container), "usage": used, "max": used},
        },
    }


def used_bytes(container: LinuxContainer) -> int:
    """Return how much memory a Linux container uses."""
    running = len(container.pids) if container.status == "running" else 0
    return running * _PROCESS_BYTES + _CACHE_BYTES


def _memory_limit(container: LinuxContainer) -> int:
    spec = container.document["OciSpecification"]
    for resources in (container.constraints, (spec.get("linux") or {}).get("resources")):
        limit = part_of(resources, "memory", "limit")
        if isinstance(limit, int) and limit > 0:
            return limit
    return _NO_LIMIT


def part_of(value: Any, *path: str) -> Any:
    """Return a part of a JSON value, by the names that lead to it; None if it has none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def windows_statistics(container: Container, clock: FakeClock) -> JSON:
    """Return the statistics of a Windows container, in the form of the HCS schema."""
    used = len(container.pids) * _PROCESS_BYTES
    return {
        "Timestamp": clock.timestamp(),
        "Memory": {"MemoryUsageCommitBytes": used, "MemoryUsagePrivateWorkingSetBytes": used},
    }
