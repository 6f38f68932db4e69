"""The life of a VM: how it begins and ends, what its context raises, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import uvm
from tests.clocks import jumping_backends
from tests.vm.support import (
    DISK,
    LARGE_LAYER,
    LAYER,
    MIB,
    OPTIONS,
    OTHER_DISK,
    OTHER_LAYER,
    Attempt,
    host_backend,
    lcow,
    quiet,
    running,
    wcow,
)
from uvm._guest.timeouts import GuestTimeouts
from uvm.backends.fake import FakeBackend, FakeSystem
from uvm.errors import (
    BridgeClosedError,
    HostError,
    OptionsError,
    UnknownOutcomeError,
    UVMError,
    VMExitedError,
    VMStateError,
)
from uvm.hresult import HResult
from uvm.options import BlockCIMBootFiles

pytestmark = pytest.mark.anyio

anyio_backend = jumping_backends

POLICY = "czNjcmV0"


def create(backend: FakeBackend, options: Any = None, **settings: Any) -> Any:
    return uvm.UtilityVM.create(options or lcow(), backend=backend, **settings)


async def test_a_linux_vm_boots_with_default_options_on_a_fresh_fake() -> None:
    async with uvm.open_backend("fake") as backend:
        async with uvm.UtilityVM.create(uvm.LCOWOptions(), backend=backend) as vm:
            await vm.start()
            assert vm.state is uvm.VMState.RUNNING
        assert await backend.enumerate() == []


async def use(context: Any, then: Callable[[], Any], *, start: bool = True) -> None:
    """Use a VM a little, and do something at the end."""
    async with context as vm:
        if start:
            await vm.start()
            await vm.scsi.attach(DISK)
            await vm.scsi.attach(OTHER_DISK)
        then()


def state(vm: uvm.UtilityVM) -> uvm.VMState:
    """Ask for the state; as a call, so that type checkers do not remember the answer."""
    return vm.state


def lifecycle(backend: FakeBackend) -> list[str]:
    return [e.call.operation for e in backend.request_log.entries(to="lifecycle")]


def gone(backend: FakeBackend) -> bool:
    return not backend.leftovers() and not backend.vms


# From its creation to its end.


@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_a_vm_is_created_started_and_ended_with_its_context(os: str) -> None:
    backend = host_backend()
    async with create(backend, OPTIONS[os]()) as vm:
        assert state(vm) is uvm.VMState.CREATED
        assert vm.os == os
        assert vm.exit_status is None
        await vm.start()
        assert state(vm) is uvm.VMState.RUNNING
        assert vm.capabilities["NamespaceAddRequestSupported"] is True
    assert state(vm) is uvm.VMState.CLOSED
    assert str(vm.exit_status) == "ForcedExit"
    assert lifecycle(backend) == ["create", "start", "terminate", "close"]
    assert gone(backend)


async def test_a_vm_that_was_never_started_goes_too() -> None:
    backend = host_backend()
    async with create(backend) as vm:
        assert vm.id in backend.vms
    assert lifecycle(backend) == ["create", "terminate", "close"]
    assert gone(backend)


async def test_shutdown_is_orderly_and_after_the_exit_succeeds_quietly() -> None:
    async with running() as run:
        status = await run.vm.shutdown()
        assert status.exit_type == "GracefulExit"
        assert run.vm.exit_status is status
        assert state(run.vm) is uvm.VMState.EXITED
        assert await run.vm.shutdown() is await run.vm.terminate() is await run.vm.wait() is status


async def test_any_number_of_tasks_wait_for_the_exit() -> None:
    statuses = []

    async def wait(vm: uvm.UtilityVM) -> None:
        statuses.append(await vm.wait())

    async with running() as run, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(wait, run.vm)
        await quiet()
        assert statuses == []
        await run.vm.terminate()
    assert [s.exit_type for s in statuses] == ["ForcedExit"] * 3


async def test_pause_resume_and_save() -> None:
    async with running() as run:
        await run.vm.pause()
        assert state(run.vm) is uvm.VMState.PAUSED
        await run.vm.save(r"C:\vm\saved.vmrs")
        assert await run.backend.files.stat(r"C:\vm\saved.vmrs") is not None
        await run.vm.resume()
        assert state(run.vm) is uvm.VMState.RUNNING
        with pytest.raises(HostError, match="HCS_E_INVALID_STATE"):
            await run.vm.save("")


async def test_a_pause_that_the_exit_overtakes_leaves_the_vm_exited() -> None:
    async with running() as run:
        with run.backend.faults.hold(operation="pause") as gate:
            async with anyio.create_task_group() as tasks:
                pausing = Attempt.begin(tasks, run.vm.pause)
                (parked,) = await gate.wait()
                parked.proceed()
                await run.vm.terminate()
        assert pausing.done
        assert state(run.vm) is uvm.VMState.EXITED


async def test_a_crash_tells_its_status() -> None:
    async with running() as run:
        await run.vm.crash()
        status = await run.vm.wait()
        assert (status.exit_type, str(status)) == (
            "UnexpectedExit",
            "UnexpectedExit (HCS_E_GUEST_CRITICAL_ERROR)",
        )


async def test_a_crash_that_the_exit_overtakes_has_been_carried_out() -> None:
    async with running() as run:
        run.backend.faults.hang(operation="crash", applied=True)
        await run.vm.crash()
        assert state(run.vm) is uvm.VMState.EXITED
        with pytest.raises(uvm.VMExitedError):
            await run.vm.crash()


# Its state is respected.


async def test_what_needs_a_running_vm_is_refused_before_the_start() -> None:
    backend = host_backend()
    async with create(backend) as vm:
        before = len(backend.request_log)
        for use in (
            lambda: vm.scsi.attach(DISK),
            lambda: vm.vpmem.add(LAYER),
            lambda: vm.plan9.add(r"C:\shared", "/mnt"),
            lambda: vm.vpci.assign("PCI"),
            lambda: vm.layers.combine("/root", ["/a"]),
            lambda: vm.share(r"C:\shared", "/mnt"),
            lambda: vm.update_memory(MIB),
            vm.pause,
            vm.stats,
            vm.shutdown,
        ):
            with pytest.raises(VMStateError):
                await use()
        with pytest.raises(VMStateError):
            vm.network  # noqa: B018
        with pytest.raises(VMStateError):
            vm.capabilities  # noqa: B018
        assert len(backend.request_log) == before


async def test_it_starts_once() -> None:
    async with running() as run:
        with pytest.raises(VMStateError, match="running"):
            await run.vm.start()


@pytest.mark.parametrize("end", ["terminate", "shutdown", "close"])
async def test_use_after_the_end_says_so(end: str) -> None:
    async with running() as run:
        await getattr(run.vm, end)()
        before = len(run.backend.request_log)
        for use in (
            run.vm.start,
            lambda: run.vm.scsi.attach(DISK),
            lambda: run.vm.vpmem.add(LAYER),
            lambda: run.vm.update_memory(MIB),
            run.vm.pause,
            run.vm.resume,
            run.vm.crash,
            run.vm.stats,
            lambda: run.vm.save(""),
        ):
            with pytest.raises(VMExitedError) as caught:
                await use()
            assert caught.value.status == run.vm.exit_status
        assert len(run.backend.request_log) == before


async def test_a_release_after_the_exit_succeeds_quietly() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK, mount=uvm.Mount())
        root = await run.vm.mount_layers("c1", [LAYER], OTHER_DISK)
        await run.vm.terminate()
        assert disk.released
        assert root.released
        sent = len(run.sent())
        await disk.release()
        await disk.release()
        await root.release()
        assert len(run.sent()) == sent


async def test_leases_may_outlive_the_context() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
    await disk.release()
    with pytest.raises(VMExitedError):
        await run.vm.scsi.attach(DISK)


# Starting that fails.


@pytest.mark.parametrize("operation", ["start", "connect"])
async def test_an_exit_in_the_middle_of_the_start_is_what_start_raises(operation: str) -> None:
    backend = host_backend()
    async with create(backend) as vm:
        with backend.faults.hold(operation=operation) as gate:
            async with anyio.create_task_group() as tasks:
                starting = Attempt.begin(tasks, vm.start)
                await gate.wait()
                backend.vms["vm1"].crash()
        assert isinstance(starting.error, VMExitedError)
        assert starting.error.status == vm.exit_status
        assert vm.exit_status.exit_type == "UnexpectedExit"
        assert state(vm) is uvm.VMState.EXITED
        assert "terminate" not in lifecycle(backend)
    assert gone(backend)


async def test_a_guest_that_never_connects_is_waited_for_until_the_start_is_cancelled() -> None:
    backend = host_backend()
    backend.faults.hang(operation="connect")
    async with create(backend) as vm:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(vm.start)
            await quiet()
            assert state(vm) is uvm.VMState.STARTING
            tasks.cancel_scope.cancel()
        await vm.wait()
        assert state(vm) is uvm.VMState.EXITED
        assert vm.exit_status.exit_type == "ForcedExit"
        with pytest.raises(VMExitedError):
            await vm.start()
    assert gone(backend)


async def test_a_guest_that_does_not_connect_in_time_is_given_up_and_the_vm_terminated() -> None:
    backend = host_backend()
    backend.faults.hang(operation="connect")
    async with create(backend, timeouts=GuestTimeouts(boot_seconds=0)) as vm:
        with pytest.raises(BridgeClosedError, match="did not connect within 0 s; the VM was terminated"):
            await vm.start()
        assert state(vm) is uvm.VMState.EXITED
    assert gone(backend)


async def test_a_start_that_is_refused_tells_also_that_the_vm_could_not_be_ended() -> None:
    backend = host_backend()
    backend.faults.refuse(operation="start")
    refused = backend.faults.refuse(operation="terminate")
    async with create(backend) as vm:
        with pytest.raises(HostError, match="start") as caught:
            await vm.start()
        assert ["terminating the VM failed" in note for note in caught.value.__notes__] == [True]
        refused.remove()
    assert gone(backend)


# What the body raises.


class Stop(BaseException):
    """Not an Exception, as KeyboardInterrupt is not."""


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("bare"),
        ExceptionGroup("a group", [ValueError("one"), TypeError("two")]),
        BaseExceptionGroup("a group", [Stop("one")]),
        KeyboardInterrupt(),
        SystemExit(3),
        Stop(),
        GeneratorExit(),
        HostError("theirs", HResult.E_FAIL),
    ],
    ids=repr,
)
@pytest.mark.parametrize("started", [True, False])
async def test_an_exception_of_the_body_comes_out_as_the_object_that_it_is(
    failure: BaseException, started: bool
) -> None:
    backend = host_backend()

    def fail() -> None:
        raise failure

    with pytest.raises(type(failure)) as caught:
        await use(create(backend), fail, start=started)
    assert caught.value is failure
    assert getattr(failure, "__notes__", []) == []
    assert gone(backend)


async def test_a_generator_in_which_a_vm_runs_can_be_closed() -> None:
    backend = host_backend()

    async def generate() -> AsyncGenerator[uvm.UtilityVM, None]:
        async with create(backend) as vm:
            yield vm

    async with aclosing(generate()) as vms:
        async for vm in vms:
            assert vm.state is uvm.VMState.CREATED
            break
    assert gone(backend)


async def test_what_fails_at_the_closing_is_noted_on_what_the_body_raised() -> None:
    backend = host_backend()

    def fail() -> None:
        backend.faults.refuse(to="revoke")
        raise ValueError("body")

    with pytest.raises(ValueError, match="body") as caught:
        await use(create(backend), fail)
    assert len(caught.value.__notes__) == 2
    assert all("closing the VM failed" in note and "E_FAIL" in note for note in caught.value.__notes__)


async def test_what_fails_at_the_closing_is_raised_where_the_body_raised_nothing() -> None:
    backend = host_backend()
    with pytest.raises(uvm.UVMErrorGroup, match="closing vm1") as caught:
        await use(create(backend), lambda: backend.faults.refuse(to="revoke"))
    assert [type(e) for e in caught.value.exceptions] == [HostError, HostError]
    assert not backend.vms


async def test_an_outer_scope_cancels_the_body_and_the_vm_goes() -> None:
    backend = host_backend()
    with anyio.CancelScope() as scope:
        async with create(backend) as vm:
            await vm.start()
            async with vm.scsi.attach(DISK, mount=uvm.Mount()):
                scope.cancel()
                await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert state(vm) is uvm.VMState.CLOSED
    assert gone(backend)


async def test_a_cancelled_body_may_still_take_things_down_in_order() -> None:
    """The VM's own tasks go on until it is closed; nothing is lost, and nobody waits for ever."""
    backend = host_backend()
    with anyio.CancelScope() as scope:
        async with create(backend) as vm:
            await vm.start()
            disk = await vm.scsi.attach(DISK, mount=uvm.Mount())
            scope.cancel()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await disk.release()
                    assert len(vm.scsi._disks.ledger) == 0
                    assert (await vm.shutdown()).exit_type == "GracefulExit"
    assert scope.cancelled_caught
    assert gone(backend)


