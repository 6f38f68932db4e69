"""The containers of the guest, as the host asks for them.

How it works
------------

Requests are read, and the table of containers is changed, in the loop; a runtime's commands, which block, run
in workers. A container that is being made, or deleted, keeps its id, but other requests find it not ready, or
not there.

What a request names is checked before anything is done. What was begun is undone if a later step fails: a
container that cannot be made leaves neither processes nor files. A state that is to be deleted while
something is mounted in its directories stays on disk, though its container is forgotten, since what is
mounted would be emptied.

Source: hcsshim internal/guest/runtime/hcsv2/uvm.go and internal/guest/bridge/bridge_v2.go. Unlike there, a
container whose specification names no network namespace has one of its own, a namespace may be assigned again
once its container has ended, and a specification without the essential is refused, which crashes hcsshim's
guest.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Final

from uvm._wire.frames import Procedure
from uvm.agent.children import Children
from uvm.agent.connection import Dialer
from uvm.agent.containers import bundle, cgroups, shared
from uvm.agent.containers.bundle import Role
from uvm.agent.containers.cgroups import Cgroup
from uvm.agent.containers.commands import Commands
from uvm.agent.containers.container import Container, Status
from uvm.agent.containers.runtime import is_id
from uvm.agent.mounts import deepest_mount
from uvm.agent.network import Networks
from uvm.agent.processes import Process, asked_signal, forget
from uvm.agent.refused import Refused, coded
from uvm.agent.requests import JSON, Request
from uvm.agent.service import CONTAINER, Service
from uvm.agent.settings import Settings
from uvm.agent.streams import (
    NAMES,
    Child,
    Connections,
    Dialing,
    Streams,
    asked_ports,
    close_all,
    pipes,
    set_size,
)
from uvm.hresult import HResult

_MOST: Final = 0xFFFFFFFF
_MOST_SIZE: Final = 0xFFFF
_LEAST_VERSION: Final = (2, 1)


class Containers:
    """The table of containers, and what is done to them.

    :param notify: sends a notification to the host, now or once there is a connection.
    """

    def __init__(
        self,
        service: Service,
        children: Children,
        dialer: Dialer,
        commands: Commands,
        networks: Networks,
        notify: Callable[[JSON], object],
        cgroup_root: str = cgroups.ROOT,
    ) -> None:
        self._service, self._loop, self._children = service, service.loop, children
        self._dialer, self._commands, self._networks, self._notify = dialer, commands, networks, notify
        self._cgroup_root = cgroup_root
        self._containers: dict[str, Container] = {}
        self._serve()

    def _serve(self) -> None:
        add = self._service.add
        add(Procedure.CREATE, self._create, CONTAINER)
        add(Procedure.START, self._start, CONTAINER)
        add(Procedure.EXECUTE_PROCESS, self._execute, CONTAINER)
        add(Procedure.WAIT_FOR_PROCESS, self._wait, CONTAINER)
        add(Procedure.SIGNAL_PROCESS, self._signal, CONTAINER)
        add(Procedure.RESIZE_CONSOLE, self._resize, CONTAINER)
        add(Procedure.SHUTDOWN_GRACEFUL, partial(self._end, signal.SIGTERM), CONTAINER)
        add(Procedure.SHUTDOWN_FORCED, partial(self._end, signal.SIGKILL), CONTAINER)
        add(Procedure.GET_PROPERTIES, self._properties, CONTAINER, blocking=True)
        add(Procedure.MODIFY_SETTINGS, self._modify, CONTAINER, blocking=True)
        add(Procedure.DELETE_CONTAINER_STATE, self._delete, CONTAINER)
        for action in ("Add", "Update", "Remove"):
            self._service.resources["ContainerConstraints", action] = _no_container
        self._service.resources["PodCgroupMemoryLimit", "Update"] = lambda settings: self._limit_all()

    def _find(self, request: Request) -> Container:
        """Return the container that a request is for.

        :raises Refused: there is none, or it is not ready.
        """
        request.read()
        container = self._containers.get(request.container_id)
        if container is None or container.status is Status.DELETING:
            raise coded(HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND)
        if container.status is Status.CREATING:
            code = HResult.HCS_E_INVALID_STATE
            raise Refused(f"container is still being created: HRESULT: 0x{code:x}", code)
        return container

    def _cgroup(self, container: Container) -> Cgroup:
        return Cgroup(str(container.spec["linux"].get("cgroupsPath") or ""), self._cgroup_root)

    def _process(self, request: Request) -> Process:
        return self._find(request).process(request.read().number("ProcessId", _MOST))

    # Creation.

    def _create(self, request: Request) -> None:
        values = request.read()
        config = Settings(request.document("ContainerConfig", values))
        version = config.part("SchemaVersion") or Settings({})
        given = version.number("Major", _MOST), version.number("Minor", _MOST)
        if given < _LEAST_VERSION:
            problem = f"invalid schema version: {{{given[0]} {given[1]}}}"
            raise coded(HResult.ERROR_VMCOMPUTE_INVALID_JSON, problem)
        if request.container_id in self._containers:
            raise coded(HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_EXISTS)
        if not is_id(request.container_id):
            raise coded(HResult.E_INVALIDARG, "invalid container ID")
        directories = [config.path("OciBundlePath")]
        if config.text("ScratchDirPath"):
            directories.append(config.path("ScratchDirPath"))
        spec = _specification(config)
        container = Container(request.container_id, values.text("ActivityId"), spec, directories)
        container.role = bundle.role_of(spec)
        self._containers[container.id] = container
        mark = self._children.mark()

        def then(made: tuple[int, Streams] | None, error: BaseException | None) -> None:
            if made is None:
                del self._containers[container.id]
                refused = self._service.refusal(error or AssertionError())
                request.refuse(Refused(f"failed to create container: {refused}", refused.result))
            else:
                self._made(container, *made, mark)
                request.answer()

        self._loop.work(lambda: self._make(container), then)

    def _make(self, container: Container) -> tuple[int, Streams]:
        """Make a container, and return the id of its first process and our ends of its streams."""
        with ExitStack() as undo:
            os.makedirs(container.bundle, mode=0o700, exist_ok=True)
            undo.callback(bundle.remove, container.bundle)
            with shared.bound(self._prepare(container, undo)):
                bundle.write(container.spec, container.bundle)
                pid, streams = self._make_process(container)
                undo.callback(self._commands.delete, container.id)
                undo.callback(streams.close)
            self._assign_network(container, pid)
            undo.pop_all()
        return pid, streams

    def _prepare(self, container: Container, undo: ExitStack) -> list[bundle.SharedMount]:
        """Make its specification that of a runtime, and what it needs; return what of its pod's it has."""
        spec, directory = container.spec, container.bundle
        if cgroups.prepare(self._cgroup_root):
            self._limit_all()
        if container.role is not Role.WORKLOAD:
            container.namespace = bundle.namespace_of(spec) or container.id.lower()
            resolver = self._networks.resolv_conf(container.namespace)
            if container.role is Role.STANDALONE:
                bundle.standalone(spec, container.id, directory, resolver)
                return []
            undo.callback(shared.unmount, directory)
            shared.mount(directory)
            bundle.sandbox(spec, container.id, directory, resolver)
            return []
        pod_id = bundle.sandbox_of(spec)
        pod = self._containers.get(pod_id)
        if pod is None or pod.role is not Role.SANDBOX:
            raise Refused(f"pod {pod_id} does not exist for workload container {container.id}")
        host_network = bundle.in_host_network(pod.spec)
        return bundle.workload(spec, container.id, pod_id, pod.bundle, host_network)

    def _make_process(self, container: Container) -> tuple[int, Streams]:
        make, make_with_terminal = self._commands.create, self._commands.create_with_terminal
        try:
            return _start(
                container.spec["process"],
                NAMES,
                partial(make, container.id, container.bundle),
                partial(make_with_terminal, container.id, container.bundle),
            )
        except BaseException:
            # A runtime that fails late, or is killed, leaves its state, and maybe a process.
            with suppress(Refused):
                self._commands.delete(container.id)
            raise

    def _assign_network(self, container: Container, pid: int) -> None:
        if container.role is not Role.WORKLOAD and not bundle.in_host_network(container.spec):
            self._networks.join(container.namespace, pid)

    def _made(self, container: Container, pid: int, streams: Streams, mark: int) -> None:
        container.init = Process(pid, streams, lambda process: self._init_answered(container))
        container.status = Status.CREATED
        self._children.adopt(pid, lambda code: self._init_exited(container, code), mark)

    def _limit_all(self) -> None:
        cgroups.limit_all(cgroups.total_bytes(), self._cgroup_root)

    # Its first process.

    def _init_exited(self, container: Container, code: int) -> None:
        assert container.init is not None
        if container.status is Status.CREATED:
            container.init.streams.close()
        container.status = Status.STOPPED
        if container.role is not Role.WORKLOAD:
            self._networks.leave(container.namespace, container.init.pid)
        container.init.exited(_exit_code(code))
        if not bundle.owns_pids(container.spec):
            self._loop.work(self._cgroup(container).kill_all, lambda result, error: None)

    def _init_answered(self, container: Container) -> None:
        report = container.exit_report()
        if report is not None:
            # After the answers to all that wait.
            self._loop.post(lambda: self._notify(report))

    # Processes.

    def _start(self, request: Request) -> JSON:
        """Do nothing: a container starts with its first process."""
        request.read()
        return {}

    def _execute(self, request: Request) -> None:
        container = self._find(request)
        settings = request.read().part("Settings") or Settings({})
        parameters = Settings(request.document("ProcessParameters", settings))
        process = parameters.value("OciProcess")
        if process is not None and type(process) is not dict:
            raise coded(HResult.ERROR_VMCOMPUTE_INVALID_JSON, "OciProcess is no object")

        def then(connections: Connections) -> None:
            if process is None:
                self._start_init(request, container, connections)
            else:
                self._execute_in(request, container, process, connections)

        Dialing(self._dialer, asked_ports(parameters, settings), request, then)

    def _start_init(self, request: Request, container: Container, connections: Connections) -> None:
        init = container.init
        if init is None or container.status is not Status.CREATED:
            close_all(connections)
            request.refuse(Refused(f"cannot start a container that is {container.status.value}"))
            return
        container.status = Status.RUNNING

        def started(result: object, error: BaseException | None) -> None:
            if error is None:
                request.answer({"ProcessId": init.pid})
                return
            # Its streams have been connected: it cannot be started again.
            with suppress(Refused):
                container.end(signal.SIGKILL)
            request.refuse(self._service.refusal(error))

        init.relay(self._loop, connections)
        self._loop.work(lambda: self._commands.start(container.id), started)

    def _execute_in(
        self, request: Request, container: Container, process: JSON, connections: Connections
    ) -> None:
        if container.status is Status.STOPPED:
            close_all(connections)
            request.refuse(Refused("exec failed: cannot exec in a stopped container"))
            return
        mark = self._children.mark()

        def started(made: tuple[int, Streams] | None, error: BaseException | None) -> None:
            if made is None:
                close_all(connections)
                request.refuse(self._service.refusal(error or AssertionError()))
                return
            pid, streams = made
            one = container.processes[pid] = Process(pid, streams, partial(forget, container.processes))
            one.relay(self._loop, connections)
            request.answer({"ProcessId": pid})
            self._children.adopt(pid, lambda code: one.exited(_exit_code(code)), mark)

        self._loop.work(lambda: self._run(container, process, connections), started)

    def _run(self, container: Container, process: JSON, connections: Connections) -> tuple[int, Streams]:
        """Start a process in a container; raises Refused."""
        bundle.for_exec(process, container.spec)
        execute, execute_with_terminal = self._commands.execute, self._commands.execute_with_terminal
        return _start(
            process,
            connections,
            partial(execute, container.id, process),
            partial(execute_with_terminal, container.id, process),
        )

    def _wait(self, request: Request) -> None:
        self._process(request).wait(request, self._loop)

    def _signal(self, request: Request) -> JSON:
        container, process = self._find(request), self._process(request)
        number = asked_signal(request)
        process.signal(number)
        if process is container.init:
            container.signalled(number)
        return {}

    def _resize(self, request: Request) -> JSON:
        return self._process(request).resize(request)

    def _end(self, number: signal.Signals, request: Request) -> JSON:
        self._find(request).end(number)
        return {}

    # Properties and resources.

    def _properties(self, request: Request) -> JSON:
        container = self._find(request)
        values = request.read()
        query = Settings(request.document("Query", values)) if values.text("Query") else Settings({})
        found: JSON = {}
        for kind in query.texts("PropertyTypes"):
            if kind == "ProcessList" and (pids := self._cgroup(container).pids()):
                found["ProcessList"] = [{"ProcessId": pid} for pid in pids]
            elif kind == "Statistics":
                found["LCOWMetrics"] = self._cgroup(container).metrics()
        return {"Properties": json.dumps(found)}

    def _modify(self, request: Request) -> JSON:
        change = request.read().part("Request") or Settings({})
        resource = change.text("ResourceType")
        if resource not in self._service.resource_types():
            raise Refused(f"invalid ResourceType '{resource}'")
        container = self._find(request)
        if resource != "ContainerConstraints":
            raise Refused(f'the ResourceType "{resource}" is not supported for containers')
        constraints = Settings(change.value("Settings")).value("Linux")
        if type(constraints) is not dict:
            raise coded(HResult.ERROR_VMCOMPUTE_INVALID_JSON, "Linux is no object")
        problem = f"{self._commands.name} update failed"
        if container.status is Status.STOPPED:
            raise Refused(f"{problem}: container is stopped")
        cgroups.check_limit(self._cgroup(container), constraints, problem)
        self._commands.update(container.id, constraints)
        return {}

    # Deletion.

    def _delete(self, request: Request) -> None:
        container = self._find(request)
        if container.status is Status.RUNNING:
            raise coded(HResult.HCS_E_INVALID_STATE, "container not stopped")
        if container.init is not None and container.status is Status.CREATED:
            container.init.streams.close()
        container.status = Status.DELETING

        def deleted(result: object, error: BaseException | None) -> None:
            # It is forgotten even if its state cannot be deleted.
            del self._containers[container.id]
            if error is None:
                request.answer()
            else:
                request.refuse(self._service.refusal(error))

        self._loop.work(lambda: self._delete_state(container), deleted)

    def _delete_state(self, container: Container) -> None:
        if container.role is Role.SANDBOX:
            shared.unmount(container.bundle)
        self._commands.delete(container.id)
        self._cgroup(container).remove()
        # A host may have put adapters into one of the container's name.
        with suppress(Refused):
            self._networks.delete(container.id)
        there = deepest_mount(container.directories)
        if there is not None:
            raise Refused(f"unlinkat {there}: device or resource busy")
        # It takes long to load, and no boot needs it.
        from shutil import rmtree

        for directory in container.directories:
            with suppress(FileNotFoundError):
                rmtree(directory)


