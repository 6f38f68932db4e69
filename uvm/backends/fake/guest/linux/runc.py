"""How the Linux guest creates containers and starts processes, itself or through runc.

Source: hcsshim internal/guest/runtime/hcsv2 and internal/guest/runtime/runc. What the guest itself says of a
refusal is as it was seen to say it; what runc says in it follows runc's own texts and was not seen.
"""

from __future__ import annotations

import shlex

from uvm._wire.ports import vsock_service_id
from uvm.backend import JSON
from uvm.backends.fake.guest.containers import LinuxContainer
from uvm.backends.fake.guest.execution import (
    Command,
    asked_streams,
    close_streams,
)
from uvm.backends.fake.guest.linux.oci import OCIProcess, OCISpec
from uvm.backends.fake.guest.messages import Incoming, failure, hresult, reject
from uvm.backends.fake.guest.programs import Program
from uvm.backends.fake.guest.service import GuestService
from uvm.backends.fake.guest.stdio import Terminal
from uvm.backends.fake.streams import FakeStream
from uvm.errors import GuestError
from uvm.hresult import HResult
from uvm.schema.common import Version
from uvm.schema.gcs import (
    HOST_CONTAINER_ID,
    ContainerCreateRequest,
    ExecuteProcessRequest,
    LinuxHostedSystem,
    LinuxProcessParameters,
    VsockStdioRelaySettings,
)


def _split(request: Incoming, command_line: str) -> list[str]:
    try:
        return shlex.split(command_line)
    except ValueError:
        problem = f'failed to parse command line string "{command_line}": invalid command line string'
        reject(request.operation, HResult.E_FAIL, problem)


