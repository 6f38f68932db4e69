"""Processes that were killed for want of memory are counted in the log, once each."""

from __future__ import annotations

from pathlib import Path

from uvm.agent.shortage import Shortage


def test_what_was_killed_since_the_last_look_is_logged(tmp_path: Path) -> None:
    vmstat, logged = tmp_path / "vmstat", list[str]()

    def killed(count: int) -> None:
        vmstat.write_text(f"nr_free_pages 7\noom_kill {count}\noom_kill_other 9\n")

    killed(1)
    shortage = Shortage(logged.append, str(vmstat))
    shortage.look()
    assert logged == []
    for count in (2, 2, 4):
        killed(count)
        shortage.look()
    assert [line.partition(" of this guest;")[0] for line in logged] == [
        "out of memory: the kernel has killed 1 process",
        "out of memory: the kernel has killed 2 processes",
    ]


def test_a_count_that_cannot_be_read_is_logged_by_a_later_look(tmp_path: Path) -> None:
    vmstat, logged = tmp_path / "vmstat", list[str]()
    vmstat.write_text("oom_kill 1\n")
    shortage = Shortage(logged.append, str(vmstat))
    vmstat.unlink()
    shortage.look()
    assert logged == []
    vmstat.write_text("oom_kill 2\n")
    shortage.look()
    assert len(logged) == 1


def test_a_kernel_that_does_not_count_is_not_asked_for_more(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 7\n")
    logged: list[str] = []
    Shortage(logged.append, str(tmp_path / "vmstat")).look()
    assert logged == []
