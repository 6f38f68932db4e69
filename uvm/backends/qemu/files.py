"""The file operations of Linux that are not the same everywhere, of :mod:`uvm.backends.files`.

Copies are made by the kernel, which shares the blocks where the file system can. Identifiers of disks are
written into the header where the format has one in a single place: no tool is needed, and nothing else moves.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from uvm.backends.files import CopyCall, RealFiles, Stop
from uvm.backends.qemu.images import DRIVERS, Image, ImageError, ImageFormat, format_of, read_image, vhd
from uvm.backends.qemu.images.overlay import overlay_image
from uvm.backends.winerrors import host_error
from uvm.backends.workers import Workers
from uvm.errors import HostError, HostPathError, NotSupportedError, OptionsError
from uvm.hresult import HResult

_COPY_BYTES: Final = 16 << 20
#: The kernel cannot copy between these files by itself.
_NOT_BY_KERNEL: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


def linux_files() -> RealFiles:
    """Return the host's files (:class:`~uvm.backend.HostFiles`)."""
    return RealFiles(Workers(), LinuxFileCalls())


class LinuxFileCalls:
    """:class:`~uvm.backends.files.FileCalls` of Linux."""

    def copier(self) -> tuple[CopyCall, Stop]:
        """Return a copy, and what stops it; a copy that fails or is stopped leaves no target."""
        stopped = False

        def copy(source: str, target: str) -> None:
            operation = f"copy {source} to {target}"
            with _translated(operation), open(source, "rb", 0) as read, open(target, "wb", 0) as write:
                try:
                    while not stopped and _copy_some(read.fileno(), write.fileno()):
                        pass
                    os.fchmod(write.fileno(), os.fstat(read.fileno()).st_mode & 0o777)
                except BaseException:
                    os.unlink(target)
                    raise
                if stopped:
                    os.unlink(target)
                    raise HostError(operation, HResult.E_FAIL, "it was stopped")

        def stop() -> None:
            nonlocal stopped
            stopped = True

        return copy, stop

    def make_overlay(self, base: str, target: str) -> None:
        """Make an empty qcow2 image over a disk, for this user alone.

        :raises HostPathError: there is no disk, or none that can have an image over it.
        :raises HostError: the system refused: with ERROR_FILE_EXISTS if something is at the target.
        """
        try:
            format = format_of(base)
            with _translated(f"read {base}"), open(base, "rb", 0) as read:
                image = _header_of(read.fileno(), format)
            content = overlay_image(image.size_bytes, os.fsencode(base), DRIVERS[format])
        except ImageError as error:
            raise HostPathError(base, str(error)) from error
        with _translated(f"make {target}"), open(target, "xb", 0, opener=_for_this_user) as write:
            try:
                _write_all(write.fileno(), content)
            except BaseException:
                os.unlink(target)
                raise

    def has_file_ids(self, path: str) -> bool:
        """Return True: files have inodes, on every file system."""
        with _translated(f"open {path}"):
            os.stat(path)
        return True

    def set_disk_id(self, path: str, disk_id: str) -> None:
        """Set the identifier of a VHD or a VHDX.

        :raises OptionsError: `disk_id` is no GUID.
        :raises HostPathError: there is no file, or no disk of the format that its name says.
        :raises NotSupportedError: its format has no identifier.
        """
        try:
            wanted = UUID(disk_id)
        except ValueError:
            raise OptionsError(f"a disk id is a GUID, not {disk_id!r}") from None
        if not os.path.exists(path):
            raise HostPathError(path, "there is no such file")
        with _translated(f"set the identifier of {path}"), open(path, "r+b", 0) as file:
            fd = file.fileno()
            try:
                image = _header_of(fd, format_of(path))
            except ImageError as error:
                raise HostPathError(path, str(error)) from error
            if not image.identifiers:
                raise NotSupportedError(f"{path}: a {image.format} image has no identifier")
            for at in image.identifiers:
                written = wanted.bytes_le
                if image.format == "vhd":
                    written = vhd.with_id(os.pread(fd, vhd.SECTOR_BYTES, at), wanted)
                os.pwrite(fd, written, at)


def _copy_some(source: int, target: int) -> int:
    """Copy what comes next; return how many bytes these are, 0 at the end."""
    try:
        return os.copy_file_range(source, target, _COPY_BYTES)
    except OSError as error:
        if error.errno not in _NOT_BY_KERNEL:
            raise
    data = os.read(source, _COPY_BYTES)
    _write_all(target, data)
    return len(data)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _header_of(fd: int, format: ImageFormat) -> Image:
    size = os.lseek(fd, 0, os.SEEK_END)
    return read_image(format, size, lambda at, length: os.pread(fd, length, at))


def _for_this_user(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def _translated(operation: str) -> Iterator[None]:
    """Translate errors of the system."""
    try:
        yield
    except OSError as error:
        raise host_error(operation, error) from error
