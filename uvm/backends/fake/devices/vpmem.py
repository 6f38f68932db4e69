"""Virtual persistent memory: devices of one file each, or of many files mapped at offsets."""

from __future__ import annotations

from typing import ClassVar

from attrs import define, field

from uvm.backend import JSON
from uvm.backends.fake.devices.request import Device, DeviceTable
from uvm.backends.fake.files import OpenDisk
from uvm.backends.fake.host import Host
from uvm.backends.requests import vpmem
from uvm.backends.requests.request import Request
from uvm.devices.slots import page_align
from uvm.errors import HostError
from uvm.schema.devices import Devices, VirtualPMemDevice
from uvm.schema.json import to_json
from uvm.schema.requests import Resource, VPMemDevice, VPMemMapping
from uvm.schema.system import VirtualMachine


@define(eq=False, repr=False)
class PMem(Device[vpmem.PMemImage]):
    """A file on a device: all of it, or mapped at an offset.

    :ivar number: the number of the device.
    :ivar offset: in bytes; None for the whole device.
    """

    number: int
    offset: int | None
    file: OpenDisk = field(init=False)

    @property
    def key(self) -> vpmem.PMemKey:
        """Where it is."""
        return self.number, self.offset

    @property
    def length(self) -> int:
        """The bytes that it takes from the offset on, in whole pages; 0 if the size is not known."""
        return page_align(self.file.size_bytes)


class VPMemKind(DeviceTable[vpmem.PMemResource, vpmem.PMemKey, PMem]):
    """The VPMEM controller of a VM. A device of mappings exists while it has a mapping."""

    resources: ClassVar[tuple[type[Resource], ...]] = (VPMemDevice, VPMemMapping)
    name: ClassVar[str] = "VirtualPMem"
    actions: ClassVar[tuple[str, ...]] = ("Add", "Remove")

    def __init__(self, vm_id: str, host: Host) -> None:
        super().__init__(vm_id, host)
        self._layout: vpmem.Layout = vpmem.Layout()

    def load(self, vm: VirtualMachine, devices: Devices) -> None:
        """Set the limits of the controller, and attach the devices of the document."""
        controller = devices.virtual_pmem
        if controller is None:
            return
        self._layout.load(controller)
        for slot, image in vpmem.placed(controller.devices):
            self.modify(Request(slot, "Add", to_json(image)))

    @property
    def devices(self) -> dict[int, PMem]:
        """The devices of one file each, by number."""
        return {number: pmem for (number, offset), pmem in self._attached.items() if offset is None}

    @property
    def mappings(self) -> dict[tuple[int, int], PMem]:
        """The mapped files, by device number and offset."""
        return {(n, offset): pmem for (n, offset), pmem in self._attached.items() if offset is not None}

    def key(self, request: Request[vpmem.PMemResource]) -> vpmem.PMemKey:
        """Return the number of the device, and the offset of a mapping."""
        return self._layout.key(request)

    def make(self, request: Request[vpmem.PMemResource]) -> PMem:
        """Return the device or the mapping that a request describes, without its file."""
        key = self.key(request)
        image = vpmem.checked(request, key[1])
        return PMem(vpmem.named(key, image), image, *key)

    def attach(self, request: Request[vpmem.PMemResource], device: PMem) -> None:
        """Open the file of a device or a mapping, which has to fit."""
        number, image = device.number, device.settings
        if (number, None) in self._attached or (device.offset is None and self._layout.has_mappings(number)):
            raise request.taken(f"device {number} is in use")
        # Mapped files are always read-only.
        writable = isinstance(image, VirtualPMemDevice) and not image.read_only
        device.file = self.host.open_file(
            image.host_path, self.vm_id, writable=writable, operation=request.operation
        )
        self._layout.reserve(device.key)
        try:
            overlapped = self._layout.fit(request, device.key, device.file.size_bytes)
            if overlapped is not None:
                raise request.invalid(f"it overlaps {self._attached[overlapped]}")
        except HostError:
            self._layout.release(device.key)
            device.file.close()
            raise

    def detach(self, device: PMem) -> None:
        """Close the file of a device or a mapping."""
        super().detach(device)
        device.file.close()
        self._layout.release(device.key)

    def inventory(self) -> JSON:
        """Return the devices and mappings, by number and offset."""
        return vpmem.inventory({key: pmem.settings for key, pmem in self._attached.items()})
