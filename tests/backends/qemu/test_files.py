"""Files of a Linux host: copies, and identifiers of disks."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import pytest

from tests.backends.qemu import images
from uvm.backends.qemu.files import LinuxFileCalls, linux_files
from uvm.errors import HostError, HostPathError, NotSupportedError, OptionsError

pytestmark = pytest.mark.anyio

_ID = "12345678-1234-5678-9abc-123456789abc"


@pytest.mark.parametrize("by_kernel", [True, False])
async def test_a_copy_has_the_content_and_the_mode_of_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_kernel: bool
) -> None:
    if not by_kernel:
        monkeypatch.setattr(os, "copy_file_range", _not_permitted)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(100_001))
    source.chmod(0o640)
    target.write_bytes(b"more than nothing" * 10_000)
    await linux_files().copy(str(source), str(target))
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o640


def _not_permitted(*_: object) -> int:
    raise PermissionError(1, "not permitted")


def test_a_copy_that_is_stopped_leaves_no_target(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    copy, stop = LinuxFileCalls().copier()
    stop()
    with pytest.raises(HostError, match="stopped"):
        copy(str(tmp_path / "source"), str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()


async def test_what_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    files = linux_files()
    with pytest.raises(HostPathError):
        await files.copy(str(tmp_path / "missing"), str(tmp_path / "target"))
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(HostError, match="E_ACCESSDENIED"):
        await files.copy(str(tmp_path / "source"), str(tmp_path))


async def test_file_systems_have_file_ids(tmp_path: Path) -> None:
    assert await linux_files().has_file_ids(str(tmp_path))
    with pytest.raises(HostError, match="ERROR_FILE_NOT_FOUND"):
        await linux_files().has_file_ids(str(tmp_path / "missing"))


async def test_every_footer_of_a_vhd_has_the_identifier(tmp_path: Path) -> None:
    for name, data in (("fixed.vhd", images.fixed_vhd()), ("dynamic.vhd", images.dynamic_vhd())):
        path = images.written(tmp_path / name, data)
        await linux_files().set_disk_id(path, _ID)
        changed = (tmp_path / name).read_bytes()
        footers = [at for at in range(0, len(changed), 512) if changed[at : at + 8] == b"conectix"]
        assert len(footers) == (1 if name == "fixed.vhd" else 2)
        for at in footers:
            assert changed[at + 68 : at + 84] == UUID(_ID).bytes
        await linux_files().set_disk_id(path, _ID)


async def test_a_vhdx_has_the_identifier_in_its_metadata_and_is_the_same_otherwise(tmp_path: Path) -> None:
    path = images.written(tmp_path / "disk.vhdx", images.vhdx())
    await linux_files().set_disk_id(path, _ID)
    expected = bytearray(images.vhdx())
    at = images.VHDX_TABLE + images.VHDX_DISK_ID
    expected[at : at + 16] = UUID(_ID).bytes_le
    assert (tmp_path / "disk.vhdx").read_bytes() == expected


async def test_what_has_no_identifier_is_refused(tmp_path: Path) -> None:
    files = linux_files()
    with pytest.raises(OptionsError, match="GUID"):
        await files.set_disk_id(images.written(tmp_path / "a.vhd", images.fixed_vhd()), "seven")
    with pytest.raises(NotSupportedError, match="raw"):
        await files.set_disk_id(images.written(tmp_path / "a.img", b"x" * 512), _ID)
    with pytest.raises(HostPathError, match="no VHDX"):
        await files.set_disk_id(images.written(tmp_path / "a.vhdx", b"x" * 512), _ID)
    with pytest.raises(HostPathError, match="no such file"):
        await files.set_disk_id(str(tmp_path / "missing.vhd"), _ID)


@pytest.mark.parametrize("target", ["directory", "elsewhere/inside"])
async def test_a_parent_is_that_of_what_a_link_leads_to_and_a_path_has_one_spelling(
    tmp_path: Path, target: str
) -> None:
    files, directory = linux_files(), tmp_path / target
    directory.mkdir(parents=True)
    (directory.parent / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(target)
    for spelled in (directory, tmp_path / "link"):
        assert await files.resolve(f"{spelled}/../file") == str(directory.parent / "file")


async def test_a_link_is_read_through_and_what_is_too_large_is_refused(tmp_path: Path) -> None:
    files = linux_files()
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert await files.resolve(str(tmp_path / "link")) == str(tmp_path / "file")
    assert await files.read(str(tmp_path / "link"), 3) == b"abc"
    with pytest.raises(HostPathError):
        await files.read(str(tmp_path / "link"), 2)
