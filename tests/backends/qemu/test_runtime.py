"""The directories in which VMs are found, and what is left of those that have ended."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.descriptors import descriptors
from uvm.backends.qemu import runtime as module
from uvm.backends.qemu.runtime import ProcessName, Record, RuntimeDirectory, default_runtime_directory
from uvm.backends.qemu.users import Chosen, Identity
from uvm.errors import HostError, HostPathError
from uvm.schema.json import SchemaError

#: Claims a directory, has a child that holds the lock, and waits to be killed.
CLAIMS = """
import fcntl, os, subprocess, sys
from uvm.backends.qemu.runtime import *
me = ProcessName.of(os.getpid())
made = RuntimeDirectory(sys.argv[1]).claim(Record(sys.argv[2], "guid", "owner", "Created", me))
child = subprocess.Popen(["sleep", "3600"], pass_fds=[made.lock], stdout=subprocess.DEVNULL)
if "unlocks" in sys.argv:
    # As QEMU could: it has the same lock.
    fcntl.flock(made.lock, fcntl.LOCK_UN)
made.note(qemu=ProcessName.of(child.pid), state="Running", survives="survives" in sys.argv)
print(child.pid, flush=True)
sys.stdin.read()
"""

#: Ends its first thread, and says so; the other one runs on.
ENDS_ITS_FIRST_THREAD = """
import ctypes, platform, sys, threading
from pathlib import Path
def go_on():
    while Path("/proc/self/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass
    print("ended", flush=True)
    sys.stdin.read()
threading.Thread(target=go_on).start()
ctypes.CDLL(None).syscall(60 if platform.machine() == "x86_64" else 93, 0)
"""

#: Has a VM, whose user is locked by a file, and forks another process before it ends.
FORKS = """
import fcntl, os, sys
from uvm.backends.qemu.runtime import *
from uvm.backends.qemu.users import Chosen, Identity
user = os.open(sys.argv[2], os.O_RDONLY)
fcntl.flock(user, fcntl.LOCK_EX)
me = ProcessName.of(os.getpid())
record = Record("vm2", "guid", "owner", "Created", me)
made = RuntimeDirectory(sys.argv[1]).claim(record, lambda: Chosen(Identity(60601, 60601), user))
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def runtime(tmp_path: Path) -> RuntimeDirectory:
    return RuntimeDirectory(tmp_path / "uvm")


@pytest.fixture
def killed() -> Iterator[list[int]]:
    """Processes to kill at the end, if they are left."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def me() -> ProcessName:
    found = ProcessName.of(os.getpid())
    assert found is not None
    return found


def record(system_id: str = "vm1") -> Record:
    return Record(system_id, "guid", "an owner", "Created", me())


def other_process(runtime: RuntimeDirectory, system_id: str, *how: str) -> tuple[subprocess.Popen[str], int]:
    """A process that has a VM, and the process of its QEMU."""
    command = [sys.executable, "-c", CLAIMS, str(runtime.path), system_id, *how]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def kill(pid: int) -> None:
    """Kill a process, and wait until it has ended."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([pidfd], [], [])
    os.close(pidfd)


def test_a_process_has_ended_though_its_id_is_a_threads_by_now() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert ProcessName(thread.native_id, started=1).open() is None
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("uid", "may", "state", "directory"),
    [
        (0, True, "/state", "/run/uvm"),
        (0, False, "/state", "/state/uvm/vms"),
        (1000, True, "/state", "/state/uvm/vms"),
        (1000, False, "relative", "/home/user/.local/state/uvm/vms"),
    ],
    ids=["root", "root of a user namespace", "another user", "without a state directory"],
)
def test_each_user_has_a_directory_where_it_may_write(
    monkeypatch: pytest.MonkeyPatch, uid: int, may: bool, state: str, directory: str
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)
    monkeypatch.setattr(os, "access", lambda path, mode: may)
    monkeypatch.setenv("XDG_STATE_HOME", state)
    monkeypatch.setenv("HOME", "/home/user")
    assert default_runtime_directory() == directory


def test_a_directory_belongs_to_this_user_alone(runtime: RuntimeDirectory) -> None:
    made = runtime.claim(record())
    for path in (runtime.path, made.path):
        assert path.stat().st_mode & 0o777 == 0o700
    made.remove()
    assert not made.path.exists()


