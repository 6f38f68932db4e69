"""The invariant at quiet: what the ledgers say is applied = the host's device tree = the guest's mounts.

:mod:`uvm.testing.backends.audit` compares them; here is what else has to hold of the machinery in between.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from tests.vm.support import Running, idle
from uvm._buses.holds import Hold, HoldState
from uvm._buses.lease import LeaseState
from uvm._buses.vpmem import _guest_path as layer_path
from uvm._document.plan import GrantAccess
from uvm._guest.container import Container
from uvm._guest.process import Process
from uvm._guest.updates import Settings
from uvm._vm.devices import Devices
from uvm._vm.pods.pod import Pod
from uvm._vm.settings import _as_created
from uvm.backends.fake import WindowsGuest
from uvm.devices.plan9 import Plan9Shares
from uvm.devices.scsi import Attachments, MountPlace
from uvm.devices.vpmem import Layers, PackedLayers
from uvm.devices.vsmb import Share, Shares
from uvm.errors import is_refusal
from uvm.testing.backends import audit
from uvm.testing.backends.audit import Audit


def compare(run: Running) -> Audit:
    """Compare the VM with its host and its guest."""
    return audit.audit(run.vm, run.backend.vms[run.vm.id])


def check_at_rest(run: Running) -> None:
    """Nothing is in flight, and ledgers, host and guest agree."""
    for name, driver in run.vm._drivers():
        assert idle(driver), f"{name} is not at rest: {driver.ledger.dump()}"
        holds = set(driver._holds)
        tickets = {t for e in driver.ledger for t in (*e.holders, *e.owed)}
        assert holds == tickets, f"{name}: a hold without its ticket, or a ticket without its hold"
    reported = [(q.key, q.slot, q.operation) for q in run.vm.quarantined]
    withheld = [(q.key, q.slot, q.operation) for s in run.vm.ledgers().values() for q in s.quarantined]
    assert sorted(map(str, reported)) == sorted(map(str, withheld))
    found = compare(run)
    assert found.expected == found.actual, found.expected ^ found.actual
    _check_guest(run)
    _check_devices(run)
    _check_allocators(run)
    _check_access(run)
    _check_look_ups(run)
    _check_indexes(run)
    _check_settings(run)
    _check_mounts(run)


def _check_settings(run: Running) -> None:
    """The settings in force are the host's, but those whose last change has an unknown outcome."""
    settings: Settings | None = vars(run.vm).get("_settings")
    if settings is not None:
        there = _as_created({"VirtualMachine": {"ComputeTopology": run.inventory["ComputeTopology"]}})
        known = there.keys() - settings._doubtful
        assert {path: settings.value(path) for path in known} == {path: there[path] for path in known}


def _check_mounts(run: Running) -> None:
    """What is mapped into containers has a mount, which is not released; others are in doubt."""
    if audit.guest_is_gone(run.vm) or not isinstance(run.guest, WindowsGuest):
        return
    mounts = {(each.container_id, each.container_path): each for each in run.vm._link.mounts}
    there = {
        (id, each.container_path) for id, paths in run.guest.directories.items() for each in paths.values()
    }
    assert there <= mounts.keys()
    for where, mount in mounts.items():
        refused_with = mount._releasing.error
        assert where in there or (refused_with is not None and not is_refusal(refused_with)), where


def _check_indexes(run: Running) -> None:
    """What is found by a key is what a walk finds."""
    link = run.vm._link
    walked = [hold for hold in link.left if hold in link.left.at(hold._claims())]
    assert walked == [*link.left]
    there = {entry for _, driver in run.vm._drivers() for entry in driver.ledger}
    assert {*link.occupied._devices} <= there
    for _, driver in run.vm._drivers():
        for entry in driver.ledger:
            assert entry in link.occupied._devices or not driver._guest_paths(entry)
            orphans = [hold for hold in link.left if hold.is_orphan and hold.ticket.entry is entry]
            assert driver.is_orphaned(entry) is bool(orphans)
            assert first(driver.oldest_on(entry.key)) is first(driver.holds_on(entry.key))


def first(holds: Sequence[Hold[object]]) -> Hold[object] | None:
    """Return the hold that is the first to be released."""
    return min(holds, key=lambda hold: (hold.state is HoldState.RELEASING, hold.number), default=None)


