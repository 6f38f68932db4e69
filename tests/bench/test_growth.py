"""The arithmetic of growth, and that each row can be measured."""

from __future__ import annotations

import anyio
import pytest

from tests.bench.growth import ROWS, figure_of

FEW = 3


def test_the_ratio_is_of_many_against_few_turn_by_turn() -> None:
    few, many = ROWS["vms"].few, ROWS["vms"].many
    took = {few: [4e-3, 2e-3, 2e-3], many: [6e-3, 3e-3, 5e-3]}

    figure = figure_of("vms", "trio", lambda name, loop, count: took[count].pop(0))

    assert figure.samples == [1.5, 1.5, 2.5]
    assert "3,000.0 us against 2,000.0 us" in figure.note
    assert "1.50 times" in figure.note


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("name", ROWS)
def test_each_row_can_be_measured(name: str, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.bench.growth._TIMES", 2)
    monkeypatch.setattr("tests.bench.growth._REQUESTS", 2)

    assert anyio.run(ROWS[name].measure, FEW, backend=loop) >= 0
