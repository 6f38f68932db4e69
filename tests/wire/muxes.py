"""Two ends of a mux and the pipes between them, which pass on as much as a test says, or lose it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from uvm._wire.channels import Channel
from uvm._wire.mux import Mux
from uvm._wire.muxevents import Accepted, Data, Ended, Event, Greeted, Opened, Reset, Writable
from uvm._wire.muxreceiving import FRAMES

__all__ = ["End", "Pair", "nonces", "receive"]


def nonces() -> Iterator[bytes]:
    """Yield different nonces."""
    return (number.to_bytes(16, "big") for number in count(1))


def receive(mux: Mux, data: bytes = b"", frames: int = FRAMES) -> list[Event]:
    """Have an end receive bytes; return what they mean, as :meth:`Mux.received` does."""
    events: list[Event] = []
    rest = memoryview(data)
    while True:
        space = mux.space()
        part, rest = rest[: len(space)], rest[len(space) :]
        space[: len(part)] = part
        events += mux.received(len(part), frames)
        if not rest or mux._error is not None:
            return events


class End:
    """One end, what it has put into its pipe, and what it has been told.

    :ivar pipe: written and not received by the other end.
    :ivar arrived: of each channel, bytes that were received.
    :ivar kept: of each channel, how many of them were not consumed.
    """

    def __init__(self, *, guest: bool) -> None:
        self.mux = Mux(guest=guest)
        self.pipe = bytearray()
        self.events: list[Event] = []
        self.channels: dict[int, Channel] = {}
        self.arrived: dict[int, bytearray] = {}
        self.kept: dict[int, int] = {}
        self.ended: set[int] = set()
        self.gone: set[int] = set()
        self.writable: set[int] = set()

    def write(self, most: int = 1 << 30) -> None:
        """Write at most so many bytes into the pipe, as a system call does that takes a part."""
        while most and (buffers := self.mux.outgoing()):
            part = b"".join(buffers)[:most]
            self.mux.written(len(part))
            self.pipe += part
            most -= len(part)

    def receive(self, data: bytes) -> list[Event]:
        """Receive, and note what that means."""
        events = receive(self.mux, data)
        while self.mux.more:
            events += receive(self.mux)
        for event in events:
            self._note(event)
        self.events += events
        return events

    def consume(self, channel: Channel, most: int = 1 << 30) -> None:
        """Consume what has come of a channel."""
        size = min(most, self.kept.get(channel.id, 0))
        if size:
            self.kept[channel.id] -= size
            self.mux.consumed(channel, size)

    def _note(self, event: Event) -> None:
        match event:
            case Opened(channel) | Accepted(channel):
                self.channels[channel.id] = channel
            case Data(channel, data):
                assert data
                assert channel.id not in self.ended | self.gone
                self.arrived.setdefault(channel.id, bytearray()).extend(data)
                self.kept[channel.id] = self.kept.get(channel.id, 0) + len(data)
            case Ended(channel):
                assert channel.id not in self.ended | self.gone
                self.ended.add(channel.id)
            case Writable(channel):
                self.writable.add(channel.id)
            case Reset(channel):
                assert channel.id not in self.gone
                self.gone.add(channel.id)
            case _:
                pass


class Pair:
    """A host and a guest, connected."""

    def __init__(self, *ports: int) -> None:
        self.nonces = nonces()
        self.host, self.guest = End(guest=False), End(guest=True)
        for port in ports:
            self.host.mux.listen(port)
        self.host.mux.connect(next(self.nonces))
        self.settle()

    def reconnect(self, *, host: End | None = None) -> None:
        """Lose what is in the pipes, and connect again: the same host, or another."""
        self.host.pipe.clear()
        self.guest.pipe.clear()
        self.host = host or self.host
        self.host.mux.connect(next(self.nonces))

    def settle(self, consume: bool = False) -> None:
        """Pass on everything until nothing is left."""
        while self.step(consume):
            pass

    def step(self, consume: bool = False) -> bool:
        """Pass on what is there; return whether anything was."""
        moved = False
        for one, other in ((self.host, self.guest), (self.guest, self.host)):
            one.write()
            if one.pipe:
                data = bytes(one.pipe)
                one.pipe.clear()
                other.receive(data)
                moved = True
            if consume:
                for channel in list(other.mux.channels.values()):
                    moved = moved or other.kept.get(channel.id, 0) > 0
                    other.consume(channel)
        return moved

    def open(self, port: int = 1) -> tuple[Channel, Channel]:
        """Open a channel; return the guest's and the host's end of it."""
        channel = self.guest.mux.open(port)
        self.settle()
        return channel, self.host.channels[channel.id]

    def greetings(self) -> list[bool]:
        """Return whether each meeting, as the guest saw it, resumed the one before."""
        return [event.resumed for event in self.guest.events if isinstance(event, Greeted)]
