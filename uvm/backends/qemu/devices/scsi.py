"""SCSI disks: four controllers of sixty-four LUNs, each a virtio-scsi of the VM."""

from __future__ import annotations

from typing import ClassVar, Final

from attrs import define, field

from uvm._names import guid_key
from uvm.backend import JSON
from uvm.backends.qemu.devices.drives import Drive, attach_image
from uvm.backends.qemu.devices.request import Device, DeviceTable, Host, Request, number_of
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
    """A disk on a controller."""

    controller: int
    lun: int
    drive: Drive = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.drive = Drive(f"disk-{self.controller}-{self.lun}")


class ScsiKind(DeviceTable[ScsiAttachment, tuple[int, int], Disk]):
    """The SCSI controllers of a VM, those of its document, and disks by controller number and LUN."""

    resources: ClassVar[tuple[type[Resource], ...]] = (ScsiAttachment,)
    name: ClassVar[str] = "Scsi"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._controllers: dict[str, int] = {}

    async def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Attach the disks of the document."""
        for guid in sorted(devices.scsi, key=_order):
            self._controllers[guid_key(guid)] = len(self._controllers)
        for guid, controller in devices.scsi.items():
            for lun, attachment in controller.attachments.items():
                slot = ScsiAttachment(guid, number_of(lun, "LUN"))
                await self.modify(Request(slot, "Add", to_json(attachment)))

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
        """Return the disk that a request describes."""
        attachment = _checked(request)
        if attachment.type == "ExtensibleVirtualDisk":
            raise request.lacking("extensible virtual disks are Windows's; use an image or a block device")
        controller, lun = self.key(request)
        return Disk(f"disk {controller}:{lun} ({attachment.path})", attachment, controller, lun)

    async def attach(self, request: Request[ScsiAttachment], device: Disk) -> None:
        """Attach a disk to its controller; an ISO image is a disk that is read-only."""
        settings = device.settings
        read_only = settings.read_only or settings.type == "Iso"
        allowed = self.host.access.allows
        if not read_only and not allowed(settings.path, self.machine.id, writable=True):
            text = f"VM {self.machine.id} has no access to {settings.path}; grant it with grant_access"
            raise request.refuse(HResult.E_ACCESSDENIED, text)
        await attach_image(
            device.drive,
            self.machine,
            self.host.access,
            request.operation,
            settings.path,
            f"scsi{device.controller}",
            device.lun,
            read_only=read_only,
            only_block=settings.type == "PassThru",
            format="raw" if settings.type == "Iso" else None,
            node={"cache": {"no-flush": True}} if settings.ignore_flushes else None,
        )

    def update(self, request: Request[ScsiAttachment], device: Disk) -> None:
        """Refuse a change: HCS changes hints alone, which have no counterpart here."""
        new, old = _checked(request), device.settings
        if new != new.replaced(type=old.type, path=old.path, read_only=old.read_only):
            raise request.invalid("the type, path and access of an attached disk cannot change")
        device.settings = new

    async def detach(self, request: Request[ScsiAttachment], device: Disk) -> None:
        """Detach a disk."""
        await device.drive.detach(self.machine, request.operation)

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
