"""The compute service of a fake guest: its connection to the host, and the handlers of requests.

It runs inside a task that waits for the VM (:meth:`~uvm.backends.fake.FakeSystem.wait`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import cached_property
from typing import Any, ClassVar, Final, TypeAlias

import anyio
import anyio.abc
import anyio.lowlevel
from attrs import frozen

from uvm._async import Line
from uvm._repr import showing
from uvm._wire.frames import GuestSide, Kind, Procedure, encode
from uvm.backend import JSON
from uvm.backends.fake.calls import Call
from uvm.backends.fake.clock import FakeClock
from uvm.backends.fake.exchange import Exchange
from uvm.backends.fake.guest.boot import boot_plan
from uvm.backends.fake.guest.containers import Container
from uvm.backends.fake.guest.execution import Command, attach_streams, close_streams
from uvm.backends.fake.guest.filesystem import GuestFileSystem
from uvm.backends.fake.guest.log import LAST_WORDS_SECONDS, GuestLog
from uvm.backends.fake.guest.machine import GuestMachine
from uvm.backends.fake.guest.messages import Incoming, unknown_message
from uvm.backends.fake.guest.misbehaviour import Misbehaviour, Reply
from uvm.backends.fake.guest.outlet import Outlet
from uvm.backends.fake.guest.processes import GuestProcess
from uvm.backends.fake.guest.programs import FakeProcess, Program, Programs
from uvm.backends.fake.guest.state import FakeGuest
from uvm.backends.fake.request_log import Entry
from uvm.backends.fake.streams import ENDED, FakeStream
from uvm.errors import BridgeClosedError, GuestError, HostError, WireError
from uvm.hresult import HResult
from uvm.schema import gcs
from uvm.schema.json import dumps
from uvm.schema.properties import PropertyQuery
from uvm.schema.system import VirtualMachine

#: Carries out a request: returns the fields of the answer, or None if that comes later or never.
Handler: TypeAlias = Callable[[Incoming], JSON | None]

#: The capabilities that procedures need.
_NEEDED: Final[dict[int, str]] = {
    Procedure.DUMP_STACKS: "DumpStacksSupported",
    Procedure.DELETE_CONTAINER_STATE: "DeleteContainerStateSupported",
    Procedure.UPDATE_CONTAINER: "UpdateContainerSupported",
}

_NAMES: Final = {procedure.value: procedure.name.lower() for procedure in Procedure}


@frozen(eq=False, repr=False)
class GuestEnvironment:
    """What the guests of a backend share."""

    exchange: Exchange
    programs: Programs
    misbehaviour: Misbehaviour


async def _wait(process: FakeProcess) -> int:
    """Be a program that goes on until it is killed."""
    await anyio.sleep_forever()
    return 0


@showing("processes", "containers", "connected")
class GuestService:
    """The compute service of one VM's guest. Its state outlives its connections.

    :ivar processes: all processes that run in the guest, by process id.
    :ivar external: the processes outside of containers whose exit was not reported yet.
    :ivar containers: the containers, by id.
    :ivar entropy: the random bytes that a Linux guest received from the host when it booted.
    :ivar log: its log, for the host to read.
    :ivar log_settings: the latest settings of a Windows guest's log forwarding service, from the host.
    :ivar watchers: called in place of a notification, by the id of the container that exited.
    :ivar phase: the state of a Windows guest: ``new``, ``created`` or ``started`` by the host.
    """

    #: The class of the guests that it serves.
    guest_kind: ClassVar[type[FakeGuest]]
    #: What it reports beside its capabilities.
    facts: ClassVar[JSON] = {}

    def __init__(self, vm: GuestMachine, machine: VirtualMachine, environment: GuestEnvironment) -> None:
        self.vm: GuestMachine = vm
        self.processes: dict[int, GuestProcess] = {}
        self.external: dict[int, GuestProcess] = {}
        self.containers: dict[str, Container] = {}
        self.entropy: bytes = b""
        self.log: GuestLog = GuestLog(vm, environment.exchange.clock, self.spawn)
        self.log_settings: str = ""
        # HCS creates and starts a guest that it is connected to.
        self.phase: str = "started" if vm.relays else "new"
        self.watchers: dict[str, Callable[[str], None]] = {}
        self._environment = environment
        self._plan = boot_plan(machine, vm.os)
        self._attended = False
        self._waiting: Line = Line()
        self._booted = False
        self._last_pid = 0
        self._negotiated = False
        self._tasks: anyio.abc.TaskGroup | None = None
        # What ran in the guest from whose memory this one starts, and is yet to run here.
        self._restored: list[GuestProcess] = []
        self._side: GuestSide | None = None
        self._outlet: Outlet | None = None
        self._unsent: list[JSON] = []

    @cached_property
    def files(self) -> GuestFileSystem:
        """The files of the guest, which its containers share."""
        return GuestFileSystem(self.vm.os)

    @property
    def connected(self) -> bool:
        """Whether it has a connection to the host."""
        return self._outlet is not None and not self._outlet.stream.ended

    @property
    def clock(self) -> FakeClock:
        """The clock of the host."""
        return self._environment.exchange.clock

    @property
    def programs(self) -> Programs:
        """The programs that the guest can run."""
        return self._environment.programs

    async def attend(self) -> None:
        """Run the guest until its VM exits. One task at a time runs it; the others wait for it to leave."""
        await anyio.lowlevel.checkpoint()
        while self.vm.state != "Stopped":
            if self._attended:
                await self._waiting.wait()
                continue
            self._attended = True
            try:
                async with anyio.create_task_group() as tasks:
                    await self._run_guest(tasks)
            finally:
                self._attended = False
                self._waiting.wake()

    def end(self) -> None:
        """End all that runs in the guest: its VM has exited."""
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def restore(self, saved: GuestService) -> None:
        """Be the service of a guest that starts from the memory of another one, with all that runs in there.

        A program cannot be copied: a process of the other guest only waits here, until it is killed.
        """
        self.phase, self._booted, self._last_pid = saved.phase, True, saved._last_pid
        self.log_settings = saved.log_settings
        if "files" in vars(saved):
            self.files = saved.files.copy()
        self.containers.update({key: container.copied() for key, container in saved.containers.items()})
        places = [(saved.external, self.external)]
        places += [(each.processes, self.containers[key].processes) for key, each in saved.containers.items()]
        for theirs, ours in places:
            for process in theirs.values():
                view = process.view
                command = Command(view.args, view.env, view.cwd, view.user, view.terminal)
                twin = self._make_process(command, ours, process.pid)
                twin.restored(process)
                attach_streams(twin.view, {})
                if process.pid in saved.processes:
                    self.processes[process.pid] = twin
                    self._restored.append(twin)

    # For tests.

    def drop(self) -> None:
        """Lose the connection; what is in transit to the host arrives. A Linux guest dials again."""
        if self._outlet is not None:
            self._outlet.close()

    def send(self, data: bytes) -> None:
        """Send bytes that need not be a message; do nothing without a connection."""
        if self._outlet is not None:
            self._outlet.send(data)

    def notify(self, container_id: str, exit_type: str, activity_id: str = "") -> None:
        """Report the exit of a container: to HCS if it hosts that, else as soon as there is a connection."""
        watcher = self.watchers.get(container_id)
        if watcher is not None:
            watcher(exit_type)
            return
        body = {"ContainerId": container_id, "ActivityId": activity_id, "Type": exit_type}
        self._notify({**body, "Operation": "None", "Result": 0})

    async def panic(
        self, reason: str = "runtime error: invalid memory address or nil pointer dereference"
    ) -> None:
        """Crash as a Linux guest's service does: the last log lines are no JSON, and the VM exits."""
        self.drop()
        await self.log.last_words(f"panic: {reason}\n\ngoroutine 1 [running]:\nmain.main()\n".encode())
        self.vm.crash()

    # Its tasks.

    def spawn(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> bool:
        """Start a task, and return whether the guest runs; does nothing if it does not."""
        if self._tasks is None:
            return False
        self._tasks.start_soon(function, *args)
        return True

    def _new_pid(self) -> int:
        """Return a new process id; those of Windows are multiples of four."""
        self._last_pid += 1 if self.vm.os == "linux" else 4
        return 1000 + self._last_pid

    def die(self) -> None:
        """Crash, as Go programs do at a nil pointer; no answer comes."""
        self.spawn(self.panic)

    def exited(self, container: Container) -> None:
        """Report the exit of a container."""
        self.notify(container.id, container.exit_type, container.activity_id)

    def shut_down(self) -> None:
        """Shut the VM down, once the host has read what was sent to it."""
        self.spawn(self._power_off)

    async def _power_off(self) -> None:
        if self._outlet is not None:
            with anyio.move_on_after(LAST_WORDS_SECONDS):
                await self._outlet.stream.flush()
        await self.vm.until_running()
        if self._outlet is not None:
            self._outlet.stream.close()
        self.vm.shutdown()

    async def _run_guest(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        try:
            await self.vm.until_running()
            if self.log.service_id:
                self.log.forward(self.log.service_id)
            while self._restored:
                self.spawn(self._restored.pop(0).run, _wait)
            if not self._booted:
                await self._boot()
            while True:
                if await self._serve(await self._dial()):
                    self.log.line("the host has closed the bridge connection")
                else:
                    self.log.line("bridge connection lost, will reconnect", level="warning")
                if self.vm.os == "windows":
                    await anyio.sleep_forever()
        finally:
            self._tasks = None

    async def _dial(self) -> FakeStream:
        """Dial the host's end of the connection. A guest that a fault keeps from it ends, and its VM with it.

        So do hcsshim's: the service of a Linux guest up to 0.14, without which process 1 ends and the kernel
        panics, and the sidecar of a Windows guest, a critical process. Later Linux ones try again.
        """
        await self.vm.until_listening(self._plan.service)
        entry = self._environment.exchange.request_log._begin("guest", self.vm.id, "connect", None)
        try:
            await self._environment.exchange.carry_out(entry, lambda: None, self.vm)
        except Exception as e:
            self.log.line(f"failed to dial host vsock connection: {e}", level="fatal")
            await self.log.last_words()
            self.vm.crash()
            await anyio.sleep_forever()
        return await self.vm.dial_when_listening(self._plan.service)

    async def _boot(self) -> None:
        if self._plan.entropy:
            stream = await self.vm.dial_when_listening(self._plan.entropy)
            try:
                self.entropy = await stream.receive_all()
            finally:
                stream.close()
        if self._plan.output:
            self.log.open(await self.vm.dial_when_listening(self._plan.output))
        self._booted = True
        self.log.line("GCS started")

    # The connection.

    async def _serve(self, stream: FakeStream) -> bool:
        """Serve a connection until it ends; return whether the host has closed it."""
        side = self._side = GuestSide()
        self._outlet = Outlet(stream, self.vm, self.spawn)
        self._negotiated = False
        unsent, self._unsent = self._unsent, []
        for body in unsent:
            self._notify(body)
        try:
            while True:
                data = await stream.receive()
                if self.vm.state != "Running":
                    await self.vm.until_running()
                for request in side.receive(data):
                    self._take(Incoming(*request, side, self.vm.os == "windows"))
        except anyio.EndOfStream:
            return True
        except ENDED:
            return False
        except WireError as e:
            self.log.line(f"bridge: {e}", level="error")
            return False
        finally:
            stream.close()
            self._outlet = self._side = None

    def _take(self, request: Incoming) -> None:
        exchange = self._environment.exchange
        handler = self._handler(request)
        request.entry = self._begin(request)

        def change() -> JSON | None:
            if self.vm.state == "Stopped":
                raise BridgeClosedError(f"the guest of {self.vm.id} does not answer: the VM has exited")
            return handler(request)

        if not exchange.is_immediate("guest"):
            self.spawn(self._carry_out, request, change)
            return
        try:
            answer = exchange.carry_out_at_once(request.entry, change)
        except GuestError as e:
            self.refuse(request, e)
        except BridgeClosedError:
            return  # an earlier request of the same bytes has ended the VM
        else:
            self.answer(request, answer)

    def _begin(self, request: Incoming) -> Entry:
        """Log a request; a change of settings as that change."""
        document: Any = request.body
        change: JSON = {}
        if request.procedure == Procedure.MODIFY_SETTINGS:
            document = request.body.get("Request")
            change = document if isinstance(document, dict) else {}
        resource = change.get("ResourceType") or change.get("ResourcePath") or ""
        request_type = change.get("RequestType") or ""
        return self._environment.exchange.request_log._begin(
            "guest", self.vm.id, request.operation, document, str(resource), str(request_type)
        )

    async def _carry_out(self, request: Incoming, change: Callable[[], JSON | None]) -> None:
        try:
            answer = await self._environment.exchange.carry_out(request.entry, change, self.vm)
        except GuestError as e:
            self.refuse(request, e)
        except Exception as e:
            if self.vm.state == "Stopped":
                return
            # The answer is lost, or a fault raised what no guest can answer: the request log has which.
            self.log.line(f"bridge: {type(e).__name__}", level="error")
            self.drop()
        else:
            self.answer(request, answer)

    def ask(self, procedure: Procedure, message: object, operation: str) -> JSON:
        """Carry out a request that came over HCS's own connection, and return the answer.

        :raises GuestError: it is refused.
        :raises HostError: HCS_E_CONNECT_FAILED if no task runs the guest (:meth:`FakeSystem.wait`);
            HCS_E_CONNECTION_CLOSED if no answer comes.
        """
        if self._tasks is None:
            text = "no task waits for the VM, so its guest does not run"
            raise HostError(operation, HResult.HCS_E_CONNECT_FAILED, text)
        request = Incoming(procedure, 0, dumps(message).encode(), GuestSide(), self.vm.os == "windows")
        answer = self._handler_of(procedure)(request)
        if answer is None:
            text = "the guest's compute service has crashed"
            raise HostError(operation, HResult.HCS_E_CONNECTION_CLOSED, text)
        if request.after is not None:
            request.after()
        return answer

    def _handler(self, request: Incoming) -> Handler:
        negotiates = request.procedure == Procedure.NEGOTIATE_PROTOCOL
        needed = _NEEDED.get(request.procedure)
        if negotiates is self._negotiated or (needed and not self.vm.guest.capabilities.get(needed)):
            return unknown_message
        return self._handler_of(request.procedure)

    def _handler_of(self, procedure: int) -> Handler:
        """Return the method that is named after a procedure: ``on_create`` and its kind."""
        if procedure not in _NAMES:
            return unknown_message
        handler: Handler = getattr(self, f"on_{_NAMES[procedure]}", unknown_message)
        return handler

    # Common to both kinds of guest.

    def _process(self, request: Incoming, container_id: str, pid: int) -> GuestProcess:
        """Return a process to signal or to resize."""
        raise NotImplementedError

    def _waited(self, request: Incoming, container_id: str, pid: int) -> GuestProcess:
        """Return a process to wait for."""
        return self._process(request, container_id, pid)

    def on_negotiate_protocol(self, request: Incoming) -> JSON:
        wanted = request.read(gcs.NegotiateProtocolRequest)
        if not wanted.minimum_version <= gcs.PROTOCOL_VERSION <= wanted.maximum_version:
            raise request.refuse(HResult.ERROR_VMCOMPUTE_UNSUPPORTED_PROTOCOL_VERSION)
        self._negotiated = True
        capabilities = {
            **self.facts,
            "SupportedSchemaVersions": [{"Major": 2, "Minor": 1}],
            "RuntimeOsType": self.vm.os.capitalize(),
            "GuestDefinedCapabilities": dict(self.vm.guest.capabilities),
        }
        return {"Version": gcs.PROTOCOL_VERSION, "Capabilities": capabilities}

    def on_resize_console(self, request: Incoming) -> JSON:
        wanted = request.read(gcs.ResizeConsoleRequest)
        process = self._process(request, wanted.container_id, wanted.process_id)
        if process.view.terminal is None:
            raise request.refuse(self.vm.guest.failure, f"process {process.pid} has no terminal")
        process.resize(wanted.height, wanted.width)
        return {}

    def _properties_query(self, request: Incoming) -> tuple[str, list[str]]:
        """Return the id of a container, and the properties of it that are queried."""
        wanted = request.read(gcs.GetPropertiesRequest)
        query = PropertyQuery()
        if wanted.query:
            query = request.read_text(PropertyQuery, "Query", wanted.query)
        return wanted.container_id, query.property_types

    def _make_process(
        self, command: Command, processes: dict[int, GuestProcess], pid: int = 0
    ) -> GuestProcess:
        """Return a new process, which is one of `processes` until its exit has been reported.

        :param pid: its id; by default a new one.
        """
        external = processes is self.external

        def release(process: GuestProcess) -> None:
            processes.pop(process.pid, None)

        process = self._new_process(command, external, lambda p: None, release, pid)
        processes[process.pid] = process
        return process

    def _new_process(
        self,
        command: Command,
        external: bool,
        on_exit: Callable[[GuestProcess], object],
        on_release: Callable[[GuestProcess], object],
        pid: int = 0,
    ) -> GuestProcess:
        """Return a new process, which does not run yet, and has no streams.

        :param on_exit: called when it has exited, before that is reported.
        :param on_release: called when the exit has been reported.
        """
        view = FakeProcess(
            args=command.args,
            env=command.env,
            cwd=command.cwd,
            user=command.user,
            pid=pid or self._new_pid(),
            vm=self.vm,
            peers=self.processes,
            files=self.files,
            terminal=command.terminal,
        )

        def exited(process: GuestProcess) -> None:
            self.processes.pop(process.pid, None)
            on_exit(process)

        return GuestProcess(view, external, exited, on_release)

    def _connect_streams(
        self, wanted: Mapping[str, str], refuse: Callable[[str], Exception]
    ) -> dict[str, FakeStream]:
        """Connect standard streams to services of the host: all of them, or none.

        :param wanted: services by the name of the stream.
        :param refuse: makes the error for a stream whose service has no listener.
        """
        streams: dict[str, FakeStream] = {}
        for name, service_id in wanted.items():
            try:
                streams[name] = self.vm.dial(service_id)
            except ConnectionRefusedError:
                close_streams(streams)
                raise refuse(name) from None
        return streams

    def on_wait_for_process(self, request: Incoming) -> JSON | None:
        """Answer with the exit code, now or when it is known."""
        wanted = request.read(gcs.WaitForProcessRequest)
        process = self._waited(request, wanted.container_id, wanted.process_id)
        if process.exit_code is not None:
            request.after = process.release
            return {"ExitCode": process.exit_code}
        if wanted.timeout_in_ms == gcs.WAIT_FOREVER_MS:
            process.when_exited(lambda code: self.answer(request, {"ExitCode": code}))
            return None
        limit = anyio.CancelScope()

        def report(code: int) -> None:
            limit.cancel()
            self.answer(request, {"ExitCode": code})

        async def expire() -> None:
            with limit:
                await anyio.sleep(wanted.timeout_in_ms / 1000)
                process.forget(report)
                self.refuse(request, request.refuse(HResult.ERROR_VMCOMPUTE_TIMEOUT))

        process.when_exited(report)
        self.spawn(expire)
        return None

    def _run(self, process: GuestProcess, program: Program, streams: Mapping[str, FakeStream]) -> JSON:
        attach_streams(process.view, streams)
        self.processes[process.pid] = process
        process.started = True
        self.spawn(process.run, program)
        return {"ProcessId": process.pid}

    def answer(self, request: Incoming, fields: JSON | None) -> None:
        """Answer a request with success; do nothing if `fields` is None, and the answer comes later."""
        if fields is None:
            return
        self._reply(request, request.answer(fields))
        if request.after is not None:
            request.after()

    def refuse(self, request: Incoming, error: GuestError) -> None:
        """Answer a request with a failure."""
        self._reply(request, request.refusal(error))

    def _reply(self, request: Incoming, body: JSON) -> None:
        if request.side is self._side and request.id in request.side.open:
            frame = request.side.respond(request.id, body)
        else:
            # It came on an earlier connection; as in the real guest, it is answered on this one.
            frame = encode(Kind.RESPONSE, request.procedure, request.id, body)
        self._send(request.entry.call, frame)

    def _notify(self, body: JSON) -> None:
        if self._side is None:
            self._unsent.append(body)
            return
        call = Call(0, "guest", self.vm.id, "notification", body)
        self._send(call, self._side.notify(body))

    def _send(self, call: Call, frame: bytes) -> None:
        if not self._environment.misbehaviour._rules:
            self.send(frame)
            return
        reply = Reply(call, frame)
        self._environment.misbehaviour._apply(reply)
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
