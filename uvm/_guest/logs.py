r"""The log of a guest's compute service, as records of :mod:`logging`.

How it works
------------

A guest writes JSON objects, one after the other, as logrus does, usually one to a line::

    {"level":"info","msg":"GCS started","time":"2024-01-15T10:30:00.123456789Z","branch":"main"}

Each becomes a record of the logger ``uvm.guest``, with ``vm_id``, ``guest_time`` (a datetime, or None) and
``guest`` (the other fields) as attributes. Levels keep their names; ``fatal`` and ``panic`` are errors here.

What is not JSON is passed on as well, with its text as the attribute ``guest_text``:

- an object that cannot be read, alone, as a warning;
- an object of more than 64 KiB, in pieces, as warnings;
- anything else, as one error: a guest that panics writes its stack and dies, so all that follows belongs to
  it. The first 64 KiB are kept.

Source: hcsshim internal/vm/vmutils/gcs_logs.go.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import Any, Final

import anyio
import anyio.lowlevel
from attrs import frozen

from uvm._guest.quotes import QuoteCleaner, without_quotes
from uvm._log import Log
from uvm._repr import Value
from uvm._wire.frames import parse
from uvm.backend import BROKEN_STREAM, ByteStream
from uvm.errors import WireError
from uvm.schema.secrets import printable

#: The longest entry that is read as one, and the most that is kept of a text.
MAX_ENTRY_BYTES: Final = 65536

_log = Log("uvm.guest")

_LEVELS: Final = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.ERROR,
    "panic": logging.ERROR,
}
#: Those of which logging has not the same, so that the guest's own name says more.
_OTHER_LEVELS: Final = frozenset({"trace", "fatal", "panic"})

#: After so many records others get their turn.
_TURN: Final = 64


@frozen(repr=False)
class LogEntry(Value):
    """One entry of a log.

    :ivar level: of :mod:`logging`.
    :ivar message: as the guest wrote it, not escaped.
    :ivar time: the guest's own; None where it says none that can be read.
    :ivar fields: all the rest; a level or time that could not be read, or has no equal here, is among it.
    """

    level: int
    message: str
    time: datetime | None
    fields: dict[str, Any]


@frozen(repr=False)
class LogText(Value):
    """Something in a log that is no entry.

    :ivar what: what it is, in words.
    :ivar text: without what it quotes (:mod:`uvm._guest.quotes`).
    """

    level: int
    what: str
    text: str


class LogParser:
    """Cuts the bytes of a log into entries, whatever the pieces in which they come. No I/O.

    It follows the strings and brackets of an entry to its end, and holds no more than one. A line end inside
    a string, which JSON does not allow, ends a broken entry, so that the next line has its chance.

    :ivar buffer: the bytes that it holds.
    """

    __slots__ = ("_depth", "_is_text", "_lost", "_pieces", "_position", "_quoted", "_quotes", "buffer")

    _BOM: Final = b"\xef\xbb\xbf"
    _SPACE: Final = re.compile(rb"(?:[ \t\r\n]|\xef\xbb\xbf)*")
    _OUTSIDE_STRING: Final = re.compile(rb'["{}\[\]]')
    _INSIDE_STRING: Final = re.compile(rb'["\\\n]')

    def __init__(self) -> None:
        self.buffer = bytearray()
        # Within an entry: where to look next, how many brackets are open, whether in a string.
        self._position = 0
        self._depth = 0
        self._quoted = False
        # How many pieces of an entry that is too long were given, and what hides what those quote.
        self._pieces = 0
        self._quotes: QuoteCleaner | None = None
        # Nothing but text comes any more; how much of it was not kept.
        self._is_text = False
        self._lost = 0

    def feed(self, data: bytes) -> Iterator[LogEntry | LogText]:
        """Take bytes and give what they complete."""
        self.buffer += data
        while (item := self._next()) is not None:
            yield item

    def end(self) -> Iterator[LogEntry | LogText]:
        """Return what was left when the log ended."""
        rest = bytes(self.buffer)
        self.buffer.clear()
        if self._pieces:
            yield self._piece(rest)
        # What Python takes for space is more: a vertical tab is said.
        elif said := rest.strip(b" \t\r\n"):
            lost = f" (and {self._lost:,} more bytes)" if self._lost else ""
            text = without_quotes(_text(said), cut_off=bool(self._lost))
            yield LogText(logging.ERROR, f"guest terminated{lost}", text)

    def _next(self) -> LogEntry | LogText | None:
        if not self._depth and not self._begin():
            return None
        self._scan()
        if not self._depth:
            data = self._take(self._position)
            return self._piece(data, last=True) if self._pieces else _read(data)
        if len(self.buffer) >= MAX_ENTRY_BYTES:
            return self._piece(self._take(MAX_ENTRY_BYTES))
        return None

    def _begin(self) -> bool:
        """Begin with the next entry, if one has come."""
        buffer = self.buffer
        if not self._is_text:
            space = self._SPACE.match(buffer)
            del buffer[: space.end() if space else 0]
            if self._BOM.startswith(buffer):
                return False
            self._is_text = not buffer.startswith(b"{")
        if self._is_text:
            self._lost += max(0, len(buffer) - MAX_ENTRY_BYTES)
            del buffer[MAX_ENTRY_BYTES:]
            return False
        self._depth = self._position = 1
        return True

    def _scan(self) -> None:
        """Go on to the end of the entry, or of what may be looked at."""
        while self._depth:
            pattern = self._INSIDE_STRING if self._quoted else self._OUTSIDE_STRING
            match = pattern.search(self.buffer, self._position, MAX_ENTRY_BYTES)
            if match is None:
                self._position = max(self._position, min(len(self.buffer), MAX_ENTRY_BYTES))
                return
            self._position = match.end()
            match match[0]:
                case b'"':
                    self._quoted = not self._quoted
                case b"\\":
                    self._position += 1
                case b"\n":
                    self._quoted = False
                    self._depth = 0
                case bracket:
                    self._depth += 1 if bracket in b"{[" else -1

    def _take(self, size: int) -> bytes:
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        self._position -= size
        return data

    def _piece(self, data: bytes, *, last: bool = False) -> LogText:
        self._pieces += 1
        what = f"a log entry of more than {MAX_ENTRY_BYTES:,} bytes, part {self._pieces}"
        self._quotes = self._quotes or QuoteCleaner()
        text = self._quotes.clean(_text(data), last=last)
        if last:
            self._pieces = 0
            self._quotes = None
        return LogText(logging.WARNING, what, text)


def _text(data: bytes) -> str:
    """Make bytes of the guest into text that can be shown; line ends and tabs are kept."""
    parts = re.split(r"([\n\t])", data.decode(errors="replace").replace("\r\n", "\n"))
    return "".join(part if part in ("\n", "\t") else printable(part, 10 * len(part)) for part in parts)


def _read(data: bytes) -> LogEntry | LogText:
    try:
        # As Go reads it: what is not UTF-8 is replaced.
        return _entry(parse(data.decode(errors="replace").encode()))
    except WireError:
        text = without_quotes(_text(data.strip()))
        return LogText(logging.WARNING, "an unreadable log entry", text)


def _entry(fields: dict[str, Any]) -> LogEntry:
    for name, value in fields.items():
        if isinstance(value, float) and value.is_integer():
            fields[name] = int(value)
    return LogEntry(_take_level(fields), _take_message(fields), _take_time(fields), fields)


def _take_level(fields: dict[str, Any]) -> int:
    name = str(fields.get("level")).lower()
    level = _LEVELS.get(name)
    if level is not None and name not in _OTHER_LEVELS:
        del fields["level"]
    return logging.INFO if level is None else level


def _take_message(fields: dict[str, Any]) -> str:
    message = _take_text(fields, "msg")
    if fields.get("Source") == "ETW":
        message = _take_text(fields, "message") or _take_text(fields, "Message") or message
    return message


def _take_text(fields: dict[str, Any], name: str) -> str:
    return str(fields.pop(name)) if isinstance(fields.get(name), str) else ""


def _take_time(fields: dict[str, Any]) -> datetime | None:
    try:
        time = datetime.fromisoformat(fields["time"])
    except (KeyError, TypeError, ValueError):
        return None
    if time.tzinfo is None:
        return None
    del fields["time"]
    return time


def log_to(vm_id: str) -> Callable[[ByteStream], Awaitable[None]]:
    """Return a handler of a VM's output that makes it into records; see :func:`read_log`."""
    return partial(read_log, vm_id=vm_id)


