"""SCSI: attachments and mounts."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import strategies as st

from tests.devices.machine import DeviceMachine, add, ledger_of, release, run
from uvm.devices.base import OK, Device, Refused
from uvm.devices.ledger import Ledger
from uvm.devices.scsi import (
    Attachments,
    DiskKey,
    DiskType,
    Mount,
    MountKey,
    MountPlace,
    Mounts,
    ScsiSlot,
    check_mount,
    mount_key,
    parse_evd,
)
from uvm.errors import HostError, NoSpaceError, NotSupportedError, OptionsError
from uvm.hresult import HResult

CONTROLLER_0 = "VirtualMachine/Devices/Scsi/df6d0690-79e5-55b6-a5ec-c1e2f77f580a/Attachments/"
FIRST = ScsiSlot(0, 0)


def attach(ledger: Ledger[Any, Any, Any, Any, Any], key: DiskKey) -> tuple[Any, list[Any]]:
    return add(ledger, key, key.path)


class AttachmentsMachine(DeviceMachine):
    os: Literal["linux", "windows"] = "linux"

    def make_device(self) -> Device[Any, Any, Any, Any]:
        three_are_left = [ScsiSlot(0, lun) for lun in range(1, 62)]
        return Attachments(self.os, 1, three_are_left)

    def draw_request(self, data: st.DataObject) -> tuple[Any, Any]:
        path = data.draw(st.sampled_from(["a", "b", "c"]))
        return DiskKey(path, read_only=data.draw(st.booleans())), path


class WindowsAttachmentsMachine(AttachmentsMachine):
    os = "windows"


class MountsMachine(DeviceMachine):
    os: Literal["linux", "windows"] = "linux"
    paths = ("", "", "/run/mounts/scsi/m1", "/run/mounts/scsi/m1/", "/x")

    def make_device(self) -> Device[Any, Any, Any, Any]:
        return Mounts(self.os)

    def draw_request(self, data: st.DataObject) -> tuple[Any, Any]:
        key = MountKey(
            ScsiSlot(0, data.draw(st.integers(0, 3))), mount=Mount(partition=data.draw(st.integers(0, 1)))
        )
        return key, data.draw(st.sampled_from(self.paths))

    def check_slots(self, slots: list[Any]) -> None:
        super().check_slots(slots)
        assert len({slot.number for slot in slots}) == len(slots)
        assert len({slot.path.rstrip("/").lower() for slot in slots}) == len(slots)


class WindowsMountsMachine(MountsMachine):
    os = "windows"
    paths = ("", "", r"C:\mounts\scsi\M1", "c:/mounts/scsi/m0", r"C:\x")


TestAttachments = AttachmentsMachine.TestCase
TestWindowsAttachments = WindowsAttachmentsMachine.TestCase
TestMounts = MountsMachine.TestCase
TestWindowsMounts = WindowsMountsMachine.TestCase


def test_a_disk_is_attached_once_and_detached_with_its_last_lease() -> None:
    ledger = ledger_of(Attachments("linux"))
    first, sent = attach(ledger, DiskKey(r"C:\a.vhdx"))
    assert sent == [
        {
            "to": "host",
            "doc": {
                "ResourcePath": CONTROLLER_0 + "0",
                "RequestType": "Add",
                "Settings": {"Type": "VirtualDisk", "Path": r"C:\a.vhdx"},
            },
        }
    ]
    second, sent = attach(ledger, DiskKey(r"C:\a.vhdx"))
    assert sent == []
    assert release(ledger, first) == []
    assert release(ledger, second) == [
        {"to": "guest", "doc": {"RequestType": "Remove", "ResourceType": "SCSIDevice", "Settings": {}}},
        {"to": "host", "doc": {"ResourcePath": CONTROLLER_0 + "0", "RequestType": "Remove"}},
    ]


def test_a_windows_guest_is_not_asked_to_eject() -> None:
    ledger = ledger_of(Attachments("windows"))
    ticket, _ = attach(ledger, DiskKey("a"))
    assert [r["to"] for r in release(ledger, ticket)] == ["host"]


@pytest.mark.parametrize(
    "other",
    [
        DiskKey("b"),
        DiskKey("a", DiskType.PASS_THRU),
        DiskKey("a", evd_type="x"),
        DiskKey("a", read_only=True),
    ],
)
def test_each_part_of_the_key_makes_another_disk(other: DiskKey) -> None:
    ledger = ledger_of(Attachments("linux"))
    tickets = [attach(ledger, key)[0] for key in (DiskKey("a"), other)]
    assert [t.entry.slot for t in tickets] == [ScsiSlot(0, 0), ScsiSlot(0, 1)]


def test_the_lowest_free_slot_is_taken_and_the_second_controller_follows_the_first() -> None:
    ledger = ledger_of(Attachments("linux", 2, [ScsiSlot(0, 0)]))
    tickets = [attach(ledger, DiskKey(str(n)))[0] for n in range(127)]
    assert [t.entry.slot for t in tickets] == [ScsiSlot(*divmod(n, 64)) for n in range(1, 128)]
    with pytest.raises(NoSpaceError, match=r"disk\.vhdx was not attached: no SCSI slot is free"):
        ledger.acquire(DiskKey("disk.vhdx"), "disk.vhdx")
    release(ledger, tickets[70])
    release(ledger, tickets[3])
    assert attach(ledger, DiskKey("x"))[0].entry.slot == ScsiSlot(0, 4)
    assert attach(ledger, DiskKey("y"))[0].entry.slot == ScsiSlot(1, 7)


def test_a_vm_without_controllers_has_no_slot() -> None:
    with pytest.raises(NoSpaceError):
        ledger_of(Attachments("linux", 0)).acquire(DiskKey("a"), "a")


def test_a_detach_that_the_host_refuses_goes_on_from_there() -> None:
    ledger = ledger_of(Attachments("linux"))
    ticket, _ = attach(ledger, DiskKey("a"))
    operation = ledger.drop(ticket).operation
    assert operation is not None
    _, detach = ledger.begin(operation)
    ledger.done(operation, Refused(HostError("modify", HResult.E_FAIL), (detach,)))
    assert [r["to"] for r in release(ledger, ticket)] == ["host"]
    assert len(ledger) == 0


@pytest.mark.parametrize(
    ("path", "parsed"),
    [
        ("evd://space/some/mount", ("space", "some/mount")),
        ("space/some/mount", ("space", "some/mount")),
        ("evd://space/", ("space", "")),
    ],
)
def test_an_extensible_disk_path_is_a_type_and_a_path(path: str, parsed: tuple[str, str]) -> None:
    assert parse_evd(path) == parsed


@pytest.mark.parametrize("path", ["evd://bad", "evd:///bad", "", "/x"])
def test_a_malformed_extensible_disk_path_is_refused(path: str) -> None:
    with pytest.raises(OptionsError, match="extensible virtual disk"):
        parse_evd(path)


def test_an_extensible_disk_says_its_type() -> None:
    evd_type, path = parse_evd("evd://space/some/mount")
    key = DiskKey(path, DiskType.EXTENSIBLE_VIRTUAL_DISK, evd_type, read_only=True)
    _, sent = attach(ledger_of(Attachments("linux")), key)
    assert sent[0]["doc"]["Settings"] == {
        "Type": "ExtensibleVirtualDisk",
        "Path": "some/mount",
        "ReadOnly": True,
        "ExtensibleVirtualDiskType": "space",
    }


def test_a_linux_mount_says_everything_and_its_unmount_less() -> None:
    mount = Mount(
        partition=2,
        encrypted=True,
        options=["z", "a"],
        ensure_filesystem=True,
        filesystem="ext4",
        block_device=True,
    )
    ledger = ledger_of(Mounts("linux"))
    ticket, sent = add(ledger, mount_key(ScsiSlot(1, 5), mount, read_only=True), "/disk")
    assert sent == [
        {
            "to": "guest",
            "doc": {
                "RequestType": "Add",
                "ResourceType": "MappedVirtualDisk",
                "Settings": {
                    "MountPath": "/disk",
                    "Lun": 5,
                    "Controller": 1,
                    "Partition": 2,
                    "ReadOnly": True,
                    "Encrypted": True,
                    "Options": ["a", "z"],
                    "BlockDev": True,
                    "EnsureFilesystem": True,
                    "Filesystem": "ext4",
                },
            },
        }
    ]
    assert release(ledger, ticket)[0]["doc"]["Settings"] == {
        "MountPath": "/disk",
        "Lun": 5,
        "Controller": 1,
        "Partition": 2,
        "ReadOnly": True,
        "BlockDev": True,
    }


def test_a_format_with_refs_changes_the_mount_and_not_the_unmount() -> None:
    ledger = ledger_of(Mounts("windows"))
    ticket, sent = add(ledger, mount_key(ScsiSlot(0, 2), Mount(format_with_refs=True), False), "")
    assert sent[0]["doc"] == {
        "RequestType": "Add",
        "ResourceType": "MappedVirtualDiskForContainerScratch",
        "Settings": {"ContainerPath": r"c:\mounts\scsi\m0", "Lun": 2},
    }
    assert release(ledger, ticket)[0]["doc"] == {
        "RequestType": "Remove",
        "ResourceType": "MappedVirtualDisk",
        "Settings": {"ContainerPath": r"c:\mounts\scsi\m0", "Lun": 2},
    }


def test_the_order_of_options_makes_no_other_mount() -> None:
    one, two = Mount(options=("ro", "noatime")), Mount(options=("noatime", "ro"), guest_path="/elsewhere")
    assert mount_key(FIRST, one, False) == mount_key(FIRST, two, False)
    assert mount_key(FIRST, one, False) != mount_key(FIRST, one, True)


def test_a_second_mount_elsewhere_gets_the_one_that_is_there() -> None:
    ledger = ledger_of(Mounts("linux"))
    key = MountKey(FIRST)
    add(ledger, key, "/a")
    second, sent = add(ledger, key, "/b")
    assert (second.entry.slot.path, sent) == ("/a", [])


def test_numbers_of_mounts_are_the_lowest_free() -> None:
    ledger = ledger_of(Mounts("linux"))
    tickets = [add(ledger, MountKey(ScsiSlot(0, lun)), "")[0] for lun in range(3)]
    release(ledger, tickets[1])
    again, _ = add(ledger, MountKey(ScsiSlot(0, 9)), "")
    assert again.entry.slot == MountPlace(1, "/run/mounts/scsi/m1")


@pytest.mark.parametrize(
    ("os", "taken", "asked"),
    [
        ("linux", "/data", "/data"),
        ("linux", "/data", "/data/../data/"),
        ("windows", r"C:\Data", "c:/data"),
    ],
)
def test_a_guest_path_in_use_is_refused_and_its_owner_named(
    os: Literal["linux", "windows"], taken: str, asked: str
) -> None:
    mounts = Mounts(os)
    ledger = ledger_of(mounts)
    mounts.check_free(asked, "nothing was attached")
    add(ledger, MountKey(ScsiSlot(0, 7)), taken)
    said = "is where the disk at controller 0, LUN 7 is mounted"
    with pytest.raises(OptionsError, match=f"nothing was attached: .* {said}"):
        mounts.check_free(asked, "nothing was attached")
    with pytest.raises(OptionsError, match=said):
        ledger.acquire(MountKey(FIRST), asked)
    assert len(ledger) == 1


def test_linux_guest_paths_that_differ_in_case_are_two() -> None:
    ledger = ledger_of(Mounts("linux"))
    add(ledger, MountKey(FIRST), "/data")
    assert add(ledger, MountKey(ScsiSlot(0, 1)), "/Data")[0].entry.slot.path == "/Data"


def test_a_generated_path_steps_aside_for_an_explicit_one() -> None:
    ledger = ledger_of(Mounts("linux"))
    add(ledger, MountKey(FIRST), "/run/mounts/scsi/m1")
    places = [add(ledger, MountKey(ScsiSlot(0, lun)), "")[0].entry.slot for lun in (1, 2, 3)]
    assert [p.path for p in places] == [f"/run/mounts/scsi/m{n}" for n in (2, 3, 4)]


@pytest.mark.parametrize(
    ("name", "mount"),
    [
        ("partition", Mount(partition=1)),
        ("encrypted", Mount(encrypted=True)),
        ("options", Mount(options=("ro",))),
        ("ensure_filesystem", Mount(ensure_filesystem=True)),
        ("filesystem", Mount(filesystem="ntfs")),
    ],
)
def test_a_windows_guest_refuses_what_only_linux_can(name: str, mount: Mount) -> None:
    check_mount("linux", FIRST, mount)
    with pytest.raises(NotSupportedError, match=f"does not support {name} of a mount"):
        check_mount("windows", FIRST, mount)


def test_a_windows_guest_mounts_only_disks_of_controller_0() -> None:
    check_mount("windows", ScsiSlot(0, 63), Mount(format_with_refs=True))
    with pytest.raises(NotSupportedError, match="controller 1, LUN 0"):
        check_mount("windows", ScsiSlot(1, 0), Mount())


def test_what_only_the_other_guest_can_mount_is_refused() -> None:
    check_mount("linux", ScsiSlot(1, 0), Mount(block_device=True))
    with pytest.raises(NotSupportedError, match="Windows guest does not support block_device"):
        check_mount("windows", ScsiSlot(0, 0), Mount(block_device=True))
    with pytest.raises(NotSupportedError, match="Linux guest does not support format_with_refs"):
        check_mount("linux", ScsiSlot(0, 0), Mount(format_with_refs=True))


def test_a_mount_checks_itself() -> None:
    wrong: dict[str, Any] = {"options": "ro", "partition": -1, "encrypted": "no", "filesystem": 4}
    for name, value in wrong.items():
        with pytest.raises(OptionsError, match=f"Mount.{name} must be"):
            Mount(**{name: value})


def test_a_mount_drops_its_attachment_when_it_is_gone() -> None:
    attachments, mounts = ledger_of(Attachments("linux")), ledger_of(Mounts("linux"))
    disk, _ = attach(attachments, DiskKey("a"))
    ticket, change = mounts.acquire(MountKey(disk.entry.slot), "", parent=disk)
    run(change.operation, mounts)
    operation = mounts.drop(ticket).operation
    assert operation is not None
    mounts.begin(operation)
    assert mounts.done(operation, Refused(HostError("unmount", HResult.E_FAIL))).parents == ()
    operation = mounts.drop(ticket).operation
    assert operation is not None
    mounts.begin(operation)
    assert mounts.done(operation, OK).parents == (disk,)
