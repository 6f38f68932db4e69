"""What QEMU inherits besides its sockets and its memory.

QEMU's user may open next to nothing (:mod:`.users`), so it is opened here. QEMU opens each of these again, by
the name of the descriptor, which asks for no rights to the directories above.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import BinaryIO, Self

from uvm._repr import showing
from uvm.backends.qemu.runtime import VMDirectory
from uvm.backends.qemu.saving import Boot
from uvm.backends.qemu.sockets import SocketFile, bound
from uvm.backends.qemu.users import Identity
from uvm.backends.winerrors import hresult_of
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.common import MIB


def copied_mb(boot: Boot, user: Identity | None, operation: str) -> int:
    """Return how much memory the copies of boot files take as long as a VM is there, rounded up; blocking.

    :param user: the user of its QEMU; None for that of this process.
    :raises HostError: ERROR_FILE_NOT_FOUND if one is gone, E_ACCESSDENIED if it cannot be looked at.
    """
    try:
        found = [os.stat(path) for path in (boot.kernel, boot.initrd) if path]
    except OSError as error:
        raise HostError(operation, hresult_of(error), str(error)) from error
    copied = [each.st_size for each in found if user is not None and not user.may_read(each)]
    return -(-sum(copied) // MIB)


@showing("fds")
class Inherited:
    """Descriptors that QEMU inherits, which are opened here, and closed once it has started; blocking.

    :param directory: the runtime directory of the VM; its record has QEMU's user.
    :param copied_mb: the room that there is for copies of boot files.
    :param console_path: where QEMU is to listen at its serial port; empty for nowhere.
    :ivar fds: the descriptors.
    :ivar kernel: the path in QEMU of the kernel.
    :ivar initrd: that of the initramfs; empty for none.
    :ivar shares: that of the directory with the links to what is shared.
    :ivar console: what QEMU listens at its serial port with: the value of a ``-chardev`` without its id.
    :ivar console_socket: the socket that it listens at; None for none. It is left to the VM to remove.
    :raises HostError: a file cannot be opened, or has grown, or there can be no socket; ERROR_FILE_NOT_FOUND
        if a file, or the directory of the console, is gone; ERROR_ALREADY_EXISTS if something is at the
        console's path.
    """

    def __init__(self, boot: Boot, directory: VMDirectory, copied_mb: int, console_path: str) -> None:
        self.fds: list[int] = []
        self.console_socket: SocketFile | None = None
        self._user = directory.record.user
        self._operation = f"create {directory.record.id}"
        self._room = copied_mb * MIB
        with ExitStack() as undo:
            self._undo = undo
            try:
                self.kernel: str = self._boot_file(boot.kernel)
                self.initrd: str = self._boot_file(boot.initrd)
                self.shares: str = self._add(os.open(directory.shares, os.O_PATH | os.O_CLOEXEC))
                self.console: str = self._listening(console_path)
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                text = f"{console_path}, the console, is there already" if taken else str(error)
                code = HResult.ERROR_ALREADY_EXISTS if taken else hresult_of(error)
                raise HostError(self._operation, code, text) from error
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._undo.close()

    def discard(self) -> None:
        """Close the descriptors, and remove the console, which no VM has."""
        self._undo.close()
        if self.console_socket is not None:
            self.console_socket.remove()

    def _boot_file(self, path: str) -> str:
        """Return the path in QEMU of a file that it reads as it starts."""
        if self._user is None or not path:
            return path
        with open(path, "rb") as file:
            if self._user.may_read(os.fstat(file.fileno())):
                return self._add(os.dup(file.fileno()))
            # Its user may not open it, even so: it gets a copy, in memory.
            found = self._add(os.memfd_create("uvm-boot", os.MFD_CLOEXEC))
            with open(self.fds[-1], "wb", closefd=False) as copy:
                self._copy(file, copy, path)
            return found

    def _copy(self, file: BinaryIO, copy: BinaryIO, path: str) -> None:
        while data := file.read(MIB):
            self._room -= len(data)
            if self._room < 0:
                text = f"{path} has grown since there was found to be room for it; nothing was started"
                raise HostError(self._operation, HResult.ERROR_SHARING_VIOLATION, text)
            copy.write(data)

    def _listening(self, path: str) -> str:
        if not path:
            return ""
        self._add(bound(path).detach())
        self.console_socket = SocketFile.at(path)
        return f"fd={self.fds[-1]},server=on,wait=off"

    def _add(self, fd: int) -> str:
        """Have a descriptor inherited; return the path in QEMU of what it refers to."""
        self.fds.append(fd)
        self._undo.callback(os.close, fd)
        return f"/proc/self/fd/{fd}"
