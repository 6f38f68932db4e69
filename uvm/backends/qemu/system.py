"""Handles on VMs that this process has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio

from uvm.backend import JSON, HostInfo, HostProcess, Listener
from uvm.backends.handles import Handle
from uvm.backends.qemu.hostprocess import HostConnection, QEMUHostProcess
from uvm.backends.qemu.properties import query, usage_of
from uvm.backends.qemu.vm import VM
from uvm.backends.requests.request import read_document
from uvm.errors import ExitStatus, HostError
from uvm.hresult import HResult
from uvm.schema.requests import ADD, REMOVE, ModifySettingRequest, PauseOptions, SaveOptions

#: How long closing the last handle waits for the end of the VM.
CLOSE_SECONDS: Final = 10.0


class QEMUSystem(Handle):
    """A handle on a VM (:class:`~uvm.backend.System`).

    Once it is closed, everything but :attr:`id` and :attr:`runtime_id` is refused with E_HANDLE.

    :param vm: the VM.
    :param info: the facts of its host.
    :param forget: called when no handle is left on a VM that has ended, or that ends with its last.
    """

    def __init__(self, vm: VM, info: HostInfo, forget: Callable[[VM], None]) -> None:
        super().__init__(vm.id)
        self._vm = vm
        self._info = info
        self._forget = forget
        vm.handles += 1

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
        await self._guest("shut down").shutdown()

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
        asked = read_document(SaveOptions, options or {}, f"save {self.id}")
        vm.require("save", "Paused")
        if asked.save_type == "AsTemplate":
            await vm.save_template()
        elif asked.save_state_file_path:
            await vm.save_to_file(asked.save_state_file_path)
        else:
            text = "SaveStateFilePath is missing"
            raise HostError(f"save {self.id}", HResult.E_INVALIDARG, text)

    async def modify(self, request: JSON) -> None:
        """Carry out a ``ModifySettingRequest``.

        A ``GuestRequest`` in it is relayed if the document has a ``GuestConnection``, else refused with
        HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION. An Add reaches the host first, and is rolled back if the
        guest refuses; a Remove reaches the guest first. The guest's refusal becomes a HostError.
        """
        vm = self._open("modify")
        asked = read_document(ModifySettingRequest, request, f"modify {self.id}")
        vm.require("modify", "Running")
        if asked.guest_request is None:
            await vm.modify(asked)
            return
        connection, removes = vm.host_connection("modify"), asked.request_type == REMOVE
        if removes or not asked.resource_path:
            await connection.modify(asked.guest_request)
        if asked.resource_path:
            await vm.modify(asked)
            if not removes:
                await self._relay_or_undo(vm, connection, asked)

    async def _relay_or_undo(self, vm: VM, connection: HostConnection, asked: ModifySettingRequest) -> None:
        try:
            await connection.modify(asked.guest_request)
        except HostError:
            if asked.request_type in (ADD, "") and vm.state == "Running":
                await vm.modify(asked.replaced(request_type=REMOVE))
            raise

    async def properties(self, *types: str, queries: JSON | None = None) -> JSON:
        """Query properties; HCS_E_INVALID_JSON for an unknown type."""
        vm = self._open("query")
        return await query(vm, self._info, types, tuple(queries or ()))

    async def create_process(self, parameters: JSON) -> HostProcess:
        """Start a process in the guest, over the host's own connection to it."""
        return QEMUHostProcess(await self._guest("create a process in").start(parameters))

    async def open_process(self, pid: int) -> HostProcess:
        """Open a process; ERROR_NOT_FOUND if there is none that was started so."""
        return QEMUHostProcess(self._guest("open a process of").find(pid), opened=True)

    async def working_set_bytes(self) -> int:
        """Return the physical memory that QEMU occupies; the VM must not have exited."""
        vm = self._open("measure")
        vm.require("measure", "Running", "Paused")
        return usage_of(vm.id, vm.pid).resident_bytes

    async def listen(self, service_id: str) -> Listener:
        """Listen for connections of the guest to a vsock port, by its service; before the start too."""
        return await self._open("listen on").listen(service_id)

    async def wait(self) -> ExitStatus:
        """Wait for the exit; E_HANDLE if this handle is closed meanwhile."""
        return await self._unless_closed("wait for", self._vm.wait)

    async def close(self) -> None:
        """Close the handle, even in a cancelled scope; E_HANDLE if it was closed before."""
        self._close()
        vm = self._vm
        vm.handles -= 1
        if vm.handles:
            return
        if vm.exit_status is None and vm.ends_with_last_handle:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await vm.end()
        if vm.exit_status is not None:
            self._forget(vm)

    def _open(self, operation: str) -> VM:
        """Return the VM; E_HANDLE if the handle is closed."""
        self._require_open(operation)
        return self._vm

    def _guest(self, operation: str) -> HostConnection:
        """Return the host's own connection to the guest of the VM, which must be running."""
        vm = self._open(operation)
        vm.require(operation, "Running")
        return vm.host_connection(operation)
