"""The devices of a VM that have an operation in flight, found by the guest paths that they use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from attrs import define, field

from uvm._async import Flag
from uvm._names import lineage, trimmed
from uvm.devices.base import Entry

AnyEntry: TypeAlias = Entry[Any, Any, Any, Any]


@define(eq=False, repr=False)
class Flights:
    """The devices of a VM that have an operation in flight, by their entries.

    A device is filed, under the guest paths that it uses and the directories above them, when a removal first
    looks for users of its own path; most operations have ended by then.
    """

    _unfiled: dict[AnyEntry, Callable[[AnyEntry], Iterable[str]]] = field(factory=dict, init=False)
    _filed: dict[AnyEntry, tuple[Flag, set[str]]] = field(factory=dict, init=False)
    _users: dict[str, dict[AnyEntry, Flag]] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._unfiled) + len(self._filed)

    def begin(self, entry: AnyEntry, uses: Callable[[AnyEntry], Iterable[str]]) -> None:
        """Note that an operation on a device was decided.

        :param uses: returns the keys of the guest paths that the device uses.
        """
        if entry not in self._filed:
            self._unfiled[entry] = uses

    def end(self, entry: AnyEntry) -> None:
        """Note that no operation on a device is in flight any more."""
        if self._unfiled.pop(entry, None) is not None or entry not in self._filed:
            return
        ended, places = self._filed.pop(entry)
        for place in places:
            users = self._users[place]
            del users[entry]
            if not users:
                del self._users[place]
        ended.set()

    def clear(self) -> None:
        """Note that none is in flight, and will be: the VM has exited."""
        self._unfiled.clear()
        for entry in [*self._filed]:
            self.end(entry)

    def users(self, paths: Iterable[str], than: int) -> list[Flag]:
        """Return, for each device in flight that uses a guest path or one under it, what its end sets.

        :param paths: the keys of guest paths.
        :param than: only devices are meant whose entries are younger than the one of this number.
        """
        while self._unfiled:
            self._file(*self._unfiled.popitem())
        users: dict[AnyEntry, Flag] = {}
        for path in paths:
            users |= self._users.get(trimmed(path), {})
        return [ended for entry, ended in users.items() if entry.number > than]

    def _file(self, entry: AnyEntry, uses: Callable[[AnyEntry], Iterable[str]]) -> None:
        places = {place for path in uses(entry) for place in lineage(path)}
        ended, _ = self._filed[entry] = Flag(), places
        for place in places:
            self._users.setdefault(place, {})[entry] = ended
