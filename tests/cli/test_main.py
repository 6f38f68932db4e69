"""The command line itself: help, and errors in one line."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import uvm
from tests.cli.conftest import Run
from tests.cli.support import LCOW, ROOT
from uvm.cli import main
from uvm.cli.errors import in_one_line
from uvm.cli.sizes import parse_size
from uvm.errors import GuestError, HostError, UndoFailedError, UVMErrorGroup, together
from uvm.hresult import HResult


@pytest.mark.parametrize("arguments", [["--help"], ["pod", "--help"], ["replay", "--help"]])
def test_help_is_there(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
    assert "usage: uvm" in capsys.readouterr().out


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "uvm", "--version"]
    assert subprocess.run(command, capture_output=True, cwd=ROOT, check=True).stdout.split() == [
        b"uvm",
        uvm.__version__.encode(),
    ]


@pytest.mark.parametrize("arguments", [["fly"], ["pod"], ["pod", "a", "b"]])
def test_a_wrong_command_line_is_exit_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("poed", "uvm: error: COMMAND: there is no 'poed'; did you mean pod? (see: uvm --help)"),
        (
            "run --memmory 1G -- ls",
            "uvm run: error: --memmory is unknown here; did you mean --memory? (see: ",
        ),
        ("--backend=fake ps", "uvm: error: --backend=fake is unknown here (see: uvm --help)"),
        ("run --cpus many -- ls", "uvm run: error: --cpus: 'many' is no whole number above 0 (see: "),
        ("run --cpus 0 -- ls", "'0' is no whole number above 0"),
        ("run --timeout soon -- ls", "--timeout: 'soon' is no number of seconds above 0"),
        ("run --memory 512 -- ls", "--memory: '512' is not a size such as '4 MiB' or '4M'"),
        ("conform fake --level guests", "--level: there is no 'guests'; did you mean guest?"),
        ("completion nu", "shell: there is no 'nu'; there are bash, zsh, fish, powershell (see: "),
        ("image", "uvm image: error: the following arguments are required: ACTION (see: uvm image --help)"),
    ],
)
def test_a_mistake_is_one_line_with_what_was_meant(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments.split())
    printed = capsys.readouterr()
    assert (left.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert said in printed.err


def test_without_a_command_there_is_help(run: Run) -> None:
    ran = run()
    assert (ran.status, ran.output) == (2, "")
    assert re.search(r"^ +shell +open a shell", ran.error, re.MULTILINE)


@pytest.mark.parametrize(("text", "size"), [("1g", 1 << 30), ("512m", 512 << 20), ("1 kib", 1024), ("7b", 7)])
def test_sizes_are_read_in_any_case(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_a_sign_that_is_a_letter_elsewhere_is_no_unit() -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size("5\N{KELVIN SIGN}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor", "--backend", "none"],
        ["ps", "--backend", "none"],
        ["conform", "none"],
        ["pod", str(LCOW), "--backend", "none"],
        ["document", str(LCOW), "--backend", "none"],
    ],
)
def test_a_backend_that_is_none_is_a_wrong_command_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("uvm: error: no backend is called 'none'; there are: fake, ")


def test_an_error_with_notes_is_one_line() -> None:
    error = HostError("start", HResult.E_FAIL, "two\nlines")
    error.add_note("and more")
    assert in_one_line(error) == "start: E_FAIL (0x80004005): two lines; and more"


def test_a_group_is_each_of_its_errors() -> None:
    one, two = HostError("one", HResult.E_FAIL), HostError("two", HResult.E_FAIL)
    closing = together("closing", [one, two])
    assert isinstance(closing, UVMErrorGroup)
    assert in_one_line(closing) == ("closing: one: E_FAIL (0x80004005); and two: E_FAIL (0x80004005)")


def test_an_error_whose_undo_failed_is_told_once() -> None:
    error = UndoFailedError.of(HostError("add", HResult.E_FAIL), HostError("remove", HResult.E_FAIL))
    assert in_one_line(error) == (
        "add: E_FAIL (0x80004005); and undoing it failed: remove: E_FAIL (0x80004005); "
        "it stays attached, as an orphan (vm.orphans)"
    )


def test_what_a_guest_says_does_not_command_the_terminal() -> None:
    assert in_one_line(GuestError("add", HResult.E_FAIL, "\x1b[2Jgone")).endswith(":  [2Jgone")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes the streams")
def test_closed_standard_streams_are_the_null_device() -> None:
    run_them = """if True:
        import os, sys
        from uvm.cli import main
        status = main(["ps", "--backend", "fake"])
        same = [os.path.samestat(os.fstat(each), os.stat(os.devnull)) for each in range(3)]
        sys.exit(status or 10 + sum(same))
    """
    script = 'exec "$0" -c "$1" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", script, sys.executable, run_them], cwd=ROOT, check=False)
    assert done.returncode == 13
