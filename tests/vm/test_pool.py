"""Pools of booted VMs: handed out in order, replaced, never used twice, and none is left behind."""

from __future__ import annotations

import asyncio
import itertools
import ntpath
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

import uvm
from tests.clocks import jumping_backends, run_without_waiting
from tests.vm.support import DISK, OPTIONS, Attempt, host_backend, lcow, quiet
from uvm._names import GuestOS
from uvm.backends.fake import FakeBackend, FakeVM, Latency
from uvm.errors import HostError, NotSupportedError, OptionsError, UVMError, VMExitedError, VMStateError

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

CLONES = r"C:\clones"
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "trio"])


@asynccontextmanager
async def pooled(
    backend: FakeBackend | None = None, **settings: Any
) -> AsyncIterator[tuple[uvm.Pool, FakeBackend]]:
    """A pool of two VMs by default, of which nothing may be left on the host."""
    backend = backend or host_backend()
    async with uvm.Pool(lcow(id=""), backend=backend, **{"ready": 2, **settings}) as pool:
        yield pool, backend
    assert backend.leftovers() == []


def counts(pool: uvm.Pool) -> tuple[int, int, int]:
    return pool.ready, pool.in_use, pool.starting


async def test_it_holds_vms_ready_and_starts_others_behind_those_that_are_handed_out() -> None:
    async with pooled() as (pool, backend):
        assert counts(pool) == (2, 0, 0)
        async with pool.vm() as vm:
            assert counts(pool) == (1, 1, 1)
            assert (await vm.run(["echo", "hello"])).stdout == b"hello\n"
            await quiet()
            assert counts(pool) == (2, 1, 0)
        await quiet()
        assert counts(pool) == (2, 0, 0)
        assert vm.state is uvm.VMState.CLOSED
        assert repr(pool) == "<Pool (open): 2 ready, 0 in use, 0 starting>"
        assert len(backend.vms) == 2
    assert repr(pool) == "<Pool (closed): 0 ready, 0 in use, 0 starting>"


async def test_a_vm_that_is_ready_is_handed_out_without_a_turn_of_the_loop() -> None:
    async with pooled() as (pool, _):
        acquiring = pool.acquire()
        with pytest.raises(StopIteration) as ended:
            acquiring.send(None)
        await pool.release(ended.value.value)


async def test_no_vm_is_used_twice_unless_that_was_asked_for() -> None:
    for max_uses, expected in ((1, 4), (2, 2), (4, 1)):
        async with pooled(ready=1, max_uses=max_uses) as (pool, _):
            used = []
            for _ in range(4):
                async with pool.vm() as vm:
                    used.append(vm.id)
            assert len(set(used)) == expected


async def test_a_vm_whose_body_raised_is_not_used_again() -> None:
    async with pooled(ready=1, max_uses=9) as (pool, _):
        with pytest.raises(ValueError, match="body"):
            async with pool.vm() as first:
                raise ValueError("body")
        async with pool.vm() as second:
            assert second is not first


async def test_callers_are_served_in_the_order_in_which_they_came() -> None:
    async with pooled(ready=1) as (pool, _):
        served: list[int] = []

        async def use(number: int) -> None:
            async with pool.vm():
                served.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(use, number)
                await anyio.lowlevel.checkpoint()
        assert served == [0, 1, 2, 3, 4, 5]


async def test_a_caller_who_is_cancelled_while_it_waits_loses_no_vm() -> None:
    async with pooled(ready=1) as (pool, backend):
        with backend.faults.hold(operation="start"):
            first = await pool.acquire()
            async with anyio.create_task_group() as tasks:
                waiting = [Attempt.begin(tasks, pool.acquire) for _ in range(3)]
                await quiet()
                tasks.cancel_scope.cancel()
            assert all(each.result is None for each in waiting)
        await quiet()
        assert counts(pool) == (1, 1, 0)
        await pool.release(first)


