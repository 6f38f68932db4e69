"""Named pipes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from tests.devices.machine import DeviceMachine, add, ledger_of, release
from tests.devices.scripts import steps_of_script
from uvm._names import pipe_key, pipe_path
from uvm.devices.base import Device, Unknown
from uvm.devices.pipes import Pipes
from uvm.errors import NoSpaceError, UnknownOutcomeError


class PipesMachine(DeviceMachine):
    def make_device(self) -> Device[Any, Any, Any, Any]:
        return Pipes()

    def draw_request(self, data: st.DataObject) -> tuple[Any, Any]:
        path = rf"\\.\pipe\{data.draw(st.integers(0, 9))}"
        return path.upper(), path


TestPipes = PipesMachine.TestCase


def test_the_recorded_script() -> None:
    ledger = ledger_of(Pipes())
    tickets: dict[str, Any] = {}
    for op, requests, _ in steps_of_script("wcow_pipes"):
        if op["op"] == "release":
            assert release(ledger, tickets[op["ref"]]) == requests
        else:
            tickets[op["as"]], sent = add(ledger, pipe_key(op["path"]), pipe_path(op["path"]))
            assert sent == requests
    assert len(ledger) == 0


def test_the_first_maps_and_the_last_unmaps() -> None:
    ledger = ledger_of(Pipes())
    first, sent = add(ledger, "A", r"\\.\pipe\a")
    assert len(sent) == 1
    second, sent = add(ledger, "A", r"\\.\pipe\a")
    assert sent == []
    assert release(ledger, first) == []
    assert [r["doc"]["RequestType"] for r in release(ledger, second)] == ["Remove"]


def test_a_pipe_that_may_still_be_mapped_is_not_mapped_again() -> None:
    ledger = ledger_of(Pipes())
    _, change = ledger.acquire("A", r"\\.\pipe\a")
    assert change.operation is not None
    ledger.begin(change.operation)
    ledger.done(change.operation, Unknown(UnknownOutcomeError("lost")))
    with pytest.raises(NoSpaceError, match="whether it still is mapped is unknown"):
        ledger.acquire("A", r"\\.\pipe\a")
