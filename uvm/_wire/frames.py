r"""The GCS protocol as bytes: what a message is, and what each side may send when. No I/O.

Theory of operation
-------------------

Each message is a header of 16 bytes, little-endian, and a JSON object in UTF-8::

     0        4        8                16
    +--------+--------+-----------------+---------------------+
    | type   | size   | id              | JSON, size - 16     |
    +--------+--------+-----------------+---------------------+

    type  =  kind (4 bits) | category (8) | procedure (12) | version (8)

The host sends requests, each under an id of its own. The guest answers each of them once, in any order, under
the same id and procedure, and sends notifications, which answer no request.

:class:`HostSide` and :class:`GuestSide` are the two ends. Each is fed received bytes, in pieces of any size,
and returns the messages in them, one by one; each makes the bytes of what is to be sent. A side knows its
open requests, so that it detects an answer to none of them, a second answer, or one of the wrong procedure.

Received bytes are not trusted: bytes that are no message of the protocol raise :class:`WireError` and nothing
else, before memory is allocated for them, and after the messages before them were returned. After that the
side cannot be used any more.

Source: hcsshim internal/gcs/prot/protocol.go and bridge.go.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Any, Final, NamedTuple, NoReturn

from uvm._errorroot import WireError

#: The largest message that a host accepts, header included (hcsshim's ``MaxMsgSize``).
MAX_MESSAGE_SIZE: Final = 0x10000
#: The largest message that our guest side accepts: policies, with all that is signed, are larger than
#: answers.
MAX_REQUEST_SIZE: Final = 0x1000000
#: How deeply the objects and lists of a message may nest.
MAX_DEPTH: Final = 64

_to_text: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False, allow_nan=False).encode

_HEADER: Final = Struct("<IIQ")
HEADER_SIZE: Final = _HEADER.size

_KIND_MASK: Final = 0xF0000000


class Kind(enum.IntEnum):
    """What a message is: the upper four bits of its type."""

    REQUEST = 0x10000000
    RESPONSE = 0x20000000
    NOTIFICATION = 0x30000000


_FROM_GUEST: Final = frozenset({Kind.RESPONSE, Kind.NOTIFICATION})
_FROM_HOST: Final = frozenset({Kind.REQUEST})


class Procedure(enum.IntEnum):
    """What a request asks for: category, procedure and version of a message's type."""

    CREATE = 0x00100101
    START = 0x00100201
    SHUTDOWN_GRACEFUL = 0x00100301
    SHUTDOWN_FORCED = 0x00100401
    EXECUTE_PROCESS = 0x00100501
    WAIT_FOR_PROCESS = 0x00100601
    SIGNAL_PROCESS = 0x00100701
    RESIZE_CONSOLE = 0x00100801
    GET_PROPERTIES = 0x00100901
    MODIFY_SETTINGS = 0x00100A01
    NEGOTIATE_PROTOCOL = 0x00100B01
    DUMP_STACKS = 0x00100C01
    DELETE_CONTAINER_STATE = 0x00100D01
    UPDATE_CONTAINER = 0x00100E01
    LIFECYCLE_NOTIFICATION = 0x00100F01
    MODIFY_SERVICE_SETTINGS = 0x00200101


#: The procedure of the only notification: a container's exit.
NOTIFY_CONTAINER: Final = 0x00100101

#: The names in hcsshim's guest of the procedures that it knows.
GO_NAMES: Final = {
    procedure.value: f"ComputeSystem{procedure.name.title().replace('_', '')}V1"
    for procedure in Procedure
    if procedure <= Procedure.DELETE_CONTAINER_STATE
}
_NAMES: Final = {p.value: p.name.lower().replace("_", " ") for p in Procedure}


def procedure_name(procedure: int) -> str:
    """Return the name of a procedure, known or not, for error messages."""
    return _NAMES.get(procedure) or f"procedure 0x{procedure:08X}"


class Frame(NamedTuple):
    """A message whose body has not been decoded."""

    kind: int
    procedure: int
    id: int
    payload: bytes


class Request(NamedTuple):
    """A request as received by a guest; ``procedure`` may be unknown. See :func:`parse`."""

    procedure: int
    id: int
    payload: bytes


