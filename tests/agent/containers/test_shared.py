"""What the containers of a pod share: opened once, without links, and bound where no container reaches it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from uvm.agent import syscalls
from uvm.agent.containers import shared
from uvm.agent.containers.bundle import SharedMount, workload
from uvm.agent.containers.shared import bound
from uvm.agent.refused import Refused


class Kernel:
    """Records what is mounted, and binds nothing.

    :ivar bound: by the place at which it is bound, the directory or file itself.
    :ivar calls: what was done, in order.
    :ivar meanwhile: what a container does just before something is bound.
    """

    def __init__(self) -> None:
        self.bound: dict[str, os.stat_result] = {}
        self.calls: list[tuple[str, ...]] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def mount(self, source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
        if kind == "hugetlbfs":
            self.calls.append((kind, os.path.realpath(target), data))
        elif source:
            self.meanwhile()
            self.bound[target] = os.stat(source)
            self.calls.append(("bind", target))
        else:
            self.calls.append(("private", target))

    def umount(self, target: str, flags: int = 0) -> None:
        self.calls.append(("unmount", target))


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(syscalls, "mount", made.mount)
    monkeypatch.setattr(syscalls, "umount", made.umount)
    (tmp_path / "private").mkdir()
    monkeypatch.setattr(shared, "_PRIVATE", str(tmp_path / "private"))
    return made


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """The bundle of a pod's sandbox."""
    (tmp_path / "pod" / "sandboxMounts").mkdir(parents=True)
    return tmp_path / "pod"


def asked(pod: Path, source: str, **parts: Any) -> list[SharedMount]:
    mounts = [{"destination": "/d", "type": "bind", "source": source, **parts}]
    spec = {"process": {}, "root": {"path": "/nowhere"}, "linux": {}, "mounts": mounts}
    return workload(spec, "w", "p", str(pod), host_network=False)


@contextmanager
def mounted(pod: Path, source: str) -> Iterator[str]:
    """Have a container made with such a mount; its source, as the runtime has it."""
    wanted = asked(pod, source)
    with bound(wanted):
        yield wanted[0].mount["source"]


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("sandbox://a/b", "sandboxMounts/a/b"),
        ("sandbox-tmp:///t", "sandboxTmpfsMounts/t"),
        ("sandbox://", "sandboxMounts"),
    ],
)
def test_the_containers_of_a_pod_share_its_directories(
    pod: Path, kernel: Kernel, source: str, place: str
) -> None:
    with mounted(pod, source) as at:
        assert os.path.samestat(kernel.bound[at], (pod / place).stat())
    if source != "sandbox://":
        assert (pod / place).stat().st_mode & 0o777 == 0o777


@pytest.mark.parametrize("source", ["sandbox://../secret", "sandbox-tmp://a/../../..", "hugepages://../x"])
def test_a_pods_directory_is_not_left(pod: Path, source: str) -> None:
    with pytest.raises(Refused, match="is not within"):
        asked(pod, source)


