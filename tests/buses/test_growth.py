"""However much was attached and detached, a VM keeps nothing of it."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import uvm
from tests.vm.audit import check_at_rest
from tests.vm.support import NAMESPACE, Running, lcow, running, wcow
from uvm._names import host_path_key
from uvm.backend import Concurrency
from uvm.errors import UVMError

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _frozen() -> None:
    """Have what was there before left out when garbage is looked for, as it is again and again."""
    gc.freeze()


MANY = 20


def path(number: int) -> str:
    return rf"C:\fresh\{number}\a.vhdx"


def endpoint(number: int) -> str:
    return f"33333333-0000-0000-0000-{number:012}"


def _not_mapped(run: Running) -> Any:
    return run.vm.vsmb.default_options(read_only=True).replaced(no_directmap=True)


Add = Callable[[Running, int], Awaitable[Any]]
KINDS: dict[str, tuple[str, Add]] = {
    "disk": ("linux", lambda run, n: run.vm.scsi.attach(path(n))),
    "mount": ("linux", lambda run, n: run.vm.scsi.attach(path(n), mount=uvm.Mount(guest_path=f"/mnt/{n}"))),
    "disk without a grant": (
        "linux",
        lambda run, n: run.vm.scsi.attach(path(n), read_only=True, grant_access=False),
    ),
    "layer": ("linux", lambda run, n: run.vm.vpmem.add(path(n))),
    "Plan9 share": ("linux", lambda run, n: run.vm.plan9.add(rf"C:\fresh\{n}", f"/shared/{n}")),
    "file at": ("linux", lambda run, n: run.vm.share(path(n), f"/shared/{n}")),
    "share": ("windows", lambda run, n: run.vm.vsmb.add(rf"C:\fresh\{n}", options=_not_mapped(run))),
    "file": ("windows", lambda run, n: run.vm.vsmb.add(path(n), options=_not_mapped(run))),
    "pipe": ("windows", lambda run, n: run.vm.pipes.add(rf"\\.\pipe\{n}")),
    "PCI device": ("windows", lambda run, n: run.vm.vpci.assign(rf"PCI\{n}")),
    "adapter": ("windows", lambda run, n: run.vm.network.add_endpoint(NAMESPACE, endpoint(n))),
    "root": ("linux", lambda run, n: run.vm.mount_layers(f"c{n}", [path(0)], path(n))),
}


@asynccontextmanager
async def with_fresh_paths(os: str, **settings: Any) -> AsyncIterator[Running]:
    async with running(lcow() if os == "linux" else wcow(), **settings) as run:
        for number in range(3 * MANY):
            run.backend.files.add(path(number), size=1 << 20)
            run.backend.network.add_endpoint({"ID": endpoint(number), "HostComputeNamespace": NAMESPACE})
        await run.vm.network.add_namespace(NAMESPACE)
        yield run


def kept(run: Running) -> dict[str, int]:
    """Count the objects of devices that there are, and what the tables of a VM hold."""
    gc.collect()
    counts = Counter(
        type(each).__qualname__
        for each in gc.get_objects()
        if type(each).__module__.startswith(("uvm._buses", "uvm.devices"))
    )
    context = run.vm._context
    tables: dict[str, Any] = {
        "left": context.link.left,
        "occupied": context.link.occupied,
        "access": context.access._paths,
    }
    for name, driver in run.vm._drivers():
        ledger = driver.ledger
        mine = {
            "holds": driver._holds,
            "stays": driver._stays,
            "needs": driver._needs,
            "gates": driver._gates,
            "queue": driver.lane.queue,
            "entries": ledger._entries,
            "names": ledger._named,
            "parents": ledger.parents,
        }
        tables |= {f"{name}: {what}": table for what, table in mine.items()}
    assert run.vm._link.work.busy == 0
    return counts | {name: len(table) for name, table in tables.items()}


async def attached_and_detached(run: Running, add: Add, number: int) -> None:
    await (await add(run, number)).release()


async def cancelled_and_refused(run: Running, add: Add, number: int) -> None:
    """A removal is refused to a caller who has left; the orphan is released."""
    lease = await add(run, number)
    run.backend.faults.refuse(request_type="Remove", first=1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await lease.release()
    await run.vm.settled()
    while run.vm.orphans:
        await run.vm.orphans[0].release()
    await run.vm.settled()


async def refused(run: Running, add: Add, number: int) -> None:
    run.backend.faults.refuse(request_type="Add", first=1)
    with pytest.raises(UVMError):
        await add(run, number)
    await run.vm.settled()


async def waited_for(run: Running, add: Add, number: int) -> None:
    lease = await add(run, number)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease.gone)
        await lease.release()


WAYS = (attached_and_detached, cancelled_and_refused, refused, waited_for)


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_kept_of_what_was_detached(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    # The records that are captured hold errors, and those hold frames.
    caplog.set_level(logging.CRITICAL, "uvm")
    os, add = KINDS[kind]
    async with with_fresh_paths(os) as run:
        for number in range(1, MANY):
            await WAYS[number % len(WAYS)](run, add, number)
        before = kept(run)
        for number in range(MANY, 3 * MANY):
            await WAYS[number % len(WAYS)](run, add, number)
        assert kept(run) == before
        check_at_rest(run)


async def test_a_revocation_that_hangs_holds_up_its_release_alone() -> None:
    async with with_fresh_paths("linux", concurrency=Concurrency(scsi=1)) as run:
        disk = await run.vm.scsi.attach(path(1))
        run.backend.faults.hang(to="revoke", first=1)
        with anyio.move_on_after(0):
            await disk.release()
        async with run.vm.scsi.attach(path(2)):
            pass
        assert host_path_key(path(1), "windows") in run.vm._context.access._paths
    assert not run.backend.access.paths("vm1")
