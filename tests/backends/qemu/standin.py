"""A stand-in for QEMU: it speaks QMP, keeps what is plugged in, and has a guest of the fake behind the mux.

It takes the place of the process that :class:`~uvm.backends.qemu.launch.Launcher` starts, on the sockets that
QEMU would inherit, and runs in the task that waits for its end::

    backend --- QMP socket ---> Monitor: answers, events; each command may be held, lost or answered twice
            --- mux socket ---> Wire:    the guest's end of the mux --> the fake guest dials the host's ports

One that survives its backend runs in a task group of the test's, and takes the connections of the next. Its
process is one that sleeps, so that it is found, and can be killed.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from tests.wire.muxes import receive
from uvm._async import Flag, Line
from uvm._wire.channels import Channel
from uvm._wire.mux import Mux
from uvm._wire.muxevents import Data, Ended, Greeted, Listening, NotListening, Reset, Writable
from uvm._wire.ports import vsock_service_id
from uvm.backend import JSON, HostInfo
from uvm.backends.fake import Checks, FakeBackend, FakeListener, FakeStream
from uvm.backends.qemu.backend import QEMUBackend
from uvm.backends.qemu.cgroups import Cgroup
from uvm.backends.qemu.devices.tree import DeviceTree
from uvm.backends.qemu.launch import Launcher, Note, Process
from uvm.backends.qemu.users import Identity
from uvm.backends.qemu.vm import VM
from uvm.schema.json import to_json
from uvm.schema.requests import ModifySettingRequest

KILLED = -9
GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": ["oob"]}}

#: Decides over a command before it is carried out: awaited with its name and its arguments.
Disturb = Callable[[str, JSON], Awaitable[None]]


class LostAnswer(Exception):
    """Raised by a disturbance: the command is carried out, and not answered."""


class Refusal(Exception):
    """The monitor refuses a command."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Machine:
    """What is plugged into one VM, by the ids that the backend gave."""

    def __init__(self) -> None:
        self.devices: dict[str, JSON] = {}
        self.nodes: dict[str, JSON] = {}
        self.netdevs: dict[str, JSON] = {}
        self.fdsets: dict[str, JSON] = {}
        self.memory_bytes = 0

    def add(self, table: dict[str, JSON], key: str, settings: JSON) -> None:
        if key in table:
            raise Refusal("GenericError", f"Duplicate ID '{key}'")
        table[key] = settings

    def remove(self, table: dict[str, JSON], key: str) -> None:
        if table.pop(key, None) is None:
            raise Refusal("DeviceNotFound", f"'{key}' not found")

    @property
    def inventory(self) -> list[str]:
        """Everything that is plugged in."""
        return sorted([*self.devices, *self.nodes, *self.netdevs, *self.fdsets])


