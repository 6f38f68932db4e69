"""SCSI disks: four controllers of sixty-four LUNs, each a virtio-scsi of the VM."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from attrs import define, field

from uvm.backend import JSON
from uvm.backends.qemu.devices.drives import Drive
from uvm.backends.qemu.devices.request import Device, DeviceTable, Host
from uvm.backends.requests.request import Request, number_of
from uvm.backends.requests.scsi import Controllers, changed, checked
from uvm.hresult import HResult
from uvm.schema.devices import Attachment, Devices
from uvm.schema.json import to_json
from uvm.schema.requests import Resource, ScsiAttachment
from uvm.schema.system import VirtualMachine


@define(eq=False, repr=False)
class Disk(Device[Attachment]):
    """A disk on a controller."""

    controller: int
    lun: int
    drive: Drive = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.drive = Drive(f"disk-{self.controller}-{self.lun}")

    @property
    def device(self) -> str:
        """The name of its device in QEMU."""
        return self.drive.name

    @property
    def read_only(self) -> bool:
        """Whether the guest only reads it; an ISO image is read-only."""
        return self.settings.read_only or self.settings.type == "Iso"


class ScsiKind(DeviceTable[ScsiAttachment, tuple[int, int], Disk]):
    """The SCSI controllers of a VM, those of its document, and disks by controller number and LUN.

    :ivar bases: the files of the template that disks of a clone's document may be over.
    """

    resources: ClassVar[tuple[type[Resource], ...]] = (ScsiAttachment,)
    name: ClassVar[str] = "Scsi"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._controllers: Controllers = Controllers()
        self.bases: Collection[str] = ()

    def configure(self, vm: VirtualMachine, devices: Devices) -> None:
        """Have the controllers of the document."""
        self._controllers.load(devices.scsi)

    async def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Attach the disks of the document."""
        for guid, controller in devices.scsi.items():
            for lun, attachment in controller.attachments.items():
                slot = ScsiAttachment(guid, number_of(lun, "LUN"))
                await self.modify(Request(slot, "Add", to_json(attachment)))
        self.bases = ()

    def key(self, request: Request[ScsiAttachment]) -> tuple[int, int]:
        """Return the controller number and the LUN."""
        return self._controllers.slot(request)

    def make(self, request: Request[ScsiAttachment]) -> Disk:
        """Return the disk that a request describes."""
        attachment = checked(request)
        if attachment.type == "ExtensibleVirtualDisk":
            raise request.lacking("extensible virtual disks are Windows's; use an image or a block device")
        controller, lun = self.key(request)
        return Disk(f"disk {controller}:{lun} ({attachment.path})", attachment, controller, lun)

    async def attach(self, request: Request[ScsiAttachment], device: Disk) -> None:
        """Attach a disk to its controller."""
        settings, read_only = device.settings, device.read_only
        allowed = self.host.access.allows
        if not read_only and not allowed(settings.path, self.machine.id, writable=True):
            text = f"VM {self.machine.id} has no access to {settings.path}; grant it with grant_access"
            raise request.refuse(HResult.E_ACCESSDENIED, text)
        self.note(request, device, {})
        await device.drive.attach(
            self.host,
            request.operation,
            settings.path,
            f"scsi{device.controller}",
            device.lun,
            read_only=read_only,
            only_block=settings.type == "PassThru",
            format="raw" if settings.type == "Iso" else None,
            bases=self.bases,
            node={"cache": {"no-flush": True}} if settings.ignore_flushes else None,
        )

    def put_back(self, request: Request[ScsiAttachment], device: Disk, place: JSON) -> None:
        """Have a disk that an earlier process has attached."""
        device.drive.adopt(place["FDSets"])

    def update(self, request: Request[ScsiAttachment], device: Disk) -> None:
        """Refuse a change: HCS changes hints alone, which have no counterpart here."""
        device.settings = changed(request, device.settings)

    async def detach(self, request: Request[ScsiAttachment], device: Disk) -> None:
        """Detach a disk."""
        await device.drive.detach(self.machine, request.operation)

    def writable(self) -> list[str]:
        """Return the paths of the files of disks that the guest may write to."""
        written = [disk.drive.paths for disk in self._attached.values() if not disk.read_only]
        return [path for paths in written for path in paths]

    def opened(self) -> set[str]:
        """Return the paths of the files of all disks."""
        return {path for disk in self._attached.values() for path in disk.drive.paths}

    def inventory(self) -> JSON:
        """Return the controllers in the form of the document."""
        return self._controllers.inventory({slot: disk.settings for slot, disk in self._attached.items()})
