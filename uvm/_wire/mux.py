r"""Many connections over one pair of byte pipes, such as a port of virtio-serial. Both ends; no I/O.

Theory of operation
-------------------

The guest opens channels to ports of the host. Each channel has two directions, each with its own end, and a
window: what was sent and not acknowledged. Bytes are acknowledged when the receiver's caller has *consumed*
them, and kept by the sender until then. So the window bounds what is kept at both ends, one slow channel
stops no other, and a link that broke can go on.

What it all looks like as bytes is in :mod:`~uvm._wire.muxframes`.

**Synchronisation.** A host that connects sends :data:`PADDING`, bytes 0xFF, longer than any frame; then a
*hello*. Whatever half a frame an earlier connection left in the guest is completed by padding, which shows;
the guest drops it and looks for the hello, which no payload can be taken for. It answers with a *welcome*,
which has the random nonce of the hello: what comes before that is left over, and the host skips it.

**Resumption.** After a welcome the guest opens all its channels again, with what it has received and what was
acknowledged to it. The *session* in a hello says whether the host is the one of before:

- the same host goes on: each end sends again what the other has not received; no byte is lost or comes twice;
- another host, after the end of the first, takes the channels over. What its predecessor had acknowledged is
  lost to it, and :attr:`Channel.lost` says how much that is; everything else comes.

**Bounds.** The windows of a host are :data:`BUDGET` together, and :data:`MIN_WINDOW` for each channel beyond.
What is to be sent is computed when it can be written, from the state of the channels, so nothing that the
other end does queues more than one frame of each kind for each channel, and :data:`MAX_CHANNELS` refusals.
What breaks a rule raises :class:`MuxError`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from uvm._wire.channels import MAX_WINDOW, Buffer, Channel, MuxError, Receiver, Sender
from uvm._wire.muxevents import (
    Accepted,
    Data,
    Ended,
    Event,
    Greeted,
    Listening,
    NotListening,
    Opened,
    Reset,
    Writable,
)
from uvm._wire.muxframes import (
    END_MARK,
    HEADER,
    HEADER_SIZE,
    MAX_CHANNELS,
    MAX_OFFSET,
    MAX_PAYLOAD,
    NONCE_SIZE,
    PADDING,
    STATE_SIZE,
    FrameKind,
    Hello,
    State,
    Welcome,
    find_hello,
    find_welcome,
)

__all__ = [
    "Accepted",
    "Channel",
    "Data",
    "Ended",
    "Event",
    "Greeted",
    "Listening",
    "Mux",
    "MuxError",
    "NONCE_SIZE",
    "NotListening",
    "Opened",
    "Reset",
    "Writable",
]

#: Windows begin here and double as their channels are used, as far as the budget goes.
FIRST_WINDOW: Final = 0x4000
MIN_WINDOW: Final = 0x1000
BUDGET: Final = 0x600000
#: How many bytes :meth:`Mux.outgoing` returns, about.
BATCH: Final = 0x40000
#: How many frames :meth:`Mux.received` handles before its caller may do something else.
FRAMES: Final = 512

#: What has come and was not handled: at most a frame is kept.
_INBOX: Final = 0x32000
_MAX_BUFFERS: Final = 900
#: Frames up to this size are one buffer.
_SMALL_FRAME: Final = 4096

# Members of an enum compare slowly.
_OPEN: Final = int(FrameKind.OPEN)
_DATA: Final = int(FrameKind.DATA)
_END: Final = int(FrameKind.END)
_ACKNOWLEDGE: Final = int(FrameKind.ACKNOWLEDGE)
_RESET: Final = int(FrameKind.RESET)
_LISTEN: Final = int(FrameKind.LISTEN)
_UNLISTEN: Final = int(FrameKind.UNLISTEN)


class Mux:
    """One end of a mux.

    :param guest: this is the guest's end.
    :ivar channels: those that are open, by id.
    :ivar listening: the ports that the host listens at.
    :ivar synchronised: the two ends have met, and no connection has begun since.
    :ivar more: :meth:`received` has not handled all that has come; it is to be called again.
    """

    synchronised: bool
    more: bool

    def __init__(self, *, guest: bool) -> None:
        self.guest: Final = guest
        self.channels: dict[int, Channel] = {}
        self.listening: set[int] = set()
        self.synchronised = False
        self.more = False
        self._error: MuxError | None = None
        self._inbox = memoryview(bytearray(_INBOX))
        self._start = self._stop = 0
        self._session = b""
        self._nonce = b""
        self._last_id = 0
        self._reserved = 0
        # Of the frames after a welcome: how many opens are to come, and whose channels have not.
        self._reopening = 0
        self._unseen: dict[int, Channel] = {}
        # What is to be written: this, and what can be computed from the rest.
        self._batch: deque[Buffer] = deque()
        self._welcome: tuple[bytes, bool] | None = None
        self._resets: deque[int] = deque()
        self._announcements: dict[int, bool] = {}
        self._ready: deque[Channel] = deque()

    # The link.

    def connect(self, nonce: bytes) -> None:
        """Begin a connection, at the host: it has just connected, for the first time or again.

        :param nonce: so many random bytes, new ones for each connection.
        """
        assert not self.guest
        assert len(nonce) == NONCE_SIZE
        self._session = self._session or nonce
        self._nonce = nonce
        self._forget_input()
        self._restart()
        known = {channel.id: channel.receiver.reached for channel in self.channels.values()}
        self._batch += (PADDING, Hello(nonce, self._session, self._last_id, known).encode())

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

    def space(self) -> memoryview:
        """Return where bytes from the other end may be read into, before :meth:`received` is called.

        It is at least 128 KiB, unless :attr:`more` is true.
        """
        if self._start:
            left = self._stop - self._start
            self._inbox[:left] = self._inbox[self._start : self._stop]
            self._start, self._stop = 0, left
        return self._inbox[self._stop :]

    def received(self, count: int, frames: int = FRAMES) -> list[Event]:
        """Return what the bytes mean that were read into :meth:`space`.

        At most `frames` frames are handled; if :attr:`more` is true then, call it again, for 0 bytes.

        :raises MuxError: the other end broke a rule, after what came before was returned. Nothing is
            understood before a new connection.
        """
        self._raise_kept()
        events: list[Event] = []
        self._stop += count
        self._handle(events, frames)
        return events

    def receive(self, data: Buffer = b"", frames: int = FRAMES) -> list[Event]:
        """Return what bytes mean, as :meth:`received` does, which saves a copy."""
        self._raise_kept()
        events: list[Event] = []
        rest = memoryview(data)
        while True:
            space = self.space()
            part, rest = rest[: len(space)], rest[len(space) :]
            space[: len(part)] = part
            self._stop += len(part)
            self._handle(events, frames)
            if not rest or self._error is not None:
                return events

    # Ports, at the host.

    def listen(self, port: int) -> None:
        """Listen at a port: what the guest opens to it is accepted. What it opens to others is refused."""
        self.listening.add(port)
        self._announcements[port] = True

    def unlisten(self, port: int) -> None:
        """Listen at a port no more."""
        self.listening.discard(port)
        self._announcements[port] = False

    # Channels.

    def open(self, port: int) -> Channel:
        """Open a channel to a port of the host, at the guest; it may be sent to at once.

        :raises ConnectionRefusedError: :data:`MAX_CHANNELS` are open.
        """
        assert self.guest
        if len(self.channels) >= MAX_CHANNELS:
            raise ConnectionRefusedError(f"{MAX_CHANNELS} connections with the host are open, the most")
        self._last_id += 1
        channel = Channel(self._last_id, port, Sender(), self._new_receiver())
        channel.opening = True
        self.channels[channel.id] = channel
        self._queue(channel)
        return channel

    def send(self, channel: Channel, data: Buffer) -> int:
        """Send bytes; return how many of them were taken. :class:`Writable` comes when others would be.

        They are kept, not copied: they must not be changed.

        :raises ConnectionResetError: the channel has gone.
        :raises BrokenPipeError: its end was sent.
        """
        sender = channel.sender
        if channel.gone:
            raise ConnectionResetError(f"the connection to port {channel.port} was reset")
        if sender.ended:
            raise BrokenPipeError(f"the connection to port {channel.port} was closed")
        room = sender.room
        if len(data) > room:
            sender.starved = True
            if room <= 0:
                return 0
            data = memoryview(data)[:room]
        if data:
            sender.put(data)
            self._queue(channel)
        return len(data)

    def send_eof(self, channel: Channel) -> None:
        """End our direction, after what was sent. Idempotent."""
        channel.sender.ended = True
        self._queue(channel)

    def consumed(self, channel: Channel, count: int) -> None:
        """Note that so many received bytes were consumed, so that others may come."""
        if not channel.gone:
            channel.receiver.consumed += count
            if channel.receiver.due:
                self._queue(channel)

    def close(self, channel: Channel) -> None:
        """End our direction after what was sent, and take nothing more: no event of it comes. Idempotent."""
        if not channel.gone:
            channel.closing = True
            channel.receiver.consumed = channel.receiver.received
            self.send_eof(channel)

    def reset(self, channel: Channel) -> None:
        """End a channel at once, in both directions; what was not sent is lost. Idempotent."""
        if not channel.gone:
            self._remove(channel)
            if not channel.opening:
                self._resets.append(channel.id)

    # What is sent.

    def _fill(self) -> None:
        batch, size = self._batch, 0
        if self._welcome:
            # Together: none of the channels that it counts may go in between.
            batch.append(Welcome(*self._welcome, len(self.channels)).encode())
            batch.extend(self._opening(channel) for channel in self.channels.values())
            self._welcome = None
        while self._resets:
            batch.append(HEADER.pack(_RESET, self._resets.popleft(), 0, 0))
        while self._announcements:
            port, listens = self._announcements.popitem()
            batch.append(HEADER.pack(_LISTEN if listens else _UNLISTEN, 0, 0, port))
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
            self._batch.append(HEADER.pack(_ACKNOWLEDGE, channel.id, receiver.window, receiver.announced))
        offset = sender.next
        pieces = sender.take(MAX_PAYLOAD)
        if size := sender.next - offset:
            self._add_data(HEADER.pack(_DATA, channel.id, size, offset), pieces, size)
        if sender.ended and sender.next == sender.end:
            self._batch.append(HEADER.pack(_END, channel.id, 0, sender.end))
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
        return HEADER.pack(_OPEN, channel.id, receiver.window, channel.port) + state.encode()

    def _queue(self, channel: Channel) -> None:
        if not channel.queued:
            channel.queued = True
            self._ready.append(channel)

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

    # Synchronisation.

    def _restart(self) -> None:
        """Forget what was to be sent; the channels stay."""
        self.synchronised = False
        self.more = False
        self._welcome = None
        self._batch.clear()
        self._resets.clear()
        self._ready.clear()
        for channel in self.channels.values():
            channel.queued = False

    def _forget_input(self) -> None:
        self._start = self._stop = 0
        self._error = None

    def _synchronise(self, events: list[Event]) -> bool:
        """Look for the other end's greeting; return whether it has come."""
        come = bytearray(self._inbox[self._start : self._stop])
        if self.guest:
            if hello := find_hello(come):
                self._meet_host(hello, events)
        elif welcome := find_welcome(come, self._nonce):
            self._meet_guest(welcome, events)
        self._start = self._stop - len(come)
        return self.synchronised

    def _meet_host(self, hello: Hello, events: list[Event]) -> None:
        """Open all channels again, where the host is to go on."""
        nonce, session, last_id, known = hello
        resumed = session == self._session
        self._restart()
        self._session = session
        self._announcements.clear()
        self.listening.clear()
        events.append(Greeted(resumed))
        for channel in list(self.channels.values()):
            if resumed and channel.id not in known and channel.id <= last_id:
                self._lose(channel, events)
                continue
            sender = channel.sender
            sender.rewind(known.get(channel.id, 0) if resumed else sender.base)
            sender.limit = sender.next
            channel.opening = True
            channel.accepted = False
            self._queue(channel)
        self._welcome = (nonce, resumed)
        self.synchronised = True

    def _meet_guest(self, welcome: Welcome, events: list[Event]) -> None:
        """Await the channels that the guest opens again."""
        if welcome.channels > MAX_CHANNELS:
            raise MuxError(f"the guest has {welcome.channels} connections")
        self._reopening = welcome.channels
        events.append(Greeted(welcome.resumed))
        if not welcome.resumed:
            self._last_id = 0
            for channel in list(self.channels.values()):
                self._lose(channel, events)
        self._unseen = dict(self.channels)
        self._announcements = dict.fromkeys(self.listening, True)
        self.synchronised = True
        if not self._reopening:
            self._forget_unseen(events)

    def _lose(self, channel: Channel, events: list[Event]) -> None:
        """Remove a channel that the other end does not know any more."""
        self._remove(channel)
        if not channel.over and not channel.closing:
            events.append(Reset(channel))

    def _forget_unseen(self, events: list[Event]) -> None:
        unseen, self._unseen = self._unseen, {}
        for channel in unseen.values():
            if not channel.gone:
                self._lose(channel, events)

    # What comes.

    def _raise_kept(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            self.more = False
            raise error

    def _handle(self, events: list[Event], frames: int) -> None:
        """Handle what has come. A broken rule is raised by the next call if events are returned first."""
        self.more = False
        try:
            while self.synchronised or self._synchronise(events):
                if self._read_frames(events, frames):
                    return
        except MuxError as failure:
            self._forget_input()
            self._restart()
            if not events:
                raise
            self._error, self.more = failure, True

    def _read_frames(self, events: list[Event], frames: int) -> bool:
        """Handle the frames in the buffer; return whether that is all, for now."""
        view, stop = self._inbox, self._stop
        while stop - self._start >= HEADER_SIZE:
            if not frames:
                self.more = True
                break
            frames -= 1
            at = self._start
            kind, channel_id, count, offset = HEADER.unpack_from(view, at)
            if offset >= MAX_OFFSET:
                return self._cut_off("a frame's header")
            payload = count if kind == _DATA else STATE_SIZE if kind == _OPEN else -1
            if payload > MAX_PAYLOAD:
                raise MuxError(f"a frame has {payload} bytes, of at most {MAX_PAYLOAD}")
            end = at + HEADER_SIZE + payload + 1
            if end > stop:
                break
            self._start = end
            if payload < 0:
                self._take(kind, channel_id, count, offset, b"", events)
                continue
            if view[end - 1]:
                return self._cut_off("a frame")
            body = bytes(view[at + HEADER_SIZE : end - 1])
            if kind == _DATA:
                self._take_data(channel_id, offset, body, events)
            else:
                self._take(kind, channel_id, count, offset, body, events)
        return True

    def _cut_off(self, what: str) -> bool:
        """Leave the frames for a greeting that is to come, at the guest."""
        if not self.guest:
            raise MuxError(f"{what} has no end")
        self._restart()
        return False

    def _find(self, channel_id: int) -> Channel | None:
        """Return a channel; None if it has gone, which the other end may not know yet."""
        channel = self.channels.get(channel_id)
        if channel is None and not 0 < channel_id <= self._last_id:
            raise MuxError(f"there was never a connection {channel_id}")
        return channel

    def _take_data(self, channel_id: int, offset: int, data: bytes, events: list[Event]) -> None:
        channel = self.channels.get(channel_id) or self._find(channel_id)
        if channel is None:
            return
        channel.receiver.take(offset, len(data))
        if channel.closing:
            self.consumed(channel, len(data))
        else:
            events.append(Data(channel, data))

    def _take(
        self, kind: int, channel_id: int, count: int, offset: int, body: bytes, events: list[Event]
    ) -> None:
        if kind == _OPEN and not self.guest:
            self._take_open(channel_id, count, offset, body, events)
        elif kind in (_LISTEN, _UNLISTEN) and self.guest:
            self._take_port(kind == _LISTEN, offset, events)
        elif kind not in (_END, _ACKNOWLEDGE, _RESET):
            raise MuxError(f"a frame of kind {kind} is not allowed here")
        elif (channel := self._find(channel_id)) is None:
            return
        elif kind == _ACKNOWLEDGE:
            self._take_acknowledgement(channel, count, offset, events)
        elif kind == _RESET:
            self._remove(channel)
            if not channel.closing:
                events.append(Reset(channel))
        else:
            channel.receiver.end(offset)
            if channel.receiver.due:
                self._queue(channel)
            if not channel.closing:
                events.append(Ended(channel))

    def _take_port(self, listens: bool, port: int, events: list[Event]) -> None:
        if listens:
            self.listening.add(port)
            events.append(Listening(port))
        else:
            self.listening.discard(port)
            events.append(NotListening(port))

    def _take_acknowledgement(self, channel: Channel, count: int, offset: int, events: list[Event]) -> None:
        sender = channel.sender
        sender.acknowledge(offset)
        sender.limit = max(sender.limit, offset + count)
        if self.guest and not channel.accepted:
            channel.accepted = True
            events.append(Accepted(channel))
        if sender.starved and sender.room > 0:
            sender.starved = False
            if not channel.closing:
                events.append(Writable(channel))
        if sender.may_send:
            self._queue(channel)
        self._settle(channel)

    def _take_open(self, channel_id: int, window: int, port: int, body: bytes, events: list[Event]) -> None:
        state = State.decode(body)
        if state is None:
            raise MuxError(f"connection {channel_id} is opened in a state that cannot be")
        reopening, self._reopening = self._reopening > 0, max(0, self._reopening - 1)
        if channel := self._unseen.pop(channel_id, None) if reopening else None:
            if not channel.gone:
                self._resume(channel, state, window)
        elif channel_id <= self._last_id or not (state.fresh or reopening):
            raise MuxError(f"connection {channel_id} is opened again")
        else:
            self._last_id = channel_id
            if len(self.channels) < MAX_CHANNELS and (port in self.listening or reopening):
                events.append(Opened(self._accept(channel_id, window, port, state)))
            else:
                self._refuse(channel_id)
        if reopening and not self._reopening:
            self._forget_unseen(events)

    def _refuse(self, channel_id: int) -> None:
        if len(self._resets) >= MAX_CHANNELS:
            raise MuxError(f"more than {MAX_CHANNELS} connections were opened that are refused")
        self._resets.append(channel_id)

    def _accept(self, channel_id: int, window: int, port: int, state: State) -> Channel:
        sender = Sender(state.received - state.host_ended)
        sender.ended, sender.next = state.host_ended, state.received
        sender.acknowledge(state.consumed)
        sender.limit = state.consumed + window
        lost = state.base - state.guest_done
        channel = Channel(channel_id, port, sender, self._new_receiver(lost))
        channel.lost = lost
        channel.receiver.ended = state.guest_done
        self.channels[channel_id] = channel
        self._queue(channel)
        return channel

    def _resume(self, channel: Channel, state: State, window: int) -> None:
        sender = channel.sender
        sender.acknowledge(state.consumed)
        sender.rewind(state.received)
        sender.limit = max(sender.limit, state.consumed + window)
        channel.accepted = False
        self._queue(channel)