class StandIn(Process):
    """One process of QEMU.

    :ivar name: the id of the VM.
    :ivar commands: the names of the commands that it was sent.
    :ivar disturb: decides over each command.
    :ivar machine_type: the versioned type of its machine.
    :ivar keeps: devices that the guest does not release, by id.
    :ivar document: the machine that its guest runs on.
    :ivar fake: the host of its guest.
    """

    def __init__(self, arguments: Sequence[str], sleeper: subprocess.Popen[bytes] | None = None) -> None:
        self.arguments = arguments
        self._sleeper = sleeper
        self.name = re.search(r"guest=((?:[^,]|,,)*)", " ".join(arguments))[1]  # type: ignore[index]
        self.pid = os.getpid() if sleeper is None else sleeper.pid
        self.exit_code: int | None = None
        self.last_words = ""
        self.machine = Machine()
        self.machine_type = "pc-q35-7.2"
        self.document: JSON = {}
        self.commands: list[str] = []
        self.disturb: Disturb = _undisturbed
        self.twice: Counter[str] = Counter()
        self.keeps: set[str] = set()
        self.fake = FakeBackend(host=HostInfo(paths="posix", templates=("linux",)), checks=Checks.lenient())
        self._qmp, self._qmp_listener = _sockets(arguments, "qmp")
        self._mux, self._mux_listener = _sockets(arguments, "mux")
        self._over = Flag()
        self._code = 0
        self._fdsets = 0
        self._migrated = False
        self._pauses_at_shutdown = True
        self._unwritten = bytearray()
        self._changed = Line()
        self.dialled: dict[int, FakeListener] = {}

    def kill(self) -> None:
        """End at once."""
        self.end(KILLED)

    def end(self, code: int, said: str = "") -> None:
        """End with an exit code; what was said is its error output."""
        if not self._over.is_set():
            self._code, self.last_words = code, said
            self._over.set()
            if self._sleeper is not None:
                self._sleeper.kill()

    def close_monitor(self) -> None:
        """Take no more commands, and answer none."""
        self._qmp.shutdown(socket.SHUT_RDWR)

    def garble(self, data: bytes) -> None:
        """Have the guest send what is no frame of the mux."""
        self._mux.send(data)

    async def wait(self) -> int:
        """Run until the end, unless it runs by itself; then wait for that."""
        if self._sleeper is None:
            return await self.run()
        await self._over.wait()
        self.exit_code = self._code
        return self._code

    async def run(self) -> int:
        """Run until the end."""
        try:
            async with anyio.create_task_group() as tasks:
                self.tasks = tasks
                tasks.start_soon(self._serve_monitor)
                tasks.start_soon(self._run_guest)
                if self._sleeper is not None:
                    tasks.start_soon(self._end_with, self._sleeper)
                await self._over.wait()
                tasks.cancel_scope.cancel()
        finally:
            for each in (self._qmp, self._mux, self._qmp_listener, self._mux_listener):
                if each is not None:
                    anyio.notify_closing(each)
                    each.close()
        self.exit_code = self._code
        return self._code

    # The monitor.

    async def _end_with(self, sleeper: subprocess.Popen[bytes]) -> None:
        """End when the process does that others know it by."""
        pidfd = os.pidfd_open(sleeper.pid)
        try:
            await anyio.wait_readable(pidfd)
        finally:
            os.close(pidfd)
            sleeper.kill()
            sleeper.wait()
        self.end(KILLED)

    async def _serve_monitor(self) -> None:
        await self._serve_connection()
        while self._qmp_listener is not None:
            self._qmp.close()
            self._qmp = await _accepted(self._qmp_listener)
            await self._serve_connection()

    async def _serve_connection(self) -> None:
        async with anyio.create_task_group() as tasks:
            self._unwritten.clear()
            tasks.start_soon(self._write)
            await self._take_commands()
            tasks.cancel_scope.cancel()

    async def _take_commands(self) -> None:
        self.say(GREETING)
        received = b""
        while True:
            await anyio.wait_readable(self._qmp)
            try:
                data = self._qmp.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                self.tasks.start_soon(self._take, json.loads(line))

    def say(self, message: JSON) -> None:
        """Send a message."""
        self._unwritten += json.dumps(message).encode() + b"\r\n"
        self._changed.wake()

    def event(self, name: str, **data: Any) -> None:
        """Send an event."""
        self.say({"event": name, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}})

    async def _write(self) -> None:
        while True:
            while self._unwritten:
                await anyio.wait_writable(self._qmp)
                try:
                    del self._unwritten[: self._qmp.send(self._unwritten)]
                except (BrokenPipeError, ConnectionResetError):
                    return
            await self._changed.wait()

    async def _take(self, message: JSON) -> None:
        name, arguments, number = message["execute"], message.get("arguments", {}), message["id"]
        self.commands.append(name)
        answer: JSON
        lost = False
        try:
            try:
                await self.disturb(name, arguments)
            except LostAnswer:
                lost = True
            carry_out = getattr(self, f"_{name.replace('-', '_')}", None)
            if carry_out is None:
                raise Refusal("CommandNotFound", f"The command {name} has not been found")
            answer = {
                "return": carry_out(**{key.replace("-", "_"): value for key, value in arguments.items()})
            }
        except Refusal as refusal:
            answer = {"error": {"class": refusal.kind, "desc": str(refusal)}}
        if not lost:
            for _ in range(2 if self.twice[name] else 1):
                self.say({**answer, "id": number})

    # Its commands: the methods that are named as they are.

    def _qmp_capabilities(self) -> JSON:
        return {}

    def _cont(self) -> JSON:
        vm = self.fake.vms["guest"]
        self._migrated = False
        if vm.state == "Created":
            vm.start()
        elif vm.state == "Paused":
            vm.resume()
        return {}

    def _stop(self) -> JSON:
        self.fake.vms["guest"].pause()
        return {}

    def _inject_nmi(self) -> JSON:
        self.event("GUEST_PANICKED", action="pause")
        return {}

    def _set_action(self, shutdown: str) -> JSON:
        self._pauses_at_shutdown = shutdown == "pause"
        return {}

    def _quit(self) -> JSON:
        self.event("SHUTDOWN", guest=False, reason="host-qmp-quit")
        if not self._pauses_at_shutdown:
            self.end(0)
        return {}

    def _ringbuf_read(self, device: str, size: int, format: str) -> str:
        return base64.b64encode(b"the guest's last words").decode()

    def _add_fd(self, **settings: Any) -> JSON:
        self._fdsets += 1
        self.machine.add(self.machine.fdsets, str(self._fdsets), settings)
        return {"fdset-id": self._fdsets, "fd": 99}

    def _remove_fd(self, fdset_id: int) -> JSON:
        self.machine.remove(self.machine.fdsets, str(fdset_id))
        return {}

    def _device_add(self, id: str, **settings: Any) -> JSON:
        self.machine.add(self.machine.devices, id, settings)
        return {}

    def _device_del(self, id: str) -> JSON:
        if id not in self.machine.devices:
            raise Refusal("DeviceNotFound", f"Device '{id}' not found")
        if id in self.keeps:
            self.event("DEVICE_UNPLUG_GUEST_ERROR", device=id, path=f"/machine/peripheral/{id}")
        else:
            self.machine.remove(self.machine.devices, id)
            self.event("DEVICE_DELETED", device=id, path=f"/machine/peripheral/{id}")
        return {}

    def _blockdev_add(self, node_name: str, **settings: Any) -> JSON:
        self.machine.add(self.machine.nodes, node_name, settings)
        return {}

    def _blockdev_del(self, node_name: str) -> JSON:
        self.machine.remove(self.machine.nodes, node_name)
        return {}

    def _netdev_add(self, id: str, **settings: Any) -> JSON:
        self.machine.add(self.machine.netdevs, id, settings)
        return {}

    def _netdev_del(self, id: str) -> JSON:
        self.machine.remove(self.machine.netdevs, id)
        return {}

    def _set_link(self, name: str, up: bool) -> JSON:
        return {}

    def _query_status(self) -> JSON:
        state = self.fake.vms["guest"].state
        paused = "postmigrate" if self._migrated else "paused"
        return {"status": {"Created": "prelaunch", "Paused": paused}.get(state, "running")}

    def _qom_list(self, path: str) -> list[JSON]:
        return [{"name": name, "type": "child<device>"} for name in self.machine.devices]

    def _query_fdsets(self) -> list[JSON]:
        sets = self.machine.fdsets.items()
        return [{"fdset-id": int(number), "fds": [{"fd": 9, **settings}]} for number, settings in sets]

    def _balloon(self, value: int) -> JSON:
        self.machine.memory_bytes = value
        return {}

    def _query_balloon(self) -> JSON:
        return {"actual": self.machine.memory_bytes}

    def _query_blockstats(self, query_nodes: bool = False) -> list[JSON]:
        return []

    def _getfd(self, fdname: str) -> JSON:
        return {}

    def _migrate_cancel(self) -> JSON:
        return {}

    def _migrate_set_capabilities(self, capabilities: list[JSON]) -> JSON:
        return {}

    def _migrate_set_parameters(self, max_bandwidth: int) -> JSON:
        return {}

    def _closefd(self, fdname: str) -> JSON:
        return {}

    def _migrate(self, uri: str) -> JSON:
        if self._migrated:
            text = "Can't migrate the vm that was paused due to previous migration"
            raise Refusal("GenericError", text)
        self._migrated = True
        return {}

    def _migrate_incoming(self, uri: str) -> JSON:
        return {}

    def _query_migrate(self) -> JSON:
        return {"status": "completed"}

    def _query_machines(self) -> list[JSON]:
        return [{"name": self.machine_type, "alias": "q35"}, {"name": "pc-i440fx-7.2", "is-default": True}]

    # The guest.

    async def _run_guest(self) -> None:
        """Run the fake's guest, which dials the ports that the backend listens at."""
        machine = {key: value for key, value in self.document.items() if key != "GuestConnection"}
        # It listens for nothing while it boots.
        machine["Chipset"] = {"LinuxKernelDirect": {"KernelFilePath": "/kernel", "KernelCmdLine": "quiet"}}
        system = await self.fake.create("guest", {"VirtualMachine": machine, "SchemaVersion": {"Major": 2}})
        self.machine.memory_bytes = self.document["ComputeTopology"]["Memory"]["SizeInMB"] << 20
        self.tasks.start_soon(self._serve_mux, Wire(self._mux, self.fake, self.tasks))
        status = await system.wait()
        if status.exit_type == "GracefulExit":
            self.event("SHUTDOWN", guest=True, reason="guest-shutdown")
        else:
            self.event("GUEST_PANICKED", action="pause")

    async def _serve_mux(self, wire: Wire) -> None:
        await wire.serve()
        while self._mux_listener is not None:
            self._mux.close()
            wire.socket = self._mux = await _accepted(self._mux_listener)
            await wire.serve()


