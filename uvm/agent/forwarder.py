"""The first process of a VM whose compute service is another guest's: hcsshim's own, ``/bin/gcs``.

That one dials vsock ports of its host, and this VM has a mux. In a machine without a vsock device the kernel
carries what is sent to the host over its loopback, so that the forwarder is that host::

    gcs -- vsock, port N --> Forwarder -- mux, port N --> the host that listens there
        -- error output ---> the port of the log, or the console

A port of vsock is listened at as long as the host listens at that of the mux, and one that it stops is not
connected to any more. Each direction of a connection ends by itself; one that is reset is reset at both ends.
The guest's own start is hcsshim's: random bytes first, then the service, whose end is that of the VM.

Source: hcsshim Makefile.bootfiles, init/init.c, vsockexec/vsockexec.c, internal/guest/transport.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from uvm._wire.ports import LINUX_ENTROPY_PORT, LINUX_GCS_PORT, LINUX_LOG_PORT
from uvm.agent.children import Children
from uvm.agent.connection import Connection, Receiver
from uvm.agent.entropy import EntropyReceiver
from uvm.agent.logs import Log
from uvm.agent.loop import READ, Loop
from uvm.agent.port import Port
from uvm.agent.relays import Descriptor, Output

_CHUNK: Final = 1 << 17
_BACKLOG: Final = 128
_CONSOLE: Final = 2
_ACCEPT_AGAIN_SECONDS: Final = 0.1

SERVICE: Final = ("/bin/gcs", "-v4", "-log-format", "json", "-loglevel", "info", "-disable-time-sync")
#: It knows no modules: what it may use is there before.
_MODULES: Final = (
    *("vsock_loopback", "virtio_scsi", "sd_mod", "virtio_net", "virtio_rng", "9p", "9pnet_virtio"),
    *("dm_mod", "dm_verity", "ext4", "xfs", "erofs", "overlay", "veth", "bridge"),
)
#: It runs containers with runc; crun takes the same arguments.
_RUNC, _CRUN = "/usr/bin/runc", "/usr/bin/crun"

#: Returns a socket that listens at a port.
Listen = Callable[[int], socket.socket]


def at_vsock(port: int) -> socket.socket:
    """Return a socket that listens at a vsock port."""
    made = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        made.bind((socket.VMADDR_CID_ANY, port))
        made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


class Forwarder:
    """What the guest connects to, forwarded to the host.

    :param on_service: called once when the host listens for the service, with the connection of the log, if
        it listens for that.
    """

    def __init__(
        self,
        loop: Loop,
        port: Port,
        log: Log,
        on_service: Callable[[Connection | None], object],
        listen: Listen = at_vsock,
    ) -> None:
        self._loop, self._port, self._log, self._listen = loop, port, log, listen
        self._on_service: Callable[[Connection | None], object] | None = on_service
        self._sockets: dict[int, socket.socket] = {}
        port.on_listening = self._listening
        port.on_not_listening = self._not_listening

    def _listening(self, number: int) -> None:
        if number == LINUX_ENTROPY_PORT:
            receiver = EntropyReceiver(self._log)
            receiver.connection = self._port.dial(number, receiver, lasting=False)
        elif number not in self._sockets and number != LINUX_LOG_PORT:
            self._listen_at(number)
        if number == LINUX_GCS_PORT and self._on_service is not None:
            # What else the host listens at comes with it.
            self._loop.post(self._start_service)

    def _listen_at(self, number: int) -> None:
        try:
            sock = self._sockets[number] = self._listen(number)
        except OSError as error:
            self._log.warning(f"port {number} cannot be listened at: {error}")
            return
        sock.setblocking(False)
        self._watch(number, sock)

    def _watch(self, number: int, sock: socket.socket) -> None:
        """Accept what connects to a port, unless the host has stopped listening meanwhile."""
        if self._sockets.get(number) is sock:
            self._loop.watch(sock.fileno(), READ, lambda events: self._accept(number, sock))

    def _not_listening(self, number: int) -> None:
        sock = self._sockets.pop(number, None)
        if sock is not None:
            self._loop.unwatch(sock.fileno())
            sock.close()

    def _accept(self, number: int, sock: socket.socket) -> None:
        try:
            accepted, _ = sock.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # What waits stays ready, and there may be no descriptor for it for a while.
            self._log.warning(f"port {number}: {error}")
            self._loop.unwatch(sock.fileno())
            self._loop.later(_ACCEPT_AGAIN_SECONDS, lambda: self._watch(number, sock))
            return
        try:
            Relay(self._loop, self._port, number, accepted)
        except ConnectionRefusedError as error:
            self._log.warning(f"port {number}: {error}")
            accepted.close()

    def _start_service(self) -> None:
        on_service, self._on_service = self._on_service, None
        if on_service is not None:
            listened = self._port.is_listening(LINUX_LOG_PORT)
            on_service(self._port.dial(LINUX_LOG_PORT, Receiver()) if listened else None)


class Relay(Receiver):
    """One connection of the guest, both directions."""

    def __init__(self, loop: Loop, port: Port, number: int, sock: socket.socket) -> None:
        self._sock = sock
        self._descriptor = Descriptor(loop, sock.fileno())
        self._pending = bytearray()
        self._read_ended = self._write_ended = self._host_ended = False
        self._connection: Connection = port.dial(number, self, lasting=number != LINUX_GCS_PORT)
        self.writable()

    def writable(self) -> None:
        """Go on: the host has room."""
        if not self._read_ended:
            self._descriptor.wait(read=self._read)

    def _read(self) -> None:
        room = min(_CHUNK, self._connection.room)
        if not room:
            self._descriptor.stop(read=True)
            self._connection.wait_for_room()
            return
        try:
            data = self._sock.recv(room)
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        if data:
            self._connection.send(data)
        else:
            self._read_ended = True
            self._descriptor.stop(read=True)
            self._connection.send_eof()
            self._close_if_ended()

    def received(self, data: bytes) -> None:
        """Pass on what the host sends, now or as the guest takes it."""
        self._pending += data
        if len(self._pending) == len(data):
            self._write()

    def ended(self) -> None:
        """End the direction to the guest, after all was passed on."""
        self._host_ended = True
        self._write()

    def closed(self) -> None:
        """End both: the host has."""
        self._descriptor.stop(read=True, write=True)
        self._sock.close()

    def _write(self) -> None:
        try:
            while self._pending:
                size = self._sock.send(memoryview(self._pending)[:_CHUNK])
                del self._pending[:size]
                self._connection.consumed(size)
        except BlockingIOError:
            self._descriptor.wait(write=self._write)
            return
        except OSError:
            self._close()
            return
        self._descriptor.stop(write=True)
        if self._host_ended and not self._write_ended:
            self._write_ended = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
            self._close_if_ended()

    def _close_if_ended(self) -> None:
        if self._read_ended and self._write_ended:
            self._close()

    def _close(self) -> None:
        self._connection.close()
        self.closed()


def main() -> None:
    """Be the first process of the VM."""
    from uvm.agent import boot
    from uvm.agent.modules import Modules
    from uvm.agent.workload import protect_agent

    boot.mount_all()
    protect_agent()
    log = Log(_CONSOLE)
    modules = Modules()
    fd = boot.open_port(modules)
    modules.need(*_MODULES)
    if not os.path.exists(_RUNC):
        os.symlink(_CRUN, _RUNC)
    loop = Loop(log.bug)
    children = Children(loop)
    port = Port(loop, fd, log.error)
    Forwarder(loop, port, log, lambda connection: _start(SERVICE, loop, children, log, connection))
    loop.run()


def _start(
    command: Sequence[str], loop: Loop, children: Children, log: Log, connection: Connection | None
) -> None:
    """Start the service; the VM ends with it."""
    from uvm.agent import syscalls
    from uvm.agent.spawning import PATH, Command, spawn

    def ended(code: int) -> None:
        log.say(f"{command[0]} has ended: {code}")
        syscalls.power_off()

    read, write = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    errors = _CONSOLE if connection is None else write
    children.start(lambda: spawn(Command(command, {"PATH": PATH}), (null, errors, errors)), ended)
    os.close(write)
    os.close(null)
    if connection is None:
        os.close(read)
    else:
        Output(Descriptor(loop, read), connection, lambda: None)
