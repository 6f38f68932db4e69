"""A handle on a fake VM: what the library above works with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio

from uvm.backend import JSON
from uvm.backends.fake.handle import Handle, HostSide
from uvm.backends.fake.hosted import HostedProcess, find_hosted, start_hosted
from uvm.backends.fake.hostedsystem import HostedSystem
from uvm.backends.fake.hostprocess import FakeHostProcess
from uvm.backends.fake.properties import query
from uvm.backends.fake.streams import FakeListener
from uvm.backends.fake.vm import FakeVM
from uvm.errors import ExitStatus, HostError
from uvm.schema.requests import ModifySettingRequest, PauseOptions, SaveOptions

T = TypeVar("T")


class FakeSystem(Handle):
    """A handle on a compute system (:class:`~uvm.backend.System`)."""

    __slots__ = ("_system",)

    def __init__(self, host: HostSide, vm: FakeVM, system: HostedSystem | None = None) -> None:
        self._system: FakeVM | HostedSystem = vm if system is None else system
        super().__init__(host, vm)

    @property
    def id(self) -> str:
        """The compute system's id."""
        return self.vm.id

    @property
    def runtime_id(self) -> str:
        """The Hyper-V VM id, a GUID."""
        return self.vm.runtime_id

    async def start(self) -> None:
        """Start it; HCS_E_INVALID_STATE where it was started."""
        await self._lifecycle("start", None, self._system.start)

    async def shutdown(self, options: JSON | None = None) -> None:
        """Have the guest shut down, which it does at once."""
        await self._lifecycle("shutdown", options, self._system.shutdown)

    async def terminate(self) -> None:
        """End it; HCS_E_SYSTEM_ALREADY_STOPPED where it has exited."""
        await self._lifecycle("terminate", None, self._system.terminate)

    async def crash(self, options: JSON | None = None) -> None:
        """Have the guest crash."""
        await self._lifecycle("crash", options, self._system.crash_guest)

    async def pause(self, options: JSON | None = None) -> None:
        """Stop its processors; it must be running."""

        def pause() -> None:
            self._parse(PauseOptions, options or {}, "pause")
            self._system.pause()

        await self._lifecycle("pause", options, pause)

    async def resume(self) -> None:
        """Let its processors go on; it must be paused."""
        await self._lifecycle("resume", None, self._system.resume)

    async def save(self, options: JSON | None = None) -> None:
        """Save its state; it must be paused."""

        def save() -> None:
            checked = self._parse(SaveOptions, options or {}, "save")
            self._system.save(checked.save_type, checked.save_state_file_path)

        await self._lifecycle("save", options, save)

    async def modify(self, request: JSON) -> None:
        """Carry out a ``ModifySettingRequest``.

        A ``GuestRequest`` in it is relayed where the document has a ``GuestConnection``, else refused with
        HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION. An Add reaches the host first, and is taken back where the
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
        """Query properties; HCS_E_INVALID_JSON for a type that is not known.

        What ``queries`` asks for is answered in ``PropertyResponses``; arguments make no difference here.
        """
        document: JSON = {"PropertyTypes": list(types)}
        if queries is not None:
            document["Queries"] = self._copied("query", queries)
        return await self._call("query", "properties", document, lambda: self._query(types, queries))

    async def create_process(self, parameters: JSON) -> FakeHostProcess:
        """Start a process in the guest; its refusal becomes a HostError.

        Where the answer gets lost, the process is there, without streams, and nobody has a handle.
        """
        document = self._copied("create a process in", parameters)
        hosted: HostedProcess | None = None

        def started() -> HostedProcess:
            nonlocal hosted
            hosted = self._start_process(document)
            return hosted

        try:
            return FakeHostProcess(self._host, await self._guest_call("create process", document, started))
        except BaseException:
            if hosted is not None:
                hosted.close_streams()
            raise

    async def open_process(self, pid: int) -> FakeHostProcess:
        """Open a process; ERROR_NOT_FOUND, or HCS_E_PROCESS_ALREADY_STOPPED where it has exited."""
        found = await self._call(
            "lifecycle", "open process", {"ProcessId": pid}, lambda: self._find_process(pid)
        )
        return FakeHostProcess(self._host, found, opened=True)

    async def working_set_bytes(self) -> int:
        """Return the physical memory that the VM occupies; it must be running."""
        return await self._call("query", "working set", None, self._measure)

    async def listen(self, service_id: str) -> FakeListener:
        """Listen for connections of the guest (:meth:`FakeVM.dial`); before the start too."""
        return await self._call(
            "host", "listen", {"ServiceId": service_id}, lambda: self._system.listen(service_id)
        )

    async def _modify_host(self, document: Any) -> None:
        def change() -> None:
            request = self._parse(ModifySettingRequest, document, "modify")
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

        The guest runs inside of this call: of those who wait for a VM, over any handle, the first runs its
        compute service and its programs. When that one stops waiting, what runs in the guest is killed, and
        the next has the guest connect again.
        """
        await self._unless_closed(self._ended)
        assert self._system.exit_status is not None
        return self._system.exit_status

    async def _lifecycle(self, operation: str, document: JSON | None, change: Callable[[], None]) -> None:
        await self._call("lifecycle", operation, self._copied(operation, document), change)

    # What a container does otherwise.

    def _start_process(self, document: JSON) -> HostedProcess:
        return start_hosted(self.vm, document)

    def _find_process(self, pid: int) -> HostedProcess:
        return find_hosted(self.vm, pid)

    def _query(self, types: tuple[str, ...], queries: JSON | None) -> JSON:
        return query(self.vm, types, tuple(queries or ()), self._host.info, self._host.exchange.clock)

    def _measure(self) -> int:
        used: int = self._query(("Statistics",), None)["Statistics"]["Memory"][
            "MemoryUsagePrivateWorkingSetBytes"
        ]
        return used

    async def _ended(self) -> None:
        with anyio.CancelScope() as scope:
            self.vm.add_exit_hook(scope.cancel)
            try:
                await self.vm.service.attend()
            finally:
                self.vm.remove_exit_hook(scope.cancel)

    def _name(self) -> str:
        return self.id

    def _resource(self, operation: str, document: Any) -> tuple[str, str]:
        fields = document if operation == "modify" and isinstance(document, dict) else {}
        resource = fields.get("ResourcePath") or fields.get("ResourceType") or ""
        return str(resource), str(fields.get("RequestType") or "")

    def _opened(self) -> None:
        self._system.opened()

    def _closed_now(self) -> None:
        self._system.closed()


