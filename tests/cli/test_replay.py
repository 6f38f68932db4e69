"""Replaying recorded scripts: the same, different, and what cannot be replayed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.support import TRACES

SCRIPTS: dict[str, Any] = {script["name"]: script for script in json.loads(TRACES.read_text("utf-8"))}
BASIC = "lcow_scsi_basic"

Write = Callable[[Any], Path]


@pytest.fixture
def traces(tmp_path: Path) -> Write:
    """Write a file of scripts."""

    def write(scripts: Any) -> Path:
        path = tmp_path / "traces.json"
        path.write_text(json.dumps(scripts), "utf-8")
        return path

    return write


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_recorded_script_is_replayed_the_same(run: Run, name: str) -> None:
    ran = run("replay", TRACES, "--script", name)
    assert (ran.status, ran.error) == (0, "")
    assert "✓ the same: all " in ran.output
    assert "≠" not in ran.output


def test_each_request_stands_beside_the_recorded_one_with_a_mark(run: Run) -> None:
    lines = run("replay", TRACES, "--script", BASIC).lines
    marked = [line for line in lines if line.startswith("     = ")]
    assert len(marked) == 14
    recorded, ours = marked[1].removeprefix("     = ").split("│")
    assert recorded.strip() == ours.strip() == r"host  add    Scsi 0:0  C:\gold\a.vhdx"
    assert "       1 recorded request repeated: by the rules not compared" in lines
    assert lines[-2] == f"✓ the same: all 14 requests of {BASIC}, in 8 operations, are those of hcsshim."


def doctored(change: Callable[[dict[str, Any]], None]) -> list[Any]:
    """The basic script with a change."""
    script = copy.deepcopy(SCRIPTS[BASIC])
    change(script)
    return [script]


def test_a_request_with_another_setting_is_different(run: Run, traces: Write) -> None:
    def change(script: dict[str, Any]) -> None:
        script["steps"][2]["requests"][0]["doc"]["Settings"]["ReadOnly"] = False

    ran = run("replay", traces(doctored(change)), "--script", BASIC)
    assert ran.status == 1
    assert len([line for line in ran.lines if line.startswith("     ≠ ")]) == 1
    assert "       $[0].doc.Settings.ReadOnly: false was recorded, this library has true" in ran.lines
    assert ran.lines[-2] == f"✗ different: 1 of the 8 operations of {BASIC} are not as recorded."


def test_a_request_that_we_do_not_send_is_different(run: Run, traces: Write) -> None:
    def change(script: dict[str, Any]) -> None:
        script["steps"][3]["requests"] = [script["steps"][4]["requests"][1]]

    ran = run("replay", traces(doctored(change)), "--script", BASIC)
    assert ran.status == 1
    [line] = [line for line in ran.lines if line.startswith("     ≠ ")]
    assert line.split("│")[1].strip() == "nothing"


def test_a_request_that_was_not_recorded_is_different(run: Run, traces: Write) -> None:
    def change(script: dict[str, Any]) -> None:
        del script["steps"][4]["requests"][0]

    ran = run("replay", traces(doctored(change)), "--script", BASIC)
    assert ran.status == 1
    assert any(line.startswith("     ≠  nothing ") for line in ran.lines)


def test_another_slot_is_different_though_the_requests_are_the_same(run: Run, traces: Write) -> None:
    def change(script: dict[str, Any]) -> None:
        script["steps"][0]["lun"] = 5

    ran = run("replay", traces(doctored(change)), "--script", BASIC)
    assert ran.status == 1
    assert "       lun: 5 was recorded, this library has 0" in ran.lines


def test_without_a_name_the_scripts_are_listed(run: Run) -> None:
    ran = run("replay", TRACES)
    assert ran.status == 0
    assert ran.lines[3].split() == [BASIC, "linux", "8", "15"]
    assert len(ran.lines) == 3 + len(SCRIPTS)


def test_scripts_with_steps_that_are_none_are_not_listed(run: Run, traces: Write) -> None:
    ran = run("replay", traces([{**SCRIPTS[BASIC], "ops": [{}], "steps": [5]}]))
    assert (ran.status, ran.output) == (2, "")
    assert "each of steps must be an object" in ran.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"os": "mac"}, "os must be 'linux' or 'windows'"),
        ({"build": "new"}, "build must be a whole number"),
        ({"steps": []}, "ops and steps must be lists of the same length"),
        ({"ops": [{"op": "fly"}], "steps": [{}]}, "operation 1 cannot be replayed: {'op': 'fly'}: "),
        (
            {"ops": [{"op": "vpmem_add"}], "steps": [{}]},
            "operation 1 cannot be replayed: {'op': 'vpmem_add'}: ",
        ),
        ({"ops": [{"op": "mkdir", "path": "a"}], "steps": [5]}, "each of steps must be an object"),
        (
            {"ops": [{"op": "mkdir", "path": "a"}], "steps": [{"requests": 5}]},
            "each of steps must be an object, and its",
        ),
    ],
)
def test_a_script_that_cannot_be_replayed_is_one_line_and_exit_status_2(
    run: Run, traces: Write, change: dict[str, Any], message: str
) -> None:
    ran = run("replay", traces([{**SCRIPTS[BASIC], **change}]), "--script", BASIC)
    assert ran.status == 2
    assert ran.error.count("\n") == 1
    assert f"script {BASIC}: {message}" in ran.error


def test_an_unknown_script_is_told_with_those_that_there_are(run: Run, traces: Write) -> None:
    path = traces([SCRIPTS[BASIC]])
    ran = run("replay", path, "--script", "nosuch")
    assert (ran.status, ran.error) == (
        2,
        f"uvm: error: {path}: there is no script 'nosuch'; there are {BASIC}\n",
    )


def test_a_file_that_nests_too_deep_is_no_file_of_scripts(run: Run, traces: Write) -> None:
    path = traces([])
    path.write_text("[" * 9999, "utf-8")
    ran = run("replay", path)
    assert ran.status == 2
    assert ran.error.startswith(f"uvm: error: {path}: is no file of recorded scripts: ")


@pytest.mark.parametrize(
    ("content", "message"), [([], "has no scripts"), ({}, "is no file of recorded scripts: ")]
)
def test_a_file_of_something_else_is_told(run: Run, traces: Write, content: Any, message: str) -> None:
    path = traces(content)
    ran = run("replay", path)
    assert ran.status == 2
    assert ran.error.startswith(f"uvm: error: {path}: {message}")
