r"""ttrpc as bytes: what a message is, and what each side may send when. No I/O.

Theory of operation
-------------------

Each message is a header of 10 bytes, big-endian, and a payload of protobuf::

     0        4        8      9      10
    +--------+--------+------+-------+------------------+
    | size   | stream | type | flags | payload          |
    +--------+--------+------+-------+------------------+

A client opens a stream with each request, under an odd id that is greater than those before. Here all calls
are unary: the server answers each request with one response, which ends the stream; any number of streams are
open at once, and are answered in any order. :class:`ClientSide` and :class:`ServerSide` are the two ends.

Received bytes are not trusted: a side raises :class:`WireError`, before memory is allocated, for what ends
the connection: a payload beyond the limit, an answer to what was never asked, data in a unary stream.
What only breaks one stream the server refuses, as containerd's does: an id of the wrong kind
or order, a request that is no protobuf, more calls at once than it serves.

Source: ``github.com/containerd/ttrpc`` (PROTOCOL.md, server.go, client.go).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from attrs import frozen

from uvm._repr import brief
from uvm._ttrpc.protobuf import Message, decode, encode, int32, int64, nested, octets, string
from uvm.errors import OptionsError, RPCCode, WireError

#: The largest payload that either side accepts.
MAX_PAYLOAD: Final = 4 << 20

_HEADER: Final = Struct(">IIBB")
HEADER_SIZE: Final = _HEADER.size


class Kind(enum.IntEnum):
    """What a message is."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


@frozen
class Request(Message):
    """The payload of a request; ``timeout_nano`` is 0 without a limit."""

    service: str = string(1)
    method: str = string(2)
    payload: bytes = octets(3)
    timeout_nano: int = int64(4)


@frozen
class Status(Message):
    """Why a call was refused (``google.rpc.Status``)."""

    code: int = int32(1)
    message: str = string(2)


@frozen
class Response(Message):
    """The payload of a response; no status, or one of code 0, is success."""

    status: Status | None = nested(1, Status)
    payload: bytes = octets(2)


class Frame(NamedTuple):
    """A message whose payload has not been decoded."""

    stream_id: int
    kind: int
    payload: bytes


class Call(NamedTuple):
    """A request as a server receives it."""

    stream_id: int
    request: Request


class Answer(NamedTuple):
    """A response as a client receives it."""

    stream_id: int
    response: Response


def frame(stream_id: int, kind: Kind, payload: bytes) -> bytes:
    """Return a message as bytes."""
    return _HEADER.pack(len(payload), stream_id, kind, 0) + payload


class FrameDecoder:
    """Splits a stream of bytes into messages."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def buffered(self) -> int:
        """The number of bytes received of an unfinished message."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the messages that the bytes complete.

        :raises WireError: when the iterator reaches a message that is too large.
        """
        buffer = self._buffer
        buffer += data
        while len(buffer) >= HEADER_SIZE:
            size, stream_id, kind, _ = _HEADER.unpack_from(buffer)
            if size > MAX_PAYLOAD:
                raise WireError(f"a ttrpc message has {size} bytes; at most {MAX_PAYLOAD} are accepted")
            end = HEADER_SIZE + size
            if len(buffer) < end:
                return
            payload = bytes(buffer[HEADER_SIZE:end])
            del buffer[:end]
            yield Frame(stream_id, kind, payload)

    def end(self) -> None:
        """Check that the bytes do not end within a message.

        :raises WireError: they do.
        """
        if self._buffer:
            raise WireError(f"the connection ended {len(self._buffer)} bytes into a message")


class ClientSide:
    """The end of a connection that asks."""

    __slots__ = ("_decoder", "_next_id", "_open")

    def __init__(self) -> None:
        self._decoder = FrameDecoder()
        self._next_id = 1
        self._open: set[int] = set()

    def request(self, request: Request) -> tuple[int, bytes]:
        """Open a stream, and return its id and the bytes of its request.

        :raises OptionsError: the request has no form in the protocol, or is too large for it.
        """
        payload = encode(request)
        if len(payload) > MAX_PAYLOAD:
            raise OptionsError(
                f"{request.service}.{request.method}: {len(payload)} bytes are asked with, and may be at most"
                f" {MAX_PAYLOAD}; nothing was sent"
            )
        stream_id = self._next_id
        self._next_id += 2
        self._open.add(stream_id)
        return stream_id, frame(stream_id, Kind.REQUEST, payload)

    def abandon(self, stream_id: int) -> None:
        """Close a stream whose answer is not wanted any more; it is dropped if it comes."""
        self._open.discard(stream_id)

    def receive(self, data: bytes) -> Iterator[Answer]:
        """Yield the answers in bytes received from the server.

        :raises WireError: when the iterator reaches what a server may not send now.
        """
        for stream_id, kind, payload in self._decoder.feed(data):
            if kind != Kind.RESPONSE:
                raise WireError(f"a ttrpc server sent a message of type {kind}, not a response")
            if stream_id % 2 == 0 or stream_id >= self._next_id:
                raise WireError(f"an answer arrived on stream {stream_id}, on which nothing was asked")
            # One that was abandoned may be answered all the same.
            if stream_id in self._open:
                response = decode(Response, payload)
                self._open.discard(stream_id)
                yield Answer(stream_id, response)

    def end(self) -> None:
        """Check that the server's bytes do not end within a message; raises WireError."""
        self._decoder.end()