def test_an_id_may_hold_anything_and_be_long(runtime: RuntimeDirectory) -> None:
    made = [runtime.claim(record(each)) for each in ("../../etc", "a/b", "x" * 5000, "\udcff")]
    assert {each.path.parent for each in made} == {runtime.path}
    for each in made:
        each.remove()


def test_an_id_that_lives_is_taken_and_free_again_once_it_is_removed(runtime: RuntimeDirectory) -> None:
    made = runtime.claim(record())
    with pytest.raises(HostError, match="HCS_E_SYSTEM_ALREADY_EXISTS"):
        runtime.claim(record())
    made.remove()
    runtime.claim(record()).remove()


def test_sweeping_leaves_what_lives(runtime: RuntimeDirectory) -> None:
    made = runtime.claim(record())
    runtime.sweep()
    assert made.path.exists()
    made.remove()


def test_sweeping_leaves_what_is_no_vms(runtime: RuntimeDirectory) -> None:
    """A runtime directory may be any of the user's, with all that it holds."""
    for name in ("precious", "0" * 31, "0" * 33, "G" * 32):
        (runtime.path / name).mkdir()
        (runtime.path / name / "file").write_text("kept")
    runtime.sweep()
    assert [each.read_text() for each in runtime.path.glob("*/file")] == ["kept"] * 4


def test_links_in_a_directory_that_is_removed_are_not_followed(
    runtime: RuntimeDirectory, tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").touch()
    made = runtime.claim(record())
    (made.path / "share0").symlink_to(tmp_path / "shared")
    made.remove()
    assert (tmp_path / "shared" / "file").exists()


def test_another_process_finds_a_vm_by_its_record(runtime: RuntimeDirectory, killed: list[int]) -> None:
    process, qemu = other_process(runtime, "vm2")
    killed.append(qemu)
    [found] = runtime.records()
    assert (found.id, found.state, found.owner) == ("vm2", "Running", "owner")
    assert runtime.record("vm2") == found
    assert found.qemu is not None
    assert found.qemu.pid == qemu
    end(process)


def test_what_a_killed_process_left_is_swept_and_its_qemu_killed(
    runtime: RuntimeDirectory, killed: list[int]
) -> None:
    process, qemu = other_process(runtime, "vm2")
    killed.append(qemu)
    end(process)
    runtime.sweep()
    assert ProcessName.of(qemu) is None
    assert [*runtime.records()] == []
    assert [each.name for each in runtime.path.iterdir()] == ["lock"]


def test_a_vm_that_survives_its_process_is_left_until_it_ends(
    runtime: RuntimeDirectory, killed: list[int]
) -> None:
    process, qemu = other_process(runtime, "vm2", "survives")
    killed.append(qemu)
    end(process)
    runtime.sweep()
    assert runtime.record("vm2") is not None
    with pytest.raises(HostError, match="HCS_E_SYSTEM_ALREADY_EXISTS"):
        runtime.claim(record("vm2"))
    kill(qemu)
    runtime.claim(record("vm2")).remove()


def test_a_qemu_that_gives_up_its_lock_is_not_swept_while_it_runs(runtime: RuntimeDirectory) -> None:
    process, qemu = other_process(runtime, "vm2", "survives", "unlocks")
    # With the process that has it, and without.
    for _ in range(2):
        runtime.sweep()
        found = runtime.record("vm2")
        assert found is not None
        end(process)
    kill(qemu)
    runtime.claim(record("vm2")).remove()


def surviving() -> dict[str, Any]:
    """The record of a VM that runs."""
    given: dict[str, Any] = json.loads(evolve(record(), qemu=me(), survives=True).written())
    return given


def is_no_vm(runtime: RuntimeDirectory, left: bytes) -> None:
    directory = runtime.path / ("b" * 32)
    directory.mkdir()
    (directory / "vm.json").write_bytes(left)
    assert [*runtime.records()] == []
    runtime.sweep()
    assert not directory.exists()


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b"{}", b"null", b"1", b'"host"', b"\xff" * 99], ids=repr)
def test_what_is_no_record_is_no_vm(runtime: RuntimeDirectory, left: bytes) -> None:
    is_no_vm(runtime, left)


