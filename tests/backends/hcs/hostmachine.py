"""The in-memory host as the library's Windows machine: everything but HCS and HCN."""

from __future__ import annotations

from typing import Any

import anyio.lowlevel
from attrs import define, frozen

from uvm.backend import VM_GROUP, AccessMask, HostFiles, HostInfo
from uvm.backends.fake import FakeBackend, FakeVM
from uvm.backends.fake.properties import query
from uvm.errors import HostError
from uvm.hresult import HResult

__all__ = ["FakeMachine"]


@define
class FakeWorkingSet:
    """The memory of one VM (:class:`~uvm.backends.hcs.machine.WorkingSet`)."""

    fake: FakeBackend
    vm: FakeVM
    closed: bool = False

    def bytes(self) -> int:
        """Return the current working set, from the statistics."""
        if self.closed:
            raise HostError(f"measure {self.vm.id}", HResult.E_HANDLE, "it was closed")
        answer: Any = query(self.vm, ("Statistics",), (), self.fake.info, self.fake.clock)
        used: int = answer["Statistics"]["Memory"]["MemoryUsagePrivateWorkingSetBytes"]
        return used

    def close(self) -> None:
        """Stop measuring."""
        self.closed = True


@frozen
class FakeMachine:
    """The machine of the fake (:class:`~uvm.backends.hcs.machine.Machine`)."""

    fake: FakeBackend

    @property
    def files(self) -> HostFiles:
        """The machine's file system."""
        return self.fake.files

    async def facts(self) -> HostInfo:
        """Return the facts."""
        return await self.fake.host()

    async def grant_group(self, path: str, mask: AccessMask) -> None:
        """Grant every VM access to a path."""
        await self.fake.grant_access(path, VM_GROUP, mask)

    async def revoke_group(self, path: str) -> None:
        """Revoke that access."""
        await self.fake.revoke_access(path, VM_GROUP)

    async def open_working_set(self, runtime_id: str) -> FakeWorkingSet:
        """Find the memory of a VM."""
        await anyio.lowlevel.checkpoint()
        for vm in self.fake.vms.values():
            if vm.runtime_id == runtime_id and vm.state in ("Running", "Paused"):
                return FakeWorkingSet(self.fake, vm)
        raise HostError(f"find the memory of VM {runtime_id}", HResult.ERROR_NOT_FOUND)