class ServerSide:
    """The end of a connection that answers.

    :param max_open: how many calls it serves at once; the requests are no larger together than one may be.
    """

    __slots__ = ("_decoder", "_last_id", "_max_open", "_open")

    def __init__(self, max_open: int) -> None:
        self._decoder = FrameDecoder()
        self._last_id = 0
        self._max_open = max_open
        # With the sizes of their requests.
        self._open: dict[int, int] = {}

    @property
    def open(self) -> frozenset[int]:
        """The streams that were not answered."""
        return frozenset(self._open)

    def receive(self, data: bytes) -> Iterator[Call | bytes]:
        """Yield the calls in bytes received from the client; for one that is refused, the bytes to send.

        :raises WireError: when the iterator reaches what a client may not send.
        """
        for stream_id, kind, payload in self._decoder.feed(data):
            if kind == Kind.REQUEST:
                yield self._opened(stream_id, payload)
            elif kind in (Kind.RESPONSE, Kind.DATA):
                raise WireError(f"a ttrpc client sent a message of type {kind}, not a request")

    def respond(self, stream_id: int, payload: bytes) -> bytes:
        """Return the response to an open stream.

        :raises KeyError: the stream is not open.
        """
        response = encode(Response(payload=payload))
        if len(response) > MAX_PAYLOAD:
            text = f"message length {len(response)} exceed maximum message size of {MAX_PAYLOAD}"
            return self.refuse(stream_id, RPCCode.RESOURCE_EXHAUSTED, text)
        del self._open[stream_id]
        return frame(stream_id, Kind.RESPONSE, response)

    def refuse(self, stream_id: int, code: int, text: str) -> bytes:
        """Return the refusal of an open stream.

        :raises KeyError: the stream is not open.
        """
        del self._open[stream_id]
        return _refusal(stream_id, code, text)

    def _opened(self, stream_id: int, payload: bytes) -> Call | bytes:
        if stream_id % 2 != 1:
            text = "StreamID must be odd for client initiated streams"
            return _refusal(stream_id, RPCCode.INVALID_ARGUMENT, text)
        if stream_id <= self._last_id:
            text = "StreamID cannot be re-used and must increment"
            return _refusal(stream_id, RPCCode.INVALID_ARGUMENT, text)
        self._last_id = stream_id
        if len(self._open) >= self._max_open or sum(self._open.values()) + len(payload) > MAX_PAYLOAD:
            text = f"{self._max_open} calls of {MAX_PAYLOAD} bytes in all are served at once, and no more"
            return _refusal(stream_id, RPCCode.RESOURCE_EXHAUSTED, text)
        try:
            request = decode(Request, payload)
        except WireError as error:
            return _refusal(stream_id, RPCCode.INVALID_ARGUMENT, f"unmarshal request error: {error}")
        self._open[stream_id] = len(payload)
        return Call(stream_id, request)


def _refusal(stream_id: int, code: int, text: str) -> bytes:
    # Surrogates, which protobuf has no form for, may come from names of files.
    status = Status(code, brief(text.encode(errors="replace").decode()))
    return frame(stream_id, Kind.RESPONSE, encode(Response(status)))
