"""What connects the backend with what runs in a VM."""

from __future__ import annotations

from typing import Protocol

from uvm.backend import ByteStream, Listener


class GuestListener(Listener, Protocol):
    """A listener that can also be closed where nothing can be awaited: when the VM's exit is told."""

    def close(self) -> None:
        """Stop listening at once. Again, it does nothing."""


class Transport(Protocol):
    """Listeners for the connections of guests, and the standard streams of processes that the host started.

    :class:`~uvm.backends.hcs.hvsocket.HvSocketTransport` is that of Windows; tests have others.
    """

    async def listen(self, runtime_id: str, service_id: str) -> GuestListener:
        """Listen for one VM (its Hyper-V id) to dial a service (a GUID).

        :raises HostError: the host refuses.
        """

    def open_pipe(self, handle: int) -> ByteStream:
        """Make a stream of a standard handle that HCS gave for a process; it owns the handle from now on.

        :raises HostError: it is not a handle for overlapped I/O; it is closed then.
        """

    async def aclose(self) -> None:
        """Close all listeners and streams that are left, and end the threads. Again, it does nothing."""
