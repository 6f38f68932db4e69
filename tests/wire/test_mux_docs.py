"""The table of the mux's frames in the documentation."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from tests.wire.muxes import End, Pair
from uvm._wire.channels import MuxError
from uvm._wire.muxframes import MAX_PAYLOAD, STATE_SIZE, FrameKind

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
ROW = re.compile(r"\| (\w+) \| (\d) \| (guest|host|both) \| (.*) \|")
#: What the frames carry that have a payload.
PAYLOADS = {FrameKind.OPEN: bytes(STATE_SIZE) + b"\0", FrameKind.DATA: b"x\0"}
COUNTS = {FrameKind.DATA: 1}

ROWS = [row.groups() for row in ROW.finditer(PAGE.read_text("utf-8"))]


def takes(end: End, kind: FrameKind) -> bool:
    """Return whether an end takes a frame of a kind: an open of a new channel, the others of the first."""
    channel = 2 if kind == FrameKind.OPEN else 1
    data = struct.pack("<IIIQ", kind, channel, COUNTS.get(kind, 0), 0) + PAYLOADS.get(kind, b"")
    try:
        end.receive(data)
    except MuxError as error:
        return "not allowed here" not in str(error)
    return True


def test_the_table_has_every_kind() -> None:
    assert {name: int(number) for name, number, *_ in ROWS} == {k.name.lower(): k.value for k in FrameKind}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_kind_is_sent_by_the_ends_that_the_table_says_and_taken_from_no_other(
    row: tuple[str, str, str, str],
) -> None:
    name, _, sender, _ = row
    kind = FrameKind[name.upper()]
    assert takes(opened().host, kind) is (sender != "host")
    assert takes(opened().guest, kind) is (sender != "guest")


def opened() -> Pair:
    pair = Pair(1)
    pair.open()
    return pair


def test_only_the_kinds_that_the_table_says_have_a_payload() -> None:
    having = {name for name, *_, cells in ROWS if cells.split("|")[-1].strip()}
    assert having == {kind.name.lower() for kind in PAYLOADS}


def test_the_largest_payload_is_the_table_s() -> None:
    assert f"bytes, 1 to {MAX_PAYLOAD} " in {name: cells for name, *_, cells in ROWS}["data"]
