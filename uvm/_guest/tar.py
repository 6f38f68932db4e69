"""Archives that a guest sends, and those that it is sent: the format of tar. No I/O.

A guest is not trusted, and its archive is bytes: :class:`Reader` takes them in pieces of any size, keeps no
more of them than a header, and yields what may be made of them, or raises. What may be in an archive is less
than the format knows: files, directories, and links; names that stay within the archive; as many members and
bytes as the caller allows. ``tarfile`` reads headers, one at a time, and nothing else of it is used: it
keeps extended headers of any size, and its filters are younger than the Python that this library needs.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Final, Literal

from attrs import frozen

from uvm._repr import printed
from uvm.errors import ArchiveError

Kind = Literal["file", "directory", "link", "hard link"]
Parts = tuple[str, ...]

_BLOCK: Final = 512
_ENCODING: Final = "utf-8"
#: How long an extended header may be, which holds one long name or a few.
_MAX_EXTENDED_BYTES: Final = 64 * 1024
#: How much may follow the end of the archive: some tar fill their last record.
_MAX_PADDING_BYTES: Final = 1024 * 1024
_MAX_DEPTH: Final = 256
_KINDS: Final[dict[bytes, Kind]] = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "link",
    tarfile.LNKTYPE: "hard link",
}
_EXTENDED: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG: Final = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_RECORD: Final = re.compile(rb"([1-9][0-9]{0,5}) ([^=\n]{1,100})=")


@frozen
class Member:
    """One member of an archive. The bytes of a file follow.

    :ivar parts: its path in the archive, by its parts; none for the directory that was archived itself.
    :ivar target: the text of a link.
    :ivar linked: the file in the archive that a hard link is to.
    :ivar mode: what its owner and others may do with it, without special bits.
    """

    kind: Kind
    parts: Parts
    size: int = 0
    mode: int = 0o644
    modified: float = 0
    target: str = ""
    linked: Parts = ()


class Reader:
    """Reads an archive. Give it bytes, and :meth:`end` it: what it yields is a member, or bytes of a file.

    :param max_bytes: of all files together, and of the headers with long names.
    :param max_entries: how many members it may have.
    """

    def __init__(self, max_bytes: int, max_entries: int) -> None:
        self._bytes_left = max_bytes
        self._entries_left = max_entries
        self._max_bytes, self._max_entries = max_bytes, max_entries
        self._buffer = bytearray()
        self._next: dict[str, str] = {}
        # What is to come of a file, and of the block that it ends in.
        self._file_left = 0
        self._fill_left = 0
        self._ended = False
        self._padding = 0

    def feed(self, data: bytes) -> Iterator[Member | bytes]:
        """Yield what follows of some more bytes.

        :raises ArchiveError: it is no archive that may be unpacked.
        """
        self._buffer += data
        while self._buffer:
            if self._ended:
                self._padding += len(self._buffer)
                self._buffer.clear()
                if self._padding > _MAX_PADDING_BYTES:
                    raise ArchiveError(f"more than {_MAX_PADDING_BYTES} bytes follow its end")
            elif self._file_left:
                chunk = bytes(self._buffer[: self._file_left])
                del self._buffer[: len(chunk)]
                self._file_left -= len(chunk)
                yield chunk
            elif self._fill_left:
                filled = min(self._fill_left, len(self._buffer))
                del self._buffer[:filled]
                self._fill_left -= filled
            elif len(self._buffer) < _BLOCK:
                return
            elif (header := self._header()) is None:
                continue
            elif header.type in (*_EXTENDED, tarfile.XGLTYPE, *_LONG):
                if not self._extended(header):
                    return
            else:
                yield self._member(header)

    def end(self) -> None:
        """Note that no more comes.

        :raises ArchiveError: it is cut off.
        """
        if not self._ended or self._file_left:
            raise ArchiveError("it is cut off")

    def _header(self) -> tarfile.TarInfo | None:
        """Return the next header, of which an extended one is still there; None for the end."""
        block = bytes(self._buffer[:_BLOCK])
        if not any(block):
            self._ended = True
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, _ENCODING, "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            raise ArchiveError(f"it is no archive: {error}") from None
        if header.size < 0:
            raise ArchiveError("it has a member of a negative size")
        return header

    def _extended(self, header: tarfile.TarInfo) -> bool:
        """Read a header that extends the next; return False while it is not all there."""
        if header.size > _MAX_EXTENDED_BYTES:
            raise ArchiveError(f"it has a header of {header.size} bytes")
        whole = _BLOCK + header.size + _fill(header.size)
        if len(self._buffer) < whole:
            return False
        data = bytes(self._buffer[_BLOCK : _BLOCK + header.size])
        del self._buffer[:whole]
        self._count(whole)
        if header.type in _LONG:
            self._next[_LONG[header.type]] = _text(data.rstrip(b"\0"))
        elif header.type in _EXTENDED:
            self._next |= _records(data)
        return True

    def _count(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise ArchiveError(f"it holds more than {self._max_bytes} bytes")

    def _member(self, header: tarfile.TarInfo) -> Member:
        del self._buffer[:_BLOCK]
        said, self._next = self._next, {}
        self._entries_left -= 1
        if self._entries_left < 0:
            raise ArchiveError(f"it has more than {self._max_entries} members")
        name = said.get("path", header.name)
        size = _number(said["size"]) if "size" in said else header.size
        if any(key.startswith("GNU.sparse") for key in said) or header.type not in _KINDS:
            raise ArchiveError(f"{_shown(name)} is no file, directory or link")
        kind = _KINDS[header.type]
        parts = safe_parts(name)
        if kind != "file" and size:
            raise ArchiveError(f"{_shown(name)} is a {kind} that has {size} bytes")
        self._count(size)
        self._file_left, self._fill_left = size, _fill(size)
        target = said.get("linkpath", header.linkname)
        mode, modified = header.mode & 0o777, min(max(0.0, float(header.mtime)), 2.0**33)
        if kind == "link":
            return Member(kind, parts, target=safe_link(parts, target))
        if kind == "hard link":
            return Member(kind, parts, linked=safe_parts(target))
        return Member(kind, parts, size, mode, modified)


def _shown(text: str) -> str:
    return printed(text)


def _fill(size: int) -> int:
    return -size % _BLOCK


def _text(data: bytes) -> str:
    return data.decode(_ENCODING, "surrogateescape")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 20:
        raise ArchiveError(f"{_shown(text)} is no size")
    return int(text)


def _records(data: bytes) -> dict[str, str]:
    """Return the records of an extended header."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        record = _RECORD.match(data, at)
        end = at + int(record[1]) if record else 0
        if record is None or end > len(data) or end <= record.end() or data[end - 1 : end] != b"\n":
            raise ArchiveError("it has a header that cannot be read")
        found[_text(record[2])] = _text(data[record.end() : end - 1])
        at = end
    return found


