"""PCI devices."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import strategies as st

from tests.devices.machine import DeviceMachine, add, ledger_of, release
from tests.devices.scripts import steps_of_script
from uvm.devices.base import Device
from uvm.devices.vpci import PciDevice, PciDevices
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