PROCESS = {"pid": 1, "started": 1, "boot": "b", "namespace": 1}
#: QEMU is killed, whose VM was not created when its host process ended.
DEAD = {"host": PROCESS, "survives": False}


@pytest.mark.parametrize(
    "damage",
    [
        *({field: 1} for field in ("id", "runtime_id", "owner", "state", "host", "qemu", "cgroup")),
        *({field: None} for field in ("id", "state", "host", "survives", "cgroup")),
        {"survives": 1},
        *({**DEAD, "qemu": {**PROCESS, "pid": pid}} for pid in (None, "1", 0, -1, 1 << 31, 1 << 80)),
        *({"host": {**PROCESS, field: []}} for field in ("started", "boot", "namespace")),
        *({"host": {"pid": 1}}, {"host": [1, 1]}, {"qemu": {}}, {"user": {}}, {"user": 1}),
        *({"user": {"uid": uid, "gid": 1, "groups": groups}} for uid, groups in ((None, []), (1, ["a"]))),
    ],
    ids=repr,
)
def test_a_record_with_a_field_of_another_kind_is_no_vms(
    runtime: RuntimeDirectory, damage: dict[str, Any]
) -> None:
    is_no_vm(runtime, json.dumps(surviving() | damage).encode())


@pytest.mark.parametrize("field", ["id", "runtime_id", "owner", "state", "host"])
def test_a_record_without_a_field_that_each_has_is_no_vms(runtime: RuntimeDirectory, field: str) -> None:
    given = surviving()
    del given[field]
    is_no_vm(runtime, json.dumps(given).encode())


def test_a_record_is_read_as_it_was_written() -> None:
    given = Record("vm1", "guid", "an owner", "Paused", me(), ProcessName(7, 8), survives=True)
    assert Record.read(given.written()) == given
    dropped = evolve(given, user=Identity(60600, 60600))
    assert Record.read(dropped.written()) == dropped
    with pytest.raises(SchemaError):
        Record.read("{}")


def test_of_a_record_of_another_version_is_read_what_is_known_here() -> None:
    later = json.loads(record().written())
    for each in (later, later["host"]):
        each["color"] = "blue"
    assert Record.read(json.dumps(later)) == record()
    for added in ("survives", "user", "cgroup"):
        del later[added]
    assert Record.read(json.dumps(later)) == record()


def test_the_user_of_a_vm_is_noted_and_its_lock_is_inherited_and_released(
    runtime: RuntimeDirectory, tmp_path: Path
) -> None:
    user = Chosen(Identity(60601, 60601), os.open(tmp_path, os.O_RDONLY))
    made = runtime.claim(record(), lambda: user)
    assert (made.record.user, made.locks) == (user.identity, (made.lock, user.lock))
    made.remove()
    assert user.lock == -1
    without = runtime.claim(record())
    assert (without.record.user, without.locks) == (None, (without.lock,))
    without.remove()


