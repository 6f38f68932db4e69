"""The directories that the containers of a pod share.

They are mounts of their own, so that what one container mounts in them is seen by the others.

Source: hcsshim internal/guest/runtime/hcsv2/uvm.go (``setupSandboxMountsPath`` and its kind).
"""

from __future__ import annotations

import os
from typing import Final

from uvm.agent.containers.bundle import SHARED
from uvm.agent.mounts import deepest_mount
from uvm.agent.refused import Refused, reason
from uvm.agent.syscalls import MS_BIND, umount
from uvm.agent.syscalls import mount as mount_at

_MS_REC: Final = 1 << 14
_MS_SHARED: Final = 1 << 20


def mount(pod: str) -> None:
    """Make the directories of a pod.

    :raises OSError: the kernel refused.
    """
    for prefix, name in SHARED.items():
        path = f"{pod}/{name}"
        os.makedirs(path, exist_ok=True)
        if prefix == "sandbox-tmp://":
            mount_at("tmpfs", path, "tmpfs")
        else:
            mount_at(path, path, "", MS_BIND)
        mount_at("", path, "", _MS_SHARED | _MS_REC)


def mount_huge_pages(pod: str, path: str) -> None:
    """Mount huge pages, of the size that the first part of their path names, at a directory of a pod."""
    size = os.path.relpath(path, f"{pod}/{SHARED['hugepages://']}").split("/")[0]
    mount_at("none", path, "hugetlbfs", 0, f"pagesize={size}")


def unmount(pod: str) -> None:
    """Unmount them, with what is mounted in them.

    :raises Refused: they are in use.
    """
    directories = [f"{pod}/{name}" for name in SHARED.values()]
    while (there := deepest_mount(directories)) is not None:
        try:
            umount(there)
        except OSError as error:
            raise Refused(f"failed to unmount {there}: {reason(error)}") from None
