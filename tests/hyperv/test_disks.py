"""The disks of ``tests.hyperv`` are what their formats say: by our own readers, and by other programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.hyperv.disks import FORMATS, LEAST_BYTES, MIB, crc32c, ext2, image
from uvm.backends.qemu.images import DRIVERS, format_of, read_image

SBIN = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def program(name: str) -> str:
    found = shutil.which(name, path=SBIN)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_checksum_is_the_one_of_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_disk_is_as_large_as_was_asked_for(suffix: str) -> None:
    for size, expected in ((1, LEAST_BYTES), (5 * MIB - 1, 5 * MIB)):
        made = image(suffix, size)
        found = read_image(format_of(f"disk{suffix}"), len(made), lambda at, n, made=made: made[at : at + n])  # type: ignore[misc]
        assert (found.size_bytes, found.backing) == (expected, None)


@pytest.mark.parametrize("size", [LEAST_BYTES, 8 * MIB, 20 * MIB])
def test_the_file_system_has_no_errors(tmp_path: Path, size: int) -> None:
    (tmp_path / "disk").write_bytes(ext2(size))
    assert len(ext2(size)) == size
    run(program("e2fsck"), "-fn", tmp_path / "disk")


@pytest.mark.parametrize("suffix", FORMATS)
def test_qemu_reads_the_disk_as_it_was_written(tmp_path: Path, suffix: str) -> None:
    disk = ext2(LEAST_BYTES)
    source, raw = tmp_path / f"disk{suffix}", tmp_path / "raw"
    source.write_bytes(FORMATS[suffix](disk))
    kind = DRIVERS[format_of(source.name)]
    run(program("qemu-img"), "convert", "-f", kind, "-O", "raw", source, raw)
    # Of a VHD, QEMU takes what its cylinders hold.
    read = raw.read_bytes()
    assert disk.startswith(read)
    assert len(disk) - len(read) < MIB
