"""Access of the VM group: the calls to Windows, their clean-up, and Windows's own view of the result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from tests.backends.hcs.windows_dlls import ACCESS_DENIED, FILE_NOT_FOUND, INVALID_HANDLE
from uvm.backends.hcs._bindings.advapi32 import ffi as advapi_ffi
from uvm.backends.hcs._bindings.kernel32 import ffi
from uvm.backends.hcs.windows.access import GroupAccess
from uvm.backends.hcs.windows.dlls import SystemLibrary
from uvm.errors import HostError

READ_CONTROL_AND_WRITE_DAC = 0x60000
SID, DESCRIPTOR, DACL, NEW_DACL = 0x10, 0x20, 0x24, 0x30
FUNCTIONS = [
    "CreateFileW",
    "GetSecurityInfo",
    "ConvertStringSidToSidW",
    "GetFileInformationByHandleEx",
    "SetEntriesInAclW",
    "SetSecurityInfo",
]


@define(eq=False)
class AccessLists:
    """A stand-in for the functions that edit access lists, which counts what has to be freed.

    :ivar failing: the function that fails.
    :ivar entries: the requested changes: rights, mode, inheritance.
    """

    is_directory: bool = False
    has_list: bool = True
    failing: str = ""
    held: list[str] = field(factory=list)
    entries: list[tuple[int, int, int]] = field(factory=list)
    lists_set: int = 0
    code: int = ACCESS_DENIED

    @property
    def access(self) -> GroupAccess:
        def error(code: int) -> tuple[int, str]:
            return (self.code if code == -1 else code), "as refused"

        me: Any = self
        return GroupAccess(SystemLibrary(me, ffi, error), SystemLibrary(me, advapi_ffi, error))

    def CreateFileW(self, path: Any, access: int, share: int, *rest: Any) -> Any:
        assert access == READ_CONTROL_AND_WRITE_DAC
        if self.failing == "CreateFileW":
            return INVALID_HANDLE
        self.held.append("handle")
        return ffi.cast("HANDLE", 4)

    def CloseHandle(self, handle: Any) -> int:
        self.held.remove("handle")
        return 1

    def LocalFree(self, memory: Any) -> Any:
        address = int(ffi.cast("uintptr_t", memory))
        self.held.remove({SID: "sid", DESCRIPTOR: "descriptor", NEW_DACL: "list"}[address])
        return ffi.NULL

    def GetFileInformationByHandleEx(self, file: Any, kind: int, out: Any, size: int) -> int:
        assert (kind, size) == (1, 24)
        out.Directory = self.is_directory
        return int(self.failing != "GetFileInformationByHandleEx")

    def GetSecurityInfo(
        self, handle: Any, kind: int, parts: int, owner: Any, group: Any, dacl: Any, sacl: Any, out: Any
    ) -> int:
        assert (kind, parts) == (1, 4)
        if self.failing == "GetSecurityInfo":
            return self.code
        dacl[0] = advapi_ffi.cast("PACL", DACL if self.has_list else 0)
        out[0] = advapi_ffi.cast("PSECURITY_DESCRIPTOR", DESCRIPTOR)
        self.held.append("descriptor")
        return 0

    def ConvertStringSidToSidW(self, text: Any, sid: Any) -> int:
        assert advapi_ffi.string(text) == "S-1-5-83-0"
        if self.failing == "ConvertStringSidToSidW":
            return 0
        sid[0] = advapi_ffi.cast("PSID", SID)
        self.held.append("sid")
        return 1

    def SetEntriesInAclW(self, count: int, entry: Any, old: Any, new: Any) -> int:
        assert count == 1
        assert old == advapi_ffi.cast("PACL", DACL)
        if self.failing == "SetEntriesInAclW":
            return self.code
        trustee = entry.Trustee
        assert (trustee.TrusteeForm, trustee.TrusteeType) == (0, 5)
        assert trustee.ptstrName == advapi_ffi.cast("PWSTR", SID)
        self.entries.append((entry.grfAccessPermissions, entry.grfAccessMode, entry.grfInheritance))
        new[0] = advapi_ffi.cast("PACL", NEW_DACL)
        self.held.append("list")
        return 0

    def SetSecurityInfo(
        self, handle: Any, kind: int, parts: int, owner: Any, group: Any, dacl: Any, sacl: Any
    ) -> int:
        assert (kind, parts) == (1, 4)
        assert dacl == advapi_ffi.cast("PACL", NEW_DACL)
        if self.failing == "SetSecurityInfo":
            return self.code
        self.lists_set += 1
        return 0


@pytest.mark.parametrize(("mask", "rights"), [("read", 0x80000000), ("all", 0x10000000)])
@pytest.mark.parametrize(("is_directory", "inheritance"), [(False, 0), (True, 3)])
def test_the_group_gets_an_entry(mask: Any, rights: int, is_directory: bool, inheritance: int) -> None:
    lists = AccessLists(is_directory)
    lists.access.grant("C:\\layer", mask)
    assert lists.entries == [(rights, 1, inheritance)]
    assert lists.lists_set == 1
    assert lists.held == []


def test_the_entries_of_the_group_are_taken_out() -> None:
    lists = AccessLists()
    lists.access.revoke("C:\\layer")
    assert lists.entries == [(0, 4, 0)]
    assert lists.held == []


def test_a_path_without_an_access_list_stays_open_to_all() -> None:
    lists = AccessLists(has_list=False)
    lists.access.grant("C:\\layer", "read")
    assert lists.lists_set == 0
    assert lists.held == []


@pytest.mark.parametrize("function", FUNCTIONS)
def test_whatever_fails_all_is_freed_and_the_error_says_what_was_asked(function: str) -> None:
    lists = AccessLists(failing=function)
    with pytest.raises(HostError, match=r"grant VM group access \(read\) C:.layer.*as refused") as failed:
        lists.access.grant("C:\\layer", "read")
    assert failed.value.name == "E_ACCESSDENIED"
    assert lists.held == []
    assert lists.lists_set == 0


def test_a_missing_path_needs_no_revocation_but_cannot_be_granted() -> None:
    lists = AccessLists(failing="CreateFileW", code=FILE_NOT_FOUND)
    lists.access.revoke("C:\\gone")
    with pytest.raises(HostError, match="ERROR_FILE_NOT_FOUND"):
        lists.access.grant("C:\\gone", "read")


def test_a_refused_revocation_is_reported() -> None:
    with pytest.raises(HostError, match="revoke VM group access"):
        AccessLists(failing="SetSecurityInfo").access.revoke("C:\\layer")


class Recorded:
    """The real advapi32.dll, and the group's entries of each access list that was set, in SDDL.

    What a file system keeps of an access list varies: Wine's keeps no entries of unknown accounts.
    """

    def __init__(self, real: Any) -> None:
        self.real = real
        self.lists: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def SetSecurityInfo(
        self, handle: Any, kind: int, parts: int, owner: Any, group: Any, dacl: Any, sacl: Any
    ) -> int:
        self.lists.append(entries_of_group(int(advapi_ffi.cast("uintptr_t", dacl))))
        return int(self.real.SetSecurityInfo(handle, kind, parts, owner, group, dacl, sacl))


def entries_of_group(dacl: int) -> list[str]:
    """Return the group's entries of an access list, which Windows converts to text."""
    import ctypes
    from ctypes import wintypes

    advapi = ctypes.WinDLL("advapi32")  # type: ignore[attr-defined,unused-ignore]
    descriptor, text = ctypes.create_string_buffer(256), wintypes.LPWSTR()
    assert advapi.InitializeSecurityDescriptor(descriptor, 1)
    assert advapi.SetSecurityDescriptorDacl(descriptor, 1, ctypes.c_void_p(dacl), 0)
    assert advapi.ConvertSecurityDescriptorToStringSecurityDescriptorW(
        descriptor, 1, 4, ctypes.byref(text), None
    )
    entries = [entry.rstrip(")") for entry in (text.value or "").split("(")[1:]]
    assert entries
    return [entry for entry in entries if entry.endswith(";S-1-5-83-0")]


