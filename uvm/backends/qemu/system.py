"""Handles on VMs that this process has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio

from uvm._repr import shown
from uvm._wire.ports import vsock_port
from uvm.backend import JSON, HostProcess, Listener
from uvm.backends.qemu.documents import read_document
from uvm.backends.qemu.vm import VM
from uvm.errors import ExitStatus, HostError, NotSupportedError
from uvm.hresult import HResult
from uvm.schema.requests import ModifySettingRequest, PauseOptions, SaveOptions

#: How long closing the last handle waits for the end of the VM.
CLOSE_SECONDS: Final = 10.0


class QEMUSystem:
    """A handle on a VM (:class:`~uvm.backend.System`).

    Once it is closed, everything but :attr:`id` and :attr:`runtime_id` is refused with E_HANDLE.

    :param vm: the VM.
    :param forget: called when no handle is left on a VM that has ended, or that ends with its last.
    """

    def __init__(self, vm: VM, forget: Callable[[VM], None]) -> None:
        self._vm = vm
        self._forget = forget
        self._closed = False
        self._waiting: dict[anyio.CancelScope, None] = {}
        vm.handles += 1

    def __repr__(self) -> str:
        return shown(self, "id")

    @property
    def id(self) -> str:
        """The compute system's id."""
        return self._vm.id

    @property
    def runtime_id(self) -> str:
        """The VM's GUID."""
        return self._vm.runtime_id

    async def start(self) -> None:
        """Start the VM; HCS_E_INVALID_STATE if it was started."""
        await self._open("start").start()

    async def shutdown(self, options: JSON | None = None) -> None:
        """Ask the guest to shut down, over the host's own connection to it."""
        vm = self._open("shut down")
        vm.require("shut down", "Running")
        raise self._unconfigured("shut down")

    async def terminate(self) -> None:
        """Kill the VM, and wait for its end; HCS_E_SYSTEM_ALREADY_STOPPED if it has exited."""
        await self._open("terminate").terminate()

    async def crash(self, options: JSON | None = None) -> None:
        """Have the guest panic."""
        await self._open("crash").crash()

    async def pause(self, options: JSON | None = None) -> None:
        """Pause the VM, which must be running."""
        vm = self._open("pause")
        read_document(PauseOptions, options or {}, f"pause {self.id}")
        await vm.pause()

    async def resume(self) -> None:
        """Resume the VM, which must be paused."""
        await self._open("resume").resume()

    async def save(self, options: JSON | None = None) -> None:
        """Save the state of the VM, which must be paused."""
        vm = self._open("save")
        read_document(SaveOptions, options or {}, f"save {self.id}")
        vm.require("save", "Paused")
        raise NotSupportedError(f"save {self.id}: saving is not supported yet; the VM is as it was")

    async def modify(self, request: JSON) -> None:
        """Carry out a ``ModifySettingRequest``."""
        vm = self._open("modify")
        asked = read_document(ModifySettingRequest, request, f"modify {self.id}")
        vm.require("modify", "Running")
        if asked.guest_request is not None:
            raise self._unconfigured("modify")
        await vm.devices.modify(asked)

    async def properties(self, *types: str, queries: JSON | None = None) -> JSON:
        """Query properties; HCS_E_INVALID_JSON for an unknown type."""
        vm = self._open("query")
        for name in (*types, *(queries or ())):
            raise HostError(f"query {self.id}", HResult.HCS_E_INVALID_JSON, f"unknown property {name!r}")
        return vm.summary()

    async def create_process(self, parameters: JSON) -> HostProcess:
        """Start a process in the guest, over the host's own connection to it."""
        self._open("create a process in").require("create a process in", "Running")
        raise self._unconfigured("create a process in")

    async def open_process(self, pid: int) -> HostProcess:
        """Open a process; ERROR_NOT_FOUND if there is none that was started so."""
        self._open("open a process of").require("open a process of", "Running")
        raise HostError(f"open process {pid} of {self.id}", HResult.ERROR_NOT_FOUND)

    async def working_set_bytes(self) -> int:
        """Return the physical memory that QEMU occupies; the VM must not have exited."""
        vm = self._open("measure")
        vm.require("measure", "Running", "Paused")
        return vm.working_set_bytes()

    async def listen(self, service_id: str) -> Listener:
        """Listen for connections of the guest to a vsock port, by its service; before the start too."""
        vm = self._open("listen on")
        vm.require("listen on", "Created", "Running", "Paused")
        port = vsock_port(service_id)
        if port is None:
            text = f"{service_id} is no vsock port's service, and Linux guests reach no others"
            raise HostError(f"listen on {self.id}", HResult.E_INVALIDARG, text)
        return vm.mux.listen(port)

    async def wait(self) -> ExitStatus:
        """Wait for the exit; E_HANDLE if this handle is closed meanwhile."""
        vm = self._open("wait for")
        with anyio.CancelScope() as scope:
            self._waiting[scope] = None
            try:
                return await vm.wait()
            finally:
                del self._waiting[scope]
        raise self._closed_error("wait for")

    async def close(self) -> None:
        """Close the handle, even in a cancelled scope; E_HANDLE if it was closed before."""
        vm = self._open("close")
        self._closed = True
        for scope in self._waiting:
            scope.cancel()
        vm.handles -= 1
        if vm.handles:
            return
        if vm.exit_status is None and vm.document.should_terminate_on_last_handle_closed:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await vm.end()
        if vm.exit_status is not None:
            self._forget(vm)

    def _open(self, operation: str) -> VM:
        """Return the VM; E_HANDLE if the handle is closed."""
        if self._closed:
            raise self._closed_error(operation)
        return self._vm

    def _closed_error(self, operation: str) -> HostError:
        return HostError(f"{operation} {self.id}", HResult.E_HANDLE, "the handle was closed")

    def _unconfigured(self, operation: str) -> HostError:
        code = HResult.HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION
        return HostError(f"{operation} {self.id}", code, "the backend is not connected to the guest")
