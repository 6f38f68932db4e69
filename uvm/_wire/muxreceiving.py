"""The receiving half of a mux: the greetings, and the frames behind them. No I/O.

A greeting is looked for until it is found; then whole frames are handled, each checked before it changes
anything. Whatever breaks a rule is a :class:`MuxError`. The rules are in :mod:`uvm._wire.mux`.
"""

from __future__ import annotations

from typing import Final

from uvm._wire import muxevents, muxframes
from uvm._wire.channels import Channel, MuxError, Sender
from uvm._wire.muxevents import Event
from uvm._wire.muxframes import HEADER, HEADER_SIZE, MAX_OFFSET, MAX_PAYLOAD, STATE_SIZE
from uvm._wire.muxsending import Sending

#: How many frames :meth:`Receiving.received` handles before its caller may do something else.
FRAMES: Final = 512
#: What has come and was not handled: at most a frame is kept.
_INBOX: Final = 0x32000


class Receiving(Sending):
    """What comes to one end of a mux, and what that changes of what it has to send.

    :ivar more: :meth:`received` has not handled all that has come; it is to be called again.
    """

    synchronised: bool

    def __init__(self, *, guest: bool) -> None:
        super().__init__(guest=guest)
        self.more: bool = False
        self._error: MuxError | None = None
        self._inbox = memoryview(bytearray(_INBOX))
        self._start = self._stop = 0
        self._session = b""
        self._nonce = b""
        self._last_id = 0
        # Of the frames after a welcome: how many opens are to come, and whose channels have not.
        self._reopening = 0
        self._unseen: dict[int, Channel] = {}

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
        error, self._error = self._error, None
        if error is not None:
            self.more = False
            raise error
        events: list[Event] = []
        self._stop += count
        self._handle(events, frames)
        return events

    # Synchronisation.

    def _restart(self) -> None:
        """Wait for a greeting, and forget what was to be sent; the channels stay."""
        self.synchronised = False
        self.more = False
        self._forget_output()

    def _forget_input(self) -> None:
        self._start = self._stop = 0
        self._error = None

    def _synchronise(self, events: list[Event]) -> bool:
        """Look for the other end's greeting; return whether it has come."""
        come = bytearray(self._inbox[self._start : self._stop])
        if self.guest:
            if hello := muxframes.find_hello(come):
                self._meet_host(hello, events)
        elif welcome := muxframes.find_welcome(come, self._nonce):
            self._meet_guest(welcome, events)
        self._start = self._stop - len(come)
        return self.synchronised

    def _meet_host(self, hello: muxframes.Hello, events: list[Event]) -> None:
        """Open all channels again, where the host is to go on."""
        nonce, session, last_id, known = hello
        resumed = session == self._session
        self._restart()
        self._session = session
        self._announcements.clear()
        self.listening.clear()
        events.append(muxevents.Greeted(resumed))
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

    def _meet_guest(self, welcome: muxframes.Welcome, events: list[Event]) -> None:
        """Await the channels that the guest opens again."""
        if welcome.channels > muxframes.MAX_CHANNELS:
            raise MuxError(f"the guest has {welcome.channels} connections")
        self._reopening = welcome.channels
        events.append(muxevents.Greeted(welcome.resumed))
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
            events.append(muxevents.Reset(channel))

    def _forget_unseen(self, events: list[Event]) -> None:
        unseen, self._unseen = self._unseen, {}
        for channel in unseen.values():
            if not channel.gone:
                self._lose(channel, events)

    # What comes.

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
            payload = count if kind == muxframes.DATA else STATE_SIZE if kind == muxframes.OPEN else -1
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
            if kind == muxframes.DATA:
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
            events.append(muxevents.Data(channel, data))

    def _take(
        self, kind: int, channel_id: int, count: int, offset: int, body: bytes, events: list[Event]
    ) -> None:
        if kind == muxframes.OPEN and not self.guest:
            self._take_open(channel_id, count, offset, body, events)
        elif kind in (muxframes.LISTEN, muxframes.UNLISTEN) and self.guest:
            self._take_port(kind == muxframes.LISTEN, offset, events)
        elif kind not in (muxframes.END, muxframes.ACKNOWLEDGE, muxframes.RESET):
            raise MuxError(f"a frame of kind {kind} is not allowed here")
        elif (channel := self._find(channel_id)) is None:
            return
        elif kind == muxframes.ACKNOWLEDGE:
            self._take_acknowledgement(channel, count, offset, events)
        elif kind == muxframes.RESET:
            self._remove(channel)
            if not channel.closing:
                events.append(muxevents.Reset(channel))
        else:
            channel.receiver.end(offset)
            if channel.receiver.due:
                self._queue(channel)
            if not channel.closing:
                events.append(muxevents.Ended(channel))

    def _take_port(self, listens: bool, port: int, events: list[Event]) -> None:
        if listens:
            self.listening.add(port)
            events.append(muxevents.Listening(port))
        else:
            self.listening.discard(port)
            events.append(muxevents.NotListening(port))

    def _take_acknowledgement(self, channel: Channel, count: int, offset: int, events: list[Event]) -> None:
        sender = channel.sender
        sender.acknowledge(offset)
        sender.limit = max(sender.limit, offset + count)
        if self.guest and not channel.accepted:
            channel.accepted = True
            events.append(muxevents.Accepted(channel))
        if sender.starved and sender.room > 0:
            sender.starved = False
            if not channel.closing:
                events.append(muxevents.Writable(channel))
        if sender.may_send:
            self._queue(channel)
        self._settle(channel)

    def _take_open(self, channel_id: int, window: int, port: int, body: bytes, events: list[Event]) -> None:
        state = muxframes.State.decode(body)
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
            if len(self.channels) < muxframes.MAX_CHANNELS and (port in self.listening or reopening):
                events.append(muxevents.Opened(self._accept(channel_id, window, port, state)))
            else:
                self._refuse(channel_id)
        if reopening and not self._reopening:
            self._forget_unseen(events)

    def _refuse(self, channel_id: int) -> None:
        if len(self._resets) >= muxframes.MAX_CHANNELS:
            raise MuxError(f"more than {muxframes.MAX_CHANNELS} connections were opened that are refused")
        self._resets.append(channel_id)

    def _accept(self, channel_id: int, window: int, port: int, state: muxframes.State) -> Channel:
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

    def _resume(self, channel: Channel, state: muxframes.State, window: int) -> None:
        sender = channel.sender
        sender.acknowledge(state.consumed)
        sender.rewind(state.received)
        sender.limit = max(sender.limit, state.consumed + window)
        channel.accepted = False
        self._queue(channel)
