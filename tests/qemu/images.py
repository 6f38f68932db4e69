"""Disk images with a file system, made by the programs of the host."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.qemu.roots import PROGRAMS

MIB = 1 << 20
#: No file system of ext4 with a journal is smaller.
_LEAST_BYTES = 4 * MIB


def run(*command: str | Path) -> None:
    """Run a program that has to succeed."""
    subprocess.run([str(each) for each in command], check=True, capture_output=True)


def ext4(path: Path, size_bytes: int = _LEAST_BYTES, source: Path | None = None) -> Path:
    """Make a raw image with an ext4 file system, of a directory's content."""
    with path.open("wb") as file:
        file.truncate(max(size_bytes, _LEAST_BYTES))
    run("mkfs.ext4", "-q", "-F", *(("-d", source) if source is not None else ()), path)
    return path


def converted(path: Path, size_bytes: int, image_format: str, *options: str) -> Path:
    """Make an image of another format with an ext4 file system."""
    raw = ext4(path.with_suffix(".raw"), size_bytes)
    run("qemu-img", "convert", "-f", "raw", "-O", image_format, *options, raw, path)
    raw.unlink()
    return path


def busybox_layer(directory: Path) -> Path:
    """Make a layer with a shell and its tools."""
    root = directory / "root"
    for name in ("bin", "proc", "dev", "etc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    # The user who makes it owns it, which in the container need not be root.
    (root / "tmp").chmod(0o1777)
    (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\nweb:x:33:44::/:/bin/sh\n")
    shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
    for name in PROGRAMS.split():
        (root / "bin" / name).symlink_to("busybox")
    return ext4(directory / "layer.raw", 16 * MIB, root)


#: Makes an image of a size, by the suffix of its name.
DISKS: dict[str, Callable[[Path, int], Path]] = {
    ".vhd": lambda path, size: converted(path, size, "vpc", "-o", "subformat=fixed,force_size"),
    ".vhdx": lambda path, size: converted(path, size, "vhdx"),
    ".qcow2": lambda path, size: converted(path, size, "qcow2"),
}
