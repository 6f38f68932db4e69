"""The standard streams of a process: which ones it gets, their connections to the host, its ends and ours.

The host listens at a port for each stream before it asks for the process; the guest dials them all, or
refuses. What the host did not ask for is ``/dev/null``. A terminal is one descriptor for all three.

A container's first process gets its pipes, all three, when the container is made, and the host says only as
it starts the process which of them it wants: the others are closed then. A terminal in a container is made by
its runtime.

Source: hcsshim internal/guest/stdio/stdio.go.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final, TypeAlias

from uvm.agent.connection import Connection, Dialer, Receiver
from uvm.agent.loop import Loop
from uvm.agent.refused import Refused
from uvm.agent.relays import PIPE_BYTES, Descriptor, Input, Output
from uvm.agent.requests import Request
from uvm.agent.settings import Settings

NAMES: Final = ("StdIn", "StdOut", "StdErr")
_OUTPUTS: Final = NAMES[1:]
_MOST_PORT: Final = 0xFFFFFFFF

Connections: TypeAlias = dict[str, Connection]
#: A process's own ends of its three streams.
Child: TypeAlias = tuple[int, int, int]


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

    :param request: asks for the process; it is refused if a connection is.
    :param then: called with the connections.
    """

    def __init__(
        self,
        dialer: Dialer,
        ports: Mapping[str, int],
        request: Request,
        then: Callable[[Connections], object],
    ) -> None:
        self._request, self._then = request, then
        self._ports = ports
        self._awaited = len(ports)
        self._connections = {name: dialer.dial(port, _Dialed(self, name)) for name, port in ports.items()}
        if not ports:
            then({})

    def opened(self) -> None:
        """Note that one was accepted."""
        self._awaited -= 1
        if not self._awaited:
            self._then(self._connections)

    def failed(self, name: str) -> None:
        """Close them all: one was refused."""
        if self._awaited > 0:
            self._awaited = -1
            close_all(self._connections)
            port = self._ports[name]
            # The host of a guest has the address 2.
            address = f"00000002.{port:08x}"
            problem = f"vsock Dial port ({port}) failed: failed connect() to {address}: connection refused"
            self._request.refuse(Refused(f"failed creating {name.lower()} Connection: {problem}"))


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
    """Our ends of the standard streams of a process.

    :param pipes: those of its pipes, by name.
    :ivar terminal: the master end of its terminal, while that is open; None if it has none.
    """

    terminal: int | None

    def __init__(self, pipes: Mapping[str, int], terminal: int | None = None) -> None:
        self._pipes = dict(pipes)
        self.terminal = terminal
        self._input: Input | None = None
        self._unread: set[str] = set()

    def start(self, child: Child, start: Callable[[], int]) -> int:
        """Start the process by a function that returns its id.

        :param child: its own ends, which are closed here; ours are too if it does not start.
        """
        try:
            return start()
        except BaseException:
            self.close()
            raise
        finally:
            for fd in set(child):
                os.close(fd)

    def close(self) -> None:
        """Close them: there is no process, or the host wants none of them."""
        for name in list(self._pipes):
            os.close(self._pipes.pop(name))
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None

    def relay(self, loop: Loop, connections: Connections, on_end: Callable[[], object]) -> None:
        """Pass on what comes, in both directions, and close what the host does not want.

        :param on_end: called once all that was written was read.
        """
        if self.terminal is None:
            self._relay_pipes(loop, connections, on_end)
        else:
            self._relay_terminal(Descriptor(loop, self.terminal, 2), connections, on_end)

    def _relay_pipes(self, loop: Loop, connections: Connections, on_end: Callable[[], object]) -> None:
        pipes, self._pipes = self._pipes, {}
        for name in pipes.keys() - connections.keys():
            os.close(pipes.pop(name))
        self._unread = {name for name in _OUTPUTS if name in pipes}
        if not self._unread:
            on_end()

        def ended(name: str) -> None:
            self._unread.discard(name)
            if not self._unread:
                on_end()

        for name, fd in pipes.items():
            if name in _OUTPUTS:
                Output(Descriptor(loop, fd), connections[name], partial(ended, name))
            else:
                self._input = Input(Descriptor(loop, fd), connections[name])

    def _relay_terminal(
        self, terminal: Descriptor, connections: Connections, on_end: Callable[[], object]
    ) -> None:
        def ended() -> None:
            self.terminal = None
            on_end()

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


def pipes(wanted: Collection[str]) -> tuple[Child, Streams]:
    """Make the streams of a process: pipes for those that are wanted, by name."""
    child, ours = [], {}
    for name in NAMES:
        if name not in wanted:
            child.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            continue
        reader, writer = os.pipe2(os.O_CLOEXEC)
        # A user who has many pipes gets no larger ones.
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        ours[name], its = (writer, reader) if name == "StdIn" else (reader, writer)
        child.append(its)
    return (child[0], child[1], child[2]), Streams(ours)


def terminal(height: int, width: int) -> tuple[Child, Streams]:
    """Make a terminal of a size, in characters; 0 leaves it unknown."""
    master, slave = os.openpty()
    set_size(master, height, width)
    return (slave, slave, slave), Streams({}, master)


def set_size(terminal: int, height: int, width: int) -> None:
    """Set the size of a terminal, in characters."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
