"""The devices of a VM as a drawing."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

import uvm
from tests.drawing.test_drawing import PAINT, by_rich, harmless_in_html, texts
from tests.test_imports import loaded_running
from uvm._drawing.blocks import Line, Table
from uvm._drawing.drawing import Drawing
from uvm.devices.scsi import DiskType, ScsiSlot
from uvm.schema.secrets import printable

MIB, GIB = 1 << 20, 1 << 30
GUID = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"
ROW = " ········" * 7
VHD = DiskType.VIRTUAL_DISK
SINCE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def vm_with(**attached: Any) -> uvm.VMDevices:
    """The devices of a VM, as far as they are drawn."""
    return uvm.VMDevices(vm_id="vm1", **{"vpmem_multi_mapping": True, **attached})


def section(devices: uvm.VMDevices, title: str) -> list[str]:
    """What is drawn below a title, and it."""
    parts = [part for part in str(devices).split("\n\n") if part.startswith(f"  {title}")]
    assert len(parts) == 1, f"{title} in:\n{devices}"
    return parts[0].split("\n")


def test_the_scsi_controllers() -> None:
    vm = vm_with(
        scsi_controllers=2,
        reserved_scsi=(ScsiSlot(0, 0),),
        disks=(
            uvm.ScsiDisk(r"C:\a.vhd", 0, 1, True, VHD, ("/run/mounts/scsi/m0",), 2),
            uvm.ScsiDisk(r"C:\b.vhdx", 0, 9, False, VHD, (), 1),
            uvm.ScsiDisk(r"C:\c.vhdx", 1, 63, False, VHD, ("/c", "/d"), 1),
        ),
    )
    assert section(vm, "SCSI") == [
        "  SCSI  4 of 128 slots taken",
        "    0        8        16       24       32       40       48       56",
        "  0 #R······ ·W······" + ROW[9:],
        "  1 ········" + ROW[9:] + " ·······W",
        "    # disk of the VM itself   R read-only disk   W writable disk   · free",
        "    slot  disk       refs  in the guest",
        "    0:1   C:\\a.vhd   2     /run/mounts/scsi/m0",
        "    0:9   C:\\b.vhdx  1     not mounted",
        "    1:63  C:\\c.vhdx  1     /c, /d",
    ]


def test_a_vm_without_devices_has_no_grid_and_says_what_there_is_none_of() -> None:
    assert str(vm_with()) == "VM vm1\n\n  Shares, Network, Containers  none"


def test_vpmem_devices_to_scale() -> None:
    vm = vm_with(
        vpmem_count=4,
        vpmem_size_bytes=4 * GIB,
        boot_vpmem_bytes=96 * MIB,
        layers=(
            uvm.VPMemLayer(r"C:\python.vhd", "/run/layers/p1-0", 1, 0, 310 * MIB, 2),
            uvm.VPMemLayer(r"C:\tiny.vhd", "", 1, GIB, 12 * MIB, 1),
            uvm.VPMemLayer(r"C:\small.vhd", "", 1, GIB + 16 * MIB, 9 * MIB, 1),
            uvm.VPMemLayer(r"C:\full.vhd", "", 2, 0, 4 * GIB, 1),
        ),
    )
    assert section(vm, "VPMEM") == [
        "  VPMEM  3 of 4 devices taken, of 4 GiB each",
        "  0 # root file system of the VM itself, 96 MiB",
        "  1 aaaaa-----------+" + "·" * 47,
        "  2 " + "d" * 64,
        "    one cell is 64 MiB   - rest of a layer's region   + several layers   · free",
        "       device         layer          size     refs  in the guest",
        "    a  1 at 0         C:\\python.vhd  310 MiB  2     /run/layers/p1-0",
        "    b  1 at 1 GiB     C:\\tiny.vhd    12 MiB   1",
        "    c  1 at 1.02 GiB  C:\\small.vhd   9 MiB    1",
        "    d  2 at 0         C:\\full.vhd    4 GiB    1",
    ]


def test_a_region_that_reaches_beyond_a_small_device_is_cut_at_its_end() -> None:
    layer = uvm.VPMemLayer("x", "", 0, 64 * MIB, 20 * MIB, 1)
    vm = vm_with(vpmem_count=1, vpmem_size_bytes=96 * MIB, layers=(layer,))
    assert section(vm, "VPMEM")[1] == "  0 " + "·" * 42 + "a" * 14 + "-" * 8


def test_what_has_no_grid() -> None:
    vm = vm_with(
        plan9_shares=(uvm.Plan9Share(r"C:\conf", "/etc/conf", "0", True, (), 1),),
        vsmb_shares=(uvm.VSMBShare(r"C:\logs", rf"\\?\VMSMB\VSMB-{{{GUID}}}\s1", "s1", False, (), 0),),
        adapters=(uvm.AttachedAdapter(GUID, GUID, "eth0", GUID, "00-15-5D-52-C0-10", ("10.0.0.4/24",), 1),),
        namespaces=(GUID,),
        pci_devices=(uvm.VPCIDevice(r"PCI\1", 2, GUID, 1),),
    )
    assert str(vm).split("\n\n", 1)[1] == (
        "  Shares\n"
        "    share    on the host  access     refs  in the guest\n"
        "    Plan9 0  C:\\conf      read-only  1     /etc/conf\n"
        "    VSMB s1  C:\\logs      writable   kept  \\\\?\\VMSMB\\VSMB-{6fb1ab1e}\\s1\n"
        "    kept without references: the guest may have their files mapped\n"
        "\n"
        f"  Network  in namespace {GUID}\n"
        "    adapter   endpoint  MAC address        addresses    namespace  refs\n"
        "    6fb1ab1e  eth0      00-15-5D-52-C0-10  10.0.0.4/24  6fb1ab1e   1\n"
        "\n"
        "  PCI devices\n"
        "    on the host  function  on the VMBus  refs\n"
        "    PCI\\1        2         6fb1ab1e      1\n"
        "\n"
        "  Containers  none"
    )


def test_a_share_is_drawn_where_the_guest_sees_it() -> None:
    vm = vm_with(
        plan9_shares=(uvm.Plan9Share("C:\\a", "/one", "0", True, ("x.txt",), 1),),
        shared=(uvm.SharedPath("C:\\a", "/one", True, 1),),
    )
    assert [line.split()[-1] for line in section(vm, "Shares")[2:]] == ["/one"]
    assert "read-only, only x.txt" in str(vm)
    vm = vm_with(
        vsmb_shares=(uvm.VSMBShare("C:\\b", "unc", "s1", True, (), 1),),
        shared=(uvm.SharedPath("C:\\b", "C:\\shown", True, 1),),
    )
    assert [line.split()[-1] for line in section(vm, "Shares")[2:]] == ["unc", "C:\\shown"]


def test_what_no_lease_holds_has_a_colour_of_its_own_and_its_reason() -> None:
    devices = vm_with(
        scsi_controllers=1,
        disks=(uvm.ScsiDisk(r"C:\a.vhd", 0, 0, True, VHD, (), 0, orphaned=True),),
        quarantined_scsi=(ScsiSlot(0, 1),),
        vpmem_count=2,
        vpmem_size_bytes=GIB,
        quarantined_vpmem=((1, 0, 512 * MIB),),
        orphans=(uvm.StuckDevice(r"disk C:\a.vhd", "SCSI controller 0, LUN 0", "E_FAIL", SINCE),),
        quarantined=(uvm.StuckDevice("layer x", "VPMEM device 1", f"no answer of {GUID}", SINCE),),
        unrevoked_access=(uvm.UnrevokedAccess(r"C:\b.vhd", "E_ACCESSDENIED"),),
    )
    assert section(devices, "SCSI")[2].startswith("  0 OQ······ ")
    assert section(devices, "SCSI")[-1] == "    0:0   C:\\a.vhd  orphan  not mounted"
    assert section(devices, "VPMEM")[1] == "  1 " + "Q" * 32 + "·" * 32
    assert section(devices, "Orphans")[1:] == [
        "    device         at                        since (UTC)  why",
        "    disk C:\\a.vhd  SCSI controller 0, LUN 0  03:04:05     E_FAIL",
    ]
    assert section(devices, "Quarantined")[2] == (
        "    layer x  VPMEM device 1  03:04:05     no answer of 6fb1ab1e"
    )
    assert section(devices, "Access that could not be revoked")[-1] == "    C:\\b.vhd  E_ACCESSDENIED"
    painted = by_rich(devices.__rich__(), 100, colours=True)
    assert "\x1b[31mO\x1b[0m\x1b[35mQ\x1b[0m" in painted
    assert "\x1b[31mdisk C:\\a.vhd" in painted
    assert "\x1b[35mlayer x" in painted


def test_root_file_systems() -> None:
    vm = vm_with(
        roots=(uvm.CombinedRoot("/c/web/rootfs", ("/a", "/b", "/c"), "/c/web/scratch", "web", 1),),
    )
    assert section(vm, "Containers")[1:] == [
        "    container  layers  root file system  scratch         refs",
        "    web        3       /c/web/rootfs     /c/web/scratch  1",
    ]


def test_requests_have_their_outcome() -> None:
    settings = ("a.vhdx", "read-only")
    vm = vm_with(
        requests=(
            uvm.RecentRequest(SINCE, "host", "add", "Scsi 0:1", settings),
            uvm.RecentRequest(SINCE, "guest", "add", "Network", (), "unknown", f"no answer of {GUID}"),
        )
    )
    assert section(vm, "Recent requests")[1:] == [
        "    at (UTC)  to     verb  resource  outcome  settings           why",
        "    03:04:05  host   add   Scsi 0:1  ok       a.vhdx, read-only",
        "    03:04:05  guest  add   Network   unknown                     no answer of 6fb1ab1e",
    ]


# Whatever the devices.

ROWS = {
    "disks": uvm.ScsiDisk,
    "layers": uvm.VPMemLayer,
    "vsmb_shares": uvm.VSMBShare,
    "plan9_shares": uvm.Plan9Share,
    "roots": uvm.CombinedRoot,
    "block_cims": uvm.BlockCIMVolume,
    "pipes": uvm.MappedPipe,
    "pci_devices": uvm.VPCIDevice,
    "adapters": uvm.AttachedAdapter,
    "orphans": uvm.StuckDevice,
    "quarantined": uvm.StuckDevice,
    "unrevoked_access": uvm.UnrevokedAccess,
    "requests": uvm.RecentRequest,
}
OF_FIELDS: dict[Any, st.SearchStrategy[Any]] = {
    str: texts,
    int: st.integers(-1, 5) | st.integers(0, 5 << 32),
    tuple[str, ...]: st.lists(texts, max_size=3).map(tuple),
}


def rows_of(cls: type[Any]) -> st.SearchStrategy[Any]:
    """Any few rows of a kind."""
    named = {
        each.name: OF_FIELDS.get(each.type, st.from_type(each.type))
        for each in attrs.fields(attrs.resolve_types(cls))
    }
    return st.lists(st.builds(cls, **named), max_size=3).map(tuple)


slots = st.tuples(st.integers(0, 4), st.integers(0, 64))
any_devices = st.builds(
    uvm.VMDevices,
    vm_id=texts,
    scsi_controllers=st.integers(0, 4),
    reserved_scsi=st.lists(slots, max_size=3).map(tuple),
    quarantined_scsi=st.lists(slots, max_size=3).map(tuple),
    vpmem_count=st.integers(0, 128),
    vpmem_size_bytes=OF_FIELDS[int],
    vpmem_multi_mapping=st.booleans(),
    boot_vpmem_bytes=st.none() | OF_FIELDS[int],
    quarantined_vpmem=st.lists(st.tuples(*[OF_FIELDS[int]] * 3), max_size=2).map(tuple),
    namespaces=OF_FIELDS[tuple[str, ...]],
    **{name: rows_of(cls) for name, cls in ROWS.items()},
)


def column(drawing: Drawing, title: str, header: str) -> Counter[str]:
    """The cells of a column of the table below a title."""
    found: Counter[str] = Counter()
    current = ""
    for block in drawing.blocks:
        if isinstance(block, Line) and block.indent == 2 and block.parts[0].style == "bold":
            current = block.parts[0].text
        elif isinstance(block, Table) and current == title:
            at = [each.text for each in block.header].index(header)
            found += Counter(row[at].text for row in block.rows)
    return found


@given(any_devices, st.integers(1, 150))
def test_whatever_the_devices_each_is_drawn_once_everywhere(devices: uvm.VMDevices, width: int) -> None:
    drawing = devices.__rich__()
    shares = [
        *(each.host_path for each in devices.plan9_shares),
        *(each.host_path for each in devices.vsmb_shares),
        *(each.host_path for each in devices.pipes),
    ]
    for title, header, drawn in (
        ("SCSI", "disk", [each.host_path for each in devices.disks]),
        ("VPMEM", "layer", [each.host_path for each in devices.layers]),
        ("Shares", "on the host", shares),
        ("Network", "MAC address", [each.mac_address for each in devices.adapters]),
        ("PCI devices", "on the host", [each.instance_path for each in devices.pci_devices]),
        (
            "Containers",
            "root file system",
            [each.root for each in devices.roots] + [each.guest_path for each in devices.block_cims],
        ),
        ("Orphans", "device", [each.what for each in devices.orphans]),
        ("Quarantined", "device", [each.what for each in devices.quarantined]),
        ("Access that could not be revoked", "path", [each.host_path for each in devices.unrevoked_access]),
        ("Recent requests", "to", [each.to for each in devices.requests]),
    ):
        assert column(drawing, title, header) == Counter(map(printable, drawn)), title
    for shown in (str(devices), PAINT.sub("", by_rich(drawing, width, colours=True))):
        assert all(each.isprintable() for each in shown.split("\n"))
    harmless_in_html(devices._repr_html_())


def test_as_json_has_the_requests() -> None:
    request = uvm.RecentRequest(SINCE, "host", "add", "Scsi 0:1", ("a",))
    assert vm_with(requests=(request,)).as_json()["requests"] == [
        {
            "at": "2026-01-02T03:04:05+00:00",
            "to": "host",
            "verb": "add",
            "resource": "Scsi 0:1",
            "settings": ["a"],
            "outcome": "ok",
            "why": "",
        }
    ]


def test_what_a_drawing_needs_elsewhere_is_not_loaded_for_text() -> None:
    loaded = loaded_running("import uvm; str(uvm.VMDevices(vm_id='x'))")
    assert {"rich", "uvm._drawing.console", "uvm._drawing.html"} & loaded == set()
