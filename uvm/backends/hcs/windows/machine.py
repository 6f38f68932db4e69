"""The machine that runs this Python, through Windows's own DLLs."""

from __future__ import annotations

from attrs import define, field

from uvm.backend import AccessMask, HostFiles, HostInfo
from uvm.backends.hcs.machine import WorkingSet
from uvm.backends.hcs.windows.access import GroupAccess
from uvm.backends.hcs.windows.disks import WindowsFileCalls
from uvm.backends.hcs.windows.dlls import (
    AdvApi32,
    Kernel32,
    NtDll,
    SystemLibrary,
    VirtDisk,
    advapi32,
    kernel32,
    ntdll,
    virtdisk,
)
from uvm.backends.hcs.windows.facts import Facts
from uvm.backends.hcs.windows.files import RealFiles
from uvm.backends.hcs.windows.workingset import ProcessWorkingSet, WorkingSets
from uvm.backends.hcs.workers import Workers


@define(eq=False)
class WindowsMachine:
    """:class:`~uvm.backends.hcs.machine.Machine` on Windows itself.

    :ivar workers: the threads for blocking calls.
    """

    workers: Workers
    kernel: SystemLibrary[Kernel32] = field(factory=kernel32)
    advapi: SystemLibrary[AdvApi32] = field(factory=advapi32)
    virtdisk: SystemLibrary[VirtDisk] = field(factory=virtdisk)
    ntdll: SystemLibrary[NtDll] = field(factory=ntdll)
    _files: RealFiles = field(init=False)
    _access: GroupAccess = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._files = RealFiles(self.workers, WindowsFileCalls(self.kernel, self.virtdisk))
        self._access = GroupAccess(self.kernel, self.advapi)

    @property
    def files(self) -> HostFiles:
        """The machine's file system."""
        return self._files

    async def facts(self) -> HostInfo:
        """Return the facts (:class:`~uvm.backends.hcs.windows.facts.Facts`)."""
        return await self.workers.run(Facts(self.kernel, self.ntdll).ask)

    async def grant_group(self, path: str, mask: AccessMask) -> None:
        """Add an entry for all VMs to the path's access list.

        :raises HostError: ERROR_FILE_NOT_FOUND, or Windows refused.
        """
        await self.workers.finish(self._access.grant, path, mask)

    async def revoke_group(self, path: str) -> None:
        """Remove that entry. Does nothing if there is none, or if the path no longer exists.

        :raises HostError: Windows refused.
        """
        await self.workers.finish(self._access.revoke, path)

    async def open_working_set(self, runtime_id: str) -> WorkingSet:
        """Find the vmmem process of a VM.

        :raises HostError: ERROR_NOT_FOUND if there is none.
        """
        search = WorkingSets(self.kernel, self.advapi)
        return await self.workers.run(search.open, runtime_id, undo=ProcessWorkingSet.close)
