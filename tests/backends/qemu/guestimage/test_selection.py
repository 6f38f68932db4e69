"""Which kernel and programs an image is made of, and what is said of those that are missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.backends.qemu.guestimage.made import RELEASE, bzimage
from uvm.backends.qemu.guestimage import selection as module
from uvm.backends.qemu.guestimage.interpreter import this_interpreter
from uvm.backends.qemu.guestimage.selection import ImageOptions, Selection, has_shares, select
from uvm.errors import NotSupportedError, OptionsError


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The programs that are installed: busybox and runc."""
    directory = tmp_path / "programs"
    directory.mkdir()
    for name in ("busybox", "runc"):
        (directory / name).touch(0o755)
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.release", lambda: "6.1.0-5-running")
    return directory


def kernel(root: Path, release: str, file: str = "boot/vmlinuz-{}", modules: str = "lib/modules/{}") -> Path:
    """Put a kernel with modules into a root directory."""
    (root / modules.format(release) / "kernel").mkdir(parents=True)
    path = root / file.format(release)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bzimage(release=release))
    return path


@pytest.fixture
def machine(tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's root directory, without a kernel."""
    root = tmp_path / "root"
    (root / "boot").mkdir(parents=True)
    monkeypatch.setattr(module, "_ROOT", root)
    return root


def chosen(tmp_path: Path, **options: str) -> Selection:
    return select(ImageOptions(**options), tmp_path / "downloads")  # type: ignore[arg-type]


def test_the_newest_kernel_is_taken_and_the_programs_on_the_path(
    machine: Path, tmp_path: Path, programs: Path
) -> None:
    kernel(machine, "6.1.0-9-a")
    newest = kernel(machine, "6.1.0-10-a")
    found = chosen(tmp_path)
    assert (found.kernel, found.release) == (str(newest), "6.1.0-10-a")
    assert found.modules == f"{machine}/lib/modules/6.1.0-10-a"
    assert (found.busybox, found.runtime) == (f"{programs}/busybox", f"{programs}/runc")
    assert found.python == this_interpreter()


def test_the_kernel_that_runs_comes_before_newer_ones(machine: Path, tmp_path: Path) -> None:
    kernel(machine, "6.1.0-9-a")
    kernel(machine, "6.1.0-5-running")
    assert chosen(tmp_path).release == "6.1.0-5-running"


@pytest.mark.parametrize("built_in", [False, True])
def test_a_kernel_without_shares_is_the_last_that_is_taken(
    machine: Path, tmp_path: Path, built_in: bool
) -> None:
    kernel(machine, "6.1.0-5-running")
    found = chosen(tmp_path)
    assert (found.release, has_shares(found)) == ("6.1.0-5-running", False)
    kernel(tmp_path / "downloads/linux", "5.10")
    modules = tmp_path / "downloads/linux/lib/modules/5.10"
    if built_in:
        (modules / "modules.builtin").write_text("kernel/fs/a.ko\nkernel/net/9p/9pnet_virtio.ko\n")
    else:
        (modules / "kernel/net/9p").mkdir(parents=True)
        (modules / "kernel/net/9p/9pnet_virtio.ko.zst").touch()
    found = chosen(tmp_path)
    assert (found.release, has_shares(found)) == ("5.10", True)


def test_a_kernel_may_be_with_its_modules(machine: Path, tmp_path: Path) -> None:
    path = kernel(machine, "6.8", "usr/lib/modules/{}/vmlinuz", "usr/lib/modules/{}")
    assert chosen(tmp_path).kernel == str(path)


def test_a_kernel_without_modules_is_none(machine: Path, tmp_path: Path) -> None:
    (machine / "boot/vmlinuz-6.1.0-9-a").write_bytes(bzimage())
    with pytest.raises(NotSupportedError, match="no kernel with modules"):
        chosen(tmp_path)


def test_a_kernel_that_was_downloaded_comes_last(machine: Path, tmp_path: Path) -> None:
    downloaded = kernel(tmp_path / "downloads" / "linux-image-7", "7.0.0")
    assert chosen(tmp_path).kernel == str(downloaded)
    kernel(machine, "6.1.0-9-a")
    assert chosen(tmp_path).release == "6.1.0-9-a"


def test_all_that_is_missing_is_said_at_once_with_its_packages(
    machine: Path, programs: Path, tmp_path: Path
) -> None:
    (programs / "busybox").unlink()
    with pytest.raises(NotSupportedError) as caught:
        chosen(tmp_path)
    for part in (
        "'apt-get install linux-image-amd64' on Debian",
        "'apt-get install linux-image-generic' on Ubuntu",
        "'dnf install kernel' on Fedora",
        "'uvm image build --fetch'",
        "'apt-get install busybox-static' on Debian and Ubuntu, 'dnf install busybox' on Fedora",
    ):
        assert part in str(caught.value)


def test_a_kernel_that_only_root_may_read_is_downloaded(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kernel(machine, "6.8.0-31-generic")
    monkeypatch.setattr(os, "access", lambda each, mode: each != str(path) and each != path)
    with pytest.raises(NotSupportedError, match=f"{path} may be read by root only; .*--fetch"):
        chosen(tmp_path)


def test_without_a_runtime_there_is_an_image_all_the_same(
    machine: Path, programs: Path, tmp_path: Path
) -> None:
    kernel(machine, "6.1.0-9-a")
    (programs / "runc").unlink()
    assert chosen(tmp_path).runtime is None


def test_a_kernel_that_is_named_has_its_modules_beside_it(programs: Path, tmp_path: Path) -> None:
    path = kernel(tmp_path / "unpacked", RELEASE)
    found = chosen(tmp_path, kernel=str(path))
    assert (found.kernel, found.release) == (str(path), RELEASE)
    assert found.modules == f"{tmp_path}/unpacked/lib/modules/{RELEASE}"


def test_modules_that_are_named_are_taken(programs: Path, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage())
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "modules.builtin").touch()
    assert chosen(tmp_path, kernel=str(path), modules=f"{tmp_path}/modules").modules == f"{tmp_path}/modules"


def test_an_empty_directory_of_modules_is_refused(programs: Path, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage())
    (tmp_path / "modules").mkdir()
    with pytest.raises(OptionsError, match=r"has no modules: .*/modules, or it is empty"):
        chosen(tmp_path, kernel=str(path), modules=f"{tmp_path}/modules")


def test_a_kernel_whose_modules_are_nowhere_is_refused(machine: Path, programs: Path, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage())
    with pytest.raises(OptionsError, match=f"no modules: there is no directory .*/lib/modules/{RELEASE}"):
        chosen(tmp_path, kernel=str(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "/nowhere/vmlinuz"}, "kernel='/nowhere/vmlinuz' cannot be used"),
        ({"kernel": os.devnull}, "no Linux kernel"),
        ({"modules": "/lib/modules/6.1"}, "without kernel="),
        ({"busybox": "/nowhere/busybox"}, "busybox='/nowhere/busybox': there is no such program"),
        ({"runtime": "youki"}, "runtime='youki': there is no such program"),
        ({"python": "python9"}, "python='python9'"),
        ({"guest_binary": "/nowhere/gcs"}, "guest_binary="),
    ],
)
def test_what_is_named_has_to_be_there(
    machine: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    kernel(machine, "6.1.0-9-a")
    with pytest.raises(OptionsError, match=message):
        chosen(tmp_path, **options)


def test_a_kernel_of_another_architecture_is_refused(programs: Path, tmp_path: Path) -> None:
    path = kernel(tmp_path / "unpacked", RELEASE)
    with pytest.raises(OptionsError, match="a kernel of x86_64, not of aarch64"):
        chosen(tmp_path, kernel=str(path), machine="aarch64")
