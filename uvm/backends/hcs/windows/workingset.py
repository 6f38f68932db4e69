"""How much memory a virtually backed VM uses: the working set of its vmmem process.

HCS does not report it, so the process is searched for, as in hcsshim internal/uvm/stats.go. The kernel
creates it for the VM: its image is no file, and it runs as the VM's own account.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from attrs import define, field, frozen

from uvm.backends.hcs.dlls import CData
from uvm.backends.hcs.windows.dlls import AdvApi32, Kernel32, SystemLibrary, closing
from uvm.errors import HostError
from uvm.hresult import HResult

#: The process's name, before a suffix that newer versions of Windows let a VM's document choose
#: (``HostingProcessNameSuffix``): WSL's is ``vmmemWSL``. The NT path of a file begins with a backslash.
_IMAGE: Final = "vmmem"
#: The domain of the VMs' accounts; each is named after its VM's runtime id.
_DOMAIN: Final = "NT VIRTUAL MACHINE"

_QUERY_LIMITED_INFORMATION, _VM_READ = 0x1000, 0x0010
#: The name as an NT path: what is no file has no Win32 path.
_PROCESS_NAME_NATIVE: Final = 1
_TOKEN_QUERY: Final = 0x0008
_TOKEN_USER: Final = 1
#: A user's name, a domain's name and an NT path are shorter.
_NAME_CHARACTERS: Final = 1024
_PATH_CHARACTERS: Final = 32768
#: A TOKEN_USER: a structure followed by a SID of at most 68 bytes.
_TOKEN_USER_BYTES: Final = 256
_FIRST_PIDS: Final = 1024


@define(eq=False, repr=False)
class ProcessWorkingSet:
    """The working set of one process (:class:`~uvm.backends.hcs.machine.WorkingSet`).

    :ivar name: its name in errors.
    """

    name: str
    _kernel: SystemLibrary[Kernel32]
    _process: CData
    _closed: bool = field(default=False, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def bytes(self) -> int:
        """Return the current working set.

        :raises HostError: E_HANDLE if it was closed; or Windows refuses to answer.
        """
        operation = f"query the working set of {self.name}"
        out = self._kernel.ffi.new("PROCESS_MEMORY_COUNTERS *")
        out.cb = size = self._kernel.ffi.sizeof(out[0])
        with self._lock:
            if self._closed:
                raise HostError(operation, HResult.E_HANDLE, "it was closed")
            answered = self._kernel.functions.K32GetProcessMemoryInfo(self._process, out, size)
            self._kernel.require(operation, answered)
        return int(out.WorkingSetSize)

    def close(self) -> None:
        """Close the process's handle. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._kernel.functions.CloseHandle(self._process)


@frozen(eq=False, repr=False)
class WorkingSets:
    """Searches for the processes of VMs; its calls block."""

    kernel: SystemLibrary[Kernel32]
    advapi: SystemLibrary[AdvApi32]

    def open(self, runtime_id: str) -> ProcessWorkingSet:
        """Open the process of a VM.

        :raises HostError: ERROR_NOT_FOUND if there is none that may be opened.
        """
        account = f"{_DOMAIN}\\{runtime_id}"
        others = unknown = 0
        for pid in self._pids():
            process = self.kernel.functions.OpenProcess(_QUERY_LIMITED_INFORMATION | _VM_READ, 0, pid)
            if process == self.kernel.ffi.NULL:
                unknown += 1
                continue
            owner = ""
            try:
                owner = self._vm_account(process)
            except HostError:
                # It may have exited meanwhile, and some do not even disclose their name.
                unknown += 1
            if owner.lower() == account.lower():
                return ProcessWorkingSet(f"VM {runtime_id}", self.kernel, process)
            self.kernel.functions.CloseHandle(process)
            others += bool(owner)
        raise HostError(
            f"find the memory of VM {runtime_id}",
            HResult.ERROR_NOT_FOUND,
            f"no process {_IMAGE} runs as {account}; there are {others} of other VMs, "
            f"and {unknown} processes that could not be examined",
        )

    def _vm_account(self, process: CData) -> str:
        """Return the account of a process with a VM's memory; empty for all other processes."""
        return self._account(process) if self._image(process).lower().startswith(_IMAGE) else ""

    def _pids(self) -> list[int]:
        """Return the ids of all processes."""
        functions, ffi = self.kernel.functions, self.kernel.ffi
        room = _FIRST_PIDS
        while True:
            pids, needed = ffi.new("DWORD[]", room), ffi.new("DWORD *")
            listed = functions.K32EnumProcesses(pids, ffi.sizeof(pids), needed)
            self.kernel.require("list the processes", listed)
            count = needed[0] // ffi.sizeof("DWORD")
            if count < room:
                return list(pids[0:count])
            # A full array may have been too small; Windows does not say more.
            room *= 2

    def _image(self, process: CData) -> str:
        ffi, query = self.kernel.ffi, self.kernel.functions.QueryFullProcessImageNameW
        name, size = ffi.new("WCHAR[]", _PATH_CHARACTERS), ffi.new("DWORD *", _PATH_CHARACTERS)
        self.kernel.require("query a process's name", query(process, _PROCESS_NAME_NATIVE, name, size))
        return str(ffi.string(name))

    def _account(self, process: CData) -> str:
        """Return the account that a process runs as: domain, backslash, name."""
        functions, ffi = self.advapi.functions, self.advapi.ffi
        with self._token(process) as token:
            user, needed = ffi.new("char[]", _TOKEN_USER_BYTES), ffi.new("DWORD *")
            known = functions.GetTokenInformation(token, _TOKEN_USER, user, _TOKEN_USER_BYTES, needed)
            self.advapi.require("query a process's user", known)
        name, name_size = ffi.new("WCHAR[]", _NAME_CHARACTERS), ffi.new("DWORD *", _NAME_CHARACTERS)
        domain, domain_size = ffi.new("WCHAR[]", _NAME_CHARACTERS), ffi.new("DWORD *", _NAME_CHARACTERS)
        sid = ffi.cast("TOKEN_USER *", user).User.Sid
        kind = ffi.new("SID_NAME_USE *")
        found = functions.LookupAccountSidW(ffi.NULL, sid, name, name_size, domain, domain_size, kind)
        self.advapi.require("query the name of a process's user", found)
        return f"{ffi.string(domain)}\\{ffi.string(name)}"

    @contextmanager
    def _token(self, process: CData) -> Iterator[CData]:
        token = self.advapi.ffi.new("HANDLE *")
        opened = self.advapi.functions.OpenProcessToken(process, _TOKEN_QUERY, token)
        self.advapi.require("open a process's token", opened)
        with closing(self.kernel, token[0]):
            yield token[0]
