"""Local files and archives: what a guest sent is unpacked here, and what it is sent is packed. It blocks.

What is unpacked is made in a new directory beside its target, which it is moved to when all of it is there:
nothing is seen of an archive that is refused. No path is followed: each directory is opened from the one
that it is in, links as they are, so that what another party (a guest that the directory is shared with) makes
there meanwhile leads nowhere. Links are made last, when nothing more is written.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from uvm._guest.tar import END, Member, Parts, Reader, filling, header
from uvm._repr import printed
from uvm.errors import ArchiveError, HostPathError

#: Whether paths can be relative to an open directory; on Windows they cannot.
_RELATIVE: Final = os.open in os.supports_dir_fd
_AS_IT_IS: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _AS_IT_IS
_READ: Final = os.O_RDONLY | _AS_IT_IS
_CHUNK_BYTES: Final = 256 * 1024
#: What names of Windows cannot have, or have another meaning with.
_NOT_ON_WINDOWS: Final = frozenset('<>:"\\|?*').union(map(chr, range(32)))


class Unpacking:
    """An archive on its course to a path.

    :param target: where it is moved when it is complete; nothing may be there.
    :param only: the archive is of one file, of this name, which the target becomes.
    """

    def __init__(self, target: str, *, only: str | None, max_bytes: int, max_entries: int) -> None:
        self.target = os.path.abspath(target)
        self._only = only
        self._reader = Reader(max_bytes, max_entries)
        self._directories: set[Parts] = {()}
        self._files: set[Parts] = set()
        self._links: dict[Parts, str] = {}
        self._file: int | None = None
        self._member: Member | None = None
        self._parent, self._name = os.path.split(self.target)
        self._root = os.path.join(self._parent, f".{self._name[:100]}.{secrets.token_hex(8)}")
        self._moved = False

    def begin(self) -> None:
        """Make the directory in which it is unpacked.

        :raises HostPathError: something is at the target, or no directory above it.
        """
        if not self._name or os.path.lexists(self.target):
            raise HostPathError(self.target, "something is there; files of a guest are copied to a new path")
        if not os.path.isdir(self._parent):
            raise HostPathError(self._parent, "no such directory on the host")
        os.mkdir(self._root, 0o700)

    def feed(self, data: bytes) -> None:
        """Unpack some more of it.

        :raises ArchiveError: it is not to be unpacked.
        """
        for item in self._reader.feed(data):
            if isinstance(item, bytes):
                assert self._file is not None
                _write(self._file, item)
            else:
                self._end_file()
                self._make(item)

    def finish(self) -> None:
        """Move it to its target.

        :raises ArchiveError: it is cut off, or does not hold what was asked for.
        """
        self._end_file()
        self._reader.end()
        for parts, target in self._links.items():
            with self._at(parts) as (name, directory):
                os.symlink(target, name, dir_fd=directory)
        made = self._root
        if self._only is not None:
            if self._files != {(self._only,)}:
                raise ArchiveError(f"it does not hold the file {printed(self._only)}, and that alone")
            made = os.path.join(self._root, self._only)
        else:
            os.chmod(self._root, 0o755)
        if os.path.lexists(self.target):
            raise HostPathError(self.target, "something was put there meanwhile")
        os.rename(made, self.target)
        self._moved = True
        shutil.rmtree(self._root, ignore_errors=True)

    def discard(self) -> None:
        """Delete all of it, at its target too."""
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
            self._file = None
        shutil.rmtree(self._root, ignore_errors=True)
        if self._moved and self._only is not None:
            with suppress(OSError):
                os.unlink(self.target)
        elif self._moved:
            shutil.rmtree(self.target, ignore_errors=True)

    # What is made of each member.

    def _make(self, member: Member) -> None:
        parts = member.parts
        if sys.platform == "win32":
            _check_on_windows(parts)
        if member.kind == "directory":
            self._make_directory(parts)
            return
        if not parts or parts in self._files or parts in self._links or parts in self._directories:
            raise ArchiveError(f"{_named(parts)} is in it twice")
        self._make_directory(parts[:-1])
        if member.kind == "link":
            if sys.platform == "win32":
                raise ArchiveError(f"{_named(parts)} is a link, which Windows may not make")
            self._links[parts] = member.target
        elif member.kind == "hard link":
            self._make_hard_link(parts, member.linked)
        else:
            self._begin_file(member)

    def _make_directory(self, parts: Parts) -> None:
        for depth in range(1, len(parts) + 1):
            at = parts[:depth]
            if at in self._directories:
                continue
            if at in self._files or at in self._links:
                raise ArchiveError(f"{_named(at)} is in it twice")
            with self._at(at) as (name, directory):
                os.mkdir(name, 0o755, dir_fd=directory)
            self._directories.add(at)

    def _begin_file(self, member: Member) -> None:
        with self._at(member.parts) as (name, directory):
            # Its owner can read and write it; nothing of it is special.
            self._file = os.open(name, _NEW, member.mode & 0o755 | 0o600, dir_fd=directory)
        self._files.add(member.parts)
        self._member = member

    def _end_file(self) -> None:
        if self._file is not None and self._member is not None:
            file, self._file = self._file, None
            try:
                if os.utime in os.supports_fd:
                    os.utime(file, (self._member.modified, self._member.modified))
            finally:
                os.close(file)

    def _make_hard_link(self, parts: Parts, linked: Parts) -> None:
        if linked not in self._files:
            raise ArchiveError(f"{_named(parts)} is a link to {_named(linked)}, which is no file before it")
        with self._at(linked) as (source, there), self._at(parts) as (name, here):
            follow = os.link not in os.supports_follow_symlinks
            os.link(source, name, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=follow)
        self._files.add(parts)

    @contextmanager
    def _at(self, parts: Parts) -> Iterator[tuple[str, int | None]]:
        """Yield the name of a member, and the open directory that it is in; on Windows a path, and None."""
        if not _RELATIVE:
            yield os.path.join(self._root, *parts), None
            return
        here = os.open(self._root, _READ | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                there = os.open(part, _READ | os.O_DIRECTORY, dir_fd=here)
                os.close(here)
                here = there
            yield parts[-1], here
        finally:
            os.close(here)


def _named(parts: Parts) -> str:
    return printed("/".join(parts))


def _check_on_windows(parts: Parts) -> None:
    """Refuse names that mean something else on Windows.

    :raises ArchiveError: there is one.
    """
    for part in parts:
        stem = part.partition(".")[0].rstrip(" ").upper()
        device = stem in ("CON", "PRN", "AUX", "NUL") or (stem[:3] in ("COM", "LPT") and len(stem) == 4)
        if device or part[-1] in ". " or not _NOT_ON_WINDOWS.isdisjoint(part):
            raise ArchiveError(f"{_named(parts)} is no name on Windows")


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def packed(source: str, name: str, *, windows: bool) -> Iterator[bytes]:
    """Yield the archive of a local file, of that name, or of all that is in a directory.

    :param windows: for a Windows guest.
    :raises HostPathError: nothing is there; or something in it is no file, directory or link, or was changed.
    """
    if not os.path.lexists(source):
        raise HostPathError(source, "no such file or directory on the host")
    if os.path.isdir(source):
        yield from _packed_directory(source, "", windows)
    else:
        yield from _packed(os.path.realpath(source), name, windows)
    yield END


def _packed_directory(path: str, prefix: str, windows: bool) -> Iterator[bytes]:
    for entry in sorted(os.listdir(path)):
        yield from _packed(os.path.join(path, entry), f"{prefix}{entry}", windows)


def _packed(path: str, name: str, windows: bool) -> Iterator[bytes]:
    info = os.lstat(path)
    mode, modified = stat.S_IMODE(info.st_mode), info.st_mtime
    if stat.S_ISLNK(info.st_mode):
        yield header(name, "link", mode=0o777, modified=modified, target=os.readlink(path), windows=windows)
    elif stat.S_ISDIR(info.st_mode):
        yield header(name, "directory", mode=mode, modified=modified, windows=windows)
        yield from _packed_directory(path, f"{name}/", windows)
    elif stat.S_ISREG(info.st_mode):
        yield from _packed_file(path, name, windows)
    else:
        raise HostPathError(path, "is no file, directory or link, so that no guest can have a copy")


def _packed_file(path: str, name: str, windows: bool) -> Iterator[bytes]:
    with open(os.open(path, _READ), "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise HostPathError(path, "was replaced by something else while it was copied")
        mode = stat.S_IMODE(info.st_mode)
        yield header(name, "file", size=info.st_size, mode=mode, modified=info.st_mtime, windows=windows)
        left = info.st_size
        while left:
            data = file.read(min(left, _CHUNK_BYTES))
            if not data:
                raise HostPathError(path, "was cut while it was copied")
            left -= len(data)
            yield data
        yield filling(info.st_size)
