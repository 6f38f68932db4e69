"""The controllers of a document, and what a disk may be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvm.backends.requests.request import Request
from uvm.backends.requests.scsi import LUNS, Controllers, changed, checked
from uvm.errors import HostError
from uvm.hresult import HResult
from uvm.schema.devices import Attachment
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS, ScsiAttachment

OTHER = "00000000-0000-0000-0000-00000000000a"
DISK = {"Type": "VirtualDisk", "Path": "/disk.vhdx"}


def request(
    settings: Any = None, *, guid: str = SCSI_CONTROLLER_GUIDS[0], lun: int = 0
) -> Request[ScsiAttachment]:
    return Request(ScsiAttachment(guid, lun), "Add", settings or DISK)


@given(st.permutations([*SCSI_CONTROLLER_GUIDS, OTHER]))
def test_controllers_have_the_guests_numbers_in_whatever_order_they_come(guids: list[str]) -> None:
    controllers = Controllers()
    controllers.load(guids)
    for number, guid in enumerate([*SCSI_CONTROLLER_GUIDS, OTHER]):
        assert controllers.slot(request(guid=guid.upper(), lun=63)) == (number, 63)


def test_the_inventory_has_each_controller_with_its_disks() -> None:
    controllers = Controllers()
    controllers.load(SCSI_CONTROLLER_GUIDS[:2])
    assert controllers.inventory({(1, 7): checked(request())}) == {
        SCSI_CONTROLLER_GUIDS[0]: {"Attachments": {}},
        SCSI_CONTROLLER_GUIDS[1]: {"Attachments": {"7": DISK}},
    }


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (request(guid=OTHER), HResult.ERROR_NOT_FOUND),
        (request(lun=LUNS), HResult.E_INVALIDARG),
    ],
    ids=["controller", "LUN"],
)
def test_a_slot_that_the_vm_lacks_is_refused(asked: Request[ScsiAttachment], code: HResult) -> None:
    controllers = Controllers()
    controllers.load(SCSI_CONTROLLER_GUIDS)
    with pytest.raises(HostError) as refused:
        controllers.slot(asked)
    assert refused.value.hresult == code


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({**DISK, "Type": "Tape"}, HResult.HCS_E_INVALID_JSON),
        ({**DISK, "Path": 1}, HResult.HCS_E_INVALID_JSON),
        ({"Type": "VirtualDisk"}, HResult.E_INVALIDARG),
        ({**DISK, "Type": "ExtensibleVirtualDisk"}, HResult.E_INVALIDARG),
        ({**DISK, "ExtensibleVirtualDiskType": "space"}, HResult.E_INVALIDARG),
    ],
)
def test_what_is_no_disk_is_refused(settings: dict[str, Any], code: HResult) -> None:
    with pytest.raises(HostError) as refused:
        checked(request(settings))
    assert refused.value.hresult == code


def test_a_disk_keeps_its_type_path_and_access() -> None:
    old = Attachment(type="VirtualDisk", path="/disk.vhdx")
    assert changed(request({**DISK, "IgnoreFlushes": True}), old).ignore_flushes
    for change in ({"Path": "/other.vhdx"}, {"ReadOnly": True}, {"Type": "Iso"}):
        with pytest.raises(HostError):
            changed(request({**DISK, **change}), old)
