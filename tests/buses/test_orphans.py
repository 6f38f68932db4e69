"""What is attached and has no caller, since its removal was refused: the VM lists and releases it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from attrs import frozen

import uvm
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    ADAPTERS,
    DEVICE,
    DISK,
    DISKS,
    ENDPOINT,
    FILE,
    LAYER,
    LAYERS,
    NAMESPACE,
    OTHER_DISK,
    OTHER_FILE,
    OTHER_SHARED,
    PIPE,
    PLAN9,
    SCRATCH,
    SHARED,
    Attempt,
    Running,
    lcow,
    quiet,
    running,
    wcow,
)
from uvm._buses.link import Link
from uvm.devices.base import Step
from uvm.errors import (
    GuestError,
    HostError,
    NotAttachedError,
    OrphanError,
    RefusedError,
    UndoFailedError,
    UnknownOutcomeError,
    UVMError,
)
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

ATTACHED: dict[str, tuple[str, str, Callable[[Running], Awaitable[Any]]]] = {
    "disk": (DISKS, "scsi.disks", lambda run: run.vm.scsi.attach(DISK)),
    "layer": (LAYERS, "vpmem.layers", lambda run: run.vm.vpmem.add(LAYER)),
    "share": (PLAN9, "plan9.shares", lambda run: run.vm.plan9.add(SHARED, "/a")),
}


async def cancelled_while_it_is_added(run: Running, resource: str, add: Callable[[], Awaitable[Any]]) -> None:
    """A caller is cancelled while its device is added; the host refuses to remove it again, once."""
    run.backend.faults.refuse(resource=resource, request_type="Remove", first=1)
    with run.hold(resource=resource, request_type="Add") as gate:
        async with anyio.create_task_group() as tasks:
            attempt = Attempt.begin(tasks, add)
            await gate.wait()
            attempt.scope.cancel()
    await quiet()


@pytest.mark.parametrize("kind", ATTACHED)
async def test_what_nobody_waited_for_and_stays_is_listed_and_can_be_released(kind: str) -> None:
    resource, ledger, add = ATTACHED[kind]
    async with running(lcow()) as run:
        await cancelled_while_it_is_added(run, resource, lambda: add(run))
        [orphan] = run.vm.orphans
        assert orphan.ledger == ledger
        assert isinstance(orphan.error, HostError)
        [entry] = run.vm.ledgers()[ledger].entries
        assert (orphan.key, orphan.slot) == (entry.key, entry.slot)
        check_at_rest(run)
        await orphan.release()
        assert not run.vm.orphans
        assert run.vm.ledgers()[ledger].entries == ()
        check_at_rest(run)


async def test_an_orphan_that_is_refused_again_stays_one() -> None:
    async with running(lcow()) as run:
        await cancelled_while_it_is_added(run, DISKS, lambda: run.vm.scsi.attach(DISK))
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        [orphan] = run.vm.orphans
        with pytest.raises(HostError):
            await orphan.release()
        assert run.vm.orphans == (orphan,)
        await orphan.release()
        assert not run.vm.orphans


async def test_to_release_an_orphan_that_has_gone_does_nothing() -> None:
    async with running(lcow()) as run:
        await cancelled_while_it_is_added(run, DISKS, lambda: run.vm.scsi.attach(DISK))
        [orphan] = run.vm.orphans
        await orphan.release()
        sent = len(run.sent())
        await orphan.release()
        assert len(run.sent()) == sent


async def test_an_orphan_whose_removal_is_lost_is_quarantined_instead() -> None:
    async with running(lcow()) as run:
        await cancelled_while_it_is_added(run, DISKS, lambda: run.vm.scsi.attach(DISK))
        run.backend.faults.lose(resource=DISKS, request_type="Remove", first=1)
        with pytest.raises(UnknownOutcomeError):
            await run.vm.orphans[0].release()
        assert not run.vm.orphans
        assert len(run.vm.quarantined) == 1


async def test_whoever_attaches_the_same_takes_an_orphan_over() -> None:
    async with running(lcow()) as run:
        await cancelled_while_it_is_added(run, DISKS, lambda: run.vm.scsi.attach(DISK))
        async with run.vm.scsi.attach(DISK):
            assert not run.vm.orphans, "it has a caller again"
        assert not run.vm.orphans
        assert run.vm.scsi.disks == ()


async def test_a_disk_whose_mount_failed_and_that_stays_is_an_orphan() -> None:
    async with running(lcow()) as run:
        run.backend.faults.refuse(resource="MappedVirtualDisk", request_type="Add", first=1)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        with pytest.raises(UndoFailedError):
            await run.vm.scsi.attach(DISK, mount=uvm.Mount())
        [orphan] = run.vm.orphans
        assert orphan.ledger == "scsi.disks"
        assert isinstance(orphan.error, UndoFailedError)
        await orphan.release()
        assert run.vm.scsi.disks == ()


async def test_what_a_lease_still_holds_is_no_orphan() -> None:
    async with running(lcow()) as run:
        disk = await run.vm.scsi.attach(DISK)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        with pytest.raises(HostError):
            await disk.release()
        assert not run.vm.orphans
        await disk.release()
        assert run.vm.scsi.disks == ()


async def test_a_release_that_was_cancelled_and_refused_leaves_an_orphan_that_its_lease_can_release() -> None:
    async with running(lcow()) as run:
        disk = await run.vm.scsi.attach(DISK)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await disk.release()
        await quiet()
        assert [orphan.slot for orphan in run.vm.orphans] == [(0, 0)]
        await disk.release()
        assert not run.vm.orphans


async def test_a_direct_mapped_share_that_is_kept_is_no_orphan() -> None:
    async with running(wcow()) as run:
        async with run.vm.vsmb.add(SHARED):
            pass
        assert not run.vm.orphans


async def test_a_vm_that_has_exited_has_no_orphans() -> None:
    async with running(lcow()) as run:
        await cancelled_while_it_is_added(run, DISKS, lambda: run.vm.scsi.attach(DISK))
        [orphan] = run.vm.orphans
        await run.vm.terminate()
        await run.vm.wait()
        assert not run.vm.orphans
        await orphan.release()


# What an orphan is in the way of.


async def unmount_refused(run: Running, lease: uvm.Lease, resource: str, times: int = 1) -> None:
    """Release a lease without waiting; the guest refuses the removal so often."""
    run.backend.faults.refuse(to="guest", resource=resource, request_type="Remove", first=times)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await lease.release()
    await quiet()
    assert len(run.vm.orphans) == 1


async def mounted_at(run: Running, disk: str = DISK, **how: Any) -> uvm.ScsiLease:
    return await run.vm.scsi.attach(disk, mount=uvm.Mount(guest_path="/mnt/a"), **how)


MOUNT = "MappedVirtualDisk"
CIMS = "WCOWBlockCims"
DIRECTORY = "MappedDirectory"
#: What was orphaned, its guest resource, and what then wants its path, of the host or of the guest.
IN_THE_WAY: dict[
    str, tuple[str, Callable[[Running], Awaitable[Any]], str, Callable[[Running], Awaitable[Any]]]
] = {
    "the same disk": ("linux", mounted_at, MOUNT, mounted_at),
    "the disk in another manner": (
        "linux",
        mounted_at,
        MOUNT,
        lambda run: run.vm.scsi.attach(DISK, read_only=True),
    ),
    "the disk as a layer": ("linux", mounted_at, MOUNT, lambda run: run.vm.vpmem.add(DISK)),
    "another disk there": ("linux", mounted_at, MOUNT, lambda run: mounted_at(run, OTHER_DISK)),
    "a share there": ("linux", mounted_at, MOUNT, lambda run: run.vm.share(SHARED, "/mnt/a/")),
    "the same share": (
        "linux",
        lambda run: run.vm.share(SHARED, "/mnt/a"),
        DIRECTORY,
        lambda run: run.vm.share(SHARED, "/mnt/a"),
    ),
    "another share there": (
        "linux",
        lambda run: run.vm.plan9.add(SHARED, "/mnt/a"),
        DIRECTORY,
        lambda run: run.vm.plan9.add(OTHER_SHARED, "/mnt/a"),
    ),
    "the directory at another path": (
        "linux",
        lambda run: run.vm.plan9.add(SHARED, "/mnt/a"),
        DIRECTORY,
        lambda run: run.vm.plan9.add(SHARED, "/mnt/b"),
    ),
    "a disk where a share is": (
        "linux",
        lambda run: run.vm.plan9.add(SHARED, "/mnt/a"),
        DIRECTORY,
        mounted_at,
    ),
    "a shown directory": (
        "windows",
        lambda run: run.vm.share(SHARED, r"C:\there"),
        DIRECTORY,
        lambda run: run.vm.share(OTHER_SHARED, r"c:\THERE"),
    ),
    "an adapter": (
        "windows",
        lambda run: run.vm.network.add_endpoint(NAMESPACE, ENDPOINT),
        "",
        lambda run: run.vm.network.add_endpoint(NAMESPACE, ENDPOINT),
    ),
}


async def _in_namespace(run: Running, kind: str) -> None:
    if kind == "an adapter":
        await run.vm.network.add_namespace(NAMESPACE)


@pytest.mark.parametrize("kind", IN_THE_WAY)
async def test_what_meets_an_orphan_has_it_removed_first(kind: str) -> None:
    os, make, resource, again = IN_THE_WAY[kind]
    async with running(lcow() if os == "linux" else wcow()) as run:
        await _in_namespace(run, kind)
        await unmount_refused(run, await make(run), resource)
        lease = await again(run)
        assert run.vm.orphans == ()
        check_at_rest(run)
        await lease.release()
        check_at_rest(run)


@pytest.mark.parametrize("kind", IN_THE_WAY)
async def test_what_meets_an_orphan_that_stays_says_so_and_attaches_nothing(kind: str) -> None:
    os, make, resource, again = IN_THE_WAY[kind]
    async with running(lcow() if os == "linux" else wcow()) as run:
        await _in_namespace(run, kind)
        await unmount_refused(run, await make(run), resource, times=2)
        before = run.vm.orphans
        with pytest.raises(OrphanError, match="an orphan whose removal failed again") as caught:
            await again(run)
        assert isinstance(caught.value.__cause__, GuestError)
        assert f"{before[0].what} is still at {before[0].where}" in str(caught.value)
        assert run.vm.orphans == before
        check_at_rest(run)
        await (await again(run)).release()
        assert run.vm.orphans == ()


async def test_what_was_left_by_leaving_its_context_is_an_orphan_since_then() -> None:
    async with running() as run:
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        start = datetime.now(UTC)
        with pytest.raises(HostError):
            async with run.vm.scsi.attach(DISK):
                pass
        [orphan] = run.vm.orphans
        assert start <= orphan.since <= datetime.now(UTC)
        await orphan.release()
        assert run.vm.scsi.disks == ()


async def test_a_file_that_stays_in_a_narrowed_share_is_an_orphan() -> None:
    async with running(wcow(revoke_released_files=True)) as run:
        options = run.vm.vsmb.default_options(read_only=True).replaced(no_directmap=True)
        file = await run.vm.vsmb.add(FILE, options=options)
        await run.vm.vsmb.add(OTHER_FILE, options=options)
        run.backend.faults.refuse(request_type="Update", first=1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await file.release()
        await quiet()
        [orphan] = run.vm.orphans
        assert [*run.vm.vsmb.shares[0].files] == [FILE, OTHER_FILE]
        await orphan.release()
        assert [*run.vm.vsmb.shares[0].files] == [OTHER_FILE]
        assert run.vm.orphans == ()
        check_at_rest(run)


async def test_an_orphan_is_listed_and_found_and_detaching_releases_it() -> None:
    async with running() as run:
        await cancelled_while_it_is_added(run, DISKS, lambda: run.vm.scsi.attach(DISK))
        assert run.vm.scsi.find(DISK) == (run.vm.scsi.disks[0].controller, run.vm.scsi.disks[0].lun)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        with pytest.raises(HostError):
            await run.vm.scsi.detach(DISK)
        assert len(run.vm.orphans) == 1, "whoever detaches has no lease"
        await run.vm.scsi.detach(DISK)
        assert [*run.vm.orphans, *run.vm.scsi.disks] == []
        assert run.vm.scsi.find(DISK) is None
        with pytest.raises(NotAttachedError):
            await run.vm.scsi.detach(DISK)


@frozen
class Kind:
    """A kind of device that is removed by its name."""

    os: str
    add: Callable[[Running], Awaitable[Any]]
    remove: Callable[[Running], Awaitable[None]]
    listed: Callable[[Running], Sequence[object]]


def _not_mapped(run: Running) -> Any:
    return run.vm.vsmb.default_options(read_only=True).replaced(no_directmap=True)


KINDS: dict[str, Kind] = {
    "disk": Kind(
        "linux", lambda r: r.vm.scsi.attach(DISK), lambda r: r.vm.scsi.detach(DISK), lambda r: r.vm.scsi.disks
    ),
    "mount": Kind("linux", mounted_at, lambda r: r.vm.scsi.detach(DISK), lambda r: r.vm.scsi.disks),
    "layer": Kind(
        "linux",
        lambda r: r.vm.vpmem.add(LAYER),
        lambda r: r.vm.vpmem.remove(LAYER),
        lambda r: r.vm.vpmem.layers,
    ),
    "share": Kind(
        "windows",
        lambda r: r.vm.vsmb.add(SHARED, options=_not_mapped(r)),
        lambda r: r.vm.vsmb.remove(SHARED, read_only=True),
        lambda r: r.vm.vsmb.shares,
    ),
    "file": Kind(
        "windows",
        lambda r: r.vm.vsmb.add(FILE, options=_not_mapped(r)),
        lambda r: r.vm.vsmb.remove(FILE, read_only=True),
        lambda r: r.vm.vsmb.shares,
    ),
    "pipe": Kind(
        "windows",
        lambda r: r.vm.pipes.add(PIPE),
        lambda r: r.vm.pipes.remove(PIPE),
        lambda r: r.vm.pipes.pipes,
    ),
    "PCI device": Kind(
        "linux",
        lambda r: r.vm.vpci.assign(DEVICE),
        lambda r: r.vm.vpci.remove(DEVICE),
        lambda r: r.vm.vpci.devices,
    ),
}


@pytest.mark.parametrize("cancelled", ["while it was added", "while it was released"])
@pytest.mark.parametrize("refusals", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_an_orphan_is_listed_and_removed_by_its_name(
    kind: str, refusals: int, cancelled: str
) -> None:
    it = KINDS[kind]
    async with running(lcow() if it.os == "linux" else wcow()) as run:
        run.backend.faults.refuse(request_type="Remove", first=1 + refusals)
        if cancelled == "while it was added":
            with run.hold(request_type="Add") as gate:
                async with anyio.create_task_group() as tasks:
                    attempt = Attempt.begin(tasks, lambda: it.add(run))
                    await gate.wait()
                    attempt.scope.cancel()
        else:
            lease = await it.add(run)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await lease.release()
        await run.vm.settled()
        for _ in range(refusals):
            assert (len(run.vm.orphans), len(it.listed(run))) == (1, 1)
            with pytest.raises(RefusedError):
                await it.remove(run)
        assert (len(run.vm.orphans), len(it.listed(run))) == (1, 1)
        check_at_rest(run)
        await it.remove(run)
        assert (len(run.vm.orphans), len(it.listed(run))) == (0, 0)
        with pytest.raises(NotAttachedError):
            await it.remove(run)
        check_at_rest(run)


async def test_a_namespace_that_is_removed_by_its_id_leaves_a_refused_adapter_listed() -> None:
    async with running(wcow()) as run:
        await run.vm.network.add_namespace(NAMESPACE)
        await unmount_refused(run, await run.vm.network.add_endpoint(NAMESPACE, ENDPOINT), "", times=2)
        before = run.vm.orphans
        with pytest.raises(GuestError):
            await run.vm.network.remove_namespace(NAMESPACE)
        assert run.vm.orphans == before
        await run.vm.network.remove_namespace(NAMESPACE)
        assert (run.vm.orphans, run.vm.network.adapters, run.vm.network.namespaces) == ((), (), ())


async def test_an_endpoint_whose_namespace_goes_while_an_orphan_is_removed_is_refused() -> None:
    async with running(wcow()) as run:
        namespace = await run.vm.network.add_namespace(NAMESPACE)
        await unmount_refused(run, await run.vm.network.add_endpoint(NAMESPACE, ENDPOINT), "")
        with run.hold(to="guest", resource="", request_type="Remove") as gate:
            async with anyio.create_task_group() as tasks:
                add = Attempt.begin(tasks, lambda: run.vm.network.add_endpoint(NAMESPACE, ENDPOINT))
                [parked] = await gate.wait()
                Attempt.begin(tasks, namespace.release)
                await quiet()
                parked.proceed()
        assert isinstance(add.error, NotAttachedError)
        assert (run.vm.orphans, run.vm.network.namespaces) == ((), ())


async def test_all_that_meet_an_orphan_wait_for_one_removal() -> None:
    async with running() as run:
        await unmount_refused(run, await mounted_at(run), MOUNT)
        with run.hold(to="guest", resource=MOUNT, request_type="Remove") as gate:
            async with anyio.create_task_group() as tasks:
                first = Attempt.begin(tasks, lambda: run.vm.scsi.attach(DISK, read_only=True))
                [parked] = await gate.wait()
                second = Attempt.begin(tasks, lambda: run.vm.share(SHARED, "/mnt/a"))
                await quiet()
                assert (first.done, second.done, len(gate.pending)) == (False, False, 1)
                parked.proceed()
        assert (first.error, second.error) == (None, None)
        check_at_rest(run)


@pytest.mark.parametrize("refusals", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_removal_by_name_during_another_ends_as_that_does(kind: str, refusals: int) -> None:
    it = KINDS[kind]
    async with running(lcow() if it.os == "linux" else wcow()) as run:
        lease = await it.add(run)
        with run.hold(request_type="Remove") as gate:
            async with anyio.create_task_group() as tasks:
                attempts = [Attempt.begin(tasks, lease.release)]
                [parked] = await gate.wait()
                attempts += [Attempt.begin(tasks, lambda: it.remove(run)) for _ in range(2)]
                await quiet()
                assert [attempt.done for attempt in attempts] == [False, False, False]
                assert len(it.listed(run)) == 1
                parked.refuse() if refusals else parked.proceed()
                gate.close()
        assert [isinstance(attempt.error, RefusedError) for attempt in attempts] == [bool(refusals)] * 3
        assert len(it.listed(run)) == refusals
        assert run.vm.orphans == ()
        check_at_rest(run)


async def test_a_lease_whose_release_was_refused_is_still_a_reference() -> None:
    async with running() as run:
        disk = await mounted_at(run)
        run.backend.faults.refuse(resource=MOUNT, request_type="Remove", first=2)
        with pytest.raises(GuestError):
            await disk.release()
        assert [each.references for each in run.vm.scsi.disks] == [1]
        with pytest.raises(GuestError):
            async with disk:
                pass
        assert [(each.references, each.orphaned) for each in run.vm.scsi.disks] == [(0, True)]


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_a_removal_of_a_namespace_that_is_refused_at_once_is_reported(
    monkeypatch: pytest.MonkeyPatch, os: str
) -> None:
    async with running(lcow() if os == "linux" else wcow()) as run:
        namespace = await run.vm.network.add_namespace(NAMESPACE)
        await namespace.add_endpoint(ENDPOINT)

        revoke, tried = Link.revoke, []

        async def refused_once(self: Link, step: Step) -> None:
            tried.append(step)
            if len(tried) == 1:
                raise RefusedError("no", HResult.E_FAIL)
            await revoke(self, step)

        monkeypatch.setattr(Link, "revoke", refused_once)
        with pytest.raises(RefusedError):
            await namespace.release()
        assert len(tried) == 1
        await namespace.release()
        assert run.vm.network.adapters == ()


async def test_a_set_up_that_cannot_be_undone_leaves_its_adapter_as_an_orphan() -> None:
    async with running(wcow()) as run:
        run.backend.faults.refuse(resource=ADAPTERS, request_type="Add", nth=2)
        run.backend.faults.refuse(resource=ADAPTERS, request_type="Remove", first=1)
        with pytest.raises(HostError) as caught:
            await run.vm.network.setup(NAMESPACE)
        assert any("removing the namespace again failed" in note for note in caught.value.__notes__)
        [orphan] = run.vm.orphans
        assert orphan.ledger == "network.adapters"
        await orphan.release()
        assert (run.vm.orphans, run.vm.network.namespaces) == ((), ())
        check_at_rest(run)


async def test_what_meets_an_orphan_whose_removal_is_lost_says_so_and_the_slot_is_withheld() -> None:
    async with running() as run:
        await cancelled_while_it_is_added(run, DISKS, lambda: run.vm.scsi.attach(DISK))
        run.backend.faults.lose(resource=DISKS, request_type="Remove", first=1)
        with pytest.raises(OrphanError, match=r"is unknown.*see vm\.quarantined") as caught:
            await run.vm.scsi.attach(DISK)
        assert isinstance(caught.value.__cause__, UnknownOutcomeError)
        assert (len(run.vm.orphans), len(run.vm.quarantined)) == (0, 1)
        check_at_rest(run)


# One release, two callers.


async def _root(run: Running) -> uvm.RootFileSystem:
    return await run.vm.mount_layers("c", [LAYER], SCRATCH)


async def _resources(run: Running) -> uvm.ContainerResources:
    disk = {"destination": "/d", "type": "virtual-disk", "source": OTHER_DISK, "options": ["ro"]}
    spec = {"process": {"args": ["true"], "cwd": "/"}, "linux": {}, "mounts": [disk]}
    return await run.pod.attach_resources(spec, [LAYER], SCRATCH, id="c")


async def _namespace(run: Running) -> uvm.NamespaceLease:
    namespace = await run.vm.network.add_namespace(NAMESPACE)
    await namespace.add_endpoint(ENDPOINT)
    return namespace


async def _block_cim(run: Running) -> uvm.BlockCIMLease:
    return await run.vm.block_cims.mount(uvm.BlockCIMLayer([uvm.BlockCIM(LAYER, "base.cim")]))


SHARED_ENDS: dict[str, tuple[str, str, Callable[[Running], Awaitable[Any]]]] = {
    "disk": ("linux", DISKS, lambda run: run.vm.scsi.attach(DISK)),
    "mounted disk": ("linux", DISKS, mounted_at),
    "namespace": ("linux", ADAPTERS, _namespace),
    "root file system": ("linux", DISKS, _root),
    "container's resources": ("linux", DISKS, _resources),
    "volume of a block CIM": ("windows", CIMS, _block_cim),
    "disk of a block CIM": ("windows", DISKS, _block_cim),
}


@pytest.mark.parametrize("kind", SHARED_ENDS)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("how", ["cancelled at once", "cancelled later", "refused"])
@pytest.mark.parametrize("stays", [True, False])
async def test_what_a_context_was_left_of_is_no_orphan_while_another_caller_has_it(
    kind: str, first: bool, how: str, stays: bool
) -> None:
    """Two callers release it at once, and that is refused: one leaves its context, the other stays or not."""
    os, resource, attach = SHARED_ENDS[kind]
    async with running(lcow() if os == "linux" else wcow()) as run:
        lease = await attach(run)
        scope = anyio.CancelScope()

        async def leave() -> None:
            with scope:
                async with lease:
                    if how == "cancelled at once":
                        scope.cancel()
                        await anyio.lowlevel.checkpoint()

        async def other() -> None:
            if stays:
                await lease.release()
                return
            async with lease:
                pass

        async with anyio.create_task_group() as tasks:
            with run.hold(resource=resource, request_type="Remove") as gate:
                begun = [leave, other] if first else [other, leave]
                attempts = {call: Attempt.begin(tasks, call) for call in begun}
                await quiet()
                [parked] = gate.pending
                if how == "cancelled later":
                    scope.cancel()
                    await quiet()
                parked.refuse()
        assert isinstance(attempts[other].error, UVMError | ExceptionGroup)
        assert isinstance(attempts[leave].error, UVMError | ExceptionGroup) is (how == "refused")
        assert bool(run.vm.orphans) is not stays
        check_at_rest(run)
        await lease.release()
        assert run.vm.orphans == ()
        check_at_rest(run)


@pytest.mark.parametrize("first", [False, True])
async def test_what_failed_to_come_is_not_had_though_it_is_removed_before_its_caller_learns_that(
    first: bool,
) -> None:
    async with running(wcow()) as run:
        run.backend.faults.refuse(to="guest", request_type="Add", nth=3)
        run.backend.faults.refuse(to="host", request_type="Remove", first=1)
        await run.vm.network.add_namespace(NAMESPACE)

        async def add() -> None:
            await run.vm.network.add_endpoint(NAMESPACE, ENDPOINT)

        async def remove() -> None:
            # As soon as the undo is refused.
            while not any(state.owed for state in run.vm.ledgers()["network.adapters"].entries):
                await anyio.lowlevel.checkpoint()
            await run.vm.network.remove_endpoint(NAMESPACE, ENDPOINT)

        async with anyio.create_task_group() as tasks:
            begun = [remove, add] if first else [add, remove]
            attempts = {call: Attempt.begin(tasks, call) for call in begun}
        assert isinstance(attempts[add].error, UndoFailedError)
        assert attempts[remove].error is None
        assert (run.vm.orphans, run.vm.network.adapters) == ((), ())
        check_at_rest(run)


async def test_an_adapter_refused_before_the_release_of_its_namespace_is_cancelled_is_an_orphan() -> None:
    async with running() as run:
        namespace = await run.vm.network.setup(NAMESPACE)
        with run.hold(resource=ADAPTERS, request_type="Remove") as gate:
            async with anyio.create_task_group() as tasks:
                release = Attempt.begin(tasks, namespace.release)
                [refused, _] = await gate.wait(2)
                refused.refuse()
                await quiet()
                assert not release.done
                release.scope.cancel()
        await run.vm.settled()
        [orphan] = run.vm.orphans
        assert isinstance(orphan.error, HostError)
        await namespace.release()
        assert run.vm.orphans == ()
        check_at_rest(run)


async def test_a_block_cim_that_a_cancelled_caller_left_is_released_at_the_first_attempt() -> None:
    async with running(wcow()) as run:
        lease = await _block_cim(run)
        with run.hold(resource="*", request_type="Remove") as gate:
            async with anyio.create_task_group() as tasks:

                async def leave() -> None:
                    async with lease:
                        pass

                left = Attempt.begin(tasks, leave)
                [volume] = await gate.wait(1)
                left.scope.cancel()
                await quiet()
                volume.proceed()
                [disk] = await gate.wait(1)
                disk.refuse()
        await run.vm.settled()
        [_] = run.vm.orphans
        await lease.release()
        assert (run.vm.orphans, run.vm.scsi.disks) == ((), ())
        check_at_rest(run)