async def test_a_caller_may_be_cancelled_at_any_turn() -> None:
    async with pooled(ready=1) as (pool, _):
        for turns in range(80):
            async with anyio.create_task_group() as tasks:
                attempt = Attempt.begin(tasks, pool.acquire)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            if attempt.result is not None:
                await pool.release(attempt.result)
            assert pool.in_use == 0
        await quiet()
        assert counts(pool) == (1, 0, 0)


# What goes wrong.


async def test_a_vm_that_dies_while_it_is_ready_is_replaced_and_not_handed_out() -> None:
    async with pooled(ready=1) as (pool, backend):
        (dead,) = backend.vms
        backend.vms[dead].crash()
        await quiet()
        async with pool.vm() as vm:
            assert vm.id != dead


async def test_one_that_dies_in_use_is_not_used_again() -> None:
    async with pooled(ready=1, max_uses=9) as (pool, backend):
        async with pool.vm() as vm:
            backend.vms[vm.id].crash()
            await vm.wait()
        async with pool.vm() as other:
            assert other is not vm


async def test_starts_that_fail_are_tried_again_after_a_pause_that_grows() -> None:
    async with pooled(ready=1) as (pool, backend):
        fault = backend.faults.refuse(operation="start")
        first = await pool.acquire()
        began = [len(backend.request_log.entries(operation="create"))]
        for _ in range(5):
            await anyio.sleep(10)
            began.append(len(backend.request_log.entries(operation="create")))
        tries = [after - before for before, after in itertools.pairwise(began)]
        assert tries[0] > tries[1] >= tries[-1]
        assert pool.starting == 1
        fault.remove()
        second = await pool.acquire()
        await pool.release(first)
        await pool.release(second)


async def test_a_caller_hears_within_its_deadline_why_no_vm_starts() -> None:
    async with pooled(ready=1) as (pool, backend):
        backend.faults.refuse(operation="start")
        async with pool.vm():
            with pytest.raises(HostError, match="start") as caught, anyio.fail_after(5):
                await pool.acquire()
            assert ["no VM was ready before the deadline" in n for n in caught.value.__notes__] == [True]
            with pytest.raises(TimeoutError), anyio.fail_after(5):
                await anyio.sleep(10)


async def test_a_pool_of_which_every_start_fails_raises_why_and_is_closed() -> None:
    backend = host_backend()
    backend.faults.refuse(operation="start")
    pool = uvm.Pool(lcow(id=""), backend=backend)
    with pytest.raises(HostError, match="start"):
        await pool.start()
    assert backend.leftovers() == []
    with pytest.raises(VMStateError, match="closed"):
        await pool.acquire()


async def test_a_pool_of_which_some_start_goes_on() -> None:
    backend = host_backend()
    backend.faults.refuse(operation="start", nth=1)
    async with pooled(backend) as (pool, _):
        assert pool.ready == 1
        await anyio.sleep(10)
        assert counts(pool) == (2, 0, 0)


async def test_the_error_of_a_start_is_not_raised_once_later_ones_have_succeeded() -> None:
    backend = host_backend()
    backend.faults.refuse(operation="start", nth=1)
    async with pooled(backend, ready=2, max_size=2) as (pool, _):
        await anyio.sleep(10)
        async with pool.vm(), pool.vm():
            with pytest.raises(TimeoutError), anyio.fail_after(5):
                await pool.acquire()


async def test_one_that_is_too_old_is_replaced() -> None:
    async with pooled(ready=1, max_age_seconds=100) as (pool, backend):
        (old,) = backend.vms
        await anyio.sleep(101)
        await quiet()
        (young,) = backend.vms
        assert young != old
        assert counts(pool) == (1, 0, 0)


# Hooks.


