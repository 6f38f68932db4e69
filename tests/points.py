"""The requests of a call, each of which may be spoilt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from attrs import frozen

from uvm.backends.fake import FakeBackend
from uvm.backends.fake.filters import FAULTY

__all__ = ["Point", "points"]


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
