"""A bus alone: host and guest are stubs that sleep, so neither the fake nor a connection takes part."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.abc
from attrs import frozen

from tests.bench.machines import plan
from tests.bench.vms import OPTIONS
from uvm._buses.access import Access
from uvm._buses.context import Context
from uvm._buses.link import Link
from uvm._buses.scsi import ScsiBus
from uvm.backend import Concurrency, FileInfo, HostInfo
from uvm.schema.common import MIB
from uvm.schema.json import dumps

__all__ = ["Stub", "scsi_bus"]


@frozen
class Stub:
    """A host that has every file, and a guest; each modify request takes its time.

    :ivar seconds: how long.
    """

    seconds: float = 0

    @property
    def files(self) -> Stub:
        """The files of the host: itself."""
        return self

    async def resolve(self, path: str) -> str:
        """Return the path: there are no links."""
        return path

    async def stat(self, path: str) -> FileInfo:
        """Return what every file is."""
        return FileInfo(MIB)

    async def grant_access(self, path: str, to: str) -> None:
        """Grant it at once."""

    async def revoke_access(self, path: str, to: str) -> None:
        """Revoke it at once."""

    async def modify(self, request: Any) -> None:
        """Make the text of a request, and take the time."""
        dumps(request)
        await anyio.sleep(self.seconds)


def scsi_bus(stub: Any, tasks: anyio.abc.TaskGroup) -> ScsiBus:
    """Return the SCSI bus of a VM that runs in a task group, on a stub."""
    host_info = HostInfo()
    link = Link("vm", system=stub, guest=stub, tasks=tasks)
    context = Context(
        stub, host_info, OPTIONS, plan(OPTIONS, host_info), Concurrency(), link, Access(stub, link)
    )
    return ScsiBus(context)
