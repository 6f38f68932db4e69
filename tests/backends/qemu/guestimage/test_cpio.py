"""The archive that a kernel unpacks as its first root file system."""

from __future__ import annotations

import io
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.qemu.guestimage.made import Entry, read_cpio
from uvm.backends.qemu.guestimage.cpio import CpioWriter

PART = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=9)
NAME = st.lists(PART, min_size=1, max_size=4).map("/".join)


def written(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    archive = CpioWriter(file)
    for name, data in files.items():
        archive.file(name, data)
    archive.close()
    return file.getvalue()


def test_each_kind_of_entry_is_read_back() -> None:
    file = io.BytesIO()
    archive = CpioWriter(file)
    archive.file("/init", b"#!/bin/sh\n", 0o755)
    archive.link("bin/sh", "busybox")
    archive.directory("tmp", 0o1777)
    archive.character_device("dev/console", 5, 1)
    archive.close()
    assert read_cpio(file.getvalue()) == {
        "init": Entry(stat.S_IFREG | 0o755, b"#!/bin/sh\n", (0, 0)),
        "bin": Entry(stat.S_IFDIR | 0o755, b"", (0, 0)),
        "bin/sh": Entry(stat.S_IFLNK | 0o777, b"busybox", (0, 0)),
        "tmp": Entry(stat.S_IFDIR | 0o1777, b"", (0, 0)),
        "dev": Entry(stat.S_IFDIR | 0o755, b"", (0, 0)),
        "dev/console": Entry(stat.S_IFCHR | 0o600, b"", (5, 1)),
    }


@given(st.dictionaries(NAME, st.binary(max_size=20), max_size=6))
def test_any_files_are_read_back_after_the_directories_above_them(files: dict[str, bytes]) -> None:
    found = read_cpio(written(files))
    for number, name in enumerate(found):
        above = name.rpartition("/")[0]
        assert not above or above in list(found)[:number]
    # A file may have the name of a directory that came first.
    directories = {name for name, entry in found.items() if stat.S_ISDIR(entry.mode)}
    assert {name: found[name].data for name in files if name not in directories} == {
        name: data for name, data in files.items() if name not in directories
    }


def test_the_same_contents_make_the_same_bytes() -> None:
    assert written({"a": b"1", "b/c": b"2"}) == written({"a": b"1", "b/c": b"2"})


def test_a_name_keeps_what_it_was_given_first() -> None:
    file = io.BytesIO()
    archive = CpioWriter(file)
    archive.file("a", b"first")
    archive.file("/a", b"second")
    archive.close()
    assert read_cpio(file.getvalue())["a"].data == b"first"


@pytest.mark.skipif(not shutil.which("busybox"), reason="needs busybox")
def test_cpio_unpacks_it(tmp_path: Path) -> None:
    subprocess.run(
        ["busybox", "cpio", "-i"], cwd=tmp_path, input=written({"a/b": b"text", "c": b""}), check=True
    )
    assert (tmp_path / "a/b").read_bytes() == b"text"
    assert (tmp_path / "c").read_bytes() == b""
