"""How the Linux guest answers requests.

Source: hcsshim internal/guest/bridge/bridge_v2.go and internal/guest/runtime/hcsv2; what the guest says of a
refusal is as it was seen to say it.
"""

from __future__ import annotations

from typing import Final

from uvm.backend import JSON
from uvm.backends.fake.guest.linux.runc import RuncService
from uvm.backends.fake.guest.messages import Incoming, failure, hresult, reject
from uvm.backends.fake.guest.processes import SIGKILL, SIGTERM, GuestProcess
from uvm.backends.fake.guest.statistics import lcow_metrics
from uvm.hresult import HResult
from uvm.schema.gcs import (
    HOST_CONTAINER_ID,
    ContainerModifySettingsRequest,
    RequestBase,
    SignalProcessRequest,
    WaitForProcessRequest,
)
from uvm.schema.guest import LCOWContainerConstraints
from uvm.schema.json import dumps
from uvm.schema.process import SignalProcessOptionsLCOW

_SIGNALS: Final = range(1, 65)


class LinuxService(RuncService):
    """The compute service of a Linux guest."""

    __slots__ = ()

    def _process(self, request: Incoming, container_id: str, pid: int) -> GuestProcess:
        """Find a process in a container; processes of the guest itself are in none, and are not found."""
        process = self._container(request, container_id).find(pid)
        if process is None:
            raise hresult(request.operation, HResult.ERROR_NOT_FOUND)
        return process

    def on_start(self, request: Incoming) -> JSON:
        """Nothing: a container starts with its first process."""
        request.read(RequestBase)
        return {}

    def on_shutdown_graceful(self, request: Incoming) -> JSON | None:
        return self._end(request, SIGTERM)

    def on_shutdown_forced(self, request: Incoming) -> JSON | None:
        return self._end(request, SIGKILL)

    def _end(self, request: Incoming, signal: int) -> JSON | None:
        wanted = request.read(RequestBase)
        if wanted.container_id == HOST_CONTAINER_ID:
            # The real one closes its connection, and then switches the machine off.
            self.drop()
            self.vm.shutdown()
            return None
        container = self._container(request, wanted.container_id)
        if not container.signal_init(signal):
            code = HResult.ERROR_VMCOMPUTE_SYSTEM_ALREADY_STOPPED
            raise failure(request.operation, code, "container not running")
        return {}

    def on_wait_for_process(self, request: Incoming) -> JSON | None:
        wanted = request.read(WaitForProcessRequest)
        if wanted.container_id == HOST_CONTAINER_ID:
            process = self.external.get(wanted.process_id)
            if process is None:
                raise hresult(request.operation, HResult.ERROR_NOT_FOUND)
        else:
            process = self._process(request, wanted.container_id, wanted.process_id)
        return self._wait_for(request, process, wanted.timeout_in_ms)

    def on_signal_process(self, request: Incoming) -> JSON:
        wanted = request.read(SignalProcessRequest)
        options = request.read_part(SignalProcessOptionsLCOW, wanted.options or {})
        signal = options.signal or SIGKILL
        process = self._process(request, wanted.container_id, wanted.process_id)
        if signal not in _SIGNALS:
            reject(request.operation, HResult.E_FAIL, "invalid argument")
        container = self._container(request, wanted.container_id)
        first = process is container.init
        if not (container.signal_init(signal) if first else process.signal(signal)):
            raise hresult(request.operation, HResult.ERROR_NOT_FOUND)
        return {}

    def on_get_properties(self, request: Incoming) -> JSON:
        container_id, types = self._properties_query(request)
        if container_id == HOST_CONTAINER_ID:
            reject(request.operation, HResult.E_FAIL, "getPropertiesV2 is not supported against the UVM")
        container = self._container(request, container_id)
        found: JSON = {}
        if "ProcessList" in types and container.pids:
            found["ProcessList"] = [{"ProcessId": pid} for pid in container.pids]
        if "Statistics" in types:
            found["LCOWMetrics"] = lcow_metrics(container, self.clock)
        return {"Properties": dumps(found)}

    def on_modify_settings(self, request: Incoming) -> JSON:
        wanted = request.read(ContainerModifySettingsRequest)
        guest = self.vm.guest
        if wanted.container_id == HOST_CONTAINER_ID:
            self.vm.apply_in_guest(wanted.request)
            return {}
        change = guest.read(wanted.request)
        if change.resource not in guest.handlers:
            reject(request.operation, HResult.E_FAIL, f"invalid ResourceType '{change.resource}'")
        container = self._container(request, wanted.container_id)
        if change.resource != "ContainerConstraints":
            reject(request.operation, HResult.E_FAIL, f"{change.resource} is not supported for containers")
        container.constraints = change.parse(LCOWContainerConstraints).linux
        container.modifications.append(wanted.request)
        return {}

    def on_dump_stacks(self, request: Incoming) -> JSON:
        stacks = (
            f"goroutine {pid} [syscall]:\n{' '.join(p.view.args)}\n" for pid, p in self.processes.items()
        )
        return {"GuestStacks": "\n".join(["goroutine 1 [running]:\nmain.main()\n", *stacks])}

    def on_delete_container_state(self, request: Incoming) -> JSON:
        wanted = request.read(RequestBase)
        container = self._container(request, wanted.container_id)
        # The guest forgets it whatever runc says.
        del self.containers[container.id]
        if container.status == "running":
            raise failure(request.operation, HResult.HCS_E_INVALID_STATE, "container not stopped")
        container.signal_init(SIGKILL)
        bundle = container.document.get("OciBundlePath")
        mount = self.vm.guest.mount_in(bundle) if isinstance(bundle, str) and bundle else None
        if mount is not None:
            # It removes the bundle, with all that is in it.
            reject(request.operation, HResult.E_FAIL, f"unlinkat {mount.path}: device or resource busy")
        return {}
