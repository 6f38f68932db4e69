"""What an idle VM costs: tasks, and objects that the garbage collector looks at. Neither depends on the time.

The bounds are what CPython 3.11 takes, and a little more for other versions of it, of anyio and of trio.
"""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Final

import anyio
import anyio.lowlevel
import pytest
import trio

from tests.descriptors import collect
from uvm import FakeBackend, LCOWOptions, UtilityVM, start_vm
from uvm._home import trio_lowlevel

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _frozen() -> None:
    """Have what was there before left out when objects are counted, as they are again and again."""
    collect()


_VMS: Final = 20
#: The standing task, the reader of the guest's log, and that of the connection to the guest.
_TASKS: Final = 3
#: Two in a hundred more than were counted: the interpreter makes some of its own meanwhile.
_OBJECTS: Final = {"asyncio": 323, "trio": 368}


def tasks_alive() -> int:
    if trio_lowlevel() is None:
        return len(asyncio.all_tasks())
    return trio.lowlevel.current_statistics().tasks_living


async def idle() -> None:
    """Have all that was begun come to its end."""
    await anyio.wait_all_tasks_blocked()


async def test_an_idle_vm_has_three_tasks() -> None:
    async with FakeBackend() as backend, AsyncExitStack() as vms:
        before = tasks_alive()
        for _ in range(_VMS):
            vm = await vms.enter_async_context(UtilityVM.create(LCOWOptions(), backend=backend))
            await vm.start()
        await idle()
        assert tasks_alive() - before == _TASKS * _VMS


async def test_a_vm_that_is_bound_to_no_task_has_one_more_that_keeps_it() -> None:
    async with FakeBackend() as backend, AsyncExitStack() as vms:
        before = tasks_alive()
        for _ in range(_VMS):
            await vms.enter_async_context(await start_vm(LCOWOptions(), backend=backend))
        await idle()
        assert tasks_alive() - before == (_TASKS + 1) * _VMS


async def test_a_vm_that_was_closed_has_no_task() -> None:
    async with FakeBackend() as backend:
        before = tasks_alive()
        async with UtilityVM.create(LCOWOptions(), backend=backend) as vm:
            await vm.start()
        assert tasks_alive() == before


async def test_the_collector_looks_at_few_objects_of_an_idle_vm(anyio_backend_name: str) -> None:
    async with FakeBackend() as backend, AsyncExitStack() as vms:

        async def hold(count: int) -> int:
            """Hold so many more, and count all objects that are tracked."""
            for _ in range(count):
                vm = await vms.enter_async_context(UtilityVM.create(LCOWOptions(), backend=backend))
                await vm.start()
            await idle()
            gc.collect()
            return len(gc.get_objects())

        # The first makes what is made once.
        before = await hold(1)
        each = (await hold(_VMS) - before) / _VMS
        assert each <= _OBJECTS[anyio_backend_name]


async def test_a_vm_that_was_closed_leaves_no_object_but_in_the_request_log() -> None:
    async with FakeBackend(request_log_entries=1) as backend:

        async def live() -> int:
            async with UtilityVM.create(LCOWOptions(), backend=backend) as vm:
                await vm.start()
            await idle()
            gc.collect()
            return len(gc.get_objects())

        counts = [await live() for _ in range(3 + 2 * _VMS)][2::_VMS]
        # What others make once may fall into one of the two, what a VM leaves is in both.
        assert min(after - before for before, after in pairwise(counts)) < _VMS
