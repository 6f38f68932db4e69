"""A host for a guest's compute service: it speaks the protocol through the codec, and nothing else."""

from __future__ import annotations

import json
import math
from typing import Any

import anyio
from attrs import define, field

from uvm._wire.frames import HostSide, Notification, Procedure, Response
from uvm._wire.ports import LINUX_GCS_PORT, vsock_service_id
from uvm.backend import JSON, ByteStream, Listener, System
from uvm.schema.gcs import HOST_CONTAINER_ID, WAIT_FOREVER_MS

GCS = vsock_service_id(LINUX_GCS_PORT)
ACTIVITY = "aaaaaaaa-0000-0000-0000-000000000001"
STREAMS = ("StdIn", "StdOut", "StdErr")


@define
class GuestHost:
    """The host's end: sends requests and keeps what comes, until it is asked for.

    :ivar patience_seconds: how long the guest may take for anything.
    """

    system: System
    listener: Listener
    stream: ByteStream
    side: HostSide = field(factory=HostSide)
    answers: dict[int, Response] = field(factory=dict)
    notifications: list[JSON] = field(factory=list)
    order: list[str] = field(factory=list)
    patience_seconds: float = 10
    os: str = "linux"
    _port: int = LINUX_GCS_PORT

    async def send(self, procedure: int, container: str = HOST_CONTAINER_ID, **fields: Any) -> int:
        """Send a request and return its id."""
        body = {"ContainerId": container, "ActivityId": ACTIVITY, **fields}
        request_id, data = self.side.request(procedure, body)
        await self.stream.send(data)
        return request_id

    async def pump(self) -> None:
        """Take what the guest sends next."""
        for message in self.side.receive(await self.stream.receive()):
            if isinstance(message, Notification):
                self.notifications.append(message.body)
                self.order.append(f"notification of {message.body['ContainerId']}")
            else:
                assert isinstance(message, Response)
                self.answers[message.id] = message
                self.order.append(f"answer {message.id}")

    async def answer(self, request_id: int) -> JSON:
        """Wait for an answer."""
        with anyio.fail_after(self.patience_seconds):
            while request_id not in self.answers:
                await self.pump()
        return self.answers.pop(request_id).body

    async def ask(self, procedure: int, container: str = HOST_CONTAINER_ID, **fields: Any) -> JSON:
        """Make a request that is carried out, and return the answer."""
        body = await self.answer(await self.send(procedure, container, **fields))
        assert body["Result"] == 0, body
        return body

    async def refusal(
        self, procedure: int, container: str = HOST_CONTAINER_ID, **fields: Any
    ) -> tuple[int, str]:
        """Make a request that is refused, and return the code and the message."""
        body = await self.answer(await self.send(procedure, container, **fields))
        assert body["Result"] != 0, body
        return body["Result"] & 0xFFFFFFFF, body["ErrorMessage"]

    async def notification(self) -> JSON:
        """Wait for a notification."""
        with anyio.fail_after(self.patience_seconds):
            while not self.notifications:
                await self.pump()
        return self.notifications.pop(0)

    async def negotiate(self) -> JSON:
        return await self.ask(Procedure.NEGOTIATE_PROTOCOL, "", MinimumVersion=4, MaximumVersion=4)

    async def redial(self) -> None:
        """Take the next connection of the guest, and agree on the version."""
        with anyio.fail_after(self.patience_seconds):
            self.stream = await self.listener.accept()
        self.side.restart()
        await self.negotiate()

    async def listen(self) -> tuple[int | str, Listener]:
        """Listen for one standard stream: the port, or the service for Windows."""
        self._port += 1
        service = vsock_service_id(self._port)
        listener = await self.system.listen(service)
        return (service if self.os == "windows" else self._port), listener

    async def start_process(
        self, parameters: JSON, *streams: str, container: str = HOST_CONTAINER_ID
    ) -> HostedProcess:
        """Run a process with some of the standard streams."""
        addresses: JSON = {}
        listeners = {}
        for name in streams:
            addresses[name], listeners[name] = await self.listen()
        relay = "StdioRelaySettings" if self.os == "windows" else "VsockStdioRelaySettings"
        pipes = {f"Create{name}Pipe": True for name in STREAMS if name in streams}
        settings = {"ProcessParameters": json.dumps({**parameters, **pipes}), relay: addresses}
        body = await self.ask(Procedure.EXECUTE_PROCESS, container, Settings=settings)
        accepted = {name: await listener.accept() for name, listener in listeners.items()}
        for listener in listeners.values():
            await listener.aclose()
        return HostedProcess(self, container, body["ProcessId"], accepted)

    async def run(self, *args: str, **parameters: Any) -> HostedProcess:
        """Run a program in the guest itself, with all streams."""
        command: JSON = {"CommandArgs": list(args)}
        if self.os == "windows":
            command = {"CommandLine": " ".join(args)}
        return await self.start_process({**command, **parameters}, *STREAMS)


@define
class HostedProcess:
    """A process as the host sees it."""

    host: GuestHost
    container: str
    pid: int
    streams: dict[str, Any]

    async def wait(self, timeout_ms: int = WAIT_FOREVER_MS) -> int:
        body = await self.host.ask(
            Procedure.WAIT_FOR_PROCESS, self.container, ProcessId=self.pid, TimeoutInMs=timeout_ms
        )
        return int(body["ExitCode"])

    async def signal(self, number: int | str | None) -> None:
        options = {} if number is None else {"Options": {"Signal": number}}
        await self.host.ask(Procedure.SIGNAL_PROCESS, self.container, ProcessId=self.pid, **options)

    async def write(self, data: bytes) -> None:
        await self.streams["StdIn"].send(data)

    async def end_input(self) -> None:
        await self.streams["StdIn"].send_eof()

    async def read(self, name: str = "StdOut", size: float = math.inf) -> bytes:
        """Read a stream to its end, or so many bytes; at its end, close it."""
        data = b""
        stream = self.streams[name]
        with anyio.fail_after(self.host.patience_seconds):
            try:
                while len(data) < size:
                    data += await stream.receive()
            except anyio.EndOfStream:
                await stream.aclose()
        return data
