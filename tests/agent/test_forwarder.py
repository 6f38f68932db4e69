"""Connections of another guest's compute service, which are forwarded to the host over the mux."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.agent.forwards import LISTENING
from tests.agent.rawhost import LIMIT_SECONDS, RawHost
from uvm._wire.channels import Channel
from uvm._wire.ports import LINUX_GCS_PORT, LINUX_LOG_PORT


class Sockets:
    """The sockets at which the guest connects, in a directory, each named as its port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._there: set[int] = set()
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listening.settimeout(LIMIT_SECONDS)
        self.listening.bind(str(directory / LISTENING))

    def wait(self, port: int) -> str:
        """Wait until a port is listened at, and return the path of its socket."""
        while port not in self._there:
            self._there.add(int(self.listening.recv(100)))
        return str(self.directory / str(port))


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[Sockets]:
    made = Sockets(tmp_path)
    with made.listening:
        yield made


@pytest.fixture
def host(sockets: Sockets) -> Iterator[RawHost]:
    with RawHost(LINUX_LOG_PORT, arguments=("-m", "tests.agent.forwards", str(sockets.directory))) as host:
        # It has met the host then.
        log = host.channel(LINUX_LOG_PORT)
        host.channels[LINUX_LOG_PORT].append(log)
        yield host


def dial(host: RawHost, sockets: Sockets, port: int) -> tuple[socket.socket, Channel]:
    """Connect as the guest does, and return both ends."""
    host.flush()
    path = sockets.wait(port)
    guest = socket.socket(socket.AF_UNIX)
    guest.settimeout(LIMIT_SECONDS)
    guest.connect(path)
    return guest, host.channel(port)


def exactly(sock: socket.socket, size: int) -> bytes:
    """Read so many bytes."""
    read = bytearray()
    while len(read) < size:
        read += sock.recv(size - len(read))
    return bytes(read)


def test_each_direction_is_carried_to_its_own_end(host: RawHost, sockets: Sockets) -> None:
    guest, channel = dial(host, sockets, host.listen())
    with guest:
        guest.sendall(b"of the guest")
        guest.shutdown(socket.SHUT_WR)
        assert host.read_all(channel) == b"of the guest"
        host.write(channel, b"of the host")
        host.mux.send_eof(channel)
        host.flush()
        assert guest.recv(100) == b"of the host"
        assert guest.recv(100) == b""


def test_what_an_end_does_not_read_waits_and_is_whole(host: RawHost, sockets: Sockets) -> None:
    guest, channel = dial(host, sockets, host.listen())
    data = os.urandom(1 << 20)
    # Much of it goes, and more than both ends keep does not.
    taken = 0
    while count := host.mux.send(channel, data[taken:]):
        taken += count
        host.flush()
    assert 0 < taken < len(data)
    with guest, ThreadPoolExecutor(1) as other:
        reading = other.submit(exactly, guest, len(data))
        host.write(channel, data[taken:])
        host.flush()
        assert reading.result() == data
        writing = other.submit(guest.sendall, data)
        while len(host.received[channel.id]) < len(data):
            host.step()
        assert host.received[channel.id] == data
        writing.result()


def test_a_connection_that_the_host_resets_is_closed_and_the_next_is_another(
    host: RawHost, sockets: Sockets
) -> None:
    for _ in range(2):
        guest, channel = dial(host, sockets, LINUX_GCS_PORT)
        with guest:
            host.mux.reset(channel)
            host.flush()
            assert guest.recv(100) == b""


def test_a_port_is_listened_at_as_long_as_the_host_listens(host: RawHost, sockets: Sockets) -> None:
    port = host.listen()
    guest, _ = dial(host, sockets, port)
    guest.close()
    host.mux.unlisten(port)
    host.flush()
    # What is asked after it is answered after it.
    dial(host, sockets, LINUX_GCS_PORT)[0].close()
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
        late.connect(sockets.wait(port))


def test_the_service_starts_with_its_log_once_the_host_listens_for_both(host: RawHost) -> None:
    log = host.channel(LINUX_LOG_PORT)
    while not host.received[log.id]:
        host.step()
    assert host.received[log.id] == b"the service has started\n"


def test_a_port_that_cannot_be_listened_at_keeps_no_other_from_it(host: RawHost, sockets: Sockets) -> None:
    taken = host.listen()
    (sockets.directory / str(taken)).mkdir()
    guest, channel = dial(host, sockets, host.listen())
    with guest:
        guest.sendall(b"of the guest")
        guest.shutdown(socket.SHUT_WR)
        assert host.read_all(channel) == b"of the guest"


def test_a_connection_waits_for_a_descriptor(host: RawHost, sockets: Sockets) -> None:
    port = host.listen()
    guest, channel = dial(host, sockets, port)
    limits = resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, (0, limits[1]))
    with guest, socket.socket(socket.AF_UNIX) as waits:
        waits.connect(sockets.wait(port))
        # What comes of this one has come after the other could not be accepted.
        guest.sendall(b"of the first")
        while host.received[channel.id] != b"of the first":
            host.step()
        resource.prlimit(host.process.pid, resource.RLIMIT_NOFILE, limits)
        host.channel(port)