async def test_each_vm_is_prepared_once_and_checked_before_each_use() -> None:
    done: list[str] = []

    async def prepare(vm: uvm.UtilityVM) -> None:
        await vm.scsi.attach(DISK, read_only=True)
        done.append("prepared")

    async def check(vm: uvm.UtilityVM) -> bool:
        done.append("checked")
        return (await vm.run(["true"])).exit_code == 0

    async with pooled(ready=1, max_uses=2, prepare=prepare, check=check) as (pool, _):
        assert done == ["prepared"]
        for _ in range(2):
            async with pool.vm() as vm:
                assert vm.scsi.find(DISK, read_only=True) is not None
        assert done[:3] == ["prepared", "checked", "checked"]


async def test_a_vm_that_fails_its_check_is_replaced() -> None:
    bad: list[str] = []

    async def check(vm: uvm.UtilityVM) -> bool:
        if not bad:
            bad.append(vm.id)
        if len(bad) == 2:
            raise RuntimeError("broken check")
        return vm.id not in bad

    async with pooled(ready=1, check=check) as (pool, _), pool.vm() as vm:
        assert vm.id not in bad


async def test_a_caller_who_is_cancelled_while_its_vm_is_checked_leaves_it_to_the_next() -> None:
    gate = anyio.Event()

    async def check(vm: uvm.UtilityVM) -> None:
        await gate.wait()

    async with pooled(ready=1, check=check) as (pool, backend):
        (only,) = backend.vms
        async with anyio.create_task_group() as tasks:
            Attempt.begin(tasks, pool.acquire)
            await quiet()
            tasks.cancel_scope.cancel()
        gate.set()
        await quiet()
        assert counts(pool) == (1, 0, 0)
        async with pool.vm() as vm:
            assert vm.id == only


@pytest.mark.parametrize("hook", ["prepare", "check"])
async def test_a_hook_that_does_not_end_costs_its_vm_and_no_other(hook: str) -> None:
    stuck: list[str] = []

    async def hang_once(vm: uvm.UtilityVM) -> None:
        if not stuck:
            stuck.append(vm.id)
            await anyio.sleep_forever()

    hooks: dict[str, Any] = {hook: hang_once}
    async with pooled(ready=2, hook_seconds=30, **hooks) as (pool, backend):
        if hook == "check":
            with anyio.move_on_after(1) as scope:
                await pool.acquire()
            assert scope.cancelled_caught
            # The check goes on, and is no reason to let others wait.
            with anyio.fail_after(1):
                await pool.release(await pool.acquire())
        await anyio.sleep(60)
        assert stuck[0] not in backend.vms
        assert counts(pool) == (2, 0, 0)


async def test_a_hook_that_awaits_what_was_cancelled_has_failed(anyio_backend_name: str) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("trio has no cancellation of a task")

    async def await_what_was_cancelled(vm: uvm.UtilityVM) -> None:
        task = asyncio.create_task(asyncio.sleep(0))
        task.cancel()
        await task

    with pytest.raises(UVMError, match="preparing it for its pool was cancelled"):
        await uvm.Pool(lcow(id=""), backend=host_backend(), prepare=await_what_was_cancelled).start()
    async with pooled(check=await_what_was_cancelled) as (pool, _):
        with pytest.raises(UVMError, match="the check by its pool was cancelled"), anyio.fail_after(5):
            await pool.acquire()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_what_a_hook_raises_ends_no_event_loop(kind: type[BaseException]) -> None:
    def leave(given: object) -> Any:
        raise kind

    async def leave_later(vm: uvm.UtilityVM) -> None:
        await anyio.lowlevel.checkpoint()
        leave(vm)

    backend = host_backend()
    with pytest.raises(UVMError, match=f"preparing it for its pool raised {kind.__name__}"):
        await uvm.Pool(lcow(id=""), backend=backend, prepare=leave_later).start()
    with pytest.raises(UVMError, match=f"starting a VM raised {kind.__name__}"):
        await uvm.Pool(lcow(id=""), backend=backend, amend=leave).start()
    assert backend.leftovers() == []
    async with pooled(check=leave_later) as (pool, _):
        with pytest.raises(UVMError, match=f"the check by its pool raised {kind.__name__}"):
            with anyio.fail_after(5):
                await pool.acquire()


