"""A paused VM: no limit on its guest runs out, and every one goes on with it."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from tests.clocks import jumping_backends
from tests.vm.support import Attempt, Running, lcow, quiet, running, wcow
from uvm._guest.timeouts import GuestTimeouts
from uvm.errors import BridgeClosedError, HostError, VMExitedError
from uvm.options import LCOWOptions, WCOWOptions

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends

SHORT = GuestTimeouts(rpc_seconds=5, container_seconds=5, vm_exit_seconds=1)
LONG_SECONDS = 1000


@pytest.mark.parametrize("options", [lcow(), wcow()])
async def test_what_is_asked_of_a_paused_vm_is_answered_when_it_goes_on(
    options: LCOWOptions | WCOWOptions,
) -> None:
    async with running(options, timeouts=SHORT) as run, anyio.create_task_group() as tasks:
        before = Attempt.begin(tasks, partial(run.vm.run, ["echo", "hello"]))
        await run.vm.pause()
        during = Attempt.begin(tasks, partial(run.vm.run, ["echo", "hello"]))
        await anyio.sleep(LONG_SECONDS)
        assert not during.done
        await run.vm.resume()
        await quiet()
        assert [each.result.stdout.strip() for each in (before, during)] == [b"hello"] * 2


async def test_a_guest_that_does_not_answer_is_given_up_once_it_goes_on() -> None:
    async with running(timeouts=SHORT) as run, anyio.create_task_group() as tasks:
        with run.backend.faults.hold(to="guest"):
            asking = Attempt.begin(tasks, partial(run.vm.run, ["echo"]))
            await quiet()
            await run.vm.pause()
            await anyio.sleep(LONG_SECONDS)
            assert not asking.done
            await run.vm.resume()
            await anyio.sleep(SHORT.rpc_seconds + SHORT.vm_exit_seconds + 1)
            assert isinstance(asking.error, BridgeClosedError)


async def test_a_pause_that_is_refused_stops_no_limit() -> None:
    async with running(timeouts=SHORT) as run:
        run.backend.faults.refuse(operation="pause")
        with pytest.raises(HostError):
            await run.vm.pause()
        await no_answer_is_noticed(run)


async def test_a_second_pause_that_is_refused_lets_no_limit_go_on() -> None:
    async with running(timeouts=SHORT) as run, anyio.create_task_group() as tasks:
        await run.vm.pause()
        with pytest.raises(HostError):
            await run.vm.pause()
        asking = Attempt.begin(tasks, partial(run.vm.run, ["echo"]))
        await anyio.sleep(LONG_SECONDS)
        assert not asking.done
        await run.vm.resume()


async def test_the_exit_of_a_paused_vm_ends_what_is_asked() -> None:
    async with running(timeouts=SHORT) as run, anyio.create_task_group() as tasks:
        await run.vm.pause()
        asking = Attempt.begin(tasks, partial(run.vm.run, ["echo"]))
        await quiet()
        await run.vm.terminate()
        await quiet()
        assert isinstance(asking.error, VMExitedError)


async def no_answer_is_noticed(run: Running) -> None:
    with run.backend.faults.hold(to="guest"), pytest.raises(BridgeClosedError):
        await run.vm.run(["echo"])