class Wire:
    """The guest's end of the mux: each connection that the fake's guest makes is a channel."""

    def __init__(self, sock: socket.socket, fake: FakeBackend, tasks: anyio.abc.TaskGroup) -> None:
        self.mux = Mux(guest=True)
        self.socket = sock
        self._vm = fake.vms["guest"]
        self._tasks = tasks
        self._more = Line()
        self._listeners: dict[int, FakeListener] = {}
        self._streams: dict[Channel, FakeStream] = {}
        self._incoming: dict[Channel, list[bytes | None]] = {}
        self._arrived = Line()
        self._writable = Line()

    async def serve(self) -> None:
        """Carry the connections until the socket ends."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write)
            await self._read()
            tasks.cancel_scope.cancel()

    async def _read(self) -> None:
        while True:
            await anyio.wait_readable(self.socket)
            try:
                data = self.socket.recv(1 << 18)
            except ConnectionResetError:
                return
            if not data:
                return
            events = receive(self.mux, data)
            while True:
                for event in events:
                    self._take(event)
                if not self.mux.more:
                    break
                events = receive(self.mux)
            self._more.wake()

    async def _write(self) -> None:
        while True:
            batch = self.mux.outgoing()
            if not batch:
                await self._more.wait()
                continue
            await anyio.wait_writable(self.socket)
            try:
                self.mux.written(self.socket.sendmsg([*batch][:64]))
            except (BrokenPipeError, ConnectionResetError):
                return

    def _take(self, event: Any) -> None:
        match event:
            case Greeted(resumed):
                if not resumed:
                    self._forget_host()
            case Listening(port):
                if port not in self._listeners:
                    listener = self._listeners[port] = self._vm.listen(vsock_service_id(port))
                    self._tasks.start_soon(self._accept, port, listener)
            case NotListening(port):
                if port in self._listeners:
                    self._listeners.pop(port).end(anyio.ClosedResourceError())
            case Data(channel, data):
                self._incoming[channel].append(bytes(data))
                self._arrived.wake()
            case Ended(channel):
                self._incoming[channel].append(None)
                self._arrived.wake()
            case Writable():
                self._writable.wake()
            case Reset(channel):
                if (stream := self._streams.pop(channel, None)) is not None:
                    stream.close()
                self._writable.wake()

    def _forget_host(self) -> None:
        """End what the guest has with a host that has gone; it dials the next one where that listens."""
        while self._listeners:
            self._listeners.popitem()[1].end(anyio.ClosedResourceError())
        while self._streams:
            channel, stream = self._streams.popitem()
            stream.close()
            self.mux.reset(channel)

    async def _accept(self, port: int, listener: FakeListener) -> None:
        try:
            while True:
                stream = await listener.accept()
                channel = self.mux.open(port)
                self._streams[channel] = stream
                self._incoming[channel] = []
                self._tasks.start_soon(self._to_host, channel, stream)
                self._tasks.start_soon(self._to_guest, channel, stream)
                self._more.wake()
        except Exception:
            return

    async def _to_host(self, channel: Channel, stream: FakeStream) -> None:
        try:
            while True:
                data = memoryview(await stream.receive())
                while data:
                    data = data[self.mux.send(channel, bytes(data)) :]
                    self._more.wake()
                    if data:
                        await self._writable.wait()
        except anyio.EndOfStream:
            self.mux.send_eof(channel)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            self.mux.reset(channel)
        self._more.wake()

    async def _to_guest(self, channel: Channel, stream: FakeStream) -> None:
        pieces = self._incoming[channel]
        try:
            while True:
                while not pieces:
                    await self._arrived.wait()
                data = pieces.pop(0)
                if data is None:
                    await stream.send_eof()
                    return
                await stream.send(data)
                self.mux.consumed(channel, len(data))
                self._more.wake()
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            self.mux.reset(channel)
            self._more.wake()


class StandInLauncher(Launcher):
    """Makes stand-ins.

    :ivar started: those that were started, by the id of their VM.
    :ivar survivors: runs those that outlive their backends; without it none does.
    :ivar cgroups: the files through which they are to enter their cgroups.
    :ivar prepare: called with each before it runs.
    """

    def __init__(self) -> None:
        self.started: dict[str, StandIn] = {}
        self.cgroups: list[str] = []
        self.survivors: anyio.abc.TaskGroup | None = None
        self.trees: dict[str, MirroredTree] = {}
        self.prepare: Callable[[StandIn], object] = lambda child: None
        #: What the last one that was started has inherited: device and inode of each file.
        self.inherited: set[tuple[int, int]] = set()

    async def start(
        self,
        arguments: Sequence[str],
        fds: Sequence[int],
        *,
        survives: bool = False,
        user: Identity | None = None,
        cgroup: Cgroup | None = None,
        note: Note = lambda pid: None,
    ) -> StandIn:
        """Start one."""
        await anyio.lowlevel.checkpoint()
        self.cgroups += [cgroup.procs] if cgroup is not None else []
        outlives = survives and self.survivors is not None
        child = StandIn(arguments, _sleeper(fds) if outlives else None)
        note(child.pid)
        self.inherited = {(found.st_dev, found.st_ino) for found in map(os.fstat, fds)}
        self.prepare(child)
        self.started[child.name] = child
        child.document, self.trees[child.name].guest = self.trees[child.name].document, child.fake
        if outlives:
            assert self.survivors is not None
            self.survivors.start_soon(child.run)
        if template := child.document.get("RestoreState", {}).get("TemplateSystemId"):
            # The clone's guest is that of its template, as it was saved.
            saved = self.started[template].fake.vms["guest"]
            saved._become("SavedAsTemplate")
            child.fake._vms[template] = saved
        return child

    def close(self) -> None:
        """Have nothing to end."""


class MirroredTree(DeviceTree):
    """The device tree of a VM, which the guest's machine follows."""

    guest: FakeBackend
    document: JSON

    async def modify(self, request: ModifySettingRequest) -> None:
        """Carry out a request, here and there."""
        await super().modify(request)
        tree = self.guest.vms["guest"].tree
        tree.modify(request.resource_path, request.request_type, request.settings)


