"""What is attached to a VM, as plain values to draw: the library's own account of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from uvm._vm.vm import UtilityVM
from uvm.devices.base import EntryState, LedgerState
from uvm.devices.slots import LARGEST_REGION_BYTES, Regions
from uvm.devices.vpmem import Mapping as Region
from uvm.devices.vpmem import layer_path
from uvm.devices.vsmb import guest_path
from uvm.schema.common import MIB

Ledgers = Mapping[str, LedgerState[Any, Any, Any, Any]]


@frozen
class Disk:
    """A disk on a SCSI controller; ``references`` are leases."""

    controller: int
    lun: int
    path: str
    read_only: bool = False
    references: int = 1
    guest_paths: tuple[str, ...] = ()


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


@frozen
class Adapter:
    """A network adapter."""

    id: str
    endpoint: str
    mac_address: str
    addresses: tuple[str, ...]
    namespace_id: str


@frozen
class Root:
    """A root file system that the guest has combined."""

    path: str
    layers: int
    scratch_path: str
    container_id: str


@frozen(kw_only=True)
class Devices:
    """The devices of a VM.

    :ivar reserved: slots, as (controller, LUN), of the disks that it was created with.
    :ivar boot_pmem_bytes: the size of the root file system on VPMEM device 0; None if there is none.
    """

    scsi_controllers: int = 1
    reserved: tuple[tuple[int, int], ...] = ()
    disks: tuple[Disk, ...] = ()
    pmem_devices: int = 0
    pmem_size_bytes: int = 0
    boot_pmem_bytes: int | None = None
    pmem_layers: tuple[PMemLayer, ...] = ()
    shares: tuple[Share, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    roots: tuple[Root, ...] = ()


def devices_of(vm: UtilityVM) -> Devices:
    """Look at what is attached to a VM."""
    ledgers, plan = vm.ledgers(), vm.plan
    return Devices(
        scsi_controllers=plan.scsi_controllers,
        reserved=plan.reserved_scsi,
        disks=tuple(sorted(_disks(ledgers), key=lambda each: (each.controller, each.lun))),
        pmem_devices=plan.vpmem_count,
        pmem_size_bytes=plan.vpmem_size_bytes,
        boot_pmem_bytes=plan.boot_vpmem_bytes,
        pmem_layers=tuple(sorted(_pmem_layers(ledgers), key=lambda each: (each.device, each.offset_bytes))),
        shares=(*_plan9_shares(ledgers), *_vsmb_shares(ledgers)),
        adapters=tuple(_adapters(ledgers)),
        roots=tuple(_roots(ledgers)),
    )


def _applied(ledgers: Ledgers, name: str) -> Iterator[tuple[EntryState[Any, Any, Any, Any], Any]]:
    """Yield what a ledger has applied; nothing if the VM has not used that device."""
    if name in ledgers:
        yield from ((entry, entry.applied) for entry in ledgers[name].entries if entry.applied is not None)


def _disks(ledgers: Ledgers) -> Iterator[Disk]:
    for entry, _ in _applied(ledgers, "scsi.disks"):
        mounts = [mount for mount, _ in _applied(ledgers, "scsi.mounts") if mount.key.slot == entry.slot]
        yield Disk(
            entry.slot.controller,
            entry.slot.lun,
            entry.key.path,
            entry.key.read_only,
            # A mount is one reference to its disk, however many there are to the mount.
            len(entry.members) + sum(len(mount.members) - 1 for mount in mounts),
            tuple(mount.slot.path for mount in mounts),
        )


def _pmem_layers(ledgers: Ledgers) -> Iterator[PMemLayer]:
    for entry, _ in _applied(ledgers, "vpmem.layers"):
        slot: Region | int = entry.slot
        references = len(entry.members)
        if isinstance(slot, Region):
            region_bytes = min(MIB << 2 * Regions.size_class(slot.size_bytes), LARGEST_REGION_BYTES)
            yield PMemLayer(*slot, region_bytes, entry.key, references, slot.guest_path)
        else:
            size_bytes = entry.members[0]
            yield PMemLayer(slot, 0, size_bytes, size_bytes, entry.key, references, layer_path(slot))


def _plan9_shares(ledgers: Ledgers) -> Iterator[Share]:
    for entry, share in _applied(ledgers, "plan9.shares"):
        yield Share("Plan9", entry.slot, share.path, share.read_only, len(entry.members), share.guest_path)


def _vsmb_shares(ledgers: Ledgers) -> Iterator[Share]:
    shown = {shown.share_path: entry.key for entry, shown in _applied(ledgers, "directories.directories")}
    for entry, _ in _applied(ledgers, "vsmb.shares"):
        key, path = entry.key, guest_path(entry.slot)
        at = shown.get(path, path)
        yield Share("VSMB", entry.slot, key.directory, key.read_only, len(entry.members), at)


def _adapters(ledgers: Ledgers) -> Iterator[Adapter]:
    for entry, endpoint in _applied(ledgers, "network.adapters"):
        addresses = tuple(f"{ip.ip_address}/{ip.prefix_length}" for ip in endpoint.ip_configurations)
        yield Adapter(
            entry.slot, endpoint.name or endpoint.id, endpoint.mac_address, addresses, entry.key.namespace_id
        )


def _roots(ledgers: Ledgers) -> Iterator[Root]:
    for entry, root in _applied(ledgers, "layers.roots"):
        yield Root(entry.key, len(root.layers), root.scratch_path, root.container_id)
