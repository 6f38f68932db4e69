"""``uvm completion``: the scripts, and what a shell is answered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.support import ROOT
from uvm.backends import backend_names
from uvm.cli import completion


def answer(directory: Path, typed: str) -> list[str]:
    """Return what can come next, as the script of a shell asks for it."""
    answered = directory / "answer"
    asking = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answered),
        "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)),
    }
    command = [sys.executable, "-m", "uvm"]
    subprocess.run(command, cwd=ROOT, env=os.environ | asking, check=True, capture_output=True)
    return [word.strip() for word in answered.read_text("utf-8").split("\n")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_each_shell_has_a_script(run: Run, shell: str) -> None:
    pytest.importorskip("argcomplete")
    ran = run("completion", shell)
    assert ran.status == 0
    assert "uvm" in ran.output
    assert "_ARGCOMPLETE" in ran.output


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("uvm doc", {"doctor", "document"}),
        ("uvm pod --js", {"--json"}),
        ("uvm completion po", {"powershell"}),
        ("uvm conform ", {*backend_names(), "--level", "--rig", "--loop", "--json", "-h", "--help"}),
        ("uvm ps --backend ", {*backend_names()}),
    ],
)
def test_what_can_come_next_is_answered(tmp_path: Path, typed: str, expected: set[str]) -> None:
    pytest.importorskip("argcomplete")
    assert set(answer(tmp_path, typed)) <= expected | {""}
    assert set(answer(tmp_path, typed)) >= {each for each in expected if not each.startswith("-h")} - {
        "--help"
    }


def test_without_argcomplete_what_to_install_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    ran = run("completion", "bash")
    assert ran.status == 2
    assert ran.error == (
        "uvm: error: completion: argcomplete is not installed; run: pip install 'utilityvm[cli]'\n"
    )


def test_a_shell_that_asks_without_argcomplete_has_no_answer(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    monkeypatch.setenv(completion.COMPLETING, "1")
    with pytest.raises(SystemExit):
        run("doctor")
    assert capsys.readouterr() == ("", "")
