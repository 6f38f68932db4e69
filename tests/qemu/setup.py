"""What real VMs take of a machine: on Debian and Ubuntu, it is installed; the kernel is only unpacked.

Guest images and the kernel go into ``.qemu`` in the checkout, or where ``UVM_QEMU_DIR`` says.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from uvm.backends.qemu.availability import availability
from uvm.backends.qemu.guestimage import ImageOptions, build
from uvm.backends.qemu.guestimage.cache import Cache, default_cache
from uvm.backends.qemu.guestimage.fetch import fetch_kernel
from uvm.backends.qemu.guestimage.selection import select
from uvm.errors import NotSupportedError, UVMError

CHECKOUT: Final = Path(__file__).resolve().parents[2]

#: Set for the tests of real VMs, which are skipped without it, to how many seconds a boot takes.
ENABLED: Final = "UVM_TEST_QEMU"

#: The programs that the tests need, and the Debian packages that have them.
PROGRAMS: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "busybox": "busybox-static",
    "crun": "crun",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.erofs": "erofs-utils",
    "veritysetup": "cryptsetup-bin",
    # Ubuntu packs its modules so.
    "zstd": "zstd",
}


class SetupError(Exception):
    """Real VMs cannot be run here; the message says what is missing or went wrong."""


class ImpossibleError(SetupError):
    """What real VMs take is not on this machine, and cannot be installed by the user who runs this."""


def environment() -> dict[str, str]:
    """Return the environment of the tests: with a cache of their own, and all that root's path has."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))
    home = os.environ.get("UVM_QEMU_DIR") or CHECKOUT / ".qemu"
    return {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(Path(home).resolve()), ENABLED: "30"}


def set_up() -> None:
    """Install what is missing, download a kernel if none can be read, build the guest image.

    :raises SetupError: something remains missing.
    """
    os.environ |= environment()
    if sys.platform != "linux" or platform.machine() != "x86_64":
        here = f"{sys.platform} on {platform.machine()}"
        raise ImpossibleError(f"VMs with QEMU need Linux on x86_64, and this is {here}")
    _install([package for program, package in PROGRAMS.items() if not shutil.which(program)])
    cache = default_cache()
    try:
        cache.prepare()
        try:
            select(ImageOptions(), cache.downloads)
        except NotSupportedError:
            _fetch_kernel(cache)
        build(ImageOptions(), _say)
    except UVMError as error:
        raise SetupError(str(error)) from error
    if problems := availability():
        raise SetupError("; ".join(problems))


def _fetch_kernel(cache: Cache) -> None:
    try:
        fetch_kernel(cache, platform.machine(), _say)
    except NotSupportedError:
        # Images of containers have no lists of packages.
        _run([*_apt("a kernel"), "update"], check=False)
        fetch_kernel(cache, platform.machine(), _say)


def _say(text: str) -> None:
    print(text, flush=True)


def _apt(wanted: str) -> list[str]:
    """Return what a command of apt-get as root begins with.

    :param wanted: what it is for.
    :raises ImpossibleError: there is no apt-get, or this user cannot be root.
    """
    if not shutil.which("apt-get"):
        raise ImpossibleError(f"{wanted} (named as in Debian): there is no apt-get to install that with")
    root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    if root and subprocess.run([*root, "true"], check=False, capture_output=True).returncode:
        raise ImpossibleError(f"{wanted}: to be installed as root, which this user cannot be")
    return [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--yes"]


def _install(packages: list[str]) -> None:
    if not packages:
        return
    apt = _apt(f"missing: {' '.join(packages)}")
    _say(f"installing {' '.join(packages)}")
    # A source that fails need not be the one that has them.
    _run([*apt, "update"], check=False)
    _run([*apt, "install", "--no-install-recommends", *packages])


def _run(command: list[str], *, check: bool = True) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if check and done.returncode:
        said = done.stdout.decode(errors="replace")
        raise SetupError(f"exit status {done.returncode} of: {' '.join(command)}\n{said}")
