"""The pure machines, and the document: no event loop, no backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from tests.bench.figures import Figure, time_per_call
from uvm._document import files_to_stat, plan_creation
from uvm._document.plan import CreationPlan
from uvm.backend import FileInfo, HostInfo
from uvm.devices.base import OK, Change, Step
from uvm.devices.ledger import Ledger
from uvm.devices.scsi import LUNS_PER_CONTROLLER, Attachments, DiskKey
from uvm.devices.vpmem import Layer, PackedLayers
from uvm.options import LCOWOptions
from uvm.schema.common import MIB
from uvm.schema.json import dumps
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS

__all__ = ["add_and_remove", "attach_and_detach", "document", "plan", "scsi", "vpmem"]

_SLOTS: Final = len(SCSI_CONTROLLER_GUIDS) * LUNS_PER_CONTROLLER
_SCSI: Final = ((0, "0.78 us"), (_SLOTS // 2, "9.8 us"), (_SLOTS - 1, "18.6 us"))
_SCSI_JSON: Final = ((0, "2.3 us"), (_SLOTS // 2, "12 us"), (_SLOTS - 1, "21.1 us"))
_LAYERS: Final = 500
#: Layers of these sizes in turn, so that each of the smaller region classes is in use, on several devices.
_LAYER_MIB: Final = (1, 3, 14, 60)
_BOOT_FILES: Final = "C:\\boot"


def _carry_out(
    ledger: Ledger[Any, Any, Any, Any, Any], change: Change[Any, Any, Any, Any, Any]
) -> tuple[Step, ...]:
    """Begin the operation of a change and tell the ledger that it was done; gives its steps."""
    operation = change.operation
    assert operation is not None
    steps = ledger.begin(operation)
    assert ledger.done(operation, OK).operation is None
    return steps


def attach_and_detach(others: int, *, as_json: bool = False) -> Callable[[], Sequence[object]]:
    """Return what attaches and detaches a disk while others are attached: steps, or their JSON."""
    ledger: Ledger[Any, Any, Any, Any, None] = Ledger(Attachments("linux"))
    for n in range(others):
        _, change = ledger.acquire(DiskKey(f"C:\\DISKS\\{n}.VHDX"), f"C:\\disks\\{n}.vhdx")
        _carry_out(ledger, change)
    key = DiskKey("C:\\DISKS\\MEASURED.VHDX")

    def do() -> Sequence[object]:
        ticket, change = ledger.acquire(key, "C:\\disks\\measured.vhdx")
        steps = _carry_out(ledger, change)
        steps += _carry_out(ledger, ledger.drop(ticket))
        return [dumps(step.request) for step in steps] if as_json else steps

    assert len(do()) == 3
    return do


def add_and_remove(*, as_json: bool = False) -> Callable[[], Sequence[object]]:
    """Return what adds and removes a layer while others are mapped: steps, or their JSON."""
    ledger: Ledger[Any, Any, Any, Any, None] = Ledger(PackedLayers(64, 4096 * MIB))
    for n in range(_LAYERS):
        size = _LAYER_MIB[n % len(_LAYER_MIB)] * MIB
        _, change = ledger.acquire(f"C:\\LAYERS\\{n}.VHD", Layer(f"C:\\layers\\{n}.vhd", size))
        _carry_out(ledger, change)
    measured = Layer("C:\\layers\\measured.vhd", 3 * MIB)

    def do() -> Sequence[object]:
        ticket, change = ledger.acquire("C:\\LAYERS\\MEASURED.VHD", measured)
        steps = _carry_out(ledger, change)
        steps += _carry_out(ledger, ledger.drop(ticket))
        return [dumps(step.request) for step in steps] if as_json else steps

    assert len(do()) == 4
    return do


def scsi() -> Iterator[Figure]:
    """Attach and detach a disk, while others are attached: the machine alone, and with JSON."""
    for what, as_json, rows in (("", False, _SCSI), (", JSON of 3 requests", True, _SCSI_JSON)):
        for others, hcsshim in rows:
            yield Figure.of_seconds(
                f"SCSI machine, attach + detach, {others} attached{what}",
                "us",
                time_per_call(attach_and_detach(others, as_json=as_json)),
                hcsshim=hcsshim,
            )


def vpmem() -> Iterator[Figure]:
    """Add and remove a layer, while others are mapped: the machine alone, and with JSON."""
    for what, as_json, hcsshim in (("", False, "3.7 us"), (", JSON of 4 requests", True, "6.4 us")):
        yield Figure.of_seconds(
            f"packed VPMEM, add + remove, {_LAYERS} mapped{what}",
            "us",
            time_per_call(add_and_remove(as_json=as_json)),
            hcsshim=hcsshim,
        )


def plan(options: LCOWOptions, host: HostInfo) -> CreationPlan:
    """Return the plan of a VM whose files are there."""
    files = dict.fromkeys(files_to_stat(options, host), FileInfo(MIB))
    return plan_creation(options, host, files, id="vm", new_id=lambda: "")


def document() -> Iterator[Figure]:
    """Make the options of a Linux VM, and from them the document as JSON text."""
    host = HostInfo()

    def from_options() -> str:
        options = LCOWOptions(memory_mb=2048, processors=2, boot_files_path=_BOOT_FILES)
        return dumps(plan(options, host).document)

    assert _BOOT_FILES.replace("\\", "\\\\") in from_options()
    yield Figure.of_seconds(
        "LCOW document from options, as JSON",
        "us",
        time_per_call(from_options),
        budget="35 us",
        hcsshim="134 us",
    )
