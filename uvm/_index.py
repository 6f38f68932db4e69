"""Items that are found by their keys."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Set
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Index(Generic[T]):
    """Items, each found by any number of keys.

    The keys of an item are asked for at the first look-up after it came: most have left by then.
    """

    __slots__ = ("_at", "_filed", "_unfiled")

    def __init__(self) -> None:
        self._unfiled: dict[T, Callable[[T], Iterable[Hashable]]] = {}
        self._filed: dict[T, Set[Hashable]] = {}
        self._at: dict[Hashable, dict[T, None]] = {}

    def __len__(self) -> int:
        return len(self._unfiled) + len(self._filed)

    def __iter__(self) -> Iterator[T]:
        return iter((*self._filed, *self._unfiled))

    def __contains__(self, item: T) -> bool:
        return item in self._unfiled or item in self._filed

    def add(self, item: T, keys: Callable[[T], Iterable[Hashable]]) -> None:
        """Enter an item; one that is in already gets new keys.

        :param keys: returns its keys.
        """
        self.remove(item)
        self._unfiled[item] = keys

    def remove(self, item: T) -> Set[Hashable]:
        """Remove an item, if it is in; return its keys if it may have been looked up since it came."""
        self._unfiled.pop(item, None)
        keys = self._filed.pop(item, frozenset())
        for key in keys:
            found = self._at[key]
            del found[item]
            if not found:
                del self._at[key]
        return keys

    def clear(self) -> None:
        """Remove all items."""
        self._unfiled.clear()
        self._filed.clear()
        self._at.clear()

    def at(self, keys: Iterable[Hashable]) -> list[T]:
        """Return the items that have one of some keys."""
        self._file()
        found: dict[T, None] = {}
        for key in keys:
            found |= self._at.get(key, {})
        return [*found]

    def keys(self, item: T) -> Set[Hashable]:
        """Return the keys of an item that is in."""
        self._file()
        return self._filed[item]

    def _file(self) -> None:
        unfiled, self._unfiled = self._unfiled, {}
        for item, keys in unfiled.items():
            filed = self._filed[item] = frozenset(keys(item))
            for key in filed:
                self._at.setdefault(key, {})[item] = None
