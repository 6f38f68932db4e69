"""The guest's connections as callers of a VM see them: by service, and with the VM's exit as their end."""

from __future__ import annotations

import anyio
from attrs import define, field

from uvm._wire.ports import vsock_port
from uvm.backend import ByteStream, Listener
from uvm.backends.qemu.exits import Exit
from uvm.backends.qemu.muxlink import MuxLink
from uvm.errors import BridgeClosedError, HostError, VMExitedError, WireError
from uvm.hresult import HResult


@define(eq=False, repr=False)
class GuestLink:
    """What a guest can be listened for with.

    :ivar vm_id: the id of the compute system.
    """

    vm_id: str
    connections: MuxLink
    _exit: Exit

    async def listen(self, service_id: str) -> Listener:
        """Listen for connections of the guest to a vsock port, by its service.

        :raises HostError: E_INVALIDARG if it is no vsock port's; or the port is listened at.
        :raises VMExitedError: the VM exits.
        :raises BridgeClosedError: the guest broke the protocol.
        """
        port = vsock_port(service_id)
        if port is None:
            text = f"{service_id} is no vsock port's service, and Linux guests reach no others"
            raise HostError(f"listen on {self.vm_id}", HResult.E_INVALIDARG, text)
        try:
            return _GuestListener(self, self.connections.listen(port))
        except anyio.ClosedResourceError:
            raise await self.error() from None

    async def error(self) -> Exception:
        """Return why the guest cannot connect any more: it broke the protocol, or the VM exits."""
        failure = self.connections.failure
        if isinstance(failure, WireError):
            return BridgeClosedError(f"{self.vm_id}: the guest broke its connection: {failure}")
        return VMExitedError(f"VM {self.vm_id} has exited", await self._exit.wait())


@define(eq=False, repr=False)
class _GuestListener:
    """Listens for the guest's connections to a port (:class:`~uvm.backend.Listener`)."""

    _link: GuestLink
    _listener: Listener
    _closed: bool = field(default=False, init=False)

    async def accept(self) -> ByteStream:
        """Wait for the next connection; VMExitedError once the VM has exited."""
        try:
            return await self._listener.accept()
        except anyio.ClosedResourceError:
            if self._closed:
                raise
        raise await self._link.error()

    async def aclose(self) -> None:
        """Stop listening."""
        self._closed = True
        await self._listener.aclose()
