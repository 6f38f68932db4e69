"""An agent that is broken or hostile on demand; no image but that of the tests contains it.

An image whose service is this module (:mod:`tests.qemu.hostile`) behaves as any other until a process is
started whose program is named ``fault``: ``["fault", "panic"]``. Each fault is one of:

=============  ============================================================================================
``exit``       the first process ends, and with it the kernel
``panic``      the kernel panics
``hang``       the agent stops, with all that it serves
``garbage``    bytes that are no frame of the mux
``half``       half a frame, and nothing after it
``open``       connections are opened without end, to ports that nothing listens at
``overrun``    more bytes on the bridge's connection than the host allows
``lie``        an answer to a request that was never made
``flood``      notifications without end
``log``        lines of the log without end
``console``    output on the console without end
=============  ============================================================================================
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Final

from uvm._wire.frames import Kind, Procedure, encode
from uvm.agent import __main__ as production
from uvm.agent.agent import Agent
from uvm.agent.connection import Receiver
from uvm.agent.refused import Refused
from uvm.agent.requests import Request
from uvm.agent.service import ITSELF
from uvm.agent.settings import Settings

#: How much is done at once by a fault without end.
_BATCH: Final = 100
_OVERRUN_BYTES: Final = 1 << 24
#: A frame that announces more bytes than follow.
_HALF: Final = (2).to_bytes(4, "little") + (1).to_bytes(4, "little") + (60_000).to_bytes(4, "little")


class Faults:
    """The faults of one agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._table: dict[str, Callable[[], object]] = {
            "exit": lambda: os._exit(1),
            "panic": _panic,
            "hang": lambda: time.sleep(1 << 20),
            "garbage": lambda: self._write(b"\xff\xfe\xfd" * 100),
            "half": lambda: self._write(_HALF),
            "open": lambda: self._forever(self._open),
            "overrun": self._overrun,
            "lie": lambda: self._send(encode(Kind.RESPONSE, Procedure.START, 1 << 40, {"Result": 0})),
            "flood": lambda: self._forever(self._notify),
            "log": lambda: self._forever(lambda: self._agent.log.info("x" * 4096)),
            "console": lambda: self._forever(lambda: os.write(2, b"x" * 4096 + b"\n")),
        }
        agent.service.add(Procedure.EXECUTE_PROCESS, self._intercept, ITSELF)

    def _intercept(self, request: Request) -> None:
        settings = request.read().part("Settings") or Settings({})
        args = Settings(request.document("ProcessParameters", settings)).texts("CommandArgs")
        if args[:1] != ["fault"]:
            self._agent.processes.execute(request)
            return
        fault = self._table.get(" ".join(args[1:]))
        if fault is None:
            raise Refused(f"there is no such fault; there are {', '.join(self._table)}")
        self._agent.loop.later(0, fault)

    def _write(self, data: bytes) -> None:
        """Write to the port, past the mux."""
        os.set_blocking(self._agent.port.fd, True)
        while data:
            data = data[os.write(self._agent.port.fd, data) :]
        os.set_blocking(self._agent.port.fd, False)

    def _send(self, data: bytes) -> None:
        self._agent.bridge.send(data)

    def _notify(self) -> None:
        self._agent.bridge.notify({"ContainerId": "c" * 60, "Type": "GracefulExit", "Operation": "None"})

    def _overrun(self) -> None:
        connection = self._agent.bridge.connection
        if connection is not None:
            connection.channel.sender.limit += 1 << 30
            connection.send(bytes(_OVERRUN_BYTES))

    def _open(self) -> None:
        # All that there can be are open, until the host refuses some.
        with contextlib.suppress(ConnectionRefusedError):
            self._agent.port.dial(0x7FFFFFFF, Receiver())

    def _forever(self, function: Callable[[], object]) -> None:
        for _ in range(_BATCH):
            function()
        self._agent.loop.later(0, lambda: self._forever(function))


def _panic() -> None:
    with open("/proc/sysrq-trigger", "w", encoding="ascii") as file:
        file.write("c")


def main() -> None:
    """Run the agent with its faults."""
    production.main(Faults)


if __name__ == "__main__":
    main()
