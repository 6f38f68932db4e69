"""How the Windows guest answers requests, as far as hcsshim relies on it.

Its source is not public. Known are the messages and their order (hcsshim internal/gcs), that unknown fields
are refused, and that the host has to create and start it before anything else.
"""

from __future__ import annotations

from typing import ClassVar, Final

from uvm._wire.ports import WINDOWS_LOG_SERVICE
from uvm.backend import JSON
from uvm.backends.fake.guest.containers import Container
from uvm.backends.fake.guest.execution import Command, asked_streams
from uvm.backends.fake.guest.messages import Incoming
from uvm.backends.fake.guest.processes import GuestProcess
from uvm.backends.fake.guest.service import GuestService
from uvm.backends.fake.guest.state import FakeGuest
from uvm.backends.fake.guest.statistics import windows_statistics
from uvm.backends.fake.guest.stdio import Terminal
from uvm.backends.fake.guest.windows.commandline import split_command_line
from uvm.backends.fake.guest.windows.mounts import WindowsGuest
from uvm.backends.fake.guest.windows.sidecar import admitted_container, check_open
from uvm.hresult import HResult
from uvm.schema import gcs
from uvm.schema.container import HostedSystem
from uvm.schema.guest import LogForwardServiceRPCRequest
from uvm.schema.json import dumps
from uvm.schema.process import ProcessParameters, SignalProcessOptionsWCOW

_CONSOLE_SIGNALS: Final = frozenset({"CtrlC", "CtrlBreak", "CtrlClose", "CtrlLogOff", "CtrlShutdown"})
_KILL: Final = 9


def _command(request: Incoming, parameters: ProcessParameters) -> Command:
    args = split_command_line(parameters.command_line)
    if parameters.application_name:
        args = [parameters.application_name, *args[1:]]
    if not args:
        raise request.refuse(HResult.E_INVALIDARG, "CommandLine is missing")
    terminal = None
    if parameters.emulate_console:
        height, width = (*parameters.console_size, 0, 0)[:2]
        terminal = Terminal(height, width)
    return Command(
        tuple(args), parameters.environment, parameters.working_directory, parameters.user, terminal
    )