def _check_look_ups(run: Running) -> None:
    """What is listed has leases or is an orphan, and is found by its name; no orphan is withheld too."""
    vm = run.vm
    orphans = {(o.ledger, o.key, str(o.slot)) for o in vm.orphans}
    ledgers = vm.ledgers().items()
    assert orphans.isdisjoint((name, q.key, str(q.slot)) for name, s in ledgers for q in s.quarantined)
    for name, driver in vm._drivers():
        # What is direct-mapped stays without leases.
        unowned = [
            entry.key
            for entry, applied in driver.attached()
            if not driver.references(entry) and not driver.is_orphaned(entry) and not _is_retained(applied)
        ]
        assert unowned == [], name
    for disk in vm.scsi.disks:
        assert vm.scsi.find(disk.host_path, read_only=disk.read_only) is not None
    for layer in vm.vpmem.layers:
        assert vm.vpmem._find(layer.host_path)
    for share in vm.vsmb.shares:
        assert all(vm.vsmb._find(path, share.read_only) for path in share.files or (share.host_path,))


def _is_retained(applied: object) -> bool:
    return isinstance(applied, Share) and not applied.options.no_directmap


def check_opened(run: Running, opened: Sequence[object]) -> None:
    """Nothing runs in the guest but what callers have open, and no container is there besides."""
    if audit.guest_is_gone(run.vm):
        return
    service = run.backend.vms[run.vm.id].service
    for container in (each for each in opened if isinstance(each, Container)):
        _check_container_settings(container, service.containers.get(container.id))
    # A pod lists its own, those whose end has failed included.
    containers = {each.id for each in opened if isinstance(each, Container)} | {*run.pod.containers}
    processes = {each.pid for each in opened if isinstance(each, Process)}
    for each in service.containers.values():
        # Windows guests keep the state of one that has ended; Linux guests, while its layers are mounted.
        kept = run.vm.os == "windows" or run.vm._link.states.pending(each.id) is not None
        assert each.id in containers or (each.status == "stopped" and kept), each
    assert {pid for pid, each in service.external.items() if each.alive} <= processes


def check_pod(pod: Pod) -> None:
    """A pod lists what there is of it: nothing that has ended, and all of what is as it was brought up."""
    assert None not in pod._members.values()
    for each in pod.containers.values():
        assert not each.closed, each
        assert each._ending.begun or each.resources.state is LeaseState.HELD, each
    if pod._ending.done:
        assert not pod.containers


def _check_container_settings(container: Container, there: Any) -> None:
    """The settings in force of a Windows container are its guest's, but those in doubt, and unknown ones."""
    settings: Settings | None = vars(container).get("_settings")
    if settings is not None and there is not None:
        for path, setting in settings._in_force.items():
            if path not in settings._doubtful and setting.value is not None:
                assert there.resources.get(path, settings._created[path]) == setting.value, path


def _check_access(run: Running) -> None:
    """The VM has access to what it booted from, and to what is attached or may be; to nothing else."""
    vm, needed = run.vm, set()
    allowed = {s.path for s in vm.plan.preparations if isinstance(s, GrantAccess) and not s.to_vm_group}
    if vm.plan.restored is not None:
        # Those of a clone are in its ledgers, from its start.
        allowed -= {disk.path for disk in vm.plan.restored.disks}
    for _, driver in vm._drivers():
        if isinstance(driver.ledger.device, Attachments | Layers | PackedLayers):
            values = [e.applied for e in driver.ledger] + [q.value for q in driver.ledger.quarantined]
            allowed |= {getattr(value, "path", value) for value in values if value is not None}
        needed |= {need._name.path for need in driver._needs.values() if need._grant is True}
    had = {path.casefold() for path in run.backend.access.paths(vm.id)}
    unrevoked = {path.casefold() for path in vm._context.access.unrevoked}
    assert had <= {path.casefold() for path in allowed} | unrevoked
    assert {path.casefold() for path in needed} <= had


