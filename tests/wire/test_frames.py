"""The codec: conversations whose bytes are written out, and what each side refuses."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from tests.gcs.conversations import Exchange, Said
from tests.gcs.linux_conversation import LINUX
from tests.gcs.windows_conversation import WINDOWS
from uvm._wire.frames import (
    HEADER_SIZE,
    MAX_DEPTH,
    MAX_MESSAGE_SIZE,
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
    procedure_name,
)
from uvm.errors import WireError
from uvm.schema.gcs import ContainerNotification, ResponseBase
from uvm.schema.json import dumps, from_json

Conversation = list[Exchange | Said]

both_guests = pytest.mark.parametrize("conversation", [LINUX, WINDOWS], ids=["linux", "windows"])


def exchanges(conversation: Conversation) -> list[Exchange]:
    return [step for step in conversation if isinstance(step, Exchange)]


# The conversations, from both ends.


@both_guests
def test_the_host_says_byte_for_byte_what_is_written(conversation: Conversation) -> None:
    host = HostSide()
    for number, step in enumerate(exchanges(conversation)):
        assert host.request(step.procedure, dumps(step.request)) == (number, step.request_data)


@both_guests
def test_the_guest_reads_each_request_and_answers_byte_for_byte_what_is_written(
    conversation: Conversation,
) -> None:
    guest = GuestSide()
    for number, step in enumerate(exchanges(conversation)):
        (request,) = guest.receive(step.request_data)
        assert request == Request(step.procedure, number, step.request_text.encode())
        assert from_json(type(step.request), parse(request.payload), forbid_extra=True) == with_json(
            step.request
        )
        if step.response is not None:
            assert guest.respond(number, dumps(step.response)) == step.response_data


def with_json(request: Any) -> Any:
    """Return a request as it is received: fields of free form hold JSON, not models."""
    return from_json(type(request), json.loads(dumps(request)))


@both_guests
def test_the_host_reads_each_answer(conversation: Conversation) -> None:
    host = HostSide()
    for step in exchanges(conversation):
        number, _ = host.request(step.procedure, dumps(step.request))
        if step.response is None:
            continue
        (response,) = host.receive(step.response_data)
        assert isinstance(response, Response)
        assert response[:2] == (step.procedure, number)
        assert from_json(type(step.response), response.body, forbid_extra=True) == step.response


@both_guests
def test_a_notification_is_the_same_from_both_ends(conversation: Conversation) -> None:
    (said,) = (step for step in conversation if isinstance(step, Said))
    assert GuestSide().notify(dumps(said.model)) == said.data
    (notification,) = HostSide().receive(said.data)
    assert isinstance(notification, Notification)
    assert from_json(ContainerNotification, notification.body, forbid_extra=True) == said.model


@both_guests
def test_answers_may_come_in_any_order_and_all_at_once(conversation: Conversation) -> None:
    host = HostSide()
    answered = [step for step in exchanges(conversation) if step.response is not None]
    for step in exchanges(conversation):
        host.request(step.procedure, dumps(step.request))
    responses = list(host.receive(b"".join(step.response_data for step in reversed(answered))))
    assert [response.procedure for response in responses] == [step.procedure for step in reversed(answered)]
    assert len(host.open) == len(exchanges(conversation)) - len(answered)


def test_every_procedure_in_use_is_in_a_conversation() -> None:
    said = {step.procedure for step in exchanges(LINUX) + exchanges(WINDOWS)}
    assert set(Procedure) - said == {Procedure.UPDATE_CONTAINER, Procedure.LIFECYCLE_NOTIFICATION}


# Requests and answers.


def opened(*procedures: int) -> HostSide:
    """Return a host with one open request for each procedure."""
    host = HostSide()
    for procedure in procedures:
        host.request(procedure, {})
    return host


def response(message_id: int, procedure: int = Procedure.START, body: object = None) -> bytes:
    return encode(Kind.RESPONSE, procedure, message_id, dumps(ResponseBase() if body is None else body))


def refuse(host: HostSide, data: bytes, match: str) -> None:
    with pytest.raises(WireError, match=match):
        list(host.receive(data))


def test_an_answer_to_no_request_is_refused() -> None:
    refuse(HostSide(), response(0), "request 0, which is not open")


def test_a_second_answer_is_refused() -> None:
    host = opened(Procedure.START)
    assert len(list(host.receive(response(0)))) == 1
    refuse(host, response(0), "request 0, which is not open")


def test_an_answer_of_another_procedure_is_refused_and_the_request_stays_open() -> None:
    host = opened(Procedure.START)
    refuse(host, response(0, Procedure.CREATE), "request 0, start, was answered as create")
    assert host.open == {0: Procedure.START}


def test_an_answer_of_an_unknown_procedure_is_named_by_its_number() -> None:
    refuse(opened(Procedure.START), response(0, 0x0FFFFFFF), "answered as procedure 0x0FFFFFFF")


def test_a_refusal_that_names_no_procedure_is_taken_as_the_sidecar_of_a_windows_guest_sends_it() -> None:
    host = opened(Procedure.START)
    assert [(each.procedure, each[1]) for each in host.receive(response(0, 0))] == [(Procedure.START, 0)]
    assert host.open == {}


def test_a_withdrawn_request_cannot_be_answered() -> None:
    host = opened(Procedure.START)
    host.withdraw(0)
    refuse(host, response(0), "request 0, which is not open")


def test_a_request_that_cannot_be_written_was_never_made() -> None:
    host = HostSide()
    with pytest.raises(TypeError):
        host.request(Procedure.START, {"Request": object()})
    assert host.open == {}
    assert host.request(Procedure.START, {})[0] == 0


def test_an_answer_that_cannot_be_written_leaves_the_request_to_be_answered() -> None:
    guest = GuestSide()
    list(guest.receive(encode(Kind.REQUEST, Procedure.START, 7, {})))
    with pytest.raises(ValueError, match="JSON compliant"):
        guest.respond(7, {"Result": float("nan")})
    assert guest.respond(7, {"Result": 1}) == response(7, body={"Result": 1})


def test_a_body_that_holds_itself_cannot_be_written() -> None:
    body: dict[str, Any] = {}
    body["body"] = body
    with pytest.raises(ValueError, match="nests too deeply, or contains itself"):
        encode(Kind.REQUEST, Procedure.START, 0, body)


def test_a_guest_cannot_answer_what_was_not_asked() -> None:
    with pytest.raises(KeyError):
        GuestSide().respond(0, {})


def test_a_guest_takes_an_id_again_only_after_its_answer() -> None:
    guest = GuestSide()
    request = encode(Kind.REQUEST, Procedure.START, 7, {})
    assert len(list(guest.receive(request))) == 1
    with pytest.raises(WireError, match="second request arrived under the id 7"):
        list(guest.receive(request))
    guest.respond(7, {})
    assert len(list(guest.receive(request))) == 1


def test_a_guest_gets_requests_of_unknown_procedures() -> None:
    (request,) = GuestSide().receive(encode(Kind.REQUEST, 0x0ABCDE01, 1, {}))
    assert (request.procedure, procedure_name(request.procedure)) == (0x0ABCDE01, "procedure 0x0ABCDE01")


def test_what_was_open_is_answered_on_the_next_connection_whatever_was_left_of_the_last() -> None:
    host = opened(Procedure.START)
    assert list(host.receive(response(0)[:20])) == []
    host.restart()
    assert [message[1] for message in host.receive(response(0))] == [0]


# The stream.


def test_a_stream_may_end_only_between_messages() -> None:
    host = opened(Procedure.START)
    host.end()
    list(host.receive(response(0)[:-1]))
    with pytest.raises(WireError, match="27 bytes into a message"):
        host.end()


def test_the_messages_before_the_first_bad_byte_are_returned() -> None:
    host = opened(Procedure.START)
    messages = host.receive(response(0) + b"\xff" * HEADER_SIZE)
    assert next(messages)[1] == 0
    with pytest.raises(WireError):
        next(messages)


def header(message_type: int, size: int, message_id: int = 0) -> bytes:
    return struct.pack("<IIQ", message_type, size, message_id)


@pytest.mark.parametrize("size", [0, 15, MAX_MESSAGE_SIZE + 1, 0xFFFFFFFF])
def test_an_impossible_size_is_refused_before_the_rest_arrives(size: int) -> None:
    refuse(opened(Procedure.START), header(0x20100201, size), f"has {size} bytes")


def test_the_largest_message_is_taken() -> None:
    body = {"Result": 0, "ErrorMessage": ""}
    body["ErrorMessage"] = "x" * (MAX_MESSAGE_SIZE - len(response(0, body=body)))
    data = response(0, body=body)
    assert len(data) == MAX_MESSAGE_SIZE
    assert list(opened(Procedure.START).receive(data)) == [Response(Procedure.START, 0, body)]
    refuse(opened(Procedure.START), response(0, body={**body, "x": 1}), "at most 65536 are accepted")


@pytest.mark.parametrize("message_type", [0x00100201, 0x10100201, 0x40100201, 0xF0100201])
def test_a_host_takes_only_answers_and_notifications(message_type: int) -> None:
    refuse(opened(Procedure.START), header(message_type, 18) + b"{}", f"type 0x{message_type:08X}")


@pytest.mark.parametrize("message_type", [0x00100201, 0x20100201, 0x30100101, 0x50100201])
def test_a_guest_takes_only_requests(message_type: int) -> None:
    with pytest.raises(WireError, match=f"type 0x{message_type:08X}"):
        list(GuestSide().receive(header(message_type, 18) + b"{}"))


@pytest.mark.parametrize("message_type", [0x30000000, 0x30100102, 0x30100201, 0x30200101])
def test_a_notification_of_an_unknown_kind_is_refused(message_type: int) -> None:
    refuse(
        HostSide(),
        header(message_type, 18) + b"{}",
        f"unknown kind arrived: 0x{message_type & 0xFFFFFFF:08X}",
    )


def test_bytes_after_a_bad_header_are_refused_too() -> None:
    decoder = FrameDecoder(frozenset({Kind.RESPONSE}))
    for _ in range(2):
        with pytest.raises(WireError):
            list(decoder.feed(header(0x40000000, 16)))


# Bodies.


def nested(depth: int) -> bytes:
    """Return an object in which so many objects and lists nest, itself included."""
    return b'{"x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"hello",
    "half an object": b'{"Result":0',
    "something after it": b'{"Result":0}{}',
    "NUL after it": b'{"Result":0}\0',
    "a byte order mark": b'\xef\xbb\xbf{"Result":0}',
    "UTF-16": '{"Result":0}'.encode("utf-16"),
    "not UTF-8": b'{"ErrorMessage":"\xff"}',
    "a surrogate in UTF-8": b'{"ErrorMessage":"\xed\xa0\x80"}',
    "an overlong form": b'{"ErrorMessage":"\xc0\xaf"}',
    "a control character in a string": b'{"ErrorMessage":"\0"}',
    "an escape that is none": rb'{"ErrorMessage":"\x41"}',
    "NaN": b'{"Result":NaN}',
    "infinity": b'{"Result":-Infinity}',
    "a number that overflows": b'{"Result":1e999}',
    "a whole number of 10,000 digits": b'{"Result":' + b"9" * 10_000 + b"}",
    "a number with a leading zero": b'{"Result":01}',
    "a list": b"[]",
    "a string": b'"{}"',
    "null": b"null",
    "nesting, a little too deep": nested(MAX_DEPTH + 1),
    "nesting, far too deep": b'{"x":' * 10_000,
    "nesting, far too deep, and closed": nested(30_000),
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_a_body_that_is_no_sound_json_object_is_refused(body: bytes) -> None:
    data = header(0x20100201, HEADER_SIZE + len(body)) + body
    refuse(opened(Procedure.START), data, "the body of a message")


def test_an_error_does_not_quote_the_received_bytes() -> None:
    with pytest.raises(WireError) as caught:
        parse(b'{"Environment":{"TOKEN":"hunter2"}')
    assert "hunter2" not in repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


GOOD_BODIES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "a line end after it, as Go writes": (b'{"Result":0}\n', {"Result": 0}),
    "unknown fields": (b'{"Result":0,"New":{"a":[1]}}', {"Result": 0, "New": {"a": [1]}}),
    "a field twice: the last counts, as in Go": (b'{"Result":1,"Result":2}', {"Result": 2}),
    "text beyond ASCII": ('{"m":"naïve 🙂"}'.encode(), {"m": "naïve 🙂"}),
    "a surrogate pair": (rb'{"m":"\ud83d\ude42"}', {"m": "🙂"}),
    "a lone surrogate, replaced as in Go": (rb'{"m":"a\ud83db"}', {"m": "a�b"}),
    "a lone surrogate at the end": (rb'{"m":"\uD83D"}', {"m": "�"}),
    "surrogates in the wrong order": (rb'{"m":["\ude42\ud83d"]}', {"m": ["��"]}),
    "a lone surrogate in a name": (rb'{"\udfff":1}', {"�": 1}),
    "an escaped backslash before a u": (rb'{"m":"\\ud83d"}', {"m": r"\ud83d"}),
    "NUL, escaped": (rb'{"m":"\u0000"}', {"m": "\0"}),
    "the deepest nesting": (nested(MAX_DEPTH), json.loads(nested(MAX_DEPTH))),
    "many brackets that do not nest": (b'{"m":[%s]}' % b",".join([b"{}"] * 100), {"m": [{}] * 100}),
}


@pytest.mark.parametrize(("body", "read"), GOOD_BODIES.values(), ids=GOOD_BODIES.keys())
def test_a_sound_body_is_read(body: bytes, read: dict[str, Any]) -> None:
    assert parse(body) == read
