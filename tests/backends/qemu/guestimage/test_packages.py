"""The packages of distributions: what to install, and what files are from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from uvm.backends.qemu.guestimage.packages import Package, install, owners, stated_licences


def test_one_command_serves_distributions_that_agree() -> None:
    assert install("zstd") == "'apt-get install zstd' on Debian and Ubuntu, 'dnf install zstd' on Fedora"


def test_licences_are_those_that_a_copyright_file_names(tmp_path: Path) -> None:
    path = tmp_path / "copyright"
    path.write_text("Format: 1.0\nFiles: *\nLicense: GPL-2+\n text\nFiles: a\nLicense:\nLicense: MIT\n")
    assert stated_licences(path) == ("GPL-2+", "MIT")
    assert stated_licences(tmp_path / "none") == ()


def tools(directory: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    for name, script in scripts.items():
        path = directory / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))


def test_on_debian_dpkg_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file may be listed without /usr, by several packages, and with an architecture.
    tools(
        tmp_path,
        monkeypatch,
        dpkg_query="""
        case $1 in
        --search) for each; do case $each in
            /lib/libc.so.6) echo 'libc6:amd64: /lib/libc.so.6';;
            /usr/share/both) echo 'diversion by dash from: /x'; echo 'a, b:any: /usr/share/both';;
            esac; done; exit 1;;
        --show) echo 1.0;;
        esac""",
    )
    found = owners(["/usr/lib/libc.so.6", "/usr/share/both", "/root/mine"])
    assert [(each.name, each.version) for each in found] == [
        ("a", "1.0"),
        ("b", "1.0"),
        ("libc6", "1.0"),
    ]


def test_on_fedora_rpm_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = "glibc\\t2.39-1\\tLGPL-2.1\\n"
    script = f"printf '{row}file /x is not owned by any package\\n{row}'"
    tools(tmp_path, monkeypatch, rpm=script)
    assert owners(["/lib64/libc.so.6"]) == [Package("glibc", "2.39-1", ("LGPL-2.1",))]


def test_elsewhere_no_package_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools(tmp_path, monkeypatch)
    assert owners(["/lib/libc.so.6"]) == []
    assert owners([]) == []


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="needs dpkg")
def test_this_machines_dpkg_is_understood() -> None:
    found = owners(["/usr/bin/dpkg-query"])
    assert [each.name for each in found] == ["dpkg"]
    assert found[0].version
    assert any("GPL-2" in licence for licence in found[0].licences)
