"""Virtual disks with an empty file system, made byte by byte: a Windows host has no mkfs.ext4.

Theory of operation
-------------------

::

    fixed VHD     | the sectors of the disk                                           | footer |
    VHDX    0     | name | header | header | regions | regions |   an empty log at 1 MiB
            2 MiB | metadata: sizes, the id          | block table at 3 MiB | the blocks, from 4 MiB on

The file system is an ext2 of one group of blocks of 1 KiB, which ext4 mounts: 8 MiB of the disk at most.

Sources: the Virtual Hard Disk Image Format Specification; [MS-VHDX]; the ext4 disk layout of the kernel's
documentation.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import Final
from uuid import UUID, uuid4

KIB, MIB = 1 << 10, 1 << 20
#: Windows takes no smaller disk.
LEAST_BYTES: Final = 4 * MIB
_SECTOR: Final = 512

# ext2.

_INODES: Final = 32
_BITMAP, _INODE_BITMAP, _INODE_TABLE, _ROOT, _LOST = 3, 4, 5, 9, 10
_ROOT_INODE, _LOST_INODE = 2, 11
_DIRECTORY: Final = 2


def ext2(size_bytes: int) -> bytes:
    """Return an empty ext2, followed by zeros up to a size."""
    blocks = min(size_bytes // KIB, 8 * KIB)
    free = blocks - 1 - _LOST
    image = bytearray(size_bytes)
    counts = (_INODES, blocks, 0, free, _INODES - _LOST_INODE, 1, 0, 0, 8 * KIB, 8 * KIB, _INODES)
    struct.pack_into("<11I8xHHHHHH", image, KIB, *counts, 0, 0xFFFF, 0xEF53, 1, 1, 0)
    struct.pack_into(
        "<12xIHHIHHIII16s", image, KIB + 64, 1, 0, 0, _LOST_INODE, 128, 0, 0, 2, 0, uuid4().bytes
    )
    places = (_BITMAP, _INODE_BITMAP, _INODE_TABLE, free, _INODES - _LOST_INODE, 2)
    struct.pack_into("<IIIHHH", image, 2 * KIB, *places)
    image[_BITMAP * KIB : (_BITMAP + 1) * KIB] = _bitmap(used=_LOST, there=blocks - 1)
    image[_INODE_BITMAP * KIB : (_INODE_BITMAP + 1) * KIB] = _bitmap(used=_LOST_INODE, there=_INODES)
    for inode, mode, links, block in ((_ROOT_INODE, 0o40755, 3, _ROOT), (_LOST_INODE, 0o40700, 2, _LOST)):
        at = _INODE_TABLE * KIB + (inode - 1) * 128
        struct.pack_into("<HHI16xHHI8xI", image, at, mode, 0, KIB, 0, links, KIB // _SECTOR, block)
    _directory(image, _ROOT, {b".": _ROOT_INODE, b"..": _ROOT_INODE, b"lost+found": _LOST_INODE})
    _directory(image, _LOST, {b".": _LOST_INODE, b"..": _ROOT_INODE})
    return bytes(image)


def _bitmap(*, used: int, there: int) -> bytes:
    """Return a bitmap of which the first are used; what is not there is marked as used as well."""
    bits = (1 << used) - 1 | (1 << 8 * KIB) - (1 << there)
    return bits.to_bytes(KIB, "little")


def _directory(image: bytearray, block: int, entries: dict[bytes, int]) -> None:
    at, end = block * KIB, (block + 1) * KIB
    for number, (name, inode) in enumerate(entries.items(), 1):
        length = end - at if number == len(entries) else 8 + -(-len(name) // 4) * 4
        struct.pack_into(f"<IHBB{len(name)}s", image, at, inode, length, len(name), _DIRECTORY, name)
        at += length


# VHD.


def vhd(disk: bytes) -> bytes:
    """Return a fixed VHD of a disk."""
    size = len(disk)
    head = struct.pack(">8sIIQI4sI4s", b"conectix", 2, 0x10000, 2**64 - 1, 0, b"uvm ", 0x10000, b"Wi2k")
    rest = struct.pack(">QQHBBI", size, size, *_geometry(size // _SECTOR), 2)
    unique = uuid4().bytes.ljust(_SECTOR - len(head) - len(rest) - 4, b"\0")
    checksum = ~sum(head + rest + unique) & 0xFFFFFFFF
    return disk + head + rest + struct.pack(">I", checksum) + unique


def _geometry(sectors: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors per track of a small disk, as the specification computes them."""
    heads = max(4, -(-(sectors // 17) // 1024))
    return sectors // 17 // heads, heads, 17


# VHDX.

_LOG_AT, _METADATA_AT, _TABLE_AT, _BLOCKS_AT = (MIB * number for number in range(1, 5))
_FULLY_PRESENT: Final = 6
_REQUIRED, _OF_THE_DISK = 4, 2


def vhdx(disk: bytes) -> bytes:
    """Return a VHDX of a disk, all of whose blocks are there."""
    blocks = -(-len(disk) // MIB)
    image = bytearray(_BLOCKS_AT) + disk.ljust(blocks * MIB, b"\0")
    image[:8] = b"vhdxfile"
    for number, at in enumerate((64 * KIB, 128 * KIB), 1):
        header = struct.pack(
            "<4s4xQ16s16s16xHHIQ", b"head", number, uuid4().bytes, uuid4().bytes, 0, 1, MIB, _LOG_AT
        )
        image[at : at + 4 * KIB] = _checked(header, 4 * KIB)
    image[192 * KIB : 320 * KIB] = _regions() * 2
    image[_METADATA_AT:_TABLE_AT] = _metadata(len(disk))
    for number in range(blocks):
        struct.pack_into("<Q", image, _TABLE_AT + 8 * number, _BLOCKS_AT + number * MIB | _FULLY_PRESENT)
    return bytes(image)


@cache
def _regions() -> bytes:
    """Return the table of where the tables are."""
    regions = struct.pack("<4s4xI4x", b"regi", 2)
    for name, at in (
        ("2dc27766-f623-4200-9d64-115e9bfd4a08", _TABLE_AT),
        ("8b7ca206-4790-4b9a-b8fe-575f050f886e", _METADATA_AT),
    ):
        regions += struct.pack("<16sQII", UUID(name).bytes_le, at, MIB, 1)
    return _checked(regions, 64 * KIB)


def _metadata(size: int) -> bytes:
    items = {
        "caa16737-fa36-4d43-b3b6-33f0aa44e76b": (struct.pack("<II", MIB, 1), _REQUIRED),
        "2fa54224-cd1b-4876-b211-5dbed83bf4b8": (struct.pack("<Q", size), _REQUIRED | _OF_THE_DISK),
        "beca12ab-b2e6-4523-93ef-c309e000c746": (uuid4().bytes_le, _REQUIRED | _OF_THE_DISK),
        "8141bf1d-a96f-4709-ba47-f233a8faab5f": (struct.pack("<I", _SECTOR), _REQUIRED | _OF_THE_DISK),
        "cda348c7-445d-4471-9cc9-e9885251c556": (struct.pack("<I", _SECTOR), _REQUIRED | _OF_THE_DISK),
    }
    table, values = struct.pack("<8s2xH20x", b"metadata", len(items)), b""
    for name, (value, flags) in items.items():
        place = 64 * KIB + len(values)
        table += struct.pack("<16sIII4x", UUID(name).bytes_le, place, len(value), flags)
        values += value
    return (table.ljust(64 * KIB, b"\0") + values).ljust(MIB, b"\0")


def _checked(start: bytes, length: int) -> bytes:
    """Return a structure of a length, with its checksum in the second word."""
    whole = bytearray(start.ljust(length, b"\0"))
    struct.pack_into("<I", whole, 4, crc32c(bytes(whole)))
    return bytes(whole)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of some bytes."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _crc_table() -> tuple[int, ...]:
    def entry(value: int) -> int:
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        return value

    return tuple(map(entry, range(256)))


#: Makes a file of a disk, by the suffix of its name.
FORMATS: dict[str, Callable[[bytes], bytes]] = {".vhd": vhd, ".vhdx": vhdx}


def image(suffix: str, size_bytes: int) -> bytes:
    """Return a disk with a file system in the format of a suffix, of a size at least."""
    return FORMATS[suffix](ext2(max(-(-size_bytes // MIB) * MIB, LEAST_BYTES)))
