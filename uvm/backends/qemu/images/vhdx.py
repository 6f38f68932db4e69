"""VHDX: a table of regions, one of which has the table of metadata.

Source: [MS-VHDX].
"""

from __future__ import annotations

import struct
from typing import Final
from uuid import UUID

from uvm.backends.qemu.images.image import Image, ImageError, Read, exactly

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


def read(file_bytes: int, pread: Read) -> Image:
    """Read the tables of regions and of metadata; ImageError."""
    if pread(0, 8) != b"vhdxfile":
        raise ImageError("it is no VHDX: its beginning is another")
    table_at = _metadata_table(pread)
    table = exactly(pread, table_at, _TABLE_BYTES, "the table of metadata")
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
    flags = int.from_bytes(exactly(pread, parameters_at + 4, 4, "the parameters"), "little")
    size = int.from_bytes(exactly(pread, size_at, 8, "the size of the disk"), "little")
    if not size:
        raise ImageError("it is a damaged VHDX: the size of its disk is 0")
    backing = None
    if flags & _HAS_PARENT or _PARENT_LOCATOR in items:
        backing = _parent(pread, *items.get(_PARENT_LOCATOR, (0, 0)))
    return Image("vhdx", size, backing=backing, identifiers=(id_at,))


def _metadata_table(pread: Read) -> int:
    for at in _REGION_TABLES:
        table = pread(at, _TABLE_BYTES)
        if len(table) < _TABLE_BYTES or table[:4] != b"regi":
            continue
        count = struct.unpack_from("<I", table, 8)[0]
        for number in range(min(count, _MAX_REGIONS)):
            name, offset = struct.unpack_from("<16sQ", table, 16 + 32 * number)
            if UUID(bytes_le=name) == _METADATA_REGION:
                return int(offset)
    raise ImageError("it is cut short, or a damaged VHDX: there is no table of regions")


def _parent(pread: Read, at: int, length: int) -> str:
    """Return the path in a parent locator, for a message; empty if there is none that can be read."""
    locator = pread(at, min(length, _MAX_LOCATOR_BYTES))
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
