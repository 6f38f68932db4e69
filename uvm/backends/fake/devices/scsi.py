"""SCSI controllers and the disks on them."""

from __future__ import annotations

from typing import ClassVar

from attrs import define, field

from uvm.backend import JSON
from uvm.backends.fake.devices.request import Device, DeviceTable
from uvm.backends.fake.files import OpenDisk
from uvm.backends.fake.host import Host
from uvm.backends.requests.request import Request, number_of
from uvm.backends.requests.scsi import Controllers, changed, checked
from uvm.schema.devices import Attachment, Devices
from uvm.schema.json import to_json
from uvm.schema.requests import Resource, ScsiAttachment
from uvm.schema.system import VirtualMachine


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


class ScsiKind(DeviceTable[ScsiAttachment, tuple[int, int], Disk]):
    """The SCSI controllers of a VM, those of its document, and disks by controller number and LUN."""

    resources: ClassVar[tuple[type[Resource], ...]] = (ScsiAttachment,)
    name: ClassVar[str] = "Scsi"

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self._controllers: Controllers = Controllers()

    def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Attach the controllers and the disks of the document."""
        self._controllers.load(devices.scsi)
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
        return self._controllers.slot(request)

    def make(self, request: Request[ScsiAttachment]) -> Disk:
        """Return the disk that a request describes, without its file."""
        attachment = checked(request)
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
        device.settings = changed(request, device.settings)

    def detach(self, device: Disk) -> None:
        """Close the file of a disk."""
        super().detach(device)
        if device.file is not None:
            device.file.close()

    def inventory(self) -> JSON:
        """Return the controllers in the form of the document."""
        return self._controllers.inventory({slot: disk.settings for slot, disk in self._attached.items()})
