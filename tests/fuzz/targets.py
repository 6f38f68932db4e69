"""The fuzz targets: functions of bytes that raise AssertionError where a promise is broken.

The first byte of an input says in which pieces the others come. Where its upper bit is set, the others are
not the stream itself but a recipe for one, so that a fuzzer need not guess sizes: each message of it is a
byte for the type, one for the id, two for the size of the body (little-endian), and the body.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, TypeAlias

from tests.fuzz.mux import mux_guest, mux_host
from uvm._guest.logs import MAX_ENTRY_BYTES, LogEntry, LogParser, LogText
from uvm._ncproxy.messages import AddNIC, endpoint_of
from uvm._ttrpc import frames as ttrpc
from uvm._ttrpc.protobuf import decode
from uvm._wire.frames import (
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    NOTIFY_CONTAINER,
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
from uvm.errors import RPCError, WireError
from uvm.schema.gcs import (
    ContainerCreateRequest,
    ContainerModifySettingsRequest,
    ContainerNotification,
    DumpStacksResponse,
    ExecuteProcessRequest,
    ExecuteProcessResponse,
    GetPropertiesResponse,
    NegotiateProtocolRequest,
    NegotiateProtocolResponse,
    ResponseBase,
    SignalProcessRequest,
    WaitForProcessRequest,
    WaitForProcessResponse,
)
from uvm.schema.json import SchemaError, from_json

__all__ = ["TARGETS", "guest_side", "host_side", "log", "ttrpc_client", "ttrpc_server"]

#: Requests that are open at the host, by id; a recipe's types are indexes into these and some more.
OPEN: Final = tuple(Procedure)
_RECIPE: Final = 0x80
_TYPES: Final = (
    *(Kind.RESPONSE | procedure for procedure in OPEN),
    *(Kind.REQUEST | procedure for procedure in OPEN),
    Kind.NOTIFICATION | NOTIFY_CONTAINER,
    Kind.NOTIFICATION | Procedure.START,
    Kind.RESPONSE | 0x0ABCDE01,
    0x40000000,
)

_RESPONSES: Final[dict[int, type]] = {
    Procedure.NEGOTIATE_PROTOCOL: NegotiateProtocolResponse,
    Procedure.EXECUTE_PROCESS: ExecuteProcessResponse,
    Procedure.WAIT_FOR_PROCESS: WaitForProcessResponse,
    Procedure.GET_PROPERTIES: GetPropertiesResponse,
    Procedure.DUMP_STACKS: DumpStacksResponse,
}
_REQUESTS: Final = (
    NegotiateProtocolRequest,
    ContainerCreateRequest,
    ExecuteProcessRequest,
    WaitForProcessRequest,
    SignalProcessRequest,
    ContainerModifySettingsRequest,
)

Received: TypeAlias = tuple[list[Response | Notification | Request], str]


def host_side(data: bytes) -> None:
    """What a guest sends: it is decoded, or refused with WireError, the same in whatever pieces it comes."""
    pieces = split(data)
    received, error = _host_receives(pieces)
    assert (received, error) == _host_receives([b"".join(pieces)])
    answered = [message.id for message in received if isinstance(message, Response)]
    assert len(answered) == len(set(answered)), "a request was answered twice"
    for message in received:
        assert not isinstance(message, Request)
        _check_body(message.body)
        is_response = isinstance(message, Response)
        _structure(_RESPONSES.get(message.procedure, ResponseBase) if is_response else ContainerNotification)(
            message.body
        )


def guest_side(data: bytes) -> None:
    """What a host sends: the requests in it are given, each under an id of its own, or it is refused."""
    pieces = split(data)
    received, error = _guest_receives(pieces)
    assert (received, error) == _guest_receives([b"".join(pieces)])
    assert len({message[1] for message in received}) == len(received)
    for message in received:
        assert isinstance(message, Request)
        try:
            body = parse(message.payload)
        except WireError:
            continue
        _check_body(body)
        for model in _REQUESTS:
            _structure(model)(body)


def log(data: bytes) -> None:
    """What a guest writes to its log: all of it is passed on, in whatever pieces it comes."""
    pieces = split(data)
    items = _log_items(pieces)
    assert items == _log_items([b"".join(pieces)])
    for item in items:
        if isinstance(item, LogEntry):
            _encodable(item.fields)
            assert item.time is None or item.time.tzinfo is not None
        else:
            assert all(c in "\n\t" or c.isprintable() for c in item.text)


def ttrpc_client(data: bytes) -> None:
    """What a ttrpc server sends: answers, each to an open call, or it is refused."""
    pieces = split_plainly(data)

    def receive(pieces: list[bytes]) -> tuple[list[object], str]:
        side = ttrpc.ClientSide()
        for _ in range(4):
            side.request(ttrpc.Request("Service", "Method"))
        return _ttrpc_receives(side, pieces)

    received, error = receive(pieces)
    assert (received, error) == receive([b"".join(pieces)])
    answered = [each.stream_id for each in received if isinstance(each, ttrpc.Answer)]
    assert len(answered) == len({*answered} & {1, 3, 5, 7}), "a call was answered twice, or never made"


def ttrpc_server(data: bytes) -> None:
    """What a ttrpc client sends: calls, each under a greater id, or a refusal, or the connection ends."""
    pieces = split_plainly(data)
    side = ttrpc.ServerSide(8)
    received, error = _ttrpc_receives(side, pieces)
    assert (received, error) == _ttrpc_receives(ttrpc.ServerSide(8), [b"".join(pieces)])
    calls = [each for each in received if isinstance(each, ttrpc.Call)]
    assert side.open == {call.stream_id for call in calls}
    assert len(calls) <= 8
    assert [call.stream_id for call in calls] == sorted({call.stream_id for call in calls})
    for call in calls:
        assert isinstance(side.respond(call.stream_id, call.request.payload), bytes)
        with suppress(WireError, RPCError):
            endpoint_of(decode(AddNIC, call.request.payload).endpoint or b"-", "AddNIC")


def _ttrpc_receives(
    side: ttrpc.ClientSide | ttrpc.ServerSide, pieces: list[bytes]
) -> tuple[list[object], str]:
    received: list[object] = []
    try:
        for piece in pieces:
            received += side.receive(piece)
            assert side._decoder.buffered <= ttrpc.HEADER_SIZE + ttrpc.MAX_PAYLOAD
    except WireError as error:
        return received, str(error)
    return received, ""


def split_plainly(data: bytes) -> list[bytes]:
    """Give the stream of an input, without recipes, in the pieces of an input."""
    return split(bytes([data[0] & ~_RECIPE]) + data[1:]) if data else []


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "host": host_side,
    "guest": guest_side,
    "log": log,
    "ttrpc-client": ttrpc_client,
    "ttrpc-server": ttrpc_server,
    "mux-host": mux_host,
    "mux-guest": mux_guest,
}


def split(data: bytes) -> list[bytes]:
    """Give the stream of an input, in the pieces of an input."""
    how = data[0] if data else 0
    stream = b"".join(_cook(data[1:])) if how & _RECIPE else data[1:]
    size = how & ~_RECIPE or max(1, len(stream))
    return [stream[i : i + size] for i in range(0, len(stream), size)]


def _cook(recipe: bytes) -> Iterator[bytes]:
    while len(recipe) >= 4:
        kind, message_id, size = struct.unpack_from("<BBH", recipe)
        body, recipe = recipe[4 : 4 + size], recipe[4 + size :]
        yield struct.pack("<IIQ", _TYPES[kind % len(_TYPES)], HEADER_SIZE + len(body), message_id) + body


def _host_receives(pieces: list[bytes]) -> Received:
    host = HostSide()
    for procedure in OPEN:
        host.request(procedure, {})
    received: list[Response | Notification | Request] = []
    try:
        for piece in pieces:
            received += host.receive(piece)
            assert host._decoder.buffered < MAX_MESSAGE_SIZE
        host.end()
    except WireError as e:
        return received, str(e)
    return received, ""


def _guest_receives(pieces: list[bytes]) -> Received:
    guest = GuestSide(MAX_MESSAGE_SIZE)
    received: list[Response | Notification | Request] = []
    try:
        for piece in pieces:
            received += guest.receive(piece)
            assert guest._decoder.buffered < MAX_MESSAGE_SIZE
    except WireError as e:
        return received, str(e)
    return received, ""


def _log_items(pieces: list[bytes]) -> list[LogEntry | LogText]:
    parser = LogParser()
    items: list[LogEntry | LogText] = []
    for piece in pieces:
        items += parser.feed(piece)
        assert len(parser.buffer) <= MAX_ENTRY_BYTES
    return [*items, *parser.end()]


def _check_body(body: dict[str, object]) -> None:
    """A body can be sent on, and is the same at the other end."""
    _encodable(body)
    assert parse(encode(Kind.REQUEST, 0, 0, body)[HEADER_SIZE:]) == body


def _encodable(value: object) -> None:
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _structure(model: type) -> Callable[[object], None]:
    def check(body: object) -> None:
        try:
            from_json(model, body)
        except SchemaError as e:
            str(e).encode()

    return check
