"""What is awaited or entered."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Self

import anyio
import pytest
import trio

from uvm._async import Opening, enters, opens
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


@opens
async def slow_door(made: deque[Door], unlocked: anyio.Event) -> Door:
    await unlocked.wait()
    made.append(Door())
    return made[-1]


async def test_it_runs_as_a_task() -> None:
    made: deque[Door] = deque()
    unlocked = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slow_door, made, unlocked)
        tasks.start_soon(slow_door, made, unlocked)
        await anyio.wait_all_tasks_blocked()
        unlocked.set()
    assert len(made) == 2


async def test_a_task_that_runs_it_is_cancelled() -> None:
    made: deque[Door] = deque()
    unlocked = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slow_door, made, unlocked)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    unlocked.set()
    await anyio.wait_all_tasks_blocked()
    assert not made


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it_is_what_asyncio_makes_tasks_of() -> None:
    made: deque[Door] = deque()
    task = asyncio.create_task(door(made))
    assert "door" in repr(task)
    first = await task
    rest = await asyncio.gather(door(made), door(made))
    async with asyncio.TaskGroup() as tasks:
        last = tasks.create_task(door(made))
    assert [first, *rest, last.result()] == list(made)
    assert len(made) == 4


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_it_is_what_a_nursery_of_trio_starts() -> None:
    made: deque[Door] = deque()
    unlocked = anyio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow_door, made, unlocked)
        await anyio.wait_all_tasks_blocked()
        (task,) = nursery.child_tasks
        assert "slow_door" in task.name
        assert next(frame.f_code.co_name for frame, _ in task.iter_await_frames()) == "slow_door"
        unlocked.set()
    assert len(made) == 1


async def test_it_is_not_awaited_by_two_tasks_at_once() -> None:
    made: deque[Door] = deque()
    opening = slow_door(made, anyio.Event())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: opening)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match=r"slow_door.*already awaited"):
            await opening
        tasks.cancel_scope.cancel()


async def test_closed_it_opens_nothing_and_does_not_warn() -> None:
    made: deque[Door] = deque()
    opening = door(made)
    opening.close()
    with pytest.raises(RuntimeError, match="already awaited"):
        await opening
    assert not made


async def test_a_use_of_what_was_not_awaited_says_so() -> None:
    opening = door(deque())
    with pytest.raises(AttributeError, match="'opened': await or enter it first"):
        _ = opening.opened  # type: ignore[attr-defined]
    assert repr(opening) == "<Opening door: to be awaited or entered>"
    opening.close()


@enters("; 'await door()' opens one")
async def room(made: deque[Door]) -> AsyncIterator[Door]:
    async with door(made) as entered:
        yield entered


async def test_what_is_only_entered_is_closed_at_the_end() -> None:
    made: deque[Door] = deque()
    entering = room(made)
    assert not made
    async with entering as entered:
        assert entered is made[0]
    assert (entered.opened, entered.closed) == (1, 1)
    with pytest.raises(RuntimeError, match="room: what it returned was entered before; call it again"):
        async with entering:
            pass


async def test_what_is_only_entered_says_so_to_whoever_awaits_or_uses_it() -> None:
    entering = room(deque())
    with pytest.raises(TypeError, match=r"room\(\) is entered with 'async with', not awaited; 'await door"):
        await entering  # type: ignore[misc]
    with pytest.raises(AttributeError, match="'opened': enter it first"):
        _ = entering.opened  # type: ignore[attr-defined]


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
