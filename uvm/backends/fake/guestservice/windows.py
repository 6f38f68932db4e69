"""How the Windows guest answers requests, as far as hcsshim relies on it.

Its source is not public. What is known: the messages and their order (hcsshim internal/gcs), that unknown
fields are refused, and that it wants to be created and started by the host before anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from uvm._wire.frames import Procedure
from uvm._wire.ports import WINDOWS_LOG_SERVICE
from uvm.backend import JSON
from uvm.backends.fake.guestservice.commandline import split_command_line
from uvm.backends.fake.guestservice.containers import Container
from uvm.backends.fake.guestservice.execution import (
    Command,
    attach_streams,
    connect_streams,
    make_process,
    wait_for,
)
from uvm.backends.fake.guestservice.messages import Incoming, hresult, reject
from uvm.backends.fake.guestservice.processes import GuestProcess
from uvm.backends.fake.guestservice.statistics import windows_statistics
from uvm.backends.fake.guestservice.stdio import Terminal
from uvm.hresult import HResult
from uvm.schema.container import HostedSystem
from uvm.schema.gcs import (
    HOST_CONTAINER_ID,
    PROTOCOL_VERSION,
    ContainerCreateRequest,
    ContainerModifySettingsRequest,
    ExecuteProcessRequest,
    GetPropertiesRequest,
    NegotiateProtocolRequest,
    RequestBase,
    ResizeConsoleRequest,
    ServiceModificationRequest,
    SignalProcessRequest,
    StdioRelaySettings,
    UvmConfig,
    WaitForProcessRequest,
)
from uvm.schema.guest import LogForwardServiceRPCRequest
from uvm.schema.json import dumps
from uvm.schema.process import ProcessParameters, SignalProcessOptionsWCOW
from uvm.schema.properties import PropertyQuery

if TYPE_CHECKING:
    from uvm.backends.fake.guestservice.service import GuestService

_CONSOLE_SIGNALS: Final = frozenset({"CtrlC", "CtrlBreak", "CtrlClose", "CtrlLogOff", "CtrlShutdown"})
_KILL: Final = 9


def _negotiate(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(NegotiateProtocolRequest)
    if not wanted.minimum_version <= PROTOCOL_VERSION <= wanted.maximum_version:
        raise hresult(request.operation, HResult.ERROR_VMCOMPUTE_UNSUPPORTED_PROTOCOL_VERSION)
    service.negotiated()
    capabilities = {
        "SendHostCreateMessage": True,
        "SendHostStartMessage": True,
        "HvSocketConfigOnStartup": True,
        "ModifyServiceSettingsSupported": True,
        "SupportedSchemaVersions": [{"Major": 2, "Minor": 1}],
        "RuntimeOsType": "Windows",
        "GuestDefinedCapabilities": dict(service.vm.guest.capabilities),
    }
    return {"Version": PROTOCOL_VERSION, "Capabilities": capabilities}


def _create(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(ContainerCreateRequest)
    if wanted.container_id == HOST_CONTAINER_ID:
        request.read_text(UvmConfig, "ContainerConfig", wanted.container_config)
        _advance(service, request, "new", "created")
        return {}
    _require_started(service, request)
    document = request.parse_text("ContainerConfig", wanted.container_config)
    hosted = request.read_document(HostedSystem, "ContainerConfig", wanted.container_config, document)
    if hosted.container is None:
        reject(request.operation, HResult.E_INVALIDARG, "Container is missing")
    if wanted.container_id in service.containers:
        raise hresult(request.operation, HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_EXISTS)
    service.containers[wanted.container_id] = Container(wanted.container_id, wanted.activity_id, document)
    return {}


def _start(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(RequestBase)
    if wanted.container_id == HOST_CONTAINER_ID:
        _advance(service, request, "created", "started")
        return {}
    container = _container(service, request, wanted.container_id)
    if container.status != "created":
        raise hresult(request.operation, HResult.ERROR_VMCOMPUTE_INVALID_STATE)
    container.status = "running"
    return {}


def _advance(service: GuestService, request: Incoming, before: str, after: str) -> None:
    if service.phase != before:
        raise hresult(request.operation, HResult.ERROR_VMCOMPUTE_INVALID_STATE)
    service.phase = after


def _require_started(service: GuestService, request: Incoming) -> None:
    if service.phase != "started":
        raise hresult(request.operation, HResult.ERROR_VMCOMPUTE_INVALID_STATE)


def _container(service: GuestService, request: Incoming, container_id: str) -> Container:
    _require_started(service, request)
    container = service.containers.get(container_id)
    if container is None:
        raise hresult(request.operation, HResult.ERROR_VMCOMPUTE_SYSTEM_NOT_FOUND)
    return container


def _process(service: GuestService, request: Incoming, container_id: str, pid: int) -> GuestProcess:
    _require_started(service, request)
    external = container_id == HOST_CONTAINER_ID
    processes = service.external if external else _container(service, request, container_id).processes
    process = processes.get(pid)
    if process is None:
        raise hresult(request.operation, HResult.ERROR_NOT_FOUND)
    return process


def _shut_down(service: GuestService, request: Incoming) -> JSON:
    return _end(service, request, "GracefulExit")


def _terminate(service: GuestService, request: Incoming) -> JSON:
    return _end(service, request, "ForcedExit")


def _end(service: GuestService, request: Incoming, exit_type: str) -> JSON:
    wanted = request.read(RequestBase)
    if wanted.container_id == HOST_CONTAINER_ID:
        request.after = service.shut_down
        return {}
    container = _container(service, request, wanted.container_id)
    if container.status == "stopped":
        raise hresult(request.operation, HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED)
    container.status, container.exit_type = "stopped", exit_type
    container.kill_all()
    request.after = lambda: service.exited(container)
    return {}


def _execute(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(ExecuteProcessRequest)
    _require_started(service, request)
    text = wanted.settings.process_parameters
    parameters = request.read_text(ProcessParameters, "ProcessParameters", text)
    processes, forget = service.external, service.forget
    if wanted.container_id != HOST_CONTAINER_ID:
        container = _container(service, request, wanted.container_id)
        if container.status != "running":
            raise hresult(request.operation, HResult.ERROR_VMCOMPUTE_INVALID_STATE)
        processes, forget = container.processes, container.forget
    command = _command(request, parameters)
    program = service.backend.programs.find(command.args[0], "windows")
    if program is None:
        reject(request.operation, HResult.ERROR_FILE_NOT_FOUND, "The system cannot find the file specified.")
    relay = wanted.settings.stdio_relay_settings or StdioRelaySettings()
    streams = {
        name: service_id
        for name, service_id, asked in (
            ("stdin", relay.std_in, parameters.create_std_in_pipe),
            ("stdout", relay.std_out, parameters.create_std_out_pipe),
            ("stderr", relay.std_err, parameters.create_std_err_pipe),
        )
        if asked
    }
    connected = connect_streams(
        service, streams, lambda name: hresult(request.operation, HResult.WSAECONNREFUSED)
    )
    process = make_process(
        service,
        command,
        external=processes is service.external,
        on_release=forget,
    )
    processes[process.pid] = process
    attach_streams(process, connected)
    service.start_process(process, program)
    return {"ProcessId": process.pid}


def _command(request: Incoming, parameters: ProcessParameters) -> Command:
    args = split_command_line(parameters.command_line)
    if parameters.application_name:
        args = [parameters.application_name, *args[1:]]
    if not args:
        reject(request.operation, HResult.E_INVALIDARG, "CommandLine is missing")
    terminal = None
    if parameters.emulate_console:
        height, width = (*parameters.console_size, 0, 0)[:2]
        terminal = Terminal(height, width)
    return Command(
        tuple(args), parameters.environment, parameters.working_directory, parameters.user, terminal
    )


def _wait(service: GuestService, request: Incoming) -> JSON | None:
    wanted = request.read(WaitForProcessRequest)
    process = _process(service, request, wanted.container_id, wanted.process_id)
    return wait_for(service, request, process, wanted.timeout_in_ms)


def _signal(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(SignalProcessRequest)
    process = _process(service, request, wanted.container_id, wanted.process_id)
    signal: int | str = _KILL
    if wanted.options is not None:
        if not service.vm.guest.capabilities.get("SignalProcessSupported"):
            raise hresult(request.operation, HResult.E_NOTIMPL)
        signal = request.read_part(SignalProcessOptionsWCOW, wanted.options).signal
        if signal not in _CONSOLE_SIGNALS:
            reject(request.operation, HResult.E_INVALIDARG, f"unknown signal {signal!r}")
    if not process.signal(signal):
        raise hresult(request.operation, HResult.ERROR_NOT_FOUND)
    return {}


def _resize(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(ResizeConsoleRequest)
    process = _process(service, request, wanted.container_id, wanted.process_id)
    if process.view.terminal is None:
        reject(request.operation, HResult.E_INVALIDARG, f"process {process.pid} has no console")
    process.resize(wanted.height, wanted.width)
    return {}


def _properties(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(GetPropertiesRequest)
    query = PropertyQuery()
    if wanted.query:
        query = request.read_text(PropertyQuery, "Query", wanted.query)
    container = _container(service, request, wanted.container_id)
    stopped = container.status == "stopped"
    found: JSON = {"Id": container.id, "SystemType": "Container", "RuntimeOsType": "Windows"}
    found |= {"State": container.status.capitalize(), **({"Stopped": True} if stopped else {})}
    if "ProcessList" in query.property_types:
        found["ProcessList"] = [
            {"ProcessId": pid, "ImageName": container.processes[pid].view.args[0]} for pid in container.pids
        ]
    if "Statistics" in query.property_types:
        found["Statistics"] = windows_statistics(container, service.backend.clock)
    return {"Properties": dumps(found)}


def _modify(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(ContainerModifySettingsRequest)
    _require_started(service, request)
    if wanted.container_id == HOST_CONTAINER_ID:
        service.vm.apply_in_guest(wanted.request)
        return {}
    container = _container(service, request, wanted.container_id)
    service.vm.guest.read(wanted.request)
    container.modifications.append(wanted.request)
    return {}


def _modify_service(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(ServiceModificationRequest)
    _require_started(service, request)
    known = service.vm.guest.capabilities.get("LogForwardingSupported")
    if wanted.property_type != "LogForwardService" or not known:
        raise hresult(request.operation, HResult.E_NOTIMPL)
    command = request.read_part(LogForwardServiceRPCRequest, wanted.settings)
    match command.rpc_type:
        case "ModifyServiceSettings":
            service.log_settings = command.settings
        case "StartLogForwarding":
            service.log.forward(WINDOWS_LOG_SERVICE)
        case "StopLogForwarding":
            service.log.stop()
        case other:
            reject(request.operation, HResult.E_INVALIDARG, f"unknown RPCType {other!r}")
    return {}


def _dump_stacks(service: GuestService, request: Incoming) -> JSON:
    _require_started(service, request)
    stacks = (f"process {pid}: {' '.join(p.view.args)}" for pid, p in service.processes.items())
    return {"GuestStacks": "\n".join(["process 4: vmcompute", *stacks])}


def _delete(service: GuestService, request: Incoming) -> JSON:
    container = _container(service, request, request.read(RequestBase).container_id)
    if container.status == "running":
        raise hresult(request.operation, HResult.ERROR_VMCOMPUTE_INVALID_STATE)
    del service.containers[container.id]
    return {}


#: What answers a request: gives what a yes consists of, or None where the answer comes later.
HANDLERS: Final[dict[int, Callable[[GuestService, Incoming], JSON | None]]] = {
    Procedure.NEGOTIATE_PROTOCOL: _negotiate,
    Procedure.CREATE: _create,
    Procedure.START: _start,
    Procedure.SHUTDOWN_GRACEFUL: _shut_down,
    Procedure.SHUTDOWN_FORCED: _terminate,
    Procedure.EXECUTE_PROCESS: _execute,
    Procedure.WAIT_FOR_PROCESS: _wait,
    Procedure.SIGNAL_PROCESS: _signal,
    Procedure.RESIZE_CONSOLE: _resize,
    Procedure.GET_PROPERTIES: _properties,
    Procedure.MODIFY_SETTINGS: _modify,
    Procedure.MODIFY_SERVICE_SETTINGS: _modify_service,
    Procedure.DUMP_STACKS: _dump_stacks,
    Procedure.DELETE_CONTAINER_STATE: _delete,
}