async def test_a_hook_that_raises_keeps_the_vm_from_being_used() -> None:
    calls = 0

    async def prepare(vm: uvm.UtilityVM) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("not this one")

    async with pooled(ready=2, prepare=prepare) as (pool, _):
        assert pool.ready == 1


# Starting.


async def test_a_caller_may_come_while_the_pool_is_started() -> None:
    backend = host_backend()
    backend.faults.refuse(operation="start", nth=2)
    pool = uvm.Pool(lcow(id=""), backend=backend, ready=2)
    async with anyio.create_task_group() as tasks:
        starting = Attempt.begin(tasks, pool.start)
        while "not started" in repr(pool):
            await anyio.lowlevel.checkpoint()
        vm = await pool.acquire()
    assert starting.result is pool
    assert vm.state is uvm.VMState.RUNNING
    await pool.close()
    assert backend.leftovers() == []


async def test_a_pool_that_is_closed_while_it_starts_says_so() -> None:
    backend = host_backend()
    pool = uvm.Pool(lcow(id=""), backend=backend)
    async with anyio.create_task_group() as tasks:
        with backend.faults.hold(operation="connect") as gate:
            starting = Attempt.begin(tasks, pool.start)
            await gate.wait()
            await pool.close()
    assert isinstance(starting.error, VMStateError)
    assert backend.leftovers() == []


# Closing.


async def test_closing_terminates_those_in_use_and_fails_those_who_wait() -> None:
    backend = host_backend()
    pool = await uvm.Pool(lcow(id=""), backend=backend, ready=1, max_size=1).start()
    vm = await pool.acquire()
    async with anyio.create_task_group() as tasks:
        waiting = Attempt.begin(tasks, pool.acquire)
        await quiet()
        await pool.close()
    assert isinstance(waiting.error, VMStateError)
    assert "the pool was closed" in str(waiting.error)
    with pytest.raises(VMExitedError):
        await vm.run(["true"])
    await pool.release(vm)
    await pool.close()
    assert backend.leftovers() == []


async def test_a_cancelled_close_goes_on() -> None:
    backend = host_backend()
    pool = await uvm.Pool(lcow(id=""), backend=backend, ready=2).start()
    with backend.faults.hold(operation="terminate"), anyio.move_on_after(1) as scope:
        await pool.close()
    assert scope.cancelled_caught
    await pool.close()
    assert backend.leftovers() == []


async def test_a_start_that_is_cancelled_leaves_at_once_and_nothing_behind() -> None:
    backend = host_backend()
    with backend.faults.hold(operation="connect"), anyio.move_on_after(1) as scope:
        await uvm.Pool(lcow(id=""), backend=backend).start()
    assert scope.cancelled_caught
    await anyio.sleep(60)
    assert backend.leftovers() == []


async def test_what_fails_at_the_closing_is_raised_by_every_close() -> None:
    backend = host_backend()
    pool = await uvm.Pool(lcow(id=""), backend=backend, ready=1).start()
    async with pool.vm() as vm:
        await vm.scsi.attach(DISK)
        backend.faults.refuse(to="revoke")
        for _ in range(2):
            with pytest.raises(HostError, match="revoke"):
                await pool.close()


async def test_what_closing_a_used_vm_fails_with_is_logged_and_another_takes_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = host_backend()
    async with uvm.Pool(lcow(id=""), backend=backend, ready=1) as pool:
        async with pool.vm() as vm:
            await vm.scsi.attach(DISK)
            backend.faults.refuse(to="revoke", nth=1)
        await quiet()
        assert counts(pool) == (1, 0, 0)
    failures = [each.message for each in caplog.records if each.levelname == "ERROR"]
    assert [vm.id in failure and "revoke" in failure for failure in failures] == [True]
    assert [vm.id in left for left in backend.leftovers()] == [True]


