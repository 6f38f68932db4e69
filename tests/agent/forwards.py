"""The forwarder as a process, at Unix sockets for vsock: ``-m tests.agent.forwards DIRECTORY --fd N``."""

from __future__ import annotations

import os
import socket
import sys

from uvm.agent.connection import Connection
from uvm.agent.forwarder import Forwarder
from uvm.agent.logs import Log
from uvm.agent.loop import Loop
from uvm.agent.port import Port


def main() -> None:
    """Forward until the host has gone."""
    directory, fd = sys.argv[1], int(sys.argv[3])

    def listen(number: int) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.bind(f"{directory}/.{number}")
        made.listen()
        # It is there once it can be connected to.
        os.replace(f"{directory}/.{number}", f"{directory}/{number}")
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
