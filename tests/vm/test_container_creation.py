"""Containers of a confidential VM are brought up one at a time, whatever becomes of those before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest

import uvm
from tests.clocks import jumping_backends
from tests.points import points, spoil
from tests.vm.support import (
    DISK,
    LAYER,
    OTHER_DISK,
    OTHER_LAYER,
    SCRATCH,
    SHARED,
    Running,
    host_backend,
    lcow,
    quiet,
    running,
)
from uvm.errors import OptionsError, UVMError, VMExitedError, VMStateError

anyio_backend = jumping_backends

pytestmark = pytest.mark.anyio

POLICY = "eyJhbGxvd19hbGwiOiB0cnVlfQ=="
ONE, TWO = "1" * 64, "2" * 64
SPEC = {"process": {"args": ["cat"], "cwd": "/"}, "linux": {}}


def confidential(**options: Any) -> uvm.LCOWOptions:
    enforced = {"security_policy": POLICY, "security_policy_enabled": True, "vpmem_count": 0}
    return lcow(**{**enforced, **options})


async def bring_up(
    run: Running, container_id: str, layer: str, scratch: str, then: Callable[[], object] = lambda: None
) -> None:
    async with run.vm.container_creation():
        then()
        root = await run.vm.mount_layers(container_id, [layer], scratch)
        await run.vm.create_container(container_id, SPEC, root=root)


async def first(run: Running, then: Callable[[], object] = lambda: None) -> None:
    await bring_up(run, ONE, LAYER, SCRATCH, then)


async def second(run: Running) -> None:
    await bring_up(run, TWO, OTHER_LAYER, DISK)


def containers(run: Running) -> list[str]:
    return list(run.backend.vms[run.vm.id].service.containers)


async def test_the_next_container_is_brought_up_when_the_one_before_is_there() -> None:
    async with running(confidential()) as run:
        with run.backend.faults.hold(resource="CombinedLayers", first=1) as gate:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first, run)
                await gate.wait()
                sent = run.last
                tasks.start_soon(second, run)
                await quiet()
                assert run.last == sent
                gate.close()
        assert containers(run) == [ONE, TWO]


async def test_without_a_policy_nobody_waits() -> None:
    async with running() as run, run.vm.container_creation(), run.vm.container_creation():
        with run.backend.faults.hold(resource="CombinedLayers") as gate:
            async with anyio.create_task_group() as tasks:
                for container_id, layer, scratch in ((ONE, LAYER, SCRATCH), (TWO, OTHER_LAYER, DISK)):
                    tasks.start_soon(run.vm.mount_layers, container_id, [layer], scratch)
                await gate.wait(2)
                gate.close()


@pytest.mark.parametrize("how", ["refuse", "lose", "cancelled"])
async def test_after_one_that_failed_was_lost_or_cancelled_the_next_one_proceeds(how: str) -> None:
    async with running(confidential()) as run:
        before = run.last
        await first(run)
        spoilt = [*points(run.backend, before)]
    assert len(spoilt) >= 6
    for point in spoilt:
        async with running(confidential()) as run:
            in_flight: list[int] = []
            proceeded = anyio.Event()

            async def next_one(
                run: Running = run, found: list[int] = in_flight, ended: anyio.Event = proceeded
            ) -> None:
                await bring_up(run, TWO, OTHER_LAYER, DISK, lambda: found.append(run.vm._link.work.busy))
                ended.set()

            async with anyio.create_task_group() as tasks:
                call = partial(first, run, partial(tasks.start_soon, next_one))
                succeeded = await spoil(run.backend, how, point, call)
                await proceeded.wait()
            # What the one before had begun was finished, or undone.
            assert succeeded or in_flight == [0], point
            assert TWO in containers(run), point


@pytest.mark.parametrize("how", ["refuse", "lose"])
async def test_containers_of_a_pod_that_wait_do_not_keep_the_next_from_its_turn(how: str) -> None:
    """They are brought up by tasks of the VM, which are in flight while they wait."""
    async with running(confidential()) as run:
        pod, made = uvm.Pod(run.vm, ""), list[str]()
        spoil_first = getattr(run.backend.faults, how)
        before = anyio.current_time()

        async def run_container(container_id: str, layer: str, scratch: str) -> None:
            with suppress(UVMError):
                made.append((await pod.create_container(SPEC, [layer], scratch, id=container_id)).id)

        with run.backend.faults.hold(resource="CombinedLayers", first=1) as gate:
            spoil_first(resource="CombinedLayers", first=1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_container, ONE, LAYER, SCRATCH)
                await gate.wait()
                for each in ((TWO, OTHER_LAYER, DISK), ("3" * 64, OTHER_LAYER, OTHER_DISK)):
                    tasks.start_soon(run_container, *each)
                await quiet()
                gate.close()
        assert sorted(made) == [TWO, "3" * 64]
        assert anyio.current_time() - before < run.vm._startup.timeouts.rpc_seconds


async def test_who_is_cancelled_in_line_leaves_it() -> None:
    async with running(confidential()) as run:
        async with run.vm.container_creation(), anyio.create_task_group() as tasks:
            tasks.start_soon(second, run)
            await quiet()
            tasks.cancel_scope.cancel()
        await first(run)
        assert containers(run) == [ONE]


async def test_with_the_vm_all_that_wait_for_their_turn_are_gone() -> None:
    async with running(confidential()) as run:

        async def refused() -> None:
            with pytest.raises(VMExitedError):
                await second(run)

        async with anyio.create_task_group() as tasks, run.vm.container_creation():
            for _ in range(2):
                tasks.start_soon(refused)
            await quiet()
            await run.vm.terminate()
            await quiet()
            assert run.vm._creations is not None
            assert len(run.vm._creations._line) == 1
        with pytest.raises(VMExitedError):
            await first(run)


async def test_a_task_that_has_its_turn_does_not_wait_for_itself() -> None:
    async with running(confidential()) as run:
        with pytest.raises(VMStateError, match="already"):
            async with run.vm.container_creation(), run.vm.container_creation():
                pass
        await first(run)


async def test_layers_that_a_confidential_windows_guest_does_not_take_are_not_shared() -> None:
    backend = host_backend()
    for path in (r"C:\cim\cwcow.snp.vmgs", r"C:\cim\boot.vhd", r"C:\cim\rootfs.vhd"):
        backend.files.add(path, size=1)
    options = uvm.WCOWOptions.confidential(
        POLICY,
        id="vm1",
        boot_files_root_path=r"C:\cim",
        scratch_vhd_path=r"C:\vm\scratch.vhdx",
        bundle_directory=r"C:\bundle",
    )
    async with running(options, backend=backend) as run:
        with pytest.raises(OptionsError, match="takes one BlockCIMLayer, since it is confidential"):
            await run.vm.mount_layers("c1", [uvm.WCOWLayer(SHARED, "id")], SCRATCH)
        assert run.sent() == []
