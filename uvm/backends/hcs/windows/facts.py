"""The facts of a Windows machine that documents and devices depend on."""

from __future__ import annotations

from typing import Final, Literal

from attrs import frozen

from uvm.backend import HCS_CONCURRENCY, JSON, HostInfo
from uvm.backends.hcs.dlls import CData
from uvm.backends.hcs.windows.dlls import Kernel32, NtDll, SystemLibrary
from uvm.errors import NotSupportedError
from uvm.schema.common import MIB

_ALL_PROCESSOR_GROUPS: Final = 0xFFFF
_TIME_ZONE_ID_INVALID: Final = 0xFFFFFFFF

#: IMAGE_FILE_MACHINE_AMD64 and ..._ARM64.
_MACHINES: Final[dict[int, Literal["amd64", "arm64"]]] = {0x8664: "amd64", 0xAA64: "arm64"}


@frozen(eq=False, repr=False)
class Facts:
    """Asks Windows; its calls block. The answers do not depend on the program's compatibility mode."""

    kernel: SystemLibrary[Kernel32]
    ntdll: SystemLibrary[NtDll]

    def ask(self) -> HostInfo:
        """Return all facts.

        :raises HostError: Windows refuses to answer.
        :raises NotSupportedError: the processor is neither amd64 nor arm64.
        """
        return HostInfo(
            build=self.build(),
            processors=self.processors(),
            memory_mb=self.memory_mb(),
            machine=self.machine(),
            time_zone=self.time_zone(),
            paths="windows",
            concurrency=HCS_CONCURRENCY,
        )

    def build(self) -> int:
        """Return the build number of Windows."""
        out = self.ntdll.ffi.new("OSVERSIONINFOW *")
        out.dwOSVersionInfoSize = self.ntdll.ffi.sizeof(out[0])
        # It never fails.
        self.ntdll.functions.RtlGetVersion(out)
        return int(out.dwBuildNumber)

    def processors(self) -> int:
        """Return the number of logical processors in all processor groups."""
        count = self.kernel.functions.GetActiveProcessorCount(_ALL_PROCESSOR_GROUPS)
        return self.kernel.require("count the processors", count)

    def memory_mb(self) -> int:
        """Return the size of the physical memory."""
        out = self.kernel.ffi.new("MEMORYSTATUSEX *")
        out.dwLength = self.kernel.ffi.sizeof(out[0])
        self.kernel.require("ask for the size of the memory", self.kernel.functions.GlobalMemoryStatusEx(out))
        return int(out.ullTotalPhys) // MIB

    def machine(self) -> Literal["amd64", "arm64"]:
        """Return the processor's architecture, even if this Python is emulated."""
        functions, ffi = self.kernel.functions, self.kernel.ffi
        process, native = ffi.new("USHORT *"), ffi.new("USHORT *")
        answered = functions.IsWow64Process2(functions.GetCurrentProcess(), process, native)
        self.kernel.require("ask for the processor architecture", answered)
        found = _MACHINES.get(native[0])
        if found is None:
            raise NotSupportedError(
                f"the processor is of type 0x{native[0]:04X}; utility VMs need amd64 or arm64"
            )
        return found

    def time_zone(self) -> JSON:
        """Return the time zone as HCS's ``TimeZoneInformation`` (hcsshim internal/uvm/timezone.go)."""
        out = self.kernel.ffi.new("TIME_ZONE_INFORMATION *")
        if self.kernel.functions.GetTimeZoneInformation(out) == _TIME_ZONE_ID_INVALID:
            raise self.kernel.error("ask for the time zone")
        return self._document(out[0])

    def _document(self, structure: CData) -> JSON:
        """Return a structure in HCS's form: the names of Win32 without the ``w`` of a WORD; zeros omitted.

        A date stays as it is: the year 0 makes it a rule for every year.
        """
        members = ((name, getattr(structure, name)) for name, _ in self.kernel.ffi.typeof(structure).fields)
        found = {name.removeprefix("w"): self._value(member) for name, member in members}
        return {name: value for name, value in found.items() if value not in (0, "")}

    def _value(self, member: CData) -> int | str | JSON:
        if isinstance(member, int):
            return member
        is_text = self.kernel.ffi.typeof(member).kind == "array"
        return str(self.kernel.ffi.string(member)) if is_text else self._document(member)
