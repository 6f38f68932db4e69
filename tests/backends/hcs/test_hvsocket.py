"""The transport of Windows, over loopback addresses: the same code with another address family."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator, Callable
from uuid import UUID

import anyio
import pytest

from tests.backends.hcs.descriptors import new_transport
from tests.backends.hcs.pipepairs import make_pipe_pair
from uvm.backends.hcs.hvsocket import (
    HYPERV,
    AddressFamily,
    HvSocketTransport,
    SocketApi,
    StandardSockets,
    WinsockSockets,
    system_sockets,
)
from uvm.errors import HostError, NotSupportedError, OptionsError

pytestmark = pytest.mark.anyio

VM = "8d4b9d4c-4f2e-4c6b-9a55-5f4a3b1c2d3e"
SERVICE = "40000000-facb-11e6-bd58-64006a7986d3"


def loopback_address() -> str:
    """Return an address of this process: other test runs share the machine's ports."""
    if sys.platform not in ("linux", "win32"):
        # Other systems have only this one.
        return "127.0.0.1"
    high, low = divmod(os.getpid(), 250)
    return f"127.{1 + low}.{high % 256}.1"


ADDRESS = loopback_address()


class Loopback:
    """An address family in which every service of every VM is a port of its own, from 1."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[tuple[UUID, UUID]] = []
        self.family = AddressFamily(socket.AF_INET, 0, self._address, self._raw_address)

    def _address(self, vm_id: UUID, service_id: UUID) -> tuple[str, str | int]:
        self.asked.append((vm_id, service_id))
        if not self.port:
            with socket.create_server((ADDRESS, 0)) as free:
                self.port = free.getsockname()[1]
        return ADDRESS, self.port

    def _raw_address(self, vm_id: UUID, service_id: UUID) -> bytes:
        host, port = self._address(vm_id, service_id)
        assert isinstance(port, int)
        assert isinstance(host, str)
        return struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_aton(host) + bytes(8)


@pytest.fixture
def loopback() -> Loopback:
    return Loopback()


@pytest.fixture(
    params=[
        StandardSockets,
        pytest.param(
            WinsockSockets, marks=pytest.mark.skipif(sys.platform != "win32", reason="Winsock is Windows's")
        ),
    ]
)
def api(request: pytest.FixtureRequest, loopback: Loopback) -> SocketApi:
    made: Callable[[AddressFamily], SocketApi] = request.param
    return made(loopback.family)


@pytest.fixture
async def transport(api: SocketApi) -> AsyncIterator[HvSocketTransport]:
    made = new_transport(api)
    yield made
    await made.aclose()


def dial(loopback: Loopback) -> socket.socket:
    return socket.create_connection((ADDRESS, loopback.port), timeout=30)


async def test_the_guest_dials_and_both_talk(transport: HvSocketTransport, loopback: Loopback) -> None:
    listener = await transport.listen(VM, SERVICE)
    assert loopback.asked == [(UUID(VM), UUID(SERVICE))]
    with dial(loopback) as guest:
        stream = await listener.accept()
        guest.sendall(b"hello")
        assert await stream.receive() == b"hello"
        await stream.send(b"welcome")
        assert guest.recv(100) == b"welcome"
        await stream.send_eof()
        assert guest.recv(100) == b""
        guest.close()
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


async def test_accept_waits_for_the_guest(transport: HvSocketTransport, loopback: Loopback) -> None:
    listener = await transport.listen(VM, SERVICE)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.accept)
        await anyio.wait_all_tasks_blocked()
        dial(loopback).close()


async def test_no_socket_blocks_nor_is_inherited(api: SocketApi, loopback: Loopback) -> None:
    with api.listen(UUID(VM), UUID(SERVICE)) as listening:
        with pytest.raises(BlockingIOError):
            api.accept(listening)
        with dial(loopback), accept_soon(api, listening) as accepted:
            for sock in (listening, accepted):
                assert not sock.getblocking()
                assert not sock.get_inheritable()
            with pytest.raises(BlockingIOError):
                accepted.recv(1)


def accept_soon(api: SocketApi, listening: socket.socket) -> socket.socket:
    while True:
        try:
            return api.accept(listening)
        except BlockingIOError:
            continue


async def test_a_closed_listener_is_gone(transport: HvSocketTransport, loopback: Loopback) -> None:
    listener = await transport.listen(VM, SERVICE)
    await listener.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await listener.accept()
    with pytest.raises(ConnectionRefusedError):
        dial(loopback)
    await transport.listen(VM, SERVICE)


async def test_a_service_has_one_listener(transport: HvSocketTransport, loopback: Loopback) -> None:
    await transport.listen(VM, SERVICE)
    with pytest.raises(HostError) as caught:
        await transport.listen(VM, SERVICE)
    assert caught.value.name == ("WSAEADDRINUSE" if sys.platform == "win32" else "E_FAIL")
    assert str(caught.value).startswith(f"listen for VM {VM} on service {SERVICE}: ")
    assert caught.value.text
    with dial(loopback):
        pass


@pytest.mark.parametrize(
    "vm_id",
    [
        "",
        "vm-1",
        "00000000-0000-0000-0000-000000000000",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "{90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd}",
    ],
)
async def test_one_listens_to_one_vm_only(
    transport: HvSocketTransport, loopback: Loopback, vm_id: str
) -> None:
    with pytest.raises(OptionsError):
        await transport.listen(vm_id, SERVICE)
    with pytest.raises(OptionsError):
        await transport.listen(VM, "no service")
    assert not loopback.asked


async def test_closing_the_transport_closes_all_that_is_left(
    transport: HvSocketTransport, loopback: Loopback
) -> None:
    threads = set(threading.enumerate())
    listener = await transport.listen(VM, SERVICE)
    pipe, other = map(transport.pipes.open, make_pipe_pair())
    with dial(loopback) as guest:
        stream = await listener.accept()

        async def closed(wait: Callable[[], object]) -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await wait()  # type: ignore[misc]

        async with anyio.create_task_group() as tasks:
            for wait in (listener.accept, stream.receive, pipe.receive, other.receive):
                tasks.start_soon(closed, wait)
            await anyio.wait_all_tasks_blocked()
            await transport.aclose()
        await transport.aclose()
        assert guest.recv(1) == b""
    assert set(threading.enumerate()) <= threads
    with pytest.raises(anyio.ClosedResourceError):
        await transport.listen(VM, SERVICE)
    for handle in make_pipe_pair():
        with pytest.raises(anyio.ClosedResourceError):
            transport.pipes.open(handle)


def test_the_address_of_a_service_of_a_vm() -> None:
    vm_id, service_id = UUID(VM), UUID(SERVICE)
    assert HYPERV.address(vm_id, service_id) == (VM, SERVICE)
    # hvsocket.h: SOCKADDR_HV { ADDRESS_FAMILY Family; USHORT Reserved; GUID VmId; GUID ServiceId; }
    assert HYPERV.raw_address(vm_id, service_id) == bytes.fromhex(
        "22000000 4c9d4b8d2e4f6b4c9a555f4a3b1c2d3e 00000040cbfae611bd5864006a7986d3"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has them")
def test_elsewhere_there_are_no_hyperv_sockets() -> None:
    with pytest.raises(NotSupportedError, match="Windows"):
        HvSocketTransport()


@pytest.mark.skipif(sys.platform != "win32", reason="only Windows has them")
def test_hyperv_sockets_are_the_standard_library_s_since_python_3_12() -> None:
    assert isinstance(system_sockets(), StandardSockets if sys.version_info >= (3, 12) else WinsockSockets)
