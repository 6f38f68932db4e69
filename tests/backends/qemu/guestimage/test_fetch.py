"""A kernel is downloaded with the distribution's own tools, which are played by scripts here."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.backends.qemu.guestimage.made import RELEASE, bzimage
from uvm.backends.qemu.guestimage.cache import Cache
from uvm.backends.qemu.guestimage.fetch import fetch_kernel
from uvm.backends.qemu.guestimage.packages import Package, downloaded
from uvm.backends.qemu.guestimage.selection import ImageOptions, select
from uvm.errors import NotSupportedError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="about Linux distributions")

#: What Ubuntu's depends on, as apt-cache prints it.
DEPENDS = {
    "linux-image-generic": [
        "  Depends: linux-image-6.8.0-31-generic",
        "  Depends: linux-modules-extra-6.8.0-31-generic",
        "  Depends: linux-firmware",
    ],
    "linux-image-6.8.0-31-generic": [
        " |Depends: linux-modules-6.8.0-31-generic",
        "  Depends: kmod",
        "  Conflicts: linux-image-unsigned-6.8.0-31-generic",
    ],
}


class Distribution:
    """Its tools, and what they were called with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tools = root / "tools"
        self.tools.mkdir(parents=True)
        (root / "files/boot").mkdir(parents=True)
        (root / "files/boot/vmlinuz-6.8").write_bytes(bzimage())
        (root / f"files/lib/modules/{RELEASE}/kernel").mkdir(parents=True)
        doc = root / "files/usr/share/doc/linux-image-6.8.0-31-generic"
        doc.mkdir(parents=True)
        (doc / "copyright").write_text("Files: *\nLicense: GPL-2\n\nFiles: b\nLicense: MIT\n")
        (root / "files/usr/share/man").mkdir()
        (root / "files/etc").mkdir()
        for package, lines in DEPENDS.items():
            (root / package).write_text("\n".join([package, *lines, ""]))
        # Its words are those of its user's language.
        self.tool("apt-cache", f'[ "$LC_ALL" = C.UTF-8 ] && cat "{root}/$2"')
        self.tool("apt-get", f'echo "$@" >> {root}/calls; shift; for each; do touch "$each.deb"; done')
        self.tool(
            "dpkg-deb", f'[ $1 = --show ] && echo $(basename "$2" .deb) 6.8 || cp -r {root}/files/. "$3"'
        )
        for name in ("cat", "touch", "basename", "cp"):
            found = shutil.which(name)
            assert found is not None
            (self.tools / name).symlink_to(found)

    def tool(self, name: str, script: str) -> None:
        (self.tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.tools / name).chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines()


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distribution:
    made = Distribution(tmp_path / "distribution")
    monkeypatch.setenv("PATH", str(made.tools))
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def silent(text: str) -> None:
    """Say nothing."""


def test_the_newest_kernel_is_downloaded_with_its_modules(distribution: Distribution, cache: Cache) -> None:
    fetch_kernel(cache, "x86_64", silent)
    assert distribution.calls == [
        "download linux-image-6.8.0-31-generic linux-modules-6.8.0-31-generic "
        "linux-modules-extra-6.8.0-31-generic"
    ]


def test_nothing_but_kernel_modules_and_licences_is_kept(distribution: Distribution, cache: Cache) -> None:
    root = fetch_kernel(cache, "x86_64", silent)
    assert {path.name for path in root.iterdir()} == {"boot", "lib", "usr", "packages.json"}
    assert [path.name for path in (root / "usr/share").iterdir()] == ["doc"]
    assert [path.name for path in cache.downloads.iterdir()] == [root.name]


def test_it_is_downloaded_once(distribution: Distribution, cache: Cache) -> None:
    assert fetch_kernel(cache, "x86_64", silent) == fetch_kernel(cache, "x86_64", silent)
    assert len(distribution.calls) == 1


def test_its_packages_and_their_licences_are_known(distribution: Distribution, cache: Cache) -> None:
    root = fetch_kernel(cache, "x86_64", silent)
    assert Package("linux-image-6.8.0-31-generic", "6.8", ("GPL-2", "MIT")) in downloaded(
        str(root / "boot/vmlinuz-6.8")
    )
    assert len(json.loads((root / "packages.json").read_text())) == 3
    assert downloaded("/boot/vmlinuz") == []


def test_images_are_made_of_it_from_then_on(
    distribution: Distribution, cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    distribution.tool("busybox", "")
    monkeypatch.setattr("uvm.backends.qemu.guestimage.selection._ROOT", tmp_path)
    (distribution.root / "files/boot/vmlinuz-6.8").rename(distribution.root / f"files/boot/vmlinuz-{RELEASE}")
    root = fetch_kernel(cache, "x86_64", silent)
    assert select(ImageOptions(), cache.downloads).kernel == f"{root}/boot/vmlinuz-{RELEASE}"


def test_without_apt_get_other_ways_are_named(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotSupportedError, match=r"no apt-get on this.*'dnf install kernel'.*--kernel"):
        fetch_kernel(cache, "x86_64", silent)


def test_a_download_that_fails_says_why_and_leaves_nothing(distribution: Distribution, cache: Cache) -> None:
    distribution.tool("apt-get", "echo 'E: no network' >&2; exit 100")
    with pytest.raises(NotSupportedError, match="download failed: E: no network; run 'apt-get update'"):
        fetch_kernel(cache, "x86_64", silent)
    assert [*cache.downloads.iterdir()] == []


@pytest.mark.parametrize("machine", ["x86_64", "riscv64"])
def test_a_machine_without_a_kernel_is_refused(
    distribution: Distribution, cache: Cache, machine: str
) -> None:
    distribution.tool("apt-cache", "exit 100")
    with pytest.raises(NotSupportedError, match=f"no kernel for {machine}"):
        fetch_kernel(cache, machine, silent)
