"""The modules of a kernel: found, unpacked, in the order in which they can be loaded."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.backends.qemu.guestimage.made import RELEASE, module
from uvm.backends.qemu.guestimage.contents import module_index
from uvm.backends.qemu.guestimage.modules import Module, ModuleError, Modules, _in_order


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The modules of a made-up kernel."""
    files = {
        "fs/ext4.ko": module(depends=["jbd2", "mbcache"], softdep="pre: crc32c post: other"),
        "fs/jbd2.ko.xz": lzma.compress(module()),
        "fs/mbcache.ko.gz": gzip.compress(module(depends=["deep-one"])),
        "lib/deep-one.ko": module(),
        "crypto/crc32c_generic.ko": module(alias=["crc32c", "crypto-crc32c"]),
    }
    for name, data in files.items():
        path = tmp_path / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path


def modules(directory: Path, release: str = RELEASE) -> Modules:
    return Modules(str(directory), release, lambda path: Path(path).read_bytes())


def test_a_module_comes_after_all_that_it_depends_on(directory: Path) -> None:
    assert [*modules(directory).closure(["ext4"])] == ["jbd2", "deep_one", "mbcache", "ext4"]


def test_a_soft_dependency_may_be_an_alias_of_a_module_that_is_wanted(directory: Path) -> None:
    found = modules(directory).closure(["ext4", "crc32c_generic"])
    assert "crc32c_generic" in found["ext4"].depends
    assert [*found].index("crc32c_generic") < [*found].index("ext4")


def test_packed_modules_are_unpacked(directory: Path) -> None:
    found = modules(directory).closure(["jbd2", "mbcache"])
    assert found["jbd2"].data == found["deep_one"].data == module()


def test_what_the_kernel_does_not_have_is_left_out(directory: Path) -> None:
    assert modules(directory).closure(["virtio_pci"]) == {}


def test_the_index_says_all_that_is_loaded_before_a_module(directory: Path) -> None:
    index = module_index(modules(directory).closure(["ext4", "jbd2"]))
    assert index == {
        "jbd2": [],
        "deep_one": [],
        "mbcache": ["deep_one"],
        "ext4": ["jbd2", "deep_one", "mbcache"],
    }


def test_modules_of_another_kernel_are_refused(directory: Path) -> None:
    with pytest.raises(ModuleError, match=f"ext4.ko is of Linux {RELEASE}, not of 6.2"):
        modules(directory, "6.2").closure(["ext4"])


@pytest.mark.parametrize(
    "data",
    [b"", b"no module", lzma.compress(module())[:-20], gzip.compress(module())[:30]],
    # gzip writes the time, and each worker has to have the same names.
    ids=["empty", "no module", "half of an xz file", "half of a gz file"],
)
def test_a_damaged_module_is_named(directory: Path, data: bytes) -> None:
    (directory / "kernel/fs/ext4.ko").write_bytes(data)
    with pytest.raises(ModuleError, match=r"ext4\.ko cannot be read"):
        modules(directory).closure(["ext4"])


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3)))
def test_dependencies_in_a_circle_come_to_an_end(depends: dict[str, list[str]]) -> None:
    found = {
        name: Module(name, b"", tuple(each for each in needed if each in depends and each != name))
        for name, needed in depends.items()
    }
    ordered = _in_order(found)
    assert set(ordered) == set(found)
    assert set(module_index(ordered)) == set(found)
