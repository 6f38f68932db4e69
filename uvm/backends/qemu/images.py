"""Headers of disk images: what an image is, and what else of the host it would open.

How it works
------------

The format follows from the name of the file, never from its content, which a guest may have written::

    .vhd              VHD: fixed (raw data, and a footer behind it) or dynamic
    .vhdx             VHDX
    .qcow2            qcow2
    all else, and     raw
    block devices

A header may name further files of the host: a backing file, an external data file, a parent. QEMU would open
them, so headers are read here first, from the descriptor that QEMU is handed, and :class:`Image` has their
names; the caller decides. Headers are small, and never trusted: whatever does not fit is an
:class:`ImageError`.

Source: Virtual Hard Disk Image Format Specification 1.0; [MS-VHDX]; QEMU docs/interop/qcow2.txt.
"""

from __future__ import annotations

import os.path
import struct
from collections.abc import Callable
from typing import Final, Literal
from uuid import UUID

from attrs import frozen

from uvm._repr import brief_call
from uvm.errors import UVMError

ImageFormat = Literal["raw", "vhd", "vhdx", "qcow2"]

#: Reads so many bytes at an offset, or fewer at the end.
Read = Callable[[int, int], bytes]

_FORMATS: Final[dict[str, ImageFormat]] = {
    ".vhd": "vhd",
    ".avhd": "vhd",
    ".vhdx": "vhdx",
    ".avhdx": "vhdx",
    ".qcow2": "qcow2",
}

SECTOR_BYTES: Final = 512


class ImageError(UVMError):
    """A file is no disk image of the format that its name says, or one that is not opened."""


@frozen(repr=False)
class Image:
    """What the header of a disk image says.

    :ivar size_bytes: the size of the disk.
    :ivar fixed: the data is the beginning of the file: a raw image, or a fixed VHD.
    :ivar backing: the name of its backing file or parent, as it is written; None if it has none.
    :ivar backing_format: the format of the backing file, as it is written; empty if none is.
    :ivar data_file: the name of its external data file; None if it has none.
    :ivar identifiers: where in the file its identifier is, which VHD and VHDX have.
    """

    format: ImageFormat
    size_bytes: int
    fixed: bool = False
    backing: str | None = None
    backing_format: str = ""
    data_file: str | None = None
    identifiers: tuple[int, ...] = ()

    __repr__ = brief_call


def format_of(path: str) -> ImageFormat:
    """Return the format that the name of a file says."""
    return _FORMATS.get(os.path.splitext(path)[1].lower(), "raw")


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
        return _vhd(file_bytes, read)
    if format == "vhdx":
        return _vhdx(file_bytes, read)
    return _qcow2(file_bytes, read)


def _exactly(read: Read, offset: int, length: int, what: str) -> bytes:
    data = read(offset, length)
    if len(data) != length:
        raise ImageError(f"it is cut short: {what} is missing")
    return data


# VHD: a footer of one sector at the end; a dynamic one has a copy of it at the beginning.

_VHD_COOKIE: Final = b"conectix"
_VHD_FIXED, _VHD_DYNAMIC, _VHD_DIFFERENCING = 2, 3, 4
_VHD_CHECKSUM_AT, _VHD_ID_AT = 64, 68
_DYNAMIC_COOKIE: Final = b"cxsparse"
_DYNAMIC_HEADER_BYTES: Final = 1024


def _vhd(file_bytes: int, read: Read) -> Image:
    at = file_bytes - SECTOR_BYTES
    if at < 0:
        raise ImageError("it is cut short: a VHD ends with a footer")
    footer = _exactly(read, at, SECTOR_BYTES, "the footer")
    if footer[:8] != _VHD_COOKIE:
        raise ImageError("it is no VHD: the last sector is no footer; a raw image is named .img or .raw")
    if vhd_checksum(footer) != footer[_VHD_CHECKSUM_AT:_VHD_ID_AT]:
        raise ImageError("it is a damaged VHD: the checksum of its footer is wrong")
    header_at, size, kind = (
        int.from_bytes(footer[start:end], "big") for start, end in ((16, 24), (48, 56), (60, 64))
    )
    if not size:
        raise ImageError("it is a damaged VHD: the size of its disk is 0")
    if kind == _VHD_FIXED:
        if size > at:
            raise ImageError(f"it is cut short: a VHD of {size} bytes has {at} bytes of data")
        return Image("vhd", size, fixed=True, identifiers=(at,))
    if kind not in (_VHD_DYNAMIC, _VHD_DIFFERENCING):
        raise ImageError(f"it is no VHD that is known: its type is {kind}")
    header = _exactly(read, header_at, _DYNAMIC_HEADER_BYTES, "the header of a dynamic VHD")
    if header[:8] != _DYNAMIC_COOKIE:
        raise ImageError("it is a damaged VHD: the header of a dynamic one is not there")
    backing = None
    if kind == _VHD_DIFFERENCING:
        backing = header[64:576].decode("utf-16-be", "replace").partition("\0")[0]
    return Image("vhd", size, backing=backing, identifiers=(0, at))


