"""The transport between the backend and what runs in a VM."""

from __future__ import annotations

from typing import Protocol

from uvm.backend import ByteStream, HostPipes, Listener


class GuestListener(Listener, Protocol):
    """A listener that can also be closed without awaiting: when the VM's exit is reported."""

    def close(self) -> None:
        """Stop listening at once. Idempotent."""


class Pipes(HostPipes, Protocol):
    """The pipes of the host; also makes streams of the handles of the standard streams of a process."""

    def open(self, handle: int) -> ByteStream:
        """Make a stream of a handle, and take the handle over, also if this fails.

        :raises HostError: the handle does not support overlapped I/O.
        """

    def close(self) -> None:
        """Close all streams. Idempotent."""


class Transport(Protocol):
    """Listeners for the connections of guests, and the pipes of the host.

    :class:`~uvm.backends.hcs.hvsocket.HvSocketTransport` is the one of Windows; tests have others.
    """

    @property
    def pipes(self) -> Pipes:
        """The pipes of the host."""

    async def listen(self, runtime_id: str, service_id: str) -> GuestListener:
        """Listen for one VM (its Hyper-V id) to dial a service (a GUID).

        :raises HostError: the host refuses.
        """

    async def aclose(self) -> None:
        """Close all remaining listeners and streams, and end the threads. Idempotent."""
