"""``uvm init``: the samples that the package carries, and what is never overwritten."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.support import LCOW, WCOW


def test_the_samples_are_written_into_a_directory_that_is_made(run: Run, tmp_path: Path) -> None:
    ran = run("init", tmp_path / "new" / "pods")
    assert (ran.status, ran.error) == (0, "")
    written = {path.name: path.read_bytes() for path in (tmp_path / "new" / "pods").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (LCOW, WCOW)}
    assert ran.lines[-1] == f"Run one, edit it: uvm pod {tmp_path / 'new' / 'pods' / LCOW.name}"


def test_by_default_they_are_written_here(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init").lines[-1] == "Run one, edit it: uvm pod lcow-pod.toml"
    assert (tmp_path / LCOW.name).exists()


def test_a_file_that_is_there_stays_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / WCOW.name
    mine.write_text("mine")
    ran = run("init", tmp_path)
    assert (ran.status, ran.output) == (2, "")
    assert ran.error == f"uvm: error: init: {mine} exists; nothing was written; --force overwrites\n"
    assert [*tmp_path.iterdir()] == [mine]
    assert mine.read_text() == "mine"


def test_what_to_type_next_can_be_typed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quote = '"' if os.name == "nt" else "'"
    typed = f"{quote}{Path('my pods', LCOW.name)}{quote}"
    assert run("init", "my pods").lines[-1] == f"Run one, edit it: uvm pod {typed}"
    assert run("init", "my pods").error.startswith(
        f"uvm: error: init: {Path('my pods', LCOW.name)} and {Path('my pods', WCOW.name)} exist; nothing"
    )


def test_they_are_overwritten_if_that_is_asked_for(run: Run, tmp_path: Path) -> None:
    (tmp_path / LCOW.name).write_text("mine")
    assert run("init", "--force", tmp_path).status == 0
    assert (tmp_path / LCOW.name).read_bytes() == LCOW.read_bytes()


def test_a_directory_that_cannot_be_made_is_said_in_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = run("init", tmp_path / "file")
    assert ran.status == 2
    assert ran.error.startswith(f"uvm: error: init: {tmp_path / 'file'}: ")
    assert ran.error.count("\n") == 1


def test_a_file_is_written_whole_or_stays_as_it_was(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")  # a write names no file

    mine = tmp_path / LCOW.name
    mine.write_text("mine")
    monkeypatch.setattr(Path, "write_bytes", write_half)
    ran = run("init", "--force", tmp_path)
    assert ran.status == 2
    assert ran.error == f"uvm: error: init: {mine}: No space left on device; it was not written\n"
    assert [*tmp_path.iterdir()] == [mine]
    assert mine.read_text() == "mine"
