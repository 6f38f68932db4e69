"""VHD: a footer of one sector at the end; a dynamic one has a copy of it at the beginning.

Source: Virtual Hard Disk Image Format Specification 1.0.
"""

from __future__ import annotations

import struct
from typing import Final
from uuid import UUID

from uvm.backends.qemu.images.image import Image, ImageError, Read, exactly

SECTOR_BYTES: Final = 512

_COOKIE: Final = b"conectix"
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_CHECKSUM_AT, _ID_AT = 64, 68
_DYNAMIC_COOKIE: Final = b"cxsparse"
_DYNAMIC_HEADER_BYTES: Final = 1024


def read(file_bytes: int, pread: Read) -> Image:
    """Read the footer, and the header of a dynamic one; ImageError."""
    at = file_bytes - SECTOR_BYTES
    if at < 0:
        raise ImageError("it is cut short: a VHD ends with a footer")
    footer = exactly(pread, at, SECTOR_BYTES, "the footer")
    if footer[:8] != _COOKIE:
        raise ImageError("it is no VHD: the last sector is no footer; a raw image is named .img or .raw")
    if checksum(footer) != footer[_CHECKSUM_AT:_ID_AT]:
        raise ImageError("it is a damaged VHD: the checksum of its footer is wrong")
    header_at, size, kind = (
        int.from_bytes(footer[start:end], "big") for start, end in ((16, 24), (48, 56), (60, 64))
    )
    if not size:
        raise ImageError("it is a damaged VHD: the size of its disk is 0")
    if kind == _FIXED:
        if size > at:
            raise ImageError(f"it is cut short: a VHD of {size} bytes has {at} bytes of data")
        return Image("vhd", size, fixed=True, identifiers=(at,))
    if kind not in (_DYNAMIC, _DIFFERENCING):
        raise ImageError(f"it is no VHD that is known: its type is {kind}")
    header = exactly(pread, header_at, _DYNAMIC_HEADER_BYTES, "the header of a dynamic VHD")
    if header[:8] != _DYNAMIC_COOKIE:
        raise ImageError("it is a damaged VHD: the header of a dynamic one is not there")
    backing = None
    if kind == _DIFFERENCING:
        backing = header[64:576].decode("utf-16-be", "replace").partition("\0")[0]
    return Image("vhd", size, backing=backing, identifiers=(0, at))


def checksum(footer: bytes) -> bytes:
    """Return the checksum of a VHD's footer, as it is in there."""
    counted = sum(footer) - sum(footer[_CHECKSUM_AT:_ID_AT])
    return struct.pack(">I", ~counted & 0xFFFFFFFF)


def with_id(footer: bytes, disk_id: UUID) -> bytes:
    """Return a VHD's footer with another identifier."""
    changed = bytearray(footer)
    changed[_ID_AT : _ID_AT + 16] = disk_id.bytes
    changed[_CHECKSUM_AT:_ID_AT] = checksum(bytes(changed))
    return bytes(changed)
