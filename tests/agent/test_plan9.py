"""Shares of the host in the guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from uvm.agent import plan9
from uvm.agent.filesystems import Filesystems
from uvm.agent.modules import Modules
from uvm.agent.plan9 import mount_share
from uvm.agent.refused import Refused


def test_a_kernel_without_9p_is_said_to_have_none_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan9, "_DRIVER", str(tmp_path / "9pnet_virtio"))
    modules = Modules(str(tmp_path))
    with pytest.raises(Refused, match="for /mnt: the kernel of this guest has no 9p over virtio; boot one"):
        mount_share(modules, Filesystems(modules), "1", "/mnt", read_only=True)


class Mounts(Filesystems):
    """File systems that are mounted as the kernel would have it."""

    def __init__(self, modules: Modules, *errors: OSError) -> None:
        super().__init__(modules)
        self.errors = [*errors]

    def mount(
        self, source: str, target: str, kind: str, flags: int = 0, data: str = "", mode: int = 0o700
    ) -> None:
        if self.errors:
            raise Refused("mounting") from self.errors.pop(0)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Modules:
    """Those of a kernel that has a share "1"."""
    (tmp_path / "virtio3").mkdir()
    (tmp_path / "virtio3/mount_tag").write_bytes(b"1\0")
    monkeypatch.setattr(plan9, "_DRIVER", str(tmp_path))
    return Modules(str(tmp_path))


def test_a_share_whose_tag_shows_before_it_can_be_mounted_is_mounted(modules: Modules) -> None:
    mounts = Mounts(modules, FileNotFoundError(), FileNotFoundError())
    mount_share(modules, mounts, "1", "/mnt", read_only=True)
    assert mounts.errors == []


def test_a_share_that_cannot_be_mounted_is_refused_at_once(modules: Modules) -> None:
    mounts = Mounts(modules, PermissionError(), FileNotFoundError())
    with pytest.raises(Refused, match="mounting"):
        mount_share(modules, mounts, "1", "/mnt", read_only=True)
    assert len(mounts.errors) == 1


def test_a_share_that_never_can_be_mounted_is_refused(
    modules: Modules, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan9, "_READY_SECONDS", 0.0)
    with pytest.raises(Refused, match="mounting"):
        mount_share(modules, Mounts(modules, FileNotFoundError()), "1", "/mnt", read_only=True)
