"""What is attached to a VM, as plain values to draw."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from uvm._buses.layers import CombinedRoot
from uvm._buses.network import AttachedAdapter
from uvm._buses.scsi import ScsiDisk
from uvm._buses.vpmem import VPMemLayer
from uvm._vm.vm import UtilityVM
from uvm.devices.slots import LARGEST_REGION_BYTES, Regions
from uvm.schema.common import MIB


@frozen
class PMemLayer:
    """A layer on a VPMEM device.

    :ivar region_bytes: what the allocator set aside for it, from the offset on.
    """

    device: int
    offset_bytes: int
    size_bytes: int
    region_bytes: int
    path: str
    references: int = 1
    guest_path: str = ""


@frozen
class Share:
    """A shared directory; one without references is kept, because the guest may have its files mapped."""

    kind: str
    name: str
    path: str
    read_only: bool
    references: int
    guest_path: str


@frozen(kw_only=True)
class Devices:
    """The devices of a VM.

    :ivar reserved: slots, as (controller, LUN), of the disks that it was created with.
    :ivar boot_pmem_bytes: the size of the root file system on VPMEM device 0; None if there is none.
    """

    scsi_controllers: int = 1
    reserved: tuple[tuple[int, int], ...] = ()
    disks: tuple[ScsiDisk, ...] = ()
    pmem_devices: int = 0
    pmem_size_bytes: int = 0
    boot_pmem_bytes: int | None = None
    pmem_layers: tuple[PMemLayer, ...] = ()
    shares: tuple[Share, ...] = ()
    adapters: tuple[AttachedAdapter, ...] = ()
    roots: tuple[CombinedRoot, ...] = ()


def devices_of(vm: UtilityVM) -> Devices:
    """Return what is attached to a running VM."""
    plan = vm.plan
    return Devices(
        scsi_controllers=plan.scsi_controllers,
        reserved=plan.reserved_scsi,
        disks=tuple(sorted(vm.scsi.disks, key=lambda each: (each.controller, each.lun))),
        pmem_devices=plan.vpmem_count,
        pmem_size_bytes=plan.vpmem_size_bytes,
        boot_pmem_bytes=plan.boot_vpmem_bytes,
        pmem_layers=tuple(
            _pmem_layer(layer, plan.vpmem_multi_mapping)
            for layer in sorted(vm.vpmem.layers, key=lambda each: (each.device, each.offset_bytes))
        ),
        shares=tuple(_shares(vm)),
        adapters=vm.network.adapters,
        roots=vm.layers.roots,
    )


def _pmem_layer(layer: VPMemLayer, packed: bool) -> PMemLayer:
    size_bytes = region_bytes = layer.size_bytes
    if packed:
        region_bytes = min(MIB << 2 * Regions.size_class(size_bytes), LARGEST_REGION_BYTES)
    return PMemLayer(
        layer.device,
        layer.offset_bytes,
        size_bytes,
        region_bytes,
        layer.host_path,
        layer.references,
        layer.guest_path,
    )


def _shares(vm: UtilityVM) -> Iterator[Share]:
    for share in vm.plan9.shares:
        yield Share("Plan9", share.name, share.host_path, share.read_only, 1, share.guest_path)
    shown = {(each.host_path, each.read_only): each.guest_path for each in vm.shared}
    for each in vm.vsmb.shares:
        at = shown.get((each.host_path, each.read_only), each.guest_path)
        yield Share("VSMB", each.name, each.host_path, each.read_only, each.references, at)