_EVD = re.compile("^evd://[^/]*/")
#: By kind: where the host has it, what names it there, and the attribute of the rows that names it.
_ON_HOST = {
    "disks": ("Scsi", "Path", "host_path"),
    "layers": ("VirtualPMem", "HostPath", "host_path"),
    "plan9_shares": ("Plan9", "Name", "name"),
    "vsmb_shares": ("VirtualSmb", "Name", "name"),
    "adapters": ("NetworkAdapters", "EndpointId", "endpoint_id"),
    "pci_devices": ("VirtualPci", "DeviceInstancePath", "instance_path"),
}


def _check_devices(run: Running) -> None:
    """What the VM says of its devices is there, save what is withheld or in part; no orphan is withheld."""
    vm, machine = run.vm, run.backend.vms[run.vm.id]
    said, snapshots = vm.devices(), vm.ledgers()
    withheld: set[tuple[str, Any]] = {
        (name, q.slot) for name, each in snapshots.items() for q in each.quarantined
    }
    orphans = {(orphan.ledger, orphan.slot) for orphan in vm.orphans}
    assert not orphans & withheld
    assert len(said.orphans) == len(vm.orphans)
    assert len(said.quarantined) == len(withheld)
    there = {(name, entry.slot) for name, each in snapshots.items() for entry in each.entries}
    assert orphans <= there
    in_part = [entry for each in snapshots.values() for entry in each.entries if entry.remaining]
    unsure = str([in_part, *(each.quarantined for each in snapshots.values())]).casefold()
    created, on_host = machine.document["VirtualMachine"]["Devices"], machine.tree.inventory()
    for kind, (part, name, attribute) in _ON_HOST.items():
        rows = {_EVD.sub("", str(getattr(row, attribute))).casefold(): row for row in getattr(said, kind)}
        rows.pop("", None)  # an adapter in the guest alone
        booted = {*_named(created.get(part), name)} if kind != "pci_devices" else set()
        if vm.is_clone:
            # What its template had is not only there, but attached.
            booted -= rows.keys()
        differ = ({*_named(on_host.get(part), name)} - booted) ^ rows.keys()
        # Of an orphan, only what is in the guest may be left.
        differ -= {each for each, row in rows.items() if row.orphaned}
        assert {each for each in differ if repr(each)[1:-1] not in unsure} == set(), kind
    if audit.guest_is_gone(vm):
        return
    paths = {path for disk in said.disks for path in disk.mounts} | {row.root for row in said.roots}
    paths |= {row.guest_path for rows in (said.layers, said.plan9_shares, said.shared) for row in rows}
    paths |= {layer_path(slot) for name, slot in withheld if name == "vpmem.layers"}
    mounted = {mount.path for mount in run.guest.mounts.values()} - paths
    assert {path for path in mounted if repr(path)[1:-1].casefold() not in unsure} == set()


def _named(part: Any, name: str) -> Iterator[str]:
    """Yield what devices are named, in a part of the devices of a host."""
    for key, value in part.items() if isinstance(part, dict) else ():
        if key == name:
            yield str(value).casefold()
        yield from _named(value, name)
    for each in part if isinstance(part, list) else ():
        yield from _named(each, name)


def _check_guest(run: Running) -> None:
    """Nothing hangs in the air in the guest, but a root file system that is withheld itself."""
    if audit.guest_is_gone(run.vm):
        return
    withheld = {q.slot.path if isinstance(q.slot, MountPlace) else str(q.slot) for q in run.vm.quarantined}
    for problem in run.guest.inconsistencies():
        assert any(slot in problem for slot in withheld), problem


def _check_allocators(run: Running) -> None:
    """Every slot that is taken is an entry's, or withheld, or was reserved at creation; and none is twice."""
    fresh = Devices(run.vm._context)
    for name, bus in run.vm._in_use():
        for (ledger, driver), (_, other) in zip(bus._drivers(), getattr(fresh, name)._drivers(), strict=True):
            taken = [*driver.ledger, *driver.ledger.quarantined]
            assert len(taken) == len({each.slot for each in taken}), (name, ledger)
            device = deepcopy(driver.ledger.device) if taken else driver.ledger.device
            for each in taken:
                device.vacate(each.key, each.slot)
            # Names from counters are used once.
            if not isinstance(device, Shares | Plan9Shares):
                assert device.dump() == other.ledger.device.dump(), (name, ledger)
