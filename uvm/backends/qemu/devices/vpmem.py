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

from bisect import bisect_left, insort
from typing import ClassVar, Final

from attrs import define, field

from uvm.backend import JSON
from uvm.backends.qemu.devices.drives import Drive, attach_image
from uvm.backends.qemu.devices.request import Device, DeviceTable, Host, Pool, Request, number_of
from uvm.hresult import HResult
from uvm.schema.common import PAGE_BYTES
from uvm.schema.devices import Devices, VirtualPMemDevice, VirtualPMemMapping
from uvm.schema.json import to_json
from uvm.schema.requests import Resource, VPMemDevice, VPMemMapping
from uvm.schema.system import VirtualMachine

_Resource = VPMemDevice | VPMemMapping
#: The number of a device, and the offset of a mapping on it.
_Key = tuple[int, int | None]
#: The formats that a request may state. What a file is follows from its name, so that it may also be raw.
_FORMATS: Final = ("Vhd1", "Vhdx", "")
_BUS: Final = "vpmem"
#: The LUNs of mappings.
_FIRST_MAPPING, _MAPPINGS = 256, 16128


@define(eq=False, repr=False)
class PMem(Device[VirtualPMemDevice | VirtualPMemMapping]):
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
    def length(self) -> int:
        """The bytes that it takes from the offset on, in whole pages."""
        return -(-self.drive.size_bytes // PAGE_BYTES) * PAGE_BYTES

    def overlaps(self, other: PMem) -> bool:
        """Return whether two mappings on a device overlap."""
        start, there = self.offset or 0, other.offset or 0
        return there < start + self.length and start < there + other.length


class VPMemKind(DeviceTable[_Resource, _Key, PMem]):
    """The VPMEM devices of a VM. A device of mappings exists while it has a mapping."""

    resources: ClassVar[tuple[type[Resource], ...]] = (VPMemDevice, VPMemMapping)
    name: ClassVar[str] = "VirtualPMem"
    actions: ClassVar[tuple[str, ...]] = ("Add", "Remove")

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._maximum_count = 0
        self._maximum_bytes = 0
        self._luns = Pool(_MAPPINGS, _FIRST_MAPPING)
        # The offsets of the mappings on each device, sorted.
        self._offsets: dict[int, list[int]] = {}

    async def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Set the limits of the controller, and attach the devices of the document."""
        controller = devices.virtual_pmem
        if controller is None:
            return
        self._maximum_count = min(controller.maximum_count, _FIRST_MAPPING)
        self._maximum_bytes = controller.maximum_size_bytes
        for number, device in controller.devices.items():
            slot = VPMemDevice(number_of(number, "VPMEM device"))
            await self.modify(Request(slot, "Add", to_json(device)))

    def key(self, request: Request[_Resource]) -> _Key:
        """Return the number of the device, and the offset of a mapping."""
        if not self._maximum_count:
            raise request.missing("the VM has no VPMEM controller")
        number = request.resource.device
        if number >= self._maximum_count:
            raise request.invalid(f"device numbers are below {self._maximum_count}")
        if isinstance(request.resource, VPMemMapping):
            return number, request.resource.offset_bytes
        if request.action == "Remove" and number in self._offsets:
            raise request.refuse(HResult.HCS_E_INVALID_STATE, f"files are mapped on device {number}")
        return number, None

    def make(self, request: Request[_Resource]) -> PMem:
        """Return the device or the mapping that a request describes."""
        number, offset = self.key(request)
        image: VirtualPMemDevice | VirtualPMemMapping = (
            request.parse(VirtualPMemDevice) if offset is None else request.parse(VirtualPMemMapping)
        )
        if offset and offset % PAGE_BYTES:
            raise request.invalid(f"offsets are multiples of {PAGE_BYTES}")
        if image.image_format not in _FORMATS:
            text = f"ImageFormat is {image.image_format!r}, not Vhd1 or Vhdx"
            raise request.refuse(HResult.HCS_E_INVALID_JSON, text)
        if not image.host_path:
            raise request.invalid("HostPath is missing")
        if isinstance(image, VirtualPMemDevice) and not image.read_only:
            raise request.lacking("VPMEM devices are read-only here; attach a writable disk over SCSI")
        if (number, None) in self._attached or (offset is None and number in self._offsets):
            raise request.taken(f"device {number} is in use")
        at = "" if offset is None else f" at {offset}"
        return PMem(f"pmem {number}{at} ({image.host_path})", image, number, offset)

    async def attach(self, request: Request[_Resource], device: PMem) -> None:
        """Attach the file of a device or a mapping, which has to fit."""
        if device.offset is not None:
            insort(self._offsets.setdefault(device.number, []), device.offset)
        try:
            self._place(request, device)
            await attach_image(
                device.drive,
                self.machine,
                self.host.access,
                request.operation,
                device.settings.host_path,
                _BUS,
                device.lun,
                read_only=True,
                device={"serial": device.drive.name},
                fits=lambda size: self._check_fits(request, device, size),
            )
        except Exception:
            self._forget(device)
            raise

    def _place(self, request: Request[_Resource], device: PMem) -> None:
        if device.offset is None:
            device.lun = device.number
            return
        lun = self._luns.take()
        if lun is None:
            raise request.refuse(HResult.ERROR_NO_SYSTEM_RESOURCES, f"{_MAPPINGS} files are mapped")
        device.lun = lun

    def _check_fits(self, request: Request[_Resource], device: PMem, size: int) -> None:
        device.drive.size_bytes = size
        if (device.offset or 0) + size > self._maximum_bytes:
            raise request.invalid(f"{size} bytes go beyond the device's {self._maximum_bytes}")
        if (other := self._overlapped(device)) is not None:
            raise request.invalid(f"it overlaps {other}")

    def _overlapped(self, device: PMem) -> PMem | None:
        """Return a mapping that another one overlaps; since none overlap, only its neighbours can be."""
        if device.offset is None:
            return None
        offsets = self._offsets[device.number]
        at = bisect_left(offsets, device.offset)
        neighbours = [*offsets[max(at - 1, 0) : at], *offsets[at + 1 : at + 2]]
        found = (self._attached[device.number, offset] for offset in neighbours)
        return next((other for other in found if device.overlaps(other)), None)

    async def detach(self, request: Request[_Resource], device: PMem) -> None:
        """Detach the file of a device or a mapping."""
        await device.drive.detach(self.machine, request.operation)
        self._forget(device)

    def _forget(self, device: PMem) -> None:
        if device.offset is None:
            return
        if device.lun >= 0:
            self._luns.put(device.lun)
        offsets = self._offsets[device.number]
        offsets.remove(device.offset)
        if not offsets:
            del self._offsets[device.number]

    def inventory(self) -> JSON:
        """Return the devices and mappings, by number and offset."""
        devices: JSON = {}
        for (number, offset), pmem in self._attached.items():
            if offset is None:
                devices[str(number)] = to_json(pmem.settings)
            else:
                device = devices.setdefault(str(number), {"Mappings": {}})
                device["Mappings"][str(offset)] = to_json(pmem.settings)
        return {"Devices": devices} if devices else {}
