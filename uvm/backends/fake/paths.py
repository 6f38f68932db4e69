"""Tables of paths, in which what a directory holds is found without looking at all of them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, MutableMapping
from typing import TypeVar

from uvm._repr import printed

V = TypeVar("V")


class PathTable(MutableMapping[str, V]):
    """Values by path, in the order in which the paths were added.

    :param separator: what separates the names of a path.
    """

    def __init__(self, separator: str) -> None:
        self._separator = separator
        self._values: dict[str, V] = {}
        # What is in a directory is adjacent in this order.
        self._sorted: list[str] = []

    def __repr__(self) -> str:
        return printed(self._values)

    def __getitem__(self, path: str) -> V:
        return self._values[path]

    def __setitem__(self, path: str, value: V) -> None:
        if path not in self._values:
            insort(self._sorted, path)
        self._values[path] = value

    def __delitem__(self, path: str) -> None:
        del self._values[path]
        del self._sorted[bisect_left(self._sorted, path)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def inside(self, directory: str) -> Iterator[str]:
        """Yield the paths in a directory, at any depth, sorted."""
        start = directory.rstrip(self._separator) + self._separator
        at = bisect_left(self._sorted, start)
        while at < len(self._sorted) and self._sorted[at].startswith(start):
            if self._sorted[at] != directory:
                yield self._sorted[at]
            at += 1

    def around(self, path: str) -> Iterator[str]:
        """Yield the paths in the table that a path is or lies in, innermost first."""
        if path in self._values:
            yield path
        end = path.rfind(self._separator)
        while end >= 0:
            # A root ends with its separator.
            for directory in (path[: end + 1], path[:end]):
                if directory in self._values and directory != path:
                    yield directory
            end = path.rfind(self._separator, 0, end)
