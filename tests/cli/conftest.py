"""Fixtures of the command's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.support import Ran
from uvm.cli import main

Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command, 100 columns wide."""
    monkeypatch.setenv("COLUMNS", "100")

    def run_it(*arguments: str | Path) -> Ran:
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Ran(status, printed.out, printed.err)

    return run_it


@pytest.fixture
def pod_file(tmp_path: Path) -> Callable[[str], Path]:
    """Write a pod file."""

    def write(text: str) -> Path:
        path = tmp_path / "pod.toml"
        path.write_text(text, "utf-8")
        return path

    return write
