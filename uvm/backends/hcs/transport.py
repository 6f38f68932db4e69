"""The transport between the backend and what runs in a VM."""

from __future__ import annotations

from typing import Protocol

from uvm.backend import ByteStream, HostPipes, Listener


class GuestListener(Listener, Protocol):
    """A listener that can also be closed without awaiting: when the VM's exit is reported."""

    def close(self) -> None:
        """Stop listening at once. Idempotent."""


class Transport(Protocol):
    """Listeners for the connections of guests, and the standard streams of processes that the host started.

    :ivar pipes: the pipes of the host.

    :class:`~uvm.backends.hcs.hvsocket.HvSocketTransport` is the one of Windows; tests have others.
    """

    @property
    def pipes(self) -> HostPipes: ...

    async def listen(self, runtime_id: str, service_id: str) -> GuestListener:
        """Listen for one VM (its Hyper-V id) to dial a service (a GUID).

        :raises HostError: the host refuses.
        """

    def open_pipe(self, handle: int) -> ByteStream:
        """Make a stream of a standard handle of a process, and take the handle over.

        :raises HostError: the handle does not support overlapped I/O; it has been closed.
        """

    async def aclose(self) -> None:
        """Close all remaining listeners and streams, and end the threads. Idempotent."""
