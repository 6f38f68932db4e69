"""VPMEM: read-only layers as persistent memory of a Linux guest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import define, frozen

from uvm._async import opens
from uvm._buses.access import Grant, Need, grant_of
from uvm._buses.context import Bus, Context, on_host
from uvm._buses.lease import Lease
from uvm._names import HostPath
from uvm._repr import Value
from uvm.devices.base import APPLIED, Device, Entry
from uvm.devices.slots import page_align
from uvm.devices.vpmem import Layer, Layers, Mapping, PackedLayers, layer_path
from uvm.schema.template import TemplateLayer


@define(eq=False, repr=False)
class VPMemLease(Lease):
    """A layer that is mapped and mounted.

    :ivar host_path: the layer's VHD on the host, links resolved.
    :ivar guest_path: its mount in the guest.
    """

    host_path: str
    guest_path: str


@frozen(repr=False)
class VPMemLayer(Value):
    """A layer that a Linux guest has mounted.

    :ivar device: the number of its VPMEM device.
    :ivar offset_bytes: its offset on the device, if several layers share one.
    :ivar size_bytes: its size; on a shared device in whole pages.
    :ivar references: how many leases it has.
    :ivar orphaned: it is an orphan.
    """

    host_path: str
    guest_path: str
    device: int
    offset_bytes: int
    size_bytes: int
    references: int
    orphaned: bool = False


class VPMemBus(Bus):
    """The VPMEM devices of a VM: one layer each, or many layers packed on a device."""

    _ledgers = ("layers",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        plan = context.plan
        kind = PackedLayers if plan.vpmem_multi_mapping else Layers
        device: Device[str, Layer, Any, Layer] = kind(
            plan.vpmem_count, plan.vpmem_size_bytes, plan.boot_vpmem_bytes is not None
        )
        self._layers = self._drive(
            device, "vpmem", lambda t: [on_host(t.key), context.in_guest(_guest_path(t.entry.slot))]
        )

    @property
    def layers(self) -> tuple[VPMemLayer, ...]:
        """The layers that are mapped."""
        return tuple(
            VPMemLayer(
                layer.path,
                _guest_path(entry.slot),
                *_place(entry.slot, layer),
                *self._layers.standing(entry),
            )
            for entry, layer in self._layers.attached()
        )

    @opens
    async def add(self, path: HostPath, *, grant_access: Grant = True) -> VPMemLease:
        """Map a layer into the guest's memory and mount it, read-only. Await it, or enter it.

        The same layer again, however its path is spelled and by links as well, gets one more reference.

        :param grant_access: grant the VM access to the path first, if it is a new layer;
            ``uvm.backend.VM_GROUP`` grants it to every VM, for good.
        :raises OptionsError: the path is no absolute one.
        :raises NoSpaceError: no device has room for it, or it is larger than any.
        :raises HostPathError: there is no such file, or it is a directory.
        :raises NotSupportedError: the guest is Windows.
        :raises OrphanError: an orphan occupies that file, and cannot be removed.
        """
        context = self._context
        grant_access = grant_of(grant_access)
        context.need_guest("VPMEM", "linux")
        context.link.check_running()
        named = await context.named(path)
        await self._layers.clear(named.key, on_host(named.key))
        layer = self._known(named.key) or Layer(named.path, await context.file_size(named.path))
        need = Need(context.access, named, grant_access)
        hold = await self._layers.acquire(named.key, layer, need=need, names=named.names)
        return VPMemLease(hold, named.path, _guest_path(hold.slot))

    def _adopt(self, layers: Iterable[TemplateLayer]) -> None:
        """Enter the layers of a clone, as its template had them, with one reference each."""
        context = self._context
        for saved in layers:
            key, layer = context.key(saved.path), Layer(saved.path, saved.size_bytes)
            slot: int | Mapping = saved.device
            if context.plan.vpmem_multi_mapping:
                slot = Mapping(saved.device, saved.offset_bytes, page_align(saved.size_bytes))
            need = context.access.adopted(saved.path)
            self._layers.adopt(key, layer, layer, names=(key,), slot=slot, need=need)

    def _saved(self) -> list[TemplateLayer]:
        """Return the layers, for clones."""
        found = []
        for entry, layer in self._layers.attached():
            device, offset, _ = _place(entry.slot, layer)
            size = layer.size_bytes
            found.append(TemplateLayer(device=device, offset_bytes=offset, size_bytes=size, path=layer.path))
        return found

    def _known(self, key: str) -> Layer | None:
        """Return a layer that is mapped or wanted: its file is not looked at again, and may be removed."""
        entry = self._layers.ledger.get(key)
        return None if entry is None else entry.applied or next(entry.members(), None)

    async def remove(self, path: HostPath) -> None:
        """Release the oldest lease of a layer, by any path that :meth:`add` took for it.

        :raises OptionsError: the path is no absolute one.
        :raises NotAttachedError: it is not mapped.
        """
        keys = [entry.key for entry in self._find(path)]
        holds = (hold for key in keys for hold in self._layers.oldest_on(key))
        await self._release_oldest(holds, self._not_mapped(path))

    def _find(self, path: HostPath) -> list[Entry[str, Layer, Any, Layer]]:
        return [entry for entry, _ in self._layers.ledger.named(self._context.key(path))]

    def _not_mapped(self, path: HostPath) -> str:
        return f"{path} is not mapped in {self._context.vm_id} over VPMEM"

    def guest_path(self, path: HostPath) -> str:
        """Return the path of a layer in the guest, by any path that :meth:`add` took for it.

        The host is not asked: a link that has another target now is still the layer that it was added for; if
        it was for several that are mapped, the newest.

        :raises OptionsError: the path is no absolute one.
        :raises NotAttachedError: it is not mapped, or is being removed, which the guest's unmount begins.
        """
        for entry in self._find(path):
            if entry.state is APPLIED:
                return _guest_path(entry.slot)
        raise self._missing(self._not_mapped(path))


def _place(slot: int | Mapping, layer: Layer) -> Mapping:
    return slot if isinstance(slot, Mapping) else Mapping(slot, 0, layer.size_bytes)


def _guest_path(slot: int | Mapping) -> str:
    return slot.guest_path if isinstance(slot, Mapping) else layer_path(slot)
