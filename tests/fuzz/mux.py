"""Fuzz targets of the mux: what one end sends to the other.

As for the other targets, the first byte of an input says in which pieces the others come. Where its upper bit
is set, the others are a recipe for frames, each of five bytes: kind, channel, offset, and the size of the
body (little-endian) if the kind has one; and the body. Offsets count from what the channel has received, so a
fuzzer need not count.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

from tests.wire.muxes import receive
from uvm._wire.channels import MuxError
from uvm._wire.mux import Mux
from uvm._wire.muxevents import Data, Event, Greeted, Listening, NotListening
from uvm._wire.muxframes import HEADER_SIZE, MAX_CHANNELS, MAX_PAYLOAD, FrameKind
from uvm._wire.muxsending import BATCH, BUDGET, MIN_WINDOW

__all__ = ["mux_guest", "mux_host"]

_RECIPE: Final = 0x80
_PORT: Final = 1
_OPEN_STATE: Final = 28
#: The most that an end may answer: bytes for each byte that it received, and in any case.
_ANSWERED: Final = 8
_GREETING: Final = 8 * BATCH


def mux_host(data: bytes) -> None:
    """What a guest sends: it is understood or refused, the same in whatever pieces, and kept in bounds."""
    _check(data, _greeted_host)


def mux_guest(data: bytes) -> None:
    """What a host sends."""
    _check(data, _greeted_guest)


def _check(data: bytes, make: Callable[[], Mux]) -> None:
    pieces = _pieces(data)
    received = _receives(make(), pieces)
    assert received == _receives(make(), [b"".join(pieces)])


def _greeted_host() -> Mux:
    """Return a host that a guest without channels has greeted."""
    return _greeted()[0]


def _greeted_guest() -> Mux:
    """Return a guest that has opened a channel, which the host has accepted."""
    return _greeted(channels=1)[1]


def _greeted(channels: int = 0) -> tuple[Mux, Mux]:
    host, guest = Mux(guest=False), Mux(guest=True)
    host.listen(_PORT)
    host.connect(bytes(16))
    for _ in range(channels):
        guest.open(_PORT)
    for _ in range(3):
        receive(guest, _written(host))
        receive(host, _written(guest))
    return host, guest


def _receives(mux: Mux, pieces: list[bytes]) -> tuple[list[tuple[object, ...]], str]:
    seen: list[tuple[object, ...]] = []
    kept: dict[int, int] = {}
    total = 0
    try:
        for piece in pieces:
            total += len(piece)
            for event in _events(mux, piece):
                seen.append(_plain(event))
                if isinstance(event, Data):
                    kept[event.channel.id] = kept.get(event.channel.id, 0) + len(event.data)
                    assert kept[event.channel.id] <= event.channel.receiver.window
            assert mux._stop - mux._start <= HEADER_SIZE + MAX_PAYLOAD
            assert mux._reserved <= BUDGET + MIN_WINDOW * MAX_CHANNELS
    except MuxError as error:
        assert not mux.synchronised
        return seen, str(error)
    assert len(_written(mux)) <= _GREETING + _ANSWERED * total
    return seen, ""


def _events(mux: Mux, piece: bytes) -> Iterator[Event]:
    yield from receive(mux, piece)
    while mux.more:
        yield from receive(mux)


def _plain(event: Event) -> tuple[object, ...]:
    """Return an event as a value that does not depend on the end that it happened at."""
    if isinstance(event, Greeted | Listening | NotListening):
        return (type(event), *event)
    return (type(event), event[0].id, *event[1:])


def _written(mux: Mux) -> bytes:
    data = b""
    while buffers := mux.outgoing():
        part = b"".join(buffers)
        mux.written(len(part))
        data += part
    return data


def _pieces(data: bytes) -> list[bytes]:
    how = data[0] if data else 0
    stream = b"".join(_cook(data[1:])) if how & _RECIPE else data[1:]
    size = how & ~_RECIPE or max(1, len(stream))
    return [stream[i : i + size] for i in range(0, len(stream), size)]


def _cook(recipe: bytes) -> Iterator[bytes]:
    reached: dict[int, int] = {}
    while len(recipe) >= 5:
        kind, channel, offset, size = struct.unpack_from("<BBBH", recipe)
        body, recipe = recipe[5 : 5 + size], recipe[5 + size :]
        kind %= len(FrameKind) + 2
        at = reached.get(channel, 0)
        if kind == FrameKind.DATA:
            reached[channel] = at + len(body)
            yield struct.pack("<IIIQ", kind, channel, len(body), at + offset) + body + b"\0"
        elif kind == FrameKind.OPEN:
            state = body.ljust(_OPEN_STATE, b"\0")[:_OPEN_STATE]
            yield struct.pack("<IIIQ", kind, channel, size, offset) + state + b"\0"
        elif kind == FrameKind.END:
            yield struct.pack("<IIIQ", kind, channel, 0, at + offset)
        else:
            yield struct.pack("<IIIQ", kind, channel, size, offset)
            recipe = body + recipe
