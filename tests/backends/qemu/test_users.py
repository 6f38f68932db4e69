"""The user as which QEMU runs: chosen without root's rights, and used with them where the tests have them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uvm.backends.qemu import users
from uvm.backends.qemu.launch import Launcher
from uvm.backends.qemu.users import FIRST_USER, USERS, Identity, check_access, chooser, kvm_problem
from uvm.errors import HostError, NotSupportedError, OptionsError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a process as another user")


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def as_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)


@pytest.mark.usefixtures("as_root")
def test_each_qemu_of_roots_has_a_user_that_nothing_else_has() -> None:
    choose = chooser("")
    first = choose(())
    assert first is not None
    assert FIRST_USER <= first.uid == first.gid < FIRST_USER + USERS
    second = choose([first.uid])
    assert second is not None
    assert second.uid > first.uid
    with pytest.raises(HostError, match="all 512 are in use; nothing was started"):
        choose(range(FIRST_USER, FIRST_USER + USERS))


@pytest.mark.usefixtures("as_root")
def test_a_user_of_a_process_that_runs_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "_user_of", lambda pid: FIRST_USER)
    chosen = chooser("")(())
    assert chosen is not None
    assert chosen.uid == FIRST_USER + 1


@pytest.mark.usefixtures("as_root")
def test_a_user_that_is_named_is_that_of_all_and_root_may_be_asked_for() -> None:
    nobody = chooser("nobody")(())
    assert nobody is not None
    assert (nobody.uid, chooser(str(nobody.uid))(())) == (65534, nobody)
    assert chooser("70123")(()) == Identity(70123, 70123, nobody.groups)
    assert chooser("root")(()) is None
    assert chooser("0")(()) is None


@pytest.mark.usefixtures("as_another")
def test_another_process_than_roots_keeps_its_user() -> None:
    assert chooser("")(()) is None
    assert chooser("4711")(()) is None
    with pytest.raises(NotSupportedError, match=r"only a process of root's.* 4711; nothing was started"):
        chooser("root")


@pytest.mark.parametrize("name", ["uvm-nonesuch", "99999999999", "4294967295"])
def test_a_user_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(OptionsError, match=f"there is no '{name}'"):
        chooser(name)


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
    choose = chooser("nobody")
    chosen = choose(())
    assert chosen is not None
    assert chosen.groups == groups
    assert (kvm_problem(choose) == "") is may
    assert kvm_problem(lambda used: None) == ""


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
