"""Read ELF files (64 bits, little-endian): which libraries a binary needs, what a module says of itself.

Nothing is run: ``ldd`` starts the binary's own loader. Source: the System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from attrs import field, frozen

MACHINES: Final = {62: "x86_64", 183: "aarch64"}

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE = 1, 2, 3, 4
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_XEN_PVH_ENTRY: Final = 18


class ElfError(ValueError):
    """It is no ELF file that this machine could run, or it is cut short."""


@frozen
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


@frozen
class Elf:
    """An ELF file.

    :raises ElfError: it is none, or of another kind.
    """

    data: bytes = field(repr=False)
    _segments: list[_Segment] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.data[:7] != b"\x7fELF\x02\x01\x01":
            raise ElfError("no ELF file of 64 bits, little-endian")
        offset, size, count = self._unpack("<32xQ14xHH", 0)
        segments = [self._segment(offset + number * size) for number in range(count)]
        object.__setattr__(self, "_segments", segments)

    @property
    def machine(self) -> str:
        """The architecture, as ``uname -m`` has it; a number if it is another one."""
        [number] = self._unpack("<18xH", 0)
        return MACHINES.get(number, str(number))

    @property
    def interpreter(self) -> str | None:
        """The loader that runs it; None if it is linked statically, or a library."""
        found = next((each for each in self._segments if each.kind == _PT_INTERP), None)
        path = b"" if found is None else self._bytes(found.offset, found.size)
        return path.rstrip(b"\0").decode(errors="surrogateescape") or None

    @property
    def needed(self) -> list[str]:
        """The names of the shared libraries that it needs."""
        return self._strings(_DT_NEEDED)

    @property
    def search_path(self) -> list[str]:
        """The directories in which the loader looks first; ``$ORIGIN`` stands for the file's own."""
        found = self._strings(_DT_RUNPATH) or self._strings(_DT_RPATH)
        return [each for path in found for each in path.split(":") if each]

    @property
    def boots_by_pvh(self) -> bool:
        """Whether it is a kernel that QEMU can start without unpacking: it has Xen's note of its entry."""
        return any(
            name == b"Xen\0" and kind == _XEN_PVH_ENTRY
            for segment in self._segments
            if segment.kind == _PT_NOTE
            for name, kind in self._notes(segment)
        )

    def loaded(self) -> bytes:
        """Return it without what only linkers and debuggers read: what follows the last segment."""
        end = max((each.offset + each.size for each in self._segments), default=0)
        if not end:
            raise ElfError("it has no segments")
        self._bytes(end - 1, 1)
        # No table of sections: offset, then (after flags and three sizes) number and index of names.
        header = bytearray(self.data[:64])
        struct.pack_into("<Q", header, 40, 0)
        struct.pack_into("<HHH", header, 58, 0, 0, 0)
        return bytes(header) + self.data[64:end]

    def section(self, name: bytes) -> bytes:
        """Return the contents of a section; empty if there is none."""
        offset, size, count, names = self._unpack("<40xQ10xHHH", 0)
        headers = [self._unpack("<II8x8xQQ", offset + number * size) for number in range(count)]
        if not headers:
            return b""
        if names >= count:
            raise ElfError("its sections have no names")
        _, _, start, length = headers[names]
        table = self._bytes(start, length)
        for at, _, start, length in headers:
            if table[at : table.find(b"\0", at)] == name:
                return self._bytes(start, length)
        return b""

    def _segment(self, offset: int) -> _Segment:
        kind, start, address, size = self._unpack("<I4xQQ8xQ", offset)
        return _Segment(kind, start, address, size)

    def _dynamic(self) -> Iterator[tuple[int, int]]:
        for segment in self._segments:
            if segment.kind == _PT_DYNAMIC:
                for at in range(segment.offset, segment.offset + segment.size - 15, 16):
                    tag, value = self._unpack("<QQ", at)
                    if tag == 0:
                        return
                    yield tag, value

    def _strings(self, wanted: int) -> list[str]:
        entries = list(self._dynamic())
        table = next((value for tag, value in entries if tag == _DT_STRTAB), None)
        if table is None:
            return []
        return [self._string(self._offset(table) + value) for tag, value in entries if tag == wanted]

    def _offset(self, address: int) -> int:
        for each in self._segments:
            if each.kind == _PT_LOAD and each.address <= address < each.address + each.size:
                return address - each.address + each.offset
        raise ElfError("an address is in no segment")

    def _string(self, offset: int) -> str:
        end = self.data.find(b"\0", offset)
        if end < 0:
            raise ElfError("it is cut short")
        return self.data[offset:end].decode(errors="surrogateescape")

    def _notes(self, segment: _Segment) -> Iterator[tuple[bytes, int]]:
        at, end = segment.offset, segment.offset + segment.size
        while at + 12 <= end:
            named, described, kind = self._unpack("<III", at)
            yield self._bytes(at + 12, named), kind
            at += 12 + (named + 3) // 4 * 4 + (described + 3) // 4 * 4

    def _unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        return struct.unpack(layout, self._bytes(offset, struct.calcsize(layout)))

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset + size > len(self.data):
            raise ElfError("it is cut short")
        return self.data[offset : offset + size]


def modinfo(module: bytes, key: str) -> list[str]:
    """Return what a kernel module says of itself under a key, in order.

    :param module: the file, unpacked.
    :raises ElfError: it is no kernel module.
    """
    start = key.encode() + b"="
    entries = Elf(module).section(b".modinfo").split(b"\0")
    return [each[len(start) :].decode(errors="replace") for each in entries if each.startswith(start)]
