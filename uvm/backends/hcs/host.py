"""What the systems and processes of one backend share: calls on handles, opening and closing handles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import anyio
from attrs import frozen

from uvm._log import Log
from uvm.backend import JSON
from uvm.backends.hcs.calls import ComputeService, EventHandler, Fetch
from uvm.backends.hcs.dlls import (
    CData,
    ComputeCore,
    OperationHandle,
    ProcessHandle,
    Registration,
    Request,
    SystemHandle,
)
from uvm.backends.hcs.handles import Handle, close_late
from uvm.backends.hcs.platform import Platform
from uvm.backends.hcs.text import check, compose, wide
from uvm.backends.waker import Waker

_log = Log("uvm")

H = TypeVar("H")

#: The access that hcsshim opens systems and processes with.
_GENERIC_ALL: Final = 0x10000000


@frozen(eq=False, repr=False)
class Host:
    """The platform of one backend, and the calls that its systems and processes share."""

    service: ComputeService
    platform: Platform

    @property
    def functions(self) -> ComputeCore:
        """The functions of computecore.dll."""
        return self.service.library.functions

    @property
    def null(self) -> CData:
        """NULL, for omitted arguments."""
        return self.service.library.ffi.NULL

    def text(self, text: str) -> CData:
        """Return a C string."""
        return wide(self.service.library, text)

    def document(self, document: Any, operation: str) -> CData:
        """Return a C string of a document in JSON; NULL for None."""
        return self.null if document is None else self.text(compose(document, operation))

    async def operate(
        self,
        handle: Handle[H],
        operation: str,
        call: Callable[[H, OperationHandle], int],
        fetch: Fetch | None = None,
    ) -> str:
        """Make a call on a handle, and return its result document.

        :raises HostError: HCS refused; E_HANDLE if the handle was closed.
        """

        def submit(follower: OperationHandle) -> int:
            with handle.lent(operation) as value:
                return call(value, follower)

        return await self.service.operate(f"{operation} {handle.name}", submit, fetch)

    async def request(
        self, handle: Handle[H], operation: str, call: Request[H], document: JSON | None = None
    ) -> str:
        """Make a call on a handle with a document, and return its result document. Errors as of operate."""
        text = self.document(document, f"{operation} {handle.name}")
        return await self.operate(handle, operation, lambda value, follower: call(value, follower, text))

    async def open_system(self, system_id: str, operation: str) -> Handle[SystemHandle]:
        """Open a system, in a worker thread."""
        name = self.text(system_id)

        def call() -> Handle[SystemHandle]:
            out = self.service.library.ffi.new("HCS_SYSTEM *")
            check(operation, self.functions.HcsOpenComputeSystem(name, _GENERIC_ALL, out))
            return self.system_handle(system_id, out[0])

        return await self.platform.workers.run(call, undo=_close_now)

    async def open_process(
        self, system: Handle[SystemHandle], pid: int, operation: str
    ) -> Handle[ProcessHandle]:
        """Open a process of a system, in a worker thread."""

        def call() -> Handle[ProcessHandle]:
            out = self.service.library.ffi.new("HCS_PROCESS *")
            with system.lent(operation) as value:
                check(operation, self.functions.HcsOpenProcess(value, pid, _GENERIC_ALL, out))
            return self.process_handle(f"{system.name}:{pid}", out[0])

        return await self.platform.workers.run(call, undo=_close_now)

    def system_handle(self, system_id: str, value: SystemHandle) -> Handle[SystemHandle]:
        """Return the owner of a system's handle."""
        return Handle(system_id, value, self.functions.HcsCloseComputeSystem)

    def process_handle(self, name: str, value: ProcessHandle) -> Handle[ProcessHandle]:
        """Return the owner of a process's handle."""
        return Handle(name, value, self.functions.HcsCloseProcess)

    async def watch(self, handle: Handle[H], register: Registration[H], handler: EventHandler) -> int:
        """Register a handle's events with this event loop; return the number of the registration."""
        waker = Waker()

        def call() -> int:
            with handle.lent("watch") as value:
                return self.service.watch(lambda *args: register(value, *args), handler, waker)

        return await self.platform.workers.run(call, undo=self.service.forget)

    async def close(self, handle: Handle[Any]) -> None:
        """Close a handle in a worker thread, shielded from cancellation. Idempotent."""
        if handle.retire():
            await self.release(handle)

    async def release(self, handle: Handle[Any]) -> None:
        """Close a retired handle: the latter half of :meth:`close`."""
        begun: list[bool] = []

        def close() -> None:
            begun.append(True)
            handle.close()

        try:
            with anyio.move_on_after(self.platform.grace_seconds, shield=True) as scope:
                await self.platform.workers.run(close)
            if scope.cancelled_caught:
                _log.warning(
                    handle.name, "HCS has not closed the handle after %g s", self.platform.grace_seconds
                )
        finally:
            # Also if asyncio itself cancels the task, which no shield of anyio's prevents.
            if not begun:
                close_late(handle)


def _close_now(handle: Handle[Any]) -> None:
    if handle.retire():
        handle.close()
