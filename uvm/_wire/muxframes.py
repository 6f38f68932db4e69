"""The frames of the mux, and the greetings with which its ends meet, as bytes. No I/O.

A frame is a header of 20 bytes, little-endian, and for two kinds a payload, which ends with a zero byte::

     0        4         8        12                  20
    +--------+---------+--------+-------------------+---------------+---+
    | kind   | channel | count  | offset            | payload       | 0 |
    +--------+---------+--------+-------------------+---------------+---+

:class:`FrameKind` says what the fields mean. Offsets are below 2**56, so a header ends with a zero byte as
well: a frame of which the end is missing is known by the last byte of what follows it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Final, NamedTuple

MAX_PAYLOAD: Final = 0x10000
#: The most channels at a time.
MAX_CHANNELS: Final = 1024

HEADER: Final = Struct("<IIIQ")
HEADER_SIZE: Final = HEADER.size
#: What ends a payload, and a greeting.
END_MARK: Final = b"\0"
MAX_OFFSET: Final = 1 << 56
#: Longer than any frame or greeting; neither a header nor a payload ends with its bytes.
PADDING: Final = b"\xff" * (MAX_PAYLOAD + 2 * HEADER_SIZE)

NONCE_SIZE: Final = 16
_HOST_MAGIC: Final = b"uvm mux\x01\r\n\xf5\xd0\x9a\x17\x6b\xe2"
_GUEST_MAGIC: Final = b"uvm mux\x01\n\r\x8c\x3e\xb4\x51\x07\xd9"
_MAGIC_SIZE: Final = 16
#: Nonce, session, the last channel that the host knows, how many it has; these follow.
_HELLO: Final = Struct(f"<{NONCE_SIZE}s{NONCE_SIZE}sII")
_HELLO_ENTRY: Final = Struct("<IQ")
#: Nonce, whether the session is known, how many channels are opened again.
_WELCOME: Final = Struct(f"<{NONCE_SIZE}sII")
_STATE: Final = Struct("<QQQI")
STATE_SIZE: Final = _STATE.size
_HOST_ENDED: Final = 1
_GUEST_DONE: Final = 2


class FrameKind(enum.IntEnum):
    """What a frame is."""

    #: From the guest: a channel to the port in `offset`; `count` is its window; the payload is its state.
    OPEN = 1
    #: `count` bytes of a channel, from `offset` on.
    DATA = 2
    #: The end of a direction, whose length is `offset`.
    END = 3
    #: Everything before `offset` was consumed, and `count` bytes from there may be sent. The first accepts.
    ACKNOWLEDGE = 4
    #: The channel has gone, or is refused.
    RESET = 5
    #: From the host: it listens at the port in `offset`.
    LISTEN = 6
    #: From the host: it listens there no more.
    UNLISTEN = 7


# Members of an enum compare slowly.
OPEN, DATA, END, ACKNOWLEDGE, RESET, LISTEN, UNLISTEN = map(int, FrameKind)


class State(NamedTuple):
    """The payload of an open: how far a channel has come, as the guest knows it.

    :ivar received: up to here the guest has received, the end included.
    :ivar consumed: up to here it has consumed.
    :ivar base: up to here the host has acknowledged.
    :ivar host_ended: the end of the host is among what was received.
    :ivar guest_done: the end of the guest is among what was acknowledged.
    """

    received: int
    consumed: int
    base: int
    host_ended: bool
    guest_done: bool

    @property
    def fresh(self) -> bool:
        """Whether nothing has passed."""
        return not any(self)

    def encode(self) -> bytes:
        """Return it as a payload."""
        flags = _HOST_ENDED * self.host_ended + _GUEST_DONE * self.guest_done
        return _STATE.pack(self.received, self.consumed, self.base, flags) + END_MARK

    @classmethod
    def decode(cls, payload: bytes) -> State | None:
        """Return what a payload says; None if it cannot be."""
        received, consumed, base, flags = _STATE.unpack(payload)
        state = cls(received, consumed, base, bool(flags & _HOST_ENDED), bool(flags & _GUEST_DONE))
        sound = consumed <= received < MAX_OFFSET and base < MAX_OFFSET and flags <= 3
        return state if sound and received >= state.host_ended and base >= state.guest_done else None


class Hello(NamedTuple):
    """The host's greeting.

    :ivar nonce: random, of this connection.
    :ivar session: the nonce of the first connection of the same host.
    :ivar last_id: the last channel that the host has seen.
    :ivar known: the channels that it has, by id; up to where it has received of each.
    """

    nonce: bytes
    session: bytes
    last_id: int
    known: Mapping[int, int]

    def encode(self) -> bytes:
        """Return it as bytes, without padding."""
        entries = [_HELLO_ENTRY.pack(*entry) for entry in self.known.items()]
        hello = _HELLO.pack(self.nonce, self.session, self.last_id, len(entries))
        return b"".join((_HOST_MAGIC, hello, *entries, END_MARK))


class Welcome(NamedTuple):
    """The guest's answer.

    :ivar nonce: the hello's.
    :ivar resumed: the session is known: the host is the one of before.
    :ivar channels: how many are opened again.
    """

    nonce: bytes
    resumed: bool
    channels: int

    def encode(self) -> bytes:
        """Return it as bytes."""
        return _GUEST_MAGIC + _WELCOME.pack(*self) + END_MARK


def find_hello(buffer: bytearray) -> Hello | None:
    """Remove what comes before a hello, and the hello; return it, or None if it has not come."""
    body = _find(buffer, _HOST_MAGIC, _hello_size)
    if body is None:
        return None
    nonce, session, last_id, _ = _HELLO.unpack_from(body)
    return Hello(nonce, session, last_id, dict(_HELLO_ENTRY.iter_unpack(body[_HELLO.size :])))


def find_welcome(buffer: bytearray, nonce: bytes) -> Welcome | None:
    """Remove what comes before a welcome with this nonce, and the welcome; as :func:`find_hello`."""
    body = _find(buffer, _GUEST_MAGIC + nonce, lambda buffer: _WELCOME.size)
    if body is None:
        return None
    _, resumed, channels = _WELCOME.unpack(body)
    return Welcome(nonce, bool(resumed), channels)


def _find(buffer: bytearray, start: bytes, size_of: Callable[[bytearray], int | None]) -> bytes | None:
    """Remove a greeting and what comes before it; return its body.

    :param size_of: returns the size of the body of what begins the buffer; None if it is none.
    """
    while (at := buffer.find(start)) >= 0:
        del buffer[:at]
        size = size_of(buffer)
        if size is not None:
            end = _MAGIC_SIZE + size
            if len(buffer) <= end:
                return None
            if buffer[end : end + 1] == END_MARK:
                body = bytes(buffer[_MAGIC_SIZE:end])
                del buffer[: end + 1]
                return body
        # It was cut off: another follows.
        del buffer[:1]
    # The beginning of one may have come.
    del buffer[: max(0, len(buffer) - len(start) + 1)]
    return None


def _hello_size(buffer: bytearray) -> int | None:
    if len(buffer) < _MAGIC_SIZE + _HELLO.size:
        return _HELLO.size
    *_, count = _HELLO.unpack_from(buffer, _MAGIC_SIZE)
    return _HELLO.size + count * _HELLO_ENTRY.size if count <= MAX_CHANNELS else None
