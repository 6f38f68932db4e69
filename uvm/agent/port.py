"""The agent's one link to the host: a mux over a port of virtio-serial, or over a socket.

What callbacks send is collected and written before the loop waits. The kernel's driver reads a page and
writes 32 KiB at a time, and a vector goes on with its next buffer only if the one before was filled, or taken
whole: so the buffers have these sizes, and one call moves many. Each write is a message for the host, which
costs more than the copy that joins small ones with large ones.

A port whose host has gone says so for as long as it is away. It is looked at ten times a second then, since
nothing announces that a host is back. Nothing is lost by that: the mux goes on with a host that returns.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable
from typing import Final

from uvm._wire.channels import Channel, MuxError
from uvm._wire.mux import Mux
from uvm._wire.muxevents import (
    Accepted,
    Data,
    Ended,
    Event,
    Greeted,
    Listening,
    NotListening,
    Reset,
    Writable,
)
from uvm.agent.connection import Receiver
from uvm.agent.loop import HANGUP, READ, WRITE, Loop

#: What the driver fills for each read, and takes for each write.
_PAGE_BYTES: Final = 4096
_WRITE_BYTES: Final = 1 << 15
#: Writes in a row, before something else may be done.
_WRITES: Final = 32
_LOOK_SECONDS: Final = 0.1


class Port:
    """The link.

    :param fd: the port, or a socket, which does not block.
    :param on_error: gets the text of what broke.
    :ivar fd: the port.
    :ivar on_greeted: called when a host has connected; with whether it is the one of before.
    :ivar on_listening: called for each port that the host begins to listen at.
    :ivar on_not_listening: called for each port that it listens at no more.
    :ivar on_gone: called when the host is gone.
    """

    fd: int

    def __init__(self, loop: Loop, fd: int, on_error: Callable[[str], object]) -> None:
        self._loop, self.fd, self._on_error = loop, fd, on_error
        self._mux = Mux(guest=True)
        self._events = READ
        self._of_host: list[MuxConnection] = []
        self.on_greeted: Callable[[bool], object] = lambda resumed: None
        self.on_listening: Callable[[int], object] = lambda port: None
        self.on_not_listening: Callable[[int], object] = lambda port: None
        self.on_gone: Callable[[], object] = lambda: None
        os.set_blocking(fd, False)
        loop.watch(fd, READ, self._ready)
        loop.before_waiting(self.flush)

    def dial(self, port: int, receiver: Receiver, *, lasting: bool = True) -> MuxConnection:
        """Open a connection to a port of the host's.

        :param lasting: another host that comes takes it over; otherwise it is closed then.
        """
        connection = MuxConnection(self._mux, self._mux.open(port), receiver)
        if not lasting:
            self._of_host = [each for each in self._of_host if not each.channel.gone]
            self._of_host.append(connection)
        return connection

    def is_listening(self, port: int) -> bool:
        """Return whether the host listens at a port."""
        return port in self._mux.listening

    # What comes.

    def _ready(self, events: int) -> None:
        if events & READ:
            self._receive()
        elif events & HANGUP:
            self._hang_up()
        # There is something to write: the flush that comes does.

    def _receive(self) -> None:
        if self._mux.more:
            return  # it has room once that is handled
        try:
            count = os.readv(self.fd, _slices(self._mux.space(), _PAGE_BYTES))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        self._take(count)
        if not count:
            self._hang_up()

    def _take(self, count: int) -> None:
        try:
            self._pass_on(self._mux.received(count))
        except MuxError as error:
            self._on_error(f"mux: {error}")
        if self._mux.more:
            self._loop.post(lambda: self._take(0))

    def _pass_on(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Data(channel, data):
                    channel.owner.receiver.received(data)
                case Writable(channel):
                    channel.owner.continue_sending()
                case Accepted(channel):
                    channel.owner.accepted()
                case Ended(channel):
                    channel.owner.receiver.ended()
                case Reset(channel):
                    channel.owner.receiver.closed()
                case Listening(port):
                    self.on_listening(port)
                case NotListening(port):
                    self.on_not_listening(port)
                case Greeted(resumed):
                    self._greeted(resumed)

    def _greeted(self, resumed: bool) -> None:
        self.on_greeted(resumed)
        # Nothing of them has gone to the new host yet, so it never hears of them.
        for connection in [] if resumed else self._of_host:
            if not connection.channel.gone:
                self._mux.reset(connection.channel)
                connection.receiver.closed()

    def _hang_up(self) -> None:
        self._loop.unwatch(self.fd)
        self._events = 0
        self._loop.later(_LOOK_SECONDS, self._look)
        self.on_gone()

    def _look(self) -> None:
        """Go on if the host is back."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if any(events & HANGUP for _, events in poll.poll(0)):
            self._loop.later(_LOOK_SECONDS, self._look)
        else:
            self._events = READ
            self._loop.watch(self.fd, READ, self._ready)

    # What goes.

    def flush(self) -> None:
        """Write what there is to write, as far as it is taken."""
        if not self._events:
            return
        full = False
        for _ in range(_WRITES):
            data = b"".join(self._mux.outgoing())
            if not data:
                break
            try:
                self._mux.written(os.writev(self.fd, _slices(memoryview(data), _WRITE_BYTES)))
            except BlockingIOError:
                full = True
                break
            except OSError:
                self._hang_up()
                return
        else:
            self._loop.post(lambda: None)
        events = READ | WRITE if full else READ
        if events != self._events:
            self._events = events
            self._loop.change(self.fd, events)


def _slices(whole: memoryview, size: int) -> list[memoryview]:
    return [whole[at : at + size] for at in range(0, len(whole), size)]


class MuxConnection:
    """A connection over the mux; see :class:`uvm.agent.connection.Connection`."""

    channel: Channel
    receiver: Receiver

    def __init__(self, mux: Mux, channel: Channel, receiver: Receiver) -> None:
        self._mux, self.channel, self.receiver = mux, channel, receiver
        self._waiting = bytearray()
        self._ends = False
        self._known = False
        channel.owner = self

    @property
    def room(self) -> int:
        """How many bytes can be sent without waiting here."""
        return 0 if self._waiting or self.channel.gone else max(0, self.channel.sender.room)

    def send(self, data: bytes) -> None:
        """Send bytes; what there is no room for waits here."""
        if self.channel.gone or self._ends:
            return
        taken = 0 if self._waiting else self._mux.send(self.channel, data)
        if taken < len(data):
            self._waiting += memoryview(data)[taken:]

    def wait_for_room(self) -> None:
        """Have the receiver called when there is room."""
        self.channel.sender.starved = True

    def send_eof(self) -> None:
        """Send no more."""
        self._ends = True
        if not self._waiting and not self.channel.gone:
            self._mux.send_eof(self.channel)

    def consumed(self, size: int) -> None:
        """Let the host send as many bytes more."""
        self._mux.consumed(self.channel, size)

    def close(self) -> None:
        """Close it; what was sent is still sent, as far as the mux has taken it."""
        self.receiver = Receiver()
        self._waiting.clear()
        self._mux.close(self.channel)

    def accepted(self) -> None:
        """Pass on that the host has accepted it; a host that returns accepts it again."""
        if not self._known:
            self._known = True
            self.receiver.opened()

    def continue_sending(self) -> None:
        """Send what waits; then there is room for more."""
        if self._waiting:
            data = bytes(self._waiting)
            taken = self._mux.send(self.channel, data)
            del self._waiting[:taken]
            if self._waiting:
                return
            if self._ends:
                self._mux.send_eof(self.channel)
                return
        self.receiver.writable()
