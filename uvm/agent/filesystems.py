"""File systems: mounted, recognised, and unmounted.

What may hang runs in a child process (:mod:`uvm.agent.killable`). A mount that fails leaves no directory that
it made. Nothing is mounted over another mount, and nothing is detached lazily: a mount that is in use stays,
and its unmounting is refused.

Source: hcsshim internal/guest/storage/mount.go and internal/guest/storage/scsi/scsi.go.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from uvm.agent import syscalls
from uvm.agent.killable import Killable
from uvm.agent.modules import Modules
from uvm.agent.mounts import is_mounted
from uvm.agent.refused import Refused, reason

#: Options that are flags: the bit, and whether the option clears it.
_FLAGS: Final = {
    "defaults": (0, False),
    "ro": (1, False),
    "rw": (1, True),
    "nosuid": (2, False),
    "suid": (2, True),
    "nodev": (4, False),
    "dev": (4, True),
    "noexec": (8, False),
    "exec": (8, True),
    "sync": (16, False),
    "async": (16, True),
    "mand": (64, False),
    "nomand": (64, True),
    "dirsync": (128, False),
    "noatime": (1024, False),
    "atime": (1024, True),
    "nodiratime": (2048, False),
    "diratime": (2048, True),
    "silent": (1 << 15, False),
    "loud": (1 << 15, True),
    "relatime": (1 << 21, False),
    "norelatime": (1 << 21, True),
    "iversion": (1 << 23, False),
    "noiversion": (1 << 23, True),
    "strictatime": (1 << 24, False),
    "nostrictatime": (1 << 24, True),
    "lazytime": (1 << 25, False),
    "nolazytime": (1 << 25, True),
}
_REC: Final = 16384
_PROPAGATION: Final = {"unbindable": 1 << 17, "private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20}

#: The offset and the bytes by which a file system is known.
_MAGIC: Final = {
    "ext4": (0x438, b"\x53\xef"),
    "xfs": (0, b"XFSB"),
    "erofs": (0x400, b"\xe2\xe1\xf5\xe0"),
    "squashfs": (0, b"hsqs"),
}
#: A device that is read-only cannot have its journal replayed.
_READ_ONLY: Final = {"ext4": "noload", "xfs": "norecovery"}
_CHECKSUMS: Final = ("crc32c_intel", "crc32c_generic")

#: The commands that make file systems, before the device; the first that there is. busybox makes an ext4
#: without a journal, which is an ext2.
_MAKERS: Final = {
    "ext4": (("mkfs.ext4", "-q", "-F"), ("mke2fs", "-F")),
    "xfs": (("mkfs.xfs", "-q", "-f"),),
}
_PROGRAMS: Final = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
_FORMAT_SECONDS: Final = 120.0

#: How many mounts over each other are unmounted at once, as in hcsshim.
_STACKED: Final = 5


class Options(NamedTuple):
    """The options of a mount: flags of the kernel, changes of propagation, data for the file system."""

    flags: int
    propagation: tuple[int, ...]
    data: tuple[str, ...]


def parse_options(options: Iterable[str]) -> Options:
    """Return options, sorted by what they are."""
    flags, propagation, data = 0, [], []
    for option in options:
        bare = option.removeprefix("r")
        if option in _FLAGS:
            bit, clears = _FLAGS[option]
            flags = flags & ~bit if clears else flags | bit
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        elif bare in _PROPAGATION:
            propagation.append(_PROPAGATION[bare] | _REC)
        else:
            data.append(option)
    return Options(flags, tuple(propagation), tuple(data))


def recognised(device: str) -> str:
    """Return the kind of the file system on a device; empty if it is none that is known."""
    with open(device, "rb") as file:
        head = file.read(0x440)
    return next((kind for kind, (at, magic) in _MAGIC.items() if head.startswith(magic, at)), "")


class Filesystems:
    """What mounts and unmounts."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._killable = Killable({"mount": syscalls.mount, "unmount": _unmount_all, "run": _run})

    def mount_device(
        self,
        device: str,
        target: str,
        *,
        kind: str = "",
        read_only: bool = False,
        options: Iterable[str] = (),
    ) -> None:
        """Mount the file system on a device.

        :param kind: its kind; by default what is recognised on the device.
        :raises Refused: it cannot be mounted; nothing is left of it.
        """
        kind = kind or recognised(device)
        if not kind:
            raise Refused("getting device's filesystem: could not get device filesystem type")
        flags, propagation, data = parse_options(options)
        if read_only:
            flags |= syscalls.MS_RDONLY
        if flags & syscalls.MS_RDONLY and kind in _READ_ONLY and _READ_ONLY[kind] not in data:
            data = (*data, _READ_ONLY[kind])
        self._modules.need(*_CHECKSUMS)
        self.mount(device, target, kind, flags, ",".join(data))
        for each in propagation:
            self._killable("mount", target, target, "", each)

    def ensure(self, device: str, kind: str) -> None:
        """Make a file system on a device that has none of that kind; what is on it is lost.

        :raises Refused: the kind is none that can be made, or making it failed.
        """
        if recognised(device) == kind:
            return
        if kind not in _MAKERS:
            raise Refused(f"unsupported filesystem {kind} requested for device")
        found = [(path, each) for each in _MAKERS[kind] if (path := _program(each[0]))]
        if not found:
            raise Refused(f'{kind} format: exec: "mkfs.{kind}": executable file not found in $PATH')
        path, (name, *options) = found[0]
        try:
            self._killable("run", [path, *options, device], seconds=_FORMAT_SECONDS)
        except OSError as error:
            raise Refused(f"{kind} format: {name} failed to format {device}: {reason(error)}") from None

    def mount(
        self, source: str, target: str, kind: str, flags: int = 0, data: str = "", mode: int = 0o700
    ) -> None:
        """Mount a file system at a path, which is made with its parents if it is not there.

        :param mode: the permissions of what is made.
        :raises Refused: it cannot be mounted, because of an OSError; or something is mounted there.
        """
        if len(os.fsencode(data)) > syscalls.MOUNT_DATA_SIZE:
            raise Refused(f"mounting {target}: its options have more than {syscalls.MOUNT_DATA_SIZE} bytes")
        self._modules.need(kind)
        made = make_directory(target, mode)
        try:
            if not made and is_mounted(target):
                raise Refused(f"mounting {target}: device or resource busy: something is mounted there")
            self._killable("mount", source, target, kind, flags, data)
        except OSError as error:
            if made:
                remove_directory(target)
            missing = f": the kernel has no {kind}" if error.errno == errno.ENODEV else ""
            raise Refused(f"mounting {source} at {target}: {reason(error)}{missing}") from error

    def unmount(self, target: str) -> None:
        """Unmount a path and remove its directory; do nothing if it is not there.

        :raises Refused: it is in use.
        """
        if not os.path.isdir(target):
            return
        try:
            self._killable("unmount", target)
        except OSError as error:
            raise Refused(f"failed to unmount path '{target}': {reason(error)}") from None
        remove_directory(target)


def _unmount_all(target: str) -> None:
    """Unmount what is mounted at a path, all that is mounted over each other."""
    for _ in range(_STACKED):
        try:
            syscalls.umount(target)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return
            raise


def _run(command: list[str]) -> None:
    if os.spawnv(os.P_WAIT, command[0], command):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def _program(name: str) -> str | None:
    paths = (f"{directory}/{name}" for directory in _PROGRAMS)
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def make_directory(path: str, mode: int) -> bool:
    """Make a directory with its parents; return whether it was not there.

    :raises Refused: it cannot be made.
    """
    if os.path.isdir(path):
        return False
    try:
        os.makedirs(path, mode)
    except OSError as error:
        raise Refused(f"mkdir {path}: {reason(error)}") from None
    return True


def remove_directory(path: str) -> None:
    """Remove a directory that was mounted at; one that has other contents stays."""
    with contextlib.suppress(OSError):
        os.rmdir(path)
