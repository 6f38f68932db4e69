"""``uvm pod --json``: what happened, for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.support import LCOW, WCOW
from tests.cli.test_pod import WITHOUT_MODEL, fast


@pytest.mark.parametrize(("file", "guest"), [(LCOW, "linux"), (WCOW, "windows")])
def test_all_that_happened_is_one_value(
    run: Run, pod_file: Callable[[str], Path], file: Path, guest: str
) -> None:
    path = pod_file(fast(file))
    ran = run("pod", "--json", path)
    assert (ran.status, ran.error) == (0, "")
    found: dict[str, Any] = json.loads(ran.output)
    assert (found["pod"], found["guest"], found["backend"]) == (str(path), guest, "fake")
    assert {each["outcome"] for each in found["requests"]} == {"ok"}
    assert {each["to"] for each in found["requests"]} >= {"host", "guest", "grant"}
    [command] = found["commands"]
    assert (command["args"][0], command["exit_code"]) == ("echo", 0)
    assert command["stdout"].split() == command["args"][1].split()
    assert len(found["devices"]["roots"]) == 2
    assert found["devices_released"]["roots"] == []
    assert found["statistics"]["working_set_bytes"] > 0
    assert (found["exit"], found["left"]) == ("GracefulExit", [])


def test_a_failure_is_part_of_it_and_an_error_all_the_same(run: Run, pod_file: Callable[[str], Path]) -> None:
    ran = run("pod", "--json", pod_file(WITHOUT_MODEL))
    found = json.loads(ran.output)
    assert ran.status == 1
    assert ran.error == f"uvm: error: {found['error']}\n"
    assert found["error"] == "C:\\layers\\model.vhd: no such file on the host"
    assert "devices" not in found


def test_secrets_are_left_out(run: Run, pod_file: Callable[[str], Path]) -> None:
    text = 'vm = {os = "linux", security_policy = "c2VjcmV0", security_policy_enabled = true}'
    ran = run("pod", "--json", pod_file(text))
    assert json.loads(ran.output)["requests"]
    assert "c2VjcmV0" not in ran.output
