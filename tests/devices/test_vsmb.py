"""VSMB: directories and single files."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.devices.machine import DeviceMachine, add, ledger_of, release, run
from tests.devices.scripts import steps_of_script
from uvm._names import host_path_key
from uvm.devices.base import HELD, OK, Device, Entry, Refused, Unknown
from uvm.devices.ledger import Ledger
from uvm.devices.vsmb import (
    SharedFile,
    ShareKey,
    ShareMember,
    Shares,
    default_options,
    direct_map_needs_file_ids,
    file_options,
    guest_path,
)
from uvm.errors import HostError, UnknownOutcomeError
from uvm.hresult import HResult
from uvm.schema.devices import VirtualSmbShareOptions

PREFIX = "\\\\?\\VMSMB\\VSMB-{dcc079ae-60ba-4d07-847c-3493609c0870}\\"
FILES = ShareKey(r"C:\d", True, False)


def file(name: str, no_direct_map: bool = True) -> ShareMember:
    shared = SharedFile(name.upper(), rf"C:\d\{name}")
    return ShareMember(r"C:\d", shared, file_options(default_options(True, no_direct_map)))


def directory(read_only: bool = True, no_direct_map: bool = False) -> ShareMember:
    return ShareMember(r"C:\d", None, default_options(read_only, no_direct_map))


class SharesMachine(DeviceMachine):
    revoke = False

    def make_device(self) -> Device[Any, Any, Any, Any]:
        return Shares(self.revoke)

    def draw_request(self, data: st.DataObject) -> tuple[Any, Any]:
        # Direct-mapped or not goes by directory: it is a matter of the VM and the file system.
        no_direct_map = data.draw(st.booleans())
        is_directory = data.draw(st.booleans())
        key = ShareKey(r"C:\no" if no_direct_map else r"C:\direct", True, is_directory)
        options = default_options(True, no_direct_map)
        if is_directory:
            return key, ShareMember(key.directory, None, options)
        options = file_options(options)
        options.no_locks = data.draw(st.booleans())
        name = data.draw(st.sampled_from(["f", "g", "h"]))
        shared = SharedFile(name, data.draw(st.sampled_from([name, name.upper()])))
        return key, ShareMember(key.directory, shared, options)

    def own_name(self, key: Hashable, member: Any) -> Hashable:
        return key, member.file

    def is_retained(self, entry: Entry[Any, Any, Any, Any]) -> bool:
        assert entry.applied is not None
        return not entry.applied.options.no_directmap

    def taken(self, dump: Any) -> Any:
        return None  # names are never given back

    def finish(self, operation: Any, steps: Any, reached: int, outcome: Any) -> None:
        for step in steps:
            settings = step.request.settings
            assert len({name.lower() for name in settings.allowed_files}) == len(settings.allowed_files)
            if step.request.request_type != "Remove":
                assert bool(settings.allowed_files) == settings.options.restrict_file_access
        super().finish(operation, steps, reached, outcome)

    def check_slots(self, slots: list[Any]) -> None:
        super().check_slots(slots)
        for entry in self.ledger:
            if entry.applied is None or entry.key.is_directory or entry.doubtful:
                continue
            held = {ticket.member.file for ticket in entry.holders}
            assert held <= set(entry.applied.files)


class RevokingSharesMachine(SharesMachine):
    revoke = True

    def become_quiet(self) -> None:
        super().become_quiet()
        for entry in self.ledger:
            assert self.is_retained(entry) or not entry.wanted


TestShares = SharesMachine.TestCase
TestRevokingShares = RevokingSharesMachine.TestCase


def test_the_recorded_script() -> None:
    ledger = ledger_of(Shares())
    tickets: dict[str, Any] = {}
    for op, requests, step in steps_of_script("wcow_vsmb_dirs"):
        if op["op"] == "release":
            assert release(ledger, tickets[op["ref"]]) == requests
        elif op["op"] == "vsmb_add":
            key = ShareKey(host_path_key(op["path"], "windows"), op["read_only"], True)
            member = ShareMember(op["path"], None, default_options(op["read_only"], False))
            tickets[op["as"]], sent = add(ledger, key, member)
            # hcsshim writes the options even where they are empty, and so does the model's JSON.
            assert sent == requests
            assert guest_path(tickets[op["as"]].entry.slot) == step["guest_path"]


def allowed(sent: list[Any]) -> list[tuple[str, list[str]]]:
    return [(r["doc"]["RequestType"], r["doc"]["Settings"].get("AllowedFiles", [])) for r in sent]


def test_files_of_a_directory_share_one_share_in_the_order_in_which_they_came() -> None:
    ledger = ledger_of(Shares())
    first, sent = add(ledger, FILES, file("b"))
    assert sent == [
        {
            "to": "host",
            "doc": {
                "ResourcePath": "VirtualMachine/Devices/VirtualSmb/Shares",
                "RequestType": "Add",
                "Settings": {
                    "Name": "s1",
                    "Path": r"C:\d",
                    "AllowedFiles": [r"C:\d\b"],
                    "Options": {
                        "ReadOnly": True,
                        "ShareRead": True,
                        "CacheIo": True,
                        "PseudoOplocks": True,
                        "NoDirectmap": True,
                        "RestrictFileAccess": True,
                        "SingleFileMapping": True,
                    },
                },
            },
        }
    ]
    second, sent = add(ledger, FILES, file("a"))
    assert allowed(sent) == [("Update", [r"C:\d\b", r"C:\d\a"])]
    third, sent = add(ledger, FILES, file("b"))
    assert sent == []
    assert release(ledger, second) == []
    assert release(ledger, third) == []
    assert release(ledger, first) == [
        {
            "to": "host",
            "doc": {
                "ResourcePath": "VirtualMachine/Devices/VirtualSmb/Shares",
                "RequestType": "Remove",
                "Settings": {"Name": "s1"},
            },
        }
    ]


def test_files_that_ask_during_an_update_go_together_into_the_next() -> None:
    ledger = ledger_of(Shares())
    add(ledger, FILES, file("a"))
    _, update = ledger.acquire(FILES, file("b"))
    assert update.operation is not None
    ledger.begin(update.operation)
    waiting = [ledger.acquire(FILES, file(name))[0] for name in "cd"]
    change = ledger.done(update.operation, OK)
    assert allowed(run(change.operation, ledger)) == [("Update", [rf"C:\d\{name}" for name in "abcd"])]
    assert [t.state for t in waiting] == [HELD, HELD]


def test_a_released_file_stays_and_its_next_user_needs_no_update() -> None:
    ledger = ledger_of(Shares())
    add(ledger, FILES, file("a"))
    ticket, _ = add(ledger, FILES, file("b"))
    assert release(ledger, ticket) == []
    assert add(ledger, FILES, file("b"))[1] == []


def test_a_revoked_file_goes_at_once_and_never_the_last_one() -> None:
    ledger = ledger_of(Shares(revoke_released_files=True))
    first, _ = add(ledger, FILES, file("a"))
    second, _ = add(ledger, FILES, file("b"))
    assert allowed(release(ledger, first)) == [("Update", [r"C:\d\b"])]
    assert allowed(release(ledger, second)) == [("Remove", [])]


def test_files_of_a_direct_mapped_share_are_not_revoked() -> None:
    ledger = ledger_of(Shares(revoke_released_files=True))
    tickets = [add(ledger, FILES, file(name, no_direct_map=False))[0] for name in "ab"]
    assert [release(ledger, ticket) for ticket in tickets] == [[], []]
    (entry,) = ledger
    assert entry.applied is not None
    assert [file.path for file in entry.applied.files] == [r"C:\d\a", r"C:\d\b"]


def test_a_direct_mapped_share_stays_for_whoever_comes_back() -> None:
    ledger = ledger_of(Shares())
    key = ShareKey(r"C:\d", True, True)
    ticket, _ = add(ledger, key, directory())
    assert release(ledger, ticket) == []
    again, sent = add(ledger, key, directory())
    assert (again.entry.slot, sent) == ("s1", [])


def test_read_only_and_writable_directories_and_files_are_kept_apart() -> None:
    ledger = ledger_of(Shares())
    names = [
        add(ledger, ShareKey(r"C:\d", read_only, True), directory(read_only))[0].entry.slot
        for read_only in (True, False)
    ]
    assert [*names, add(ledger, FILES, file("a"))[0].entry.slot] == ["s1", "s2", "s3"]


def test_names_count_in_hexadecimal_and_are_not_used_again() -> None:
    ledger = ledger_of(Shares())
    for number in range(1, 18):
        ticket, _ = add(ledger, FILES, file("a"))
        assert ticket.entry.slot == f"s{number:x}"
        release(ledger, ticket)


def test_an_update_carries_the_options_of_the_newest() -> None:
    ledger = ledger_of(Shares())
    add(ledger, FILES, file("a"))
    newest = file("b")
    newest.options.no_locks = True
    _, sent = add(ledger, FILES, newest)
    assert sent[0]["doc"]["Settings"]["Options"]["NoLocks"] is True


def test_default_options() -> None:
    assert default_options(read_only=False, no_direct_map=False) == VirtualSmbShareOptions()
    assert default_options(read_only=False, no_direct_map=True) == VirtualSmbShareOptions(no_directmap=True)
    assert default_options(read_only=True, no_direct_map=False) == VirtualSmbShareOptions(
        share_read=True, cache_io=True, read_only=True, pseudo_oplocks=True
    )


@pytest.mark.parametrize(
    ("build", "needs"), [(17763, False), (18362, True), (19041, True), (19042, True), (19043, False)]
)
def test_builds_19h1_to_20h2_ask_for_file_ids(build: int, needs: bool) -> None:
    assert direct_map_needs_file_ids(build) is needs


def test_guest_paths() -> None:
    assert guest_path("s1") == PREFIX + "s1"
    assert guest_path("sa", "f.txt") == PREFIX + r"sa\f.txt"


def test_a_share_that_stays_after_an_unknown_update_has_an_owner() -> None:
    ledger: Ledger[ShareKey, ShareMember, str, Any, object] = Ledger(Shares(revoke_released_files=True))
    key = ShareKey(r"C:\d", True, False)
    held, change = ledger.acquire(key, file("g"))
    assert change.operation is not None
    ledger.begin(change.operation)
    ledger.done(change.operation, OK)
    waiting, change = ledger.acquire(key, file("f"))
    update = change.operation
    assert update is not None
    ledger.drop(held)
    ledger.begin(update)
    removal = ledger.done(update, Unknown(UnknownOutcomeError("lost"))).operation
    assert removal is not None
    ledger.begin(removal)
    ledger.done(removal, Refused(HostError("remove", HResult.E_FAIL)))
    [entry] = ledger
    [owner] = entry.owed
    assert owner in (held, waiting)
    again = ledger.drop(owner).operation
    assert again is not None
    ledger.begin(again)
    ledger.done(again, OK)
    assert not len(ledger)
