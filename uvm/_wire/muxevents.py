"""What the other end of a mux has done, as :meth:`uvm._wire.mux.Mux.received` returns it."""

from __future__ import annotations

from typing import NamedTuple

from uvm._wire.channels import Channel


class Greeted(NamedTuple):
    """The two ends have met. ``resumed`` says whether the host is the one of before."""

    resumed: bool


class Listening(NamedTuple):
    """At the guest: the host listens at a port."""

    port: int


class NotListening(NamedTuple):
    """At the guest: the host listens there no more."""

    port: int


class Opened(NamedTuple):
    """At the host: the guest has opened a channel."""

    channel: Channel


class Accepted(NamedTuple):
    """At the guest: the host has accepted a channel."""

    channel: Channel


class Data(NamedTuple):
    """Bytes of a channel; :meth:`~uvm._wire.mux.Mux.consumed` is to be called when they are consumed."""

    channel: Channel
    data: bytes


class Ended(NamedTuple):
    """The other end sends no more; our direction goes on."""

    channel: Channel


class Writable(NamedTuple):
    """A channel that did not take all takes more now."""

    channel: Channel


class Reset(NamedTuple):
    """A channel has gone, in both directions: the other end reset or refused it."""

    channel: Channel


Event = Greeted | Listening | NotListening | Opened | Accepted | Data | Ended | Writable | Reset
