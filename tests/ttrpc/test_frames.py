"""The two ends of a ttrpc connection, as bytes."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvm._ttrpc.frames import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    Answer,
    Call,
    ClientSide,
    FrameDecoder,
    Kind,
    Request,
    Response,
    ServerSide,
    Status,
    frame,
)
from uvm._ttrpc.protobuf import decode, encode
from uvm.errors import OptionsError, RPCCode, WireError

REQUEST = Request("S", "m", b"payload", 5)


def call(stream_id: int, request: Request = REQUEST) -> bytes:
    return frame(stream_id, Kind.REQUEST, encode(request))


def answer(stream_id: int, response: Response) -> bytes:
    return frame(stream_id, Kind.RESPONSE, encode(response))


def refused(data: object) -> tuple[int, int]:
    """Return the stream and the code of a refusal."""
    assert isinstance(data, bytes)
    (found,) = FrameDecoder().feed(data)
    status = decode(Response, found.payload).status
    assert found.kind == Kind.RESPONSE
    assert status is not None
    return found.stream_id, status.code


def test_the_header_is_size_stream_type_and_flags_in_network_order() -> None:
    assert frame(0x01020304, Kind.REQUEST, b"abc") == b"\x00\x00\x00\x03\x01\x02\x03\x04\x01\x00abc"


def test_calls_are_opened_under_odd_rising_ids_and_answered_in_any_order() -> None:
    client, server = ClientSide(), ServerSide(8)
    sent = [client.request(REQUEST) for _ in range(3)]
    assert [stream_id for stream_id, _ in sent] == [1, 3, 5]
    calls = list(server.receive(b"".join(data for _, data in sent)))
    assert calls == [Call(n, REQUEST) for n in (1, 3, 5)]
    answers = server.respond(5, b"five") + server.refuse(1, 9, "no") + server.respond(3, b"")
    assert list(client.receive(answers)) == [
        Answer(5, Response(payload=b"five")),
        Answer(1, Response(Status(9, "no"))),
        Answer(3, Response()),
    ]
    assert not server.open


def test_the_answer_to_an_abandoned_call_is_dropped() -> None:
    client = ClientSide()
    first, _ = client.request(REQUEST)
    second, _ = client.request(REQUEST)
    client.abandon(first)
    received = client.receive(answer(first, Response()) + answer(second, Response()))
    assert [each.stream_id for each in received] == [second]


@pytest.mark.parametrize("stream_id", [0, 2, 3, 0xFFFFFFFF])
def test_an_answer_to_what_was_never_asked_ends_the_connection(stream_id: int) -> None:
    client = ClientSide()
    client.request(REQUEST)
    with pytest.raises(WireError, match=f"stream {stream_id}, on which nothing was asked"):
        list(client.receive(answer(stream_id, Response())))


def test_an_answer_that_is_no_protobuf_ends_the_connection() -> None:
    client = ClientSide()
    client.request(REQUEST)
    with pytest.raises(WireError, match="no Response"):
        list(client.receive(frame(1, Kind.RESPONSE, b"\xff")))


@pytest.mark.parametrize("kind", [0, Kind.REQUEST, Kind.DATA, 200])
def test_a_server_may_send_responses_only(kind: int) -> None:
    client = ClientSide()
    client.request(REQUEST)
    with pytest.raises(WireError, match=f"of type {kind}, not a response"):
        list(client.receive(struct.pack(">IIBB", 0, 1, kind, 0)))


@pytest.mark.parametrize("kind", [Kind.RESPONSE, Kind.DATA])
def test_a_client_may_send_no_responses_and_no_data(kind: Kind) -> None:
    server = ServerSide(8)
    with pytest.raises(WireError, match=f"of type {kind}, not a request"):
        list(server.receive(call(1) + frame(1, kind, b"")))


def test_messages_of_types_to_come_are_ignored_by_a_server() -> None:
    unknown = struct.pack(">IIBB", 3, 1, 9, 0) + b"abc"
    assert list(ServerSide(8).receive(unknown + call(1))) == [Call(1, REQUEST)]


@pytest.mark.parametrize("stream_id", [0, 2, 4])
def test_an_even_stream_is_refused(stream_id: int) -> None:
    (refusal,) = ServerSide(8).receive(call(stream_id))
    assert refused(refusal) == (stream_id, RPCCode.INVALID_ARGUMENT)


def test_a_stream_that_does_not_rise_is_refused() -> None:
    server = ServerSide(8)
    _, again, before = server.receive(call(3) + call(3) + call(1))
    assert (refused(again), refused(before)) == ((3, 3), (1, 3))
    assert server.open == {3}


def test_a_request_that_is_no_protobuf_is_refused() -> None:
    server = ServerSide(8)
    refusal, good = server.receive(frame(1, Kind.REQUEST, b"\xff") + call(3))
    assert refused(refusal) == (1, RPCCode.INVALID_ARGUMENT)
    assert good == Call(3, REQUEST)


def test_more_calls_at_once_than_are_served_are_refused() -> None:
    server = ServerSide(2)
    *_, third = server.receive(call(1) + call(3) + call(5))
    assert refused(third) == (5, RPCCode.RESOURCE_EXHAUSTED)
    server.respond(1, b"")
    assert list(server.receive(call(7))) == [Call(7, REQUEST)]


def test_calls_that_are_larger_together_than_one_may_be_are_refused() -> None:
    server = ServerSide(8)
    large = frame(1, Kind.REQUEST, encode(Request("S", "m", bytes(MAX_PAYLOAD - 20))))
    _, second, third = server.receive(large + call(3) + call(5))
    assert refused(second) == (3, RPCCode.RESOURCE_EXHAUSTED)
    assert refused(third) == (5, RPCCode.RESOURCE_EXHAUSTED)
    server.respond(1, b"")
    assert list(server.receive(call(7))) == [Call(7, REQUEST)]


def test_a_call_is_answered_once() -> None:
    server = ServerSide(8)
    list(server.receive(call(1)))
    server.respond(1, b"")
    with pytest.raises(KeyError):
        server.respond(1, b"")
    with pytest.raises(KeyError):
        server.refuse(3, 2, "")


@pytest.mark.parametrize("side", [ClientSide(), ServerSide(8)], ids=["client", "server"])
def test_a_message_beyond_the_limit_is_refused_by_its_header(side: ClientSide | ServerSide) -> None:
    with pytest.raises(WireError, match="at most 4194304"):
        list(side.receive(struct.pack(">IIBB", MAX_PAYLOAD + 1, 1, 1, 0)))


def test_a_request_beyond_the_limit_is_not_sent() -> None:
    client = ClientSide()
    with pytest.raises(OptionsError, match="nothing was sent"):
        client.request(Request("S", "m", bytes(MAX_PAYLOAD)))
    assert client.request(REQUEST)[0] == 1


def test_an_answer_beyond_the_limit_becomes_a_refusal() -> None:
    server = ServerSide(8)
    list(server.receive(call(1)))
    assert refused(server.respond(1, bytes(MAX_PAYLOAD))) == (1, RPCCode.RESOURCE_EXHAUSTED)


def test_a_refusal_is_sent_also_with_a_text_that_has_no_form_or_is_long() -> None:
    server = ServerSide(8)
    list(server.receive(call(1)))
    (found,) = FrameDecoder().feed(server.refuse(1, 2, "\udc80" + "x" * 10_000))
    status = decode(Response, found.payload).status
    assert status is not None
    assert status.message.startswith("?xxx")
    assert len(status.message) <= 300


def test_an_end_within_a_message_is_noticed() -> None:
    client = ClientSide()
    client.request(REQUEST)
    assert not list(client.receive(answer(1, Response(payload=b"x"))[:-1]))
    with pytest.raises(WireError, match="12 bytes into a message"):
        client.end()


requests = st.builds(
    Request,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.just("m"),
    st.binary(max_size=30),
    st.integers(0, 2**63 - 1),
)
responses = st.builds(
    Response,
    st.none() | st.builds(Status, st.integers(0, 16), st.text("ab\n", max_size=5)),
    st.binary(max_size=30),
)


@st.composite
def pieces_of(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.sets(st.integers(0, len(data)), max_size=10)) | {0, len(data)})
    return [data[start:end] for start, end in pairwise(cuts)]


@given(sent=st.lists(requests, max_size=5), data=st.data())
def test_calls_are_the_same_in_whatever_pieces_they_come(sent: list[Request], data: st.DataObject) -> None:
    client, server = ClientSide(), ServerSide(8)
    stream = b"".join(client.request(each)[1] for each in sent)
    received = [call for piece in data.draw(pieces_of(stream)) for call in server.receive(piece)]
    assert received == [Call(2 * n + 1, each) for n, each in enumerate(sent)]


@given(answers=st.permutations(range(5)), data=st.data())
def test_answers_are_the_same_in_whatever_pieces_and_order_they_come(
    answers: list[int], data: st.DataObject
) -> None:
    client = ClientSide()
    for _ in range(5):
        client.request(REQUEST)
    expected = [Answer(2 * n + 1, data.draw(responses)) for n in answers]
    stream = b"".join(answer(*each) for each in expected)
    assert [each for piece in data.draw(pieces_of(stream)) for each in client.receive(piece)] == expected


def _outcome(side: ClientSide | ServerSide, pieces: list[bytes]) -> tuple[list[object], str]:
    received: list[object] = []
    try:
        for piece in pieces:
            received += side.receive(piece)
            assert side._decoder.buffered < HEADER_SIZE + MAX_PAYLOAD
    except WireError as error:
        return received, str(error)
    return received, ""


small_headers = st.builds(
    lambda size, stream_id, kind, flags, rest: struct.pack(">IIBB", size, stream_id, kind, flags) + rest,
    st.integers(0, 12),
    st.integers(0, 8),
    st.integers(0, 4),
    st.integers(0, 255),
    st.binary(max_size=12),
)
hostile = st.binary(max_size=40) | st.lists(small_headers, max_size=4).map(b"".join)


@given(stream=hostile, data=st.data())
def test_hostile_bytes_raise_nothing_but_wire_errors_the_same_in_any_pieces(
    stream: bytes, data: st.DataObject
) -> None:
    pieces = data.draw(pieces_of(stream))

    def client() -> ClientSide:
        made = ClientSide()
        made.request(REQUEST)
        made.request(REQUEST)
        return made

    assert _outcome(client(), pieces) == _outcome(client(), [stream])
    assert _outcome(ServerSide(2), pieces) == _outcome(ServerSide(2), [stream])
