"""Drawings of a VM's devices and statistics, as lines."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, groupby, product
from typing import Final, Protocol

from uvm._buses.link import StuckDevice
from uvm._buses.plan9 import Plan9Share
from uvm._buses.vpmem import VPMemLayer
from uvm._buses.vsmb import VSMBShare
from uvm._vm.attached import VMDevices
from uvm._vm.statistics import VMStatistics
from uvm.cli.requests import offset, shorten
from uvm.cli.sizes import format_size
from uvm.cli.terminal import Style, Terminal
from uvm.devices.scsi import LUNS_PER_CONTROLLER
from uvm.devices.slots import LARGEST_REGION_BYTES, Regions
from uvm.schema.common import MIB, PAGE_BYTES

_GROUP: Final = 8
#: One cell of a VPMEM device is a 64th of it: of 4 GiB, the largest, that is 64 MiB.
_CELLS: Final = 64
_KEPT: Final = "kept"
_RESERVED, _READ_ONLY, _WRITABLE, _SEVERAL, _REST = "#", "R", "W", "+", "-"
_STYLES: Final[dict[str, Style]] = {_RESERVED: "blue", _READ_ONLY: "green", _WRITABLE: "yellow"}


def draw_devices(terminal: Terminal, devices: VMDevices) -> list[str]:
    """Draw the devices that the VM has or can have."""
    others = {
        "Shares": _draw_shares(terminal, devices),
        "Network": _draw_adapters(terminal, devices),
        "Containers": _draw_roots(terminal, devices),
    }
    none = ", ".join(name for name, lines in others.items() if not lines)
    parts = [draw_scsi(terminal, devices), draw_vpmem(terminal, devices), *others.values()]
    parts.append([_title(terminal, none, "none")] if none else [])
    parts.append(_draw_stuck(terminal, "Orphans", devices.orphans))
    parts.append(_draw_stuck(terminal, "Quarantined", devices.quarantined))
    unrevoked = [(each.host_path, each.why) for each in devices.unrevoked_access]
    parts.append(_section(terminal, "Access that could not be revoked", ("path", "why"), unrevoked))
    drawn: list[str] = []
    for part in filter(None, parts):
        drawn += ["", *part] if drawn else part
    return drawn


class _Row(Protocol):
    """A row of :class:`~uvm.VMDevices` that leases refer to."""

    @property
    def references(self) -> int: ...

    @property
    def orphaned(self) -> bool: ...


def _references(row: _Row) -> str:
    return "orphan" if row.orphaned else str(row.references or _KEPT)


def _draw_stuck(terminal: Terminal, title: str, stuck: Iterable[StuckDevice]) -> list[str]:
    rows = [(each.what, each.where, f"{each.since:%H:%M:%S}", each.why) for each in stuck]
    return _section(terminal, title, ("device", "at", "since", "why"), rows)


def _title(terminal: Terminal, name: str, what: str) -> str:
    return f"  {terminal.paint(name, 'bold')}  {terminal.paint(what, 'dim')}"


# SCSI.


def draw_scsi(terminal: Terminal, devices: VMDevices) -> list[str]:
    """Draw every LUN of every controller as a cell, and list the disks."""
    controllers = devices.scsi_controllers
    if not controllers:
        return []
    disks = sorted(devices.disks, key=lambda disk: (disk.controller, disk.lun))
    marks: dict[tuple[int, int], str] = dict.fromkeys(devices.reserved_scsi, _RESERVED)
    marks |= {(d.controller, d.lun): _READ_ONLY if d.read_only else _WRITABLE for d in disks}
    slots = controllers * LUNS_PER_CONTROLLER
    numbers = " ".join(str(lun).ljust(_GROUP) for lun in range(0, LUNS_PER_CONTROLLER, _GROUP)).rstrip()
    lines = [
        _title(terminal, "SCSI", f"{len(marks)} of {slots} slots taken"),
        "    " + terminal.paint(numbers, "dim"),
    ]
    lines += [f"  {number} {_lun_row(terminal, marks, number)}" for number in range(controllers)]
    legend = f"{_READ_ONLY} read-only disk   {_WRITABLE} writable disk   {terminal.glyphs.free} free"
    if devices.reserved_scsi:
        legend = f"{_RESERVED} disk of the VM itself   {legend}"
    lines.append("    " + terminal.paint(legend, "dim"))
    rows = [
        (f"{d.controller}:{d.lun}", d.host_path, _references(d), ", ".join(d.mounts) or "not mounted")
        for d in disks
    ]
    return lines + terminal.table(("slot", "disk", "refs", "in the guest"), rows, 4)


def _lun_row(terminal: Terminal, marks: dict[tuple[int, int], str], controller: int) -> str:
    cells = [marks.get((controller, lun), terminal.glyphs.free) for lun in range(LUNS_PER_CONTROLLER)]
    groups = (cells[at : at + _GROUP] for at in range(0, LUNS_PER_CONTROLLER, _GROUP))
    return " ".join(_paint(terminal, group) for group in groups)


def _paint(terminal: Terminal, cells: Iterable[str]) -> str:
    """Paint cells, those alike in one go."""
    return "".join(terminal.paint("".join(run), _style(cell)) for cell, run in groupby(cells))


def _style(cell: str) -> Style:
    return _STYLES.get(cell, "green" if cell.islower() else "dim")


# VPMEM.


def draw_vpmem(terminal: Terminal, devices: VMDevices) -> list[str]:
    """Draw each VPMEM device in use to scale, a letter for each layer, and list the layers."""
    if not devices.vpmem_count:
        return []
    in_order = sorted(devices.layers, key=lambda layer: (layer.device, layer.offset_bytes))
    layers = dict(zip(_letters(), in_order, strict=False))
    used = sorted({layer.device for layer in in_order})
    taken = len(used) + (devices.boot_vpmem_bytes is not None)
    size = format_size(devices.vpmem_size_bytes)
    lines = [_title(terminal, "VPMEM", f"{taken} of {devices.vpmem_count} devices taken, of {size} each")]
    if devices.boot_vpmem_bytes is not None:
        boot = f"root file system of the VM itself, {format_size(devices.boot_vpmem_bytes)}"
        lines.append(f"{0:>3} " + terminal.paint(_RESERVED, "blue") + " " + terminal.paint(boot, "dim"))
    for device in used:
        there = {letter: layer for letter, layer in layers.items() if layer.device == device}
        lines.append(f"{device:>3} " + _vpmem_row(terminal, there, devices))
    if used:
        cell = format_size(devices.vpmem_size_bytes // _CELLS)
        legend = f"one cell is {cell}   {_REST} rest of a layer's region   {_SEVERAL} several layers"
        lines.append("    " + terminal.paint(f"{legend}   {terminal.glyphs.free} free", "dim"))
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
    return lines + terminal.table(("", "device", "layer", "size", "refs", "in the guest"), rows, 4)


def _letters() -> Iterator[str]:
    """Yield a, b, ..., z, aa, ab, ...: the first letter is what a cell shows."""
    for length in count(1):
        yield from map("".join, product(string.ascii_lowercase, repeat=length))


def _vpmem_row(terminal: Terminal, layers: dict[str, VPMemLayer], devices: VMDevices) -> str:
    cells = [terminal.glyphs.free] * _CELLS
    for mark, layer in [(_REST, layer) for layer in layers.values()] + list(layers.items()):
        size_bytes = layer.size_bytes
        if mark == _REST and devices.vpmem_multi_mapping:
            # What the allocator has set aside for it.
            size_bytes = min(MIB << 2 * Regions.size_class(size_bytes), LARGEST_REGION_BYTES)
        for cell in _cells(layer.offset_bytes, size_bytes, devices.vpmem_size_bytes):
            taken = mark != _REST and cells[cell] not in (_REST, terminal.glyphs.free)
            cells[cell] = _SEVERAL if taken else mark[0]
    return _paint(terminal, cells)


def _cells(offset_bytes: int, size_bytes: int, device_bytes: int) -> range:
    """Return the cells that a region touches; it may reach beyond the end of a small device."""
    first = offset_bytes * _CELLS // device_bytes
    last = (offset_bytes + size_bytes - 1) * _CELLS // device_bytes
    return range(first, min(last, _CELLS - 1) + 1)


# Devices without a grid.


def _section(
    terminal: Terminal, title: str, header: Sequence[str], rows: Iterable[Sequence[str]]
) -> list[str]:
    table = terminal.table(header, rows, 4)
    return [_title(terminal, title, ""), *table] if table else []


def _draw_shares(terminal: Terminal, devices: VMDevices) -> list[str]:
    links = {(each.host_path, each.read_only): each.guest_path for each in devices.shared}
    shares: list[tuple[str, Plan9Share | VSMBShare, str]] = []
    shares += [("Plan9", each, each.guest_path) for each in devices.plan9_shares]
    for each in devices.vsmb_shares:
        shown_at = links.get((each.host_path, each.read_only), each.guest_path)
        shares.append(("VSMB", each, shown_at))
    rows = [
        (
            f"{kind} {share.name}",
            share.host_path,
            "read-only" if share.read_only else "writable",
            _references(share),
            shorten(guest_path),
        )
        for kind, share, guest_path in shares
    ]
    lines = _section(terminal, "Shares", ("share", "directory", "access", "refs", "in the guest"), rows)
    if any(_references(share) == _KEPT for share in devices.vsmb_shares):
        why = "kept without references: the guest may have their files mapped"
        lines.append("    " + terminal.paint(why, "dim"))
    return lines


def _draw_adapters(terminal: Terminal, devices: VMDevices) -> list[str]:
    rows = [
        (
            shorten(a.nic_id),
            a.endpoint_name or a.endpoint_id,
            a.mac_address,
            " ".join(a.addresses),
            shorten(a.namespace_id),
        )
        for a in devices.adapters
    ]
    header = ("adapter", "endpoint", "MAC address", "addresses", "namespace")
    return _section(terminal, "Network", header, rows)


def _draw_roots(terminal: Terminal, devices: VMDevices) -> list[str]:
    rows = [(r.container_id, str(len(r.layers)), r.root, r.scratch_path or r.root) for r in devices.roots]
    header = ("container", "layers", "root file system", "scratch")
    return _section(terminal, "Containers", header, rows)


# Statistics.


def draw_statistics(terminal: Terminal, statistics: VMStatistics) -> list[str]:
    """Draw the statistics of a VM as a small table."""
    rows = [
        ("uptime", f"{statistics.uptime_ns / 1e6:,.1f} ms"),
        ("processor time", f"{statistics.processor_runtime_ns / 1e6:,.2f} ms"),
        ("working set", format_size(statistics.working_set_bytes)),
    ]
    if statistics.memory is not None:
        rows += [
            ("assigned", format_size(statistics.memory.assigned_pages * PAGE_BYTES)),
            ("reserved", format_size(statistics.memory.reserved_pages * PAGE_BYTES)),
        ]
    names, values = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [f"    {terminal.paint(name.ljust(names), 'dim')}  {value.rjust(values)}" for name, value in rows]
