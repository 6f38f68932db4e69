"""The clock of examples: it jumps, in order, and tells what is stuck."""

from __future__ import annotations

import time

import anyio
import pytest

from tests.clocks import jumping_backends, run_without_waiting

anyio_backend = jumping_backends

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


async def _sleepers() -> list[tuple[str, float]]:
    began, ends = anyio.current_time(), list[tuple[str, float]]()

    async def sleep(seconds: float) -> None:
        await anyio.sleep(seconds)
        ends.append((f"{seconds:g}", round(anyio.current_time() - began, 3)))

    async with anyio.create_task_group() as tasks:
        for seconds in (1000, 0.5, 60):
            tasks.start_soon(sleep, seconds)
    return ends


@BACKENDS
def test_sleepers_wake_in_order_and_the_clock_says_how_long_they_slept(backend: str) -> None:
    assert run_without_waiting(_sleepers, backend=backend) == [("0.5", 0.5), ("60", 60), ("1000", 1000)]


async def _work() -> float:
    began = anyio.current_time()
    with anyio.move_on_after(0.01):
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        time.sleep(0.02)  # noqa: ASYNC251
        await anyio.lowlevel.checkpoint()
    return anyio.current_time() - began


@BACKENDS
def test_no_time_passes_while_something_can_go_on_however_slow_it_is(backend: str) -> None:
    assert run_without_waiting(_work, backend=backend) == 0


@BACKENDS
def test_what_waits_for_ever_is_told(backend: str) -> None:
    with pytest.raises(TimeoutError):
        run_without_waiting(anyio.sleep_forever, backend=backend)


@pytest.mark.anyio
@pytest.mark.parametrize("nth", [1, 2])
async def test_each_test_has_a_clock_of_its_own_that_jumps(nth: int) -> None:
    assert anyio.current_time() == 0
    await anyio.sleep(1000)
    assert anyio.current_time() == pytest.approx(1000)
