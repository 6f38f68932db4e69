"""Paths of resources, formatted and parsed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvm.schema import requests
from uvm.schema.requests import (
    SCSI_CONTROLLER_GUIDS,
    CpuGroupAssignment,
    CpuLimits,
    MappedPipe,
    MemorySize,
    Plan9Shares,
    Resource,
    ScsiAttachment,
    SerialPort,
    SocketService,
    VirtualAdapter,
    VirtualPci,
    VPMemDevice,
    VPMemMapping,
    VSMBShares,
    parse_resource_path,
)

NUMBERS = st.integers(0, 2**64 - 1)
NAMES = st.text(min_size=1).filter(lambda text: "/" not in text)
RESOURCES = st.one_of(
    st.builds(ScsiAttachment, NAMES, NUMBERS),
    st.builds(VPMemDevice, NUMBERS),
    st.builds(VPMemMapping, NUMBERS, NUMBERS),
    st.builds(VSMBShares),
    st.builds(Plan9Shares),
    st.builds(VirtualAdapter, NAMES),
    st.builds(VirtualPci, NAMES),
    st.builds(MappedPipe, st.text(min_size=1)),
    st.builds(SerialPort, NUMBERS),
    st.builds(SocketService, NAMES),
    st.builds(MemorySize),
    st.builds(CpuLimits),
    st.builds(CpuGroupAssignment),
)


@given(resource=RESOURCES)
def test_the_path_of_any_resource_is_read_back_as_that_resource(resource: Resource) -> None:
    assert parse_resource_path(resource.path) == resource


@given(controller=st.integers(0, 3), lun=NUMBERS)
def test_the_path_of_a_disk_names_its_controller_and_its_lun(controller: int, lun: int) -> None:
    disk = parse_resource_path(requests.scsi_attachment_path(controller, lun))
    assert disk == ScsiAttachment(SCSI_CONTROLLER_GUIDS[controller], lun)


@given(controller=st.integers(0, 3), upper=st.booleans())
def test_a_controller_of_ours_has_its_number_in_any_case(controller: int, upper: bool) -> None:
    guid = SCSI_CONTROLLER_GUIDS[controller]
    assert ScsiAttachment(guid.upper() if upper else guid, 0).controller_number == controller
    assert ScsiAttachment(guid[:-1], 0).controller_number is None


@given(path=st.one_of(st.text(), RESOURCES.map(lambda resource: f"/{resource.path}")))
def test_any_other_path_names_nothing(path: str) -> None:
    assert parse_resource_path(path) is None


@pytest.mark.parametrize(
    "path",
    [
        requests.scsi_attachment_path(0, 1).replace("/1", "/one"),
        requests.VPMemDevice(0).path.replace("/0", "/" + "9" * 5000),
        requests.VirtualAdapter("a/b").path,
        requests.VirtualPci("").path,
        requests.MemorySize.PATH + "/",
    ],
)
def test_a_path_with_an_invalid_part_names_nothing(path: str) -> None:
    assert parse_resource_path(path) is None
