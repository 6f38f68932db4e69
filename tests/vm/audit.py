"""The invariant at quiet: what the ledgers say is applied = the host's device tree = the guest's mounts.

Both sides are written as sets of facts, per ledger: (slot, what is there). What is quarantined is left out on
both sides, slot by slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from attrs import frozen

from tests.vm.support import Running, idle
from uvm.backends.fake import FakeGuest, LinuxGuest, WindowsGuest
from uvm.devices.base import EntrySnapshot, LedgerSnapshot
from uvm.devices.scsi import MountPlace
from uvm.devices.vpmem import Mapping, layer_path

#: (ledger, where, what, slot): ``where`` is the host or the guest.
Fact = tuple[str, str, Any, Any]
Entry = EntrySnapshot[Any, Any, Any, Any]

_BOOT_SHARE = "os"


@frozen
class Audit:
    """What the ledgers expect and what the machine has, without what is withheld."""

    expected: frozenset[Fact]
    actual: frozenset[Fact]


def audit(run: Running) -> Audit:
    """Compare a VM that is at rest with its host and its guest."""
    snapshots = run.vm.snapshot()
    withheld = {(name, _place(q.slot)) for name, s in snapshots.items() for q in s.quarantined}
    doubtful = {(n, e.slot) for n, s in snapshots.items() for e in s.entries if e.doubtful}
    expected = {fact for name, s in snapshots.items() for e in s.entries for fact in _EXPECTED[name](run, e)}
    actual = {*_on_host(run), *_in_guest(run.guest)}

    def kept(facts: Iterable[Fact]) -> frozenset[Fact]:
        seen = [fact for fact in facts if (fact[0], fact[3]) not in withheld]
        if guest_is_gone(run):
            # Nobody can ask it to let go of anything, so what it holds does not count.
            seen = [fact for fact in seen if fact[1] != "guest"]
        # The allowed files of a share whose update got lost may be the old or the new ones.
        return frozenset((*f[:2], None, f[3]) if (f[0], f[3]) in doubtful else f for f in seen)

    return Audit(kept(expected), kept(actual))


def guest_is_gone(run: Running) -> bool:
    """Whether the connection to the guest has closed, while the VM runs."""
    return bool(getattr(run.vm.link.guest, "closed", False))


def check_at_rest(run: Running) -> None:
    """Nothing is in flight, and ledgers, host and guest agree."""
    for name, driver in run.vm.drivers():
        assert idle(driver), f"{name} is not at rest: {driver.ledger.snapshot()}"
        holds = set(driver._holds)
        tickets = {t for e in driver.ledger for t in (*e.holders, *e.owed)}
        tickets |= {q.parent.ticket for q in _withheld_parents(run) if q.parent.driver is driver}
        assert holds == tickets, f"{name}: a hold without its ticket, or a ticket without its hold"
    reported = [(q.key, q.slot, q.operation) for q in run.vm.quarantined]
    withheld = [(q.key, q.slot, q.operation) for s in run.vm.snapshot().values() for q in s.quarantined]
    assert sorted(map(str, reported)) == sorted(map(str, withheld))
    found = audit(run)
    assert found.expected == found.actual
    _check_guest(run)
    _check_allocators(run)


def _withheld_parents(run: Running) -> list[Any]:
    return [q for _, d in run.vm.drivers() for q in d.ledger.quarantined if q.parent is not None]


def _check_guest(run: Running) -> None:
    """Nothing hangs in the air in the guest, but a root file system that is withheld itself."""
    if guest_is_gone(run):
        return
    withheld = {_place(q.slot) for q in run.vm.quarantined}
    for problem in run.guest.inconsistencies():
        assert any(str(slot) in problem for slot in withheld), problem


def _check_allocators(run: Running) -> None:
    """Every slot that is taken is an entry's, or withheld, or was reserved at creation; and none is twice."""
    for name, snapshot in run.vm.snapshot().items():
        slots = [*(e.slot for e in snapshot.entries), *(q.slot for q in snapshot.quarantined)]
        assert len(slots) == len(set(slots)), name
        check = _ALLOCATED.get(name)
        if check is not None:
            check(run, snapshot, slots)