def safe_parts(name: str) -> Parts:
    """Return the parts of a name in an archive.

    :raises ArchiveError: it may be a path to elsewhere.
    """
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise ArchiveError(f"{_shown(name)} is not within it")
    if len(parts) > _MAX_DEPTH:
        raise ArchiveError(f"{_shown(name)} is more than {_MAX_DEPTH} directories deep")
    return parts


def safe_link(parts: Parts, target: str) -> str:
    """Return the target of a link, which leads to nothing outside, whatever other such links there are.

    It climbs first, and no higher than it is deep; where it then goes down, links climb no higher than they
    are deep either. A target that climbs later is refused: the parts before may be links.

    :raises ArchiveError: it may lead elsewhere.
    """
    steps = [step for step in target.split("/") if step not in ("", ".")]
    climbs = next((n for n, step in enumerate(steps) if step != ".."), len(steps))
    if not target or target[0] == "/" or "\0" in target or ".." in steps[climbs:] or climbs >= len(parts):
        name = _shown("/".join(parts))
        raise ArchiveError(f"{name} is a link to {_shown(target)}, which may be outside of it")
    return target


def header(
    name: str,
    kind: Literal["file", "directory", "link"],
    *,
    size: int = 0,
    mode: int = 0o755,
    modified: float = 0,
    target: str = "",
    windows: bool = False,
) -> bytes:
    """Return the header of a member that a guest is to unpack.

    :param windows: as the tar of Windows reads names; else as all tar of Linux do, that of busybox included.
    """
    info = tarfile.TarInfo(name)
    types = {"file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}
    info.type, info.size, info.mode = types[kind], size, mode & 0o7777
    info.mtime, info.linkname = int(modified), target
    return info.tobuf(tarfile.PAX_FORMAT if windows else tarfile.GNU_FORMAT, _ENCODING, "surrogateescape")


def filling(size: int) -> bytes:
    """Return what follows the bytes of a file in an archive."""
    return bytes(_fill(size))


#: The end of an archive.
END: Final = bytes(2 * _BLOCK)
