"""Random bytes of the host, which the kernel's generator is seeded with.

A VM that starts from the memory of another would draw the same numbers: the bytes count as entropy, and the
generator is reseeded at once, which it would otherwise do only minutes later.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from uvm._wire.ports import ENTROPY_BYTES
from uvm.agent.connection import Connection, Receiver
from uvm.agent.logs import Log

_RNDADDENTROPY: Final = 0x40085203
_RNDRESEEDCRNG: Final = 0x5207


def seed(data: bytes) -> None:
    """Seed the kernel's generator.

    :raises OSError: only root may.
    """
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", 8 * len(data), len(data)) + data)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


class EntropyReceiver(Receiver):
    """Reads the host's random bytes to their end, and seeds the kernel's generator with them."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._data = b""
        self.connection: Connection | None = None

    def received(self, data: bytes) -> None:
        """Take bytes; more than the protocol says are not needed."""
        self._data = (self._data + data)[:ENTROPY_BYTES]
        if self.connection is not None:
            self.connection.consumed(len(data))

    def ended(self) -> None:
        """Use them."""
        if self._data:
            try:
                seed(self._data)
            except OSError as error:
                self._log.warning(f"the random bytes of the host were not used: {error}")
        if self.connection is not None:
            self.connection.send_eof()
