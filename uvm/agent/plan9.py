"""Directories of the host, shared over 9p: virtio-9p devices, whose mount tag is the share's name.

A device is added while the guest runs; it is there once its driver shows the tag.
"""

from __future__ import annotations

import os
from typing import Final

from uvm.agent.attempts import attempts
from uvm.agent.filesystems import Filesystems
from uvm.agent.modules import Modules
from uvm.agent.refused import Refused
from uvm.agent.syscalls import MS_RDONLY

_DRIVER: Final = "/sys/bus/virtio/drivers/9pnet_virtio"
#: Large messages: each is a round trip to the host. Nothing is cached, as the host may change it.
_OPTIONS: Final = "trans=virtio,version=9p2000.L,msize=262144,cache=none"
_APPEARS_SECONDS: Final = 30.0
#: How long after its tag a share may take to be one that can be mounted: the driver shows the tag first.
_READY_SECONDS: Final = 10.0


def mount_share(modules: Modules, filesystems: Filesystems, name: str, target: str, read_only: bool) -> None:
    """Mount a share at a path.

    :raises Refused: there is no such share, it cannot be mounted, or the kernel has no 9p.
    """
    modules.need("9p", "9pnet_virtio")
    if not os.path.isdir(_DRIVER):
        raise Refused(
            f"could not connect to plan9 server for {target}: the kernel of this guest has no 9p over "
            "virtio; boot one that has, as general kernels of distributions do, and those for clouds may not"
        )
    if not any(name in tags(_DRIVER) for _ in attempts(_APPEARS_SECONDS)):
        raise Refused(f"could not connect to plan9 server for {target}: there is no share {name!r}")
    refused = None
    for _ in attempts(_READY_SECONDS, longest_pause=0.1):
        try:
            return filesystems.mount(name, target, "9p", MS_RDONLY if read_only else 0, _OPTIONS)
        except Refused as error:
            refused = error
            if not isinstance(error.__cause__, FileNotFoundError):
                break
    assert refused is not None
    raise refused


def tags(driver: str) -> list[str]:
    """Return the mount tags of the shares that the kernel knows."""
    found = []
    for device in os.listdir(driver) if os.path.isdir(driver) else ():
        try:
            with open(f"{driver}/{device}/mount_tag", "rb") as file:
                found.append(os.fsdecode(file.read().rstrip(b"\0\n")))
        except OSError:
            # It is no device, or one that the host is removing.
            continue
    return found
