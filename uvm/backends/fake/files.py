"""The file system of the fake host: files of a size, directories, links, and open disks.

Names are compared as the host compares them (:mod:`uvm._names`), and links are followed as an
operating system follows them. Parents of a path are added with it. Files have contents only if set.
"""

from __future__ import annotations

import ntpath
import posixpath
from functools import lru_cache
from typing import Final

from attrs import define

from uvm._checks import U64, checked, choice, flag, instance, optional, whole
from uvm._names import HostPath, PathFlavour, host_path, host_path_key, text_of
from uvm._repr import showing
from uvm.backend import FileInfo
from uvm.backends.fake.paths import PathTable
from uvm.errors import HostError, HostPathError, OptionsError
from uvm.hresult import HResult

#: The limit of links that are followed, as on Linux.
_MAX_LINKS: Final = 40
_NOTHING, _DIRECTORY, _PERMISSIVE = FileInfo(), FileInfo(is_dir=True), FileInfo(size=1 << 20)


@define(eq=False, repr=False)
class _Node:
    """A file, a directory or a link, under the name that it was made with.

    :ivar target: the path that a link leads to; empty for everything else.
    :ivar info: its size, and whether it is a directory.
    """

    name: str
    target: str = ""
    info: FileInfo = _NOTHING
    content: bytes = b""
    file_ids: bool = True
    disk_id: str = ""


@define(eq=False, repr=False)
class _Opens:
    """How a file is open."""

    readers: int = 0
    writer: bool = False


@showing("size_bytes")
@define(eq=False, repr=False)
class OpenDisk:
    """A file that a VM has open, which does not depend on the path by which it was opened."""

    size_bytes: int
    _files: FakeFiles
    _key: str
    _writable: bool

    def close(self) -> None:
        """Close the file."""
        self._files._close(self._key, self._writable)