class RuncService(GuestService):
    """What of the Linux guest creates containers and starts processes."""

    __slots__ = ()

    def on_create(self, request: Incoming) -> JSON | None:
        """Create a container. Its command is looked for now; a document without the essential is fatal."""
        wanted = request.read(ContainerCreateRequest)
        text = wanted.container_config
        document = request.parse_text("ContainerConfig", text)
        version = request.read_document(Version, "ContainerConfig", text, document.get("SchemaVersion") or {})
        hosted = request.read_document(LinuxHostedSystem, "ContainerConfig", text, document)
        spec = request.read_document(OCISpec, "ContainerConfig", text, hosted.oci_specification or {})
        if (version.major, version.minor) < (2, 1):
            version_text = f"{{{version.major} {version.minor}}}"
            raise failure(
                request.operation,
                HResult.ERROR_VMCOMPUTE_INVALID_JSON,
                f"invalid schema version: {version_text}",
            )
        if wanted.container_id in self.containers and hosted.oci_specification is not None:
            raise hresult(request.operation, HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_EXISTS)
        if spec.process is None or spec.root is None or spec.linux is None:
            self.die()
            return None
        container = LinuxContainer(wanted.container_id, wanted.activity_id, document, exited=self.exited)
        command = spec.process.command()
        problem = f"failed to create container: runc create/exec call for container {container.id} failed: "
        problem += "exit status 1: runc create failed: "
        if not command.args:
            reject(request.operation, HResult.E_FAIL, problem + "args must not be empty")
        problem += "unable to start container process: error during container init: "
        self._find(request, command.args[0], problem)
        container.init = self._make_process(
            command,
            external=False,
            on_exit=container.init_exited,
            on_release=container.init_released,
        )
        self.containers[container.id] = container
        return {"SelectedProtocolVersion": 0}

    def _container(self, request: Incoming, container_id: str) -> LinuxContainer:
        """Return a container."""
        container = self.containers.get(container_id)
        if not isinstance(container, LinuxContainer):
            raise hresult(request.operation, HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND)
        return container

    def on_execute_process(self, request: Incoming) -> JSON | None:
        """Run a process of the guest itself, the first process of a container, or another one in it."""
        wanted = request.read(ExecuteProcessRequest)
        text = wanted.settings.process_parameters
        parameters = request.read_text(LinuxProcessParameters, "ProcessParameters", text)
        ports = wanted.settings.vsock_stdio_relay_settings or VsockStdioRelaySettings()
        streams = asked_streams(parameters, (ports.std_in, ports.std_out, ports.std_err))
        if wanted.container_id == HOST_CONTAINER_ID:
            return self._execute_external(request, parameters, streams)
        container = self._container(request, wanted.container_id)
        if parameters.oci_process is None:
            return self._start_init(request, container, streams)
        process = request.read_document(OCIProcess, "ProcessParameters", text, parameters.oci_process)
        return self._execute_in(request, container, process.command(), streams)

    def _execute_external(
        self, request: Incoming, parameters: LinuxProcessParameters, ports: dict[str, int]
    ) -> JSON | None:
        args = parameters.command_args or _split(request, parameters.command_line)
        if not args:
            self.die()
            return None
        # A terminal of the guest itself has no size at first, whatever the host asked for.
        command = Command(
            tuple(args),
            parameters.environment,
            parameters.working_directory,
            parameters.user,
            Terminal() if parameters.emulate_console else None,
        )
        streams = self._connect(request, ports)
        program = self.programs.find(args[0], "linux")
        if program is None:
            close_streams(streams)
            missing = f'exec: "{args[0]}": executable file not found in $PATH'
            if "/" in args[0]:
                missing = f"fork/exec {args[0]}: no such file or directory"
            reject(request.operation, HResult.E_FAIL, f"failed to call Start for external process: {missing}")
        process = self._make_process(command, external=True, on_release=self.forget)
        self.external[process.pid] = process
        return self._run(process, program, streams)

    def _start_init(self, request: Incoming, container: LinuxContainer, ports: dict[str, int]) -> JSON:
        streams = self._connect(request, ports)
        if container.status != "created" or container.init.exit_code is not None:
            close_streams(streams)
            reject(request.operation, HResult.E_FAIL, f"cannot start a container that is {container.status}")
        try:
            program = self._find(request, container.init.view.args[0], "runc start failed: ")
        except GuestError:
            close_streams(streams)
            raise
        container.status = "running"
        return self._run(container.init, program, streams)

    def _execute_in(
        self,
        request: Incoming,
        container: LinuxContainer,
        command: Command,
        ports: dict[str, int],
    ) -> JSON:
        streams = self._connect(request, ports)
        problem = f"runc create/exec call for container {container.id} failed: exit status 255: exec failed: "
        try:
            if container.status == "stopped":
                reject(request.operation, HResult.E_FAIL, problem + "cannot exec in a stopped container")
            if not command.args:
                reject(request.operation, HResult.E_FAIL, problem + "process args cannot be empty")
            problem += "unable to start container process: "
            program = self._find(request, command.args[0], problem)
        except GuestError:
            close_streams(streams)
            raise
        process = self._make_process(command, external=False, on_release=container.forget)
        container.processes[process.pid] = process
        return self._run(process, program, streams)

    def _find(self, request: Incoming, name: str, problem: str) -> Program:
        """Find a program as runc does."""
        program = self.programs.find(name, "linux")
        if program is None:
            missing = "executable file not found in $PATH"
            if "/" in name:
                missing = f"stat {name}: no such file or directory"
            reject(request.operation, HResult.E_FAIL, f'{problem}exec: "{name}": {missing}')
        return program

    def _connect(self, request: Incoming, ports: dict[str, int]) -> dict[str, FakeStream]:
        def refused(name: str) -> GuestError:
            problem = f"vsock Dial port ({ports[name]}) failed: connection refused"
            return GuestError(
                request.operation, HResult.E_FAIL, f"failed creating {name} Connection: {problem}"
            )

        services = {name: vsock_service_id(port & 0xFFFFFFFF) for name, port in ports.items()}
        return self._connect_streams(services, refused)
