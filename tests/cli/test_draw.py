"""Drawings, as they look on paper."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.cli.support import Screen, paper
from uvm._buses.directories import SharedPath
from uvm._buses.layers import CombinedRoot
from uvm._buses.link import StuckDevice
from uvm._buses.network import AttachedAdapter
from uvm._buses.plan9 import Plan9Share
from uvm._buses.scsi import ScsiDisk
from uvm._buses.vpmem import VPMemLayer
from uvm._buses.vsmb import VSMBShare
from uvm._vm.attached import UnrevokedAccess, VMDevices
from uvm._vm.statistics import VMMemory, VMStatistics
from uvm.cli.draw import draw_devices, draw_scsi, draw_statistics, draw_vpmem
from uvm.cli.requests import draw_request, summarize
from uvm.cli.terminal import ASCII, UNICODE, Terminal
from uvm.devices.scsi import DiskType, ScsiSlot
from uvm.schema.requests import SCSI_CONTROLLER_GUIDS

MIB, GIB = 1 << 20, 1 << 30
GUID = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"
ROW = " ........" * 7
VHD = DiskType.VIRTUAL_DISK


def vm_with(**attached: Any) -> VMDevices:
    """The devices of a VM, as far as they are drawn."""
    return VMDevices(vm_id="vm1", **{"vpmem_multi_mapping": True, **attached})


def drawn(lines: list[str]) -> str:
    return "\n".join(line.rstrip() for line in lines)


def test_the_scsi_controllers() -> None:
    vm = vm_with(
        scsi_controllers=2,
        reserved_scsi=(ScsiSlot(0, 0),),
        disks=(
            ScsiDisk(r"C:\a.vhd", 0, 1, True, VHD, ("/run/mounts/scsi/m0",), 2),
            ScsiDisk(r"C:\b.vhdx", 0, 9, False, VHD, (), 1),
            ScsiDisk(r"C:\c.vhdx", 1, 63, False, VHD, ("/c", "/d"), 1),
        ),
    )
    assert drawn(draw_scsi(paper(), vm)) == (
        "  SCSI  4 of 128 slots taken\n"
        "    0        8        16       24       32       40       48       56\n"
        "  0 #R...... .W......" + ROW[9:] + "\n"
        "  1 ........" + ROW[9:] + " .......W\n"
        "    # disk of the VM itself   R read-only disk   W writable disk   . free\n"
        "    slot  disk       refs  in the guest\n"
        "    0:1   C:\\a.vhd   2     /run/mounts/scsi/m0\n"
        "    0:9   C:\\b.vhdx  1     not mounted\n"
        "    1:63  C:\\c.vhdx  1     /c, /d"
    )


def test_a_vm_without_scsi_has_no_grid() -> None:
    assert draw_scsi(paper(), vm_with()) == []


def test_vpmem_devices_to_scale() -> None:
    vm = vm_with(
        vpmem_count=4,
        vpmem_size_bytes=4 * GIB,
        boot_vpmem_bytes=96 * MIB,
        layers=(
            VPMemLayer(r"C:\python.vhd", "/run/layers/p1-0", 1, 0, 310 * MIB, 2),
            VPMemLayer(r"C:\tiny.vhd", "", 1, GIB, 12 * MIB, 1),
            VPMemLayer(r"C:\small.vhd", "", 1, GIB + 16 * MIB, 9 * MIB, 1),
            VPMemLayer(r"C:\full.vhd", "", 2, 0, 4 * GIB, 1),
        ),
    )
    assert drawn(draw_vpmem(paper(), vm)) == (
        "  VPMEM  3 of 4 devices taken, of 4 GiB each\n"
        "  0 # root file system of the VM itself, 96 MiB\n"
        "  1 aaaaa-----------+" + "." * 47 + "\n"
        "  2 " + "d" * 64 + "\n"
        "    one cell is 64 MiB   - rest of a layer's region   + several layers   . free\n"
        "       device         layer          size     refs  in the guest\n"
        "    a  1 at 0         C:\\python.vhd  310 MiB  2     /run/layers/p1-0\n"
        "    b  1 at 1 GiB     C:\\tiny.vhd    12 MiB   1\n"
        "    c  1 at 1.02 GiB  C:\\small.vhd   9 MiB    1\n"
        "    d  2 at 0         C:\\full.vhd    4 GiB    1"
    )


def test_a_region_that_reaches_beyond_a_small_device_is_cut_at_its_end() -> None:
    layer = VPMemLayer("x", "", 0, 64 * MIB, 20 * MIB, 1)
    vm = vm_with(vpmem_count=1, vpmem_size_bytes=96 * MIB, layers=(layer,))
    row = draw_vpmem(paper(), vm)[1]
    assert row == "  0 " + "." * 42 + "a" * 14 + "-" * 8


def test_what_has_no_grid() -> None:
    vm = vm_with(
        plan9_shares=(Plan9Share(r"C:\conf", "/etc/conf", "0", True, (), 1),),
        vsmb_shares=(VSMBShare(r"C:\logs", rf"\\?\VMSMB\VSMB-{{{GUID}}}\s1", "s1", False, (), 0),),
        adapters=(AttachedAdapter(GUID, GUID, "eth0", GUID, "00-15-5D-52-C0-10", ("10.0.0.4/24",), 1),),
    )
    assert drawn(draw_devices(paper(), vm)) == (
        "  Shares\n"
        "    share    directory  access     refs  in the guest\n"
        "    Plan9 0  C:\\conf    read-only  1     /etc/conf\n"
        "    VSMB s1  C:\\logs    writable   kept  \\\\?\\VMSMB\\VSMB-{6fb1ab1e}\\s1\n"
        "    kept without references: the guest may have their files mapped\n"
        "\n"
        "  Network\n"
        "    adapter   endpoint  MAC address        addresses    namespace\n"
        "    6fb1ab1e  eth0      00-15-5D-52-C0-10  10.0.0.4/24  6fb1ab1e\n"
        "\n"
        "  Containers  none"
    )


def test_a_share_is_drawn_where_the_guest_sees_it() -> None:
    vm = vm_with(
        plan9_shares=(
            Plan9Share("C:\\a", "/one", "0", True, (), 1),
            Plan9Share("C:\\a", "/two", "1", True, (), 1),
        ),
        vsmb_shares=(VSMBShare("C:\\b", "unc", "s1", True, (), 1),),
        shared=(SharedPath("C:\\a", "/two", True, 1), SharedPath("C:\\b", "C:\\shown", True, 1)),
    )
    assert [line.split()[-1] for line in draw_devices(paper(), vm)[2:5]] == ["/one", "/two", "C:\\shown"]


def test_what_no_lease_holds() -> None:
    since = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    devices = vm_with(
        scsi_controllers=1,
        disks=(ScsiDisk(r"C:\a.vhd", 0, 0, True, VHD, (), 0, orphaned=True),),
        orphans=(StuckDevice(r"disk C:\a.vhd", "SCSI controller 0, LUN 0", "E_FAIL", since),),
        quarantined=(StuckDevice("layer x", "VPMEM device 1", "no answer", since),),
        unrevoked_access=(UnrevokedAccess(r"C:\b.vhd", "E_ACCESSDENIED"),),
    )
    assert drawn(draw_devices(paper(), devices)[4:]) == (
        "    slot  disk      refs    in the guest\n"
        "    0:0   C:\\a.vhd  orphan  not mounted\n"
        "\n"
        "  Shares, Network, Containers  none\n"
        "\n"
        "  Orphans\n"
        "    device         at                        since     why\n"
        "    disk C:\\a.vhd  SCSI controller 0, LUN 0  03:04:05  E_FAIL\n"
        "\n"
        "  Quarantined\n"
        "    device   at              since     why\n"
        "    layer x  VPMEM device 1  03:04:05  no answer\n"
        "\n"
        "  Access that could not be revoked\n"
        "    path      why\n"
        "    C:\\b.vhd  E_ACCESSDENIED"
    )


def test_root_file_systems() -> None:
    vm = vm_with(
        roots=(CombinedRoot("/c/web/rootfs", ("/a", "/b", "/c"), "/c/web/scratch", "web", 1),),
    )
    assert drawn(draw_devices(paper(), vm)) == (
        "  Containers\n"
        "    container  layers  root file system  scratch\n"
        "    web        3       /c/web/rootfs     /c/web/scratch\n"
        "\n"
        "  Shares, Network  none"
    )


def test_statistics() -> None:
    memory = VMMemory(1900, 0, 524_288, 34_816, False, False, False)
    statistics = VMStatistics(3_420_000, 1_171_000_000, 136 * MIB, 1, memory)
    assert drawn(draw_statistics(paper(), statistics)) == (
        "    uptime          1,171.0 ms\n"
        "    processor time     3.42 ms\n"
        "    working set        136 MiB\n"
        "    assigned           136 MiB\n"
        "    reserved             2 GiB"
    )


DISK_PATH = f"VirtualMachine/Devices/Scsi/{SCSI_CONTROLLER_GUIDS[2]}/Attachments/7"


@pytest.mark.parametrize(
    ("to", "document", "told"),
    [
        ("grant", {"path": r"C:\a", "vm": GUID}, r"grant access C:\a"),
        ("revoke", {"path": r"C:\a", "vm": GUID}, r"grant revoke C:\a"),
        (
            "host",
            {"ResourcePath": DISK_PATH, "RequestType": "Add", "Settings": {"Path": "a", "ReadOnly": True}},
            "host add Scsi 2:7 a, read-only",
        ),
        (
            "host",
            {
                "ResourcePath": "VirtualMachine/Devices/VirtualPMem/Devices/3/Mappings/1048576",
                "RequestType": "Remove",
            },
            "host remove VirtualPMem 3 at 1 MiB",
        ),
        (
            "host",
            {"ResourcePath": "VirtualMachine/ComputeTopology/Memory/SizeInMB", "Settings": 2048},
            "host set Memory SizeInMB 2048",
        ),
        (
            "guest",
            {"ResourceType": "SCSIDevice", "RequestType": "Remove", "Settings": {"Controller": 1, "Lun": 2}},
            "guest remove SCSIDevice 1:2",
        ),
        (
            "guest",
            {
                "ResourceType": "CombinedLayers",
                "RequestType": "Add",
                "Settings": {"ContainerRootPath": "/r", "Layers": [{"Path": "/a"}, {"Path": "/b"}]},
            },
            "guest add CombinedLayers at /r, 2 layers",
        ),
        (
            "guest",
            {
                "ResourceType": "Network",
                "RequestType": "Add",
                "Settings": {"AdapterId": GUID, "RequestType": "PreAdd", "Settings": {"Name": "x"}},
            },
            "guest preadd Network 6fb1ab1e",
        ),
        (
            "guest",
            {
                "ResourceType": "SecurityPolicy",
                "RequestType": "Add",
                "Settings": {"EncodedSecurityPolicy": "c2Vj"},
            },
            "guest add SecurityPolicy",
        ),
    ],
)
def test_a_request_in_a_few_words(to: str, document: dict[str, object], told: str) -> None:
    words = summarize(to, document)
    assert " ".join(filter(None, (words.to, words.verb, words.resource, ", ".join(words.settings)))) == told


def test_a_request_with_many_settings_takes_two_lines_and_its_refusal_more() -> None:
    settings = {"MountPath": "/run/mounts/scsi/m0", "Filesystem": "ext4", "EnsureFilesystem": True}
    summary = summarize(
        "guest", {"ResourceType": "MappedVirtualDisk", "RequestType": "Add", "Settings": settings}
    )
    assert drawn(draw_request(paper(width=80), summary, "refused: E_FAIL")) == (
        "  guest  add       MappedVirtualDisk 0:0       at /run/mounts/scsi/m0, ext4,\n"
        "                                               ensure-filesystem\n"
        "         refused: E_FAIL"
    )


# The terminal.


def test_a_terminal_has_colours() -> None:
    terminal = Terminal.of(Screen(tty=True), {})
    assert terminal.paint("x", "bold", "red") == "\x1b[1;31mx\x1b[0m"


@pytest.mark.parametrize(
    ("tty", "environ"),
    [(False, {}), (True, {"NO_COLOR": "1"}), (True, {"TERM": "dumb"})],
    ids=["no terminal", "NO_COLOR", "dumb"],
)
def test_without_colours_nothing_is_painted(tty: bool, environ: dict[str, str]) -> None:
    terminal = Terminal.of(Screen(tty=tty), environ)
    vm = vm_with(
        scsi_controllers=1,
        disks=(ScsiDisk("a", 0, 0, False, VHD, (), 1),),
        vpmem_count=1,
        vpmem_size_bytes=GIB,
        boot_vpmem_bytes=MIB,
    )
    assert "\x1b" not in drawn(draw_devices(terminal, vm))


def test_an_empty_no_color_counts_as_not_set() -> None:
    assert Terminal.of(Screen(tty=True), {"NO_COLOR": ""}).colour


@pytest.mark.parametrize(("columns", "width"), [("20", 80), ("90", 90), ("500", 120)])
def test_the_width_is_the_terminals_within_reason(
    monkeypatch: pytest.MonkeyPatch, columns: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert Terminal.of(Screen(), {}).width == width


def test_what_cannot_be_encoded_is_drawn_in_ascii() -> None:
    assert Terminal.of(io.TextIOWrapper(io.BytesIO(), "cp437"), {}).glyphs is ASCII
    assert Terminal.of(io.TextIOWrapper(io.BytesIO(), "utf-8"), {}).glyphs is UNICODE
    for glyph in (ASCII.rule, ASCII.free, ASCII.bar, ASCII.ellipsis, ASCII.differs):
        assert len(glyph) == 1


def test_items_flow_into_lines_and_the_last_is_cut() -> None:
    terminal = paper()
    assert terminal.flow(["one", "two", "three"], 9, 2) == ["one, two,", "three"]
    assert terminal.flow(["one", "two", "three", "four"], 9, 2) == ["one, two,", "three, f~"]
    assert terminal.flow([], 9, 2) == [""]


def test_a_path_that_cannot_be_encoded_is_written_all_the_same() -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, "ascii", newline="\n")
    Terminal.of(stream, {}).write("C:\\caf\u00e9.vhd")
    assert written.getvalue() == b"C:\\caf\\xe9.vhd\n"
