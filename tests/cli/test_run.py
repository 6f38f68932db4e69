"""``uvm run``, ``uvm shell`` and ``uvm ps``, as processes of their own: streams, signals, exit statuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio.lowlevel
import pytest

from tests.cli.support import ROOT
from uvm import FakeBackend, LCOWOptions, UtilityVM
from uvm.backend import HostInfo
from uvm.backends.fake import FakeProcess
from uvm.cli import main, passthrough
from uvm.cli.attachments import Attachment

ON_FAKE = ("--backend", "fake")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "uvm", *arguments]


def uvm(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*arguments), input=stdin, capture_output=True, cwd=ROOT, check=False)


@contextmanager
def running(*arguments: str, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **streams}
    with subprocess.Popen(command(*arguments), cwd=ROOT, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_streams_are_those_of_the_command() -> None:
    done = uvm("run", *ON_FAKE, "--", "cat", stdin=b"hello\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")


def test_options_of_the_command_are_its_own() -> None:
    assert uvm("run", *ON_FAKE, "echo", "--memory", "-x").stdout == b"--memory -x\n"


def test_variables_are_set_beside_the_path() -> None:
    environment = uvm("run", *ON_FAKE, "--env", "NAME=a value", "--", "env").stdout.decode().splitlines()
    assert "NAME=a value" in environment
    assert any(line.startswith("PATH=") for line in environment)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--", "false"), 1, ""),
        (("--", "no-such-program"), 127, "executable file not found"),
        (("--timeout", "0.5", "--", "sleep", "60"), 124, "its 0.5 seconds have run out"),
        (("--disk", "C:\\missing.vhdx", "--", "true"), 125, "missing.vhdx"),
        (("--cpus", "0", "--", "true"), 2, "--cpus: '0' is no whole number above 0"),
        (("--memory", "999T", "--", "true"), 125, "ERROR_NO_SYSTEM_RESOURCES"),
        ((), 2, "uvm shell"),
        (("--memory", "much", "--", "true"), 2, "--memory: 'much' is not a size"),
        (("--env", "NAME", "--", "true"), 2, "--env: 'NAME' is not NAME=VALUE"),
        (("--timeout", "nan", "--", "true"), 2, "--timeout: 'nan' is no number of seconds above 0"),
        (("--timeout", "0", "--", "true"), 2, "--timeout"),
    ],
)
def test_the_exit_status_says_what_failed(
    arguments: tuple[str, ...], status: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        ended = main(["run", *ON_FAKE, *arguments])
    except SystemExit as refused:
        ended = int(refused.code or 0)
    assert ended == status
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("option", ["--disk", "--share"])
def test_no_vm_boots_for_a_path_that_is_not_there(
    option: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = FakeBackend()
    monkeypatch.setattr("uvm.cli.run.open_backend", lambda name: backend)
    assert main(["run", option, "C:\\missing:/mnt", "--", "true"]) == 125
    assert capfd.readouterr().err == "uvm: error: C:\\missing: no such file or directory on the host\n"
    assert backend.request_log.entries(to="lifecycle") == []


def test_a_failure_whose_roll_back_failed_is_said_whole(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    backend = FakeBackend()
    backend.files.add("C:\\data.vhdx", size=1 << 20)
    backend.faults.refuse("E_FAIL", to="guest", request_type="Add", nth=1)
    backend.faults.refuse("E_ACCESSDENIED", to="host", request_type="Remove", nth=1)
    monkeypatch.setattr("uvm.cli.run.open_backend", lambda _: backend)
    assert main(["run", "--disk", "C:\\data.vhdx", "--", "true"]) == 125
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.index("E_FAIL") < said.index("and undoing it failed") < said.index("E_ACCESSDENIED")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_output_that_cannot_be_written_is_a_failure() -> None:
    with open("/dev/full", "wb") as full:
        arguments = command("run", *ON_FAKE, "--", "echo", "lost")
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith(b"uvm: error: the output of the command cannot be written, ")
    assert done.stderr.count(b"\n") == 1


def test_a_reader_that_leaves_ends_the_command() -> None:
    with running("run", *ON_FAKE, "--", "yes") as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.wait() != 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_the_commands(number: signal.Signals) -> None:
    with running("run", *ON_FAKE, "--", "cat") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"it runs\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"it runs\n"
        process.send_signal(number)
        assert process.wait() == 255


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of Windows are not joined to a guest's")
def test_a_terminal_is_as_it_was_afterwards() -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with running("run", *ON_FAKE, "--", "stty", "size", stdin=theirs, stdout=theirs) as process:
        assert len(os.read(ours, 100).split()) == 2
        assert process.wait() == 0
    assert termios.tcgetattr(theirs) == before


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform == "win32", reason="terminals of Windows are not joined to a guest's")
async def test_a_terminal_of_the_guest_has_the_size_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import pty
    import termios

    async def wait_for_a_size(process: FakeProcess) -> int:
        size = process.terminal
        assert size is not None
        while not size.height:
            await anyio.lowlevel.checkpoint()
        await process.stdout.send(f"{size.height} {size.width}".encode())
        return 0

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (33, 99))
    monkeypatch.setattr(passthrough, "_STDIN", theirs)
    monkeypatch.setattr(passthrough, "_STDOUT", theirs)
    async with FakeBackend() as backend, UtilityVM.create(LCOWOptions(), backend=backend) as vm:
        backend.programs["wait"] = wait_for_a_size
        await vm.start()
        process = await vm.open_process(["wait"], stdin=True, terminal=True, stderr=False)
        assert await passthrough.pass_through(process, terminal=True) == 0
    assert os.read(ours, 100).split() == [b"33", b"99"]


def test_nothing_runs_on_a_fresh_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", *ON_FAKE]) == 0
    assert capsys.readouterr().out == "no VM runs\n"
    assert main(["ps", "--json", *ON_FAKE]) == 0
    assert capsys.readouterr().out == "[]\n"


LINUX, WINDOWS = HostInfo(paths="posix"), HostInfo(paths="windows")


@pytest.mark.parametrize(
    ("text", "host", "attachment", "place"),
    [
        ("/srv/data.qcow2", LINUX, Attachment("/srv/data.qcow2"), "/mnt/data"),
        ("/srv/data:ro", LINUX, Attachment("/srv/data", read_only=True), "/mnt/data"),
        ("/srv/a:/b:rw", LINUX, Attachment("/srv/a", "/b"), "/b"),
        ("/srv/a:b", LINUX, Attachment("/srv/a:b"), "/mnt/a:b"),
        (r"C:\disks\a.vhdx", WINDOWS, Attachment(r"C:\disks\a.vhdx"), "/mnt/a"),
        (r"C:\disks\a.vhdx:/a:ro", WINDOWS, Attachment(r"C:\disks\a.vhdx", "/a", read_only=True), "/a"),
    ],
)
def test_what_is_attached_names_its_place(
    text: str, host: HostInfo, attachment: Attachment, place: str
) -> None:
    assert Attachment.parse(text) == attachment
    assert attachment.place(host) == place


@pytest.mark.parametrize("text", ["", ":ro", ":/mnt", ":/mnt:ro"])
def test_what_is_attached_has_a_path(text: str) -> None:
    with pytest.raises(ValueError, match="names no path"):
        Attachment.parse(text)
