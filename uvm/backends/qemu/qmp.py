"""QMP: how QEMU is asked, and what it reports.

How it works
------------

One task serves a connection: it negotiates, reads what QEMU sends, and writes what did not fit at once. Each
command has an id, by which its answer finds its caller, in any order::

    callers --> [ commands to write ] --> QEMU --> answers --> callers
                                               --> events  --> on_event, at once

A caller who is cancelled leaves at once. A command that was not begun to be written is withdrawn; the outcome
of any other is unknown, and its answer is dropped. The connection stays usable in both cases, as
no line is ever written in part.

QEMU has been fed by a guest: its lines are bounded, and whatever is no message of QMP ends the connection. No
event is kept here.

Source: QEMU docs/interop/qmp-spec.rst.
"""

from __future__ import annotations

import array
import json
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Final

import anyio
import anyio.abc
import anyio.lowlevel
from attrs import define, field

from uvm._async import Flag, Line
from uvm.backend import JSON

#: The longest line that is read; the block devices of a full VM are a twentieth of it.
MAX_LINE_BYTES: Final = 16 << 20
_READ_BYTES: Final = 65536


class QMPError(Exception):
    """QEMU refused a command.

    :ivar command: the name of the command.
    :ivar kind: the class of the error, such as ``DeviceNotFound``.
    :ivar text: QEMU's description.
    """

    def __init__(self, command: str, kind: str, text: str) -> None:
        super().__init__(f"{command}: {text} ({kind})")
        self.command = command
        self.kind = kind
        self.text = text


class QMPClosedError(Exception):
    """The connection to QEMU is closed.

    :ivar sent: the command had been sent, so that its outcome is unknown.
    """

    def __init__(self, command: str, sent: bool) -> None:
        super().__init__(f"{command}: the connection to QEMU is closed")
        self.command = command
        self.sent = sent


@define(eq=False)
class _Command:
    """A command, until its answer."""

    name: str
    data: memoryview
    fds: Sequence[int] = ()
    begun: bool = False
    answer: JSON | None = None
    ended: Flag = field(factory=Flag)


class QMP:
    """A connection to QEMU's monitor.

    :param sock: the connected socket, which belongs to the connection from now on.
    :param on_event: called with the name and the data of each event, in its order; it may not wait.
    :ivar version: QEMU's version, as it says it when it greets.
    """

    def __init__(self, sock: socket.socket, on_event: Callable[[str, JSON], None]) -> None:
        sock.setblocking(False)
        self.version: JSON = {}
        self._socket = sock
        self._on_event = on_event
        self._ids = count(1)
        self._waiting: dict[int, _Command] = {}
        self._unsent: deque[_Command] = deque()
        self._more = Line()
        self._greeted = Flag()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the connection is closed, by either side."""
        return self._closed

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve the connection until QEMU closes it: ``await tasks.start(qmp.serve)``; it raises nothing.

        It has started when QEMU takes commands, or the connection is closed.
        """
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write)
                tasks.start_soon(self._negotiate, task_status)
                await self._read()
                # The other tasks end with it.
                self.close()
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection at once; whatever was asked ends with QMPClosedError."""
        if self._closed:
            return
        self._closed = True
        anyio.notify_closing(self._socket)
        self._socket.close()
        self._greeted.set()
        self._more.wake()
        self._unsent.clear()
        for command in self._waiting.values():
            command.ended.set()

    async def execute(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, fds: Sequence[int] = ()
    ) -> Any:
        """Have QEMU carry out a command, and return what it returns.

        :param fds: file descriptors that go with it (for ``getfd`` and ``add-fd``); they stay the caller's.
        :raises QMPError: QEMU refused.
        :raises QMPClosedError: the connection is closed.
        """
        if self._closed:
            raise QMPClosedError(name, sent=False)
        await anyio.lowlevel.checkpoint_if_cancelled()
        number = next(self._ids)
        document: JSON = {"execute": name, "id": number}
        if arguments:
            document["arguments"] = arguments
        command = _Command(name, memoryview(json.dumps(document).encode() + b"\r\n"), fds)
        self._waiting[number] = command
        self._unsent.append(command)
        self._more.wake()
        try:
            await command.ended.wait()
        except BaseException:
            if not command.begun and command in self._unsent:
                self._unsent.remove(command)
                self._waiting.pop(number, None)
            raise
        return _result(command)

    async def _negotiate(self, task_status: anyio.abc.TaskStatus[None]) -> None:
        await self._greeted.wait()
        try:
            await self.execute("qmp_capabilities")
        except (QMPError, QMPClosedError):
            self.close()
        task_status.started()

    async def _write(self) -> None:
        try:
            while not self._closed:
                if not self._unsent:
                    await self._more.wait()
                elif self._send(self._unsent[0]):
                    self._unsent.popleft()
                else:
                    await anyio.wait_writable(self._socket)
        except (OSError, anyio.ClosedResourceError):
            self.close()

    def _send(self, command: _Command) -> bool:
        """Send what the socket takes of a command; return whether that was the rest of it."""
        rights: list[Any] = []
        if command.fds and not command.begun:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", command.fds))]
        try:
            sent = self._socket.sendmsg([command.data], rights)
        except BlockingIOError:
            return False
        command.begun = True
        command.data = command.data[sent:]
        return not command.data

    async def _read(self) -> None:
        line = bytearray()
        try:
            while True:
                await anyio.wait_readable(self._socket)
                try:
                    data = self._socket.recv(_READ_BYTES)
                except BlockingIOError:
                    continue
                if not data:
                    return
                *whole, rest = data.split(b"\n")
                for each in whole:
                    self._take(bytes(line) + each)
                    line.clear()
                line += rest
                if len(line) > MAX_LINE_BYTES:
                    return
        except (OSError, ValueError, RecursionError, anyio.ClosedResourceError):
            return

    def _take(self, line: bytes) -> None:
        """Take one line; ValueError if it is no message."""
        if not line.strip():
            return
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("no message of QMP")
        if "QMP" in message:
            self.version = message["QMP"]
            self._greeted.set()
        elif "event" in message:
            data = message.get("data", {})
            self._on_event(str(message["event"]), data if isinstance(data, dict) else {})
        else:
            number = message.get("id")
            command = self._waiting.pop(number, None) if isinstance(number, int) else None
            if command is not None:
                command.answer = message
                command.ended.set()


def _result(command: _Command) -> Any:
    if command.answer is None:
        raise QMPClosedError(command.name, command.begun)
    error = command.answer.get("error")
    if error is None:
        return command.answer.get("return")
    error = error if isinstance(error, dict) else {}
    raise QMPError(command.name, str(error.get("class", "GenericError")), str(error.get("desc", "")))
