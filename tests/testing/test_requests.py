"""Logged requests are held against the expected ones, and a difference is readable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import uvm
from uvm.backends.fake import FakeBackend
from uvm.backends.fake.request_log import Entry
from uvm.errors import OptionsError
from uvm.testing.requests import assert_requests, request_line

DISK = r"C:\vm\disk.vhdx"
DEVICES = "VirtualMachine/Devices"


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    """What a disk takes, with its mount."""

    async def run() -> list[Entry]:
        backend = FakeBackend()
        backend.files.add(DISK)
        async with uvm.UtilityVM.create(uvm.LCOWOptions(id="vm1"), backend=backend) as vm:
            await vm.start()
            backend.request_log.clear()
            await vm.scsi.attach(DISK, mount=uvm.Mount(filesystem="ext4"))
            return backend.request_log.entries(to=("grant", "host", "guest"))

    return anyio.run(run)


def test_lines_wildcards_and_settings_fit(entries: list[Entry]) -> None:
    assert_requests(
        entries,
        [
            rf"grant {DISK}",
            (f"host Add {DEVICES}/Scsi/*/Attachments/0", {"Path": DISK, "Type": "VirtualDisk"}),
            ("guest Add MappedVirtualDisk", {"Filesystem": "ext4"}),
        ],
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[:2], ["  + guest Add MappedVirtualDisk"]),
        (lambda lines: [*lines, "revoke *"], ["  - revoke *"]),
        (lambda lines: [lines[1], lines[0], lines[2]], ["  - ", "  + "]),
        (lambda lines: [lines[0], (lines[1], {"Path": "other"}), lines[2]], ["  - host", '"Path": "other"']),
        (lambda lines: [], ["  + grant", "  + host", "  + guest"]),
    ],
    ids=["one too many", "one missing", "another order", "other settings", "nothing expected"],
)
def test_a_difference_shows_both(
    entries: list[Entry], change: Callable[[list[Any]], list[Any]], said: list[str]
) -> None:
    with pytest.raises(AssertionError) as raised:
        assert_requests(entries, change([request_line(entry) for entry in entries]))
    for each in said:
        assert each in str(raised.value)


@given(st.data())
def test_the_lines_of_the_log_fit_it_and_no_other_list_does(data: st.DataObject) -> None:
    backend = FakeBackend()
    backend.files.add(DISK)
    paths = data.draw(st.lists(st.sampled_from(["vm1", "vm2"]), max_size=4))

    async def run() -> None:
        for vm in paths:
            await backend.grant_access(DISK, vm)

    anyio.run(run)
    lines = [request_line(entry) for entry in backend.request_log]
    assert_requests(backend.request_log, lines)
    other = data.draw(st.lists(st.sampled_from([f"grant {DISK}", "grant ?", "host *"]), max_size=4))
    if other != lines:
        with pytest.raises(AssertionError):
            assert_requests(backend.request_log, other)


def test_secrets_are_left_out() -> None:
    backend = FakeBackend()

    async def run() -> None:
        async with uvm.UtilityVM.create(uvm.LCOWOptions(), backend=backend) as vm:
            await vm.start()
            await vm.run(["env"], env={"TOKEN": "do-not-show"})

    anyio.run(run)
    with pytest.raises(AssertionError) as raised:
        assert_requests(backend.request_log.entries(operation="execute process"), [("guest *", {"No": 1})])
    assert "do-not-show" not in str(raised.value)


def test_what_is_no_expected_request_is_refused() -> None:
    wrong: Any = 5
    with pytest.raises(OptionsError, match="a line, or a line and a mapping, not 5"):
        assert_requests([], [wrong])
