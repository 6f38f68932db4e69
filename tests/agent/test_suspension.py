"""Workloads are frozen before a template is saved, and go on in a clone with numbers of its own."""

from __future__ import annotations

import base64
import os
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from uvm.agent import suspension
from uvm.agent.identity import renew
from uvm.agent.refused import Refused
from uvm.agent.suspension import Suspension, wait_until_quiet

_ENTROPY = b"\x01\xff" * 256


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is done, in order."""
    found: list[Any] = []
    monkeypatch.setattr(suspension, "seed", found.append)
    monkeypatch.setattr(time, "clock_settime_ns", lambda clock, now: found.append((clock, now)))
    return found


def _suspension(done: list[Any]) -> Suspension:
    return Suspension(*(partial(done.append, what) for what in ("freeze", "thaw", "renew", "settle")))


def _resumption(**changes: Any) -> dict[str, Any]:
    return {"Entropy": base64.b64encode(_ENTROPY).decode(), "UnixNanoseconds": 7, **changes}


def test_workloads_go_on_after_the_numbers_the_clock_and_the_identity_are_renewed(done: list[Any]) -> None:
    handlers = _suspension(done).handlers
    handlers["Suspension", "Add"](None)
    handlers["Suspension", "Remove"](_resumption())
    assert done == ["freeze", "settle", _ENTROPY, (time.CLOCK_REALTIME, 7), "renew", "thaw"]


@pytest.mark.parametrize(
    "settings",
    [
        None,
        {},
        _resumption(Entropy=""),
        _resumption(Entropy="no base64"),
        _resumption(Entropy="äöü"),
        _resumption(Entropy=7),
        _resumption(UnixNanoseconds=0),
        _resumption(UnixNanoseconds=-1),
        _resumption(UnixNanoseconds=1 << 63),
    ],
)
def test_workloads_stay_frozen_if_what_they_need_did_not_come(done: list[Any], settings: Any) -> None:
    with pytest.raises(Refused):
        _suspension(done).resume(settings)
    assert done == []


@pytest.mark.parametrize(("busy_looks", "seconds"), [(0, 0.1), (3, 0.4), (100, 2.0)])
def test_a_kernel_is_waited_for_until_it_is_idle_but_not_for_ever(busy_looks: int, seconds: float) -> None:
    """It is busy at the first looks, and idle after them, on all processors."""
    passed: list[float] = []

    def idle() -> float:
        return sum(passed[busy_looks:]) * (os.cpu_count() or 1)

    wait_until_quiet(idle, lambda: sum(passed), passed.append)
    assert sum(passed) == pytest.approx(seconds, abs=0.11)


def test_this_kernel_says_for_how_long_it_has_been_idle() -> None:
    wait_until_quiet(clock=iter((0.0, 1e9)).__next__)


def test_a_workload_that_does_not_freeze_is_said(done: list[Any]) -> None:
    def freeze() -> None:
        raise TimeoutError("a process did not freeze")

    with pytest.raises(Refused, match="all processes go on"):
        Suspension(freeze, lambda: None, lambda: None).suspend(None)


def test_an_identity_is_another_each_time_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "machine-id"
    ids, inodes = set(), set()
    for _ in range(3):
        renew(str(path))
        ids.add(path.read_text())
        inodes.add(path.stat().st_ino)
    assert (len(ids), len(inodes)) == (3, 1)
    assert all(re.fullmatch("[0-9a-f]{32}\n", each) for each in ids)
