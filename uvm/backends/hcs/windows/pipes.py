"""The ends of named pipes, as handles for overlapped I/O."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from attrs import frozen

from uvm.backends.hcs.dlls import CData
from uvm.backends.hcs.windows.dlls import (
    AdvApi32,
    Kernel32,
    SystemLibrary,
    advapi32,
    freeing,
    kernel32,
    wide_path,
)

#: Full access for the system and for administrators, and none for others; nothing is inherited.
_ADMINISTRATORS_ONLY: Final = "D:P(A;;GA;;;SY)(A;;GA;;;BA)"
_SDDL_REVISION: Final = 1

_FILE_FLAG_OVERLAPPED: Final = 0x40000000
_FILE_FLAG_FIRST_PIPE_INSTANCE: Final = 0x00080000
#: The server learns nothing of its client, and cannot act as it: SECURITY_ANONYMOUS.
_SECURITY_SQOS_PRESENT: Final = 0x00100000
_PIPE_ACCESS_DUPLEX: Final = 3
_PIPE_REJECT_REMOTE_CLIENTS: Final = 8
_PIPE_UNLIMITED_INSTANCES: Final = 255
_BUFFER_BYTES: Final = 65536
_GENERIC_READ_AND_WRITE: Final = 0xC0000000
_OPEN_EXISTING: Final = 3


@frozen
class PipeHandles:
    """Makes the handles of named pipes."""

    kernel: SystemLibrary[Kernel32]
    advapi: SystemLibrary[AdvApi32]

    def serve(self, path: str, *, first: bool) -> int:
        """Make an instance of a pipe, for a client to connect to.

        :param first: there must be no instance of the pipe yet, of whichever process.
        :raises HostError: Windows refuses; with E_ACCESSDENIED if there is one.
        """
        operation, functions = f"listen at {path}", self.kernel.functions
        mode = _PIPE_ACCESS_DUPLEX | _FILE_FLAG_OVERLAPPED | (_FILE_FLAG_FIRST_PIPE_INSTANCE if first else 0)
        size, ffi = _BUFFER_BYTES, self.kernel.ffi
        with self._security(operation) as descriptor:
            security = ffi.new("SECURITY_ATTRIBUTES *")
            security.nLength = ffi.sizeof(security[0])
            security.lpSecurityDescriptor = descriptor
            make, name = functions.CreateNamedPipeW, wide_path(ffi, path)
            limit = _PIPE_UNLIMITED_INSTANCES
            handle = make(name, mode, _PIPE_REJECT_REMOTE_CLIENTS, limit, size, size, 0, security)
            return self._number(operation, handle)

    def dial(self, path: str) -> int:
        """Connect to an instance of a pipe.

        :raises HostError: Windows refuses; with ERROR_PIPE_BUSY if every instance has a client.
        """
        ffi, flags = self.kernel.ffi, _FILE_FLAG_OVERLAPPED | _SECURITY_SQOS_PRESENT
        name, null = wide_path(ffi, path), ffi.NULL
        open_file = self.kernel.functions.CreateFileW
        handle = open_file(name, _GENERIC_READ_AND_WRITE, 0, null, _OPEN_EXISTING, flags, null)
        return self._number(f"dial {path}", handle)

    @contextmanager
    def _security(self, operation: str) -> Iterator[CData]:
        """Lend the security descriptor of a pipe."""
        ffi = self.advapi.ffi
        made, text = ffi.new("PSECURITY_DESCRIPTOR *"), ffi.new("WCHAR[]", _ADMINISTRATORS_ONLY)
        convert = self.advapi.functions.ConvertStringSecurityDescriptorToSecurityDescriptorW
        self.advapi.require(operation, convert(text, _SDDL_REVISION, made, ffi.NULL))
        with freeing(self.kernel, made[0]) as descriptor:
            yield descriptor

    def _number(self, operation: str, handle: CData) -> int:
        """Return the number of a handle; raise the last error if it is INVALID_HANDLE_VALUE."""
        ffi = self.kernel.ffi
        if handle == ffi.cast("HANDLE", -1):
            raise self.kernel.error(operation)
        return int(ffi.cast("uintptr_t", handle))


def windows_pipes() -> PipeHandles:
    """Return those of this machine."""
    return PipeHandles(kernel32(), advapi32())
