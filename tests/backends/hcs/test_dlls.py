"""How the DLLs of Windows are loaded, and which modules that does not load."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import cffi
import pytest

from uvm.backends.hcs import dlls
from uvm.backends.hcs.dlls import system_library
from uvm.errors import NotSupportedError

on_windows = pytest.mark.skipif(sys.platform != "win32", reason="loads the DLLs of Windows")


def test_the_bindings_need_neither_a_parser_nor_a_compiler() -> None:
    code = (
        "import sys; import uvm.backends.hcs._bindings.computecore as c; "
        "c.ffi.new('HCS_PROCESS_INFORMATION *'); "
        "print(*(m for m in ('cffi', 'pycparser', 'distutils') if m in sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == []


def test_a_system_library_is_named_by_its_full_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEMROOT", r"D:\Windows")
    assert system_library("computecore.dll") == r"D:\Windows\System32\computecore.dll"


@on_windows
def test_what_hcs_hands_over_is_freed_on_the_local_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlls, "system_library", with_stand_ins)
    library = dlls.windows_core.__wrapped__()
    ffi: Any = cffi.FFI()
    ffi.cdef("void *LocalAlloc(uint32_t flags, size_t bytes);")
    allocated = ffi.dlopen(system_library("kernel32.dll")).LocalAlloc(0, 16)
    # LocalFree returns NULL on success.
    assert allocated != ffi.NULL
    assert library.free(allocated) == ffi.NULL


@on_windows
@pytest.mark.parametrize("load", [dlls.windows_core, dlls.windows_network])
def test_a_function_that_this_windows_lacks_is_named(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlls, "system_library", with_stand_ins)
    functions = load.__wrapped__().functions
    with pytest.raises(NotSupportedError, match=r"HcsCrashComputeSystem|HcnOpenNamespace"):
        _ = functions.HcsCrashComputeSystem if load is dlls.windows_core else functions.HcnOpenNamespace


def with_stand_ins(name: str) -> str:
    """Return a DLL that Wine has in place of one that it lacks."""
    return system_library("kernel32.dll" if name.startswith("compute") else name)