def vhd_checksum(footer: bytes) -> bytes:
    """Return the checksum of a VHD's footer, as it is in there."""
    counted = sum(footer) - sum(footer[_VHD_CHECKSUM_AT:_VHD_ID_AT])
    return struct.pack(">I", ~counted & 0xFFFFFFFF)


def with_vhd_id(footer: bytes, disk_id: UUID) -> bytes:
    """Return a VHD's footer with another identifier."""
    changed = bytearray(footer)
    changed[_VHD_ID_AT : _VHD_ID_AT + 16] = disk_id.bytes
    changed[_VHD_CHECKSUM_AT:_VHD_ID_AT] = vhd_checksum(bytes(changed))
    return bytes(changed)


# VHDX: a table of regions, one of which has the table of metadata.

_REGION_TABLES: Final = (192 << 10, 256 << 10)
_TABLE_BYTES: Final = 64 << 10
_MAX_REGIONS: Final = 2047
_METADATA_REGION: Final = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_FILE_PARAMETERS: Final = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_DISK_SIZE: Final = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_DISK_ID: Final = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
_PARENT_LOCATOR: Final = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_HAS_PARENT: Final = 2
_MAX_LOCATOR_BYTES: Final = 64 << 10
_RELATIVE_PATH, _ABSOLUTE_PATH = "relative_path", "absolute_win32_path"


def _vhdx(file_bytes: int, read: Read) -> Image:
    if read(0, 8) != b"vhdxfile":
        raise ImageError("it is no VHDX: its beginning is another")
    table_at = _metadata_table(read)
    table = _exactly(read, table_at, _TABLE_BYTES, "the table of metadata")
    count: int = struct.unpack_from("<H", table, 10)[0]
    if table[:8] != b"metadata" or count > _MAX_REGIONS:
        raise ImageError("it is a damaged VHDX: there is no table of metadata")
    items: dict[UUID, tuple[int, int]] = {}
    for number in range(count):
        name, offset, length = struct.unpack_from("<16sII", table, 32 + 32 * number)
        items[UUID(bytes_le=name)] = table_at + offset, length
    try:
        parameters_at, size_at, id_at = (items[each][0] for each in (_FILE_PARAMETERS, _DISK_SIZE, _DISK_ID))
    except KeyError as error:
        raise ImageError(f"it is a damaged VHDX: it has no metadata {error.args[0]}") from None
    flags = int.from_bytes(_exactly(read, parameters_at + 4, 4, "the parameters"), "little")
    size = int.from_bytes(_exactly(read, size_at, 8, "the size of the disk"), "little")
    if not size:
        raise ImageError("it is a damaged VHDX: the size of its disk is 0")
    backing = None
    if flags & _HAS_PARENT or _PARENT_LOCATOR in items:
        backing = _parent(read, *items.get(_PARENT_LOCATOR, (0, 0)))
    return Image("vhdx", size, backing=backing, identifiers=(id_at,))


def _metadata_table(read: Read) -> int:
    for at in _REGION_TABLES:
        table = read(at, _TABLE_BYTES)
        if len(table) < _TABLE_BYTES or table[:4] != b"regi":
            continue
        count = struct.unpack_from("<I", table, 8)[0]
        for number in range(min(count, _MAX_REGIONS)):
            name, offset = struct.unpack_from("<16sQ", table, 16 + 32 * number)
            if UUID(bytes_le=name) == _METADATA_REGION:
                return int(offset)
    raise ImageError("it is cut short, or a damaged VHDX: there is no table of regions")


