"""What is attached, told twice: by the ledgers of a VM, and by the machine and the guest that the fake has.

Both sides are written as sets of facts, per ledger: (slot, what is there). What is quarantined is left out on
both sides, slot by slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from attrs import frozen

from uvm._vm.vm import UtilityVM
from uvm.backends.fake import FakeGuest, FakeVM, LinuxGuest, WindowsGuest
from uvm.devices.base import EntryState
from uvm.devices.scsi import MountPlace
from uvm.devices.vpmem import Mapping, layer_path

#: (ledger, where, what, slot): ``where`` is the host or the guest.
Fact = tuple[str, str, Any, Any]
Entry = EntryState[Any, Any, Any, Any]

_BOOT_SHARE = "os"


@frozen
class Audit:
    """What the ledgers expect and what the machine has, without what is withheld."""

    expected: frozenset[Fact]
    actual: frozenset[Fact]


def audit(vm: UtilityVM, machine: FakeVM) -> Audit:
    """Compare a VM that is at rest with its host and its guest."""
    snapshots = vm.ledgers()
    withheld = {(name, place(q.slot)) for name, s in snapshots.items() for q in s.quarantined}
    doubtful = {(n, e.slot) for n, s in snapshots.items() for e in s.entries if e.doubtful}
    expected = {fact for name, s in snapshots.items() for e in s.entries for fact in _EXPECTED[name](vm, e)}
    actual = {*_on_host(vm, machine), *_in_guest(machine.guest)}

    def kept(facts: Iterable[Fact]) -> frozenset[Fact]:
        seen = [fact for fact in facts if (fact[0], fact[3]) not in withheld]
        if guest_is_gone(vm):
            # Nobody can ask it to let go of anything, so what it holds does not count.
            seen = [fact for fact in seen if fact[1] != "guest"]
        # The allowed files of a share whose update got lost may be the old or the new ones.
        return frozenset((*f[:2], None, f[3]) if (f[0], f[3]) in doubtful else f for f in seen)

    return Audit(kept(expected), kept(actual))


def guest_is_gone(vm: UtilityVM) -> bool:
    """Whether the connection to the guest has closed, while the VM runs."""
    return bool(getattr(vm._link.guest, "closed", False))


def place(slot: Any) -> Any:
    """Give what host and guest know of a slot: the number of a mount is our own affair."""
    return slot.path if isinstance(slot, MountPlace) else slot


# What the ledgers expect. A removal with progress has been done in the guest, and not on the host.


def _disk(vm: UtilityVM, entry: Entry) -> list[Fact]:
    return [("scsi.disks", "host", (entry.key.path, entry.key.read_only), tuple(entry.slot))]


def _mount(vm: UtilityVM, entry: Entry) -> list[Fact]:
    return [("scsi.mounts", "guest", tuple(entry.key.slot), place(entry.slot))]


def _layer(vm: UtilityVM, entry: Entry) -> list[Fact]:
    facts: list[Fact] = [("vpmem.layers", "host", entry.key, entry.slot)]
    return facts if entry.progress else [*facts, ("vpmem.layers", "guest", entry.key, entry.slot)]


def _vsmb(vm: UtilityVM, entry: Entry) -> list[Fact]:
    assert entry.applied is not None
    return [("vsmb.shares", "host", (entry.key.directory, entry.applied.files), entry.slot)]


def _plan9(vm: UtilityVM, entry: Entry) -> list[Fact]:
    assert entry.applied is not None
    facts: list[Fact] = [("plan9.shares", "host", entry.applied.path, entry.slot)]
    return (
        facts if entry.progress else [*facts, ("plan9.shares", "guest", entry.applied.guest_path, entry.slot)]
    )


def _device(vm: UtilityVM, entry: Entry) -> list[Fact]:
    return [("vpci.devices", "host", entry.key.instance_path, entry.slot)]


def _pipe(vm: UtilityVM, entry: Entry) -> list[Fact]:
    return [("pipes.pipes", "host", None, entry.slot)]


def _namespace(vm: UtilityVM, entry: Entry) -> list[Fact]:
    return [("network.namespaces", "guest", None, entry.slot)] if vm.os == "windows" else []


def _adapter(vm: UtilityVM, entry: Entry) -> list[Fact]:
    facts: list[Fact] = [("network.adapters", "host", entry.key.endpoint_id, entry.slot)]
    return facts if entry.progress else [*facts, ("network.adapters", "guest", None, entry.slot)]


def _root(vm: UtilityVM, entry: Entry) -> list[Fact]:
    assert entry.applied is not None
    layers = tuple(path for _, path in entry.applied.layers)
    return [("layers.roots", "guest", layers, entry.slot)]


def _directory(vm: UtilityVM, entry: Entry) -> list[Fact]:
    return [("directories.directories", "guest", None, entry.slot)]


_EXPECTED: dict[str, Callable[[UtilityVM, Entry], list[Fact]]] = {
    "scsi.disks": _disk,
    "scsi.mounts": _mount,
    "vpmem.layers": _layer,
    "vsmb.shares": _vsmb,
    "plan9.shares": _plan9,
    "vpci.devices": _device,
    "pipes.pipes": _pipe,
    "network.namespaces": _namespace,
    "network.adapters": _adapter,
    "layers.roots": _root,
    "directories.directories": _directory,
}


# What is there.


def _on_host(vm: UtilityVM, machine: FakeVM) -> list[Fact]:
    tree = machine.tree
    facts: list[Fact] = [
        ("scsi.disks", "host", (d.attachment.path, d.attachment.read_only), slot)
        for slot, d in tree.scsi.disks.items()
        if slot not in vm.plan.reserved_scsi
    ]
    facts += [("vpmem.layers", "host", d.image.host_path, n) for n, d in tree.vpmem.devices.items()]
    facts += [("vpmem.layers", "host", m.image.host_path, _mapping(m)) for m in tree.vpmem.mappings.values()]
    facts += [
        ("vsmb.shares", "host", (share.path, tuple(share.allowed_files)), name)
        for name, share in tree.vsmb.shares.items()
        if name != _BOOT_SHARE
    ]
    facts += [("plan9.shares", "host", share.path, name) for name, share in tree.plan9.shares.items()]
    facts += [
        ("vpci.devices", "host", device.settings.functions[0].device_instance_path, device.guid)
        for device in tree.pci.devices.values()
    ]
    facts += [("pipes.pipes", "host", None, name) for name in tree.pipes.pipes]
    facts += [
        ("network.adapters", "host", adapter.settings.endpoint_id, adapter.id)
        for adapter in tree.adapters.adapters.values()
    ]
    return facts


def _mapping(pmem: Any) -> Mapping:
    return Mapping(pmem.number, pmem.offset, pmem.length)


def _in_guest(guest: FakeGuest) -> list[Fact]:
    facts = [fact for mount in guest.mounts.values() for fact in _mounted(guest, mount)]
    if isinstance(guest, LinuxGuest):
        facts += [
            ("network.adapters", "guest", None, adapter.id)
            for adapters in guest.namespaces.values()
            for adapter in adapters.values()
        ]
    if isinstance(guest, WindowsGuest):
        facts += [("network.namespaces", "guest", None, namespace) for namespace in guest.namespaces]
        facts += [("network.adapters", "guest", None, nic_id) for nic_id in guest.adapters]
    return facts


def _mounted(guest: FakeGuest, mount: Any) -> list[Fact]:
    match mount.kind:
        case "disk" | "blockdev":
            disk = mount.device
            return [("scsi.mounts", "guest", (disk.controller, disk.lun), mount.path)]
        case "pmem":
            slot = mount.device.number if mount.device.offset is None else _mapping(mount.device)
            path = layer_path(slot) if isinstance(slot, int) else slot.guest_path
            assert mount.path == path
            return [("vpmem.layers", "guest", mount.device.image.host_path, slot)]
        case "plan9":
            return [("plan9.shares", "guest", mount.path, mount.device.share.name)]
        case "overlay":
            # The scratch of a Linux overlay is its last layer here.
            layers = mount.layers if guest.os == "windows" else mount.layers[:-1]
            return [("layers.roots", "guest", layers, mount.path)]
        case _:
            return [("directories.directories", "guest", None, mount.path)]
