"""Starting a process that does not outlive this one, and its end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from uvm.backends.qemu.launch import STDERR_BYTES, Launcher
from uvm.errors import NotSupportedError

pytestmark = pytest.mark.anyio

#: Starts a process, from a thread that goes on while its own event loop has ended, and waits to be killed.
STARTS = """
import anyio, sys
from uvm.backends.qemu.launch import Launcher
launcher = Launcher()
async def main():
    child = await launcher.start(["sleep", "3600"], (), survives=sys.argv[1] == "survives")
    print(child.pid, flush=True)
anyio.run(main, backend=sys.argv[2])
sys.stdin.read()
"""


#: Starts a process, and waits to be killed before that is noted.
NOTES = """
import anyio, sys
from uvm.backends.qemu.launch import Launcher
def note(pid):
    print(pid, flush=True)
    sys.stdin.read()
anyio.run(lambda: Launcher().start(["touch", sys.argv[1]], (), survives=sys.argv[2] == "survives", note=note))
"""


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    made = Launcher()
    yield made
    made.close()


async def test_its_exit_code_and_the_end_of_its_error_output_are_kept(launcher: Launcher) -> None:
    script = f"head -c {4 * STDERR_BYTES} /dev/zero | tr '\\0' x >&2; echo ' no room' >&2; exit 3"
    child = await launcher.start(["sh", "-c", script], ())
    assert await child.wait() == 3
    assert child.exit_code == 3
    assert len(child.last_words) <= STDERR_BYTES
    assert child.last_words.endswith("x no room")


async def test_a_process_that_closed_its_error_output_is_waited_for(launcher: Launcher) -> None:
    child = await launcher.start(["sh", "-c", "exec 2>&-; sleep 0.05; exit 4"], ())
    assert await child.wait() == 4


async def test_it_is_killed_once_and_for_all(launcher: Launcher) -> None:
    child = await launcher.start(["sleep", "3600"], ())
    child.kill()
    assert await child.wait() == -signal.SIGKILL
    child.kill()


async def test_its_program_runs_once_it_is_noted_and_not_if_that_fails(
    launcher: Launcher, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    noted: list[int] = []

    def note(pid: int) -> None:
        assert not ran.exists()
        noted.append(pid)

    def fail(pid: int) -> None:
        noted.append(pid)
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        await launcher.start(["touch", str(ran)], (), note=fail)
    assert str(noted.pop()) not in os.listdir("/proc")
    child = await launcher.start(["touch", str(ran)], (), note=note)
    assert await child.wait() == 0
    assert (noted, ran.exists()) == ([child.pid], True)


@pytest.mark.parametrize("survives", ["", "survives"])
def test_a_process_that_is_killed_before_it_has_noted_what_it_starts_leaves_nothing(
    tmp_path: Path, survives: str
) -> None:
    ran = tmp_path / "ran"
    command = [sys.executable, "-c", NOTES, str(ran), survives]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        started = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
        process.communicate()
    # It can be read once the process has ended.
    select.select([started], [], [])
    os.close(started)
    assert not ran.exists()


async def test_it_has_little_of_the_environment(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVM_TEST_SECRET", "do-not-pass-on")
    child = await launcher.start(["sh", "-c", "env >&2"], ())
    assert await child.wait() == 0
    assert "PATH=" in child.last_words
    assert "do-not-pass-on" not in child.last_words


async def test_it_inherits_the_descriptors_it_is_given_and_no_other(launcher: Launcher) -> None:
    read, write = os.pipe()
    other, other_write = os.pipe()
    os.set_inheritable(other_write, True)
    program = f"import os; os.write({write}, ' '.join(os.listdir('/proc/self/fd')).encode())"
    child = await launcher.start([sys.executable, "-c", program], (write,))
    os.close(write)
    await child.wait()
    seen = {int(each) for each in os.read(read, 65536).split()}
    assert write in seen
    assert other_write not in seen
    for fd in (read, other, other_write):
        os.close(fd)


async def test_a_machine_without_setpriv_is_said_to_lack_it(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        NotSupportedError, match=r"setpriv was not found; nothing was started; install it: .*util-linux"
    ):
        await launcher.start(["true"], ())


@pytest.mark.parametrize("survives", [False, True], ids=["bound", "survives"])
async def test_a_program_that_is_not_there_ends_at_once_with_the_reason(
    launcher: Launcher, survives: bool
) -> None:
    child = await launcher.start(["qemu-nonesuch"], (), survives=survives)
    assert await child.wait() != 0
    assert "qemu-nonesuch" in child.last_words


@pytest.mark.parametrize("survives", [False, True], ids=["bound", "survives"])
def test_it_outlives_this_process_only_if_it_is_asked_to(anyio_backend_name: str, survives: bool) -> None:
    command = [sys.executable, "-c", STARTS, "survives" if survives else "", anyio_backend_name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        pidfd = os.pidfd_open(child)
        process.kill()
        process.wait()
    if survives:
        # It can be killed: it lives.
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], 30)[0]
    os.close(pidfd)
