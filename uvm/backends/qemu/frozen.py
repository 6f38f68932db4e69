"""The disks of a template, which none may write to while clones can be made of it.

A clone's disk is an overlay, which means something else once the disk below has changed. So the template
keeps QEMU's own lock on each of its disks, "no other may write": every QEMU of this machine that is to open
one to be written, of whatever user, refuses. Those of clones, which only read, do not.

Source: QEMU block/file-posix.c (``RAW_LOCK_SHARED_BASE``, ``BLK_PERM_WRITE``).
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Collection
from typing import Final

from attrs import define, field

from uvm._repr import showing
from uvm.errors import HostError
from uvm.hresult import HResult

#: The byte of a file that QEMU locks if no other may write.
_NO_OTHER_WRITES: Final = 200 + 1
_FLOCK: Final = struct.Struct("@hhqqi")


@showing("paths")
@define(eq=False, repr=False)
class FrozenDisks:
    """The disks of a template that its guest could write to.

    :ivar paths: the paths of their files, backing files too.
    """

    paths: Collection[str]
    _fds: list[int] = field(factory=list)

    @classmethod
    def freeze(cls, paths: Collection[str], operation: str) -> FrozenDisks:
        """Keep the disks from being written; blocking.

        :raises HostError: one cannot be opened; none is frozen.
        """
        frozen = cls(paths)
        for path in paths:
            try:
                frozen._freeze(path)
            except OSError as error:
                frozen.close()
                raise HostError(operation, HResult.E_FAIL, f"{path}: {error.strerror}") from error
        return frozen

    def _freeze(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._fds.append(fd)
        lock = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _NO_OTHER_WRITES, 1, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)

    def close(self) -> None:
        """Let the disks be written again, once no clone has them open."""
        while self._fds:
            os.close(self._fds.pop())
