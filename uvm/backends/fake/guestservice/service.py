"""The compute service of a fake guest: its connection to the host, and who answers which request.

It runs inside the task of somebody who waits for the VM (:meth:`~uvm.backends.fake.FakeSystem.wait`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, NoReturn

import anyio
import anyio.abc
import anyio.lowlevel

from uvm._wire.frames import GuestSide, Kind, Procedure, encode
from uvm.backend import JSON
from uvm.backends.fake.calls import Call
from uvm.backends.fake.guestservice import linux, windows
from uvm.backends.fake.guestservice.boot import boot_plan, take_entropy
from uvm.backends.fake.guestservice.containers import Container
from uvm.backends.fake.guestservice.hosting import Hosting
from uvm.backends.fake.guestservice.log import LAST_WORDS_SECONDS, GuestLog
from uvm.backends.fake.guestservice.messages import Incoming, unknown_message
from uvm.backends.fake.guestservice.misbehaviour import Reply
from uvm.backends.fake.guestservice.outlet import Outlet
from uvm.backends.fake.guestservice.processes import GuestProcess
from uvm.backends.fake.guestservice.programs import Program
from uvm.backends.fake.streams import FakeStream
from uvm.errors import BridgeClosedError, GuestError, HostError, WireError
from uvm.hresult import HResult
from uvm.schema.json import dumps

if TYPE_CHECKING:
    from uvm.backends.fake.backend import FakeBackend
    from uvm.backends.fake.vm import FakeVM
    from uvm.schema.system import VirtualMachine

#: What a guest that lacks a capability does not do.
_NEEDED: Final[dict[int, str]] = {
    Procedure.DUMP_STACKS: "DumpStacksSupported",
    Procedure.DELETE_CONTAINER_STATE: "DeleteContainerStateSupported",
}


class GuestService:
    """The compute service of one VM's guest. Its state outlives its connections.

    :ivar processes: everything that runs in the guest, by process id.
    :ivar external: the processes outside of containers whose exit nobody has been told yet.
    :ivar containers: the containers, by id.
    :ivar entropy: the random bytes that a Linux guest took from the host when it booted.
    :ivar log: what it writes for the host to read.
    :ivar log_settings: what the host last told a Windows guest's log forwarding service to record.
    :ivar phase: how far the host has come with a Windows guest: ``new``, ``created``, ``started``.
    """

    __slots__ = (
        "_backend",
        "_booted",
        "_hosting",
        "_last_pid",
        "_negotiated",
        "_outlet",
        "_plan",
        "_side",
        "_tasks",
        "_unsent",
        "containers",
        "entropy",
        "external",
        "log",
        "log_settings",
        "phase",
        "processes",
        "vm",
    )

    def __init__(self, vm: FakeVM, machine: VirtualMachine, backend: FakeBackend) -> None:
        self.vm: FakeVM = vm
        self.processes: dict[int, GuestProcess] = {}
        self.external: dict[int, GuestProcess] = {}
        self.containers: dict[str, Container] = {}
        self.entropy: bytes = b""
        self.log: GuestLog = GuestLog(vm, backend.clock, self.spawn)
        self.log_settings: str = ""
        # HCS sets the guest up that it is connected to itself.
        self.phase: str = "started" if vm.relays else "new"
        self._backend = backend
        self._plan = boot_plan(machine, vm.os)
        self._hosting = Hosting(self._run)
        self._booted = False
        self._last_pid = 0
        self._negotiated = False
        self._tasks: anyio.abc.TaskGroup | None = None
        self._side: GuestSide | None = None
        self._outlet: Outlet | None = None
        self._unsent: list[JSON] = []

    @property
    def connected(self) -> bool:
        """It has a connection to the host."""
        return self._outlet is not None

    @property
    def backend(self) -> FakeBackend:
        """The backend that the VM belongs to."""
        return self._backend

    def attend(self) -> Awaitable[NoReturn]:
        """Run the guest, or be ready to, until cancelled."""
        return self._hosting.attend()

    # What a test, or the host's misfortune, has it do.

    def drop(self) -> None:
        """Lose the connection; what is on its way to the host arrives. A Linux guest dials again."""
        if self._outlet is not None:
            self._outlet.close()

    def send(self, data: bytes) -> None:
        """Send bytes that need not be a message; nothing happens without a connection."""
        if self._outlet is not None:
            self._outlet.send(data)

    def notify(self, container_id: str, exit_type: str, activity_id: str = "") -> None:
        """Tell the exit of a container: HCS where it hosts that, else as soon as there is a connection."""
        hosted = self.vm.hosted_systems.get(container_id)
        if hosted is not None:
            hosted.exited(exit_type)
            return
        body = {"ContainerId": container_id, "ActivityId": activity_id, "Type": exit_type}
        self._notify({**body, "Operation": "None", "Result": 0})

    async def panic(
        self, reason: str = "runtime error: invalid memory address or nil pointer dereference"
    ) -> None:
        """Die as a Linux guest's service does: words on the log that are no JSON, and the end of the VM."""
        self.drop()
        await self.log.last_words(f"panic: {reason}\n\ngoroutine 1 [running]:\nmain.main()\n".encode())
        self.vm.crash()

    # Its tasks.

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> bool:
        """Start a task; False, and nothing happens, where nobody runs the guest any more."""
        if self._tasks is None:
            return False
        self._tasks.start_soon(function, *args)
        return True

    def new_pid(self) -> int:
        """Give a process id; Windows's are multiples of four."""
        self._last_pid += 1 if self.vm.os == "linux" else 4
        return 1000 + self._last_pid

    def start_process(self, process: GuestProcess, program: Program) -> None:
        """Run a process."""
        self.processes[process.pid] = process
        process.started = True
        self.spawn(process.run, program)

    def forget(self, process: GuestProcess) -> None:
        """Forget a process outside of containers, whose exit has been told."""
        self.external.pop(process.pid, None)

    def die(self) -> None:
        """Panic, as Go programs do that follow a pointer to nowhere; no answer comes."""
        self.spawn(self.panic)

    def exited(self, container: Container) -> None:
        """Tell of a container that ended."""
        self.notify(container.id, container.exit_type, container.activity_id)

    def shut_down(self) -> None:
        """End the VM in order, once the host has read what was sent to it."""
        self.spawn(self._shut_down)

    async def _shut_down(self) -> None:
        if self._outlet is not None:
            with anyio.move_on_after(LAST_WORDS_SECONDS):
                await self._outlet.stream.flush()
        await self.vm.until_running()
        if self._outlet is not None:
            self._outlet.stream.close()
        self.vm.shutdown()

    async def _run(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        try:
            await self.vm.until_running()
            if self.log.service_id:
                self.log.forward(self.log.service_id)
            if not self._booted:
                await self._boot()
            while True:
                await self._serve(await self._dial())
                self.log.line("bridge connection lost, will reconnect", level="warning")
                if self.vm.os == "windows":
                    await anyio.sleep_forever()
        finally:
            self._tasks = None

    async def _dial(self) -> FakeStream:
        """Dial the host's end of the connection, unless a fault has it that the guest does not come."""
        await self.vm.until_listening(self._plan.service)
        call = self._backend.request_log.begin("guest", self.vm.id, "connect", None)
        try:
            await self._backend.exchange.carry_out(call, lambda: None, self.vm)
        except Exception as e:
            self.log.line(f"bridge: {e}", level="error")
            await anyio.sleep_forever()
        return await self.vm.dial_when_listening(self._plan.service)

    async def _boot(self) -> None:
        if self._plan.entropy:
            self.entropy = await take_entropy(await self.vm.dial_when_listening(self._plan.entropy))
        if self._plan.output:
            self.log.open(await self.vm.dial_when_listening(self._plan.output))
        self._booted = True
        self.log.line("GCS started")

    # The connection.

    async def _serve(self, stream: FakeStream) -> None:
        side = self._side = GuestSide()
        self._outlet = Outlet(stream, self.vm, self.spawn)
        self._negotiated = False
        unsent, self._unsent = self._unsent, []
        for body in unsent:
            self._notify(body)
        try:
            while True:
                data = await stream.receive()
                if self._paused:
                    await self.vm.until_running()
                for request in side.receive(data):
                    self._take(Incoming(*request, side, self.vm.os == "windows"))
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
        except WireError as e:
            self.log.line(f"bridge: {e}", level="error")
        finally:
            stream.close()
            self._outlet = self._side = None

    @property
    def _paused(self) -> bool:
        return self.vm.state != "Running"

    def _take(self, request: Incoming) -> None:
        exchange = self._backend.exchange
        handler = self._handler(request)
        call = request.call = self._begin(request)

        def change() -> JSON | None:
            if self.vm.state == "Stopped":
                raise BridgeClosedError(f"the guest of {self.vm.id} does not answer: the VM has exited")
            return handler(self, request)

        if not exchange.is_immediate("guest"):
            self.spawn(self._carry_out, request, change)
            return
        try:
            answer = exchange.carry_out_at_once(call, change)
        except GuestError as e:
            self.refuse(request, e)
        except BridgeClosedError:
            return  # an earlier request of the same bytes has ended the VM
        else:
            self.answer(request, answer)

    def _begin(self, request: Incoming) -> Call:
        """Log the request; one that changes settings, as the change that it asks for."""
        document: Any = request.body
        change: JSON = {}
        if request.procedure == Procedure.MODIFY_SETTINGS:
            document = request.body.get("Request")
            change = document if isinstance(document, dict) else {}
        resource, request_type = change.get("ResourceType") or "", change.get("RequestType") or ""
        return self._backend.request_log.begin(
            "guest", self.vm.id, request.operation, document, str(resource), str(request_type)
        )

    async def _carry_out(self, request: Incoming, change: Callable[[], JSON | None]) -> None:
        try:
            answer = await self._backend.exchange.carry_out(request.call, change, self.vm)
        except GuestError as e:
            self.refuse(request, e)
        except Exception as e:
            if self.vm.state == "Stopped":
                return
            # The answer is lost, or a fault raised what no guest can answer: the request log knows which.
            self.log.line(f"bridge: {type(e).__name__}", level="error")
            self.drop()
        else:
            self.answer(request, answer)

    def ask(self, procedure: Procedure, message: object, operation: str) -> JSON:
        """Carry out a request that came over HCS's own connection, and give the answer.

        :raises GuestError: it is refused.
        :raises HostError: HCS_E_CONNECT_FAILED where nobody runs the guest (:meth:`FakeSystem.wait`);
            HCS_E_CONNECTION_CLOSED where no answer comes.
        """
        if self._tasks is None:
            raise HostError(
                operation, HResult.HCS_E_CONNECT_FAILED, "nobody waits for the VM, so its guest does not run"
            )
        request = Incoming(procedure, 0, dumps(message).encode(), GuestSide(), self.vm.os == "windows")
        answer = self._handlers[procedure](self, request)
        if answer is None:
            raise HostError(
                operation, HResult.HCS_E_CONNECTION_CLOSED, "the guest's compute service has gone"
            )
        if request.after is not None:
            request.after()
        return answer

    @property
    def _handlers(self) -> dict[int, Callable[[GuestService, Incoming], JSON | None]]:
        return linux.HANDLERS if self.vm.os == "linux" else windows.HANDLERS

    def _handler(self, request: Incoming) -> Callable[[GuestService, Incoming], JSON | None]:
        negotiates = request.procedure == Procedure.NEGOTIATE_PROTOCOL
        needed = _NEEDED.get(request.procedure)
        if negotiates is self._negotiated or (needed and not self.vm.guest.capabilities.get(needed)):
            return unknown_message
        return self._handlers.get(request.procedure, unknown_message)

    def negotiated(self) -> None:
        """The host and the guest have agreed on a version: now the other requests are answered."""
        self._negotiated = True

    def answer(self, request: Incoming, fields: JSON | None) -> None:
        """Answer a request with what a yes consists of; None where the answer comes later."""
        if fields is None:
            return
        self._reply(request, request.answer(fields))
        if request.after is not None:
            request.after()

    def refuse(self, request: Incoming, error: GuestError) -> None:
        """Answer a request with no."""
        self._reply(request, request.refusal(error))

    def _reply(self, request: Incoming, body: JSON) -> None:
        if request.side is self._side and request.id in request.side.open:
            frame = request.side.respond(request.id, body)
        else:
            # It came on an earlier connection; as the real guest does, it is answered on this one.
            frame = encode(Kind.RESPONSE, request.procedure, request.id, body)
        self._send(Reply(request.call, frame))

    def _notify(self, body: JSON) -> None:
        if self._side is None:
            self._unsent.append(body)
            return
        call = Call(0, "guest", self.vm.id, "notification", body)
        self._send(Reply(call, self._side.notify(body)))

    def _send(self, reply: Reply) -> None:
        self._backend.misbehaviour.apply(reply)
        if reply.delay_seconds:
            self.spawn(self._send_late, reply)
        else:
            self._send_now(reply)

    async def _send_late(self, reply: Reply) -> None:
        await anyio.sleep(reply.delay_seconds)
        self._send_now(reply)

    def _send_now(self, reply: Reply) -> None:
        for frame in reply.frames:
            self.send(frame)
        if reply.ending == "drop":
            self.drop()
        elif reply.ending == "panic":
            self.die()
