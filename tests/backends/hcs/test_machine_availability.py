"""Whether HCS can be used: the report names everything that is missing, with what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import _cffi_backend
import pytest

from tests.backends.hcs.environment import HYPERV_ADMINISTRATORS, Imagined
from uvm.backends.hcs._bindings.memory import ffi
from uvm.backends.hcs.availability import availability
from uvm.backends.hcs.dlls import system_library
from uvm.backends.hcs.windows.dlls import load
from uvm.backends.hcs.windows.environment import missing_functions
from uvm.errors import NotSupportedError


def old(machine: Imagined) -> None:
    machine.windows_build = 17134


def without_the_dll(machine: Imagined) -> None:
    del machine.libraries["computecore"]


def with_a_python_of_32_bits(machine: Imagined) -> None:
    machine.bits = 32


def without_the_service(machine: Imagined) -> None:
    del machine.services["vmcompute"]


def without_rights(machine: Imagined) -> None:
    machine.groups.clear()


def test_a_machine_that_has_everything_has_no_problem() -> None:
    assert availability(Imagined()) == []


def test_a_hyperv_administrator_needs_no_more_rights() -> None:
    assert availability(Imagined(groups={HYPERV_ADMINISTRATORS})) == []


@pytest.mark.parametrize(
    ("take_away", "missing", "remedy"),
    [
        (old, "build 17134 is too old", "update Windows"),
        (without_the_dll, "there is no computecore.dll", "VirtualMachinePlatform"),
        (with_a_python_of_32_bits, "a Python of 32 bits", "64-bit Python"),
        (without_the_service, "vmcompute", "Microsoft-Hyper-V-All"),
        (without_rights, "does not have the rights", "Hyper-V Administrators"),
    ],
)
def test_what_is_missing_is_named_with_what_to_do(
    take_away: Callable[[Imagined], None], missing: str, remedy: str
) -> None:
    machine = Imagined()
    take_away(machine)
    (problem,) = availability(machine)
    assert missing in problem
    assert remedy in problem


def test_everything_that_is_missing_is_reported_at_once() -> None:
    machine = Imagined()
    for take_away in (old, without_the_dll, without_the_service, without_rights):
        take_away(machine)
    assert len(availability(machine)) == 4


def test_without_windows_nothing_else_is_asked() -> None:
    machine = Imagined(system="linux")
    assert availability(machine) == [
        "HCS needs Windows, and this is linux",
    ]
    assert machine.asked == []


def test_a_service_that_is_stopped_and_a_function_that_is_missing_are_no_hindrance() -> None:
    machine = Imagined(libraries={"computecore": ["HcsCrashComputeSystem"]})
    machine.services["vmcompute"] = "stopped"
    assert availability(machine) == []


@pytest.mark.parametrize("question", ["build", "service", "is_member"])
def test_a_failed_check_is_no_hindrance(question: str) -> None:
    assert availability(Imagined(silent=question)) == []


def test_functions_that_a_dll_lacks_are_named() -> None:
    # Stand-ins for an old DLL: one has a function of the group, the other none.
    kernel = system_library("kernel32.dll") if sys.platform == "win32" else str(_cffi_backend.__file__)
    lacking = ["CoTaskMemFree"] if sys.platform == "win32" else ["CoTaskMemFree", "LocalFree"]
    assert missing_functions(ffi, kernel) == lacking
    assert missing_functions(ffi, system_library("nosuch.dll")) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has more to say")
def test_on_this_machine_windows_is_missing() -> None:
    (problem,) = availability()
    assert problem.startswith("HCS needs Windows")


@pytest.mark.skipif(sys.platform != "win32", reason="calls Windows itself")
class TestOnWindows:
    def test_the_functions_of_a_dll_are_looked_up(self) -> None:
        from uvm.backends.hcs.windows.environment import Environment

        assert Environment().missing_functions("kernel32") == []

    def test_a_function_that_this_windows_lacks_is_named(self) -> None:
        library = load("kernel32.dll", "memory")
        with pytest.raises(NotSupportedError, match=r"kernel32\.dll of this Windows has no CoTaskMemFree"):
            _ = library.functions.CoTaskMemFree

    def test_services_are_looked_up(self) -> None:
        from uvm.backends.hcs.windows.environment import Environment

        machine = Environment()
        assert machine.service("no-such-service") is None
        assert machine.service("RpcSs") in ("running", "stopped")

    def test_every_process_is_a_member_of_everyone_and_none_of_nobody(self) -> None:
        from uvm.backends.hcs.windows.environment import Environment

        machine = Environment()
        assert machine.is_member("S-1-1-0")
        assert not machine.is_member("S-1-0-0")

    def test_this_machine_can_be_looked_at(self) -> None:
        from uvm.backends.hcs.windows.environment import Environment

        machine = Environment()
        assert machine.build() > 10000
        assert machine.bits == 64
        assert machine.machine() in ("amd64", "arm64")
        assert isinstance(machine.virtualization_in_firmware(), bool)
        assert machine.has_file(sys.executable)
        assert machine.has_library("kernel32")
        assert not machine.has_library("nosuch")
        assert not any("the check failed" in problem for problem in availability(machine))
