"""What a disk image is, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from attrs import frozen

from uvm._repr import Value
from uvm.errors import UVMError

ImageFormat = Literal["raw", "vhd", "vhdx", "qcow2"]

#: QEMU's names of the formats.
DRIVERS: Final[dict[ImageFormat, str]] = {"raw": "raw", "vhd": "vpc", "vhdx": "vhdx", "qcow2": "qcow2"}

#: Reads so many bytes at an offset, or fewer at the end.
Read = Callable[[int, int], bytes]


class ImageError(UVMError):
    """A file is no disk image of the format that its name says, or one that is not opened."""


@frozen(repr=False)
class Image(Value):
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


def exactly(read: Read, offset: int, length: int, what: str) -> bytes:
    """Return so many bytes at an offset; ImageError without them."""
    data = read(offset, length)
    if len(data) != length:
        raise ImageError(f"it is cut short: {what} is missing")
    return data
