"""What the backend needs of Windows beyond HCS and HCN: files, access, facts, memory figures.

:mod:`uvm.backends.hcs.windows` does it by Windows's own DLLs; tests put the in-memory host's in its place.
"""

from __future__ import annotations

from typing import Protocol

from uvm.backend import AccessMask, HostFiles, HostInfo


class WorkingSet(Protocol):
    """The memory that one VM occupies on the host. It is held open until it is closed."""

    def bytes(self) -> int:
        """Give the working set now.

        :raises HostError: Windows does not tell, or it was closed.
        """

    def close(self) -> None:
        """Let go of it; again, it does nothing."""


class Machine(Protocol):
    """The Windows machine on which the VMs run."""

    @property
    def files(self) -> HostFiles:
        """Its file system."""

    async def facts(self) -> HostInfo:
        """Ask for the facts that documents and devices depend on."""

    async def grant_group(self, path: str, mask: AccessMask) -> None:
        """Give every VM (their group, S-1-5-83-0) access to a file or directory.

        :raises HostError: there is nothing at the path, or Windows refused.
        """

    async def revoke_group(self, path: str) -> None:
        """Take that access away; nothing happens where there is none, nor where the path is gone.

        :raises HostError: Windows refused.
        """

    async def open_working_set(self, runtime_id: str) -> WorkingSet:
        """Find the process that holds a virtually backed VM's memory.

        :raises HostError: ERROR_NOT_FOUND where there is none.
        """
