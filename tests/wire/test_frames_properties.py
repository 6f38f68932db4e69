"""Properties of the codec: what holds for all messages, all streams and all bytes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gcs.conversations import Exchange
from tests.gcs.linux_conversation import LINUX
from tests.gcs.windows_conversation import WINDOWS
from uvm._wire.frames import (
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    NOTIFY_CONTAINER,
    FrameDecoder,
    GuestSide,
    HostSide,
    Kind,
    Notification,
    Procedure,
    Request,
    Response,
    encode,
    parse,
)
from uvm.errors import WireError
from uvm.schema.json import dumps

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)
bodies = st.dictionaries(text, json_values, max_size=5)
procedures = st.sampled_from(Procedure)


@st.composite
def pieces_of(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Cut bytes anywhere; a piece may be empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[start:end] for start, end in pairwise([0, *cuts, len(data)])]


def answers(conversation: list[Any]) -> bytes:
    """Return everything that the guest of a conversation sends, in the order of the requests."""
    steps = [s for s in conversation if not isinstance(s, Exchange) or s.response is not None]
    return b"".join(s.response_data if isinstance(s, Exchange) else s.data for s in steps)


def host_of(conversation: list[Any]) -> HostSide:
    host = HostSide()
    for step in conversation:
        if isinstance(step, Exchange):
            host.request(step.procedure, dumps(step.request))
    return host


def received(
    host: HostSide, pieces: list[bytes], max_size: int = MAX_MESSAGE_SIZE
) -> tuple[list[Any], str | None]:
    """Return the messages in some bytes, and why the host stopped; its buffer never holds a whole message."""
    messages: list[Any] = []
    try:
        for piece in pieces:
            messages.extend(host.receive(piece))
            assert host._decoder.buffered < max_size
    except WireError as e:
        return messages, str(e)
    return messages, None


@pytest.mark.parametrize("conversation", [LINUX, WINDOWS], ids=["linux", "windows"])
@given(data=st.data())
def test_any_split_of_a_conversation_yields_the_same_messages(
    conversation: list[Any], data: st.DataObject
) -> None:
    stream = answers(conversation)
    whole, error = received(host_of(conversation), [stream])
    assert error is None
    assert len(whole) == sum(1 for s in conversation if not isinstance(s, Exchange) or s.response is not None)
    assert received(host_of(conversation), data.draw(pieces_of(stream))) == (whole, None)


@given(st.data())
def test_any_split_of_a_damaged_conversation_yields_the_same_messages_and_the_same_error(
    data: st.DataObject,
) -> None:
    stream = bytearray(answers(LINUX))
    for where in data.draw(st.lists(st.integers(0, len(stream) - 1), min_size=1, max_size=4)):
        stream[where] = data.draw(st.integers(0, 255))
    whole = received(host_of(LINUX), [bytes(stream)])
    assert received(host_of(LINUX), data.draw(pieces_of(bytes(stream)))) == whole


@given(st.lists(st.tuples(procedures, bodies), min_size=1, max_size=5), st.data())
def test_any_conversation_round_trips_in_both_directions(
    asked: list[tuple[Procedure, dict[str, Any]]], data: st.DataObject
) -> None:
    host, guest = HostSide(), GuestSide()
    requests: list[Request] = []
    for piece in data.draw(pieces_of(b"".join(host.request(p, body)[1] for p, body in asked))):
        requests += guest.receive(piece)
    assert [(r.procedure, r.id, parse(r.payload)) for r in requests] == [
        (procedure, number, body) for number, (procedure, body) in enumerate(asked)
    ]
    order = data.draw(st.permutations(requests))
    replies = [data.draw(bodies) for _ in order]
    stream = b"".join(guest.respond(r.id, body) for r, body in zip(order, replies, strict=True))
    got = [message for piece in data.draw(pieces_of(stream)) for message in host.receive(piece)]
    assert got == [Response(r.procedure, r.id, body) for r, body in zip(order, replies, strict=True)]
    assert not host.open
    assert not guest.open


@given(bodies)
def test_any_notification_round_trips(body: dict[str, Any]) -> None:
    assert list(HostSide().receive(GuestSide().notify(body))) == [Notification(NOTIFY_CONTAINER, body)]


@given(st.lists(st.binary(max_size=64), max_size=6))
def test_no_bytes_make_the_host_do_anything_but_decode_or_refuse(pieces: list[bytes]) -> None:
    messages, error = received(HostSide(), pieces)
    assert error is not None or all(isinstance(message, Notification) for message in messages)


@given(st.binary(max_size=100))
def test_no_payload_makes_the_parser_do_anything_but_read_or_refuse(payload: bytes) -> None:
    try:
        body = parse(payload)
    except WireError:
        return
    assert parse(encode(Kind.REQUEST, 0, 0, body)[HEADER_SIZE:]) == body


@given(st.text('{}[]":,\\u dD8eE+-.0123456789NaInfity', max_size=40))
def test_no_text_of_json_s_own_letters_does_either(payload: str) -> None:
    try:
        body = parse(payload.encode())
    except WireError:
        return
    encode(Kind.RESPONSE, Procedure.START, 0, body)


@given(st.integers(HEADER_SIZE, 200), st.lists(st.binary(min_size=1, max_size=50), max_size=20))
def test_the_buffer_never_holds_more_than_a_message_and_a_piece(max_size: int, pieces: list[bytes]) -> None:
    decoder = FrameDecoder(frozenset(Kind), max_size)
    try:
        for piece in pieces:
            frames = decoder.feed(piece)
            assert decoder.buffered < max_size + len(piece)
            assert all(len(frame.payload) <= max_size - HEADER_SIZE for frame in frames)
            assert decoder.buffered < max_size
    except WireError:
        assert decoder.buffered < max_size + 50


@given(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE))
def test_any_header_alone_is_refused_or_waits_for_the_rest_or_is_a_message(header: bytes) -> None:
    decoder = FrameDecoder(frozenset({Kind.RESPONSE}), 1 << 20)
    size = int.from_bytes(header[4:8], "little")
    try:
        frames = list(decoder.feed(header))
    except WireError:
        assert header[3] >> 4 != 2 or not HEADER_SIZE <= size <= 1 << 20
        return
    assert (len(frames), decoder.buffered) == ((1, 0) if size == HEADER_SIZE else (0, HEADER_SIZE))
