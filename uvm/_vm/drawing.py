"""The devices of a VM as a drawing: SCSI as a grid, VPMEM devices to scale, the rest in tables. Pure.

Each device has one row. What is withheld, or has no caller, has a colour of its own wherever it is drawn,
and is listed with its reason below.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import count, product
from typing import Final, Protocol

from uvm._buses.link import StuckDevice
from uvm._buses.vpmem import VPMemLayer
from uvm._drawing.blocks import Block, Line, Part, Span, Style, cells, line, table
from uvm._drawing.drawing import Drawing
from uvm._repr import format_size
from uvm._vm.requestsummary import offset, shorten
from uvm._vm.rows import RecentRequest, Rows
from uvm.devices.scsi import LUNS_PER_CONTROLLER
from uvm.devices.slots import LARGEST_REGION_BYTES, Regions
from uvm.schema.common import MIB

_GROUP: Final = 8
#: One cell of a VPMEM device is a 64th of it: of 4 GiB, the largest, that is 64 MiB.
_CELLS: Final = 64
_ORPHAN: Final[Style] = "red"
_WITHHELD: Final[Style] = "magenta"
_OUTCOMES: Final[dict[str, Style]] = {"refused": "red", "unknown": "magenta", "in flight": "yellow"}

_FREE: Final = Span("·", "dim")
_OWN: Final = Span("#", "blue")
_QUARANTINED: Final = Span("Q", _WITHHELD)
_ORPHANED: Final = Span("O", _ORPHAN)
_READ_ONLY: Final = Span("R", "green")
_WRITABLE: Final = Span("W", "yellow")
_REST: Final = Span("-", "dim")
_SEVERAL: Final = Span("+", "green")


def draw_devices(devices: Rows) -> Drawing:
    """Draw the devices that the VM has or can have."""
    others = {
        "Shares": _shares(devices),
        "Network": _network(devices),
        "Containers": _containers(devices),
    }
    none = ", ".join(name for name, blocks in others.items() if not blocks)
    parts: list[list[Block]] = [
        [line(Span("VM ", "dim"), Span(devices.vm_id, "bold"))],
        _scsi(devices),
        _vpmem(devices),
        *others.values(),
        _pci(devices),
        [_title(none, "none")] if none else [],
        _stuck("Orphans", devices.orphans, _ORPHAN),
        _stuck("Quarantined", devices.quarantined, _WITHHELD),
        _section(
            "Access that could not be revoked",
            ("path", "why"),
            [(each.host_path, each.why) for each in devices.unrevoked_access],
        ),
        _requests(devices.requests),
    ]
    drawn: list[Block] = []
    for part in filter(None, parts):
        drawn += [Line(), *part] if drawn else part
    return Drawing(tuple(drawn))


class _Row(Protocol):
    """A row of :class:`~uvm.VMDevices` that leases refer to."""

    @property
    def references(self) -> int: ...

    @property
    def orphaned(self) -> bool: ...


def _references(row: _Row) -> Part:
    return Span("orphan", _ORPHAN) if row.orphaned else str(row.references or "kept")


def _title(name: str, what: str = "") -> Line:
    return line(Span(name, "bold"), Span(f"  {what}" if what else "", "dim"), indent=2)


def _note(text: str) -> Line:
    return line(Span(text, "dim"), indent=4)


def _legend(*entries: tuple[Span, str], first: str = "") -> Line:
    parts = [Span(first, "dim")] if first else []
    for mark, what in entries:
        parts += [Span("   " if parts else ""), mark, Span(f" {what}", "dim")]
    return line(*parts, indent=4)


def _section(title: str, header: Sequence[str], rows: Sequence[Sequence[Part]]) -> list[Block]:
    return [_title(title), table(header, rows, indent=4)] if rows else []


def _clock(time: datetime) -> str:
    return f"{time:%H:%M:%S}"


# SCSI.


def _scsi(devices: Rows) -> list[Block]:
    """Draw every LUN of every controller as a cell, and list the disks."""
    controllers = devices.scsi_controllers
    if not (controllers or devices.disks):
        return []
    marks: dict[tuple[int, int], Span] = {(each[0], each[1]): _OWN for each in devices.reserved_scsi}
    for disk in devices.disks:
        mark = _ORPHANED if disk.orphaned else _READ_ONLY if disk.read_only else _WRITABLE
        marks[disk.controller, disk.lun] = mark
    marks |= {(each[0], each[1]): _QUARANTINED for each in devices.quarantined_scsi}
    numbers = "".join(str(lun).ljust(_GROUP + 1) for lun in range(0, LUNS_PER_CONTROLLER, _GROUP))
    slots = controllers * LUNS_PER_CONTROLLER
    drawn: list[Block] = [
        _title("SCSI", f"{len(marks)} of {slots} slots taken"),
        line(Span(numbers, "dim"), indent=4),
        *(cells(_controller(marks, number), indent=2) for number in range(controllers)),
        _scsi_legend(marks.values()),
    ]
    rows = [
        (
            f"{disk.controller}:{disk.lun}",
            disk.host_path,
            _references(disk),
            ", ".join(disk.mounts) or "not mounted",
        )
        for disk in sorted(devices.disks, key=lambda disk: (disk.controller, disk.lun))
    ]
    return [*drawn, table(("slot", "disk", "refs", "in the guest"), rows, indent=4)] if rows else drawn


def _controller(marks: dict[tuple[int, int], Span], controller: int) -> Iterator[Span]:
    yield Span(f"{controller} ")
    for lun in range(LUNS_PER_CONTROLLER):
        if lun and lun % _GROUP == 0:
            yield Span(" ", "dim")
        yield marks.get((controller, lun), _FREE)


def _scsi_legend(marks: Iterable[Span]) -> Line:
    used = {*marks}
    entries = (
        (_OWN, "disk of the VM itself"),
        (_READ_ONLY, "read-only disk"),
        (_WRITABLE, "writable disk"),
        (_ORPHANED, "orphan"),
        (_QUARANTINED, "quarantined"),
        (_FREE, "free"),
    )
    always = _READ_ONLY, _WRITABLE, _FREE
    return _legend(*(entry for entry in entries if entry[0] in used or entry[0] in always))


# VPMEM.


def _vpmem(devices: Rows) -> list[Block]:
    """Draw each VPMEM device in use to scale, a letter for each layer, and list the layers."""
    if not (devices.vpmem_count or devices.layers):
        return []
    in_order = sorted(devices.layers, key=lambda layer: (layer.device, layer.offset_bytes))
    layers = dict(zip(_letters(), in_order, strict=False))
    used = sorted({layer.device for layer in in_order} | {each[0] for each in devices.quarantined_vpmem})
    taken = len(used) + (devices.boot_vpmem_bytes is not None)
    size = format_size(devices.vpmem_size_bytes)
    drawn: list[Block] = [_title("VPMEM", f"{taken} of {devices.vpmem_count} devices taken, of {size} each")]
    if devices.boot_vpmem_bytes is not None:
        boot = f" root file system of the VM itself, {format_size(devices.boot_vpmem_bytes)}"
        drawn.append(line("  0 ", _OWN, Span(boot, "dim")))
    for device in used:
        there = {letter: layer for letter, layer in layers.items() if layer.device == device}
        drawn.append(cells([Span(f"{device:>3} "), *_vpmem_cells(device, there, devices)]))
    if used:
        entries = [(_REST, "rest of a layer's region"), (_SEVERAL, "several layers"), (_FREE, "free")]
        withheld = [(_QUARANTINED, "quarantined")] if devices.quarantined_vpmem else []
        cell = f"one cell is {format_size(devices.vpmem_size_bytes // _CELLS)}"
        drawn.append(_legend(*withheld, *entries, first=cell))
    header = ("", "device", "layer", "size", "refs", "in the guest")
    rows = [
        (
            letter,
            f"{layer.device} at {offset(layer.offset_bytes)}",
            layer.host_path,
            format_size(layer.size_bytes),
            _references(layer),
            layer.guest_path,
        )
        for letter, layer in layers.items()
    ]
    return [*drawn, table(header, rows, indent=4)] if rows else drawn


def _letters() -> Iterator[str]:
    """Yield a, b, ..., z, aa, ab, ...: the first letter is what a cell shows."""
    for length in count(1):
        yield from map("".join, product(string.ascii_lowercase, repeat=length))


def _vpmem_cells(device: int, layers: dict[str, VPMemLayer], devices: Rows) -> list[Span]:
    drawn = [_FREE] * _CELLS
    for layer in layers.values():
        size_bytes = layer.size_bytes
        if devices.vpmem_multi_mapping:
            # What the allocator has set aside for it.
            size_bytes = min(MIB << 2 * Regions.size_class(size_bytes), LARGEST_REGION_BYTES)
        for cell in _touched(layer.offset_bytes, size_bytes, devices.vpmem_size_bytes):
            drawn[cell] = _REST
    for letter, layer in layers.items():
        mark = Span(letter[0], _ORPHAN if layer.orphaned else "green")
        for cell in _touched(layer.offset_bytes, layer.size_bytes, devices.vpmem_size_bytes):
            drawn[cell] = mark if drawn[cell] in (_REST, _FREE) else _SEVERAL
    for where, offset_bytes, size_bytes in devices.quarantined_vpmem:
        for cell in _touched(offset_bytes, size_bytes, devices.vpmem_size_bytes) if where == device else ():
            drawn[cell] = _QUARANTINED
    return drawn


def _touched(offset_bytes: int, size_bytes: int, device_bytes: int) -> range:
    """Return the cells that a region touches; it may reach beyond the end of a small device."""
    device_bytes = max(device_bytes, 1)
    first = offset_bytes * _CELLS // device_bytes
    last = (offset_bytes + size_bytes - 1) * _CELLS // device_bytes
    return range(max(first, 0), min(last, _CELLS - 1) + 1)


# Devices without a grid.


def _access(read_only: bool, names: Sequence[str]) -> str:
    access = "read-only" if read_only else "writable"
    return f"{access}, only {', '.join(names)}" if names else access


def _shares(devices: Rows) -> list[Block]:
    rows: list[tuple[Part, ...]] = [
        (
            f"Plan9 {share.name}",
            share.host_path,
            _access(share.read_only, share.allowed_names),
            _references(share),
            share.guest_path,
        )
        for share in devices.plan9_shares
    ]
    rows += [
        (
            f"VSMB {share.name}",
            share.host_path,
            _access(share.read_only, share.files),
            _references(share),
            shorten(share.guest_path),
        )
        for share in devices.vsmb_shares
    ]
    # In a Linux guest these are the Plan9 shares themselves.
    there = {share.guest_path for share in devices.plan9_shares}
    rows += [
        ("shown", each.host_path, _access(each.read_only, ()), _references(each), each.guest_path)
        for each in devices.shared
        if not devices.plan9_shares or each.guest_path not in there
    ]
    rows += [("pipe", each.host_path, "", _references(each), "") for each in devices.pipes]
    drawn = _section("Shares", ("share", "on the host", "access", "refs", "in the guest"), rows)
    if any(not (share.references or share.orphaned) for share in devices.vsmb_shares):
        drawn.append(_note("kept without references: the guest may have their files mapped"))
    return drawn


def _network(devices: Rows) -> list[Block]:
    rows = [
        (
            shorten(adapter.nic_id),
            adapter.endpoint_name or adapter.endpoint_id,
            adapter.mac_address,
            " ".join(adapter.addresses),
            shorten(adapter.namespace_id),
            _references(adapter),
        )
        for adapter in devices.adapters
    ]
    if not (rows or devices.namespaces):
        return []
    header = ("adapter", "endpoint", "MAC address", "addresses", "namespace", "refs")
    names = ", ".join(devices.namespaces)
    title = _title("Network", f"in namespace {names}" if names else "in no namespace")
    return [title, table(header, rows, indent=4)] if rows else [title]


def _containers(devices: Rows) -> list[Block]:
    rows: list[tuple[Part, ...]] = [
        (
            root.container_id,
            str(len(root.layers)),
            root.root,
            root.scratch_path or root.root,
            _references(root),
        )
        for root in devices.roots
    ]
    rows += [
        (", ".join(volume.cims), str(len(volume.cims)), volume.guest_path, "block CIMs", _references(volume))
        for volume in devices.block_cims
    ]
    return _section("Containers", ("container", "layers", "root file system", "scratch", "refs"), rows)


def _pci(devices: Rows) -> list[Block]:
    rows = [
        (each.instance_path, str(each.function), shorten(each.vmbus_guid), _references(each))
        for each in devices.pci_devices
    ]
    return _section("PCI devices", ("on the host", "function", "on the VMBus", "refs"), rows)


def _stuck(title: str, stuck: Iterable[StuckDevice], style: Style) -> list[Block]:
    rows = [(Span(each.what, style), each.where, _clock(each.since), shorten(each.why)) for each in stuck]
    return _section(title, ("device", "at", "since (UTC)", "why"), rows)


def _requests(requests: Iterable[RecentRequest]) -> list[Block]:
    rows = [
        (
            _clock(each.at),
            each.to,
            each.verb,
            each.resource,
            Span(each.outcome, _OUTCOMES.get(each.outcome, "")),
            ", ".join(each.settings),
            shorten(each.why),
        )
        for each in requests
    ]
    header = ("at (UTC)", "to", "verb", "resource", "outcome", "settings", "why")
    return _section("Recent requests", header, rows)
