"""The file system of the fake host: files of a size, directories, and who has which disk open.

Windows paths compare without regard to case and with both separators, as on the real thing; a path that was
added brings its parents along. Contents are kept only where they were given.
"""

from __future__ import annotations

import ntpath
import posixpath
from functools import lru_cache
from typing import Literal

from attrs import define

from uvm.backend import FileInfo
from uvm.errors import HostError, HostPathError
from uvm.hresult import HResult

_PERMISSIVE = FileInfo(size=1 << 20)


@define
class _Node:
    """A file or a directory, under the name that it was made with."""

    name: str
    is_dir: bool = False
    size: int = 0
    content: bytes = b""
    file_ids: bool = True
    disk_id: str = ""


@define
class _Opens:
    """Who has a file open."""

    readers: int = 0
    writer: bool = False


class FakeFiles:
    """The host's files (:class:`~uvm.backend.HostFiles`), and the calls that set them up.

    :param flavour: ``"windows"`` or ``"posix"``.
    :param permissive: every path that was neither added nor deleted is a file of 1 MiB.
    """

    def __init__(self, flavour: Literal["windows", "posix"] = "windows", *, permissive: bool = False) -> None:
        self._path = ntpath if flavour == "windows" else posixpath
        self._nodes: dict[str, _Node] = {}
        self._deleted: set[str] = set()
        self._opens: dict[str, _Opens] = {}
        self._made: dict[str, None] = {}
        self.permissive = permissive

    def key(self, path: str) -> str:
        """Give the form of a path under which equal paths are equal."""
        return _windows_key(path) if self._path is ntpath else _posix_key(path)

    # Setting up

    def add(
        self, path: str, *, size: int | None = None, content: bytes | None = None, file_ids: bool = True
    ) -> None:
        """Add a file, or replace it; its directories are made.

        :param size: in bytes; that of the content by default. A longer file ends in zeros.
        :param file_ids: whether the file system answers file-id queries (Azure Files does not).
        """
        data = content or b""
        length = len(data) if size is None else size
        if length < len(data):
            raise ValueError(f"{path}: the content is longer than {length} bytes")
        found = self._nodes.get(self.key(path))
        if found is not None and found.is_dir:
            raise ValueError(f"{path} is a directory")
        self._make_parents(path, file_ids)
        self._put(path, _Node(self._path.basename(path), size=length, content=data, file_ids=file_ids))

    def add_directory(self, path: str, *, file_ids: bool = True) -> None:
        """Add a directory, with its parents."""
        found = self._nodes.get(self.key(path))
        if found is not None and not found.is_dir:
            raise ValueError(f"{path} is a file")
        if found is None:
            self._make_parents(path, file_ids)
            self._put(path, _Node(self._path.basename(path.rstrip("\\/")), is_dir=True, file_ids=file_ids))

    def delete(self, path: str) -> None:
        """Delete a file, or a directory with all that is in it, whoever has it open."""
        key = self.key(path)
        inside = key + self._path.sep
        for found in [k for k in self._nodes if k == key or k.startswith(inside)]:
            del self._nodes[found]
            self._made.pop(found, None)
        self._deleted.add(key)

    def listing(self, path: str) -> list[str]:
        """Give the names in a directory, sorted."""
        key = self.key(path)
        return sorted(n.name for k, n in self._nodes.items() if k != key and self._path.dirname(k) == key)

    def disk_id(self, path: str) -> str:
        """Give the identifier that was set of a virtual disk; empty where none was."""
        return self._file(path).disk_id

    # What the devices of the fake do

    def look(self, path: str) -> FileInfo | None:
        """Look at a path; None where nothing is there."""
        key = self.key(path)
        node = self._nodes.get(key)
        if node is not None:
            return FileInfo(node.size, node.is_dir)
        return _PERMISSIVE if self.permissive and key not in self._deleted else None

    def open_disk(self, path: str, *, writable: bool, operation: str) -> None:
        """Open a file for a VM: any number read it, or one writes.

        :raises HostError: ERROR_SHARING_VIOLATION. A path that does not exist can be opened: whether that
            is allowed is for the device to say.
        """
        key = self.key(path)
        opens = self._opens.get(key) or _Opens()
        if opens.writer or (writable and opens.readers):
            raise HostError(operation, HResult.ERROR_SHARING_VIOLATION, f"{path} is in use")
        opens.writer = writable
        opens.readers += not writable
        self._opens[key] = opens

    def close_disk(self, path: str, *, writable: bool) -> None:
        """Close what :meth:`open_disk` opened."""
        key = self.key(path)
        opens = self._opens[key]
        opens.writer = opens.writer and not writable
        opens.readers -= not writable
        if not opens.writer and not opens.readers:
            del self._opens[key]

    def is_open(self, path: str) -> bool:
        """Tell whether a VM has a file open."""
        return self.key(path) in self._opens

    # HostFiles

    async def stat(self, path: str) -> FileInfo | None:
        """Look at a path; None where nothing is there."""
        return self.look(path)

    async def read(self, path: str, max_bytes: int) -> bytes:
        """Read a whole file; HostPathError where it is missing or larger than ``max_bytes``."""
        node = self._file(path)
        if node.size > max_bytes:
            raise HostPathError(path, f"it has {node.size} bytes, more than {max_bytes}")
        return node.content.ljust(node.size, b"\0")

    async def copy(self, source: str, target: str) -> None:
        """Copy a file over whatever is at the target; ERROR_SHARING_VIOLATION where that is in use."""
        node = self._file(source)
        self._refuse_if_open(target, "copy")
        self.add(target, size=node.size, content=node.content, file_ids=node.file_ids)

    async def mkdir(self, path: str) -> None:
        """Make a directory with its parents; nothing happens where it exists."""
        found = self.look(path)
        if found is not None and not found.is_dir and self.key(path) in self._nodes:
            raise HostPathError(path, "it is a file")
        before = set(self._nodes)
        self.add_directory(path)
        self._made |= dict.fromkeys(key for key in self._nodes if key not in before)

    def left_empty(self) -> list[str]:
        """Return the directories that were made through :meth:`mkdir` and are still there, empty."""
        return [key for key in self._made if not self.listing(key)]

    async def remove(self, path: str) -> None:
        """Remove a file or an empty directory; ERROR_SHARING_VIOLATION where a VM has it open."""
        self._refuse_if_open(path, "remove")
        if self.listing(path):
            raise HostPathError(path, "the directory is not empty")
        self.delete(path)

    async def has_file_ids(self, path: str) -> bool:
        """Tell whether the path's file system answers file-id queries."""
        node = self._nodes.get(self.key(path))
        return node is None or node.file_ids

    async def set_disk_id(self, path: str, disk_id: str) -> None:
        """Set the identifier of a virtual disk file."""
        self._file(path).disk_id = disk_id

    def _file(self, path: str) -> _Node:
        found = self.look(path)
        if found is None:
            raise HostPathError(path, "it does not exist")
        if found.is_dir:
            raise HostPathError(path, "it is a directory")
        return self._nodes.setdefault(self.key(path), _Node(self._path.basename(path), size=found.size))

    def _refuse_if_open(self, path: str, operation: str) -> None:
        if self.is_open(path):
            raise HostError(f"{operation} {path}", HResult.ERROR_SHARING_VIOLATION, "a VM has it open")

    def _put(self, path: str, node: _Node) -> None:
        key = self.key(path)
        self._nodes[key] = node
        self._deleted.discard(key)

    def _make_parents(self, path: str, file_ids: bool) -> None:
        parent = self._path.dirname(path.rstrip("\\/"))
        if parent and self.key(parent) != self.key(path):
            self.add_directory(parent, file_ids=file_ids)


@lru_cache(maxsize=4096)
def _windows_key(path: str) -> str:
    if path.startswith("\\\\?\\") and path[5:7] == ":\\":
        path = path[4:]
    return ntpath.normcase(ntpath.normpath(path))


@lru_cache(maxsize=4096)
def _posix_key(path: str) -> str:
    # normpath keeps a second slash at the start, which POSIX lets mean something; no host of ours does.
    return posixpath.normpath("/" + path.lstrip("/") if path.startswith("//") else path)
