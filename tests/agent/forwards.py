"""The forwarder as a process, at Unix sockets for vsock: ``-m tests.agent.forwards DIRECTORY --fd N``."""

from __future__ import annotations

import socket
import sys

from uvm.agent.connection import Connection
from uvm.agent.forwarder import Forwarder
from uvm.agent.logs import Log
from uvm.agent.loop import Loop
from uvm.agent.port import Port

#: The socket at which the number of each port comes that is listened at.
LISTENING = "listening"


def main() -> None:
    """Forward until the host has gone."""
    directory, fd = sys.argv[1], int(sys.argv[3])

    def listen(number: int) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.bind(f"{directory}/{number}")
        made.listen()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
            listening.sendto(str(number).encode(), f"{directory}/{LISTENING}")
        return made

    def started(log: Connection | None) -> None:
        if log is not None:
            log.send(b"the service has started\n")

    log = Log(2)
    loop = Loop(log.bug)
    port = Port(loop, fd, log.error)
    Forwarder(loop, port, log, started, listen)
    port.on_gone = loop.stop
    loop.run()


if __name__ == "__main__":
    main()
