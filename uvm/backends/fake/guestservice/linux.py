"""How the Linux guest answers requests.

Source: hcsshim internal/guest/bridge/bridge_v2.go and internal/guest/runtime/hcsv2; what the guest says of a
refusal is as it was seen to say it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from uvm._wire.frames import Procedure
from uvm.backend import JSON
from uvm.backends.fake.guestservice.execution import (
    wait_for,
)
from uvm.backends.fake.guestservice.messages import Incoming, hresult, reject
from uvm.backends.fake.guestservice.processes import SIGKILL, SIGTERM, GuestProcess
from uvm.backends.fake.guestservice.runc import create, execute, find_container
from uvm.backends.fake.guestservice.statistics import lcow_metrics
from uvm.hresult import HResult
from uvm.schema.gcs import (
    HOST_CONTAINER_ID,
    PROTOCOL_VERSION,
    ContainerModifySettingsRequest,
    GetPropertiesRequest,
    NegotiateProtocolRequest,
    RequestBase,
    ResizeConsoleRequest,
    SignalProcessRequest,
    WaitForProcessRequest,
)
from uvm.schema.guest import LCOWContainerConstraints
from uvm.schema.json import dumps
from uvm.schema.process import SignalProcessOptionsLCOW
from uvm.schema.properties import PropertyQuery

if TYPE_CHECKING:
    from uvm.backends.fake.guestservice.service import GuestService

_SIGNALS: Final = range(1, 65)


def _negotiate(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(NegotiateProtocolRequest)
    if not wanted.minimum_version <= PROTOCOL_VERSION <= wanted.maximum_version:
        raise hresult(request.operation, HResult.ERROR_VMCOMPUTE_UNSUPPORTED_PROTOCOL_VERSION)
    service.negotiated()
    capabilities = {
        "SupportedSchemaVersions": [{"Major": 2, "Minor": 1}],
        "RuntimeOsType": "Linux",
        "GuestDefinedCapabilities": dict(service.vm.guest.capabilities),
    }
    return {"Version": PROTOCOL_VERSION, "Capabilities": capabilities}


def _process(service: GuestService, request: Incoming, container_id: str, pid: int) -> GuestProcess:
    """Find a process in a container; processes of the guest itself are in none, and cannot be found so."""
    process = find_container(service, request, container_id).find(pid)
    if process is None:
        raise hresult(request.operation, HResult.ERROR_NOT_FOUND)
    return process


def _start(service: GuestService, request: Incoming) -> JSON:
    """Nothing: a container starts with its first process."""
    request.read(RequestBase)
    return {}


def _shut_down(service: GuestService, request: Incoming, *, signal: int) -> JSON | None:
    wanted = request.read(RequestBase)
    if wanted.container_id == HOST_CONTAINER_ID:
        # The real one closes its connection, and then switches the machine off.
        service.drop()
        service.vm.shutdown()
        return None
    container = find_container(service, request, wanted.container_id)
    if not container.signal_init(signal):
        problem, code = "container not running", HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED
        text = f"runc kill failed with exit status 1: {problem}\n: HRESULT 0x{code:x}: {problem}"
        reject(request.operation, code, text)
    return {}


def _wait(service: GuestService, request: Incoming) -> JSON | None:
    wanted = request.read(WaitForProcessRequest)
    if wanted.container_id == HOST_CONTAINER_ID:
        process = service.external.get(wanted.process_id)
        if process is None:
            raise hresult(request.operation, HResult.ERROR_NOT_FOUND)
    else:
        process = _process(service, request, wanted.container_id, wanted.process_id)
    return wait_for(service, request, process, wanted.timeout_in_ms)


def _signal(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(SignalProcessRequest)
    options = request.read_part(SignalProcessOptionsLCOW, wanted.options or {})
    signal = options.signal or SIGKILL
    process = _process(service, request, wanted.container_id, wanted.process_id)
    if signal not in _SIGNALS:
        reject(request.operation, HResult.E_FAIL, "invalid argument")
    container = find_container(service, request, wanted.container_id)
    first = process is container.init
    if not (container.signal_init(signal) if first else process.signal(signal)):
        raise hresult(request.operation, HResult.ERROR_NOT_FOUND)
    return {}


def _resize(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(ResizeConsoleRequest)
    process = _process(service, request, wanted.container_id, wanted.process_id)
    if process.view.terminal is None:
        reject(request.operation, HResult.E_FAIL, f"pid: {process.pid}, is not a tty and cannot be resized")
    process.resize(wanted.height, wanted.width)
    return {}


def _properties(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(GetPropertiesRequest)
    query = PropertyQuery()
    if wanted.query:
        query = request.read_text(PropertyQuery, "Query", wanted.query)
    if wanted.container_id == HOST_CONTAINER_ID:
        reject(request.operation, HResult.E_FAIL, "getPropertiesV2 is not supported against the UVM")
    container = find_container(service, request, wanted.container_id)
    found: JSON = {}
    if "ProcessList" in query.property_types and container.pids:
        found["ProcessList"] = [{"ProcessId": pid} for pid in container.pids]
    if "Statistics" in query.property_types:
        found["LCOWMetrics"] = lcow_metrics(container, service.backend.clock)
    return {"Properties": dumps(found)}


def _modify(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(ContainerModifySettingsRequest)
    guest = service.vm.guest
    if wanted.container_id == HOST_CONTAINER_ID:
        service.vm.apply_in_guest(wanted.request)
        return {}
    change = guest.read(wanted.request)
    if change.resource not in guest.handlers:
        reject(request.operation, HResult.E_FAIL, f"invalid ResourceType '{change.resource}'")
    container = find_container(service, request, wanted.container_id)
    if change.resource != "ContainerConstraints":
        reject(
            request.operation,
            HResult.E_FAIL,
            f'the ResourceType "{change.resource}" is not supported for containers',
        )
    container.constraints = change.parse(LCOWContainerConstraints).linux
    container.modifications.append(wanted.request)
    return {}


def _dump_stacks(service: GuestService, request: Incoming) -> JSON:
    stacks = (
        f"goroutine {pid} [syscall]:\n{' '.join(p.view.args)}\n" for pid, p in service.processes.items()
    )
    return {"GuestStacks": "\n".join(["goroutine 1 [running]:\nmain.main()\n", *stacks])}


def _delete(service: GuestService, request: Incoming) -> JSON:
    wanted = request.read(RequestBase)
    container = find_container(service, request, wanted.container_id)
    # The guest forgets it whatever runc says.
    del service.containers[container.id]
    if container.status == "running":
        problem, code = (
            f"cannot delete container {container.id} that is not stopped: running",
            HResult.HCS_E_INVALID_STATE,
        )
        text = (
            f"runc delete failed with exit status 1: {problem}\n: HRESULT 0x{code:x}: container not stopped"
        )
        reject(request.operation, code, text)
    container.signal_init(SIGKILL)
    bundle = container.document.get("OciBundlePath")
    mount = service.vm.guest.mount_in(bundle) if isinstance(bundle, str) and bundle else None
    if mount is not None:
        # It removes the bundle, with all that is in it.
        reject(request.operation, HResult.E_FAIL, f"unlinkat {mount.path}: device or resource busy")
    return {}


#: What answers a request: gives what a yes consists of, or None where the answer comes later or never.
HANDLERS: Final[dict[int, Callable[[GuestService, Incoming], JSON | None]]] = {
    Procedure.NEGOTIATE_PROTOCOL: _negotiate,
    Procedure.CREATE: create,
    Procedure.START: _start,
    Procedure.SHUTDOWN_GRACEFUL: partial(_shut_down, signal=SIGTERM),
    Procedure.SHUTDOWN_FORCED: partial(_shut_down, signal=SIGKILL),
    Procedure.EXECUTE_PROCESS: execute,
    Procedure.WAIT_FOR_PROCESS: _wait,
    Procedure.SIGNAL_PROCESS: _signal,
    Procedure.RESIZE_CONSOLE: _resize,
    Procedure.GET_PROPERTIES: _properties,
    Procedure.MODIFY_SETTINGS: _modify,
    Procedure.DUMP_STACKS: _dump_stacks,
    Procedure.DELETE_CONTAINER_STATE: _delete,
}
