"""PCI devices."""

from __future__ import annotations

from pathlib import PureWindowsPath
from typing import Any, Literal

import pytest
from hypothesis import strategies as st

from tests.devices.machine import DeviceMachine, add, ledger_of, release
from tests.devices.scripts import steps_of_script
from uvm._names import pci_function
from uvm.devices.base import Device
from uvm.devices.vpci import PCI_ID_TYPES, PciDevice, PciDevices, vmbus_instance_id
from uvm.errors import OptionsError


def device(path: str, guid: str, function: int = 0) -> tuple[Any, PciDevice]:
    """The key and the member of a device."""
    member = PciDevice(path, function, guid)
    return member.key, member


class PciMachine(DeviceMachine):
    os: Literal["linux", "windows"] = "linux"

    def make_device(self) -> Device[Any, Any, Any, Any]:
        return PciDevices(self.os, 26100)

    def draw_request(self, data: st.DataObject) -> tuple[Any, Any]:
        guid = data.draw(st.sampled_from(["g1", "g2", "g3", "g4", "g5"]))
        return device(data.draw(st.sampled_from("ab")), guid, data.draw(st.integers(0, 1)))


class WindowsPciMachine(PciMachine):
    os = "windows"


TestPci = PciMachine.TestCase
TestWindowsPci = WindowsPciMachine.TestCase


def test_the_recorded_script() -> None:
    ledger = ledger_of(PciDevices("linux", 26100))
    tickets: dict[str, Any] = {}
    for op, requests, step in steps_of_script("lcow_vpci"):
        if "error" in step:
            continue  # a second release: it is the lease that knows
        if op["op"] == "release":
            assert release(ledger, tickets[op["ref"]]) == requests
        else:
            assigned = device(op["device"], op["vmbus_guid"], op["function"])
            tickets[op["as"]], sent = add(ledger, *assigned)
            assert sent == requests
    assert len(ledger) == 0


def test_a_windows_guest_is_told_nothing() -> None:
    _, sent = add(ledger_of(PciDevices("windows", 26100)), *device("a", "g"))
    assert [r["to"] for r in sent] == ["host"]


@pytest.mark.parametrize(("build", "settings"), [(26099, {}), (26100, {"PropagateNumaAffinity": True})])
def test_numa_affinity_is_told_from_build_26100_on(build: int, settings: dict[str, bool]) -> None:
    _, sent = add(ledger_of(PciDevices("linux", build)), *device("a", "g", 3))
    functions = [{"DeviceInstancePath": "a", "VirtualFunction": 3}]
    assert sent[0]["doc"]["Settings"] == {"Functions": functions, **settings}


def test_a_guid_belongs_to_one_device() -> None:
    ledger = ledger_of(PciDevices("linux", 26100))
    ticket, _ = add(ledger, *device("a", "G1"))
    with pytest.raises(OptionsError, match="b was not assigned: another device has the VMBus GUID g1"):
        ledger.acquire(*device("b", "g1"))
    release(ledger, ticket)
    add(ledger, *device("b", "g1"))


def test_a_device_assigned_at_boot_is_entered_with_its_guid() -> None:
    ledger = ledger_of(PciDevices("linux", 26100))
    boot = ledger.adopt(*device("a", "g1"), PciDevice("a", 0, "g1"))
    joined, sent = add(ledger, *device("a", "g2"))
    assert (joined.entry.slot, sent) == ("g1", [])
    assert release(ledger, joined) == []
    assert [r["doc"]["RequestType"] for r in release(ledger, boot)] == ["Remove"]


@pytest.mark.parametrize(
    ("named", "path", "function"),
    [
        (r"PCIP\VEN_1\4&1&0/3", r"PCIP\VEN_1\4&1&0", 3),
        (r"PCIP\VEN_1\4&1&0/65535", r"PCIP\VEN_1\4&1&0", 65535),
        (r"PCIP\VEN_1\4/03", r"PCIP\VEN_1\4", 3),
        # No function, so that all of it is the path.
        (r"PCIP\VEN_1\4", r"PCIP\VEN_1\4", 0),
        ("a/65536", "a/65536", 0),
        ("a/-1", "a/-1", 0),
        ("a/", "a/", 0),
        ("/3", "/3", 0),
        ("a/\u0663", "a/\u0663", 0),
    ],
)
def test_a_path_may_name_its_function(named: str, path: str, function: int) -> None:
    assert pci_function(named, 0) == (path, function)


def test_a_path_and_an_argument_name_the_same_function_or_are_refused() -> None:
    assert pci_function("a/3", 3) == ("a", 3)
    assert pci_function("a", 3) == ("a", 3)
    assert pci_function(PureWindowsPath(r"PCI\a"), 3) == (r"PCI\a", 3)  # type: ignore[arg-type]
    with pytest.raises(OptionsError, match="a/3 names function 3, and function 4 was asked for"):
        pci_function("a/3", 4)


def test_a_device_has_the_instance_id_that_hcsshim_waits_for() -> None:
    guid = "6fb1ab1e-3c4b-4d8d-8d0c-2d6a4a9b8c11"
    assert vmbus_instance_id(guid) == rf"VMBUS\{{44c4f61d-4444-4400-9d52-802e27ede19f}}\{{{guid}}}"


def test_the_types_of_ids_that_can_be_assigned_are_those_of_hcsshim() -> None:
    assert {"vpci", "vpci-instance-id", "gpu"} == PCI_ID_TYPES
