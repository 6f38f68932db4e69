"""How much memory VMs can be given: of the machine, and within the cgroups of this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from uvm.backends.qemu.room import available_mb, check_room
from uvm.errors import NoSpaceError

_MIB = 1 << 20


def _written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _available(directory: Path, cgroup: str = "") -> int:
    """What is available on a machine with 100 MB left, to a process in cgroups."""
    _written(directory / "proc/meminfo", "MemTotal: 999 kB\nMemAvailable: 81920 kB\nSwapFree: 20480 kB\n")
    _written(directory / "proc/self/cgroup", cgroup)
    return available_mb(directory / "proc", directory / "cgroup")


def _limited(group: Path, limit: str, usage: int, stat: str = "") -> None:
    _written(group / "memory.max", f"{limit}\n")
    _written(group / "memory.current", f"{usage}\n")
    _written(group / "memory.stat", stat)


def test_without_cgroups_it_is_what_the_machine_has_left(tmp_path: Path) -> None:
    assert _available(tmp_path) == 100
    assert available_mb(tmp_path / "missing", tmp_path) == 0


def test_a_limit_of_any_cgroup_above_counts_without_what_can_be_reclaimed(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    _limited(groups / "user/session", "max", 10 * _MIB)
    assert _available(tmp_path, "0::/user/session\n") == 100
    _limited(groups / "user", str(50 * _MIB), 30 * _MIB)
    assert _available(tmp_path, "0::/user/session\n") == 20
    _limited(groups, str(30 * _MIB), 25 * _MIB, f"anon 7\ninactive_file {4 * _MIB}\nactive_file {_MIB}\n")
    assert _available(tmp_path, "0::/user/session\n") == 10
    _limited(groups, str(30 * _MIB), 35 * _MIB)
    assert _available(tmp_path, "0::/user/session\n") == 0


def test_the_cgroups_of_version_1_count_too(tmp_path: Path) -> None:
    group = tmp_path / "cgroup/memory/one"
    _written(group / "memory.limit_in_bytes", str(50 * _MIB))
    _written(group / "memory.usage_in_bytes", str(20 * _MIB))
    assert _available(tmp_path, "9:name=systemd:/\n4:memory:/one\n1:cpu:/\n") == 30


def test_what_has_no_room_is_refused_with_what_is_there() -> None:
    check_room("create vm1", 10, 10)
    with pytest.raises(NoSpaceError, match="create vm1: it needs 11 MB of memory, and 10 MB are available"):
        check_room("create vm1", 11, 10)


def test_this_machine_has_some() -> None:
    assert available_mb() > 0
