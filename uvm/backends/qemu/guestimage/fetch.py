"""Download a kernel with its modules, without installing it: for containers, and if only root may read one.

The distribution's own packages, by ``apt-get download`` and ``dpkg-deb``; no root is needed. Of what they
hold, kernel, modules and licences are kept, in a root directory of their own below the cache.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from attrs import asdict

from uvm.backends.qemu.guestimage.cache import Cache
from uvm.backends.qemu.guestimage.packages import PACKAGES_FILE, Package, install, stated_licences
from uvm.errors import NotSupportedError

#: The packages that depend on the newest kernel: Debian's, Ubuntu's.
_NEWEST: Final = {
    "x86_64": ("linux-image-amd64", "linux-image-generic"),
    "aarch64": ("linux-image-arm64", "linux-image-generic"),
}
_OF_A_KERNEL: Final = re.compile(r"linux-(image|modules|modules-extra)-\d\S*")
_KEPT: Final = ("boot", "lib", "usr/lib", "usr/share/doc")
_UPDATE: Final = "run 'apt-get update' as root, and try again"


def fetch_kernel(cache: Cache, machine: str, progress: Callable[[str], object]) -> Path:
    """Download the newest kernel, unless it is there already; return its directory.

    :param machine: the architecture, as ``uname -m`` has it.
    :raises NotSupportedError: there is no apt-get here, or it fails; the message has what it said.
    """
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise NotSupportedError(
                f"a kernel is downloaded by apt-get, and there is no {program} on this machine; "
                f"install a kernel: {install('kernel')}; or name one: --kernel"
            )
    cache.prepare()
    packages = _packages(machine)
    directory = cache.downloads / packages[0]
    with cache.locked():
        if not directory.is_dir():
            with tempfile.TemporaryDirectory(prefix=".", dir=cache.downloads) as unfinished:
                root = Path(unfinished, "root")
                root.mkdir()
                _download(packages, Path(unfinished), root, progress)
                root.rename(directory)
    return directory


def _packages(machine: str) -> list[str]:
    """Return the packages of the newest kernel, its image first."""
    for newest in _NEWEST.get(machine, ()):
        if found := _depended_on(newest):
            return found
    raise NotSupportedError(f"apt-get knows no kernel for {machine}: {_UPDATE}")


def _depended_on(newest: str) -> list[str]:
    found = [newest]
    for package in found:
        listed = _run(["apt-cache", "depends", package], check=False)
        names = re.findall(r"^ +\|?Depends: (\S+)$", listed, re.M)
        found += [name for name in names if _OF_A_KERNEL.fullmatch(name) and name not in found]
    return sorted(found[1:], key=lambda name: (not name.startswith("linux-image"), name))


def _download(packages: list[str], directory: Path, root: Path, progress: Callable[[str], object]) -> None:
    progress(f"downloading {', '.join(packages)}")
    _run(["apt-get", "download", *packages], cwd=directory)
    notes = []
    for archive in sorted(directory.glob("*.deb")):
        progress(f"unpacking {archive.name}")
        _run(["dpkg-deb", "--extract", str(archive), str(root)])
        name, version = _run(["dpkg-deb", "--show", str(archive)]).split()
        archive.unlink()
        notes.append(Package(name, version, stated_licences(root / "usr/share/doc" / name / "copyright")))
    for path in [*root.glob("*"), *root.glob("usr/*"), *root.glob("usr/share/*")]:
        kept = path.relative_to(root)
        if not any(Path(each).is_relative_to(kept) or kept.is_relative_to(each) for each in _KEPT):
            shutil.rmtree(path)
    (root / PACKAGES_FILE).write_text(json.dumps([asdict(each) for each in notes]))


def _run(command: list[str], cwd: Path | None = None, *, check: bool = True) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        # Their words are translated.
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    if check and done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise NotSupportedError(f"{command[0]} {command[1]} failed: {last}; {_UPDATE}")
    return done.stdout