async def test_a_vm_that_fails_before_it_is_used_is_logged_with_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = host_backend()
    backend.faults.refuse(operation="start", nth=2)
    async with uvm.Pool(lcow(id=""), backend=backend, ready=1) as pool:
        async with pool.vm():
            pass
        await anyio.sleep(60)
    [failed] = [each for each in caplog.records if "is replaced" in each.message]
    [vm_id] = [entry.call.vm for entry in backend.request_log.entries(outcome="refused")]
    assert vars(failed)["vm_id"] == vm_id


async def test_it_is_started_used_and_closed_in_any_task() -> None:
    pool = uvm.Pool(uvm.LCOWOptions(), backend="fake", ready=1)
    vms: list[uvm.UtilityVM] = []

    async def acquire() -> None:
        vms.append(await pool.acquire())

    async def release() -> None:
        await pool.release(vms[0])

    for call in (pool.start, acquire, release, pool.close):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
    assert vms[0].state is uvm.VMState.CLOSED


@LOOPS
def test_an_event_loop_that_ends_first_terminates_the_vms_and_warns_once(loop: str) -> None:
    backend = host_backend()

    async def forget() -> None:
        pool = await uvm.Pool(lcow(id=""), backend=backend).start()
        await pool.acquire()

    with pytest.warns(ResourceWarning, match="a pool of VMs was not closed") as warned:
        run_without_waiting(forget, backend=loop)
    assert len(warned) == 1
    assert backend.leftovers() == []


# Misuse.


async def test_what_is_not_of_the_pool_or_was_released_is_refused() -> None:
    async with pooled() as (pool, _):
        vm = await pool.acquire()
        await pool.release(vm)
        with pytest.raises(VMStateError, match="not in use"):
            await pool.release(vm)
        with pytest.raises(VMStateError, match="started once"):
            await pool.start()


async def test_a_pool_that_was_not_started_says_so() -> None:
    pool = uvm.Pool(lcow(id=""), backend=host_backend())
    assert repr(pool) == "<Pool (not started): 0 ready, 0 in use, 0 starting>"
    with pytest.raises(VMStateError, match="start the pool"):
        await pool.acquire()
    await pool.close()


@pytest.mark.parametrize(
    "settings",
    [{"ready": 0}, {"ready": 1.5}, {"max_size": 0}, {"max_uses": 0}, {"max_age_seconds": -1}, {"ready": "4"}],
)
def test_arguments_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(OptionsError, match=name):
        uvm.Pool(lcow(id=""), backend=host_backend(), **settings)


def test_options_with_an_id_are_refused() -> None:
    with pytest.raises(OptionsError, match="id 'vm1'"):
        uvm.Pool(lcow(), backend=host_backend())


# Clones.


def _cloning(
    os: GuestOS = "linux", *, overlays: bool = False, **settings: Any
) -> tuple[FakeBackend, uvm.Pool]:
    """A host that makes templates of all guests, and a pool of clones that is not started."""
    backend = host_backend(host=uvm.HostInfo(templates=("windows", "linux"), overlays=overlays))
    backend.files.add_directory(CLONES)
    options = OPTIONS[os](id="", scratch_directory=CLONES)
    return backend, uvm.Pool(options, backend=backend, clones=True, **{"ready": 2, **settings})


@pytest.mark.parametrize("overlays", [False, True])
@pytest.mark.parametrize("os", ["linux", "windows"])
async def test_each_vm_is_a_clone_of_one_that_was_prepared_once(os: GuestOS, overlays: bool) -> None:
    prepared: list[str] = []

    async def prepare(vm: uvm.UtilityVM) -> None:
        prepared.append(vm.id)
        await vm.scsi.attach(DISK)

    backend, pool = _cloning(os, overlays=overlays, prepare_template=prepare)
    async with pool:
        directories: set[str] = set()
        for _ in range(3):
            async with pool.vm() as vm:
                [disk] = vm.devices().disks
                assert (vm.is_clone, vm.template_id) == (True, prepared[0])
                assert disk.host_path.startswith(CLONES)
                directories.add(ntpath.dirname(disk.host_path))
                assert (await vm.run(["echo", "hello"])).stdout.strip() == b"hello"
        assert (len(prepared), len(directories)) == (1, 3)
        assert backend.vms[prepared[0]].state == "SavedAsTemplate"
    assert backend.leftovers() == []
    assert backend.files.listing(CLONES) == []
    ended = [each.call.vm for each in backend.request_log.entries(operation="terminate")]
    assert ended[-1] == prepared[0]


