"""A handle on a fake VM: what the library above works with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel

from uvm.backend import JSON
from uvm.backends.fake.calls import Call, To, copy_json
from uvm.backends.fake.hosted import HostedProcess, find_hosted, start_hosted
from uvm.backends.fake.hostprocess import FakeHostProcess
from uvm.backends.fake.properties import query
from uvm.backends.fake.streams import FakeListener
from uvm.backends.fake.vm import FakeVM
from uvm.errors import ExitStatus, GuestError, HostError
from uvm.hresult import HResult
from uvm.schema.json import SchemaError, from_json
from uvm.schema.requests import ModifySettingRequest, PauseOptions, SaveOptions

if TYPE_CHECKING:
    from uvm.backends.fake.backend import FakeBackend

T = TypeVar("T")


class FakeSystem:
    """A handle on a compute system (:class:`~uvm.backend.System`).

    Every call but :attr:`id` and :attr:`runtime_id` is refused with E_HANDLE once the handle is closed.

    :ivar vm: the compute system itself, for tests to look at.
    """

    __slots__ = ("_backend", "_closed", "_waiting", "vm")

    def __init__(self, backend: FakeBackend, vm: FakeVM) -> None:
        self._backend = backend
        self._closed = False
        self._waiting: list[Callable[[], None]] = []
        self.vm: FakeVM = vm
        self._opened()

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
        await self._lifecycle("start", None, self.vm.start)

    async def shutdown(self, options: JSON | None = None) -> None:
        """Have the guest shut down, which it does at once."""
        await self._lifecycle("shutdown", options, self.vm.shutdown)

    async def terminate(self) -> None:
        """End it; HCS_E_SYSTEM_ALREADY_STOPPED where it has exited."""
        await self._lifecycle("terminate", None, self.vm.terminate)

    async def crash(self, options: JSON | None = None) -> None:
        """Have the guest crash."""
        await self._lifecycle("crash", options, self.vm.crash_guest)

    async def pause(self, options: JSON | None = None) -> None:
        """Stop its processors; it must be running."""

        def pause() -> None:
            _parse(PauseOptions, options or {}, f"pause {self.id}")
            self.vm.pause()

        await self._lifecycle("pause", options, pause)

    async def resume(self) -> None:
        """Let its processors go on; it must be paused."""
        await self._lifecycle("resume", None, self.vm.resume)

    async def save(self, options: JSON | None = None) -> None:
        """Save its state; it must be paused."""

        def save() -> None:
            checked = _parse(SaveOptions, options or {}, f"save {self.id}")
            self.vm.save(checked.save_type, checked.save_state_file_path)

        await self._lifecycle("save", options, save)

    async def modify(self, request: JSON) -> None:
        """Carry out a ``ModifySettingRequest``.

        A ``GuestRequest`` in it is relayed where the document has a ``GuestConnection``, else refused with
        HCS_E_SYSTEM_NOT_CONFIGURED_FOR_OPERATION. An Add reaches the host first, and is taken back where the
        guest refuses; a Remove reaches the guest first. The guest's refusal becomes a HostError.
        """
        document = copied(request, f"modify {self.id}")
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
            document["Queries"] = copied(queries, f"query {self.id}")
        backend = self._backend
        asked = tuple(queries or ())
        return await self._call(
            "query", "properties", document, lambda: query(self.vm, types, asked, backend.info, backend.clock)
        )

    async def create_process(self, parameters: JSON) -> FakeHostProcess:
        """Start a process in the guest; its refusal becomes a HostError.

        Where the answer gets lost, the process is there, without streams, and nobody has a handle.
        """
        return await self._start_process(parameters, lambda document: start_hosted(self.vm, document))

    async def _start_process(
        self, parameters: JSON, start: Callable[[JSON], HostedProcess]
    ) -> FakeHostProcess:
        document = copied(parameters, f"create a process in {self.id}")
        hosted: HostedProcess | None = None

        def started() -> HostedProcess:
            nonlocal hosted
            hosted = start(document)
            return hosted

        try:
            return FakeHostProcess(self._backend, await self._guest_call("create process", document, started))
        except BaseException:
            if hosted is not None:
                hosted.close_streams()
            raise

    async def open_process(self, pid: int) -> FakeHostProcess:
        """Open a process; ERROR_NOT_FOUND, or HCS_E_PROCESS_ALREADY_STOPPED where it has exited."""
        found = await self._call(
            "lifecycle", "open process", {"ProcessId": pid}, lambda: find_hosted(self.vm, pid)
        )
        return FakeHostProcess(self._backend, found, opened=True)

    async def working_set_bytes(self) -> int:
        """Give the physical memory that the VM occupies; it must be running."""
        backend = self._backend

        def measure() -> int:
            statistics = query(self.vm, ("Statistics",), (), backend.info, backend.clock)["Statistics"]
            used: int = statistics["Memory"]["MemoryUsagePrivateWorkingSetBytes"]
            return used

        return await self._call("query", "working set", None, measure)

    async def listen(self, service_id: str) -> FakeListener:
        """Listen for connections of the guest (:meth:`FakeVM.dial`); before the start too."""
        return await self._call(
            "host", "listen", {"ServiceId": service_id}, lambda: self.vm.listen(service_id)
        )

    async def wait(self) -> ExitStatus:
        """Wait for the exit; E_HANDLE where this handle is closed meanwhile.

        The guest runs inside of this call: of those who wait for a VM, over any handle, the first runs its
        compute service and its programs. When that one stops waiting, what runs in the guest is killed, and
        the next has the guest connect again.
        """
        self._require_open("wait for")
        with anyio.CancelScope() as scope:
            end = scope.cancel
            self._waiting.append(end)
            self.vm.add_exit_hook(end)
            try:
                await self.vm.service.attend()
            finally:
                self._waiting.remove(end)
                self.vm.remove_exit_hook(end)
        if self.vm.exit_status is None:
            self._require_open("wait for")
        assert self.vm.exit_status is not None
        return self.vm.exit_status

    async def close(self) -> None:
        """Close the handle, at once, whatever is cancelled. Closing it again is refused."""
        call = self._begin("lifecycle", "close", None)
        try:
            self._require_open("close")
        except HostError as e:
            self._backend.request_log.finish(call, e, applied=False)
            raise
        self._closed = True
        self._closed_now()
        for end in list(self._waiting):
            end()
        self._backend.request_log.finish(call, None, applied=True)
        await anyio.lowlevel.checkpoint()

    async def _modify_host(self, document: Any) -> None:
        def change() -> None:
            request = _parse(ModifySettingRequest, document, f"modify {self.id}")
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

    async def _guest_call(self, operation: str, document: Any, change: Callable[[], T]) -> T:
        """Make a call that HCS passes on to the guest, whose refusal it passes back."""
        try:
            return await self._call("guest", operation, document, change)
        except GuestError as e:
            raise HostError(f"{operation} {self.id}: {e.operation}", e.hresult, e.text) from None

    async def _lifecycle(self, operation: str, document: JSON | None, change: Callable[[], None]) -> None:
        await self._call("lifecycle", operation, copied(document, f"{operation} {self.id}"), change)

    async def _call(self, to: To, operation: str, document: Any, change: Callable[[], T]) -> T:
        def checked() -> T:
            self._require_open(operation)
            return change()

        call = self._begin(to, operation, document)
        return await self._backend.exchange.carry_out(call, checked, self.vm)

    def _begin(self, to: To, operation: str, document: Any) -> Call:
        """Log the call."""
        fields = document if operation == "modify" and isinstance(document, dict) else {}
        resource = fields.get("ResourcePath") or fields.get("ResourceType") or ""
        request_type = fields.get("RequestType") or ""
        return self._backend.request_log.begin(
            to, self.id, operation, document, str(resource), str(request_type)
        )

    def _opened(self) -> None:
        """Have the system take note of this handle."""
        self.vm.handles += 1

    def _closed_now(self) -> None:
        """Have the system take note that this handle was closed."""
        self._backend.handle_closed(self.vm)

    def _require_open(self, operation: str) -> None:
        if self._closed:
            raise HostError(f"{operation} {self.id}", HResult.E_HANDLE, "the handle was closed")


def copied(document: Any, operation: str) -> Any:
    """Copy a document; HCS_E_INVALID_JSON where it is no JSON value."""
    try:
        return copy_json(document)
    except ValueError as e:
        raise HostError(operation, HResult.HCS_E_INVALID_JSON, str(e)) from None


def _parse(cls: type[T], document: Any, operation: str) -> T:
    try:
        return from_json(cls, document, forbid_extra=True)
    except SchemaError as e:
        raise HostError(operation, HResult.HCS_E_INVALID_JSON, str(e)) from None
