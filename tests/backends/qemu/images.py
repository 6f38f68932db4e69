"""Small disk images, written byte by byte after their specifications."""

from __future__ import annotations

import struct
from pathlib import Path
from uuid import UUID

from uvm.backends.qemu.images.vhd import checksum

MIB = 1 << 20
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4


def vhd_footer(size: int, kind: int = FIXED, header_at: int = 0xFFFFFFFFFFFFFFFF) -> bytes:
    """Return a VHD's footer."""
    footer = bytearray(512)
    struct.pack_into(">8sIIQ", footer, 0, b"conectix", 2, 0x10000, header_at)
    struct.pack_into(">QQ", footer, 40, size, size)
    struct.pack_into(">I", footer, 60, kind)
    footer[64:68] = checksum(bytes(footer))
    return bytes(footer)


def fixed_vhd(size: int = MIB) -> bytes:
    """Return a fixed VHD of zeros."""
    return bytes(size) + vhd_footer(size)


def dynamic_vhd(size: int = MIB, kind: int = DYNAMIC, parent: str = "") -> bytes:
    """Return an empty dynamic VHD, or a differencing one."""
    footer = vhd_footer(size, kind, 512)
    header = bytearray(1024)
    struct.pack_into(">8s8xQI", header, 0, b"cxsparse", 1536, 0x10000)
    name = parent.encode("utf-16-be")
    header[64 : 64 + len(name)] = name
    return footer + bytes(header) + footer


_METADATA = "8b7ca206-4790-4b9a-b8fe-575f050f886e"
_PARAMETERS = "caa16737-fa36-4d43-b3b6-33f0aa44e76b"
_SIZE = "2fa54224-cd1b-4876-b211-5dbed83bf4b8"
_DISK_ID = "beca12ab-b2e6-4523-93ef-c309e000c746"
_LOCATOR = "a8d35f2d-b30b-454d-abf7-d3d84834ab0c"
#: Where the table of metadata is in :func:`vhdx`, and in there the identifier.
VHDX_TABLE, VHDX_DISK_ID = MIB, 64 * 1024 + 16


def vhdx(size: int = MIB, parent: str = "") -> bytes:
    """Return what the header of a VHDX is made of, without the rest of one."""
    image = bytearray(MIB + 192 * 1024)
    image[:8] = b"vhdxfile"
    struct.pack_into("<4s4xI", image, 192 << 10, b"regi", 1)
    struct.pack_into("<16sQI", image, (192 << 10) + 16, UUID(_METADATA).bytes_le, VHDX_TABLE, MIB)
    at = 64 * 1024
    locator = _locator(parent)
    items = [(_PARAMETERS, at, 8), (_SIZE, at + 8, 8), (_DISK_ID, VHDX_DISK_ID, 16)]
    if parent:
        items.append((_LOCATOR, at + 64, len(locator)))
        image[MIB + at + 64 : MIB + at + 64 + len(locator)] = locator
    struct.pack_into("<8s2xH", image, VHDX_TABLE, b"metadata", len(items))
    for number, (name, offset, length) in enumerate(items):
        entry = VHDX_TABLE + 32 + 32 * number
        struct.pack_into("<16sII", image, entry, UUID(name).bytes_le, offset, length)
    struct.pack_into("<IIQ", image, MIB + at, MIB, 2 if parent else 0, size)
    return bytes(image)


def _locator(parent: str) -> bytes:
    key, value = "relative_path".encode("utf-16-le"), parent.encode("utf-16-le")
    return struct.pack("<16s2xHIIHH", bytes(16), 1, 32, 32 + len(key), len(key), len(value)) + key + value


def qcow2(
    size: int = MIB,
    *,
    version: int = 3,
    backing: str = "",
    backing_format: str = "",
    data_file: str = "",
    encrypted: bool = False,
) -> bytes:
    """Return the first cluster of a qcow2 image."""
    image = bytearray(1 << 16)
    name = backing.encode()
    name_at = 1024 if backing else 0
    struct.pack_into(">4sIQIIQI", image, 0, b"QFI\xfb", version, name_at, len(name), 16, size, encrypted)
    struct.pack_into(">Q20xI", image, 72, 4 if data_file else 0, 104)
    at = 104 if version > 2 else 72
    for kind, text in ((0x44415441, data_file), (0xE2792ACA, backing_format)):
        if text:
            data = text.encode()
            struct.pack_into(">II", image, at, kind, len(data))
            image[at + 8 : at + 8 + len(data)] = data
            at += 8 + (len(data) + 7) // 8 * 8
    image[1024 : 1024 + len(name)] = name
    return bytes(image)


def written(path: Path, image: bytes) -> str:
    """Write an image to a file, and return its path."""
    path.write_bytes(image)
    return str(path)
