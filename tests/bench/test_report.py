"""The tables of figures in the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.bench import qemu, report
from tests.bench.figures import Figure
from tests.bench.parts import PARTS

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_a_section_is_written_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Figure("a row", "ms", [2.0, 1.0, 3.0], loop="trio", note="of which 1 ms")
    monkeypatch.setattr(report, "_DIRECTORY", tmp_path)
    monkeypatch.setattr(report, "growth", lambda: iter([figure]))
    monkeypatch.setattr("sys.argv", ["report", "growth"])

    report.main()

    (written,) = tmp_path.iterdir()
    assert written.name == "growth.md"
    lines = written.read_text("utf-8").splitlines()
    assert lines[0].startswith("Measured on ")
    assert lines[-1].startswith("| a row; of which 1 ms | trio, CPython")
    assert "| 2 ms |" in lines[-1]


def test_the_documentation_has_each_table() -> None:
    included = {*re.findall(r"figures/([a-z]+)\.md", PAGE.read_text("utf-8"))}
    assert included == {*report.SECTIONS, *report.MORE}


def test_real_vms_are_measured_on_each_loop_and_how_guests_run_is_in_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"accelerator": "tcg", "samples": {"a VM: create to greeted": ["ms", [3000.0, 2900.0]]}}
    monkeypatch.setattr(qemu, "run_python", lambda *_: json.dumps(measured))
    monkeypatch.setattr(report, "_DIRECTORY", tmp_path)
    monkeypatch.setattr("sys.argv", ["report", "qemu"])

    report.main()

    *_, first, second = (tmp_path / "qemu.md").read_text("utf-8").splitlines()
    assert first.startswith("| a VM: create to greeted | asyncio, TCG, CPython")
    assert second.startswith("| a VM: create to greeted | trio, TCG, CPython")
    assert first.endswith("| 2,950 ms | 2,925 to 2,975 | 2,900 | 2 | 2,500 ms |")


def test_the_documentation_names_each_part_that_can_be_measured() -> None:
    named = {*re.findall(r"`([a-z-]+)`", PAGE.read_text("utf-8"))}
    assert [name for name in PARTS if name not in named] == []
