"""What the ends of a mux do, by example."""

from __future__ import annotations

import struct

import pytest

from tests.wire.muxes import End, Pair, receive
from uvm._wire.channels import MAX_WINDOW, MuxError
from uvm._wire.mux import Mux
from uvm._wire.muxevents import Accepted, Data, Ended, Event, Listening, NotListening, Reset, Writable
from uvm._wire.muxframes import HEADER_SIZE, MAX_CHANNELS, MAX_PAYLOAD, PADDING, FrameKind
from uvm._wire.muxsending import BUDGET, FIRST_WINDOW, MIN_WINDOW


def frame(kind: int, channel: int, count: int = 0, offset: int = 0, payload: bytes | None = None) -> bytes:
    return struct.pack("<IIIQ", kind, channel, count, offset) + (b"" if payload is None else payload + b"\0")


def open_frame(channel: int, port: int = 1, window: int = 4096) -> bytes:
    return frame(FrameKind.OPEN, channel, window, port, bytes(28))


def data_frame(channel: int, offset: int, data: bytes) -> bytes:
    return frame(FrameKind.DATA, channel, len(data), offset, data)


def greeted_host(*ports: int) -> Mux:
    """Return a host whose guest has greeted it; the guest's frames are the test's own."""
    return Pair(*ports).host.mux


def received(mux: Mux, data: bytes) -> list[Event]:
    """Return all that some bytes mean."""
    events = receive(mux, data)
    while mux.more:
        events += receive(mux)
    return events


# Channels.


def test_bytes_pass_both_ways() -> None:
    pair = Pair(1)
    guest, host = pair.open()
    assert pair.guest.mux.send(guest, b"from the guest") == 14
    assert pair.host.mux.send(host, b"from the host") == 13
    pair.settle()
    assert pair.host.arrived[host.id] == b"from the guest"
    assert pair.guest.arrived[guest.id] == b"from the host"


def test_a_guest_may_send_before_it_has_met_the_host() -> None:
    pair = Pair.__new__(Pair)
    pair.host, pair.guest = End(guest=False), End(guest=True)
    channel = pair.guest.mux.open(1)
    pair.guest.mux.send(channel, b"early")
    assert not pair.guest.mux.outgoing()
    pair.host.mux.listen(1)
    pair.host.mux.connect(bytes(16))
    pair.settle()
    assert pair.host.arrived[channel.id] == b"early"


def test_a_channel_to_a_port_that_is_not_listened_at_is_reset() -> None:
    pair = Pair(1)
    channel = pair.guest.mux.open(2)
    pair.settle()
    assert pair.guest.events[-1] == Reset(channel)
    assert channel.gone
    assert not pair.guest.mux.channels
    assert not pair.host.mux.channels
    with pytest.raises(ConnectionResetError):
        pair.guest.mux.send(channel, b"x")


def test_the_guest_knows_the_ports_that_are_listened_at() -> None:
    pair = Pair(1, 7)
    assert pair.guest.mux.listening == {1, 7}
    pair.host.mux.unlisten(7)
    pair.host.mux.listen(8)
    pair.settle()
    assert pair.guest.mux.listening == {1, 8}
    assert {NotListening(7), Listening(8)} <= set(pair.guest.events)


def test_each_direction_ends_by_itself_and_the_channel_with_both() -> None:
    pair = Pair(1)
    guest, host = pair.open()
    pair.guest.mux.send(guest, b"all")
    pair.guest.mux.send_eof(guest)
    pair.settle(consume=True)
    assert pair.host.events[-1] == Ended(host)
    with pytest.raises(BrokenPipeError):
        pair.guest.mux.send(guest, b"more")
    pair.host.mux.send(host, b"answer")
    pair.host.mux.send_eof(host)
    pair.settle(consume=True)
    assert pair.guest.arrived[guest.id] == b"answer"
    assert guest.gone
    assert host.gone
    assert not pair.guest.mux.channels
    assert not pair.host.mux.channels
    assert not pair.guest.gone | pair.host.gone


def test_a_channel_stays_until_what_came_was_consumed() -> None:
    pair = Pair(1)
    guest, host = pair.open()
    pair.guest.mux.send(guest, b"all")
    pair.guest.mux.send_eof(guest)
    pair.host.mux.send_eof(host)
    pair.settle()
    assert [*pair.host.mux.channels, *pair.guest.mux.channels] == [host.id, guest.id]
    pair.host.consume(host)
    pair.settle()
    assert host.gone
    assert guest.gone


def test_a_reset_ends_both_directions_at_once() -> None:
    pair = Pair(1)
    guest, host = pair.open()
    pair.guest.mux.send(guest, b"lost")
    pair.host.mux.reset(host)
    pair.settle()
    assert pair.guest.events[-1] == Reset(guest)
    assert not pair.host.mux.channels
    assert not pair.host.arrived


