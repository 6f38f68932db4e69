"""What may hang runs in a child that is killed at its deadline."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from uvm.agent.killable import killable


def test_a_call_runs_in_another_process(tmp_path: Path) -> None:
    killable(lambda: (tmp_path / "pid").write_text(str(os.getpid())))
    assert int((tmp_path / "pid").read_text()) != os.getpid()


def test_the_error_of_a_call_is_that_of_its_number() -> None:
    with pytest.raises(FileNotFoundError):
        killable(lambda: os.unlink("/nowhere/at/all"))


def test_a_call_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)

    def hang() -> None:
        os.spawnv(os.P_NOWAIT, "/bin/sleep", ["sleep", "1000"])
        time.sleep(1000)

    with pytest.raises(TimeoutError):
        killable(hang, 0.5)
    os.close(writer)
    # At its end, no process has the pipe any more.
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_child_that_another_process_kills_is_an_error() -> None:
    with pytest.raises(InterruptedError):
        killable(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_no_file_and_no_child_stays_open() -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        killable(lambda: None)
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_another_error_of_a_call_is_no_success() -> None:
    def fail() -> None:
        raise ValueError

    with pytest.raises(OSError, match="Bad address") as caught:
        killable(fail)
    assert caught.value.errno == errno.EFAULT
