"""Unpack kernels and their modules: by CPython if it can, else by the machine's own tools."""

from __future__ import annotations

import lzma
import subprocess
import zlib
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from uvm.backends.qemu.guestimage.packages import install
from uvm.errors import NotSupportedError


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _gzip(data: bytes) -> bytes:
    # What follows the stream is not looked at: kernels append their size.
    return _whole(zlib.decompressobj(zlib.MAX_WBITS | 16), data)


def _xz(data: bytes) -> bytes:
    return _whole(lzma.LZMADecompressor(), data)


def _whole(stream: _Decompressor, data: bytes) -> bytes:
    plain = stream.decompress(data)
    if not stream.eof:
        raise ValueError("it is cut short")
    return plain


def _by_tool(tool: str, data: bytes) -> bytes:
    try:
        # Its exit status counts for nothing: the size that kernels append is no frame to it.
        done = subprocess.run([tool, "-d", "-q", "-c", "-"], input=data, capture_output=True, check=False)
    except FileNotFoundError:
        raise NotSupportedError(
            f"the kernel or a module of it is packed with {tool}, and the program {tool} is not installed; "
            f"install it: {install(tool)}"
        ) from None
    if not done.stdout:
        raise ValueError(f"{tool} cannot unpack it: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


_FORMATS: Final[tuple[tuple[bytes, Callable[[bytes], bytes]], ...]] = (
    (b"\x1f\x8b", _gzip),
    (b"\xfd7zXZ\0", _xz),
    (b"\x28\xb5\x2f\xfd", partial(_by_tool, "zstd")),
    (b"\x02\x21\x4c\x18", partial(_by_tool, "lz4")),
)


def unpack(data: bytes) -> bytes:
    """Return what was packed with gzip, xz, zstd or lz4; other data as it is.

    :raises ValueError: it is damaged.
    :raises NotSupportedError: it takes a program that is not installed.
    """
    for magic, unpacked in _FORMATS:
        if data.startswith(magic):
            try:
                return unpacked(data)
            except (zlib.error, lzma.LZMAError) as e:
                raise ValueError(f"it cannot be unpacked: {e}") from e
    return data