def test_what_was_sent_before_closing_arrives_and_the_other_end_learns_that_nothing_more_is_taken() -> None:
    pair = Pair(1)
    guest, host = pair.open()
    pair.guest.mux.send(guest, b"unwanted")
    pair.host.mux.send(host, b"last")
    pair.host.mux.close(host)
    pair.settle()
    assert pair.guest.arrived[guest.id] == b"last"
    assert not guest.gone
    assert not pair.host.arrived
    pair.settle(consume=True)
    assert pair.guest.events[-1] == Reset(guest)
    assert host.gone


# Windows.


def test_no_more_is_sent_than_the_window_until_it_is_consumed() -> None:
    pair = Pair(1)
    guest, host = pair.open()
    data = bytes(range(256)) * 4096
    taken = pair.guest.mux.send(guest, data)
    assert FIRST_WINDOW <= taken < len(data)
    assert pair.guest.mux.send(guest, b"more") == 0
    pair.settle()
    assert pair.host.arrived[host.id] == data[:FIRST_WINDOW]
    pair.settle(consume=True)
    assert Writable(guest) in pair.guest.events
    assert pair.host.arrived[host.id] == data[:taken]
    assert pair.guest.mux.send(guest, data[taken:]) > 0


def test_a_window_grows_as_its_channel_is_used_up_to_a_limit() -> None:
    pair = Pair(1)
    guest, host = pair.open()
    windows = [host.receiver.window]
    for _ in range(100):
        pair.guest.mux.send(guest, bytes(MAX_WINDOW))
        pair.settle(consume=True)
        windows.append(host.receiver.window)
    assert windows == sorted(windows)
    assert windows[-1] == MAX_WINDOW


def test_a_channel_that_is_not_read_stops_no_other() -> None:
    pair = Pair(1)
    slow, _ = pair.open()
    fast, host = pair.open()
    pair.guest.mux.send(slow, bytes(1 << 20))
    sent = 0
    for _ in range(100):
        sent += pair.guest.mux.send(fast, bytes(10_000))
        pair.settle()
        pair.host.consume(host)
    assert sent == 1_000_000


def test_channels_that_have_much_to_send_take_turns() -> None:
    pair = Pair(1)
    channels = [pair.open() for _ in range(3)]
    for guest, _ in channels:
        pair.guest.mux.send(guest, bytes(FIRST_WINDOW))
    pair.guest.write(2 * FIRST_WINDOW + 1000)
    pair.host.receive(bytes(pair.guest.pipe))
    arrived = [len(pair.host.arrived.get(host.id, b"")) for _, host in channels]
    assert arrived == [FIRST_WINDOW, FIRST_WINDOW, 0]


def test_all_windows_together_stay_within_the_budget() -> None:
    pair = Pair(1)
    for _ in range(MAX_CHANNELS):
        pair.guest.mux.open(1)
    pair.settle()
    receivers = [channel.receiver for channel in pair.host.mux.channels.values()]
    assert len(receivers) == MAX_CHANNELS
    assert sum(each.window for each in receivers) <= BUDGET + MAX_CHANNELS * MIN_WINDOW
    assert sum(each.limit for each in receivers) <= BUDGET + MAX_CHANNELS * MIN_WINDOW
    with pytest.raises(ConnectionRefusedError):
        pair.guest.mux.open(1)
    pair.host.receive(open_frame(MAX_CHANNELS + 1))
    assert len(pair.host.mux.channels) == MAX_CHANNELS
    pair.host.write()
    assert pair.host.pipe == frame(FrameKind.RESET, MAX_CHANNELS + 1)


