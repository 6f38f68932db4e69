"""asyncio cancels a task once, unlike anyio: a caller who is cancelled so waits for no removal either."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import uvm
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    DISK,
    ENDPOINT,
    FILE,
    LAYER,
    NAMESPACE,
    OTHER_LAYER,
    SCRATCH,
    SHARED,
    Running,
    lcow,
    quiet,
    running,
    wcow,
)

pytestmark = pytest.mark.anyio


def _not_mapped(run: Running) -> Any:
    return run.vm.vsmb.default_options(read_only=True).replaced(no_directmap=True)


KINDS: dict[str, tuple[str, Callable[[Running], Awaitable[Any]]]] = {
    "mount": ("linux", lambda run: run.vm.scsi.attach(DISK, mount=uvm.Mount(guest_path="/a"))),
    "layer": ("linux", lambda run: run.vm.vpmem.add(LAYER)),
    "directory": ("linux", lambda run: run.vm.share(SHARED, "/a")),
    "file": ("linux", lambda run: run.vm.share(FILE, "/a")),
    "root": ("linux", lambda run: run.vm.mount_layers("c", [LAYER, OTHER_LAYER], SCRATCH)),
    "Windows file": ("windows", lambda run: run.vm.vsmb.add(FILE, options=_not_mapped(run))),
    "shown directory": ("windows", lambda run: run.vm.share(SHARED, r"C:\there")),
    "endpoint": ("windows", lambda run: run.vm.network.add_endpoint(NAMESPACE, ENDPOINT)),
    "set-up": ("windows", lambda run: run.vm.network.setup(NAMESPACE)),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_who_is_cancelled_in_any_turn_of_an_attachment_waits_for_nothing_and_leaves_nothing(
    kind: str, anyio_backend_name: str
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("a matter of asyncio alone")
    os, add = KINDS[kind]
    async with running(lcow() if os == "linux" else wcow()) as run:
        if kind == "endpoint":
            await run.vm.network.add_namespace(NAMESPACE)

        async def attach() -> Any:
            return await add(run)

        before = _entries(run)
        turns, task = 0, None
        while task is None or task.cancelled():
            turns += 1
            with run.hold(request_type="Remove"):
                task = asyncio.create_task(attach())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await quiet()
                assert task.done(), f"cancelled in turn {turns}, it waits for a removal"
            if not task.cancelled():
                await task.result().release()
            await run.vm.settled()
            assert _entries(run) == before
            check_at_rest(run)
        assert turns > 3


def _entries(run: Running) -> dict[str, int]:
    """Count what is attached, but for what stays direct-mapped."""
    ledgers = {name: len(state.entries) for name, state in run.vm.ledgers().items()}
    return {name: count for name, count in ledgers.items() if count and name != "vsmb.shares"}
