"""An empty qcow2 image over another disk: what a clone writes, over what its template had.

How it works
------------

Nothing is allocated in an overlay until the guest writes, so that a new one is its tables alone, all but
empty; each has whole clusters of 64 KiB::

    0      header, version 3: the size of the disk, the format and the name of the disk behind it
    1      refcount table: one entry, for
    2      refcount block: 16 bits a cluster, 1 for each of these
    3 ...  L1 table: 8 bytes for 512 MiB of the disk, all zero: read from the disk behind it

Source: QEMU docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct
from typing import Final

from uvm.backends.qemu.images.image import ImageError
from uvm.backends.qemu.images.qcow2 import EXTENSION_BACKING_FORMAT, MAGIC, MAX_NAME_BYTES

_CLUSTER_BITS: Final = 16
_CLUSTER_BYTES: Final = 1 << _CLUSTER_BITS
_VERSION: Final = 3
#: Magic, version, name of the disk behind (offset, length), cluster bits, size, encryption, L1 table
#: (entries, offset), refcount table (offset, clusters), snapshots (number, offset), three sets of features,
#: the order of refcounts, and its own length.
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_REFCOUNT_TABLE_AT, _REFCOUNT_BLOCK_AT, _L1_AT = (number * _CLUSTER_BYTES for number in (1, 2, 3))
_REFCOUNT_ORDER: Final = 4
#: How much of a disk one entry of the L1 table is about.
_L1_ENTRY_COVERS: Final = _CLUSTER_BYTES // 8 * _CLUSTER_BYTES
#: QEMU's limit of the L1 table.
_MAX_L1_BYTES: Final = 32 << 20


def overlay_image(size_bytes: int, backing: bytes, backing_format: str) -> bytes:
    """Return an empty image over a disk.

    :param size_bytes: the size of the disk.
    :param backing: the path of the disk behind it.
    :param backing_format: its format, under QEMU's name.
    :raises ImageError: the path is too long, or the disk too large.
    """
    if len(backing) > MAX_NAME_BYTES:
        raise ImageError(f"its path has {len(backing)} bytes, and an overlay has room for {MAX_NAME_BYTES}")
    entries = -(-size_bytes // _L1_ENTRY_COVERS)
    if entries * 8 > _MAX_L1_BYTES:
        raise ImageError(f"its disk has {size_bytes} bytes, too many for an overlay")
    l1_clusters = -(-entries * 8 // _CLUSTER_BYTES)
    format_name = backing_format.encode()
    extension = struct.pack(">II", EXTENSION_BACKING_FORMAT, len(format_name))
    extensions = extension + format_name.ljust(-(-len(format_name) // 8) * 8, b"\0") + bytes(8)
    header = _HEADER.pack(
        MAGIC,
        _VERSION,
        _HEADER.size + len(extensions),
        len(backing),
        _CLUSTER_BITS,
        size_bytes,
        0,
        entries,
        _L1_AT,
        _REFCOUNT_TABLE_AT,
        1,
        0,
        0,
        0,
        0,
        0,
        _REFCOUNT_ORDER,
        _HEADER.size,
    )
    clusters = (
        header + extensions + backing,
        struct.pack(">Q", _REFCOUNT_BLOCK_AT),
        struct.pack(">H", 1) * (3 + l1_clusters),
        *[b""] * l1_clusters,
    )
    return b"".join(cluster.ljust(_CLUSTER_BYTES, b"\0") for cluster in clusters)