class StandInBackend(QEMUBackend):
    """The backend over stand-ins.

    :ivar memory_mb: how much memory VMs can be given.
    """

    memory_mb = 1 << 20

    def __init__(self, launcher: StandInLauncher, runtime: Path, **options: Any) -> None:
        # It is this process, whatever user that is.
        options = {"user": str(os.getuid()), **options}
        super().__init__(
            binary=sys.executable, acceleration="tcg", runtime_directory=runtime, launcher=launcher, **options
        )
        self.launcher = launcher
        self._available_mb = lambda: self.memory_mb

    def _devices(self, vm: VM, info: HostInfo, root_ports: int, share_slots: int) -> DeviceTree:
        tree = MirroredTree(super()._devices(vm, info, root_ports, share_slots).scsi.host)
        tree.document = to_json(vm.machine)
        if vm.id in self.launcher.started:
            tree.guest = self.launcher.started[vm.id].fake
        self.launcher.trees[vm.id] = tree
        return tree


def _sleeper(fds: Sequence[int]) -> subprocess.Popen[bytes]:
    """Return a process that does nothing with what it inherits."""
    return subprocess.Popen(["sleep", "600"], pass_fds=fds)


async def _undisturbed(name: str, arguments: JSON) -> None:
    return None


def _sockets(arguments: Sequence[str], name: str) -> tuple[socket.socket, socket.socket | None]:
    """Return the connection with the backend, and what others can connect to."""
    [(number, server)] = re.findall(rf"socket,id={name},fd=(\d+)(,server=on)?", " ".join(arguments))
    sock = socket.socket(fileno=os.dup(int(number)))
    listener = None
    if server:
        # The backend has connected before it starts QEMU.
        listener = sock
        listener.settimeout(5)
        sock, _ = listener.accept()
        listener.setblocking(False)
    sock.setblocking(False)
    return sock, listener


async def _accepted(listener: socket.socket) -> socket.socket:
    await anyio.wait_readable(listener)
    sock, _ = listener.accept()
    sock.setblocking(False)
    return sock
