"""Kernels as they are installed: release, architecture, and the form that QEMU boots."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess

import pytest

from tests.backends.qemu.guestimage.made import RELEASE, bzimage, vmlinux
from uvm.backends.qemu.guestimage.compression import unpack
from uvm.backends.qemu.guestimage.kernel import KernelError, read_kernel
from uvm.errors import NotSupportedError


def packed_by(tool: str, *arguments: str) -> bytes:
    if not shutil.which(tool):
        pytest.skip(f"needs {tool}")
    return subprocess.run([tool, *arguments], input=vmlinux(), capture_output=True, check=True).stdout


def test_a_vmlinuz_says_its_release_and_is_unpacked() -> None:
    kernel = read_kernel(bzimage())
    assert (kernel.release, kernel.machine) == (RELEASE, "x86_64")
    assert kernel.bootable() == vmlinux()


@pytest.mark.parametrize("packed", [gzip.compress(vmlinux()), lzma.compress(vmlinux())], ids=["gzip", "xz"])
def test_what_python_unpacks_takes_no_program(packed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    # Kernels append their size.
    assert read_kernel(bzimage(packed + b"\x10\x20\x30\x40")).bootable() == vmlinux()


@pytest.mark.parametrize("command", [("zstd", "-c"), ("lz4", "-l", "-c")], ids=["zstd", "lz4"])
def test_the_rest_is_unpacked_by_a_program(command: tuple[str, ...]) -> None:
    packed = packed_by(*command)
    assert read_kernel(bzimage(packed + b"\x10\x20\x30\x40")).bootable() == vmlinux()


@pytest.mark.parametrize(("magic", "tool"), [(b"\x28\xb5\x2f\xfd", "zstd"), (b"\x02\x21\x4c\x18", "lz4")])
def test_a_program_that_is_missing_is_named_with_its_package(
    magic: bytes, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotSupportedError, match=f"'apt-get install {tool}' on Debian"):
        read_kernel(bzimage(magic + b"...")).bootable()


def test_a_kernel_that_has_no_pvh_entry_is_booted_as_it_is() -> None:
    data = bzimage(gzip.compress(vmlinux(note=None)))
    assert read_kernel(data).bootable() == data


@pytest.mark.parametrize("data", [vmlinux(), gzip.compress(vmlinux())], ids=["plain", "packed"])
def test_a_vmlinux_is_a_kernel(data: bytes) -> None:
    kernel = read_kernel(data)
    assert (kernel.release, kernel.machine) == (RELEASE, "x86_64")
    assert kernel.bootable() == vmlinux()


def test_an_image_of_arm64_is_a_kernel() -> None:
    image = bytes(0x38) + b"ARM\x64" + bytes(100) + b"Linux version 6.1.0-9-arm64 (made up)"
    kernel = read_kernel(gzip.compress(image))
    assert (kernel.release, kernel.machine) == ("6.1.0-9-arm64", "aarch64")
    assert kernel.bootable() == image


@pytest.mark.parametrize("data", [b"", b"text", bytes(0x1000), b"\x1f\x8bno gzip", b"\xfd7zXZ\0no xz"])
def test_what_is_no_kernel_is_refused(data: bytes) -> None:
    with pytest.raises(KernelError):
        read_kernel(data).bootable()


def test_a_vmlinuz_cut_short_is_refused() -> None:
    with pytest.raises(KernelError, match="cut short"):
        read_kernel(bzimage()[:-10]).bootable()


def test_a_vmlinuz_that_holds_no_kernel_is_refused() -> None:
    with pytest.raises(KernelError, match="no kernel"):
        read_kernel(bzimage(gzip.compress(b"text"))).bootable()


def test_a_kernel_that_names_no_version_is_refused() -> None:
    with pytest.raises(KernelError, match="version"):
        read_kernel(bzimage(release=""))


def test_what_is_not_packed_stays_as_it_is() -> None:
    assert unpack(b"plain") == b"plain"
