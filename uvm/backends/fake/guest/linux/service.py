"""How the Linux guest answers requests; it creates containers and starts processes through runc.

Source: hcsshim internal/guest/bridge/bridge_v2.go, internal/guest/runtime/hcsv2, internal/guest/runtime/runc.
Refusals of the guest itself are as seen; those of runc follow its sources, in shorter texts.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any, ClassVar, Final

from uvm._guest.specs import bundle_of
from uvm._wire.ports import vsock_service_id
from uvm.backend import JSON
from uvm.backends.fake.guest.containers import LinuxContainer
from uvm.backends.fake.guest.execution import Command, asked_streams, close_streams
from uvm.backends.fake.guest.linux.cgroups import refused_resources
from uvm.backends.fake.guest.linux.confidential import container_problem
from uvm.backends.fake.guest.linux.mounts import LinuxGuest
from uvm.backends.fake.guest.linux.oci import OCIProcess, OCISpec
from uvm.backends.fake.guest.messages import Incoming
from uvm.backends.fake.guest.processes import SIGKILL, SIGTERM, GuestProcess
from uvm.backends.fake.guest.programs import Program
from uvm.backends.fake.guest.service import GuestService
from uvm.backends.fake.guest.state import FakeGuest
from uvm.backends.fake.guest.statistics import lcow_metrics
from uvm.backends.fake.guest.stdio import Terminal
from uvm.errors import GuestError
from uvm.hresult import HResult
from uvm.schema import gcs
from uvm.schema.common import Version
from uvm.schema.guest import LCOWContainerConstraints
from uvm.schema.json import dumps
from uvm.schema.process import SignalProcessOptionsLCOW

_SIGNALS: Final = range(1, 65)


def _command(request: Incoming, parameters: gcs.LinuxProcessParameters) -> Command:
    args = parameters.command_args
    if not args:
        try:
            args = shlex.split(parameters.command_line)
        except ValueError:
            text = f'failed to parse command line string "{parameters.command_line}": invalid command line'
            raise request.refuse(HResult.E_FAIL, text) from None
    # A terminal of the guest itself has no size at first, not even the one that the host asked for.
    terminal = Terminal() if parameters.emulate_console else None
    return Command(
        tuple(args), parameters.environment, parameters.working_directory, parameters.user, terminal
    )


class LinuxService(GuestService):
    """The compute service of a Linux guest."""

    guest_kind: ClassVar[type[FakeGuest]] = LinuxGuest

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # The process ids of the containers that network namespaces were assigned to, by name.
        self._assigned: dict[str, int] = {}

    def on_create(self, request: Incoming) -> JSON | None:
        """Create a container. A document without the essential crashes the service."""
        wanted = request.read(gcs.ContainerCreateRequest)
        text = wanted.container_config
        document = request.parse_text("ContainerConfig", text)
        version = request.read_document(Version, "ContainerConfig", text, document.get("SchemaVersion") or {})
        hosted = request.read_document(gcs.LinuxHostedSystem, "ContainerConfig", text, document)
        spec = request.read_document(OCISpec, "ContainerConfig", text, hosted.oci_specification or {})
        if (version.major, version.minor) < (2, 1):
            problem = f"invalid schema version: {{{version.major} {version.minor}}}"
            raise request.fail(HResult.ERROR_VMCOMPUTE_INVALID_JSON, problem)
        problem = container_problem(wanted.container_id, hosted) if self.vm.guest.confidential else ""
        if problem:
            raise request.refuse(HResult.E_FAIL, problem)
        if wanted.container_id in self.containers and hosted.oci_specification is not None:
            raise request.refuse(HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_EXISTS)
        if spec.process is None or spec.root is None or spec.linux is None:
            self.die()
            return None
        container = LinuxContainer(wanted.container_id, wanted.activity_id, document)
        command = spec.process.command()
        self._find(request, "failed to create container", *command.args)
        # The exit of a container is reported once that of its first process was.
        container.init = self._new_process(
            command, False, container.init_exited, lambda process: self.exited(container)
        )
        if not spec.in_pod:
            self._assign(request, spec.namespace, container.init.pid)
        self.containers[container.id] = container
        return {"SelectedProtocolVersion": 0}

    def _assign(self, request: Incoming, namespace: str, pid: int) -> None:
        """Assign a network namespace to a container; only the deletion of one of its name frees it."""
        before = self._assigned.setdefault(namespace, pid)
        if before != pid:
            problem = f'previously assigned container pid {before} to network namespace "{namespace}"'
            raise request.refuse(HResult.E_FAIL, problem)

    def on_start(self, request: Incoming) -> JSON:
        """Do nothing: a container starts with its first process."""
        request.read(gcs.RequestBase)
        return {}

    def on_execute_process(self, request: Incoming) -> JSON | None:
        """Run a process of the guest itself, the first process of a container, or another one in it."""
        wanted = request.read(gcs.ExecuteProcessRequest)
        text = wanted.settings.process_parameters
        parameters = request.read_text(gcs.LinuxProcessParameters, "ProcessParameters", text)
        relay = wanted.settings.vsock_stdio_relay_settings or gcs.VsockStdioRelaySettings()
        ports = asked_streams(parameters, (relay.std_in, relay.std_out, relay.std_err))
        if wanted.container_id == gcs.HOST_CONTAINER_ID:
            external = _command(request, parameters)
            if not external.args:
                self.die()
                return None
            return self._execute(request, ports, lambda: self._external(request, external))
        container = self._container(request, wanted.container_id)
        if parameters.oci_process is None:
            return self._execute(request, ports, lambda: self._init(request, container))
        process = request.read_document(OCIProcess, "ProcessParameters", text, parameters.oci_process)
        return self._execute(request, ports, lambda: self._inner(request, container, process.command()))

    def _execute(
        self, request: Incoming, ports: dict[str, int], make: Callable[[], tuple[GuestProcess, Program]]
    ) -> JSON:
        """Connect the standard streams, then make and run a process; a refusal closes the streams."""

        def refused(name: str) -> GuestError:
            address = f"00000002.{ports[name]:08x}"
            problem = (
                f"vsock Dial port ({ports[name]}) failed: failed connect() to {address}: connection refused"
            )
            return request.refuse(HResult.E_FAIL, f"failed creating {name} Connection: {problem}")

        services = {name: vsock_service_id(port & 0xFFFFFFFF) for name, port in ports.items()}
        streams = self._connect_streams(services, refused)
        try:
            process, program = make()
        except GuestError:
            close_streams(streams)
            raise
        return self._run(process, program, streams)

    def _external(self, request: Incoming, command: Command) -> tuple[GuestProcess, Program]:
        program = self._find(request, "failed to call Start for external process", *command.args)
        return self._make_process(command, self.external), program

    def _init(self, request: Incoming, container: LinuxContainer) -> tuple[GuestProcess, Program]:
        if container.status != "created" or container.init.exit_code is not None:
            raise request.refuse(HResult.E_FAIL, f"cannot start a container that is {container.status}")
        program = self._find(request, "runc start failed", *container.init.view.args)
        container.status = "running"
        return container.init, program

    def _inner(
        self, request: Incoming, container: LinuxContainer, command: Command
    ) -> tuple[GuestProcess, Program]:
        if container.status == "stopped":
            raise request.refuse(HResult.E_FAIL, "exec failed: cannot exec in a stopped container")
        program = self._find(request, "exec failed", *command.args)
        return self._make_process(command, container.processes), program

    def _find(self, request: Incoming, problem: str, name: str = "", *arguments: str) -> Program:
        """Return the program of a command."""
        program = self.programs.find(name, "linux")
        if program is None:
            missing = "no such file or directory" if "/" in name else "executable file not found in $PATH"
            raise request.refuse(HResult.E_FAIL, f'{problem}: exec: "{name}": {missing}')
        return program

    def _container(self, request: Incoming, container_id: str) -> LinuxContainer:
        container = self.containers.get(container_id)
        if not isinstance(container, LinuxContainer):
            raise request.refuse(HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND)
        return container

    def _process(self, request: Incoming, container_id: str, pid: int) -> GuestProcess:
        """Return a process in a container; processes of the guest itself are in none, and are not found."""
        process = self._container(request, container_id).find(pid)
        if process is None:
            raise request.refuse(HResult.ERROR_NOT_FOUND)
        return process

    def _waited(self, request: Incoming, container_id: str, pid: int) -> GuestProcess:
        if container_id != gcs.HOST_CONTAINER_ID:
            return self._process(request, container_id, pid)
        process = self.external.get(pid)
        if process is None:
            raise request.refuse(HResult.ERROR_NOT_FOUND)
        return process

    def on_shutdown_graceful(self, request: Incoming) -> JSON | None:
        return self._end(request, SIGTERM)

    def on_shutdown_forced(self, request: Incoming) -> JSON | None:
        return self._end(request, SIGKILL)

    def _end(self, request: Incoming, signal: int) -> JSON | None:
        wanted = request.read(gcs.RequestBase)
        if wanted.container_id == gcs.HOST_CONTAINER_ID:
            # The real one closes its connection, and then powers the VM off.
            self.drop()
            self.vm.shutdown()
            return None
        container = self._container(request, wanted.container_id)
        if not container.signal_init(signal):
            raise request.fail(HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED, "container not running")
        return {}

    def on_signal_process(self, request: Incoming) -> JSON:
        wanted = request.read(gcs.SignalProcessRequest)
        options = request.read_part(SignalProcessOptionsLCOW, wanted.options or {})
        signal = options.signal or SIGKILL
        process = self._process(request, wanted.container_id, wanted.process_id)
        if signal not in _SIGNALS:
            raise request.refuse(HResult.E_FAIL, "invalid argument")
        container = self._container(request, wanted.container_id)
        first = process is container.init
        if not (container.signal_init(signal) if first else process.signal(signal)):
            raise request.refuse(HResult.ERROR_NOT_FOUND)
        return {}

    def on_get_properties(self, request: Incoming) -> JSON:
        container_id, types = self._properties_query(request)
        if container_id == gcs.HOST_CONTAINER_ID:
            raise request.refuse(HResult.E_FAIL, "getPropertiesV2 is not supported against the UVM")
        container = self._container(request, container_id)
        found: JSON = {}
        if "ProcessList" in types and container.pids:
            found["ProcessList"] = [{"ProcessId": pid} for pid in container.pids]
        if "Statistics" in types:
            found["LCOWMetrics"] = lcow_metrics(container, self.clock)
        return {"Properties": dumps(found)}

    def on_modify_settings(self, request: Incoming) -> JSON:
        wanted = request.read(gcs.ContainerModifySettingsRequest)
        guest = self.vm.guest
        if wanted.container_id == gcs.HOST_CONTAINER_ID:
            self.vm.apply_in_guest(wanted.request)
            return {}
        change = guest.read(wanted.request)
        if change.resource not in guest.handlers:
            raise request.refuse(HResult.E_FAIL, f"invalid ResourceType '{change.resource}'")
        container = self._container(request, wanted.container_id)
        if change.resource != "ContainerConstraints":
            raise request.refuse(HResult.E_FAIL, f"{change.resource} is not supported for containers")
        self._constrain(request, container, change.parse(LCOWContainerConstraints).linux)
        return {}

    def on_update_container(self, request: Incoming) -> JSON:
        wanted = request.read(gcs.UpdateContainerRequest)
        resources = request.parse_text("Resources", wanted.resources)
        self._constrain(request, self._container(request, wanted.container_id), resources)
        return {}

    def _constrain(self, request: Incoming, container: LinuxContainer, resources: JSON) -> None:
        """Change the resources of a container, as ``runc update`` does; what is absent stays."""
        if container.status == "stopped":
            raise request.refuse(HResult.E_FAIL, "runc update failed: container is stopped")
        problem = refused_resources(container, resources, self.vm.guest.tree.topology.processor.count)
        if problem:
            raise request.refuse(HResult.E_FAIL, f"runc update failed: {problem}")
        for part, values in resources.items():
            there = container.constraints.get(part)
            if isinstance(there, dict) and isinstance(values, dict):
                values = {**there, **values}
            container.constraints[part] = values

    def on_dump_stacks(self, request: Incoming) -> JSON:
        stacks = (
            f"goroutine {pid} [syscall]:\n{' '.join(p.view.args)}\n" for pid, p in self.processes.items()
        )
        return {"GuestStacks": "\n".join(["goroutine 1 [running]:\nmain.main()\n", *stacks])}

    def on_delete_container_state(self, request: Incoming) -> JSON:
        container = self._container(request, request.read(gcs.RequestBase).container_id)
        if self.vm.guest.confidential:
            self._check_deletion(request, container)
        # The guest forgets it even if runc refuses.
        del self.containers[container.id]
        guest, namespace = self.vm.guest, container.id.lower()
        if not (isinstance(guest, LinuxGuest) and guest.namespaces.get(namespace)):
            self._assigned.pop(namespace, None)
        if container.status == "running":
            raise request.fail(HResult.HCS_E_INVALID_STATE, "container not stopped")
        container.signal_init(SIGKILL)
        bundle = container.document.get("OciBundlePath")
        mount = self.vm.guest.mount_in(bundle) if isinstance(bundle, str) and bundle else None
        if mount is not None:
            # It removes the bundle, with all that is in it.
            raise request.refuse(HResult.E_FAIL, f"unlinkat {mount.path}: device or resource busy")
        return {}

    def _check_deletion(self, request: Incoming, container: LinuxContainer) -> None:
        """Refuse, under a security policy, to delete the state of a container that is in use."""
        if container.status == "running":
            text = f'Denied deleting state of a running container "{container.id}"'
            raise request.refuse(HResult.E_FAIL, text)
        if bundle_of(container.id) + "/rootfs" in self.vm.guest.mounts:
            text = "Denied deleting state of a container with a overlay mount still active"
            raise request.refuse(HResult.E_FAIL, text)
