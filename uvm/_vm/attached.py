"""All that is attached to a VM, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from attrs import fields, frozen, has

from uvm._buses.blockcims import BlockCIMVolume
from uvm._buses.directories import SharedPath
from uvm._buses.layers import CombinedRoot
from uvm._buses.link import StuckDevice
from uvm._buses.network import AttachedAdapter
from uvm._buses.pipes import MappedPipe
from uvm._buses.plan9 import Plan9Share
from uvm._buses.scsi import ScsiDisk
from uvm._buses.vpci import VPCIDevice
from uvm._buses.vpmem import VPMemLayer
from uvm._buses.vsmb import VSMBShare
from uvm._repr import brief, brief_call, counted
from uvm.backend import JSON
from uvm.devices.scsi import ScsiSlot


@frozen
class UnrevokedAccess:
    """Access of the VM to a path of the host that no device needs any more, and that could not be revoked.

    It is revoked when the VM closes.

    :ivar why: what the revocation failed with.
    """

    host_path: str
    why: str

    __repr__ = brief_call


@frozen(kw_only=True)
class VMDevices:
    """All that is attached to a VM at one moment: what :meth:`uvm.UtilityVM.devices` returns.

    It is a plain value: it compares by content, and can be copied and pickled.

    :ivar scsi_controllers: how many SCSI controllers the VM has.
    :ivar reserved_scsi: the slots of the disks that the VM was created with; they are not in ``disks``.
    :ivar vpmem_count: how many VPMEM devices the VM may have.
    :ivar vpmem_size_bytes: the size of each.
    :ivar vpmem_multi_mapping: several layers share a VPMEM device.
    :ivar boot_vpmem_bytes: the size of the VM's own root file system on VPMEM device 0; None if that is free.
    :ivar shared: what ``vm.share`` shows; in a Linux guest, every Plan9 share.
    :ivar roots: the root file systems that the guest has combined.
    :ivar block_cims: the volumes of block CIMs in a Windows guest.
    :ivar namespaces: the ids of the network namespaces that the VM is in.
    :ivar orphans: what is attached and has no caller; ``vm.orphans`` has handles to release it.
    :ivar quarantined: the slots that are withheld, since what is in them is unknown.
    :ivar unrevoked_access: access to paths that could not be revoked with the last device on them.
    """

    vm_id: str
    scsi_controllers: int = 0
    reserved_scsi: tuple[ScsiSlot, ...] = ()
    disks: tuple[ScsiDisk, ...] = ()
    vpmem_count: int = 0
    vpmem_size_bytes: int = 0
    vpmem_multi_mapping: bool = False
    boot_vpmem_bytes: int | None = None
    layers: tuple[VPMemLayer, ...] = ()
    vsmb_shares: tuple[VSMBShare, ...] = ()
    plan9_shares: tuple[Plan9Share, ...] = ()
    shared: tuple[SharedPath, ...] = ()
    roots: tuple[CombinedRoot, ...] = ()
    block_cims: tuple[BlockCIMVolume, ...] = ()
    pipes: tuple[MappedPipe, ...] = ()
    pci_devices: tuple[VPCIDevice, ...] = ()
    namespaces: tuple[str, ...] = ()
    adapters: tuple[AttachedAdapter, ...] = ()
    orphans: tuple[StuckDevice, ...] = ()
    quarantined: tuple[StuckDevice, ...] = ()
    unrevoked_access: tuple[UnrevokedAccess, ...] = ()

    def __repr__(self) -> str:
        counts = [counted(len(rows), name.replace("_", " ")) for name, rows in self._rows()]
        return brief(f"<VMDevices of {self.vm_id}: {', '.join(counts) or 'none'}>")

    def __str__(self) -> str:
        lines = [repr(self)]
        for _, rows in self._rows():
            lines += [f"  {row}" for row in rows]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, Sequence[object]]]:
        """Return what is attached, by the name of its kind, without kinds of which there is none."""
        kinds = [
            each.name for each in fields(VMDevices) if each.default == () and each.name != "reserved_scsi"
        ]
        return [(name, rows) for name in kinds if (rows := getattr(self, name))]

    def as_json(self) -> JSON:
        """Return it as plain JSON values, times as in ISO 8601."""
        plain: JSON = _plain(self)
        return plain


def _plain(value: Any) -> Any:
    if has(type(value)):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(type(value))}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, str) else value