async def read_log(stream: ByteStream, vm_id: str) -> None:
    """Make the log of a guest into records of the logger ``uvm.guest``, until the stream ends or breaks.

    The handlers of that logger run in the event loop: slow ones belong behind a
    :class:`logging.handlers.QueueHandler`. One that raises is reported on stderr, as logging does.
    """
    parser = LogParser()
    count = 0
    try:
        while True:
            count = await _record_all(parser.feed(await stream.receive()), vm_id, count)
    except (anyio.EndOfStream, *BROKEN_STREAM):
        return
    finally:
        for item in parser.end():
            _record(item, vm_id)


async def _record_all(items: Iterable[LogEntry | LogText], vm_id: str, count: int) -> int:
    """Record what has come, and return the number of all records of the log so far."""
    for item in items:
        _record(item, vm_id)
        count += 1
        if not count % _TURN:
            await anyio.lowlevel.checkpoint()
    return count


def _record(item: LogEntry | LogText, vm_id: str) -> None:
    extra: dict[str, object] = {}
    if isinstance(item, LogEntry):
        message = printable(without_quotes(item.message), MAX_ENTRY_BYTES)
        extra |= {"guest_time": item.time, "guest": without_quotes(item.fields)}
    else:
        first_line, *_ = item.text.split("\n", 1)
        message = f"{item.what}: {printable(first_line)}"
        extra |= {"guest_text": item.text}
    _log.say(item.level, vm_id, message, fields=extra)
