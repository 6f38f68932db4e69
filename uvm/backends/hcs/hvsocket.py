"""Hyper-V sockets: the guest of a VM connects to the host.

A listener is bound to the id of one VM and to a service, so that only that VM can reach it. The services that
a VM may connect to are listed in its document (``HvSocketConfig``); nothing is registered on the host.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable
from typing import Final, Protocol
from uuid import UUID

import anyio
import anyio.lowlevel
from attrs import frozen

from uvm._repr import Value
from uvm.backends.hcs import winsock
from uvm.backends.hcs.pipes import NamedPipes
from uvm.backends.hcs.sockets import SocketListener, Sockets
from uvm.backends.hcs.text import guid
from uvm.backends.hcs.transport import Pipes
from uvm.backends.winerrors import host_error
from uvm.errors import NotSupportedError, OptionsError

AF_HYPERV: Final = 34
HV_PROTOCOL_RAW: Final = 1
#: The backlog, as in hcsshim; the guest's further connections are refused.
BACKLOG: Final = 16

#: Ids that stand for many partitions, or for one that is no utility VM (hvsocket.h).
_WILDCARDS: Final = {
    UUID("00000000-0000-0000-0000-000000000000"): "every partition",
    UUID("ffffffff-ffff-ffff-ffff-ffffffffffff"): "a broadcast",
    UUID("90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd"): "every child partition",
    UUID("e0e16197-dd56-4a10-9195-5ee7a155a838"): "the host itself",
    UUID("a42e7cda-d03f-480c-9cc2-a4de20abb878"): "the parent partition",
    UUID("36bd0c5c-7276-4223-88ba-7d03b654c568"): "the host of a silo",
}


@frozen(repr=False)
class AddressFamily(Value):
    """A family of sockets, and its addresses.

    :ivar address: returns the address in the form of the standard library.
    :ivar raw_address: returns the bytes of its ``sockaddr``.
    """

    family: int
    protocol: int
    address: Callable[[UUID, UUID], tuple[str, str | int]]
    raw_address: Callable[[UUID, UUID], bytes]


def _hyperv_address(vm_id: UUID, service_id: UUID) -> tuple[str, str | int]:
    return str(vm_id), str(service_id)


def _hyperv_raw_address(vm_id: UUID, service_id: UUID) -> bytes:
    """Return a ``SOCKADDR_HV``: family, reserved, VM, service."""
    return struct.pack("<HH", AF_HYPERV, 0) + vm_id.bytes_le + service_id.bytes_le


#: Hyper-V sockets.
HYPERV: Final = AddressFamily(AF_HYPERV, HV_PROTOCOL_RAW, _hyperv_address, _hyperv_raw_address)


class SocketApi(Protocol):
    """Makes sockets: non-blocking, and not inherited by child processes."""

    def listen(self, vm_id: UUID, service_id: UUID) -> socket.socket:
        """Return a listening socket; OSError if the system refuses."""

    def accept(self, sock: socket.socket) -> socket.socket:
        """Accept a pending connection; BlockingIOError if there is none, or OSError."""


@frozen(eq=False, repr=False)
class StandardSockets:
    """:class:`SocketApi` of the standard library, which supports AF_HYPERV since Python 3.12."""

    family: AddressFamily = HYPERV

    def listen(self, vm_id: UUID, service_id: UUID) -> socket.socket:
        """Return a listening socket; OSError if the system refuses."""
        return _listening(self.family, lambda sock: sock.bind(self.family.address(vm_id, service_id)))

    def accept(self, sock: socket.socket) -> socket.socket:
        """Accept a pending connection; BlockingIOError if there is none, or OSError."""
        accepted, _ = sock.accept()
        accepted.setblocking(False)
        return accepted


@frozen(eq=False, repr=False)
class WinsockSockets:
    """:class:`SocketApi` for Python 3.11: calls that take an address go to Winsock directly."""

    family: AddressFamily = HYPERV

    def listen(self, vm_id: UUID, service_id: UUID) -> socket.socket:
        """Return a listening socket; OSError if the system refuses."""
        raw_address = self.family.raw_address(vm_id, service_id)
        return _listening(self.family, lambda sock: winsock.bind(sock.fileno(), raw_address))

    def accept(self, sock: socket.socket) -> socket.socket:
        """Accept a pending connection; BlockingIOError if there is none, or OSError."""
        number = winsock.accept(sock.fileno())
        # With all three given, Python does not need to decode the socket's address.
        accepted = socket.socket(sock.family, sock.type, sock.proto, fileno=number)
        accepted.set_inheritable(False)
        accepted.setblocking(False)
        return accepted


def _listening(family: AddressFamily, bind: Callable[[socket.socket], None]) -> socket.socket:
    sock = socket.socket(family.family, socket.SOCK_STREAM, family.protocol)
    try:
        sock.setblocking(False)
        bind(sock)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def system_sockets() -> SocketApi:
    """Return the Hyper-V sockets of this Python.

    :raises NotSupportedError: this is not Windows.
    """
    if sys.platform == "win32":
        return StandardSockets() if hasattr(socket, "AF_HYPERV") else WinsockSockets()
    else:  # noqa: RET505 - mypy takes what follows for unreachable on Windows
        raise NotSupportedError("Hyper-V sockets exist on Windows only")


class HvSocketTransport:
    """The :class:`~uvm.backends.hcs.transport.Transport` of Windows.

    It takes two threads for any number of VMs: one for all sockets and one for all pipes, started when
    needed.

    :param api: makes the sockets; by default Hyper-V sockets.
    :param sockets: has its streams and listeners, and is closed with it.
    :param pipes: makes streams of handles, and is closed with it; by default named pipes.
    :ivar pipes: the pipes of the host.
    """

    def __init__(
        self, api: SocketApi | None = None, sockets: Sockets | None = None, pipes: Pipes | None = None
    ) -> None:
        self._api: Final = api or system_sockets()
        self._sockets: Final = sockets or Sockets()
        self.pipes: Final[Pipes] = pipes or NamedPipes()
        self._closed = False

    async def listen(self, runtime_id: str, service_id: str) -> SocketListener:
        """Listen for one VM (its Hyper-V id) to dial a service (a GUID).

        :raises OptionsError: an argument is no GUID, or `runtime_id` stands for more than one VM.
        :raises HostError: Windows refuses, for instance with WSAEADDRINUSE if the address is in use.
        :raises anyio.ClosedResourceError: the transport is closed.
        """
        await anyio.lowlevel.checkpoint()
        if self._closed:
            raise anyio.ClosedResourceError
        vm_id, service = _vm_id(runtime_id), guid(service_id, "the id of a service")
        try:
            sock = self._api.listen(vm_id, service)
        except OSError as error:
            raise host_error(f"listen for VM {vm_id} on service {service}", error) from error
        return self._sockets.listener(sock, self._api.accept)

    async def aclose(self) -> None:
        """Close all remaining listeners and streams, and end the threads. Idempotent."""
        self._closed = True
        self._sockets.close()
        self.pipes.close()
        await anyio.lowlevel.checkpoint()


def _vm_id(text: str) -> UUID:
    vm_id = guid(text, "the id of a VM")
    if vm_id in _WILDCARDS:
        raise OptionsError(f"listen for VM {vm_id}: this id stands for {_WILDCARDS[vm_id]}, not for one VM")
    return vm_id
