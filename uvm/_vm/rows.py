"""All that is attached to a VM as rows of plain values, and what its requests and slots are as such."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from attrs import field, frozen

from uvm._buses.blockcims import BlockCIMVolume
from uvm._buses.directories import SharedPath
from uvm._buses.layers import CombinedRoot
from uvm._buses.link import StuckDevice
from uvm._buses.network import AttachedAdapter
from uvm._buses.pipes import MappedPipe
from uvm._buses.plan9 import Plan9Share
from uvm._buses.recent import Sent
from uvm._buses.scsi import ScsiDisk
from uvm._buses.vpci import VPCIDevice
from uvm._buses.vpmem import VPMemLayer
from uvm._buses.vsmb import VSMBShare
from uvm._repr import Value
from uvm._vm.requestsummary import summarize
from uvm.devices.base import Quarantined
from uvm.devices.scsi import ScsiSlot
from uvm.devices.vpmem import Mapping
from uvm.schema.json import to_json
from uvm.schema.requests import ModificationRequest


@frozen(repr=False)
class UnrevokedAccess(Value):
    """Access of the VM to a path of the host that no device needs any more, and that could not be revoked.

    It is revoked when the VM closes.

    :ivar why: what the revocation failed with.
    """

    host_path: str
    why: str


@frozen(repr=False)
class RecentRequest(Value):
    """A request that a VM has sent to its host or its guest, in a few words and without secrets.

    :ivar at: when it was sent, in UTC.
    :ivar to: ``host`` or ``guest``.
    :ivar verb: in lower case, such as ``add``.
    :ivar resource: as HCS names it, with its place, such as ``Scsi 0:1``.
    :ivar settings: those of interest to a reader.
    :ivar outcome: ``ok``, ``refused``, ``unknown``, or ``in flight`` as long as there is none.
    :ivar why: what it failed with.
    """

    at: datetime
    to: str
    verb: str
    resource: str
    settings: tuple[str, ...] = ()
    outcome: str = "ok"
    why: str = ""

    @classmethod
    def _of(cls, sent: Sent) -> RecentRequest:
        request = sent.request
        document = to_json(request) if isinstance(request, ModificationRequest) else request
        summary = summarize(sent.to, document)
        words = summary.verb, summary.resource.strip(), summary.settings
        return cls(sent.at, sent.to, *words, sent.outcome, sent.why)


@frozen(kw_only=True)
class Rows:
    """What :class:`uvm.VMDevices` has."""

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
    quarantined_scsi: tuple[ScsiSlot, ...] = ()
    quarantined_vpmem: tuple[tuple[int, int, int], ...] = ()
    unrevoked_access: tuple[UnrevokedAccess, ...] = ()
    requests: tuple[RecentRequest, ...] = field(default=(), eq=False)


def recent_requests(sent: Iterable[Sent]) -> tuple[RecentRequest, ...]:
    """Return the requests that were sent, for people."""
    return tuple(map(RecentRequest._of, sent))


def withheld_scsi(quarantined: Iterable[Quarantined[Any, Any]]) -> tuple[ScsiSlot, ...]:
    """Return the slots of disks that are withheld."""
    return tuple(each.slot for each in quarantined if isinstance(each.slot, ScsiSlot))


def withheld_vpmem(
    quarantined: Iterable[Quarantined[Any, Any]], size_bytes: int
) -> tuple[tuple[int, int, int], ...]:
    """Return what is withheld of VPMEM devices; of one that is not shared, all of it."""
    slots = [each.slot for each in quarantined]
    return tuple(
        (*slot,) if isinstance(slot, Mapping) else (slot, 0, size_bytes)
        for slot in slots
        if isinstance(slot, Mapping | int)
    )
