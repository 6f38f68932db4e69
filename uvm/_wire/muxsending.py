"""The sending half of a mux: its channels, their windows, and what is to be written. No I/O.

What is sent next follows from the state of the channels when it can be written. The rules are in
:mod:`uvm._wire.mux`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from uvm._wire import muxframes
from uvm._wire.channels import MAX_WINDOW, Buffer, Channel, Receiver
from uvm._wire.muxframes import END_MARK, HEADER, MAX_PAYLOAD, State, Welcome

#: Windows begin here and double as their channels are used, as far as the budget goes.
FIRST_WINDOW: Final = 0x4000
MIN_WINDOW: Final = 0x1000
BUDGET: Final = 0x600000
#: How many bytes :meth:`Sending.outgoing` returns, about.
BATCH: Final = 0x40000

_MAX_BUFFERS: Final = 900
#: Frames up to this size are one buffer.
_SMALL_FRAME: Final = 4096


class Sending:
    """What one end of a mux has to send.

    :param guest: this is the guest's end.
    :ivar channels: those that are open, by id.
    :ivar listening: the ports that the host listens at.
    :ivar synchronised: the two ends have met, and no connection has begun since.
    """

    def __init__(self, *, guest: bool) -> None:
        self.guest: Final = guest
        self.channels: dict[int, Channel] = {}
        self.listening: set[int] = set()
        self.synchronised: bool = False
        self._reserved = 0
        # What is to be written: this, and what can be computed from the rest.
        self._batch: deque[Buffer] = deque()
        self._welcome: tuple[bytes, bool] | None = None
        self._resets: deque[int] = deque()
        self._announcements: dict[int, bool] = {}
        self._ready: deque[Channel] = deque()

    def outgoing(self) -> Sequence[Buffer]:
        """Return the buffers that are to be written next, in order; none if there is nothing to write.

        What was written of them is to be said to :meth:`written`. They must not be changed.
        """
        if not self._batch and self.synchronised:
            self._fill()
        return self._batch

    def written(self, count: int) -> None:
        """Note that so many bytes of :meth:`outgoing` were written."""
        batch = self._batch
        while count:
            size = len(batch[0])
            if size > count:
                batch[0] = memoryview(batch[0])[count:]
                return
            batch.popleft()
            count -= size

    def consumed(self, channel: Channel, count: int) -> None:
        """Note that so many received bytes were consumed, so that others may come."""
        if not channel.gone:
            channel.receiver.consumed += count
            if channel.receiver.due:
                self._queue(channel)

    def reset(self, channel: Channel) -> None:
        """End a channel at once, in both directions; what was not sent is lost. Idempotent."""
        if not channel.gone:
            self._remove(channel)
            if not channel.opening:
                self._resets.append(channel.id)

    def _fill(self) -> None:
        batch, size = self._batch, 0
        if self._welcome:
            # Together: none of the channels that it counts may go in between.
            batch.append(Welcome(*self._welcome, len(self.channels)).encode())
            batch.extend(self._opening(channel) for channel in self.channels.values())
            self._welcome = None
        while self._resets:
            batch.append(HEADER.pack(muxframes.RESET, self._resets.popleft(), 0, 0))
        while self._announcements:
            port, listens = self._announcements.popitem()
            batch.append(HEADER.pack(muxframes.LISTEN if listens else muxframes.UNLISTEN, 0, 0, port))
        if len(batch) > 1:
            joined = b"".join(batch)
            batch.clear()
            batch.append(joined)
        while self._ready and size < BATCH and len(batch) < _MAX_BUFFERS:
            size += self._serve(self._ready.popleft())

    def _serve(self, channel: Channel) -> int:
        """Send what a channel has to send, at most one frame of bytes; return how many bytes these are."""
        channel.queued = False
        if channel.gone:
            return 0
        sender, receiver = channel.sender, channel.receiver
        if channel.opening:
            self._batch.append(self._opening(channel))
        elif receiver.due or (not self.guest and not channel.accepted):
            channel.accepted = True
            if receiver.due:
                self._widen(receiver)
            receiver.announce()
            self._batch.append(
                HEADER.pack(muxframes.ACKNOWLEDGE, channel.id, receiver.window, receiver.announced)
            )
        offset = sender.next
        pieces = sender.take(MAX_PAYLOAD)
        if size := sender.next - offset:
            self._add_data(HEADER.pack(muxframes.DATA, channel.id, size, offset), pieces, size)
        if sender.ended and sender.next == sender.end:
            self._batch.append(HEADER.pack(muxframes.END, channel.id, 0, sender.end))
            sender.next += 1
        elif sender.may_send:
            self._queue(channel)
        self._settle(channel)
        return size

    def _add_data(self, header: bytes, pieces: list[Buffer], size: int) -> None:
        if size <= _SMALL_FRAME:
            self._batch.append(b"".join((header, *pieces, END_MARK)))
        else:
            if self._batch and self._batch[-1] is END_MARK:
                self._batch.pop()
                header = END_MARK + header
            self._batch += (header, *pieces, END_MARK)

    def _opening(self, channel: Channel) -> bytes:
        channel.opening = False
        sender, receiver = channel.sender, channel.receiver
        receiver.announce()
        state = State(receiver.reached, receiver.announced, sender.base, receiver.ended, sender.done)
        return HEADER.pack(muxframes.OPEN, channel.id, receiver.window, channel.port) + state.encode()

    def _queue(self, channel: Channel) -> None:
        if not channel.queued:
            channel.queued = True
            self._ready.append(channel)

    def _forget_output(self) -> None:
        """Forget what was to be sent; the channels stay."""
        self._welcome = None
        self._batch.clear()
        self._resets.clear()
        self._ready.clear()
        for channel in self.channels.values():
            channel.queued = False

    # Windows.

    def _new_receiver(self, at: int = 0) -> Receiver:
        window = FIRST_WINDOW if self._reserved + FIRST_WINDOW <= BUDGET else MIN_WINDOW
        self._reserved += window
        return Receiver(window, at)

    def _widen(self, receiver: Receiver) -> None:
        """Double the window of a channel that is used, if there is room for it."""
        more = min(receiver.window, MAX_WINDOW - receiver.window, BUDGET - self._reserved)
        if more > 0 and not receiver.ended:
            receiver.window += more
            self._reserved += more

    def _settle(self, channel: Channel) -> None:
        """Remove a channel that has nothing more to send or to receive."""
        if channel.sender.done and not channel.opening:
            if channel.receiver.finished and channel.receiver.announced > channel.receiver.received:
                self._remove(channel)
            elif channel.closing and not channel.receiver.ended:
                self.reset(channel)

    def _remove(self, channel: Channel) -> None:
        channel.gone = True
        self._reserved -= channel.receiver.window
        del self.channels[channel.id]
