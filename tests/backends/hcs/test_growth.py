"""A thousand calls, most of which fail, leave nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

from tests.backends.hcs.harness import Host
from tests.backends.hcs.resources import Resources
from tests.backends.hcs.support import driven, relayed, started
from tests.descriptors import collect
from uvm.backends.hcs.backend import HCSBackend
from uvm.backends.hcs.system import HCSSystem
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.requests import MemorySize
from uvm.testing.backends.checks import until

pytestmark = pytest.mark.anyio

ACCOUNT = '{"Error": -2147467259, "ErrorMessage": "it did not work"}'
RESIZE = {"ResourcePath": MemorySize.PATH, "RequestType": "Update", "Settings": 1024}
CAT = {"CommandArgs": ["cat"], "CreateStdInPipe": True, "CreateStdOutPipe": True}

OPERATIONS = 1000
OPENINGS = 100
PROCESSES = 50
#: More threads never block at once (:class:`~uvm.backends.workers.Workers`).
POOL = 8
#: Longer than anything takes that works.
PATIENCE_SECONDS = 30

Act = Callable[[Host, HCSBackend, HCSSystem], Awaitable[object]]


async def modify(host: Host, backend: HCSBackend, system: HCSSystem) -> None:
    await system.modify(RESIZE)


async def ask(host: Host, backend: HCSBackend, system: HCSSystem) -> None:
    await system.properties("Statistics")


async def be_refused(host: Host, backend: HCSBackend, system: HCSSystem) -> None:
    host.faults.at_once("HcsModifyComputeSystem", HResult.E_FAIL, ACCOUNT)
    with suppress(HostError):
        await system.modify(RESIZE)


async def fail(host: Host, backend: HCSBackend, system: HCSSystem) -> None:
    host.faults.later("HcsModifyComputeSystem", HResult.E_FAIL, ACCOUNT)
    with suppress(HostError):
        await system.modify(RESIZE)


async def leave_before_the_answer(host: Host, backend: HCSBackend, system: HCSSystem) -> None:
    host.faults.never("HcsModifyComputeSystem")
    await cancelled(lambda: system.modify(RESIZE))


async def leave_with_the_answer_on_its_way(host: Host, backend: HCSBackend, system: HCSSystem) -> None:
    await cancelled(lambda: system.properties("Statistics"))


async def be_told_twice(host: Host, backend: HCSBackend, system: HCSSystem) -> None:
    host.faults.twice("HcsGetComputeSystemProperties")
    await system.properties("Statistics")


async def open_and_close(host: Host, backend: HCSBackend, system: HCSSystem) -> None:
    await (await backend.open(system.id)).close()


async def leave_an_opening(host: Host, backend: HCSBackend, system: HCSSystem) -> None:
    await cancelled(lambda: backend.open(system.id))
    await all_else_closed(host)


async def run_a_process(host: Host, backend: HCSBackend, system: HCSSystem) -> None:
    process = await system.create_process(CAT)
    assert process.stdin is not None
    await process.stdin.send_eof()
    assert await process.wait() == 0
    await process.close()


async def leave_a_process(host: Host, backend: HCSBackend, system: HCSSystem) -> None:
    await cancelled(lambda: system.create_process(CAT))
    await all_else_closed(host)


async def all_else_closed(host: Host) -> None:
    """Wait until only the system is open: what a cancelled call opens is closed in its thread."""
    with anyio.move_on_after(PATIENCE_SECONDS):
        await until(lambda: host.double.objects == 1)


async def cancelled(call: Callable[[], Awaitable[object]]) -> None:
    """Make a call, and cancel it as soon as it waits."""

    async def run() -> None:
        await call()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("acts", "count"),
    [
        ((modify, ask, be_refused, fail, leave_before_the_answer), OPERATIONS),
        ((leave_with_the_answer_on_its_way, be_told_twice), OPERATIONS // 10),
        ((open_and_close, leave_an_opening), OPENINGS),
        ((run_a_process, leave_a_process), PROCESSES),
    ],
    ids=["operations", "late answers", "openings", "processes"],
)
async def test_nothing_grows(acts: tuple[Act, ...], count: int) -> None:
    async with driven() as (host, backend), started(backend, document=relayed()) as system:
        await repeat(acts, count // 10, host, backend, system)
        before = await settled(host)
        await repeat(acts, count, host, backend, system)
        after = await settled(host)
        assert (after.objects, after.strings) == (before.objects, before.strings) == (1, 0)
        # How many are idle is chance; if none were reused, there would be one for each call.
        threads = after.threads - before.threads
        assert threads <= POOL
        # Python has a handle of each of its threads on Windows, from 3.13 on.
        assert after.descriptors - before.descriptors <= (max(0, threads) if sys.platform == "win32" else 0)


async def repeat(
    acts: tuple[Act, ...], count: int, host: Host, backend: HCSBackend, system: HCSSystem
) -> None:
    for n in range(count):
        await acts[n % len(acts)](host, backend, system)


async def settled(host: Host) -> Resources:
    """Return the counts once all callbacks have arrived and their waiters are gone."""
    await all_else_closed(host)
    host.double.drain()
    await anyio.wait_all_tasks_blocked()
    collect()
    return Resources.of(host.double)