class FakeHostedSystem(FakeSystem):
    """A handle on a container that HCS hosts in a VM (:class:`~uvm.backend.System`).

    The request log has its calls under the VM, with the container's id as the resource. What only virtual
    machines do is refused with ERROR_NOT_SUPPORTED.

    :ivar vm: the VM that hosts it.
    :ivar hosted: the container itself, for tests to look at.
    """

    __slots__ = ("hosted",)

    def __init__(self, host: HostSide, hosted: HostedSystem) -> None:
        self.hosted: HostedSystem = hosted
        super().__init__(host, hosted.vm, hosted)

    @property
    def id(self) -> str:
        """The compute system's id."""
        return self.hosted.id

    @property
    def runtime_id(self) -> str:
        """Nothing: it is no VM of its own."""
        return ""

    async def modify(self, request: JSON) -> None:
        """Have the guest carry out a ``ModificationRequest`` on it; its refusal becomes a HostError."""
        document = self._copied("modify", request)
        await self._guest_call("modify", document, lambda: self.hosted.modify(document))

    def _start_process(self, document: JSON) -> HostedProcess:
        return self.hosted.create_process(document)

    def _find_process(self, pid: int) -> HostedProcess:
        return self.hosted.open_process(pid)

    def _query(self, types: tuple[str, ...], queries: JSON | None) -> JSON:
        if queries is not None:
            self.hosted.refuse()
        return self.hosted.query(types)

    def _measure(self) -> int:
        return self.hosted.refuse()

    async def _ended(self) -> None:
        await self.hosted.over.wait()

    def _resource(self, operation: str, document: Any) -> tuple[str, str]:
        return self.id, super()._resource(operation, document)[1]
