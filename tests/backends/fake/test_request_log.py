"""The request log."""

from __future__ import annotations

import pytest

from tests.backends.fake.support import (
    DISK,
    JSON,
    add,
    backend_of,
    disk,
    expect_refusal,
    guest_of,
    host_files,
    remove,
    running,
    slot,
    to_guest,
    wcow,
)
from uvm.backend import VM_GROUP
from uvm.backends.fake import Entry, FakeBackend, RequestLog
from uvm.errors import AnswerLostError
from uvm.hresult import HResult

pytestmark = pytest.mark.anyio


async def test_every_request_is_written_down_in_order_with_its_outcome() -> None:
    backend = FakeBackend(files=host_files())
    await backend.grant_access(DISK, "vm1")
    system = await backend.create("vm1", wcow())
    await system.start()
    await system.modify(add(slot(0), disk()))
    with expect_refusal(HResult.ERROR_NOT_FOUND):
        await system.modify(remove(slot(1)))
    async with guest_of(system) as guest:
        await guest.modify(to_guest("MappedVirtualDisk", "Add", ContainerPath=r"C:\m", Lun=0))
    await system.properties("Memory")
    await system.close()
    await backend.revoke_access(DISK, "vm1")
    told = [(e.seq, e.to, e.call.operation, e.outcome) for e in backend.request_log]
    assert told == [
        (1, "grant", "grant", "ok"),
        (2, "lifecycle", "create", "ok"),
        (3, "lifecycle", "start", "ok"),
        (4, "host", "modify", "ok"),
        (5, "host", "modify", "refused"),
        (6, "host", "listen", "ok"),
        (7, "guest", "connect", "ok"),
        (8, "guest", "negotiate protocol", "ok"),
        (9, "guest", "create", "ok"),
        (10, "guest", "start", "ok"),
        (11, "guest", "modify", "ok"),
        (12, "query", "properties", "ok"),
        (13, "lifecycle", "close", "ok"),
        (14, "revoke", "revoke", "ok"),
    ]
    assert [e.document for e in backend.request_log.entries(to=("grant", "revoke"))] == [
        {"path": DISK, "vm": "vm1"}
    ] * 2


async def test_entries_are_found_by_what_they_are_about() -> None:
    async with running() as system:
        await system.modify(add(slot(0), disk()))
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.modify(remove(slot(1)))
        log = backend_of(system).request_log
        assert [e.call.resource for e in log.entries(to="host")] == [slot(0), slot(1)]
        assert len(log.entries(vm="vm1", request_type="Add")) == 1
        assert len(log.entries(resource="*/Attachments/1")) == 1
        assert [e.code for e in log.entries(outcome="refused")] == [HResult.ERROR_NOT_FOUND]
        assert log.entries(operation="pause") == []
        assert log.entries(vm="other") == []


async def test_what_the_caller_changes_later_is_not_changed_in_the_request_log() -> None:
    async with running() as system:
        request = add(slot(0), disk())
        await system.modify(request)
        request["Settings"]["Path"] = "changed"
        assert list(backend_of(system).request_log)[-1].document == add(slot(0), disk())


async def test_an_entry_prints_as_one_line() -> None:
    async with running() as system:
        backend = backend_of(system)
        backend.request_log.clear()
        await system.modify(add(slot(0), disk()))
        with expect_refusal(HResult.ERROR_NOT_FOUND):
            await system.modify(remove(slot(1)))
        await backend.grant_access(DISK, VM_GROUP)
        assert [str(entry) for entry in backend.request_log] == [
            f"host Add {slot(0)}",
            f"host Remove {slot(1)}",
            f"grant {DISK}",
        ]
        seq = next(iter(backend.request_log)).seq
        path = DISK.replace("\\", "\\\\")
        assert backend.request_log.render().splitlines() == [
            f'{seq:>5} vm1 host      Add {slot(0)} {{"Type": "VirtualDisk", "Path": "{path}"}} -> ok',
            f"{seq + 1:>5} vm1 host      Remove {slot(1)} -> refused ERROR_NOT_FOUND",
            f'{seq + 2:>5} - grant     grant {{"path": "{path}", "vm": "VM_GROUP", "mask": "read"}} -> ok',
        ]


async def test_secrets_are_not_printed() -> None:
    async with running() as system:
        async with guest_of(system) as guest:
            await guest.modify(to_guest("SecurityPolicy", "Add", EncodedSecurityPolicy="c2VjcmV0"))
        log = backend_of(system).request_log
        assert "c2VjcmV0" not in log.render()
        assert "(hidden)" in log.render()
        assert log.entries(resource="SecurityPolicy")[0].document["Settings"] == {
            "EncodedSecurityPolicy": "c2VjcmV0"
        }


async def test_long_documents_print_in_part() -> None:
    backend = FakeBackend()
    document: JSON = {"Owner": "x" * 1000}
    with expect_refusal(HResult.HCS_E_INVALID_JSON):
        await backend.create("vm1", document)
    (line,) = backend.request_log.render().splitlines()
    assert "1,013 characters" in line
    assert len(line) < 600


async def test_the_request_log_is_bounded_and_says_what_it_dropped() -> None:
    backend = FakeBackend(files=host_files(), request_log_entries=3)
    for _ in range(5):
        await backend.grant_access(DISK, "vm1")
    assert [e.seq for e in backend.request_log] == [3, 4, 5]
    assert (len(backend.request_log), backend.request_log.dropped) == (3, 2)
    backend.request_log.clear()
    assert (len(backend.request_log), backend.request_log.dropped) == (0, 0)


async def test_a_listener_sees_each_entry_once_its_outcome_is_known() -> None:
    async with running() as system:
        log, seen = backend_of(system).request_log, list[Entry]()
        stop = log.listen(seen.append)
        backend_of(system).faults.refuse(to="query", nth=1)
        with expect_refusal(HResult.E_FAIL):
            await system.properties()
        stop()
        await system.properties()
        assert [(e.to, e.outcome) for e in seen] == [("query", "refused")]


async def test_an_error_that_is_no_refusal_is_a_failure() -> None:
    async with running() as system:
        backend_of(system).faults.refuse(OSError("the guest is confused"), to="guest", operation="modify")
        async with guest_of(system) as guest:
            with pytest.raises(AnswerLostError):
                await guest.modify(to_guest("SCSIDevice", "Remove"))
        (entry,) = backend_of(system).request_log.entries(to="guest", operation="modify")
        assert (entry.outcome, entry.error) == ("failed", "OSError: the guest is confused")


def test_a_request_log_keeps_something() -> None:
    with pytest.raises(ValueError, match="one entry at least"):
        RequestLog(0)
