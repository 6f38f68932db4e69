"""What the backend needs of Windows beyond HCS and HCN: files, access, facts, memory figures.

:mod:`uvm.backends.hcs.windows` implements it with Windows's own DLLs; tests use the in-memory host's.
"""

from __future__ import annotations

from typing import Protocol

from uvm.backend import AccessMask, HostFiles, HostInfo


class WorkingSet(Protocol):
    """The memory that one VM uses on the host, measured until it is closed."""

    def bytes(self) -> int:
        """Return the current working set.

        :raises HostError: Windows refuses, or it was closed.
        """

    def close(self) -> None:
        """Stop measuring. Idempotent."""


class Machine(Protocol):
    """The Windows machine that runs the VMs."""

    @property
    def files(self) -> HostFiles:
        """The machine's file system."""

    async def facts(self) -> HostInfo:
        """Return the facts that documents and devices depend on."""

    async def grant_group(self, path: str, mask: AccessMask) -> None:
        """Grant every VM (their group, S-1-5-83-0) access to a file or directory.

        :raises HostError: the path does not exist, or Windows refused.
        """

    async def revoke_group(self, path: str) -> None:
        """Revoke that access. Does nothing if there is none, or if the path no longer exists.

        :raises HostError: Windows refused.
        """

    async def open_working_set(self, runtime_id: str) -> WorkingSet:
        """Find the process that holds a virtually backed VM's memory.

        :raises HostError: ERROR_NOT_FOUND if there is none.
        """
