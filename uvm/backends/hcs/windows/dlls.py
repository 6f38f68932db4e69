"""Windows's own DLLs: a typed Protocol for each, how they are loaded, and their errors.

A function of kernel32 or advapi32 that returns a BOOL or a handle sets the last error of its thread; the
others return an error code, 0 on success.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Generic, Protocol, TypeVar

from attrs import frozen

from uvm.backends.hcs.dlls import FFI, CData, LateFunctions
from uvm.errors import HostError, HostPathError
from uvm.hresult import hresult_from_win32

L_co = TypeVar("L_co", covariant=True)
R = TypeVar("R")


class Kernel32(Protocol):
    """kernel32.dll: handles, files, processes, the machine's figures."""

    #: Takes a path, access, share mode, a security descriptor, disposition, flags and a template.
    CreateFileW: Callable[[CData, int, int, CData, int, int, CData], CData]

    #: Takes a path, modes of opening and of the pipe, the number of instances, sizes of buffers, a time and a
    #: security descriptor.
    CreateNamedPipeW: Callable[[CData, int, int, int, int, int, int, CData], CData]

    def CloseHandle(self, handle: CData, /) -> int: ...
    def GetFileInformationByHandleEx(self, file: CData, kind: int, out: CData, size: int, /) -> int: ...
    def CopyFileExW(
        self, source: CData, target: CData, progress: CData, data: CData, cancel: CData, flags: int, /
    ) -> int: ...
    def LocalFree(self, memory: CData, /) -> CData: ...

    def GetActiveProcessorCount(self, group: int, /) -> int: ...
    def GlobalMemoryStatusEx(self, out: CData, /) -> int: ...
    def GetTimeZoneInformation(self, out: CData, /) -> int: ...
    def IsProcessorFeaturePresent(self, feature: int, /) -> int: ...

    def GetCurrentProcess(self) -> CData: ...
    def IsWow64Process2(self, process: CData, process_machine: CData, native_machine: CData, /) -> int: ...
    def OpenProcess(self, access: int, inherit: int, pid: int, /) -> CData: ...
    def QueryFullProcessImageNameW(self, process: CData, flags: int, name: CData, size: CData, /) -> int: ...
    def K32EnumProcesses(self, pids: CData, size: int, needed: CData, /) -> int: ...
    def K32GetProcessMemoryInfo(self, process: CData, out: CData, size: int, /) -> int: ...


class AdvApi32(Protocol):
    """advapi32.dll: access lists, accounts, tokens, services."""

    #: Takes a handle, its kind, the parts, and places for owner, group, DACL, SACL and the descriptor.
    GetSecurityInfo: Callable[[CData, int, int, CData, CData, CData, CData, CData], int]

    def SetSecurityInfo(
        self, handle: CData, kind: int, parts: int, owner: CData, group: CData, dacl: CData, sacl: CData, /
    ) -> int: ...
    def SetEntriesInAclW(self, count: int, entries: CData, old: CData, new: CData, /) -> int: ...
    def ConvertStringSecurityDescriptorToSecurityDescriptorW(
        self, text: CData, revision: int, descriptor: CData, size: CData, /
    ) -> int: ...
    def ConvertStringSidToSidW(self, text: CData, sid: CData, /) -> int: ...

    def OpenProcessToken(self, process: CData, access: int, token: CData, /) -> int: ...
    def GetTokenInformation(
        self, token: CData, kind: int, out: CData, size: int, needed: CData, /
    ) -> int: ...

    #: Takes a machine, a SID, and places for the name, its size, the domain, its size, and the kind.
    LookupAccountSidW: Callable[[CData, CData, CData, CData, CData, CData, CData], int]

    def CheckTokenMembership(self, token: CData, sid: CData, is_member: CData, /) -> int: ...

    def OpenSCManagerW(self, machine: CData, database: CData, access: int, /) -> CData: ...
    def OpenServiceW(self, manager: CData, name: CData, access: int, /) -> CData: ...
    def QueryServiceStatus(self, service: CData, out: CData, /) -> int: ...
    def CloseServiceHandle(self, handle: CData, /) -> int: ...


