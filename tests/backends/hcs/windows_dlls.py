"""A stand-in for the functions of kernel32 and advapi32 that the machine calls for processes and accounts.

It counts handles: a handle closed twice, used after it was closed, or left open, is found.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from attrs import define, field

from uvm.backends.hcs._bindings.advapi32 import ffi as advapi_ffi
from uvm.backends.hcs._bindings.kernel32 import ffi
from uvm.backends.hcs.windows.dlls import SystemLibrary

ACCESS_DENIED, INVALID_PARAMETER, FILE_NOT_FOUND, REQUEST_ABORTED = 5, 87, 2, 1235
INVALID_HANDLE = ffi.cast("HANDLE", -1)
GENERIC_FAILURE = 31


@define
class Process:
    """A process of the stand-in.

    :ivar image: its name as an NT path; None if it cannot be queried.
    :ivar account: domain and user; None if its token cannot be opened.
    """

    image: str | None
    account: tuple[str, str] | None = ("NT AUTHORITY", "SYSTEM")
    working_set: int = 0
    may_open: bool = True


@define(eq=False)
class Windows:
    """The state that both DLLs share.

    :ivar files: for each path, whether its file system has file ids.
    :ivar calls: the names of the functions that were called.
    """

    processes: dict[int, Process] = field(factory=dict)
    files: dict[str, bool] = field(factory=dict)
    calls: list[str] = field(factory=list)
    open: dict[int, Any] = field(factory=dict)
    error: int = 0
    _next: int = 0x100

    @property
    def kernel(self) -> SystemLibrary[Any]:
        return SystemLibrary(Kernel(self), ffi, self.last_error)

    @property
    def advapi(self) -> SystemLibrary[Any]:
        return SystemLibrary(AdvApi(self), advapi_ffi, self.last_error)

    def last_error(self, code: int) -> tuple[int, str]:
        number = self.error if code == -1 else code
        return number, f"error {number}"

    def fail(self, code: int) -> int:
        self.error = code
        return 0

    def make(self, what: Any) -> Any:
        self._next += 4
        self.open[self._next] = what
        return ffi.cast("HANDLE", self._next)

    def of(self, handle: Any) -> Any:
        return self.open[int(ffi.cast("uintptr_t", handle))]


@define(eq=False)
class Kernel:
    """kernel32.dll."""

    windows: Windows

    def __getattribute__(self, name: str) -> Any:
        if name[0].isupper():
            self.windows.calls.append(name)
        return object.__getattribute__(self, name)

    def CloseHandle(self, handle: Any) -> int:
        del self.windows.open[int(ffi.cast("uintptr_t", handle))]
        return 1

    def CreateFileW(self, path: Any, access: int, share: int, *rest: Any) -> Any:
        name = ffi.string(path)
        if name not in self.windows.files:
            self.windows.fail(FILE_NOT_FOUND)
            return INVALID_HANDLE
        return self.windows.make(name)

    def GetFileInformationByHandleEx(self, file: Any, kind: int, out: Any, size: int) -> int:
        assert (kind, size) == (18, 24)
        return 1 if self.windows.files[self.windows.of(file)] else self.windows.fail(INVALID_PARAMETER)

    def CopyFileExW(self, source: Any, target: Any, progress: Any, data: Any, cancel: Any, flags: int) -> int:
        assert flags == 0
        shutil.copyfile(Path(ffi.string(source)), Path(ffi.string(target)))
        return 1

    def K32EnumProcesses(self, pids: Any, size: int, needed: Any) -> int:
        room = size // 4
        known = list(self.windows.processes)[:room]
        for i, pid in enumerate(known):
            pids[i] = pid
        needed[0] = 4 * len(known)
        return 1

    def OpenProcess(self, access: int, inherit: int, pid: int) -> Any:
        assert (access, inherit) == (0x1010, 0)
        process = self.windows.processes[pid]
        if not process.may_open:
            self.windows.fail(ACCESS_DENIED)
            return ffi.NULL
        return self.windows.make(process)

    def QueryFullProcessImageNameW(self, handle: Any, flags: int, name: Any, size: Any) -> int:
        image = self.windows.of(handle).image
        if image is None or flags != 1:
            return self.windows.fail(GENERIC_FAILURE)
        name[0 : len(image) + 1] = image + "\0"
        size[0] = len(image)
        return 1

    def K32GetProcessMemoryInfo(self, handle: Any, out: Any, size: int) -> int:
        assert out.cb == size == ffi.sizeof("PROCESS_MEMORY_COUNTERS")
        out.WorkingSetSize = self.windows.of(handle).working_set
        return 1


@define(eq=False)
class AdvApi:
    """advapi32.dll. A SID is the address of an account's place in :attr:`sids`."""

    windows: Windows
    sids: dict[int, tuple[str, str]] = field(factory=dict)

    def OpenProcessToken(self, process: Any, access: int, token: Any) -> int:
        account = self.windows.of(process).account
        if account is None:
            return self.windows.fail(ACCESS_DENIED)
        token[0] = self.windows.make(account)
        return 1

    def GetTokenInformation(self, token: Any, kind: int, out: Any, size: int, needed: Any) -> int:
        assert kind == 1
        sid = 0x1000 + len(self.sids)
        self.sids[sid] = self.windows.of(token)
        advapi_ffi.cast("TOKEN_USER *", out).User.Sid = advapi_ffi.cast("PSID", sid)
        return 1

    def LookupAccountSidW(
        self, system: Any, sid: Any, name: Any, name_size: Any, domain: Any, domain_size: Any, kind: Any
    ) -> int:
        found = self.sids[int(advapi_ffi.cast("uintptr_t", sid))]
        for text, out in zip(found, (domain, name), strict=True):
            out[0 : len(text) + 1] = text + "\0"
        return 1
