"""The clock of a guest: time passes only while its VM runs."""

from __future__ import annotations

import anyio
import pytest

from tests.clocks import jumping_backends
from uvm._guest.clock import GuestClock

pytestmark = pytest.mark.anyio
anyio_backend = jumping_backends


async def test_a_limit_takes_as_long_as_it_says_and_the_pauses_in_it() -> None:
    clock, began = GuestClock(), anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.sleep, 10)
        await anyio.sleep(4)
        for _ in range(2):
            clock.pause()
            clock.pause()
            await anyio.sleep(100)
            clock.resume()
            clock.resume()
            await anyio.sleep(1)
    assert anyio.current_time() - began == pytest.approx(10 + 2 * 100)


async def test_a_limit_that_begins_in_a_pause_counts_from_its_end() -> None:
    clock = GuestClock()
    clock.pause()
    with clock.move_on_after(10) as limit:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 100)
        clock.resume()
        began = anyio.current_time()
        await anyio.sleep_forever()
    assert limit.scope.cancelled_caught
    assert anyio.current_time() - began == pytest.approx(10)


async def test_a_deadline_that_is_moved_counts_from_then() -> None:
    clock, began = GuestClock(), anyio.current_time()
    with clock.limit(clock.now() + 10) as limit:
        clock.pause()
        limit.move(clock.now() + 20)
        clock.resume()
        await anyio.sleep_forever()
    assert anyio.current_time() - began == pytest.approx(20)


async def test_now_does_not_depend_on_the_pauses() -> None:
    clock = GuestClock()
    began = clock.now()
    clock.pause()
    await anyio.sleep(100)
    assert clock.now() == pytest.approx(began)
    clock.resume()
    await anyio.sleep(5)
    assert clock.now() - began == pytest.approx(5)
