"""Workloads are frozen before a template is saved, and go on in a clone with numbers of its own."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from uvm.agent import suspension
from uvm.agent.refused import Refused
from uvm.agent.suspension import Suspension

_ENTROPY = b"\x01\xff" * 256


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is done, in order."""
    found: list[Any] = []
    monkeypatch.setattr(suspension, "seed", found.append)
    monkeypatch.setattr(time, "clock_settime_ns", lambda clock, now: found.append((clock, now)))
    return found


def _suspension(done: list[Any]) -> Suspension:
    return Suspension(lambda: done.append("freeze"), lambda: done.append("thaw"))


def _resumption(**changes: Any) -> dict[str, Any]:
    return {"Entropy": base64.b64encode(_ENTROPY).decode(), "UnixNanoseconds": 7, **changes}


def test_workloads_go_on_after_the_numbers_and_the_clock_are_renewed(done: list[Any]) -> None:
    handlers = _suspension(done).handlers
    handlers["Suspension", "Add"](None)
    handlers["Suspension", "Remove"](_resumption())
    assert done == ["freeze", _ENTROPY, (time.CLOCK_REALTIME, 7), "thaw"]


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


def test_a_workload_that_does_not_freeze_is_said(done: list[Any]) -> None:
    def freeze() -> None:
        raise TimeoutError("a process did not freeze")

    with pytest.raises(Refused, match="all processes go on"):
        Suspension(freeze, lambda: None).suspend(None)
