"""The user as which QEMU runs: chosen without root's rights, and used with them where the tests have them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from uvm.backends.qemu import users
from uvm.backends.qemu.launch import Launcher
from uvm.backends.qemu.users import (
    FIRST_USER,
    USERS,
    Chosen,
    Identity,
    check_access,
    chooser,
    kvm_problem,
)
from uvm.errors import HostError, NotSupportedError, OptionsError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a process as another user")


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    # Whatever this process may.
    monkeypatch.setattr(users, "_lacking", str)


@pytest.fixture
def as_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a machine in which users are locked: it has three, and nothing runs as one."""
    monkeypatch.setattr(users, "_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(users, "USERS", 3)
    monkeypatch.setattr(users, "_user_of", lambda pid: -1)
    monkeypatch.setattr(users, "_PROC", str(tmp_path))
    return tmp_path / "locks"


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has this process be in a user namespace."""
    monkeypatch.setattr(users, "_PROC", str(tmp_path / "proc"))
    (tmp_path / "proc").mkdir()

    def make(uids: str, gids: str, setgroups: str = "allow") -> None:
        for name, text in (("uid_map", uids), ("gid_map", gids), ("setgroups", setgroups)):
            (tmp_path / "proc" / name).write_text(f"{text}\n")

    return make


def chosen(name: str, fallback: Path = Path("/nonesuch")) -> Identity | None:
    """The user of a VM that needs none any more."""
    found = chooser(name, str(fallback))()
    found.close()
    return found.identity


def number(found: Chosen) -> int:
    assert found.identity is not None
    assert found.identity.uid == found.identity.gid
    return found.identity.uid


@pytest.mark.usefixtures("as_root", "locks")
def test_each_qemu_of_roots_has_a_user_of_its_own_whatever_its_process_and_until_it_has_ended() -> None:
    # Of processes with runtime directories of their own.
    one, other = chooser("", "/nonesuch/1"), chooser("", "/nonesuch/2")
    taken = [one(), other(), one()]
    assert sorted(map(number, taken)) == [FIRST_USER, FIRST_USER + 1, FIRST_USER + 2]
    with pytest.raises(HostError, match="all 3 are in use; nothing was started"):
        other()
    # QEMU has the lock too, for as long as it runs.
    of_qemu = os.dup(taken[0].lock)
    taken[0].close()
    with pytest.raises(HostError, match="all 3 are in use"):
        other()
    os.close(of_qemu)
    again = other()
    assert number(again) == number(taken[0])
    for each in (again, *taken):
        each.close()


def test_root_that_may_not_change_its_user_runs_qemu_as_itself_which_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(users, "_PROC", str(tmp_path))
    # As in a container that has been left nothing but CAP_SETUID.
    (tmp_path / "status").write_text("CapPrm:\tffffffffffffffff\nCapEff:\t0000000000000080\n")
    assert chosen("") is None
    [said] = [each.message for each in caplog.records]
    assert "has not the capabilities CAP_SETGID, CAP_SETPCAP" in said
    with pytest.raises(
        NotSupportedError, match=r"CAP_SETGID, CAP_SETPCAP; nothing was started; .*user='root'"
    ):
        chooser("60600", "")


@pytest.mark.usefixtures("as_root")
def test_a_user_of_a_process_that_runs_is_not_chosen(locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "_user_of", lambda pid: FIRST_USER)
    monkeypatch.setattr(users, "USERS", 2)
    assert chosen("") == Identity(FIRST_USER + 1, FIRST_USER + 1)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("broken", ["file", "open", "a link", "read-only"])
def test_without_a_directory_of_the_machine_users_are_locked_in_that_of_the_backend_which_is_said(
    locks: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    if broken == "file":
        locks.touch()
    elif broken == "open":
        locks.mkdir()
        locks.chmod(0o777)
    elif broken == "read-only":
        locks.mkdir(0o700)
        _mount_read_only(locks, monkeypatch)
    else:
        (tmp_path / "elsewhere").mkdir()
        locks.symlink_to(tmp_path / "elsewhere")
    choose = chooser("", str(tmp_path / "fallback"))
    taken = [choose(), choose()]
    assert number(taken[0]) != number(taken[1])
    [said] = [each.message for each in caplog.records]
    assert f"cannot be locked in {locks}: " in said
    assert "another runtime directory may choose the same ones" in said
    for each in taken:
        each.close()


def _mount_read_only(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def open_or_refuse(path: str | Path, flags: int, *more: int, **how: int) -> int:
        if Path(path).is_relative_to(directory) and flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *more, **how)

    monkeypatch.setattr(os, "open", open_or_refuse)


@pytest.mark.usefixtures("as_root")
def test_a_user_that_is_named_is_that_of_all_and_root_may_be_asked_for() -> None:
    nobody = chosen("nobody")
    assert nobody is not None
    assert (nobody.uid, chosen(str(nobody.uid))) == (65534, nobody)
    assert chosen("70123") == Identity(70123, 70123, nobody.groups)
    assert chosen("root") is None
    assert chosen("0") is None


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    ("uids", "gids", "setgroups"),
    [
        ("0 1000 1", "0 1000 1", "deny"),
        ("0 1000 1\n1 100000 60599", "0 1000 1\n1 100000 65536", "allow"),
        ("0 0 4294967295", "0 1000 1", "allow"),
    ],
    ids=["one", "too few", "no groups"],
)
def test_root_of_a_namespace_without_users_runs_qemu_as_itself_without_privileges_and_says_so(
    namespace: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    uids: str,
    gids: str,
    setgroups: str,
) -> None:
    namespace(uids, gids, setgroups)
    itself = chosen("")
    assert itself == Identity(0, 0)
    assert {*itself.options} == {"--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"}
    assert "the rights of your user outside" in caplog.text
    with pytest.raises(NotSupportedError, match=r"has no user 70123 .*nothing was started; map that user"):
        chooser("70123", "/nonesuch")
    assert chosen("root") is None


@pytest.mark.usefixtures("as_root", "locks")
def test_root_of_a_namespace_with_users_has_them(namespace: Callable[..., None]) -> None:
    namespace("0 1000 1\n1 100000 65536", "0 1000 1\n1 100000 65536")
    identity = chosen("")
    assert identity is not None
    assert identity.uid >= FIRST_USER


@pytest.mark.usefixtures("as_another")
def test_another_process_than_roots_keeps_its_user() -> None:
    assert chosen("") is None
    assert chosen("4711") is None
    with pytest.raises(NotSupportedError, match=r"only a process of root's.* 4711; nothing was started"):
        chosen("root")


@pytest.mark.parametrize("name", ["uvm-nonesuch", "99999999999", "4294967295"])
def test_a_user_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(OptionsError, match=f"there is no '{name}'"):
        chooser(name, "/nonesuch")


def test_its_program_has_no_privilege_and_no_group_but_its_own_and_that_of_kvm() -> None:
    assert Identity(1, 2).options[:3] == ("--reuid=1", "--regid=2", "--clear-groups")
    assert "--groups=36" in Identity(1, 2, (36,)).options
    assert {"--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"} <= {*Identity(1, 2).options}


@pytest.mark.parametrize(
    ("mode", "group", "groups", "may"),
    [(0o666, 0, (), True), (0o660, 36, (36,), True), (0o660, 0, (), False), (0o600, 36, (), False)],
)
@pytest.mark.usefixtures("as_root")
def test_kvm_is_used_by_its_group_or_by_all_and_not_by_root(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: int,
    group: int,
    groups: tuple[int, ...],
    may: bool,
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    found = os.stat_result((mode, 0, 0, 1, 0, group, 0, 0, 0, 0))
    monkeypatch.setattr(users, "_KVM", str(device))
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **how: found if path == str(device) else stat(path, **how))
    identity = chosen("nobody")
    assert identity is not None
    assert identity.groups == groups
    assert (kvm_problem(lambda: Chosen(identity)) == "") is may
    assert kvm_problem(Chosen) == ""


@needs_root
@pytest.mark.anyio
async def test_a_program_is_started_as_its_user_without_any_privilege() -> None:
    launcher = Launcher()
    user = Identity(FIRST_USER + USERS, FIRST_USER + USERS)
    for survives in (False, True):
        shows = ["sh", "-c", "cat /proc/self/status >&2"]
        child = await launcher.start(shows, (), user=user, survives=survives)
        assert await child.wait() == 0
        status = dict(line.split(":", 1) for line in child.last_words.splitlines())
        assert {*status["Uid"].split(), *status["Gid"].split()} == {str(user.uid)}
        assert (status["Groups"].strip(), status["NoNewPrivs"].strip()) == ("", "1")
        assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    launcher.close()


#: Starts a program as the user that is chosen, as which it says what it may.
SHOWS = """
import anyio
from uvm.backends.qemu.launch import Launcher
from uvm.backends.qemu.users import chooser
async def main():
    launcher = Launcher()
    user = chooser("", "/nonesuch")().identity
    child = await launcher.start(["sh", "-c", "cat /proc/self/status >&2"], (), user=user)
    assert await child.wait() == 0
    print(user.uid, child.last_words)
    launcher.close()
anyio.run(main)
"""


def test_a_program_of_root_of_a_namespace_is_started_without_any_privilege() -> None:
    unshare = ("unshare", "--user", "--map-root-user")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine has no user namespaces for this user")
    done = subprocess.run([*unshare, sys.executable, "-c", SHOWS], capture_output=True, text=True, check=True)
    number, _, text = done.stdout.partition(" ")
    status = dict(line.split(":", 1) for line in text.splitlines())
    assert (number, {*status["Uid"].split()}) == ("0", {"0"})
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert "without its capabilities" in done.stderr


@needs_root
@pytest.mark.parametrize(
    ("mode", "writable", "may"),
    [(0o700, False, False), (0o755, False, True), (0o755, True, False), (0o777, True, True)],
)
def test_a_directory_is_shared_that_its_user_may_use_whatever_is_above(
    tmp_path: Path, mode: int, writable: bool, may: bool
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    fd = os.open(shared, os.O_PATH)
    user = Identity(FIRST_USER, FIRST_USER)
    try:
        check_access(None, fd, "shared", "test", writable=writable)
        if may:
            check_access(user, fd, "shared", "test", writable=writable)
        else:
            with pytest.raises(HostError, match=r"E_ACCESSDENIED.*user 60600.*nothing was shared"):
                check_access(user, fd, "shared", "test", writable=writable)
    finally:
        os.close(fd)
