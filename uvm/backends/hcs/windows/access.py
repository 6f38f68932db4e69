"""Access of all VMs to a path: an entry for their group in the path's access list.

HCS has a call for one VM but none for the group, so the list is edited here, as in hcsshim
internal/security/grantvmgroupaccess.go. Other entries are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from attrs import frozen

from uvm.backend import AccessMask
from uvm.backends.hcs.dlls import CData
from uvm.backends.hcs.windows.disks import open_path
from uvm.backends.hcs.windows.dlls import AdvApi32, Kernel32, SystemLibrary, freeing, security_id
from uvm.backends.winerrors import NOTHING_THERE, tolerating

#: ``NT VIRTUAL MACHINE\Virtual Machines``.
VM_GROUP_SID: Final = "S-1-5-83-0"

#: GENERIC_READ and GENERIC_ALL; the file system maps them to its own rights.
_RIGHTS: Final[dict[AccessMask, int]] = {"read": 0x80000000, "all": 0x10000000}
_READ_CONTROL, _WRITE_DAC = 0x00020000, 0x00040000
_FILE_OBJECT: Final = 1
_DACL: Final = 4
_GRANT_ACCESS, _REVOKE_ACCESS = 1, 4
_SUB_CONTAINERS_AND_OBJECTS_INHERIT: Final = 3
_TRUSTEE_IS_SID, _TRUSTEE_IS_WELL_KNOWN_GROUP = 0, 5
_FILE_STANDARD_INFO: Final = 1


@frozen(eq=False, repr=False)
class GroupAccess:
    """Edits access lists; its calls block. A change to a directory visits everything below it."""

    kernel: SystemLibrary[Kernel32]
    advapi: SystemLibrary[AdvApi32]

    def grant(self, path: str, mask: AccessMask) -> None:
        """Add an entry for the VM group; the entry of a directory is inherited by its contents.

        :raises HostError: the path does not exist, or Windows refused.
        """
        self._edit(f"grant VM group access ({mask})", path, _RIGHTS[mask])

    def revoke(self, path: str) -> None:
        """Remove the group's own entries; inherited ones stay. Does nothing if the path no longer exists.

        :raises HostError: Windows refused.
        """
        with tolerating(*NOTHING_THERE):
            self._edit("revoke VM group access", path, None)

    def _edit(self, what: str, path: str, rights: int | None) -> None:
        operation = f"{what} {path}"
        with (
            open_path(self.kernel, what, path, _READ_CONTROL | _WRITE_DAC) as handle,
            self._access_list(operation, handle) as current,
        ):
            if current == self.advapi.ffi.NULL:
                # No list lets everybody in; a list with this entry alone would shut all others out.
                return
            with self._edited(operation, handle, current, rights) as wanted:
                null, change = self.advapi.ffi.NULL, self.advapi.functions.SetSecurityInfo
                self.advapi.check(operation, change(handle, _FILE_OBJECT, _DACL, null, null, wanted, null))

    @contextmanager
    def _access_list(self, operation: str, handle: CData) -> Iterator[CData]:
        """Yield the access list, which is a part of a security descriptor."""
        null, get = self.advapi.ffi.NULL, self.advapi.functions.GetSecurityInfo
        dacl, descriptor = self.advapi.ffi.new("PACL *"), self.advapi.ffi.new("PSECURITY_DESCRIPTOR *")
        code = get(handle, _FILE_OBJECT, _DACL, null, null, dacl, null, descriptor)
        self.advapi.check(operation, code)
        with freeing(self.kernel, descriptor[0]):
            yield dacl[0]

    @contextmanager
    def _edited(self, operation: str, handle: CData, current: CData, rights: int | None) -> Iterator[CData]:
        """Yield a copy of an access list with the group's entry changed."""
        ffi = self.advapi.ffi
        with security_id(self.kernel, self.advapi, operation, VM_GROUP_SID) as sid:
            entry = ffi.new("EXPLICIT_ACCESS_W *")
            entry.grfAccessPermissions = rights or 0
            entry.grfAccessMode = _REVOKE_ACCESS if rights is None else _GRANT_ACCESS
            if self._is_directory(operation, handle):
                entry.grfInheritance = _SUB_CONTAINERS_AND_OBJECTS_INHERIT
            entry.Trustee.TrusteeForm = _TRUSTEE_IS_SID
            entry.Trustee.TrusteeType = _TRUSTEE_IS_WELL_KNOWN_GROUP
            entry.Trustee.ptstrName = ffi.cast("PWSTR", sid)
            edited = ffi.new("PACL *")
            self.advapi.check(operation, self.advapi.functions.SetEntriesInAclW(1, entry, current, edited))
        with freeing(self.kernel, edited[0]) as wanted:
            yield wanted

    def _is_directory(self, operation: str, handle: CData) -> bool:
        # Of the handle: the path may name something else by now.
        ask, ffi = self.kernel.functions.GetFileInformationByHandleEx, self.kernel.ffi
        out = ffi.new("FILE_STANDARD_INFO *")
        self.kernel.require(operation, ask(handle, _FILE_STANDARD_INFO, out, ffi.sizeof(out[0])))
        return bool(out.Directory)
