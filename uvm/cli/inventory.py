"""What is attached to a VM, as plain values to draw."""

from __future__ import annotations

from attrs import evolve, frozen

from uvm._buses.layers import CombinedRoot
from uvm._buses.network import AttachedAdapter
from uvm._buses.plan9 import Plan9Share
from uvm._buses.scsi import ScsiDisk
from uvm._buses.vpmem import VPMemLayer
from uvm._buses.vsmb import VSMBShare
from uvm._vm.vm import UtilityVM


@frozen(kw_only=True)
class Devices:
    """The devices of a VM.

    :ivar reserved: slots, as (controller, LUN), of the disks that it was created with.
    :ivar vpmem_packed: whether several layers share a VPMEM device.
    :ivar boot_vpmem_bytes: the size of the root file system on VPMEM device 0; None if there is none.
    """

    scsi_controllers: int = 1
    reserved: tuple[tuple[int, int], ...] = ()
    disks: tuple[ScsiDisk, ...] = ()
    vpmem_devices: int = 0
    vpmem_size_bytes: int = 0
    vpmem_packed: bool = True
    boot_vpmem_bytes: int | None = None
    layers: tuple[VPMemLayer, ...] = ()
    plan9: tuple[Plan9Share, ...] = ()
    vsmb: tuple[VSMBShare, ...] = ()
    adapters: tuple[AttachedAdapter, ...] = ()
    roots: tuple[CombinedRoot, ...] = ()


def devices_of(vm: UtilityVM) -> Devices:
    """Return what is attached to a running VM."""
    plan = vm.plan
    shown = {(each.host_path, each.read_only): each.guest_path for each in vm.shared}
    return Devices(
        scsi_controllers=plan.scsi_controllers,
        reserved=plan.reserved_scsi,
        disks=tuple(sorted(vm.scsi.disks, key=lambda each: (each.controller, each.lun))),
        vpmem_devices=plan.vpmem_count,
        vpmem_size_bytes=plan.vpmem_size_bytes,
        vpmem_packed=plan.vpmem_multi_mapping,
        boot_vpmem_bytes=plan.boot_vpmem_bytes,
        layers=tuple(sorted(vm.vpmem.layers, key=lambda each: (each.device, each.offset_bytes))),
        plan9=vm.plan9.shares,
        vsmb=tuple(
            evolve(each, guest_path=shown.get((each.host_path, each.read_only), each.guest_path))
            for each in vm.vsmb.shares
        ),
        adapters=vm.network.adapters,
        roots=vm.layers.roots,
    )
