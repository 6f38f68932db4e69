"""The device mapper, through ``ioctl`` on ``/dev/mapper/control``: read-only devices over others.

A request is ``struct dm_ioctl`` (312 bytes), and to load a table a target after it: ``struct dm_target_spec``
(40 bytes) and its parameters as text that ends with a NUL, in multiples of 8 bytes. A device is created
without a table, is given one, and becomes usable by being resumed.

Source: the kernel's ``include/uapi/linux/dm-ioctl.h``; hcsshim ``internal/guest/storage/devicemapper``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeVar

from uvm.agent.attempts import attempts
from uvm.agent.modules import Modules
from uvm.agent.refused import Refused, reason
from uvm.agent.settings import Settings

SECTOR: Final = 512
_MOST_BYTES: Final = (1 << 63) - 1
_MOST_BLOCK: Final = 1 << 20

#: Of the control node, and of the nodes of devices.
_DIRECTORY: Final = "/dev/mapper"

_HEADER: Final = struct.Struct("<3I5i2IQ128s129s7x")
_TARGET: Final = struct.Struct("<2QiI16s")
_CREATE, _REMOVE, _RESUME, _LOAD = 3, 4, 6, 9
_READ_ONLY: Final = 1

#: What a kind of target needs, besides the device mapper itself.
_MODULES: Final = {"verity": ("dm_verity",)}

_T = TypeVar("_T")

_TRANSIENT: Final = (errno.EBUSY, errno.ENOENT, errno.ENXIO, errno.ENODEV)


class Target(NamedTuple):
    """The one target of a device."""

    kind: str
    sectors: int
    parameters: str

    def packed(self) -> bytes:
        """Return it as the kernel reads it."""
        text = self.parameters.encode() + b"\0"
        text += bytes(-len(text) % 8)
        return _TARGET.pack(0, self.sectors, 0, _TARGET.size + len(text), self.kind.encode()) + text


def linear(device: str, offset_bytes: int, size_bytes: int) -> Target:
    """Return the target that shows a range of a device."""
    return Target("linear", size_bytes // SECTOR, f"{device} {offset_bytes // SECTOR}")


def verity(device: str, info: Settings) -> Target:
    """Return the target that checks a device, whose hashes follow its file system.

    :param info: hcsshim's ``DeviceVerityInfo``.
    :raises Refused: it is none.
    """
    size, block = info.number("Ext4SizeInBytes", _MOST_BYTES), info.number("BlockSize", _MOST_BLOCK)
    words = [info.text(name) for name in ("Algorithm", "RootDigest", "Salt")]
    # They are words of the table: none may add another.
    if not size or not block or not all(re.fullmatch(r"[\w-]+", each, re.ASCII) for each in words):
        raise Refused("the VerityInfo lacks a size, an algorithm, a digest or a salt")
    blocks = size // block
    start = blocks + info.flag("SuperBlock")
    table = (info.number("Version", 1), device, device, block, block, blocks, start, *words)
    return Target("verity", size // SECTOR, " ".join(map(str, table)))


def request(name: str, target: Target | None = None) -> bytearray:
    """Return the bytes of a request that names a device, with its table if it loads one."""
    table = b"" if target is None else target.packed()
    flags = 0 if target is None else _READ_ONLY
    size = _HEADER.size + len(table)
    head = (4, 0, 0, size, _HEADER.size, target is not None, 0, flags, 0, 0, 0, name.encode(), b"")
    return bytearray(_HEADER.pack(*head) + table)


class Mapper:
    """The device mapper of the kernel."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules

    def create(self, name: str, target: Target, seconds: float = 5.0) -> str:
        """Create a device, and return its path. Errors that may pass are tried again for a while.

        :raises Refused: the kernel refuses it; there is no such device then.
        """
        self._modules.need("dm_mod", *_MODULES.get(target.kind, ()))
        try:
            return _tried(lambda: self._create(name, target), seconds, *_TRANSIENT)
        except OSError as error:
            raise Refused(f"failed to create dm-{target.kind} target {name}: {reason(error)}") from None

    def _create(self, name: str, target: Target) -> str:
        path = f"{_DIRECTORY}/{name}"
        with self._control() as control:
            answer = request(name)
            _ioctl(control, _CREATE, answer)
            try:
                _ioctl(control, _LOAD, request(name, target))
                _ioctl(control, _RESUME, request(name))
                device = _HEADER.unpack_from(answer)[10]
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                os.mknod(path, stat.S_IFBLK | 0o600, device)
            except OSError:
                with contextlib.suppress(OSError):
                    _ioctl(control, _REMOVE, request(name))
                raise
        return path

    def remove(self, name: str, seconds: float = 1.0) -> None:
        """Remove a device; one that was just unmounted may be busy for a moment.

        :raises OSError: it is in use, or there is none.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{_DIRECTORY}/{name}")
        with self._control() as control:
            _tried(lambda: _ioctl(control, _REMOVE, request(name)), seconds, errno.EBUSY)

    @contextlib.contextmanager
    def _control(self) -> Iterator[int]:
        fd = os.open(f"{_DIRECTORY}/control", os.O_RDWR | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def _tried(step: Callable[[], _T], seconds: float, *passing: int) -> _T:
    """Return what a step returns, which is tried again for a while if it fails with one of these codes."""
    failure = OSError()
    for _ in attempts(seconds):
        try:
            return step()
        except OSError as error:
            if error.errno not in passing:
                raise
            failure = error
    raise failure


def _ioctl(control: int, operation: int, argument: bytearray) -> None:
    # _IOWR(0xfd, operation, struct dm_ioctl)
    fcntl.ioctl(control, 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | operation, argument)
