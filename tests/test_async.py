"""What is awaited or entered."""

from __future__ import annotations

from collections import deque
from typing import Any, Self

import pytest

from uvm._async import Opening, opens
from uvm.schema.devices import VirtualSmbShareOptions

pytestmark = pytest.mark.anyio


class Door:
    """Counts how often it is opened and closed."""

    opened = closed = 0

    async def __aenter__(self) -> Self:
        self.opened += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.closed += 1


@opens
async def door(made: deque[Door]) -> Door:
    made.append(Door())
    return made[-1]


async def test_awaited_it_gives_the_thing_and_leaves_it_open() -> None:
    made: deque[Door] = deque()
    assert await door(made) is made[0]
    assert (made[0].opened, made[0].closed) == (0, 0)


async def test_entered_it_gives_the_thing_and_closes_it() -> None:
    made: deque[Door] = deque()
    async with door(made) as entered:
        assert entered is made[0]
        assert (entered.opened, entered.closed) == (1, 0)
    assert (entered.opened, entered.closed) == (1, 1)


async def test_nothing_happens_before_it_is_awaited() -> None:
    made: deque[Door] = deque()
    opening = door(made)
    assert not made
    await opening
    assert len(made) == 1


@pytest.mark.parametrize("first", ["awaited", "entered"])
@pytest.mark.parametrize("second", ["awaited", "entered"])
async def test_it_is_awaited_or_entered_once(first: str, second: str) -> None:
    async def use(opening: Opening[Door], how: str) -> None:
        if how == "awaited":
            await opening
            return
        async with opening:
            pass

    made: deque[Door] = deque()
    opening = door(made)
    await use(opening, first)
    with pytest.raises(RuntimeError, match="already awaited"):
        await use(opening, second)
    assert len(made) == 1


async def test_a_forgotten_await_warns() -> None:
    forgotten = [door(deque())]
    with pytest.warns(RuntimeWarning, match="'door' was never awaited"):
        forgotten.clear()


@opens
async def papers(items: list[Any], **document: Any) -> Any:
    return Paper(items, document)


class Paper(Door):
    """Holds what it was opened with."""

    def __init__(self, *given: Any) -> None:
        self.given = given


async def test_lists_documents_and_models_are_copied_before_it_is_awaited() -> None:
    items, inner, model = ["a"], {"b": [1]}, VirtualSmbShareOptions()
    opening = papers(items, inner=inner, model=model)
    items.append("later")
    inner["b"].append(2)
    model.read_only = True
    given = {"inner": {"b": [1]}, "model": VirtualSmbShareOptions()}
    assert (await opening).given == (["a"], given)
