"""The arithmetic of the counts of instructions, and what a report of cachegrind says."""

from __future__ import annotations

import shutil

import pytest

from tests.bench.counted import NO_LOOP, OPERATIONS, main
from tests.bench.instructions import NoValgrindError, cachegrind, count_rows, references

REPORT = """\
==18== Cachegrind, a cache and branch-prediction profiler
==18== Command: python -m tests.bench.counted scsi - 200
==18==
==18== I   refs:      1,234,567,890
"""


class Runner:
    """Takes a fixed number of instructions, and so many for each operation."""

    def __init__(self, fixed: int, each: int) -> None:
        self.fixed, self.each = fixed, each
        self.runs: list[tuple[str, str, int]] = []

    def __call__(self, name: str, loop: str, count: int) -> int:
        self.runs.append((name, loop, count))
        return self.fixed + self.each * count


def test_what_is_around_the_operations_is_left_out() -> None:
    (count,) = count_rows(["scsi"], ["asyncio"], Runner(fixed=10**9, each=90_100))

    assert (count.row, count.instructions) == ("scsi", 90_100)
    assert "90.1" in str(count)


def test_a_row_is_run_twice_on_each_loop_that_is_wanted() -> None:
    runner = Runner(fixed=0, each=1)

    counts = list(count_rows(["rpc", "scsi"], ["trio"], runner))

    assert [(count.row, count.loop) for count in counts] == [("rpc", "trio"), ("scsi", NO_LOOP)]
    fewer, more = OPERATIONS["rpc"].counts
    assert runner.runs[:2] == [("rpc", "trio", more), ("rpc", "trio", fewer)]


def test_the_instructions_are_read_of_the_report() -> None:
    assert references(REPORT) == 1_234_567_890


def test_a_report_without_instructions_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot open"):
        references("valgrind: cannot open it")


def test_that_valgrind_is_not_there_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)

    with pytest.raises(NoValgrindError, match="apt-get install valgrind"), cachegrind():
        pass


@pytest.mark.parametrize(
    ("name", "loop"), [(name, loop) for name in OPERATIONS for loop in OPERATIONS[name].aims]
)
def test_each_operation_can_be_done(name: str, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["counted", name, loop, "1"])

    main()
