"""Virtual persistent memory: devices of one file each, or of many files mapped at offsets."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import ClassVar, Final

from attrs import define, field

from uvm.backend import JSON
from uvm.backends.fake.devices.request import Device, DeviceTable, Request, number_of
from uvm.backends.fake.files import OpenDisk
from uvm.backends.fake.host import Host
from uvm.hresult import HResult
from uvm.schema.common import PAGE_BYTES
from uvm.schema.devices import Devices, VirtualPMemDevice, VirtualPMemMapping
from uvm.schema.json import to_json
from uvm.schema.requests import Resource, VPMemDevice, VPMemMapping
from uvm.schema.system import VirtualMachine

_Resource = VPMemDevice | VPMemMapping
#: The number of a device, and the offset of a mapping on it.
_Key = tuple[int, int | None]
_FORMATS: Final = ("Vhd1", "Vhdx", "")


@define(eq=False, repr=False)
class PMem(Device[VirtualPMemDevice | VirtualPMemMapping]):
    """A file on a device: all of it, or mapped at an offset.

    :ivar number: the number of the device.
    :ivar offset: in bytes; None for the whole device.
    """

    number: int
    offset: int | None
    file: OpenDisk = field(init=False)

    @property
    def length(self) -> int:
        """The bytes that it takes from the offset on, in whole pages; 0 if the size is not known."""
        return -(-self.file.size_bytes // PAGE_BYTES) * PAGE_BYTES

    def overlaps(self, other: PMem) -> bool:
        """Return whether two mappings on a device overlap."""
        start, there = self.offset or 0, other.offset or 0
        return there < start + self.length and start < there + other.length


class VPMemKind(DeviceTable[_Resource, _Key, PMem]):
    """The VPMEM controller of a VM. A device of mappings exists while it has a mapping."""

    resources: ClassVar[tuple[type[Resource], ...]] = (VPMemDevice, VPMemMapping)
    name: ClassVar[str] = "VirtualPMem"
    actions: ClassVar[tuple[str, ...]] = ("Add", "Remove")

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self._maximum_count = 0
        self._maximum_bytes = 0
        # The offsets of the mappings on each device, sorted.
        self._offsets: dict[int, list[int]] = {}

    def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Set the limits of the controller, and attach the devices of the document."""
        controller = devices.virtual_pmem
        if controller is None:
            return
        self._maximum_count = controller.maximum_count
        self._maximum_bytes = controller.maximum_size_bytes
        for number, device in controller.devices.items():
            slot = VPMemDevice(number_of(number, "VPMEM device"))
            self.modify(Request(slot, "Add", to_json(device)))

    @property
    def devices(self) -> dict[int, PMem]:
        """The devices of one file each, by number."""
        return {number: pmem for (number, offset), pmem in self._attached.items() if offset is None}

    @property
    def mappings(self) -> dict[tuple[int, int], PMem]:
        """The mapped files, by device number and offset."""
        return {(n, offset): pmem for (n, offset), pmem in self._attached.items() if offset is not None}

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
        """Return the device or the mapping that a request describes, without its file."""
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
        at = "" if offset is None else f" at {offset}"
        return PMem(f"pmem {number}{at} ({image.host_path})", image, number, offset)

    def attach(self, request: Request[_Resource], device: PMem) -> None:
        """Open the file of a device or a mapping, which has to fit."""
        number, image = request.resource.device, device.settings
        if (number, None) in self._attached or (device.offset is None and number in self._offsets):
            raise request.taken(f"device {number} is in use")
        # Mapped files are always read-only.
        writable = isinstance(image, VirtualPMemDevice) and not image.read_only
        device.file = self.host.open_file(
            image.host_path, self.vm_id, writable=writable, operation=request.operation
        )
        size = device.file.size_bytes
        text = ""
        if (device.offset or 0) + size > self._maximum_bytes:
            text = f"{size} bytes go beyond the device's {self._maximum_bytes}"
        elif (other := self.overlapped(device)) is not None:
            text = f"it overlaps {other}"
        if text:
            device.file.close()
            raise request.invalid(text)
        if device.offset is not None:
            insort(self._offsets.setdefault(number, []), device.offset)

    def overlapped(self, device: PMem) -> PMem | None:
        """Return a mapping that another one would overlap; since none overlap, only its neighbours can be."""
        offsets, start = self._offsets.get(device.number, []), device.offset or 0
        at = bisect_left(offsets, start)
        neighbours = (self._attached[device.number, offset] for offset in offsets[max(at - 1, 0) : at + 1])
        return next((other for other in neighbours if device.overlaps(other)), None)

    def detach(self, device: PMem) -> None:
        """Close the file of a device or a mapping."""
        super().detach(device)
        device.file.close()
        if device.offset is not None:
            offsets = self._offsets[device.number]
            del offsets[bisect_left(offsets, device.offset)]
            if not offsets:
                del self._offsets[device.number]

    def inventory(self) -> JSON:
        """Return the devices and mappings, by number and offset."""
        devices: JSON = {str(number): to_json(pmem.settings) for number, pmem in self.devices.items()}
        for (number, offset), pmem in self.mappings.items():
            device = devices.setdefault(str(number), {"Mappings": {}})
            device["Mappings"][str(offset)] = to_json(pmem.settings)
        return {"Devices": devices} if devices else {}
