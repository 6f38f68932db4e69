"""Plan9 shares."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from tests.devices.machine import DeviceMachine, add, ledger_of, release
from tests.devices.scripts import steps_of_script
from uvm.devices.base import Device
from uvm.devices.plan9 import Plan9Shares, SharedDirectory, check_share
from uvm.errors import NotSupportedError, OptionsError


class Plan9Machine(DeviceMachine):
    def make_device(self) -> Device[Any, Any, Any, Any]:
        return Plan9Shares()

    def draw_request(self, data: st.DataObject) -> tuple[Any, Any]:
        assert isinstance(self.ledger.device, Plan9Shares)
        key = self.ledger.device.new_key()
        return key, SharedDirectory("C:\\d", f"/mnt/{key}", data.draw(st.booleans()))

    def taken(self, dump: Any) -> Any:
        return None  # names are never given back


TestPlan9 = Plan9Machine.TestCase


def test_the_recorded_script() -> None:
    device = Plan9Shares()
    ledger = ledger_of(device)
    tickets: dict[str, Any] = {}
    for op, requests, step in steps_of_script("lcow_plan9"):
        if op["op"] == "release":
            assert release(ledger, tickets[op["ref"]]) == requests
            continue
        given = (
            op["path"],
            op["guest_path"],
            op.get("read_only", False),
            op.get("restrict", False),
            tuple(op.get("allowed_names", ())),
        )
        if "error" in step:
            with pytest.raises(OptionsError, match="guest path"):
                SharedDirectory(*given)
            continue
        share = SharedDirectory(*given)
        check_share(26100, "\\", share)
        tickets[op["as"]], sent = add(ledger, device.new_key(), share)
        assert sent == requests
    assert len(ledger) == 0


@pytest.mark.parametrize(("build", "possible"), [(17763, False), (18361, False), (18362, True)])
def test_files_can_be_hidden_from_build_18362_on(build: int, possible: bool) -> None:
    share = SharedDirectory("C:\\d", "/mnt", restrict=True, allowed_files=("f",))
    check_share(build, "\\", SharedDirectory("C:\\d", "/mnt"))
    if possible:
        check_share(build, "\\", share)
    else:
        with pytest.raises(NotSupportedError, match=f"takes Windows build 18362, and this is {build}"):
            check_share(build, "\\", share)


def test_the_same_directory_twice_is_two_shares() -> None:
    device = Plan9Shares()
    ledger = ledger_of(device)
    share = SharedDirectory("C:\\d", "/mnt")
    names = [add(ledger, device.new_key(), share)[0].entry.slot for _ in range(11)]
    assert names == [str(n) for n in range(11)]


def test_the_host_share_is_undone_as_it_is_removed() -> None:
    device = Plan9Shares()
    ledger = ledger_of(device)
    ticket, change = ledger.acquire(device.new_key(), SharedDirectory("C:\\d", "/mnt"))
    assert change.operation is not None
    on_host, _ = ledger.begin(change.operation)
    assert on_host.undo is not None
    settings = on_host.undo.request.settings
    assert (on_host.undo.request.request_type, settings.name, settings.path) == ("Remove", "0", "")
    assert ticket.key == 0
