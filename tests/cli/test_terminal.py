"""The output of the commands: rich on a terminal, plain text elsewhere."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO, cast

import pytest

from tests.cli.support import LCOW, ROOT, Screen
from uvm._drawing.blocks import Rule, Span, line, table
from uvm._drawing.drawing import Drawing
from uvm.cli.errors import OutputError
from uvm.cli.terminal import Terminal

TABLE = table(("one", "two"), [("1", Span("red", "red"))])


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment asks for nothing."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def written(screen: Screen) -> str:
    Terminal.of(screen).write(TABLE)
    return screen.getvalue()


def test_a_terminal_has_colours() -> None:
    assert "\x1b[31mred" in written(Screen(tty=True))


@pytest.mark.parametrize("setting", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_without_colours_nothing_is_painted(
    setting: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*setting)
    assert "[31m" not in written(Screen(tty=True))


def test_what_is_no_terminal_gets_plain_text() -> None:
    assert written(Screen()) == f"{Drawing((TABLE,))}\n" == "one  two\n1    red\n"


def test_colours_can_be_asked_for_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[31mred" in written(Screen())


def test_a_terminal_without_rich_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.delitem(sys.modules, "uvm.cli.console", raising=False)
    assert written(Screen(tty=True)) == written(Screen())


def test_a_table_fits_the_terminal_and_a_line_is_left_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    screen, word = Screen(tty=True), "x" * 100
    terminal = Terminal.of(screen)
    terminal.write(Rule(Span("title")), table((), [(word, "y")]))
    # An old console of Windows has one column less.
    assert {len(each) for each in screen.getvalue().splitlines() if "\x1b" not in each} <= {39, 40}
    assert screen.getvalue().count("x") == len(word)
    terminal.write(word, line(word, indent=4))
    assert screen.getvalue().splitlines()[-2:] == [word, f"    {word}"]


def test_no_text_is_markup_for_rich() -> None:
    screen = Screen(tty=True)
    Terminal.of(screen).write("[red]a[/]", Span("[/nothing] :smile:"), line("\x1b[31mb\n"))
    assert screen.getvalue() == "[red]a[/]\n[/nothing] :smile:\n\\x1b[31mb\\n\n"


def test_what_programs_read_is_written_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    screen, text = Screen(tty=True), '{\n  "a": "a text that is longer than the terminal is wide"\n}'
    Terminal.of(screen).write_text(text)
    assert screen.getvalue() == f"{text}\n"


def test_what_cannot_be_encoded_is_written_in_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", newline="\n")
    Terminal.of(stream).write("✓ C:\\caf\u00e9.vhd ·")
    assert isinstance(stream.buffer, io.BytesIO)
    assert stream.buffer.getvalue() == b"ok C:\\caf\\xe9.vhd .\n"


def test_a_reader_who_leaves_early_ends_nothing_of_a_command_in_colours() -> None:
    command = [sys.executable, "-m", "uvm", "pod", str(LCOW)]
    environment = {**os.environ, "FORCE_COLOR": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"\x1b[" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
@pytest.mark.parametrize("json", [(), ("--json",)], ids=["drawn", "json"])
def test_what_cannot_be_written_is_said_once_at_the_end(json: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "uvm", "pod", *json, str(LCOW)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    why = os.strerror(errno.ENOSPC)
    said = f"uvm: error: the output cannot be written, and is lost in part: {why}\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_a_write_that_fails_ends_no_command_before_its_end(tmp_path: Path) -> None:
    with open(tmp_path / "output", "w", encoding="utf-8") as stream:

        def refuse(_: str) -> int:
            raise OSError(errno.ENOSPC, "full")

        terminal = Terminal(
            cast(TextIO, SimpleNamespace(write=refuse, flush=stream.flush, fileno=stream.fileno))
        )
        terminal.write("one")
        terminal.write("two")
        with pytest.raises(OutputError, match=r"the output cannot be written, .*: full"):
            terminal.check()
