"""Virtual persistent memory: devices of one file each, or of many files mapped at offsets."""

from __future__ import annotations

from typing import ClassVar, Final

from attrs import define

from uvm.backend import JSON
from uvm.backends.fake.devices.request import DeviceKind, Request, number_of
from uvm.backends.fake.files import OpenDisk
from uvm.backends.fake.host import Host
from uvm.hresult import HResult
from uvm.schema.common import PAGE_BYTES
from uvm.schema.devices import VirtualPMemDevice, VirtualPMemMapping
from uvm.schema.json import to_json
from uvm.schema.requests import Resource, VPMemDevice, VPMemMapping
from uvm.schema.system import VirtualMachine

_Resource = VPMemDevice | VPMemMapping
_FORMATS: Final = ("Vhd1", "Vhdx", "")


@define(eq=False)
class PMem:
    """A file on a device: all of it, or mapped at an offset.

    :ivar offset: None for the whole device.
    :ivar attached: False once the host has taken it away.
    """

    number: int
    offset: int | None
    image: VirtualPMemDevice | VirtualPMemMapping
    file: OpenDisk
    attached: bool = True

    @property
    def length(self) -> int:
        """The bytes from the offset on that it takes, in whole pages; 0 if the size is not known."""
        return -(-self.file.size_bytes // PAGE_BYTES) * PAGE_BYTES

    def __str__(self) -> str:
        at = "" if self.offset is None else f" at {self.offset}"
        return f"pmem {self.number}{at} ({self.image.host_path})"


class VPMemKind(DeviceKind[_Resource]):
    """The VPMEM controller of a VM. A device of mappings is there while it has a mapping."""

    __slots__ = ("_devices", "_mappings", "_maximum_bytes", "_maximum_count")

    resources: ClassVar[tuple[type[Resource], ...]] = (VPMemDevice, VPMemMapping)
    name: ClassVar[str] = "VirtualPMem"

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self._maximum_count = 0
        self._maximum_bytes = 0
        self._devices: dict[int, PMem] = {}
        self._mappings: dict[int, dict[int, PMem]] = {}

    def load(self, vm: VirtualMachine) -> None:
        """Take over the controller's limits and the devices of the document."""
        controller = vm.devices.virtual_pmem if vm.devices is not None else None
        if controller is None:
            return
        self._maximum_count = controller.maximum_count
        self._maximum_bytes = controller.maximum_size_bytes
        for number, device in controller.devices.items():
            place = VPMemDevice(number_of(number, "VPMEM device"))
            self._add_device(Request(place, "Add", to_json(device)))

    @property
    def devices(self) -> dict[int, PMem]:
        """The devices of one file each, by number."""
        return dict(self._devices)

    @property
    def mappings(self) -> dict[tuple[int, int], PMem]:
        """The mapped files, by device number and offset."""
        return {(n, offset): m for n, at in self._mappings.items() for offset, m in at.items()}

    def find(self, number: int, offset: int | None = None) -> PMem | None:
        """Return the device of one file, or the file mapped at an offset; None if there is none."""
        if offset is None:
            return self._devices.get(number)
        return self._mappings.get(number, {}).get(offset)

    def modify(self, request: Request[_Resource]) -> None:
        """Attach or detach a device or a mapping."""
        request.allow("Add", "Remove")
        match request.resource, request.action:
            case VPMemMapping(offset_bytes=offset), "Add":
                self._add_mapping(request, offset)
            case VPMemMapping(offset_bytes=offset), _:
                self._remove_mapping(request, offset)
            case _, "Add":
                self._add_device(request)
            case _:
                self._remove_device(request)

    def close(self) -> None:
        """Let go of every file."""
        for pmem in [*self._devices.values(), *self.mappings.values()]:
            self._release(pmem)
        self._devices.clear()
        self._mappings.clear()

    def inventory(self) -> JSON:
        """Return the devices and mappings, by number and offset."""
        devices: JSON = {str(n): to_json(d.image) for n, d in self._devices.items()}
        for number, mappings in self._mappings.items():
            devices[str(number)] = {"Mappings": {str(o): to_json(m.image) for o, m in mappings.items()}}
        return {"Devices": devices} if devices else {}

    def _number(self, request: Request[_Resource]) -> int:
        if not self._maximum_count:
            raise request.missing("the VM has no VPMEM controller")
        number = request.resource.device
        if number >= self._maximum_count:
            raise request.invalid(f"device numbers are below {self._maximum_count}")
        return number

    def _add_device(self, request: Request[_Resource]) -> None:
        number = self._number(request)
        device = request.parse(VirtualPMemDevice)
        if number in self._devices or number in self._mappings:
            raise request.taken(f"device {number} is there")
        self._devices[number] = self._open(request, number, None, device)

    def _remove_device(self, request: Request[_Resource]) -> None:
        number = self._number(request)
        if number in self._mappings:
            raise request.refuse(HResult.HCS_E_INVALID_STATE, f"files are mapped on device {number}")
        if number not in self._devices:
            raise request.missing(f"there is no device {number}")
        self._release(self._devices.pop(number))

    def _add_mapping(self, request: Request[_Resource], offset: int) -> None:
        number = self._number(request)
        mapping = request.parse(VirtualPMemMapping)
        if offset % PAGE_BYTES:
            raise request.invalid(f"offsets are multiples of {PAGE_BYTES}")
        if number in self._devices:
            raise request.taken(f"device {number} is one file")
        there = self._mappings.get(number, {})
        if offset in there:
            raise request.taken(f"{there[offset]} is there")
        pmem = self._open(request, number, offset, mapping)
        for other in there.values():
            start = other.offset or 0
            if start < offset + pmem.length and offset < start + other.length:
                self._release(pmem)
                raise request.invalid(f"it overlaps {other}")
        self._mappings.setdefault(number, there)[offset] = pmem

    def _remove_mapping(self, request: Request[_Resource], offset: int) -> None:
        number = self._number(request)
        there = self._mappings.get(number, {})
        if offset not in there:
            raise request.missing(f"nothing is mapped on device {number} at {offset}")
        self._release(there.pop(offset))
        if not there:
            del self._mappings[number]

    def _open(
        self,
        request: Request[_Resource],
        number: int,
        offset: int | None,
        image: VirtualPMemDevice | VirtualPMemMapping,
    ) -> PMem:
        if image.image_format not in _FORMATS:
            raise request.refuse(
                HResult.HCS_E_INVALID_JSON, f"ImageFormat is {image.image_format!r}, not Vhd1 or Vhdx"
            )
        if not image.host_path:
            raise request.invalid("HostPath is missing")
        # Mapped files are always read-only.
        writable = isinstance(image, VirtualPMemDevice) and not image.read_only
        file = self.host.open_file(
            image.host_path, self.vm_id, writable=writable, operation=request.operation
        )
        if (offset or 0) + file.size_bytes > self._maximum_bytes:
            file.close()
            raise request.invalid(f"{file.size_bytes} bytes go beyond the device's {self._maximum_bytes}")
        return PMem(number, offset, image, file)

    def _release(self, pmem: PMem) -> None:
        pmem.attached = False
        pmem.file.close()
