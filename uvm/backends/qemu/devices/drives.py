"""Disk images as SCSI disks of the guest: opened by us, checked, and handed to QEMU as descriptors.

How it works
------------

::

    open --> header --> add-fd --> blockdev-add --> device_add        a drive
                                                    device_del, its event, blockdev-del, remove-fd

The header is read from the descriptor that QEMU gets, so that no other file can be put there in between,
and QEMU opens nothing by name. The format is always stated (:mod:`uvm.backends.qemu.images`). A file that
an image names besides is opened only if the caller has granted the VM access to it: that is how a backing
file of a qcow2 image is named. Parents and external data files are refused. A disk of a clone may be over
files that its template has open, without a grant.

A fixed VHD is shown without its footer. Errors of the disk reach the guest as such, and do not stop the VM.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Final

from attrs import define, field

from uvm._repr import showing
from uvm.backend import JSON
from uvm.backends.qemu.devices.request import Host, gone, number_in, unplugged
from uvm.backends.qemu.images import DRIVERS, Image, ImageError, ImageFormat, format_of, read_image
from uvm.backends.qemu.monitor import Monitor
from uvm.backends.qemu.qmp import QMPError
from uvm.backends.requests.access import AccessTable
from uvm.backends.winerrors import hresult_of
from uvm.backends.workers import Workers
from uvm.errors import HostError
from uvm.hresult import HResult

#: How many backing files may follow one another.
_MAX_CHAIN: Final = 16

_WHY: Final = {
    errno.EACCES: "this user may not {} it",
    errno.EPERM: "this user may not {} it",
    errno.EROFS: "its file system is mounted read-only; attach it read-only",
    errno.EISDIR: "it is a directory",
}


@define(eq=False)
class OpenImage:
    """An open disk image, and its backing file.

    :ivar fd: its descriptor; -1 once it is closed.
    :ivar is_block: it is a block device.
    """

    path: str
    fd: int
    image: Image
    is_block: bool
    backing: OpenImage | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """The path of the image, and those of the backing files."""
        return (self.path, *(() if self.backing is None else self.backing.paths))

    def close(self) -> None:
        """Close it, and its backing files."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self.backing is not None:
            self.backing.close()


def open_image(
    path: str,
    *,
    writable: bool,
    vm_id: str,
    access: AccessTable,
    operation: str,
    format: ImageFormat | None = None,
    bases: Collection[str] = (),
    depth: int = _MAX_CHAIN,
) -> OpenImage:
    """Open a disk image and read its header; blocking.

    :param format: its format, if its name does not say that.
    :param bases: the paths of backing files that need no grant.
    :param depth: how many backing files may follow one another.
    :raises HostError: it cannot be opened: ERROR_FILE_NOT_FOUND, E_ACCESSDENIED; it is no image of its
        format, or names files of the host that the VM has no access to: ERROR_INVALID_DATA, E_ACCESSDENIED.
    """
    fd = _open(path, writable, operation)
    with ExitStack() as undo:
        undo.callback(os.close, fd)
        with _damage_refused(path, operation):
            image, is_block = _read(path, fd, format)
            backing = _backing_path(path, image, depth)
        found = OpenImage(path, fd, image, is_block)
        if backing is not None:
            if backing not in bases and not access.allows(backing, vm_id, writable=False):
                raise HostError(
                    operation,
                    HResult.E_ACCESSDENIED,
                    f"{path} names a backing file, {backing}, to which the VM has no access; grant it access "
                    "to that file, or make an image of its own with qemu-img convert",
                )
            with _damage_refused(backing, operation):
                backing_format = _backing_format(backing, image)
            found.backing = open_image(
                backing,
                writable=False,
                vm_id=vm_id,
                access=access,
                operation=operation,
                format=backing_format,
                bases=bases,
                depth=depth - 1,
            )
        undo.pop_all()
    return found


@contextmanager
def _damage_refused(path: str, operation: str) -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise HostError(operation, HResult.ERROR_INVALID_DATA, f"{path}: {error}") from error
    except OSError as error:
        raise HostError(operation, HResult.E_FAIL, f"{path}: {error.strerror}") from error


def _open(path: str, writable: bool, operation: str) -> int:
    # Not to wait for who writes to a FIFO.
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or 0
        why = _WHY.get(number, getattr(error, "strerror", None) or str(error))
        text = f"{path}: {why.format('write to' if writable else 'read')}"
        raise HostError(operation, hresult_of(error), text) from error


def _read(path: str, fd: int, format: ImageFormat | None) -> tuple[Image, bool]:
    """Return what an open file is, and whether it is a block device."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        raise ImageError("it is a directory")
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ImageError("it is neither a file nor a block device")
    os.set_blocking(fd, True)
    size = os.lseek(fd, 0, os.SEEK_END)
    named = format or ("raw" if stat.S_ISBLK(mode) else format_of(path))
    return read_image(named, size, lambda offset, length: _pread(fd, offset, length)), stat.S_ISBLK(mode)


def _pread(fd: int, offset: int, length: int) -> bytes:
    if offset > 1 << 62:
        return b""
    return os.pread(fd, length, offset)


def _backing_path(path: str, image: Image, depth: int) -> str | None:
    """Return the path of an image's backing file; None if it has none. ImageError for what is refused."""
    if image.data_file is not None:
        raise ImageError(
            f"its data is in another file ({image.data_file!r}), which is not supported; "
            "make an image of its own with qemu-img convert"
        )
    if image.backing is None:
        return None
    if image.format != "qcow2":
        raise ImageError(
            f"it is a differencing disk, which needs its parent ({image.backing!r}), and is not supported; "
            "merge it into its parent, or make an image of its own with qemu-img convert"
        )
    if depth <= 0:
        raise ImageError(f"more than {_MAX_CHAIN} backing files follow one another")
    return os.path.join(os.path.dirname(path), image.backing)


