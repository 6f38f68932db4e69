"""Messages of protobuf, as attrs classes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from uvm._ttrpc.protobuf import (
    AnyMessage,
    Message,
    decode,
    encode,
    int32,
    int64,
    nested,
    octets,
    string,
    uint32,
)
from uvm.errors import OptionsError, WireError


@frozen
class Part(Message):
    name: str = string(3)
    any: AnyMessage | None = nested(16, AnyMessage)


@frozen
class Whole(Message):
    text: str = string(1)
    data: bytes = octets(2)
    unsigned: int = uint32(3)
    signed: int = int32(4)
    large: int = int64(5)
    part: Part | None = nested(6, Part)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
any_messages = st.builds(AnyMessage, text, st.binary(max_size=20))
messages = st.builds(
    Whole,
    text,
    st.binary(max_size=20),
    st.integers(0, 2**32 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.none() | st.builds(Part, text, st.none() | any_messages),
)


@given(message=messages)
def test_what_is_written_is_read(message: Whole) -> None:
    assert decode(Whole, encode(message)) == message


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        message = decode(Whole, data)
    except WireError:
        return
    assert decode(Whole, encode(message)) == message


def test_the_bytes_are_those_of_the_encoding() -> None:
    assert encode(Whole("a", b"\xff", 1, -1, 300)) == (
        b"\x0a\x01a\x12\x01\xff\x18\x01\x20" + b"\xff" * 9 + b"\x01\x28\xac\x02"
    )
    assert encode(Whole()) == b""
    assert encode(Whole(part=Part(name="b"))) == b"\x32\x03\x1a\x01b"


def test_a_message_within_may_be_absent_or_empty() -> None:
    assert decode(Whole, b"").part is None
    assert decode(Whole, b"\x32\x00").part == Part()
    assert encode(Whole(part=Part())) == b"\x32\x00"


def test_unknown_fields_are_dropped() -> None:
    assert decode(AnyMessage, b"\x0a\x01x\x7a\x03abc") == AnyMessage("x")


@pytest.mark.parametrize(
    "message",
    [Whole("\ud800"), Whole(unsigned=-1), Whole(signed=2**31), Whole(text=1)],  # type: ignore[arg-type]
    ids=repr,
)
def test_a_value_without_a_form_is_refused(message: Whole) -> None:
    with pytest.raises(OptionsError, match=r"Whole: .*; nothing was sent"):
        encode(message)


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x0a\x01\xff", b"\x0c", b"\x07", b"\x32\x02\x1a\x09"])
def test_what_is_no_message_is_not_quoted(data: bytes) -> None:
    with pytest.raises(WireError, match=r"^\d bytes are no Whole of protobuf$"):
        decode(Whole, data)


def test_text_that_is_no_utf_8_is_refused_also_by_the_package_without_c() -> None:
    program = """
from google.protobuf.internal import api_implementation
from uvm._ttrpc.protobuf import AnyMessage, decode
from uvm.errors import WireError
assert api_implementation.Type() == "python"
try:
    decode(AnyMessage, bytes([10, 1, 255]))
except WireError as error:
    print(error)
"""
    without_c = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=without_c)
    assert done.stdout == "3 bytes are no AnyMessage of protobuf\n"


def test_without_the_package_the_error_names_the_extra() -> None:
    program = """
import sys
sys.modules["google.protobuf"] = None
from uvm._ttrpc.protobuf import AnyMessage, encode
from uvm.errors import NotSupportedError
try:
    encode(AnyMessage("x"))
except NotSupportedError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 'pip install "utilityvm[ncproxy]"' in done.stdout
