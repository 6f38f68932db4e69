"""The log of a guest as records of logging."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from uvm._guest.logs import MAX_ENTRY_BYTES, LogEntry, LogParser, LogText, log_to, read_log
from uvm.backend import ByteStream
from uvm.backends.fake.streams import stream_pair

STARTED = b'{"level":"info","msg":"GCS started","time":"2024-01-15T10:30:00.123456789Z","pid":1}\n'
PANIC = b"panic: index out of range\n\ngoroutine 1 [running]:\nmain.main()\n\t/src/main.go:10 +0x45\n"


def parsed(data: bytes | Iterable[bytes]) -> list[LogEntry | LogText]:
    """What is in a log, which may come in pieces."""
    parser = LogParser()
    items: list[LogEntry | LogText] = []
    for piece in [data] if isinstance(data, bytes) else data:
        items += parser.feed(piece)
        assert len(parser.buffer) <= MAX_ENTRY_BYTES
    return [*items, *parser.end()]


def entry(data: bytes) -> LogEntry:
    (item,) = parsed(data)
    assert isinstance(item, LogEntry)
    return item


def text(data: bytes) -> LogText:
    (item,) = parsed(data)
    assert isinstance(item, LogText)
    return item


# Entries.


def test_an_entry_has_its_level_message_time_and_the_other_fields() -> None:
    assert entry(STARTED) == LogEntry(
        logging.INFO, "GCS started", datetime(2024, 1, 15, 10, 30, 0, 123456, UTC), {"pid": 1}
    )


@pytest.mark.parametrize(
    ("name", "level", "kept"),
    [
        ("trace", logging.DEBUG, True),
        ("debug", logging.DEBUG, False),
        ("info", logging.INFO, False),
        ("warn", logging.WARNING, False),
        ("warning", logging.WARNING, False),
        ("Error", logging.ERROR, False),
        ("fatal", logging.ERROR, True),
        ("panic", logging.ERROR, True),
        ("loud", logging.INFO, True),
    ],
)
def test_a_level_is_the_one_of_logging_and_the_guest_s_name_is_kept_where_it_says_more(
    name: str, level: int, kept: bool
) -> None:
    read = entry(b'{"level":"%s"}' % name.encode())
    assert (read.level, read.fields) == (level, {"level": name} if kept else {})


def test_an_entry_without_a_level_is_information() -> None:
    assert entry(b'{"msg":"hello"}') == LogEntry(logging.INFO, "hello", None, {})


@pytest.mark.parametrize("value", ["yesterday", "2024-01-15T10:30:00", "", 7, None, {}])
def test_a_time_that_is_none_stays_among_the_fields(value: Any) -> None:
    read = entry(f'{{"time":{json.dumps(value)}}}'.encode())
    assert (read.time, read.fields) == (None, {"time": value})


def test_fields_of_the_wrong_type_stay_among_the_fields() -> None:
    assert entry(b'{"level":3,"msg":["a"]}') == LogEntry(logging.INFO, "", None, {"level": 3, "msg": ["a"]})


def test_whole_numbers_are_whole() -> None:
    fields = entry(b'{"a":100.0,"b":3.14,"c":1e3,"d":true}').fields
    assert fields == {"a": 100, "b": 3.14, "c": 1000, "d": True}
    assert [type(value) for value in fields.values()] == [int, float, int, bool]


@pytest.mark.parametrize("name", ["message", "Message"])
def test_an_event_of_etw_has_its_message_in_another_field(name: str) -> None:
    read = entry(b'{"Source":"ETW","msg":"","%s":"said","Id":4}' % name.encode())
    assert (read.message, read.fields) == ("said", {"Source": "ETW", "Id": 4})


def test_only_an_event_of_etw_has() -> None:
    assert entry(b'{"msg":"mine","message":"other"}').fields == {"message": "other"}


def test_entries_need_no_line_ends_between_them_and_may_have_them_within() -> None:
    items = parsed(b' {"msg":"a"}{"msg":\n"b"}\r\n\t{"msg":"{[\\"}"}')
    assert [item.message for item in items if isinstance(item, LogEntry)] == ["a", "b", '{["}']
    assert len(items) == 3


def test_what_is_not_utf8_is_replaced_as_in_go() -> None:
    assert entry(b'{"msg":"a\xffb"}').message == "a�b"


# What is no entry.


def test_a_panic_is_one_error_with_its_whole_text() -> None:
    started, panic = parsed(STARTED + PANIC)
    assert isinstance(started, LogEntry)
    assert panic == LogText(logging.ERROR, "guest terminated", PANIC.decode().strip())


def test_entries_after_a_panic_belong_to_its_text() -> None:
    assert text(b"panic: x\n" + STARTED).text == f"panic: x\n{STARTED.decode().strip()}"


def test_the_text_of_a_panic_is_bounded_and_what_is_lost_is_counted() -> None:
    read = text(b"x" * (3 * MAX_ENTRY_BYTES))
    assert read.what == "guest terminated (and 131,072 more bytes)"
    assert read.text == "x" * MAX_ENTRY_BYTES


@pytest.mark.parametrize("data", [b"[]", b"5", b'"a"', b"null", b'{"msg":"cut o', b'{"a":['])
def test_whatever_is_no_whole_object_is_text(data: bytes) -> None:
    assert text(data) == LogText(logging.ERROR, "guest terminated", data.decode())


@pytest.mark.parametrize("data", [b"", b" \n\t\r\n"])
def test_nothing_is_nothing(data: bytes) -> None:
    assert parsed(data) == []


@pytest.mark.parametrize(
    "broken",
    [
        b"{invalid}",
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b'{"msg":"the rest of this line was never written\n',
    ],
)
def test_an_object_that_cannot_be_read_is_text_and_the_next_is_an_entry_again(broken: bytes) -> None:
    unreadable, started = parsed(broken + STARTED)
    assert unreadable == LogText(logging.WARNING, "an unreadable log entry", broken.decode().strip())
    assert isinstance(started, LogEntry)


def test_an_entry_that_is_too_long_is_text_in_pieces_and_the_next_is_an_entry_again() -> None:
    long = b'{"msg":"' + b"}" * (2 * MAX_ENTRY_BYTES) + b'"}'
    *pieces, started = parsed(long + STARTED)
    assert isinstance(started, LogEntry)
    assert [item.what for item in pieces if isinstance(item, LogText)] == [
        f"a log entry of more than 65,536 bytes, part {number}" for number in (1, 2, 3)
    ]
    assert "".join(item.text for item in pieces if isinstance(item, LogText)) == long.decode()


def test_the_longest_entry_is_one() -> None:
    data = b'{"msg":"' + b"x" * (MAX_ENTRY_BYTES - 10) + b'"}'
    assert len(entry(data).message) == MAX_ENTRY_BYTES - 10
    assert [type(item) for item in parsed(data[:-2] + b'x"}')] == [LogText, LogText]


def test_an_escape_at_the_edge_of_a_piece_hides_no_end() -> None:
    data = b'{"msg":"' + b"x" * (MAX_ENTRY_BYTES - 9) + b'\\"}"}'
    *pieces, started = parsed(data + STARTED)
    assert len(pieces) == 2
    assert isinstance(started, LogEntry)


def test_text_is_shown_without_control_characters_but_with_its_lines() -> None:
    assert text("panic:\t\x1b[31mred\r\nnext\x00\u202e".encode()).text == (
        "panic:\t\\x1b[31mred\nnext\\x00\\u202e"
    )


LOG = (
    STARTED + b'{"msg":"\\"{"}{"a":[{}]}\n{bad}' + b'{"msg":"' + b"x" * 70_000 + b'"}\n{"msg":"cut\n' + PANIC
)


@given(st.lists(st.integers(0, len(LOG)), max_size=10))
def test_any_split_of_a_log_gives_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(LOG)]
    assert parsed([LOG[a:b] for a, b in pairwise(edges)]) == parsed(LOG)


def test_a_log_that_comes_byte_by_byte_gives_the_same() -> None:
    assert parsed([LOG[i : i + 1] for i in range(len(LOG))]) == parsed(LOG)


@given(st.lists(st.binary(max_size=30) | st.sampled_from([STARTED, PANIC, b'{"', b'"}', b"{}", b"\\"])))
@example([b"\x0b"])
@example([b" ", b"\xef\xbb", b"\xbf"])
@example([b"\xef\xbb"])
def test_no_bytes_make_the_parser_raise_and_nothing_but_space_is_lost(pieces: list[bytes]) -> None:
    items = parsed(pieces)
    space = re.fullmatch(rb"(?:[ \t\r\n]|\xef\xbb\xbf)*", b"".join(pieces))
    assert bool(items) == (space is None)


# Records.


@asynccontextmanager
async def dialled() -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    """The guest's end and the host's end of a connection."""
    guest, host = stream_pair(lambda end: None)
    try:
        yield guest, host
    finally:
        await guest.aclose()
        await host.aclose()


async def records_of(data: bytes, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    caplog.set_level(logging.DEBUG, "uvm.guest")
    async with dialled() as (guest, host):
        await guest.send(data)
        await guest.send_eof()
        await log_to("vm-1")(host)
    return caplog.records


@pytest.mark.anyio
async def test_an_entry_becomes_a_record(caplog: pytest.LogCaptureFixture) -> None:
    (record,) = await records_of(STARTED, caplog)
    assert (record.name, record.levelno) == ("uvm.guest", logging.INFO)
    assert record.getMessage() == "vm-1: GCS started"
    assert record.__dict__["vm_id"] == "vm-1"
    assert record.__dict__["guest"] == {"pid": 1}
    assert record.__dict__["guest_time"] == datetime(2024, 1, 15, 10, 30, 0, 123456, UTC)


@pytest.mark.anyio
async def test_a_panic_becomes_a_record_with_its_first_line_as_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, record = await records_of(STARTED + PANIC, caplog)
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "vm-1: guest terminated: panic: index out of range"
    assert record.__dict__["guest_text"] == PANIC.decode().strip()


@pytest.mark.anyio
async def test_a_message_cannot_forge_a_line_nor_a_format(caplog: pytest.LogCaptureFixture) -> None:
    (record,) = await records_of(b'{"msg":"100%s\\nERROR root: \\u001b[2J","name":"root"}', caplog)
    assert record.getMessage() == "vm-1: 100%s\\nERROR root: \\x1b[2J"
    assert record.name == "uvm.guest"


@pytest.mark.anyio
async def test_the_log_ends_quietly_when_the_connection_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    async with dialled() as (_, host):
        await host.aclose()
        await read_log(host, "vm-1")
    assert caplog.records == []


@pytest.mark.anyio
async def test_a_reader_that_is_cancelled_still_tells_what_it_has(caplog: pytest.LogCaptureFixture) -> None:
    async with dialled() as (guest, host), anyio.create_task_group() as tasks:
        tasks.start_soon(read_log, host, "vm-1")
        await guest.send(PANIC)
        await anyio.wait_all_tasks_blocked()
        assert caplog.records == []
        tasks.cancel_scope.cancel()
    (record,) = caplog.records
    assert record.getMessage() == "vm-1: guest terminated: panic: index out of range"


class Failing(logging.Handler):
    """A handler that raises, after it has counted."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        raise RuntimeError("this handler is broken")


