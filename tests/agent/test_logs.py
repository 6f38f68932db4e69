"""The agent's log says an error even if the agent cannot load what writes its stack."""

from __future__ import annotations

import os
import sys

import pytest

from uvm.agent.logs import Log


def test_an_error_is_logged_without_its_stack_if_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "traceback", None)
    console, end = os.pipe()
    Log(end).bug(ValueError("no descriptor is left"))
    os.close(end)
    with open(console, encoding="utf-8") as said:
        assert said.read() == "uvm: ValueError: no descriptor is left\n"
