"""The tables of figures in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import report
from tests.bench.figures import Figure


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
