"""The standard streams of a process in a container: our ends of its pipes, or of its terminal.

A container's first process gets its pipes, all three, when the container is made, and the host says only as
it starts the process which of them it wants: the others are closed then. Another process has ``/dev/null``
for what the host does not want.

The exit of a process in a container is reported once all that it wrote was read, or the host wants no more.

Source: hcsshim internal/guest/stdio/stdio.go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final

from uvm.agent.loop import Loop
from uvm.agent.relays import Descriptor, Input, Output
from uvm.agent.streams import NAMES, Connections

_OUTPUTS: Final = NAMES[1:]


class Ends:
    """Our ends of the standard streams of one process.

    :param pipes: by name.
    :ivar terminal: the master end of its terminal, while that is open; None if it has none.
    """

    def __init__(self, pipes: Mapping[str, int], terminal: int | None = None) -> None:
        self._pipes = dict(pipes)
        self.terminal = terminal
        self._input: Input | None = None
        self._unread: set[str] = set()

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

        Output(terminal, connections.get("StdOut"), ended)
        if "StdIn" in connections:
            self._input = Input(terminal, connections["StdIn"], terminal=True)
        else:
            terminal.release()
        # Both outputs are one.
        if "StdErr" in connections:
            connections["StdErr"].close()

    def end_input(self) -> None:
        """Close the input: the process has exited."""
        if self._input is not None:
            self._input.end()


class Pipes:
    """Both ends of the pipes of a process.

    :param wanted: the names of the streams that are pipes; the others are ``/dev/null``.
    :ivar child: the process's ends, until :meth:`close_child`.
    """

    def __init__(self, wanted: Collection[str]) -> None:
        child: list[int] = []
        self._ours: dict[str, int] = {}
        for name in NAMES:
            if name not in wanted:
                child.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
                continue
            reader, writer = os.pipe2(os.O_CLOEXEC)
            self._ours[name], its = (writer, reader) if name == "StdIn" else (reader, writer)
            child.append(its)
        self.child: tuple[int, int, int] = (child[0], child[1], child[2])

    def close_child(self) -> Ends:
        """Close the process's ends here, and return ours."""
        for fd in self.child:
            os.close(fd)
        return Ends(self._ours)
