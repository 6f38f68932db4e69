"""What is read from binaries, and that files which are none, or are cut short, are refused."""

from __future__ import annotations

import contextlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.qemu.guestimage.made import PVH, elf, module
from uvm.backends.qemu.guestimage.elf import Elf, ElfError, modinfo

BINARY = elf(
    interpreter="/lib64/ld.so",
    needed=["libm.so.6", "libc.so.6"],
    runpath="$ORIGIN/../lib:/opt/lib",
    note=PVH,
    sections={b".text": b"code", b".debug": bytes(1000)},
)


def test_a_binary_names_its_loader_its_libraries_and_where_to_look_for_them() -> None:
    found = Elf(BINARY)
    assert found.machine == "x86_64"
    assert found.interpreter == "/lib64/ld.so"
    assert found.needed == ["libm.so.6", "libc.so.6"]
    assert found.search_path == ["$ORIGIN/../lib", "/opt/lib"]


def test_a_static_binary_needs_nothing() -> None:
    found = Elf(elf())
    assert (found.interpreter, found.needed, found.search_path) == (None, [], [])


def test_other_architectures_are_told_apart() -> None:
    assert Elf(elf(machine=183)).machine == "aarch64"
    assert Elf(elf(machine=8)).machine == "8"


def test_a_kernel_boots_by_pvh_if_it_has_the_note() -> None:
    assert Elf(elf(note=PVH)).boots_by_pvh
    assert not Elf(elf(note=(b"Xen\0", 17))).boots_by_pvh
    assert not Elf(elf(note=(b"GNU\0", 18))).boots_by_pvh
    assert not Elf(elf()).boots_by_pvh


def test_sections_are_found_by_name() -> None:
    assert Elf(BINARY).section(b".text") == b"code"
    assert Elf(BINARY).section(b".data") == b""
    assert Elf(elf()).section(b".text") == b""


def test_what_is_loaded_is_all_that_is_left_of_a_binary() -> None:
    loaded = Elf(BINARY).loaded()
    assert len(loaded) < len(BINARY) - 1000
    again = Elf(loaded)
    assert (again.needed, again.interpreter) == (Elf(BINARY).needed, Elf(BINARY).interpreter)
    assert again.section(b".text") == b""


@pytest.mark.skipif(sys.platform != "linux", reason="the binaries of other systems are no ELF files")
def test_this_interpreter_is_read() -> None:
    with open(sys.executable, "rb") as file:
        found = Elf(file.read())
    assert found.interpreter is not None
    assert any(name.startswith("libc.") for name in found.needed)


def test_a_module_says_what_it_depends_on() -> None:
    data = module(depends=["a", "b"], alias=["c", "d"])
    assert modinfo(data, "depends") == ["a,b"]
    assert modinfo(data, "alias") == ["c", "d"]
    assert modinfo(data, "softdep") == []


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x01\x01\x01" + bytes(100)])
def test_what_is_no_elf_file_of_64_bits_is_refused(data: bytes) -> None:
    with pytest.raises(ElfError, match="no ELF file"):
        Elf(data)


@given(st.integers(0, len(BINARY) - 1))
def test_a_file_cut_short_is_read_or_refused(length: int) -> None:
    with contextlib.suppress(ElfError):
        read_all(BINARY[:length])


@given(st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(BINARY)
    for at in data.draw(st.lists(st.integers(7, 400), max_size=8)):
        damaged[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ElfError):
        read_all(bytes(damaged))


def read_all(data: bytes) -> None:
    found = Elf(data)
    for read in ("machine", "interpreter", "needed", "search_path", "boots_by_pvh"):
        with contextlib.suppress(ElfError):
            getattr(found, read)
    with contextlib.suppress(ElfError):
        found.section(b".text")
    found.loaded()
