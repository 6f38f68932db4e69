"""Tap devices of the host, which are opened here: QEMU's user need not own them.

Source: Linux Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from uvm.errors import HostError
from uvm.hresult import HResult

_DEVICE: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP, _IFF_MULTI_QUEUE, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
_WHY: Final = {
    errno.EBUSY: "another VM or process has it",
    errno.EPERM: "this user may not; as root: 'ip tuntap add NAME mode tap user USER'",
    errno.EACCES: f"this user may not open {_DEVICE}",
}


def open_tap(name: str, operation: str) -> int:
    """Open a tap device that is there, and return its descriptor.

    :raises HostError: there is none of that name, another process has it, or this user may not.
    """
    try:
        flags = int(Path(f"/sys/class/net/{name}/tun_flags").read_text(), 16)
    except (OSError, ValueError):
        text = f"there is no tap device {name}; as root: 'ip tuntap add {name} mode tap user USER'"
        raise HostError(operation, HResult.ERROR_FILE_NOT_FOUND, text) from None
    wanted = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | flags & _IFF_MULTI_QUEUE
    fd = -1
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), wanted))
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        code = HResult.ERROR_SHARING_VIOLATION if error.errno == errno.EBUSY else HResult.E_ACCESSDENIED
        text = _WHY.get(error.errno or 0, error.strerror or str(error)).replace("NAME", name)
        raise HostError(operation, code, f"open tap device {name}: {text}") from error
    return fd
