"""What is mounted where."""

from __future__ import annotations

from pathlib import Path

import pytest

from uvm.agent.mounts import deepest_mount, is_mounted, mount_points

_PLACES = ("/", "/run/c/1/rootfs", "/run/c/11", "/run/c/2/a\\040b")


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "mounts"
    path.write_text("".join(f"x {place} overlay rw 0 0\n" for place in _PLACES))
    return str(path)


def test_what_is_mounted_is_read_from_the_kernels_table(tmp_path: Path) -> None:
    table = tmp_path / "mounts"
    spaced = tmp_path / "a b"
    table.write_text(f"/dev/sda {tmp_path}/a\\040b ext4 ro 0 0\nproc /proc proc rw 0 0\n")
    assert is_mounted(str(spaced), str(table))
    assert is_mounted(f"{spaced}/../a b", str(table))
    assert not is_mounted(str(tmp_path), str(table))


def test_what_is_mounted_in_a_directory_is_found(table: str) -> None:
    assert deepest_mount(["/run/c/1"], table) == "/run/c/1/rootfs"
    assert deepest_mount(["/run/c/2/"], table) == "/run/c/2/a b"
    assert deepest_mount(["/run/c/11"], table) == "/run/c/11"
    assert deepest_mount(["/run/c/3", "/run/c/1"], table) == "/run/c/1/rootfs"


def test_a_directory_without_mounts_has_none(table: str) -> None:
    assert deepest_mount(["/run/c/3"], table) is None
    assert deepest_mount([], table) is None


def test_a_path_or_a_source_may_be_any_that_the_kernel_takes(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_bytes(b" /a\r\x0b\xc2\xa0\xff tmpfs rw 0 0\n")
    assert mount_points(str(tmp_path / "mounts")) == ["/a\r\x0b\xa0\udcff"]


def test_the_kernels_own_list_is_read() -> None:
    assert "/proc" in mount_points()
