"""The two directions of a connection over the mux: what is kept to be sent again, and what may come. No I/O.

Offsets count the bytes of a direction from its first; its end counts as one more, so that it is acknowledged
as bytes are. A :class:`Sender` keeps what the other end has not acknowledged. A :class:`Receiver` keeps
numbers only: its caller has the bytes, and says when they are consumed, which acknowledges them and so makes
room for others.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from uvm._errorroot import WireError

Buffer = bytes | bytearray | memoryview

#: The most that a direction keeps unacknowledged, whatever its other end allows.
MAX_WINDOW: Final = 0x100000
#: What a direction takes of its caller before the other end has allowed anything.
FIRST_ROOM: Final = 0x10000
#: Smaller pieces are kept in one buffer: an object for each would cost more than its bytes.
SMALL: Final = 1024
_JOINED: Final = 16 * SMALL
#: The most pieces of one frame.
_MAX_PIECES: Final = 64


class MuxError(WireError):
    """The other end of a mux broke its rules; the link is of no use any more."""


class Sender:
    """The direction to the other end.

    :ivar base: up to here the other end has acknowledged.
    :ivar next: up to here it was sent; the end included, if it was sent.
    :ivar end: up to here the caller has sent.
    :ivar limit: up to here the other end allows.
    :ivar ended: the caller has sent the end.
    :ivar starved: the caller had more than was taken.
    """

    __slots__ = ("_unacknowledged", "_unsent", "base", "end", "ended", "limit", "next", "starved")

    def __init__(self, at: int = 0) -> None:
        self._unacknowledged: deque[Buffer] = deque()
        self._unsent: deque[Buffer] = deque()
        self.base: int = at
        self.next: int = at
        self.end: int = at
        self.limit: int = at
        self.ended: bool = False
        self.starved: bool = False

    @property
    def room(self) -> int:
        """How many bytes it takes now."""
        return min(self.base + MAX_WINDOW, max(self.base + FIRST_ROOM, self.limit)) - self.end

    @property
    def done(self) -> bool:
        """Whether everything was acknowledged, the end included."""
        return self.base > self.end

    @property
    def complete(self) -> bool:
        """Whether everything was sent, the end included."""
        return self.next > self.end

    @property
    def may_send(self) -> bool:
        """Whether there is something to be sent that the other end allows."""
        if self.next < self.end:
            return self.next < self.limit
        return self.ended and self.next == self.end

    def put(self, piece: Buffer) -> None:
        """Add bytes to be sent, at most :attr:`room`."""
        self.end += len(piece)
        append(self._unsent, piece)

    def take(self, most: int) -> list[Buffer]:
        """Return what is to be sent next, as far as the other end allows."""
        most = min(most, self.limit - self.next)
        pieces: list[Buffer] = []
        while most > 0 and self._unsent and len(pieces) < _MAX_PIECES:
            piece = self._unsent.popleft()
            if isinstance(piece, bytearray):
                piece = bytes(piece)
            if len(piece) > most:
                whole = memoryview(piece)
                self._unsent.appendleft(whole[most:])
                piece = whole[:most]
            pieces.append(piece)
            append(self._unacknowledged, piece)
            self.next += len(piece)
            most -= len(piece)
        return pieces

    def acknowledge(self, offset: int) -> None:
        """Forget what the other end has acknowledged.

        :raises MuxError: it was not sent.
        """
        if offset > self.next:
            raise MuxError(f"{offset} bytes were acknowledged, of {self.next} that were sent")
        excess = min(offset, self.end) - min(self.base, self.end)
        self.base = max(self.base, offset)
        kept = self._unacknowledged
        while excess > 0:
            piece = kept.popleft()
            if len(piece) > excess:
                kept.appendleft(memoryview(bytes(piece))[excess:])
            excess -= len(piece)

    def rewind(self, offset: int) -> None:
        """Go back to what the other end has received, to send the rest of it again.

        :raises MuxError: it was acknowledged already, or never sent.
        """
        if not self.base <= offset <= self.next:
            raise MuxError(f"{offset} bytes were received, of {self.base} to {self.next}")
        excess = min(self.next, self.end) - min(offset, self.end)
        self.next = offset
        while excess > 0:
            piece = memoryview(bytes(self._unacknowledged.pop()))
            if len(piece) > excess:
                self._unacknowledged.append(piece[:-excess])
                piece = piece[-excess:]
            self._unsent.appendleft(piece)
            excess -= len(piece)


class Receiver:
    """The direction from the other end.

    :ivar window: how far ahead of what was consumed the other end may send.
    :ivar received: up to here it has come; the end is not counted.
    :ivar consumed: up to here the caller has consumed.
    :ivar limit: up to here the other end was allowed to send.
    :ivar ended: the end has come.
    :ivar announced: what was acknowledged last.
    """

    __slots__ = ("announced", "consumed", "ended", "limit", "received", "window")

    def __init__(self, window: int, at: int = 0) -> None:
        self.window: int = window
        self.received: int = at
        self.consumed: int = at
        self.announced: int = at
        self.limit: int = at + window
        self.ended: bool = False

    @property
    def finished(self) -> bool:
        """Whether the end has come and everything before it was consumed."""
        return self.ended and self.consumed == self.received

    @property
    def reached(self) -> int:
        """Up to here it has come, the end included."""
        return self.received + self.ended

    @property
    def acknowledged(self) -> int:
        """What is to be acknowledged."""
        return self.consumed + self.finished

    @property
    def due(self) -> bool:
        """Whether enough was consumed for an acknowledgement of its own."""
        ahead = self.acknowledged - self.announced
        return ahead > 0 and (ahead * 2 >= self.window or self.finished)

    def take(self, offset: int, size: int) -> None:
        """Note bytes that have come.

        :raises MuxError: they may not come now.
        """
        if offset != self.received or self.ended or not size:
            raise MuxError(f"{size} bytes came at {offset}, not at {self.received}")
        if offset + size > self.limit:
            raise MuxError(f"{offset + size} bytes came where {self.limit} are allowed")
        self.received += size

    def end(self, offset: int) -> None:
        """Note the end.

        :raises MuxError: it may not come now.
        """
        if offset != self.received or self.ended:
            raise MuxError(f"the end came at {offset}, not at {self.received}")
        self.ended = True

    def announce(self) -> None:
        """Note that what was consumed is acknowledged, which allows more."""
        self.announced = self.acknowledged
        self.limit = max(self.limit, self.announced + self.window)


class Channel:
    """One connection over the mux.

    :ivar id: the guest chose it.
    :ivar port: the port of the host that it was opened to.
    :ivar lost: how many bytes of the guest an earlier owner of the mux had consumed; 0 where there was none.
    :ivar owner: what a caller hangs on it.
    :ivar gone: nothing can be sent or will arrive any more.
    """

    __slots__ = (
        "accepted",
        "closing",
        "gone",
        "id",
        "lost",
        "opening",
        "owner",
        "port",
        "queued",
        "receiver",
        "sender",
    )

    def __init__(self, id: int, port: int, sender: Sender, receiver: Receiver) -> None:
        self.id: int = id
        self.port: int = port
        self.sender: Sender = sender
        self.receiver: Receiver = receiver
        self.lost: int = 0
        self.owner: Any = None
        self.gone: bool = False
        self.accepted: bool = False
        # Of the mux: it is to be opened; closed by its caller; queued, since it has something to send.
        self.opening: bool = False
        self.closing: bool = False
        self.queued: bool = False

    def __repr__(self) -> str:
        return f"<Channel {self.id} to port {self.port}{' (gone)' if self.gone else ''}>"

    @property
    def over(self) -> bool:
        """Whether both directions have ended, and only acknowledgements may be missing."""
        return self.sender.complete and self.receiver.finished


def append(pieces: deque[Buffer], piece: Buffer) -> None:
    """Add bytes to a queue; those of few bytes become one object with others."""
    last = pieces[-1] if pieces else None
    if len(piece) >= SMALL:
        pieces.append(piece)
    elif isinstance(last, bytearray) and len(last) < _JOINED:
        last += piece
    elif last is not None and len(last) < SMALL:
        pieces[-1] = bytearray(b"".join((last, piece)))
    else:
        pieces.append(bytes(piece))
