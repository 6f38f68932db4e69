"""What the systems and processes of one backend share: calls on handles, their opening and closing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

import anyio
from attrs import frozen

from uvm.backends.hcs.calls import ComputeService, EventHandler, Fetch
from uvm.backends.hcs.dlls import CData, ComputeCore, OperationHandle, ProcessHandle, SystemHandle
from uvm.backends.hcs.handles import Handle, close_late
from uvm.backends.hcs.machine import Machine
from uvm.backends.hcs.text import check, compose, wide
from uvm.backends.hcs.transport import Transport
from uvm.backends.hcs.waker import Waker
from uvm.backends.hcs.workers import Workers

_log = logging.getLogger("uvm")

H = TypeVar("H")

#: The access that hcsshim opens systems and processes with.
_GENERIC_ALL: Final = 0x10000000


@frozen(eq=False)
class Host:
    """The parts of one backend, and the calls that all of it makes.

    :ivar patience_seconds: how long somebody who is cancelled, or cleans up, waits for HCS.
    """

    service: ComputeService
    workers: Workers
    transport: Transport
    machine: Machine
    patience_seconds: float

    @property
    def functions(self) -> ComputeCore:
        """The functions of computecore.dll."""
        return self.service.library.functions

    @property
    def null(self) -> CData:
        """A NULL for arguments that are left out."""
        return self.service.library.ffi.NULL

    def text(self, text: str) -> CData:
        """Make a C string."""
        return wide(self.service.library, text)

    def document(self, document: Any, operation: str) -> CData:
        """Make a C string of a document in JSON; NULL of None."""
        return self.null if document is None else self.text(compose(document, operation))

    async def operate(
        self,
        handle: Handle[H],
        operation: str,
        call: Callable[[H, OperationHandle], int],
        fetch: Fetch | None = None,
    ) -> str:
        """Carry out a call on a handle, and give its result document.

        :raises HostError: HCS refused; E_HANDLE where the handle was closed.
        """

        def submit(follower: OperationHandle) -> int:
            with handle.lent(operation) as value:
                return call(value, follower)

        return await self.service.operate(f"{operation} {handle.name}", submit, fetch)

    async def open_system(self, system_id: str, operation: str) -> Handle[SystemHandle]:
        """Open a system, in the thread pool."""
        name = self.text(system_id)

        def call() -> Handle[SystemHandle]:
            out = self.service.library.ffi.new("HCS_SYSTEM *")
            check(operation, self.functions.HcsOpenComputeSystem(name, _GENERIC_ALL, out))
            return self.system_handle(system_id, out[0])

        return await self.workers.run(call, undo=_close_now)

    async def open_process(
        self, system: Handle[SystemHandle], pid: int, operation: str
    ) -> Handle[ProcessHandle]:
        """Open a process of a system, in the thread pool."""

        def call() -> Handle[ProcessHandle]:
            out = self.service.library.ffi.new("HCS_PROCESS *")
            with system.lent(operation) as value:
                check(operation, self.functions.HcsOpenProcess(value, pid, _GENERIC_ALL, out))
            return self.process_handle(f"{system.name}:{pid}", out[0])

        return await self.workers.run(call, undo=_close_now)

    def system_handle(self, system_id: str, value: SystemHandle) -> Handle[SystemHandle]:
        """Take over a handle of a system."""
        return Handle(system_id, value, self.functions.HcsCloseComputeSystem)

    def process_handle(self, name: str, value: ProcessHandle) -> Handle[ProcessHandle]:
        """Take over a handle of a process."""
        return Handle(name, value, self.functions.HcsCloseProcess)

    async def watch(
        self,
        handle: Handle[H],
        register: Callable[[H, int, CData, CData], int],
        handler: EventHandler,
    ) -> int:
        """Have HCS tell of what happens to a handle, in this event loop; gives what ``forget`` takes."""
        waker = Waker()

        def call() -> int:
            with handle.lent("watch") as value:
                return self.service.watch(lambda *args: register(value, *args), handler, waker)

        return await self.workers.run(call, undo=self.service.forget)

    async def close(self, handle: Handle[Any]) -> None:
        """Close a handle in the thread pool, whatever is cancelled; again, nothing happens."""
        if handle.retire():
            await self.release(handle)

    async def release(self, handle: Handle[Any]) -> None:
        """Close a handle that was retired: the latter half of :meth:`close`."""
        begun: list[bool] = []

        def close() -> None:
            begun.append(True)
            handle.close()

        try:
            with anyio.move_on_after(self.patience_seconds, shield=True) as scope:
                await self.workers.run(close)
            if scope.cancelled_caught:
                _log.warning(
                    "%s: HCS has not closed the handle after %g s", handle.name, self.patience_seconds
                )
        finally:
            # Also where asyncio itself cancels the task, which no shield of anyio's keeps off.
            if not begun:
                close_late(handle)


def _close_now(handle: Handle[Any]) -> None:
    if handle.retire():
        handle.close()
