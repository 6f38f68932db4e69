"""VMs that are bound to no task: any task may use and close them, and none is left behind."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskStatus

import uvm
from tests.clocks import jumping_backends, run_without_waiting
from tests.vm.support import DISK, OTHER_DISK, Attempt, host_backend, lcow, quiet, wcow
from uvm._vm.keeper import Keeper
from uvm.backends.fake import FakeBackend
from uvm.errors import HostError, OptionsError, UVMError, VMExitedError, VMStateError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

LOOPS = pytest.mark.parametrize("loop", ["asyncio", "trio"])


async def in_tasks(*calls: Any) -> None:
    """Make each call in a task of its own, one after the other."""
    for call in calls:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)


async def test_a_vm_is_started_used_and_closed_in_three_tasks() -> None:
    backend = host_backend()
    vms: list[uvm.UtilityVM] = []

    async def set_up() -> None:
        vms.append(await uvm.start_vm(lcow(), backend=backend))

    async def use() -> None:
        assert (await vms[0].run(["echo", "hello"])).stdout == b"hello\n"
        await vms[0].scsi.attach(DISK)

    async def tear_down() -> None:
        await vms[0].close()
        assert backend.leftovers() == []

    await in_tasks(set_up, use, tear_down)
    assert vms[0].state is uvm.VMState.CLOSED
    await vms[0].close()


async def test_it_may_be_entered_and_left_in_different_tasks() -> None:
    backend = host_backend()
    opening = uvm.start_vm(wcow(), backend=backend)

    async def enter() -> None:
        assert (await opening.__aenter__()).state is uvm.VMState.RUNNING

    async def leave() -> None:
        await opening.__aexit__(None, None, None)
        assert backend.leftovers() == []

    await in_tasks(enter, leave)


async def test_a_vm_is_a_context_that_closes_it_and_notes_what_that_failed_with() -> None:
    backend = host_backend()

    async def use() -> None:
        async with uvm.start_vm(lcow(), backend=backend) as vm:
            await vm.scsi.attach(DISK)
            backend.faults.refuse(to="revoke")
            raise ValueError("body")

    with pytest.raises(ValueError, match="body") as caught:
        await use()
    assert ["closing the VM failed" in note for note in caught.value.__notes__] == [True]


async def test_what_fails_at_the_closing_is_raised_by_every_close() -> None:
    backend = host_backend()
    vm = await uvm.start_vm(lcow(), backend=backend)
    await vm.scsi.attach(DISK)
    backend.faults.refuse(to="revoke")
    for _ in range(2):
        with pytest.raises(HostError, match="revoke"):
            await vm.close()
    with pytest.raises(VMExitedError) as caught:
        await vm.run(["true"])
    assert isinstance(caught.value.__cause__, HostError)


@pytest.mark.parametrize("operation", ["create", "start", "connect"])
async def test_what_a_start_fails_with_is_raised_once_nothing_is_left(operation: str) -> None:
    backend = host_backend()
    backend.faults.refuse(operation=operation)
    with pytest.raises(HostError if operation != "connect" else UVMError):
        await uvm.start_vm(lcow(), backend=backend, timeouts=uvm.GuestTimeouts(boot_seconds=1))
    assert backend.leftovers() == []


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_what_ends_a_program_is_raised_by_the_start_and_not_by_the_keeper(
    kind: type[BaseException],
) -> None:
    def leave(plan: uvm.CreationPlan) -> uvm.CreationPlan:
        raise kind

    backend = host_backend()
    with pytest.raises(kind):
        await uvm.start_vm(lcow(), backend=backend, amend=leave)
    assert backend.leftovers() == []


@pytest.mark.parametrize("operation", ["enumerate", "create", "start", "connect"])
async def test_a_cancelled_start_leaves_at_once_and_the_keeper_undoes_it(operation: str) -> None:
    backend = host_backend()
    with backend.faults.hold(operation=operation) as gate:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: uvm.start_vm(lcow(), backend=backend))
            await gate.wait()
            tasks.cancel_scope.cancel()
        assert tasks.cancel_scope.cancel_called
    await anyio.sleep(60)
    assert backend.leftovers() == []


async def test_what_undoing_fails_with_for_a_caller_who_was_cancelled_is_logged_with_its_vm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise HostError("revoke", HResult.E_FAIL)

    @asynccontextmanager
    async def failing() -> AsyncIterator[None]:
        await fail_when_cancelled()
        yield

    keeper = Keeper("the VM vm1", failing(), lambda _: anyio.sleep_forever(), vm_id="vm1")
    with anyio.move_on_after(1):
        await keeper.open()
    with pytest.raises(HostError):
        await keeper.wait_ended()
    [record] = caplog.records
    assert vars(record)["vm_id"] == "vm1"
    assert "starting the VM vm1, for a caller who was cancelled: revoke: E_FAIL" in record.message


@pytest.mark.parametrize("id", ["vm1", ""])
async def test_a_keeper_is_named_after_its_vm(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Keeper[Any]] = []

    def keep(*given: Any) -> Keeper[Any]:
        kept.append(Keeper(*given))
        return kept[-1]

    monkeypatch.setattr("uvm._vm.keeper.Keeper", keep)
    backend = host_backend()
    with backend.faults.hold(operation="connect") as gate:
        async with anyio.create_task_group() as tasks:
            starting = Attempt.begin(tasks, lambda: uvm.start_vm(lcow(id=id), backend=backend))
            await gate.wait()
            [vm_id] = backend.vms
            [keeper] = kept
            assert (keeper.vm_id, keeper.name) == (vm_id, f"the VM {vm_id}")
            gate.close()
        await starting.result.close()


async def test_a_start_whose_task_is_cancelled_at_any_step_leaves_nothing(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("trio has no cancellation of a task")
    steps, cancelled = 0, True
    while cancelled:
        backend = host_backend()
        task = asyncio.create_task(uvm.start_vm(lcow(), backend=backend))
        for _ in range(steps):
            await asyncio.sleep(0)
        cancelled = task.cancel()
        await asyncio.wait([task])
        if not cancelled:
            await (await task).close()
        await anyio.sleep(60)
        assert backend.leftovers() == []
        steps += 1
    assert steps > 10


async def test_a_start_that_is_cancelled_at_any_step_leaves_nothing() -> None:
    steps, cancelled = 0, True
    while cancelled:
        backend = host_backend()
        async with anyio.create_task_group() as tasks:
            starting = Attempt.begin(tasks, lambda: uvm.start_vm(lcow(), backend=backend))  # noqa: B023
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        cancelled = starting.result is None
        if not cancelled:
            await starting.result.close()
        await anyio.sleep(60)
        assert backend.leftovers() == []
        steps += 1
    assert steps > 10


async def test_a_cancelled_close_goes_on() -> None:
    backend = host_backend()
    vm = await uvm.start_vm(lcow(), backend=backend)
    with backend.faults.hold(operation="terminate"), anyio.move_on_after(1) as scope:
        await vm.close()
    assert scope.cancelled_caught
    await vm.close()
    assert backend.leftovers() == []


@pytest.mark.parametrize("kind", ["vm", "pool"])
async def test_a_task_that_is_cancelled_in_an_async_with_does_not_wait_for_the_closing(
    kind: str, anyio_backend_name: str
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("trio has no cancellation of a task")
    backend, entered = host_backend(), asyncio.Event()

    async def use() -> None:
        if kind == "vm":
            context: Any = uvm.start_vm(lcow(), backend=backend)
        else:
            context = uvm.Pool(lcow(id=""), backend=backend, ready=2)
        async with context:
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await entered.wait()
    with backend.faults.hold(operation="terminate"):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert task.cancelled()
        assert backend.leftovers() != []
    await quiet()
    assert backend.leftovers() == []


@pytest.mark.parametrize("step", ["terminate", "revoke"])
@LOOPS
def test_an_event_loop_that_ends_while_a_vm_is_closed_finishes_that_and_does_not_warn(
    loop: str, step: str, recwarn: pytest.WarningsRecorder
) -> None:
    backend = host_backend()

    async def leave() -> None:
        vm = await uvm.start_vm(lcow(), backend=backend)
        pool = await uvm.Pool(lcow(id=""), backend=backend, ready=1).start()
        await vm.scsi.attach(DISK)
        await vm.scsi.attach(OTHER_DISK)
        backend.faults.delay(1, operation=step)
        for each in (vm, pool):
            with anyio.move_on_after(0.1):
                await each.close()

    run_without_waiting(leave, backend=loop)
    assert not recwarn.list
    assert backend.leftovers() == []


async def test_a_vm_that_exits_stays_until_it_is_closed() -> None:
    backend = host_backend()
    vm = await uvm.start_vm(lcow(), backend=backend)
    await vm.terminate()
    await quiet()
    assert backend.leftovers() == ["VM vm1 (Stopped)"]
    await vm.close()
    assert backend.leftovers() == []


@LOOPS
def test_an_event_loop_that_ends_first_terminates_the_vm_and_warns(loop: str) -> None:
    backend = host_backend()

    async def forget() -> None:
        vm = await uvm.start_vm(lcow(), backend=backend)
        await vm.scsi.attach(DISK)

    with pytest.warns(ResourceWarning, match=r"the VM vm1 was not closed .* `close\(\)`"):
        run_without_waiting(forget, backend=loop)
    assert backend.leftovers() == []


@LOOPS
def test_an_event_loop_that_ends_first_waits_no_longer_than_the_grace(loop: str) -> None:
    backend = host_backend()

    async def forget() -> None:
        await uvm.start_vm(lcow(), backend=backend, close_grace_seconds=0.5)
        backend.faults.hang(operation="terminate")

    with pytest.warns(ResourceWarning, match="vm1"):
        run_without_waiting(forget, backend=loop)
    assert backend.leftovers() == []


def test_a_loop_that_runs_again_and_again_keeps_its_vm_as_the_fixtures_of_a_test_do() -> None:
    backend = host_backend()
    with asyncio.Runner() as runner:
        vm = runner.run(_await(uvm.start_vm(lcow(), backend=backend)))
        assert runner.run(vm.run(["echo", "hello"])).stdout == b"hello\n"
        runner.run(vm.close())
    assert backend.leftovers() == []


def test_another_loop_hears_that_the_first_one_ended() -> None:
    backend, vms = host_backend(), []

    async def forget() -> None:
        vms.append(await uvm.start_vm(lcow(), backend=backend))

    async def use() -> None:
        with pytest.raises(VMExitedError) as caught:
            await vms[0].run(["true"])
        assert isinstance(caught.value.__cause__, VMStateError)
        with pytest.raises(VMStateError, match="before its event loop ended"):
            await vms[0].close()

    with pytest.warns(ResourceWarning, match="vm1"):
        asyncio.run(forget())
    asyncio.run(use())


async def _await(opening: Any) -> Any:
    return await opening


@LOOPS
def test_a_vm_that_was_closed_warns_of_nothing(loop: str, recwarn: pytest.WarningsRecorder) -> None:
    async def use() -> None:
        vm = await uvm.start_vm(lcow(), backend=host_backend())
        await vm.close()

    run_without_waiting(use, backend=loop)
    assert not recwarn.list


async def test_a_vm_that_another_task_leaves_says_so_and_is_closed() -> None:
    backend, left = host_backend(), anyio.Event()
    context = uvm.UtilityVM.create(lcow(), backend=backend)

    async def enter(*, task_status: TaskStatus[None]) -> None:
        await context.__aenter__()
        task_status.started()
        await left.wait()

    async def leave() -> None:
        with pytest.raises(VMStateError, match=r"left in another.*the VM was closed.*uvm\.start_vm"):
            await context.__aexit__(None, None, None)
        assert backend.leftovers() == []
        raise Left

    # The task that entered it cannot go on: its task group stays open.
    async def both() -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(enter)
            tasks.start_soon(leave)

    with pytest.raises(BaseExceptionGroup) as caught:
        await both()
    assert caught.value.subgroup(Left) is not None


async def test_a_task_that_has_ended_may_have_entered_it(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("trio ends a task that left a nursery open")
    backend = host_backend()
    context = uvm.UtilityVM.create(lcow(), backend=backend)
    await asyncio.create_task(context.__aenter__())
    with pytest.raises(VMStateError, match="left in another"):
        await asyncio.create_task(context.__aexit__(None, None, None))
    assert backend.leftovers() == []


class Left(Exception):
    """The VM was left in another task, as it was to be."""


# Backends.


async def test_a_backend_may_be_left_in_another_task() -> None:
    backend = FakeBackend()

    async def enter() -> None:
        await backend.__aenter__()

    async def leave() -> None:
        await backend.__aexit__(None, None, None)

    await in_tasks(enter, leave)


class Counted(FakeBackend):
    """Says how many are open."""

    entered = 0

    async def __aenter__(self) -> Counted:
        Counted.entered += 1
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self.leftovers() == []
        Counted.entered -= 1


async def test_a_backend_by_name_is_opened_for_the_vm_and_closed_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("uvm.backends.fake.FakeBackend", Counted)
    vm = await uvm.start_vm(uvm.LCOWOptions(), backend="fake")
    assert Counted.entered == 1
    await vm.close()
    assert Counted.entered == 0
    async with uvm.UtilityVM.create(uvm.LCOWOptions(), backend="fake") as other:
        await other.start()
        assert Counted.entered == 1
    assert Counted.entered == 0


async def test_a_backend_of_no_such_name_is_refused() -> None:
    with pytest.raises(OptionsError, match="no backend is called 'fakes'"):
        await uvm.start_vm(lcow(), backend="fakes")


# The library's only tasks that are in no group.


def bare_tasks(path: Path) -> list[str]:
    """The calls of a module that start a task outside of a task group."""
    names = {"create_task", "ensure_future", "spawn_system_task"}
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    found = [f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls]
    return [name for name in found if name in names]


def test_only_the_keeper_starts_tasks_outside_of_a_group() -> None:
    root = Path(uvm.__file__).parent
    found = {str(p.relative_to(root)): bare for p in root.rglob("*.py") if (bare := bare_tasks(p))}
    assert {name: sorted(bare) for name, bare in found.items()} == {
        str(Path("_vm", "keeper.py")): ["create_task", "spawn_system_task"]
    }
