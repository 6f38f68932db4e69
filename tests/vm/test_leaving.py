"""Leaving containers and processes: the VM's tasks end them, and the caller's deadline bounds the waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import pytest

import uvm
from tests.clocks import jumping_backends
from tests.gcs.test_cancellation import ports_listened_to
from tests.vm.support import DISK, LAYER, NAMESPACE, SCRATCH, SHARED, Running, lcow, quiet, running
from uvm._guest.container import Container
from uvm._guest.process import Process
from uvm._guest.run import GuestHost
from uvm.backends.fake import FakeBackend
from uvm.errors import RefusedError, UVMError

anyio_backend = jumping_backends

pytestmark = pytest.mark.anyio

SLEEP = {"process": {"args": ["sleep", "1000"], "cwd": "/"}, "linux": {}}
EITHER = pytest.mark.parametrize("external", [True, False], ids=["our own", "through HCS"])


def never_reports(backend: FakeBackend) -> None:
    """Nothing that the guest, or HCS, has to report is reported."""
    backend.misbehaviour.silent(operation="notification")


def never_answers(backend: FakeBackend) -> None:
    """To terminate a container is never answered, nor is its exit reported."""
    backend.misbehaviour.silent(operation="shutdown forced")
    backend.misbehaviour.silent(operation="notification")
    backend.faults.hang(operation="terminate", resource="c1")


SILENT = pytest.mark.parametrize("silent", [never_reports, never_answers])


@asynccontextmanager
async def started(run: Running) -> AsyncIterator[tuple[Container, Process]]:
    async with run.vm.create_container("c1", SLEEP) as container:
        await container.start()
        async with container.open_init(stdin=True) as init:
            yield container, init


def there(run: Running) -> list[str]:
    return list(run.backend.vms[run.vm.id].service.containers)


@EITHER
@SILENT
@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
async def test_a_deadline_bounds_leaving_a_container(
    external: bool, silent: Callable[[FakeBackend], None], paused: bool
) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        silent(run.backend)
        before = anyio.current_time()
        with anyio.move_on_after(0.5) as scope:
            async with started(run):
                if paused:
                    await run.vm.pause()
                await anyio.sleep(60)
        assert scope.cancelled_caught
        assert anyio.current_time() - before == pytest.approx(0.5)


@EITHER
async def test_a_container_that_a_cancelled_caller_left_is_ended_and_its_id_free(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        with anyio.CancelScope() as scope:
            async with started(run):
                scope.cancel()
        assert there(run) == ["c1"]
        # It waits for the end of the other.
        async with run.vm.create_container("c1", SLEEP):
            pass
        assert there(run) == []


@EITHER
async def test_the_end_of_a_container_is_asked_for_once_however_many_wait_for_it(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run, started(run) as (container, _):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await container.aclose()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(container.aclose)
        await container.aclose()
        log = run.backend.request_log
        asked = [
            *log.entries(operation="shutdown forced"),
            *log.entries(operation="terminate", resource="c1"),
        ]
        assert len(asked) == 1
        assert there(run) == []


@EITHER
async def test_an_end_that_is_not_answered_ends_within_its_limit(external: bool) -> None:
    timeouts = uvm.GuestTimeouts(close_seconds=5)
    async with running(lcow(external_guest_connection=external), timeouts=timeouts) as run:
        never_answers(run.backend)
        container = await run.vm.create_container("c1", SLEEP)
        await container.start()
        await container.open_init(stdin=True)
        before = anyio.current_time()
        with pytest.raises(UVMError, match="did not report its exit within 5 s"):
            await container.aclose()
        assert anyio.current_time() - before == pytest.approx(5)


@EITHER
async def test_what_fails_at_an_end_whose_caller_has_gone_is_logged(
    external: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        never_answers(run.backend)
        with anyio.CancelScope() as scope:
            async with started(run):
                scope.cancel()
        await anyio.sleep(100)
        assert "for a caller who was cancelled: close container c1" in caplog.text


@EITHER
async def test_a_process_whose_caller_was_cancelled_is_killed_by_the_vm(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        with anyio.move_on_after(0.5):
            await run.vm.run(["sleep", "1000"])
        await anyio.sleep(1)
        processes = run.backend.vms[run.vm.id].service.processes
        assert not any(each.alive for each in processes.values())


@EITHER
async def test_a_kill_that_is_not_answered_holds_no_caller(external: bool) -> None:
    async with running(lcow(external_guest_connection=external)) as run:
        run.backend.misbehaviour.silent(operation="signal process")
        run.backend.faults.hang(operation="terminate process")
        before = anyio.current_time()
        with anyio.move_on_after(0.5):
            await run.vm.run(["sleep", "1000"])
        assert anyio.current_time() - before == pytest.approx(0.5)


async def test_asyncios_own_cancellation_leaves_at_once(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("a matter of asyncio alone")
    async with running() as run:
        never_answers(run.backend)
        task = asyncio.create_task(_stay(run))
        await quiet()
        before = anyio.current_time()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert anyio.current_time() == before


def late_starts(run: Running) -> set[object]:
    return cast(GuestHost, run.vm._link.guest)._guest.late_starts


async def _leave_a_process(vm: uvm.UtilityVM) -> None:
    async with vm.open_process(["cat"]):
        pass


async def _start_what_is_not_there(vm: uvm.UtilityVM) -> None:
    with pytest.raises(RefusedError):
        await vm.open_process(["no such program"])


async def _speak_to_a_process(vm: uvm.UtilityVM) -> None:
    async with vm.open_process(["cat"]) as process:
        await process.stdin.send(b"x")
        await process.stdout.receive()
        await process.kill()


async def _run_on_layers(vm: uvm.UtilityVM) -> None:
    async with (
        vm.mount_layers("c1", [LAYER], DISK) as root,
        vm.create_container("c1", SLEEP, root=root) as container,
    ):
        await container.start()
        async with container.open_init(stdin=True):
            await container.run(["cat"], input=b"x")


@EITHER
@pytest.mark.parametrize(
    "use", [_leave_a_process, _start_what_is_not_there, _speak_to_a_process, _run_on_layers]
)
async def test_asyncios_own_cancellation_in_any_turn_leaves_nothing(
    external: bool, use: Callable[[uvm.UtilityVM], Coroutine[Any, Any, None]], anyio_backend_name: str
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("a matter of asyncio alone")
    async with running(lcow(external_guest_connection=external)) as run:
        machine = run.backend.vms[run.vm.id]
        before = run.backend.leftovers()
        turns = 0
        task = asyncio.create_task(use(run.vm))
        while not task.done():
            task.cancel()
            await asyncio.wait([task])
            await anyio.sleep(10)
            assert run.backend.leftovers() == before, turns
            assert there(run) == [], turns
            work = run.vm._link.work
            assert (late_starts(run), work.owed, work.busy) == (set(), 0, 0), turns
            assert (run.guest.mounts, run.vm.orphans) == ({}, ()), turns
            assert not external or not ports_listened_to(machine), turns
            turns += 1
            task = asyncio.create_task(use(run.vm))
            for _ in range(turns):
                await asyncio.sleep(0)
        task.result()
        assert turns > 3


@pytest.mark.parametrize(
    "lease",
    [
        lambda vm: vm.scsi.attach(DISK),
        lambda vm: vm.share(SHARED, "/shared"),
        lambda vm: vm.mount_layers("c1", [LAYER], SCRATCH),
        lambda vm: vm.network.setup(NAMESPACE),
    ],
    ids=["disk", "share", "root file system", "namespace"],
)
async def test_asyncios_own_cancellation_does_not_wait_for_a_removal(
    lease: Callable[[uvm.UtilityVM], Any], anyio_backend_name: str
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("a matter of asyncio alone")
    async with running() as run:

        async def hold() -> None:
            async with lease(run.vm):
                await asyncio.Event().wait()

        task = asyncio.create_task(hold())
        await quiet()
        assert not task.done()
        with run.hold():
            task.cancel()
            await quiet()
            assert task.cancelled()
        await run.vm.settled()
        devices = run.vm.devices()
        assert (devices.disks, devices.layers, devices.plan9_shares, devices.roots) == ((), (), (), ())
        assert (devices.namespaces, devices.adapters, devices.orphans) == ((), (), ())


async def _stay(run: Running) -> None:
    async with started(run):
        await asyncio.sleep(60)
