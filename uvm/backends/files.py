"""The real file system of the host (:class:`~uvm.backend.HostFiles`).

Uses Python's standard library, and :class:`FileCalls` for what only Windows can do. On cancellation a query
is abandoned; a change is waited for, so that a cancelled caller can clean up after it, and a copy is asked to
stop.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from attrs import frozen

from uvm.backend import FileInfo
from uvm.backends.winerrors import CANT_RESOLVE_FILENAME, code_of, host_error
from uvm.backends.workers import Workers
from uvm.errors import HostPathError

_READ_BYTES: Final = 1 << 20

#: Makes a copy of a file, blocking; HostError if it fails, or was stopped.
CopyCall = Callable[[str, str], None]
#: Asks a call in progress to end early.
Stop = Callable[[], object]


class FileCalls(Protocol):
    """Blocking file operations that depend on the operating system."""

    def copier(self) -> tuple[CopyCall, Stop]:
        """Return a copy operation, and what stops it from any thread."""

    def make_overlay(self, base: str, target: str) -> None:
        """Make an empty disk over another."""

    def has_file_ids(self, path: str) -> bool:
        """Return whether the path's file system answers file-id queries."""

    def set_disk_id(self, path: str, disk_id: str) -> None:
        """Set the identifier of a virtual disk file."""


@frozen(eq=False, repr=False)
class RealFiles:
    """The host's files.

    :param workers: the threads for blocking calls.
    :param calls: the operations that depend on the operating system.
    """

    _workers: Workers
    _calls: FileCalls

    async def stat(self, path: str) -> FileInfo | None:
        """Return what is at a path, following links; None if it does not exist.

        :raises HostPathError: the path is not valid.
        :raises HostError: the system refused.
        """
        return await self._workers.run(_stat, path)

    async def resolve(self, path: str) -> str:
        """Return a path with its links and ``..`` resolved, as ``GetFinalPathNameByHandleW`` does.

        What has none, is missing or cannot be opened is returned as it is, and so is a device.

        :raises HostPathError: no path can be like that.
        :raises HostError: its links never end.
        """
        return await self._workers.run(_resolve, path)

    async def read(self, path: str, max_bytes: int) -> bytes:
        """Return the contents of a file. At most `max_bytes` and one are ever read, whatever its size says.

        :raises HostPathError: it does not exist, is no file, or is larger than `max_bytes`.
        :raises HostError: the system refused.
        """
        return await self._workers.run(_read, path, max_bytes)

    async def copy(self, source: str, target: str) -> None:
        """Copy a file, replacing the target.

        :raises HostPathError: the source does not exist, or is no file.
        :raises HostError: the system refused.
        """
        copy, stop = self._calls.copier()
        await self._workers.finish(_copy, copy, source, target, stop=stop)

    async def make_overlay(self, base: str, target: str) -> None:
        """Make an empty disk over another.

        :raises HostPathError: the base is no disk.
        :raises HostError: the system refused: with ERROR_FILE_EXISTS if something is at the target.
        :raises NotSupportedError: there are none on this system.
        """
        await self._workers.finish(self._calls.make_overlay, base, target)

    async def mkdir(self, path: str) -> None:
        """Make a directory and its parents. Does nothing if it exists.

        :raises HostPathError: the path or one of its parents is a file.
        :raises HostError: the system refused.
        """
        await self._workers.finish(_mkdir, path)

    async def remove(self, path: str) -> None:
        """Remove a file or an empty directory. Does nothing if it does not exist.

        :raises HostPathError: the directory is not empty.
        :raises HostError: the system refused, for instance because it is in use.
        """
        await self._workers.finish(_remove, path)

    async def has_file_ids(self, path: str) -> bool:
        """Return whether the path's file system answers file-id queries (Azure Files does not).

        :raises HostError: the path cannot be opened.
        """
        return await self._workers.run(self._calls.has_file_ids, path)

    async def set_disk_id(self, path: str, disk_id: str) -> None:
        """Set the identifier of a virtual disk file (``.vhd``, ``.vhdx``).

        :param disk_id: a GUID.
        :raises HostError: the system refused.
        """
        await self._workers.finish(self._calls.set_disk_id, path, disk_id)


def _stat(path: str) -> FileInfo | None:
    with _translated_errors("stat", path):
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        is_dir = stat.S_ISDIR(found.st_mode)
        return FileInfo(0 if is_dir else found.st_size, is_dir)


def _resolve(path: str) -> str:
    if path.startswith("\\\\.\\"):
        return path
    with _translated_errors("resolve", path):
        try:
            if "\0" in path:
                # From Python 3.13 on, realpath has an OSError for it, as for what is not there.
                raise ValueError("embedded null character")
            resolved = os.path.realpath(path, strict=True)
        except OSError as e:
            if e.errno == errno.ELOOP or code_of(e) == CANT_RESOLVE_FILENAME:
                raise
            return path
    # It may differ in case alone, as from the name on the disk. Nothing but this folds a "..".
    is_same = os.path.normcase(resolved) == os.path.normcase(os.path.normpath(path))
    return path if is_same and os.pardir not in path.split(os.sep) else resolved


def _require_file(path: str) -> FileInfo:
    found = _stat(path)
    if found is None:
        raise HostPathError(path, "it does not exist")
    if found.is_dir:
        raise HostPathError(path, "it is a directory")
    return found


def _read(path: str, max_bytes: int) -> bytes:
    found = _require_file(path)
    if found.size > max_bytes:
        raise HostPathError(path, f"it has {found.size} bytes, more than {max_bytes}")
    with _translated_errors("read", path), open(path, "rb") as file:
        # It may grow meanwhile, and a device has no size.
        content = bytearray()
        while len(content) <= max_bytes:
            part = file.read(min(max_bytes + 1 - len(content), _READ_BYTES))
            if not part:
                return bytes(content)
            content += part
    raise HostPathError(path, f"it has more than {max_bytes} bytes")


def _copy(copy: CopyCall, source: str, target: str) -> None:
    _require_file(source)
    copy(source, target)


def _mkdir(path: str) -> None:
    with _translated_errors("mkdir", path):
        try:
            os.makedirs(path, exist_ok=True)
        except FileExistsError:
            raise HostPathError(path, "it is a file") from None
        except NotADirectoryError:
            raise HostPathError(path, "one of its parents is a file") from None


def _remove(path: str) -> None:
    with _translated_errors("remove", path):
        try:
            # As rmdir sees it: a directory, or a junction on Windows, but no link to a directory.
            if stat.S_ISDIR(os.lstat(path).st_mode):
                os.rmdir(path)
            else:
                os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as e:
            if e.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise HostPathError(path, "the directory is not empty") from None
            raise


@contextmanager
def _translated_errors(operation: str, path: str) -> Iterator[None]:
    """Translate Python's exceptions into those of this library."""
    try:
        yield
    except OSError as e:
        raise host_error(f"{operation} {path}", e) from e
    except ValueError as e:
        # A NUL, or an unpaired surrogate.
        raise HostPathError(ascii(path), f"it is not a valid path: {e}") from e
