"""The allocators: the lowest free slot, and regions placed as hcsshim's PoolAllocator places them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvm.devices.slots import (
    CLASSES,
    LARGEST_REGION_BYTES,
    Names,
    Regions,
    Slots,
    page_align,
)
from uvm.errors import NoSpaceError
from uvm.schema.common import MIB, PAGE_BYTES

GIB = 1 << 30


@given(st.lists(st.integers(0, 40)), st.sets(st.integers(0, 7)))
def test_slots_are_the_lowest_free_ones(moves: list[int], reserved: set[int]) -> None:
    slots, taken = Slots(8, reserved), {*reserved}
    for move in moves:
        if move < 8 and move in taken - reserved:
            slots.free(move)
            taken.remove(move)
        elif len(taken) == 8:
            with pytest.raises(NoSpaceError, match="all 8 slots are taken"):
                slots.take()
        else:
            lowest = min({*range(8)} - taken)
            assert slots.take() == lowest
            taken.add(lowest)
        assert slots.taken == len(taken)


def test_slots_without_a_count_never_run_out() -> None:
    slots = Slots()
    assert [slots.take() for _ in range(1000)] == [*range(1000)]


def test_slots_come_back_from_their_dump() -> None:
    slots, other = Slots(4), Slots(4)
    slots.take()
    other.load(slots.dump())
    assert other.take() == 1


def test_a_name_can_be_taken_once() -> None:
    names, other = Names(), Names()
    assert names.take("a")
    assert not names.take("a")
    other.load(names.dump())
    assert not other.take("a")
    names.free("a")
    assert names.take("a")


@pytest.mark.parametrize(
    ("size", "aligned"), [(1, PAGE_BYTES), (PAGE_BYTES, PAGE_BYTES), (PAGE_BYTES + 1, 2 * PAGE_BYTES)]
)
def test_pages_are_whole(size: int, aligned: int) -> None:
    assert page_align(size) == aligned


@pytest.mark.parametrize(
    ("size", "size_class"),
    [
        (1, 0),
        (MIB, 0),
        (MIB + 1, 1),
        (4 * MIB, 1),
        (4 * MIB + 1, 2),
        (GIB, 5),
        (4 * GIB, 6),
        (4 * GIB + 1, 7),
    ],
)
def test_size_classes_are_powers_of_four_mebibytes(size: int, size_class: int) -> None:
    assert Regions.size_class(size) == size_class


class Naive:
    """hcsshim's PoolAllocator, told simply: sets of free offsets per class."""

    def __init__(self) -> None:
        self.free: list[set[int]] = [set() for _ in range(CLASSES)]
        self.free[-1].add(0)

    def take(self, size_bytes: int) -> int:
        wanted = next(c for c in range(CLASSES) if MIB << 2 * c >= size_bytes)
        found = next((c for c in range(wanted, CLASSES) if self.free[c]), None)
        if found is None:
            raise NoSpaceError
        offset = min(self.free[found])
        self.free[found].remove(offset)
        for smaller in range(found - 1, wanted - 1, -1):
            self.free[smaller] |= {offset + part * (MIB << 2 * smaller) for part in (1, 2, 3)}
        return offset

    def give(self, offset: int, size_bytes: int) -> None:
        size_class = next(c for c in range(CLASSES) if MIB << 2 * c >= size_bytes)
        self.free[size_class].add(offset)
        while size_class < CLASSES - 1:
            size = MIB << 2 * size_class
            parent = offset // (4 * size) * 4 * size
            siblings = {parent + part * size for part in range(4)}
            if not siblings <= self.free[size_class]:
                return
            self.free[size_class] -= siblings
            size_class, offset = size_class + 1, parent
            self.free[size_class].add(parent)


SIZES = st.sampled_from([1, MIB, MIB + 1, 4 * MIB, 60 * MIB, 200 * MIB, GIB, 4 * GIB])


@given(st.lists(st.tuples(SIZES, st.booleans(), st.integers(0, 100)), max_size=60))
def test_regions_land_where_hcsshim_places_them(moves: list[tuple[int, bool, int]]) -> None:
    regions, naive, held = Regions(), Naive(), list[tuple[int, int]]()
    for size, giving, which in moves:
        if giving and held:
            offset, taken = held.pop(which % len(held))
            regions.free(offset, taken)
            naive.give(offset, taken)
            continue
        try:
            offset = naive.take(size)
        except NoSpaceError:
            with pytest.raises(NoSpaceError):
                regions.take(size)
        else:
            assert regions.take(size) == offset
            held.append((offset, size))
    # What is held says all, in whatever order it is taken.
    twin = Regions()
    for offset, size in reversed(held):
        twin.occupy(offset, size)
    assert twin.dump() == regions.dump()
    for offset, size in held:
        regions.free(offset, size)
    assert regions.dump() == Regions().dump()


def test_a_region_that_is_taken_is_not_occupied() -> None:
    regions = Regions()
    regions.occupy(4 * MIB, MIB)
    for offset, size in ((4 * MIB, MIB), (4 * MIB, 4 * MIB), (0, GIB)):
        with pytest.raises(AssertionError, match="taken"):
            regions.occupy(offset, size)
    assert regions.take(MIB) == 5 * MIB


@given(
    st.integers(1, 40).map(lambda n: n * 700_000),
    st.lists(st.tuples(st.integers(1, 12 * MIB), st.booleans(), st.integers(0, 100)), max_size=60),
)
def test_nothing_reaches_beyond_a_smaller_device(capacity: int, moves: list[tuple[int, bool, int]]) -> None:
    regions, held = Regions(capacity), list[tuple[int, int]]()
    for size, giving, which in moves:
        if giving and held:
            regions.free(*held.pop(which % len(held)))
            continue
        try:
            offset = regions.take(size)
        except NoSpaceError:
            assert held or size > capacity, "an empty device has room for all that fits it"
            continue
        held.append((offset, size))
        assert offset + size <= capacity
        spans = sorted((o, o + s) for o, s in held)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    for region in held:
        regions.free(*region)
    assert regions.dump() == Regions().dump()


def test_a_region_beyond_the_end_does_not_hide_one_before_it() -> None:
    regions = Regions(10 * MIB)
    assert [regions.take(MIB) for _ in range(10)] == [n * MIB for n in range(10)]
    with pytest.raises(NoSpaceError):
        regions.take(MIB)
    for n in range(4):
        regions.free(n * MIB, MIB)
    assert regions.take(MIB) == 0


def test_of_a_larger_device_the_first_4_gib_are_used() -> None:
    regions = Regions(8 * GIB)
    assert regions.capacity_bytes == LARGEST_REGION_BYTES == 4 * GIB
    assert regions.take(4 * GIB) == 0
    with pytest.raises(NoSpaceError):
        regions.take(1)
