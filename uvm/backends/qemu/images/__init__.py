"""Headers of disk images: what an image is, and what else of the host it would open.

How it works
------------

The format follows from the name of the file, never from its content, which a guest may have written::

    .vhd              VHD: fixed (raw data, and a footer behind it) or dynamic
    .vhdx             VHDX
    .qcow2            qcow2
    .vmdk, .vdi, ...  refused
    all else, and     raw
    block devices

A header may name further files of the host: a backing file, an external data file, a parent. QEMU would open
them, so headers are read here first, from the descriptor that QEMU is handed, and :class:`Image` has their
names; the caller decides. Headers are small, and never trusted: whatever does not fit is an
:class:`ImageError`.
"""

from __future__ import annotations

import os.path
from typing import Final

from uvm.backends.qemu.images import qcow2, vhd, vhdx
from uvm.backends.qemu.images.image import DRIVERS, Image, ImageError, ImageFormat, Read

__all__ = ["DRIVERS", "Image", "ImageError", "ImageFormat", "Read", "format_of", "read_image"]

_FORMATS: Final[dict[str, ImageFormat]] = {
    ".vhd": "vhd",
    ".avhd": "vhd",
    ".vhdx": "vhdx",
    ".avhdx": "vhdx",
    ".qcow2": "qcow2",
}
_OTHERS: Final = frozenset({".vmdk", ".vdi", ".qed", ".vhds", ".hdd", ".dmg", ".ova"})


def format_of(path: str) -> ImageFormat:
    """Return the format that the name of a file says.

    :raises ImageError: it is one that is not supported; taken for raw, a guest would overwrite it.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _OTHERS:
        raise ImageError(
            f"{suffix[1:].upper()} is not supported: VHD, VHDX, qcow2 and raw images are; "
            "make another image with qemu-img convert"
        )
    return _FORMATS.get(suffix, "raw")


def read_image(format: ImageFormat, file_bytes: int, read: Read) -> Image:
    """Read the header of an image.

    :param file_bytes: the size of the file.
    :param read: reads from the file.
    :raises ImageError: it is no image of that format, it is cut short, or it is encrypted.
    """
    if format == "raw":
        if not file_bytes:
            raise ImageError("it is empty, and a disk has at least one sector")
        return Image("raw", file_bytes, fixed=True)
    if format == "vhd":
        return vhd.read(file_bytes, read)
    if format == "vhdx":
        return vhdx.read(file_bytes, read)
    return qcow2.read(file_bytes, read)
