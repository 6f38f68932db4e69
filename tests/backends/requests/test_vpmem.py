"""Where files are mapped on a VPMEM device: in its limits, on pages, and never over each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvm.backends.requests.request import Request
from uvm.backends.requests.vpmem import Layout, PMemResource, checked
from uvm.devices.slots import page_align
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.common import PAGE_BYTES
from uvm.schema.devices import VirtualPMemController
from uvm.schema.requests import VPMemDevice, VPMemMapping

PAGES = 16


def layout() -> Layout:
    made = Layout()
    made.load(VirtualPMemController(maximum_count=2, maximum_size_bytes=PAGES * PAGE_BYTES))
    return made


def mapping(offset: int, number: int = 0, action: str = "Add") -> Request[PMemResource]:
    return Request(VPMemMapping(number, offset), action, {"HostPath": "/layer", "ImageFormat": "Vhd1"})


OFFSETS = st.integers(0, PAGES - 1).map(lambda page: page * PAGE_BYTES)
SIZES = st.integers(1, 5 * PAGE_BYTES)


@given(st.lists(st.tuples(OFFSETS, SIZES)))
def test_mappings_never_overlap_whatever_comes_and_goes(asked: list[tuple[int, int]]) -> None:
    there: dict[int, int] = {}
    places = layout()
    for offset, size in asked:
        if offset in there:
            places.release((0, offset))
            del there[offset]
            continue
        places.reserve((0, offset))
        if offset + size > PAGES * PAGE_BYTES:
            with pytest.raises(HostError, match="go beyond"):
                places.fit(mapping(offset), (0, offset), size)
            places.release((0, offset))
            continue
        overlapped = places.fit(mapping(offset), (0, offset), size)
        end = offset + page_align(size)
        others = [(0, at) for at, taken in there.items() if at < end and offset < at + taken]
        assert (overlapped in others) if others else (overlapped is None)
        if overlapped is None:
            there[offset] = page_align(size)
        else:
            places.release((0, offset))
    assert places.has_mappings(0) == bool(there)
    assert not places.has_mappings(1)


def test_a_mapping_that_comes_beside_one_of_unknown_size_is_checked_by_the_later_of_both() -> None:
    places = layout()
    places.reserve((0, 0))
    places.reserve((0, PAGE_BYTES))
    assert places.fit(mapping(PAGE_BYTES), (0, PAGE_BYTES), PAGE_BYTES) is None
    assert places.fit(mapping(0), (0, 0), 2 * PAGE_BYTES) == (0, PAGE_BYTES)


def test_a_device_with_mappings_is_not_removed() -> None:
    places = layout()
    places.reserve((0, 0))
    with pytest.raises(HostError) as refused:
        places.key(Request(VPMemDevice(0), "Remove", None))
    assert refused.value.hresult == HResult.HCS_E_INVALID_STATE
    places.release((0, 0))
    assert places.key(Request(VPMemDevice(0), "Remove", None)) == (0, None)


@pytest.mark.parametrize(("offset", "number"), [(1, 0), (PAGE_BYTES, 2)])
def test_what_is_no_place_is_refused(offset: int, number: int) -> None:
    request = mapping(offset, number)
    with pytest.raises(HostError) as refused:
        checked(request, layout().key(request)[1])
    assert refused.value.hresult == HResult.E_INVALIDARG


def test_a_vm_without_a_controller_has_no_devices() -> None:
    with pytest.raises(HostError) as refused:
        Layout().key(mapping(0))
    assert refused.value.hresult == HResult.ERROR_NOT_FOUND
