"""Becoming the first process of a VM: what the kernel leaves to do between its start and the service's.

::

    file systems   /dev /proc /sys /run /tmp, terminals, cgroup2
    the root       the initramfs is mounted over itself: a root that lies on nothing cannot be changed by
                   pivot_root, as runtimes of containers do
    modules        those of the link to the host; the others in a worker, once the service runs
    the port       the one of virtio-serial that QEMU's command line names

A step that fails is said on the console, where QEMU's caller finds it, and ends the VM: there is no half of a
guest.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from uvm.agent import syscalls
from uvm.agent.attempts import attempts
from uvm.agent.modules import Modules

#: The name of the guest, which its containers have unless they have their own.
HOST_NAME: Final = "uvm"
#: The name of the port that carries the mux.
PORT: Final = "uvm.mux"
_PORTS: Final = "/sys/class/virtio-ports"
#: How long the port may take to appear, in seconds.
_PORT_SECONDS: Final = 60.0

#: Without these there is no link to the host. The last one reports a crash to it.
EARLY: Final = ("virtio_pci", "virtio_console", "pvpanic_pci")
#: What is nearly always needed, and soon.
SOON: Final = ("virtio_scsi", "sd_mod", "virtio_rng", "overlay")

_QUIET: Final = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
#: Source, target, kind, flags, data.
_MOUNTS: Final = (
    ("proc", "/proc", "proc", _QUIET, ""),
    ("sysfs", "/sys", "sysfs", _QUIET, ""),
    ("devtmpfs", "/dev", "devtmpfs", syscalls.MS_NOSUID, "mode=755"),
    ("devpts", "/dev/pts", "devpts", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=620,ptmxmode=666,gid=5"),
    ("shm", "/dev/shm", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=1777"),
    ("tmpfs", "/run", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755"),
    ("tmpfs", "/tmp", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=1777"),
)
_LINKS: Final = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}


def mount_all() -> None:
    """Mount the file systems that programs expect, and name the guest."""
    os.umask(0o022)
    move_root()
    for source, target, kind, flags, data in _MOUNTS:
        os.makedirs(target, exist_ok=True)
        syscalls.mount(source, target, kind, flags, data)
    mount_cgroups()
    for path, target in _LINKS.items():
        with contextlib.suppress(FileExistsError):
            os.symlink(target, path)
    with open("/proc/sys/kernel/hostname", "w", encoding="ascii") as file:
        file.write(HOST_NAME)


def mount_cgroups() -> None:
    """Mount the cgroups, so that a process is moved without delay where the kernel can do that (6.0)."""
    try:
        syscalls.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", _QUIET, "favordynmods")
    except OSError:
        syscalls.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", _QUIET)


def move_root() -> None:
    """Mount the root over itself, without copying it, and make that the root."""
    syscalls.mount("/", "/mnt", "", syscalls.MS_BIND)
    os.chdir("/mnt")
    syscalls.mount("/mnt", "/", "", syscalls.MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def open_port(modules: Modules) -> int:
    """Load what the link to the host needs, and open it.

    :raises TimeoutError: the VM has no such port.
    """
    modules.need(*EARLY)
    for _ in attempts(_PORT_SECONDS):
        path = _find_port()
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    raise TimeoutError(f"the VM has no port {PORT}")


def _find_port() -> str | None:
    """Return the device of the port; None if it is not there yet."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(_PORTS):
            with open(f"{_PORTS}/{name}/name", encoding="utf-8") as file:
                if file.read().strip() == PORT:
                    return f"/dev/{name}"
    return None