@pytest.mark.parametrize("source", ["sandbox://a", "sandbox://a/b", "sandbox://a/etc/b"])
def test_no_link_of_a_pods_directory_is_followed(
    tmp_path: Path, pod: Path, kernel: Kernel, source: str
) -> None:
    (outside := tmp_path / "outside").mkdir()
    (pod / "sandboxMounts" / "a").symlink_to(outside)
    with pytest.raises(Refused, match=r"a in .*/sandboxMounts is a link"), mounted(pod, source):
        raise AssertionError
    assert ([*outside.iterdir()], [*(tmp_path / "private").iterdir()], kernel.calls) == ([], [], [])


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_any_user_may_write_to_what_is_made_whatever_the_umask_which_stays(pod: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with mounted(pod, "sandbox://a/b"):
            pass
    finally:
        after = os.umask(before)
    made = (pod / "sandboxMounts" / "a", pod / "sandboxMounts" / "a" / "b")
    assert [each.stat().st_mode & 0o777 for each in made] == [0o777, 0o777]
    assert after == umask


def exchange(monkeypatch: pytest.MonkeyPatch, private: Path, made: Path) -> None:
    """Have a container put another's private file or directory in the place of what is just made."""

    def mkdir(*arguments: Any, make: Callable[..., None] = os.mkdir, **more: Any) -> None:
        make(*arguments, **more)
        made.rmdir()
        private.rename(made)
        monkeypatch.undo()

    monkeypatch.setattr(os, "mkdir", mkdir)


@pytest.mark.parametrize("source", ["sandbox://new", "sandbox://new/below"])
def test_a_file_that_a_container_puts_in_the_place_of_what_is_made_is_refused_as_it_is(
    monkeypatch: pytest.MonkeyPatch, pod: Path, source: str
) -> None:
    private, new = pod / "sandboxMounts" / "secret", pod / "sandboxMounts" / "new"
    private.touch(0o600)
    [wanted] = asked(pod, source)
    with monkeypatch.context() as patched:
        exchange(patched, private, new)
        with pytest.raises(Refused, match=r"new in .*/sandboxMounts is no directory"), shared.opened(wanted):
            raise AssertionError
    assert new.stat().st_mode & 0o777 == 0o600


def test_a_directory_that_a_container_puts_in_the_place_of_what_is_made_keeps_its_mode(
    monkeypatch: pytest.MonkeyPatch, pod: Path
) -> None:
    private, new = pod / "sandboxMounts" / "secret", pod / "sandboxMounts" / "new"
    private.mkdir(0o700)
    [wanted] = asked(pod, "sandbox://new")
    with monkeypatch.context() as patched:
        exchange(patched, private, new)
        with shared.opened(wanted):
            pass
    assert new.stat().st_mode & 0o777 == 0o700


def test_no_file_is_a_part_of_a_path_but_the_last(pod: Path) -> None:
    (pod / "sandboxMounts" / "file").touch()
    with pytest.raises(Refused, match=r"file in .* is no directory"), mounted(pod, "sandbox://file/below"):
        raise AssertionError
    with mounted(pod, "sandbox://file") as at:
        assert os.path.isfile(at)


@pytest.mark.parametrize("is_file", [False, True])
def test_what_was_opened_is_bound_although_a_container_replaces_it_by_a_link(
    tmp_path: Path, pod: Path, kernel: Kernel, is_file: bool
) -> None:
    (outside := tmp_path / "outside").mkdir()
    at = pod / "sandboxMounts" / "a" / "b"
    at.parent.mkdir()
    if is_file:
        at.write_text("shared")
    else:
        at.mkdir()
    was = at.stat()

    def replace() -> None:
        at.parent.rename(pod / "sandboxMounts" / "moved")
        at.parent.symlink_to(outside)

    kernel.meanwhile = replace
    with mounted(pod, "sandbox://a/b") as source:
        assert os.path.samestat(kernel.bound[source], was)
        assert os.path.isfile(source) is is_file


def test_what_is_bound_stays_until_the_runtime_has_it_in_the_container(
    tmp_path: Path, pod: Path, kernel: Kernel
) -> None:
    with mounted(pod, "sandbox://a") as at:
        assert kernel.calls == [("bind", at)]
        assert at.startswith(str(tmp_path / "private"))
    # What containers mount in it stays: it is no longer shared when it is unmounted.
    assert kernel.calls[1:] == [("private", at), ("unmount", at)]
    assert [*(tmp_path / "private").iterdir()] == []


def test_a_second_mount_that_is_refused_unbinds_the_first(tmp_path: Path, pod: Path, kernel: Kernel) -> None:
    (pod / "sandboxMounts" / "link").symlink_to("/")
    wanted = [*asked(pod, "sandbox://a"), *asked(pod, "sandbox://link")]
    with pytest.raises(Refused, match="is a link"), bound(wanted):
        raise AssertionError
    assert [call for call, _ in kernel.calls] == ["bind", "private", "unmount"]
    assert [*(tmp_path / "private").iterdir()] == []


def test_what_the_kernel_refuses_to_bind_is_refused(
    pod: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(syscalls, "mount", refuse)
    with pytest.raises(Refused, match=r"failed to bind .*/sandboxMounts/a: "), mounted(pod, "sandbox://a"):
        raise AssertionError


def test_a_container_without_such_a_mount_has_nothing_bound(tmp_path: Path, kernel: Kernel) -> None:
    with bound([]):
        assert [*(tmp_path / "private").iterdir()] == []
    assert kernel.calls == []


def test_huge_pages_are_mounted_once(pod: Path, kernel: Kernel) -> None:
    for _ in range(2):
        with mounted(pod, "hugepages://2M/a"):
            pass
    pages = [call for call in kernel.calls if call[0] == "hugetlbfs"]
    assert pages == [("hugetlbfs", str(pod / "hugepages" / "2M" / "a"), "pagesize=2M,mode=777")]


def test_huge_pages_are_mounted_at_the_last_of_two_parts_of_one_name(pod: Path, kernel: Kernel) -> None:
    with mounted(pod, "hugepages://2M/x/x"):
        pass
    places = [place for kind, place, *_ in kernel.calls if kind == "hugetlbfs"]
    assert places == [str(pod / "hugepages" / "2M" / "x" / "x")]


def test_no_device_is_looked_up_in_what_a_pod_shares(pod: Path) -> None:
    with pytest.raises(Refused, match="is no disk of the guest"):
        asked(pod, "sandbox://a", destination="blockdev:///dev/x")