async def test_a_pool_of_clones_of_a_given_template_leaves_it_to_its_caller() -> None:
    backend, _ = _cloning()
    async with uvm.UtilityVM.create(lcow(template=True), backend=backend) as booted:
        await booted.start()
        options = lcow(id="", clone_of=await booted.save_template())
        async with uvm.Pool(options, backend=backend, ready=2) as pool, pool.vm() as vm:
            assert vm.template_id == booted.id
        assert booted.state is uvm.VMState.SAVED
    assert backend.leftovers() == []


@pytest.mark.parametrize(
    ("operation", "why"),
    [*((each, each) for each in ("create", "start", "pause", "save")), ("connect", "the VM has exited")],
)
async def test_a_template_that_fails_is_why_the_pool_does_not_start(operation: str, why: str) -> None:
    backend, pool = _cloning()
    backend.faults.refuse(operation=operation, nth=1)
    with pytest.raises(UVMError, match=why):
        await pool.start()
    assert backend.leftovers() == []
    with pytest.raises(VMStateError, match="closed"):
        await pool.acquire()
    await pool.close()


async def test_the_preparation_of_a_template_may_raise_and_is_limited() -> None:
    async def fail(vm: uvm.UtilityVM) -> None:
        raise ValueError("not like that")

    async def hang(vm: uvm.UtilityVM) -> None:
        await anyio.sleep_forever()

    for prepare, why in ((fail, "not like that"), (hang, "preparing it as the template of its pool")):
        backend, pool = _cloning(prepare_template=prepare)
        with pytest.raises((ValueError, UVMError), match=why):
            await pool.start()
        assert backend.leftovers() == []


@pytest.mark.parametrize("operation", ["create", "connect", "save"])
async def test_a_start_that_is_cancelled_or_closed_at_its_template_leaves_nothing(operation: str) -> None:
    backend, pool = _cloning()
    with backend.faults.hold(operation=operation), anyio.move_on_after(1) as scope:
        await pool.start()
    assert scope.cancelled_caught
    await anyio.sleep(60)
    assert backend.leftovers() == []

    backend, pool = _cloning()
    async with anyio.create_task_group() as tasks:
        with backend.faults.hold(operation=operation) as gate:
            starting = Attempt.begin(tasks, pool.start)
            await gate.wait()
            closing = Attempt.begin(tasks, pool.close)
            await quiet()
    assert isinstance(starting.error, VMStateError)
    assert closing.error is None
    assert backend.leftovers() == []


async def test_a_host_that_makes_no_templates_has_no_pool_of_clones() -> None:
    backend = host_backend(host=uvm.HostInfo(templates=("windows",)))
    with pytest.raises(NotSupportedError, match="Linux"):
        await uvm.Pool(lcow(id=""), backend=backend, clones=True).start()
    assert backend.leftovers() == []


async def test_what_does_not_go_with_clones_is_refused() -> None:
    async def prepare(vm: uvm.UtilityVM) -> None:
        pass

    backend, _ = _cloning()
    with pytest.raises(OptionsError, match="no effect without clones"):
        uvm.Pool(lcow(id=""), backend=backend, prepare_template=prepare)
    async with uvm.UtilityVM.create(lcow(template=True), backend=backend) as booted:
        await booted.start()
        of_given = lcow(id="", clone_of=await booted.save_template())
    with pytest.raises(OptionsError, match="clones of the options'"):
        uvm.Pool(of_given, backend=backend, clones=True)