class FakeFiles:
    """The host's files (:class:`~uvm.backend.HostFiles`), and the calls that set them up.

    :param flavour: ``"windows"`` or ``"posix"``.
    :param permissive: every path that was neither added nor deleted is a file of 1 MiB.
    """

    def __init__(self, flavour: PathFlavour = "windows", *, permissive: bool = False) -> None:
        self._flavour: PathFlavour = checked(flavour, choice("windows", "posix"), "flavour")
        self._path = ntpath if flavour == "windows" else posixpath
        self._nodes: PathTable[_Node] = PathTable(self._path.sep)
        self._deleted: set[str] = set()
        self._opens: dict[str, _Opens] = {}
        self._made: dict[str, None] = {}
        self._has_links = False
        self.permissive: bool = checked(permissive, flag, "permissive")

    def __repr__(self) -> str:
        return f"<FakeFiles ({self._flavour}): {len(self._nodes):,} files and directories>"

    def key(self, path: str) -> str:
        """Return the key of what is at a path: all its spellings, and all links to it, have the same.

        :raises HostError: the path has too many links: ERROR_CANT_RESOLVE_FILENAME.
        """
        return _key(self._follow(path), self._flavour)

    # Setting up

    def add(
        self, path: HostPath, *, size: int | None = None, content: bytes | None = None, file_ids: bool = True
    ) -> None:
        """Add or replace a file; its directories are made.

        :param size: in bytes; that of the content by default. A longer file is padded with zeros.
        :param file_ids: whether the file system answers file-id queries (Azure Files does not).
        :raises OptionsError: the path is no absolute one of the host, or the size is no size.
        """
        path = host_path(path, self._flavour)
        data = checked(content, optional(instance(bytes)), "content") or b""
        length = checked(size, optional(whole(U64)), "size")
        length = len(data) if length is None else length
        checked(file_ids, flag, "file_ids")
        if length < len(data):
            raise OptionsError(f"{path}: the content is longer than {length} bytes")
        found = self._nodes.get(self.key(path))
        if found is not None and found.info.is_dir:
            raise OptionsError(f"{path} is a directory")
        self._make_parents(path, file_ids)
        self._put(path, _Node(self._name(path), info=FileInfo(length), content=data, file_ids=file_ids))

    def add_directory(self, path: HostPath, *, file_ids: bool = True) -> None:
        """Add a directory, with its parents."""
        self._add_directory(host_path(path, self._flavour), file_ids=file_ids)

    def _add_directory(self, path: str, *, file_ids: bool = True) -> list[str]:
        """Add a directory, with its parents; return the keys of those that were missing."""
        found = self._nodes.get(self.key(path))
        if found is not None and not found.info.is_dir:
            raise OptionsError(f"{path} is a file")
        if found is not None:
            return []
        made = self._make_parents(path, file_ids)
        return [*made, self._put(path, _Node(self._name(path), info=_DIRECTORY, file_ids=file_ids))]

    def add_link(self, path: HostPath, target: HostPath) -> None:
        """Add a symbolic link, a junction or a substituted drive; its directories are made.

        :param target: the path that it leads to, from its own directory if it is relative; it need not exist.
        """
        path, target = host_path(path, self._flavour), text_of(target, "target")
        if self._entry(path) in self._nodes:
            raise OptionsError(f"{path} exists")
        self._make_parents(path, file_ids=True)
        self._nodes[self._entry(path)] = _Node(self._name(path), target=target)
        self._has_links = True

    def delete(self, path: HostPath) -> None:
        """Delete a file, a link, or a directory with all that is in it, even if it is open."""
        path = text_of(path)
        key = self._entry(path)
        for found in [key, *self._nodes.inside(key)]:
            self._nodes.pop(found, None)
            self._made.pop(found, None)
        if self.permissive:
            self._deleted.add(key)

    def listing(self, path: HostPath) -> list[str]:
        """Return the names in a directory, sorted."""
        path = text_of(path)
        key = self.key(path)
        return sorted(self._nodes[k].name for k in self._nodes.inside(key) if self._path.dirname(k) == key)

    def disk_id(self, path: HostPath) -> str:
        """Return the identifier that was set on a virtual disk; empty if none was."""
        return self._file(text_of(path)).disk_id

    # For the devices of the fake

    def look(self, path: str) -> FileInfo | None:
        """Return what is at a path; None if nothing is."""
        key = self.key(path)
        node = self._nodes.get(key)
        if node is not None:
            return node.info
        return _PERMISSIVE if self.permissive and key not in self._deleted else None

    def open_disk(self, path: str, *, writable: bool, operation: str) -> OpenDisk:
        """Open a file for a VM: for any number of readers, or for one writer.

        :raises HostError: ERROR_SHARING_VIOLATION. A path that does not exist can be opened; devices check
            whether that is allowed.
        """
        key, found = self.key(path), self.look(path)
        opens = self._opens.setdefault(key, _Opens())
        if opens.writer or (writable and opens.readers):
            raise HostError(operation, HResult.ERROR_SHARING_VIOLATION, f"{path} is in use")
        opens.writer = writable
        opens.readers += not writable
        return OpenDisk(0 if found is None else found.size, self, key, writable)

    def _close(self, key: str, writable: bool) -> None:
        opens = self._opens[key]
        opens.writer = opens.writer and not writable
        opens.readers -= not writable
        if not opens.writer and not opens.readers:
            del self._opens[key]

    def is_open(self, path: str) -> bool:
        """Return whether a VM has a file open."""
        return self.key(path) in self._opens

    # HostFiles

    async def stat(self, path: str) -> FileInfo | None:
        """Return what is at a path; None if nothing is."""
        return self.look(path)

    async def read(self, path: str, max_bytes: int) -> bytes:
        """Read a whole file; HostPathError if it is missing or larger than `max_bytes`."""
        node = self._file(path)
        size = node.info.size
        if size > max_bytes:
            raise HostPathError(path, f"it has {size} bytes, more than {max_bytes}")
        return node.content.ljust(size, b"\0")

    async def copy(self, source: str, target: str) -> None:
        """Copy a file, replacing the target; ERROR_SHARING_VIOLATION if that is in use."""
        node = self._file(source)
        self._refuse_if_open(target, "copy")
        self.add(target, size=node.info.size, content=node.content, file_ids=node.file_ids)

    async def make_overlay(self, base: str, target: str) -> None:
        """Make a disk over another; ERROR_FILE_EXISTS if something is at the target."""
        node = self._file(base)
        if self.key(target) in self._nodes:
            raise HostError(f"make {target}", HResult.ERROR_FILE_EXISTS, "something is there")
        self.add(target, size=node.info.size, content=node.content, file_ids=node.file_ids)

    async def mkdir(self, path: str) -> None:
        """Make a directory with its parents; do nothing if it exists."""
        found = self.look(path)
        if found is not None and not found.is_dir and self.key(path) in self._nodes:
            raise HostPathError(path, "it is a file")
        self._made |= dict.fromkeys(self._add_directory(path))

    def left_empty(self) -> list[str]:
        """Return the directories that were made through :meth:`mkdir` and are empty."""
        return [key for key in self._made if not self._is_filled(key)]

    async def remove(self, path: str) -> None:
        """Remove a file, a link or an empty directory; ERROR_SHARING_VIOLATION if a VM has it open."""
        entry = self._nodes.get(self._entry(path))
        if entry is None or not entry.target:
            self._refuse_if_open(path, "remove")
            if self._is_filled(self.key(path)):
                raise HostPathError(path, "the directory is not empty")
        self.delete(path)

    async def resolve(self, path: str) -> str:
        """Return a path with its links followed; unchanged if it has none, or its target does not exist."""
        followed = self._follow(path)
        is_link = _key(followed, self._flavour) != _key(path, self._flavour)
        return followed if is_link and self.look(followed) is not None else path

    async def has_file_ids(self, path: str) -> bool:
        """Return whether the path's file system answers file-id queries."""
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
        return self._nodes.setdefault(self.key(path), _Node(self._name(path), info=found))

    def _refuse_if_open(self, path: str, operation: str) -> None:
        if self.is_open(path):
            raise HostError(f"{operation} {path}", HResult.ERROR_SHARING_VIOLATION, "a VM has it open")

    def _is_filled(self, directory: str) -> bool:
        """Return whether something is in a directory, which is named by its key."""
        return next(self._nodes.inside(directory), None) is not None

    def _put(self, path: str, node: _Node) -> str:
        """Set what is at a path, and return the key of the path."""
        key = self.key(path)
        self._nodes[key] = node
        self._deleted.discard(key)
        return key

    def _make_parents(self, path: str, file_ids: bool) -> list[str]:
        path = _spelling(path, self._flavour)
        parent = self._path.dirname(path.rstrip(self._path.sep))
        if parent and _key(parent, self._flavour) != _key(path, self._flavour):
            return self._add_directory(parent, file_ids=file_ids)
        return []

    def _name(self, path: str) -> str:
        name: str = self._path.basename(_spelling(path, self._flavour).rstrip(self._path.sep))
        return name

    def _entry(self, path: str) -> str:
        """Return the key of a path itself, which may be a link."""
        return _key(self._follow(path, last=False), self._flavour)

    def _follow(self, path: str, *, last: bool = True) -> str:
        """Return a path with its links followed, its last name only if `last`."""
        if not self._has_links and (self._flavour == "windows" or ".." not in path):
            return path
        here, names = self._split(path)
        links = 0
        while True:
            node = self._nodes.get(_key(here, self._flavour))
            if node is not None and node.target and (names or last):
                links += 1
                if links > _MAX_LINKS:
                    code = HResult.ERROR_CANT_RESOLVE_FILENAME
                    raise HostError(f"resolve {path}", code, "it has too many links")
                here, inside = self._split(self._path.join(self._path.dirname(here), node.target))
                names += inside
            elif not names:
                return here
            else:
                name = names.pop()
                here = self._path.dirname(here) if name == ".." else self._path.join(here, name)

    def _split(self, path: str) -> tuple[str, list[str]]:
        """Return the root of a path, and the names after it, the last one first."""
        drive, rest = self._path.splitdrive(_spelling(path, self._flavour))
        sep = self._path.sep
        root = sep if rest.startswith(sep) else ""
        return drive + root, [name for name in reversed(rest.split(sep)) if name]


@lru_cache(maxsize=4096)
def _key(path: str, flavour: PathFlavour) -> str:
    """Return the key of a path; what is no path of the host is its own key."""
    try:
        return host_path_key(path, flavour)
    except OptionsError:
        return path


def _spelling(path: str, flavour: PathFlavour) -> str:
    try:
        return host_path(path, flavour)
    except OptionsError:
        return path