@pytest.mark.anyio
async def test_a_logging_handler_that_raises_gets_every_record_and_is_told_of_on_stderr(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = Failing()
    logging.getLogger("uvm.guest").addHandler(failing)
    try:
        await records_of(STARTED * 3, caplog)
    finally:
        logging.getLogger("uvm.guest").removeHandler(failing)
    assert failing.count == 3
    assert capsys.readouterr().err.count("RuntimeError: this handler is broken") == 3


@pytest.mark.anyio
async def test_a_flood_of_entries_leaves_others_their_turn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "uvm.guest")
    seen: list[int] = []

    async def look(host: ByteStream) -> None:
        await read_log(host, "vm-1")
        tasks.cancel_scope.cancel()

    async with dialled() as (guest, host), anyio.create_task_group() as tasks:
        await guest.send(b"{}" * 1000)
        await guest.send_eof()
        tasks.start_soon(look, host)
        while True:
            await anyio.lowlevel.checkpoint()
            seen.append(len(caplog.records))
    assert len(set(seen)) > 10


@pytest.mark.parametrize("cut", range(4))
def test_a_byte_order_mark_is_skipped(cut: int) -> None:
    parser = LogParser()
    data = b'\xef\xbb\xbf{"level":"info","msg":"hello"}\n\xef\xbb\xbf{"msg":"again"}\n'
    entries = [*parser.feed(data[:cut]), *parser.feed(data[cut:]), *parser.end()]
    assert [getattr(each, "message", None) for each in entries] == ["hello", "again"]
