"""``uvm pod -i`` and ``-t``: a container's command with the streams of this process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.support import LCOW, ROOT, WCOW
from tests.cli.test_pod import WITHOUT_MODEL, fast
from uvm.cli import main, podjoin
from uvm.errors import HostError, UndoFailedError
from uvm.hresult import HResult

PodFile = Callable[[str], Path]


def uvm(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "uvm", "pod", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=ROOT, check=False)


def running(pod_file: PodFile, command: str, file: Path = LCOW) -> Path:
    """Write a pod file whose first container runs a command."""
    return pod_file(re.sub(r"^command = .*$", f"command = {command}", fast(file), flags=re.MULTILINE))


@pytest.mark.parametrize("file", [LCOW, WCOW], ids=["linux", "windows"])
def test_the_streams_are_those_of_the_command(pod_file: PodFile, file: Path) -> None:
    done = uvm("-i", running(pod_file, '["cat"]', file), stdin=b"hello\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")


def test_the_exit_status_is_the_commands(pod_file: PodFile) -> None:
    assert main(["pod", "-i", str(running(pod_file, '["false"]'))]) == 1


def test_a_container_without_a_command_has_a_shell(
    pod_file: PodFile, capfd: pytest.CaptureFixture[str]
) -> None:
    # The guest in memory has none, and says so of it.
    assert main(["pod", "--container", "metrics", str(pod_file(fast(LCOW)))]) == 127
    assert '"sh": executable file not found' in capfd.readouterr().err


def test_a_pod_that_cannot_be_brought_up_fails_as_the_vm_of_a_command(
    pod_file: PodFile, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["pod", "-i", str(pod_file(WITHOUT_MODEL))]) == 125
    assert capfd.readouterr() == ("", "uvm: C:\\layers\\model.vhd: no such file on the host\n")


def test_a_failure_of_several_parts_is_said_whole(
    pod_file: PodFile, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_: object) -> int:
        raise UndoFailedError.of(HostError("add", HResult.E_FAIL), HostError("remove", HResult.E_FAIL))

    monkeypatch.setattr(podjoin, "_join", fail)
    assert main(["pod", "-i", str(pod_file(fast(LCOW)))]) == 125
    assert "add: E_FAIL (0x80004005); and undoing it failed: remove: E_FAIL" in capfd.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_output_that_cannot_be_written_is_a_failure(pod_file: PodFile) -> None:
    arguments = [sys.executable, "-m", "uvm", "pod", "-i", str(running(pod_file, '["echo", "lost"]'))]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith(b"uvm: the output of the command cannot be written, ")


def test_a_container_that_is_not_there_is_said_with_those_that_are(run: Run, pod_file: PodFile) -> None:
    ran = run("pod", "--container", "web", pod_file(fast(LCOW)))
    assert ran.status == 2
    assert ran.error.endswith("there is no container web; there are api, metrics\n")


def test_a_pod_without_containers_has_none_to_join(run: Run, pod_file: PodFile) -> None:
    ran = run("pod", "-it", pod_file('vm = {os = "linux"}'))
    assert ran.status == 2
    assert ran.error.endswith("there is no container to join\n")


@pytest.mark.parametrize("flag", ["-i", "-t", "--container=api"])
def test_json_is_not_for_a_container_at_this_terminal(run: Run, flag: str) -> None:
    ran = run("pod", "--json", flag, LCOW)
    assert (ran.status, ran.output) == (2, "")
    assert ran.error.startswith("uvm: error: pod: --json is not for a container at this terminal")


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of Windows are not joined to a guest's")
def test_a_terminal_is_the_commands_and_as_it_was_afterwards(pod_file: PodFile) -> None:
    import pty
    import termios

    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "uvm", "pod", "-it", str(running(pod_file, '["stty", "size"]'))]
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs) as process:
        assert len(os.read(ours, 100).split()) == 2
        assert process.wait() == 0
    assert termios.tcgetattr(theirs) == before
