"""Connections to the host, as the parts of the agent use them; :mod:`uvm.agent.port` has the real ones.

The guest dials a port of the host's. A connection is two streams of bytes, of which each side ends its own;
when both have ended, or a side closes it at once, it is closed.
"""

from __future__ import annotations

from typing import Protocol


class Receiver:
    """What comes on a connection is passed to one of these; each method is called in the loop."""

    def opened(self) -> None:
        """Note that the host has accepted the connection."""

    def received(self, data: bytes) -> None:
        """Take bytes from the host; they count against its credit until they are consumed."""

    def ended(self) -> None:
        """Note that the host sends no more."""

    def writable(self) -> None:
        """Note that there is room again after there was none."""

    def closed(self) -> None:
        """Note that there is no connection any more: the host refused, or closed it, or both have ended."""


class Connection(Protocol):
    """A connection to the host. After it is closed, nothing that is done to it does anything."""

    receiver: Receiver

    @property
    def room(self) -> int:
        """How many bytes can be sent without waiting in memory for the host."""

    def send(self, data: bytes) -> None:
        """Send bytes; what there is no room for waits in memory."""

    def wait_for_room(self) -> None:
        """Have :meth:`Receiver.writable` called when there is room; for when there is none."""

    def send_eof(self) -> None:
        """Send no more."""

    def consumed(self, size: int) -> None:
        """Let the host send as many bytes more."""

    def close(self) -> None:
        """Close it at once, in both directions; the receiver hears no more."""


class Dialer(Protocol):
    """Whatever opens connections to the host."""

    def dial(self, port: int, receiver: Receiver) -> Connection:
        """Open a connection to a port of the host's; the receiver hears whether it is accepted."""
