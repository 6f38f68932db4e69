"""The machine that runs this Python, through Windows's own DLLs."""

from __future__ import annotations

from typing import Final

from uvm.backend import AccessMask, HostInfo
from uvm.backends.files import RealFiles
from uvm.backends.hcs.machine import WorkingSet
from uvm.backends.hcs.windows.access import GroupAccess
from uvm.backends.hcs.windows.disks import WindowsFileCalls
from uvm.backends.hcs.windows.dlls import advapi32, kernel32, ntdll, virtdisk
from uvm.backends.hcs.windows.facts import Facts
from uvm.backends.hcs.windows.workingset import ProcessWorkingSet, WorkingSets
from uvm.backends.workers import Workers


class WindowsMachine:
    """:class:`~uvm.backends.hcs.machine.Machine` on Windows itself.

    :param workers: the threads for blocking calls.
    :ivar files: the machine's file system.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._access = GroupAccess(kernel32(), advapi32())
        self.files: Final = RealFiles(workers, WindowsFileCalls(kernel32(), virtdisk()))

    async def facts(self) -> HostInfo:
        """Return the facts (:class:`~uvm.backends.hcs.windows.facts.Facts`)."""
        return await self._workers.run(Facts(kernel32(), ntdll()).ask)

    async def grant_group(self, path: str, mask: AccessMask) -> None:
        """Add an entry for all VMs to the path's access list.

        :raises HostError: ERROR_FILE_NOT_FOUND, or Windows refused.
        """
        await self._workers.finish(self._access.grant, path, mask)

    async def revoke_group(self, path: str) -> None:
        """Remove that entry. Does nothing if there is none, or if the path no longer exists.

        :raises HostError: Windows refused.
        """
        await self._workers.finish(self._access.revoke, path)

    async def open_working_set(self, runtime_id: str) -> WorkingSet:
        """Find the vmmem process of a VM.

        :raises HostError: ERROR_NOT_FOUND if there is none.
        """
        search = WorkingSets(kernel32(), advapi32())
        return await self._workers.run(search.open, runtime_id, undo=ProcessWorkingSet.close)
