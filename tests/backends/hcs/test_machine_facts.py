"""The facts of the machine, from Windows, in the form that documents need."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from attrs import define

from uvm.backend import HCS_CONCURRENCY, HostInfo
from uvm.backends.hcs._bindings.kernel32 import ffi
from uvm.backends.hcs._bindings.ntdll import ffi as ntdll_ffi
from uvm.backends.hcs.windows.dlls import SystemLibrary
from uvm.backends.hcs.windows.facts import Facts
from uvm.errors import HostError, NotSupportedError
from uvm.schema.guest import TimeZoneInformation
from uvm.schema.json import from_json

AMD64, ARM64, I386 = 0x8664, 0xAA64, 0x014C


@define(eq=False)
class Computer:
    """A stand-in for the functions that return facts.

    :ivar failing: the function that fails.
    """

    native: int = AMD64
    failing: str = ""

    @property
    def facts(self) -> Facts:
        def error(code: int) -> tuple[int, str]:
            return 31, "not attached"

        me: Any = self
        return Facts(SystemLibrary(me, ffi, error), SystemLibrary(me, ntdll_ffi, error))

    def RtlGetVersion(self, out: Any) -> int:
        assert out.dwOSVersionInfoSize == 276
        out.dwMajorVersion, out.dwBuildNumber = 10, 20348
        return 0

    def GetActiveProcessorCount(self, group: int) -> int:
        assert group == 0xFFFF
        return 0 if self.failing == "GetActiveProcessorCount" else 96

    def GlobalMemoryStatusEx(self, out: Any) -> int:
        assert out.dwLength == 64
        out.ullTotalPhys = (65536 << 20) - 4096
        return int(self.failing != "GlobalMemoryStatusEx")

    def GetCurrentProcess(self) -> Any:
        return ffi.cast("HANDLE", -1)

    def IsWow64Process2(self, process: Any, process_machine: Any, native_machine: Any) -> int:
        native_machine[0] = self.native
        return int(self.failing != "IsWow64Process2")

    def GetTimeZoneInformation(self, out: Any) -> int:
        out.Bias, out.StandardBias, out.DaylightBias = -60, 0, -60
        out.StandardName = "W. Europe Standard Time"
        out.DaylightName = "W. Europe Daylight Time"
        out.StandardDate.wMonth, out.StandardDate.wDay, out.StandardDate.wHour = 10, 5, 3
        out.DaylightDate.wMonth, out.DaylightDate.wDay, out.DaylightDate.wHour = 3, 5, 2
        return 0xFFFFFFFF if self.failing == "GetTimeZoneInformation" else 1


def test_all_facts_are_asked_for() -> None:
    zone = {
        "Bias": -60,
        "StandardName": "W. Europe Standard Time",
        "StandardDate": {"Month": 10, "Day": 5, "Hour": 3},
        "DaylightName": "W. Europe Daylight Time",
        "DaylightDate": {"Month": 3, "Day": 5, "Hour": 2},
        "DaylightBias": -60,
    }
    assert Computer().facts.ask() == HostInfo(
        build=20348,
        processors=96,
        memory_mb=65535,
        machine="amd64",
        time_zone=zone,
        paths="windows",
        concurrency=HCS_CONCURRENCY,
    )


def test_an_arm_machine_is_one_whatever_runs_on_it() -> None:
    assert Computer(native=ARM64).facts.machine() == "arm64"


def test_other_machines_are_not_supported() -> None:
    with pytest.raises(NotSupportedError, match="0x014C"):
        Computer(native=I386).facts.ask()


@pytest.mark.parametrize(
    ("failing", "question"),
    [
        ("GetActiveProcessorCount", "count the processors"),
        ("GlobalMemoryStatusEx", "size of the memory"),
        ("IsWow64Process2", "processor architecture"),
        ("GetTimeZoneInformation", "time zone"),
    ],
)
def test_what_windows_does_not_tell_is_an_error_that_names_it(failing: str, question: str) -> None:
    with pytest.raises(HostError, match=f"{question}.*not attached"):
        Computer(failing=failing).facts.ask()


@pytest.mark.skipif(sys.platform != "win32", reason="calls Windows itself")
def test_the_facts_of_this_machine_are_those_that_python_knows() -> None:
    import os

    from uvm.backends.hcs.windows.dlls import kernel32, ntdll

    facts = Facts(kernel32(), ntdll()).ask()
    assert facts.build == sys.getwindowsversion().build  # type: ignore[attr-defined,unused-ignore]
    assert facts.processors == os.cpu_count()
    assert facts.memory_mb > 256
    assert facts.machine == {"AMD64": "amd64", "ARM64": "arm64"}[os.environ["PROCESSOR_ARCHITECTURE"]]
    zone = from_json(TimeZoneInformation, dict(facts.time_zone))
    assert zone.standard_name
    assert zone.standard_date is not None
    assert -14 * 60 <= zone.bias <= 12 * 60
