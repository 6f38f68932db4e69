"""Requests for SCSI disks: which controllers a VM has, and what a disk may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from uvm._names import guid_key
from uvm._repr import counted
from uvm.backend import JSON
from uvm.backends.requests.request import Request
from uvm.hresult import HResult
from uvm.schema.devices import Attachment
from uvm.schema.json import to_json
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS, ScsiAttachment

#: LUNs of one controller.
LUNS: Final = 64
_TYPES: Final = ("VirtualDisk", "Iso", "PassThru", "ExtensibleVirtualDisk")


class Controllers:
    """The controllers of a VM's document, with the numbers that its guest gives them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {counted(len(self._numbers), 'controllers')}>"

    def load(self, guids: Iterable[str]) -> None:
        """Set the controllers of a document, and number them."""
        for guid in sorted(guids, key=_order):
            self._numbers[guid_key(guid)] = len(self._numbers)

    def slot(self, request: Request[ScsiAttachment]) -> tuple[int, int]:
        """Return the controller number and the LUN that a request is about.

        :raises HostError: the VM has no such slot: ERROR_NOT_FOUND, or E_INVALIDARG.
        """
        guid, lun = request.resource.controller, request.resource.lun
        controller = self._numbers.get(guid_key(guid))
        if controller is None:
            raise request.missing(f"the VM has no controller {guid}")
        if lun >= LUNS:
            raise request.invalid(f"LUNs are below {LUNS}")
        return controller, lun

    def inventory(self, disks: Mapping[tuple[int, int], Attachment]) -> JSON:
        """Return the controllers, with the disks on them, in the form of the document."""
        found: JSON = {guid: {"Attachments": {}} for guid in self._numbers}
        guids = [*self._numbers]
        for (controller, lun), attachment in disks.items():
            found[guids[controller]]["Attachments"][str(lun)] = to_json(attachment)
        return found


def checked(request: Request[ScsiAttachment]) -> Attachment:
    """Return the disk that a request describes.

    :raises HostError: there is none such: HCS_E_INVALID_JSON, or E_INVALIDARG.
    """
    attachment = request.parse(Attachment)
    if attachment.type not in _TYPES:
        text = f"Type is {attachment.type!r}, not one of {', '.join(_TYPES)}"
        raise request.refuse(HResult.HCS_E_INVALID_JSON, text)
    if not attachment.path:
        raise request.invalid("Path is missing")
    if (attachment.type == "ExtensibleVirtualDisk") != bool(attachment.extensible_virtual_disk_type):
        raise request.invalid("only an ExtensibleVirtualDisk has an ExtensibleVirtualDiskType, and needs it")
    return attachment


def changed(request: Request[ScsiAttachment], old: Attachment) -> Attachment:
    """Return the new settings of a disk; its type, path and access cannot change: E_INVALIDARG."""
    new = checked(request)
    if new != new.replaced(type=old.type, path=old.path, read_only=old.read_only):
        raise request.invalid("the type, path and access of an attached disk cannot change")
    return new


def _order(guid: str) -> tuple[int, str]:
    """Return the sort key of a controller: known GUIDs as the guest numbers them, then others by name."""
    key = guid_key(guid)
    return (SCSI_CONTROLLER_GUIDS.index(key) if key in SCSI_CONTROLLER_GUIDS else LUNS, key)
