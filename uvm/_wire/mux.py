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

**Bounds.** The windows of a host are :data:`~.BUDGET` together, and :data:`~.MIN_WINDOW` for each channel
beyond. What is to be sent is computed when it can be written, from the state of the channels, so nothing that
the other end does queues more than one frame of each kind for each channel, and :data:`MAX_CHANNELS`
refusals. What breaks a rule raises :class:`MuxError`.

What is sent is :mod:`~uvm._wire.muxsending`'s, and what comes :mod:`~uvm._wire.muxreceiving`'s.
"""

from __future__ import annotations

from uvm._wire.channels import Buffer, Channel, Sender
from uvm._wire.muxframes import MAX_CHANNELS, NONCE_SIZE, PADDING, Hello
from uvm._wire.muxreceiving import Receiving


class Mux(Receiving):
    """One end of a mux.

    :param guest: this is the guest's end.
    :ivar channels: those that are open, by id.
    :ivar listening: the ports that the host listens at.
    :ivar synchronised: the two ends have met, and no connection has begun since.
    :ivar more: :meth:`received` has not handled all that has come; it is to be called again.
    """

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

    def close(self, channel: Channel) -> None:
        """End our direction after what was sent, and take nothing more: no event of it comes. Idempotent."""
        if not channel.gone:
            channel.closing = True
            channel.receiver.consumed = channel.receiver.received
            self.send_eof(channel)
