"""How a lease stands, and waiting until its device is off the host."""

from __future__ import annotations

import anyio
import pytest

import uvm
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    ADAPTERS,
    DISK,
    DISKS,
    ENDPOINT,
    FILE,
    LAYER,
    NAMESPACE,
    OTHER_FILE,
    OTHER_SHARED,
    SCRATCH,
    SHARED,
    Attempt,
    Running,
    lcow,
    quiet,
    running,
    wcow,
)
from uvm import LeaseState
from uvm.errors import AlreadyReleasedError, HostError, NotSupportedError, UnknownOutcomeError

pytestmark = pytest.mark.anyio


def state(lease: uvm.Lease) -> LeaseState:
    """The state of a lease now: mypy takes a property for a constant."""
    return lease.state


async def release_cancelled(lease: uvm.Lease) -> None:
    """Begin a release whose caller does not wait."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        await lease.release()


async def mounted(run: Running) -> uvm.ScsiLease:
    return await run.vm.scsi.attach(DISK, mount=uvm.Mount())


async def test_a_lease_is_held_releasing_and_gone() -> None:
    async with running() as run:
        disk = await mounted(run)
        assert state(disk) is LeaseState.HELD
        with run.hold(resource=DISKS) as gate:
            async with anyio.create_task_group() as tasks:
                Attempt.begin(tasks, disk.release)
                await gate.wait()
                assert state(disk) is LeaseState.RELEASING
                assert not disk.released
                gate.close()
        assert state(disk) is LeaseState.GONE
        assert disk.released


async def test_a_lease_is_released_while_others_hold_the_device() -> None:
    async with running() as run:
        disk, other = await mounted(run), await mounted(run)
        await disk.release()
        assert state(disk) is LeaseState.RELEASED
        await other.release()
        assert state(disk) is state(other) is LeaseState.GONE


async def test_a_refused_release_may_be_tried_again() -> None:
    async with running() as run:
        disk = await mounted(run)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        with pytest.raises(HostError):
            await disk.release()
        assert state(disk) is LeaseState.REFUSED
        with pytest.raises(HostError):
            await disk.gone()
        await disk.release()
        await disk.gone()


async def test_a_release_after_a_cancelled_one_waits_for_the_removal_and_returns_its_outcome() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
        await release_cancelled(disk)
        assert state(disk) is LeaseState.RELEASING
        await disk.release()
        assert run.vm.scsi.disks == ()
        with pytest.raises(AlreadyReleasedError):
            await disk.release()


async def test_a_release_after_a_cancelled_one_that_was_refused_tries_again() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        await release_cancelled(disk)
        await quiet()
        assert state(disk) is LeaseState.REFUSED
        await disk.release()
        assert run.vm.scsi.disks == ()


async def test_anybody_waits_until_the_device_is_gone_however_often() -> None:
    async with running() as run:
        disk, other = await mounted(run), await run.vm.scsi.attach(DISK)
        async with anyio.create_task_group() as tasks:
            waits = [Attempt.begin(tasks, lease.gone) for lease in (disk, disk, other)]
            await quiet()
            await disk.release()
            await quiet()
            assert not any(wait.done for wait in waits)
            await release_cancelled(other)
        assert [wait.error for wait in waits] == [None] * 3
        assert run.vm.scsi.disks == ()
        await disk.gone()


async def test_a_wait_that_is_cancelled_changes_nothing() -> None:
    async with running() as run:
        disk = await mounted(run)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await disk.gone()
        assert state(disk) is LeaseState.HELD
        check_at_rest(run)


async def test_who_waits_is_told_that_the_removal_was_refused() -> None:
    async with running() as run:
        disk = await mounted(run)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        async with anyio.create_task_group() as tasks:
            wait = Attempt.begin(tasks, disk.gone)
            await quiet()
            await release_cancelled(disk)
        assert isinstance(wait.error, HostError)
        assert len(run.vm.orphans) == 1
        async with anyio.create_task_group() as tasks:
            await run.vm.orphans[0].release()
            again = Attempt.begin(tasks, disk.gone)
        assert again.error is None


async def test_who_waits_is_told_that_the_outcome_is_unknown() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
        run.backend.faults.lose(resource=DISKS, request_type="Remove", first=1)
        await release_cancelled(disk)
        for _ in range(2):
            with pytest.raises(UnknownOutcomeError):
                await disk.gone()
        assert state(disk) is LeaseState.UNKNOWN


async def test_the_end_of_a_retained_share_cannot_be_waited_for() -> None:
    async with running(wcow()) as run:
        share = await run.vm.vsmb.add(SHARED, read_only=True)
        shown = await run.vm.share(OTHER_SHARED, r"C:\there")
        for lease in (share, shown):
            with pytest.raises(NotSupportedError, match="until the VM closes"):
                await lease.gone()
        await share.release()
        assert state(share) is LeaseState.RELEASED


async def test_a_file_of_a_narrowed_share_is_gone_before_its_share() -> None:
    async with running(wcow(revoke_released_files=True)) as run:
        options = run.vm.vsmb.default_options(read_only=True).replaced(no_directmap=True)
        file = await run.vm.vsmb.add(FILE, options=options)
        other = await run.vm.vsmb.add(OTHER_FILE, options=options)
        async with anyio.create_task_group() as tasks:
            wait = Attempt.begin(tasks, file.gone)
            await file.release()
        assert wait.error is None
        assert state(file) is LeaseState.GONE
        assert state(other) is LeaseState.HELD


async def test_an_adapter_is_gone_before_its_namespace() -> None:
    async with running() as run:
        async with await run.vm.network.setup(NAMESPACE) as namespace:
            adapter = await namespace.add_endpoint(ENDPOINT)
            await run.vm.network.remove_endpoint(NAMESPACE, ENDPOINT)
            await adapter.release()
            await adapter.gone()
            assert state(namespace) is LeaseState.HELD
        await namespace.gone()


async def test_when_the_vm_exits_all_is_gone() -> None:
    async with running() as run:
        disk = await mounted(run)
        async with anyio.create_task_group() as tasks:
            wait = Attempt.begin(tasks, disk.gone)
            await quiet()
            await run.vm.terminate()
        assert wait.error is None
        assert state(disk) is LeaseState.GONE
        await disk.gone()
        await disk.release()


async def test_a_root_file_system_is_gone_with_all_its_parts() -> None:
    async with running(lcow()) as run:
        root = await run.vm.mount_layers("c1", [LAYER], SCRATCH)
        async with anyio.create_task_group() as tasks:
            wait = Attempt.begin(tasks, root.gone)
            await quiet()
            assert not wait.done
            await root.release()
        assert wait.error is None


async def release_root_cancelled(root: uvm.RootFileSystem) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await root.release()


def root_state(root: uvm.RootFileSystem) -> LeaseState:
    return root.state


async def test_a_root_file_system_is_held_releasing_and_gone() -> None:
    async with running() as run:
        root = await run.vm.mount_layers("c1", [LAYER], SCRATCH)
        assert root_state(root) is LeaseState.HELD
        with run.hold(resource="CombinedLayers") as gate:
            await release_root_cancelled(root)
            (parked, *_) = await gate.wait()
            assert root_state(root) is LeaseState.RELEASING
            async with anyio.create_task_group() as tasks:
                again = Attempt.begin(tasks, root.release)
                await quiet()
                assert not again.done
                parked.proceed()
        assert again.error is None
        assert root_state(root) is LeaseState.GONE
        with pytest.raises(AlreadyReleasedError):
            await root.release()


async def test_a_root_file_system_whose_layer_is_shared_is_released() -> None:
    async with running() as run:
        root = await run.vm.mount_layers("c1", [LAYER], SCRATCH)
        layer = await run.vm.vpmem.add(LAYER)
        await root.release()
        assert root_state(root) is LeaseState.RELEASED
        await layer.release()
        assert root_state(root) is LeaseState.GONE


@pytest.mark.parametrize("by", ["its caller", "the orphan", "another root"])
async def test_a_root_file_system_that_is_an_orphan_keeps_its_layers_until_it_is_removed(by: str) -> None:
    async with running() as run:
        root = await run.vm.mount_layers("c1", [LAYER], SCRATCH)
        run.backend.faults.refuse(resource="CombinedLayers", request_type="Remove", first=1)
        await release_root_cancelled(root)
        await quiet()
        assert root_state(root) is LeaseState.REFUSED
        (orphan,) = run.vm.orphans
        assert orphan.ledger == "layers.roots"
        check_at_rest(run)
        if by == "its caller":
            await root.release()
        elif by == "the orphan":
            await orphan.release()
        else:
            await (await run.vm.mount_layers("c1", [LAYER], SCRATCH)).release()
        await quiet()
        assert root_state(root) is LeaseState.GONE
        assert run.vm.orphans == ()
        assert (len(run.vm.vpmem.layers), len(run.vm.scsi.disks)) == (0, 0)
        check_at_rest(run)


async def test_a_root_file_system_of_which_a_part_is_in_doubt_is_released_as_far_as_it_can_be() -> None:
    async with running() as run:
        root = await run.vm.mount_layers("c1", [LAYER], SCRATCH)
        run.backend.faults.lose(resource="CombinedLayers", request_type="Remove", first=1)
        for _ in range(3):
            with pytest.raises(UnknownOutcomeError):
                await root.release()
        assert root_state(root) is LeaseState.UNKNOWN
        assert root.released
        assert run.vm.vpmem.layers == ()
        with pytest.raises(UnknownOutcomeError):
            await root.gone()


async def test_the_end_of_retained_layers_cannot_be_waited_for() -> None:
    async with running(wcow()) as run:
        root = await run.vm.mount_layers("c1", [uvm.WCOWLayer(SHARED, "a")], SCRATCH)
        with pytest.raises(NotSupportedError, match="until the VM closes"):
            await root.gone()
        await root.release()
        assert root_state(root) is LeaseState.RELEASED


async def test_a_namespace_stands_as_its_adapters_do() -> None:
    async with running() as run:
        namespace = await run.vm.network.setup(NAMESPACE)
        run.backend.faults.refuse(resource=ADAPTERS, request_type="Remove", first=1)
        async with anyio.create_task_group() as tasks:
            wait = Attempt.begin(tasks, namespace.gone)
            await quiet()
            await release_cancelled(namespace)
        assert isinstance(wait.error, HostError)
        assert state(namespace) is LeaseState.REFUSED
        (_,) = run.vm.orphans
        await namespace.release()
        assert state(namespace) is LeaseState.GONE
        assert not run.vm.orphans
        with pytest.raises(AlreadyReleasedError):
            await namespace.release()


async def test_a_namespace_that_cannot_be_left_in_order_leaves_its_adapter_as_an_orphan() -> None:
    async with running() as run:
        run.backend.faults.refuse(resource=ADAPTERS, request_type="Remove", first=1)
        with pytest.raises(HostError):
            async with await run.vm.network.setup(NAMESPACE):
                pass
        [orphan] = run.vm.orphans
        assert orphan.ledger == "network.adapters"
        await orphan.release()
        assert run.vm.network.adapters == ()
