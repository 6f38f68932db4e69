"""Disks are found by their controllers and LUNs, in a sysfs that looks as the kernel's does."""

from __future__ import annotations

from pathlib import Path

import pytest

from uvm.agent.block import Disks, Slot
from uvm.agent.modules import Modules
from uvm.agent.refused import Refused


class Machine:
    """The disks of a machine in a directory: a sysfs, and device nodes."""

    def __init__(self, root: Path) -> None:
        self.sys, self.dev = root / "sys", root / "dev"
        self.dev.mkdir(parents=True)
        self.disks = Disks(Modules(str(root / "modules")), str(self.sys), str(self.dev))

    def controller(self, number: int, host: str) -> None:
        pci = self.sys / f"bus/pci/devices/0000:00:{0x10 + number:02x}.0"
        (pci / f"virtio{number}" / host).mkdir(parents=True)
        (pci / "driver").mkdir()
        scan = self.sys / "class/scsi_host" / host
        scan.mkdir(parents=True)
        (scan / "scan").touch()

    def disk(self, host: int, lun: int, name: str, *partitions: str) -> Path:
        device = self.sys / f"bus/scsi/devices/{host}:0:0:{lun}"
        (device / "block" / name).mkdir(parents=True)
        for each in (name, *partitions):
            (device / "block" / name / each).mkdir()
            (self.dev / each).write_bytes(b"a disk")
        return device

    def scanned(self, host: str) -> str:
        return (self.sys / "class/scsi_host" / host / "scan").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    # The kernel numbers hosts in any order.
    machine.controller(0, "host2")
    machine.controller(3, "host0")
    machine.controller(4, "host1")
    return machine


def test_a_disk_is_found_by_its_controller_and_lun(machine: Machine) -> None:
    machine.disk(2, 63, "sda")
    machine.disk(0, 63, "sdb", "sdb1")
    assert machine.disks.wait(Slot(0, 63)) == str(machine.dev / "sda")
    assert machine.disks.wait(Slot(3, 63)) == str(machine.dev / "sdb")
    assert machine.disks.wait(Slot(3, 63), 1) == str(machine.dev / "sdb1")


def test_a_disk_whose_capacity_was_not_read_is_asked_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = machine.disk(0, 63, "sdb")
    (machine.dev / "sdb").write_bytes(b"")

    def sleep(seconds: float) -> None:
        # The kernel does what was asked of it.
        assert (device / "rescan").read_text() == "1"
        (machine.dev / "sdb").write_bytes(b"a disk")

    monkeypatch.setattr("time.sleep", sleep)
    assert machine.disks.wait(Slot(3, 63)) == str(machine.dev / "sdb")


def test_what_the_kernel_knows_is_not_scanned(machine: Machine) -> None:
    machine.disk(0, 63, "sdb")
    machine.disks.wait(Slot(3, 63))
    assert machine.scanned("host0") == ""


def test_one_lun_is_scanned_for_a_disk_that_is_not_there(machine: Machine) -> None:
    machine.disk(0, 6, "sda")
    with pytest.raises(Refused, match="there is no disk 3:63"):
        machine.disks.wait(Slot(3, 63), seconds=0)
    assert machine.scanned("host0") == "0 0 63"
    with pytest.raises(Refused, match="there is no disk 1:0"):
        machine.disks.wait(Slot(1, 0), seconds=0)


def test_a_partition_that_is_not_there_is_refused(machine: Machine) -> None:
    machine.disk(0, 63, "sdb", "sdb1")
    with pytest.raises(Refused, match="there is no disk 3:63 with a partition 2"):
        machine.disks.wait(Slot(3, 63), 2, seconds=0)


def test_a_node_that_cannot_be_opened_yet_is_waited_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.disk(0, 63, "sdb")
    node = machine.dev / "sdb"
    node.unlink()
    monkeypatch.setattr("time.sleep", lambda seconds: node.write_bytes(b"a disk"))
    assert machine.disks.wait(Slot(3, 63)) == str(node)


def test_a_disk_is_ejected_once(machine: Machine) -> None:
    device = machine.disk(0, 63, "sdb")
    machine.disks.eject(Slot(3, 63))
    assert (device / "delete").read_text() == "1"
    machine.disks.eject(Slot(3, 62))


def test_a_vpmem_device_has_a_link_of_its_number_while_it_is_there(machine: Machine) -> None:
    machine.disk(1, 5, "sdc")
    assert machine.disks.wait_vpmem(5) == str(machine.dev / "pmem5")
    assert (machine.dev / "pmem5").readlink() == machine.dev / "sdc"
    machine.disks.eject_vpmem(5)
    assert not (machine.dev / "pmem5").is_symlink()


def mapping(machine: Machine, lun: int, name: str, serial: bytes) -> None:
    device = machine.disk(1, lun, name)
    (device / "vpd_pg80").write_bytes(b"\0\x80\0" + bytes([len(serial)]) + serial)


def test_a_mapping_is_found_by_its_serial_number(machine: Machine) -> None:
    mapping(machine, 0x4100, "sdd", b"pmem-5-0")
    mapping(machine, 0x4101, "sde", b"pmem-5-4096 ")
    machine.disk(1, 5, "sdf")
    assert machine.disks.wait_vpmem(5, 4096) == str(machine.dev / "sde")
    assert machine.disks.wait_vpmem(5, 0) == str(machine.dev / "sdd")
    assert machine.scanned("host1") == ""
    machine.disks.eject_vpmem(5, 4096)
    assert (machine.sys / "bus/scsi/devices/1:0:0:16641/delete").read_text() == "1"
    assert not (machine.sys / "bus/scsi/devices/1:0:0:5/delete").exists()


def test_all_luns_that_there_are_are_scanned_for_a_mapping(machine: Machine) -> None:
    mapping(machine, 0x4100, "sdd", b"pmem-5-0")
    with pytest.raises(Refused, match="there is no disk mapping at 8192 of /dev/pmem5"):
        machine.disks.wait_vpmem(5, 8192, seconds=0)
    assert machine.scanned("host1") == "0 0 -"


def test_a_link_of_a_vpmem_device_that_was_replaced_is_replaced(machine: Machine) -> None:
    machine.disk(1, 5, "sdc")
    (machine.dev / "pmem5").symlink_to(machine.dev / "sdx")
    machine.disks.wait_vpmem(5)
    assert (machine.dev / "pmem5").readlink() == machine.dev / "sdc"
