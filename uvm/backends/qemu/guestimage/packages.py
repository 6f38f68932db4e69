"""Packages of distributions: which has a part that is missing, and which a file of this machine is from."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from attrs import frozen

#: The package that has a part, on Debian, Ubuntu and Fedora.
_PACKAGES: Final = {
    "qemu": ("qemu-system-x86", "qemu-system-x86", "qemu-system-x86-core"),
    "kernel": ("linux-image-amd64", "linux-image-generic", "kernel"),
    "busybox": ("busybox-static", "busybox-static", "busybox"),
    "crun": ("crun", "crun", "crun"),
    "lz4": ("lz4", "lz4", "lz4"),
    "zstd": ("zstd", "zstd", "zstd"),
    "setpriv": ("util-linux", "util-linux", "util-linux"),
}


#: In the root directory of a kernel that was downloaded: its packages.
PACKAGES_FILE: Final = "packages.json"


def install(part: str) -> str:
    """Return how to install a part: the command on Debian and Ubuntu, and on Fedora."""
    debian, ubuntu, fedora = _PACKAGES[part]
    if debian == ubuntu:
        return f"'apt-get install {debian}' on Debian and Ubuntu, 'dnf install {fedora}' on Fedora"
    return (
        f"'apt-get install {debian}' on Debian, 'apt-get install {ubuntu}' on Ubuntu, "
        f"'dnf install {fedora}' on Fedora"
    )


@frozen
class Package:
    """An installed package.

    :ivar licences: as the package states them; empty if it does so in prose only.
    """

    name: str
    version: str
    licences: tuple[str, ...]


def owners(paths: Iterable[str]) -> list[Package]:
    """Return the installed packages that files are from, by name; files of no package are left out."""
    spelled = sorted({each for path in paths for each in _spellings(path)})
    if not spelled:
        return []
    if (listed := _output("dpkg-query", "--search", *spelled)) is not None:
        named = re.findall(r"^([^/]+): /", listed, re.M)
        # `a, b:amd64: /path`; of a diversion, words.
        names = {name.partition(":")[0] for line in named for name in line.split(", ") if " " not in name}
        return [_debian(name) for name in sorted(names)]
    queried = _output("rpm", "-q", "-f", "--qf", "%{NAME}\t%{VERSION}-%{RELEASE}\t%{LICENSE}\n", *spelled)
    rows = sorted({tuple(line.split("\t")) for line in (queried or "").splitlines() if line.count("\t") == 2})
    return [Package(name, version, (licence,)) for name, version, licence in rows]


def downloaded(kernel: str) -> list[Package]:
    """Return the packages of a kernel that was downloaded; none of one that is installed."""
    try:
        noted = json.loads(Path(kernel).parents[1].joinpath(PACKAGES_FILE).read_text())
    except (OSError, IndexError):
        return []
    return [Package(each["name"], each["version"], tuple(each["licences"])) for each in noted]


def _spellings(path: str) -> tuple[str, ...]:
    # With /lib as a link to /usr/lib, a package may list a file by either name.
    usr = path.startswith(("/usr/lib", "/usr/bin", "/usr/sbin"))
    return path, path.removeprefix("/usr") if usr else f"/usr{path}"


def _debian(name: str) -> Package:
    version = _output("dpkg-query", "--show", "--showformat", "${Version}\n", name) or ""
    licences = stated_licences(Path("/usr/share/doc", name, "copyright"))
    return Package(name, version.partition("\n")[0], licences)


def stated_licences(copyright_file: Path) -> tuple[str, ...]:
    """Return the licences that a copyright file of Debian's machine-readable form names."""
    try:
        text = copyright_file.read_text(errors="replace")
    except OSError:
        return ()
    return tuple(sorted({each.strip() for each in re.findall(r"^License:[ \t]*(\S.*)$", text, re.M)}))


def _output(*command: str) -> str | None:
    """Return what a query of the package manager prints; None if there is no such manager."""
    try:
        # Files of no package make it fail; what it found is printed all the same.
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return None
    return done.stdout