def test_a_directory_that_cannot_be_made_leaves_its_user_to_others(
    runtime: RuntimeDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = Chosen(Identity(60601, 60601), os.open(tmp_path, os.O_RDONLY))
    monkeypatch.setattr(Path, "mkdir", lambda *of, **how: os.open("/nonesuch", os.O_RDONLY))
    with pytest.raises(HostPathError, match=r"create vm1: .*nothing of it is left"):
        runtime.claim(record(), lambda: user)
    assert user.lock == -1


def test_of_a_directory_that_cannot_be_completed_nothing_is_left(
    runtime: RuntimeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(*given: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = descriptors()
    for step in ("chmod", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, step, is_full)
            with pytest.raises(HostPathError, match="No space left"):
                runtime.claim(record())
        assert [each.name for each in runtime.path.iterdir()] == ["lock"]
    assert descriptors() <= before


def test_a_vm_that_has_ended_is_removed_at_once_and_its_files_by_a_later_process_if_need_be(
    runtime: RuntimeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # As if it were killed there.
        patch.setattr(shutil, "rmtree", lambda *given, **how: None)
        runtime.claim(record()).remove()
    again = runtime.claim(record())
    assert len([*runtime.path.iterdir()]) == 3
    runtime.sweep()
    assert {each.name for each in runtime.path.iterdir()} == {"lock", again.path.name}
    again.remove()


@pytest.mark.parametrize("what", ["sweep", "claim", "adopt"])
def test_a_directory_may_be_removed_while_another_process_looks_at_it(
    runtime: RuntimeDirectory, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    made = runtime.claim(record())
    made.note(qemu=me(), survives=True)
    read = module._record_in

    def read_and_remove(path: Path) -> Record | None:
        found = read(path)
        made.remove()
        # What has ended with it, if it is to be swept.
        return found if what == "adopt" else None

    monkeypatch.setattr(module, "_record_in", read_and_remove)
    if what == "adopt":
        assert runtime.adopt("vm1", me()) is None
    elif what == "sweep":
        runtime.sweep()
    else:
        runtime.claim(record()).remove()
    assert [each.name for each in runtime.path.iterdir()] == ["lock"]


def test_a_directory_without_locks_is_of_a_process_that_was_killed_as_it_made_it(
    runtime: RuntimeDirectory,
) -> None:
    made = runtime.claim(record())
    made.remove()
    made.path.mkdir()
    runtime.claim(record()).remove()


def test_what_cannot_be_looked_through_is_named(runtime: RuntimeDirectory) -> None:
    made = runtime.claim(record())
    made.remove()
    # What no VM has left.
    made.path.touch()
    with pytest.raises(HostPathError, match=r"create vm1: .*Not a directory"):
        runtime.claim(record())
    shutil.rmtree(runtime.path)
    with pytest.raises(HostPathError, match=r"the directories of VMs cannot be used: .*No such file"):
        runtime.sweep()


def test_qemu_cannot_write_what_it_inherits_of_a_directory(runtime: RuntimeDirectory) -> None:
    made = runtime.claim(record())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(made.lock, b"a guest fills the disk")
    made.remove()


def test_a_forked_process_has_no_lock_of_its_parent(
    runtime: RuntimeDirectory, tmp_path: Path, killed: list[int]
) -> None:
    (tmp_path / "user").touch()
    command = [sys.executable, "-c", FORKS, str(runtime.path), str(tmp_path / "user")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        killed.append(int(process.stdout.readline()))
        process.wait()
        runtime.sweep()
        assert [each.name for each in runtime.path.iterdir()] == ["lock"]
        with (tmp_path / "user").open() as user:
            fcntl.flock(user, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_who_leaves_a_vm_has_it_no_more_whatever_has_copies_of_its_descriptors(
    runtime: RuntimeDirectory,
) -> None:
    made = runtime.claim(record())
    made.note(qemu=me(), survives=True)
    copies = [os.dup(made.owner), os.dup(made.lock)]
    made.leave()
    adopted = runtime.adopt("vm1", me())
    assert adopted is not None
    adopted.remove()
    for each in copies:
        os.close(each)


def test_a_process_runs_until_its_last_thread_has_ended(killed: list[int]) -> None:
    command = [sys.executable, "-c", ENDS_ITS_FIRST_THREAD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        killed.append(process.pid)
        assert process.stdout.readline() == "ended\n"
        found = ProcessName.of(process.pid)
        assert found is not None
        pidfd = found.open()
        assert pidfd is not None
        os.kill(process.pid, signal.SIGKILL)
        select.select([pidfd], [], [])
        os.close(pidfd)
        # It was not waited for yet.
        assert not found.runs
        assert found.open() is None


def test_a_later_process_with_the_same_id_is_another() -> None:
    assert me().runs
    assert not ProcessName(os.getpid(), me().started + 1).runs
    assert ProcessName(os.getpid(), 0).open() is None
    assert not evolve(me(), boot="another").runs


def test_what_another_container_runs_is_neither_ended_nor_removed(runtime: RuntimeDirectory) -> None:
    other = evolve(me(), namespace=me().namespace + 1)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        named = ProcessName.of(process.pid)
        assert named is not None
        made = runtime.claim(evolve(record(), host=other))
        made.note(qemu=evolve(named, namespace=other.namespace))
        runtime.sweep()
        assert made.path.exists()
        assert [*runtime.records()] == []
        assert runtime.adopt("vm1", me()) is None
        assert process.poll() is None
        process.kill()
    made.remove()


def test_a_directory_that_others_may_change_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(HostPathError, match="no other may change"):
        RuntimeDirectory(tmp_path / "open")
    (tmp_path / "file").touch()
    with pytest.raises(HostPathError, match="no runtime directory"):
        RuntimeDirectory(tmp_path / "file")
