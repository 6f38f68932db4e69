"""The devices of a VM by guest paths: those that have an operation in flight, and those that are there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Set
from functools import partial
from typing import Any, TypeAlias

from attrs import define, field

from uvm._async import Flag
from uvm._index import Index
from uvm._names import guest_path_key, is_at_or_under, lineage, trimmed
from uvm.devices.base import Entry

AnyEntry: TypeAlias = Entry[Any, Any, Any, Any]

#: Returns the keys of guest paths of a device.
Paths: TypeAlias = Callable[[AnyEntry], Iterable[str]]


def _places(paths: Paths, entry: AnyEntry) -> Iterable[str]:
    """Return the keys of the guest paths of a device, and of the directories above them."""
    return (place for path in paths(entry) for place in lineage(path))


@define(eq=False, repr=False)
class Flights:
    """The devices of a VM that have an operation in flight."""

    _devices: Index[AnyEntry] = field(factory=Index, init=False)
    #: Of those that a removal waits for: what their end sets.
    _ended: dict[AnyEntry, Flag] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._devices)

    def begin(self, entry: AnyEntry, uses: Paths) -> None:
        """Note that an operation on a device was decided.

        :param uses: returns the guest paths that the device uses.
        """
        if entry not in self._devices:
            self._devices.add(entry, partial(_places, uses))

    def end(self, entry: AnyEntry) -> None:
        """Note that no operation on a device is in flight any more."""
        self._devices.remove(entry)
        if (ended := self._ended.pop(entry, None)) is not None:
            ended.set()

    def clear(self) -> None:
        """Note that none is in flight, and will be: the VM has exited."""
        for entry in [*self._devices]:
            self.end(entry)

    def users(self, paths: Iterable[str], than: int) -> list[Flag]:
        """Return, for each device in flight that uses a guest path or one under it, what its end sets.

        :param paths: the keys of guest paths.
        :param than: only devices are meant whose entries are younger than the one of this number.
        """
        users = self._devices.at(map(trimmed, paths))
        return [self._ended.setdefault(entry, Flag()) for entry in users if entry.number > than]


@define(eq=False, repr=False)
class Occupied:
    """The guest paths that the devices of a VM occupy, from when they are being attached."""

    _devices: Index[AnyEntry] = field(factory=Index, init=False)

    def __len__(self) -> int:
        return len(self._devices)

    def enter(self, entry: AnyEntry, occupies: Paths) -> None:
        """Note that a device is being attached.

        :param occupies: returns the guest paths that the device occupies.
        """
        self._devices.add(entry, partial(_places, occupies))

    def leave(self, entry: AnyEntry) -> Set[Hashable]:
        """Note that a device is not attached any more.

        :return: its paths and the directories above them, if they may have been looked up.
        """
        return self._devices.remove(entry)

    def clear(self) -> None:
        """Note that the VM has exited."""
        self._devices.clear()

    def inside(self, directory: str) -> str:
        """Return a path in a directory of a Linux guest that is occupied; empty if there is none."""
        place = trimmed(guest_path_key(directory, "linux"))
        for entry in self._devices.at([place]):
            # It is entered with the directories above its path.
            keys = map(str, self._devices.keys(entry))
            return max((key for key in keys if is_at_or_under(key, place)), key=len) or "/"
        return ""
