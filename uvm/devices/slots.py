"""Allocators of places: the lowest free slot of a row, regions of a device's space, and names.

The first two keep what is free as bits of an int, so that finding the lowest free place is one bit trick and
costs the same with any number taken. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from uvm.errors import NoSpaceError
from uvm.schema.common import MIB, PAGE_BYTES

#: Size classes of regions: 1 MiB << (2 * class), that is 1, 4, 16, 64, 256 MiB, 1 and 4 GiB
#: (hcsshim internal/memory/pool.go).
CLASSES = 7
#: A region, and what of a device is used, is never larger than 4 GiB.
LARGEST_REGION_BYTES = MIB << 2 * (CLASSES - 1)


def page_align(size_bytes: int) -> int:
    """Round a size up to whole 4 KiB pages."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


class Allocator(Protocol):
    """What the allocators of a device's slots have in common."""

    def free(self, slot: Any, /) -> None:
        """Free a slot."""

    def dump(self) -> Any:
        """Return the state as a value, for :meth:`load`."""

    def load(self, state: Any, /) -> None:
        """Load what :meth:`dump` returned."""


class Numbers:
    """Numbers 0, 1, 2, ..., each of which is taken only once."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0

    def take(self) -> int:
        """Return the next number."""
        self._next += 1
        return self._next - 1

    def free(self, number: object) -> None:
        """Free nothing: a number is not used again."""

    def dump(self) -> int:
        """Return the next number, for :meth:`load`."""
        return self._next

    def load(self, state: int) -> None:
        """Load what :meth:`dump` returned."""
        self._next = state


class Slots:
    """Slots 0, 1, 2, ..., of which the lowest free one is always taken next.

    :ivar count: how many slots there are; None for any number.
    """

    __slots__ = ("_taken", "count")

    def __init__(self, count: int | None = None, reserved: Iterable[int] = ()) -> None:
        self.count: int | None = count
        self._taken = 0
        for slot in reserved:
            self._taken |= 1 << slot

    @property
    def taken(self) -> int:
        """The number of slots that are taken."""
        return self._taken.bit_count()

    def take(self) -> int:
        """Take the lowest free slot.

        :raises NoSpaceError: all are taken.
        """
        lowest = ~self._taken & (self._taken + 1)
        slot = lowest.bit_length() - 1
        if slot == self.count:
            raise NoSpaceError(f"all {self.count} slots are taken")
        self._taken |= lowest
        return slot

    def occupy(self, slot: int) -> None:
        """Take a slot that is free."""
        assert not self._taken >> slot & 1, f"slot {slot} is taken"
        self._taken |= 1 << slot

    def free(self, slot: int) -> None:
        """Free a slot."""
        assert self._taken >> slot & 1, f"slot {slot} is free already"
        self._taken ^= 1 << slot

    def dump(self) -> int:
        """Return the state as a number, for :meth:`load`."""
        return self._taken

    def load(self, state: int) -> None:
        """Load what :meth:`dump` returned."""
        self._taken = state


class Names:
    """Names that others choose, such as GUIDs; each can be taken once.

    :param fold: returns one spelling for all that are the same name.
    """

    __slots__ = ("_fold", "_taken")

    def __init__(self, fold: Callable[[str], str] = str) -> None:
        self._fold = fold
        self._taken: set[str] = set()

    def take(self, name: str) -> bool:
        """Take a name; return False if it is taken already."""
        name = self._fold(name)
        if name in self._taken:
            return False
        self._taken.add(name)
        return True

    def free(self, name: str) -> None:
        """Free a name."""
        self._taken.remove(self._fold(name))

    def dump(self) -> tuple[str, ...]:
        """Return the names that are taken, for :meth:`load`."""
        return tuple(sorted(self._taken))

    def load(self, state: tuple[str, ...]) -> None:
        """Load what :meth:`dump` returned."""
        self._taken = set(state)


class Regions:
    """Regions of one device's space, in size classes that are powers of four (a buddy allocator).

    A request takes a whole region of the smallest class that holds it, at the lowest free offset; if
    there is none, a region of the next larger class that has one is split in four. Four free siblings
    merge again. The placements are those of hcsshim's ``PoolAllocator``, so that the same layers land
    at the same offsets. Like it, this divides 4 GiB, however small the device is: a region may reach beyond
    the device's end, what is placed in it does not.

    :ivar capacity_bytes: the size of the device; of more than 4 GiB the rest is not used.
    """

    __slots__ = ("_free", "capacity_bytes")

    def __init__(self, capacity_bytes: int = LARGEST_REGION_BYTES) -> None:
        self.capacity_bytes: int = min(capacity_bytes, LARGEST_REGION_BYTES)
        #: Per class: bit i is the region at offset i * class size.
        self._free = [0] * (CLASSES - 1) + [1]

    @staticmethod
    def size_class(size_bytes: int) -> int:
        """Return the smallest class whose regions hold that many bytes; it may be beyond the largest."""
        return max(0, ((size_bytes - 1) >> 20).bit_length() + 1 >> 1)

    def take(self, size_bytes: int) -> int:
        """Take a region for that many bytes (at least 1) and return its offset in bytes.

        :raises NoSpaceError: no free region is large enough.
        """
        offset = self.take_if_free(size_bytes)
        if offset is None:
            raise NoSpaceError(f"no free region of {size_bytes} bytes")
        return offset

    def take_if_free(self, size_bytes: int) -> int | None:
        """Take a region as :meth:`take` does; return None if no free one is large enough."""
        wanted = self.size_class(size_bytes)
        last = self.capacity_bytes - size_bytes
        for size_class in range(wanted, CLASSES):
            lowest = self._free[size_class] & -self._free[size_class]
            if lowest and (lowest.bit_length() - 1) << 20 + 2 * size_class <= last:
                self._free[size_class] ^= lowest
                return self._split(lowest.bit_length() - 1, size_class, wanted) * (MIB << 2 * wanted)
        return None

    def occupy(self, offset: int, size_bytes: int) -> None:
        """Take the region at an offset, which is free, as :meth:`take` would for that size."""
        wanted = self.size_class(size_bytes)
        at = [offset >> 20 + 2 * size_class for size_class in range(CLASSES)]
        whole = next((each for each in range(wanted, CLASSES) if self._free[each] >> at[each] & 1), None)
        assert whole is not None, f"the region at {offset} is taken"
        self._free[whole] ^= 1 << at[whole]
        for size_class in range(wanted, whole):
            self._free[size_class] |= 0b1111 << (at[size_class] & ~3) ^ 1 << at[size_class]

    def _split(self, index: int, size_class: int, wanted: int) -> int:
        while size_class > wanted:
            size_class -= 1
            index *= 4
            self._free[size_class] |= 0b1110 << index
        return index

    def free(self, offset: int, size_bytes: int) -> None:
        """Free the region that :meth:`take` returned for that size."""
        size_class = self.size_class(size_bytes)
        index = offset // (MIB << 2 * size_class)
        assert not self._free[size_class] >> index & 1, f"the region at {offset} is free already"
        self._free[size_class] |= 1 << index
        while size_class < CLASSES - 1:
            siblings = 0b1111 << (index & ~3)
            if self._free[size_class] & siblings != siblings:
                return
            self._free[size_class] ^= siblings
            size_class += 1
            index >>= 2
            self._free[size_class] |= 1 << index

    def dump(self) -> tuple[int, ...]:
        """Return the state as numbers, for :meth:`load`."""
        return tuple(self._free)

    def load(self, state: tuple[int, ...]) -> None:
        """Load what :meth:`dump` returned."""
        self._free = list(state)
