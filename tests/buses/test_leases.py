"""Leases: how they are had and given back, and what holds when host or guest refuse, or say nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest

import uvm
from tests.clocks import jumping_backends
from tests.vm.audit import check_at_rest
from tests.vm.support import (
    ADAPTERS,
    DEVICE,
    DISK,
    DISKS,
    ENDPOINT,
    FILE,
    LARGE_LAYER,
    LAYER,
    LAYERS,
    NAMESPACE,
    OTHER_DISK,
    OTHER_ENDPOINT,
    OTHER_FILE,
    OTHER_LAYER,
    OTHER_SHARED,
    PCI,
    PIPE,
    PLAN9,
    SCRATCH,
    SHARED,
    VSMB,
    Attempt,
    Running,
    lcow,
    quiet,
    running,
    wcow,
)
from uvm import LeaseState
from uvm.backend import HCS_CONCURRENCY, Concurrency
from uvm.devices.base import PARTIAL
from uvm.errors import (
    AlreadyReleasedError,
    GuestError,
    HostError,
    NotAttachedError,
    OptionsError,
    OrphanError,
    UndoFailedError,
    UndoUnknownError,
    UnknownOutcomeError,
    UVMError,
)
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio

anyio_backend = jumping_backends

Add = Callable[[Running], Awaitable[Any]]


def mounted(run: Running, path: str = DISK, **mount: Any) -> Any:
    return run.vm.scsi.attach(path, mount=uvm.Mount(**mount))


async def _endpoint(run: Running) -> Any:
    return await run.vm.network.add_endpoint(NAMESPACE, ENDPOINT)


async def _other_endpoint(run: Running) -> Any:
    return await run.vm.network.add_endpoint(NAMESPACE, OTHER_ENDPOINT)


# Having them and giving them back.


async def test_disks_are_attached_by_tasks_made_of_the_calls() -> None:
    async with running() as run:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run.vm.scsi.attach, DISK)
            tasks.start_soon(run.vm.scsi.attach, OTHER_DISK)
        assert {each.host_path for each in run.vm.scsi.disks} == {DISK, OTHER_DISK}


async def test_awaited_it_stays_and_entered_it_goes() -> None:
    async with running() as run:
        await run.vm.scsi.attach(DISK)
        async with mounted(run, OTHER_DISK) as disk:
            assert (disk.controller, disk.lun, disk.guest_path) == (0, 1, "/run/mounts/scsi/m0")
            assert len(run.guest.mounts) == 1
        assert disk.released
        assert run.guest.mounts == {}
        assert [disk.host_path for disk in run.vm.scsi.disks] == [DISK]
        check_at_rest(run)


async def test_entered_and_released_in_the_body_is_not_released_again() -> None:
    async with running() as run:
        async with mounted(run) as disk:
            await disk.release()
        assert len(run.vm.scsi._disks.ledger) == 0


_OPENINGS: dict[str, Callable[[Running], Any]] = {
    "disk": mounted,
    "namespace": lambda run: run.vm.network.setup(NAMESPACE),
    "root": lambda run: run.vm.mount_layers("c1", [LAYER], DISK),
}


@pytest.mark.parametrize("kind", _OPENINGS)
async def test_what_a_release_fails_with_on_leaving_is_noted_on_what_the_body_raised(kind: str) -> None:
    async with running() as run:

        async def leave() -> None:
            async with _OPENINGS[kind](run):
                run.backend.faults.refuse(to="host", request_type="Remove")
                raise LookupError("body")

        with pytest.raises(LookupError, match="body") as caught:
            await leave()
        assert [note for note in caught.value.__notes__ if "E_FAIL" in note]
        run.backend.faults.clear()
        for orphan in run.vm.orphans:
            await orphan.release()
        check_at_rest(run)


async def test_the_same_again_is_one_more_reference() -> None:
    async with running() as run:
        one, two = await mounted(run), await mounted(run, guest_path="/elsewhere")
        assert (two.controller, two.lun, two.guest_path) == (one.controller, one.lun, one.guest_path)
        await one.release()
        assert len(run.guest.mounts) == 1
        await two.release()
        assert run.told() == [
            f"grant: access {DISK}",
            "host: Add Scsi",
            "guest: Add MappedVirtualDisk",
            "guest: Remove MappedVirtualDisk",
            "guest: Remove SCSIDevice",
            "host: Remove Scsi",
        ]


async def test_the_second_release_is_an_error_and_sends_nothing() -> None:
    async with running() as run:
        first, second = await mounted(run), await mounted(run)
        await first.release()
        before = run.state()
        with pytest.raises(AlreadyReleasedError, match="released before"):
            await first.release()
        assert run.state() == before
        assert not second.released


async def test_tasks_that_release_one_lease_together_release_it_once() -> None:
    async with running() as run:
        disk = await mounted(run)
        with run.hold() as gate:
            async with anyio.create_task_group() as tasks:
                first, second = (Attempt.begin(tasks, disk.release) for _ in range(2))
                await gate.wait()
                await quiet()
                tasks.start_soon(_close_soon, gate)
        assert (first.error, second.error) == (None, None)
        assert run.told("host")[-1:] == ["host: Remove Scsi"]
        with pytest.raises(AlreadyReleasedError):
            await disk.release()


async def _close_soon(gate: Any) -> None:
    await quiet()
    gate.close()


async def test_a_release_takes_effect_before_its_first_checkpoint() -> None:
    async with running() as run:
        disk = await mounted(run)
        coroutine = disk.release()
        assert disk.state.value == "held"
        coroutine.send(None)
        assert disk.state.value == "releasing"
        coroutine.close()
        await quiet()
        assert len(run.vm.scsi._disks.ledger) == 0


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_a_lease_closes_properly_in_a_cancelled_scope(os: str) -> None:
    options = lcow() if os == "linux" else wcow()
    async with running(options) as run:
        with anyio.CancelScope() as scope:
            async with mounted(run), run.vm.network.add_namespace(NAMESPACE) as namespace:
                await namespace.add_endpoint(ENDPOINT)
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        await quiet()
        check_at_rest(run)
        assert not any(len(driver.ledger) for _, driver in run.vm._drivers())


async def test_cancelling_a_release_stops_only_the_waiting() -> None:
    async with running() as run:
        disk = await mounted(run)
        with run.hold() as gate:
            async with anyio.create_task_group() as tasks:
                release = Attempt.begin(tasks, disk.release)
                await gate.wait()
                release.scope.cancel()
            assert disk.state is LeaseState.RELEASING
        await disk.release()
        assert len(run.vm.scsi._disks.ledger) == 0
        with pytest.raises(AlreadyReleasedError):
            await disk.release()


async def test_cancelling_who_waits_takes_back_what_was_begun() -> None:
    async with running() as run:
        with run.hold(resource=DISKS, request_type="Add") as gate:
            async with anyio.create_task_group() as tasks:
                attach = Attempt.begin(tasks, lambda: mounted(run))
                (parked,) = await gate.wait()
                attach.scope.cancel()
                await quiet()
                assert attach.done, "it need not wait for the host"
                parked.proceed()
        await quiet()
        assert run.told("host", "guest") == [
            "host: Add Scsi",
            "guest: Remove SCSIDevice",
            "host: Remove Scsi",
        ]
        check_at_rest(run)


async def test_who_cancels_does_not_take_it_from_those_who_still_wait() -> None:
    async with running() as run:
        with run.hold() as gate:
            async with anyio.create_task_group() as tasks:
                first, second = (Attempt.begin(tasks, lambda: mounted(run)) for _ in range(2))
                await gate.wait()
                first.scope.cancel()
                await quiet()
                gate.close()
        assert second.result is not None
        assert len(run.guest.mounts) == 1


async def test_one_request_serves_all_who_ask_for_the_same() -> None:
    async with running() as run:
        with run.hold() as gate:
            async with anyio.create_task_group() as tasks:
                attempts = [Attempt.begin(tasks, lambda: mounted(run)) for _ in range(5)]
                await gate.wait()
                tasks.start_soon(_close_soon, gate)
        assert run.told("host", "guest") == ["host: Add Scsi", "guest: Add MappedVirtualDisk"]
        for attempt in attempts:
            await attempt.result.release()
        check_at_rest(run)


async def test_what_is_asked_for_while_it_goes_comes_anew() -> None:
    async with running() as run:
        layer = await run.vm.vpmem.add(LAYER)
        with run.hold(request_type="Remove") as gate:
            async with anyio.create_task_group() as tasks:
                release = Attempt.begin(tasks, layer.release)
                await gate.wait()
                again = Attempt.begin(tasks, lambda: run.vm.vpmem.add(LAYER))
                await quiet()
                assert not again.done
                gate.close()
        assert release.error is None
        assert again.error is None
        assert again.result.guest_path == layer.guest_path
        check_at_rest(run)


async def test_a_removal_that_had_not_begun_when_it_became_void_sends_nothing() -> None:
    async with running(concurrency=Concurrency(vpmem=1)) as run:
        layer = await run.vm.vpmem.add(LAYER)
        sent = len(run.sent())
        with run.hold() as gate:
            async with anyio.create_task_group() as tasks:
                other = Attempt.begin(tasks, lambda: run.vm.vpmem.add(OTHER_LAYER, grant_access=False))
                await gate.wait()
                release = Attempt.begin(tasks, layer.release)
                await quiet()
                again = Attempt.begin(tasks, lambda: run.vm.vpmem.add(LAYER))
                await quiet()
                gate.close()
        assert (other.error, release.error, again.error) == (None, None, None)
        assert len(run.sent()) == sent + 2, "no more than the other layer took"
        check_at_rest(run)


# Removal by path.


async def test_removal_by_path_gives_up_the_oldest_reference() -> None:
    async with running() as run:
        first, second = await mounted(run), await mounted(run)
        await run.vm.scsi.detach(DISK)
        assert (first.released, second.released) == (True, False)
        await run.vm.scsi.detach(DISK)
        with pytest.raises(NotAttachedError):
            await run.vm.scsi.detach(DISK)
        with pytest.raises(AlreadyReleasedError):
            await first.release()


async def test_removal_by_path_takes_nothing_from_who_is_just_getting_it() -> None:
    """The disk is attached, its mount is on the way: it is not for anybody else to give up."""
    async with running() as run:
        with run.hold(to="guest") as gate:
            async with anyio.create_task_group() as tasks:
                attach = Attempt.begin(tasks, lambda: mounted(run))
                await gate.wait()
                with pytest.raises(NotAttachedError):
                    await run.vm.scsi.detach(DISK)
                gate.close()
        assert attach.result.guest_path
        check_at_rest(run)


async def test_removal_by_path_takes_nothing_from_who_has_not_been_told_yet() -> None:
    """Whichever task runs first when the host has answered: one that is told, or one that removes."""
    for _ in range(8):
        async with running() as run:
            with run.hold(to="host") as gate:
                async with anyio.create_task_group() as tasks:
                    attach = Attempt.begin(tasks, lambda: mounted(run))
                    (parked,) = await gate.wait()
                    parked.proceed()
                    for _ in range(4):
                        Attempt.begin(tasks, lambda: run.vm.scsi.detach(DISK))
                        await anyio.lowlevel.checkpoint()
                    gate.close()
            await quiet()
            assert attach.error is None
            check_at_rest(run)


# Refused removals.


async def test_a_refused_release_leaves_the_lease_with_its_owner_who_may_repeat_it() -> None:
    async with running() as run:
        disk = await mounted(run)
        refused = run.backend.faults.refuse(resource="MappedVirtualDisk", request_type="Remove")
        for _ in range(2):
            with pytest.raises(GuestError):
                await disk.release()
            assert not disk.released
            assert len(run.guest.mounts) == 1
            check_at_rest(run)
        refused.remove()
        await disk.release()
        assert disk.released
        assert len(run.vm.scsi._disks.ledger) == 0
        with pytest.raises(AlreadyReleasedError):
            await disk.release()


async def test_a_removal_that_stopped_half_way_goes_on_from_the_step_that_failed() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        with pytest.raises(HostError):
            await disk.release()
        assert run.vm.ledgers()["scsi.disks"].entries[0].state is PARTIAL
        check_at_rest(run)
        before = len(run.sent())
        await disk.release()
        assert run.told()[before:] == ["host: Remove Scsi"], "the guest has let go already"
        check_at_rest(run)


async def test_an_acquire_of_something_half_removed_finishes_the_removal_and_adds_it_anew() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=1)
        with pytest.raises(HostError):
            await disk.release()
        before = len(run.sent("host"))
        other = await run.vm.scsi.attach(DISK)
        assert run.told("host")[before:] == ["host: Remove Scsi", "host: Add Scsi"]
        # What was owed is done, which its owner is told by a release that succeeds, once.
        await disk.release()
        with pytest.raises(AlreadyReleasedError):
            await disk.release()
        assert not other.released
        assert run.vm.scsi.find(DISK) is not None
        check_at_rest(run)


async def test_an_acquire_of_something_half_removed_fails_where_the_removal_fails_again() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
        refused = run.backend.faults.refuse(resource=DISKS, request_type="Remove")
        with pytest.raises(HostError):
            await disk.release()
        with pytest.raises(HostError):
            await run.vm.scsi.attach(DISK)
        refused.remove()
        await disk.release()
        assert len(run.vm.scsi._disks.ledger) == 0


async def test_a_refusal_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
        run.backend.faults.refuse(resource=DISKS, request_type="Remove", first=2)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await disk.release()
        await quiet()
        assert "releasing" in caplog.text
        assert not disk.released
        with run.hold(resource=DISKS, request_type="Add") as gate:
            async with anyio.create_task_group() as tasks:
                attach = Attempt.begin(tasks, lambda: run.vm.scsi.attach(OTHER_DISK))
                await gate.wait()
                attach.scope.cancel()
        await quiet()
        assert {orphan.slot for orphan in run.vm.orphans} == {(0, 0), (0, 1)}
        check_at_rest(run)
        # It is not lost: whoever acquires it has it, and may release it.
        await (await run.vm.scsi.attach(OTHER_DISK)).release()
        await disk.release()
        assert len(run.vm.scsi._disks.ledger) == 0


async def test_other_layers_or_another_share_are_refused_where_something_still_is() -> None:
    async with running(wcow()) as run:
        shared = await run.vm.share(SHARED, r"C:\there")
        run.backend.faults.refuse(resource="MappedDirectory", request_type="Remove", first=1)
        with pytest.raises(GuestError):
            await shared.release()
        with pytest.raises(OptionsError, match="another share"):
            await run.vm.share(OTHER_SHARED, r"C:\there")
        await shared.release()
        assert (await run.vm.share(OTHER_SHARED, r"C:\there")).guest_path == r"C:\there"


# Refused adds.

#: Per kind with several steps: how to add it, the guest step to refuse, and the host's undo.
TWO_STEPS: dict[str, tuple[str, Add, str, str]] = {
    "packed vpmem": ("linux", lambda run: run.vm.vpmem.add(LAYER), "VPMemDevice", LAYERS),
    "plan9": ("linux", lambda run: run.vm.plan9.add(SHARED, "/mnt"), "MappedDirectory", PLAN9),
    "vpci": ("linux", lambda run: run.vm.vpci.assign(DEVICE), "VPCIDevice", PCI),
    "linux adapter": ("linux", _endpoint, "Network", ADAPTERS),
    "windows adapter": ("windows", _endpoint, "Network", ADAPTERS),
}


async def _prepare(run: Running) -> None:
    await run.vm.network.add_namespace(NAMESPACE)
    run.start = run.last


def _options(os: str, **options: Any) -> Any:
    return lcow(**options) if os == "linux" else wcow(**options)


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("kind", list(TWO_STEPS))
async def test_a_guest_that_refuses_has_the_host_undo_its_part(kind: str, external: bool) -> None:
    os, add, guest_step, _ = TWO_STEPS[kind]
    async with running(_options(os, external_guest_connection=external)) as run:
        await _prepare(run)
        before = run.vm.ledgers()
        # Of a Windows adapter, the second guest step: the first only announces it.
        nth = 2 if kind == "windows adapter" else 1
        run.backend.faults.refuse(to="guest", resource=guest_step, request_type="Add", nth=nth)
        with pytest.raises(GuestError if external else HostError, match="E_FAIL"):
            await add(run)
        check_at_rest(run)
        assert {n: s.entries for n, s in before.items()} == {
            n: s.entries for n, s in run.vm.ledgers().items() if n in before
        }
        assert (await add(run)).released is False


@pytest.mark.parametrize("kind", list(TWO_STEPS))
async def test_an_undo_that_is_refused_as_well_is_told_with_the_refusal(kind: str) -> None:
    os, add, guest_step, undo = TWO_STEPS[kind]
    async with running(_options(os)) as run:
        await _prepare(run)
        nth = 2 if kind == "windows adapter" else 1
        run.backend.faults.refuse(
            HResult.E_ACCESSDENIED, to="guest", resource=guest_step, request_type="Add", nth=nth
        )
        run.backend.faults.refuse(HResult.E_INVALIDARG, resource=undo, request_type="Remove", first=1)
        with pytest.raises(UndoFailedError) as caught:
            await add(run)
        assert [type(e) for e in caught.value.exceptions] == [GuestError, HostError]
        assert "E_ACCESSDENIED" in str(caught.value)
        assert "E_INVALIDARG" in str(caught.value)
        assert not isinstance(caught.value, UnknownOutcomeError)
        assert run.vm.quarantined == ()
        [orphan] = run.vm.orphans
        assert isinstance(orphan.error, UndoFailedError)
        check_at_rest(run)
        await orphan.release()
        assert run.vm.orphans == ()
        check_at_rest(run)
        assert (await add(run)).released is False


@pytest.mark.parametrize("kind", list(TWO_STEPS))
async def test_an_undo_whose_answer_is_lost_withholds_the_slot(
    kind: str,
) -> None:
    os, add, guest_step, undo = TWO_STEPS[kind]
    async with running(_options(os)) as run:
        await _prepare(run)
        nth = 2 if kind == "windows adapter" else 1
        run.backend.faults.refuse(to="guest", resource=guest_step, request_type="Add", nth=nth)
        run.backend.faults.lose(resource=undo, request_type="Remove", first=1)
        with pytest.raises(UndoUnknownError):
            await add(run)
        assert len(run.vm.quarantined) == 1
        assert run.vm.orphans == ()
        check_at_rest(run)


async def test_an_undo_goes_on_from_the_step_that_was_refused() -> None:
    async with running(wcow()) as run:
        await _prepare(run)
        run.backend.faults.refuse(to="guest", resource="Network", request_type="Add", nth=2)
        # The host's part is undone, and the announcement to the guest is not.
        run.backend.faults.refuse(to="guest", request_type="Remove", first=1)
        with pytest.raises(UndoFailedError):
            await _endpoint(run)
        check_at_rest(run)
        before = len(run.sent())
        await run.vm.orphans[0].release()
        assert run.told()[before:] == ["guest: Remove"]
        check_at_rest(run)


async def test_a_windows_adapter_that_the_host_refuses_is_taken_back_from_the_guest() -> None:
    async with running(wcow()) as run:
        await _prepare(run)
        run.backend.faults.refuse(resource=ADAPTERS, request_type="Add", first=1)
        with pytest.raises(HostError):
            await _endpoint(run)
        assert run.told() == ["guest: Add Network", "host: Add NetworkAdapters", "guest: Remove"]
        check_at_rest(run)


async def test_a_mount_that_is_refused_lets_its_disk_go() -> None:
    async with running() as run:
        run.backend.faults.refuse(resource="MappedVirtualDisk", first=1)
        with pytest.raises(GuestError):
            await mounted(run)
        assert len(run.vm.scsi._disks.ledger) == 0
        check_at_rest(run)


async def test_where_the_disk_of_a_refused_mount_cannot_go_both_are_told_and_it_can_be_detached() -> None:
    async with running() as run:
        run.backend.faults.refuse(resource="MappedVirtualDisk", first=1)
        run.backend.faults.refuse(resource="SCSIDevice", first=1)
        with pytest.raises(UndoFailedError) as caught:
            await mounted(run)
        assert len(caught.value.exceptions) == 2
        check_at_rest(run)
        await run.vm.scsi.detach(DISK)
        assert len(run.vm.scsi._disks.ledger) == 0


async def test_each_waiter_of_a_refused_add_has_its_own_exception_caused_by_one() -> None:
    async with running() as run:
        with run.hold(resource=DISKS) as gate:
            async with anyio.create_task_group() as tasks:
                attempts = [Attempt.begin(tasks, lambda: run.vm.scsi.attach(DISK)) for _ in range(3)]
                (parked,) = await gate.wait()
                await quiet()
                parked.refuse(HResult.E_ACCESSDENIED, "no")
        errors = [attempt.error for attempt in attempts]
        assert len({id(e) for e in errors}) == 3
        assert len({id(e.__cause__) for e in errors}) == 1
        for error in errors:
            assert isinstance(error, HostError)
            assert (error.name, error.text, str(error)) == (
                "E_ACCESSDENIED",
                "no",
                str(errors[0].__cause__),
            )
        errors[0].add_note("mine")
        assert not hasattr(errors[1], "__notes__")
        check_at_rest(run)


# Lost answers.


@pytest.mark.parametrize("applied", [True, False])
async def test_a_lost_answer_withholds_the_slot(applied: bool) -> None:
    async with running() as run:
        run.backend.faults.lose(resource=DISKS, request_type="Add", first=1, applied=applied)
        with pytest.raises(UnknownOutcomeError):
            await run.vm.scsi.attach(DISK, read_only=True)
        (withheld,) = run.vm.quarantined
        assert withheld.slot == (0, 0)
        assert (await run.vm.scsi.attach(DISK, read_only=True)).lun == 1
        check_at_rest(run)


async def test_a_release_whose_answer_is_lost_is_over_and_its_slot_withheld() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK, read_only=True)
        run.backend.faults.lose(resource=DISKS, request_type="Remove", first=1)
        with pytest.raises(UnknownOutcomeError):
            await disk.release()
        for _ in range(2):
            with pytest.raises(UnknownOutcomeError):
                await disk.release()
        assert disk.released
        assert disk.state is LeaseState.UNKNOWN
        assert [q.slot for q in run.vm.quarantined] == [(0, 0)]
        assert (await run.vm.scsi.attach(OTHER_DISK)).lun == 1
        check_at_rest(run)


async def test_what_a_withheld_mount_lies_on_stays() -> None:
    async with running() as run:
        run.backend.faults.lose(resource="MappedVirtualDisk", first=1)
        with pytest.raises(UnknownOutcomeError):
            await mounted(run)
        with pytest.raises(NotAttachedError):
            await run.vm.scsi.detach(DISK)
        assert run.vm.scsi.find(DISK) == (0, 0)
        check_at_rest(run)


#: By name there is one place only, which cannot be taken again once nobody knows what is there.
NAMED: dict[str, tuple[str, Add, str]] = {
    "pipe": ("windows", lambda run: run.vm.pipes.add(PIPE), "VirtualMachine/Devices/MappedPipes/*"),
    "namespace": ("windows", lambda run: run.vm.network.add_namespace(NAMESPACE), "NetworkNamespace"),
    "directory": ("windows", lambda run: run.vm.share(SHARED, r"C:\there"), "MappedDirectory"),
    "root": ("linux", lambda run: run.vm.mount_layers("c1", [LAYER], SCRATCH), "CombinedLayers"),
}


@pytest.mark.parametrize("kind", list(NAMED))
async def test_a_place_that_has_a_name_is_withheld_under_that_name(kind: str) -> None:
    os, add, resource = NAMED[kind]
    async with running(_options(os)) as run:
        run.backend.faults.lose(resource=resource, request_type="Add", first=1)
        with pytest.raises(UnknownOutcomeError):
            await add(run)
        # The scratch disk of a root file system that is withheld is an orphan, once its removal was refused:
        # its mount is busy.
        refused = (OrphanError, uvm.NoSpaceError) if kind == "root" else uvm.NoSpaceError
        with pytest.raises(refused, match=r"is unknown|an orphan"):
            await add(run)
        await quiet()
        check_at_rest(run)


async def test_an_update_whose_answer_is_lost_is_stated_again_by_the_next() -> None:
    async with running(wcow()) as run:
        await run.vm.vsmb.add(FILE, read_only=True)
        run.backend.faults.lose(resource=VSMB, request_type="Update", first=1, applied=False)
        with pytest.raises(UnknownOutcomeError):
            await run.vm.vsmb.add(OTHER_FILE, read_only=True)
        check_at_rest(run)
        other = await run.vm.vsmb.add(OTHER_FILE, read_only=True)
        assert other.guest_path.endswith(r"\two.txt")
        (share,) = (s for s in run.inventory["VirtualSmb"]["Shares"] if s["Name"] == other.name)
        assert share["AllowedFiles"] == [FILE, OTHER_FILE]
        check_at_rest(run)


# Access to host paths.


async def test_access_is_asked_for_with_each_new_attachment_and_not_by_who_joins() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
        await run.vm.scsi.attach(DISK)
        await run.vm.scsi.attach(DISK, mount=uvm.Mount())
        assert run.told("grant") == [f"grant: access {DISK}"]
        for _ in range(2):
            await run.vm.scsi.detach(DISK)
        await run.vm.scsi.detach(DISK)
        assert disk.released
        await run.vm.scsi.attach(DISK)
        assert run.told("grant") == [f"grant: access {DISK}"] * 2


async def test_one_grant_per_path_is_in_flight() -> None:
    async with running() as run:
        with run.backend.faults.hold(to="grant") as gate:
            async with anyio.create_task_group() as tasks:
                # Two attachments of one file, over SCSI and over VPMEM.
                attempts = [
                    Attempt.begin(tasks, lambda: run.vm.scsi.attach(LAYER, read_only=True)),
                    Attempt.begin(tasks, lambda: run.vm.vpmem.add(LAYER)),
                ]
                await gate.wait()
                await quiet()
                assert len(gate.pending) == 1
                gate.close()
        assert [a.error for a in attempts] == [None, None]
        assert run.told("grant") == [f"grant: access {LAYER}"]


@pytest.mark.parametrize("fault", ["refuse", "lose"])
async def test_a_grant_that_is_refused_or_lost_attaches_nothing(fault: str) -> None:
    async with running() as run:
        getattr(run.backend.faults, fault)(to="grant", first=1)
        with pytest.raises(HostError if fault == "refuse" else UnknownOutcomeError):
            await mounted(run)
        assert run.sent("host", "guest") == []
        assert run.vm.quarantined == ()
        check_at_rest(run)
        await mounted(run)


async def test_a_grant_whose_answer_was_lost_is_revoked_at_once() -> None:
    async with running() as run:
        run.backend.faults.lose(to="grant", first=1, applied=True)
        with pytest.raises(UnknownOutcomeError):
            await run.vm.scsi.attach(DISK)
        assert run.backend.access.granted(DISK) == {}


async def test_no_access_is_asked_for_where_the_caller_says_so() -> None:
    async with running() as run:
        await run.vm.scsi.attach(DISK, read_only=True, grant_access=False)
        await run.vm.vpmem.add(LAYER, grant_access=False)
        assert run.sent("grant") == []


async def test_what_was_granted_is_revoked_when_the_vm_closes() -> None:
    async with running() as run:
        await run.vm.scsi.attach(DISK)
        await run.vm.vpmem.add(LAYER)
        assert {path.lower() for path in run.backend.access.paths("vm1")} == {DISK.lower(), LAYER.lower()}
    revoked = {e.document["path"] for e in run.backend.request_log.entries(to="revoke")}
    assert revoked == {DISK, LAYER}
    assert run.backend.access.paths("vm1") == []


# Namespaces.


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_the_adapters_of_a_namespace_go_first_in_the_order_in_which_they_came(os: str) -> None:
    async with running(_options(os), concurrency=HCS_CONCURRENCY) as run:
        namespace: Any = await run.vm.network.setup(NAMESPACE)
        ids = list(run.inventory["NetworkAdapters"])
        before = len(run.sent("host"))
        await namespace.release()
        removed = [e.call.resource.rpartition("/")[2] for e in run.sent("host")[before:]]
        assert removed == ids
        last = run.sent()[-1]
        assert last.call.resource == ("NetworkNamespace" if os == "windows" else f"{ADAPTERS[:-1]}{ids[1]}")
        check_at_rest(run)


async def test_a_namespace_whose_adapter_cannot_go_goes_on_with_the_next_release() -> None:
    async with running(wcow()) as run:
        namespace: Any = await run.vm.network.setup(NAMESPACE)
        run.backend.faults.refuse(resource=ADAPTERS, request_type="Remove", first=1)
        with pytest.raises(HostError):
            await namespace.release()
        assert not namespace.released
        assert len(run.inventory["NetworkAdapters"]) == 1
        check_at_rest(run)
        await namespace.release()
        assert namespace.released
        assert not any(len(driver.ledger) for _, driver in run.vm._drivers())
        with pytest.raises(AlreadyReleasedError):
            await namespace.release()


async def test_a_release_of_a_namespace_that_was_cancelled_and_then_refused_may_be_repeated() -> None:
    async with running(wcow()) as run:
        namespace: Any = await run.vm.network.setup(NAMESPACE)
        run.backend.faults.refuse(resource=ADAPTERS, request_type="Remove", first=1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await namespace.release()
        await quiet()
        assert not namespace.released
        await namespace.release()
        assert not any(len(driver.ledger) for _, driver in run.vm._drivers())


async def test_a_namespace_is_added_again_while_it_goes_and_where_nobody_has_it() -> None:
    async with running(wcow()) as run:
        namespace = await run.vm.network.add_namespace(NAMESPACE)
        with run.hold() as gate:
            async with anyio.create_task_group() as tasks:
                Attempt.begin(tasks, namespace.release)
                await gate.wait()
                again = Attempt.begin(tasks, lambda: run.vm.network.add_namespace(NAMESPACE))
                await quiet()
                assert not again.done
                gate.close()
        assert again.error is None
        with pytest.raises(OptionsError, match="already"):
            await run.vm.network.add_namespace(NAMESPACE)


async def test_removing_a_namespace_by_its_id_waits_for_no_adapter_that_is_on_the_way() -> None:
    async with running() as run:
        await run.vm.network.add_namespace(NAMESPACE)
        with run.hold(resource=ADAPTERS) as gate:
            async with anyio.create_task_group() as tasks:
                adding = Attempt.begin(tasks, lambda: _endpoint(run))
                await gate.wait()
                await run.vm.network.remove_namespace(NAMESPACE)
                gate.close()
        assert adding.error is None
        check_at_rest(run)
        await run.vm.network.remove_namespace(NAMESPACE)
        assert not any(len(driver.ledger) for _, driver in run.vm._drivers())
        await run.vm.network.remove_namespace(NAMESPACE)


async def test_a_set_up_that_fails_takes_the_namespace_back() -> None:
    async with running(wcow()) as run:
        run.backend.faults.refuse(resource=ADAPTERS, request_type="Add", nth=2)
        with pytest.raises(HostError):
            await run.vm.network.setup(NAMESPACE)
        assert not any(len(driver.ledger) for _, driver in run.vm._drivers())
        check_at_rest(run)


# How many at once.

#: Per field of Concurrency, two things of that kind.
KINDS: dict[str, tuple[str, Add, Add]] = {
    "scsi": ("linux", lambda run: run.vm.scsi.attach(DISK), lambda run: run.vm.scsi.attach(OTHER_DISK)),
    "vpmem": ("linux", lambda run: run.vm.vpmem.add(LAYER), lambda run: run.vm.vpmem.add(OTHER_LAYER)),
    "vsmb": ("windows", lambda run: run.vm.vsmb.add(SHARED), lambda run: run.vm.vsmb.add(OTHER_SHARED)),
    "plan9": (
        "linux",
        lambda run: run.vm.plan9.add(SHARED, "/a"),
        lambda run: run.vm.plan9.add(SHARED, "/b"),
    ),
    "vpci": ("linux", lambda run: run.vm.vpci.assign("A"), lambda run: run.vm.vpci.assign("B")),
    "pipes": ("windows", lambda run: run.vm.pipes.add(PIPE), lambda run: run.vm.pipes.add(PIPE + "2")),
    "network": ("linux", _endpoint, _other_endpoint),
}


@pytest.mark.parametrize("limit", [1, None])
@pytest.mark.parametrize("kind", list(KINDS))
async def test_no_more_operations_of_a_kind_run_at_once_than_the_host_takes(
    kind: str, limit: int | None
) -> None:
    os, one, other = KINDS[kind]
    options = _options(os, **({"vpmem_multi_mapping": False} if os == "linux" else {}))
    async with running(options, concurrency=Concurrency(**{kind: limit})) as run:
        if kind == "network":
            await _prepare(run)
        with run.hold() as gate:
            async with anyio.create_task_group() as tasks:
                attempts = [Attempt.begin(tasks, lambda add=add: add(run)) for add in (one, other)]  # type: ignore[misc]
                await gate.wait()
                await quiet()
                assert len(gate.pending) == (limit or 2)
                most = await _answer_one_by_one(gate)
        assert [attempt.error for attempt in attempts] == [None, None]
        assert most == (limit or 2)
        check_at_rest(run)


async def _answer_one_by_one(gate: Any) -> int:
    """Answer what is parked until nothing comes any more; gives how much there was at once, at most."""
    most = 0
    while gate.pending:
        most = max(most, len(gate.pending))
        gate.pending[0].proceed()
        await quiet()
    return most


async def test_operations_of_a_kind_have_their_turns_in_the_order_in_which_they_were_asked_for() -> None:
    paths = (LAYER, OTHER_LAYER, LARGE_LAYER)
    async with running(lcow(vpmem_multi_mapping=False), concurrency=Concurrency(vpmem=1)) as run:
        with run.hold() as gate:
            async with anyio.create_task_group() as tasks:
                for path in paths:
                    Attempt.begin(tasks, lambda path=path: run.vm.vpmem.add(path))  # type: ignore[misc]
                    await quiet()
                await _answer_one_by_one(gate)
        assert [e.document["Settings"]["HostPath"] for e in run.sent("host")] == list(paths)


async def test_adds_to_an_empty_packed_device_go_one_at_a_time_and_then_at_once() -> None:
    async with running() as run:
        with run.hold(resource=LAYERS) as gate:
            async with anyio.create_task_group() as tasks:
                for path in (LAYER, OTHER_LAYER, LARGE_LAYER):
                    Attempt.begin(tasks, lambda path=path: run.vm.vpmem.add(path))  # type: ignore[misc]
                await gate.wait()
                await quiet()
                counts = [len(gate.pending)]
                gate.pending[0].proceed()
                await quiet()
                counts.append(len(gate.pending))
                gate.close()
        assert counts == [1, 2]
        check_at_rest(run)


async def test_the_next_takes_its_turn_where_the_first_add_to_an_empty_device_fails_or_is_lost() -> None:
    for answer in ("refuse", "lose"):
        async with running(concurrency=Concurrency(vpmem=2)) as run:
            with run.hold(resource=LAYERS, request_type="Add") as gate:
                async with anyio.create_task_group() as tasks:
                    attempts = [
                        Attempt.begin(tasks, lambda path=path: run.vm.vpmem.add(path))  # type: ignore[misc]
                        for path in (LAYER, OTHER_LAYER, LARGE_LAYER)
                    ]
                    (first,) = await gate.wait()
                    if answer == "refuse":
                        first.refuse()
                    else:
                        first.lose(applied=True)
                    await quiet()
                    assert len(gate.pending) == 1
                    gate.close()
            assert [attempt.error is None for attempt in attempts].count(False) == 1
            check_at_rest(run)


async def test_a_revocation_that_hangs_holds_up_no_other_add_to_an_empty_device() -> None:
    async with running() as run:
        run.backend.faults.refuse(resource=LAYERS, request_type="Add", first=1)
        revocation = run.backend.faults.hang(to="revoke", first=1)
        async with anyio.create_task_group() as tasks:
            refused = Attempt.begin(tasks, lambda: run.vm.vpmem.add(LAYER))
            await quiet()
            assert not refused.done
            await run.vm.vpmem.add(OTHER_LAYER)
            await run.vm.vpmem.add(LARGE_LAYER)
            assert not refused.done
            refused.scope.cancel()
        revocation.remove()


async def test_adds_to_an_empty_device_that_are_all_refused_have_one_turn_each() -> None:
    async with running() as run:
        paths = [rf"C:\fresh\{number}.vhd" for number in range(20)]
        for path in paths:
            run.backend.files.add(path, size=1 << 20)
        with run.hold(resource=LAYERS, request_type="Add") as gate:
            async with anyio.create_task_group() as tasks:
                attempts = [Attempt.begin(tasks, partial(run.vm.vpmem.add, path)) for path in paths]
                for _ in paths:
                    [parked] = await gate.wait()
                    await quiet()
                    assert len(gate.pending) == 1
                    parked.refuse()
                    await quiet()
        assert all(isinstance(attempt.error, HostError) for attempt in attempts)
        check_at_rest(run)


# Whole root file systems.


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_a_root_file_system_is_made_of_its_layers_and_goes_with_them(os: str) -> None:
    async with running(_options(os)) as run:
        layers: list[Any] = [LAYER, OTHER_LAYER] if os == "linux" else [uvm.WCOWLayer(SHARED, "a")]
        async with run.vm.mount_layers("c1", layers, SCRATCH) as root:
            assert any(mount.kind == "overlay" for mount in run.guest.mounts.values())
            assert root.root
        assert run.guest.mounts == {}
        check_at_rest(run)


async def test_a_layer_that_does_not_fit_on_vpmem_goes_to_scsi() -> None:
    async with running(lcow(vpmem_count=1, vpmem_size_bytes=4 << 20)) as run:
        root = await run.vm.mount_layers("c1", [LAYER, LARGE_LAYER], SCRATCH)
        assert [type(lease).__name__ for lease in root.layers] == ["VPMemLease", "ScsiLease"]
        check_at_rest(run)


@pytest.mark.parametrize("resource", ["VPMemDevice", "MappedVirtualDisk", "CombinedLayers"])
async def test_a_root_file_system_that_fails_leaves_nothing(resource: str) -> None:
    async with running() as run:
        run.backend.faults.refuse(resource=resource, request_type="Add", first=1)
        with pytest.raises(GuestError):
            await run.vm.mount_layers("c1", [LAYER, OTHER_LAYER], SCRATCH)
        await quiet()
        check_at_rest(run)
        assert not any(len(driver.ledger) for _, driver in run.vm._drivers())


@pytest.mark.parametrize("calls", range(1, 7))
async def test_a_root_file_system_that_is_cancelled_at_any_request_leaves_nothing(calls: int) -> None:
    async with running() as run:
        with run.hold() as gate:
            async with anyio.create_task_group() as tasks:
                mounting = Attempt.begin(
                    tasks, lambda: run.vm.mount_layers("c1", [LAYER, OTHER_LAYER], SCRATCH)
                )
                for _ in range(calls - 1):
                    (parked, *_) = await gate.wait()
                    parked.proceed()
                await gate.wait()
                mounting.scope.cancel()
                await quiet()
                assert mounting.done
        await quiet()
        check_at_rest(run)
        assert not any(len(driver.ledger) for _, driver in run.vm._drivers())


async def test_a_root_file_system_whose_release_is_refused_may_be_released_again() -> None:
    async with running() as run:
        root: Any = await run.vm.mount_layers("c1", [LAYER], SCRATCH)
        run.backend.faults.refuse(resource="CombinedLayers", request_type="Remove", first=1)
        run.backend.faults.refuse(resource="VPMemDevice", request_type="Remove", first=1)
        for _ in range(2):
            with pytest.raises(GuestError):
                await root.release()
            assert not root.released
            check_at_rest(run)
        await root.release()
        with pytest.raises(AlreadyReleasedError):
            await root.release()
        assert not any(len(driver.ledger) for _, driver in run.vm._drivers())


# Things that are there when nobody holds them.


async def test_a_direct_mapped_share_stays_and_another_does_not() -> None:
    async with running(wcow()) as run:
        options = run.vm.vsmb.default_options(read_only=True).replaced(no_directmap=True)
        mapped = await run.vm.vsmb.add(SHARED, read_only=True)
        other = await run.vm.vsmb.add(OTHER_SHARED, options=options)
        await mapped.release()
        await other.release()
        assert [share.host_path for share in run.vm.vsmb.shares] == [SHARED]
        assert (await run.vm.vsmb.add(SHARED, read_only=True)).name == mapped.name
        check_at_rest(run)


async def test_boot_devices_are_there_from_the_start_and_can_be_removed() -> None:
    options = lcow(assigned_devices=[uvm.PCIDevice(DEVICE)], vpci_enabled=True)
    async with running(options) as run:
        check_at_rest(run)
        lease = await run.vm.vpci.assign(DEVICE)
        assert run.sent() == []
        await lease.release()
        await run.vm.vpci.remove(DEVICE)
        assert "VirtualPci" not in run.inventory
        with pytest.raises(NotAttachedError):
            await run.vm.vpci.remove(DEVICE)


async def test_every_error_is_one_of_ours_or_the_backends_own() -> None:
    """A backend that fails in a way of its own: nobody knows what it did, and the tasks go on."""
    async with running() as run:
        run.backend.faults.refuse(RuntimeError("broken"), resource=DISKS, first=1)
        with pytest.raises(UVMError, match="broken") as caught:
            await run.vm.scsi.attach(DISK, read_only=True)
        assert isinstance(caught.value, UnknownOutcomeError)
        assert len(run.vm.quarantined) == 1
        await run.vm.scsi.attach(DISK, read_only=True)
        run.backend.faults.refuse(OSError(5, "broken"), to="grant", first=1)
        with pytest.raises(OSError, match="broken"):
            await run.vm.scsi.attach(OTHER_DISK)
        check_at_rest(run)