def _specification(config: Settings) -> JSON:
    """Return the specification of a container that is to be created.

    :raises Refused: it has none, or one without what hcsshim's guest crashes on.
    """
    spec: Any = config.value("OciSpecification")
    for name in ("process", "root", "linux"):
        if type(spec) is not dict or type(spec.get(name)) is not dict:
            code = HResult.ERROR_VMCOMPUTE_INVALID_JSON
            raise coded(code, f"the OCI specification has no {name}")
    return spec  # type: ignore[no-any-return]


def _start(
    process: JSON,
    wanted: Collection[str],
    start: Callable[[Child], int],
    start_with_terminal: Callable[[], tuple[int, int]],
) -> tuple[int, Streams]:
    """Start a process, and return its id and our ends of its streams.

    :param wanted: the names of its pipes, if it has no terminal.
    """
    if process.get("terminal"):
        values = Settings(process.get("consoleSize"))
        size = values.number("height", _MOST_SIZE), values.number("width", _MOST_SIZE)
        pid, terminal = start_with_terminal()
        set_size(terminal, *size)
        return pid, Streams({}, terminal)
    child, streams = pipes(wanted)
    return streams.start(child, lambda: start(child)), streams


def _exit_code(code: int) -> int:
    """Return an exit code as a shell has it; a negative one is the signal that killed a process."""
    return 128 - code if code < 0 else code


def _no_container(settings: Any) -> None:
    raise coded(HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND)
