"""VPMEM: read-only layers as persistent memory of a Linux guest."""

from __future__ import annotations

from functools import partial
from typing import Any

from attrs import define, frozen

from uvm._async import opens
from uvm._buses.context import Bus, Context
from uvm._buses.lease import Lease
from uvm.devices.base import Device, Entry
from uvm.devices.vpmem import Layers, Mapping, PackedLayers, layer_path
from uvm.errors import NotAttachedError


@define(eq=False)
class VPMemLease(Lease):
    """A layer that is mapped and mounted.

    :ivar host_path: the layer's VHD on the host; :ivar guest_path: where the guest mounted it.
    """

    host_path: str
    guest_path: str


@frozen
class VPMemLayer:
    """A layer that a Linux guest has mounted.

    :ivar device: the number of its VPMEM device.
    :ivar offset_bytes: where it begins on the device, if several layers share one.
    :ivar size_bytes: its size; on a shared device in whole pages.
    :ivar references: how many leases it has.
    """

    host_path: str
    guest_path: str
    device: int
    offset_bytes: int
    size_bytes: int
    references: int


class VPMemBus(Bus):
    """The VPMEM devices of a VM: one layer each, or many layers packed on a device."""

    ledgers = ("layers",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        plan = context.plan
        kind = PackedLayers if plan.vpmem_multi_mapping else Layers
        device: Device[str, int, Any, Any] = kind(
            plan.vpmem_count, plan.vpmem_size_bytes, plan.boot_vpmem_bytes is not None
        )
        self._layers = self._drive(device, "vpmem")

    @property
    def layers(self) -> tuple[VPMemLayer, ...]:
        """The layers that are mapped."""
        return tuple(map(self._layer, self._layers.attached()))

    @staticmethod
    def _layer(entry: Entry[str, int, Any, Any]) -> VPMemLayer:
        place = entry.slot if isinstance(entry.slot, Mapping) else Mapping(entry.slot, 0, entry.applied or 0)
        return VPMemLayer(entry.key, _guest_path(entry.slot), *place, len(entry.holders))

    @opens
    async def add(self, path: str, *, grant_access: bool = True) -> VPMemLease:
        """Map a layer into the guest's memory and mount it, read-only. Await it, or enter it.

        The same path again is the same layer, with one more reference.

        :param grant_access: give the VM access to the path first, where it is a new layer.
        :raises NoSpaceError: no device has room for it, or it is larger than any.
        :raises HostPathError: there is no such file, or it is a directory.
        :raises NotSupportedError: the guest is Windows.
        """
        self._context.need_guest("VPMEM", "linux")
        self._context.link.check_running()
        entry = self._layers.ledger.get(path)
        # Who joins it needs no room for it.
        joins = entry is not None and entry.holders
        size_bytes = 0 if joins else await self._context.file_size(path)
        before = partial(self._context.access.grant, path) if grant_access else None
        hold = await self._layers.acquire(path, size_bytes, before=before)
        return VPMemLease(hold, path, _guest_path(hold.slot))

    async def remove(self, path: str) -> None:
        """Give up the oldest reference to a layer, by its path on the host.

        :raises NotAttachedError: it is not there.
        """
        if not await self._layers.release_one(path):
            raise self._not_there(path)

    def _not_there(self, path: str) -> NotAttachedError:
        return NotAttachedError(f"{path} is not mapped in {self._context.vm_id} over VPMEM")

    def guest_path(self, path: str) -> str:
        """Give where the guest has mounted a layer, by its path on the host.

        :raises NotAttachedError: it is not there.
        """
        entry = self._layers.ledger.get(path)
        if entry is None or entry.applied is None:
            raise self._not_there(path)
        return _guest_path(entry.slot)


def _guest_path(slot: int | Mapping) -> str:
    return slot.guest_path if isinstance(slot, Mapping) else layer_path(slot)
