"""The requests of a call, each of which may be spoilt: refused, its answer lost, or its caller cancelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import anyio
import sniffio
from attrs import evolve, frozen

from uvm.backends.fake import FakeBackend
from uvm.backends.fake.filters import FAULTY
from uvm.errors import UVMError

__all__ = ["Point", "last_of_each_kind", "on_this_loop", "points", "spoil"]


@frozen
class Point:
    """One of the requests of a call.

    :ivar nth: its number among those of its kind.
    """

    to: Any
    operation: str
    request_type: str
    nth: int

    @property
    def matching(self) -> dict[str, Any]:
        """What a rule needs to be about it."""
        rule = {"to": self.to, "operation": self.operation, "nth": self.nth}
        return {**rule, "where": lambda call: call.request_type == self.request_type}

    def __str__(self) -> str:
        return f"{self.to}:{self.operation} {self.request_type}#{self.nth}".replace(" #", "#")


def points(backend: FakeBackend, after: int) -> Iterator[Point]:
    """Yield the requests that can fail, of those after one."""
    seen: Counter[tuple[str, str, str]] = Counter()
    for call in (each.call for each in backend.request_log if each.seq > after):
        if call.operation not in FAULTY[call.to]:
            continue
        kind = (call.to, call.operation, call.request_type)
        seen[kind] += 1
        yield Point(*kind, seen[kind])


def last_of_each_kind(found: Iterable[Point]) -> list[Point]:
    """Return the last one of each kind of request: those of a kind pass through the same code."""
    return list({evolve(point, nth=0): point for point in found}.values())


def on_this_loop(found: list[Point]) -> list[Point]:
    """Return the requests to spoil: on trio, which only wakes the task otherwise, the last of each kind."""
    return last_of_each_kind(found) if sniffio.current_async_library() == "trio" else found


async def spoil(backend: FakeBackend, how: str, point: Point, call: Callable[[], Awaitable[Any]]) -> bool:
    """Make a call in which one request fails, loses its answer, or is where the caller is cancelled."""
    if how != "cancelled":
        rule = getattr(backend.faults, how)(**point.matching)
        try:
            await call()
        except UVMError:
            return False
        finally:
            rule.remove()
            assert rule.fired, point
        return True
    with backend.faults.hold(**point.matching) as gate:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_awaited, call)
            await gate.wait()
            tasks.cancel_scope.cancel()
            # What is shielded goes on.
            gate.close()
    return False


async def _awaited(call: Callable[[], Awaitable[Any]]) -> None:
    await call()