def _backing_format(path: str, image: Image) -> ImageFormat:
    """Return the format of a backing file: what the image says, else what its name says."""
    for format, driver in DRIVERS.items():
        if image.backing_format == driver:
            return format
    return format_of(path)


@showing("name")
@define(eq=False, repr=False)
class Drive:
    """A SCSI disk of the guest.

    :ivar name: the name of its device, and of its node.
    :ivar size_bytes: the size of the disk.
    :ivar paths: the paths of its files, as this process has opened them.
    """

    name: str
    size_bytes: int = field(default=0, init=False)
    paths: tuple[str, ...] = field(default=(), init=False)
    _fdsets: list[int] = field(factory=list, init=False)

    async def attach(
        self,
        host: Host,
        operation: str,
        path: str,
        bus: str,
        lun: int,
        *,
        read_only: bool,
        only_block: bool = False,
        format: ImageFormat | None = None,
        bases: Collection[str] = (),
        node: JSON | None = None,
        device: JSON | None = None,
        fits: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Open an image and attach it; nothing of it is there if it is refused.

        :param only_block: refuse what is no block device.
        :param format: its format, if its name does not say that.
        :param bases: the paths of backing files that need no grant.
        :param node: further options of its node.
        :param device: further options of its device.
        :param fits: raises if a disk of a size does not fit.
        """
        machine = host.machine
        opening = partial(
            open_image,
            path,
            writable=not read_only,
            vm_id=machine.id,
            access=host.access,
            operation=operation,
            format=format,
            bases=bases,
        )
        with closing(await Workers(1).run(opening, undo=OpenImage.close)) as opened:
            if only_block and not opened.is_block:
                text = f"{path} is no block device, which PassThru needs"
                raise HostError(operation, HResult.E_INVALIDARG, text)
            fits(opened.image.size_bytes)
            self.size_bytes, self.paths = opened.image.size_bytes, opened.paths
            try:
                await self._hand_over(machine, operation, opened)
                options = {"node-name": self.name, **_node(opened, self._fdsets, read_only), **(node or {})}
                await machine.ask(operation, "blockdev-add", options)
                await machine.ask(operation, "device_add", self._device(bus, lun) | (device or {}))
            except HostError as error:
                await self._remove_node(machine, operation)
                raise _as_said(error, opened) from error

    def adopt(self, fdsets: list[int], size_bytes: int = 0) -> None:
        """Have what an earlier process has attached.

        :param fdsets: what QEMU holds of its files.
        """
        self._fdsets, self.size_bytes = [*fdsets], size_bytes

    async def detach(self, machine: Monitor, operation: str) -> None:
        """Detach it, once the guest has released it; what is there no more is none."""
        await unplugged(machine, operation, self.name)
        await self._remove_node(machine, operation)

    def _device(self, bus: str, lun: int) -> JSON:
        return {
            "driver": "scsi-hd",
            "id": self.name,
            "bus": f"{bus}.0",
            "channel": 0,
            "scsi-id": 0,
            "lun": lun,
            "drive": self.name,
            "werror": "report",
            "rerror": "report",
        }

    async def _hand_over(self, machine: Monitor, operation: str, opened: OpenImage) -> None:
        each: OpenImage | None = opened
        while each is not None:
            added = await machine.ask(operation, "add-fd", {"opaque": self.name}, fds=(each.fd,))
            self._fdsets.append(number_in(added, "fdset-id", operation))
            each = each.backing

    async def _remove_node(self, machine: Monitor, operation: str) -> None:
        await gone(machine, operation, "blockdev-del", {"node-name": self.name})
        while self._fdsets:
            await gone(machine, operation, "remove-fd", {"fdset-id": self._fdsets[-1]})
            self._fdsets.pop()


def _node(opened: OpenImage, fdsets: list[int], read_only: bool) -> JSON:
    """Return the options of an image's node, without its name; those of its backing file are in it."""
    image = opened.image
    file: JSON = {
        "driver": "host_device" if opened.is_block else "file",
        "filename": f"/dev/fdset/{fdsets[0]}",
        "read-only": read_only,
        "discard": "unmap",
    }
    driver = "raw" if image.fixed else DRIVERS[image.format]
    node: JSON = {"driver": driver, "read-only": read_only, "discard": "unmap", "file": file}
    if image.format == "vhd" and image.fixed:
        node |= {"offset": 0, "size": image.size_bytes}
    if image.format == "qcow2":
        # Stated also if there is none: QEMU is to read no name from the image.
        node["backing"] = None if opened.backing is None else _node(opened.backing, fdsets[1:], True)
    return node


def _as_said(error: HostError, opened: OpenImage) -> HostError:
    """Return a refusal of QEMU's with the code and the words of what it means."""
    cause = error.__cause__
    if not isinstance(cause, QMPError):
        return error
    for words, code, text in (
        ("lock", HResult.ERROR_SHARING_VIOLATION, "it is in use by another VM or process"),
        ("Permission denied", HResult.E_ACCESSDENIED, "QEMU may not open it"),
        (
            "replayed",
            HResult.ERROR_INVALID_DATA,
            "its log is open; mend it with qemu-img check -r all",
        ),
    ):
        if words in cause.text:
            return HostError(error.operation, code, f"{opened.path}: {text} ({cause.text})")
    if cause.command == "blockdev-add" and not opened.image.fixed:
        text = f"it is damaged; see how with qemu-img check, or have another image ({cause.text})"
        return HostError(error.operation, HResult.ERROR_INVALID_DATA, f"{opened.path}: {text}")
    return error
