"""A few rounds of the soak, by their number; ``make soak`` plays them for as long as it is told."""

from __future__ import annotations

import logging

import pytest

from tests.soak.engine import Tally, play_round

pytestmark = pytest.mark.anyio

SEEDS = range(1, 13)


async def played(seeds: range) -> Tally:
    tally = Tally()
    for seed in seeds:
        await play_round(seed, tally)
    return tally


@pytest.fixture(autouse=True)
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="uvm")


async def test_random_operations_with_faults_leave_nothing_behind() -> None:
    tally = await played(SEEDS)
    assert tally.rounds == len(SEEDS)
    outcomes = {outcome for _, outcome in tally.operations}
    assert outcomes == {"ok", "refused", "denied", "unknown", "cancelled", "exited"}
    assert {"ok", "refused", "lost"} <= set(tally.calls)


async def test_a_seed_gives_the_same_calls_each_time() -> None:
    first, again, other = [(await played(range(seed, seed + 1))).digest for seed in (3, 3, 4)]
    assert first == again
    assert first != other
