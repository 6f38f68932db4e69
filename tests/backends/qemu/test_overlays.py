"""Empty images over other disks: what is in them, and how they are made and opened."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.qemu import images
from tests.backends.qemu.machine import Grants
from uvm.backends.qemu.devices.drives import open_image
from uvm.backends.qemu.files import linux_files
from uvm.backends.qemu.images import DRIVERS, Image, ImageError, read_image
from uvm.backends.qemu.images.overlay import overlay_image
from uvm.errors import HostError, HostPathError

pytestmark = pytest.mark.anyio

_TIB = 1 << 40


def _read(data: bytes) -> Image:
    return read_image("qcow2", len(data), lambda offset, length: data[offset : offset + length])


@given(
    size=st.integers(1, 4 * _TIB),
    path=st.binary(min_size=1, max_size=1023).map(lambda name: name.replace(b"\0", b"/")),
    driver=st.sampled_from(sorted(DRIVERS.values())),
)
def test_an_overlay_says_what_is_below_it_and_has_a_place_for_all_of_its_disk(
    size: int, path: bytes, driver: str
) -> None:
    data = overlay_image(size, path, driver)
    found = _read(data)
    assert (found.size_bytes, found.backing_format) == (size, driver)
    assert found.backing == path.decode("utf-8", "replace")
    entries, at = (int.from_bytes(data[start:end], "big") for start, end in ((36, 40), (40, 48)))
    # Each entry is for 8192 clusters, and none is allocated.
    assert (entries - 1) * 8192 * 65536 < size <= entries * 8192 * 65536
    assert data[at:].strip(b"\0") == b""
    assert len(data) % 65536 == 0
    assert at + 8 * entries <= len(data)


def test_each_cluster_of_an_overlay_is_counted_once() -> None:
    data = overlay_image(2 * _TIB, b"/disk", "raw")
    table_at = int.from_bytes(data[48:56], "big")
    block_at = int.from_bytes(data[table_at : table_at + 8], "big")
    counted = data[block_at : block_at + 65536]
    assert counted.rstrip(b"\0") == b"\0\1" * (len(data) // 65536)


def test_what_has_no_room_in_a_header_is_refused() -> None:
    with pytest.raises(ImageError, match="1024 bytes"):
        overlay_image(512, b"/" + b"x" * 1023, "raw")
    with pytest.raises(ImageError, match="too many"):
        overlay_image(1 << 62, b"/disk", "raw")


@pytest.mark.parametrize("name", ["disk.img", "disk.vhd", "disk.vhdx", "disk.qcow2"])
async def test_it_is_made_over_a_disk_of_any_format_for_this_user_alone(tmp_path: Path, name: str) -> None:
    make = {"vhd": images.fixed_vhd, "vhdx": images.vhdx, "qcow2": images.qcow2}.get(name[5:], bytes)
    base, target = images.written(tmp_path / name, make(images.MIB)), tmp_path / "overlay.qcow2"
    await linux_files().make_overlay(base, str(target))
    assert target.stat().st_mode & 0o777 == 0o600
    found = _read(target.read_bytes())
    assert (found.size_bytes, found.backing, found.backing_format) == (
        images.MIB,
        base,
        {"img": "raw", "vhd": "vpc"}.get(name[5:], name[5:]),
    )
    with pytest.raises(HostError, match="ERROR_FILE_EXISTS"):
        await linux_files().make_overlay(base, str(target))


async def test_what_is_no_disk_has_none_over_it(tmp_path: Path) -> None:
    target = str(tmp_path / "overlay.qcow2")
    with pytest.raises(HostPathError, match="no VHDX"):
        await linux_files().make_overlay(images.written(tmp_path / "a.vhdx", b"x" * 512), target)
    with pytest.raises(HostError, match="ERROR_FILE_NOT_FOUND"):
        await linux_files().make_overlay(str(tmp_path / "missing.img"), target)
    assert os.listdir(tmp_path) == ["a.vhdx"]


async def test_the_disks_below_need_a_grant_unless_they_are_those_of_the_template(tmp_path: Path) -> None:
    lowest = images.written(tmp_path / "lowest.img", bytes(images.MIB))
    base = images.written(tmp_path / "base.qcow2", images.qcow2(backing="lowest.img", backing_format="raw"))
    path = str(tmp_path / "overlay.qcow2")
    await linux_files().make_overlay(base, path)
    opening = partial(
        open_image, path, writable=True, vm_id="vm1", access=Grants({path}, every=False), operation="Add"
    )
    opened = opening(bases={base, lowest})
    assert opened.paths == (path, base, lowest)
    opened.close()
    for others in ((), {base}, {lowest}, {base, str(tmp_path / "other.img")}):
        with pytest.raises(HostError, match=r"E_ACCESSDENIED.*(base\.qcow2|lowest\.img)"):
            opening(bases=others)
