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
from uvm.backends.qemu.guestimage.selection import Selection, has_shares, select
from uvm.backends.qemu.room import available_mb
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


#: How long another apt-get may take.
APT_SECONDS: Final = 300
#: What two VMs of 1,040 MB use at most, with emulators and tests.
MEMORY_MB: Final = 2500
#: A kernel, unpacked; the images made of it; disks of tests.
DISK_MB: Final = 3000


class SetupError(Exception):
    """Real VMs cannot be run here; the message says what is missing or went wrong."""


class ImpossibleError(SetupError):
    """What real VMs take is not on this machine, and this user, or this network, cannot have it installed."""


def environment() -> dict[str, str]:
    """Return the environment of the tests: with a cache of their own, and all that root's path has."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"))
    home = Path(os.environ.get("UVM_QEMU_DIR") or CHECKOUT / ".qemu").resolve()
    homes = {"XDG_CACHE_HOME": str(home), "XDG_STATE_HOME": str(home / "state")}
    return {**os.environ, **homes, "PATH": path, ENABLED: "30"}


def set_up() -> None:
    """Install what is missing, download a kernel if none can be read, build the guest image.

    :raises SetupError: the guest image cannot be built.
    :raises ImpossibleError: something remains missing.
    """
    os.environ |= environment()
    if sys.platform != "linux" or platform.machine() != "x86_64":
        here = f"{sys.platform} on {platform.machine()}"
        raise ImpossibleError(f"VMs with QEMU need Linux on x86_64, and this is {here}")
    _install([package for program, package in PROGRAMS.items() if not shutil.which(program)])
    cache = default_cache()
    try:
        cache.prepare()
        _check_room(cache.root)
        if not _has_kernel(cache):
            _fetch_kernel(cache)
        if problems := availability():
            raise ImpossibleError("; ".join(problems))
    except NotSupportedError as error:
        raise ImpossibleError(str(error)) from error
    try:
        build(ImageOptions(), _say)
    except UVMError as error:
        raise SetupError(str(error)) from error


def _check_room(directory: Path) -> None:
    """Refuse a machine that has no room: Linux would kill QEMU in the middle of a test."""
    memory, disk = available_mb(), shutil.disk_usage(directory).free >> 20
    for what, there, needed in (("memory", memory, MEMORY_MB), (f"disk for {directory}", disk, DISK_MB)):
        if there < needed:
            raise ImpossibleError(f"the tests need {needed} MB of {what}, and {there} MB are available")


def _has_kernel(cache: Cache) -> bool:
    """Return whether there is a kernel with all that is tested; those made for clouds have no shares."""
    try:
        return has_shares(_selected(cache))
    except NotSupportedError:
        return False


def _selected(cache: Cache) -> Selection:
    return select(ImageOptions(), cache.downloads)


def _fetch_kernel(cache: Cache) -> None:
    try:
        fetch_kernel(cache, platform.machine(), _say)
    except NotSupportedError:
        # Images of containers have no lists of packages.
        _run([*_apt("a kernel"), "update"])
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
    if root and not (shutil.which("sudo") and _succeeds([*root, "true"])):
        raise ImpossibleError(f"{wanted}: to be installed as root, which this user cannot be")
    # Another one may be installing at the moment, as machines do by themselves once they have booted.
    patient = ("-o", f"DPkg::Lock::Timeout={APT_SECONDS}", "-o", "Acquire::Retries=3")
    return [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", "--yes", *patient]


def _install(packages: list[str]) -> None:
    if not packages:
        return
    apt = _apt(f"missing: {' '.join(packages)}")
    _say(f"installing {' '.join(packages)}")
    # A source that fails need not be the one that has them.
    _run([*apt, "update"])
    done = _run([*apt, "install", "--no-install-recommends", *packages])
    if done.returncode:
        said = done.stdout.decode(errors="replace")
        raise ImpossibleError(f"exit status {done.returncode} of: {' '.join(done.args)}\n{said}")


def _succeeds(command: list[str]) -> bool:
    return _run(command).returncode == 0


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
