"""What the cgroups of the fake Linux guest refuse.

Source: the kernel's ``kernel/sched/core.c`` and ``mm/memcontrol.c``, and runc's texts, in shorter forms.
"""

from __future__ import annotations

from typing import Any, Final

from uvm.backend import JSON
from uvm.backends.fake.guest.containers import LinuxContainer
from uvm.backends.fake.guest.statistics import used_bytes

_INVALID: Final = "invalid argument"
_PERIODS_US: Final = (1_000, 1_000_000)
_LEAST_QUOTA_US: Final = 1_000
_MOST_SHARES: Final = 262_144


def refused_resources(container: LinuxContainer, resources: JSON, processors: int) -> str:
    """Return why OCI resources are refused; empty if they are not."""
    memory, cpu = _part(resources, "memory"), _part(resources, "cpu")
    limit, used = _number(memory, "limit"), used_bytes(container)
    if 0 < limit < used:
        return f"unable to set memory limit to {limit} (current usage: {used}, peak usage: {used})"
    quota, period, shares = (_number(cpu, name) for name in ("quota", "period", "shares"))
    if period and not _PERIODS_US[0] <= period <= _PERIODS_US[1]:
        return f"cpu.cfs_period_us: {_INVALID}"
    if 0 < quota < _LEAST_QUOTA_US:
        return f"cpu.cfs_quota_us: {_INVALID}"
    if shares > _MOST_SHARES:
        return f"the maximum allowed cpu-shares is {_MOST_SHARES}"
    cpus = cpu.get("cpus")
    if cpus and not _are_processors(cpus, processors):
        return f"cpuset.cpus: {_INVALID}"
    return ""


def _part(resources: JSON, name: str) -> JSON:
    part = resources.get(name)
    return part if isinstance(part, dict) else {}


def _number(part: JSON, name: str) -> int:
    value = part.get(name)
    return value if type(value) is int else 0


def _are_processors(cpus: Any, processors: int) -> bool:
    """Return whether a list such as ``0-1,3`` names processors that there are."""
    for part in str(cpus).split(","):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            return False
        if not int(first) <= int(last or first) < processors:
            return False
    return True
