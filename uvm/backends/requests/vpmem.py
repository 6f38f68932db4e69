"""Requests for VPMEM: devices of one file each, or of many files that are mapped at offsets."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from uvm._repr import showing
from uvm.backend import JSON
from uvm.backends.requests.request import Request, number_of
from uvm.devices.slots import page_align
from uvm.hresult import HResult
from uvm.schema.common import PAGE_BYTES
from uvm.schema.devices import VirtualPMemController, VirtualPMemDevice, VirtualPMemMapping
from uvm.schema.json import to_json
from uvm.schema.requests import VPMemDevice, VPMemMapping

PMemResource: TypeAlias = VPMemDevice | VPMemMapping
PMemImage: TypeAlias = VirtualPMemDevice | VirtualPMemMapping
#: The number of a device, and the offset in bytes of a mapping on it; None for the whole device.
PMemKey: TypeAlias = tuple[int, int | None]

_FORMATS: Final = ("Vhd1", "Vhdx", "")


@showing("maximum_count")
class Layout:
    """The limits of a VM's controller, and where files are mapped on its devices: none overlap.

    :ivar maximum_count: how many devices there can be; 0 without a controller.
    """

    def __init__(self) -> None:
        self.maximum_count: int = 0
        self._maximum_bytes = 0
        # The offsets on each device, sorted, and the bytes at each, in whole pages; 0 while they are unknown.
        self._offsets: dict[int, list[int]] = {}
        self._lengths: dict[tuple[int, int], int] = {}

    def load(self, controller: VirtualPMemController, most: int | None = None) -> None:
        """Set the limits that a document states; at most `most` devices."""
        count = controller.maximum_count
        self.maximum_count = count if most is None else min(count, most)
        self._maximum_bytes = controller.maximum_size_bytes

    def key(self, request: Request[PMemResource]) -> PMemKey:
        """Return the device, and the offset of a mapping, that a request is about.

        :raises HostError: the VM has no such device: ERROR_NOT_FOUND, or E_INVALIDARG; or it has mappings:
            HCS_E_INVALID_STATE.
        """
        if not self.maximum_count:
            raise request.missing("the VM has no VPMEM controller")
        number = request.resource.device
        if number >= self.maximum_count:
            raise request.invalid(f"device numbers are below {self.maximum_count}")
        if isinstance(request.resource, VPMemMapping):
            return number, request.resource.offset_bytes
        if request.action == "Remove" and number in self._offsets:
            raise request.refuse(HResult.HCS_E_INVALID_STATE, f"files are mapped on device {number}")
        return number, None

    def has_mappings(self, number: int) -> bool:
        """Return whether files are mapped on a device."""
        return number in self._offsets

    def reserve(self, key: PMemKey) -> None:
        """Take a place, for a file whose size is not known yet."""
        number, offset = key
        if offset is not None:
            insort(self._offsets.setdefault(number, []), offset)
            self._lengths[number, offset] = 0

    def fit(self, request: Request[PMemResource], key: PMemKey, size_bytes: int) -> PMemKey | None:
        """Have a file of a size at a place that was reserved; return the mapping that it overlaps, if any.

        :raises HostError: it does not fit into the device: E_INVALIDARG.
        """
        number, offset = key
        if (offset or 0) + size_bytes > self._maximum_bytes:
            raise request.invalid(f"{size_bytes} bytes go beyond the device's {self._maximum_bytes}")
        if offset is None:
            return None
        self._lengths[number, offset] = page_align(size_bytes)
        offsets = self._offsets[number]
        at = bisect_left(offsets, offset)
        # Since none overlap, only its neighbours can.
        neighbours = [*offsets[max(at - 1, 0) : at], *offsets[at + 1 : at + 2]]
        return next(((number, other) for other in neighbours if self._overlap(number, offset, other)), None)

    def _overlap(self, number: int, one: int, other: int) -> bool:
        lengths = self._lengths
        return other < one + lengths[number, one] and one < other + lengths[number, other]

    def release(self, key: PMemKey) -> None:
        """Free a place that was reserved."""
        number, offset = key
        if offset is None:
            return
        offsets = self._offsets[number]
        del offsets[bisect_left(offsets, offset)], self._lengths[number, offset]
        if not offsets:
            del self._offsets[number]


def placed(devices: Mapping[str, VirtualPMemDevice]) -> Iterator[tuple[PMemResource, PMemImage]]:
    """Yield where the files of a document's devices are, and the files."""
    for name, device in devices.items():
        number = number_of(name, "VPMEM device")
        if not device.mappings:
            yield VPMemDevice(number), device
        for offset, mapping in device.mappings.items():
            yield VPMemMapping(number, number_of(offset, "offset")), mapping


def checked(request: Request[PMemResource], offset: int | None) -> PMemImage:
    """Return the device or the mapping that a request describes.

    :raises HostError: there is none such: HCS_E_INVALID_JSON, or E_INVALIDARG.
    """
    image: PMemImage = (
        request.parse(VirtualPMemDevice) if offset is None else request.parse(VirtualPMemMapping)
    )
    if offset and offset % PAGE_BYTES:
        raise request.invalid(f"offsets are multiples of {PAGE_BYTES}")
    if image.image_format not in _FORMATS:
        text = f"ImageFormat is {image.image_format!r}, not Vhd1 or Vhdx"
        raise request.refuse(HResult.HCS_E_INVALID_JSON, text)
    if not image.host_path:
        raise request.invalid("HostPath is missing")
    return image


def named(key: PMemKey, image: PMemImage) -> str:
    """Return the name of a device or a mapping, for messages."""
    number, offset = key
    at = "" if offset is None else f" at {offset}"
    return f"pmem {number}{at} ({image.host_path})"


def inventory(images: dict[PMemKey, PMemImage]) -> JSON:
    """Return devices and mappings, by number and offset, in the form of the document."""
    devices: JSON = {}
    for (number, offset), image in images.items():
        if offset is None:
            devices[str(number)] = to_json(image)
        else:
            devices.setdefault(str(number), {"Mappings": {}})["Mappings"][str(offset)] = to_json(image)
    return {"Devices": devices} if devices else {}
