"""What is attached, by two accounts: the ledgers of a VM, and the machine and the guest that the fake has.

The ledgers' account is what the requests that attach their devices make of the document that the VM was
created with, and of a second guest on the same machine. So no kind of device is known here. What is
quarantined is left out of both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from attrs import evolve, frozen

from uvm._vm.vm import UtilityVM
from uvm.backend import JSON
from uvm.backends.fake import FakeGuest, FakeVM, LinuxGuest, WindowsGuest
from uvm.devices.base import ADD, REMOVE, Device, Entry, Operation, Quarantined, Request
from uvm.schema import requests
from uvm.schema.json import to_json
from uvm.schema.requests import (
    ModificationRequest,
    SerialPort,
    SocketService,
    VPMemDevice,
    VPMemMapping,
    parse_resource_path,
)

#: (where, what, how): ``where`` is the host or the guest.
Fact = tuple[str, str, str]

_DEVICES = "VirtualMachine/Devices"


@frozen
class Audit:
    """What the ledgers expect and what the machine has, without what is withheld."""

    expected: frozenset[Fact]
    actual: frozenset[Fact]


def audit(vm: UtilityVM, machine: FakeVM) -> Audit:
    """Compare a VM that is at rest with its host and its guest."""
    guest = machine.guest
    # Without its checks: a root that is an orphan stays after its layers.
    twin = type(guest)(guest.tree, evolve(guest.checks, guest=False), guest.capabilities)
    created = dict(_resources(_DEVICES, machine.document["VirtualMachine"]["Devices"]))
    for name in _restored(vm):
        created.pop(name, None)
    expected = _Account({name: created[name] for name in created if "/virtualpci/" not in name}, twin)
    doubtful: set[str] = set()
    withheld: set[str] = set()
    for _, driver in reversed([*vm._drivers()]):
        if not (driver.ledger or driver.ledger.quarantined):
            continue
        # Steps may leave a trace in the device.
        device = deepcopy(driver.ledger.device)
        # What is left of a device may be at a guest path that another has now.
        for entry in sorted(driver.ledger, key=lambda each: not each.remaining):
            asked = [*_requests(device, entry)]
            expected.carry_out(asked, created)
            doubtful |= {name for each in asked for name in _names(each) if entry.doubtful}
        for slot in driver.ledger.quarantined:
            withheld |= {name for each in _requests(device, slot) for name in _names(each)}
    actual = _Account(dict(_resources(_DEVICES, guest.tree.inventory())), guest)
    places = ("host",) if guest_is_gone(vm) else ("host", "guest")
    return Audit(*(frozenset(each.facts(places, withheld, doubtful)) for each in (expected, actual)))


def _restored(vm: UtilityVM) -> Iterator[str]:
    """Yield the names of what a clone was created with and has in a ledger."""
    restored = vm.plan.restored
    if restored is not None:
        for disk in restored.disks:
            yield _name(requests.scsi_attachment_path(disk.controller, disk.lun), None)[0]
        for layer in restored.layers:
            packed = vm.plan.vpmem_multi_mapping
            slot = VPMemMapping(layer.device, layer.offset_bytes) if packed else VPMemDevice(layer.device)
            yield _name(slot.path, None)[0]
        for share in restored.shares:
            yield _name(requests.VSMBShares.PATH, {"Name": share.name})[0]


def guest_is_gone(vm: UtilityVM) -> bool:
    """Return whether the connection to the guest has closed while the VM runs: what it holds is void."""
    return bool(getattr(vm._link.guest, "closed", False))


def _requests(
    device: Device[Any, Any, Any, Any], of: Entry[Any, Any, Any, Any] | Quarantined[Any, Any]
) -> Iterator[Request]:
    """Yield the requests that made what is applied, or may be, and those that removed a part of it again."""
    value, remaining = (of.value, ()) if isinstance(of, Quarantined) else (of.applied, of.remaining)
    if value is None:
        return
    entry: Entry[Any, Any, Any, Any] = Entry(of.key, of.slot, value)
    added, removed = device.steps(Operation(ADD, entry, value)), device.steps(Operation(REMOVE, entry))
    done = len(removed) - len(remaining)
    if not remaining or (done and remaining == removed[done:]):
        yield from (step.request for step in (*added, *removed[: done if remaining else 0]))
    else:
        # An ADD whose undo was refused: what can still be undone is applied.
        yield from (step.request for step in added if step.undo in remaining)


class _Account:
    """The resources of a host, by path, and a guest."""

    def __init__(self, host: dict[str, JSON], guest: FakeGuest) -> None:
        self.host = host
        self.guest = guest

    def carry_out(self, asked: list[Request], created: dict[str, JSON]) -> None:
        for request in asked:
            if isinstance(request, ModificationRequest):
                self.guest.modify(to_json(request))
                continue
            name, settings = _name(request.resource_path, to_json(request).get("Settings"))
            self.host.pop(name, None)
            if request.request_type != requests.REMOVE:
                # PCI devices of the document are in a ledger too; the settings of the document hold.
                self.host[name] = created.get(name, settings)

    def facts(self, places: tuple[str, ...], withheld: set[str], doubtful: set[str]) -> Iterator[Fact]:
        found = {"host": self.host.items(), "guest": _in_guest(self.guest)}
        for place in places:
            for name, value in found[place]:
                if name.casefold() not in withheld:
                    # Of a share whose update got lost, the allowed files may be the old or the new ones.
                    known = None if name.casefold() in doubtful else value
                    yield place, name, json.dumps(known, sort_keys=True, default=repr)


def _resources(path: str, value: Any) -> Iterator[tuple[str, JSON]]:
    """Yield the resources in a part of a document. Resource paths are paths in the document."""
    inner = value.items() if isinstance(value, dict) else ()
    # Of a device on which something is mapped, that is the resource.
    found = [resource for key, each in inner for resource in _resources(f"{path}/{key}", each)]
    resource = parse_resource_path(path)
    if found or resource is None or isinstance(resource, SerialPort | SocketService):
        yield from found
    elif isinstance(value, list):
        yield from (_name(path, each) for each in value)
    else:
        yield _name(path, value)


def _name(path: str, settings: JSON | None) -> tuple[str, JSON]:
    """Return the name of a resource with its settings; the settings of a share name it.

    The SR-IOV settings of an adapter are the host's alone.
    """
    name = (settings or {}).get("Name", "")
    known = {key: value for key, value in (settings or {}).items() if key != "IovSettings"}
    return f"{path}/{name}".rstrip("/").casefold(), known


def _names(request: Request) -> Iterator[str]:
    """Yield what a request may name: a resource of the host; in the guest any of its values."""
    settings = to_json(request).get("Settings")
    if isinstance(request, ModificationRequest):
        inner = [settings, *(settings or {}).values()]
        yield from (str(v).casefold() for each in inner if isinstance(each, dict) for v in each.values())
    else:
        yield _name(request.resource_path, settings)[0]


def _in_guest(guest: FakeGuest) -> Iterator[tuple[str, Any]]:
    """Yield what a guest holds."""
    yield from ((mount.path, mount) for mount in guest.mounts.values())
    if isinstance(guest, LinuxGuest):
        yield from ((nic, each) for adapters in guest.namespaces.values() for nic, each in adapters.items())
    if isinstance(guest, WindowsGuest):
        yield from guest.namespaces.items()
        yield from guest.adapters.items()
        yield from ((key, mounted) for key, (mounted, _) in guest.volumes.items())
