"""Handles on the VMs of the fake, and on the containers that HCS hosts in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvm.backend import JSON
from uvm.backends.fake.guest.execution import close_streams
from uvm.backends.fake.handle import FakeHandle, HostSide
from uvm.backends.fake.hosted import HostedProcess, find_hosted, start_hosted
from uvm.backends.fake.hostedsystem import HostedSystem
from uvm.backends.fake.hostprocess import FakeHostProcess
from uvm.backends.fake.properties import query
from uvm.backends.fake.streams import FakeListener
from uvm.backends.fake.vm import FakeVM
from uvm.backends.requests.request import read_document
from uvm.errors import ExitStatus, HostError
from uvm.schema.gcs import HOST_CONTAINER_ID
from uvm.schema.requests import ModifySettingRequest, PauseOptions, SaveOptions


class FakeSystem(FakeHandle):
    """A handle on a compute system (:class:`~uvm.backend.System`)."""

    def __init__(self, host: HostSide, system: FakeVM | HostedSystem) -> None:
        vm, container_id = (system.vm, system.id) if isinstance(system, HostedSystem) else (system, "")
        super().__init__(host, vm, system, system.id, container_id)
        self._system: FakeVM | HostedSystem = system
        self._container_id = container_id or HOST_CONTAINER_ID

    @property
    def id(self) -> str:
        """The compute system's id."""
        return self._system.id

    @property
    def runtime_id(self) -> str:
        """The Hyper-V VM id, a GUID."""
        return self.vm.runtime_id

    async def start(self) -> None:
        """Start the system; HCS_E_INVALID_STATE if it was started."""
        await self._lifecycle("start", None, self._system.start)

    async def shutdown(self, options: JSON | None = None) -> None:
        """Shut the system down through its guest, at once for a VM."""
        await self._lifecycle("shutdown", options, self._system.shutdown)

    async def terminate(self) -> None:
        """Terminate the system; HCS_E_SYSTEM_ALREADY_STOPPED if it has exited."""
        await self._lifecycle("terminate", None, self._system.terminate)

    async def crash(self, options: JSON | None = None) -> None:
        """Have the guest crash."""
        await self._lifecycle("crash", options, self._system.crash_guest)

    async def pause(self, options: JSON | None = None) -> None:
        """Pause the VM, which must be running."""

        def pause() -> None:
            read_document(PauseOptions, options or {}, f"pause {self.id}")
            self._system.pause()

        await self._lifecycle("pause", options, pause)

    async def resume(self) -> None:
        """Resume the VM, which must be paused."""
        await self._lifecycle("resume", None, self._system.resume)

    async def save(self, options: JSON | None = None) -> None:
        """Save the state of the VM, which must be paused."""

        def save() -> None:
            checked = read_document(SaveOptions, options or {}, f"save {self.id}")
            self._system.save(checked.save_type, checked.save_state_file_path)

        await self._lifecycle("save", options, save)

    async def modify(self, request: JSON) -> None:
        """Carry out a ``ModifySettingRequest``.

        A ``GuestRequest`` in it is relayed if the document has a ``GuestConnection``, else refused with
        HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION. An Add reaches the host first, and is rolled back if the
        guest refuses; a Remove reaches the guest first. The guest's refusal becomes a HostError.
        """
        document = self._copied("modify", request)
        if not isinstance(document, dict) or document.get("GuestRequest") is None:
            await self._modify_host(document)
            return
        removes = document.get("RequestType") == "Remove"
        on_host = bool(document.get("ResourcePath"))
        if removes or not on_host:
            await self._relay(document["GuestRequest"])
        if on_host:
            await self._modify_host(document)
            if not removes:
                await self._relay_or_undo(document)

    async def properties(self, *types: str, queries: JSON | None = None) -> JSON:
        """Query properties; HCS_E_INVALID_JSON for an unknown type.

        ``queries`` are answered in ``PropertyResponses``; their arguments make no difference.
        """
        document: JSON = {"PropertyTypes": list(types)}
        if queries is not None:
            document["Queries"] = self._copied("query", queries)
        return await self._call("query", "properties", document, lambda: self._query(types, queries))

    async def create_process(self, parameters: JSON) -> FakeHostProcess:
        """Start a process in the guest; its refusal becomes a HostError.

        If the answer is lost, the process runs, without streams, and without a handle.
        """
        document = self._copied("create a process in", parameters)
        hosted: HostedProcess | None = None

        def started() -> HostedProcess:
            nonlocal hosted
            self._system.require("create a process in", "Running")
            hosted = start_hosted(self.vm, document, self._container_id)
            return hosted

        try:
            return FakeHostProcess(self._host, await self._guest_call("create process", document, started))
        except BaseException:
            if hosted is not None:
                close_streams(hosted.streams)
            raise

    async def open_process(self, pid: int) -> FakeHostProcess:
        """Open a process; ERROR_NOT_FOUND, or HCS_E_PROCESS_ALREADY_STOPPED if it has exited."""

        def find() -> HostedProcess:
            self._system.require(f"open process {pid} of", "Running")
            return find_hosted(self.vm, pid, self._container_id)

        found = await self._call("lifecycle", "open process", {"ProcessId": pid}, find)
        return FakeHostProcess(self._host, found, opened=True)

    async def working_set_bytes(self) -> int:
        """Return the physical memory that the VM occupies; it must be running."""
        return await self._call("query", "working set", None, self._measure)

    async def listen(self, service_id: str) -> FakeListener:
        """Listen for connections of the guest (:meth:`FakeVM.dial`); before the start too."""
        document = {"ServiceId": service_id}
        return await self._call("host", "listen", document, lambda: self._system.listen(service_id))

    async def _modify_host(self, document: Any) -> None:
        def change() -> None:
            request = read_document(ModifySettingRequest, document, f"modify {self.id}")
            if request.guest_request is not None:
                self.vm.require_relay()
            self.vm.modify(request.resource_path, request.request_type, request.settings)

        await self._call("host", "modify", document, change)

    async def _relay(self, request: Any) -> None:
        def change() -> None:
            self.vm.require_relay()
            self.vm.apply_in_guest(request)

        await self._guest_call("modify", request, change)

    async def _relay_or_undo(self, document: JSON) -> None:
        try:
            await self._relay(document["GuestRequest"])
        except HostError:
            if document.get("RequestType") in ("Add", None) and self.vm.state == "Running":
                self.vm.modify(document["ResourcePath"], "Remove", document.get("Settings"))
            raise

    async def wait(self) -> ExitStatus:
        """Wait for the exit; E_HANDLE if this handle is closed meanwhile.

        The guest runs inside this call: the first task that waits for a VM, over any handle, runs its
        compute service and its programs. When that task stops waiting, what runs in the guest is killed, and
        the next task has the guest connect again.
        """
        await self._unless_closed(f"wait for{self._suffix}", self._ended)
        assert self._system.exit_status is not None
        return self._system.exit_status

    async def _lifecycle(self, operation: str, document: JSON | None, change: Callable[[], None]) -> None:
        await self._call("lifecycle", operation, self._copied(operation, document), change)

    def _query(self, types: tuple[str, ...], queries: JSON | None) -> JSON:
        return query(self.vm, types, tuple(queries or ()), self._host.info, self._host.exchange.clock)

    def _measure(self) -> int:
        statistics = self._query(("Statistics",), None)["Statistics"]
        used: int = statistics["Memory"]["MemoryUsagePrivateWorkingSetBytes"]
        return used

    async def _ended(self) -> None:
        await self.vm.service.attend()


class FakeHostedSystem(FakeSystem):
    """A handle on a container that HCS hosts in a VM (:class:`~uvm.backend.System`).

    The request log has its calls under the VM, with the container's id as the resource. What only virtual
    machines do is refused with ERROR_NOT_SUPPORTED.

    :ivar vm: the VM that hosts it.
    :ivar hosted: the container itself, for tests to look at.
    """

    def __init__(self, host: HostSide, hosted: HostedSystem) -> None:
        super().__init__(host, hosted)
        self.hosted: HostedSystem = hosted

    @property
    def runtime_id(self) -> str:
        """The empty string: a container has no VM of its own."""
        return ""

    async def modify(self, request: JSON) -> None:
        """Have the guest carry out a ``ModificationRequest``; its refusal becomes a HostError."""
        document = self._copied("modify", request)
        await self._guest_call("modify", document, lambda: self.hosted.modify(document))

    def _query(self, types: tuple[str, ...], queries: JSON | None) -> JSON:
        if queries is not None:
            self.hosted.refuse()
        return self.hosted.query(types)

    def _measure(self) -> int:
        return self.hosted.refuse()

    async def _ended(self) -> None:
        await self.hosted.over.wait()