class Response(NamedTuple):
    """An answer as received by a host."""

    procedure: int
    id: int
    body: dict[str, Any]


class Notification(NamedTuple):
    """A notification as received by a host."""

    procedure: int
    body: dict[str, Any]


def encode(kind: int, procedure: int, message_id: int, body: str | Mapping[str, Any]) -> bytes:
    """Return a message as bytes.

    :param body: a JSON object, or the text of one.
    :raises TypeError: the body holds a value that JSON cannot represent.
    :raises ValueError: the body holds a number that is not finite, nests too deeply, or is too large for the
        protocol.
    """
    try:
        payload = (body if isinstance(body, str) else _to_text(body)).encode()
    except RecursionError:
        raise ValueError("the body of a message nests too deeply, or contains itself") from None
    size = HEADER_SIZE + len(payload)
    if size > 0xFFFFFFFF:
        raise ValueError(f"a message of {size} bytes is too large for the protocol")
    return _HEADER.pack(kind | procedure, size, message_id) + payload


def parse(payload: bytes) -> dict[str, Any]:
    """Return the decoded body of a message.

    :raises WireError: the body is not UTF-8 or no JSON object, nests too deeply, or holds an infinite number.
    """
    try:
        body = _read_json(payload.decode())
    except (ValueError, RecursionError) as e:
        # Without the cause, which holds the whole text: it may be secret.
        raise WireError(f"the body of a message is not JSON: {_reason(e)}") from None
    if body.__class__ is not dict:
        raise WireError(f"the body of a message is {type(body).__name__}, not an object")
    # Few brackets cannot nest deeply, and counting them is cheap.
    if payload.count(b"{") + payload.count(b"[") > MAX_DEPTH:
        _check_depth(body)
    if _SURROGATE.search(payload):
        body = _without_surrogates(body)
    return body  # type: ignore[no-any-return]


class FrameDecoder:
    """Splits a stream of bytes into messages.

    :param kinds: the kinds that are allowed.
    :param max_size: the largest message to accept, header included.
    """

    __slots__ = ("_buffer", "_kinds", "_max_size", "_wanted")

    def __init__(self, kinds: frozenset[Kind], max_size: int = MAX_MESSAGE_SIZE) -> None:
        self._kinds = kinds
        self._max_size = max_size
        self._buffer = bytearray()
        self._wanted = HEADER_SIZE

    @property
    def buffered(self) -> int:
        """The number of bytes received of an unfinished message."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the messages that the bytes complete.

        :raises WireError: when the iterator reaches an invalid header.
        """
        buffer = self._buffer
        buffer += data
        while len(buffer) >= self._wanted:
            message_type, size, message_id = _HEADER.unpack_from(buffer)
            kind = message_type & _KIND_MASK
            if kind not in self._kinds:
                raise WireError(f"a message of type 0x{message_type:08X} is not allowed here")
            if not HEADER_SIZE <= size <= self._max_size:
                raise WireError(f"a message has {size} bytes; at most {self._max_size} are accepted")
            if len(buffer) < size:
                self._wanted = size
                return
            payload = bytes(buffer[HEADER_SIZE:size])
            del buffer[:size]
            self._wanted = HEADER_SIZE
            yield Frame(kind, message_type & ~_KIND_MASK, message_id, payload)