def _scsi_slots(run: Running, snapshot: LedgerSnapshot[Any, Any, Any, Any], slots: list[Any]) -> None:
    taken = {64 * controller + lun for controller, lun in (*slots, *run.vm.plan.reserved_scsi)}
    assert snapshot.allocator == sum(1 << slot for slot in taken)


def _mount_numbers(run: Running, snapshot: LedgerSnapshot[Any, Any, Any, Any], slots: list[Any]) -> None:
    numbers, paths = snapshot.allocator
    assert numbers == sum(1 << slot.number for slot in slots)
    assert len(paths) == len(slots)


def _vpmem_slots(run: Running, snapshot: LedgerSnapshot[Any, Any, Any, Any], slots: list[Any]) -> None:
    if not run.vm.plan.vpmem_multi_mapping:
        assert snapshot.allocator == sum(1 << slot for slot in slots)
        return
    assert {m for _, _, mappings in snapshot.allocator for m, _ in mappings} == set(slots)


def _names(run: Running, snapshot: LedgerSnapshot[Any, Any, Any, Any], slots: list[Any]) -> None:
    assert snapshot.allocator == tuple(sorted(slots))


_ALLOCATED: dict[str, Callable[[Running, LedgerSnapshot[Any, Any, Any, Any], list[Any]], None]] = {
    "scsi.disks": _scsi_slots,
    "scsi.mounts": _mount_numbers,
    "vpmem.layers": _vpmem_slots,
    "vpci.devices": _names,
    "pipes.pipes": _names,
    "network.adapters": _names,
}


def _place(slot: Any) -> Any:
    """Give what host and guest know of a slot: the number of a mount is our own affair."""
    return slot.path if isinstance(slot, MountPlace) else slot


# What the ledgers expect. A removal with progress has been done in the guest, and not on the host.


def _disk(run: Running, entry: Entry) -> list[Fact]:
    return [("scsi.disks", "host", (entry.key.path, entry.key.read_only), tuple(entry.slot))]


def _mount(run: Running, entry: Entry) -> list[Fact]:
    return [("scsi.mounts", "guest", tuple(entry.key.slot), _place(entry.slot))]


def _layer(run: Running, entry: Entry) -> list[Fact]:
    facts: list[Fact] = [("vpmem.layers", "host", entry.key, entry.slot)]
    return facts if entry.progress else [*facts, ("vpmem.layers", "guest", entry.key, entry.slot)]


def _vsmb(run: Running, entry: Entry) -> list[Fact]:
    assert entry.applied is not None
    return [("vsmb.shares", "host", (entry.key.directory, entry.applied.files), entry.slot)]


def _plan9(run: Running, entry: Entry) -> list[Fact]:
    assert entry.applied is not None
    facts: list[Fact] = [("plan9.shares", "host", entry.applied.path, entry.slot)]
    return (
        facts if entry.progress else [*facts, ("plan9.shares", "guest", entry.applied.guest_path, entry.slot)]
    )


def _device(run: Running, entry: Entry) -> list[Fact]:
    return [("vpci.devices", "host", entry.key.instance_path, entry.slot)]


def _pipe(run: Running, entry: Entry) -> list[Fact]:
    return [("pipes.pipes", "host", None, entry.slot)]


def _namespace(run: Running, entry: Entry) -> list[Fact]:
    return [("network.namespaces", "guest", None, entry.slot)] if run.vm.os == "windows" else []


def _adapter(run: Running, entry: Entry) -> list[Fact]:
    facts: list[Fact] = [("network.adapters", "host", entry.key.endpoint_id, entry.slot)]
    return facts if entry.progress else [*facts, ("network.adapters", "guest", None, entry.slot)]


def _root(run: Running, entry: Entry) -> list[Fact]:
    assert entry.applied is not None
    layers = tuple(path for _, path in entry.applied.layers)
    return [("layers.roots", "guest", layers, entry.slot)]


def _directory(run: Running, entry: Entry) -> list[Fact]:
    return [("directories.directories", "guest", None, entry.slot)]


_EXPECTED: dict[str, Callable[[Running, Entry], list[Fact]]] = {
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


def _on_host(run: Running) -> list[Fact]:
    tree = run.backend.vms[run.vm.id].tree
    facts: list[Fact] = [
        ("scsi.disks", "host", (d.attachment.path, d.attachment.read_only), slot)
        for slot, d in tree.scsi.disks.items()
        if slot not in run.vm.plan.reserved_scsi
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
