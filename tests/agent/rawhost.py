"""A host that asks the agent frame by frame: the agent as a process, over a socket pair."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections import defaultdict, deque
from types import TracebackType
from typing import Any

from tests.wire.muxes import receive
from uvm._wire.channels import Channel
from uvm._wire.frames import HostSide, Notification, Procedure, Response
from uvm._wire.mux import Mux
from uvm._wire.muxevents import Data, Ended, Event, Greeted, Opened, Reset
from uvm._wire.ports import FIRST_STDIO_PORT, LINUX_GCS_PORT
from uvm.agent.requests import GUEST

#: Everything that a test waits for comes long before this.
LIMIT_SECONDS = 20


class RawHost:
    """The host. It listens for the agent's service, and at whatever else a test says.

    :ivar channels: those that the agent opened and that are there, by port, the oldest first.
    :ivar received: what came on each channel, by its id.
    :ivar ended: the channels that the agent has ended or reset, by id.
    """

    def __init__(self, *ports: int, arguments: tuple[str, ...] = ("-m", "uvm.agent")) -> None:
        ours, theirs = socket.socketpair()
        self.socket = ours
        command = (sys.executable, "-S", *arguments, "--fd", str(theirs.fileno()))
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        ours.setblocking(False)
        self.setup(*ports)

    def setup(self, *ports: int) -> None:
        self.mux = Mux(guest=False)
        self.mux.connect(os.urandom(16))
        self.channels: dict[int, deque[Channel]] = defaultdict(deque)
        self.received: dict[int, bytearray] = defaultdict(bytearray)
        self.ended: set[int] = set()
        self.greeted: list[bool] = []
        self.side = HostSide()
        self.answers: dict[int, dict[str, Any]] = {}
        self.notifications: list[dict[str, Any]] = []
        self._next_port = FIRST_STDIO_PORT
        for port in (LINUX_GCS_PORT, *ports):
            self.mux.listen(port)

    def __enter__(self) -> RawHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()
        try:
            self.process.wait(LIMIT_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()

    # The link.

    def step(self) -> None:
        """Write what there is to write, and read what comes."""
        writing = [self.socket] if self.mux.outgoing() else []
        readable, writable, _ = select.select([self.socket], writing, [], LIMIT_SECONDS)
        if not readable and not writable:
            raise TimeoutError("the agent says nothing")
        if writable:
            self.mux.written(self.socket.send(b"".join(self.mux.outgoing())))
        if readable:
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError("the agent has gone")
            for event in receive(self.mux, data):
                self._take(event)
            while self.mux.more:
                for event in receive(self.mux):
                    self._take(event)

    def flush(self) -> None:
        """Write all that there is to write."""
        while buffers := self.mux.outgoing():
            select.select([], [self.socket], [], LIMIT_SECONDS)
            self.mux.written(self.socket.send(b"".join(buffers)))

    def _take(self, event: Event) -> None:
        match event:
            case Opened(channel):
                self.channels[channel.port].append(channel)
            case Data(channel, data):
                self.mux.consumed(channel, len(data))
                self.received[channel.id] += data
                if channel.port == LINUX_GCS_PORT:
                    self._take_messages(data)
            case Ended(channel) | Reset(channel):
                self.ended.add(channel.id)
            case Greeted(resumed):
                self.greeted.append(resumed)
            case _:
                pass

    def _take_messages(self, data: bytes) -> None:
        for message in self.side.receive(data):
            if isinstance(message, Response):
                self.answers[message.id] = message.body
            else:
                assert isinstance(message, Notification)
                self.notifications.append(message.body)

    def listen(self) -> int:
        """Listen at a new port."""
        self._next_port += 1
        self.mux.listen(self._next_port)
        return self._next_port

    def channel(self, port: int) -> Channel:
        """Wait for the agent to open a channel to a port."""
        while not self.channels[port]:
            self.step()
        return self.channels[port].popleft()

    def read_all(self, channel: Channel) -> bytes:
        """Return all that comes on a channel until it ends."""
        while channel.id not in self.ended:
            self.step()
        return bytes(self.received[channel.id])

    def write(self, channel: Channel, data: bytes) -> None:
        """Send all of some bytes."""
        while data:
            data = data[self.mux.send(channel, data) :]
            if data:
                self.step()

    # Requests.

    def begin(self, procedure: int, body: Any = None, container_id: str = GUEST) -> int:
        """Send a request, and return its id."""
        request = {"ContainerId": container_id, "ActivityId": "a", **(body or {})}
        request_id, data = self.side.request(procedure, json.dumps(request))
        self.write(self.service, data)
        return request_id

    def answer(self, request_id: int) -> dict[str, Any]:
        """Wait for an answer."""
        while request_id not in self.answers:
            self.step()
        return self.answers.pop(request_id)

    def ask(self, procedure: int, body: Any = None, container_id: str = GUEST) -> dict[str, Any]:
        """Return the answer to a request."""
        return self.answer(self.begin(procedure, body, container_id))

    def connect(self) -> dict[str, Any]:
        """Wait for the agent's service, and negotiate."""
        self.service = self.channel(LINUX_GCS_PORT)
        return self.ask(Procedure.NEGOTIATE_PROTOCOL, {"MinimumVersion": 4, "MaximumVersion": 4})

    def execute(self, *args: str, ports: dict[str, int] | None = None, **parameters: Any) -> dict[str, Any]:
        """Ask for a process; `ports` are those of its streams, by name: ``StdIn`` and its kind."""
        ports = ports or {}
        asked = {f"Create{name}Pipe": True for name in ports}
        document = {"CommandArgs": args, **asked, **parameters}
        settings = {"ProcessParameters": json.dumps(document), "VsockStdioRelaySettings": ports}
        return self.ask(Procedure.EXECUTE_PROCESS, {"Settings": settings})

    def run(self, *args: str, **parameters: Any) -> int:
        """Run a process without streams, and return its exit code."""
        started = self.execute(*args, **parameters)
        assert started["Result"] == 0, started
        return self.exit_code(started["ProcessId"])

    def exit_code(self, pid: int, milliseconds: int = 0xFFFFFFFF) -> int:
        """Return the exit code of a process."""
        answer = self.ask(Procedure.WAIT_FOR_PROCESS, {"ProcessId": pid, "TimeoutInMs": milliseconds})
        assert answer["Result"] == 0, answer
        return int(answer["ExitCode"])
