"""The standard streams of a process: which ones it gets, their connections to the host, its ends and ours.

The host listens at a port for each stream before it asks for the process; the guest dials them all, or
refuses. What the host did not ask for is ``/dev/null``. A terminal is one descriptor for all three.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from uvm.agent.connection import Connection, Dialer, Receiver
from uvm.agent.loop import Loop
from uvm.agent.processes import set_size
from uvm.agent.refused import Refused
from uvm.agent.relays import Descriptor, Input, Output
from uvm.agent.settings import Settings

NAMES: Final = ("StdIn", "StdOut", "StdErr")
_MOST_PORT: Final = 0xFFFFFFFF

Connections = dict[str, Connection]


def asked_ports(parameters: Settings, settings: Settings) -> dict[str, int]:
    """Return the ports of the streams that a process is to have, by name.

    :param parameters: the process's parameters.
    :param settings: the request's settings.
    """
    relay = settings.part("VsockStdioRelaySettings") or Settings({})
    asked = [name for name in NAMES if parameters.flag(f"Create{name}Pipe")]
    return {name: relay.number(name, _MOST_PORT) for name in asked}


class Dialing:
    """The connections of a process, being dialled: all of them, or none.

    :param then: called with them, or with why there are none.
    """

    def __init__(
        self,
        dialer: Dialer,
        ports: Mapping[str, int],
        then: Callable[[Connections, Refused | None], object],
    ) -> None:
        self._then = then
        self._ports = ports
        self._awaited = len(ports)
        self._connections = {name: dialer.dial(port, _Dialed(self, name)) for name, port in ports.items()}
        if not ports:
            then({}, None)

    def opened(self) -> None:
        """Note that one was accepted."""
        self._awaited -= 1
        if not self._awaited:
            self._then(self._connections, None)

    def failed(self, name: str) -> None:
        """Close them all: one was refused."""
        if self._awaited > 0:
            self._awaited = -1
            close_all(self._connections)
            problem = f"vsock Dial port ({self._ports[name]}) failed: connection refused"
            self._then({}, Refused(f"failed creating {name.lower()} Connection: {problem}"))


class _Dialed(Receiver):
    """Waits for one connection to be accepted."""

    def __init__(self, dialing: Dialing, name: str) -> None:
        self._dialing, self._name = dialing, name

    def opened(self) -> None:
        self._dialing.opened()

    def closed(self) -> None:
        self._dialing.failed(self._name)


def close_all(connections: Connections) -> None:
    """Close the connections of a process that does not start."""
    for connection in connections.values():
        connection.close()


class Streams:
    """Both ends of the standard streams of a process.

    :ivar child: the process's ends, until :meth:`close_child`.
    :ivar terminal: the master end of its terminal; None if it has none.
    """

    child: tuple[int, int, int]
    terminal: int | None

    def __init__(
        self, child: tuple[int, int, int], ours: dict[str, int], terminal: int | None = None
    ) -> None:
        self.child, self.terminal = child, terminal
        self._ours = ours
        self._input: Input | None = None

    def close_child(self) -> None:
        """Close the process's ends here: it has its own, or does not start."""
        for fd in set(self.child):
            os.close(fd)

    def close(self) -> None:
        """Close our ends: there is no process."""
        for fd in {*self._ours.values()} if self.terminal is None else {self.terminal}:
            os.close(fd)

    def relay(self, loop: Loop, connections: Connections, on_output_end: Callable[[], object]) -> None:
        """Pass on what comes, in both directions.

        :param on_output_end: called when all that is written to the terminal was read; only of a terminal.
        """
        if self.terminal is not None:
            self._relay_terminal(Descriptor(loop, self.terminal, 2), connections, on_output_end)
            return
        for name, fd in self._ours.items():
            end = Descriptor(loop, fd)
            if name == "StdIn":
                self._input = Input(end, connections[name])
            else:
                Output(end, connections[name], lambda: None)

    def _relay_terminal(
        self, terminal: Descriptor, connections: Connections, on_output_end: Callable[[], object]
    ) -> None:
        def ended() -> None:
            self.terminal = None
            on_output_end()

        # Both outputs are one.
        Output(terminal, connections.get("StdOut"), ended)
        if "StdIn" in connections:
            self._input = Input(terminal, connections["StdIn"], terminal=True)
        else:
            terminal.release()
        if "StdErr" in connections:
            connections["StdErr"].close()

    def end_input(self) -> None:
        """Close the input: the process has exited."""
        if self._input is not None:
            self._input.end()


def pipes(names: Mapping[str, object]) -> Streams:
    """Make pipes for some of the standard streams."""
    child, ours = [], {}
    for name in NAMES:
        if name not in names:
            child.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            continue
        reader, writer = os.pipe2(os.O_CLOEXEC)
        mine, its = (writer, reader) if name == "StdIn" else (reader, writer)
        ours[name] = mine
        child.append(its)
    return Streams((child[0], child[1], child[2]), ours)


def terminal(height: int, width: int) -> Streams:
    """Make a terminal of a size, in characters; 0 leaves it unknown."""
    master, slave = os.openpty()
    set_size(master, height, width)
    return Streams((slave, slave, slave), {}, master)
