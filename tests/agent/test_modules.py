"""Kernel modules are loaded with what they depend on, once."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from uvm.agent import modules
from uvm.agent.modules import Modules


class Kernel:
    """Stands in for the kernel: takes modules, and says which are there already."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.loaded: list[str] = []
        self.parameters: dict[str, str] = {}
        self.error = 0
        monkeypatch.setattr(modules, "load_module", self.load)

    def load(self, fd: int, parameters: str) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).stem
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.loaded.append(name)
        self.parameters[name] = parameters

    def index(self, **index: list[str]) -> Modules:
        for name in index:
            (self.directory / f"{name}.ko").touch()
        (self.directory / "index.json").write_text(json.dumps(index))
        return Modules(str(self.directory))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def test_what_a_module_depends_on_comes_first_and_each_once(kernel: Kernel) -> None:
    image = kernel.index(ext4=["jbd2", "mbcache"], jbd2=["crc32c"], mbcache=[], crc32c=[], xfs=["crc32c"])
    image.need("ext4")
    assert kernel.loaded == ["crc32c", "jbd2", "mbcache", "ext4"]
    image.need("ext4", "xfs")
    assert kernel.loaded[4:] == ["xfs"]


def test_what_is_built_in_is_not_loaded(kernel: Kernel) -> None:
    kernel.index(ext4=[]).need("overlay", "ext4")
    assert kernel.loaded == ["ext4"]


def test_an_image_without_modules_needs_none(tmp_path: Path) -> None:
    Modules(str(tmp_path)).need("ext4")


def test_the_kernel_scans_no_disks_by_itself(kernel: Kernel) -> None:
    kernel.index(virtio_scsi=["scsi_mod"], scsi_mod=[]).need("virtio_scsi")
    assert kernel.parameters == {"scsi_mod": "scan=manual", "virtio_scsi": ""}


def test_a_module_that_is_there_already_is_loaded(kernel: Kernel) -> None:
    image = kernel.index(ext4=[])
    kernel.error = errno.EEXIST
    image.need("ext4")
    kernel.error = errno.ENOEXEC
    image.need("ext4")


def test_a_module_that_the_kernel_refuses_is_tried_again(kernel: Kernel) -> None:
    image = kernel.index(ext4=[])
    kernel.error = errno.ENOEXEC
    with pytest.raises(OSError, match="Exec format error"):
        image.need("ext4")
    kernel.error = 0
    image.need("ext4")
    assert kernel.loaded == ["ext4"]