class WindowsService(GuestService):
    """The compute service of a Windows guest."""

    guest_kind: ClassVar[type[FakeGuest]] = WindowsGuest
    facts: ClassVar[JSON] = {
        "SendHostCreateMessage": True,
        "SendHostStartMessage": True,
        "HvSocketConfigOnStartup": True,
        "ModifyServiceSettingsSupported": True,
    }

    @property
    def guest(self) -> WindowsGuest:
        """The guest, which runs."""
        guest = self.vm.guest
        assert isinstance(guest, WindowsGuest)
        return guest

    def on_create(self, request: Incoming) -> JSON:
        wanted = request.read(gcs.ContainerCreateRequest)
        if wanted.container_id == gcs.HOST_CONTAINER_ID:
            request.read_text(gcs.UvmConfig, "ContainerConfig", wanted.container_config)
            self._require(request, "new")
            self.phase: str = "created"
            return {}
        self._require(request)
        document = request.parse_text("ContainerConfig", wanted.container_config)
        if self.guest.isolated:
            document = admitted_container(request, self.guest, wanted.container_config, document)
        hosted = request.read_document(HostedSystem, "ContainerConfig", wanted.container_config, document)
        if hosted.container is None:
            raise request.refuse(HResult.E_INVALIDARG, "Container is missing")
        if wanted.container_id in self.containers:
            raise request.refuse(HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_EXISTS)
        if self.guest.checks.guest and (missing := self.guest.missing(hosted.container)):
            raise request.refuse(HResult.ERROR_PATH_NOT_FOUND, missing)
        self.containers[wanted.container_id] = Container(wanted.container_id, wanted.activity_id, document)
        return {}

    def on_start(self, request: Incoming) -> JSON:
        wanted = request.read(gcs.RequestBase)
        if wanted.container_id == gcs.HOST_CONTAINER_ID:
            self._require(request, "created")
            self.phase = "started"
            return {}
        container = self._container(request, wanted.container_id)
        if container.status != "created":
            raise request.refuse(HResult.ERROR_VMCOMPUTE_INVALID_STATE)
        container.status = "running"
        return {}

    def _require(self, request: Incoming, phase: str = "started") -> None:
        """Refuse unless the guest is in a phase."""
        if self.phase != phase:
            raise request.refuse(HResult.ERROR_VMCOMPUTE_INVALID_STATE)

    def _container(self, request: Incoming, container_id: str) -> Container:
        self._require(request)
        container = self.containers.get(container_id)
        if container is None:
            raise request.refuse(HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND)
        return container

    def _process(self, request: Incoming, container_id: str, pid: int) -> GuestProcess:
        self._require(request)
        external = container_id == gcs.HOST_CONTAINER_ID
        processes = self.external if external else self._container(request, container_id).processes
        process = processes.get(pid)
        if process is None:
            raise request.refuse(HResult.ERROR_NOT_FOUND)
        return process

    def on_shutdown_graceful(self, request: Incoming) -> JSON:
        return self._end(request, "GracefulExit")

    def on_shutdown_forced(self, request: Incoming) -> JSON:
        return self._end(request, "ForcedExit")

    def _end(self, request: Incoming, exit_type: str) -> JSON:
        wanted = request.read(gcs.RequestBase)
        if wanted.container_id == gcs.HOST_CONTAINER_ID:
            request.after = self.shut_down
            return {}
        container = self._container(request, wanted.container_id)
        if container.status == "stopped":
            raise request.refuse(HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED)
        container.status, container.exit_type = "stopped", exit_type
        self.guest.directories.pop(container.id, None)
        container.kill_all()
        request.after = lambda: self.exited(container)
        return {}

    def on_execute_process(self, request: Incoming) -> JSON:
        wanted = request.read(gcs.ExecuteProcessRequest)
        self._require(request)
        if self.guest.isolated:
            check_open(request, self.guest, "exec is denied due to policy")
        text = wanted.settings.process_parameters
        parameters = request.read_text(ProcessParameters, "ProcessParameters", text)
        processes = self.external
        if wanted.container_id != gcs.HOST_CONTAINER_ID:
            container = self._container(request, wanted.container_id)
            if container.status != "running":
                raise request.refuse(HResult.ERROR_VMCOMPUTE_INVALID_STATE)
            processes = container.processes
        command = _command(request, parameters)
        program = self.programs.find(command.args[0], "windows")
        if program is None:
            text = "The system cannot find the file specified."
            raise request.refuse(HResult.ERROR_FILE_NOT_FOUND, text)
        relay = wanted.settings.stdio_relay_settings or gcs.StdioRelaySettings()
        streams = asked_streams(parameters, (relay.std_in, relay.std_out, relay.std_err))
        connected = self._connect_streams(streams, lambda name: request.refuse(HResult.WSAECONNREFUSED))
        return self._run(self._make_process(command, processes), program, connected)

    def on_signal_process(self, request: Incoming) -> JSON:
        wanted = request.read(gcs.SignalProcessRequest)
        process = self._process(request, wanted.container_id, wanted.process_id)
        signal: int | str = _KILL
        if wanted.options is not None:
            if not self.vm.guest.capabilities.get("SignalProcessSupported"):
                raise request.refuse(HResult.E_NOTIMPL)
            signal = request.read_part(SignalProcessOptionsWCOW, wanted.options).signal
            if signal not in _CONSOLE_SIGNALS:
                raise request.refuse(HResult.E_INVALIDARG, f"unknown signal {signal!r}")
        if not process.signal(signal):
            raise request.refuse(HResult.ERROR_NOT_FOUND)
        return {}

    def on_get_properties(self, request: Incoming) -> JSON:
        container_id, types = self._properties_query(request)
        if self.guest.isolated:
            check_open(request, self.guest, "get properties denied due to policy")
        container = self._container(request, container_id)
        stopped = container.status == "stopped"
        found: JSON = {"Id": container.id, "SystemType": "Container", "RuntimeOsType": "Windows"}
        found |= {"State": container.status.capitalize(), **({"Stopped": True} if stopped else {})}
        if "ProcessList" in types:
            found["ProcessList"] = [
                {"ProcessId": pid, "ImageName": container.processes[pid].view.args[0]}
                for pid in container.pids
            ]
        if "Statistics" in types:
            found["Statistics"] = windows_statistics(container, self.clock)
        return {"Properties": dumps(found)}

    def on_modify_settings(self, request: Incoming) -> JSON:
        wanted = request.read(gcs.ContainerModifySettingsRequest)
        self._require(request)
        if wanted.container_id == gcs.HOST_CONTAINER_ID:
            self.vm.apply_in_guest(wanted.request)
            return {}
        container = self._container(request, wanted.container_id)
        if isinstance(wanted.request, dict) and wanted.request.get("ResourcePath"):
            self.guest.change_container(container, wanted.request)
        else:
            self.vm.guest.read(wanted.request)
        return {}

    def on_modify_service_settings(self, request: Incoming) -> JSON:
        wanted = request.read(gcs.ServiceModificationRequest)
        self._require(request)
        known = self.vm.guest.capabilities.get("LogForwardingSupported")
        if wanted.property_type != "LogForwardService" or not known:
            raise request.refuse(HResult.E_NOTIMPL)
        command = request.read_part(LogForwardServiceRPCRequest, wanted.settings)
        match command.rpc_type:
            case "ModifyServiceSettings":
                self.log_settings: str = command.settings
            case "StartLogForwarding":
                self.log.forward(WINDOWS_LOG_SERVICE)
            case "StopLogForwarding":
                self.log.stop()
            case other:
                raise request.refuse(HResult.E_INVALIDARG, f"unknown RPCType {other!r}")
        return {}

    def on_dump_stacks(self, request: Incoming) -> JSON:
        self._require(request)
        stacks = (f"process {pid}: {' '.join(p.view.args)}" for pid, p in self.processes.items())
        return {"GuestStacks": "\n".join(["process 4: vmcompute", *stacks])}

    def on_delete_container_state(self, request: Incoming) -> JSON:
        container = self._container(request, request.read(gcs.RequestBase).container_id)
        if container.status == "running":
            raise request.refuse(HResult.ERROR_VMCOMPUTE_INVALID_STATE)
        del self.containers[container.id]
        return {}
