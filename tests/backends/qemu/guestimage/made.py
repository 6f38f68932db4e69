"""Files made up for tests: binaries, kernels and their modules, archives of root file systems read back."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping, Sequence

from attrs import frozen

RELEASE = "6.1.0-9-made"

_BASE = 0x400000


def elf(
    *,
    machine: int = 62,
    interpreter: str = "",
    needed: Sequence[str] = (),
    runpath: str = "",
    note: tuple[bytes, int] | None = None,
    sections: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """Return an ELF file whose segments come first, and whose sections follow them."""
    strings = b"\0" + b"".join(each.encode() + b"\0" for each in (*needed, runpath))
    dynamic = []
    at = 1
    for tag, text in ((1, each) for each in needed):
        dynamic.append((tag, at))
        at += len(text) + 1
    if runpath:
        dynamic.append((29, at))
    parts: list[tuple[int, bytes]] = []
    start = 64 + 56 * 4
    body = strings
    if needed or runpath:
        entries = [*dynamic, (5, _BASE + start), (0, 0)]
        parts.append((2, b"".join(struct.pack("<QQ", *each) for each in entries)))
    if interpreter:
        parts.append((3, interpreter.encode() + b"\0"))
    if note:
        name, kind = note
        parts.append((4, struct.pack("<III", len(name), 4, kind) + name + bytes(-len(name) % 4) + b"desc"))
    headers = b""
    for kind, data in parts:
        headers += struct.pack("<IIQQQQQQ", kind, 4, start + len(body), 0, 0, len(data), len(data), 1)
        body += data
    load = struct.pack("<IIQQQQQQ", 1, 4, 0, _BASE, _BASE, start + len(body), start + len(body), 1)
    table, contents = _sections(sections or {}, start + len(body))
    count = len(sections or {}) + 1 if sections else 0
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, len(parts) + 1, 64, 0, 0)
    whole = bytearray(header + (headers + load).ljust(56 * 4, b"\0") + body + contents)
    if count:
        struct.pack_into("<Q", whole, 40, len(whole))
        struct.pack_into("<HHH", whole, 58, 64, count, count - 1)
        whole += table
    return bytes(whole)


def _sections(sections: Mapping[bytes, bytes], start: int) -> tuple[bytes, bytes]:
    """Return the headers and the contents; the last section has the names."""
    names = b"".join(name + b"\0" for name in sections) + b".names\0"
    table = contents = b""
    for name, data in (*sections.items(), (b".names", names)):
        at = names.index(name + b"\0")
        table += struct.pack("<IIQQQQIIQQ", at, 1, 0, 0, start + len(contents), len(data), 0, 0, 1, 0)
        contents += data
    return table, contents


def module(
    *, depends: Sequence[str] = (), softdep: str = "", alias: Sequence[str] = (), release: str = RELEASE
) -> bytes:
    """Return a kernel module."""
    said = [f"depends={','.join(depends)}", f"vermagic={release} SMP preempt"]
    said += [f"softdep={softdep}"] if softdep else []
    said += [f"alias={each}" for each in alias]
    return elf(sections={b".modinfo": b"".join(each.encode() + b"\0" for each in said)})


PVH = (b"Xen\0", 18)


def vmlinux(*, note: tuple[bytes, int] | None = PVH) -> bytes:
    """Return an unpacked kernel."""
    text = f"Linux version {RELEASE} (made up)\0".encode()
    return elf(note=note, sections={b".rodata": text})


def bzimage(packed: bytes | None = None, release: str = RELEASE) -> bytes:
    """Return a vmlinuz that holds a packed kernel, by default :func:`vmlinux`."""
    packed = gzip.compress(vmlinux()) if packed is None else packed
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x20E, 0x100)
    setup[0x300 : 0x300 + len(release) + 2] = f"{release} \0".encode()
    struct.pack_into("<II", setup, 0x248, 16, len(packed))
    return bytes(setup) + bytes(16) + packed


@frozen
class Entry:
    """An entry of an archive."""

    mode: int
    data: bytes
    device: tuple[int, int]


def read_cpio(archive: bytes) -> dict[str, Entry]:
    """Read a newc archive as the kernel does."""
    found: dict[str, Entry] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        size, named = fields[6], fields[11]
        name = archive[at + 110 : at + 110 + named]
        assert name.endswith(b"\0")
        start = at + 110 + named + -(110 + named) % 4
        at = start + size + -size % 4
        if name == b"TRAILER!!!\0":
            assert at == len(archive)
            return found
        decoded = name[:-1].decode()
        assert decoded not in found
        found[decoded] = Entry(fields[1], archive[start : start + size], (fields[9], fields[10]))
