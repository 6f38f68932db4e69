"""What the commands draw of statistics and requests."""

from __future__ import annotations

from uvm._drawing.blocks import Table
from uvm._drawing.drawing import Drawing
from uvm._vm.requestsummary import summarize
from uvm._vm.statistics import VMMemory, VMStatistics
from uvm.cli.draw import draw_request, draw_statistics

MIB = 1 << 20


def text(drawn: Table) -> str:
    return str(Drawing((drawn,)))


def test_statistics() -> None:
    memory = VMMemory(1900, 0, 524_288, 34_816, False, False, False)
    statistics = VMStatistics(3_420_000, 1_171_000_000, 136 * MIB, 1, memory)
    assert text(draw_statistics(statistics)) == (
        "    uptime          1,171.0 ms\n"
        "    processor time     3.42 ms\n"
        "    working set        136 MiB\n"
        "    assigned           136 MiB\n"
        "    reserved             2 GiB"
    )


def test_a_refused_request_has_its_refusal_below() -> None:
    settings = {"MountPath": "/run/mounts/scsi/m0", "Filesystem": "ext4", "EnsureFilesystem": True}
    summary = summarize(
        "guest", {"ResourceType": "MappedVirtualDisk", "RequestType": "Add", "Settings": settings}
    )
    assert text(draw_request(summary, "refused: E_FAIL")).splitlines() == [
        "  guest  add        MappedVirtualDisk 0:0       at /run/mounts/scsi/m0, ext4, ensure-filesystem",
        "                                                refused: E_FAIL",
    ]
