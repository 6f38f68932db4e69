"""Write an archive that a Linux kernel unpacks as its first root file system: cpio, "newc", uncompressed.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Times and owners are zero, so
that the same contents make the same bytes.
"""

from __future__ import annotations

import stat
from typing import IO, Final

_TRAILER: Final = "TRAILER!!!"


class CpioWriter:
    """Writes entries to a binary file; the directories above an entry come before it. Names have no root."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._names: set[str] = set()

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory."""
        self._add(name, stat.S_IFDIR | mode)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file. A name that is there already keeps what it has."""
        self._add(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link. A name that is there already keeps what it has."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device."""
        self._add(name, stat.S_IFCHR | mode, device=(major, minor))

    def close(self) -> None:
        """Write the end of the archive; the file stays open."""
        self._write(_TRAILER, 0, b"", (0, 0))

    def _add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        name = name.strip("/")
        if name in self._names:
            return
        if "/" in name:
            self._add(name.rpartition("/")[0], stat.S_IFDIR | 0o755)
        self._names.add(name)
        self._write(name, mode, data, device)

    def _write(self, name: str, mode: int, data: bytes, device: tuple[int, int]) -> None:
        encoded = name.encode() + b"\0"
        # Inode, mode, user, group, links, time, size, device that has it, device that it is, name, checksum.
        inode = len(self._names)
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % value for value in fields) + encoded
        self._file.write(header + bytes(-len(header) % 4))
        self._file.write(data + bytes(-len(data) % 4))