def test_the_windows_of_channels_that_have_gone_are_free() -> None:
    pair = Pair(1)
    for _ in range(3):
        opened = [pair.guest.mux.open(1) for _ in range(BUDGET // FIRST_WINDOW)]
        pair.settle()
        windows = {channel.receiver.window for channel in pair.host.mux.channels.values()}
        assert windows == {FIRST_WINDOW}
        for channel in opened:
            pair.guest.mux.reset(channel)
        pair.settle()


# What a hostile end may try.


@pytest.mark.parametrize(
    ("what", "match"),
    [
        (data_frame(1, 0, b""), "0 bytes came"),
        (data_frame(1, 1, b"x"), "came at 1, not at 0"),
        (data_frame(1, 0, bytes(FIRST_WINDOW + 1)), f"where {FIRST_WINDOW} are allowed"),
        (data_frame(1, 0, b"x") * 2, "came at 0, not at 1"),
        (frame(FrameKind.DATA, 1, MAX_PAYLOAD + 1, 0), "at most 65536"),
        (data_frame(2, 0, b"x"), "never a connection 2"),
        (data_frame(0, 0, b"x"), "never a connection 0"),
        (frame(FrameKind.END, 1, 0, 5), "the end came at 5"),
        (frame(FrameKind.END, 1) * 2, "the end came at 0"),
        (frame(FrameKind.END, 1) + data_frame(1, 0, b"x"), "bytes came"),
        (frame(FrameKind.ACKNOWLEDGE, 1, 0, 1), "of 0 that were sent"),
        (frame(FrameKind.RESET, 9), "never a connection 9"),
        (open_frame(1), "opened again"),
        (frame(FrameKind.OPEN, 2, 0, 1, struct.pack("<QQQI", 5, 0, 0, 0)), "opened again"),
        (frame(FrameKind.OPEN, 2, 0, 1, struct.pack("<QQQI", 0, 5, 0, 0)), "cannot be"),
        (frame(FrameKind.OPEN, 2, 0, 1, struct.pack("<QQQI", 0, 0, 0, 1)), "cannot be"),
        (frame(FrameKind.LISTEN, 0, 0, 1), "not allowed here"),
        (frame(0, 1), "not allowed here"),
        (frame(8, 1), "not allowed here"),
        (b"\xff" * HEADER_SIZE, "has no end"),
        (frame(FrameKind.DATA, 1, 1, 0) + b"xx", "has no end"),
    ],
)
def test_what_breaks_a_rule_ends_the_link(what: bytes, match: str) -> None:
    host = greeted_host(1)
    receive(host, open_frame(1))
    with pytest.raises(MuxError, match=match):
        received(host, what)
    assert not host.synchronised
    assert receive(host, what) == []


def test_what_came_before_the_first_broken_rule_is_returned() -> None:
    host = greeted_host(1)
    receive(host, open_frame(1))
    channel = host.channels[1]
    assert receive(host, data_frame(1, 0, b"good") + data_frame(1, 0, b"bad")) == [Data(channel, b"good")]
    assert host.more
    with pytest.raises(MuxError):
        receive(host)
    assert not host.more


def test_what_arrives_for_a_channel_that_has_gone_is_dropped() -> None:
    host = greeted_host(1)
    receive(host, open_frame(1))
    host.reset(host.channels[1])
    late = data_frame(1, 0, b"late") + frame(FrameKind.ACKNOWLEDGE, 1, 9, 9) + frame(FrameKind.RESET, 1)
    assert receive(host, late) == []


def test_opens_without_end_that_are_refused_end_the_link() -> None:
    host = greeted_host(1)
    opens = b"".join(open_frame(number, port=2) for number in range(1, MAX_CHANNELS + 2))
    with pytest.raises(MuxError, match="that are refused"):
        receive(host, opens, frames=MAX_CHANNELS + 1)


def test_acknowledgements_without_end_queue_nothing() -> None:
    host = greeted_host(1)
    receive(host, open_frame(1))
    host.outgoing()
    host.written(sum(map(len, host.outgoing())))
    for window in range(1000):
        assert receive(host, frame(FrameKind.ACKNOWLEDGE, 1, window, 0)) == []
    assert not host.outgoing()


def test_a_window_beyond_all_measure_makes_the_sender_keep_no_more() -> None:
    host = greeted_host(1)
    receive(host, open_frame(1, window=0xFFFFFFFF))
    assert host.send(host.channels[1], bytes(4 * MAX_WINDOW)) == MAX_WINDOW


def test_a_flood_of_frames_is_handled_in_portions() -> None:
    host = greeted_host(1)
    receive(host, open_frame(1))
    flood = b"".join(data_frame(1, offset, b"x") for offset in range(1000))
    assert len(receive(host, flood, frames=300)) == 300
    portions = []
    while host.more:
        portions.append(len(receive(host, frames=300)))
    assert portions == [300, 300, 100]


# Synchronisation and resumption.


@pytest.mark.parametrize("cut", [1, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 1, 1000, 15_000])
def test_a_guest_is_found_again_after_any_part_of_a_frame(cut: int) -> None:
    pair = Pair(1)
    guest, host = pair.open()
    pair.host.mux.send(host, bytes(range(250)) * 60)
    pair.host.write(cut)
    pair.guest.receive(bytes(pair.host.pipe))
    pair.reconnect()
    pair.settle()
    assert pair.greetings() == [False, True]
    assert pair.guest.arrived[guest.id] == bytes(range(250)) * 60


def test_a_host_skips_what_is_left_of_an_earlier_connection() -> None:
    pair = Pair(1)
    guest, host = pair.open()
    pair.guest.mux.send(guest, b"x" * 1000)
    pair.guest.write(500)
    left = bytes(pair.guest.pipe)
    pair.reconnect()
    assert pair.host.receive(left) == []
    pair.settle()
    assert pair.host.arrived[host.id] == b"x" * 1000


def test_the_same_host_goes_on_with_its_channels() -> None:
    pair = Pair(1)
    guest, host = pair.open()
    pair.guest.mux.send(guest, b"one ")
    pair.settle()
    pair.guest.mux.send(guest, b"two ")
    pair.guest.write()
    pair.host.mux.send(host, b"three ")
    pair.host.write()
    pair.reconnect()
    pair.guest.mux.send(guest, b"four")
    pair.settle()
    assert pair.host.arrived[host.id] == b"one two four"
    assert pair.guest.arrived[guest.id] == b"three "
    assert not pair.host.gone | pair.guest.gone


def test_what_one_end_has_let_go_of_meanwhile_has_gone_at_the_other() -> None:
    pair = Pair(1)
    guests, hosts = zip(*(pair.open() for _ in range(2)), strict=True)
    pair.guest.mux.reset(guests[0])
    pair.guest.write()
    pair.host.mux.reset(hosts[1])
    pair.host.write()
    pair.reconnect()
    pair.settle()
    assert pair.host.gone == {hosts[0].id}
    assert pair.guest.gone == {guests[1].id}
    assert not pair.host.mux.channels
    assert not pair.guest.mux.channels


def test_an_open_that_was_lost_is_repeated() -> None:
    pair = Pair(1)
    channel = pair.guest.mux.open(1)
    pair.guest.mux.send(channel, b"hello")
    pair.guest.write()
    pair.reconnect()
    pair.settle()
    assert Accepted(channel) in pair.guest.events
    assert pair.host.arrived[channel.id] == b"hello"


def test_a_last_acknowledgement_that_was_lost_is_no_reset() -> None:
    pair = Pair(1)
    guest, host = pair.open()
    pair.guest.mux.send_eof(guest)
    pair.host.mux.send_eof(host)
    pair.settle()
    guest, host = pair.open()
    pair.guest.mux.send_eof(guest)
    pair.settle()
    pair.host.mux.send_eof(host)
    pair.host.write()
    pair.guest.receive(bytes(pair.host.pipe))
    pair.guest.write()
    assert guest.gone
    pair.reconnect()
    pair.settle()
    assert not pair.host.mux.channels
    assert not pair.host.gone


def test_another_host_takes_over_what_was_not_acknowledged_to_the_first() -> None:
    pair = Pair(1)
    guest, host = pair.open()
    pair.guest.mux.send(guest, b"a" * FIRST_WINDOW)
    pair.settle(consume=True)
    pair.guest.mux.send(guest, b"b" * 100)
    pair.host.mux.send(host, b"to the guest, ")
    pair.settle()
    second = End(guest=False)
    pair.reconnect(host=second)
    pair.settle()
    assert pair.greetings() == [False, False]
    taken = second.channels[guest.id]
    assert (taken.port, taken.lost) == (1, FIRST_WINDOW)
    assert second.arrived[guest.id] == b"b" * 100
    second.mux.send(taken, b"from the second")
    pair.settle()
    assert pair.guest.arrived[guest.id] == b"to the guest, from the second"


def test_another_host_is_told_of_ends_that_the_first_has_seen_or_sent() -> None:
    pair = Pair(1)
    guest, host = pair.open()
    pair.host.mux.send(host, b"x")
    pair.host.mux.send_eof(host)
    pair.settle()
    other, _ = pair.open()
    pair.guest.mux.send(other, b"y")
    pair.guest.mux.send_eof(other)
    pair.settle(consume=False)
    pair.host.consume(pair.host.channels[other.id])
    pair.settle()
    second = End(guest=False)
    pair.reconnect(host=second)
    pair.settle()
    with pytest.raises(BrokenPipeError):
        second.mux.send(second.channels[guest.id], b"more")
    taken = second.channels[other.id]
    assert taken.lost == 1
    assert taken.receiver.finished
    second.mux.send_eof(taken)
    pair.settle()
    assert other.gone
    assert taken.gone


def test_a_guest_that_does_not_know_the_host_has_lost_its_channels() -> None:
    pair = Pair(1)
    _, host = pair.open()
    pair.guest = End(guest=True)
    pair.reconnect()
    pair.settle()
    assert pair.host.events[-1] == Reset(host)
    guest, _ = pair.open()
    assert guest.id == host.id


def test_the_padding_is_longer_than_any_frame() -> None:
    assert len(PADDING) > HEADER_SIZE + MAX_PAYLOAD + 1 > 16 + 40 + 12 * MAX_CHANNELS + 1
