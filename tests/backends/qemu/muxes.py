"""A host's link and a guest's over a socket pair, on one event loop."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
from attrs import define

from uvm._wire.mux import Mux
from uvm.backends.qemu.muxlink import MuxLink, MuxStream

__all__ = ["GuestLink", "Linked", "linked"]


class GuestLink(MuxLink):
    """The guest's end, whose streams are the host's own class: only what opens and what accepts differs."""

    def __init__(self, sock: socket.socket, mux: Mux | None = None) -> None:
        super().__init__("vm1", sock, mux or Mux(guest=True))

    def dial(self, port: int) -> MuxStream:
        """Connect to a port of the host."""
        stream = MuxStream(self, self._mux.open(port))
        self.flush()
        return stream


@define(eq=False)
class Linked:
    """Two links that are connected.

    :ivar socket: the guest's, to write to directly.
    """

    host: MuxLink
    guest: GuestLink
    socket: socket.socket

    async def connect(self, port: int = 1) -> tuple[MuxStream, MuxStream]:
        """Connect to a port that is not listened at; return the guest's and the host's stream."""
        listener = self.host.listen(port)
        guest = self.guest.dial(port)
        host = await listener.accept()
        await listener.aclose()
        return guest, host


@asynccontextmanager
async def linked(guest: Mux | None = None, *, adopts: bool = True) -> AsyncIterator[Linked]:
    """Connect a host and a guest; a guest that was connected before may go on."""
    one, other = socket.socketpair()
    links = Linked(MuxLink("vm1", one, adopts=adopts), GuestLink(other, guest), other)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(links.host.serve)
        tasks.start_soon(links.guest.serve)
        with anyio.fail_after(10):
            await links.host.greeted.wait()
        try:
            yield links
        finally:
            links.host.close()
            links.guest.close()