def _parent(read: Read, at: int, length: int) -> str:
    """Return the path in a parent locator, for a message; empty if there is none that can be read."""
    locator = read(at, min(length, _MAX_LOCATOR_BYTES))
    if len(locator) < 20:
        return ""
    paths: dict[str, str] = {}
    for number in range(struct.unpack_from("<H", locator, 18)[0]):
        entry = locator[20 + 12 * number : 32 + 12 * number]
        if len(entry) < 12:
            break
        key_at, value_at, key_bytes, value_bytes = struct.unpack("<IIHH", entry)
        key, value = locator[key_at : key_at + key_bytes], locator[value_at : value_at + value_bytes]
        paths[key.decode("utf-16-le", "replace")] = value.decode("utf-16-le", "replace")
    return paths.get(_RELATIVE_PATH) or paths.get(_ABSOLUTE_PATH, "")


# qcow2.

_QCOW2_HEADER: Final = struct.Struct(">4sIQIIQI")
_QCOW2_VERSIONS: Final = (2, 3)
_QCOW2_V2_BYTES: Final = 72
_QCOW2_V3_BYTES: Final = 104
_EXTERNAL_DATA_FILE: Final = 1 << 2
_MAX_NAME_BYTES: Final = 1023
_EXTENSION_DATA_FILE, _EXTENSION_BACKING_FORMAT = 0x44415441, 0xE2792ACA
_MAX_CLUSTER_BITS: Final = 21


def _qcow2(file_bytes: int, read: Read) -> Image:
    begin = read(0, _QCOW2_V3_BYTES)
    if begin[:4] != b"QFI\xfb":
        raise ImageError("it is no qcow2 image: its beginning is another")
    if len(begin) < _QCOW2_V2_BYTES:
        raise ImageError("it is cut short: the header is missing")
    _, version, name_at, name_bytes, cluster_bits, size, crypt = _QCOW2_HEADER.unpack_from(begin)
    if version not in _QCOW2_VERSIONS or not 9 <= cluster_bits <= _MAX_CLUSTER_BITS:
        raise ImageError(
            f"it is no qcow2 image that is known: version {version}, {cluster_bits} cluster bits"
        )
    if crypt:
        raise ImageError("it is encrypted, which is not supported; decrypt it with qemu-img convert")
    incompatible, header_bytes = _qcow2_features(version, begin)
    cluster = read(0, 1 << cluster_bits)
    extensions = _extensions(cluster, header_bytes, name_at or len(cluster))
    backing = _qcow2_backing(read, name_at, name_bytes) if name_at else None
    data_file = None
    if incompatible & _EXTERNAL_DATA_FILE or _EXTENSION_DATA_FILE in extensions:
        data_file = extensions.get(_EXTENSION_DATA_FILE, b"").decode("utf-8", "replace")
    if not size:
        raise ImageError("the size of its disk is 0")
    written = extensions.get(_EXTENSION_BACKING_FORMAT, b"").decode("ascii", "replace")
    return Image("qcow2", size, backing=backing, backing_format=written, data_file=data_file)


def _qcow2_features(version: int, begin: bytes) -> tuple[int, int]:
    """Return the incompatible features of an image, and the length of its header."""
    if version == 2:
        return 0, _QCOW2_V2_BYTES
    if len(begin) < _QCOW2_V3_BYTES:
        raise ImageError("it is cut short: the header is missing")
    return int.from_bytes(begin[72:80], "big"), int.from_bytes(begin[100:104], "big")


def _qcow2_backing(read: Read, at: int, length: int) -> str:
    if length > _MAX_NAME_BYTES:
        raise ImageError(f"it is a damaged qcow2 image: the name of its backing file has {length} bytes")
    return _exactly(read, at, length, "the name of its backing file").decode("utf-8", "replace")


def _extensions(cluster: bytes, at: int, end: int) -> dict[int, bytes]:
    """Return the extensions of a header; those that do not fit are left out, as QEMU refuses them."""
    found: dict[int, bytes] = {}
    end = min(end, len(cluster))
    while at + 8 <= end:
        kind, length = struct.unpack_from(">II", cluster, at)
        if not kind or at + 8 + length > end:
            break
        found[kind] = cluster[at + 8 : at + 8 + length]
        at += 8 + (length + 7) // 8 * 8
    return found
