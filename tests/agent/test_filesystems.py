"""What is known of file systems without mounting one."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from uvm.agent import filesystems, layers, syscalls
from uvm.agent.filesystems import Filesystems, parse_options, recognised
from uvm.agent.layers import combine, overlay_options
from uvm.agent.modules import Modules
from uvm.agent.plan9 import tags
from uvm.agent.refused import Refused


def test_options_are_sorted_into_flags_propagation_and_data() -> None:
    found = parse_options(["ro", "noexec", "data=ordered", "rshared", "private", "exec", "relatime"])
    assert found.flags == 1 | 1 << 21
    assert found.propagation == (1 << 20 | 16384, 1 << 18)
    assert found.data == ("data=ordered",)
    assert parse_options(["ro", "rw", "defaults"]).flags == 0
    # An option of a file system may begin as a propagation does.
    assert parse_options(["r", "rsize=4096"]).data == ("r", "rsize=4096")


@pytest.mark.parametrize(
    ("at", "magic", "kind"),
    [
        (1080, b"\x53\xef", "ext4"),
        (0, b"XFSB", "xfs"),
        (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
        (0, b"hsqs", "squashfs"),
        (1, b"XFSB", ""),
    ],
)
def test_a_file_system_is_recognised_by_its_magic_number(
    tmp_path: Path, at: int, magic: bytes, kind: str
) -> None:
    device = tmp_path / "device"
    device.write_bytes(bytes(at) + magic + bytes(4096))
    assert recognised(str(device)) == kind


def test_a_device_that_is_too_small_has_no_file_system(tmp_path: Path) -> None:
    (tmp_path / "device").write_bytes(b"X")
    assert recognised(str(tmp_path / "device")) == ""


class Direct:
    """Runs functions in this process."""

    def __init__(self, functions: dict[str, Any]) -> None:
        self.functions = functions

    def __call__(self, name: str, *arguments: Any, seconds: float = 0) -> None:
        self.functions[name](*arguments)


class Kernel:
    """Stands in for the system calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mounts: list[tuple[str, str, str, int, str]] = []
        self.unmounts: list[str] = []
        self.error = 0
        monkeypatch.setattr(filesystems, "Killable", Direct)
        monkeypatch.setattr(syscalls, "mount", self.mount)
        monkeypatch.setattr(syscalls, "umount", self.umount)

    def mount(self, source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
        if self.error:
            raise OSError(self.error, "Refused")
        self.mounts.append((source, target, kind, flags, data))

    def umount(self, target: str) -> None:
        self.unmounts.append(target)
        if self.error:
            raise OSError(self.error, "Device or resource busy")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


@pytest.fixture
def files(tmp_path: Path) -> Filesystems:
    return Filesystems(Modules(str(tmp_path / "modules")))


@pytest.mark.parametrize(
    ("kind", "data"), [("ext4", "noload"), ("xfs", "norecovery"), ("erofs", ""), ("squashfs", "")]
)
def test_no_journal_is_replayed_on_a_read_only_device(
    kernel: Kernel, files: Filesystems, tmp_path: Path, kind: str, data: str
) -> None:
    files.mount_device("/dev/sda", f"{tmp_path}/at", kind=kind, read_only=True)
    files.mount_device("/dev/sda", f"{tmp_path}/as", kind=kind, options=["ro", "nodev"])
    files.mount_device("/dev/sda", f"{tmp_path}/to", kind=kind)
    assert [mount[2:] for mount in kernel.mounts] == [(kind, 1, data), (kind, 5, data), (kind, 0, "")]


def test_a_mount_that_fails_leaves_no_directory(kernel: Kernel, files: Filesystems, tmp_path: Path) -> None:
    kernel.error = errno.ENODEV
    there = tmp_path / "there"
    there.mkdir()
    for path in (tmp_path / "new", there):
        with pytest.raises(Refused, match="the kernel has no xfs"):
            files.mount("/dev/sda", str(path), "xfs")
    assert not (tmp_path / "new").exists()
    assert there.exists()


def test_nothing_is_mounted_over_a_mount(kernel: Kernel, files: Filesystems) -> None:
    with pytest.raises(Refused, match="something is mounted there"):
        files.mount("/dev/sda", "/proc", "ext4")
    assert kernel.mounts == []


def test_options_that_the_kernel_would_cut_off_are_refused(
    kernel: Kernel, files: Filesystems, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="more than 4095 bytes"):
        files.mount("overlay", str(tmp_path / "root"), "overlay", data="x" * 4096)
    assert not (tmp_path / "root").exists()


def test_a_path_in_use_is_not_unmounted(kernel: Kernel, files: Filesystems, tmp_path: Path) -> None:
    kernel.error = errno.EBUSY
    with pytest.raises(Refused, match=f"failed to unmount path '{tmp_path}': device or resource busy"):
        files.unmount(str(tmp_path))
    assert kernel.unmounts == [str(tmp_path)]


def test_mounts_over_each_other_are_all_unmounted(kernel: Kernel, files: Filesystems, tmp_path: Path) -> None:
    target = tmp_path / "at"
    target.mkdir()
    files.unmount(str(target))
    assert len(kernel.unmounts) == 5
    assert not target.exists()
    files.unmount(str(target))
    assert len(kernel.unmounts) == 5


def test_no_name_of_a_layer_adds_an_option_or_a_layer() -> None:
    assert overlay_options(["/a", "/b"], "") == "lowerdir=/a:/b"
    assert overlay_options(["/a"], "/s,c:d") == "lowerdir=/a,upperdir=/s\\,c:d/upper,workdir=/s\\,c:d/work"
    assert overlay_options(["/a:b", "/c,upperdir=/x", "/d\\"], "") == (
        "lowerdir=/a\\:b:/c\\,upperdir=/x:/d\\\\"
    )


def test_layers_without_scratch_are_read_only(kernel: Kernel, files: Filesystems, tmp_path: Path) -> None:
    combine(files, f"{tmp_path}/root", ["/a", "/b"], "")
    assert kernel.mounts == [("overlay", f"{tmp_path}/root", "overlay", 1, "lowerdir=/a:/b")]


def test_a_single_layer_that_is_read_only_has_an_empty_one_below(
    kernel: Kernel, files: Filesystems, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_EMPTY", f"{tmp_path}/empty")
    combine(files, f"{tmp_path}/root", ["/a"], "")
    assert kernel.mounts[0][4] == f"lowerdir=/a:{tmp_path}/empty"
    assert list((tmp_path / "empty").iterdir()) == []


def test_no_layers_are_refused(kernel: Kernel, files: Filesystems, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="an overlay needs a layer"):
        combine(files, f"{tmp_path}/other", [], "")


def test_layers_that_cannot_be_combined_leave_no_directories_of_the_scratch(
    kernel: Kernel, files: Filesystems, tmp_path: Path
) -> None:
    (tmp_path / "upper").mkdir()
    kernel.error = errno.EINVAL
    with pytest.raises(Refused, match="mounting overlay"):
        combine(files, f"{tmp_path}/root", ["/a"], str(tmp_path))
    assert [each.name for each in tmp_path.iterdir()] == ["upper"]
    kernel.error = 0
    combine(files, f"{tmp_path}/root", ["/a"], str(tmp_path))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["root", "upper", "work"]


def test_a_file_system_that_is_there_is_not_made_again(
    kernel: Kernel, files: Filesystems, tmp_path: Path
) -> None:
    device = tmp_path / "device"
    device.write_bytes(b"XFSB" + bytes(4096))
    files.ensure(str(device), "xfs")
    with pytest.raises(Refused, match="unsupported filesystem btrfs requested"):
        files.ensure(str(device), "btrfs")


def test_a_file_system_that_cannot_be_made_is_refused(
    kernel: Kernel, files: Filesystems, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, program = tmp_path / "device", tmp_path / "mkfs.ext4"
    device.write_bytes(bytes(4096))
    monkeypatch.setattr(filesystems, "_PROGRAMS", (str(tmp_path),))
    with pytest.raises(Refused, match=r"executable file not found in \$PATH"):
        files.ensure(str(device), "ext4")
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(Refused, match=r"mkfs\.ext4 failed to format"):
        files.ensure(str(device), "ext4")
    program.write_text('#!/bin/sh\nprintf made >"$3"\n')
    files.ensure(str(device), "ext4")
    assert device.read_bytes() == b"made"


def test_shares_are_known_by_their_mount_tags(tmp_path: Path) -> None:
    for name, tag in (("virtio3", b"0\0"), ("virtio4", b"work\0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mount_tag").write_bytes(tag)
    (tmp_path / "bind").touch()
    assert sorted(tags(str(tmp_path))) == ["0", "work"]
    assert tags(str(tmp_path / "none")) == []
