"""What changes a VM is done by the VM's own tasks: a caller only waits, and may be cancelled at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import uvm
from tests.clocks import jumping_backends
from tests.descriptors import collect
from tests.vm.support import DISK, Attempt, host_backend, lcow, quiet, running, wcow
from uvm.backends.fake import FakeBackend
from uvm.errors import HostError, UVMError, VMExitedError, VMStateError

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

EFFECTS: dict[str, tuple[str, Callable[[uvm.UtilityVM], Any]]] = {
    "terminate": ("terminate", lambda vm: vm.terminate()),
    "shutdown": ("shutdown", lambda vm: vm.shutdown()),
    "pause": ("pause", lambda vm: vm.pause()),
    "resume": ("resume", lambda vm: vm.resume()),
    "crash": ("crash", lambda vm: vm.crash()),
    "save": ("save", lambda vm: vm.save("")),
    "update_memory": ("modify", lambda vm: vm.update_memory(memory_mb=64)),
    "guest_request": ("modify", lambda vm: vm.update_container_memory_limits()),
    "close": ("terminate", lambda vm: vm.close()),
}


async def cancelled_after(seconds: float, call: Callable[[], Any]) -> bool:
    """Cancel a call after so long; return whether it ended then, and not later."""
    until = anyio.current_time() + seconds
    with anyio.CancelScope(deadline=until) as scope:
        await call()
    return scope.cancelled_caught and anyio.current_time() == until


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("external", [True, False], ids=["our connection", "through HCS"])
async def test_a_caller_whose_host_never_answers_is_cancelled_at_once(name: str, external: bool) -> None:
    operation, call = EFFECTS[name]
    options = lcow(external_guest_connection=external)
    async with running(options) as run:
        fault = run.backend.faults.hang(operation=operation)
        if name == "shutdown" and external:
            run.backend.faults.hang(to="guest", operation="shutdown graceful")
        assert await cancelled_after(1, lambda: call(run.vm))
        fault.remove()
        if name == "close":
            # It goes on, and the host that never answers is abandoned after the grace period.
            with pytest.raises(UVMError, match="terminating the VM did not finish"):
                await run.vm.close()


async def test_a_start_whose_host_never_answers_is_cancelled_at_once_and_the_vm_terminated() -> None:
    backend = host_backend()
    for operation in ("start", "connect"):
        with backend.faults.hold(operation=operation):
            async with uvm.UtilityVM.create(lcow(), backend=backend) as vm:
                assert await cancelled_after(1, vm.start)
                assert (await vm.wait()).exit_type == "ForcedExit"
        assert backend.leftovers() == []


async def test_a_start_that_fails_is_waited_for_no_longer_than_its_caller_wants() -> None:
    backend = host_backend()
    backend.faults.refuse(operation="start")
    backend.faults.hang(operation="terminate", nth=1)
    async with uvm.UtilityVM.create(lcow(), backend=backend) as vm:
        assert await cancelled_after(1, vm.start)
    assert backend.leftovers() == []


@pytest.mark.parametrize("name", ["pause", "resume"])
async def test_what_a_cancelled_caller_asked_for_is_done_and_noted(name: str) -> None:
    states = {"pause": uvm.VMState.PAUSED, "resume": uvm.VMState.RUNNING}
    async with running() as run:
        if name == "resume":
            await run.vm.pause()
        with run.backend.faults.hold(operation=name):
            assert await cancelled_after(1, getattr(run.vm, name))
            assert run.vm.state is not states[name]
        await quiet()
        assert run.vm.state is states[name]
        assert run.vm._startup.clock.paused is (name == "pause")


async def test_what_fails_for_a_cancelled_caller_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as run:
        with run.backend.faults.hold(operation="pause") as gate:
            assert await cancelled_after(1, run.vm.pause)
            gate.pending[0].refuse()
            await quiet()
        assert run.vm.state is uvm.VMState.RUNNING
        assert not run.vm._startup.clock.paused
    assert "vm1: pause, for a caller who was cancelled: pause: E_FAIL" in caplog.text


async def test_a_terminate_of_a_cancelled_caller_goes_on() -> None:
    async with running() as run:
        with run.backend.faults.hold(operation="terminate"):
            assert await cancelled_after(1, run.vm.terminate)
            assert run.vm.exit_status is None
        assert (await run.vm.wait()).exit_type == "ForcedExit"


# Closing.


async def test_a_cancelled_close_goes_on_and_the_next_one_waits_for_it() -> None:
    async with running() as run:
        await run.vm.scsi.attach(DISK)
        with run.backend.faults.hold(operation="terminate"):
            assert await cancelled_after(1, run.vm.close)
            assert run.vm.state is uvm.VMState.CLOSED
        await run.vm.close()
        assert run.backend.leftovers() == []


async def test_a_vm_that_is_being_closed_begins_nothing_more() -> None:
    async with running() as run:
        with run.backend.faults.hold(operation="terminate") as gate:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run.vm.close)
                await gate.wait()
                before = len(run.backend.request_log)
                for call in (
                    lambda: run.vm.run(["true"]),
                    lambda: run.vm.scsi.attach(DISK),
                    run.vm.stats,
                    run.vm.pause,
                    run.vm.properties,
                    lambda: run.vm.update_memory(memory_mb=64),
                ):
                    with pytest.raises(VMExitedError):
                        await call()
                assert len(run.backend.request_log) == before
                gate.close()


async def test_each_close_raises_what_the_closing_failed_with_and_leaving_does_not_raise_it_again() -> None:
    backend = host_backend()
    async with uvm.UtilityVM.create(lcow(), backend=backend) as vm:
        await vm.start()
        await vm.scsi.attach(DISK)
        backend.faults.refuse(to="revoke")
        async with anyio.create_task_group() as tasks:
            closing = [Attempt.begin(tasks, vm.close) for _ in range(2)]
        errors = [each.error for each in closing]
        assert [type(error) for error in errors] == [HostError] * 2
        assert errors[0] is not errors[1]


async def test_what_a_cancelled_close_fails_with_is_raised_by_leaving() -> None:
    backend = host_backend()

    async def use() -> None:
        async with uvm.UtilityVM.create(lcow(), backend=backend) as vm:
            await vm.start()
            await vm.scsi.attach(DISK)
            backend.faults.refuse(to="revoke")
            with backend.faults.hold(operation="terminate"):
                assert await cancelled_after(1, vm.close)

    with pytest.raises(HostError, match="revoke"):
        await use()


async def test_what_the_closing_fails_with_is_raised_also_if_leaving_is_cancelled() -> None:
    backend = host_backend()

    async def use() -> None:
        async with uvm.UtilityVM.create(lcow(), backend=backend) as vm:
            await vm.start()
            await vm.scsi.attach(DISK)
            backend.faults.refuse(to="revoke")

    with backend.faults.hold(operation="terminate") as gate:
        async with anyio.create_task_group() as tasks:
            leaving = Attempt.begin(tasks, use)
            await gate.wait()
            tasks.cancel_scope.cancel()
            gate.close()
    assert isinstance(leaving.error, HostError)


# A coroutine whose task is cancelled before its first step is never awaited.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_event_loop_that_cancels_every_task_at_any_step_closes_the_vm(
    anyio_backend_name: str,
) -> None:
    if anyio_backend_name != "asyncio":
        pytest.skip("trio has no cancellation of a task")
    backends = [await _left_by_all_tasks_being_cancelled(turns) for turns in range(0, 120, 10)]
    collect()
    assert [backend.leftovers() for backend in backends] == [[]] * len(backends)


async def _left_by_all_tasks_being_cancelled(turns: int) -> FakeBackend:
    backend, others = host_backend(), asyncio.all_tasks()

    async def use() -> None:
        async with uvm.UtilityVM.create(wcow(), backend=backend) as vm:
            await vm.start()
            await vm.scsi.attach(DISK)
            await anyio.sleep_forever()

    task = asyncio.create_task(use())
    for _ in range(turns):
        await asyncio.sleep(0)
    every = asyncio.all_tasks() - others
    for each in every:
        each.cancel()
    await asyncio.gather(*every, return_exceptions=True)
    assert task.cancelled()
    return backend


async def test_the_log_says_once_each_that_it_was_created_started_exited_and_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "uvm")
    async with running() as run:
        await run.vm.close()
    said = [r.message.split(": ")[1] for r in caplog.records if r.name == "uvm" and "vm1: " in r.message]
    assert said == ["created", "started", "exited", "closed"]


# Other event loops.


async def test_another_event_loop_of_the_same_thread_or_another_is_refused_by_name() -> None:
    async with running() as run:
        vm = run.vm
        lease = await vm.scsi.attach(DISK)
        process = await vm.open_process(["cat"])
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        container = await vm.create_container("c", {"process": {"args": ["cat"]}, "linux": {}})
        calls: list[Callable[[], Any]] = [
            vm.start,
            vm.wait,
            vm.terminate,
            vm.shutdown,
            vm.pause,
            vm.close,
            vm.stats,
            vm.properties,
            lambda: vm.save(""),
            lambda: vm.run(["true"]),
            lambda: vm.open_process(["true"]),
            lambda: vm.scsi.attach(DISK),
            lambda: vm.share("C:\\shared", "/mnt"),
            lease.release,
            lease.gone,
            process.wait,
            process.kill,
            process.aclose,
            process.communicate,
            lambda: stdin.send(b"x"),
            stdout.receive,
            process.stream().__anext__,
            container.terminate,
            container.wait,
            container.open_init,
            container.delete_state,
            container.aclose,
        ]

        async def elsewhere() -> None:
            for call in calls:
                with anyio.fail_after(1), pytest.raises(VMStateError, match="belongs to an event loop"):
                    await call()

        def run_elsewhere() -> None:
            anyio.run(elsewhere, backend="asyncio")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stdout.receive)
            await quiet()
            await anyio.to_thread.run_sync(run_elsewhere)
            tasks.cancel_scope.cancel()
        assert not lease.released
        assert vm.state is uvm.VMState.RUNNING
        assert process.exit_code is None
        assert container.exit is None
        await lease.release()
        await process.kill()
        await process.aclose()
        await container.aclose()
