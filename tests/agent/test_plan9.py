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
