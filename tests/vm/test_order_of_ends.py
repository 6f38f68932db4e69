"""Cancelled at any moment, what lies on each other in the guest is removed in order, not orphaned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
import pytest
import sniffio
from attrs import define, field

import uvm
from tests.api.cancelled import CancelledAt
from tests.clocks import jumping_backends
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    DISK,
    LAYER,
    OTHER_DISK,
    OTHER_LAYER,
    OTHER_SHARED,
    SHARED,
    Running,
    lcow,
    quiet,
    running,
    wcow,
)
from uvm.backends.fake import Call, Entry, FakeGuest

anyio_backend = jumping_backends

pytestmark = pytest.mark.anyio

Program = Callable[[uvm.UtilityVM, AsyncExitStack], Awaitable[None]]
SPEC = {"process": {"args": ["sleep", "1000"], "cwd": "/"}, "linux": {}}


async def _combined(vm: uvm.UtilityVM, stack: AsyncExitStack) -> None:
    disk = await stack.enter_async_context(vm.scsi.attach(DISK, mount=uvm.Mount()))
    at = disk.guest_path
    await stack.enter_async_context(vm.layers.combine("/root", [f"{at}/layer"], scratch_path=f"{at}/upper"))


async def _combined_of_several(vm: uvm.UtilityVM, stack: AsyncExitStack) -> None:
    layers = [await stack.enter_async_context(vm.vpmem.add(path)) for path in (LAYER, OTHER_LAYER)]
    share = await stack.enter_async_context(vm.plan9.add(SHARED, "/shared"))
    disk = await stack.enter_async_context(vm.scsi.attach(DISK, mount=uvm.Mount()))
    paths = [share.guest_path, *(layer.guest_path for layer in layers)]
    await stack.enter_async_context(vm.layers.combine("/root", paths, scratch_path=disk.guest_path))


async def _nested(vm: uvm.UtilityVM, stack: AsyncExitStack) -> None:
    outer = uvm.Mount(guest_path="/mnt")
    inner = uvm.Mount(guest_path="/mnt/in/it")
    await stack.enter_async_context(vm.scsi.attach(DISK, mount=outer))
    await stack.enter_async_context(vm.plan9.add(SHARED, "/mnt/in"))
    await stack.enter_async_context(vm.scsi.attach(OTHER_DISK, mount=inner))
    await stack.enter_async_context(vm.layers.combine("/mnt/in/it/root", ["/mnt/in"]))
    await stack.enter_async_context(vm.share(OTHER_SHARED, "/mnt/in/it/root/data"))


async def _container(vm: uvm.UtilityVM, stack: AsyncExitStack) -> None:
    root = await stack.enter_async_context(vm.mount_layers("c1", [LAYER], DISK))
    await stack.enter_async_context(vm.share(SHARED, f"{root.root}/data"))
    container = await stack.enter_async_context(vm.create_container("c1", SPEC, root=root))
    await container.start()
    await stack.enter_async_context(container.open_init())


async def _windows(vm: uvm.UtilityVM, stack: AsyncExitStack) -> None:
    share = await stack.enter_async_context(vm.vsmb.add(SHARED, read_only=True))
    disk = await stack.enter_async_context(vm.scsi.attach(DISK, mount=uvm.Mount(guest_path="C:\\mnt")))
    await stack.enter_async_context(vm.layers.combine(disk.guest_path, [("a", share.guest_path)]))
    await stack.enter_async_context(vm.share(OTHER_SHARED, "c:/MNT/data"))


PROGRAMS: dict[str, Program] = {
    "a root combined on a disk": _combined,
    "a root combined of several": _combined_of_several,
    "mounts in mounts": _nested,
    "a container": _container,
    "a Windows root on a disk": _windows,
}


@define(eq=False)
class Scene:
    """A VM, and a task that enters what a program says and stays there.

    :ivar wrong: what was inconsistent in the guest at some time.
    """

    run: Running
    program: Program
    guest: FakeGuest = field(init=False)
    wrong: list[str] = field(factory=list)
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)
    there: anyio.Event = field(factory=anyio.Event)
    task: asyncio.Task[None] | None = None

    def __attrs_post_init__(self) -> None:
        self.guest = self.run.guest

    async def stay(self) -> None:
        async with AsyncExitStack() as stack:
            await self.program(self.run.vm, stack)
            self.there.set()
            await anyio.sleep_forever()

    async def carry_out(self, call: Callable[[], Awaitable[None]], *, native: bool = False) -> None:
        """Make the call in a task that :meth:`cancel` cancels."""
        if native:
            self.task = asyncio.ensure_future(call())
            await asyncio.wait([self.task])
            return
        with self.scope:
            await call()

    def cancel(self) -> None:
        """Cancel it as a task group does, or as asyncio does: once."""
        if self.task is not None:
            self.task.cancel()
        else:
            self.scope.cancel()

    def look(self, entry: Entry) -> None:
        """Look after each request whether something in the guest has lost what it is made of."""
        self.wrong += [f"after {entry.call}: {each}" for each in self.guest.inconsistencies()]


@asynccontextmanager
async def scene(name: str, external: bool) -> AsyncIterator[Scene]:
    """A scene, after which the VM has to be as before."""
    # What the guest may have mapped would stay.
    options = partial(wcow, no_direct_map=True) if "Windows" in name else lcow
    async with running(options(external_guest_connection=external)) as run:
        before = [*run.guest.mounts], str(run.inventory)
        of = Scene(run, PROGRAMS[name])
        run.backend.request_log.listen(of.look)
        yield of
        await run.vm.settled()
        assert of.wrong == []
        assert run.vm.orphans == ()
        assert run.vm.quarantined == ()
        assert ([*run.guest.mounts], str(run.inventory)) == before
        check_at_rest(run)


EITHER_WAY = pytest.mark.parametrize("external", [True, False], ids=["our own", "through HCS"])
ALL = pytest.mark.parametrize("name", PROGRAMS)


@EITHER_WAY
@ALL
@pytest.mark.parametrize("native", [False, True], ids=["", "natively"])
async def test_cancelled_at_any_checkpoint_nothing_is_orphaned(
    name: str, external: bool, native: bool
) -> None:
    if native and sniffio.current_async_library() != "asyncio":
        pytest.skip("asyncio's own")
    at, all_there = 0, False
    while not all_there:
        at += 1
        async with scene(name, external) as of, anyio.create_task_group() as tasks:
            watched = CancelledAt(of.stay(), of.cancel, at)

            async def cancelled(watched: CancelledAt = watched) -> None:
                await watched

            tasks.start_soon(partial(of.carry_out, cancelled, native=native))
            await quiet()
            all_there = of.there.is_set()
            of.cancel()


@EITHER_WAY
@ALL
@pytest.mark.parametrize("newest_first", [False, True], ids=["in order", "newest first"])
async def test_in_whatever_order_requests_are_carried_out_nothing_is_orphaned(
    name: str, external: bool, newest_first: bool
) -> None:
    answered, all_there = -1, False
    while not all_there:
        answered += 1
        async with scene(name, external) as of, anyio.create_task_group() as tasks:
            with of.run.backend.faults.hold(where=_changes_something) as gate:
                tasks.start_soon(of.carry_out, of.stay)
                await quiet()
                for _ in range(answered):
                    if gate.pending:
                        gate.pending[0].proceed()
                        await quiet()
                all_there = of.there.is_set()
                of.cancel()
                await quiet()
                while gate.pending:
                    gate.pending[-1 if newest_first else 0].proceed()
                    await quiet()


def _changes_something(call: Call) -> bool:
    return call.to in ("host", "guest")