async def test_cancelled_while_it_is_being_created_or_before_leaves_nothing() -> None:
    for operation in ("create", "grant", "enumerate"):
        backend = host_backend()
        with backend.faults.hold(operation=operation) as gate, anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_enter, create(backend, wcow()))
                await gate.wait()
                scope.cancel()
        assert gone(backend), operation


async def _enter(context: Any) -> None:
    async with context:
        raise AssertionError("nobody gets here")


async def test_asyncio_cancelling_the_task_ends_the_vm_too(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("a matter of asyncio alone")
    backend, up = host_backend(), anyio.Event()

    async def body() -> None:
        async with create(backend) as vm:
            await vm.start()
            await vm.scsi.attach(DISK)
            up.set()
            await anyio.sleep_forever()

    task = asyncio.ensure_future(body())
    await up.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(backend)


# Creating that fails.


async def test_a_create_that_is_refused_leaves_nothing() -> None:
    backend = host_backend()
    backend.faults.refuse(operation="create")
    with pytest.raises(HostError, match="create"):
        await _enter(create(backend, wcow()))
    assert gone(backend)


@pytest.mark.parametrize("applied", [True, False])
async def test_a_create_whose_answer_is_lost_leaves_nothing(applied: bool) -> None:
    backend = host_backend()
    backend.faults.lose(operation="create", applied=applied)
    with pytest.raises(UnknownOutcomeError):
        await _enter(create(backend, wcow()))
    assert gone(backend)


async def test_what_a_lost_create_may_have_left_and_cannot_be_removed_is_told() -> None:
    backend = host_backend()
    backend.faults.lose(operation="create", applied=True)
    backend.faults.refuse(operation="terminate")
    with pytest.raises(UnknownOutcomeError) as caught:
        await _enter(create(backend))
    assert ["removing what may have been created failed" in note for note in caught.value.__notes__] == [True]
    assert gone(backend), "its only handle was closed all the same"


async def test_another_vm_of_the_same_id_keeps_all_it_has() -> None:
    backend = host_backend()
    async with running(wcow(), backend=backend) as run:
        await run.vm.scsi.attach(DISK)
        granted = backend.access.paths("vm1")
        for fault in (None, backend.faults.lose):
            rule = fault(operation="create", applied=False) if fault else None
            before = len(backend.request_log)
            with pytest.raises(HostError) as caught:
                await _enter(create(backend, wcow()))
            assert caught.value.hresult == HResult.HCS_E_SYSTEM_ALREADY_EXISTS
            assert [e.call.operation for e in backend.request_log][before:] == ["enumerate"]
            if rule is not None:
                rule.remove()
        assert backend.access.paths("vm1") == granted
        await run.vm.scsi.attach(OTHER_DISK)


async def test_preparations_are_taken_back_where_one_fails() -> None:
    backend = host_backend()
    backend.faults.refuse(to="grant", where=lambda call: call.document["path"].endswith("efi.vhd"))
    with pytest.raises(HostError, match="grant"):
        await _enter(create(backend, confidential_wcow(backend)))
    assert gone(backend)
    assert "create" not in lifecycle(backend)


async def test_what_cannot_be_taken_back_is_noted_on_the_failure() -> None:
    backend = host_backend()
    backend.faults.refuse(operation="create")
    backend.faults.refuse(to="revoke")
    with pytest.raises(HostError) as caught:
        await _enter(create(backend, wcow()))
    assert ["rolling back" in note for note in caught.value.__notes__] == [True]


async def test_an_amended_plan_is_what_is_created_and_a_failing_amendment_creates_nothing() -> None:
    backend = host_backend()

    def fail(plan: Any) -> Any:
        raise OptionsError("no")

    with pytest.raises(OptionsError, match="no"):
        await _enter(create(backend, amend=fail))
    assert len(backend.request_log) == 0


# Confidential VMs.


def confidential_lcow(backend: FakeBackend, **options: Any) -> uvm.LCOWOptions:
    for name in ("kernel.vmgs", "rootfs.vhd"):
        backend.files.add(rf"C:\boot\{name}", size=MIB)
    backend.files.add(r"C:\boot\reference_info.cose", content=b"measured")
    return lcow(
        guest_state_file="kernel.vmgs",
        dm_verity_rootfs_vhd="rootfs.vhd",
        rootfs_type="none",
        bundle_directory=r"C:\bundle",
        security_policy=POLICY,
        security_policy_enabled=True,
        **options,
    )


def confidential_wcow(backend: FakeBackend, **options: Any) -> uvm.WCOWOptions:
    for name in ("boot.vhd", "efi.vhd", "cimscratch.vhdx", "state.vmgs"):
        backend.files.add(rf"C:\cim\{name}", size=MIB)
    boot = BlockCIMBootFiles(
        boot_cim_vhd_path=r"C:\cim\boot.vhd",
        efi_vhd_path=r"C:\cim\efi.vhd",
        scratch_vhd_path=r"C:\cim\cimscratch.vhdx",
    )
    return wcow(
        boot_files=boot,
        guest_state_file=r"C:\cim\state.vmgs",
        security_policy=POLICY,
        security_policy_enabled=True,
        bundle_directory=r"C:\bundle",
        **options,
    )


@pytest.mark.parametrize("confidential", [confidential_lcow, confidential_wcow])
async def test_a_confidential_vm_sends_its_policy_first(confidential: Callable[[FakeBackend], Any]) -> None:
    backend = host_backend()
    async with create(backend, confidential(backend)) as vm:
        await vm.start()
        requests = backend.request_log.entries(to="guest", operation="modify")
        # A Windows guest is told its addresses before anything else.
        first = requests[0 if vm.os == "linux" else 1]
        assert first.call.resource == "SecurityPolicy"
        assert first.document["Settings"]["EncodedSecurityPolicy"] == POLICY
        assert POLICY not in backend.request_log.render([first])
    assert gone(backend)


async def test_the_copies_of_a_confidential_vms_files_go_with_it() -> None:
    backend = host_backend()
    async with create(backend, confidential_lcow(backend)) as vm:
        await vm.start()
        assert backend.files.listing(r"C:\bundle") == ["kernel.vmgs", "rootfs.vhd"]
    assert backend.files.listing(r"C:\bundle") == []
    assert gone(backend)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_policy_that_is_refused_or_lost_ends_the_vm(when: str) -> None:
    backend = host_backend()
    fault: Any = backend.faults.refuse if when == "before" else backend.faults.lose
    fault(resource="SecurityPolicy")
    async with create(backend, confidential_lcow(backend)) as vm:
        with pytest.raises(UVMError):
            await vm.start()
        assert state(vm) is uvm.VMState.EXITED
    assert backend.files.listing(r"C:\bundle") == []
    assert gone(backend)


async def test_files_that_cannot_be_copied_are_somebody_elses_and_stay() -> None:
    """The copy is refused because another VM boots from the file of that name: it is not ours to remove."""
    backend = host_backend()
    options = confidential_lcow(backend)
    backend.files.add(r"C:\bundle\kernel.vmgs", size=3)
    disk = backend.files.open_disk(r"C:\bundle\kernel.vmgs", writable=True, operation="another VM")
    with pytest.raises(HostError, match="SHARING_VIOLATION"):
        await _enter(create(backend, options))
    disk.close()
    assert backend.files.listing(r"C:\bundle") == ["kernel.vmgs"]


async def test_what_debugging_keeps_is_copied_after_the_exit() -> None:
    backend = host_backend()
    options = confidential_wcow(backend, debug_mode=True, debug_data_path=r"C:\kept")
    async with create(backend, options) as vm:
        await vm.start()
        assert await backend.files.stat(r"C:\kept") is None
    assert backend.files.listing(r"C:\kept") == ["vm1_cimscratch.vhdx", "vm1_efi.vhd"]
    assert gone(backend)


async def test_a_keepsake_that_fails_keeps_nothing_else_from_being_taken_back() -> None:
    backend = host_backend()
    options = confidential_wcow(backend, debug_mode=True, debug_data_path=r"C:\kept")
    with pytest.raises(UVMError, match="does not exist"):
        async with create(backend, options):
            backend.files.delete(r"C:\cim\cimscratch.vhdx")
    assert gone(backend)


# Closing.


async def test_closing_twice_does_nothing_the_second_time() -> None:
    async with running() as run:
        await run.vm.close()
        before = len(run.backend.request_log)
        await run.vm.close()
        assert len(run.backend.request_log) == before
        assert state(run.vm) is uvm.VMState.CLOSED


async def test_who_closes_while_another_task_does_waits_for_it() -> None:
    backend = host_backend()
    async with anyio.create_task_group() as tasks:
        with backend.faults.hold(operation="terminate") as gate:
            async with create(backend) as vm:
                await vm.start()
                tasks.start_soon(vm.close)
                (parked,) = await gate.wait()
                tasks.start_soon(_proceed_later, parked)
        assert gone(backend), "the context was left before its VM was closed"


async def _proceed_later(parked: Any) -> None:
    for _ in range(10):
        await anyio.lowlevel.checkpoint()
    parked.proceed()


async def test_what_hangs_at_the_closing_is_abandoned_and_reported() -> None:
    backend = host_backend()
    context = create(backend, wcow(), close_grace_seconds=0.2)
    with pytest.raises(UVMError, match="close vm1: terminating the VM did not finish within 0"):
        await use(context, lambda: backend.faults.hang(operation="terminate"))
    assert gone(backend), "it ends with its last handle, and what it was given is taken back"


async def test_one_hang_keeps_nothing_else_from_being_closed() -> None:
    backend = host_backend()

    def break_it() -> None:
        backend.faults.hang(operation="terminate")
        backend.faults.hang(to="revoke")

    with pytest.raises(ExceptionGroup) as caught:
        await use(create(backend, wcow(), close_grace_seconds=0.2), break_it)
    abandoned = [str(e).removeprefix("close vm1: ").split(" did not")[0] for e in caught.value.exceptions]
    assert abandoned == ["terminating the VM", "revoking access"]
    assert not backend.vms


async def test_a_terminate_whose_answer_is_lost_is_known_by_the_exit() -> None:
    backend = host_backend()
    async with create(backend) as vm:
        await vm.start()
        backend.faults.lose(operation="terminate", applied=True)
    assert vm.exit_status.exit_type == "ForcedExit"
    assert gone(backend)


async def test_a_detached_vm_goes_on_with_all_it_was_given() -> None:
    backend = host_backend()
    async with create(backend, lcow(survive_process=True)) as vm:
        await vm.start()
        await vm.scsi.attach(DISK)
        vm.detach()
    machine = backend.vms["vm1"]
    assert machine.state == "Running"
    assert machine.tree.scsi.find((0, 0)) is not None
    assert backend.access.granted(DISK) == {"vm1": "all"}
    with pytest.raises(VMExitedError):
        await vm.scsi.attach(OTHER_DISK)


async def test_a_detached_vm_that_exited_leaves_nothing() -> None:
    backend = host_backend()
    async with create(backend, lcow(survive_process=True)) as vm:
        await vm.start()
        await vm.scsi.attach(DISK)
        vm.detach()
        await vm.terminate()
    assert gone(backend)


async def test_only_a_vm_that_survives_its_process_can_be_detached() -> None:
    async with running() as run:
        with pytest.raises(VMStateError, match="survive_process"):
            run.vm.detach()


# The exit, while things are under way.


async def test_the_exit_voids_whoever_waits_and_tells_them_the_status() -> None:
    async with running() as run:
        with run.hold() as gate:
            async with anyio.create_task_group() as tasks:
                attempts = [
                    Attempt.begin(tasks, lambda mount=mount: run.vm.scsi.attach(DISK, mount=mount))  # type: ignore[misc]
                    for mount in (None, None, uvm.Mount())
                ]
                await gate.wait()
                await quiet()
                run.backend.vms["vm1"].crash()
        errors = [attempt.error for attempt in attempts]
        assert [type(e) for e in errors] == [VMExitedError] * 3
        assert [e.status for e in errors] == [run.vm.exit_status] * 3
        assert len({id(e) for e in errors}) == 3
        assert run.vm.quarantined == ()


@pytest.mark.parametrize("external", [True, False])
async def test_a_guest_request_that_the_exit_cuts_off_tells_of_the_exit(external: bool) -> None:
    """Whichever of the two is heard of first: the connection that closed, or the exit."""
    async with running(lcow(external_guest_connection=external)) as run:
        with run.hold(to="guest") as gate:
            async with anyio.create_task_group() as tasks:
                device = Attempt.begin(tasks, lambda: run.vm.scsi.attach(DISK, mount=uvm.Mount()))
                change = Attempt.begin(tasks, run.vm.update_container_memory_limits)
                await gate.wait(2)
                run.backend.vms["vm1"].crash()
        assert isinstance(device.error, VMExitedError)
        assert isinstance(change.error, VMExitedError)
        assert change.error.status == run.vm.exit_status
        assert run.vm.quarantined == ()


async def test_the_exit_completes_releases() -> None:
    async with running() as run:
        disk = await run.vm.scsi.attach(DISK)
        with run.hold() as gate:
            async with anyio.create_task_group() as tasks:
                release = Attempt.begin(tasks, disk.release)
                await gate.wait()
                await run.vm.terminate()
        assert release.done
        assert release.error is None


@pytest.mark.parametrize("concurrency", [uvm.Concurrency(), uvm.Concurrency(vpmem=1)])
async def test_operations_that_had_not_begun_at_the_exit_begin_no_more(concurrency: uvm.Concurrency) -> None:
    """Packed VPMEM, whose adds go one at a time: those that queue find their device forgotten."""
    async with running(concurrency=concurrency) as run:
        with run.hold() as gate:
            async with anyio.create_task_group() as tasks:
                attempts = [
                    Attempt.begin(tasks, lambda path=path: run.vm.vpmem.add(path, grant_access=False))  # type: ignore[misc]
                    for path in (LAYER, OTHER_LAYER, LARGE_LAYER)
                ]
                await gate.wait()
                await quiet()
                run.backend.vms["vm1"].crash()
        assert [type(attempt.error) for attempt in attempts] == [VMExitedError] * 3
        assert len(run.sent("host")) == 1


async def test_a_host_that_cannot_tell_of_the_exit_ends_the_use_of_the_vm_and_the_vm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(self: FakeSystem) -> Any:
        await anyio.lowlevel.checkpoint()
        raise HostError("wait", HResult.HCS_E_SERVICE_DISCONNECT)

    async def wait(backend: FakeBackend) -> None:
        async with create(backend) as vm:
            assert (await vm.wait()).exit_type == "Unknown"
            with pytest.raises(VMExitedError):
                await vm.start()

    backend = host_backend()
    monkeypatch.setattr(FakeSystem, "wait", broken)
    with pytest.raises(HostError, match="HCS_E_SERVICE_DISCONNECT"):
        await wait(backend)
    assert "terminate" in lifecycle(backend)
    assert gone(backend)


def times(vm: uvm.UtilityVM) -> list[datetime]:
    """When it was started and when it exited, as far as that has happened."""
    return [each for each in (vm.started_at, vm.exited_at) if each is not None]


async def test_a_vm_knows_when_it_was_started_and_when_it_exited() -> None:
    before = datetime.now(UTC)
    async with create(host_backend()) as vm:
        assert times(vm) == []
        await vm.start()
        assert times(vm) == [vm.started_at]
        await vm.terminate()
        ended = times(vm)
        assert ended == [vm.started_at, vm.exited_at]
        in_order = [before, *ended, datetime.now(UTC)]
        assert in_order == sorted(in_order)
    assert times(vm) == ended


async def test_a_vm_that_is_left_running_has_no_exit_and_one_that_never_started_no_start() -> None:
    async with create(host_backend(), lcow(survive_process=True)) as vm:
        await vm.start()
        vm.detach()
    assert times(vm) == [vm.started_at]
    async with create(host_backend()) as vm:
        pass
    assert times(vm) == [vm.exited_at]


@pytest.mark.parametrize("fails", ["refuse", "lose"])
async def test_a_start_that_fails_has_no_time(fails: str) -> None:
    backend = host_backend()
    getattr(backend.faults, fails)(to="lifecycle", operation="start")
    async with create(backend) as vm:
        with pytest.raises(uvm.UVMError):
            await vm.start()
        assert vm.started_at is None
