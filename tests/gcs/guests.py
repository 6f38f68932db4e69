"""A guest for tests of the connection: it answers what a test says, and dials the streams of processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
from attrs import define, field

from tests.gcs.support import PATIENCE_SECONDS, MemoryStream, ScriptedGuest
from uvm._gcs.connection import GuestConnection
from uvm._guest.timeouts import GuestTimeouts
from uvm._wire.frames import Procedure, Request, parse
from uvm._wire.ports import vsock_service_id
from uvm.backend import ByteStream, Listener
from uvm.backends.fake.streams import FakeStream, Switchboard
from uvm.errors import VMExitedError

JSON = dict[str, Any]
NULL_ID = "00000000-0000-0000-0000-000000000000"

LINUX: JSON = {
    "SupportedSchemaVersions": [{"Major": 2, "Minor": 1}],
    "RuntimeOsType": "linux",
    "GuestDefinedCapabilities": {
        "NamespaceAddRequestSupported": True,
        "SignalProcessSupported": True,
        "DumpStacksSupported": True,
        "DeleteContainerStateSupported": True,
    },
}
WINDOWS: JSON = {
    "SendHostCreateMessage": True,
    "SendHostStartMessage": True,
    "HvSocketConfigOnStartup": True,
    "ModifyServiceSettingsSupported": True,
    "RuntimeOsType": "Windows",
    "GuestDefinedCapabilities": {"SignalProcessSupported": True, "LogForwardingSupported": True},
}


@define
class Refusal:
    """An answer that is none: a result, as an unsigned number, and a message."""

    result: int
    message: str = ""


Answer = JSON | Refusal | None
#: What to answer a request, by its body; None holds the request back.
Answerer = Callable[[JSON], Answer]


@define(eq=False, slots=False)
class Guest:
    """A guest that answers each procedure as a test says. What it says nothing of succeeds.

    :ivar answers: what to answer, by procedure.
    :ivar asked: the bodies of all requests, in order.
    :ivar held: the requests that were not answered.
    :ivar streams: our ends of the streams that were dialled, by name: ``StdIn``, ``StdOut``, ``StdErr``.
    :ivar listeners: the listeners that the host has opened.
    """

    capabilities: JSON = field(factory=lambda: LINUX)
    answers: dict[Procedure, Answerer] = field(factory=dict)
    asked: list[tuple[Procedure, JSON]] = field(factory=list)
    held: dict[Procedure, list[Request]] = field(factory=lambda: defaultdict(list))
    streams: dict[str, FakeStream] = field(factory=dict)
    listeners: list[CountedListener] = field(factory=list)
    script: ScriptedGuest = field(factory=ScriptedGuest)
    dials: bool = True
    pid: int = 7
    _switchboard: Switchboard = field(factory=lambda: Switchboard("vm"))
    _changed: anyio.Event = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._changed = anyio.Event()
        self.answers[Procedure.NEGOTIATE_PROTOCOL] = lambda _: {
            "Version": 4,
            "Capabilities": self.capabilities,
        }
        self.answers[Procedure.EXECUTE_PROCESS] = self.start_process
        self.answers[Procedure.WAIT_FOR_PROCESS] = lambda _: None

    async def listen(self, service_id: str) -> Listener:
        """The host listens."""
        listener = CountedListener(self._switchboard.listen(service_id))
        self.listeners.append(listener)
        return listener

    def start_process(self, body: JSON) -> JSON:
        """Dial the streams of a process, and say that it runs."""
        settings = body["Settings"]
        relayed = settings.get("VsockStdioRelaySettings") or settings.get("StdioRelaySettings") or {}
        for name, where in relayed.items():
            service_id = vsock_service_id(where) if isinstance(where, int) else where
            if self.dials:
                self.streams[name] = self._switchboard.dial(service_id)
        return {"ProcessId": self.pid}

    async def serve(self) -> None:
        """Take the requests of one stream, and answer them."""
        try:
            while True:
                request = await self.script.next()
                procedure, body = Procedure(request.procedure), parse(request.payload)
                self.asked.append((procedure, body))
                answerer = self.answers.get(procedure)
                self.answer(request, answerer(body) if answerer else {})
                self._changed.set()
                self._changed = anyio.Event()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return

    def answer(self, request: Request, answer: Answer) -> None:
        """Answer a request, or hold it back."""
        if answer is None:
            self.held[Procedure(request.procedure)].append(request)
        elif isinstance(answer, Refusal):
            self.script.refuse(request, answer.result, answer.message)
        else:
            self.script.respond(request, **answer)

    def answer_held(self, procedure: Procedure, answer: JSON | Refusal) -> None:
        """Answer the request of a kind that was held back first."""
        self.answer(self.held[procedure].pop(0), answer)

    def exit(self, code: int = 0) -> None:
        """The process exits: its streams end, and the wait for it is answered."""
        for name in ("StdOut", "StdErr", "StdIn"):
            if name in self.streams:
                self.streams.pop(name).close()
        self.answer_held(Procedure.WAIT_FOR_PROCESS, {"ExitCode": code})

    def break_streams(self) -> None:
        """Break the streams of the processes, as the end of a VM does."""
        self._switchboard.close(VMExitedError("the VM has exited"))

    async def until_asked(self, procedure: Procedure, times: int = 1) -> JSON:
        """Wait until something was asked so often; give the body of the last of them."""
        while len(self.bodies(procedure)) < times:
            await self._changed.wait()
        return self.bodies(procedure)[-1]

    def bodies(self, procedure: Procedure) -> list[JSON]:
        """Give the bodies of all requests of a kind."""
        return [body for each, body in self.asked if each is procedure]


@define(eq=False)
class CountedListener:
    """A listener that counts how often it was closed."""

    listener: Any
    closed: int = 0

    async def accept(self) -> ByteStream:
        """Wait for the next connection."""
        stream: ByteStream = await self.listener.accept()
        return stream

    async def aclose(self) -> None:
        """Stop listening."""
        self.closed += 1
        await self.listener.aclose()


@asynccontextmanager
async def connected(
    guest: Guest,
    *,
    timeouts: GuestTimeouts | None = None,
    redial: Callable[[], Awaitable[MemoryStream]] | None = None,
) -> AsyncIterator[GuestConnection]:
    """A connection to a guest that is served, and was greeted. It is closed at the end."""
    connection = GuestConnection(guest.listen, name="vm", timeouts=timeouts or GuestTimeouts(), redial=redial)
    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            stream = guest.script.dial()
            tasks.start_soon(guest.serve)
            await tasks.start(connection.serve, stream)
            yield connection
            connection.close()


async def undone(connection: GuestConnection) -> None:
    """Wait until what was begun for callers who have left is finished or undone."""
    while connection._link.late_starts:
        await anyio.lowlevel.checkpoint()


class Redial:
    """The guest dials again, when a test says so."""

    def __init__(self, guest: Guest, tasks: anyio.abc.TaskGroup) -> None:
        self._guest = guest
        self._tasks = tasks
        self._asked = anyio.Event()
        self._allowed = anyio.Event()

    async def __call__(self) -> MemoryStream:
        """The host waits for the guest to dial again."""
        self._asked.set()
        await self._allowed.wait()
        self._asked, self._allowed = anyio.Event(), anyio.Event()
        stream = self._guest.script.dial()
        self._tasks.start_soon(self._guest.serve)
        return stream

    async def wait_for_host(self) -> None:
        """Wait until the host has noticed that the connection is gone."""
        await self._asked.wait()

    def dial(self) -> None:
        """Let the guest dial."""
        self._allowed.set()
