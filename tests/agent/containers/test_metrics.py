"""The figures of a cgroup, in the form of cgroup v1."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvm.agent.containers.cgroups import RESERVED_BYTES, Cgroup, check_limit, limit_all, prepare, total_bytes
from uvm.agent.containers.metrics import NO_LIMIT, metrics, number, table
from uvm.agent.refused import Refused

_FILES = {
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 4\nnr_throttled 1\n"
    "throttled_usec 70\n",
    "memory.stat": "anon 8192\nfile 4096\nkernel_stack 16384\nsock 0\npgfault 12\ninactive_anon 5\n",
    "memory.current": "20480\n",
    "memory.max": "1048576\n",
    "memory.peak": "40960\n",
    "memory.swap.max": "max\n",
    "memory.swap.current": "0\n",
    "memory.events": "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n",
}


def _read(name: str) -> str:
    return _FILES.get(name, "")


def test_times_are_in_nanoseconds() -> None:
    assert metrics(_read)["cpu"] == {
        "usage": {"total": 1_500_000, "kernel": 500_000, "user": 1_000_000},
        "throttling": {"periods": 4, "throttled_periods": 1, "throttled_time": 70_000},
    }


def test_memory_has_the_names_of_cgroup_v1() -> None:
    memory = metrics(_read)["memory"]
    assert memory["usage"] == {"limit": 1048576, "usage": 20480, "max": 40960}
    assert (memory["rss"], memory["cache"], memory["pg_fault"]) == (8192, 4096, 12)
    assert memory["kernel"] == {"usage": 16384}
    assert memory["hierarchical_memory_limit"] == 1048576


def test_what_is_not_limited_has_the_largest_limit() -> None:
    found = metrics(_read)
    assert found["pids"] == {"current": 3, "limit": NO_LIMIT}
    assert found["memory"]["swap"] == {"limit": NO_LIMIT}


def test_processes_that_the_kernel_killed_are_counted() -> None:
    assert metrics(_read)["memory_oom_control"] == {"oom_kill": 1}


def test_a_cgroup_without_controllers_has_empty_figures() -> None:
    found = metrics(lambda name: "")
    assert found["pids"] == {}
    assert found["cpu"] == {"usage": {}, "throttling": {}}
    assert found["memory"]["usage"] == {}


@given(st.text())
def test_whatever_a_file_holds_can_be_read(text: str) -> None:
    assert number(text) >= 0
    assert all(value >= 0 for value in table(text).values())


def test_the_processes_below_a_cgroup_are_in_it(tmp_path: Path) -> None:
    (tmp_path / "pods" / "a" / "deeper").mkdir(parents=True)
    (tmp_path / "pods" / "a" / "cgroup.procs").write_text("7\n3\n")
    (tmp_path / "pods" / "a" / "deeper" / "cgroup.procs").write_text("5\n")
    (tmp_path / "pods" / "cgroup.procs").write_text("1\n")
    assert Cgroup("/pods/a", str(tmp_path)).pids() == [3, 5, 7]


def test_a_cgroup_that_has_gone_has_no_processes_and_no_figures(tmp_path: Path) -> None:
    gone = Cgroup("/pods/gone", str(tmp_path))
    assert gone.pids() == []
    assert gone.used_bytes == gone.peak_bytes == 0
    assert gone.metrics()["memory"]["usage"] == {}


def test_the_guest_keeps_memory_from_its_containers(tmp_path: Path) -> None:
    assert not prepare(str(tmp_path))
    limit_all(1 << 30, str(tmp_path))
    assert int((tmp_path / "pods" / "memory.max").read_text()) == (1 << 30) - RESERVED_BYTES
    assert prepare(str(tmp_path))


def test_containers_have_half_of_little_memory(tmp_path: Path) -> None:
    prepare(str(tmp_path))
    limit_all(100 << 20, str(tmp_path))
    assert int((tmp_path / "pods" / "memory.max").read_text()) == 50 << 20


def test_the_memory_of_the_guest_is_read_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:         487612 kB\nMemFree:          1 kB\n")
    assert total_bytes(str(tmp_path / "meminfo")) == 487612 << 10


def test_a_container_is_not_limited_to_less_than_it_uses(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("4096\n")
    (tmp_path / "memory.peak").write_text("8192\n")
    cgroup = Cgroup("", str(tmp_path))
    with pytest.raises(Refused, match=r"limit to 4095 \(current usage: 4096, peak usage: 8192\)"):
        check_limit(cgroup, {"memory": {"limit": 4095}}, "runc update failed")
    for memory in ({"limit": 4096}, {"limit": -1}, {}, None):
        check_limit(cgroup, {"memory": memory}, "")
