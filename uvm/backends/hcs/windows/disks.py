"""File operations of Windows alone: file ids, copying without reading, identifiers of virtual disks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from attrs import frozen

from uvm.backends.files import CopyCall, Stop
from uvm.backends.hcs.dlls import CData
from uvm.backends.hcs.text import guid
from uvm.backends.hcs.windows.dlls import Kernel32, SystemLibrary, VirtDisk, closing, wide_path
from uvm.errors import NotSupportedError

_SHARE_ALL: Final = 0x7
_OPEN_EXISTING: Final = 3
#: Needed to open a directory.
_FLAG_BACKUP_SEMANTICS: Final = 0x02000000
_FILE_ID_INFO: Final = 18
_OPEN_VERSION_2: Final = 2
#: The member of SET_VIRTUAL_DISK_INFO to use: a VHD and a VHDX have different identifiers.
_IDENTIFIER, _VIRTUAL_DISK_ID = 2, 5


@contextmanager
def open_path(kernel: SystemLibrary[Kernel32], operation: str, path: str, access: int = 0) -> Iterator[CData]:
    """Open a file or directory, and close it at the end.

    :param access: the rights needed; a query needs none.
    :raises HostError: it cannot be opened.
    """
    functions, ffi = kernel.functions, kernel.ffi
    name = wide_path(ffi, path)
    handle = functions.CreateFileW(
        name, access, _SHARE_ALL, ffi.NULL, _OPEN_EXISTING, _FLAG_BACKUP_SEMANTICS, ffi.NULL
    )
    if handle == ffi.cast("HANDLE", -1):
        raise kernel.error(f"{operation} {path}")
    with closing(kernel, handle):
        yield handle


@frozen(eq=False, repr=False)
class WindowsFileCalls:
    """:class:`~uvm.backends.files.FileCalls` by kernel32 and virtdisk."""

    kernel: SystemLibrary[Kernel32]
    virtdisk: SystemLibrary[VirtDisk]

    def copier(self) -> tuple[CopyCall, Stop]:
        """Return a copy by ``CopyFileExW``, which lets the file system move the data if it can."""
        kernel = self.kernel
        cancel = kernel.ffi.new("BOOL *")

        def copy(source: str, target: str) -> None:
            ffi = kernel.ffi
            names = wide_path(ffi, source), wide_path(ffi, target)
            copied = kernel.functions.CopyFileExW(*names, ffi.NULL, ffi.NULL, cancel, 0)
            kernel.require(f"copy {source} to {target}", copied)

        def stop() -> None:
            cancel[0] = 1

        return copy, stop

    def make_overlay(self, base: str, target: str) -> None:
        """Refuse: clones have copies.

        :raises NotSupportedError: always.
        """
        raise NotSupportedError(f"make a disk over {base}: on Windows, clones have copies; nothing was made")

    def has_file_ids(self, path: str) -> bool:
        """Return whether the file system answers ``FileIdInfo`` (hcsshim internal/uvm/vsmb.go).

        Any refusal means no: Azure Files returns ERROR_INVALID_PARAMETER, others may return another code.
        """
        kernel = self.kernel
        with open_path(kernel, "open", path) as handle:
            out = kernel.ffi.new("FILE_ID_INFO *")
            size = kernel.ffi.sizeof(out[0])
            return bool(kernel.functions.GetFileInformationByHandleEx(handle, _FILE_ID_INFO, out, size))

    def set_disk_id(self, path: str, disk_id: str) -> None:
        """Set a virtual disk's identifier, like go-winio's ``vhd.SetVirtualDiskIdentifier``.

        :raises OptionsError: `disk_id` is no GUID.
        """
        library, wanted = self.virtdisk, guid(disk_id, "a disk id")
        information = library.ffi.new("SET_VIRTUAL_DISK_INFO *")
        # .vhdx, and .avhdx of checkpoints.
        information.Version = _VIRTUAL_DISK_ID if path.lower().endswith("vhdx") else _IDENTIFIER
        library.ffi.buffer(library.ffi.addressof(information[0], "UniqueIdentifier"))[:] = wanted.bytes_le
        operation = f"set the identifier of {path} to {disk_id}"
        with self._open_disk(operation, path) as disk:
            library.check(operation, library.functions.SetVirtualDiskInformation(disk, information))

    @contextmanager
    def _open_disk(self, operation: str, path: str) -> Iterator[CData]:
        functions, ffi = self.virtdisk.functions, self.virtdisk.ffi
        # All zero: Windows detects the type of the disk.
        storage_type = ffi.new("VIRTUAL_STORAGE_TYPE *")
        parameters = ffi.new("OPEN_VIRTUAL_DISK_PARAMETERS *", {"Version": _OPEN_VERSION_2})
        handle = ffi.new("HANDLE *")
        # Version 2 takes no rights here: they follow from the parameters.
        code = functions.OpenVirtualDisk(storage_type, wide_path(ffi, path), 0, 0, parameters, handle)
        self.virtdisk.check(operation, code)
        with closing(self.kernel, handle[0]) as disk:
            yield disk