# Any interleaving.


class World:
    """A pool whose callers come, leave and die, and whose VMs fail, as hypothesis chooses."""

    def __init__(self, pool: uvm.Pool, backend: FakeBackend, max_size: int, max_uses: int) -> None:
        self.pool, self.backend = pool, backend
        self.max_size, self.max_uses = max_size, max_uses
        self.held: list[uvm.UtilityVM] = []
        self.uses: dict[str, int] = {}
        self.waiting: list[anyio.CancelScope] = []

    async def caller(self, scope: anyio.CancelScope) -> None:
        with scope, suppress(VMStateError):
            vm = await self.pool.acquire()
            self.held.append(vm)
            self.uses[vm.id] = self.uses.get(vm.id, 0) + 1
        self.waiting.remove(scope)

    def come(self, tasks: Any) -> None:
        self.waiting.append(anyio.CancelScope())
        tasks.start_soon(self.caller, self.waiting[-1])

    @property
    def running(self) -> list[FakeVM]:
        return [vm for vm in self.backend.vms.values() if vm.state != "SavedAsTemplate"]

    def check(self) -> None:
        assert len({id(vm) for vm in self.held}) == len(self.held), "a VM was handed out twice"
        assert len(self.running) <= self.max_size
        assert max(self.uses.values(), default=0) <= self.max_uses
        assert self.pool.ready + self.pool.starting <= self.max_size


async def act(world: World, tasks: Any, action: str, number: int) -> None:
    if action == "come":
        world.come(tasks)
    elif action == "leave" and world.waiting:
        world.waiting[number % len(world.waiting)].cancel()
    elif action == "release" and world.held:
        await world.pool.release(world.held.pop(number % len(world.held)))
    elif action == "crash" and world.running:
        world.running[number % len(world.running)].crash()
    elif action == "fail":
        operations = ("create", "start", "connect")
        world.backend.faults.refuse(operation=operations[number % 3], nth=1)
    elif action == "pass":
        await anyio.sleep(number)
    elif action == "turn":
        for _ in range(number):
            await anyio.lowlevel.checkpoint()


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "leave", "release", "crash", "fail", "pass", "turn"]),
        st.integers(0, 20),
    ),
    max_size=40,
)


@LOOPS
@given(
    actions=ACTIONS,
    ready=st.integers(1, 3),
    max_uses=st.integers(1, 3),
    checks=st.booleans(),
    clones=st.booleans(),
    slow=st.booleans(),
    early=st.booleans(),
)
def test_whatever_happens_no_vm_is_used_twice_and_none_is_left(
    loop: str,
    actions: list[tuple[str, int]],
    ready: int,
    max_uses: int,
    checks: bool,
    clones: bool,
    slow: bool,
    early: bool,
) -> None:
    async def check(vm: uvm.UtilityVM) -> None:
        await anyio.sleep(1)

    async def play() -> None:
        latency = Latency(host_ms=300, guest_ms=200, lifecycle_ms=700) if slow else Latency()
        host = uvm.HostInfo(templates=("linux",), overlays=True)
        backend, max_size = host_backend(latency=latency, host=host), ready + 2
        pool = uvm.Pool(
            lcow(id=""),
            backend=backend,
            clones=clones,
            ready=ready,
            max_size=max_size,
            max_uses=max_uses,
            check=check if checks else None,
        )
        async with pool, anyio.create_task_group() as tasks:
            world = World(pool, backend, max_size, max_uses)
            for action, number in actions:
                await act(world, tasks, action, number)
                world.check()
            if early:
                await pool.close()
                assert backend.leftovers() == []
                return
            # Whoever waits is served once the others have released theirs.
            while world.waiting or world.held:
                while world.held:
                    await pool.release(world.held.pop())
                await anyio.sleep(100)
                world.check()
            assert pool.in_use == 0
            await anyio.sleep(200)
            assert pool.ready == ready
        assert backend.leftovers() == []

    run_without_waiting(play, backend=loop)