class HostSide:
    """The host's end of a connection."""

    __slots__ = ("_decoder", "_next_id", "_open")

    def __init__(self) -> None:
        self._next_id = 0
        self._open: dict[int, int] = {}
        self._decoder = FrameDecoder(_FROM_GUEST)

    @property
    def open(self) -> Mapping[int, int]:
        """The procedures of the unanswered requests, by id."""
        return self._open

    def request(self, procedure: int, body: str | Mapping[str, Any]) -> tuple[int, bytes]:
        """Open a request, and return its id and its bytes; raises like :func:`encode`."""
        request_id = self._next_id
        data = encode(Kind.REQUEST, procedure, request_id, body)
        self._next_id += 1
        self._open[request_id] = procedure
        return request_id, data

    def withdraw(self, request_id: int) -> None:
        """Forget a request whose bytes were not sent."""
        del self._open[request_id]

    def receive(self, data: bytes) -> Iterator[Response | Notification]:
        """Yield the messages in bytes received from the guest.

        :raises WireError: when the iterator reaches a message that a guest may not send now.
        """
        for frame in self._decoder.feed(data):
            yield _notification(frame) if frame.kind == Kind.NOTIFICATION else self._response(frame)

    def end(self) -> None:
        """Check that the guest's bytes do not end within a message.

        :raises WireError: they do.
        """
        if self._decoder.buffered:
            raise WireError(f"the connection ended {self._decoder.buffered} bytes into a message")

    def restart(self) -> None:
        """Continue with another connection of the same guest.

        Open requests stay open: a guest that is still processing them answers on the new connection.
        """
        self._decoder = FrameDecoder(_FROM_GUEST)

    def _response(self, frame: Frame) -> Response:
        procedure = self._open.get(frame.id)
        if procedure is None:
            raise WireError(f"an answer arrived to request {frame.id}, which is not open")
        # The sidecar of a confidential Windows guest names no procedure where it refuses.
        if frame.procedure not in (procedure, 0):
            raise WireError(
                f"request {frame.id}, {procedure_name(procedure)}, was answered as "
                f"{procedure_name(frame.procedure)}"
            )
        body = parse(frame.payload)
        del self._open[frame.id]
        return Response(procedure, frame.id, body)


def _notification(frame: Frame) -> Notification:
    if frame.procedure != NOTIFY_CONTAINER:
        raise WireError(f"a notification of an unknown kind arrived: 0x{frame.procedure:08X}")
    return Notification(frame.procedure, parse(frame.payload))


class GuestSide:
    """The guest's end of a connection.

    :param max_size: the largest message to accept from the host.
    """

    __slots__ = ("_decoder", "_open")

    def __init__(self, max_size: int = MAX_REQUEST_SIZE) -> None:
        self._decoder = FrameDecoder(_FROM_HOST, max_size)
        self._open: dict[int, int] = {}

    @property
    def open(self) -> Mapping[int, int]:
        """The procedures of the unanswered requests, by id."""
        return self._open

    def receive(self, data: bytes) -> Iterator[Request]:
        """Yield the requests in bytes received from the host.

        :raises WireError: when the iterator reaches what is no request, or has the id of an open one.
        """
        for frame in self._decoder.feed(data):
            if frame.id in self._open:
                raise WireError(f"a second request arrived under the id {frame.id}")
            self._open[frame.id] = frame.procedure
            yield Request(frame.procedure, frame.id, frame.payload)

    def respond(self, request_id: int, body: str | Mapping[str, Any]) -> bytes:
        """Return the answer to an open request; it stays open if :func:`encode` raises.

        :raises KeyError: the request is not open.
        """
        data = encode(Kind.RESPONSE, self._open[request_id], request_id, body)
        del self._open[request_id]
        return data

    def notify(self, body: str | Mapping[str, Any]) -> bytes:
        """Return the notification of a container's exit."""
        return encode(Kind.NOTIFICATION, NOTIFY_CONTAINER, 0, body)


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        _not_finite(text)
    return number


_read_json = json.JSONDecoder(parse_float=_finite, parse_constant=_not_finite).decode


def _reason(error: Exception) -> str:
    """Return what is wrong without quoting the received bytes."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    if isinstance(error, UnicodeDecodeError):
        return f"{error.reason} at byte {error.start}"
    return "it nests too deeply" if isinstance(error, RecursionError) else str(error)


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[object] = []
        for each in level:
            if isinstance(each, dict):
                deeper += each.values()
            elif isinstance(each, list):
                deeper += each
        if not deeper:
            return
        level = deeper
    if any(isinstance(each, dict | list) for each in level):
        raise WireError(f"the body of a message nests more than {MAX_DEPTH} deep")


#: An escape that may be half of a surrogate pair; alone it makes a string that UTF-8 cannot represent.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _without_surrogates(value: Any) -> Any:
    """Replace unpaired surrogates by U+FFFD, as Go's JSON does."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {_without_surrogates(k): _without_surrogates(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value
