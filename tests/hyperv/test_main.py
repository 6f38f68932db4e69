"""``python -m tests.hyperv``: what it plays, what it says, and what it does where it can play nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.hyperv.__main__ import PLAYED, chosen, main
from tests.hyperv.conftest import BOOT, USABLE, Machine
from uvm.backend import Backend
from uvm.backends.fake import FakeBackend
from uvm.cli.doctor import Examination
from uvm.errors import NotSupportedError
from uvm.testing.backends import Level

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write reports into a directory of the test; no job of GitHub shows them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


def play(machine: Machine, *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main(["--linux-boot-files", BOOT, *arguments], look=lambda: USABLE, factory=machine.open)
    return status, json.loads(Path("uvm-hyperv-report.json").read_text("utf-8"))


def test_the_levels_without_a_guest_hold_and_are_reported(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = play(machine, "--level", "host")
    printed = capsys.readouterr().out
    assert status == 0
    assert {each["outcome"] for each in found["scenarios"]} == {"holds", "skipped"}
    assert {each["why"] for each in found["scenarios"] if each["outcome"] == "skipped"} == {
        "updates of VMs and containers that run"
    }
    assert "  holds    ids are fresh guids\n" in printed
    assert "not played: Windows VMs: --windows-layer names no layer" in printed
    assert printed.endswith("uvm-hyperv-report.json: read it, and send it to us (docs/try-hyperv.md)\n")


def test_what_another_run_left_is_said_first_and_reported(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "uvm-test-hyperv-7-abcd-x").mkdir()
    _, found = play(machine, "--level", "host", "-k", "fresh")
    [other] = found["others"]
    assert other.endswith("uvm-test-hyperv-7-abcd-x")
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == f"of another run, which is not done or was killed: {other}"


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_devices_are_played_on_either_loop(machine: Machine, loop: str) -> None:
    status, found = play(machine, "--loop", loop, "-k", "a_vhdx_comes")
    assert status == 0
    assert [each["outcome"] for each in found["scenarios"]] == ["holds"]
    assert found["has"] == [
        "Linux VMs",
        "files of the host",
        "links on the host",
        "networks of the host",
        "pipes of the host",
    ]


class Stale(FakeBackend):
    """A backend whose new ids are not new."""

    def new_id(self) -> str:
        return "11111111-1111-1111-1111-111111111111"


def test_a_scenario_that_fails_is_the_exit_status(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tests.hyperv.conftest.FakeBackend", Stale)
    status, found = play(machine, "--level", "host", "-k", "fresh")
    assert status == 1
    assert found["outcomes"] == {"fails": 1}
    assert "- ids_are_fresh_guids: AssertionError: " in capsys.readouterr().out


class Interrupted(Machine):
    """A machine at which ctrl-C is typed once the first scenario was played."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Backend]:
        # The checks open two, the first scenario a third.
        if len(self.made) == 3:
            raise KeyboardInterrupt
        async with super().open() as backend:
            yield backend


@pytest.mark.usefixtures("machine")
def test_ctrl_c_ends_the_run_with_a_report_of_what_was_played(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = play(Interrupted(), "--level", "host")
    assert (status, found["outcomes"]) == (0, {"holds": 1})
    assert "interrupted" in capsys.readouterr().out


def test_a_machine_that_cannot_run_vms_runs_nothing_says_so_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    assert main([], look=lambda: Examination("hcs", "HCS needs Windows, and this is linux", {})) == 0
    said = "NOTHING WAS RUN, no real HCS was tested: HCS needs Windows, and this is linux"
    assert said in capsys.readouterr().err
    assert said in (tmp_path / "summary").read_text("utf-8")
    assert not (tmp_path / "uvm-hyperv-report.json").exists()


def test_a_backend_that_cannot_be_entered_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> Any:
        raise NotSupportedError("the service vmcompute does not run")

    assert main([], look=lambda: USABLE, factory=refuse) == 0
    assert "NOTHING WAS RUN, no real HCS was tested: the service vmcompute" in capsys.readouterr().err


@pytest.mark.parametrize("early", [True, False])
def test_what_is_said_when_nothing_runs_has_nothing_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], early: bool
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    problem = r"D:\Contoso\cfg of CONTOSO.EXAMPLE cannot be read"
    monkeypatch.setenv("USERDNSDOMAIN", "contoso.example")

    def refuse() -> Any:
        raise NotSupportedError(problem)

    found = Examination("hcs", problem, {}) if early else USABLE
    assert main([], look=lambda: found, factory=refuse) == 0
    for said in (capsys.readouterr().err, (tmp_path / "summary").read_text("utf-8")):
        assert r"no real HCS was tested: <path>\cfg of <domain> cannot be read" in said


def test_all_levels_have_something_and_a_word_chooses_among_them() -> None:
    assert [len(chosen(level, "")) for level in ("host", "vm", "guest", "everything")] == [
        sum(each.level <= level for each in PLAYED) for level in Level
    ]
    assert {each.name for each in chosen("guest", "come_and_go")} >= {"disks_come_and_go_at_once"}
    assert len({each.name for each in PLAYED}) == len(PLAYED)


@pytest.mark.skipif(sys.platform == "win32", reason="it might have Hyper-V")
def test_the_module_runs_as_it_is_typed() -> None:
    command = [sys.executable, "-m", "tests.hyperv"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert "NOTHING WAS RUN, no real HCS was tested: HCS needs Windows" in done.stderr
