"""Compute systems of a host that are known by their ids alone."""

from __future__ import annotations

from typing import Final

import anyio

from uvm.backend import Backend
from uvm.errors import HostError
from uvm.hresult import SYSTEM_ENDED, HResult

#: How long closing a handle may take for a caller who is cancelled.
_CLOSE_SECONDS: Final = 5.0


async def end_if_there(system_id: str, backend: Backend) -> None:
    """Terminate a compute system; if there is none, or it has ended, nothing happens."""
    try:
        system = await backend.open(system_id)
    except HostError as error:
        if error.hresult != HResult.HCS_E_SYSTEM_NOT_FOUND:
            raise
        return
    try:
        await system.terminate()
    except HostError as error:
        if error.hresult not in SYSTEM_ENDED:
            raise
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await system.close()


async def state_on_host(backend: Backend, system_id: str) -> str:
    """Return the state of a compute system, as the host calls it; empty if there is none."""
    found = await backend.enumerate({"Ids": [system_id]})
    return str(found[0].get("State", "")) if found else ""
