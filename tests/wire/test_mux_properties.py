"""What holds of a mux whatever its ends do, in whatever pieces bytes come, however often the link breaks."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from tests.wire.muxes import End, Pair, receive
from uvm._wire.channels import MAX_WINDOW, Channel, MuxError
from uvm._wire.mux import Mux
from uvm._wire.muxframes import MAX_CHANNELS
from uvm._wire.muxsending import BUDGET, MIN_WINDOW

PORT = 1
#: Of a direction of a channel: no two stretches of it are the same.
PATTERN = b"".join(number.to_bytes(4, "big") for number in range(1 << 16))

sizes = st.integers(0, 20) | st.integers(0, 100_000)


class World:
    """A pair in which anything may happen next, and what must have arrived in the end.

    :ivar sent: how many bytes an end has sent over a channel, by the end and the channel's id.
    """

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.pair = Pair(PORT)
        self.sent: dict[tuple[bool, int], int] = {}
        self.ended: set[tuple[bool, int]] = set()

    def end(self) -> End:
        return self.pair.guest if self.draw(st.booleans(), label="guest") else self.pair.host

    def channel(self, end: End) -> Channel | None:
        channels = list(end.mux.channels.values())
        return self.draw(st.sampled_from(channels)) if channels else None

    def open(self) -> None:
        self.pair.guest.mux.open(PORT)

    def send(self) -> None:
        end = self.end()
        channel = self.channel(end)
        if channel is None or channel.sender.ended:
            return
        key = (end.mux.guest, channel.id)
        at = self.sent.get(key, 0)
        size = self.draw(sizes, label="size")
        taken = end.mux.send(channel, PATTERN[at : at + size])
        assert 0 <= taken <= size
        self.sent[key] = at + taken

    def finish(self) -> None:
        end = self.end()
        if (channel := self.channel(end)) is not None:
            end.mux.send_eof(channel)
            self.ended.add((end.mux.guest, channel.id))

    def write(self) -> None:
        self.end().write(self.draw(sizes, label="written"))

    def deliver(self) -> None:
        end = self.end()
        other = self.pair.host if end is self.pair.guest else self.pair.guest
        size = self.draw(sizes, label="delivered")
        data = bytes(end.pipe[:size])
        del end.pipe[:size]
        other.receive(data)

    def consume(self) -> None:
        end = self.end()
        if (channel := self.channel(end)) is not None:
            end.consume(channel, self.draw(sizes, label="consumed"))

    def reconnect(self) -> None:
        self.pair.reconnect()

    def check(self) -> None:
        """Nothing is kept beyond the windows, and what has arrived is what was sent."""
        for end in (self.pair.host, self.pair.guest):
            channels = end.mux.channels.values()
            assert sum(each.receiver.window for each in channels) == end.mux._reserved
            assert end.mux._reserved <= BUDGET + MIN_WINDOW * MAX_CHANNELS
            for channel in channels:
                assert end.kept.get(channel.id, 0) <= channel.receiver.window
                assert channel.sender.end - channel.sender.base <= MAX_WINDOW
            for number, arrived in end.arrived.items():
                assert len(arrived) <= self.sent[not end.mux.guest, number]
                assert PATTERN.startswith(arrived)

    def finish_all(self) -> None:
        """Pass on everything, and check that it has arrived, once."""
        self.pair.settle(consume=True)
        for end in (self.pair.host, self.pair.guest):
            other = not end.mux.guest
            for (guest, number), size in self.sent.items():
                if guest is other:
                    assert len(end.arrived.get(number, b"")) == size
            assert not end.gone
            assert {number for guest, number in self.ended if guest is other} == end.ended
        assert self.pair.host.mux.channels.keys() == self.pair.guest.mux.channels.keys()


STEPS: list[Callable[[World], None]] = [
    World.open,
    World.send,
    World.send,
    World.finish,
    World.write,
    World.deliver,
    World.consume,
    World.reconnect,
]


@given(st.data())
def test_every_byte_comes_once_and_in_order_whatever_is_split_interleaved_or_connected_again(
    data: st.DataObject,
) -> None:
    world = World(data)
    world.open()
    world.pair.settle()
    for step in data.draw(st.lists(st.sampled_from(STEPS), max_size=40), label="steps"):
        step(world)
        world.check()
    world.finish_all()


@given(st.data())
def test_another_host_receives_what_the_first_had_not_acknowledged_and_no_more(data: st.DataObject) -> None:
    world = World(data)
    world.open()
    world.pair.settle()
    steps = [step for step in STEPS if step is not World.reconnect]
    for step in data.draw(st.lists(st.sampled_from(steps), max_size=30), label="steps"):
        step(world)
    acknowledged = {number: each.sender.base for number, each in world.pair.guest.mux.channels.items()}
    sizes = {number: each.sender.end for number, each in world.pair.guest.mux.channels.items()}
    second = End(guest=False)
    second.mux.listen(PORT)
    world.pair.reconnect(host=second)
    world.pair.settle(consume=True)
    assert second.channels.keys() == acknowledged.keys()
    for number, channel in second.channels.items():
        assert channel.lost == min(acknowledged[number], sizes[number])
        assert second.arrived.get(number, b"") == PATTERN[channel.lost : sizes[number]]


@given(st.lists(st.binary(max_size=60), max_size=8), st.booleans())
def test_no_bytes_make_an_end_do_anything_but_understand_or_refuse(pieces: list[bytes], guest: bool) -> None:
    pair = Pair(PORT)
    pair.open()
    mux: Mux = pair.guest.mux if guest else pair.host.mux
    try:
        for piece in pieces:
            receive(mux, piece)
    except MuxError:
        assert not mux.synchronised
