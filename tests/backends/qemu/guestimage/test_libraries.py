"""The libraries of binaries are found as the loader finds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.qemu.guestimage.made import elf
from uvm.backends.qemu.guestimage import libraries as module
from uvm.backends.qemu.guestimage.libraries import Libraries, configured
from uvm.errors import NotSupportedError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose loader looks in ``lib``, and in ``opt`` by its configuration."""
    for name in ("lib", "opt", "app/bin", "app/lib"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(module, "_everywhere", lambda machine: (f"{tmp_path}/lib",))
    monkeypatch.setattr(module, "configured", lambda: [f"{tmp_path}/opt"])
    return tmp_path


def put(path: Path, **of: object) -> Path:
    path.write_bytes(elf(**of))  # type: ignore[arg-type]
    return path


def libraries() -> Libraries:
    return Libraries("x86_64", lambda path: Path(path).read_bytes())


def test_what_a_library_needs_is_found_too(root: Path) -> None:
    binary = put(root / "app/bin/program", needed=["liba.so"])
    put(root / "lib/liba.so", needed=["libb.so"])
    put(root / "lib/libb.so", needed=["liba.so"])
    found = libraries()
    found.add(str(binary))
    assert {*found.files} == {f"{root}/lib/liba.so", f"{root}/lib/libb.so"}


def test_the_binarys_own_path_comes_first(root: Path) -> None:
    binary = put(root / "app/bin/program", needed=["liba.so"], runpath="$ORIGIN/../lib")
    put(root / "app/lib/liba.so")
    put(root / "lib/liba.so")
    found = libraries()
    found.add(str(binary))
    assert [*found.files] == [f"{root}/app/lib/liba.so"]


@pytest.mark.parametrize("runpath", ["", "$ORIGIN/../../opt"])
def test_what_the_first_process_would_not_find_is_linked_to_where_every_loader_looks(
    root: Path, runpath: str
) -> None:
    binary = put(root / "app/bin/program", needed=["liba.so"], runpath=runpath)
    put(root / "opt/liba.so")
    found = libraries()
    found.add(str(binary))
    library = f"{root}/opt/liba.so"
    assert [*found.files] == [library]
    assert found.links == {"/lib/liba.so": library, "/lib64/liba.so": library}


def test_libraries_of_other_architectures_are_passed_over(root: Path) -> None:
    binary = put(root / "app/bin/program", needed=["liba.so"], runpath="$ORIGIN/../lib")
    put(root / "app/lib/liba.so", machine=183)
    put(root / "lib/liba.so")
    found = libraries()
    found.add(str(binary))
    assert [*found.files] == [f"{root}/lib/liba.so"]


def test_the_loader_comes_with_what_it_opens_by_itself(root: Path) -> None:
    loader = put(root / "lib/ld.so")
    put(root / "lib/libgcc_s.so.1")
    found = libraries()
    found.add(str(put(root / "app/bin/program", interpreter=str(loader))))
    assert {*found.files} == {str(loader), f"{root}/lib/libgcc_s.so.1"}


def test_a_library_that_is_missing_is_named(root: Path) -> None:
    binary = put(root / "app/bin/program", needed=["liba.so"])
    with pytest.raises(NotSupportedError, match=f"{binary}.*the library liba.so, which it needs"):
        libraries().add(str(binary))


def test_what_is_no_binary_of_this_architecture_is_refused(root: Path) -> None:
    script = root / "app/bin/script"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(NotSupportedError, match="no ELF file"):
        libraries().add(str(script))
    with pytest.raises(NotSupportedError, match="a binary of aarch64, not of x86_64"):
        libraries().add(str(put(root / "app/bin/program", machine=183)))


def test_a_configuration_includes_others(tmp_path: Path) -> None:
    (tmp_path / "ld.so.conf").write_text("include more/*.conf\n/first # said why\n\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/a.conf").write_text("/second\n")
    assert configured(str(tmp_path / "ld.so.conf")) == ["/second", "/first"]
    assert configured(str(tmp_path / "none")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="asks the loader of Linux")
def test_this_interpreters_libraries_are_those_that_its_loader_finds() -> None:
    executable = os.path.realpath(sys.executable)
    shown = subprocess.run(["ldd", executable], capture_output=True, text=True, check=True).stdout
    paths = [word for line in shown.splitlines() for word in line.split() if word.startswith("/")]
    found = Libraries(os.uname().machine, lambda path: Path(path).read_bytes())
    found.add(executable)
    assert {os.path.realpath(path) for path in paths} <= {os.path.realpath(path) for path in found.files}
