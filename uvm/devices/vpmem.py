"""VPMEM: read-only layers of a Linux guest, as persistent memory. The key is that of the layer's host path.

Two machines, of which a VM has one:

- :class:`Layers` has a device for each layer; the slot is the lowest free device number.
- :class:`PackedLayers` maps many layers on a device; the slot is a :class:`Mapping`, the first place that
  hcsshim's region allocator finds on the first device that has one. A device is never added nor removed as
  such: HCS makes it when something is mapped on it.

In both: ADD: host Add, guest ``VPMemDevice`` Add. REMOVE: guest Remove, host Remove.

Source: hcsshim ``internal/uvm/vpmem.go`` and ``vpmem_mapped.go``.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import NamedTuple

from attrs import Factory, define, frozen

from uvm._repr import Value
from uvm.devices.base import ADD, REMOVE, Entry, Operation, Step, in_guest, on_host
from uvm.devices.kinds import FirstComeDevice
from uvm.devices.slots import LARGEST_REGION_BYTES, Regions, Slots, page_align
from uvm.errors import NoSpaceError, OptionsError
from uvm.schema import requests
from uvm.schema.devices import VirtualPMemDevice, VirtualPMemMapping
from uvm.schema.guest import RESOURCE_VPMEM_DEVICE, LCOWMappedVPMemDevice, LCOWVPMemMappingInfo
from uvm.schema.requests import VPMemDevice, VPMemMapping

#: hcsshim's ``MaxMappedDeviceCount``.
MAPPINGS_PER_DEVICE = 1024

_IMAGE_FORMAT = "Vhd1"


@frozen(repr=False)
class Layer(Value):
    """The file of a layer: its host path as it is sent, and its size."""

    path: str
    size_bytes: int


def _check_size(path: str, size_bytes: int, most_bytes: int) -> None:
    if size_bytes <= 0:
        raise OptionsError(f"{path} is empty: there is no layer to add to VPMEM")
    if size_bytes > most_bytes:
        raise NoSpaceError(
            f"{path} was not added to VPMEM: it has {size_bytes} bytes, and a device {most_bytes}"
        )


def layer_path(device: int) -> str:
    """Return the guest path of the layer that has a device of its own."""
    return f"/run/layers/p{device}"


class Layers(FirstComeDevice[str, Layer, int]):
    """One layer per device. A member is its file; the slot is the device's number.

    :param count: how many devices there are.
    :param max_size_bytes: the size of each at most.
    :param boot: device 0 holds the root file system.
    """

    def __init__(self, count: int, max_size_bytes: int, boot: bool = False) -> None:
        self._slots: Slots = Slots(count, (0,) if boot else ())
        self._max_size_bytes = max_size_bytes

    def place(self, key: str, member: Layer) -> int:
        """Take the lowest free device.

        :raises NoSpaceError: none is free, or the layer is larger than a device.
        :raises OptionsError: the layer is empty.
        """
        _check_size(member.path, member.size_bytes, self._max_size_bytes)
        try:
            return self._slots.take()
        except NoSpaceError as e:
            raise NoSpaceError(f"{member.path} was not added: no VPMEM device is free ({e})") from None

    def occupy(self, slot: int) -> None:
        """Take a device that has a layer already."""
        self._slots.occupy(slot)

    def describe(self, key: str, slot: int, value: Layer) -> tuple[str, str]:
        """Return what it is, and where."""
        return f"layer {value.path}", f"VPMEM device {slot}"

    def steps(self, operation: Operation[str, Layer, int, Layer]) -> tuple[Step, ...]:
        """Add the device on the host and mount it in the guest, or the reverse."""
        path, mounted, removal = _place(operation.slot)
        if operation.kind is REMOVE:
            return removal
        host_path = operation.value.path
        settings = VirtualPMemDevice(host_path=host_path, read_only=True, image_format=_IMAGE_FORMAT)
        return on_host(requests.ADD, path, settings, removal[1]), _mount(requests.ADD, mounted)


class Mapping(NamedTuple):
    """The place of a layer on a packed device; the size is whole pages."""

    device: int
    offset_bytes: int
    size_bytes: int

    @property
    def guest_path(self) -> str:
        """The path at which the guest mounts it."""
        return f"/run/layers/p{self.device}-{self.offset_bytes}-{self.size_bytes}"


@define(eq=False, repr=False)
class _Packed:
    """A device and what is mapped on it.

    The value of a mapping is its entry in the ledger, which says whether it is applied; True or False if
    there is none (after a restore; before its first operation).

    :ivar settled: what may stay: mappings that were applied when an operation on them ended.
    """

    regions: Regions
    mappings: dict[Mapping, Entry[str, Layer, Mapping, Layer] | bool] = Factory(dict)
    settled: dict[Mapping, None] = Factory(dict)

    def applied(self, mapping: Mapping) -> bool:
        entry = self.mappings[mapping]
        if isinstance(entry, bool):
            return entry
        # An entry whose mapping was quarantined may be at another now.
        return entry.applied is not None and entry.slot == mapping

    def stays(self, mapping: Mapping) -> bool:
        """Return whether a mapping is applied and not about to go."""
        entry = self.mappings[mapping]
        leaving = isinstance(entry, Entry) and entry.operation is not None and entry.operation.kind is REMOVE
        return self.applied(mapping) and not leaving

    def any_stays(self) -> bool:
        """Return whether any mapping stays; one that does not is looked at again once its removal ended."""
        while self.settled:
            mapping, _ = self.settled.popitem()
            if self.stays(mapping):
                self.settled[mapping] = None
                return True
        return False


class PackedLayers(FirstComeDevice[str, Layer, Mapping]):
    """Many layers per device. A member is the layer's file.

    :param count: how many devices there are.
    :param size_bytes: the size of each; of more than 4 GiB the rest is not used.
    :param boot: device 0 holds the root file system, and nothing else is mapped on it.
    """

    def __init__(self, count: int, size_bytes: int, boot: bool = False) -> None:
        self._numbers = range(1 if boot else 0, count)
        self._size_bytes = min(size_bytes, LARGEST_REGION_BYTES)
        self._devices: dict[int, _Packed] = {}

    def place(self, key: str, member: Layer) -> Mapping:
        """Take a region on the first device that has one.

        :raises NoSpaceError: no device has one, or the layer is larger than a device.
        :raises OptionsError: the layer is empty.
        """
        size_bytes = page_align(member.size_bytes)
        _check_size(member.path, size_bytes, self._size_bytes)
        for number in self._numbers:
            packed = self._devices.get(number)
            if packed is None:
                packed = self._devices[number] = _Packed(Regions(self._size_bytes))
            if len(packed.mappings) >= MAPPINGS_PER_DEVICE:
                continue
            if (offset_bytes := packed.regions.take_if_free(size_bytes)) is not None:
                mapping = Mapping(number, offset_bytes, size_bytes)
                packed.mappings[mapping] = False
                return mapping
        raise NoSpaceError(
            f"{member.path} was not added: none of {len(self._numbers)} VPMEM devices has a free region for "
            f"its {size_bytes} bytes"
        )

    def occupy(self, slot: Mapping) -> None:
        """Take the region of a layer that is mapped already."""
        packed = self._devices.get(slot.device)
        if packed is None:
            packed = self._devices[slot.device] = _Packed(Regions(self._size_bytes))
        packed.regions.occupy(slot.offset_bytes, slot.size_bytes)
        packed.mappings[slot] = True
        packed.settled[slot] = None

    def vacate(self, key: str, slot: Mapping) -> None:
        """Free a region, and the device with its last one."""
        packed = self._devices[slot.device]
        del packed.mappings[slot]
        packed.settled.pop(slot, None)
        if packed.mappings:
            packed.regions.free(slot.offset_bytes, slot.size_bytes)
        else:
            del self._devices[slot.device]

    def describe(self, key: str, slot: Mapping, value: Layer) -> tuple[str, str]:
        """Return what it is, and where."""
        return f"layer {value.path}", f"VPMEM device {slot.device}, offset {slot.offset_bytes:#x}"

    def steps(self, operation: Operation[str, Layer, Mapping, Layer]) -> tuple[Step, ...]:
        """Map the layer on the host and mount it in the guest, or the reverse."""
        mapping = operation.slot
        self._devices[mapping.device].mappings[mapping] = operation.entry
        path, mounted, removal = _place(mapping)
        if operation.kind is REMOVE:
            return removal
        settings = VirtualPMemMapping(host_path=operation.value.path, image_format=_IMAGE_FORMAT)
        return on_host(requests.ADD, path, settings, removal[1]), _mount(requests.ADD, mounted)

    def gate(self, operation: Operation[str, Layer, Mapping, Layer]) -> Hashable | None:
        """Serialise adds that begin while nothing is mapped on the device, or all of it is being removed.

        An add that began earlier, beside a mapping that has been removed since, is not waited for.
        """
        if operation.kind is not ADD:
            return None
        number = operation.slot.device
        return None if self._devices[number].any_stays() else ("vpmem", number)

    def ended(self, entry: Entry[str, Layer, Mapping, Layer]) -> None:
        """Note that a mapping may be applied now."""
        if entry.applied is not None:
            self._devices[entry.slot.device].settled[entry.slot] = None

    def dump(self) -> tuple[tuple[int, tuple[int, ...], tuple[tuple[Mapping, bool], ...]], ...]:
        """Return, per device in use, its free regions and its mappings, each with whether it is applied."""
        return tuple(
            (number, packed.regions.dump(), tuple((m, packed.applied(m)) for m in sorted(packed.mappings)))
            for number, packed in sorted(self._devices.items())
        )

    def load(self, state: tuple[tuple[int, tuple[int, ...], tuple[tuple[Mapping, bool], ...]], ...]) -> None:
        """Load what :meth:`dump` returned."""
        self._devices = {}
        for number, regions, mappings in state:
            settled = {mapping: None for mapping, applied in mappings if applied}
            packed = self._devices[number] = _Packed(Regions(self._size_bytes), dict(mappings), settled)
            packed.regions.load(regions)


# The requests of a place are made once: they are never changed, and a place is taken again and again.


@lru_cache(MAPPINGS_PER_DEVICE)
def _place(slot: int | Mapping) -> tuple[str, LCOWMappedVPMemDevice, tuple[Step, Step]]:
    """Return the path of a place on the host, its mount in the guest, and the steps that remove both."""
    if isinstance(slot, Mapping):
        path = VPMemMapping(slot.device, slot.offset_bytes).path
        info = LCOWVPMemMappingInfo(
            device_offset_in_bytes=slot.offset_bytes, device_size_in_bytes=slot.size_bytes
        )
        mounted = LCOWMappedVPMemDevice(
            device_number=slot.device, mount_path=slot.guest_path, mapping_info=info
        )
    else:
        path = VPMemDevice(slot).path
        mounted = LCOWMappedVPMemDevice(device_number=slot, mount_path=layer_path(slot))
    return path, mounted, (_mount(requests.REMOVE, mounted), on_host(requests.REMOVE, path))


def _mount(request_type: str, mounted: LCOWMappedVPMemDevice) -> Step:
    return in_guest(request_type, RESOURCE_VPMEM_DEVICE, mounted)
