"""SCSI controllers and the disks on them."""

from __future__ import annotations

from typing import ClassVar, Final

from attrs import define, evolve

from uvm._names import guid_key
from uvm.backend import JSON
from uvm.backends.fake.devices.request import DeviceKind, Request, number_of
from uvm.backends.fake.files import OpenDisk
from uvm.backends.fake.host import Host
from uvm.hresult import HResult
from uvm.schema.devices import Attachment
from uvm.schema.json import to_json
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS, Resource, ScsiAttachment
from uvm.schema.system import VirtualMachine

#: LUNs of one controller.
LUNS: Final = 64
_TYPES: Final = ("VirtualDisk", "Iso", "PassThru", "ExtensibleVirtualDisk")


@define(eq=False)
class Disk:
    """A disk on a controller.

    :ivar controller: the controller's number, as the guest knows it.
    :ivar attached: False once the host has taken it away.
    """

    controller: int
    lun: int
    attachment: Attachment
    file: OpenDisk | None
    attached: bool = True

    def __str__(self) -> str:
        return f"disk {self.controller}:{self.lun} ({self.attachment.path})"


class ScsiKind(DeviceKind[ScsiAttachment]):
    """The SCSI controllers of a VM, those of its document and no others."""

    __slots__ = ("_controllers", "_disks")

    resources: ClassVar[tuple[type[Resource], ...]] = (ScsiAttachment,)
    name: ClassVar[str] = "Scsi"

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self._controllers: dict[str, int] = {}
        self._disks: dict[tuple[int, int], Disk] = {}

    def load(self, vm: VirtualMachine) -> None:
        """Take over the controllers and the disks of the document."""
        controllers = vm.devices.scsi if vm.devices is not None else {}
        for guid in sorted(controllers, key=_order):
            self._controllers[guid_key(guid)] = len(self._controllers)
        for guid, controller in controllers.items():
            for lun, attachment in controller.attachments.items():
                slot = ScsiAttachment(guid, number_of(lun, "LUN"))
                self._add(Request(slot, "Add", to_json(attachment)))

    @property
    def disks(self) -> dict[tuple[int, int], Disk]:
        """The attached disks by controller number and LUN."""
        return dict(self._disks)

    def disk(self, controller: int, lun: int) -> Disk | None:
        """Return the disk in a slot; None if it is empty."""
        return self._disks.get((controller, lun))

    def modify(self, request: Request[ScsiAttachment]) -> None:
        """Attach, change or detach a disk."""
        match request.action:
            case "Add":
                self._add(request)
            case "Update":
                self._update(request)
            case _:
                self._remove(request)

    def close(self) -> None:
        """Let go of every disk."""
        for disk in self._disks.values():
            self._release(disk)
        self._disks.clear()

    def inventory(self) -> JSON:
        """Return the controllers in the form of the document."""
        return {
            guid: {
                "Attachments": {
                    str(lun): to_json(d.attachment) for (c, lun), d in self._disks.items() if c == i
                }
            }
            for guid, i in self._controllers.items()
        }

    def _slot(self, request: Request[ScsiAttachment]) -> tuple[int, int]:
        guid, lun = request.resource.controller, request.resource.lun
        controller = self._controllers.get(guid_key(guid))
        if controller is None:
            raise request.missing(f"the VM has no controller {guid}")
        if lun >= LUNS:
            raise request.invalid(f"LUNs are below {LUNS}")
        return controller, lun

    def _add(self, request: Request[ScsiAttachment]) -> None:
        slot = self._slot(request)
        attachment = _checked(request)
        if slot in self._disks:
            raise request.taken(f"{self._disks[slot]} is there")
        file = None
        if attachment.type != "ExtensibleVirtualDisk":
            file = self.host.open_file(
                attachment.path, self.vm_id, writable=not attachment.read_only, operation=request.operation
            )
        self._disks[slot] = Disk(*slot, attachment, file)

    def _update(self, request: Request[ScsiAttachment]) -> None:
        disk = self._disks.get(self._slot(request))
        attachment = _checked(request)
        if disk is None:
            raise request.missing("no disk is there")
        old = disk.attachment
        if attachment != evolve(attachment, type=old.type, path=old.path, read_only=old.read_only):
            raise request.invalid("the type, path and access of an attached disk cannot change")
        disk.attachment = attachment

    def _remove(self, request: Request[ScsiAttachment]) -> None:
        disk = self._disks.pop(self._slot(request), None)
        if disk is None:
            raise request.missing("no disk is there")
        self._release(disk)

    def _release(self, disk: Disk) -> None:
        disk.attached = False
        if disk.file is not None:
            disk.file.close()


def _order(guid: str) -> tuple[int, str]:
    """Number controllers as the guest does: the known GUIDs in their order, then others by name."""
    key = guid_key(guid)
    return (SCSI_CONTROLLER_GUIDS.index(key) if key in SCSI_CONTROLLER_GUIDS else LUNS, key)


def _checked(request: Request[ScsiAttachment]) -> Attachment:
    attachment = request.parse(Attachment)
    if attachment.type not in _TYPES:
        raise request.refuse(
            HResult.HCS_E_INVALID_JSON, f"Type is {attachment.type!r}, not one of {', '.join(_TYPES)}"
        )
    if not attachment.path:
        raise request.invalid("Path is missing")
    if (attachment.type == "ExtensibleVirtualDisk") != bool(attachment.extensible_virtual_disk_type):
        raise request.invalid(
            "ExtensibleVirtualDiskType goes with the type ExtensibleVirtualDisk, and only with it"
        )
    return attachment
