"""The real file system of the host (:class:`~uvm.backend.HostFiles`).

What Python's standard library does is done by it; what only Windows knows of a file goes through
:class:`FileCalls`. Looking is given up where it is cancelled. What changes something is waited for, so that
a cancelled caller can clean up after it; a copy is told to stop.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from uvm.backend import FileInfo
from uvm.backends.hcs.workers import Workers
from uvm.errors import HostError, HostPathError
from uvm.hresult import HResult, hresult_from_win32

_READ_BYTES: Final = 1 << 20

#: Windows's codes for the errors of a C library, where the system that we are on is not Windows.
_WIN32_OF: Final = {
    errno.ENOENT: 2,
    errno.EACCES: 5,
    errno.EPERM: 5,
    errno.EBUSY: 32,
    errno.EEXIST: 80,
    errno.ENOSPC: 112,
    errno.ENOTEMPTY: 145,
    errno.ENAMETOOLONG: 206,
    errno.ENOTDIR: 267,
}


class Stop(Protocol):
    """Asks a call that is under way to end early."""

    def __call__(self) -> object: ...


class FileCalls(Protocol):
    """Blocking calls on files that only the operating system has."""

    def copier(self) -> tuple[CopyCall, Stop]:
        """Make a copy operation: what carries it out, and what stops it from any thread."""

    def has_file_ids(self, path: str) -> bool:
        """Tell whether the path's file system answers file-id queries."""

    def set_disk_id(self, path: str, disk_id: str) -> None:
        """Set the identifier of a virtual disk file."""


class CopyCall(Protocol):
    """Carries out a copy operation, blocking; HostError where it fails, or was stopped."""

    def __call__(self, source: str, target: str, /) -> None: ...


class RealFiles:
    """The host's files.

    :param workers: where calls block.
    :param calls: what only the operating system has.
    """

    def __init__(self, workers: Workers, calls: FileCalls) -> None:
        self._workers = workers
        self._calls = calls

    async def stat(self, path: str) -> FileInfo | None:
        """Look at a path, following links; None where nothing is there.

        :raises HostPathError: no path can be like that.
        :raises HostError: it cannot be looked at.
        """
        return await self._workers.run(_stat, path)

    async def read(self, path: str, max_bytes: int) -> bytes:
        """Read a whole file. No more than ``max_bytes`` and one are ever read, whatever its size says.

        :raises HostPathError: it is missing, no file, or larger than ``max_bytes``.
        :raises HostError: it cannot be read.
        """
        return await self._workers.run(_read, path, max_bytes)

    async def copy(self, source: str, target: str) -> None:
        """Copy a file over whatever is at the target.

        :raises HostPathError: the source is missing, or no file.
        :raises HostError: the system refused.
        """
        copy, stop = self._calls.copier()
        await self._workers.finish(_copy, copy, source, target, stop=stop)

    async def mkdir(self, path: str) -> None:
        """Make a directory with its parents; nothing happens where it exists.

        :raises HostPathError: a file is there, or above.
        :raises HostError: the system refused.
        """
        await self._workers.finish(_mkdir, path)

    async def remove(self, path: str) -> None:
        """Remove a file or an empty directory; nothing happens where it does not exist.

        :raises HostPathError: the directory is not empty.
        :raises HostError: the system refused, for instance because it is in use.
        """
        await self._workers.finish(_remove, path)

    async def has_file_ids(self, path: str) -> bool:
        """Tell whether the path's file system answers file-id queries (Azure Files does not).

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
    with _told("stat", path):
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        is_dir = stat.S_ISDIR(found.st_mode)
        return FileInfo(0 if is_dir else found.st_size, is_dir)


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
    with _told("read", path), open(path, "rb") as file:
        # It may grow under our eyes, and a device has no size.
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
    with _told("mkdir", path):
        try:
            os.makedirs(path, exist_ok=True)
        except FileExistsError:
            raise HostPathError(path, "it is a file") from None
        except NotADirectoryError:
            raise HostPathError(path, "a file is where one of its parents has to be") from None


def _remove(path: str) -> None:
    with _told("remove", path):
        try:
            if _is_real_directory(path):
                _rmdir(path)
            else:
                os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return


def _is_real_directory(path: str) -> bool:
    """Tell whether rmdir removes it: a directory, or on Windows a junction, but no link to a directory."""
    return stat.S_ISDIR(os.lstat(path).st_mode)


def _rmdir(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError as e:
        if e.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise HostPathError(path, "the directory is not empty") from None
        raise


@contextmanager
def _told(operation: str, path: str) -> Iterator[None]:
    """Turn what Python raises into errors of ours."""
    try:
        yield
    except OSError as e:
        raise HostError(f"{operation} {path}", _hresult(e), e.strerror or str(e)) from e
    except ValueError as e:
        # A NUL, or half of a surrogate pair.
        raise HostPathError(ascii(path), f"no path is like that: {e}") from e


def _hresult(error: OSError) -> int:
    code: int | None = getattr(error, "winerror", None)
    if code is None:
        code = _WIN32_OF.get(error.errno or 0)
    return HResult.E_FAIL if code is None else hresult_from_win32(code)
