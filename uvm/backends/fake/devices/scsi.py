"""SCSI controllers and the disks on them."""

from __future__ import annotations

from typing import ClassVar, Final

from attrs import define, field

from uvm._names import guid_key
from uvm.backend import JSON
from uvm.backends.fake.devices.request import Device, DeviceTable, Request, number_of
from uvm.backends.fake.files import OpenDisk
from uvm.backends.fake.host import Host
from uvm.hresult import HResult
from uvm.schema.devices import Attachment, Devices
from uvm.schema.json import to_json
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS, Resource, ScsiAttachment
from uvm.schema.system import VirtualMachine

#: LUNs of one controller.
LUNS: Final = 64
_TYPES: Final = ("VirtualDisk", "Iso", "PassThru", "ExtensibleVirtualDisk")


@define(eq=False, repr=False)
class Disk(Device[Attachment]):
    """A disk on a controller.

    :ivar controller: the controller's number in the guest.
    :ivar file: the open file; None for an extensible virtual disk.
    :ivar ejected: a Linux guest has ejected it, and does not see it any more.
    """

    controller: int
    lun: int
    file: OpenDisk | None = None
    ejected: bool = field(default=False, init=False)

    @property
    def attachment(self) -> Attachment:
        """The settings of the disk."""
        return self.settings


class ScsiKind(DeviceTable[ScsiAttachment, tuple[int, int], Disk]):
    """The SCSI controllers of a VM, those of its document, and disks by controller number and LUN."""

    resources: ClassVar[tuple[type[Resource], ...]] = (ScsiAttachment,)
    name: ClassVar[str] = "Scsi"

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self._controllers: dict[str, int] = {}

    def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Attach the controllers and the disks of the document."""
        for guid in sorted(devices.scsi, key=_order):
            self._controllers[guid_key(guid)] = len(self._controllers)
        for guid, controller in devices.scsi.items():
            for lun, attachment in controller.attachments.items():
                slot = ScsiAttachment(guid, number_of(lun, "LUN"))
                self.modify(Request(slot, "Add", to_json(attachment)))

    @property
    def disks(self) -> dict[tuple[int, int], Disk]:
        """The attached disks by controller number and LUN."""
        return dict(self._attached)

    def key(self, request: Request[ScsiAttachment]) -> tuple[int, int]:
        """Return the controller number and the LUN."""
        guid, lun = request.resource.controller, request.resource.lun
        controller = self._controllers.get(guid_key(guid))
        if controller is None:
            raise request.missing(f"the VM has no controller {guid}")
        if lun >= LUNS:
            raise request.invalid(f"LUNs are below {LUNS}")
        return controller, lun

    def make(self, request: Request[ScsiAttachment]) -> Disk:
        """Return the disk that a request describes, without its file."""
        attachment = _checked(request)
        controller, lun = self.key(request)
        return Disk(f"disk {controller}:{lun} ({attachment.path})", attachment, controller, lun)

    def attach(self, request: Request[ScsiAttachment], device: Disk) -> None:
        """Open the file of a disk."""
        settings = device.settings
        if settings.type != "ExtensibleVirtualDisk":
            device.file = self.host.open_file(
                settings.path, self.vm_id, writable=not settings.read_only, operation=request.operation
            )

    def update(self, request: Request[ScsiAttachment], device: Disk) -> None:
        """Change the settings of a disk, without its type, path and access."""
        new, old = _checked(request), device.settings
        if new != new.replaced(type=old.type, path=old.path, read_only=old.read_only):
            raise request.invalid("the type, path and access of an attached disk cannot change")
        device.settings = new

    def detach(self, device: Disk) -> None:
        """Close the file of a disk."""
        super().detach(device)
        if device.file is not None:
            device.file.close()

    def inventory(self) -> JSON:
        """Return the controllers in the form of the document."""
        return {
            guid: {
                "Attachments": {
                    str(lun): to_json(disk.settings) for (c, lun), disk in self._attached.items() if c == i
                }
            }
            for guid, i in self._controllers.items()
        }


def _order(guid: str) -> tuple[int, str]:
    """Return the sort key of a controller: known GUIDs as the guest numbers them, then others by name."""
    key = guid_key(guid)
    return (SCSI_CONTROLLER_GUIDS.index(key) if key in SCSI_CONTROLLER_GUIDS else LUNS, key)


def _checked(request: Request[ScsiAttachment]) -> Attachment:
    attachment = request.parse(Attachment)
    if attachment.type not in _TYPES:
        text = f"Type is {attachment.type!r}, not one of {', '.join(_TYPES)}"
        raise request.refuse(HResult.HCS_E_INVALID_JSON, text)
    if not attachment.path:
        raise request.invalid("Path is missing")
    if (attachment.type == "ExtensibleVirtualDisk") != bool(attachment.extensible_virtual_disk_type):
        raise request.invalid("only an ExtensibleVirtualDisk has an ExtensibleVirtualDiskType, and needs it")
    return attachment
