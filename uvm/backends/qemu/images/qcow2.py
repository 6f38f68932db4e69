"""qcow2: a header with extensions in the first cluster.

Source: QEMU docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
from typing import Final

from uvm.backends.qemu.images.image import Image, ImageError, Read, exactly

_HEADER: Final = struct.Struct(">4sIQIIQI")
_VERSIONS: Final = (2, 3)
_V2_BYTES: Final = 72
_V3_BYTES: Final = 104
_EXTERNAL_DATA_FILE: Final = 1 << 2
MAGIC: Final = b"QFI\xfb"
MAX_NAME_BYTES: Final = 1023
_EXTENSION_DATA_FILE: Final = 0x44415441
EXTENSION_BACKING_FORMAT: Final = 0xE2792ACA
_MAX_CLUSTER_BITS: Final = 21


def read(file_bytes: int, pread: Read) -> Image:
    """Read the header and its extensions; ImageError."""
    begin = pread(0, _V3_BYTES)
    if begin[:4] != MAGIC:
        raise ImageError("it is no qcow2 image: its beginning is another")
    if len(begin) < _V2_BYTES:
        raise ImageError("it is cut short: the header is missing")
    _, version, name_at, name_bytes, cluster_bits, size, crypt = _HEADER.unpack_from(begin)
    if version not in _VERSIONS or not 9 <= cluster_bits <= _MAX_CLUSTER_BITS:
        raise ImageError(
            f"it is no qcow2 image that is known: version {version}, {cluster_bits} cluster bits"
        )
    if crypt:
        raise ImageError("it is encrypted, which is not supported; decrypt it with qemu-img convert")
    incompatible, header_bytes = _features(version, begin)
    cluster = pread(0, 1 << cluster_bits)
    extensions = _extensions(cluster, header_bytes, name_at or len(cluster))
    backing = _backing(pread, name_at, name_bytes) if name_at else None
    data_file = None
    if incompatible & _EXTERNAL_DATA_FILE or _EXTENSION_DATA_FILE in extensions:
        data_file = extensions.get(_EXTENSION_DATA_FILE, b"").decode("utf-8", "replace")
    if not size:
        raise ImageError("the size of its disk is 0")
    written = extensions.get(EXTENSION_BACKING_FORMAT, b"").decode("ascii", "replace")
    return Image("qcow2", size, backing=backing, backing_format=written, data_file=data_file)


def _features(version: int, begin: bytes) -> tuple[int, int]:
    """Return the incompatible features of an image, and the length of its header."""
    if version == 2:
        return 0, _V2_BYTES
    if len(begin) < _V3_BYTES:
        raise ImageError("it is cut short: the header is missing")
    return int.from_bytes(begin[72:80], "big"), int.from_bytes(begin[100:104], "big")


def _backing(pread: Read, at: int, length: int) -> str:
    if length > MAX_NAME_BYTES:
        raise ImageError(f"it is a damaged qcow2 image: the name of its backing file has {length} bytes")
    return exactly(pread, at, length, "the name of its backing file").decode("utf-8", "replace")


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
