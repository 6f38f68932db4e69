"""Virtual persistent memory, emulated: read-only disks on a SCSI controller of their own.

How it works
------------

The controller is the fifth virtio-scsi. The guest finds what a request is about by the request's own numbers:

====================================  ======================  ==================================
a device                              LUN = its number        serial ``pmem-NUMBER``
a mapping on a device, at an offset   the lowest from 256 on  serial ``pmem-NUMBER-OFFSET``
====================================  ======================  ==================================

A mapping is a disk too, so that nothing is copied together: the guest scans the controller and looks for the
serial. Its file is at the beginning of that disk. There is no DAX: each guest caches what it reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Final

from attrs import define, field

from uvm.backend import JSON
from uvm.backends.qemu.devices.drives import Drive
from uvm.backends.qemu.devices.request import Device, DeviceTable, Host, Pool
from uvm.backends.requests.request import Request
from uvm.backends.requests.vpmem import (
    Layout,
    PMemImage,
    PMemKey,
    PMemResource,
    checked,
    inventory,
    named,
    placed,
)
from uvm.hresult import HResult
from uvm.schema.devices import Devices, VirtualPMemController, VirtualPMemDevice
from uvm.schema.json import to_json
from uvm.schema.requests import Resource, VPMemDevice, VPMemMapping
from uvm.schema.system import VirtualMachine

#: The bus of the controller.
_BUS: Final = "vpmem"
#: The LUNs of mappings.
_FIRST_MAPPING, _MAPPINGS = 256, 16128


@define(eq=False, repr=False)
class PMem(Device[PMemImage]):
    """A file on a device: all of it, or mapped at an offset.

    :ivar number: the number of the device.
    :ivar offset: in bytes; None for the whole device.
    """

    number: int
    offset: int | None
    lun: int = field(default=-1, init=False)
    drive: Drive = field(init=False)

    def __attrs_post_init__(self) -> None:
        at = "" if self.offset is None else f"-{self.offset}"
        self.drive = Drive(f"pmem-{self.number}{at}")

    @property
    def device(self) -> str:
        """The name of its device in QEMU."""
        return self.drive.name

    @property
    def key(self) -> PMemKey:
        """Where it is."""
        return self.number, self.offset


class VPMemKind(DeviceTable[PMemResource, PMemKey, PMem]):
    """The VPMEM devices of a VM. A device of mappings exists while it has a mapping.

    :ivar places: the LUNs that the mappings of a clone's document have in its template.
    :ivar bases: the files of the template that those of a clone's document may be over.
    """

    resources: ClassVar[tuple[type[Resource], ...]] = (VPMemDevice, VPMemMapping)
    name: ClassVar[str] = "VirtualPMem"
    actions: ClassVar[tuple[str, ...]] = ("Add", "Remove")

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._layout: Layout = Layout()
        self._luns = Pool(_MAPPINGS, _FIRST_MAPPING)
        self.places: Mapping[PMemKey, int] = {}
        self.bases: Collection[str] = ()

    def configure(self, vm: VirtualMachine, devices: Devices) -> None:
        """Set the limits of the controller."""
        if devices.virtual_pmem is not None:
            self._layout.load(devices.virtual_pmem, _FIRST_MAPPING)

    async def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Attach the devices of the document."""
        controller = devices.virtual_pmem or VirtualPMemController()
        for slot, image in placed(controller.devices):
            await self.modify(Request(slot, "Add", to_json(image)))
        self.places, self.bases = {}, ()

    def key(self, request: Request[PMemResource]) -> PMemKey:
        """Return the number of the device, and the offset of a mapping."""
        return self._layout.key(request)

    def make(self, request: Request[PMemResource]) -> PMem:
        """Return the device or the mapping that a request describes."""
        key = number, offset = self.key(request)
        image = checked(request, offset)
        if isinstance(image, VirtualPMemDevice) and not image.read_only:
            raise request.lacking("VPMEM devices are read-only here; attach a writable disk over SCSI")
        if (number, None) in self._attached or (offset is None and self._layout.has_mappings(number)):
            raise request.taken(f"device {number} is in use")
        return PMem(named(key, image), image, number, offset)

    async def attach(self, request: Request[PMemResource], device: PMem) -> None:
        """Attach the file of a device or a mapping, which has to fit."""
        self._layout.reserve(device.key)
        try:
            self._place(request, device)
            await device.drive.attach(
                self.host,
                request.operation,
                device.settings.host_path,
                _BUS,
                device.lun,
                read_only=True,
                bases=self.bases,
                device={"serial": device.drive.name},
                fits=lambda size: self._check_fits(request, device, size),
            )
        except Exception:
            self._forget(device)
            raise

    def _place(self, request: Request[PMemResource], device: PMem) -> None:
        if device.offset is None:
            device.lun = device.number
            return
        lun = self._luns.take(self.places.get(device.key))
        if lun is None:
            raise request.refuse(HResult.ERROR_NO_SYSTEM_RESOURCES, f"{_MAPPINGS} files are mapped")
        device.lun = lun

    def _check_fits(self, request: Request[PMemResource], device: PMem, size: int) -> None:
        overlapped = self._layout.fit(request, device.key, size)
        if overlapped is not None:
            raise request.invalid(f"it overlaps {self._attached[overlapped]}")
        self.note(request, device, {"LUN": device.lun, "SizeBytes": size})

    def put_back(self, request: Request[PMemResource], device: PMem, place: JSON) -> None:
        """Have a file that an earlier process has attached."""
        device.lun = place["LUN"]
        self._layout.reserve(device.key)
        self._layout.fit(request, device.key, place["SizeBytes"])
        if device.offset is not None:
            self._luns.take(device.lun)
        device.drive.adopt(place["FDSets"], place["SizeBytes"])

    async def detach(self, request: Request[PMemResource], device: PMem) -> None:
        """Detach the file of a device or a mapping."""
        await device.drive.detach(self.machine, request.operation)
        self._forget(device)

    def _forget(self, device: PMem) -> None:
        self._layout.release(device.key)
        if device.offset is not None and device.lun >= 0:
            self._luns.put(device.lun)

    def luns(self) -> dict[PMemKey, int]:
        """Return the LUNs of the mappings."""
        return {key: pmem.lun for key, pmem in self._attached.items() if pmem.offset is not None}

    def opened(self) -> set[str]:
        """Return the paths of the files of all devices and mappings."""
        return {path for pmem in self._attached.values() for path in pmem.drive.paths}

    def inventory(self) -> JSON:
        """Return the devices and mappings, by number and offset."""
        return inventory({key: pmem.settings for key, pmem in self._attached.items()})