class VirtDisk(Protocol):
    """virtdisk.dll: virtual disk files."""

    def OpenVirtualDisk(
        self, storage_type: CData, path: CData, access: int, flags: int, parameters: CData, handle: CData, /
    ) -> int: ...
    def SetVirtualDiskInformation(self, disk: CData, information: CData, /) -> int: ...


class NtDll(Protocol):
    """ntdll.dll."""

    def RtlGetVersion(self, out: CData, /) -> int: ...


@frozen(eq=False, repr=False)
class SystemLibrary(Generic[L_co]):
    """A loaded DLL.

    :ivar functions: its functions.
    :ivar ffi: its C types.
    :ivar last_error: returns a Windows error code with its text; for -1, those of the thread's last error.
    """

    functions: L_co
    ffi: FFI
    last_error: Callable[[int], tuple[int, str]]

    def error(self, operation: str, code: int = -1) -> HostError:
        """Return the HostError of a Windows error code; by default of the last error."""
        number, text = self.last_error(code)
        return HostError(operation, hresult_from_win32(number), text)

    def require(self, operation: str, result: R) -> R:
        """Return the result of a function that sets the last error; raise the error if it is 0 or NULL."""
        if not result:
            raise self.error(operation)
        return result

    def check(self, operation: str, code: int) -> None:
        """Raise the HostError of an error code, unless it is 0."""
        if code:
            raise self.error(operation, code)

    def os_error(self, code: int = -1) -> OSError:
        """Return the OSError of a Windows error code; by default of the last error."""
        number, text = self.last_error(code)
        return OSError(0, text, None, number)


def wide_path(ffi: FFI, path: str) -> CData:
    """Return a C string of a path.

    :raises HostPathError: it contains a NUL, at which C would cut it.
    """
    if "\0" in path:
        raise HostPathError(path.replace("\0", "\\0"), "it contains a NUL character; nothing was done")
    return ffi.new("WCHAR[]", path)


@contextmanager
def closing(kernel: SystemLibrary[Kernel32], handle: CData) -> Iterator[CData]:
    """Lend a handle, and close it at the end."""
    try:
        yield handle
    finally:
        kernel.functions.CloseHandle(handle)


@contextmanager
def freeing(kernel: SystemLibrary[Kernel32], memory: CData) -> Iterator[CData]:
    """Lend memory that Windows allocated, and free it at the end."""
    try:
        yield memory
    finally:
        kernel.functions.LocalFree(memory)


@contextmanager
def security_id(
    kernel: SystemLibrary[Kernel32], advapi: SystemLibrary[AdvApi32], operation: str, text: str
) -> Iterator[CData]:
    """Lend a SID made of its text."""
    sid, name = advapi.ffi.new("PSID *"), advapi.ffi.new("WCHAR[]", text)
    advapi.require(operation, advapi.functions.ConvertStringSidToSidW(name, sid))
    with freeing(kernel, sid[0]):
        yield sid[0]


@functools.cache
def load(dll: str, binding: str | None = None) -> SystemLibrary[Any]:
    """Load a DLL; OSError if Windows lacks it.

    :param binding: the group of its functions, if it is not named after the DLL.
    """
    # Each binding is a module of its own, loaded only when its DLL is used.
    ffi = import_module(f"uvm.backends.hcs._bindings.{binding or dll.removesuffix('.dll')}").ffi
    return SystemLibrary(LateFunctions(ffi, dll), ffi, ffi.getwinerror)


#: Each loads one DLL; OSError if Windows lacks it.
kernel32: Callable[[], SystemLibrary[Kernel32]] = functools.partial(load, "kernel32.dll")
advapi32: Callable[[], SystemLibrary[AdvApi32]] = functools.partial(load, "advapi32.dll")
virtdisk: Callable[[], SystemLibrary[VirtDisk]] = functools.partial(load, "virtdisk.dll")
ntdll: Callable[[], SystemLibrary[NtDll]] = functools.partial(load, "ntdll.dll")
