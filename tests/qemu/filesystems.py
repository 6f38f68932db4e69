"""Disks with all kinds of file systems, made without root: by mkfs from a directory, and by hand."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path
from typing import Any, Final

from attrs import frozen

MIB: Final = 1 << 20
SECTOR: Final = 512
#: What each image with files has: a file of this name and this content.
NAME, CONTENT = "hello", "hello from the host\n"

_SALT: Final = "5a" * 32


@frozen
class Images:
    """Images in a directory, each made once."""

    directory: Path

    def _new(self, name: str, size_mb: int) -> Path:
        path = self.directory / name
        with path.open("wb") as file:
            file.truncate(size_mb * MIB)
        return path

    def _tree(self) -> Path:
        tree = self.directory / "tree"
        tree.mkdir(exist_ok=True)
        (tree / NAME).write_text(CONTENT)
        return tree

    def empty(self, name: str, size_mb: int = 16) -> Path:
        """Return a disk without a file system."""
        return self._new(f"{name}.img", size_mb)

    def ext4(self, name: str = "ext4", size_mb: int = 16) -> Path:
        """Return an ext4 with a file."""
        path = self._new(f"{name}.img", size_mb)
        _run("mkfs.ext4", "-q", "-b", "4096", "-d", str(self._tree()), str(path))
        return path

    def xfs(self, name: str = "xfs") -> Path:
        """Return an empty XFS."""
        path = self._new(f"{name}.img", 320)
        _run("mkfs.xfs", "-q", str(path))
        return path

    def erofs(self, name: str = "erofs") -> Path:
        """Return an EROFS with a file."""
        path = self.directory / f"{name}.img"
        _run("mkfs.erofs", "--quiet", str(path), str(self._tree()))
        return path

    def partitioned(self, name: str = "partitioned") -> Path:
        """Return a disk whose second partition is an ext4 with a file."""
        inside = self.ext4(f"{name}-inside").read_bytes()
        path = self._new(f"{name}.img", 20)
        entries = _partition(1, 1) + _partition(2, len(inside) // MIB)
        with path.open("r+b") as file:
            file.seek(446)
            file.write(entries + bytes(64 - len(entries)) + b"\x55\xaa")
            file.seek(2 * MIB)
            file.write(inside)
        return path

    def verity(self, name: str = "verity") -> tuple[Path, dict[str, Any]]:
        """Return an ext4 with a file and the tree of its hashes behind it, and what is known of that."""
        path = self.ext4(name)
        size = path.stat().st_size
        arguments = ["--salt", _SALT, f"--data-blocks={size // 4096}", f"--hash-offset={size}"]
        said = _run("veritysetup", "format", *arguments, str(path), str(path))
        found = re.search(r"Root hash:\s*(\w+)", said)
        assert found, said
        return path, {
            "Ext4SizeInBytes": size,
            "Version": 1,
            "Algorithm": "sha256",
            "SuperBlock": True,
            "RootDigest": found[1],
            "Salt": _SALT,
            "BlockSize": 4096,
        }


def _partition(start_mb: int, size_mb: int) -> bytes:
    return struct.pack("<B3sB3sII", 0, b"", 0x83, b"", start_mb * MIB // SECTOR, size_mb * MIB // SECTOR)


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
