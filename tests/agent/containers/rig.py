"""The containers of the agent, with a stand-in for a runtime, in a loop that is asked from here."""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tests.agent.containers.standin as standin
from uvm._wire.frames import Procedure
from uvm.agent.children import Children
from uvm.agent.connection import Receiver
from uvm.agent.containers.commands import Commands
from uvm.agent.containers.runtime import Runtime
from uvm.agent.containers.service import Containers
from uvm.agent.loop import Loop
from uvm.agent.refused import Refused
from uvm.agent.requests import Request
from uvm.agent.service import Service

JSON = dict[str, Any]
FOREVER = 0xFFFFFFFF
_PR_SET_CHILD_SUBREAPER = 36
#: No answer takes as long as that.
_PATIENCE_SECONDS = 20


class Stream:
    """The host's end of a standard stream."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.room = 1 << 16
        self.data = b""
        self.ended = self.closed = False

    def send(self, data: bytes) -> None:
        self.data += data

    def wait_for_room(self) -> None:
        raise AssertionError("there is always room")

    def send_eof(self) -> None:
        self.ended = True

    def consumed(self, size: int) -> None:
        """Do nothing: what is sent here is little."""

    def close(self) -> None:
        self.closed = True


class Adapters:
    """The network namespaces of the guest.

    :ivar joined: the processes whose namespaces they are, by name.
    """

    def __init__(self) -> None:
        self.joined: dict[str, int] = {}

    def resolv_conf(self, namespace: str) -> str:
        return f"search {namespace}\n"

    def join(self, namespace: str, pid: int) -> None:
        if namespace in self.joined:
            raise Refused(f'previously assigned container pid {self.joined[namespace]} to "{namespace}"')
        self.joined[namespace] = pid

    def leave(self, namespace: str, pid: int) -> None:
        if self.joined.get(namespace) == pid:
            del self.joined[namespace]

    def delete(self, namespace: str) -> None:
        """Do nothing: a namespace that is not joined is not there."""


class Process:
    """A process that was started, and the streams that it was started with."""

    def __init__(self, pid: int, streams: dict[str, Stream]) -> None:
        self.pid, self.streams = pid, streams

    @property
    def output(self) -> bytes:
        return self.streams["StdOut"].data


class Rig:
    """The service, asked by a host.

    :ivar notifications: the exits of containers that were reported.
    :param runtime: the guest's image has a runtime.
    :ivar bugs: exceptions that nothing expects.
    :ivar refusing: ports at which the host does not listen.
    """

    def __init__(self, directory: Path, *, runtime: bool = True) -> None:
        self.directory = directory
        self.bugs: list[BaseException] = []
        self.notifications: list[JSON] = []
        self.streams: dict[int, Stream] = {}
        self.refusing: set[int] = set()
        self.adapters = Adapters()
        self.cgroups = directory / "cgroups"
        self.loop = Loop(self.bugs.append)
        self._ports = 0
        service = Service(self.loop, self.bugs.append)
        self._service = service
        crun = directory / "crun"
        crun.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {standin.__file__} "$@"\n')
        crun.chmod(0o755)
        states = str(directory / "states")
        children = Children(self.loop)
        # A socket's path is short.
        there = Runtime(str(crun), pivot=True, states=states) if runtime else None
        commands = Commands(there, children, str(directory / "f"))
        notify = self.notifications.append
        adapters: Any = self.adapters
        Containers(service, children, self, commands, adapters, notify, str(self.cgroups))

    def dial(self, port: int, receiver: Receiver) -> Stream:
        stream = self.streams[port] = Stream(receiver)
        self.loop.post(receiver.closed if port in self.refusing else receiver.opened)
        return stream

    def later(self, procedure: int, container: str, **body: Any) -> list[JSON]:
        """Ask, and return the list that the answer comes into."""
        answers: list[JSON] = []
        payload = json.dumps({"ContainerId": container, **body}).encode()
        request = Request(procedure, 1, payload, lambda request, answer: answers.append(answer))
        self.loop.post(lambda: self._service.handle(request))
        return answers

    def until(self, condition: Callable[[], object]) -> None:
        """Run the loop until a condition holds."""

        def look() -> None:
            if condition():
                self.loop.stop()
            else:
                self.loop.later(0.001, look)

        limit = self.loop.later(_PATIENCE_SECONDS, self.loop.stop)
        self.loop.post(look)
        self.loop._running = True
        self.loop.run()
        limit.cancel()
        assert condition(), "it took too long"

    def answer(self, procedure: int, container: str = "c", **body: Any) -> JSON:
        """Return the answer to a request."""
        answers = self.later(procedure, container, **body)
        self.until(lambda: answers)
        return answers[0]

    def ask(self, procedure: int, container: str = "c", **body: Any) -> JSON:
        """Return the answer to a request that is carried out."""
        answer = self.answer(procedure, container, **body)
        assert answer["Result"] == 0, answer
        return answer

    def refusal(self, procedure: int, container: str = "c", **body: Any) -> tuple[int, str]:
        """Return the code and the text of the refusal of a request."""
        answer = self.answer(procedure, container, **body)
        return answer["Result"] & 0xFFFFFFFF, answer.get("ErrorMessage", "")

    # Containers and their processes.

    def bundle(self, container: str = "c") -> Path:
        return self.directory / "bundles" / container

    def config(self, container: str = "c", **parts: Any) -> str:
        """Return the document of a container, with parts of its specification."""
        process = {"args": ["true"], "cwd": "/", **parts.pop("process", {})}
        spec = {"process": process, "root": {"path": "/"}, "linux": {}, **parts}
        document = {
            "SchemaVersion": {"Major": 2, "Minor": 1},
            "OciBundlePath": str(self.bundle(container)),
            "OciSpecification": spec,
        }
        return json.dumps(document)

    def create(self, *args: str, container: str = "c", **process: Any) -> None:
        config = self.config(container, process={"args": args, **process})
        self.ask(Procedure.CREATE, container, ContainerConfig=config, ActivityId=f"activity-{container}")

    def parameters(self, streams: tuple[str, ...], process: JSON | None) -> tuple[JSON, dict[str, int]]:
        """Return what a request says that starts a process, and the ports of its streams."""
        ports = {}
        for name in streams:
            self._ports += 1
            ports[name] = self._ports
        parameters: JSON = {f"Create{name}Pipe": True for name in streams}
        if process is not None:
            parameters["OciProcess"] = process
        settings = {"ProcessParameters": json.dumps(parameters), "VsockStdioRelaySettings": ports}
        return {"Settings": settings}, ports

    def start(self, *streams: str, container: str = "c", process: JSON | None = None) -> Process:
        """Start the container's own process, or another one in it."""
        body, ports = self.parameters(streams or ("StdOut",), process)
        answer = self.ask(Procedure.EXECUTE_PROCESS, container, **body)
        return Process(answer["ProcessId"], {name: self.streams[port] for name, port in ports.items()})

    def execute(self, *args: str, container: str = "c", **process: Any) -> Process:
        return self.start("StdIn", "StdOut", "StdErr", container=container, process={"args": args, **process})

    def send(self, process: Process, data: bytes) -> None:
        """Send to the standard input of a process, and end that."""
        receiver = process.streams["StdIn"].receiver
        self.loop.post(lambda: receiver.received(data))
        self.loop.post(receiver.ended)

    def wait(self, process: Process, container: str = "c") -> int:
        """Return the exit code of a process."""
        body = {"ProcessId": process.pid, "TimeoutInMs": FOREVER}
        return int(self.ask(Procedure.WAIT_FOR_PROCESS, container, **body)["ExitCode"])


@contextmanager
def reaping(directory: Path, *, runtime: bool = True) -> Iterator[Rig]:
    """Return a rig in a process that reaps, as PID 1 does, what others leave behind."""
    libc = ctypes.CDLL(None)
    handler = signal.getsignal(signal.SIGCHLD)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        rig = Rig(directory, runtime=runtime)
        yield rig
        for container in list(rig.bundle("c").parent.glob("*")):
            rig.answer(Procedure.SHUTDOWN_FORCED, container.name)
            rig.answer(Procedure.DELETE_CONTAINER_STATE, container.name)
        assert rig.bugs == []
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, handler)
