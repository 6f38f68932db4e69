"""Helpers of the HCS backend's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.backends.fake.support import host_files, lcow
from tests.backends.hcs.harness import Host, hosted
from uvm.backends.fake import FakeBackend
from uvm.backends.hcs.backend import HCSBackend
from uvm.backends.hcs.system import HCSSystem
from uvm.errors import HostError
from uvm.hresult import HResult

__all__ = ["driven", "relayed", "started"]


def relayed() -> dict[str, Any]:
    """Return the document of a Linux VM to whose guest HCS connects."""
    document = lcow()
    document["VirtualMachine"]["GuestConnection"] = {"UseVsock": True}
    return document


@asynccontextmanager
async def driven(fake: FakeBackend | None = None) -> AsyncIterator[tuple[Host, HCSBackend]]:
    """Yield the library's backend over the double; fail on misuse of the C API and on leaks."""
    async with hosted(fake or FakeBackend(files=host_files())) as host, host.backend() as backend:
        yield host, backend


@asynccontextmanager
async def started(
    backend: HCSBackend, system_id: str = "vm1", document: dict[str, Any] | None = None
) -> AsyncIterator[HCSSystem]:
    """Yield a started system; it is closed at the end, unless it was before."""
    system = await backend.create(system_id, document or lcow())
    try:
        await system.start()
        yield system
    finally:
        try:
            await system.close()
        except HostError as e:
            if e.hresult != HResult.E_HANDLE:
                raise