@pytest.mark.skipif(sys.platform != "win32", reason="calls Windows itself")
class TestOnWindows:
    @pytest.fixture
    def recorded(self) -> Recorded:
        from uvm.backends.hcs.windows.dlls import advapi32

        return Recorded(advapi32().functions)

    @pytest.fixture
    def access(self, recorded: Recorded) -> GroupAccess:
        from uvm.backends.hcs.windows.dlls import advapi32, kernel32

        real = advapi32()
        return GroupAccess(kernel32(), SystemLibrary(recorded, real.ffi, real.last_error))

    @pytest.mark.parametrize(("mask", "rights"), [("read", "GR"), ("all", "GA")])
    def test_the_entry_of_a_file_is_for_the_file(
        self, access: GroupAccess, recorded: Recorded, tmp_path: Path, mask: Any, rights: str
    ) -> None:
        path = tmp_path / "disk.vhdx"
        path.write_bytes(b"x")
        access.grant(str(path), mask)
        access.revoke(str(path))
        assert recorded.lists == [[f"A;;{rights};;;S-1-5-83-0"], []]
        assert path.read_bytes() == b"x"

    def test_the_entry_of_a_directory_is_for_all_that_is_in_it(
        self, access: GroupAccess, recorded: Recorded, tmp_path: Path
    ) -> None:
        access.grant(str(tmp_path), "all")
        assert recorded.lists == [["A;OICI;GA;;;S-1-5-83-0"]]

    def test_what_is_not_there_is_an_error(self, access: GroupAccess, tmp_path: Path) -> None:
        with pytest.raises(HostError, match="ERROR_FILE_NOT_FOUND"):
            access.grant(str(tmp_path / "none"), "read")
        access.revoke(str(tmp_path / "none"))
