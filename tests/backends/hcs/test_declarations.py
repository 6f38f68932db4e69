"""The C declarations agree with the real Windows headers: a compiler checks it."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uvm.backends.hcs.declarations.__main__ import BINDINGS, HERE, PACKAGE, generate, names

GCC = "x86_64-w64-mingw32-gcc"

#: The Windows headers that declare the functions.
HEADERS = [
    *("winsock2.h", "windows.h", "aclapi.h", "sddl.h", "computecore.h", "computenetwork.h"),
    *("psapi.h", "winternl.h", "combaseapi.h", "initguid.h", "virtdisk.h"),
]

#: Signed and unsigned types whose exact size the prelude states.
SCALARS = [
    "BOOL",
    "BYTE",
    "DWORD",
    "HRESULT",
    "LONG",
    "SIZE_T",
    "UINT64",
    "ULONG",
    "ULONG_PTR",
    "USHORT",
    "WCHAR",
]

without_compiler = pytest.mark.skipif(
    shutil.which(GCC) is None and not os.environ.get("UVM_NEEDS_MINGW"),
    reason=f"{GCC} is not installed (Debian: gcc-mingw-w64-x86-64)",
)


@pytest.mark.parametrize("name", names())
def test_the_bindings_are_those_that_the_declarations_give(name: str) -> None:
    assert (BINDINGS / f"{name}.py").read_text("utf-8") == generate(name)


@without_compiler
def test_the_windows_headers_declare_the_same(tmp_path: Path) -> None:
    source = tmp_path / "check.c"
    # All at once: most of the time is that of reading windows.h.
    lines = [f"#include <{header}>" for header in [*HEADERS, "stddef.h"]]
    for name in names():
        lines += [
            f'#include "{HERE / name}.h"',
            *(f'_Static_assert({line}, "{line}");' for line in layout(name)),
        ]
    source.write_text("\n".join([*lines, ""]))
    found = compile_c(source)
    assert found.returncode == 0, found.stderr


@without_compiler
def test_a_wrong_signature_does_not_compile(tmp_path: Path) -> None:
    source = tmp_path / "check.c"
    source.write_text(
        "#include <windows.h>\n#include <computecore.h>\n"
        "HRESULT WINAPI HcsOpenComputeSystem(PCWSTR id, UINT64 requestedAccess, HCS_SYSTEM *computeSystem);\n"
    )
    assert "conflicting types" in compile_c(source).stderr


def compile_c(source: Path) -> subprocess.CompletedProcess[str]:
    # Windows 10: declares also what is newer than the headers' default. Their dllimport does not matter.
    flags = ["-fsyntax-only", "-std=c11", "-Wall", "-Werror", "-Wno-attributes", "-D_WIN32_WINNT=0x0A00"]
    # Half of windows.h, which is most of what is read, is about windows.
    flags += ["-DWIN32_LEAN_AND_MEAN"]
    return subprocess.run([GCC, *flags, str(source)], capture_output=True, text=True, check=False)


def layout(name: str) -> Iterator[str]:
    """Return C conditions on the sizes of a group's types and the offsets of their fields."""
    ffi: Any = importlib.import_module(f"{PACKAGE}.{name}").ffi
    for scalar in SCALARS:
        yield f"sizeof({scalar}) == {ffi.sizeof(scalar)}"
        yield f"(({scalar})-1 < 0) == {int(int(ffi.cast(scalar, -1)) < 0) if scalar != 'WCHAR' else 0}"
    typedefs, _, _ = ffi.list_types()
    for typedef in typedefs:
        kind = ffi.typeof(typedef)
        if kind.kind != "struct" or not kind.fields:
            continue
        yield f"sizeof({typedef}) == {ffi.sizeof(kind)}"
        for field, info in kind.fields:
            yield f"offsetof({typedef}, {field}) == {info.offset}"
            yield f"sizeof((({typedef} *)0)->{field}) == {ffi.sizeof(info.type)}"
