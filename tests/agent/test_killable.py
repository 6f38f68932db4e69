"""What may hang runs in a helper that is killed at its deadline."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.descriptors import descriptors
from uvm.agent.killable import Killable


def note(path: str) -> None:
    """Write who runs this, and which files it has."""
    Path(path).write_text(f"{os.getpid()} {len(os.listdir('/proc/self/fd'))}")


def fail() -> None:
    """Fail by a bug."""
    raise ValueError


def hang(started: str) -> None:
    """Start a process, and hang."""
    child = os.spawnv(os.P_NOWAIT, "/bin/sleep", ["sleep", "1000"])
    Path(started).write_text(str(child))
    time.sleep(1000)


def end() -> None:
    """End as one that was killed by another process."""
    os.kill(os.getpid(), signal.SIGKILL)


FUNCTIONS: dict[str, Callable[..., object]] = {
    "note": note,
    "unlink": os.unlink,
    "fail": fail,
    "hang": hang,
    "end": end,
}


@pytest.fixture
def killable() -> Iterator[Killable]:
    killable = Killable(FUNCTIONS)
    yield killable
    killable.close()


def ran_by(killable: Killable, path: Path) -> int:
    """Return the process that a function runs in."""
    killable("note", str(path))
    return int(path.read_text().split()[0])


def test_calls_run_in_one_other_process_without_files(killable: Killable, tmp_path: Path) -> None:
    pid = ran_by(killable, tmp_path / "one")
    assert pid != os.getpid()
    # Its standard streams, its socket, and the directory that is being listed.
    assert (tmp_path / "one").read_text().split()[1] == "5"
    assert ran_by(killable, tmp_path / "two") == pid


def test_names_may_be_any_that_a_path_has(killable: Killable, tmp_path: Path) -> None:
    path = f"{tmp_path}/\udcff ä\n"
    Path(path).touch()
    killable("unlink", path)
    assert not os.path.exists(path)


def test_the_error_of_a_call_is_that_of_its_number(killable: Killable, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        killable("unlink", "/nowhere/at/all")
    with pytest.raises(OSError, match="Bad address") as caught:
        killable("fail")
    assert caught.value.errno == errno.EFAULT


def test_a_call_that_hangs_is_killed_with_what_it_started(killable: Killable, tmp_path: Path) -> None:
    before = ran_by(killable, tmp_path / "before")
    with pytest.raises(TimeoutError):
        killable("hang", str(tmp_path / "started"), seconds=1)
    started = int((tmp_path / "started").read_text())
    # An orphan that was killed may be there until it is reaped, as a zombie.
    state = Path(f"/proc/{started}/stat")
    while state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
        os.sched_yield()
    assert ran_by(killable, tmp_path / "after") != before


def test_a_helper_that_another_process_kills_is_replaced(killable: Killable, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        killable("end")
    pid = ran_by(killable, tmp_path / "one")
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ran_by(killable, tmp_path / "two") != pid


def test_a_helper_that_is_killed_and_reaped_as_it_starts_is_replaced(
    killable: Killable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_process = os.pidfd_open

    def open_late(pid: int) -> int:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return open_process(pid)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", open_late)
        with pytest.raises(InterruptedError):
            killable("note", str(tmp_path / "one"))
    assert ran_by(killable, tmp_path / "two")


def test_calls_at_the_same_time_do_not_wait_for_each_other(killable: Killable, tmp_path: Path) -> None:
    started = tmp_path / "started"
    ended: list[str] = []

    def hanging() -> None:
        with pytest.raises(TimeoutError):
            killable("hang", str(started), seconds=3)
        ended.append("hanging")

    thread = threading.Thread(target=hanging)
    thread.start()
    while not started.exists():
        os.sched_yield()
    killable("note", str(tmp_path / "other"))
    ended.append("other")
    thread.join()
    assert ended == ["other", "hanging"]


def test_nothing_stays_open_or_behind(tmp_path: Path) -> None:
    before = descriptors()
    killable = Killable(FUNCTIONS)
    pid = ran_by(killable, tmp_path / "one")
    killable.close()
    assert descriptors() <= before
    assert not os.path.exists(f"/proc/{pid}")


def test_helpers_end_with_the_agent(tmp_path: Path) -> None:
    program = (
        "import os; from tests.agent.test_killable import FUNCTIONS; from uvm.agent.killable import Killable;"
        f"Killable(FUNCTIONS)('note', {str(tmp_path / 'pid')!r}); os.kill(os.getpid(), 9)"
    )
    # The pipe of its standard output ends with the last process that has it.
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
